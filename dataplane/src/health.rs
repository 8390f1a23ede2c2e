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

use forebay_proto::{
    Health, ModelId, Revision,
    health::{BUCKETS, CHANGED, ModelHealth, Tally},
};

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
pub(crate) struct ModelCounters {
    requests: AtomicU64,
    errors: AtomicU64,
}

impl ModelCounters {
    /// A request's answer has begun.
    pub(crate) fn answered(&self) {
        self.requests.fetch_add(1, Ordering::Relaxed);
    }

    /// A request is over, and failed.
    pub(crate) fn failed(&self) {
        self.errors.fetch_add(1, Ordering::Relaxed);
    }

    fn read(&self) -> Tally {
        Tally {
            requests: self.requests.load(Ordering::Relaxed),
            errors: self.errors.load(Ordering::Relaxed),
        }
    }
}

/// True if a request that ended so speaks against a configuration.
pub(crate) fn is_error(status: u16, source: Source) -> bool {
    let full = status == 429 && source == Source::Gateway;
    status >= 500 || full
}

/// How requests went for the models that were changed last.
#[derive(Debug, Default)]
pub(crate) struct ChangedHealth(VecDeque<Changed>);

#[derive(Debug)]
struct Changed {
    model: ModelId,
    revision: Revision,
    counters: Arc<ModelCounters>,
    before: Tally,
}

impl ChangedHealth {
    /// These models are in force as they are from now on.
    pub(crate) fn note(
        &mut self,
        revision: Revision,
        changed: impl Iterator<Item = (ModelId, Arc<ModelCounters>)>,
    ) {
        for (model, counters) in changed {
            self.0.retain(|known| known.model != model);
            let before = counters.read();
            self.0.push_back(Changed {
                model,
                revision,
                counters,
                before,
            });
            if self.0.len() > CHANGED {
                self.0.pop_front();
            }
        }
    }

    /// What is to be told of them.
    pub(crate) fn read(&self) -> impl Iterator<Item = ModelHealth> {
        self.0.iter().map(|known| ModelHealth {
            model: known.model.clone(),
            revision: known.revision,
            before: known.before,
            since: known.counters.read().since(&known.before),
        })
    }
}

#[cfg(test)]
mod tests {
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

    #[test]
    fn what_was_changed_counts_from_its_last_change() {
        let metrics = Metrics::new(&Registry::new()).unwrap();
        let of = |id: &str| {
            let id = ModelId::new(id).unwrap();
            let counters = metrics.model(&id).health.clone();
            (id, counters)
        };
        let (a, b) = (of("a"), of("b"));
        let request = |of: &(ModelId, Arc<ModelCounters>), fails| {
            of.1.answered();
            if fails {
                of.1.failed();
            }
        };
        let figures = |changed: &ChangedHealth| -> Vec<_> {
            let figure = |told: ModelHealth| {
                let (revision, before, since) = (told.revision.get(), told.before, told.since);
                let counts = [before.requests, before.errors, since.requests, since.errors];
                (told.model.to_string(), revision, counts)
            };
            changed.read().map(figure).collect()
        };
        let revision = Revision::new;
        let mut changed = ChangedHealth::default();
        request(&a, false);
        changed.note(revision(2), [a.clone()].into_iter());
        request(&a, true);
        request(&b, true);
        assert_eq!(figures(&changed), [("a".to_owned(), 2, [1, 0, 1, 1])]);
        // Another is changed: what is wrong with the first still counts.
        changed.note(revision(3), [b.clone()].into_iter());
        request(&b, false);
        let both = [
            ("a".to_owned(), 2, [1, 0, 1, 1]),
            ("b".to_owned(), 3, [1, 1, 1, 0]),
        ];
        assert_eq!(figures(&changed), both);
        // Changed again: what was wrong with it was before.
        changed.note(revision(4), [a.clone()].into_iter());
        let again = [
            ("b".to_owned(), 3, [1, 1, 1, 0]),
            ("a".to_owned(), 4, [2, 1, 0, 0]),
        ];
        assert_eq!(figures(&changed), again);
        changed.note(revision(5), (0..CHANGED + 9).map(|n| of(&format!("m{n}"))));
        assert_eq!(changed.read().count(), CHANGED);
    }
}
