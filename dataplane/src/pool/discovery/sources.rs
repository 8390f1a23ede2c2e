//! What the sources of a pool named, and the endpoints that are made of it. Pure; behind the pool's lock.
//!
//! A server is an endpoint of its own, made in the likeness of the one that has the source. While a source has named none,
//! its own endpoint stands there, where nothing can be dialled: requests wait for it as for a name that is not resolved.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use forebay_proto::{
    Digest, Endpoint, EndpointId, EndpointUrl,
    endpoint::{Address, Discovery, OutOfBounds, Source},
    limits,
};

use super::{Named, Status};

/// Longest part of a host in an id.
const HOST_CHARS: usize = 20;
/// Servers of a better priority have to be well for this long until the others are let go again.
const WELL_FOR: Duration = Duration::from_secs(10);

/// The sources of one pool.
#[derive(Debug, Default)]
pub(in crate::pool) struct Sources {
    known: BTreeMap<EndpointId, Known>,
    owners: BTreeMap<EndpointId, Owner>,
}

/// What one source named.
#[derive(Debug, Default)]
struct Known {
    /// Which one.
    of: Option<Arc<Discovery>>,
    named: Vec<Named>,
    status: Status,
    /// So many priorities beside the best one are in use.
    reserves: usize,
    well_since: Option<Duration>,
    /// Servers that are not used because another endpoint has them.
    doubles: usize,
}

/// Whose a server is.
#[derive(Debug, Clone)]
struct Owner {
    source: Arc<Endpoint>,
    parts: u32,
    /// The best priority of a source that has several in use.
    best: bool,
}

/// How the servers of a source do, for its priorities.
#[derive(Debug, Clone, Copy, Default)]
pub(in crate::pool) struct Doing {
    /// One of the best priorities carries connections, and serves.
    pub(in crate::pool) well: bool,
    /// Nothing that is in use can be reached.
    pub(in crate::pool) down: bool,
}

impl Sources {
    /// A source named these. True if that is news.
    pub(super) fn named(&mut self, source: &EndpointId, named: Vec<Named>, status: Status) -> bool {
        let known = self.known.entry(source.clone()).or_default();
        known.status = status;
        if known.named == named {
            return false;
        }
        known.named = named;
        true
    }

    /// What a source named last.
    pub(super) fn of(&self, source: &EndpointId) -> Vec<Named> {
        let known = self.known.get(source);
        known.map_or_else(Vec::new, |known| known.named.clone())
    }

    /// The endpoints that are in use: what is configured, and in place of a source what it named.
    pub(in crate::pool) fn expand(&mut self, configured: &[Arc<Endpoint>]) -> Vec<Arc<Endpoint>> {
        let is_source = |e: &&Arc<Endpoint>| e.url.discovery().is_some();
        self.hand_on(configured);
        self.owners.clear();
        let plain = configured.iter().filter(|endpoint| !is_source(endpoint));
        let mut taken: HashSet<String> = plain.clone().map(|e| e.url.to_string()).collect();
        let mut ids: BTreeSet<EndpointId> = configured.iter().map(|e| e.id.clone()).collect();
        let mut endpoints: Vec<Arc<Endpoint>> = plain.cloned().collect();
        for source in configured.iter().filter(is_source) {
            let before = endpoints.len();
            self.expand_one(source, &mut taken, &mut ids, &mut endpoints);
            if endpoints.len() == before {
                endpoints.push(source.clone());
            }
        }
        endpoints
    }

    /// What is known stays with its source, also under another id: ids that nobody chose move on when the first endpoint of a
    /// model goes. Under an id that has another source now, what the old one named is used until the new one speaks.
    fn hand_on(&mut self, configured: &[Arc<Endpoint>]) {
        let sources = configured.iter();
        let sources = sources.filter_map(|e| Some((&e.id, e.url.discovery()?)));
        let sources: Vec<(&EndpointId, &Arc<Discovery>)> = sources.collect();
        let mut before = std::mem::take(&mut self.known);
        let is = |known: &Known, of: &Arc<Discovery>| known.of.as_ref() == Some(of);
        for (id, of) in &sources {
            if before.get(*id).is_some_and(|known| is(known, of)) {
                self.known.extend(before.remove_entry(*id));
            }
        }
        for (id, of) in &sources {
            let mut others = before.iter().filter(|(_, known)| is(known, of));
            let other = others.next().map(|(other, _)| other.clone());
            if let Some(known) = other.filter(|_| !self.known.contains_key(*id)) {
                let known = before.remove(&known).unwrap_or_default();
                self.known.insert((*id).clone(), known);
            }
        }
        for (id, of) in sources {
            let known = self.known.entry(id.clone());
            let known = known.or_insert_with(|| before.remove(id).unwrap_or_default());
            known.of = Some(of.clone());
        }
    }

