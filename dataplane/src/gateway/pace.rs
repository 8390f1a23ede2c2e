//! A request's body on its way in: how slowly it may come.
//!
//! A deadline alone lets a client hold a place for as long as it lasts with a byte now and then. What comes
//! has to come at a rate, once it had time to get going. It costs nothing while frames are there: the
//! deadline is only looked at when nothing is.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::time::Instant;

use super::alarm::Alarm;

/// Bytes that have to come in a second.
const RATE: u64 = 1024;

/// Why a body was not read to its end.
#[derive(Debug, thiserror::Error)]
pub(super) enum PaceError {
    #[error("it did not arrive in time")]
    Late,
    #[error("{0}")]
    Broken(hyper::Error),
}

/// A body that has to keep the pace.
pub(super) struct Paced<'a> {
    body: &'a mut Incoming,
    alarm: &'a mut Alarm,
    began: Instant,
    grace: Duration,
    within: Duration,
    came: u64,
}

impl<'a> Paced<'a> {
    /// It may be slower than the rate for `grace`, and has to be whole `within`.
    pub(super) fn new(
        body: &'a mut Incoming,
        alarm: &'a mut Alarm,
        grace: Duration,
        within: Duration,
    ) -> Self {
        let began = Instant::now();
        alarm.set(began + due(0, grace, within));
        Self {
            body,
            alarm,
            began,
            grace,
            within,
            came: 0,
        }
    }
}

/// How long after its beginning a body of which so much came is given up.
fn due(came: u64, grace: Duration, within: Duration) -> Duration {
    (grace + Duration::from_millis(came.saturating_mul(1_000) / RATE)).min(within)
}

impl Body for Paced<'_> {
    type Data = Bytes;
    type Error = PaceError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, PaceError>>> {
        let this = self.get_mut();
        match Pin::new(&mut *this.body).poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => {
                this.came += frame.data_ref().map_or(0, |data| data.len() as u64);
                let due = due(this.came, this.grace, this.within);
                this.alarm.set(this.began + due);
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Err(error))) => Poll::Ready(Some(Err(PaceError::Broken(error)))),
            Poll::Ready(None) => Poll::Ready(None),
            Poll::Pending => {
                ready!(this.alarm.poll_passed(cx));
                Poll::Ready(Some(Err(PaceError::Late)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_more_came_the_longer_it_may_take_up_to_the_end() {
        let (grace, within) = (Duration::from_secs(10), Duration::from_secs(60));
        for (came, seconds) in [
            (0, 10),
            (1023, 10),
            (1024, 11),
            (20 * 1024, 30),
            (u64::MAX, 60),
        ] {
            assert_eq!(due(came, grace, within).as_secs(), seconds, "{came}");
        }
    }
}
