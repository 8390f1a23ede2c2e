//! Logs to standard error and, when an endpoint is given, traces over OTLP. A collector that is away
//! costs nothing but its traces.

use std::{io::IsTerminal as _, time::Duration};

use anyhow::Context as _;
use opentelemetry::{KeyValue, global, trace::TracerProvider as _};
use opentelemetry_otlp::{SpanExporter, WithExportConfig as _};
use opentelemetry_sdk::{Resource, propagation::TraceContextPropagator, trace::SdkTracerProvider};
use tracing_appender::non_blocking::{NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::{
    EnvFilter, Layer, Registry,
    filter::{FilterExt as _, filter_fn},
    layer::SubscriberExt as _,
    util::SubscriberInitExt as _,
};

use forebay_dataplane::REQUEST_SPANS;

use crate::args::{LogArgs, LogFormat};

type Boxed = Box<dyn Layer<Registry> + Send + Sync>;

/// Longest wait for a collector, per export and at the end.
const EXPORT_WITHIN: Duration = Duration::from_secs(3);

/// Lines of the log that wait to be written; further ones are lost. The room for them is taken at the start.
const LOG_LINES: usize = 16_384;

/// Ends telemetry when told to: what is buffered is sent.
pub(crate) struct Telemetry {
    traces: Option<SdkTracerProvider>,
    /// Writes what is left of the log when it is dropped.
    _log: WorkerGuard,
}

impl Telemetry {
    /// Starts logging, and tracing if asked for.
    pub(crate) fn start(
        args: &LogArgs,
        service: &'static str,
        instance: &str,
    ) -> anyhow::Result<Self> {
        global::set_text_map_propagator(TraceContextPropagator::new());
        let filter = EnvFilter::try_new(&args.log_level).context("--log-level")?;
        // On a thread of its own, lossy: a reader of the log that has stalled must not stall requests.
        let (writer, log) = NonBlockingBuilder::default()
            .buffered_lines_limit(LOG_LINES)
            .finish(std::io::stderr());
        let logs = tracing_subscriber::fmt::layer()
            .with_ansi(std::io::stderr().is_terminal())
            .with_writer(writer);
        let logs = match args.log_format {
            LogFormat::Text => logs.with_target(false).boxed(),
            LogFormat::Json => logs.json().flatten_event(true).boxed(),
        };
        let provider = match &args.otlp_endpoint {
            // Compose files set what is not set to nothing.
            Some(endpoint) if endpoint.is_empty() => None,
            Some(endpoint) => Some(provider(endpoint, service, instance)?),
            None => None,
        };
        // A request's spans are for traces alone: what its log lines need, they say themselves. A span
        // that no layer wants is not made at all, and it is made for every request.
        let wanted = filter_fn(|meta| !meta.is_span() || !meta.target().starts_with(REQUEST_SPANS));
        let mut layers: Vec<Boxed> = vec![logs.with_filter(filter.and(wanted)).boxed()];
        // Not an optional layer: one that is absent still has everything asked for anew each time.
        if let Some(provider) = &provider {
            // Traces are not thinned out by the log's filter; other crates' spans are of no use.
            let ours =
                EnvFilter::new("off,forebay=info,forebay_control=info,forebay_dataplane=info");
            let traces = tracing_opentelemetry::layer().with_tracer(provider.tracer("forebay"));
            layers.push(traces.with_filter(ours).boxed());
        }
        tracing_subscriber::registry().with(layers).init();
        Ok(Self {
            traces: provider,
            _log: log,
        })
    }

    /// Sends what is buffered.
    pub(crate) async fn stop(self) {
        let Some(provider) = self.traces else { return };
        let stopped =
            tokio::task::spawn_blocking(move || provider.shutdown_with_timeout(EXPORT_WITHIN));
        if let Ok(Err(error)) = stopped.await {
            tracing::warn!(%error, "the last traces were not sent");
        }
    }
}

fn provider(
    endpoint: &str,
    service: &'static str,
    instance: &str,
) -> anyhow::Result<SdkTracerProvider> {
    let exporter = SpanExporter::builder()
        .with_tonic()
        .with_endpoint(endpoint)
        .with_timeout(EXPORT_WITHIN)
        .build()
        .with_context(|| format!("--otlp-endpoint {endpoint:?} cannot be used"))?;
    let resource = Resource::builder()
        .with_service_name(service)
        .with_attribute(KeyValue::new("service.instance.id", instance.to_owned()))
        .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
        .build();
    Ok(SdkTracerProvider::builder()
        .with_batch_exporter(exporter)
        .with_resource(resource)
        .build())
}
