//! How requests went on a worker: counters that only grow, small enough for every sign of life.

use crate::{ids::ModelId, revision::Revision};

/// Upper bounds of the histogram's buckets but the last, in milliseconds; each is 1.6 times the one before.
const BOUNDS: [u64; 23] = [
    1, 2, 3, 4, 7, 10, 17, 27, 43, 69, 110, 176, 281, 450, 721, 1_153, 1_845, 2_951, 4_722, 7_556,
    12_089, 19_343, 30_949,
];

/// Buckets of the histogram; the last has no bound.
pub const BUCKETS: usize = BOUNDS.len() + 1;

/// Most models of which a worker tells by themselves.
pub const CHANGED: usize = 16;

/// Requests, and how many of them failed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    /// Requests whose answer has begun.
    pub requests: u64,
    /// Requests that failed.
    pub errors: u64,
}

impl Tally {
    /// What came on top of what was before.
    #[must_use]
    pub fn since(&self, before: &Self) -> Self {
        Self {
            requests: self.requests.saturating_sub(before.requests),
            errors: self.errors.saturating_sub(before.errors),
        }
    }

    /// Both together.
    pub fn add(&mut self, other: &Self) {
        self.requests = self.requests.saturating_add(other.requests);
        self.errors = self.errors.saturating_add(other.errors);
    }

    /// The share of requests that failed.
    #[must_use]
    pub fn error_share(&self) -> f64 {
        match self.requests {
            0 => 0.0,
            requests => (self.errors as f64 / requests as f64).min(1.0),
        }
    }
}

/// How requests for one model went, before and since it was changed last on this worker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelHealth {
    /// The model.
    pub model: ModelId,
    /// The revision with which it was changed.
    pub revision: Revision,
    /// Since the worker's process began.
    pub before: Tally,
    /// Since the change.
    pub since: Tally,
}

/// Requests since the worker's process began.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Health {
    /// Requests whose answer has begun.
    pub requests: u64,
    /// Requests that failed.
    pub errors: u64,
    /// Requests by the time from their head to that of their answer.
    pub latency: [u64; BUCKETS],
}

impl Health {
    /// The bucket of this time.
    #[must_use]
    pub fn bucket(millis: u64) -> usize {
        BOUNDS.partition_point(|bound| *bound < millis)
    }

    /// What came on top of what was before. Counters of one process never shrink; what did is nothing.
    #[must_use]
    pub fn since(&self, before: &Self) -> Self {
        let mut latency = self.latency;
        for (now, before) in latency.iter_mut().zip(&before.latency) {
            *now = now.saturating_sub(*before);
        }
        Self {
            requests: self.requests.saturating_sub(before.requests),
            errors: self.errors.saturating_sub(before.errors),
            latency,
        }
    }

    /// Both together.
    pub fn add(&mut self, other: &Self) {
        self.requests = self.requests.saturating_add(other.requests);
        self.errors = self.errors.saturating_add(other.errors);
        for (sum, other) in self.latency.iter_mut().zip(&other.latency) {
            *sum = sum.saturating_add(*other);
        }
    }

    /// The counts alone.
    #[must_use]
    pub fn tally(&self) -> Tally {
        Tally {
            requests: self.requests,
            errors: self.errors,
        }
    }

    /// A bound that 99 of 100 requests kept, in milliseconds.
    #[must_use]
    pub fn p99_millis(&self) -> u64 {
        let all = self
            .latency
            .iter()
            .fold(0_u64, |sum, n| sum.saturating_add(*n));
        let beyond = all / 100;
        let mut slower = 0_u64;
        for (bucket, count) in self.latency.iter().enumerate().rev() {
            slower = slower.saturating_add(*count);
            if slower > beyond {
                let last = BOUNDS.last().copied().unwrap_or_default();
                return BOUNDS.get(bucket).copied().unwrap_or(2 * last);
            }
        }
        0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(millis: &[(u64, u64)]) -> Health {
        let mut health = Health::default();
        for (millis, count) in millis {
            health.requests += count;
            health.latency[Health::bucket(*millis)] += count;
        }
        health
    }

    #[test]
    fn a_time_is_in_the_first_bucket_that_holds_it() {
        assert_eq!((Health::bucket(0), Health::bucket(1)), (0, 0));
        assert_eq!((Health::bucket(2), Health::bucket(5)), (1, 4));
        assert_eq!(Health::bucket(u64::MAX), BUCKETS - 1);
    }

    #[test]
    fn one_in_a_hundred_may_be_slower() {
        assert_eq!(of(&[]).p99_millis(), 0);
        assert_eq!(of(&[(5, 100)]).p99_millis(), 7);
        assert_eq!(of(&[(5, 99), (1_000, 1)]).p99_millis(), 7);
        assert_eq!(of(&[(5, 98), (1_000, 2)]).p99_millis(), 1_153);
        assert_eq!(of(&[(1_000_000, 1)]).p99_millis(), 61_898);
    }

    #[test]
    fn counters_add_up_and_never_go_below_nothing() {
        let (first, mut second) = (of(&[(5, 10)]), of(&[(5, 30), (90, 4)]));
        second.errors = 17;
        let between = second.since(&first);
        assert_eq!(
            (between.requests, between.tally().error_share()),
            (24, 17.0 / 24.0)
        );
        assert_eq!(first.since(&second), Health::default());
        let mut sum = between;
        sum.add(&first);
        assert_eq!(sum, second);
    }
}
