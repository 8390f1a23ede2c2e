//! How a mock behaves: fixed at the start ([`MockConfig`]) or changed at any time ([`Faults`]).

use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};

use crate::script::Script;

/// How a mock behaves from its start.
#[derive(Debug, Clone)]
pub struct MockConfig {
    /// Where it listens.
    pub listen: SocketAddr,
    /// A Unix socket to listen on instead.
    pub unix: Option<PathBuf>,
    /// Speaks TLS with this.
    pub tls: Option<MockTls>,
    /// What it speaks on a connection.
    pub speaks: Speaks,
    /// Requests that it takes at a time on an HTTP/2 connection.
    pub max_streams: Option<u32>,
    /// The models it serves. None: whatever is asked for.
    pub models: Vec<String>,
    /// Its name, told in the `x-mock-name` header.
    pub name: String,
    /// Time from a request to the head of its response.
    pub latency: Duration,
    /// Tokens of a response unless the request's `max_tokens` says otherwise.
    pub tokens: u32,
    /// Time between tokens of a stream.
    pub interval: Duration,
    /// Closes a connection this long after a response, as uvicorn does. One that never carried a
    /// request is left open for ever, as uvicorn does too. `None`: never.
    pub keep_alive: Option<Duration>,
    /// Reads nothing of a new connection for this long: stands for TCP and TLS handshakes.
    pub accept_delay: Duration,
    /// Requires `authorization: Bearer` with this key.
    pub api_key: Option<String>,
    /// Answers 503 to requests above this many at once, and counts them.
    pub max_in_flight: Option<usize>,
    /// What it says. `None`: `token0 token1 …`.
    pub script: Option<Arc<dyn Script>>,
}

/// What a mock speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Speaks {
    /// HTTP/1.1.
    Http1,
    /// HTTP/2.
    Http2,
    /// Either: as the client wishes.
    Both,
}

/// A mock's certificate, in PEM.
#[derive(Debug, Clone)]
pub struct MockTls {
    /// Its certificate.
    pub certificate: String,
    /// Its key.
    pub key: String,
    /// Whom clients' certificates must be signed by; none are asked for if absent.
    pub clients: Option<String>,
}

impl Default for MockConfig {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            unix: None,
            tls: None,
            speaks: Speaks::Http1,
            max_streams: None,
            models: vec!["mock".to_owned()],
            name: "mock".to_owned(),
            latency: Duration::ZERO,
            tokens: 16,
            interval: Duration::from_millis(5),
            keep_alive: Some(Duration::from_secs(5)),
            accept_delay: Duration::ZERO,
            api_key: None,
            max_in_flight: None,
            script: None,
        }
    }
}

impl MockConfig {
    /// The default, serving this model.
    #[must_use]
    pub fn serving(model: &str) -> Self {
        Self {
            models: vec![model.to_owned()],
            ..Self::default()
        }
    }
}

/// What goes wrong, from now on. Those with a number hold for that many requests.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Faults {
    /// Resets new connections.
    pub refuse: bool,
    /// Resets the connection instead of answering, for this many requests.
    pub reset_before_response: u32,
    /// Never answers, for this many requests.
    pub stall_before_response: u32,
    /// Resets streams after this many tokens.
    pub reset_mid_stream_after: Option<u32>,
    /// Falls silent in streams after this many tokens, without closing.
    pub stall_mid_stream_after: Option<u32>,
    /// Sends an error event after this many tokens, then `[DONE]` and a clean end, as vLLM does when
    /// its engine dies.
    pub error_event_after: Option<u32>,
    /// Ends streams without `[DONE]`.
    pub no_done: bool,
    /// Answers with this status, for `status_for` requests.
    pub status: Option<u16>,
    /// See `status`.
    pub status_for: u32,
    /// Only to requests with this `user-agent`; see `status`.
    pub status_to: Option<String>,
    /// Seconds in `retry-after`; see `status`.
    pub retry_after: Option<u32>,
    /// Asks for the connection to be closed with each response.
    pub close_after_response: bool,
    /// Answers `/health` with this status.
    pub health: Option<u16>,
    /// Never answers `/health`.
    pub health_stalls: bool,
}

impl Faults {
    /// Takes one of a number of requests that are to fail.
    pub(crate) fn take(count: &mut u32) -> bool {
        let left = *count > 0;
        *count = count.saturating_sub(1);
        left
    }
}
