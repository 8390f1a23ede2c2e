//! What is measured of rollouts in rings; all zero without rings.

use prometheus::{Error, IntCounter, IntGauge, Registry};

/// The metrics.
#[derive(Debug)]
pub(crate) struct RingMetrics {
    ring: IntGauge,
    stable_revision: IntGauge,
    returns: IntCounter,
}

impl RingMetrics {
    pub(crate) fn new(registry: &Registry) -> Result<Self, Error> {
        let metrics = Self {
            ring: IntGauge::new(
                "forebay_rollout_ring",
                "The ring that a revision is in, from 1; 0 when none is under way.",
            )?,
            stable_revision: IntGauge::new(
                "forebay_rollout_stable_revision",
                "The newest revision that is offered to all workers; 0 without rings.",
            )?,
            returns: IntCounter::new(
                "forebay_rollout_returns_total",
                "Revisions taken back because they did not pass the health gate.",
            )?,
        };
        registry.register(Box::new(metrics.ring.clone()))?;
        registry.register(Box::new(metrics.stable_revision.clone()))?;
        registry.register(Box::new(metrics.returns.clone()))?;
        Ok(metrics)
    }

    pub(super) fn stands(&self, ring: usize, stable: u64) {
        self.ring.set(i64::try_from(ring).unwrap_or(i64::MAX));
        self.stable_revision
            .set(i64::try_from(stable).unwrap_or(i64::MAX));
    }

    pub(super) fn returned(&self) {
        self.returns.inc();
    }
}
