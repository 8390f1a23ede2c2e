//! A configuration on its way to a worker: the whole or what changed, in the trace of the write that it carries.

use bytes::Bytes;
use forebay_proto::{Position, limits, wire};
use wire::to_worker::Message as Say;

use super::{DELTAS, Session};
use crate::{metrics::PushKind, trace_context};

impl Session {
    /// The push is in the trace of the write that it carries, and the worker's part in its.
    pub(super) fn push(&mut self, push_id: u64, base: Option<Position>) {
        self.push_keys();
        let target = self.current.clone();
        let published = &target.published;
        let worker = self.joined.as_ref().map(|(worker, _)| worker.to_string());
        let revision = published.position.revision;
        let base = base.filter(|_| self.protocol >= DELTAS);
        let delta = base.and_then(|base| target.delta(&base).map(|change| (base, change)));
        let span = tracing::info_span!("push", worker, %revision, delta = delta.is_some());
        trace_context::adopt_text(&span, &published.traceparent);
        let traceparent = trace_context::to_text(&span);
        self.push_span = Some(span);
        let to = Some((&published.position).into());
        let (word, rest) = match delta {
            None => {
                self.metrics.pushed(PushKind::Whole, published.config.len());
                let (config, chunked_bytes, rest) = self.portion(&published.config);
                let push = wire::Push {
                    push_id,
                    to,
                    config,
                    traceparent,
                    chunked_bytes,
                };
                (Say::Push(push), rest)
            }
            Some((base, change)) => {
                self.metrics.pushed(PushKind::Delta, change.len());
                let (change, chunked_bytes, rest) = self.portion(&change);
                let delta = wire::Delta {
                    push_id,
                    from: Some((&base).into()),
                    to,
                    change,
                    traceparent,
                    chunked_bytes,
                };
                (Say::Delta(delta), rest)
            }
        };
        self.outbox.say(word);
        self.outbox.body(push_id, rest);
    }

    /// What goes in the push's own message, what size it announces, and what goes in chunks.
    fn portion(&self, body: &Bytes) -> (Bytes, u64, Bytes) {
        match self.protocol < DELTAS || body.len() <= limits::CHUNK_BYTES {
            true => (body.clone(), 0, Bytes::new()),
            false => (Bytes::new(), body.len() as u64, body.clone()),
        }
    }

    pub(super) fn answered(&mut self, answer: &'static str) {
        if let Some(push) = self.push_span.take() {
            let span = tracing::info_span!(parent: &push, "answer", answer);
            span.in_scope(|| tracing::debug!(answer, "push answered"));
        }
    }
}
