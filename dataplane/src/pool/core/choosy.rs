//! Those who have a use for one endpoint only: what asks about a response can be answered by the one that made
//! it alone. They stand in the same line, and nobody else waits for them.

use std::{sync::Arc, time::Duration};

use super::{
    Connection, Core, Effect, Effects, OriginId, Refused, Waiter,
    origin::{Origin, Phase, Spot},
    pump::PATIENCE,
};
use crate::pool::counters::{CloseReason, OpenReason};

impl<C: Connection, W> Core<C, W> {
    /// A place on one of these: the endpoint, and the place there.
    pub(super) fn spot_of(&self, only: &[OriginId]) -> Option<(usize, Spot)> {
        let mut origins = self.origins.iter().enumerate();
        origins.find_map(|(at, origin)| {
            let spot = origin.spot(None).filter(|_| only.contains(&origin.id))?;
            Some((at, spot))
        })
    }

    fn choosy(&self) -> impl Iterator<Item = &Waiter<W>> {
        self.waiters.iter().filter(|waiter| !waiter.only.is_empty())
    }

    /// A connect for each of them, one at a time to an endpoint. In a full pool an idle one elsewhere gives way.
    pub(super) fn connect_for_choosy(&mut self, now: Duration, effects: &mut Vec<Effect<C, W>>) {
        let wanted: Vec<OriginId> = self
            .choosy()
            .filter(|waiter| waiter.only.iter().all(|id| self.connecting_to(*id) == 0))
            .filter_map(|waiter| {
                let mut origins = self.origins.iter();
                let can = |o: &&Origin<C>| waiter.only.contains(&o.id) && o.may_connect(now, 0);
                origins.find(can).map(|origin| origin.id)
            })
            .collect();
        for origin in wanted {
            if self.connecting_to(origin) > 0 || self.in_flight() >= self.shape.size {
                continue;
            }
            let sound = self.origin_mut(origin);
            let sound = sound.is_some_and(|origin| origin.fresh_trouble(now).is_none());
            let (open, limit) = (self.open(), self.limit());
            // Nothing gives way for an endpoint that fails.
            let room = open < limit || (open == limit && sound && self.evict_coldest(effects));
            if room {
                self.connect_to(now, origin, OpenReason::Demand, effects);
            }
        }
    }

    fn evict_coldest(&mut self, effects: &mut Effects<C, W>) -> bool {
        self.close_coldest(CloseReason::Evicted, effects)
    }

    /// Sends those away whose endpoint is gone, or fails and has nothing open.
    pub(super) fn refuse_choosy(&mut self, now: Duration, effects: &mut Vec<Effect<C, W>>) {
        let mut hopeless = Vec::new();
        for waiter in self.choosy() {
            if let Some(error) = self.no_hope_for(now, waiter) {
                hopeless.push((waiter.id, error));
            }
        }
        for (id, error) in hopeless {
            if let Some(waiter) = self.cancel(id) {
                let why = Refused::ConnectFailed(error);
                effects.push(Effect::Refuse { waiter, why });
            }
        }
    }

    fn no_hope_for(&self, now: Duration, waiter: &Waiter<W>) -> Option<Arc<str>> {
        let origins = || {
            let serving = self.origins.iter().filter(|o| o.phase != Phase::Retired);
            serving.filter(|origin| waiter.only.contains(&origin.id))
        };
        if origins().next().is_none() {
            return Some("it was removed".into());
        }
        let patient = now.saturating_sub(waiter.arrived) < PATIENCE;
        let open = |o: &Origin<C>| o.open() > 0 || self.connecting_to(o.id) > 0;
        if patient || origins().any(open) {
            return None;
        }
        let troubles: Option<Vec<_>> = origins().map(|o| o.fresh_trouble(now)).collect();
        troubles?.first().map(|trouble| trouble.error.clone())
    }
}
