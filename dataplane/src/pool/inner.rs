//! What is behind the pool's lock. Nothing here waits, wakes or closes.

mod places;

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

use super::{
    check::Checked,
    core::{Core, EndpointKey, OriginId, OriginSpec, Rules, Shape, Standing},
    desk::{Effects, Upstream, Waiter},
    discovery::Sources,
    drain::{Drain, Prompt},
    target::{Place, Target},
    tls::Tls,
};
use crate::resolve::MOST;
use forebay_proto::{
    Endpoint, EndpointId, FailureSpec, ModelId, PoolParams, ProbeMode, ResolvedModel,
    failure::HealthSpec,
};

/// An endpoint's weight is shared by its addresses; in these parts, so that little is lost.
pub(super) const PARTS: u32 = 5_040;
/// Origins that the core knows, by the endpoint and its place.
pub(super) type Known = HashMap<(EndpointId, Place), Vec<OriginId>>;
/// An address that is in no answer for this long is gone, if there were as many that lack it: those that hold for longer are
/// asked for but once within that time.
const KEPT: Duration = Duration::from_secs(30);
const LACKED: u32 = 3;

/// A pool's state: the core, and what the shell must know of endpoints to dial.
#[derive(Debug)]
pub(super) struct Inner<C: Upstream> {
    pub(super) core: Core<C, Waiter<C>>,
    pub(super) model: ModelId,
    pub(super) params: PoolParams,
    pub(super) failure: FailureSpec,
    pub(super) connect_timeout: Duration,
    /// As configured.
    pub(super) configured: Vec<Arc<Endpoint>>,
    /// Those in use: as configured, and in place of one that has a source what that named.
    pub(super) endpoints: Vec<Arc<Endpoint>>,
    pub(super) sources: Sources,
    /// What their names were resolved to, and when each address was last in an answer.
    addresses: BTreeMap<EndpointId, BTreeMap<IpAddr, Seen>>,
    /// Where each origin is that the core knows, those that were removed included.
    pub(super) targets: HashMap<OriginId, Target>,
    pub(super) next_origin: u64,
    /// By what the core knows endpoints.
    keys: BTreeMap<EndpointId, EndpointKey>,
    next_key: u64,
    /// What endpoints are asked for; nothing if they are not.
    pub(super) asked: Option<Asked>,
    /// Addresses where another model is served. They are not told to the core.
    pub(super) quarantine: BTreeMap<EndpointId, HashMap<Place, Quarantined>>,
    /// Origins that may get requests.
    serving: usize,
    /// How fast the line drains, for `retry-after`.
    pub(super) drain: Drain,
    /// How soon answers begin, for the patience of clients.
    prompt: Prompt,
}

/// An address in answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Seen {
    /// The last one that had it.
    at: Duration,
    /// How many have lacked it since.
    lacked: u32,
}

/// What endpoints are asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Asked {
    /// Those that serve something else are not used.
    pub(super) enforced: bool,
    /// What they must list.
    pub(super) expected: String,
}

/// Why an address of an endpoint is not used.
#[derive(Debug, Clone)]
pub(super) struct Quarantined {
    endpoint: Arc<Endpoint>,
    pub(super) why: Arc<str>,
}

impl<C: Upstream> Inner<C> {
    pub(super) fn new(model: &ResolvedModel, cap: usize, seed: u64) -> Self {
        Self {
            core: Core::new(shape(&model.pool, &model.failure), cap, seed),
            model: model.id.clone(),
            params: model.pool.clone(),
            failure: model.failure.clone(),
            connect_timeout: model.timeouts.connect,
            configured: Vec::new(),
            endpoints: Vec::new(),
            sources: Sources::default(),
            addresses: BTreeMap::new(),
            targets: HashMap::new(),
            next_origin: 0,
            keys: BTreeMap::new(),
            next_key: 0,
            asked: None,
            quarantine: BTreeMap::new(),
            serving: 0,
            drain: Drain::default(),
            prompt: Prompt::default(),
        }
    }

    pub(super) fn reshape(&mut self, now: Duration, model: &ResolvedModel) -> Effects<C> {
        self.params = model.pool.clone();
        self.failure = model.failure.clone();
        self.connect_timeout = model.timeouts.connect;
        self.configured = model.endpoints.iter().cloned().map(Arc::new).collect();
        self.ask(model);
        self.expand(now)
    }

