//! Fleet-wide limits, lent to workers by what they need. docs/adr/0027 has the whole of it: states, invariants, and what
//! happens at each failure.
//!
//! What is decided is in `machine.rs` (pure), how much to whom in `allot.rs` (pure), what is known of a worker in
//! `holder.rs` (pure). Sessions pass reports and grants on (`session/leases.rs`), over a board (`board.rs`) where several
//! control planes can meet, as they do in `shared/`; only the one that leads decides. This file is the task that does.

#![cfg_attr(
    not(feature = "simulation"),
    allow(
        unreachable_pub,
        reason = "what the model test plays is public with the feature that it needs"
    )
)]

pub(crate) mod allot;
mod asking;
pub(crate) mod board;
mod holder;
mod machine;
pub(crate) mod metrics;
pub(crate) mod shared;
mod view;
mod words;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use forebay_proto::{ModelId, PoolScope, Position, Revision};
use parking_lot::Mutex;
use tokio::{
    sync::watch,
    time::{Instant, sleep, timeout},
};
use tokio_util::sync::CancellationToken;

pub use self::machine::LeaseSettings;
pub(crate) use self::{
    board::{Board, LocalBoard},
    machine::Forgot,
    shared::EtcdBoard,
};
pub use self::{
    machine::{Limit, Machine, MachineFaults},
    words::{Grant, Origin, Report, Standing, Table},
};
#[cfg(feature = "simulation")]
pub use self::{
    shared::{
        letters::{Call, Lent, Letter},
        lines::{Heard, Lines},
        own::{Own, OwnFaults},
    },
    words::{Share, Use},
};
use crate::{cluster::Leadership, registry::PoolOf, session::Offer};

/// The shortest time between two divisions.
const SHORTEST: Duration = Duration::from_millis(20);
/// The longest, while there are limits: time runs out.
const LONGEST: Duration = Duration::from_millis(250);
/// The longest without any.
const IDLE: Duration = Duration::from_secs(5);
/// How long the disk, or the store of several, may take.
const KEEP_WITHIN: Duration = Duration::from_secs(1);
/// The store knows of another one that decides, and this one will hear of it.
const FENCED: Duration = Duration::from_millis(250);

/// The leases, as sessions and services know them.
#[derive(Debug)]
pub(crate) struct Leases {
    pub(crate) board: Arc<dyn Board>,
    born: Instant,
    /// Nothing while another control plane decides, or before what is on record was read.
    machine: Mutex<Option<Machine>>,
    settings: LeaseSettings,
    /// The registry as this process found it.
    found: Position,
    answers: asking::Answers,
}

impl Leases {
    /// Over this board, for the registry that was found.
    pub(crate) fn new(board: Arc<dyn Board>, settings: LeaseSettings, found: Position) -> Self {
        Self {
            board,
            born: Instant::now(),
            machine: Mutex::new(None),
            settings,
            found,
            answers: asking::Answers::default(),
        }
    }

    /// Looks at them, if this control plane decides.
    pub(crate) fn look<T>(&self, look: impl FnOnce(&Machine, Duration) -> T) -> Option<T> {
        let machine = self.machine.lock();
        machine
            .as_ref()
            .map(|machine| look(machine, self.born.elapsed()))
    }

    fn with<T>(&self, change: impl FnOnce(&mut Machine, Duration) -> T) -> Option<T> {
        let mut machine = self.machine.lock();
        let now = self.born.elapsed();
        machine.as_mut().map(|machine| change(machine, now))
    }

    /// Decides, for as long as this control plane leads, until told to stop.
    pub(crate) async fn run(
        self: Arc<Self>,
        mut offers: watch::Receiver<Offer>,
        mut leads: watch::Receiver<Leadership>,
        stopping: CancellationToken,
    ) {
        loop {
            let leadership = *leads.borrow_and_update();
            let stop = match leadership {
                Leadership::Leader { term } => {
                    let lead = async {
                        let over = self.lead(term, &mut offers, leads.clone()).await;
                        if over == Over::Fenced {
                            sleep(FENCED).await;
                        }
                        over
                    };
                    tokio::select! {
                        over = lead => over == Over::Stopped,
                        () = stopping.cancelled() => true,
                    }
                }
                Leadership::Follower => tokio::select! {
                    changed = leads.changed() => changed.is_err(),
                    () = stopping.cancelled() => true,
                },
            };
            *self.machine.lock() = None;
            self.board.end();
            if stop {
                return;
            }
        }
    }

