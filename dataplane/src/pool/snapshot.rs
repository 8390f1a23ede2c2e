//! A pool at one instant, for `/pools`, metrics and logs.

use std::{collections::BTreeMap, time::Duration};

use forebay_proto::{Endpoint, ModelId};
use serde::Serialize;

use super::{
    RefusedServer,
    core::{Idle, OriginId, State},
    counters::Fault,
    desk::Upstream,
    inner::Inner,
    target::{Place, Target},
};

/// Everything there is to tell about a pool. Serialised as `/pools` shows it.
#[derive(Debug, Clone, Serialize)]
pub struct PoolSnapshot {
    /// The model's id.
    pub model: String,
    /// Most connections, and most requests in flight: of a fleet-wide limit, what is lent to this worker.
    pub size: u32,
    /// `per_worker` or `fleet`.
    pub scope: &'static str,
    /// Of a fleet-wide limit: what all workers may have together.
    pub fleet_limit: Option<u32>,
    /// Of a fleet-wide limit: how what is lent stands.
    pub lease: Option<LeaseSnapshot>,
    /// Most connections kept warm: the size.
    pub keepalive: u32,
    /// keepalive / size.
    pub coverage: f64,
    /// Most connections that the worker's budget leaves to it now: the size, unless the budget binds.
    pub cap: u32,
    /// The configured floor of connections opened ahead of need.
    pub warm: u32,
    /// The floor that holds now: the configured one, or the decayed peak of what was in use.
    pub warm_floor: usize,
    /// Idle limit in seconds.
    pub idle_timeout_seconds: f64,
    /// Requests in flight; over HTTP/2 several share a connection.
    pub in_flight: usize,
    /// Connections waiting for a request.
    pub idle: usize,
    /// Connections with a request.
    pub active: usize,
    /// Connections with a request on an endpoint or model that was removed.
    pub draining: usize,
    /// Connections being made.
    pub connecting: usize,
    /// Requests waiting for a connection.
    pub waiting: usize,
    /// Longest waiting line.
    pub max_waiting: u32,
    /// Most requests in flight that are let in now: the size, or less while the engine is slow
    /// (`pool.adaptive`).
    pub admission_limit: usize,
    /// Flows (keys, tenants) that have requests in flight or in line.
    pub flows: usize,
    /// Slots a second that come free while somebody waits.
    pub drain_per_second: f64,
    /// Requests that left the line without a connection so far, by reason.
    pub turned_away: BTreeMap<&'static str, u64>,
    /// Connections opened so far, by reason.
    pub opened: BTreeMap<&'static str, u64>,
    /// Connections closed so far, by reason.
    pub closed: BTreeMap<&'static str, u64>,
    /// Ejections of endpoints so far, by what showed that they are broken.
    pub ejected: BTreeMap<&'static str, u64>,
    /// Checkouts so far of connections that had been used before.
    pub checkouts_reused: u64,
    /// Checkouts so far of new connections.
    pub checkouts_new: u64,
    /// Connections found dead when they were to be handed out.
    pub stale_at_checkout: u64,
    /// Connections found dead at the first byte of a request.
    pub stale_at_send: u64,
    /// Connects that failed.
    pub connect_failures: u64,
    /// The endpoints, in order of id.
    pub endpoints: Vec<EndpointSnapshot>,
    /// The sources that name endpoints, in order of id.
    pub discovery: Vec<DiscoverySnapshot>,
}

/// A source of endpoints.
#[derive(Debug, Clone, Serialize)]
pub struct DiscoverySnapshot {
    /// The id of the endpoint that has it.
    pub endpoint: String,
    /// What it is.
    pub source: String,
    /// `waiting` (nothing is known yet), `fresh`, `stale` (the last look failed), `empty` (it says that there are no servers, and
    /// those that were there serve on) or `last_known_good` (what an earlier process knew).
    pub state: &'static str,
    /// Servers that are in use.
    pub servers: usize,
    /// Servers that it names, and that another endpoint has.
    pub doubles: usize,
    /// Servers that came back too often, and have to calm down.
    pub calming: usize,
    /// Servers for which there is no room.
    pub no_room: usize,
    /// How many servers are out of bounds.
    pub refused: usize,
    /// Some of them.
    pub refused_servers: Vec<RefusedServer>,
    /// Since it was last understood.
    pub last_success_seconds: Option<f64>,
    /// What is wrong, in one word: a label of `forebay_discovery_errors_total`.
    pub reason: Option<&'static str>,
    /// And in a sentence.
    pub error: Option<String>,
}

/// What of a fleet-wide limit is lent to a pool.
#[derive(Debug, Clone, Serialize)]
pub struct LeaseSnapshot {
    /// `held`; `shrinking` while more is in flight than was granted last; `lapsed` when it has run out; `none`.
    pub state: &'static str,
    /// What does not run out.
    pub floor: usize,
    /// When it runs out unless it is renewed.
    pub expires_seconds: f64,
    /// Slots that count as used for a moment: their requests were cut short, and the engine may not know yet.
    pub cooling: usize,
}

