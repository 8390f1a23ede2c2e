//! The pool of a fleet-wide limit: its size is what is lent to it of the limit, for a time. Pure: the time is an argument.
//!
//! ```text
//!   granted ──until──▶ lapsed: the floor is the size;   ──end──▶ what runs beyond the floor is ended, the newest first
//!      ▲                what runs beyond it goes on
//!      └───────────────────────── granted anew ◀────────────────┘
//! ```
//!
//! That a share has run out is seen with each transition, and not by a timer: a process that was stopped and goes on
//! lets nobody in by what it held before. A slot whose request was cut short counts as used for a while: the engine may
//! not know yet.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use super::{Connection, Core, Effect, Outcome, Refused, Shape};
use crate::pool::{counters::CloseReason, revocation::Revocation};

/// How long an engine may take to see that a request was cut short: the same that a client's own end takes at most.
pub(super) const COOLS: Duration = Duration::from_millis(250);

/// What is lent to a pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::pool) struct Share {
    /// Most requests in flight.
    pub(in crate::pool) size: usize,
    /// The same when it has run out.
    pub(in crate::pool) floor: usize,
    /// When that is.
    pub(in crate::pool) until: Duration,
    /// When what runs beyond the floor is ended.
    pub(in crate::pool) end: Duration,
    /// It is nothing, and stays so: nobody has anything to wait for.
    pub(in crate::pool) dry: bool,
}

impl Share {
    fn size_at(&self, now: Duration) -> usize {
        match now < self.until {
            true => self.size,
            false => self.floor.min(self.size),
        }
    }
}

/// What a pool has of a fleet-wide limit.
#[derive(Debug, Default)]
pub(super) struct Leased {
    /// Nothing was ever granted, or nothing is any more.
    share: Option<Share>,
    /// Its requests in flight, the newest last. Those that were told to end have nothing left to be told with.
    lent: BTreeMap<u64, Option<Revocation>>,
    /// When slots of requests that were cut short are free.
    cooling: VecDeque<Duration>,
}

impl Leased {
    fn size_at(&self, now: Duration) -> usize {
        self.share.map_or(0, |share| share.size_at(now))
    }
}

impl<C: Connection, W> Core<C, W> {
    /// Another share of the limit from now on.
    pub(in crate::pool) fn set_share(
        &mut self,
        now: Duration,
        share: Option<Share>,
    ) -> Vec<Effect<C, W>> {
        let Some(leased) = &mut self.leased else {
            return Vec::new();
        };
        leased.share = share;
        let mut effects = self.pump(now);
        self.revoke_lapsed(now, &mut effects);
        effects
    }

    /// The new shape, with the size that holds now.
    pub(super) fn lend_to(&mut self, now: Duration, shape: Shape) -> Shape {
        self.leased = match (self.leased.take(), shape.fleet_wide) {
            (_, false) => None,
            (leased, true) => Some(leased.unwrap_or_default()),
        };
        let size = self.leased.as_ref().map(|leased| leased.size_at(now));
        Shape {
            size: size.map_or(shape.size, |size| size.min(shape.most)),
            ..shape
        }
    }

    /// The same, for one who looks.
    pub(in crate::pool) fn lapse_now(&mut self, now: Duration) {
        self.lapse(now);
    }

    /// What is lent now, and when it runs out.
    pub(in crate::pool) fn share(&self) -> Option<Share> {
        self.leased.as_ref()?.share
    }

    /// The size is what is lent now.
    pub(super) fn lapse(&mut self, now: Duration) {
        let Some(leased) = &mut self.leased else {
            return;
        };
        while leased.cooling.front().is_some_and(|free| *free <= now) {
            leased.cooling.pop_front();
        }
        let (size, before) = (leased.size_at(now).min(self.shape.most), self.shape.size);
        if size == before {
            return;
        }
        self.shape.size = size;
        if let Some((adaptive, params)) = self.adaptive.as_mut().zip(self.shape.adaptive) {
            adaptive.reshape(params, before, size);
        }
    }

    /// A request begins.
    pub(super) fn lend(&mut self) -> Option<(u64, Revocation)> {
        self.leased.as_ref()?;
        let id = self.next_id();
        let revocation = Revocation::default();
        let leased = self.leased.as_mut()?;
        leased.lent.insert(id, Some(revocation.clone()));
        Some((id, revocation))
    }

    /// A request is over.
    pub(super) fn take_back(
        &mut self,
        now: Duration,
        lent: Option<(u64, Revocation)>,
        outcome: Outcome,
    ) {
        let Some(leased) = &mut self.leased else {
            return;
        };
        if let Some((id, _)) = lent {
            leased.lent.remove(&id);
        }
        let cut_short = match outcome {
            Outcome::Broken(reason) => reason != CloseReason::Upstream,
            Outcome::Aborted => true,
            Outcome::Reusable | Outcome::Unused | Outcome::Finished | Outcome::Declined => false,
        };
        if cut_short {
            leased.cooling.push_back(now + COOLS);
        }
    }

    /// Ends what runs beyond the floor when the time for that has come, the newest first: it has least to lose.
    pub(super) fn revoke_lapsed(&mut self, now: Duration, effects: &mut Vec<Effect<C, W>>) {
        // Of a model that was removed there is no limit any more.
        let (in_flight, retired) = (self.in_flight(), self.retired);
        let Some(leased) = self.leased.as_mut().filter(|_| !retired) else {
            return;
        };
        let Some(share) = leased.share.filter(|share| now >= share.end) else {
            return;
        };
        let told = leased.lent.values().filter(|lent| lent.is_none()).count();
        let excess = in_flight.saturating_sub(share.size_at(now) + told);
        let newest = leased.lent.values_mut().rev();
        let revoked = newest.filter_map(Option::take).take(excess);
        effects.extend(revoked.map(Effect::Revoke));
    }

    /// Sends away whoever waits for a share that will never come.
    pub(super) fn refuse_dry(&mut self, now: Duration, effects: &mut Vec<Effect<C, W>>) {
        let share = self.leased.as_ref().and_then(|leased| leased.share);
        if !share.is_some_and(|share| share.dry) {
            return;
        }
        for waiter in self.line.take_those_who_waited(now, Duration::ZERO) {
            let (waiter, why) = (waiter.waiter, Refused::Dry);
            self.counters.count_refused(&why);
            effects.push(Effect::Refuse { waiter, why });
        }
    }

    /// Slots that count as used although nothing is in flight on them.
    pub(super) fn cooling(&self) -> usize {
        self.leased
            .as_ref()
            .map_or(0, |leased| leased.cooling.len())
    }

    /// Requests that began before the limit was fleet-wide. They are not ended.
    pub(super) fn lasting(&self) -> usize {
        let leased = self.leased.as_ref();
        leased.map_or(0, |leased| {
            self.in_flight().saturating_sub(leased.lent.len())
        })
    }
}
