//! What is known of one worker, and how that looks: to operators, with respect to a revision, and to rollouts. It
//! changes nothing.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use forebay_proto::{
    Health, Position, Revision, convert::timestamp_to_wire, health::ModelHealth, limits, wire,
};

use super::{
    Applied, Introduction, Refused,
    across::{Across, Comer},
    contest::{Line, Twin},
};
use crate::rollout::{Seen, Staging};

#[derive(Debug)]
pub(super) struct Known {
    pub(super) introduction: Introduction,
    pub(super) session: Option<Line>,
    /// Its build can be told to end.
    pub(super) drains: bool,
    /// It is to end, or does.
    pub(super) ends: bool,
    /// It came in the place of a process that ended as it was asked to, or that goes when this one serves.
    pub(super) succeeds: bool,
    pub(super) applied: Option<Applied>,
    pub(super) refused: Option<Refused>,
    /// Its requests on what an earlier revision had.
    pub(super) draining: u32,
    /// Version of the clients' keys that it holds.
    pub(super) keys_version: u64,
    /// How requests went in its process.
    pub(super) health: Health,
    /// The same for the models that were changed last.
    pub(super) changed: Arc<[ModelHealth]>,
    /// Another process that came under its id.
    pub(super) twin: Option<Twin>,
    /// The question because of one that another replica has.
    pub(super) across: Option<Across>,
    /// The stream that another replica has, against which this one was proved to be alive.
    pub(super) turns_away: Option<Comer>,
    pub(super) connected: SystemTime,
    /// Since when its process has been let in, here or elsewhere.
    pub(super) since: SystemTime,
    pub(super) seen: SystemTime,
    pub(super) gone: Option<SystemTime>,
}

impl Known {
    /// Its stream, if that is of another process than this one, which does not end and was not there after it.
    pub(super) fn rival_of(&self, comer: &Introduction, now: SystemTime) -> Option<&Line> {
        let other = self.introduction.instance != comer.instance && !self.ends;
        let elder = self.since <= since(now, comer.let_in);
        self.session.as_ref().filter(|_| other && elder)
    }

    /// Of two streams of one process, at two replicas: whether this is the later one. The process counts them itself; the
    /// replicas' clocks decide for a build that does not.
    pub(super) fn is_later(&self, than: &Self) -> bool {
        let counted = (self.introduction.streams, than.introduction.streams);
        match counted {
            (ours, theirs) if ours != 0 && theirs != 0 && ours != theirs => ours > theirs,
            _ => self.connected > than.connected,
        }
    }

    /// Of what two replicas tell of one worker: whether this is what it is. The one that it is connected to counts, and of
    /// two of those the later.
    pub(super) fn outranks(&self, other: &Self) -> bool {
        let same = self.introduction.instance == other.introduction.instance;
        match (self.gone.is_none(), other.gone.is_none()) {
            (true, false) => true,
            (false, true) => false,
            _ if same => self.is_later(other),
            _ => self.connected > other.connected,
        }
    }

    /// Where the worker stands with respect to a revision of the newest configuration's epoch.
    pub(super) fn state(&self, newest: &Position, revision: Revision) -> wire::WorkerState {
        // A number stands for one content: the newest number with other content is not the newest, and
        // one beyond it is not of this history.
        let has = |position: &Position| {
            position.epoch == newest.epoch
                && position.revision >= revision
                && position.revision <= newest.revision
                && (position.revision < newest.revision || position.digest == newest.digest)
        };
        if self.gone.is_some() {
            wire::WorkerState::Gone
        } else if let Some(applied) = self.applied.as_ref().filter(|a| has(&a.position)) {
            match applied.refusals.is_empty() {
                true => wire::WorkerState::Applied,
                false => wire::WorkerState::Partial,
            }
        } else if self.refused.as_ref().is_some_and(|r| has(&r.position)) || self.shuns(newest) {
            wire::WorkerState::Refused
        } else {
            wire::WorkerState::Pending
        }
    }

    /// It will not try this again, under whatever number.
    fn shuns(&self, position: &Position) -> bool {
        let quarantined = &self.introduction.quarantined;
        quarantined.iter().any(|q| q.digest == position.digest)
    }