    /// What was found holds for as long as nothing about the endpoint changes, nor what it is asked for.
    fn ask(&mut self, model: &ResolvedModel) {
        let asked = model.probe.is_on().then(|| Asked {
            enforced: model.probe.mode == ProbeMode::Enforce,
            expected: model.probe.expected(&model.id),
        });
        if asked != self.asked {
            self.quarantine.clear();
            self.asked = asked;
        }
    }

    /// Everything that can be asked, and for what. Nothing if nobody asks.
    pub(super) fn to_ask(&self) -> Option<(Asked, Vec<Target>)> {
        let asked = self.asked.clone()?;
        let targets = self.endpoints.iter().flat_map(|e| self.targets_of(e));
        let known = |target: &Target| !matches!(target.place, Place::Name(_));
        Some((asked, targets.filter(known).collect()))
    }

    /// Everything that is to be checked, and how. Nothing if nothing is.
    pub(super) fn to_check(&self) -> Option<(HealthSpec, Vec<Checked>)> {
        let health = self.failure.health.clone();
        health.path.as_ref()?;
        let endpoints = self.endpoints_by_id();
        let configured = |target: &Target| {
            let endpoint = endpoints.get(&target.endpoint.id);
            let known = !matches!(target.place, Place::Name(_));
            known && endpoint.is_some_and(|e| e.same_connections(&target.endpoint))
        };
        let targets = self.targets.iter().filter(|(_, target)| configured(target));
        let checked = targets.filter_map(|(origin, target)| {
            Some(Checked {
                origin: *origin,
                target: target.clone(),
                pulse: self.core.pulse_of(*origin)?,
            })
        });
        Some((health, checked.collect()))
    }

    /// This was found out about an address: why it must not be used, or that it may. It was asked for this; the
    /// configuration may have changed meanwhile.
    pub(super) fn found(
        &mut self,
        now: Duration,
        asked: &Asked,
        target: &Target,
        why: Option<&str>,
    ) -> Effects<C> {
        let mut endpoints = self.endpoints.iter();
        let known = self.addresses.get(&target.endpoint.id);
        let there = match (&target.place, known) {
            (Place::Tcp(address), Some(known)) => known.contains_key(&address.ip()),
            _ => true,
        };
        let stands = there && endpoints.any(|endpoint| endpoint.same_connections(&target.endpoint));
        if !stands || self.asked.as_ref() != Some(asked) || !asked.enforced {
            return Vec::new();
        }
        let before = self.is_quarantined(target);
        let places = self.quarantine.entry(target.endpoint.id.clone());
        let places = places.or_default();
        match why {
            Some(why) => drop(places.insert(
                target.place.clone(),
                Quarantined {
                    endpoint: target.endpoint.clone(),
                    why: why.into(),
                },
            )),
            None => drop(places.remove(&target.place)),
        }
        self.quarantine.retain(|_, places| !places.is_empty());
        match before == why.is_some() {
            true => Vec::new(),
            false => self.put_in_force(now),
        }
    }

    pub(super) fn is_quarantined(&self, target: &Target) -> bool {
        let places = self.quarantine.get(&target.endpoint.id);
        places.is_some_and(|places| places.contains_key(&target.place))
    }

    /// Why nothing may be used, if that is so: an endpoint, and what it serves. It is put into words outside of the lock.
    pub(super) fn all_wrong(&self) -> Option<(EndpointId, Arc<str>)> {
        let (id, places) = self.quarantine.iter().next()?;
        let found = places.values().next().filter(|_| self.serving == 0)?;
        Some((id.clone(), found.why.clone()))
    }

    /// True if the endpoint is asked and has no connection: what comes now is the first.
    pub(super) fn awaits_first(&self, now: Duration, origin: OriginId) -> bool {
        self.asked.is_some() && self.core.census_of(now, origin).open == 0
    }

    /// What an endpoint's name was last resolved to.
    pub(super) fn addresses_of(&self, endpoint: &EndpointId) -> Vec<IpAddr> {
        let known = self.addresses.get(endpoint);
        known.map_or_else(Vec::new, |known| known.keys().copied().collect())
    }

