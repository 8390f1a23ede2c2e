//! Requests that may not go to every endpoint: one alone has what they need, or some were tried with them already.

use std::time::Duration;

use super::{
    Connection, Core, Effect, Refused, Ticket, WaiterId, Wish,
    flow::Waiter,
    origin::{Origin, Phase},
    pump::patience,
};
use crate::pool::counters::{CloseReason, OpenReason};

impl<C: Connection, W> Core<C, W> {
    /// Connects for those who wait for certain endpoints, as far as there is room. Gives how many connects under
    /// way are for them.
    pub(super) fn connect_for_wishes(
        &mut self,
        now: Duration,
        room: usize,
        effects: &mut Vec<Effect<C, W>>,
    ) -> usize {
        let wishes = self.line.wishes().into_iter().take(room);
        let wishes: Vec<Wish> = wishes.map(|waiter| waiter.wish.clone()).collect();
        let mut theirs: Vec<Ticket> = Vec::new();
        for wish in &wishes {
            let under_way = self.connecting.iter().find(|connect| {
                let origin = self.origins.iter().find(|o| o.id == connect.origin);
                let suits = origin.is_some_and(|origin| self.suits(now, origin, wish));
                suits && !theirs.contains(&connect.ticket)
            });
            if let Some(connect) = under_way {
                theirs.push(connect.ticket);
                continue;
            }
            let Some(origin) = self.neediest(now, |origin| self.suits(now, origin, wish)) else {
                continue;
            };
            if self.open() >= self.limit() && !self.make_room(now, wish, effects) {
                continue;
            }
            self.connect_to(now, origin, OpenReason::Demand, effects);
            theirs.extend(self.connecting.last().map(|connect| connect.ticket));
        }
        theirs.len()
    }

    /// In a full pool an idle connection that those who wait cannot use gives way, if there is one to be opened that
    /// they can.
    pub(super) fn make_room(
        &mut self,
        now: Duration,
        wish: &Wish,
        effects: &mut Vec<Effect<C, W>>,
    ) -> bool {
        let suits = |origin: &&Origin<C>| self.suits(now, origin, wish);
        let useful = self.neediest(now, suits).is_some();
        useful && self.open() == self.limit() && self.close_coldest(CloseReason::Evicted, effects)
    }

    /// Sends those away for whom nothing can come: their endpoint is gone, or cannot be reached; or there is no other
    /// than those that they tried.
    pub(super) fn refuse_wishes(&mut self, now: Duration, effects: &mut Vec<Effect<C, W>>) {
        let hopeless = |waiter: &Waiter<W>| {
            let waited = now.saturating_sub(waiter.arrived);
            let why = self.is_hopeless(now, &waiter.wish, waited)?;
            Some((waiter.id, why))
        };
        let wishes = self.line.wishes().into_iter();
        let hopeless: Vec<(WaiterId, Refused)> = wishes.filter_map(hopeless).collect();
        for (id, why) in hopeless {
            if let Some(waiter) = self.line.remove(id) {
                effects.push(Effect::Refuse { waiter, why });
            }
        }
    }

    fn is_hopeless(&self, now: Duration, wish: &Wish, waited: Duration) -> Option<Refused> {
        let serving = self.origins.iter().filter(|o| o.phase != Phase::Retired);
        let suitable: Vec<&Origin<C>> = serving.filter(|o| self.suits(now, o, wish)).collect();
        if suitable.is_empty() {
            return Some(Refused::NoEndpoint);
        }
        let idle = |o: &&Origin<C>| o.open() + self.connecting_to(o.id) == 0;
        if self.limit() == 0 || !suitable.iter().all(idle) {
            return None;
        }
        let troubles = suitable.iter().map(|o| o.fresh_trouble(now));
        let troubles: Vec<_> = troubles.collect::<Option<_>>()?;
        let since = troubles.iter().map(|trouble| trouble.since).max()?;
        let error = troubles.first()?.error.clone();
        (waited >= patience(now, since)).then_some(Refused::ConnectFailed(error))
    }
}
