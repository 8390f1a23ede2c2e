//! The upstreams: one mock vLLM per model, which count their connections themselves.

use std::{io, net::SocketAddr, time::Duration};

use forebay_mock::{MockConfig, MockServer};

use super::plan::Plan;

/// A vLLM's own.
const KEEP_ALIVE: Duration = Duration::from_secs(5);

#[derive(Debug)]
pub(crate) struct Upstreams(Vec<MockServer>);

impl Upstreams {
    pub(crate) async fn start(plan: &Plan) -> io::Result<Self> {
        let mut mocks = Vec::new();
        for n in 0..plan.models {
            let config = MockConfig {
                latency: plan.service_time,
                tokens: 1,
                interval: Duration::ZERO,
                keep_alive: Some(KEEP_ALIVE),
                accept_delay: plan.handshake,
                ..MockConfig::serving(&plan.model(n))
            };
            mocks.push(MockServer::start(config).await?);
        }
        Ok(Self(mocks))
    }

    pub(crate) fn addrs(&self) -> Vec<SocketAddr> {
        self.0.iter().map(MockServer::addr).collect()
    }

    pub(crate) fn urls(&self) -> Vec<String> {
        self.0.iter().map(MockServer::url).collect()
    }

    /// Connections accepted so far.
    pub(crate) fn opened(&self) -> u64 {
        self.0.iter().map(|mock| mock.stats().opened).sum()
    }

    /// Connections open now, per model.
    pub(crate) fn open(&self) -> Vec<u64> {
        self.0.iter().map(|mock| mock.stats().open).collect()
    }

    pub(crate) async fn stop(self) {
        for mock in self.0 {
            mock.stop().await;
        }
    }
}
