//! Why a stream to a control plane ended, in words and as what it means for going on.

use std::{error::Error as _, time::Duration};

use forebay_proto::{Position, wire};
use tonic::Code;

use super::{chooser::Left, incoming::Broken};

/// Why a stream ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum Ended {
    #[error("cannot connect: {0}")]
    Connect(#[from] tonic::transport::Error),
    #[error("{}: {}", .0.code(), .0.message())]
    Status(#[from] tonic::Status),
    #[error("no answer within {0:?}")]
    NoAnswer(Duration),
    #[error("silent for {0:?}")]
    Silent(Duration),
    #[error("closed by the control plane")]
    Closed,
    #[error("protocol error: {0}")]
    Protocol(&'static str),
    #[error("{}", told(*.0))]
    Told(wire::goodbye::Reason),
    #[error("{}", went(*.0))]
    Away(Left),
    #[error(
        "it has {}, of another store than {}, which is in force, and most of the control planes that are \
         named do not; staying with what is in force. Name control planes of one store in --control; to go over to \
         the other store, name only its control planes",
        .0.theirs, .0.ours
    )]
    Foreign(Box<Foreign>),
    #[error("stopping")]
    Stopping,
}

/// What a control plane of another store has, and what is in force.
#[derive(Debug)]
pub(super) struct Foreign {
    pub(super) theirs: Position,
    pub(super) ours: Position,
}

impl From<Broken> for Ended {
    fn from(broken: Broken) -> Self {
        Self::Protocol(broken.text())
    }
}

impl Ended {
    /// What it means for where to go next, and when.
    pub(super) fn left(&self) -> Left {
        use wire::goodbye::Reason;
        match self {
            Self::Stopping => Left::Age,
            Self::Away(left) => *left,
            Self::Told(Reason::Stopping) => Left::Stopping,
            Self::Told(Reason::Behind) => Left::Behind,
            Self::Told(Reason::Age) => Left::Age,
            // A later build has a reason that this one does not know.
            Self::Told(Reason::Unspecified) => Left::Busy,
            Self::Foreign(_) => Left::Foreign,
            Self::Connect(_) | Self::NoAnswer(_) | Self::Silent(_) | Self::Closed => Left::Lost,
            Self::Protocol(_) => Left::Refused,
            Self::Status(status) => match (of_code(status.code()), status.source()) {
                // It said so itself; otherwise this was made here, of what became of the connection.
                (Left::Lost, None) => Left::Busy,
                (left, _) => left,
            },
        }
    }
}

impl Ended {
    /// Whether another process has this one's place now.
    pub(super) fn loses_place(&self) -> bool {
        matches!(self, Self::Status(status) if matches!(status.code(), Code::Aborted | Code::AlreadyExists))
    }
}

fn of_code(code: Code) -> Left {
    match code {
        Code::AlreadyExists => Left::Twin,
        Code::ResourceExhausted => Left::Full,
        Code::InvalidArgument
        | Code::FailedPrecondition
        | Code::PermissionDenied
        | Code::Unauthenticated
        | Code::Unimplemented
        | Code::OutOfRange
        | Code::NotFound
        // A newer stream of the same worker id: two that share one must not chase each other.
        | Code::Aborted => Left::Refused,
        Code::Ok
        | Code::Cancelled
        | Code::Unknown
        | Code::DeadlineExceeded
        | Code::Internal
        | Code::Unavailable
        | Code::DataLoss => Left::Lost,
    }
}

fn told(reason: wire::goodbye::Reason) -> &'static str {
    use wire::goodbye::Reason;
    match reason {
        Reason::Stopping => "the control plane stops",
        Reason::Age => "the stream is old enough",
        Reason::Behind => {
            "this worker runs a newer revision than the control plane has, or that does not hear from its store"
        }
        Reason::Unspecified => "the control plane says goodbye",
    }
}

fn went(left: Left) -> &'static str {
    match left {
        Left::Unlisted => "its address is no longer one of its name's",
        _ => "another control plane has fewer workers",
    }
}
