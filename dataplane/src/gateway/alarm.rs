//! Deadlines that cost next to nothing while nobody misses them.
//!
//! A timer that is registered and cancelled takes the runtime's timer lock twice, and each request has
//! several deadlines. An [`Alarm`] is a timer that stays registered: a later deadline is only noted, and when
//! the timer rings for an older one it is set anew. The alarms of a connection are handed from one
//! request to the next, so that one connection sets a timer about once a minute, however many requests it
//! carries.

use std::{
    future::{Future, poll_fn},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use parking_lot::Mutex;
use tokio::time::{Instant, Sleep, sleep_until};

/// Most unused alarms that a connection keeps; HTTP/2 may use many at once.
const KEPT: usize = 4;

/// The alarms of one client's connection that are not in use.
#[derive(Debug, Clone, Default)]
pub(super) struct Alarms(Arc<Mutex<Vec<Pin<Box<Sleep>>>>>);

/// One deadline at a time.
#[derive(Debug)]
pub(super) struct Alarm {
    /// Never set for later than `at`.
    timer: Option<Pin<Box<Sleep>>>,
    at: Instant,
    home: Alarms,
}

impl Alarms {
    /// An alarm for this deadline.
    pub(super) fn set(&self, at: Instant) -> Alarm {
        let unused = self.0.lock().pop();
        let mut alarm = Alarm {
            timer: Some(unused.unwrap_or_else(|| Box::pin(sleep_until(at)))),
            at,
            home: self.clone(),
        };
        alarm.set(at);
        alarm
    }
}

impl Alarm {
    /// Another deadline.
    pub(super) fn set(&mut self, at: Instant) {
        self.at = at;
        if let Some(timer) = &mut self.timer
            && timer.deadline() > at
        {
            timer.as_mut().reset(at);
        }
    }

    /// Ready once the deadline has passed.
    pub(super) fn poll_passed(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(timer) = &mut self.timer else {
            return Poll::Ready(());
        };
        loop {
            ready!(timer.as_mut().poll(cx));
            if timer.deadline() >= self.at {
                return Poll::Ready(());
            }
            timer.as_mut().reset(self.at);
        }
    }

    /// What the future gives, if it does so before this deadline.
    pub(super) async fn within<T>(
        &mut self,
        at: Instant,
        mut future: Pin<&mut impl Future<Output = T>>,
    ) -> Option<T> {
        self.set(at);
        poll_fn(|cx| match future.as_mut().poll(cx) {
            Poll::Ready(value) => Poll::Ready(Some(value)),
            Poll::Pending => self.poll_passed(cx).map(|()| None),
        })
        .await
    }
}

impl Drop for Alarm {
    fn drop(&mut self) {
        let Some(timer) = self.timer.take() else {
            return;
        };
        let mut unused = self.home.0.lock();
        if unused.len() < KEPT {
            unused.push(timer);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        future::{pending, ready},
        pin::pin,
        time::Duration,
    };

    use super::*;

    async fn missed(alarm: &mut Alarm, within: Duration) -> Duration {
        let began = Instant::now();
        let missed = alarm.within(began + within, pin!(pending::<()>())).await;
        assert_eq!(missed, None);
        began.elapsed()
    }

    #[tokio::test(start_paused = true)]
    async fn it_rings_at_the_newest_deadline_whatever_it_was_set_for_before() {
        let alarms = Alarms::default();
        let mut alarm = alarms.set(Instant::now() + Duration::from_secs(60));
        for seconds in [10, 1, 100, 7] {
            let within = Duration::from_secs(seconds);
            let late = missed(&mut alarm, within).await - within;
            assert!(late <= Duration::from_millis(1), "{late:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_rang_for_a_request_before_does_not_ring_for_the_next() {
        let alarms = Alarms::default();
        for _ in 0..3 {
            let mut alarm = alarms.set(Instant::now());
            let at = Instant::now() + Duration::from_secs(5);
            assert_eq!(alarm.within(at, pin!(ready(1))).await, Some(1));
            tokio::time::sleep(Duration::from_secs(4)).await;
            drop(alarm);
            let mut alarm = alarms.set(Instant::now() + Duration::from_secs(3));
            let late = missed(&mut alarm, Duration::from_secs(3)).await - Duration::from_secs(3);
            assert!(late <= Duration::from_millis(1), "{late:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn no_more_are_kept_than_a_connection_needs() {
        let alarms = Alarms::default();
        let many: Vec<_> = (0..10).map(|_| alarms.set(Instant::now())).collect();
        drop(many);
        assert_eq!(alarms.0.lock().len(), KEPT);
    }
}
