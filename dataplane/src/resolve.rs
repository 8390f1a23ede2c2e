//! Names of endpoints to addresses, and to the hosts and ports of services, for as long as their records say.
//!
//! IPv4 addresses where a name has any, IPv6 otherwise: a server that has both would count twice.
//!
//! The search list is gone through here, not in the library: that goes on after any error and tells of the last name only, so
//! that one which could not be asked for would pass for one that is not there.

use std::{
    collections::HashSet,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use hickory_resolver::{
    Hosts, TokioResolver,
    config::{ConnectionConfig, NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts},
    lookup::Lookup,
    net::{NetError, runtime::TokioRuntimeProvider},
    proto::{
        op::Query,
        rr::{IntoName as _, Name, RData, RecordType},
    },
    system_conf::read_system_conf,
};
use tokio::time::{Instant, timeout};

/// Most addresses of a name in a url that are used.
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
pub(crate) struct Resolver(Result<Asker, String>);

/// What is asked, and under which names.
#[derive(Debug)]
struct Asker {
    dns: TokioResolver,
    hosts: Hosts,
    /// Domains that are tried, in order.
    search: Vec<Name>,
    /// A name with as many dots is tried as it stands first.
    ndots: usize,
}

/// Where a name leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Resolved {
    /// In order, each once, never none.
    pub(crate) addresses: Vec<IpAddr>,
    /// For how long that holds.
    pub(crate) hold: Duration,
}

impl Resolved {
    /// As many of them as are used of a name in a url.
    pub(crate) fn some(&self) -> &[IpAddr] {
        self.addresses.get(..MOST).unwrap_or(&self.addresses)
    }
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
    /// A whole name, never one within a search domain; without the dot at its end.
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
    /// A question had no answer, or none that says anything.
    #[error("{0}")]
    Failed(String),
}

impl LookupError {
    fn failed(name: &str, error: &dyn std::error::Error) -> Self {
        Self::Failed(format!("`{name}` cannot be resolved: {error}"))
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
        if let Ok(address) = name.parse() {
            let (addresses, hold) = (vec![address], HOLD.1);
            return Ok(Resolved { addresses, hold });
        }
        let found = self.find(name, &[RecordType::A, RecordType::AAAA]).await?;
        let records = found.answers().iter();
        let addresses = records.filter_map(|record| record.data.ip_addr());
        let mut addresses: Vec<IpAddr> = addresses.collect();
        addresses.sort_unstable();
        addresses.dedup();
        if addresses.is_empty() {
            return Err(LookupError::Nothing(format!("`{name}` has no address")));
        }
        let hold = hold(found.valid_until());
        Ok(Resolved { addresses, hold })
    }

    /// Every server of a service.
    pub(crate) async fn services(&self, name: &str) -> Result<Services, LookupError> {
        let found = self.find(name, &[RecordType::SRV]).await?;
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

    /// The records of the first of these types that there are.
    async fn find(&self, name: &str, types: &[RecordType]) -> Result<Lookup, LookupError> {
        let asker = self.0.as_ref();
        let asker = asker.map_err(|error| LookupError::Failed(error.clone()))?;
        let found = timeout(LOOKUP_WITHIN, asker.find(name, types)).await;
        found.unwrap_or_else(|_| Err(LookupError::late(name)))
    }
}

impl Asker {
    /// Of the first name that has any. That there are none is so only if it is the answer to every question: a server that
    /// is in trouble for one of them has not said so.
    async fn find(&self, name: &str, types: &[RecordType]) -> Result<Lookup, LookupError> {
        let parsed = name.into_name();
        let parsed = parsed.map_err(|error| LookupError::failed(name, &error))?;
        let mut failed = None;
        for whole in self.whole_names(&parsed) {
            match self.find_whole(&whole, types).await {
                Ok(Some(found)) => return Ok(found),
                Ok(None) => {}
                Err(error) => drop(failed.get_or_insert(error)),
            }
        }
        Err(match failed {
            Some(error) => LookupError::failed(name, &error),
            None => LookupError::Nothing(format!("`{name}` cannot be resolved: no records found")),
        })
    }

    /// Nothing: there are none. The next type is asked for only if there are none of the one before: an IPv4 address that
    /// cannot be asked for now is no reason to go to where IPv6 leads.
    async fn find_whole(
        &self,
        name: &Name,
        types: &[RecordType],
    ) -> Result<Option<Lookup>, NetError> {
        let queries = types.iter().map(|of| Query::query(name.clone(), *of));
        for query in queries {
            if let Some(found) = self.hosts.lookup_static_host(&query) {
                return Ok(Some(found));
            }
        }
        for of in types {
            match self.dns.lookup(name.clone(), *of).await {
                Ok(found) if found.answers().iter().any(|r| r.record_type() == *of) => {
                    return Ok(Some(found));
                }
                Ok(_) => {}
                Err(error) if error.is_no_records_found() => {}
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }

    /// What a name may stand for, in the order in which it is tried (resolv.conf(5)).
    fn whole_names(&self, name: &Name) -> Vec<Name> {
        let mut itself = name.clone();
        itself.set_fqdn(true);
        if name.is_fqdn() {
            return vec![itself];
        }
        let within = |domain: &Name| {
            let mut within = name.clone().append_domain(domain).ok()?;
            within.set_fqdn(true);
            Some(within)
        };
        let mut names: Vec<Name> = self.search.iter().filter_map(within).collect();
        match usize::from(name.num_labels()) > self.ndots || name.is_localhost() {
            true => names.insert(0, itself),
            false => names.push(itself),
        }
        let mut seen = HashSet::new();
        names.retain(|name| seen.insert(name.clone()));
        names
    }
}

fn hold(until: std::time::Instant) -> Duration {
    let left = Instant::from_std(until).saturating_duration_since(Instant::now());
    left.clamp(HOLD.0, HOLD.1)
}

fn build(servers: &[SocketAddr]) -> Result<Asker, NetError> {
    let (config, options) = match servers {
        [] => read_system_conf()?,
        named => {
            let named = named.iter().map(|server| at(*server)).collect();
            let config = ResolverConfig::from_name_servers(named);
            (config, ResolverOpts::default())
        }
    };
    asker(config, options)
}

fn asker(config: ResolverConfig, mut options: ResolverOpts) -> Result<Asker, NetError> {
    // They are looked at here, for either family before DNS is asked for one.
    let hosts = Hosts::from_system().unwrap_or_default();
    options.use_hosts_file = ResolveHosts::Never;
    options.negative_max_ttl = Some(NOTHING_FOR);
    // What is asked for again is asked of the server, not of the library's memory.
    options.positive_max_ttl = Some(HOLD.1);
    options.timeout = ANSWER_WITHIN;
    options.attempts = ATTEMPTS;
    let domain = config.domain().into_iter();
    let search = domain.chain(config.search()).cloned().collect();
    let ndots = options.ndots;
    let mut builder = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default());
    *builder.options_mut() = options;
    Ok(Asker {
        dns: builder.build()?,
        hosts,
        search,
        ndots,
    })
}

fn at(server: SocketAddr) -> NameServerConfig {
    let mut config = NameServerConfig::udp_and_tcp(server.ip());
    let on_port = |connection: &mut ConnectionConfig| connection.port = server.port();
    config.connections.iter_mut().for_each(on_port);
    config
}

#[cfg(test)]
#[path = "resolve_testing.rs"]
pub(crate) mod testing;
#[cfg(test)]
#[path = "resolve_tests.rs"]
mod tests;
