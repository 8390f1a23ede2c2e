//! What is known of one worker: what it said, what it was sent, and from both what it may use at most. Pure.
//!
//! ```text
//!   known from the table ──first report──▶ heard of ──stream ends──▶ running out ──time──▶ floor
//!      (anything, until time)                  ▲                          │                 │
//!                                              └────── same process: first report ─────────┘
//!   a new process: nothing, at once; one that takes over: beside what the one before may use;
//!   one that comes while another one is there: the same, and only time tells that the other one is over
//! ```
//!
//! Invariant: [`Holder::may_use`] is never less than what the worker uses.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use forebay_proto::{InstanceId, ModelId, Position};

use super::words::{Report, Share, Standing, Use};

/// Grants to a worker that it did not confirm and that are told apart; of more, the oldest count as one.
pub(super) const UNCONFIRMED: usize = 16;
/// Processes whose place others took that are told apart; of more, the oldest count as one.
const BEFORE: usize = 4;
/// How long a need that is over still counts for the greater part.
const FADES_IN: Duration = Duration::from_secs(2);

/// One worker and one limit.
#[derive(Debug, Clone, Default)]
pub(super) struct Hold {
    /// As it said last.
    pub(super) said: Use,
    /// It said that it has the model as one with this limit.
    pub(super) listed: bool,
    /// What it was sent since, by number of the grant.
    pub(super) sent: VecDeque<(u64, Share)>,
    /// What is meant for it now, sent or about to be.
    pub(super) granted: Share,
    /// The floor that is on record for it; nothing is sent before it is.
    pub(super) kept: Option<u32>,
    need: f64,
    at: Duration,
}

impl Hold {
    /// The most that does not run out.
    pub(super) fn floor(&self) -> u32 {
        let sent = self.sent.iter().map(|(_, share)| share.floor);
        let most = sent.max().unwrap_or(0).max(self.said.floor);
        most.max(self.granted.floor)
    }

    /// The most that it may use while what it was sent holds.
    fn most(&self) -> u32 {
        let sent = self.sent.iter().map(|(_, share)| share.size);
        let sent = sent.max().unwrap_or(0).max(self.granted.size);
        sent.max(self.said.size).max(self.said.in_flight)
    }

    /// What it needs. A need that is over is not forgotten at once: it may come again in a moment.
    pub(super) fn need(&self, now: Duration, ends: bool) -> u32 {
        let raw = self.said.in_flight.saturating_add(self.said.waiting);
        match ends {
            true => raw,
            // Never negative, and at most what was asked for.
            false => raw.max(self.faded(now).round() as u32),
        }
    }

    /// It is sent this. Words may be lost for as long as it takes: what is remembered of them is bounded, and never less.
    pub(super) fn send(&mut self, number: u64, share: Share) {
        if self.sent.len() >= UNCONFIRMED
            && let Some((_, oldest)) = self.sent.pop_front()
            && let Some((_, next)) = self.sent.front_mut()
        {
            next.size = next.size.max(oldest.size);
            next.floor = next.floor.max(oldest.floor);
        }
        self.sent.push_back((number, share));
    }

    fn faded(&self, now: Duration) -> f64 {
        let gone = now.saturating_sub(self.at).as_secs_f64();
        self.need * (-gone / FADES_IN.as_secs_f64()).exp()
    }

    fn hear(&mut self, now: Duration, said: Use, grant: u64) {
        self.said = said;
        self.listed = true;
        self.sent.retain(|(number, _)| *number > grant);
        let raw = said.in_flight.saturating_add(said.waiting);
        self.need = self.faded(now).max(f64::from(raw));
        self.at = now;
    }

    /// What it was sent has run out, and what was on its way runs out before it comes: the floor is left.
    fn run_out(&mut self) {
        let floor = self.floor();
        self.granted.size = floor;
        self.said.size = self.said.floor;
        self.said.in_flight = self.said.in_flight.min(floor);
        for (_, share) in &mut self.sent {
            share.size = share.floor;
        }
    }

    /// Nothing is held; what is on record is on record.
    fn clear(&mut self) {
        *self = Self {
            kept: self.kept,
            ..Self::default()
        };
    }
}

/// A process whose place another one takes.
#[derive(Debug, Clone)]
struct Before {
    instance: Option<InstanceId>,
    heir: InstanceId,
    /// Per limit: the most that it may use, and of that what does not run out.
    most: BTreeMap<ModelId, (u32, u32)>,
    until: Duration,
    /// The heir knows when it ended. Otherwise time alone tells.
    handed_over: bool,
}

impl Before {
    /// Both as one, of which time alone tells.
    fn join(&mut self, other: Self) {
        self.until = self.until.max(other.until);
        (self.instance, self.handed_over) = (None, false);
        for (model, (size, floor)) in other.most {
            let more = self.most.entry(model).or_default();
            *more = (more.0.saturating_add(size), more.1.saturating_add(floor));
        }
    }
}

