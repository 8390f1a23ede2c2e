//! What the control plane measures. Labels are methods, status codes and states; never text of a
//! client's.

use forebay_proto::probe::Verdict;
use prometheus::{
    Error, GaugeVec, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, IntGaugeVec,
    Opts, Registry,
};
use tonic::Code;

use crate::{cluster::ReplicaMetrics, rollout::RingMetrics};

/// The control plane's metrics.
#[derive(Debug)]
pub(crate) struct Metrics {
    pub(crate) commit_seconds: Histogram,
    pub(crate) streams: IntGauge,
    pub(crate) export_revision: IntGauge,
    pub(crate) export_time: IntGauge,
    pub(crate) export_failures: IntCounter,
    pub(crate) recovered: IntGauge,
    revision: IntGauge,
    models: IntGauge,
    history_revisions: IntGauge,
    history_bytes: IntGauge,
    rollout: IntGaugeVec,
    rpcs: IntCounterVec,
    pushes: IntCounterVec,
    push_bytes: IntCounterVec,
    used: GaugeVec,
    pub(crate) rings: RingMetrics,
    pub(crate) replicas: ReplicaMetrics,
    probes: IntCounterVec,
    pub(crate) turned_away: IntCounter,
    twins: IntGauge,
}

/// In what form a configuration went to a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PushKind {
    Whole,
    Delta,
    /// Clients' keys: no configuration.
    Keys,
}

impl PushKind {
    fn label(self) -> &'static str {
        match self {
            Self::Whole => "whole",
            Self::Delta => "delta",
            Self::Keys => "keys",
        }
    }
}

/// What a configuration may have only so much of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Limit {
    Models,
    ConfigBytes,
    /// Of the model that has the most.
    ModelEndpoints,
}

impl Limit {
    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::Models => "models",
            Self::ConfigBytes => "config_bytes",
            Self::ModelEndpoints => "model_endpoints",
        }
    }
}

/// How many workers stand where with respect to the newest revision.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct RolloutCounts {
    pub(crate) applied: u32,
    pub(crate) partial: u32,
    pub(crate) pending: u32,
    pub(crate) refused: u32,
    pub(crate) gone: u32,
    /// Workers whose id another process has, too.
    pub(crate) twins: u32,
}

impl Metrics {
    pub(crate) fn new(registry: &Registry) -> Result<Self, Error> {
        let metrics = Self {
            commit_seconds: commit_seconds()?,
            streams: IntGauge::new(
                "forebay_control_streams",
                "Streams of workers that are open.",
            )?,
            export_revision: IntGauge::new(
                "forebay_store_export_revision",
                "The revision of the newest automatic export.",
            )?,
            export_time: IntGauge::new(
                "forebay_store_export_timestamp_seconds",
                "When the newest automatic export was found to be current, in seconds since 1970.",
            )?,
            export_failures: IntCounter::new(
                "forebay_store_export_failures_total",
                "Automatic exports that failed.",
            )?,
            recovered: IntGauge::new(
                "forebay_store_recovered",
                "Whether the store was damaged at the start of this process and was recovered.",
            )?,
            revision: IntGauge::new("forebay_config_revision", "The newest revision.")?,
            models: IntGauge::new("forebay_control_models", "Registered models.")?,
            history_revisions: IntGauge::new(
                "forebay_control_history_revisions",
                "Revisions that are kept.",
            )?,
            history_bytes: IntGauge::new(
                "forebay_control_history_bytes",
                "Bytes of the content of revisions that are kept.",
            )?,
            rollout: IntGaugeVec::new(
                Opts::new(
                    "forebay_rollout_workers",
                    "Workers by where they stand with respect to the newest revision.",
                ),
                &["state"],
            )?,
            rpcs: counters(
                "forebay_control_rpcs_total",
                "Calls answered, by method and status.",
                &["method", "code"],
            )?,
            pushes: counters(
                "forebay_control_pushes_total",
                "Configurations sent to workers, whole or as a delta.",
                &["kind"],
            )?,
            push_bytes: counters(
                "forebay_control_push_bytes_total",
                "Bytes of the configurations sent to workers.",
                &["kind"],
            )?,
            used: used()?,
            rings: RingMetrics::new(registry)?,
            replicas: ReplicaMetrics::new(registry)?,
            probes: counters(
                "forebay_control_probes_total",
                "Endpoints looked at before a write, by what was found.",
                &["verdict"],
            )?,
            turned_away: turned_away()?,
            twins: twins()?,
        };
        metrics.register(registry)?;
        Ok(metrics)
    }

