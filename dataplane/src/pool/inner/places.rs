//! Where the endpoints of a pool are: those that are configured, those that sources named, and their addresses, as far as they may
//! be dialled.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use forebay_proto::{Endpoint, EndpointId, endpoint::Address};

use super::{Inner, Known, PARTS};
use crate::pool::{
    core::{OriginCensus, OriginId, State},
    desk::{Effects, Upstream},
    discovery::Doing,
    target::{Place, Target},
};

impl<C: Upstream> Inner<C> {
    /// What is configured, or what a source named, changed.
    pub(in crate::pool) fn expand(&mut self, now: Duration) -> Effects<C> {
        let before = std::mem::take(&mut self.endpoints);
        self.endpoints = self.sources.expand(&self.configured);
        let before: HashMap<&EndpointId, &Arc<Endpoint>> =
            before.iter().map(|e| (&e.id, e)).collect();
        let kept = |endpoint: &Endpoint| {
            let same_name = before.get(&endpoint.id);
            same_name.is_some_and(|before| before.url.address() == endpoint.url.address())
        };
        let kept: BTreeSet<EndpointId> = {
            let kept = self.endpoints.iter().filter(|endpoint| kept(endpoint));
            kept.map(|endpoint| endpoint.id.clone()).collect()
        };
        self.addresses.retain(|id, _| kept.contains(id));
        let endpoints: HashMap<&EndpointId, &Arc<Endpoint>> =
            self.endpoints.iter().map(|e| (&e.id, e)).collect();
        for places in self.quarantine.values_mut() {
            places.retain(|_, found| {
                let same = endpoints.get(&found.endpoint.id);
                same.is_some_and(|endpoint| endpoint.same_connections(&found.endpoint))
            });
        }
        self.quarantine.retain(|_, places| !places.is_empty());
        self.put_in_force(now)
    }

    /// Everywhere that an endpoint is. Of one that a source named, only where that may lead.
    pub(super) fn targets_of(&self, endpoint: &Arc<Endpoint>) -> Vec<Target> {
        let addresses = self.addresses_of(&endpoint.id);
        let mut targets = Target::all(endpoint, self.tls_of(endpoint), &addresses);
        if let Some(source) = self.sources.owner(&endpoint.id) {
            targets.retain(|target| match &target.place {
                Place::Tcp(at) => self.sources.check(&endpoint.id, *at).is_ok(),
                Place::Name(_) => true,
                Place::Unix(_) => false,
            });
            if targets.is_empty() {
                // As if its name had no address: who waits for it is told why.
                targets = Target::all(endpoint, self.tls_of(endpoint), &[]);
                targets.retain(|target| matches!(target.place, Place::Name(_)));
            }
            targets
                .iter_mut()
                .for_each(|target| target.source = Some(source.clone()));
        }
        targets
    }

    /// Why none of the addresses may be dialled that the name of an endpoint has, if that is so.
    pub(in crate::pool) fn out_of_bounds(&self, id: &EndpointId) -> Option<String> {
        let endpoint = self.endpoints.iter().find(|endpoint| endpoint.id == *id)?;
        let Address::Host(host, port) = endpoint.url.address() else {
            return None;
        };
        let mut why = None;
        for ip in self.addresses_of(id) {
            let checked = self.sources.check(id, (ip, port).into());
            why = Some(format!(
                "{ip}, an address of `{host}`, is {}",
                checked.err()?
            ));
        }
        why
    }

    /// How the servers of a source do. What serves another model is as good as lost, and what of it is still open, too.
    fn doing(&self, now: Duration, own: &dyn Fn(&EndpointId) -> bool) -> Doing {
        let targets = self.targets.iter();
        let targets = targets.filter(|(_, t)| own(&t.endpoint.id) && !self.is_quarantined(t));
        let census: Vec<_> = targets
            .map(|(id, _)| self.core.census_of(now, *id))
            .collect();
        let lost = |c: &OriginCensus| c.unreachable || c.state != State::Healthy;
        let mut endpoints = self.endpoints.iter().filter(|endpoint| own(&endpoint.id));
        Doing {
            down: match census.is_empty() {
                true => endpoints.any(|endpoint| self.quarantine.contains_key(&endpoint.id)),
                false => census.iter().all(lost),
            },
            well: census.iter().any(|c| !lost(c) && c.open > 0),
        }
    }

    /// True if servers of another priority are to be used from now on.
    pub(in crate::pool) fn weigh_reserves(&mut self, now: Duration) -> bool {
        let mut sources = std::mem::take(&mut self.sources);
        let changes = sources.weigh_reserves(now, |own| self.doing(now, own));
        self.sources = sources;
        changes
    }

    /// Every place that is in use now, and its weight. Of several that sources named for one address one counts.
    pub(super) fn wanted(&mut self, known: &Known) -> Vec<(OriginId, Target, u32)> {
        let mut wanted = Vec::new();
        let mut taken: HashSet<(bool, Place)> = HashSet::new();
        for endpoint in self.endpoints.clone() {
            let mut targets = self.targets_of(&endpoint);
            targets.retain(|target| !self.is_quarantined(target));
            if self.sources.owner(&endpoint.id).is_some() {
                targets.retain(|t| !taken.contains(&(t.is_tls(), t.place.clone())));
            }
            let parts = u32::try_from(targets.len()).unwrap_or(u32::MAX).max(1);
            let whole = self.sources.parts(&endpoint.id);
            let weight = (whole.unwrap_or(endpoint.weight.get() * PARTS) / parts).max(1);
            for target in targets {
                if !matches!(target.place, Place::Name(_)) {
                    taken.insert((target.is_tls(), target.place.clone()));
                }
                wanted.push((self.origin_of(known, &target), target, weight));
            }
        }
        wanted
    }
}
