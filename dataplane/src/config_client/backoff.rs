//! Full-jitter back-off: after an outage thousands of workers must not come back in step.

use std::time::Duration;

const FIRST: Duration = Duration::from_millis(100);
const MOST: Duration = Duration::from_secs(5);
/// A stream that lived this long was healthy: the next failure begins anew.
const HEALTHY: Duration = Duration::from_secs(10);

/// The pauses between attempts.
#[derive(Debug, Default)]
pub(super) struct Backoff {
    failures: u32,
}

impl Backoff {
    /// The pause after a stream that lived for this long.
    pub(super) fn after(&mut self, lived: Duration) -> Duration {
        self.failures = if lived >= HEALTHY {
            0
        } else {
            self.failures.saturating_add(1)
        };
        let ceiling = FIRST.saturating_mul(1 << self.failures.min(10)).min(MOST);
        ceiling.mul_f64(fastrand::f64())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_stay_under_a_growing_ceiling_and_begin_anew_after_health() {
        let mut backoff = Backoff::default();
        for failures in 1..50 {
            let ceiling = (FIRST * (1 << failures.min(10))).min(MOST);
            assert!(backoff.after(Duration::ZERO) <= ceiling);
        }
        assert!(backoff.after(HEALTHY) <= FIRST);
    }
}
