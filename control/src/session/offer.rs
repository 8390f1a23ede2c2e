//! Which configuration a worker is offered: the same for all, or while a rollout in rings is under way one of two.

use std::{collections::BTreeSet, sync::Arc};

use forebay_proto::{Position, Revision, WorkerId};

use super::feed::Target;

/// What workers are offered. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Offer {
    stable: Arc<Target>,
    candidate: Option<(Arc<Target>, Arc<BTreeSet<WorkerId>>)>,
    newest: Revision,
}

impl Offer {
    /// This one, to every worker.
    pub(crate) fn to_all(target: Arc<Target>) -> Self {
        Self {
            newest: target.revision(),
            stable: target,
            candidate: None,
        }
    }

    /// The candidate to these workers and to those that hold more than stable; stable to the rest.
    pub(crate) fn in_ring(
        stable: Arc<Target>,
        candidate: Arc<Target>,
        members: Arc<BTreeSet<WorkerId>>,
    ) -> Self {
        Self {
            newest: candidate.revision(),
            stable,
            candidate: Some((candidate, members)),
        }
    }

    /// The same, with a newer one that waits.
    pub(crate) fn before(self, newest: Revision) -> Self {
        Self { newest, ..self }
    }

    /// The newest revision that was there when this was said, offered or not.
    pub(crate) fn newest(&self) -> Revision {
        self.newest
    }

    /// What is offered to those who are offered nothing else.
    pub(crate) fn stable(&self) -> &Arc<Target> {
        &self.stable
    }

    /// True if not all are offered the same.
    pub(super) fn differs(&self) -> bool {
        self.candidate.is_some()
    }

    /// What this worker is offered, which holds that. A worker's revision never goes down: who holds more than stable
    /// already is offered the candidate.
    pub(super) fn of(&self, worker: Option<&WorkerId>, held: Option<&Position>) -> &Arc<Target> {
        let Some((candidate, members)) = &self.candidate else {
            return &self.stable;
        };
        let member = worker.is_some_and(|worker| members.contains(worker));
        let ahead = held.is_some_and(|held| held.is_after(&self.stable.published.position));
        match member || ahead {
            true => candidate,
            false => &self.stable,
        }
    }
}
