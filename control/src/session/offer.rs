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

    /// All that is offered, what is proven first.
    pub(crate) fn targets(&self) -> impl Iterator<Item = &Arc<Target>> {
        let candidate = self.candidate.iter().map(|(target, _)| target);
        std::iter::once(&self.stable).chain(candidate)
    }

    /// True if not all are offered the same.
    pub(super) fn differs(&self) -> bool {
        self.candidate.is_some()
    }

    /// What this worker is offered, which holds that. A worker's revision never goes down: who holds more than stable
    /// already is offered the candidate.
    pub(crate) fn of(&self, worker: Option<&WorkerId>, held: Option<&Position>) -> &Arc<Target> {
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

#[cfg(test)]
mod tests {
    use forebay_proto::{Digest, Epoch};

    use super::*;
    use crate::{
        registry::{Published, State},
        store::{Store as _, memory::MemoryStore},
    };

    fn position(epoch: &str, revision: u64) -> Position {
        Position {
            epoch: Epoch::new(epoch).unwrap(),
            revision: Revision::new(revision),
            digest: Digest::of(&revision.to_be_bytes()),
        }
    }

    fn target(revision: u64) -> Arc<Target> {
        let state = State::new(MemoryStore::fresh().load().unwrap());
        Target::alone(Arc::new(Published {
            position: position("aa", revision),
            config: Vec::new().into(),
            traceparent: String::new(),
            state: Arc::new(state),
        }))
    }

    #[test]
    fn nobody_is_offered_less_than_it_holds_and_nobody_else_more_than_stable() {
        let member = WorkerId::new("member").unwrap();
        let other = WorkerId::new("other").unwrap();
        let members = Arc::new(BTreeSet::from([member.clone()]));
        let offer = Offer::in_ring(target(5), target(9), members);
        let of = |worker, held: Option<(&str, u64)>| {
            let held = held.map(|(epoch, revision)| position(epoch, revision));
            offer.of(worker, held.as_ref()).revision().get()
        };
        assert_eq!(of(Some(&member), None), 9);
        for held in [None, Some(("aa", 4)), Some(("aa", 5)), Some(("bb", 7))] {
            assert_eq!(of(Some(&other), held), 5, "{held:?}");
        }
        for held in [7, 9] {
            assert_eq!(of(Some(&other), Some(("aa", held))), 9, "{held}");
        }
        assert_eq!(of(None, None), 5, "who has not said who it is");
        let all = Offer::to_all(target(5));
        assert_eq!(
            all.of(Some(&other), Some(&position("aa", 7)))
                .revision()
                .get(),
            5
        );
    }
}
