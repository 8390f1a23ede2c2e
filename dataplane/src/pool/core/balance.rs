//! Which endpoint gets a request, and which a connection: least loaded of two random choices, by weight.
//!
//! A request never waits for a connect while another endpoint has an idle connection; but what that
//! endpoint then lacks is opened behind its back, so that each endpoint's share of the pool follows the
//! load.

use std::{cmp::Ordering, time::Duration};

use super::{
    Connection, Core, Effect, OriginId, Wish,
    origin::{Origin, Phase, Spot, lighter},
};
use crate::pool::counters::{CloseReason, OpenReason};

/// What is known of an endpoint when one is chosen for a request.
#[derive(Debug, Clone, Copy)]
pub(in crate::pool) struct Candidate {
    /// Requests on it.
    pub(in crate::pool) in_flight: usize,
    /// Its share relative to the others.
    pub(in crate::pool) weight: u32,
}

/// How dear a request is on an endpoint. Of two that are drawn the cheaper one gets it; this is where
/// scorers plug in that know more than the load.
pub(in crate::pool) trait Scorer: std::fmt::Debug + Send {
    fn cost(&self, candidate: &Candidate) -> f64;
}

/// The one with the least on it for its weight.
#[derive(Debug)]
pub(super) struct LeastLoaded;

impl Scorer for LeastLoaded {
    fn cost(&self, candidate: &Candidate) -> f64 {
        (candidate.in_flight + 1) as f64 / f64::from(candidate.weight.max(1))
    }
}

impl<C: Connection, W> Core<C, W> {
    /// Where the next request goes among what is open: the endpoint, and the place there.
    pub(super) fn choose(
        &mut self,
        now: Duration,
        fresh_since: Option<Duration>,
        wish: &Wish,
    ) -> Option<(usize, Spot)> {
        let (at, spot) = self.choose_newest(now, fresh_since, wish)?;
        match fresh_since {
            Some(_) => Some((at, spot)),
            None => Some((at, self.keep_warm(now, at, spot))),
        }
    }

    fn choose_newest(
        &mut self,
        now: Duration,
        fresh_since: Option<Duration>,
        wish: &Wish,
    ) -> Option<(usize, Spot)> {
        if let [only] = self.origins.as_slice() {
            let spot = only.spot(fresh_since);
            return spot
                .filter(|_| self.suits(now, only, wish))
                .map(|spot| (0, spot));
        }
        let current = |origin: &Origin<C>| origin.is_current();
        let able = |core: &Self, origin: &Origin<C>| {
            core.suits(now, origin, wish) && origin.spot(fresh_since).is_some()
        };
        let wished = self.draw(|core, origin| {
            current(origin) && origin.is_reachable(now) && core.suits(now, origin, wish)
        });
        let chosen = match wished {
            Some(at) if self.origins.get(at).is_some_and(|o| able(self, o)) => Some(at),
            _ => {
                let wished = wished.and_then(|at| self.origins.get(at));
                self.wished = wished.map(|origin| origin.id).or(self.wished);
                // What changed serves only while its heirs have nothing to serve with.
                self.draw(|core, origin| current(origin) && able(core, origin))
                    .or_else(|| self.draw(able))
            }
        }?;
        let spot = self.origins.get(chosen)?.spot(fresh_since)?;
        Some((chosen, spot))
    }

    /// The cheaper of two that are drawn by weight from those that will do.
    fn draw(&mut self, will_do: impl Fn(&Self, &Origin<C>) -> bool) -> Option<usize> {
        let will_do = |(_, origin): &(usize, &Origin<C>)| will_do(self, origin);
        let will_do = self.origins.iter().enumerate().filter(will_do);
        let mut pool: Vec<(usize, u32)> = will_do.map(|(at, o)| (at, o.weight)).collect();
        let first = draw_one(&mut self.dice, &mut pool)?;
        let Some(second) = draw_one(&mut self.dice, &mut pool) else {
            return Some(first);
        };
        let cost = |at: usize| {
            let origin = self.origins.get(at)?;
            Some(self.scorer.cost(&Candidate {
                in_flight: origin.in_flight(),
                weight: origin.weight,
            }))
        };
        match cost(second) < cost(first) {
            true => Some(second),
            false => Some(first),
        }
    }