    /// What it refused last and why, then which models it could not take of what it runs.
    fn refusals(&self, newest: &Position) -> (u64, Vec<wire::Refusal>) {
        let (mut revision, mut refusals) = match &self.refused {
            Some(refused) => (refused.position.revision.get(), refused.refusals.clone()),
            None => (0, Vec::new()),
        };
        let shuns = self.shuns(newest) && revision != newest.revision.get();
        if shuns && self.applied.as_ref().map(|a| &a.position) != Some(newest) {
            revision = newest.revision.get();
            refusals = vec![quarantined(newest)];
        }
        refusals.extend(self.applied.iter().flat_map(|a| a.refusals.iter().cloned()));
        refusals.truncate(limits::REFUSALS);
        (revision, refusals)
    }

    pub(super) fn show(
        &self,
        newest: &Position,
        revision: Revision,
        staging: Option<&Staging>,
    ) -> wire::Worker {
        let who = &self.introduction;
        let applied = self.applied.as_ref();
        let (refused_revision, refusals) = self.refusals(newest);
        wire::Worker {
            id: who.worker.to_string(),
            instance_id: who.instance.to_string(),
            build: who.build.clone(),
            peer: who.peer.clone(),
            state: self.state(newest, revision).into(),
            applied_revision: applied.map_or(0, |a| a.position.revision.get()),
            applied_digest: applied.map_or(String::new(), |a| a.position.digest.to_string()),
            applied_time: applied.map(|a| timestamp_to_wire(a.at)),
            refused_revision,
            refusals,
            connect_time: Some(timestamp_to_wire(self.connected)),
            last_seen_time: Some(timestamp_to_wire(self.seen)),
            gone_time: self.gone.map(timestamp_to_wire),
            gateway_address: who.gateway.clone(),
            apply_millis: applied.map_or(0, |a| a.millis),
            lag_revisions: self.lag(newest, revision),
            draining_requests: self.draining,
            draining: self.ends && self.gone.is_none(),
            keys_version: self.keys_version,
            control: who.control.clone(),
            moves: who.moves.0,
            moved_because: who.moves.1.clone(),
            twin: self.twin(SystemTime::now()),
            // Whoever shows it knows.
            leases: Vec::new(),
            in_ring: self.gone.is_none() && staging.is_some_and(|s| s.has(&who.worker)),
        }
    }

    fn twin(&self, now: SystemTime) -> Option<wire::Twin> {
        let twin = self.twin.as_ref().filter(|twin| twin.is_fresh(now))?;
        Some(wire::Twin {
            instance_id: twin.instance.to_string(),
            peer: twin.peer.clone(),
            last_seen_time: Some(timestamp_to_wire(twin.at)),
        })
    }

    /// What it did not take, as a whole or some models of it.
    fn shunned(&self) -> Option<Position> {
        let partial = self.applied.as_ref().filter(|a| !a.refusals.is_empty());
        let refused = self.refused.as_ref().map(|r| r.position.clone());
        refused.or_else(|| partial.map(|a| a.position.clone()))
    }

    pub(super) fn seen(&self) -> Seen {
        Seen {
            worker: self.introduction.worker.clone(),
            instance: self.introduction.instance.clone(),
            succeeds: self.succeeds,
            ends: self.ends,
            connected: self.gone.is_none(),
            applied: self.applied.as_ref().map(|a| a.position.clone()),
            refused: self.shunned(),
            health: self.health,
            changed: self.changed.clone(),
        }
    }

    /// What is of another history counts as nothing.
    fn lag(&self, newest: &Position, revision: Revision) -> u64 {
        let applied = self.applied.as_ref().map(|a| &a.position);
        let held = applied.filter(|held| held.epoch == newest.epoch);
        let held = held.map_or(0, |held| held.revision.get());
        revision.get().saturating_sub(held)
    }
}

/// When it was let in. What would be before all time, was just now.
pub(super) fn since(now: SystemTime, for_: Duration) -> SystemTime {
    now.checked_sub(for_).unwrap_or(now)
}

/// What a worker that has this in quarantine would answer if it were pushed.
fn quarantined(position: &Position) -> wire::Refusal {
    wire::Refusal {
        model: String::new(),
        field: "to.digest".to_owned(),
        reason: "QUARANTINED".to_owned(),
        message: format!(
            "{position} ended the worker's process twice and is not pushed to it again"
        ),
    }
}