    /// The addresses of an endpoint's name, as they are now. An answer that has nothing of what was known
    /// replaces it; otherwise what it lacks is kept for a while, as some servers give a part each time.
    pub(super) fn resolved(
        &mut self,
        now: Duration,
        endpoint: &EndpointId,
        answer: &[IpAddr],
    ) -> Effects<C> {
        let before = self.addresses_of(endpoint);
        let known = self.addresses.entry(endpoint.clone()).or_default();
        if !answer.iter().any(|address| known.contains_key(address)) {
            known.clear();
        }
        let had = Seen { at: now, lacked: 0 };
        known.extend(answer.iter().map(|address| (*address, had)));
        let answered: HashSet<&IpAddr> = answer.iter().collect();
        known.retain(|address, seen| {
            if !answered.contains(address) {
                seen.lacked = seen.lacked.saturating_add(1);
            }
            now.saturating_sub(seen.at) < KEPT || seen.lacked < LACKED
        });
        while known.len() > MOST {
            let oldest = known.iter().min_by_key(|(_, seen)| **seen);
            let Some(oldest) = oldest.map(|(address, _)| *address) else {
                break;
            };
            known.remove(&oldest);
        }
        if self.addresses_of(endpoint) == before {
            return Vec::new();
        }
        self.forget_found(endpoint);
        self.put_in_force(now)
    }

    /// What was found at addresses that the name has no more: another server may come to be there.
    fn forget_found(&mut self, endpoint: &EndpointId) {
        let known = self.addresses_of(endpoint);
        if let Some(places) = self.quarantine.get_mut(endpoint) {
            places.retain(|place, _| match place {
                Place::Tcp(address) => known.contains(&address.ip()),
                Place::Unix(_) | Place::Name(_) => true,
            });
        }
        self.quarantine.retain(|_, places| !places.is_empty());
    }

    /// The name of an endpoint cannot be resolved. What it was resolved to before still counts.
    pub(super) fn unresolved(
        &mut self,
        now: Duration,
        endpoint: &EndpointId,
        error: &str,
    ) -> Effects<C> {
        let mut targets = self.targets.iter();
        let waits = targets.find(|(_, target)| {
            target.endpoint.id == *endpoint && matches!(target.place, Place::Name(_))
        });
        match waits.map(|(id, _)| *id) {
            Some(origin) => self.core.unresolved(now, origin, error),
            None => Vec::new(),
        }
    }

    /// Tells the core which origins there are now.
    fn put_in_force(&mut self, now: Duration) -> Effects<C> {
        let mut known = Known::new();
        for (id, target) in self.targets.iter().filter(|(id, _)| self.core.knows(**id)) {
            let place = (target.endpoint.id.clone(), target.place.clone());
            known.entry(place).or_default().push(*id);
        }
        let wanted = self.wanted(&known);
        self.serving = wanted.len();
        let renamed = self.renamed(&known, &wanted);
        let current: HashSet<OriginId> = wanted.iter().map(|(id, ..)| *id).collect();
        let before: HashSet<OriginId> = known.values().flatten().copied().collect();
        let stays = wanted.iter().filter(|(id, ..)| before.contains(id));
        let stays: HashSet<EndpointId> = stays.map(|(_, target, _)| target.belongs_to()).collect();
        let gone: Vec<(OriginId, Target)> = known
            .into_values()
            .flatten()
            .filter(|id| !current.contains(id))
            .filter_map(|id| Some((id, self.targets.get(&id)?)))
            // What serves another model has not moved, and serves nobody while its heirs are warmed.
            .filter(|(_, target)| !self.is_quarantined(target))
            // Nor has what a source names no more, if others that it names are there.
            .filter(|(_, target)| target.source.is_none() || !stays.contains(&target.belongs_to()))
            .map(|(id, target)| (id, target.clone()))
            .collect();
        let moved: HashSet<EndpointId> = gone.iter().map(|(_, t)| t.belongs_to()).collect();
        self.name_endpoints();
        let spec = |(id, target, weight): &(OriginId, Target, u32)| OriginSpec {
            id: *id,
            endpoint: self.key_of(&target.endpoint.id),
            weight: *weight,
            streams: target.streams(),
            standing: match &target.place {
                Place::Name(_) => Standing::Unresolved,
                _ if moved.contains(&target.belongs_to()) => Standing::Heir,
                _ => Standing::Plain,
            },
            like: renamed.get(id).copied(),
        };
        let specs: Vec<OriginSpec> = wanted.iter().map(spec).collect();
        let changed = self.changed(gone);
        let shape = shape(&self.params, &self.failure);
        let effects = self.core.reshape(now, shape, &specs, &changed);
        let wanted = wanted.into_iter().map(|(id, target, _)| (id, target));
        self.targets.extend(wanted);
        let core = &self.core;
        self.targets.retain(|id, _| core.knows(*id));
        effects
    }

