//! Rollouts in rings as a pure state machine: events in, effects out, no IO and no clock.
//!
//! ```text
//!   Steady ──newest──▶ Soaking: ring 1 ──soaked──▶ ring 2 ─ … ──▶ Steady, the candidate is stable
//!                         │ ▲                        │
//!                         └─┘ newer, for a while     │ gate
//!                                                    ▼
//!   Steady ◀──its revision comes── Returned ◀──written── Returning ⟲ again
//! ```
//!
//! It is shown the fleet as it stands, not what happened to it. Invariants: stable never goes down; what is not proven
//! is offered to the workers of the ring and to those that hold more than stable already, to nobody else; a candidate
//! that failed never becomes stable; without writes it comes to rest with all on the newest.

use std::{
    collections::{BTreeSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use forebay_proto::{Position, Revision, WorkerId};

use super::{
    settings::RolloutSettings,
    soak::{Seen, Soak, Verdict},
};

/// For how many soaks newer writes may take the candidate's place, and replaced workers prolong a ring.
pub(super) const PATIENCE: u32 = 3;
/// Pause before a return that was not written is tried again.
const RETURN_AGAIN: Duration = Duration::from_secs(5);
/// Most returns remembered.
const RETURNS: usize = 64;

/// What happens. Times are since the machine was made.
#[derive(Debug, Clone)]
pub(super) enum Event {
    /// There is a newer configuration; whether it has the content of stable.
    Newest { position: Position, proven: bool },
    /// The fleet, and the time: to be shown often while a rollout is under way.
    Look(Vec<Seen>),
    /// The return that was asked for is this revision. Nothing comes between [`Effect::Return`] and its answer.
    Returned(Revision),
    /// It could not be written.
    NotReturned,
}

/// What the shell must do.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Effect {
    /// Who is offered what has changed.
    Offer,
    /// The content of stable is to be written as a new revision.
    Return { reason: String },
}

/// A return that was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Return {
    /// The revisions that were undone, from here.
    pub(crate) first: Revision,
    /// The revision that has the content of before.
    pub(crate) by: Revision,
    pub(crate) reason: String,
}

#[derive(Debug)]
enum Phase {
    Steady,
    Soaking(Soak),
    Returning {
        candidate: Position,
        reason: String,
        /// It failed; when to try again.
        again: Option<Duration>,
    },
    /// The return is written, and on its way here.
    Returned {
        candidate: Position,
        by: Revision,
    },
}

/// The state of all rollouts.
#[derive(Debug)]
pub(super) struct Machine {
    settings: RolloutSettings,
    stable: Position,
    newest: Position,
    phase: Phase,
    members: Arc<BTreeSet<WorkerId>>,
    returns: VecDeque<Return>,
}

impl Machine {
    /// With what is known to be stable, and the newest there is.
    pub(super) fn new(settings: RolloutSettings, stable: Position, newest: Position) -> Self {
        let mut machine = Self {
            settings,
            newest: stable.clone(),
            stable,
            phase: Phase::Steady,
            members: Arc::default(),
            returns: VecDeque::new(),
        };
        machine.on_newest(Duration::ZERO, newest, false);
        machine
    }

    /// Returns that were made before, by another one in charge.
    pub(super) fn remember(&mut self, returns: Vec<Return>) {
        self.returns = returns.into_iter().take(RETURNS).collect();
    }

    /// Takes an event at this time.
    pub(super) fn on(&mut self, now: Duration, event: Event) -> Vec<Effect> {
        let before = (self.stable.clone(), self.candidate().cloned());
        let members = self.members.clone();
        let asked = match event {
            Event::Newest { position, proven } => {
                self.on_newest(now, position, proven);
                None
            }
            Event::Look(fleet) => self.on_look(now, &fleet),
            Event::Returned(by) => {
                self.on_returned(now, by);
                None
            }
            Event::NotReturned => {
                if let Phase::Returning { again, .. } = &mut self.phase {
                    *again = Some(now + RETURN_AGAIN);
                }
                None
            }
        };
        let same = before == (self.stable.clone(), self.candidate().cloned());
        let mut effects = Vec::new();
        if !same || members != self.members {
            effects.push(Effect::Offer);
        }
        effects.extend(asked.map(|reason| Effect::Return { reason }));
        effects
    }

    /// What is offered to all who are offered nothing else.
    pub(super) fn stable(&self) -> &Position {
        &self.stable
    }

    /// The newest that it was told of.
    pub(super) fn newest(&self) -> &Position {
        &self.newest
    }

    /// What is offered to [`members`](Self::members), and to those that hold more than stable.
    pub(super) fn candidate(&self) -> Option<&Position> {
        match &self.phase {
            Phase::Steady => None,
            Phase::Soaking(soak) => Some(soak.candidate()),
            Phase::Returning { candidate, .. } | Phase::Returned { candidate, .. } => {
                Some(candidate)
            }
        }
    }