/// One worker.
#[derive(Debug, Clone, Default)]
pub(super) struct Holder {
    pub(super) stream: u64,
    pub(super) instance: Option<InstanceId>,
    pub(super) knows: bool,
    pub(super) connected: bool,
    /// When its stream ended.
    pub(super) gone: Option<Duration>,
    /// It is on record since before this process began, and has yet to say what it holds.
    pub(super) unknown: bool,
    /// On this stream.
    pub(super) report: u64,
    pub(super) answered: u64,
    pub(super) number: u64,
    applied: Option<Position>,
    pub(super) ending: bool,
    pub(super) done: bool,
    pub(super) weight: u32,
    /// When it reported last.
    heard: Duration,
    /// When it was sent something last, or said what it holds of what others sent.
    pub(super) renewed: Option<Duration>,
    pub(super) holds: BTreeMap<ModelId, Hold>,
    own: BTreeMap<ModelId, u32>,
    before: VecDeque<Before>,
    /// Something that it is to have is not what it was sent last.
    pub(super) changed: bool,
}

/// What a limit is to who may use how much of it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Terms<'a> {
    pub(super) model: &'a ModelId,
    /// The configuration that changed it last.
    pub(super) since: &'a Position,
    /// The size of the pool that each worker had of its own before, while some may have it still.
    pub(super) own: Option<u32>,
}

/// How long things are in use that cannot be asked about.
#[derive(Debug, Clone, Copy)]
pub(super) struct Patience {
    /// The word of a worker, from then.
    pub(super) ttl: Duration,
    /// What was sent, from then.
    pub(super) safe: Duration,
    /// Until when those on record may use anything.
    pub(super) unknown_until: Duration,
}

impl Holder {
    /// One that is on record. It has been away since now, as far as is known.
    pub(super) fn on_record(now: Duration, floors: &BTreeMap<ModelId, u32>) -> Self {
        let hold = |(model, floor): (&ModelId, &u32)| {
            let mut hold = Hold {
                kept: Some(*floor),
                ..Hold::default()
            };
            hold.said.floor = *floor;
            (model.clone(), hold)
        };
        Self {
            holds: floors.iter().map(hold).collect(),
            knows: true,
            unknown: true,
            gone: Some(now),
            ..Self::default()
        }
    }

    /// What its replica tells.
    pub(super) fn hear(&mut self, now: Duration, standing: &Standing, safe: Duration) {
        if standing.stream < self.stream {
            return;
        }
        if standing.stream > self.stream {
            self.begin(now, standing, safe);
        }
        let news = standing.report.as_ref();
        if let Some(report) = news.filter(|report| report.number > self.report) {
            self.take(now, report, standing);
        }
        if !standing.connected && self.connected {
            self.connected = false;
            self.gone = Some(now);
        }
    }

    /// A new stream. A process begins with nothing; one that takes over, beside what the one before it may use.
    fn begin(&mut self, now: Duration, standing: &Standing, safe: Duration) {
        let same = self.instance.as_ref() == Some(&standing.instance);
        if !same && !self.unknown {
            if standing.takes_over || standing.displaces {
                self.set_aside(now, standing, safe);
            }
            self.holds.values_mut().for_each(Hold::clear);
            self.own.clear();
            self.applied = None;
            self.renewed = None;
        }
        self.instance = Some(standing.instance.clone());
        self.stream = standing.stream;
        self.knows = standing.knows;
        self.connected = standing.connected;
        self.gone = (!standing.connected).then_some(now);
        (self.report, self.answered, self.number) = (0, 0, 0);
        (self.done, self.ending) = (false, false);
    }

    /// Another process takes the place of the one that was heard. Who was kept aside before it stays so: for one that
    /// hands over the heir of its heir speaks, for another one nobody does.
    fn set_aside(&mut self, now: Duration, heir: &Standing, safe: Duration) {
        self.before.retain(|before| now < before.until);
        for before in &mut self.before {
            if heir.takes_over && self.instance.as_ref() == Some(&before.heir) {
                before.heir = heir.instance.clone();
            }
        }
        let most = self.holds.iter();
        let most = most.map(|(model, hold)| (model.clone(), (hold.most(), hold.floor())));
        self.before.push_back(Before {
            instance: self.instance.clone(),
            heir: heir.instance.clone(),
            most: most.collect(),
            until: self.renewed.unwrap_or(now).saturating_add(safe),
            handed_over: heir.takes_over,
        });
        if self.before.len() > BEFORE
            && let Some(oldest) = self.before.pop_front()
            && let Some(next) = self.before.front_mut()
        {
            next.join(oldest);
        }
    }

