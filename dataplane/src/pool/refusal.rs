//! What one is told who is sent away. Under overload most requests come through here, so under the pool's lock numbers are
//! read and nothing else: they are reckoned with, and put into words, outside of it. It decides nothing.

use std::time::Duration;

use tokio::time::Instant;

use super::{
    AcquireError, Busy, Claim, Pool, counters::TurnedAway, desk::Upstream, drain::Drain,
    inner::Inner,
};

/// A pool at one instant, as far as one who is sent away is told of it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Crowd {
    now: Duration,
    size: usize,
    cap: usize,
    in_flight: usize,
    waiting: usize,
    max_waiting: usize,
    admitted: usize,
    drain: Drain,
}

impl Crowd {
    /// Slots a second that come free while somebody waits.
    pub(super) fn drain_rate(&self) -> f64 {
        self.drain.per_second(self.now, self.slots())
    }

    /// Most requests in flight now.
    fn slots(&self) -> usize {
        self.cap.clamp(1, self.admitted.max(1))
    }

    /// When one who is sent away should come again: when the line ahead will have drained, and not all at once.
    fn retry_after(&self) -> Duration {
        let (place, dice) = (self.waiting + 1, fastrand::f64());
        self.drain.retry_after(self.now, place, self.slots(), dice)
    }
}

impl<C: Upstream> Inner<C> {
    /// The pool as it stands now.
    pub(super) fn crowd(&self, now: Duration) -> Crowd {
        let (in_flight, waiting, admitted) = self.core.crowd();
        Crowd {
            now,
            size: self.core.size(),
            cap: self.core.cap(),
            in_flight,
            waiting,
            max_waiting: self.params.max_waiting as usize,
            admitted,
            drain: self.drain,
        }
    }
}

impl Pool {
    /// The line is too long.
    pub(super) fn busy(&self) -> Busy {
        let crowd = self.desk.with(|inner, now| inner.crowd(now));
        self.told(&crowd)
    }

    /// It took too long.
    pub(super) fn too_late(
        &self,
        began: Instant,
        claim: &Claim,
        patience: Option<Instant>,
    ) -> AcquireError {
        let impatient = patience.filter(|until| *until < claim.deadline);
        let reason = match impatient {
            Some(_) => TurnedAway::Impatient,
            None => TurnedAway::Timeout,
        };
        let crowd = self.desk.with(|inner, now| {
            inner.core.counters.count_turned_away(reason);
            inner.crowd(now)
        });
        let (waited, busy) = (began.elapsed(), self.told(&crowd));
        match impatient.and(claim.patience) {
            Some(until) => AcquireError::Impatient {
                waited,
                patience: until.saturating_duration_since(began),
                busy,
            },
            None => AcquireError::Timeout { waited, busy },
        }
    }

    /// Every endpoint serves another model, if that is so.
    pub(super) fn all_wrong(&self) -> Option<AcquireError> {
        let (endpoint, why) = self.desk.with(|inner, _| inner.all_wrong())?;
        let why = format!("endpoint `{endpoint}`: {why}").into();
        let model = self.model.clone();
        Some(AcquireError::WrongModel { model, why })
    }

    fn told(&self, crowd: &Crowd) -> Busy {
        Busy {
            model: self.model.clone(),
            size: crowd.size,
            active: crowd.in_flight,
            waiting: crowd.waiting,
            max_waiting: crowd.max_waiting,
            budget: (crowd.cap < crowd.size).then(|| self.common.budget.limit()),
            retry_after: crowd.retry_after(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whoever holds the lock is not waited for by the reckoning, and nothing of it can lead back to the lock: it is
    /// numbers alone, taken at one instant.
    #[test]
    fn what_is_told_is_reckoned_from_a_copy() {
        let mut drain = Drain::default();
        drain.note(Duration::ZERO, Duration::from_secs(1), true);
        let crowd = Crowd {
            now: Duration::ZERO,
            size: 10,
            cap: 10,
            in_flight: 10,
            waiting: 99,
            max_waiting: 100,
            admitted: 10,
            drain,
        };
        let (least, most) = (Duration::from_secs(10), Duration::from_secs(15));
        // What comes free meanwhile is not looked at.
        drain.note(Duration::from_secs(1), Duration::from_millis(1), true);
        for _ in 0..100 {
            assert!((least..=most).contains(&crowd.retry_after()));
        }
        assert!((crowd.drain_rate() - 10.0).abs() < 1e-9);
        let short = Crowd { cap: 5, ..crowd };
        assert!(short.retry_after() >= 2 * least, "the budget leaves half");
    }
}
