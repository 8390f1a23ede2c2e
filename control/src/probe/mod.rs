//! Asks the endpoints of a registration what they serve, before it is written (docs/adr/0016).
//!
//! Whoever may register decides what is asked, so all of it is bounded: how many at once, how long, how much
//! is read. The address that is dialled is one that was checked; nothing is resolved a second time. No
//! credentials are sent, no redirect is followed, and no text of an answer goes on but names of models. It
//! must not know the registry.

mod ask;
mod network;

use std::{net::SocketAddr, time::Duration};

use forebay_proto::{
    Endpoint, ModelSpec, Protocol,
    endpoint::Address,
    probe::{AddressPolicy, Outcome, Verdict},
};
use futures_util::future::join_all;
use tokio::{
    sync::Semaphore,
    time::{Instant, timeout_at},
};

use self::network::{Io, Network, SystemNetwork};

/// Most endpoints that are asked at a time, by all writes together.
const AT_ONCE: usize = 8;
/// Time for one endpoint, its name included.
const ONE_WITHIN: Duration = Duration::from_secs(2);
/// Time for all endpoints of a write.
const ALL_WITHIN: Duration = Duration::from_secs(5);

/// Who asks.
#[derive(Debug)]
pub(crate) struct Prober {
    policy: AddressPolicy,
    network: Box<dyn Network>,
    turns: Semaphore,
}

impl Prober {
    /// One that asks over the system's network what this policy lets it.
    pub(crate) fn new(policy: AddressPolicy) -> Self {
        Self::over(policy, Box::new(SystemNetwork::new()))
    }

    fn over(policy: AddressPolicy, network: Box<dyn Network>) -> Self {
        let turns = Semaphore::new(AT_ONCE);
        Self {
            policy,
            network,
            turns,
        }
    }

    /// What is found at each endpoint, in their order.
    pub(crate) async fn probe(&self, model: &ModelSpec) -> Vec<Outcome> {
        let expected = model.probe.expected(model.id());
        let until = Instant::now() + ALL_WITHIN;
        let endpoints = model.endpoints().iter();
        join_all(endpoints.map(|endpoint| self.probe_one(endpoint, &expected, until))).await
    }

    async fn probe_one(&self, endpoint: &Endpoint, expected: &str, until: Instant) -> Outcome {
        let Ok(Ok(_turn)) = timeout_at(until, self.turns.acquire()).await else {
            let what = format!("not probed: the {ALL_WITHIN:?} for all endpoints were up");
            return Outcome::new(Verdict::NotProbed, what);
        };
        let by = until.min(Instant::now() + ONE_WITHIN);
        let asked = timeout_at(by, self.look_at(endpoint, expected)).await;
        asked.unwrap_or_else(|_| {
            let what = format!("it did not answer within {ONE_WITHIN:?}");
            Outcome::new(Verdict::Unreachable, what)
        })
    }

    async fn look_at(&self, endpoint: &Endpoint, expected: &str) -> Outcome {
        let (host, port) = match endpoint.url.address() {
            Address::Host(host, port) => (host, port),
            Address::Unix(_) => return for_workers("its socket is on the worker's machine"),
            Address::Listed(_) => return for_workers("workers find its servers, each its own"),
        };
        let addresses = match self.addresses(host, port).await {
            Ok(addresses) => addresses,
            Err(found) => return found,
        };
        if endpoint.url.is_tls() {
            return for_workers("it is reached over TLS");
        }
        if endpoint.protocol != Protocol::Http1 {
            return for_workers("it speaks HTTP/2");
        }
        match self.dial(&addresses).await {
            Ok(io) => ask::ask(io, &endpoint.url.authority(), expected).await,
            Err(found) => found,
        }
    }

    /// Where it is. One address that must not be dialled is enough: the next lookup might give that one first.
    async fn addresses(&self, host: &str, port: u16) -> Result<Vec<SocketAddr>, Outcome> {
        let blocked = |why| {
            let what = format!("it is not dialled: {why}");
            Outcome::new(Verdict::Blocked, what)
        };
        self.policy.check_name(host).map_err(blocked)?;
        let addresses = match host.parse() {
            Ok(address) => vec![address],
            Err(_) => self.network.resolve(host).await.map_err(|error| {
                tracing::debug!(host, error, "a name cannot be resolved for a probe");
                Outcome::new(Verdict::Unreachable, "its name cannot be resolved")
            })?,
        };
        let addresses = addresses.into_iter();
        let addresses: Vec<_> = addresses.map(|ip| SocketAddr::new(ip, port)).collect();
        for address in &addresses {
            self.policy.check(*address).map_err(blocked)?;
        }
        Ok(addresses)
    }

    /// A connection to the first of these that takes one.
    async fn dial(&self, addresses: &[SocketAddr]) -> Result<Box<dyn Io>, Outcome> {
        let mut last = "its name has no address".to_owned();
        for address in addresses {
            match self.network.dial(*address).await {
                Ok(io) => return Ok(io),
                Err(error) => last = format!("no connection: {}", error.kind()),
            }
        }
        Err(Outcome::new(Verdict::Unreachable, last))
    }
}

fn for_workers(why: &str) -> Outcome {
    let what = format!("not probed by the control plane: {why}; workers probe it");
    Outcome::new(Verdict::NotProbed, what)
}

#[cfg(test)]
mod tests;
