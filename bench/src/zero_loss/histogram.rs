//! A histogram of times in bounded memory: exact to 1/256 of a value, from 1 µs to an hour.

use std::time::Duration;

use serde::Serialize;

/// Buckets per doubling, as a power of two.
const FINE: u32 = 8;
const LARGEST: u64 = 3_600_000_000;

/// Counts of times.
#[derive(Debug, Clone, Default)]
pub(crate) struct Histogram {
    buckets: Vec<u64>,
    count: u64,
    largest: u64,
}

/// What is told of a histogram, in milliseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
#[expect(missing_docs, reason = "the names say it")]
pub struct Quantiles {
    pub count: u64,
    pub p50: f64,
    pub p99: f64,
    pub p999: f64,
    pub max: f64,
}

impl Histogram {
    pub(crate) fn record(&mut self, time: Duration) {
        let micros = u64::try_from(time.as_micros()).map_or(LARGEST, |micros| micros.min(LARGEST));
        let at = bucket(micros);
        if self.buckets.len() <= at {
            self.buckets.resize(at + 1, 0);
        }
        if let Some(bucket) = self.buckets.get_mut(at) {
            *bucket += 1;
        }
        self.count += 1;
        self.largest = self.largest.max(micros);
    }

    pub(crate) fn quantiles(&self) -> Quantiles {
        Quantiles {
            count: self.count,
            p50: self.quantile(0.5),
            p99: self.quantile(0.99),
            p999: self.quantile(0.999),
            max: millis(self.largest),
        }
    }

    /// The time that this share of all did not exceed.
    fn quantile(&self, share: f64) -> f64 {
        let rank = (self.count as f64 * share).ceil().max(1.0);
        let mut below = 0;
        for (at, count) in self.buckets.iter().enumerate() {
            below += count;
            if below as f64 >= rank {
                return millis(upper(at).min(self.largest));
            }
        }
        0.0
    }
}

fn millis(micros: u64) -> f64 {
    micros as f64 / 1_000.0
}

/// Below 512 each value has its own; above, each doubling has 256.
fn bucket(micros: u64) -> usize {
    let magnitude = 63_u32.saturating_sub(micros.leading_zeros());
    let shift = magnitude.saturating_sub(FINE);
    ((u64::from(shift) << FINE) + (micros >> shift)) as usize
}

/// The largest value of a bucket.
fn upper(at: usize) -> u64 {
    let at = at as u64;
    let shift = (at >> FINE).saturating_sub(1);
    let first = at - (shift << FINE);
    ((first + 1) << shift) - 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_lies_in_its_bucket_and_buckets_are_narrow() {
        for micros in (0..5_000).chain((5_000..LARGEST).step_by(7_654_321)) {
            let top = upper(bucket(micros));
            assert!(top >= micros, "{micros} is above {top}");
            assert!(top - micros <= micros / 256, "{micros} is told as {top}");
        }
    }

    #[test]
    fn quantiles_are_those_of_the_values() {
        let mut histogram = Histogram::default();
        assert_eq!(histogram.quantiles(), Quantiles::default());
        for micros in 1..=1_000 {
            histogram.record(Duration::from_micros(micros * 100));
        }
        let told = histogram.quantiles();
        assert_eq!((told.count, told.max), (1_000, 100.0));
        assert!((50.0..51.0).contains(&told.p50), "{told:?}");
        assert!((99.0..=100.0).contains(&told.p99), "{told:?}");
        histogram.record(Duration::from_secs(1 << 40));
        assert_eq!(histogram.quantiles().max, 3_600_000.0);
    }
}
