//! How requests went on this worker, all models together: what the control plane is told with each sign of life, to
//! compare workers during a rollout. It must cost next to nothing per request.

use std::{
    array,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use forebay_proto::{Health, health::BUCKETS};

use crate::metrics::Source;

/// The counters.
#[derive(Debug, Default)]
pub(crate) struct HealthCounters {
    errors: AtomicU64,
    latency: [AtomicU64; BUCKETS],
}

impl HealthCounters {
    /// The head of a request's answer is on its way.
    pub(crate) fn answered(&self, after: Duration) {
        let millis = u64::try_from(after.as_millis()).unwrap_or(u64::MAX);
        if let Some(bucket) = self.latency.get(Health::bucket(millis)) {
            bucket.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// A request is over with this status.
    pub(crate) fn over(&self, status: u16, source: Source) {
        let full = status == 429 && source == Source::Gateway;
        if status >= 500 || full {
            self.errors.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// The counters now.
    pub(crate) fn read(&self) -> Health {
        let errors = self.errors.load(Ordering::Relaxed);
        let read = |bucket: usize| self.latency.get(bucket);
        let latency: [u64; BUCKETS] =
            array::from_fn(|bucket| read(bucket).map_or(0, |n| n.load(Ordering::Relaxed)));
        Health {
            requests: latency.iter().sum(),
            errors,
            latency,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_failed_is_counted_and_what_clients_did_wrong_is_not() {
        let counters = HealthCounters::default();
        for (status, source) in [
            (200, Source::Upstream),
            (404, Source::Client),
            (429, Source::Upstream),
            (429, Source::Gateway),
            (499, Source::Client),
            (500, Source::Upstream),
            (502, Source::Upstream),
            (503, Source::Gateway),
        ] {
            counters.answered(Duration::from_millis(5));
            counters.over(status, source);
        }
        let health = counters.read();
        assert_eq!((health.requests, health.errors), (8, 4));
        assert_eq!(health.latency[Health::bucket(5)], 8);
    }
}
