//! When the control plane is told what is used of fleet-wide limits: at once where that lets somebody else have more,
//! or this worker needs more; otherwise often enough that nothing runs out. It looks every so often, which costs a look
//! at each such pool.

use std::{sync::Arc, time::Duration};

use forebay_proto::{Position, wire};
use tokio::time::Instant;

use crate::{
    leases::{Leases, Taken, Unreadable, Use},
    live::LiveCell,
};

/// Since this version of the protocol there are leases.
pub(super) const LEASES: u32 = 4;
/// How often it is looked.
pub(super) const LOOK_EVERY: Duration = Duration::from_millis(50);
/// What is of less weight is not told more often than this.
const CALMLY: Duration = Duration::from_millis(200);
/// Until the control plane says how long a grant holds.
const RENEW: Duration = Duration::from_secs(2);
/// Reports within the time that a grant holds: some may be lost.
const RENEWALS: u32 = 5;

/// What follows the leases on one stream.
#[derive(Debug)]
pub(super) struct LeaseFollower {
    leases: Arc<Leases>,
    /// What was told last, under which configuration, and when.
    told: Option<Told>,
    /// The control plane speaks of leases.
    spoken: bool,
    /// A grant changed something: that is to be told.
    due: bool,
    next: Instant,
}

#[derive(Debug)]
struct Told {
    uses: Vec<Use>,
    applied: Option<Position>,
    ending: bool,
    at: Instant,
}

impl LeaseFollower {
    /// A stream begins.
    pub(super) fn new(leases: Arc<Leases>) -> Self {
        leases.begin();
        Self {
            leases,
            told: None,
            spoken: false,
            due: false,
            next: Instant::now(),
        }
    }

    /// This version is spoken.
    pub(super) fn welcome(&mut self, protocol: u32) {
        self.spoken = protocol >= LEASES;
    }

    /// When to look again; nothing if nobody wants to know.
    pub(super) fn next(&self) -> Option<Instant> {
        self.spoken.then_some(self.next)
    }

    /// Takes a grant. What it changed is told at the next look.
    pub(super) fn take(
        &mut self,
        grant: wire::LeaseGrant,
        live: &LiveCell,
    ) -> Result<(), Unreadable> {
        if self.leases.take(grant, live)? == Taken::Changed {
            self.due = true;
            self.next = Instant::now();
        }
        Ok(())
    }

    /// What is to be told now, if anything is.
    pub(super) fn look(&mut self, live: &LiveCell, ending: bool) -> Option<wire::LeaseReport> {
        let now = Instant::now();
        self.next = now + LOOK_EVERY;
        let uses = self.leases.uses(live);
        let applied = live.load().position.clone();
        let renew = self.leases.ttl().map_or(RENEW, |ttl| ttl / RENEWALS);
        let worth = match &self.told {
            None => true,
            Some(told) => {
                let since = now.saturating_duration_since(told.at);
                let nothing = uses.is_empty() && told.uses.is_empty();
                told.applied != applied
                    || told.ending != ending
                    || (!nothing && (self.due || since >= renew || told.is_news(&uses, since)))
            }
        };
        if !worth {
            return None;
        }
        // What others of this worker used of it may be free by now.
        self.leases.sync(live);
        let report = self.leases.report(&uses, live, ending);
        self.due = false;
        self.told = Some(Told {
            uses,
            applied,
            ending,
            at: now,
        });
        Some(report)
    }

    /// The last word, if the worker ends.
    pub(super) fn farewell(&self) -> Option<wire::LeaseReport> {
        let ends = self.spoken && self.leases.is_over();
        ends.then(|| self.leases.farewell())
    }
}

impl Told {
    fn is_news(&self, uses: &[Use], since: Duration) -> bool {
        self.uses.len() != uses.len()
            || self.uses.iter().zip(uses).any(|(told, now)| {
                let freed = told.in_flight > told.size && now.in_flight < told.in_flight;
                let want = |used: &Use| used.in_flight.saturating_add(used.waiting);
                let short = now.waiting > 0 && told.waiting == 0 && now.in_flight >= now.size;
                let moved = want(now).abs_diff(want(told)) > (told.size / 8).max(1);
                told.model != now.model
                    || told.size != now.size
                    || freed
                    || short
                    || (moved && since >= CALMLY)
            })
    }
}

#[cfg(test)]
mod tests {
    use forebay_proto::ModelId;

    use super::*;

    fn used(size: u32, in_flight: u32, waiting: u32) -> Vec<Use> {
        vec![Use {
            model: ModelId::new("m").unwrap(),
            size,
            floor: 1,
            in_flight,
            waiting,
            elsewhere: 0,
        }]
    }

    #[test]
    fn what_others_wait_for_is_told_at_once_and_the_rest_calmly() {
        let told = |size, in_flight, waiting| Told {
            uses: used(size, in_flight, waiting),
            applied: None,
            ending: false,
            at: Instant::now(),
        };
        let at_once = Duration::ZERO;
        assert!(told(10, 20, 0).is_news(&used(10, 19, 0), at_once), "freed");
        assert!(!told(20, 20, 0).is_news(&used(20, 19, 0), at_once));
        assert!(told(20, 20, 0).is_news(&used(20, 20, 1), at_once), "short");
        assert!(!told(20, 20, 1).is_news(&used(20, 20, 2), at_once));
        assert!(told(20, 20, 0).is_news(&used(1, 20, 0), at_once), "lapsed");
        assert!(!told(80, 20, 0).is_news(&used(80, 70, 0), at_once));
        assert!(told(80, 20, 0).is_news(&used(80, 70, 0), CALMLY));
        assert!(!told(80, 20, 0).is_news(&used(80, 25, 0), CALMLY));
        assert!(told(80, 20, 0).is_news(&[], at_once));
    }
}
