//! When to come back, by how the stream ended: with full jitter, for after an outage thousands of workers must not
//! come back in step.
//!
//! While nobody answers, an attempt costs nobody anything, and the network may be back at any moment: the pause is short,
//! for what is left of an attempt and a pause is how long the worker lags behind after that (docs/adr/0032). Whoever answers
//! that it cannot now is given time.

use std::time::Duration;

/// What the pause is drawn below after the first failure; it doubles with each.
const FIRST: Duration = Duration::from_millis(250);
const LOST_MOST: Duration = Duration::from_secs(2);
const BUSY_MOST: Duration = Duration::from_secs(30);
/// After an error that will most likely be there again: at least this, and more above it.
const SLOW_LEAST: Duration = Duration::from_secs(1);
const SLOW_FIRST: Duration = Duration::from_secs(4);
const SLOW_MOST: Duration = Duration::from_secs(60);
/// A stream that lived this long was healthy: the next failure begins anew.
const HEALTHY: Duration = Duration::from_secs(60);

/// How a stream ended, as far as coming back goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Class {
    /// It was asked to go, in good order.
    Told,
    /// It was cut, or could not be opened: nobody answers.
    Lost,
    /// The control plane said that it cannot now.
    Busy,
    /// One of both does not understand or does not want the other.
    Refused,
}

/// The pauses between attempts.
#[derive(Debug, Default)]
pub(super) struct Backoff {
    failures: u32,
}

impl Backoff {
    /// The pause after a stream that lived for this long and ended in this way.
    pub(super) fn after(&mut self, lived: Duration, class: Class) -> Duration {
        self.below(lived, class, fastrand::f64())
    }

    fn below(&mut self, lived: Duration, class: Class, share: f64) -> Duration {
        if lived >= HEALTHY {
            self.failures = 0;
        }
        let doubled = |first: Duration, most| {
            first
                .saturating_mul(1 << self.failures.min(10))
                .min(most)
                .mul_f64(share)
        };
        let pause = match class {
            // Whoever told it is not counted as a failure; who then cannot be reached is.
            Class::Told => return FIRST.mul_f64(share),
            Class::Lost => doubled(FIRST, LOST_MOST),
            Class::Busy => doubled(FIRST, BUSY_MOST),
            Class::Refused => SLOW_LEAST + doubled(SLOW_FIRST, SLOW_MOST),
        };
        self.failures = self.failures.saturating_add(1);
        pause
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHORT: Duration = Duration::from_secs(59);

    #[test]
    fn pauses_are_spread_from_nothing_to_a_ceiling_that_doubles() {
        for (class, most) in [(Class::Lost, LOST_MOST), (Class::Busy, BUSY_MOST)] {
            let mut backoff = Backoff::default();
            for failures in 0..50_u32 {
                let ceiling = (FIRST * (1 << failures.min(10))).min(most);
                let mut least = Backoff { failures };
                assert_eq!(least.below(SHORT, class, 0.0), Duration::ZERO);
                assert_eq!(backoff.below(SHORT, class, 1.0), ceiling);
            }
        }
    }

    #[test]
    fn only_a_healthy_stream_begins_anew() {
        let mut backoff = Backoff { failures: 4 };
        assert_eq!(backoff.below(SHORT, Class::Busy, 1.0), FIRST * 16);
        assert_eq!(backoff.below(HEALTHY, Class::Lost, 1.0), FIRST);
    }

    #[test]
    fn who_was_told_to_go_is_back_soon_and_nothing_is_counted() {
        let mut backoff = Backoff::default();
        for _ in 0..20 {
            assert_eq!(backoff.below(SHORT, Class::Told, 1.0), FIRST);
        }
        assert_eq!(backoff.below(SHORT, Class::Lost, 1.0), FIRST);
    }

    #[test]
    fn who_is_not_wanted_takes_its_time() {
        let mut backoff = Backoff::default();
        assert_eq!(backoff.below(SHORT, Class::Refused, 0.0), SLOW_LEAST);
        for _ in 0..20 {
            backoff.below(SHORT, Class::Refused, 0.5);
        }
        let most = backoff.below(SHORT, Class::Refused, 1.0);
        assert_eq!(most, SLOW_LEAST + SLOW_MOST);
    }

    #[test]
    fn pauses_are_drawn() {
        let mut backoff = Backoff { failures: 9 };
        let drawn: Vec<_> = (0..20).map(|_| backoff.after(SHORT, Class::Busy)).collect();
        assert!(drawn.iter().any(|pause| *pause != drawn[0]));
        assert!(drawn.iter().all(|pause| *pause <= BUSY_MOST));
    }
}