    /// Each endpoint keeps its key for as long as it is configured.
    fn name_endpoints(&mut self) {
        let endpoints = &self.endpoints;
        let there: HashSet<&EndpointId> = endpoints.iter().map(|e| &e.id).collect();
        self.keys.retain(|id, _| there.contains(id));
        for endpoint in endpoints {
            self.keys.entry(endpoint.id.clone()).or_insert_with(|| {
                self.next_key += 1;
                EndpointKey(self.next_key)
            });
        }
    }

    /// The key of an endpoint; of one that is not configured, one that nothing has.
    pub(super) fn key_of(&self, endpoint: &EndpointId) -> EndpointKey {
        let key = self.keys.get(endpoint);
        key.copied().unwrap_or(EndpointKey(0))
    }

    /// Those in use. To find one among hundreds, for each of hundreds, under the lock.
    fn endpoints_by_id(&self) -> HashMap<&EndpointId, &Arc<Endpoint>> {
        self.endpoints.iter().map(|e| (&e.id, e)).collect()
    }

    /// The TLS that it has had so far, if nothing about that changed.
    fn tls_of(&self, endpoint: &Arc<Endpoint>) -> Option<Arc<Tls>> {
        if !endpoint.url.is_tls() {
            return None;
        }
        let mut targets = self.targets.values();
        let same = targets.find(|target| target.endpoint.same_connections(endpoint));
        match same {
            Some(target) => target.tls().cloned(),
            None => Tls::of(endpoint),
        }
    }

    /// The same endpoint at the same place keeps its origin, and with it its connections. Others may be at that place
    /// that were spoken to in another way, and still have requests.
    fn origin_of(&mut self, known: &Known, target: &Target) -> OriginId {
        let same = |id: &&OriginId| {
            let known = self.targets.get(id);
            known.is_some_and(|known| known.endpoint.same_connections(&target.endpoint))
        };
        let place = (target.endpoint.id.clone(), target.place.clone());
        let there = known.get(&place).into_iter().flatten();
        if let Some(id) = there.filter(same).max_by_key(|id| id.0) {
            return *id;
        }
        self.next_origin += 1;
        OriginId(self.next_origin)
    }

    /// Of those that are new, the ones that are the same server as one that leaves, under another name: ids move on when
    /// the first of a list goes. Each with the one that it was before.
    fn renamed(
        &self,
        known: &Known,
        wanted: &[(OriginId, Target, u32)],
    ) -> HashMap<OriginId, OriginId> {
        let current: HashSet<OriginId> = wanted.iter().map(|(id, ..)| *id).collect();
        let mut leaving: HashMap<&Place, Vec<OriginId>> = HashMap::new();
        for ((_, place), ids) in known {
            let gone = ids.iter().filter(|id| !current.contains(id));
            leaving.entry(place).or_default().extend(gone);
        }
        let was = |(id, target, _): &(OriginId, Target, u32)| {
            let same = |was: &&OriginId| {
                let was = self.targets.get(was);
                was.is_some_and(|was| was.endpoint.same_server(&target.endpoint))
            };
            let there = leaving.get(&target.place)?.iter();
            let newest = there.filter(same).max_by_key(|was| was.0)?;
            (!self.core.knows(*id)).then_some((*id, *newest))
        };
        wanted.iter().filter_map(was).collect()
    }

