//! What this worker may use of fleet-wide limits (pools of scope FLEET): keeps what the control plane granted, gives
//! each pool its share, and says what is used. docs/adr/0027 has the whole of it.
//!
//! One lock, held while pools are told their shares, so that two grants cannot cross; never on the request path, and
//! always taken before a pool's. When a share runs out the pool itself sees it (`pool/core/leased.rs`).

mod book;
mod heir;

use std::{collections::BTreeMap, time::Duration};

use forebay_proto::{ModelId, limits, wire};
use parking_lot::Mutex;
use tokio::time::{Instant, sleep, timeout};

pub use self::book::{Book, BookFaults, Grant, Lent, Taken};
use self::heir::Leaving;
use crate::{
    live::LiveCell,
    pool::{LeaseUse, Leased},
};

/// How often it is looked whether nothing is used any more.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// What is granted to this worker. There is exactly one per process.
#[derive(Debug)]
pub struct Leases {
    born: Instant,
    weight: u32,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    book: Book,
    /// What the process before this one may still use.
    elsewhere: BTreeMap<ModelId, u32>,
    /// Another process of this worker may use something that is not known here.
    beside_another: bool,
    /// How long a grant holds, as it was said last.
    ttl: Option<Duration>,
    /// Another process takes this one's place.
    leaving: Option<Leaving>,
    /// Everything is over: the worker ends.
    over: bool,
}

/// What is used of one limit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Use {
    pub(crate) model: ModelId,
    pub(crate) size: u32,
    pub(crate) floor: u32,
    pub(crate) in_flight: u32,
    pub(crate) waiting: u32,
    pub(crate) elsewhere: u32,
}

/// A grant that cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Unreadable;

impl Default for Leases {
    fn default() -> Self {
        Self::new(1)
    }
}

impl Leases {
    /// Nothing is granted. The worker counts for so much where there is not enough for all.
    #[must_use]
    pub fn new(weight: u32) -> Self {
        Self {
            born: Instant::now(),
            weight,
            inner: Mutex::default(),
        }
    }

    /// Another process of this worker serves as well, until [`Self::take_over`].
    pub(crate) fn begin_beside(&self) {
        self.inner.lock().beside_another = true;
    }

    /// A stream begins.
    pub(crate) fn begin(&self) {
        self.inner.lock().book.begin();
    }

    /// How long a grant holds, once that was said.
    pub(crate) fn ttl(&self) -> Option<Duration> {
        self.inner.lock().ttl
    }

    /// Takes a grant and tells the pools.
    pub(crate) fn take(
        &self,
        grant: wire::LeaseGrant,
        live: &LiveCell,
    ) -> Result<Taken, Unreadable> {
        let grant = read(grant)?;
        let mut inner = self.inner.lock();
        if inner.over {
            return Ok(Taken::Stale);
        }
        let ttl = grant.ttl;
        let taken = inner.book.take(self.born.elapsed(), grant);
        if taken != Taken::Stale {
            inner.ttl = Some(ttl);
            self.tell(&inner, live);
        }
        Ok(taken)
    }

    /// Gives every pool its share: to be called when pools or shares changed.
    pub(crate) fn sync(&self, live: &LiveCell) {
        self.tell(&self.inner.lock(), live);
    }

    fn tell(&self, inner: &Inner, live: &LiveCell) {
        let retired = live.retired();
        let now = live.load();
        let fleet_wide =
            |route: &&std::sync::Arc<crate::live::Route>| route.model.pool.is_fleet_wide();
        for route in now.models.values().filter(fleet_wide) {
            let id = &route.model.id;
            let older = retired.iter().filter(|pool| pool.model() == id);
            let older: usize = older.map(|pool| pool.use_of_lease().in_flight).sum();
            let before = inner.elsewhere.get(id).copied().unwrap_or(0) as usize;
            // What others of this worker use of it is not this pool's.
            let less = |whole: u32| (whole as usize).saturating_sub(older + before);
            if let Some(kept) = inner.of_leaving(id, Instant::now()) {
                route.pool.set_lease(Some(&kept));
                continue;
            }
            let lent = inner.book.lent(id);
            let leased = lent.map(|lent| Leased {
                size: less(lent.size),
                floor: less(lent.floor),
                until: self.born + inner.book.until(),
                end: self.born + inner.book.end(),
                dry: false,
            });
            route.pool.set_lease(leased.as_ref());
        }
    }

