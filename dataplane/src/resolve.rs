//! Names of endpoints to addresses, and to the hosts and ports of services, for as long as their records say.
//!
//! IPv4 addresses where a name has any, IPv6 otherwise: a server that has both would count twice.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use hickory_resolver::{
    TokioResolver,
    config::{ConnectionConfig, LookupIpStrategy, NameServerConfig, ResolverConfig, ResolverOpts},
    net::{NetError, runtime::TokioRuntimeProvider},
    proto::rr::RData,
};
use tokio::time::{Instant, timeout};

/// Most addresses of a name that are used.
pub(crate) const MOST: usize = 64;
/// Addresses are asked for again no sooner, whatever the records say, and no later.
const HOLD: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(300));
/// That there is no such name is believed for this long.
const NOTHING_FOR: Duration = Duration::from_secs(1);
/// Time for one answer, and how often a question is asked.
const ANSWER_WITHIN: Duration = Duration::from_secs(2);
const ATTEMPTS: usize = 2;
/// Time for all questions that a name takes: each search domain and server is asked in turn.
const LOOKUP_WITHIN: Duration = Duration::from_secs(15);

/// Asks the system's servers, or those that were named. The system's configuration and hosts file are read
/// once, at the start.
#[derive(Debug)]
pub(crate) struct Resolver(Result<TokioResolver, String>);

/// Where a name leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Resolved {
    /// In order, each once, never none.
    pub(crate) addresses: Vec<IpAddr>,
    /// For how long that holds.
    pub(crate) hold: Duration,
}

/// Servers of a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Services {
    /// Never none.
    pub(crate) servers: Vec<Service>,
    /// For how long that holds.
    pub(crate) hold: Duration,
}

/// One of them (RFC 2782).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Service {
    /// A name, without a dot at its end.
    pub(crate) host: String,
    pub(crate) port: u16,
    /// The lowest number is used first.
    pub(crate) priority: u16,
    /// Its share of those of its priority.
    pub(crate) weight: u16,
}

/// Why nothing was found.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum LookupError {
    /// That is the answer: there is nothing under this name.
    #[error("{0}")]
    Nothing(String),
    /// There was no answer, or none that says anything.
    #[error("{0}")]
    Failed(String),
}

impl LookupError {
    fn of(name: &str, error: &NetError) -> Self {
        let text = format!("`{name}` cannot be resolved: {error}");
        match error.is_no_records_found() {
            true => Self::Nothing(text),
            false => Self::Failed(text),
        }
    }

    fn late(name: &str) -> Self {
        Self::Failed(format!(
            "`{name}` cannot be resolved: no answer within {LOOKUP_WITHIN:?}"
        ))
    }
}

impl Resolver {
    /// Asks these servers; without any, the system's.
    pub(crate) fn new(servers: &[SocketAddr]) -> Self {
        Self(build(servers).map_err(|error| format!("no configuration of DNS: {error}")))
    }

    /// Every address of a name.
    pub(crate) async fn lookup(&self, name: &str) -> Result<Resolved, LookupError> {
        let resolver = self.resolver()?;
        let found = timeout(LOOKUP_WITHIN, resolver.lookup_ip(name)).await;
        let found = found.map_err(|_| LookupError::late(name))?;
        let found = found.map_err(|error| LookupError::of(name, &error))?;
        let left = found.valid_until();
        let mut addresses: Vec<IpAddr> = found.iter().collect();
        addresses.sort_unstable();
        addresses.dedup();
        addresses.truncate(MOST);
        if addresses.is_empty() {
            return Err(LookupError::Nothing(format!("`{name}` has no address")));
        }
        let hold = hold(left);
        Ok(Resolved { addresses, hold })
    }

    /// Every server of a service.
    pub(crate) async fn services(&self, name: &str) -> Result<Services, LookupError> {
        let resolver = self.resolver()?;
        let found = timeout(LOOKUP_WITHIN, resolver.srv_lookup(name)).await;
        let found = found.map_err(|_| LookupError::late(name))?;
        let found = found.map_err(|error| LookupError::of(name, &error))?;
        let server = |data: &RData| match data {
            RData::SRV(srv) => {
                let host = srv.target.to_ascii();
                let host = host.strip_suffix('.').unwrap_or(&host);
                Some(Service {
                    host: host.to_owned(),
                    port: srv.port,
                    priority: srv.priority,
                    weight: srv.weight,
                })
            }
            _ => None,
        };
        let servers = found.answers().iter().map(|record| &record.data);
        let servers: Vec<Service> = servers.filter_map(server).collect();
        // A lone `.` says that there is decidedly no such service (RFC 2782).
        let servers: Vec<Service> = servers.into_iter().filter(|s| !s.host.is_empty()).collect();
        if servers.is_empty() {
            return Err(LookupError::Nothing(format!("`{name}` has no servers")));
        }
        let hold = hold(found.valid_until());
        Ok(Services { servers, hold })
    }

    fn resolver(&self) -> Result<&TokioResolver, LookupError> {
        let resolver = self.0.as_ref();
        resolver.map_err(|error| LookupError::Failed(error.clone()))
    }
}

fn hold(until: std::time::Instant) -> Duration {
    let left = Instant::from_std(until).saturating_duration_since(Instant::now());
    left.clamp(HOLD.0, HOLD.1)
}

fn build(servers: &[SocketAddr]) -> Result<TokioResolver, hickory_resolver::net::NetError> {
    let mut builder = match servers {
        [] => TokioResolver::builder_tokio()?,
        named => {
            let mut config = ResolverConfig::default();
            named
                .iter()
                .for_each(|server| config.add_name_server(at(*server)));
            TokioResolver::builder_with_config(config, TokioRuntimeProvider::default())
        }
    };
    let options: &mut ResolverOpts = builder.options_mut();
    options.ip_strategy = LookupIpStrategy::Ipv4thenIpv6;
    options.negative_max_ttl = Some(NOTHING_FOR);
    options.timeout = ANSWER_WITHIN;
    options.attempts = ATTEMPTS;
    builder.build()
}

fn at(server: SocketAddr) -> NameServerConfig {
    let mut config = NameServerConfig::udp_and_tcp(server.ip());
    let on_port = |connection: &mut ConnectionConfig| connection.port = server.port();
    config.connections.iter_mut().for_each(on_port);
    config
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn localhost_needs_no_server_and_has_one_family() {
        let resolver = Resolver::new(&["127.0.0.1:1".parse().unwrap()]);
        let found = resolver.lookup("localhost").await.unwrap();
        assert_eq!(found.addresses, ["127.0.0.1".parse::<IpAddr>().unwrap()]);
        assert!(found.hold <= HOLD.1);
    }

    #[tokio::test]
    async fn a_server_that_does_not_answer_is_an_error_that_names_the_name() {
        let resolver = Resolver::new(&["127.0.0.1:1".parse().unwrap()]);
        let error = resolver.lookup("vllm.test").await.unwrap_err();
        assert!(error.to_string().contains("`vllm.test`"), "{error}");
        // That nobody answers says nothing of what there is.
        assert!(matches!(error, LookupError::Failed(_)), "{error:?}");
        let error = resolver.services("_http._tcp.vllm.test").await.unwrap_err();
        assert!(matches!(error, LookupError::Failed(_)), "{error:?}");
    }
}
