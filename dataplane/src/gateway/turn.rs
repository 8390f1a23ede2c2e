//! What a request may claim of its model's line: whose turn it takes, how urgent and how large it is, and how
//! long its client waits. And what the head of an answer says of the engine's load.
//!
//! Names of tenants are hashed with a key of this process and kept nowhere.

use std::{
    hash::{BuildHasher as _, RandomState},
    time::Duration,
};

use forebay_proto::{QueueCost, RequestHeader, TurnParams};
use http::{HeaderMap, HeaderName, Response, StatusCode, header};
use tokio::time::Instant;

use super::caller::Caller;
use crate::{
    live::Route,
    pool::{Ask, FlowId, Priority},
};

/// In which clients say how long they wait for the next byte, in seconds: the official SDKs of OpenAI and
/// Anthropic in Python, and those in JavaScript.
static SECONDS: [HeaderName; 2] = [
    HeaderName::from_static("x-stainless-read-timeout"),
    HeaderName::from_static("x-stainless-timeout"),
];
/// In which Envoy says how long it waits for the answer, in milliseconds.
const MILLIS: HeaderName = HeaderName::from_static("x-envoy-expected-rq-timeout-ms");
/// Longer than this is as good as for ever.
const LONGEST: f64 = 86_400.0;
/// A request's cost is at most this.
const DEAREST: u32 = 1 << 24;

/// Makes flows of names.
#[derive(Debug, Default)]
pub(super) struct Flows(RandomState);

impl Flows {
    /// The flow of this name among those of its kind.
    pub(super) fn named(&self, kind: &str, name: &[u8]) -> FlowId {
        FlowId::new(self.0.hash_one((kind, name)))
    }

    /// What a request that is likely to use so many tokens claims: by the key of its caller, or else by what its
    /// headers say, which a caller with a key could say to have more than its share. Nothing is looked at that is not
    /// configured.
    pub(super) fn ask(
        &self,
        turns: &TurnParams,
        headers: &HeaderMap,
        caller: &Caller,
        tokens: u64,
    ) -> Ask {
        let cost = match turns.cost {
            QueueCost::Request => 1,
            QueueCost::Tokens => u32::try_from(tokens).unwrap_or(DEAREST).clamp(1, DEAREST),
        };
        if let Some(key) = caller.key() {
            return Ask {
                flow: self.named("key", key.id.as_str().as_bytes()),
                weight: key.spec.weight.get(),
                priority: key.spec.priority.into(),
                cost,
            };
        }
        let value = |header: &RequestHeader| headers.get(header.as_str());
        let tenant = turns.tenant_header.as_ref().and_then(value);
        let priority = turns.priority_header.as_ref().and_then(value);
        Ask {
            flow: tenant.map_or(FlowId::SHARED, |name| self.named("tenant", name.as_bytes())),
            weight: 1,
            priority: priority
                .and_then(|word| Priority::from_word(word.as_bytes()))
                .unwrap_or_default(),
            cost,
        }
    }
}

/// When the client gives up, if it says so: so long after its request had left it.
pub(super) fn patience(headers: &HeaderMap, sent: Instant) -> Option<Instant> {
    let text = |name: &HeaderName| headers.get(name)?.to_str().ok()?.trim().parse::<f64>().ok();
    let seconds = SECONDS.iter().filter_map(text);
    let millis = text(&MILLIS).map(|millis| millis / 1_000.0);
    // Zero is no limit to Envoy, and nothing that can be served to anybody else.
    let sane = seconds.chain(millis).filter(|n| n.is_finite() && *n > 0.0);
    let least = sane.min_by(f64::total_cmp)?;
    Some(sent + Duration::from_secs_f64(least.min(LONGEST)))
}

/// Tells the pool what this head says of the engine's load, if its model is let in adaptively.
pub(super) fn note_load<B>(route: &Route, response: &Response<B>, took: Duration, bytes: usize) {
    if route.model.pool.adaptive.is_none() {
        return;
    }
    match response.status() {
        StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => {
            route.pool.note_refused(took, bytes);
        }
        _ if is_stream(response) => route.pool.note_stream(took, bytes),
        _ => {}
    }
}