    /// Of those that are no more, the ones whose endpoint is: it moved. Where trust changed, nothing of what
    /// was trusted before is used any longer.
    fn changed(&self, gone: Vec<(OriginId, Target)>) -> Vec<OriginId> {
        let trust = |endpoint: &Endpoint| {
            let tls = &endpoint.tls;
            (
                endpoint.url.is_tls(),
                tls.roots.clone(),
                tls.server_name.clone(),
            )
        };
        let mut heirs: HashMap<&EndpointId, Vec<&Endpoint>> = HashMap::new();
        for heir in &self.endpoints {
            let of = match self.sources.owner(&heir.id) {
                Some(source) => &source.id,
                // A source that names nobody has no heirs.
                None if heir.url.discovery().is_some() => continue,
                None => &heir.id,
            };
            heirs.entry(of).or_default().push(heir);
        }
        let moved = gone.into_iter().filter(|(_, gone)| {
            let mut heirs = heirs.get(&gone.belongs_to()).into_iter().flatten();
            heirs.any(|heir| trust(heir) == trust(&gone.endpoint))
        });
        moved.map(|(id, _)| id).collect()
    }

    pub(super) fn note_use(&mut self, now: Duration, used: Duration, first_byte: Option<Duration>) {
        self.drain.note(now, used, self.core.has_line());
        if let Some(took) = first_byte {
            self.prompt.note(took);
        }
    }

    /// What an answer needs at the least to begin.
    pub(super) fn prompt(&self) -> Duration {
        self.prompt.get()
    }
}

pub(super) fn shape(params: &PoolParams, failure: &FailureSpec) -> Shape {
    let ejection = &failure.ejection;
    Shape {
        size: params.size.get() as usize,
        most: params.size.get() as usize,
        fleet_wide: params.is_fleet_wide(),
        warm: params.warm as usize,
        max_waiting: params.max_waiting as usize,
        idle_timeout: params.idle_timeout,
        max_age: params.max_connection_age,
        ejection: Rules {
            after: ejection.failures(),
            base: ejection.base_time(),
            most: ejection.max_time(),
            panic_percent: ejection.panic_percent(),
        },
        checked: failure.health.path.is_some(),
        adaptive: params.adaptive,
    }
}

#[cfg(test)]
mod tests {
    use forebay_proto::{
        EndpointUrl, ModelSpec, PoolSettings, Revision, endpoint::Weight, failure::CheckPath,
        probe::ServedName,
    };

    use super::*;
    use crate::pool::{
        conn::Conn,
        core::{Ask, Connection, Effect, Place as Where, State, Wish},
    };

    fn secs(secs: u64) -> Duration {
        Duration::from_secs(secs)
    }

    fn ip(last: u8) -> IpAddr {
        IpAddr::from([127, 0, 1, last])
    }

    fn named() -> (Inner<Conn>, EndpointId) {
        let id = EndpointId::new("a").unwrap();
        let url = EndpointUrl::parse("http://vllm.test:8000").unwrap();
        let endpoint = Endpoint::new(id.clone(), url);
        let spec = ModelSpec::new(ModelId::new("m").unwrap(), vec![], vec![endpoint]).unwrap();
        let model = spec.resolve(&PoolSettings::default(), Revision::new(1));
        let model = model.unwrap();
        let mut inner = Inner::new(&model, usize::MAX, 1);
        drop(inner.reshape(Duration::ZERO, &model));
        (inner, id)
    }

    #[test]
    fn answers_that_rotate_are_no_changes_and_another_answer_is_one() {
        let (mut inner, id) = named();
        let mut answer = |at: u64, answer: &[u8]| {
            let addresses: Vec<IpAddr> = answer.iter().map(|last| ip(*last)).collect();
            drop(inner.resolved(secs(at), &id, &addresses));
            (inner.addresses_of(&id), inner.targets.len())
        };
        assert_eq!(answer(0, &[1, 2]), (vec![ip(1), ip(2)], 2));
        assert_eq!(answer(1, &[2, 3]), (vec![ip(1), ip(2), ip(3)], 3));
        assert_eq!(answer(2, &[1, 3]), (vec![ip(1), ip(2), ip(3)], 3));
        // What no answer had for half a minute is gone, if they were some.
        assert_eq!(answer(60, &[1, 3]), (vec![ip(1), ip(2), ip(3)], 3));
        assert_eq!(answer(61, &[1, 3]), (vec![ip(1), ip(3)], 2));
        assert_eq!(answer(62, &[9]), (vec![ip(9)], 1));
        // Those that hold for a minute rotate as well.
        assert_eq!(answer(120, &[9, 8]).1, 2);
        assert_eq!(answer(180, &[8, 7]).1, 3);
        assert_eq!(answer(240, &[7, 9]).1, 3);
    }

    fn asked(model: &mut ResolvedModel, mode: ProbeMode) {
        model.probe.mode = mode;
    }