    /// Opens a connection to an endpoint that has none free and carries so much less than another that one
    /// request more would even it out. In a full pool an idle one of who has most gives way.
    pub(super) fn rebalance(&mut self, now: Duration, effects: &mut Vec<Effect<C, W>>) {
        if self.origins.len() < 2 || self.retired {
            return;
        }
        let current = || self.origins.iter().filter(|origin| origin.is_current());
        let poor = current()
            .filter(|o| o.spot(None).is_none() && self.connecting_to(o.id) == 0)
            .filter(|o| self.may_dial(now, o) && self.takes(now, o))
            .min_by(|a, b| lighter(a.in_flight(), a.weight, b.in_flight(), b.weight));
        let rich =
            current().max_by(|a, b| lighter(a.in_flight(), a.weight, b.in_flight(), b.weight));
        let Some((poor, rich)) = poor.zip(rich) else {
            return;
        };
        let after = lighter(
            poor.in_flight() + 1,
            poor.weight,
            rich.in_flight(),
            rich.weight,
        );
        if after == Ordering::Less {
            let poor = poor.id;
            self.open_for(now, poor, effects);
        }
    }

    /// An endpoint without any connection gets its first when a request would have gone there; one endpoint
    /// at a time, until that connection was used or let go.
    pub(super) fn open_wished(&mut self, now: Duration, effects: &mut Vec<Effect<C, W>>) {
        let Some(wished) = self.wished.take().filter(|_| !self.retired) else {
            return;
        };
        let untried = |o: &Origin<C>| o.in_flight() == 0 && o.open() > 0 && o.never_used();
        if self.origins.iter().any(untried) {
            return;
        }
        let first = self.origins.iter().find(|origin| origin.id == wished);
        let first = first.filter(|o| o.open() == 0 && self.connecting_to(o.id) == 0);
        if first.is_some_and(|origin| self.may_dial(now, origin)) {
            self.open_for(now, wished, effects);
        }
    }

    /// In a full pool another gives way, but not for an endpoint that fails.
    fn open_for(&mut self, now: Duration, poor: OriginId, effects: &mut Vec<Effect<C, W>>) {
        let (open, limit) = (self.open(), self.limit());
        let sound = self.origin_mut(poor).is_some_and(|o| o.trouble.is_none());
        let gives_way = |core: &mut Self, effects: &mut _| core.take_from_richest(poor, effects);
        if open < limit || (open == limit && sound && gives_way(self, effects)) {
            self.connect_to(now, poor, OpenReason::Demand, effects);
        }
    }

    /// Closes the coldest idle connection of the endpoint that has most for its weight, if it still has no
    /// less than `poor` when the two have changed places.
    fn take_from_richest(&mut self, poor: OriginId, effects: &mut Vec<Effect<C, W>>) -> bool {
        let Some((open, weight)) = self.origin_mut(poor).map(|o| (o.open(), o.weight)) else {
            return false;
        };
        let rich = self.origins.iter_mut().filter(|origin| {
            let stays = origin.open().saturating_sub(1);
            origin.phase == Phase::Current
                && origin.id != poor
                && origin.resting() > 0
                && lighter(open + 1, weight, stays, origin.weight) != Ordering::Greater
        });
        let rich = rich.max_by(|a, b| lighter(a.open(), a.weight, b.open(), b.weight));
        let Some(conn) = rich.and_then(Origin::pop_coldest) else {
            return false;
        };
        self.counters.count_closed(CloseReason::Evicted);
        effects.push(Effect::Close { conn });
        true
    }
}

/// Draws one by weight and takes it out.
fn draw_one(dice: &mut fastrand::Rng, pool: &mut Vec<(usize, u32)>) -> Option<usize> {
    let total: u64 = pool.iter().map(|(_, weight)| u64::from(*weight)).sum();
    if total == 0 {
        return None;
    }
    let mut left = dice.u64(0..total);
    let at = pool.iter().position(|(_, weight)| {
        let here = left < u64::from(*weight);
        left = left.saturating_sub(u64::from(*weight));
        here
    })?;
    Some(pool.swap_remove(at).0)
}