impl LeaseSnapshot {
    /// Every state, for metrics.
    pub(crate) const STATES: [&'static str; 4] = ["held", "shrinking", "lapsed", "none"];

    fn new<C: Upstream>(now: Duration, inner: &Inner<C>) -> Option<Self> {
        if !inner.params.is_fleet_wide() {
            return None;
        }
        let census = inner.core.census(now);
        let share = inner.core.share();
        let state = match share {
            None => "none",
            Some(share) if share.until <= now => "lapsed",
            Some(share) if census.in_flight > share.size => "shrinking",
            Some(_) => "held",
        };
        Some(Self {
            state,
            floor: share.map_or(0, |share| share.floor),
            expires_seconds: share.map_or(0.0, |s| s.until.saturating_sub(now).as_secs_f64()),
            cooling: census.cooling,
        })
    }
}

/// An endpoint of a pool.
#[derive(Debug, Clone, Serialize)]
pub struct EndpointSnapshot {
    /// Name within the model.
    pub id: String,
    /// Where it listens.
    pub url: String,
    /// The id of the endpoint whose source named it, if one did.
    pub source: Option<String>,
    /// Its share.
    pub weight: u32,
    /// `http1`, `http2` or `auto`.
    pub protocol: &'static str,
    /// Addresses that get no requests, because another model is served there (`probe` of the model).
    pub quarantined: Vec<QuarantineSnapshot>,
    /// `healthy`, `unreachable`, `ejected`, `half_open`, or `mixed` where its addresses stand differently.
    pub state: &'static str,
    /// Where that is. Several for a name that has several addresses; none while it has none.
    pub addresses: Vec<AddressSnapshot>,
}

/// An address of an endpoint that is not used.
#[derive(Debug, Clone, Serialize)]
pub struct QuarantineSnapshot {
    /// `ip:port`, or the path of a Unix socket.
    pub address: String,
    /// What was found there.
    pub why: String,
}

/// One address of an endpoint.
#[derive(Debug, Clone, Serialize)]
pub struct AddressSnapshot {
    /// `ip:port`, or the path of a Unix socket.
    pub address: String,
    /// Connections.
    pub open: usize,
    /// Requests in flight.
    pub in_flight: usize,
    /// `healthy`, `unreachable`, `ejected` or `half_open`.
    pub state: &'static str,
    /// Why it is out.
    pub ejected_for: Option<&'static str>,
    /// For how long it asked not to be asked (`retry-after`).
    pub pauses_seconds: Option<f64>,
    /// How long connections to it may rest: what is configured, or less.
    pub idle_limit_seconds: Option<f64>,
    /// What it announced (`Keep-Alive: timeout=`).
    pub announced_idle_seconds: Option<f64>,
    /// The shortest rest after which it was seen to close a connection.
    pub learned_idle_seconds: Option<f64>,
}

impl PoolSnapshot {
    pub(super) fn new<C: Upstream>(model: &ModelId, now: Duration, inner: &Inner<C>) -> Self {
        let (params, counters) = (&inner.params, &inner.core.counters);
        let census = inner.core.census(now);
        let cap = u32::try_from(inner.core.cap()).unwrap_or(u32::MAX);
        let size = u32::try_from(inner.core.size()).unwrap_or(u32::MAX);
        let fleet_limit = params.is_fleet_wide().then_some(params.size.get());
        Self {
            model: model.to_string(),
            size,
            scope: match fleet_limit {
                Some(_) => "fleet",
                None => "per_worker",
            },
            fleet_limit,
            lease: LeaseSnapshot::new(now, inner),
            keepalive: size,
            coverage: 1.0,
            cap: cap.min(size),
            warm: params.warm,
            warm_floor: census.floor,
            idle_timeout_seconds: params.idle_timeout.as_secs_f64(),
            in_flight: census.in_flight,
            idle: census.idle,
            active: census.active,
            draining: census.draining,
            connecting: census.connecting,
            waiting: census.waiting,
            max_waiting: params.max_waiting,
            admission_limit: census.admitted,
            flows: census.flows,
            drain_per_second: inner.crowd(now).drain_rate(),
            turned_away: counters
                .turned_away()
                .map(|(reason, count)| (reason.label(), count))
                .collect(),
            opened: counters
                .opened()
                .map(|(reason, count)| (reason.label(), count))
                .collect(),
            closed: counters
                .closed()
                .map(|(reason, count)| (reason.label(), count))
                .collect(),
            ejected: counters
                .ejected()
                .map(|(why, count)| (why.label(), count))
                .collect(),
            checkouts_reused: counters.reused,
            checkouts_new: counters.new,
            stale_at_checkout: counters.stale_at_checkout,
            stale_at_send: counters.stale_at_send,
            connect_failures: counters.connect_failures,
            endpoints: endpoints(now, inner),
            discovery: discovery(inner),
        }
    }
}

impl DiscoverySnapshot {
    /// True if it does not say now which servers there are. One that was not asked yet is only slow.
    #[must_use]
    pub fn is_stale(&self) -> bool {
        match self.state {
            "waiting" => self.reason.is_some(),
            state => state != "fresh",
        }
    }
}

fn discovery<C: Upstream>(inner: &Inner<C>) -> Vec<DiscoverySnapshot> {
    let sources = inner.configured.iter();
    let sources = sources.filter_map(|e| Some((e, e.url.discovery()?)));
    let mut sources: Vec<DiscoverySnapshot> = sources
        .map(|(endpoint, discovery)| {
            let (status, servers, doubles) = inner.sources.status(&endpoint.id);
            DiscoverySnapshot {
                endpoint: endpoint.id.to_string(),
                source: discovery.source.to_string(),
                state: status.word(),
                servers,
                doubles,
                calming: status.calming,
                no_room: status.no_room,
                refused: status.refused_count,
                last_success_seconds: status.age().map(|age| age.as_secs_f64()),
                reason: status.failure.as_ref().map(|failure| failure.why.label()),
                error: status.failure.map(|failure| failure.text),
                refused_servers: status.refused,
            }
        })
        .collect();
    sources.sort_by(|a, b| a.endpoint.cmp(&b.endpoint));
    sources
}

fn endpoints<C: Upstream>(now: Duration, inner: &Inner<C>) -> Vec<EndpointSnapshot> {
    let endpoint = |endpoint: &Endpoint| {
        let targets = inner.targets.iter();
        let own = targets.filter(|(id, target)| {
            inner.core.knows(**id) && target.endpoint.same_connections(endpoint)
        });
        let addresses = own.filter_map(|(id, target)| address(now, inner, *id, target));
        let mut addresses: Vec<AddressSnapshot> = addresses.collect();
        addresses.sort_by(|a, b| a.address.cmp(&b.address));
        EndpointSnapshot {
            id: endpoint.id.to_string(),
            url: endpoint.url.to_string(),
            source: inner
                .sources
                .owner(&endpoint.id)
                .map(|source| source.id.to_string()),
            weight: endpoint.weight.get(),
            protocol: endpoint.protocol.word(),
            quarantined: quarantined(inner, endpoint),
            state: state_of(&addresses),
            addresses,
        }
    };
    // A source without servers is told of as one, and is no server.
    let servers = inner
        .endpoints
        .iter()
        .filter(|e| e.url.discovery().is_none());
    let mut endpoints: Vec<EndpointSnapshot> = servers.map(|e| endpoint(e)).collect();
    endpoints.sort_by(|a, b| a.id.cmp(&b.id));
    endpoints
}

/// How an endpoint stands whose addresses stand so.
fn state_of(addresses: &[AddressSnapshot]) -> &'static str {
    match addresses {
        // Its name has no address yet.
        [] => "unreachable",
        [first, others @ ..] => match others.iter().all(|other| other.state == first.state) {
            true => first.state,
            false => "mixed",
        },
    }
}