    /// A model whose name has the addresses 1 and 2, probed like this.
    fn probed(mode: ProbeMode) -> (Inner<Conn>, ResolvedModel, Vec<Target>) {
        let (_, id) = named();
        let url = EndpointUrl::parse("http://vllm.test:8000").unwrap();
        let spec = ModelSpec::new(
            ModelId::new("m").unwrap(),
            vec![],
            vec![Endpoint::new(id.clone(), url)],
        );
        let model = spec
            .unwrap()
            .resolve(&PoolSettings::default(), Revision::new(1));
        let mut model = model.unwrap();
        asked(&mut model, mode);
        let mut inner = Inner::new(&model, usize::MAX, 1);
        drop(inner.reshape(secs(0), &model));
        drop(inner.resolved(secs(0), &id, &[ip(1), ip(2)]));
        let targets = inner.to_ask().map(|(_, targets)| targets);
        (inner, model, targets.unwrap_or_default())
    }

    fn serving(inner: &Inner<Conn>) -> Vec<String> {
        let mut places: Vec<_> = inner
            .targets
            .values()
            .map(|t| t.place.to_string())
            .collect();
        places.sort();
        places
    }

    #[test]
    fn an_address_that_serves_another_model_leaves_and_comes_back() {
        let (mut inner, _, targets) = probed(ProbeMode::Enforce);
        let asked = inner.asked.clone().unwrap();
        assert_eq!(serving(&inner), ["127.0.1.1:8000", "127.0.1.2:8000"]);
        drop(inner.found(secs(1), &asked, &targets[0], Some("other")));
        assert_eq!(serving(&inner), ["127.0.1.2:8000"]);
        assert_eq!(inner.all_wrong(), None);
        // It is asked all the same.
        assert_eq!(inner.to_ask().unwrap().1.len(), 2);
        drop(inner.found(secs(2), &asked, &targets[1], Some("other")));
        let (endpoint, why) = inner.all_wrong().unwrap();
        assert_eq!((endpoint.as_str(), &*why), ("a", "other"));
        drop(inner.found(secs(3), &asked, &targets[0], None));
        assert_eq!(serving(&inner), ["127.0.1.1:8000"]);
        assert_eq!(inner.all_wrong(), None);
    }

    #[test]
    fn nothing_leaves_unless_that_is_enforced_and_a_verdict_is_only_of_what_was_asked() {
        let (mut inner, _, targets) = probed(ProbeMode::Report);
        let reported = inner.asked.clone().unwrap();
        drop(inner.found(secs(1), &reported, &targets[0], Some("other")));
        assert_eq!(serving(&inner).len(), 2);
        assert!(probed(ProbeMode::Off).0.to_ask().is_none());

        let (mut inner, mut model, targets) = probed(ProbeMode::Enforce);
        let before = inner.asked.clone().unwrap();
        drop(inner.found(secs(1), &before, &targets[0], Some("other")));
        // Other parameters change nothing about it; another name does.
        model.timeouts.connect = secs(1);
        drop(inner.reshape(secs(2), &model));
        assert_eq!(serving(&inner).len(), 1);
        model.probe.served_name = ServedName::new("other").ok();
        drop(inner.reshape(secs(3), &model));
        assert_eq!(serving(&inner).len(), 2);
        // An answer to the old question comes too late.
        drop(inner.found(secs(4), &before, &targets[0], Some("other")));
        assert_eq!(serving(&inner).len(), 2);
        let now = inner.asked.clone().unwrap();
        drop(inner.found(secs(5), &now, &targets[0], Some("third")));
        assert_eq!(serving(&inner).len(), 1);
        // Nor does what moved stay condemned.
        let url = EndpointUrl::parse("http://127.0.0.9:8000").unwrap();
        model.endpoints[0].url = url;
        drop(inner.reshape(secs(6), &model));
        assert!(inner.quarantine.is_empty());
        assert_eq!(serving(&inner), ["127.0.0.9:8000"]);
    }

    /// A connection that is in use for as long as the test has it.
    #[derive(Debug)]
    struct Idle;

    impl Connection for Idle {
        fn is_shared(&self) -> bool {
            false
        }

        fn streams(&self) -> usize {
            1
        }

        fn another(&self) -> Option<Self> {
            None
        }
    }

