//! What the worker measures as it goes. What can be read off at an instant (pools, configuration)
//! is not here: `admin` reads it when it is asked.
//!
//! Labels are registered model ids, paths of the allow-list and enums; never text of a client's.

mod control;
mod discovery;
mod failures;

use std::{collections::HashMap, sync::Arc};

use forebay_proto::ModelId;
use parking_lot::{Mutex, RwLock};
use prometheus::{
    Error, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGaugeVec, Opts,
    Registry, core::Collector as _,
};

pub(crate) use self::{
    control::ControlMetrics, discovery::DiscoveryMetrics, failures::FailureMetrics,
};
use crate::{
    apply::RefusalReason,
    gateway::{AnswerMetrics, AnswerSeries},
    health::{HealthCounters, ModelCounters},
};

/// Buckets from 100 µs to 2 h: a pool's wait, a connect, a long generation.
const SECONDS: [f64; 18] = [
    0.0001, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0,
    300.0, 1800.0, 7200.0,
];

/// The label of requests that name no registered model.
const NO_MODEL: &str = "";

/// Who ended a request with the status it has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// The client: a bad request, or it went away.
    Client,
    /// This gateway.
    Gateway,
    /// The upstream.
    Upstream,
}

impl Source {
    /// The metric's label.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Gateway => "gateway",
            Self::Upstream => "upstream",
        }
    }
}

/// Why a client's connection was closed by us, or not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ClientClosed {
    /// Its peer has as many as it may, all in use.
    PeerLimit,
    /// It rested longest when room was needed.
    Evicted,
    /// It never said anything.
    Silent,
    /// The head of a request took too long.
    SlowHead,
    /// It rested for too long.
    Idle,
    /// It took nothing of what it was sent.
    Unread,
    /// It sent a lot, and no request.
    Flood,
}

impl ClientClosed {
    fn label(self) -> &'static str {
        match self {
            Self::PeerLimit => "peer_limit",
            Self::Evicted => "evicted",
            Self::Silent => "silent",
            Self::SlowHead => "slow_head",
            Self::Idle => "idle",
            Self::Unread => "unread",
            Self::Flood => "flood",
        }
    }
}

/// Of clients' connections.
#[derive(Debug)]
struct ClientMetrics {
    open: IntGaugeVec,
    closed: IntCounterVec,
}

impl ClientMetrics {
    fn new(registry: &Registry) -> Result<Self, Error> {
        let open = Opts::new(
            "forebay_client_connections",
            "Connections of clients, with requests (active) or without (idle), as of the last second.",
        );
        let open = IntGaugeVec::new(open, &["state"])?;
        registry.register(Box::new(open.clone()))?;
        let closed = by_reason(
            registry,
            "forebay_client_connections_closed_total",
            "Connections of clients that this worker closed or did not take, by reason.",
        )?;
        Ok(Self { open, closed })
    }
}

/// The worker's counters and histograms.
#[derive(Debug)]
pub struct Metrics {
    pub(crate) health: HealthCounters,
    requests: IntCounterVec,
    request_seconds: HistogramVec,
    first_byte_seconds: HistogramVec,
    wait_seconds: HistogramVec,
    overhead_seconds: HistogramVec,
    connect_seconds: HistogramVec,
    replays: IntCounterVec,
    pub(crate) failures: FailureMetrics,
    pub(crate) discovery: DiscoveryMetrics,
    answers: AnswerMetrics,
    apply_seconds: Histogram,
    rejected: IntCounterVec,
    models_rejected: IntCounterVec,
    auth_rejected: IntCounterVec,
    resyncs: IntCounter,
    pub(crate) control: ControlMetrics,
    clients: ClientMetrics,
    /// What routes hold. The lock is never taken on the request path.
    models: Mutex<HashMap<ModelId, Arc<ModelMetrics>>>,
}

/// The series of one model, looked up once.
#[derive(Debug)]
pub struct ModelMetrics {
    model: ModelId,
    requests: IntCounterVec,
    /// The counters of how its requests ended so far.
    answered: RwLock<Vec<(Answered, IntCounter)>>,
    request_seconds: Histogram,
    first_byte_seconds: Histogram,
    wait_seconds: Histogram,
    overhead_seconds: Histogram,
    /// What its answers said.
    pub(crate) answers: AnswerSeries,
    /// Held by others, too, without keeping the series.
    pub(crate) health: Arc<ModelCounters>,
}

