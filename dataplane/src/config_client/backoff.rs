//! How long to wait before the next control plane is tried, by how the last stream ended: with full jitter, for after an
//! outage thousands of workers must not come back in step. Pure: it knows neither clock nor chance.
//!
//! While nobody answers, an attempt costs nobody anything, and the network may be back at any moment: the pause is short,
//! for what is left of an attempt and a pause is how long the worker lags behind after that (docs/adr/0032). Whoever answers
//! that it cannot now is given time.

use std::time::Duration;

/// What the pause is drawn below after the first failure; it doubles with each round of failures.
const FIRST: Duration = Duration::from_millis(250);
const LOST_MOST: Duration = Duration::from_secs(2);
const BUSY_MOST: Duration = Duration::from_secs(30);
/// After an error that will most likely be there again, with nobody else to go to: at least this, and more above it.
const SLOW_LEAST: Duration = Duration::from_secs(1);
const SLOW_FIRST: Duration = Duration::from_secs(4);
const SLOW_MOST: Duration = Duration::from_secs(60);
/// With the id of another process that is alive: a person must do something.
const TWIN: (Duration, Duration) = (Duration::from_secs(15), Duration::from_secs(60));
/// A stream that lived this long was healthy: the next failure begins anew.
pub(super) const HEALTHY: Duration = Duration::from_secs(60);

/// How a stream ended, as far as coming back goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Class {
    /// It was asked to go, or went by itself, in good order.
    Told,
    /// It was cut, or could not be opened: nobody answers.
    Lost,
    /// The control plane said that it cannot now.
    Busy,
    /// One of both does not understand or does not want the other.
    Refused,
    /// Another process with this worker's id is alive.
    Twin,
}

/// The pauses between attempts.
#[derive(Debug, Default)]
pub(super) struct Backoff {
    failures: u32,
}

impl Backoff {
    /// The pause after a stream that lived for this long and ended in this way, with so many control planes in all, of
    /// which so many others may be tried at once. The share is drawn from 0 to 1.
    pub(super) fn after(
        &mut self,
        lived: Duration,
        class: Class,
        (all, others): (usize, usize),
        share: f64,
    ) -> Duration {
        if lived >= HEALTHY {
            self.failures = 0;
        }
        // Each of them may fail once before it counts as a second time.
        let rounds = self.failures / u32::try_from(all.max(1)).unwrap_or(u32::MAX);
        let doubled = |first: Duration, most| {
            first
                .saturating_mul(1 << rounds.min(10))
                .min(most)
                .mul_f64(share)
        };
        let pause = match class {
            // Whoever told it is not counted as a failure; who then cannot be reached is.
            Class::Told => return FIRST.mul_f64(share),
            Class::Twin => return TWIN.0 + (TWIN.1 - TWIN.0).mul_f64(share),
            Class::Lost => doubled(FIRST, LOST_MOST),
            Class::Busy => doubled(FIRST, BUSY_MOST),
            Class::Refused if others > 0 => doubled(FIRST, BUSY_MOST),
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
    const ALONE: (usize, usize) = (1, 0);

    #[test]
    fn pauses_are_spread_from_nothing_to_a_ceiling_that_doubles() {
        for (class, most) in [(Class::Lost, LOST_MOST), (Class::Busy, BUSY_MOST)] {
            let mut backoff = Backoff::default();
            for failures in 0..50_u32 {
                let ceiling = (FIRST * (1 << failures.min(10))).min(most);
                let mut least = Backoff { failures };
                assert_eq!(least.after(SHORT, class, ALONE, 0.0), Duration::ZERO);
                assert_eq!(backoff.after(SHORT, class, ALONE, 1.0), ceiling);
            }
        }
    }

    #[test]
    fn with_three_it_doubles_after_each_of_them_failed() {
        let mut backoff = Backoff::default();
        let pauses: Vec<_> = (0..7)
            .map(|_| backoff.after(SHORT, Class::Lost, (3, 2), 1.0))
            .collect();
        let times = [1, 1, 1, 2, 2, 2, 4];
        assert_eq!(pauses, times.map(|times| FIRST * times));
    }

    #[test]
    fn only_a_healthy_stream_begins_anew() {
        let mut backoff = Backoff { failures: 4 };
        let mut after = |lived| backoff.after(lived, Class::Busy, ALONE, 1.0);
        assert_eq!(after(SHORT), FIRST * 16);
        assert_eq!(after(HEALTHY), FIRST);
    }

    #[test]
    fn who_was_told_to_go_is_back_soon_and_nothing_is_counted() {
        let mut backoff = Backoff::default();
        for _ in 0..20 {
            assert_eq!(backoff.after(SHORT, Class::Told, ALONE, 1.0), FIRST);
        }
        assert_eq!(backoff.after(SHORT, Class::Lost, ALONE, 1.0), FIRST);
    }

    #[test]
    fn who_is_not_wanted_takes_its_time_unless_there_are_others() {
        let mut backoff = Backoff::default();
        let mut after = |class, others, share| backoff.after(SHORT, class, others, share);
        assert_eq!(after(Class::Refused, ALONE, 0.0), SLOW_LEAST);
        assert_eq!(after(Class::Refused, (3, 1), 1.0), FIRST);
        for _ in 0..20 {
            after(Class::Refused, ALONE, 0.5);
        }
        assert_eq!(after(Class::Refused, ALONE, 1.0), SLOW_LEAST + SLOW_MOST);
    }

    #[test]
    fn a_twin_waits_long_wherever_it_might_go() {
        let mut backoff = Backoff::default();
        for others in [0, 2] {
            let mut after = |share| backoff.after(SHORT, Class::Twin, (3, others), share);
            assert_eq!((after(0.0), after(1.0)), TWIN);
        }
    }
}
