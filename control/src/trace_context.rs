//! W3C trace context: from an operator's metadata into a span, and from a span into the text that a
//! push carries. Without an exporter the text is empty.

use std::collections::HashMap;

use opentelemetry::{global, propagation::Extractor};
use tonic::metadata::MetadataMap;
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt as _;

const TRACEPARENT: &str = "traceparent";

/// Makes the span a child of what the metadata names.
pub(crate) fn adopt(span: &Span, metadata: &MetadataMap) {
    set_parent(span, &Metadata(metadata));
}

/// Makes the span a child of what the text names.
pub(crate) fn adopt_text(span: &Span, traceparent: &str) {
    set_parent(
        span,
        &HashMap::from([(TRACEPARENT.to_owned(), traceparent.to_owned())]),
    );
}

/// The span's context as text.
pub(crate) fn to_text(span: &Span) -> String {
    let mut carrier = HashMap::new();
    let context = span.context();
    global::get_text_map_propagator(|propagator| propagator.inject_context(&context, &mut carrier));
    carrier.remove(TRACEPARENT).unwrap_or_default()
}

fn set_parent(span: &Span, carrier: &dyn Extractor) {
    let parent = global::get_text_map_propagator(|propagator| propagator.extract(carrier));
    if let Err(error) = span.set_parent(parent) {
        tracing::trace!(%error, "the span keeps its own trace");
    }
}

struct Metadata<'a>(&'a MetadataMap);

impl Extractor for Metadata<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key)?.to_str().ok()
    }

    fn keys(&self) -> Vec<&str> {
        [TRACEPARENT, "tracestate"]
            .into_iter()
            .filter(|key| self.0.contains_key(*key))
            .collect()
    }
}