/// The labels of a request that is over: path, status, source.
type Answered = (&'static str, u16, Source);

/// Most counters that a model's series keep at hand; rarer ones are looked up each time.
const AT_HAND: usize = 16;

impl ModelMetrics {
    /// A request is over.
    pub(crate) fn request(&self, path: &'static str, status: u16, source: Source, seconds: f64) {
        let labels = (path, status, source);
        let known = {
            let answered = self.answered.read();
            let known = answered.iter().find(|(known, _)| *known == labels);
            known.map(|(_, counter)| counter.inc()).is_some()
        };
        if !known {
            self.first_of(labels).inc();
        }
        self.request_seconds.observe(seconds);
    }

    fn first_of(&self, labels: Answered) -> IntCounter {
        let (path, status, source) = labels;
        let (model, code) = (self.model.as_str(), status.to_string());
        let counter = self
            .requests
            .with_label_values(&[model, path, &code, source.label()]);
        let mut answered = self.answered.write();
        if answered.len() < AT_HAND {
            answered.push((labels, counter.clone()));
        }
        counter
    }

    pub(crate) fn first_byte(&self, seconds: f64) {
        self.first_byte_seconds.observe(seconds);
    }

    pub(crate) fn waited(&self, seconds: f64) {
        self.wait_seconds.observe(seconds);
    }

    pub(crate) fn overhead(&self, seconds: f64) {
        self.overhead_seconds.observe(seconds);
    }
}

impl Metrics {
    /// Registers them all.
    pub fn new(registry: &Registry) -> Result<Self, Error> {
        let model = &["model"];
        let [rejected, models_rejected, auth_rejected] = rejections(registry)?;
        Ok(Self {
            health: HealthCounters::default(),
            requests: counter(
                registry,
                "forebay_requests_total",
                "Requests answered, by model, path, status and by whom the status came about.",
                &["model", "path", "code", "source"],
            )?,
            request_seconds: histogram(
                registry,
                "forebay_request_duration_seconds",
                "Time from a request's head to the end of its response.",
                model,
            )?,
            first_byte_seconds: histogram(
                registry,
                "forebay_time_to_first_byte_seconds",
                "Time from sending a request upstream to the head of its response.",
                model,
            )?,
            wait_seconds: histogram(
                registry,
                "forebay_pool_wait_seconds",
                "Time a request waited for a connection.",
                model,
            )?,
            overhead_seconds: histogram(
                registry,
                "forebay_overhead_seconds",
                "Time in the gateway before a request was sent, reading of the body and waiting excluded.",
                model,
            )?,
            connect_seconds: histogram(
                registry,
                "forebay_connect_duration_seconds",
                "Time to establish a connection to an upstream.",
                model,
            )?,
            replays: counter(
                registry,
                "forebay_replays_total",
                "Requests sent again on another connection, by cause.",
                &["model", "cause"],
            )?,
            apply_seconds: apply_seconds(registry)?,
            rejected,
            models_rejected,
            auth_rejected,
            resyncs: single(
                registry,
                "forebay_config_resyncs_total",
                "Deltas that could not be used; the whole configuration was asked for.",
            )?,
            control: ControlMetrics::new(registry)?,
            answers: AnswerMetrics::new(registry)?,
            failures: FailureMetrics::new(registry)?,
            discovery: DiscoveryMetrics::new(registry)?,
            clients: ClientMetrics::new(registry)?,
            models: Mutex::default(),
        })
    }

    /// The series of a model, to be kept with its route.
    pub(crate) fn model(&self, model: &ModelId) -> Arc<ModelMetrics> {
        let mut models = self.models.lock();
        let known = models.entry(model.clone());
        known
            .or_insert_with(|| Arc::new(self.look_up(model)))
            .clone()
    }

    fn look_up(&self, model: &ModelId) -> ModelMetrics {
        let of = |histogram: &HistogramVec| histogram.with_label_values(&[model.as_str()]);
        ModelMetrics {
            model: model.clone(),
            requests: self.requests.clone(),
            answered: RwLock::default(),
            request_seconds: of(&self.request_seconds),
            first_byte_seconds: of(&self.first_byte_seconds),
            wait_seconds: of(&self.wait_seconds),
            overhead_seconds: of(&self.overhead_seconds),
            answers: self.answers.of(model),
            health: Arc::default(),
        }
    }

    /// A request is over that named no registered model.
    pub(crate) fn unrouted(&self, path: &str, status: u16, source: Source, seconds: f64) {
        let code = status.to_string();
        self.requests
            .with_label_values(&[NO_MODEL, path, &code, source.label()])
            .inc();
        self.request_seconds
            .with_label_values(&[NO_MODEL])
            .observe(seconds);
    }

    pub(crate) fn replay(&self, model: &ModelId, cause: &str) {
        self.replays
            .with_label_values(&[model.as_str(), cause])
            .inc();
    }

    /// How many clients are connected.
    pub(crate) fn clients(&self, idle: usize, active: usize) {
        for (state, count) in [("idle", idle), ("active", active)] {
            let gauge = self.clients.open.with_label_values(&[state]);
            gauge.set(i64::try_from(count).unwrap_or(i64::MAX));
        }
    }

    pub(crate) fn client_closed(&self, why: ClientClosed) {
        self.clients.closed.with_label_values(&[why.label()]).inc();
    }

    #[cfg(test)]
    pub(crate) fn clients_closed(&self, why: ClientClosed) -> u64 {
        self.clients.closed.with_label_values(&[why.label()]).get()
    }

    pub(crate) fn applied(&self, seconds: f64) {
        self.apply_seconds.observe(seconds);
    }

    pub(crate) fn auth_rejected(&self, reason: &'static str) {
        self.auth_rejected.with_label_values(&[reason]).inc();
    }

    pub(crate) fn resynced(&self) {
        self.resyncs.inc();
    }

    pub(crate) fn rejected(&self, reason: RefusalReason) {
        self.rejected.with_label_values(&[reason.word()]).inc();
    }

    pub(crate) fn model_rejected(&self, reason: RefusalReason) {
        self.models_rejected
            .with_label_values(&[reason.word()])
            .inc();
    }

    /// The histogram of a pool's connects.
    pub(crate) fn connect_seconds(&self, model: &ModelId) -> Histogram {
        self.connect_seconds.with_label_values(&[model.as_str()])
    }

    /// Drops the series of a removed model whose last request is done, so that labels do not pile up;
    /// unless it is registered again by now.
    pub(crate) fn forget(&self, model: &ModelId) {
        let mut models = self.models.lock();
        match models.get(model) {
            Some(held) if Arc::strong_count(held) > 1 => return,
            _ => drop(models.remove(model)),
        }
        let histograms = [
            &self.request_seconds,
            &self.first_byte_seconds,
            &self.wait_seconds,
            &self.overhead_seconds,
            &self.connect_seconds,
        ];
        for histogram in histograms {
            // An error says that there is no such series.
            drop(histogram.remove_label_values(&[model.as_str()]));
        }
        let counters = [&self.requests, &self.replays].into_iter();
        counters
            .chain(self.failures.by_model())
            .chain([self.discovery.by_model()])
            .chain(self.answers.all())
            .for_each(|counter| forget_series(counter, model));
    }
}

/// Removes the series that have this model among other labels.
fn forget_series(counter: &IntCounterVec, model: &ModelId) {
    for family in counter.collect() {
        for metric in family.get_metric() {
            let pairs = metric.get_label().iter();
            let labels: HashMap<&str, &str> =
                pairs.map(|pair| (pair.name(), pair.value())).collect();
            if labels.get("model") == Some(&model.as_str()) {
                drop(counter.remove(&labels));
            }
        }
    }
}

pub(crate) fn counter(
    registry: &Registry,
    name: &str,
    help: &str,
    labels: &[&str],
) -> Result<IntCounterVec, Error> {
    let counter = IntCounterVec::new(Opts::new(name, help), labels)?;
    registry.register(Box::new(counter.clone()))?;
    Ok(counter)
}

fn apply_seconds(registry: &Registry) -> Result<Histogram, Error> {
    let (name, help) = (
        "forebay_config_apply_seconds",
        "Time to put a pushed configuration in force.",
    );
    Ok(histogram(registry, name, help, &[])?.with_label_values::<&str>(&[]))
}

/// What was refused, by reason: configurations, models of them, requests.
fn rejections(registry: &Registry) -> Result<[IntCounterVec; 3], Error> {
    Ok([
        by_reason(
            registry,
            "forebay_config_rejected_total",
            "Pushed configurations refused, by reason.",
        )?,
        by_reason(
            registry,
            "forebay_config_models_rejected_total",
            "Reasons for which models of configurations that were put in force were not taken.",
        )?,
        by_reason(
            registry,
            "forebay_auth_rejected_total",
            "Requests refused for their key, or for its limits, by reason.",
        )?,
    ])
}

fn by_reason(registry: &Registry, name: &str, help: &str) -> Result<IntCounterVec, Error> {
    counter(registry, name, help, &["reason"])
}

fn single(registry: &Registry, name: &str, help: &str) -> Result<IntCounter, Error> {
    let counter = IntCounter::new(name, help)?;
    registry.register(Box::new(counter.clone()))?;
    Ok(counter)
}

fn histogram(
    registry: &Registry,
    name: &str,
    help: &str,
    labels: &[&str],
) -> Result<HistogramVec, Error> {
    let opts = HistogramOpts::new(name, help).buckets(SECONDS.to_vec());
    let histogram = HistogramVec::new(opts, labels)?;
    registry.register(Box::new(histogram.clone()))?;
    Ok(histogram)
}
