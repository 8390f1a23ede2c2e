//! How errors look on the wire: a code, a message that says it all (some clients show nothing else),
//! every bad field as google.rpc.BadRequest, and a stable reason as google.rpc.ErrorInfo.

use std::collections::HashMap;

use forebay_proto::Violations;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

use crate::{
    registry::{PastError, WriteError},
    store::StoreError,
};

/// Longest field path and message of one violation that are told, in characters.
const FIELD_CHARS: usize = 200;
const MESSAGE_CHARS: usize = 400;
/// Most text of violations in one status, in bytes.
const TOLD_BYTES: usize = 3 * 1024;

/// The domain of every reason.
const DOMAIN: &str = "forebay.dev";

/// Stable words that programs may act on.
#[derive(Debug, Clone, Copy)]
pub(super) enum Reason {
    InvalidArgument,
    ModelNotFound,
    WorkerNotFound,
    WorkerGone,
    WorkerElsewhere,
    WorkerTooOld,
    WorkerConnected,
    NotFleetWide,
    LeasesElsewhere,
    KeyNotFound,
    KeyRevoked,
    NameTaken,
    EtagMismatch,
    RequestIdReused,
    LimitReached,
    Busy,
    NotCommitted,
    CommitUnknown,
    Contended,
    Stopping,
    RevisionNotReached,
    RevisionForgotten,
    RevisionMoved,
    HistoryUnreadable,
    ProbeFailed,
}

impl Reason {
    fn word(self) -> &'static str {
        match self {
            Self::InvalidArgument => "INVALID_ARGUMENT",
            Self::ModelNotFound => "MODEL_NOT_FOUND",
            Self::WorkerNotFound => "WORKER_NOT_FOUND",
            Self::WorkerGone => "WORKER_GONE",
            Self::WorkerElsewhere => "WORKER_ELSEWHERE",
            Self::WorkerTooOld => "WORKER_TOO_OLD",
            Self::WorkerConnected => "WORKER_CONNECTED",
            Self::NotFleetWide => "NOT_FLEET_WIDE",
            Self::LeasesElsewhere => "LEASES_ELSEWHERE",
            Self::KeyNotFound => "KEY_NOT_FOUND",
            Self::KeyRevoked => "KEY_REVOKED",
            Self::NameTaken => "NAME_TAKEN",
            Self::EtagMismatch => "ETAG_MISMATCH",
            Self::RequestIdReused => "REQUEST_ID_REUSED",
            Self::LimitReached => "LIMIT_REACHED",
            Self::Busy => "BUSY",
            Self::NotCommitted => "NOT_COMMITTED",
            Self::CommitUnknown => "COMMIT_UNKNOWN",
            Self::Contended => "CONTENDED",
            Self::Stopping => "STOPPING",
            Self::RevisionNotReached => "REVISION_NOT_REACHED",
            Self::RevisionForgotten => "REVISION_FORGOTTEN",
            Self::RevisionMoved => "REVISION_MOVED",
            Self::HistoryUnreadable => "HISTORY_UNREADABLE",
            Self::ProbeFailed => "PROBE_FAILED",
        }
    }
}

/// A refused write.
pub(super) fn of(error: WriteError) -> Status {
    let message = error.to_string();
    match &error {
        WriteError::Invalid(violations) => return violated(violations),
        WriteError::AlreadyExists { field, .. } => {
            let mut details = info(Reason::NameTaken, &[("field", field)]);
            details.add_bad_request_violation(field, &message);
            return Status::with_error_details(Code::AlreadyExists, message, details);
        }
        WriteError::RequestIdReused(_) => {
            let mut details = info(Reason::RequestIdReused, &[]);
            details.add_bad_request_violation("request_id", &message);
            return Status::with_error_details(Code::InvalidArgument, message, details);
        }
        _ => {}
    }
    let (code, reason) = kind(&error);
    with_reason(code, reason, message)
}