    fn expand_one(
        &mut self,
        source: &Arc<Endpoint>,
        taken: &mut HashSet<String>,
        ids: &mut BTreeSet<EndpointId>,
        endpoints: &mut Vec<Arc<Endpoint>>,
    ) {
        let Some(known) = self.known.get_mut(&source.id) else {
            return;
        };
        known.doubles = 0;
        let priorities: BTreeSet<u16> = known.named.iter().map(|n| n.priority).collect();
        known.reserves = known.reserves.min(priorities.len().saturating_sub(1));
        let worst = priorities.iter().nth(known.reserves).copied();
        let best = priorities.first().copied();
        let in_use = known.named.iter().filter(|n| Some(n.priority) <= worst);
        for named in in_use {
            if !taken.insert(named.url.to_string()) {
                known.doubles += 1;
                continue;
            }
            let Some(id) = id_of(&source.id, &named.url, ids) else {
                continue;
            };
            ids.insert(id.clone());
            let owner = Owner {
                source: source.clone(),
                parts: named.parts,
                best: Some(named.priority) == best,
            };
            self.owners.insert(id.clone(), owner);
            endpoints.push(Arc::new(in_the_likeness(source, id, named)));
        }
    }

    /// The endpoint whose source named this one.
    pub(in crate::pool) fn owner(&self, endpoint: &EndpointId) -> Option<&Arc<Endpoint>> {
        self.owners.get(endpoint).map(|owner| &owner.source)
    }

    /// True if the host of this endpoint is a whole name, never one within a search domain: SRV records have no others
    /// (RFC 2782).
    pub(in crate::pool) fn names_whole(&self, endpoint: &EndpointId) -> bool {
        let discovery = self.owner(endpoint).and_then(|owner| owner.url.discovery());
        discovery.is_some_and(|discovery| matches!(discovery.source, Source::Srv(_)))
    }

    /// Its weight in parts of one; of one that no source named, nothing.
    pub(in crate::pool) fn parts(&self, endpoint: &EndpointId) -> Option<u32> {
        self.owners.get(endpoint).map(|owner| owner.parts)
    }

    /// Why a server of this endpoint must not be dialled there, if that is so.
    pub(in crate::pool) fn check(
        &self,
        endpoint: &EndpointId,
        at: SocketAddr,
    ) -> Result<(), OutOfBounds> {
        let owner = self.owner(endpoint).and_then(|owner| owner.url.discovery());
        owner.map_or(Ok(()), |discovery| discovery.bounds.check(at))
    }

    /// True if there is anything to decide about priorities.
    pub(in crate::pool) fn has_reserves(&self) -> bool {
        self.known.values().any(|known| {
            let mut named = known.named.iter().map(|named| named.priority);
            let first = named.next();
            named.any(|priority| Some(priority) != first)
        })
    }

    /// The next priority beside those in use where nothing of these can be reached; and without it again, when the better ones
    /// have been well for a while. True if something changes. `standing` says how the servers do that pass the filter.
    pub(in crate::pool) fn weigh_reserves(
        &mut self,
        now: Duration,
        standing: impl Fn(&dyn Fn(&EndpointId) -> bool) -> Doing,
    ) -> bool {
        let mut changes = false;
        let owners = &self.owners;
        for (id, known) in &mut self.known {
            let priorities: BTreeSet<u16> = known.named.iter().map(|n| n.priority).collect();
            let own = |e: &EndpointId| owners.get(e).is_some_and(|owner| owner.source.id == *id);
            let best = |e: &EndpointId| own(e) && owners.get(e).is_some_and(|owner| owner.best);
            if standing(&own).down && known.reserves + 1 < priorities.len() {
                known.reserves += 1;
                known.well_since = None;
                changes = true;
            } else if known.reserves > 0 && standing(&best).well {
                let since = *known.well_since.get_or_insert(now);
                if now.saturating_sub(since) >= WELL_FOR {
                    (known.reserves, known.well_since) = (0, None);
                    changes = true;
                }
            } else {
                known.well_since = None;
            }
        }
        changes
    }

