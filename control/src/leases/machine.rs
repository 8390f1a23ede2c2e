//! Who may use how much of which fleet-wide limit: the whole of it as a pure state machine. It takes what workers say
//! and what is configured, and gives what each is lent. It knows no clock, no task and no store.
//!
//! Two phases: who has more than is due to him is told so, and only what his reports show to be free is given to others,
//! as it becomes free. What is sent counts as used from then, what is taken away counts until it is confirmed, and what
//! cannot be asked about counts until its time is over.
//!
//! Invariant, asserted after each step in test builds: over all workers, the most that each may use is no more than the
//! limit; unless the limit was lowered, or workers have pools of their own from before: then nothing grows until it is.
//!
//! What is sent must be on record first ([`Table`]): who there is, who may hold something of what, and the floor, which
//! does not run out. [`Machine::publish`] holds back what is not.

mod record;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use forebay_proto::{Epoch, ModelId, Position, WorkerId};

use super::{
    allot::{Claim, allot, grow},
    holder::{Holder, Patience, Terms},
    words::{Grant, Origin, Share, Standing, Table},
};

/// Most workers that are remembered.
const MOST: usize = 10_000;
/// How long one that is gone is.
const REMEMBERED: Duration = Duration::from_secs(24 * 3_600);
/// By how much clocks that do not jump may differ: 1 in this many.
const DRIFT: u32 = 100;
/// What a worker takes to end what is to end, and an engine to see it.
const ENDS_WITHIN: Duration = Duration::from_secs(3);

/// How long what is lent holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LeaseSettings {
    /// From when a worker made its report.
    pub ttl: Duration,
    /// What runs beyond what is left goes on for this long after that.
    pub linger: Duration,
}

impl Default for LeaseSettings {
    fn default() -> Self {
        Self {
            ttl: Duration::from_secs(10),
            linger: Duration::from_secs(60),
        }
    }
}

impl LeaseSettings {
    /// How long after it was sent something may be in use of it, seen from here.
    #[must_use]
    pub fn safe(&self) -> Duration {
        let both = self.ttl.saturating_add(self.linger);
        both.saturating_add(both / DRIFT)
            .saturating_add(ENDS_WITHIN)
    }
}

/// A fleet-wide limit, as it is configured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limit {
    /// Most requests in flight, all workers together.
    pub limit: u32,
    /// What each worker is to be sure of.
    pub floor: u32,
    /// What one worker can use at most: its budget.
    pub most: u32,
    /// The configuration that changed it last.
    pub since: Position,
    /// The size of the pool that each worker had of its own before, if some may have it still.
    pub own: Option<u32>,
}

/// What is planted in a test, to see that it is found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MachineFaults {
    /// Grows into what was taken away from others, confirmed or not.
    pub grows_at_once: bool,
    /// Begins anew as if nobody held anything.
    pub forgets_at_start: bool,
    /// Takes what a worker holds that is gone for free when its time is over, without what still runs.
    pub forgets_linger: bool,
    /// Takes any table for a whole one, whatever store it is of.
    pub takes_any_table: bool,
}

/// What came of forgetting a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Forgot {
    /// Nothing is kept for it any more.
    Done,
    /// As far as is known it is there.
    Connected,
    /// Nothing was kept for it.
    Unknown,
}

/// The machine.
#[derive(Debug)]
pub struct Machine {
    settings: LeaseSettings,
    limits: BTreeMap<ModelId, Limit>,
    pub(super) workers: BTreeMap<WorkerId, Holder>,
    patience: Patience,
    /// The lineage of the registry.
    lineage: Epoch,
    /// Whoever may hold anything is known. Otherwise somebody may who is not: until what was lent before has run out,
    /// nothing grows at all.
    whole: bool,
    /// What is on record.
    kept: Table,
    /// See there.
    pub faults: MachineFaults,
}

/// One limit and how it stands.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Sum {
    /// The most that is used, as far as is known.
    pub(super) used: u64,
    /// Of that, where it cannot be changed now.
    pub(super) held_back: u64,
    /// Who is not known.
    pub(super) unknown: Vec<WorkerId>,
    /// Others may hold something of it who are not on record.
    pub(super) unrecorded: bool,
}

impl Machine {
    /// It begins, with what is on record. Until what was granted before has run out, or all have said what they hold,
    /// nothing grows. A table of another lineage, or none where something was registered before, may lack some: then
    /// only time tells.
    #[must_use]
    pub fn new(
        now: Duration,
        settings: LeaseSettings,
        (table, origin): (Table, Origin),
        faults: MachineFaults,
    ) -> Self {
        let is_new = origin.fresh && table == Table::default();
        let whole =
            is_new || faults.takes_any_table || table.lineage.as_ref() == Some(&origin.epoch);
        // Where all are known and there is nobody, nobody goes by what was granted before.
        let before = match whole && table.workers.is_empty() {
            true => settings,
            false => LeaseSettings {
                ttl: table.ttl.max(settings.ttl),
                linger: table.linger.max(settings.linger),
            },
        };
        let on_record = table.workers.iter();
        let on_record = on_record.map(|(id, floors)| (id.clone(), Holder::on_record(now, floors)));
        let mut machine = Self {
            settings,
            limits: BTreeMap::new(),
            workers: on_record.collect(),
            patience: Patience {
                ttl: settings.ttl,
                // Some may have been granted something by whoever decided before, for as long as that was then.
                safe: before.safe(),
                unknown_until: now.saturating_add(before.safe()),
            },
            lineage: origin.epoch,
            whole,
            kept: table,
            faults,
        };
        if faults.forgets_at_start {
            machine.patience.unknown_until = now;
        }
        if faults.forgets_linger {
            machine.patience.safe = settings.ttl;
        }
        machine
    }