fn kind(error: &WriteError) -> (Code, Reason) {
    match error {
        WriteError::Invalid(_) => (Code::InvalidArgument, Reason::InvalidArgument),
        WriteError::AlreadyExists { .. } => (Code::AlreadyExists, Reason::NameTaken),
        WriteError::RequestIdReused(_) => (Code::InvalidArgument, Reason::RequestIdReused),
        WriteError::NotFound(_) => (Code::NotFound, Reason::ModelNotFound),
        WriteError::KeyNotFound(_) => (Code::NotFound, Reason::KeyNotFound),
        WriteError::KeyRevoked(_) => (Code::FailedPrecondition, Reason::KeyRevoked),
        WriteError::EtagMismatch { .. } => (Code::Aborted, Reason::EtagMismatch),
        WriteError::Moved { .. } => (Code::Aborted, Reason::RevisionMoved),
        WriteError::LimitReached(_) => (Code::ResourceExhausted, Reason::LimitReached),
        WriteError::Busy => (Code::ResourceExhausted, Reason::Busy),
        WriteError::Store(StoreError::NotCommitted(_)) => (Code::Unavailable, Reason::NotCommitted),
        WriteError::Store(StoreError::Unknown(_)) => (Code::Unavailable, Reason::CommitUnknown),
        WriteError::Store(StoreError::Conflict) => (Code::Aborted, Reason::Contended),
        WriteError::Stopping => (Code::Unavailable, Reason::Stopping),
        WriteError::Past(error) => past_kind(error),
        WriteError::Item { error, .. } => kind(error),
    }
}

fn past_kind(error: &PastError) -> (Code, Reason) {
    match error {
        PastError::NotReached { .. } => (Code::FailedPrecondition, Reason::RevisionNotReached),
        PastError::Forgotten { .. } => (Code::FailedPrecondition, Reason::RevisionForgotten),
        PastError::Unreadable(_) => (Code::Unavailable, Reason::HistoryUnreadable),
    }
}

/// A past that cannot be had.
pub(super) fn of_past(error: PastError) -> Status {
    let (code, reason) = past_kind(&error);
    with_reason(code, reason, error.to_string())
}

/// A code with its reason.
pub(super) fn with_reason(code: Code, reason: Reason, message: impl Into<String>) -> Status {
    Status::with_error_details(code, message, info(reason, &[]))
}

/// Every bad field.
pub(super) fn violated(violations: &Violations) -> Status {
    violated_as(Code::InvalidArgument, Reason::InvalidArgument, violations)
}

/// The same with another code. As far as they fit: a status travels in headers, of which clients take 16 KiB,
/// once as text and once more encoded in base64.
pub(super) fn violated_as(code: Code, reason: Reason, violations: &Violations) -> Status {
    let mut details = info(reason, &[]);
    let (mut told, mut bytes) = (Violations::new(), 0);
    for violation in violations.as_slice() {
        let field: String = violation.field.chars().take(FIELD_CHARS).collect();
        let message: String = violation.message.chars().take(MESSAGE_CHARS).collect();
        bytes += field.len() + message.len();
        if bytes > TOLD_BYTES {
            break;
        }
        details.add_bad_request_violation(&field, &message);
        told.add(field, message);
    }
    let mut text = told.to_string();
    match violations.as_slice().len() - told.as_slice().len() {
        0 => {}
        more => text.push_str(&format!("; and {more} more")),
    }
    Status::with_error_details(code, text, details)
}

fn info(reason: Reason, metadata: &[(&str, &str)]) -> ErrorDetails {
    let pair = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
    let metadata: HashMap<String, String> = metadata.iter().map(pair).collect();
    let mut details = ErrorDetails::new();
    details.set_error_info(reason.word(), DOMAIN, metadata);
    details
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Clients take 16 KiB of headers; beyond it they see a broken connection and no message at all.
    #[test]
    fn a_status_fits_the_headers_of_any_client() {
        let mut violations = Violations::new();
        for n in 0..10_000 {
            violations.add(format!("model.endpoints[{n}].url"), "\u{fc}".repeat(600));
        }
        let status = violated(&violations);
        // Text is percent-encoded, details are base64.
        let headers = status.message().len() * 3 + status.details().len() * 4 / 3;
        assert!(headers < 15 * 1024, "{headers} bytes");
        assert!(status.message().contains("model.endpoints[0].url"));
        assert!(status.message().ends_with("more"), "{}", status.message());
    }
}