    /// How a source does, how many of its servers are in use, and how many are others' already.
    pub(in crate::pool) fn status(&self, source: &EndpointId) -> (Status, usize, usize) {
        let own = self.owners.values().filter(|o| o.source.id == *source);
        let known = self.known.get(source);
        let (status, doubles) = known.map_or_else(Default::default, |known| {
            (known.status.clone(), known.doubles)
        });
        (status, own.count(), doubles)
    }
}

/// Everything but where it is comes from the endpoint that has the source; but no credential, which is attached where it is
/// known whether it may go there.
fn in_the_likeness(source: &Endpoint, id: EndpointId, named: &Named) -> Endpoint {
    let mut tls = source.tls.clone();
    tls.server_name = tls.server_name.or_else(|| named.server_name.clone());
    Endpoint {
        id,
        url: named.url.clone(),
        weight: source.weight,
        protocol: source.protocol,
        tls,
        credential: None,
    }
}

/// A name that says where it is, and is the same whatever else there is: `pods-10-0-0-5-8000`. Of what is no IPv4 address
/// some digits of a digest tell it from others that look alike.
fn id_of(
    source: &EndpointId,
    url: &EndpointUrl,
    taken: &BTreeSet<EndpointId>,
) -> Option<EndpointId> {
    let Address::Host(host, port) = url.address() else {
        return None;
    };
    let plain = match host.parse::<Ipv4Addr>() {
        Ok(_) => named_after(source, &format!("{}-{port}", host.replace('.', "-"))),
        Err(_) => None,
    };
    let free = |id: &EndpointId| !taken.contains(id);
    plain.filter(free).or_else(|| {
        let digest = Digest::of(format!("{host}:{port}").as_bytes()).to_string();
        let short: String = digest.chars().take(8).collect();
        let like = |c: char| if c.is_ascii_alphanumeric() { c } else { '-' };
        let host: String = host.chars().map(like).take(HOST_CHARS).collect();
        let host = host.trim_matches('-').to_ascii_lowercase();
        named_after(source, &format!("{host}-{port}-{short}")).filter(free)
    })
}

