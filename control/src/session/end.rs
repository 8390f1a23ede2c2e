//! How a stream comes to its end, and the worker's own end that it may be told of.

use forebay_proto::wire;
use tokio_util::sync::CancellationToken;
use tonic::Status;

/// How a stream ends.
#[derive(Debug)]
pub(super) enum End {
    /// The worker closed it.
    Closed,
    /// We close it, and say why.
    Told(Status),
    /// We close it in good order.
    Goodbye(wire::goodbye::Reason, Status),
}

pub(super) fn stopping() -> End {
    let status = Status::unavailable("the control plane is stopping");
    End::Goodbye(wire::goodbye::Reason::Stopping, status)
}

/// Waits until the worker is to be told.
pub(super) async fn told(drain: Option<&CancellationToken>) {
    match drain {
        Some(drain) => drain.cancelled().await,
        None => std::future::pending().await,
    }
}
