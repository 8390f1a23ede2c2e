//! One worker, two processes: what the one that leaves was lent goes to the one that takes its place, but for what it
//! needs to bring its own requests to their end. What the heir was told that is kept falls, and never rises; what a process
//! before both of them frees goes first to those who are still in line in the one that leaves, for they cannot go elsewhere.
//! It does not run out by itself, because the heir answers for it: the heir counts it as used, and has it ended when the
//! time of what the heir was lent is over.
//!
//! The sum of both is never more than the worker was lent: the old process keeps to its part before it tells of it, and
//! the heir takes nothing before it was told.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use forebay_proto::{ModelId, limits, wire};
use prost::Message as _;
use tokio::time::Instant;

use super::{Inner, Leases, book::Lent};
use crate::{
    live::{LiveCell, Route},
    pool::Leased,
};

/// What a process keeps that leaves.
#[derive(Debug, Default)]
pub(super) struct Leaving {
    kept: BTreeMap<ModelId, u32>,
    /// What the heir was told that is kept: with what a process before this one still keeps, for which the heir answers
    /// from now on.
    told: BTreeMap<ModelId, u32>,
    /// When what runs is to end, if that was said.
    ends: Option<Instant>,
}

impl Leases {
    /// Another process takes this one's place: keeps what is needed for what is in flight and in line, and says what is
    /// left.
    pub(crate) fn leave(&self, live: &LiveCell) -> Vec<u8> {
        let mut inner = self.inner.lock();
        let now = self.born.elapsed();
        let expires = inner.book.until().saturating_sub(now);
        let linger = inner.book.end().saturating_sub(inner.book.until());
        let mut leases = Vec::new();
        let (mut kept, mut told) = (BTreeMap::new(), BTreeMap::new());
        for route in fleet_wide(live) {
            let id = &route.model.id;
            let lent = inner.book.lent(id).unwrap_or_default();
            let keeps = needed(&route);
            let both = keeps.saturating_add(inner.kept_before(id));
            kept.insert(id.clone(), keeps);
            told.insert(id.clone(), both);
            leases.push(wire::HandedLease {
                model: id.to_string(),
                size: lent.size,
                floor: lent.floor,
                expires_millis: u64::try_from(expires.as_millis()).unwrap_or(u64::MAX),
                kept: both,
                linger_millis: u64::try_from(linger.as_millis()).unwrap_or(u64::MAX),
            });
        }
        inner.leaving = Some(Leaving {
            kept,
            told,
            ends: None,
        });
        // First kept to, then told.
        self.tell(&inner, live);
        wire::HandedLeases { leases }.encode_to_vec()
    }

    /// What a process that leaves needs by now, if that is less than it was.
    pub(crate) fn leave_more(&self, live: &LiveCell) -> Option<Vec<u8>> {
        let mut inner = self.inner.lock();
        let inner = &mut *inner;
        let leaving = inner.leaving.as_mut()?;
        let (mut leases, mut changed) = (Vec::new(), false);
        for route in fleet_wide(live) {
            let id = &route.model.id;
            let (Some(kept), Some(told)) = (leaving.kept.get_mut(id), leaving.told.get_mut(id))
            else {
                continue;
            };
            let before = inner.elsewhere.get(id).copied().unwrap_or(0);
            let keeps = keeps(*kept, told.saturating_sub(before), wanted(&route));
            changed |= keeps != *kept;
            *kept = keeps;
            let both = kept.saturating_add(before);
            if both < *told {
                *told = both;
                leases.push(wire::HandedLease {
                    model: id.to_string(),
                    kept: both,
                    ..wire::HandedLease::default()
                });
            }
        }
        if changed || !leases.is_empty() {
            self.tell(inner, live);
        }
        (!leases.is_empty()).then(|| wire::HandedLeases { leases }.encode_to_vec())
    }

    /// What still runs of a process that leaves is to end, after this time: nobody answers for it any more.
    pub(crate) fn leave_within(&self, live: &LiveCell, time: Duration) {
        let mut inner = self.inner.lock();
        let Some(leaving) = &mut inner.leaving else {
            return;
        };
        let ends = Instant::now() + time;
        leaving.ends = Some(leaving.ends.map_or(ends, |before| before.min(ends)));
        self.tell(&inner, live);
    }

    /// How long what runs goes on when nobody answers for it.
    pub(crate) fn linger(&self) -> Duration {
        let inner = self.inner.lock();
        inner.book.end().saturating_sub(inner.book.until())
    }

