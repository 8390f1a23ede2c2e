//! How a stream comes to its end, and the worker's own end that it may be told of.

use forebay_proto::{WorkerId, wire};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tonic::Status;

use super::machine::{Event, Why};
use crate::fleet::{Challenge, Joined};

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

/// What it means that a deadline is over: of an answer to keys, of a reader that does not read, or the machine's own.
pub(super) fn time_of(
    late: Option<Instant>,
    stalled: Option<Instant>,
) -> Result<Option<Event>, Status> {
    let over = |due: Option<Instant>| due.is_some_and(|due| due <= Instant::now());
    if over(late) {
        return Err(Why::NoAnswer.status());
    }
    if over(stalled) {
        return Err(Status::deadline_exceeded(
            "the worker has not read for too long",
        ));
    }
    Ok(Some(Event::Time))
}

/// Waits until the worker is to be told.
pub(super) async fn told(drain: Option<&CancellationToken>) {
    match drain {
        Some(drain) => drain.cancelled().await,
        None => std::future::pending().await,
    }
}

/// Waits until the worker is to prove that it is alive.
pub(super) async fn challenged(joined: Option<&mut (WorkerId, Joined)>) -> Challenge {
    let Some((_, joined)) = joined else {
        return std::future::pending().await;
    };
    while joined.challenge.changed().await.is_ok() {
        if let Some(challenge) = joined.challenge.borrow_and_update().clone() {
            return challenge;
        }
    }
    std::future::pending().await
}