    fn take(&mut self, now: Duration, report: &Report, standing: &Standing) {
        let first = self.report == 0;
        self.report = report.number;
        self.heard = now;
        self.applied.clone_from(&report.applied);
        self.own.clone_from(&report.own);
        (self.ending, self.weight) = (report.ending, report.weight);
        let alone = report.alone || report.done;
        // Of one that takes over its own word counts; of another one that is there beside another, only time.
        let speaks = match standing.takes_over {
            true => alone,
            false => !standing.displaces,
        };
        if self.unknown && speaks && !standing.repeated {
            self.unknown = false;
            // What it said on this stream before stands beside what it was sent since.
            let before = self.holds.values_mut().filter(|hold| !hold.listed);
            before.for_each(Hold::clear);
        }
        let own = self.instance.clone();
        let concerned = |before: &Before| {
            let heir = own.as_ref() == Some(&before.heir);
            (heir && before.handed_over) || own == before.instance
        };
        if alone {
            self.before.retain(|before| !concerned(before));
        }
        if first {
            // What it was sent on earlier streams has come, or never will; how old that is is not known.
            self.holds.values_mut().for_each(|hold| hold.sent.clear());
            self.renewed = self.renewed.max(Some(now));
        }
        for (model, hold) in &mut self.holds {
            // The model is no more, or has no such limit.
            if !report.uses.contains_key(model) && !self.unknown {
                hold.clear();
            }
        }
        for (model, said) in &report.uses {
            let hold = self.holds.entry(model.clone()).or_default();
            hold.hear(now, *said, report.grant);
            if first {
                hold.granted = Share {
                    size: said.size,
                    floor: said.floor.min(said.size),
                };
            }
        }
        if report.done {
            self.done = true;
            self.holds.values_mut().for_each(Hold::clear);
        }
        self.holds
            .retain(|_, hold| hold.listed || hold.kept.is_some());
    }

    /// Time went by.
    pub(super) fn look(&mut self, now: Duration, patience: Patience) {
        if self.has_run_out(now, patience) && !self.unknown {
            self.holds.values_mut().for_each(Hold::run_out);
        }
    }

    /// True if it is there: it reported, and not too long ago.
    pub(super) fn is_there(&self, now: Duration, patience: Patience) -> bool {
        let silent = now.saturating_sub(self.heard) >= patience.ttl;
        self.connected && self.report > 0 && !self.done && !silent
    }

    /// True if it gets a part of the limit: it is there, and has the model as one.
    pub(super) fn takes_part(&self, now: Duration, model: &ModelId, patience: Patience) -> bool {
        let there = self.is_there(now, patience);
        let listed = self.holds.get(model).is_some_and(|hold| hold.listed);
        there && listed && !self.own.contains_key(model)
    }

    /// True if it is not known whether it uses any of the limit.
    pub(super) fn is_unknown(&self, now: Duration, model: &ModelId, patience: Patience) -> bool {
        self.unknown && now < patience.unknown_until && self.holds.contains_key(model)
    }

    /// True if what it was sent has run out.
    pub(super) fn has_run_out(&self, now: Duration, patience: Patience) -> bool {
        let renewed = self.renewed;
        renewed.is_none_or(|renewed| now >= renewed.saturating_add(patience.safe))
    }

    /// The most that its own process may use of what it was lent.
    pub(super) fn may_use_of_lease(
        &self,
        now: Duration,
        model: &ModelId,
        patience: Patience,
    ) -> u32 {
        match (self.holds.get(model), self.has_run_out(now, patience)) {
            (None, _) => 0,
            (Some(hold), true) => hold.floor(),
            (Some(hold), false) => hold.most(),
        }
    }

    /// The most that it may use of a limit, as far as that is known.
    pub(super) fn may_use(&self, now: Duration, terms: Terms<'_>, patience: Patience) -> u32 {
        let leased = self.may_use_of_lease(now, terms.model, patience);
        let before = self.used_before(now, terms.model);
        leased
            .saturating_add(before)
            .saturating_add(self.own_pool(terms))
    }

    /// What the processes before this one may use.
    fn used_before(&self, now: Duration, model: &ModelId) -> u32 {
        let used = self.before.iter().map(|before| {
            let (most, floor) = before.most.get(model).copied().unwrap_or_default();
            match now < before.until {
                true => most,
                false if before.handed_over && self.instance.as_ref() == Some(&before.heir) => {
                    floor
                }
                false => 0,
            }
        });
        used.fold(0, u32::saturating_add)
    }

    /// The pool that it may still have of its own.
    pub(super) fn own_pool(&self, terms: Terms<'_>) -> u32 {
        if let Some(own) = self.own.get(terms.model) {
            return *own;
        }
        let newer = self.applied.as_ref().is_some_and(|applied| {
            applied.epoch == terms.since.epoch && applied.revision >= terms.since.revision
        });
        let listed = self.holds.get(terms.model).is_some_and(|hold| hold.listed);
        match newer || listed {
            true => 0,
            false => terms.own.unwrap_or(0),
        }
    }
}