    /// What is used, in order of id.
    pub(crate) fn uses(&self, live: &LiveCell) -> Vec<Use> {
        let inner = self.inner.lock();
        let now = self.born.elapsed();
        let retired = live.retired();
        let in_force = live.load();
        let routes = in_force.models.values();
        let fleet_wide = routes.filter(|route| route.model.pool.is_fleet_wide());
        let mut uses: BTreeMap<ModelId, Use> = BTreeMap::new();
        for route in fleet_wide.take(limits::FLEET_MODELS) {
            let id = &route.model.id;
            let mut used = route.pool.use_of_lease();
            for older in retired.iter().filter(|pool| pool.model() == id) {
                add(&mut used, older.use_of_lease());
            }
            let elsewhere = inner.elsewhere.get(id).copied().unwrap_or(0);
            let lent = inner.book.lent(id).unwrap_or_default();
            let lasting = number(used.lasting);
            let used = Use {
                model: id.clone(),
                size: inner.book.size_at(now, id).max(lasting),
                // What does not end with the lease is as sure as the floor.
                floor: lent.floor.max(lasting),
                in_flight: number(used.in_flight).saturating_add(elsewhere),
                waiting: number(used.waiting),
                elsewhere,
            };
            uses.insert(id.clone(), used);
        }
        // The model is no more, and yet requests for it are.
        for pool in &retired {
            let used = pool.use_of_lease();
            if !used.fleet_wide || used.in_flight == 0 || uses.contains_key(pool.model()) {
                continue;
            }
            let in_flight = number(used.in_flight);
            let used = Use {
                model: pool.model().clone(),
                size: in_flight,
                floor: in_flight,
                in_flight,
                waiting: 0,
                elsewhere: 0,
            };
            uses.insert(pool.model().clone(), used);
        }
        uses.into_values().collect()
    }

    /// A report of these, made now.
    pub(crate) fn report(&self, uses: &[Use], live: &LiveCell, ending: bool) -> wire::LeaseReport {
        let (number, grant, alone) = {
            let mut inner = self.inner.lock();
            let (number, grant) = inner.book.report(self.born.elapsed());
            (number, grant, !inner.beside_another)
        };
        let in_force = live.load();
        let own = in_force.retained.iter();
        let own = own.filter_map(|id| in_force.models.get(id));
        let own = own.filter(|route| !route.model.pool.is_fleet_wide());
        wire::LeaseReport {
            number,
            grant,
            applied: in_force.position.as_ref().map(Into::into),
            uses: uses.iter().map(Into::into).collect(),
            own_pools: own
                .take(limits::FLEET_MODELS)
                .map(|route| wire::OwnPool {
                    model: route.model.id.to_string(),
                    size: route.model.pool.size.get(),
                })
                .collect(),
            done: false,
            weight: self.weight,
            alone,
            ending,
        }
    }

    /// The worker's last request is over: nothing is let in any more. True if that is worth telling.
    pub(crate) fn end(&self, live: &LiveCell) {
        let mut inner = self.inner.lock();
        inner.over = true;
        inner.book.drop_all();
        self.tell(&inner, live);
    }

    /// Waits until nothing counts as used any more, but no longer than this.
    pub(crate) async fn settled(&self, live: &LiveCell, within: Duration) {
        let used = || {
            let pools = live.all_pools();
            pools.iter().any(|pool| {
                let used = pool.use_of_lease();
                used.fleet_wide && used.in_flight > 0
            })
        };
        let settled = async {
            while used() {
                sleep(LOOK_EVERY).await;
            }
        };
        drop(timeout(within, settled).await);
    }

    /// True once everything is over.
    pub(crate) fn is_over(&self) -> bool {
        self.inner.lock().over
    }

    /// The last report.
    pub(crate) fn farewell(&self) -> wire::LeaseReport {
        let (number, grant) = self.inner.lock().book.report(self.born.elapsed());
        wire::LeaseReport {
            number,
            grant,
            done: true,
            weight: self.weight,
            ..wire::LeaseReport::default()
        }
    }
}

impl From<&Use> for wire::LeaseUse {
    fn from(used: &Use) -> Self {
        Self {
            model: used.model.to_string(),
            size: used.size,
            floor: used.floor,
            in_flight: used.in_flight,
            waiting: used.waiting,
            elsewhere: used.elsewhere,
        }
    }
}

fn add(used: &mut LeaseUse, older: LeaseUse) {
    used.in_flight += older.in_flight;
    used.waiting += older.waiting;
    // They are of a pool that is no more, and are not ended.
    used.lasting += older.in_flight;
}

fn number(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

fn read(wire: wire::LeaseGrant) -> Result<Grant, Unreadable> {
    if wire.shares.len() > limits::FLEET_MODELS {
        return Err(Unreadable);
    }
    let ttl = wire.ttl.and_then(|ttl| Duration::try_from(ttl).ok());
    let ttl = ttl.filter(|ttl| limits::LEASE_TTL.contains(ttl));
    let linger = wire
        .linger
        .and_then(|linger| Duration::try_from(linger).ok());
    let linger = linger.filter(|linger| limits::LEASE_LINGER.contains(linger));
    let shares = wire.shares.into_iter().map(|share| {
        let model = ModelId::new(&share.model).map_err(|_| Unreadable)?;
        let (size, floor) = (share.size, share.floor);
        Ok((model, Lent { size, floor }))
    });
    Ok(Grant {
        number: wire.number,
        answers: wire.answers,
        ttl: ttl.ok_or(Unreadable)?,
        linger: linger.ok_or(Unreadable)?,
        shares: shares.collect::<Result<_, Unreadable>>()?,
    })
}
