//! W3C trace context: from the client's headers or a push into a span, and from a span into the
//! headers of the upstream request. Does nothing harmful when no exporter is installed.

use std::{future::poll_fn, pin::Pin};

use http::{HeaderMap, HeaderName, HeaderValue};
use opentelemetry::{
    global,
    propagation::{Extractor, Injector},
};
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt as _;

/// The headers that carry it.
pub(crate) static HEADERS: [HeaderName; 2] = [
    HeaderName::from_static("traceparent"),
    HeaderName::from_static("tracestate"),
];

/// Makes the span a child of what the headers name.
pub(crate) fn adopt(span: &Span, headers: &HeaderMap) {
    if span.is_disabled() {
        return;
    }
    let parent =
        global::get_text_map_propagator(|propagator| propagator.extract(&Headers(headers)));
    if let Err(error) = span.set_parent(parent) {
        tracing::trace!(%error, "the span keeps its own trace");
    }
}

/// Waits for the future within the span; unlike `instrument` without moving it, which is for each request
/// some kilobytes.
pub(crate) async fn within<F: Future>(span: &Span, mut future: Pin<&mut F>) -> F::Output {
    poll_fn(|cx| span.in_scope(|| future.as_mut().poll(cx))).await
}

/// Makes the span a child of what a push names.
pub(crate) fn adopt_text(span: &Span, traceparent: &str) {
    let [name, _] = &HEADERS;
    let Ok(value) = HeaderValue::from_str(traceparent) else {
        return;
    };
    adopt(span, &HeaderMap::from_iter([(name.clone(), value)]));
}

/// Writes the span's context over what the headers have. Without an exporter they keep the client's.
pub(crate) fn inject(span: &Span, headers: &mut HeaderMap) {
    if span.is_disabled() {
        return;
    }
    let context = span.context();
    global::get_text_map_propagator(|propagator| {
        propagator.inject_context(&context, &mut HeadersMut(headers));
    });
}

struct Headers<'a>(&'a HeaderMap);

impl Extractor for Headers<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key)?.to_str().ok()
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(HeaderName::as_str).collect()
    }
}

struct HeadersMut<'a>(&'a mut HeaderMap);

impl Injector for HeadersMut<'_> {
    fn set(&mut self, key: &str, value: String) {
        let name = HeaderName::from_bytes(key.as_bytes());
        let value = HeaderValue::from_str(&value)
            .ok()
            .filter(|value| !value.is_empty());
        if let (Ok(name), Some(value)) = (name, value) {
            self.0.insert(name, value);
        }
    }
}
