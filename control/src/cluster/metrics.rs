//! What is measured of several control planes on one store; all zero where there is one.

use std::time::Duration;

use prometheus::{Error, Gauge, IntCounter, IntGauge, Registry};

/// The metrics.
#[derive(Debug)]
pub(crate) struct ReplicaMetrics {
    pub(crate) conflicts: IntCounter,
    pub(crate) resyncs: IntCounter,
    pub(super) leader: IntGauge,
    pub(super) replicas: IntGauge,
    lag: Gauge,
}

impl ReplicaMetrics {
    pub(crate) fn new(registry: &Registry) -> Result<Self, Error> {
        let metrics = Self {
            conflicts: IntCounter::new(
                "forebay_store_conflicts_total",
                "Commits that met another control plane's and were planned anew.",
            )?,
            resyncs: IntCounter::new(
                "forebay_store_resyncs_total",
                "Times that the whole registry was read again, because what others wrote could not be told one by one.",
            )?,
            leader: IntGauge::new(
                "forebay_control_leader",
                "Whether this control plane decides for all that share its store.",
            )?,
            replicas: IntGauge::new(
                "forebay_control_replicas",
                "Control planes that share the store, this one included.",
            )?,
            lag: Gauge::new(
                "forebay_store_lag_seconds",
                "Time since this control plane last knew that it had everything that others wrote to its store.",
            )?,
        };
        registry.register(Box::new(metrics.conflicts.clone()))?;
        registry.register(Box::new(metrics.resyncs.clone()))?;
        registry.register(Box::new(metrics.leader.clone()))?;
        registry.register(Box::new(metrics.replicas.clone()))?;
        registry.register(Box::new(metrics.lag.clone()))?;
        Ok(metrics)
    }

    /// So long ago it had all that is in its store.
    pub(crate) fn lags(&self, lag: Duration) {
        self.lag.set(lag.as_secs_f64());
    }
}
