//! How requests went on this worker, all models together: what the control plane is told with each sign of life, to
//! compare workers during a rollout. It must cost next to nothing per request.

use std::{
    array,
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use forebay_proto::{Health, health::BUCKETS};
use tokio::time::Instant;

use crate::metrics::Source;

/// What was changed within this time counts.
const LATELY: Duration = Duration::from_secs(600);
/// Most models that count.
const CHANGED: usize = 64;

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

    /// A request is over, and failed.
    pub(crate) fn failed(&self) {
        self.errors.fetch_add(1, Ordering::Relaxed);
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

/// The same for one model, without its times.
#[derive(Debug, Default)]
pub(crate) struct ModelHealth {
    requests: AtomicU64,
    errors: AtomicU64,
}

impl ModelHealth {
    /// A request's answer has begun.
    pub(crate) fn answered(&self) {
        self.requests.fetch_add(1, Ordering::Relaxed);
    }

    /// A request is over, and failed.
    pub(crate) fn failed(&self) {
        self.errors.fetch_add(1, Ordering::Relaxed);
    }

    fn read(&self) -> Health {
        Health {
            requests: self.requests.load(Ordering::Relaxed),
            errors: self.errors.load(Ordering::Relaxed),
            ..Health::default()
        }
    }
}

/// True if a request that ended so speaks against a configuration.
pub(crate) fn is_error(status: u16, source: Source) -> bool {
    let full = status == 429 && source == Source::Gateway;
    status >= 500 || full
}

/// How requests went for what was changed lately.
#[derive(Debug, Default)]
pub(crate) struct ChangedHealth(VecDeque<Changed>);

#[derive(Debug)]
struct Changed {
    at: Instant,
    health: Arc<ModelHealth>,
    before: Health,
}

impl ChangedHealth {
    /// These models are in force as they are from now on.
    pub(crate) fn note(&mut self, changed: impl Iterator<Item = Arc<ModelHealth>>) {
        let now = Instant::now();
        for health in changed {
            self.0.retain(|known| !Arc::ptr_eq(&known.health, &health));
            let before = health.read();
            self.0.push_back(Changed {
                at: now,
                health,
                before,
            });
        }
        while self.0.len() > CHANGED {
            self.0.pop_front();
        }
    }

    /// Before they were changed, and since.
    pub(crate) fn read(&mut self) -> (Health, Health) {
        self.0.retain(|known| known.at.elapsed() < LATELY);
        let (mut before, mut since) = (Health::default(), Health::default());
        for known in &self.0 {
            before.add(&known.before);
            since.add(&known.health.read().since(&known.before));
        }
        (before, since)
    }
}

#[cfg(test)]
mod tests {
    use forebay_proto::ModelId;
    use prometheus::Registry;

    use super::*;
    use crate::metrics::Metrics;

    #[test]
    fn what_failed_speaks_against_it_and_what_clients_did_wrong_does_not() {
        for (status, source, error) in [
            (200, Source::Upstream, false),
            (404, Source::Client, false),
            (429, Source::Upstream, false),
            (429, Source::Gateway, true),
            (499, Source::Client, false),
            (500, Source::Upstream, true),
            (502, Source::Upstream, true),
            (503, Source::Gateway, true),
        ] {
            assert_eq!(is_error(status, source), error, "{status}");
        }
        let counters = HealthCounters::default();
        counters.answered(Duration::from_millis(5));
        counters.answered(Duration::from_millis(5));
        counters.failed();
        let health = counters.read();
        assert_eq!((health.requests, health.errors), (2, 1));
        assert_eq!(health.latency[Health::bucket(5)], 2);
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_changed_lately_counts_from_its_last_change() {
        let metrics = Metrics::new(&Registry::new()).unwrap();
        let of = |id: &str| metrics.model(&ModelId::new(id).unwrap()).health.clone();
        let (a, b) = (of("a"), of("b"));
        let request = |of: &Arc<ModelHealth>, fails| {
            of.answered();
            if fails {
                of.failed();
            }
        };
        let figures = |(before, since): (Health, Health)| {
            [before.requests, before.errors, since.requests, since.errors]
        };
        let mut changed = ChangedHealth::default();
        request(&a, false);
        assert_eq!(figures(changed.read()), [0; 4]);
        changed.note([a.clone()].into_iter());
        request(&a, true);
        request(&b, true);
        assert_eq!(figures(changed.read()), [1, 0, 1, 1]);
        // Another is changed: what was wrong with the first still counts.
        changed.note([b.clone()].into_iter());
        request(&b, false);
        assert_eq!(figures(changed.read()), [2, 1, 2, 1]);
        // Changed again: what was wrong with it was before.
        changed.note([a.clone()].into_iter());
        assert_eq!(figures(changed.read()), [3, 2, 1, 0]);
        tokio::time::advance(LATELY).await;
        assert_eq!(figures(changed.read()), [0; 4]);
        let many = (0..CHANGED + 9).map(|n| of(&format!("m{n}")));
        changed.note(many);
        assert_eq!(changed.0.len(), CHANGED);
    }
}