fn quarantined<C: Upstream>(inner: &Inner<C>, endpoint: &Endpoint) -> Vec<QuarantineSnapshot> {
    let places = inner.quarantine.get(&endpoint.id).into_iter().flatten();
    let mut places: Vec<QuarantineSnapshot> = places
        .map(|(place, found)| QuarantineSnapshot {
            address: place.to_string(),
            why: found.why.to_string(),
        })
        .collect();
    places.sort_by(|a, b| a.address.cmp(&b.address));
    places
}

fn address<C: Upstream>(
    now: Duration,
    inner: &Inner<C>,
    origin: OriginId,
    target: &Target,
) -> Option<AddressSnapshot> {
    if matches!(target.place, Place::Name(_)) {
        return None;
    }
    let address = target.place.to_string();
    let seconds = |time: Option<Duration>| time.map(|time| time.as_secs_f64());
    let idle: Option<Idle> = inner.core.idle_of(now, origin);
    let census = inner.core.census_of(now, origin);
    Some(AddressSnapshot {
        address,
        open: census.open,
        in_flight: census.in_flight,
        state: match (census.state, census.unreachable) {
            (State::Ejected, _) => "ejected",
            (State::HalfOpen, _) => "half_open",
            (State::Healthy, true) => "unreachable",
            (State::Healthy, false) => "healthy",
        },
        ejected_for: census.why.map(Fault::label),
        pauses_seconds: seconds(census.pauses),
        idle_limit_seconds: seconds(idle.map(|idle| idle.limit)),
        announced_idle_seconds: seconds(idle.and_then(|idle| idle.announced)),
        learned_idle_seconds: seconds(idle.and_then(|idle| idle.learned)),
    })
}
