//! What is behind the pool's lock. Nothing here waits, wakes or closes.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

use super::{
    core::{Core, OriginId, OriginSpec, Shape, Standing},
    desk::{Effects, Upstream, Waiter},
    target::{Place, Target},
    tls::Tls,
};
use forebay_proto::{Endpoint, EndpointId, PoolParams, ResolvedModel};

/// An endpoint's weight is shared by its addresses; in these parts, so that little is lost.
const PARTS: u32 = 5_040;

/// A pool's state: the core, and what the shell must know of endpoints to dial.
#[derive(Debug)]
pub(super) struct Inner<C: Upstream> {
    pub(super) core: Core<C, Waiter<C>>,
    pub(super) params: PoolParams,
    pub(super) connect_timeout: Duration,
    /// As configured.
    pub(super) endpoints: Vec<Arc<Endpoint>>,
    /// What their names were last resolved to.
    addresses: BTreeMap<EndpointId, Vec<IpAddr>>,
    /// Where each origin is that the core knows, those that were removed included.
    pub(super) targets: HashMap<OriginId, Target>,
    pub(super) next_origin: u64,
    /// Decayed mean of how long a slot is in use, for `retry-after`.
    pub(super) mean_use: Duration,
}

impl<C: Upstream> Inner<C> {
    pub(super) fn new(model: &ResolvedModel, cap: usize, seed: u64) -> Self {
        Self {
            core: Core::new(shape(&model.pool), cap, seed),
            params: model.pool.clone(),
            connect_timeout: model.timeouts.connect,
            endpoints: Vec::new(),
            addresses: BTreeMap::new(),
            targets: HashMap::new(),
            next_origin: 0,
            mean_use: Duration::from_secs(1),
        }
    }

    pub(super) fn reshape(&mut self, now: Duration, model: &ResolvedModel) -> Effects<C> {
        self.params = model.pool.clone();
        self.connect_timeout = model.timeouts.connect;
        let before = std::mem::take(&mut self.endpoints);
        let kept = |endpoint: &Endpoint| {
            let mut before = before.iter();
            let same_name =
                before.find(|b| b.id == endpoint.id && b.url.address() == endpoint.url.address());
            same_name.is_some()
        };
        let kept: BTreeSet<EndpointId> = {
            let kept = model.endpoints.iter().filter(|endpoint| kept(endpoint));
            kept.map(|endpoint| endpoint.id.clone()).collect()
        };
        self.addresses.retain(|id, _| kept.contains(id));
        self.endpoints = model.endpoints.iter().cloned().map(Arc::new).collect();
        self.put_in_force(now)
    }

    /// What an endpoint's name was last resolved to.
    pub(super) fn addresses_of(&self, endpoint: &EndpointId) -> &[IpAddr] {
        self.addresses.get(endpoint).map_or(&[], Vec::as_slice)
    }

    /// The addresses of an endpoint's name, as they are now.
    pub(super) fn resolved(
        &mut self,
        now: Duration,
        endpoint: &EndpointId,
        addresses: Vec<IpAddr>,
    ) -> Effects<C> {
        if self.addresses_of(endpoint) == addresses {
            return Vec::new();
        }
        self.addresses.insert(endpoint.clone(), addresses);
        self.put_in_force(now)
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
        let mut wanted = Vec::new();
        for endpoint in self.endpoints.clone() {
            let known = self.addresses_of(&endpoint.id);
            let targets = Target::all(&endpoint, self.tls_of(&endpoint), known);
            let addresses = u32::try_from(targets.len()).unwrap_or(u32::MAX);
            let weight = (endpoint.weight.get() * PARTS / addresses).max(1);
            for target in targets {
                wanted.push((self.origin_of(&target), target, weight));
            }
        }
        let current: BTreeSet<OriginId> = wanted.iter().map(|(id, ..)| *id).collect();
        let specs: Vec<OriginSpec> = wanted
            .iter()
            .map(|(id, target, weight)| OriginSpec {
                id: *id,
                weight: *weight,
                streams: target.streams(),
                standing: self.standing(target, &current),
            })
            .collect();
        let changed = self.changed(&wanted, &current);
        let shape = shape(&self.params);
        let effects = self.core.reshape(now, shape, &specs, &changed);
        let wanted = wanted.into_iter().map(|(id, target, _)| (id, target));
        self.targets.extend(wanted);
        let core = &self.core;
        self.targets.retain(|id, _| core.knows(*id));
        effects
    }

    /// The TLS that it has had so far, if nothing about that changed.
    fn tls_of(&self, endpoint: &Arc<Endpoint>) -> Option<Arc<Tls>> {
        let mut targets = self.targets.values();
        let same = targets.find(|target| target.endpoint.same_connections(endpoint));
        match same {
            Some(target) => target.tls().cloned(),
            None => Tls::of(endpoint),
        }
    }

    /// The same endpoint at the same place keeps its origin, and with it its connections.
    fn origin_of(&mut self, target: &Target) -> OriginId {
        let mut known = self.targets.iter();
        let same = known.find(|(id, known)| {
            known.place == target.place
                && known.endpoint.same_connections(&target.endpoint)
                && self.core.knows(**id)
        });
        if let Some((id, _)) = same {
            return *id;
        }
        self.next_origin += 1;
        OriginId(self.next_origin)
    }

    fn standing(&self, target: &Target, current: &BTreeSet<OriginId>) -> Standing {
        if let Place::Name(_) = target.place {
            return Standing::Unresolved;
        }
        let mut gone = self.targets.iter().filter(|(id, _)| !current.contains(id));
        match gone.any(|(_, gone)| gone.endpoint.id == target.endpoint.id) {
            true => Standing::Heir,
            false => Standing::Plain,
        }
    }

    /// Those that are no more, but whose endpoint is: it moved. Where trust changed, nothing of what was
    /// trusted before is used any longer.
    fn changed(
        &self,
        wanted: &[(OriginId, Target, u32)],
        current: &BTreeSet<OriginId>,
    ) -> Vec<OriginId> {
        let gone = self.targets.iter().filter(|(id, _)| !current.contains(id));
        let moved = gone.filter(|(_, gone)| {
            let mut heirs = wanted.iter().map(|(_, target, _)| &target.endpoint);
            heirs.any(|heir| {
                heir.id == gone.endpoint.id && heir.tls.roots == gone.endpoint.tls.roots
            })
        });
        moved.map(|(id, _)| *id).collect()
    }

    pub(super) fn note_use(&mut self, used: Duration) {
        self.mean_use = self.mean_use.mul_f64(0.9) + used.mul_f64(0.1);
    }

    /// The time in which the line ahead drains, from 1 s to 60 s.
    pub(super) fn retry_after(&self, waiting: usize) -> Duration {
        let slots = self.core.cap().clamp(1, self.params.size.get() as usize);
        let turns = (waiting + 1) as f64 / slots as f64;
        let seconds = (turns * self.mean_use.as_secs_f64())
            .ceil()
            .clamp(1.0, 60.0);
        Duration::from_secs_f64(seconds)
    }
}

pub(super) fn shape(params: &PoolParams) -> Shape {
    Shape {
        size: params.size.get() as usize,
        warm: params.warm as usize,
        max_waiting: params.max_waiting as usize,
        idle_timeout: params.idle_timeout,
        max_age: params.max_connection_age,
    }
}