    fn register(&self, registry: &Registry) -> Result<(), Error> {
        registry.register(Box::new(self.commit_seconds.clone()))?;
        registry.register(Box::new(self.streams.clone()))?;
        registry.register(Box::new(self.export_revision.clone()))?;
        registry.register(Box::new(self.export_time.clone()))?;
        registry.register(Box::new(self.export_failures.clone()))?;
        registry.register(Box::new(self.recovered.clone()))?;
        registry.register(Box::new(self.revision.clone()))?;
        registry.register(Box::new(self.models.clone()))?;
        registry.register(Box::new(self.history_revisions.clone()))?;
        registry.register(Box::new(self.history_bytes.clone()))?;
        registry.register(Box::new(self.rollout.clone()))?;
        registry.register(Box::new(self.rpcs.clone()))?;
        registry.register(Box::new(self.pushes.clone()))?;
        registry.register(Box::new(self.push_bytes.clone()))?;
        registry.register(Box::new(self.used.clone()))?;
        registry.register(Box::new(self.probes.clone()))?;
        registry.register(Box::new(self.turned_away.clone()))?;
        registry.register(Box::new(self.twins.clone()))?;
        Ok(())
    }

    /// A call was answered.
    pub(crate) fn rpc(&self, method: &'static str, code: Code) {
        self.rpcs
            .with_label_values(&[method, code_name(code)])
            .inc();
    }

    /// A configuration goes to a worker.
    pub(crate) fn pushed(&self, kind: PushKind, bytes: usize) {
        let kind = &[kind.label()];
        self.pushes.with_label_values(kind).inc();
        self.push_bytes.with_label_values(kind).inc_by(bytes as u64);
    }

    /// So many revisions are kept, whose content takes so many bytes.
    pub(crate) fn history(&self, (revisions, bytes): (usize, u64)) {
        self.history_revisions
            .set(i64::try_from(revisions).unwrap_or(i64::MAX));
        self.history_bytes
            .set(i64::try_from(bytes).unwrap_or(i64::MAX));
    }

    /// The configuration uses this share of a limit.
    pub(crate) fn used(&self, limit: Limit, share: f64) {
        self.used.with_label_values(&[limit.label()]).set(share);
    }

    /// An endpoint was looked at.
    pub(crate) fn probed(&self, verdict: Verdict) {
        self.probes.with_label_values(&[verdict.word()]).inc();
    }

    /// What can be read off at the time of a scrape.
    pub(crate) fn observe(&self, revision: u64, models: usize, rollout: RolloutCounts) {
        self.revision
            .set(i64::try_from(revision).unwrap_or(i64::MAX));
        self.models.set(i64::try_from(models).unwrap_or(i64::MAX));
        self.twins.set(i64::from(rollout.twins));
        for (state, count) in [
            ("applied", rollout.applied),
            ("partial", rollout.partial),
            ("pending", rollout.pending),
            ("refused", rollout.refused),
            ("gone", rollout.gone),
        ] {
            self.rollout
                .with_label_values(&[state])
                .set(i64::from(count));
        }
    }
}

fn used() -> Result<GaugeVec, Error> {
    GaugeVec::new(
        Opts::new(
            "forebay_control_limit_used_ratio",
            "Share of a limit that the configuration uses.",
        ),
        &["limit"],
    )
}

fn turned_away() -> Result<IntCounter, Error> {
    IntCounter::new(
        "forebay_control_workers_turned_away_total",
        "Streams refused or ended because another process with the worker's id is alive.",
    )
}

fn twins() -> Result<IntGauge, Error> {
    IntGauge::new(
        "forebay_control_duplicate_workers",
        "Worker ids that more than one process came under in the last two minutes.",
    )
}

fn commit_seconds() -> Result<Histogram, Error> {
    let opts = HistogramOpts::new(
        "forebay_store_commit_seconds",
        "Time to make a group of writes durable.",
    );
    let buckets = prometheus::exponential_buckets(0.0001, 2.5, 12)?;
    Histogram::with_opts(opts.buckets(buckets))
}

fn counters(name: &str, help: &str, labels: &[&str]) -> Result<IntCounterVec, Error> {
    IntCounterVec::new(Opts::new(name, help), labels)
}

/// The code as the gRPC specification spells it.
fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}