    /// The process before this one accepts no more: this one has what that was lent, but for what it keeps. It was asked at
    /// this time. With nothing it had nothing, or is no more.
    pub(crate) fn take_over(&self, handed: &[u8], asked: Instant, live: &LiveCell) {
        let mut inner = self.inner.lock();
        inner.beside_another = false;
        let asked = asked.saturating_duration_since(self.born);
        for lease in read(handed) {
            let Ok(model) = ModelId::new(&lease.model) else {
                continue;
            };
            let lent = Lent {
                size: lease.size,
                floor: lease.floor,
            };
            let until = asked.saturating_add(Duration::from_millis(lease.expires_millis));
            let linger = Duration::from_millis(lease.linger_millis);
            inner.book.inherit(&model, lent, (until, linger));
            inner.elsewhere.insert(model, lease.kept);
        }
        self.tell(&inner, live);
    }

    /// The process before this one keeps less.
    pub(crate) fn inherit_more(&self, handed: &[u8], live: &LiveCell) {
        let mut inner = self.inner.lock();
        for lease in read(handed) {
            let known = inner.elsewhere.iter_mut();
            let mut known = known.filter(|(model, _)| model.as_str() == lease.model);
            if let Some((_, kept)) = known.next() {
                *kept = lease.kept.min(*kept);
            }
        }
        self.tell(&inner, live);
    }

    /// The process before this one is no more.
    pub(crate) fn inherit_all(&self, live: &LiveCell) {
        let mut inner = self.inner.lock();
        inner.beside_another = false;
        inner.elsewhere.clear();
        self.tell(&inner, live);
    }

    /// True if what the process before this one keeps is to end: the time of what this one was lent is over, or the heir,
    /// which answers for both, has said so.
    pub(crate) fn answers_no_more(&self) -> bool {
        let inner = self.inner.lock();
        let kept = inner.elsewhere.values().any(|kept| *kept > 0);
        let over = match &inner.leaving {
            Some(leaving) => leaving.ends.is_some_and(|ends| ends <= Instant::now()),
            None => self.born.elapsed() >= inner.book.end(),
        };
        kept && over
    }
}

impl Inner {
    /// What the process before this one may still use.
    fn kept_before(&self, model: &ModelId) -> u32 {
        self.elsewhere.get(model).copied().unwrap_or(0)
    }

    /// What a pool of a process that leaves has; nothing if this one does not.
    pub(super) fn of_leaving(&self, model: &ModelId, now: Instant) -> Option<Leased> {
        let leaving = self.leaving.as_ref()?;
        let kept = leaving.kept.get(model).copied().unwrap_or(0) as usize;
        // What a process before both of them frees may come yet, for as long as the heir was told of it.
        let told = leaving.told.get(model).copied().unwrap_or(0);
        Some(match leaving.ends {
            None => Leased {
                size: kept,
                floor: kept,
                until: now,
                end: now,
                dry: told == 0,
            },
            Some(end) => Leased {
                size: 0,
                floor: 0,
                until: now,
                end,
                dry: true,
            },
        })
    }
}

fn fleet_wide(live: &LiveCell) -> Vec<Arc<Route>> {
    let live = live.load();
    let routes = live.models.values();
    let routes = routes.filter(|route| route.model.pool.is_fleet_wide());
    routes.cloned().collect()
}

/// For what is in flight and in line.
fn needed(route: &Route) -> u32 {
    let used = route.pool.use_of_lease();
    let more = used.waiting.min(used.size.saturating_sub(used.in_flight));
    u32::try_from(used.in_flight + more).unwrap_or(u32::MAX)
}

/// For all that is in flight and in line, whatever there is for it.
fn wanted(route: &Route) -> u32 {
    let used = route.pool.use_of_lease();
    u32::try_from(used.in_flight + used.waiting).unwrap_or(u32::MAX)
}

/// What a process that leaves keeps from now on, of so much that the heir counts as used by it.
fn keeps(kept: u32, counted: u32, wanted: u32) -> u32 {
    wanted.min(kept.max(counted))
}

fn read(handed: &[u8]) -> Vec<wire::HandedLease> {
    let read = wire::HandedLeases::decode(handed).unwrap_or_default();
    let mut leases = read.leases;
    leases.truncate(limits::FLEET_MODELS);
    leases
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_falls_with_the_need_and_rises_only_into_what_the_heir_counts_as_used() {
        // Kept, counted as used by this process, wanted.
        for (kept, counted, wanted, keeps_now) in [
            (6, 6, 6, 6),
            (6, 6, 2, 2),
            (6, 6, 0, 0),
            // In line, with nothing for them: what a process before both has freed.
            (0, 0, 16, 0),
            (0, 3, 16, 3),
            (2, 5, 3, 3),
            // Freed while nobody waits: the heir's.
            (2, 5, 1, 1),
        ] {
            assert_eq!(
                keeps(kept, counted, wanted),
                keeps_now,
                "{kept} {counted} {wanted}"
            );
        }
    }
}
