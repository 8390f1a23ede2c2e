//! An endpoint that changed: its heirs are warmed before its connections go, one for one.

use std::time::Duration;

use super::{
    Connection, Core, Effect, Standing,
    origin::{Origin, Phase, lighter},
};
use crate::pool::counters::{CloseReason, OpenReason};

/// How long what changed may serve while its heirs are warmed.
pub(super) const HANDOVER: Duration = Duration::from_secs(5);
/// Most of them dialled at a time.
const AT_ONCE: usize = 8;

impl<C: Connection, W> Core<C, W> {
    /// So many connections are to be made as rest at endpoints that leave.
    pub(super) fn begin_handover(&mut self) {
        self.owed = self.leaving();
    }

    /// Connections that rest at endpoints that leave.
    fn leaving(&self) -> usize {
        let leaving = self.origins.iter().filter(|origin| leaves(origin));
        leaving.map(Origin::resting).sum()
    }

    /// Makes what is owed, and closes in turn what it replaces.
    pub(super) fn hand_over(&mut self, now: Duration, effects: &mut Vec<Effect<C, W>>) {
        for origin in &mut self.origins {
            if matches!(origin.phase, Phase::Leaving(until) if until <= now) {
                origin.phase = Phase::Retired;
            }
        }
        self.owed = self.owed.min(self.leaving() + self.replacing());
        if self.leaving() == 0 || self.owed == 0 || self.retired {
            self.end_handover();
            return;
        }
        while self.leaving() > self.owed && self.close_leaving(effects) {}
        // In a full pool each dial costs one that serves: the first has to show that there is somebody.
        let reached = self.origins.iter().any(|o| is_heir(o) && o.open() > 0);
        let room = self.open() + AT_ONCE <= self.limit();
        let at_once = if reached || room { AT_ONCE } else { 1 };
        while self.replacing() < self.owed.min(at_once) {
            let heirs = self
                .origins
                .iter()
                .filter(|origin| is_heir(origin) && self.may_dial(now, origin));
            let heir = heirs.min_by(|a, b| {
                let open = |origin: &Origin<C>| origin.open() + self.connecting_to(origin.id);
                lighter(open(a), a.weight, open(b), b.weight)
            });
            let Some(heir) = heir.map(|origin| origin.id) else {
                return;
            };
            while self.open() >= self.limit() {
                if !self.close_leaving(effects) {
                    return;
                }
            }
            self.connect_to(now, heir, OpenReason::Replace, effects);
        }
    }

    /// Connects under way for what is owed.
    fn replacing(&self) -> usize {
        let connecting = self.connecting.iter();
        let replacing = connecting.filter(|connect| connect.reason == OpenReason::Replace);
        replacing.count()
    }

    /// What is under way is still waited for; nothing more is owed.
    fn end_handover(&mut self) {
        self.owed = self.owed.min(self.replacing());
        for origin in self.origins.iter_mut().filter(|origin| leaves(origin)) {
            origin.phase = Phase::Retired;
        }
    }

    /// Closes the coldest connection at an endpoint that leaves.
    pub(super) fn close_leaving(&mut self, effects: &mut Vec<Effect<C, W>>) -> bool {
        let leaving = self
            .origins
            .iter_mut()
            .filter(|o| leaves(o) && o.resting() > 0);
        let Some(conn) = leaving
            .min_by_key(|origin| origin.coldest())
            .and_then(Origin::pop_coldest)
        else {
            return false;
        };
        self.counters.count_closed(CloseReason::Removed);
        effects.push(Effect::Close { conn });
        true
    }
}

fn is_heir<C>(origin: &Origin<C>) -> bool {
    origin.is_current() && origin.standing == Standing::Heir
}

fn leaves<C>(origin: &Origin<C>) -> bool {
    matches!(origin.phase, Phase::Leaving(_))
}
