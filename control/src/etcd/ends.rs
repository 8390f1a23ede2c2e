//! How calls to etcd end: refused, not reached, or unknown. It sends nothing.

use tonic::{Code, Status};

/// Why a call failed.
#[derive(Debug, Clone)]
pub(crate) enum CallError {
    /// etcd said no: it was not done.
    Refused(Status),
    /// It was never sent: it was not done.
    NotReached(String),
    /// It may have been done.
    Unknown(String),
}

impl std::fmt::Display for CallError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Refused(status) => write!(f, "{}", status.message()),
            Self::NotReached(why) | Self::Unknown(why) => f.write_str(why),
        }
    }
}

impl CallError {
    /// What was asked for at a revision is compacted.
    pub(crate) fn is_compacted(&self) -> bool {
        matches!(self, Self::Refused(status) if status.code() == Code::OutOfRange)
    }

    /// The lease is over.
    pub(crate) fn is_gone(&self) -> bool {
        matches!(self, Self::Refused(status) if status.code() == Code::NotFound)
    }
}

/// How one try ended.
pub(super) enum Failed {
    /// Before it was sent.
    Connect(String),
    /// After.
    Unanswered(String),
    /// The token is too old; it was not done.
    Token,
    Refused(Status),
}

/// What a status says of the call: whether it was done.
pub(super) fn judge(status: Status) -> Failed {
    let text = status.message();
    match status.code() {
        Code::Unauthenticated => Failed::Token,
        Code::InvalidArgument if text.contains("auth") || text.contains("user name") => {
            Failed::Token
        }
        // It takes no more at the moment; that there is no room will not change by itself.
        Code::ResourceExhausted if !text.contains("space") => Failed::Connect(text.to_owned()),
        Code::InvalidArgument
        | Code::NotFound
        | Code::PermissionDenied
        | Code::FailedPrecondition
        | Code::OutOfRange
        | Code::ResourceExhausted
        | Code::Unimplemented
        | Code::AlreadyExists => Failed::Refused(status),
        _ => Failed::Unanswered(chain(&status)),
    }
}

/// Without a token nothing was sent.
pub(super) fn before_it_was_sent(status: Status) -> Failed {
    match judge(status) {
        Failed::Unanswered(why) => Failed::Connect(why),
        failed => failed,
    }
}

/// An error with what caused it.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text.chars().take(300).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_tells_whether_it_was_done() {
        let of = |code, text: &str| match judge(Status::new(code, text)) {
            Failed::Connect(_) => "not done",
            Failed::Unanswered(_) => "unknown",
            Failed::Token => "token",
            Failed::Refused(_) => "refused",
        };
        let said = "etcdserver: mvcc: database space exceeded";
        assert_eq!(of(Code::ResourceExhausted, said), "refused");
        assert_eq!(
            of(Code::ResourceExhausted, "etcdserver: too many requests"),
            "not done"
        );
        assert_eq!(
            of(Code::Unavailable, "etcdserver: leader changed"),
            "unknown"
        );
        assert_eq!(
            of(Code::Unavailable, "etcdserver: request timed out"),
            "unknown"
        );
        assert_eq!(
            of(Code::Unauthenticated, "etcdserver: invalid auth token"),
            "token"
        );
        assert_eq!(
            of(Code::PermissionDenied, "etcdserver: permission denied"),
            "refused"
        );
        assert_eq!(
            of(Code::OutOfRange, "required revision has been compacted"),
            "refused"
        );
    }
}
