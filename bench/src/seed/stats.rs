//! Latencies as numbers: percentiles, bins for the pictures, and how many peaks they have. Pure.

use std::time::Duration;

use hdrhistogram::Histogram;
use serde::Serialize;

use super::plan::Plan;

/// Longest latency that is told apart, in microseconds; what is longer counts as this.
const LONGEST: u64 = 120_000_000;
/// Bins per handshake: enough to see two peaks that are one handshake apart.
const BINS_PER_HANDSHAKE: u32 = 12;
const NARROWEST_BIN: Duration = Duration::from_millis(1);
/// Least share of all requests that makes a peak.
const PEAK_SHARE: f64 = 0.05;
/// Two tops are two peaks if the bins between them sink to this part of the lower one.
const VALLEY: f64 = 0.5;

/// Latencies in milliseconds.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Latency {
    /// On average.
    pub mean: f64,
    /// Half of them were no longer.
    pub p50: f64,
    /// 95 % of them were no longer.
    pub p95: f64,
    /// 99 % of them were no longer.
    pub p99: f64,
    /// The longest.
    pub max: f64,
}

/// How many requests took how long.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Bins {
    /// Width of a bin, in milliseconds.
    pub width: f64,
    /// Requests per bin, the first from 0.
    pub requests: Vec<u64>,
}

/// Counts latencies.
#[derive(Debug, Clone)]
pub(crate) struct Latencies(Histogram<u64>);

impl Latencies {
    /// None if the bounds were nonsense, which they are not.
    pub(crate) fn new() -> Option<Self> {
        Histogram::new_with_bounds(1, LONGEST, 3).ok().map(Self)
    }

    pub(crate) fn record(&mut self, latency: Duration) {
        let micros = u64::try_from(latency.as_micros()).unwrap_or(LONGEST);
        self.0.saturating_record(micros.clamp(1, LONGEST));
    }

    pub(crate) fn len(&self) -> usize {
        usize::try_from(self.0.len()).unwrap_or(usize::MAX)
    }

    pub(crate) fn figures(&self) -> Latency {
        let at = |quantile| self.0.value_at_quantile(quantile) as f64 / 1_000.0;
        match self.0.is_empty() {
            true => Latency::default(),
            false => Latency {
                mean: self.0.mean() / 1_000.0,
                p50: at(0.50),
                p95: at(0.95),
                p99: at(0.99),
                max: self.0.max() as f64 / 1_000.0,
            },
        }
    }

    pub(crate) fn bins(&self, width: Duration) -> Bins {
        let step = u64::try_from(width.as_micros()).unwrap_or(LONGEST).max(1);
        let counted = self.0.iter_linear(step);
        Bins {
            width: width.as_secs_f64() * 1_000.0,
            requests: counted
                .map(|bin| bin.count_since_last_iteration())
                .collect(),
        }
    }
}

/// The width of bins in which the handshake shows.
pub(crate) fn bin_width(plan: &Plan) -> Duration {
    let of = match plan.handshake.is_zero() {
        true => plan.service_time,
        false => plan.handshake,
    };
    (of / BINS_PER_HANDSHAKE).max(NARROWEST_BIN)
}

impl Bins {
    /// How many peaks there are that hold a share worth the name and lie this far apart, in milliseconds.
    #[must_use]
    pub fn peaks(&self, apart: f64) -> usize {
        let total: u64 = self.requests.iter().sum();
        let reach = (apart / self.width.max(f64::MIN_POSITIVE) / 2.0)
            .floor()
            .max(1.0) as usize;
        // What lies within half the distance belongs to one top.
        let near = |at: usize| {
            let from = at.saturating_sub(reach / 2);
            self.requests
                .iter()
                .skip(from)
                .take(at + reach / 2 + 1 - from)
        };
        let mass: Vec<u64> = (0..self.requests.len()).map(|at| near(at).sum()).collect();
        let least = PEAK_SHARE * total as f64;
        let mut tops: Vec<usize> = Vec::new();
        for (at, here) in mass.iter().enumerate() {
            let around = mass.iter().skip(at.saturating_sub(reach));
            let top = around.take(2 * reach + 1).max().unwrap_or(here) == here;
            if !top || (*here as f64) < least || total == 0 {
                continue;
            }
            match tops.last() {
                Some(last) if !parted(&mass, *last, at) => {}
                _ => tops.push(at),
            }
        }
        tops.len()
    }

    /// The share of all requests in each bin, in percent, with the bin's beginning in milliseconds.
    pub(crate) fn shares(&self) -> Vec<(f64, f64)> {
        let total = self.requests.iter().sum::<u64>().max(1) as f64;
        let share = |(n, requests): (usize, &u64)| {
            (n as f64 * self.width, 100.0 * *requests as f64 / total)
        };
        self.requests.iter().enumerate().map(share).collect()
    }
}

/// Whether there is a valley between two tops.
fn parted(mass: &[u64], left: usize, right: usize) -> bool {
    let height = |at: usize| mass.get(at).copied().unwrap_or_default();
    let lower = height(left).min(height(right)) as f64;
    let between = mass.iter().skip(left).take(right - left + 1).min();
    between.is_some_and(|lowest| (*lowest as f64) < VALLEY * lower)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn latencies(of: &[(u64, u64)]) -> Latencies {
        let mut latencies = Latencies::new().unwrap();
        for (millis, requests) in of {
            for n in 0..*requests {
                latencies.record(Duration::from_micros(1_000 * millis + 37 * (n % 40)));
            }
        }
        latencies
    }

    fn peaks(of: &[(u64, u64)]) -> usize {
        let width = bin_width(&super::super::plan::tests::plan());
        latencies(of).bins(width).peaks(115.0 / 2.0)
    }

    #[test]
    fn percentiles_are_in_milliseconds() {
        let figures = latencies(&[(200, 70), (315, 30)]).figures();
        assert!((figures.p50 - 200.0).abs() < 2.0, "{figures:?}");
        assert!((figures.p95 - 316.0).abs() < 2.0, "{figures:?}");
        assert!((figures.mean - 235.2).abs() < 1.0, "{figures:?}");
        assert_eq!(Latencies::new().unwrap().figures(), Latency::default());
    }

    #[test]
    fn a_third_that_waits_for_a_handshake_makes_a_second_peak() {
        assert_eq!(peaks(&[(203, 1_000)]), 1);
        assert_eq!(peaks(&[(203, 667), (318, 333)]), 2);
        assert_eq!(
            peaks(&[(203, 980), (318, 20)]),
            1,
            "two in a hundred are no peak"
        );
        assert_eq!(
            peaks(&[(200, 300), (210, 300), (222, 200), (235, 100)]),
            1,
            "one that is broad"
        );
        let slope: Vec<_> = (0..12).map(|n| (200 + 10 * n, 120 - 10 * n)).collect();
        assert_eq!(peaks(&slope), 1, "a long tail");
        assert_eq!(peaks(&[]), 0);
    }

    #[test]
    fn nothing_falls_out_of_the_bins() {
        let latencies = latencies(&[(1, 3), (203, 10), (318, 5)]);
        let bins = latencies.bins(Duration::from_millis(10));
        assert_eq!(bins.requests.iter().sum::<u64>(), 18);
        assert_eq!(bins.requests.first(), Some(&3));
        assert_eq!(bins.requests.get(20), Some(&10));
        let shares: f64 = bins.shares().iter().map(|(_, share)| share).sum();
        assert!((shares - 100.0).abs() < 1e-9);
    }
}