    /// Decides under one term.
    async fn lead(
        &self,
        term: u64,
        offers: &mut watch::Receiver<Offer>,
        mut leads: watch::Receiver<Leadership>,
    ) -> Over {
        let table = tokio::select! {
            table = self.on_record(term) => table,
            () = led_by_another(&mut leads, term) => return Over::Fenced,
        };
        let mut seen = Configured::default();
        let offer = offers.borrow_and_update().clone();
        let origin = self.origin(&offer);
        let machine = Machine::new(
            self.born.elapsed(),
            self.settings,
            (table, origin),
            MachineFaults::default(),
        );
        if !machine.is_whole() {
            tracing::warn!(
                "who holds leases is not on record for this store: nothing grows until what may have been lent before has \
                 run out"
            );
        }
        *self.machine.lock() = Some(machine);
        self.configure(&mut seen, offer);
        // That nobody holds anything of a new store is on record before anything is registered.
        if !self.decide(term).await {
            return Over::Fenced;
        }
        loop {
            let idle = self.look(|machine, _| machine.is_idle()).unwrap_or(true);
            let longest = if idle { IDLE } else { LONGEST };
            tokio::select! {
                news = self.board.demands() => {
                    self.with(|machine, now| {
                        for (worker, standing) in &news {
                            machine.hear(now, worker, standing);
                        }
                    });
                }
                changed = offers.changed() => {
                    let offer = offers.borrow_and_update().clone();
                    self.configure(&mut seen, offer);
                    if changed.is_err() {
                        return Over::Stopped;
                    }
                }
                () = sleep(longest) => {}
                () = led_by_another(&mut leads, term) => return Over::Fenced,
            }
            let began = Instant::now();
            if self.reply_all(term).await.is_err() || !self.decide(term).await {
                return Over::Fenced;
            }
            // However much there is to divide: no more than a quarter of a core.
            sleep((began.elapsed() * 3).clamp(SHORTEST, LONGEST)).await;
        }
    }

    /// The registry whose limits are offered.
    fn origin(&self, offer: &Offer) -> Origin {
        let mut targets = offer.targets();
        let epoch = targets.next().map_or_else(
            || self.found.epoch.clone(),
            |target| target.published.position.epoch.clone(),
        );
        // The first revision is that of the store itself.
        let empty = self.found.revision <= Revision::ZERO.next();
        Origin {
            fresh: empty && self.found.epoch == epoch,
            epoch,
        }
    }

    /// One division: what is to be on record goes there first. False if another control plane decides by now.
    async fn decide(&self, term: u64) -> bool {
        let to_keep = self.with(|machine, now| {
            machine.pass(now);
            machine.to_keep()
        });
        // What is on record already does not wait for the disk.
        if !self.allot(term).await {
            return false;
        }
        if let Some(table) = to_keep.flatten() {
            let kept = timeout(KEEP_WITHIN, self.board.keep(term, table.clone())).await;
            match kept {
                Ok(Ok(())) => drop(self.with(|machine, _| machine.kept(table))),
                Ok(Err(board::TableError::Fenced(_))) => return false,
                Ok(Err(error)) => tracing::error!(
                    %error,
                    "who holds leases cannot be put on record: nobody new gets any, the others keep theirs"
                ),
                Err(_) => tracing::error!(
                    "who holds leases was not put on record in time: nobody new gets any, the others keep theirs"
                ),
            }
        }
        self.allot(term).await
    }

