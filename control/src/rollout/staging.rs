//! How rollouts in rings stand, for those who ask.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use forebay_proto::{Revision, WorkerId, wire};

use super::machine::{Machine, Return};

/// How rollouts in rings stand.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Staging {
    /// How often workers are to report.
    pub(crate) report_every: Duration,
    pub(super) stable: Revision,
    pub(super) candidate: Option<Revision>,
    pub(super) members: Arc<BTreeSet<WorkerId>>,
    pub(super) ring: usize,
    pub(super) rings: usize,
    /// Why the candidate is being taken back.
    pub(super) returning: Option<String>,
    pub(super) returns: Vec<Return>,
}

impl Staging {
    pub(super) fn new(machine: &Machine, report_every: Duration) -> Self {
        let (ring, rings) = machine.ring();
        Self {
            report_every,
            stable: machine.stable().revision,
            candidate: machine.candidate().map(|candidate| candidate.revision),
            members: machine.members().clone(),
            ring,
            rings,
            returning: machine.returning().map(ToOwned::to_owned),
            returns: machine.returns().iter().cloned().collect(),
        }
    }

    /// A rollout is under way: how requests go is of interest.
    pub(crate) fn is_under_way(&self) -> bool {
        self.candidate.is_some()
    }

    /// This worker is offered the candidate.
    pub(crate) fn has(&self, worker: &WorkerId) -> bool {
        self.members.contains(worker)
    }

    /// Says of a rollout where it is on its way.
    pub(crate) fn describe(&self, revision: Revision, rollout: &mut wire::Rollout) {
        use wire::RolloutStage as Stage;
        let number = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        rollout.rings = number(self.rings);
        rollout.stable_revision = self.stable.get();
        let undone = |made: &&Return| (made.first..made.by).contains(&revision);
        let stage = if let Some(made) = self.returns.iter().rev().find(undone) {
            rollout.return_reason.clone_from(&made.reason);
            rollout.return_revision = made.by.get();
            Stage::Returned
        } else if revision <= self.stable {
            Stage::Everywhere
        } else if let Some(reason) = &self.returning {
            rollout.return_reason.clone_from(reason);
            Stage::Returning
        } else if self
            .candidate
            .is_some_and(|candidate| revision <= candidate)
        {
            rollout.ring = number(self.ring);
            Stage::Ring
        } else {
            Stage::Waiting
        };
        rollout.set_stage(stage);
    }

    /// For metrics: the ring under way, 0 if there is none, and the stable revision.
    pub(super) fn figures(&self) -> (usize, u64) {
        (self.ring, self.stable.get())
    }
}