/// True if a stream begins: that of a whole answer says how long the generation is, not how soon one is served.
pub(super) fn is_stream<B>(response: &Response<B>) -> bool {
    let content_type = response.headers().get(header::CONTENT_TYPE);
    response.status() == StatusCode::OK
        && content_type.is_some_and(|t| t.as_bytes().starts_with(b"text/event-stream"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let pairs = pairs.iter();
        pairs
            .map(|(name, value)| (HeaderName::from_static(name), value.parse().unwrap()))
            .collect()
    }

    #[test]
    fn the_clients_own_limit_is_read_and_nonsense_is_not() {
        let now = Instant::now();
        let read = |pairs: &[(&'static str, &str)]| {
            let until = patience(&headers(pairs), now);
            until.map(|until| until.duration_since(now).as_millis())
        };
        assert_eq!(read(&[]), None);
        assert_eq!(read(&[("x-stainless-read-timeout", "600")]), Some(600_000));
        assert_eq!(read(&[("x-stainless-read-timeout", "0.5")]), Some(500));
        assert_eq!(read(&[("x-stainless-timeout", "60")]), Some(60_000));
        assert_eq!(
            read(&[("x-envoy-expected-rq-timeout-ms", "15000")]),
            Some(15_000)
        );
        let two = [
            ("x-stainless-timeout", "60"),
            ("x-envoy-expected-rq-timeout-ms", "2000"),
        ];
        assert_eq!(read(&two), Some(2_000), "the shorter one");
        assert_eq!(read(&[("x-stainless-timeout", "1e300")]), Some(86_400_000));
        for nonsense in [
            "", "0", "-1", "NaN", "inf", "-inf", "None", "1s", "0x10", "1e-400",
        ] {
            assert_eq!(
                read(&[("x-stainless-read-timeout", nonsense)]),
                None,
                "{nonsense}"
            );
        }
    }

    #[test]
    fn what_is_not_configured_is_not_looked_at() {
        let flows = Flows::default();
        let headers = headers(&[("x-tenant", "a"), ("x-priority", "high")]);
        let turns = TurnParams::default();
        assert_eq!(
            flows.ask(&turns, &headers, &Caller::anybody(), 1_000),
            Ask::default()
        );
    }

    #[test]
    fn a_tenant_is_always_the_same_flow_and_never_another() {
        let flows = Flows::default();
        let header = |name| RequestHeader::parse(name).unwrap();
        let turns = TurnParams {
            tenant_header: header("X-Tenant"),
            priority_header: header("x-priority"),
            cost: QueueCost::Tokens,
        };
        let ask = |pairs: &[(&'static str, &str)]| {
            flows.ask(&turns, &headers(pairs), &Caller::anybody(), 1_000)
        };
        let (a, again) = (ask(&[("x-tenant", "a")]), ask(&[("x-tenant", "a")]));
        assert_eq!(a, again);
        assert_eq!((a.cost, a.priority), (1_000, Priority::Normal));
        let others = ["b", "A", "", "aa"].map(|name| ask(&[("x-tenant", name)]).flow);
        assert!(!others.contains(&a.flow) && !others.contains(&FlowId::SHARED));
        assert_eq!(ask(&[]).flow, FlowId::SHARED);
        assert_ne!(flows.named("key", b"a"), a.flow, "a key is no tenant");
        assert_ne!(
            Flows::default().named("tenant", b"a"),
            a.flow,
            "nobody can tell before"
        );
        let urgent = ask(&[("x-tenant", "a"), ("x-priority", "high")]);
        assert_eq!((urgent.flow, urgent.priority), (a.flow, Priority::High));
        assert_eq!(ask(&[("x-priority", "urgent")]).priority, Priority::Normal);
    }
}
