//! What a run found, to be told by whoever asked for it.

use serde::Serialize;

use super::{hook::Hooks, outcome::Outcomes, upstream::Seen};

/// One part of a run.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Phase {
    /// How long requests were made, in seconds.
    pub seconds: f64,
    /// How they ended.
    #[serde(flatten)]
    pub outcomes: Outcomes,
    /// Requests that were executed more than once. None if the upstreams are somebody else's.
    pub duplicated: Option<u64>,
    /// Connections that the client opened to the gateway.
    pub client_connections_opened: u64,
    /// What the upstreams saw. None if they are somebody else's.
    pub upstream: Option<Seen>,
    /// What became of the hooks.
    pub hooks: Hooks,
}

/// How much later answers came than without reconfigurations, in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[expect(missing_docs, reason = "the names say it")]
pub struct Added {
    pub p50: f64,
    pub p99: f64,
    pub p999: f64,
}

/// What a run found.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// The gateway.
    pub url: String,
    /// What makes the same requests again.
    pub seed: u64,
    /// It was ended before its time.
    pub interrupted: bool,
    /// The warm-up: how many requests it made, and how many of them were lost.
    pub warm_up: WarmUp,
    /// The same load without reconfigurations, if it was asked for.
    pub baseline: Option<Phase>,
    /// What it is about.
    pub measured: Phase,
    /// The difference between the two.
    pub added_ms: Option<Added>,
    /// Requests lost for each run of the hook.
    pub lost_per_reconfiguration: Option<f64>,
}

/// Requests that are not measured.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[expect(missing_docs, reason = "the names say it")]
pub struct WarmUp {
    pub requests: u64,
    pub lost: u64,
}

impl Report {
    /// What follows from the parts.
    pub(crate) fn finish(mut self) -> Self {
        let measured = &self.measured;
        self.added_ms = self.baseline.as_ref().map(|baseline| {
            let (with, without) = (measured.outcomes.answer_ms, baseline.outcomes.answer_ms);
            Added {
                p50: with.p50 - without.p50,
                p99: with.p99 - without.p99,
                p999: with.p999 - without.p999,
            }
        });
        let run = measured.hooks.run;
        self.lost_per_reconfiguration =
            (run > 0).then(|| measured.outcomes.lost() as f64 / run as f64);
        self
    }

    /// Nothing lost, nothing done twice, and every reconfiguration made that was asked for.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        let clean = |phase: &Phase| {
            phase.outcomes.lost() == 0
                && phase.duplicated.unwrap_or(0) == 0
                && phase.hooks.failed == 0
        };
        self.warm_up.lost == 0 && clean(&self.measured) && self.baseline.as_ref().is_none_or(clean)
    }
}
