//! Series of what is done about endpoints that fail: requests sent elsewhere, and to models that stand in.

use forebay_proto::ModelId;
use prometheus::{Error, IntCounterVec, Registry};

use super::counter;

/// The series, by model.
#[derive(Debug)]
pub(crate) struct FailureMetrics {
    retries: IntCounterVec,
    retry_budget_exhausted: IntCounterVec,
    fallbacks: IntCounterVec,
}

impl FailureMetrics {
    pub(super) fn new(registry: &Registry) -> Result<Self, Error> {
        Ok(Self {
            retries: counter(
                registry,
                "forebay_retries_total",
                "Requests sent again to another endpoint, by what the one before did.",
                &["model", "cause"],
            )?,
            retry_budget_exhausted: counter(
                registry,
                "forebay_retry_budget_exhausted_total",
                "Requests not sent again because too many were being sent again.",
                &["model"],
            )?,
            fallbacks: counter(
                registry,
                "forebay_fallbacks_total",
                "Requests for a model that were sent to one that stands in.",
                &["model"],
            )?,
        })
    }

    pub(crate) fn retry(&self, model: &ModelId, cause: &str) {
        let labels = [model.as_str(), cause];
        self.retries.with_label_values(&labels).inc();
    }

    pub(crate) fn retry_budget_exhausted(&self, model: &ModelId) {
        let exhausted = &self.retry_budget_exhausted;
        exhausted.with_label_values(&[model.as_str()]).inc();
    }

    pub(crate) fn fallback(&self, model: &ModelId) {
        self.fallbacks.with_label_values(&[model.as_str()]).inc();
    }

    /// All of them, to forget a model.
    pub(super) fn by_model(&self) -> [&IntCounterVec; 3] {
        [&self.retries, &self.retry_budget_exhausted, &self.fallbacks]
    }
}
