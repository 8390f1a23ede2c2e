//! The upstreams of a run: mocks whose answers can be checked and which count every execution by the
//! request's name. What is not a request of this run is answered as any mock answers.

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
};

use forebay_mock::{MockConfig, MockServer, MockStats, Script, Speech};
use serde::Serialize;

use super::{ZeroLossError, sequence::Text, settings::Settings};

/// The name of a request: unique within the run, and not that of another run.
pub(crate) fn name(seed: u64, index: u64) -> String {
    format!("zl.{seed:x}.{index}")
}

fn index(seed: u64, name: &str) -> Option<usize> {
    let (run, index) = name.strip_prefix("zl.")?.split_once('.')?;
    (u64::from_str_radix(run, 16) == Ok(seed)).then(|| index.parse().ok())?
}

/// How often each request was executed.
#[derive(Debug)]
pub(crate) struct Executions {
    seed: u64,
    counts: Box<[AtomicU8]>,
}

impl Executions {
    fn new(seed: u64, requests: u64) -> Self {
        let counts = (0..requests).map(|_| AtomicU8::new(0)).collect();
        Self { seed, counts }
    }

    fn add(&self, index: usize) {
        if let Some(count) = self.counts.get(index) {
            // Sticks at the top instead of beginning anew.
            let _ = count.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |count| {
                count.checked_add(1)
            });
        }
    }

    /// Of the requests with these numbers, how many were executed more than once.
    pub(crate) fn duplicated(&self, indexes: std::ops::Range<u64>) -> u64 {
        let (first, end) = (indexes.start as usize, indexes.end as usize);
        let counts = self.counts.get(first..end.min(self.counts.len()));
        let twice = |count: &&AtomicU8| count.load(Ordering::Relaxed) > 1;
        counts.unwrap_or_default().iter().filter(twice).count() as u64
    }
}

impl Script for Executions {
    fn answer(&self, prompt: &str, tokens: u32) -> Option<Box<dyn Speech>> {
        self.add(index(self.seed, prompt)?);
        Some(Box::new(Text::of(prompt, tokens)))
    }
}

impl Speech for Text {
    fn token(&mut self) -> String {
        Text::token(self)
    }
}

/// The running upstreams.
#[derive(Debug)]
pub(crate) struct Upstreams {
    servers: Vec<MockServer>,
    executions: Arc<Executions>,
}

/// What the upstreams saw, all together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Seen {
    /// Requests executed.
    pub requests: u64,
    /// Connections opened.
    pub opened: u64,
    /// Connections opened for a thousand requests executed.
    pub opened_per_1000: f64,
    /// Most connections open at once since the start, the sum over the upstreams.
    pub peak_open: u64,
    /// Connections that the gateway closed.
    pub closed_by_gateway: u64,
    /// Connections that the gateway reset.
    pub reset_by_gateway: u64,
    /// Connections that an upstream closed because they were idle for too long.
    pub closed_idle: u64,
    /// Requests whose client went away before the end of the answer.
    pub cancelled: u64,
}

impl Upstreams {
    /// Starts them; an address that is taken is an error that names it.
    pub(crate) async fn start(settings: &Settings) -> Result<Self, ZeroLossError> {
        let executions = Executions::new(settings.seed, settings.requests_in_all());
        let executions = Arc::new(executions);
        let mut servers = Vec::new();
        for (n, listen) in settings.upstreams.iter().enumerate() {
            let script: Arc<dyn Script> = executions.clone();
            let config = MockConfig {
                listen: *listen,
                models: Vec::new(),
                name: format!("upstream-{}", n + 1),
                interval: settings.token_interval,
                keep_alive: settings.upstream_keep_alive,
                script: Some(script),
                ..MockConfig::default()
            };
            let server = MockServer::start(config).await;
            servers.push(server.map_err(|error| taken(*listen, error))?);
        }
        Ok(Self {
            servers,
            executions,
        })
    }

    pub(crate) fn addresses(&self) -> Vec<SocketAddr> {
        self.servers.iter().map(MockServer::addr).collect()
    }

    pub(crate) fn executions(&self) -> &Executions {
        &self.executions
    }

    /// What they saw until now.
    pub(crate) fn seen(&self) -> Seen {
        let all = self.servers.iter().map(MockServer::stats);
        all.fold(Seen::default(), |seen, stats| seen.with(&stats))
    }

    pub(crate) async fn stop(self) {
        for server in self.servers {
            server.stop().await;
        }
    }
}

fn taken(listen: SocketAddr, source: io::Error) -> ZeroLossError {
    ZeroLossError::Listen { listen, source }
}

impl Seen {
    fn with(self, stats: &MockStats) -> Self {
        Self {
            requests: self.requests + stats.requests,
            opened: self.opened + stats.opened,
            opened_per_1000: 0.0,
            peak_open: self.peak_open + stats.peak_open,
            closed_by_gateway: self.closed_by_gateway + stats.closed_other,
            reset_by_gateway: self.reset_by_gateway + stats.closed_reset,
            closed_idle: self.closed_idle + stats.closed_idle,
            cancelled: self.cancelled + stats.cancelled,
        }
    }

    /// What was seen since then.
    pub(crate) fn since(self, then: Self) -> Self {
        let requests = self.requests.saturating_sub(then.requests);
        let opened = self.opened.saturating_sub(then.opened);
        Self {
            requests,
            opened,
            opened_per_1000: opened as f64 * 1_000.0 / requests.max(1) as f64,
            peak_open: self.peak_open,
            closed_by_gateway: self
                .closed_by_gateway
                .saturating_sub(then.closed_by_gateway),
            reset_by_gateway: self.reset_by_gateway.saturating_sub(then.reset_by_gateway),
            closed_idle: self.closed_idle.saturating_sub(then.closed_idle),
            cancelled: self.cancelled.saturating_sub(then.cancelled),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn executions_are_counted_by_request_and_run() {
        let executions = Executions::new(0xab, 10);
        for prompt in [name(0xab, 3), name(0xab, 3), name(0xab, 4)] {
            assert!(executions.answer(&prompt, 1).is_some());
        }
        for foreign in [&name(0xac, 4), "hello", "zl.ab.x", "zl.ab"] {
            assert!(executions.answer(foreign, 1).is_none(), "{foreign}");
        }
        assert!(executions.answer(&name(0xab, 1_000), 1).is_some());
        assert_eq!(executions.duplicated(0..10), 1);
        assert_eq!(executions.duplicated(4..20), 0);
        for _ in 0..1_000 {
            executions.add(5);
        }
        assert_eq!(executions.duplicated(5..6), 1);
    }
}
