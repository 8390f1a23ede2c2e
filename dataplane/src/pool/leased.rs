//! The pool of a fleet-wide limit, as the leases know it: what is lent to it, and what it uses and wants.

use tokio::time::Instant;

use super::{Pool, core::Share};

/// What of a fleet-wide limit is lent to a pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Leased {
    /// Most requests in flight.
    pub(crate) size: usize,
    /// The same when it has run out.
    pub(crate) floor: usize,
    /// When that is.
    pub(crate) until: Instant,
    /// When what runs beyond the floor is ended.
    pub(crate) end: Instant,
    /// It is nothing, and stays so.
    pub(crate) dry: bool,
}

/// What a pool uses of a fleet-wide limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct LeaseUse {
    /// Most requests in flight now.
    pub(crate) size: usize,
    /// Requests in flight, those that were cut short a moment ago included.
    pub(crate) in_flight: usize,
    /// Requests that wait and could be served.
    pub(crate) waiting: usize,
    /// Of those in flight: what does not end with the lease.
    pub(crate) lasting: usize,
    /// There is such a limit.
    pub(crate) fleet_wide: bool,
}

impl Pool {
    /// What of the fleet-wide limit is lent to it from now on; nothing if that is nothing. A pool whose size is its own is
    /// left as it is.
    pub(crate) fn set_lease(&self, lease: Option<&Leased>) {
        let share = lease.map(|lease| Share {
            size: lease.size,
            floor: lease.floor,
            until: self.desk.at(lease.until),
            end: self.desk.at(lease.end),
            dry: lease.dry,
        });
        self.desk
            .change(|inner, now| inner.core.set_share(now, share));
        self.common.budget.note_change();
    }

    /// What it uses of the fleet-wide limit, and wants.
    pub(crate) fn use_of_lease(&self) -> LeaseUse {
        self.desk.with(|inner, now| {
            inner.core.lapse_now(now);
            let census = inner.core.census(now);
            let cap = inner.core.cap().max(census.in_flight);
            LeaseUse {
                size: inner.core.size(),
                in_flight: census.in_flight + census.cooling,
                // What the worker's budget has no room for is of no use here.
                waiting: census.wanting.min(cap - census.in_flight),
                lasting: census.lasting,
                fleet_wide: inner.params.is_fleet_wide(),
            }
        })
    }
}