    /// The limits as they are configured.
    pub fn configure(&mut self, limits: BTreeMap<ModelId, Limit>) {
        let mut limits = limits;
        for (model, limit) in &mut limits {
            // What some may have still does not go away with the next change.
            let before = self.limits.get(model).and_then(|before| before.own);
            limit.own = limit.own.max(before);
        }
        self.limits = limits;
    }

    /// The stream of a worker that is heard.
    #[cfg(feature = "simulation")]
    #[must_use]
    pub fn stream_of(&self, worker: &WorkerId) -> Option<u64> {
        self.workers.get(worker).map(|holder| holder.stream)
    }

    /// True if there is nothing to do.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.limits.is_empty()
    }

    /// True if whoever may hold anything is known.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.whole
    }

    /// How long is waited for what.
    pub(super) fn patience(&self) -> Patience {
        self.patience
    }

    /// The limits that there are.
    pub fn limits(&self) -> &BTreeMap<ModelId, Limit> {
        &self.limits
    }

    /// What was on record of a model's pools when this began: whether it was known as fleet-wide, and the size of pools
    /// that some may have of their own.
    #[must_use]
    pub fn on_record(&self, model: &ModelId) -> Option<Option<u32>> {
        self.kept.models.get(model).copied()
    }

    /// How a worker stands.
    pub fn hear(&mut self, now: Duration, worker: &WorkerId, standing: &Standing) {
        if !self.workers.contains_key(worker) && self.workers.len() >= MOST {
            return;
        }
        let holder = self.workers.entry(worker.clone()).or_default();
        holder.hear(now, standing, self.patience.safe);
        // It said that it is done, and went.
        if holder.done && !holder.connected {
            self.workers.remove(worker);
        }
    }

    /// Forgets a worker: it is known that its process is no more.
    pub fn forget(&mut self, worker: &str) -> Forgot {
        match self.workers.get(worker) {
            None => Forgot::Unknown,
            // Or its end was not heard yet.
            Some(holder) if holder.connected => Forgot::Connected,
            Some(_) => {
                self.workers.remove(worker);
                Forgot::Done
            }
        }
    }

    /// Divides every limit anew.
    pub fn pass(&mut self, now: Duration) {
        let long = |gone: Duration| now.saturating_sub(gone) > REMEMBERED;
        self.workers
            .retain(|_, holder| holder.connected || !holder.gone.is_some_and(long));
        if now >= self.patience.unknown_until {
            // All that others granted has run out: what holds now was granted by this one.
            self.whole = true;
            self.patience.safe = self.patience.safe.min(self.settings.safe());
        }
        for holder in self.workers.values_mut() {
            holder.look(now, self.patience);
        }
        for (model, limit) in self.limits.clone() {
            self.divide(now, &model, &limit);
        }
        self.settle(now);
    }

    fn terms<'a>(model: &'a ModelId, limit: &'a Limit) -> Terms<'a> {
        Terms {
            model,
            since: &limit.since,
            own: limit.own,
        }
    }

    /// What is used of a limit at most.
    pub(super) fn sum(&self, now: Duration, model: &ModelId, limit: &Limit) -> Sum {
        let terms = Self::terms(model, limit);
        let mut sum = Sum {
            unrecorded: !self.whole,
            ..Sum::default()
        };
        for (id, holder) in &self.workers {
            if holder.is_unknown(now, model, self.patience) {
                sum.unknown.push(id.clone());
            }
            let may_use = u64::from(holder.may_use(now, terms, self.patience));
            sum.used += may_use;
            if !holder.takes_part(now, model, self.patience) {
                sum.held_back += may_use;
            }
        }
        sum
    }

    /// Who takes part, and what each of them has and needs.
    fn claims(&self, now: Duration, model: &ModelId, limit: &Limit) -> (Vec<WorkerId>, Vec<Claim>) {
        let known = self.workers.values();
        let known = known
            .filter(|holder| holder.knows && !holder.ending)
            .count();
        let each = limit.limit / u32::try_from(known.max(1)).unwrap_or(u32::MAX);
        let floor = limit.floor.min(each);
        let members = self.workers.iter().filter_map(|(id, holder)| {
            let hold = holder.holds.get(model)?;
            let claim = Claim {
                demand: hold.need(now, holder.ending),
                weight: holder.weight,
                floor: if holder.ending { 0 } else { floor },
                held: hold.granted.size,
                most: limit.most,
            };
            let takes_part = holder.takes_part(now, model, self.patience);
            takes_part.then(|| (id.clone(), claim))
        });
        members.unzip()
    }

    fn divide(&mut self, now: Duration, model: &ModelId, limit: &Limit) {
        let sum = self.sum(now, model, limit);
        let (members, claims) = self.claims(now, model, limit);
        let held_back = u32::try_from(sum.held_back).unwrap_or(u32::MAX);
        let targets = allot(limit.limit.saturating_sub(held_back), &claims);
        // First what is taken away; then what is free by now, and no more, is given.
        let terms = Self::terms(model, limit);
        let mut used = sum.held_back;
        let mut lower = Vec::new();
        for ((id, claim), target) in members.iter().zip(&claims).zip(&targets) {
            let Some(holder) = self.workers.get_mut(id) else {
                continue;
            };
            let hold = holder.holds.entry(model.clone()).or_default();
            if *target < hold.granted.size {
                hold.granted = Share {
                    size: *target,
                    floor: hold.granted.floor.min(*target),
                };
                holder.changed = true;
            }
            let may_use = match self.faults.grows_at_once {
                true => (*target).min(claim.held),
                false => holder.may_use(now, terms, self.patience),
            };
            used += u64::from(may_use);
            // What it may use in any case costs nothing.
            let granted = claim.held.min(*target);
            let leased = holder.may_use_of_lease(now, model, self.patience);
            lower.push(granted.max((*target).min(leased)));
        }
        let free = match sum.unknown.is_empty() && !sum.unrecorded {
            true => u64::from(limit.limit).saturating_sub(used),
            false => 0,
        };
        let free = u32::try_from(free).unwrap_or(u32::MAX);
        let grown = grow(free, &claims, &lower, &targets);
        for ((id, size), claim) in members.iter().zip(grown).zip(&claims) {
            let Some(holder) = self.workers.get_mut(id) else {
                continue;
            };
            let hold = holder.holds.entry(model.clone()).or_default();
            let share = Share {
                size,
                floor: claim.floor.min(size),
            };
            holder.changed |= hold.granted != share;
            hold.granted = share;
        }
        #[cfg(any(test, debug_assertions))]
        self.assert_kept(now, model, limit, sum.used);
    }

    /// Nothing has grown beyond the limit.
    #[cfg(any(test, debug_assertions))]
    fn assert_kept(&self, now: Duration, model: &ModelId, limit: &Limit, before: u64) {
        let used = self.sum(now, model, limit).used;
        let most = u64::from(limit.limit).max(before);
        assert!(
            used <= most || self.faults != MachineFaults::default(),
            "{model}: {used} may be used of {}, and {before} before",
            limit.limit
        );
    }

    /// Where nobody has a pool of his own any more, that is over; but not before all had time to come back.
    fn settle(&mut self, now: Duration) {
        if now < self.patience.unknown_until {
            return;
        }
        for (model, limit) in &mut self.limits {
            if limit.own.is_none() {
                continue;
            }
            let terms = Terms {
                model,
                since: &limit.since,
                own: limit.own,
            };
            let mut workers = self.workers.values();
            if workers.all(|holder| holder.own_pool(terms) == 0) {
                limit.own = None;
            }
        }
    }

    /// What is to be sent now: to those whose reports have no answer yet, and those that are to have something else.
    pub fn publish(&mut self, now: Duration) -> Vec<(WorkerId, Arc<Grant>)> {
        let limits: BTreeSet<&ModelId> = self.limits.keys().collect();
        let (settings, patience) = (self.settings, self.patience);
        let mut grants = Vec::new();
        for (id, holder) in &mut self.workers {
            let asked = holder.is_there(now, patience);
            let due = holder.report > holder.answered || holder.changed;
            if !asked || !due {
                continue;
            }
            let taking: Vec<ModelId> = holder
                .holds
                .keys()
                .filter(|model| limits.contains(model) && holder.takes_part(now, model, patience))
                .cloned()
                .collect();
            holder.number += 1;
            let number = holder.number;
            let mut shares = BTreeMap::new();
            for model in taking {
                let hold = holder.holds.get_mut(&model);
                // What is not on record is not sent: it comes with the next one.
                let Some((hold, kept)) = hold.and_then(|hold| hold.kept.map(|kept| (hold, kept)))
                else {
                    continue;
                };
                let share = Share {
                    size: hold.granted.size,
                    floor: hold.granted.floor.min(kept),
                };
                hold.send(number, share);
                shares.insert(model, share);
            }
            (holder.answered, holder.changed) = (holder.report, false);
            holder.renewed = Some(now);
            let grant = Grant {
                stream: holder.stream,
                number,
                answers: holder.report,
                ttl: settings.ttl,
                linger: settings.linger,
                shares,
            };
            grants.push((id.clone(), Arc::new(grant)));
        }
        grants
    }
}
