//! How many connections are kept open ahead of need: as many as were in use at most lately, and no fewer
//! than is configured. Pure: the time is an argument.

use std::time::Duration;

/// After this time a peak counts for 1/e of what it was: a peak of 50 is forgotten after five minutes.
const FADES_IN: Duration = Duration::from_secs(65);

/// The decayed peak of what was in use.
#[derive(Debug, Default)]
pub(super) struct Peak {
    value: f64,
    at: Duration,
}

impl Peak {
    /// So many are in use now.
    pub(super) fn note(&mut self, now: Duration, in_use: usize) {
        self.value = self.faded(now).max(in_use as f64);
        self.at = now;
    }

    /// How many that is worth now.
    pub(super) fn get(&self, now: Duration) -> usize {
        // Never negative, and at most what was in use.
        self.faded(now).round() as usize
    }

    fn faded(&self, now: Duration) -> f64 {
        let gone = now.saturating_sub(self.at).as_secs_f64();
        self.value * (-gone / FADES_IN.as_secs_f64()).exp()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peak_fades_within_five_minutes_however_often_it_is_looked_at() {
        let secs = Duration::from_secs;
        let mut peak = Peak::default();
        assert_eq!(peak.get(secs(9)), 0);
        peak.note(secs(10), 50);
        peak.note(secs(10), 3);
        assert_eq!(peak.get(secs(10)), 50);
        let mut watched = Peak::default();
        watched.note(secs(10), 50);
        for tenth in 100..1_000 {
            watched.note(Duration::from_millis(tenth * 100), 0);
        }
        assert_eq!(watched.get(secs(100)), peak.get(secs(100)));
        assert!((10..15).contains(&peak.get(secs(100))));
        assert_eq!(peak.get(secs(315)), 0);
        peak.note(secs(100), 40);
        assert_eq!(peak.get(secs(100)), 40);
        peak.note(Duration::MAX, 0);
        assert_eq!(peak.get(Duration::MAX), 0);
    }
}