fn named_after(source: &EndpointId, rest: &str) -> Option<EndpointId> {
    let room = limits::SHORT_ID_CHARS.checked_sub(rest.len() + 1)?;
    let source: String = source.as_str().chars().take(room).collect();
    let source = source.trim_end_matches('-');
    EndpointId::new(format!("{source}-{rest}")).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn id(text: &str) -> EndpointId {
        EndpointId::new(text).unwrap()
    }

    fn source(name: &str) -> Arc<Endpoint> {
        let discovery = Discovery::new(Source::file(&format!("/{name}")).unwrap());
        Arc::new(Endpoint::new(id(name), EndpointUrl::listed(discovery)))
    }

    fn plain(name: &str, url: &str) -> Arc<Endpoint> {
        Arc::new(Endpoint::new(id(name), EndpointUrl::parse(url).unwrap()))
    }

    fn at(place: &str, priority: u16) -> Named {
        Named {
            url: EndpointUrl::parse(&format!("http://{place}")).unwrap(),
            parts: 1,
            priority,
            server_name: None,
        }
    }

    fn ids(endpoints: &[Arc<Endpoint>]) -> Vec<String> {
        endpoints.iter().map(|e| e.id.to_string()).collect()
    }

    #[test]
    fn a_source_stands_for_itself_until_it_names_servers() {
        let configured = [plain("a", "http://10.0.0.1:80"), source("pods")];
        let mut sources = Sources::default();
        assert_eq!(ids(&sources.expand(&configured)), ["a", "pods"]);
        let servers = vec![at("10.0.0.2:80", 0), at("vllm-1.svc:80", 0)];
        assert!(sources.named(&id("pods"), servers.clone(), Status::default()));
        assert!(!sources.named(&id("pods"), servers, Status::default()));
        let expanded = ids(&sources.expand(&configured));
        assert_eq!(expanded[..2], ["a", "pods-10-0-0-2-80"]);
        assert!(
            expanded[2].starts_with("pods-vllm-1-svc-80-"),
            "{expanded:?}"
        );
        assert_eq!(
            sources.owner(&id("pods-10-0-0-2-80")).unwrap().id,
            id("pods")
        );
        // A source that is configured no more is forgotten.
        sources.expand(&configured[..1]);
        assert_eq!(ids(&sources.expand(&configured)), ["a", "pods"]);
    }

    #[test]
    fn what_a_source_named_goes_with_it_to_another_id() {
        let under = |name: &str, other: &Arc<Endpoint>| {
            let endpoint = Endpoint::new(id(name), other.url.clone());
            Arc::new(endpoint)
        };
        let (x, y, z) = (source("x"), source("y"), source("z"));
        let mut sources = Sources::default();
        sources.expand(&[under("e1", &x), under("e2", &y), under("e3", &z)]);
        for n in 1..=3 {
            let named = vec![at(&format!("10.0.0.{n}:80"), 0)];
            sources.named(&id(&format!("e{n}")), named, Status::default());
        }
        // The first one goes, and the ids of the others move on.
        let endpoints = sources.expand(&[under("e1", &y), under("e2", &z)]);
        assert_eq!(ids(&endpoints), ["e1-10-0-0-2-80", "e2-10-0-0-3-80"]);
        // Another source under an id begins with what is known there.
        let endpoints = sources.expand(&[under("e1", &x), under("e2", &z)]);
        assert_eq!(ids(&endpoints), ["e1-10-0-0-2-80", "e2-10-0-0-3-80"]);
    }

    #[test]
    fn what_stands_twice_counts_once_and_the_operators_word_first() {
        let configured = [source("x"), source("y"), plain("a", "http://10.0.0.1:80")];
        let mut sources = Sources::default();
        let both = vec![at("10.0.0.1:80", 0), at("10.0.0.2:80", 0)];
        sources.named(&id("x"), both.clone(), Status::default());
        sources.named(&id("y"), both, Status::default());
        // What is left of `y` is nothing: it stands there itself, and takes no requests.
        assert_eq!(
            ids(&sources.expand(&configured)),
            ["a", "x-10-0-0-2-80", "y"]
        );
        let doubles = |id: EndpointId| sources.status(&id).2;
        assert_eq!([doubles(id("x")), doubles(id("y"))], [1, 2]);
    }

    #[test]
    fn worse_priorities_are_reserves() {
        let configured = [source("s")];
        let mut sources = Sources::default();
        let servers = vec![
            at("10.0.0.1:80", 5),
            at("10.0.0.2:80", 9),
            at("10.0.0.3:80", 7),
        ];
        sources.named(&id("s"), servers, Status::default());
        assert!(sources.has_reserves());
        assert_eq!(ids(&sources.expand(&configured)), ["s-10-0-0-1-80"]);
        let secs = Duration::from_secs;
        let down = |_: &dyn Fn(&EndpointId) -> bool| Doing {
            down: true,
            well: false,
        };
        assert!(sources.weigh_reserves(secs(1), down));
        assert_eq!(
            ids(&sources.expand(&configured)),
            ["s-10-0-0-1-80", "s-10-0-0-3-80"]
        );
        assert!(sources.weigh_reserves(secs(2), down));
        assert_eq!(sources.expand(&configured).len(), 3);
        assert!(!sources.weigh_reserves(secs(3), down), "there are no more");
        let best_is_well = |own: &dyn Fn(&EndpointId) -> bool| Doing {
            down: false,
            well: own(&id("s-10-0-0-1-80")) && !own(&id("s-10-0-0-2-80")),
        };
        assert!(!sources.weigh_reserves(secs(4), best_is_well));
        assert!(!sources.weigh_reserves(secs(13), best_is_well));
        assert!(sources.weigh_reserves(secs(14), best_is_well));
        assert_eq!(ids(&sources.expand(&configured)), ["s-10-0-0-1-80"]);
    }

    proptest! {
        /// Whatever is named, ids are good, and each place has one.
        #[test]
        fn every_server_has_an_id_of_its_own(
            name in "[a-z][a-z0-9-]{0,61}[a-z0-9]",
            hosts in prop::collection::btree_set("[a-z0-9.-]{1,60}", 1..20),
            port in 1_u16..,
        ) {
            let parse = |host: &String| EndpointUrl::parse(&format!("http://{host}:{port}")).ok();
            let urls: BTreeSet<String> = hosts.iter().filter_map(parse).map(|u| u.to_string()).collect();
            let named = urls.iter().map(|url| Named {
                url: EndpointUrl::parse(url).unwrap(),
                ..at("a:1", 0)
            });
            let named: Vec<Named> = named.collect();
            let mut sources = Sources::default();
            let configured = [source(&name)];
            sources.named(&id(&name), named, Status::default());
            let endpoints = sources.expand(&configured);
            let ids: BTreeSet<&EndpointId> = endpoints.iter().map(|e| &e.id).collect();
            prop_assert_eq!(ids.len(), endpoints.len());
            if !urls.is_empty() {
                prop_assert_eq!(endpoints.len(), urls.len());
            }
        }
    }
}