    impl Upstream for Idle {
        fn close(self) {}

        fn is_closed(&self) -> bool {
            false
        }

        fn is_live(&self) -> bool {
            true
        }
    }

    /// A model with an endpoint at each of these urls, by the ids that they get when none are given.
    fn at_urls(urls: &[&str]) -> ResolvedModel {
        let endpoint = |(n, url): (usize, &&str)| {
            let id = EndpointId::new(format!("e{}", n + 1)).unwrap();
            Endpoint::new(id, EndpointUrl::parse(url).unwrap())
        };
        let endpoints = urls.iter().enumerate().map(endpoint).collect();
        let spec = ModelSpec::new(ModelId::new("m").unwrap(), vec![], endpoints).unwrap();
        spec.resolve(&PoolSettings::default(), Revision::new(1))
            .unwrap()
    }

    /// Which origin is at each url.
    fn origins(inner: &Inner<Idle>) -> BTreeMap<String, OriginId> {
        let of = |(id, target): (&OriginId, &Target)| (target.endpoint.url.to_string(), *id);
        inner.targets.iter().map(of).collect()
    }

    fn connect(inner: &mut Inner<Idle>, effects: Effects<Idle>) {
        for effect in effects {
            if let Effect::Connect { ticket, .. } = effect {
                drop(inner.core.connected(secs(0), ticket, Idle));
            }
        }
    }

    /// A request that takes long is at what was there before, spoken to in another way.
    #[test]
    fn what_is_left_of_one_that_changed_costs_its_heir_nothing() {
        let (plain, tls) = ("http://127.0.0.1:8000", "https://127.0.0.1:8000");
        for _ in 0..16 {
            let mut inner = Inner::new(&at_urls(&[plain]), usize::MAX, 1);
            let effects = inner.reshape(secs(0), &at_urls(&[plain]));
            connect(&mut inner, effects);
            let (waiter, _answer) = tokio::sync::oneshot::channel();
            let (_, effects) = inner.core.acquire(
                secs(0),
                &Ask::default(),
                waiter,
                Where::Back,
                Wish::default(),
            );
            connect(&mut inner, effects);
            drop(inner.reshape(secs(1), &at_urls(&[tls])));
            let before = origins(&inner);
            assert_eq!(before.len(), 2, "one with a request, and its heir");
            let mut model = at_urls(&[tls]);
            model.endpoints[0].weight = Weight::new(7).unwrap();
            drop(inner.reshape(secs(2), &model));
            assert_eq!(origins(&inner), before, "a weight is no other endpoint");
        }
    }

    #[test]
    fn an_endpoint_whose_id_moved_on_is_as_sound_as_before_and_another_at_its_id_is_not() {
        let (one, two, three) = (
            "http://127.0.0.1:1",
            "http://127.0.0.2:1",
            "http://127.0.0.3:1",
        );
        // Checks are asked for, so that what they find is heeded.
        let checked = |urls: &[&str]| {
            let mut model = at_urls(urls);
            model.failure.health.path = CheckPath::new("/health").ok();
            model
        };
        let mut inner = Inner::<Idle>::new(&checked(&[one, two]), usize::MAX, 1);
        let effects = inner.reshape(secs(0), &checked(&[one, two]));
        connect(&mut inner, effects);
        let out = origins(&inner)[two];
        for _ in 0..3 {
            drop(inner.core.checked(secs(0), out, false, (3, 1)));
        }
        let state = |inner: &Inner<Idle>, url: &str| {
            let id = origins(inner)[url];
            inner.core.census_of(secs(0), id).state
        };
        assert_eq!(state(&inner, two), State::Ejected);
        // The first goes, and `e2` is `e1`.
        drop(inner.reshape(secs(0), &checked(&[two])));
        assert_eq!(state(&inner, two), State::Ejected);
        // Another server has its id.
        drop(inner.reshape(secs(0), &checked(&[three])));
        assert_eq!(state(&inner, three), State::Healthy);
    }

    #[test]
    fn however_many_addresses_answers_name_there_is_a_limit() {
        let (mut inner, id) = named();
        for last in 0..200 {
            drop(inner.resolved(secs(1), &id, &[ip(last), ip(last + 1)]));
        }
        assert_eq!(inner.addresses_of(&id).len(), MOST);
        assert_eq!(inner.targets.len(), MOST);
    }
}
