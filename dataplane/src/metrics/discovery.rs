//! Series of what is wrong with sources of endpoints. What they name is read off at an instant, by `admin`.

use forebay_proto::ModelId;
use prometheus::{Error, IntCounterVec, Registry};

use super::counter;
use crate::pool::Why;

/// The series, by model.
#[derive(Debug)]
pub(crate) struct DiscoveryMetrics {
    errors: IntCounterVec,
}

impl DiscoveryMetrics {
    pub(super) fn new(registry: &Registry) -> Result<Self, Error> {
        Ok(Self {
            errors: counter(
                registry,
                "forebay_discovery_errors_total",
                "Looks at sources of endpoints that found something wrong, by what it was.",
                &["model", "reason"],
            )?,
        })
    }

    /// Something is wrong with a source of this model.
    pub(crate) fn failed(&self, model: &ModelId, why: Why) {
        let labels = [model.as_str(), why.label()];
        self.errors.with_label_values(&labels).inc();
    }

    #[cfg(test)]
    pub(crate) fn count(&self, model: &ModelId, why: Why) -> u64 {
        let labels = [model.as_str(), why.label()];
        self.errors.with_label_values(&labels).get()
    }

    /// To forget a model.
    pub(super) fn by_model(&self) -> &IntCounterVec {
        &self.errors
    }
}