    async fn allot(&self, term: u64) -> bool {
        let grants = self.with(Machine::publish).unwrap_or_default();
        if grants.is_empty() {
            return true;
        }
        let allotted = self.board.allot(term, grants).await;
        allotted
            .inspect_err(|error| tracing::warn!(%error, "leases are not decided here any more"))
            .is_ok()
    }

    /// What is on record. Without it nobody is known who may hold anything: while it cannot be read, nothing is decided.
    async fn on_record(&self, term: u64) -> Table {
        loop {
            match self.board.begin(term).await {
                Ok(table) => return table.unwrap_or_default(),
                Err(error) => tracing::error!(%error, "no leases are decided"),
            }
            sleep(KEEP_WITHIN).await;
        }
    }

    fn configure(&self, seen: &mut Configured, offer: Offer) {
        let on_record =
            |model: &ModelId| self.look(|machine, _| machine.on_record(model)).flatten();
        let limits = seen.limits(&offer, on_record);
        self.with(|machine, _| machine.configure(limits));
    }
}

/// Why nothing is decided any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Over {
    /// Another control plane decides, or this one anew.
    Fenced,
    /// This one stops.
    Stopped,
}

/// Waits until another term is led, or another control plane leads.
async fn led_by_another(leads: &mut watch::Receiver<Leadership>, term: u64) {
    let other = leads.wait_for(|leads| *leads != Leadership::Leader { term });
    // Who said so last may be gone; what was said holds.
    if other.await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// What was configured last: what a model's pools were before it became fleet-wide.
#[derive(Debug, Default)]
struct Configured {
    position: Option<Position>,
    /// Sizes of pools that are each worker's own.
    own: BTreeMap<ModelId, u32>,
    limits: BTreeMap<ModelId, Limit>,
}

impl Configured {
    /// The limits of what is offered. While two are offered, the lower of both limits; and where one has pools that are
    /// each worker's own, some may have them.
    fn limits(
        &mut self,
        offer: &Offer,
        on_record: impl Fn(&ModelId) -> Option<Option<u32>>,
    ) -> BTreeMap<ModelId, Limit> {
        let first = self.position.is_none();
        let mut limits: BTreeMap<ModelId, Limit> = BTreeMap::new();
        let mut own: BTreeMap<ModelId, u32> = BTreeMap::new();
        for target in offer.targets() {
            let published = &target.published;
            let since = |revision| Position {
                revision,
                ..published.position.clone()
            };
            self.position = Some(published.position.clone());
            for model in published.state.pools() {
                let size = model.pool.size.get();
                if model.pool.scope == PoolScope::PerWorker {
                    let known = own.entry(model.id.clone()).or_default();
                    *known = (*known).max(size);
                    continue;
                }
                let most = model.pool.most_on_one(model.budget);
                let limit = Limit {
                    limit: size,
                    floor: model.pool.fleet_floor,
                    most,
                    since: since(model.revision),
                    own: self.own_before(&model, first, &on_record),
                };
                let known = limits
                    .entry(model.id.clone())
                    .or_insert_with(|| limit.clone());
                known.limit = known.limit.min(limit.limit);
                known.floor = known.floor.min(limit.floor);
                known.most = known.most.min(limit.most);
                known.own = known.own.max(limit.own);
                known.since = limit.since;
            }
        }
        for (model, limit) in &mut limits {
            limit.own = limit.own.max(own.get(model).copied());
        }
        (self.own, self.limits) = (own, limits.clone());
        limits
    }

    /// The size of the pools of their own that workers may have of a model.
    fn own_before(
        &self,
        model: &PoolOf,
        first: bool,
        on_record: &impl Fn(&ModelId) -> Option<Option<u32>>,
    ) -> Option<u32> {
        if let Some(known) = self.limits.get(&model.id) {
            return known.own;
        }
        if !first {
            return self.own.get(&model.id).copied();
        }
        match on_record(&model.id) {
            Some(own) => own,
            // It was made so, or nobody here saw how it came to be.
            None if model.is_as_created => None,
            None => Some(model.budget.get()),
        }
    }
}

#[cfg(test)]
mod tests;