    /// Who is offered the candidate.
    pub(super) fn members(&self) -> &Arc<BTreeSet<WorkerId>> {
        &self.members
    }

    /// The ring under way, from 1, and how many there are with the last.
    pub(super) fn ring(&self) -> (usize, usize) {
        let ring = match &self.phase {
            Phase::Soaking(soak) => soak.ring(),
            Phase::Steady | Phase::Returning { .. } | Phase::Returned { .. } => 0,
        };
        (ring, self.settings.rings.len() + 1)
    }

    /// Why the candidate is being taken back, if it is.
    pub(super) fn returning(&self) -> Option<&str> {
        match &self.phase {
            Phase::Returning { reason, .. } => Some(reason),
            Phase::Returned { .. } => self.returns.back().map(|last| last.reason.as_str()),
            Phase::Steady | Phase::Soaking(_) => None,
        }
    }

    /// Returns that were made, the oldest first.
    pub(super) fn returns(&self) -> &VecDeque<Return> {
        &self.returns
    }

    fn on_newest(&mut self, now: Duration, position: Position, proven: bool) {
        if position == self.newest {
            return;
        }
        self.newest = position;
        let (newest, stable) = (&self.newest, &self.stable);
        if newest.epoch == stable.epoch && (proven || newest.digest == stable.digest) {
            return self.settle();
        }
        match &mut self.phase {
            Phase::Steady | Phase::Returning { again: Some(_), .. } => self.begin(now),
            Phase::Soaking(soak) => {
                if soak.may_be_superseded(now, &self.settings) {
                    soak.supersede(now, self.newest.clone());
                }
            }
            Phase::Returning { again: None, .. } => {}
            Phase::Returned { by, .. } => {
                let by = *by;
                self.arrived(now, by);
            }
        }
    }

    fn on_look(&mut self, now: Duration, fleet: &[Seen]) -> Option<String> {
        match &mut self.phase {
            Phase::Steady | Phase::Returned { .. } => None,
            Phase::Returning { reason, again, .. } => {
                again.take_if(|due| now >= *due)?;
                Some(reason.clone())
            }
            Phase::Soaking(soak) => {
                let verdict = soak.look(now, fleet, &self.stable, &self.settings);
                if !soak.members().eq(self.members.iter()) {
                    self.members = Arc::new(soak.members().cloned().collect());
                }
                match verdict {
                    Verdict::Soaking => None,
                    Verdict::Soaked => {
                        let connected = fleet.iter().filter(|seen| seen.connected).count();
                        if !soak.next_ring(connected, &self.settings) {
                            self.promote(now);
                        }
                        None
                    }
                    Verdict::Failed(why) => {
                        let candidate = soak.candidate().clone();
                        let (revision, stable) = (candidate.revision, self.stable.revision);
                        let reason = format!(
                            "revision {revision} did not pass the health gate in ring {}, back to {stable}: {why}",
                            soak.ring()
                        );
                        self.phase = Phase::Returning {
                            candidate,
                            reason: reason.clone(),
                            again: None,
                        };
                        Some(reason)
                    }
                }
            }
        }
    }

    fn on_returned(&mut self, now: Duration, by: Revision) {
        let Phase::Returning {
            candidate, reason, ..
        } = &self.phase
        else {
            return;
        };
        self.returns.push_back(Return {
            first: self.stable.revision.next(),
            by,
            reason: reason.clone(),
        });
        if self.returns.len() > RETURNS {
            self.returns.pop_front();
        }
        let candidate = candidate.clone();
        self.phase = Phase::Returned { candidate, by };
        self.arrived(now, by);
    }

    /// The return has come, or what was written after it: that has its content and more, and is to be proven.
    fn arrived(&mut self, now: Duration, by: Revision) {
        if self.newest.revision == by {
            self.settle();
        } else if self.newest.revision > by {
            self.begin(now);
        }
    }

    fn promote(&mut self, now: Duration) {
        if let Phase::Soaking(soak) = &self.phase {
            self.stable = soak.candidate().clone();
        }
        (self.phase, self.members) = (Phase::Steady, Arc::default());
        if self.newest != self.stable {
            self.begin(now);
        }
    }

    fn settle(&mut self) {
        self.stable = self.newest.clone();
        (self.phase, self.members) = (Phase::Steady, Arc::default());
    }

    /// The newest goes to ring one. Those who hold more than stable are found at the next look; their sessions
    /// know it already.
    fn begin(&mut self, now: Duration) {
        self.members = Arc::default();
        self.phase = Phase::Soaking(Soak::new(now, self.newest.clone()));
    }
}

#[cfg(test)]
#[path = "machine_tests.rs"]
mod tests;
