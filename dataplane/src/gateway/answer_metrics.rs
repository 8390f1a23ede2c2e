//! What answers said of themselves, as metrics: tokens, why engines stopped, how streams ended.

use std::sync::OnceLock;

use forebay_proto::ModelId;
use prometheus::{Error, IntCounter, IntCounterVec, Registry};

use super::{passing::Told, record::StreamEnd};
use crate::metrics::counter;

/// The counters of all models.
#[derive(Debug)]
pub(crate) struct AnswerMetrics {
    tokens: IntCounterVec,
    finishes: IntCounterVec,
    streams: IntCounterVec,
}

/// Those of one model.
#[derive(Debug)]
pub(crate) struct AnswerSeries {
    model: ModelId,
    tokens: Lazy<3>,
    finishes: Lazy<6>,
    streams: Lazy<6>,
}

impl AnswerMetrics {
    pub(crate) fn new(registry: &Registry) -> Result<Self, Error> {
        Ok(Self {
            tokens: counter(
                registry,
                "forebay_tokens_total",
                "Tokens, as engines say; `counted`: events of streams that did not say.",
                &["model", "kind"],
            )?,
            finishes: counter(
                registry,
                "forebay_finish_reasons_total",
                "Why engines stopped.",
                &["model", "reason"],
            )?,
            streams: counter(
                registry,
                "forebay_streams_total",
                "Streams, by how they ended.",
                &["model", "end"],
            )?,
        })
    }

    pub(crate) fn of(&self, model: &ModelId) -> AnswerSeries {
        AnswerSeries {
            model: model.clone(),
            tokens: Lazy::new(&self.tokens),
            finishes: Lazy::new(&self.finishes),
            streams: Lazy::new(&self.streams),
        }
    }

    pub(crate) fn all(&self) -> [&IntCounterVec; 3] {
        [&self.tokens, &self.finishes, &self.streams]
    }
}

/// Counters of one model, looked up when they are first needed: most never are.
#[derive(Debug)]
struct Lazy<const N: usize> {
    of: IntCounterVec,
    counters: [OnceLock<IntCounter>; N],
}

impl<const N: usize> Lazy<N> {
    fn new(of: &IntCounterVec) -> Self {
        Self {
            of: of.clone(),
            counters: std::array::from_fn(|_| OnceLock::new()),
        }
    }

    fn add(&self, at: usize, model: &ModelId, label: &str, by: u64) {
        let find = || self.of.with_label_values(&[model.as_str(), label]);
        if let Some(counter) = self.counters.get(at) {
            counter.get_or_init(find).inc_by(by);
        }
    }
}

impl AnswerSeries {
    /// What an answer said of tokens, and how it ended if it was a stream.
    pub(crate) fn told(&self, told: &Told, end: Option<StreamEnd>) {
        let (prompt, completion) = match told.usage {
            Some(usage) => (usage.prompt, usage.completion),
            None => (None, None),
        };
        let counted = completion.is_none().then_some(told.events);
        for (at, kind, tokens) in [
            (0, "prompt", prompt),
            (1, "completion", completion),
            (2, "counted", counted),
        ] {
            if let Some(tokens) = tokens.filter(|tokens| *tokens > 0) {
                self.tokens.add(at, &self.model, kind, tokens);
            }
        }
        if let Some(finish) = told.finish {
            self.finishes
                .add(finish as usize, &self.model, finish.label(), 1);
        }
        if let Some(end) = end {
            self.streams.add(end as usize, &self.model, end.label(), 1);
        }
    }
}
