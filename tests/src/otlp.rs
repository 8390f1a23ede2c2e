//! A receiver of traces, built on the published OTLP protos: what a collector would get.

use std::{collections::HashMap, net::SocketAddr, sync::Arc};

use opentelemetry_proto::tonic::{
    collector::trace::v1::{
        ExportTraceServiceRequest, ExportTraceServiceResponse,
        trace_service_server::{TraceService, TraceServiceServer},
    },
    common::v1::any_value::Value,
};
use parking_lot::Mutex;
use tokio::{net::TcpListener, task::JoinSet};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status, transport::Server};

/// A span as it arrived.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeenSpan {
    /// The service that made it.
    pub service: String,
    /// Its name.
    pub name: String,
    /// Its trace, in hexadecimal.
    pub trace: String,
    /// Its id, in hexadecimal.
    pub id: String,
    /// Its parent's id, in hexadecimal; empty for a root.
    pub parent: String,
    /// Its attributes that are strings or numbers, as text.
    pub attributes: HashMap<String, String>,
}

/// Collects spans until it is dropped.
#[derive(Debug)]
pub struct Receiver {
    addr: SocketAddr,
    spans: Arc<Mutex<Vec<SeenSpan>>>,
    _server: JoinSet<()>,
}

impl Receiver {
    /// Starts to listen on a free port.
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let addr = listener.local_addr().expect("a bound port");
        let spans = Arc::<Mutex<Vec<_>>>::default();
        let service = TraceServiceServer::new(Collect(spans.clone()));
        let mut server = JoinSet::new();
        server.spawn(async move {
            let incoming = TcpListenerStream::new(listener);
            let serving = Server::builder().add_service(service);
            let served = serving.serve_with_incoming(incoming).await;
            served.expect("the receiver serves");
        });
        Self {
            addr,
            spans,
            _server: server,
        }
    }

    /// What `--otlp-endpoint` is to be.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// All that arrived.
    #[must_use]
    pub fn spans(&self) -> Vec<SeenSpan> {
        self.spans.lock().clone()
    }

    /// What arrived of one trace.
    #[must_use]
    pub fn of_trace(&self, trace: &str) -> Vec<SeenSpan> {
        let mut spans = self.spans();
        spans.retain(|span| span.trace == trace);
        spans
    }
}

struct Collect(Arc<Mutex<Vec<SeenSpan>>>);

#[tonic::async_trait]
impl TraceService for Collect {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let mut spans = self.0.lock();
        for group in request.into_inner().resource_spans {
            let attributes = group.resource.map(|r| r.attributes).unwrap_or_default();
            let service = texts(attributes).remove("service.name").unwrap_or_default();
            for span in group.scope_spans.into_iter().flat_map(|scope| scope.spans) {
                spans.push(SeenSpan {
                    service: service.clone(),
                    name: span.name,
                    trace: hex(&span.trace_id),
                    id: hex(&span.span_id),
                    parent: hex(&span.parent_span_id),
                    attributes: texts(span.attributes),
                });
            }
        }
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

fn texts(
    attributes: Vec<opentelemetry_proto::tonic::common::v1::KeyValue>,
) -> HashMap<String, String> {
    let text = |value| match value {
        Value::StringValue(text) => Some(text),
        Value::IntValue(number) => Some(number.to_string()),
        Value::BoolValue(yes) => Some(yes.to_string()),
        _ => None,
    };
    let pair = |attribute: opentelemetry_proto::tonic::common::v1::KeyValue| {
        let value = text(attribute.value?.value?)?;
        Some((attribute.key, value))
    };
    attributes.into_iter().filter_map(pair).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
