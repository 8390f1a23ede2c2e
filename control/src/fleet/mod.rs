//! What is known of each worker, and how far a revision has come: the latter is computed from the
//! former, never kept.
//!
//! Written by the sessions; bounded: workers that are gone are forgotten after a day, the longest
//! gone first when there are too many.

mod across;
mod contest;
mod joining;
mod known;
mod refusals;
mod shared;

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, SystemTime},
};

use forebay_proto::{Health, InstanceId, Position, Revision, WorkerId, health::ModelHealth, wire};
use parking_lot::Mutex;
use tokio::sync::watch;

pub(crate) use self::{
    contest::{Challenge, Ousted, Verdict},
    joining::{Joined, Joining},
    refusals::bounded,
    shared::nobody,
};
use self::{known::Known, refusals::share_refusals, shared::Others};
use crate::{
    metrics::RolloutCounts,
    rollout::{Seen, Staging},
};

/// Most workers remembered.
const MOST: usize = 10_000;
/// How long a worker that is gone is remembered.
const REMEMBERED: Duration = Duration::from_secs(24 * 3_600);

/// The workers.
#[derive(Debug, Default)]
pub(crate) struct Fleet {
    inner: Mutex<Inner>,
    /// Told when a worker came, went, or stands elsewhere than before.
    changed: watch::Sender<()>,
    /// How rollouts in rings stand; nothing without rings.
    staging: Mutex<Option<Arc<Staging>>>,
}

#[derive(Debug, Default)]
struct Inner {
    workers: BTreeMap<WorkerId, Known>,
    /// Those of other control planes on the same store.
    others: Others,
    sessions: u64,
}

/// One open stream, as the fleet knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SessionId(u64);

impl SessionId {
    /// Later ones have greater numbers.
    pub(crate) fn number(self) -> u64 {
        self.0
    }
}

/// What a worker says of itself.
#[derive(Debug, Clone)]
pub(crate) struct Introduction {
    pub(crate) worker: WorkerId,
    pub(crate) instance: InstanceId,
    pub(crate) build: String,
    pub(crate) peer: String,
    pub(crate) gateway: String,
    pub(crate) applied: Option<Position>,
    /// What it could not take of that.
    pub(crate) refusals: Vec<wire::Refusal>,
    /// What it will not try again.
    pub(crate) quarantined: Vec<Position>,
    /// What its process refused last, wherever.
    pub(crate) refused: Option<Refused>,
    /// The control plane as it reached it.
    pub(crate) control: String,
    /// How often it went from one to another, and why last.
    pub(crate) moves: (u32, String),
    /// Its build answers whether it is alive.
    pub(crate) proves: bool,
    /// For how long its process has been let in, here or elsewhere.
    pub(crate) let_in: Duration,
    /// It came to take the place of a process that goes on until then.
    pub(crate) takes_over: bool,
    /// How many streams its process has opened, this one included; 0: its build does not count.
    pub(crate) streams: u32,
}

/// A configuration that a worker runs.
#[derive(Debug, Clone)]
struct Applied {
    position: Position,
    at: SystemTime,
    millis: u32,
    /// Models of it that the worker could not take.
    refusals: Vec<wire::Refusal>,
}

/// A refusal that is remembered over streams.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Refused {
    pub(crate) position: Position,
    pub(crate) refusals: Vec<wire::Refusal>,
}

/// Why a worker cannot be told to end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum CannotDrain {
    /// There is none of that id.
    Unknown,
    /// It is not connected.
    Gone,
    /// It is connected to another control plane, of this name and process.
    Elsewhere {
        replica: String,
        instance: String,
        /// The worker's own process.
        process: InstanceId,
    },
    /// Its build does not know how.
    TooOld,
}

/// Why a worker cannot be forgotten.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StillThere {
    /// There is none of that id.
    Unknown,
    /// It is connected.
    Connected,
}

impl Fleet {
    /// The worker was heard.
    pub(crate) fn seen(&self, worker: &WorkerId, session: SessionId) {
        self.with(worker, session, |_| false);
    }

    /// The worker holds clients' keys of this version.
    pub(crate) fn holds_keys(&self, worker: &WorkerId, session: SessionId, version: u64) {
        self.with(worker, session, |known| {
            known.keys_version = version;
            false
        });
    }

    /// The worker gave a sign of life.
    pub(crate) fn beat(
        &self,
        worker: &WorkerId,
        session: SessionId,
        draining: u32,
        (health, changed): (Option<Health>, Arc<[ModelHealth]>),
    ) {
        self.with(worker, session, |known| {
            known.health = health.unwrap_or(known.health);
            known.changed = changed;
            std::mem::replace(&mut known.draining, draining) != draining
        });
    }

    /// The worker put a configuration in force, but for models that it refused.
    pub(crate) fn applied(
        &self,
        worker: &WorkerId,
        session: SessionId,
        (position, refusals): (Position, Vec<wire::Refusal>),
        millis: u32,
    ) {
        self.with(worker, session, |known| {
            known.applied = Some(Applied {
                position,
                at: SystemTime::now(),
                millis,
                refusals,
            });
            known.refused = None;
            true
        });
    }

    /// The worker refused one.
    pub(crate) fn refused(&self, worker: &WorkerId, session: SessionId, refused: Refused) {
        self.with(worker, session, |known| {
            known.refused = Some(refused);
            true
        });
    }

    /// The worker's build can be told to end.
    pub(crate) fn drains(&self, worker: &WorkerId, session: SessionId) {
        self.with(worker, session, |known| {
            known.drains = true;
            false
        });
    }

    /// The worker says that it ends.
    pub(crate) fn ends(&self, worker: &WorkerId, session: SessionId) {
        self.with(worker, session, |known| {
            !std::mem::replace(&mut known.ends, true)
        });
    }

    /// Has a worker told to end. It is told once it is connected, if it is now and was not told before.
    pub(crate) fn drain(&self, id: &str) -> Result<(), CannotDrain> {
        self.drain_if(id, |_| true)
    }

    /// The same, of one process of the worker: a word on its way does not end the one that has come instead.
    pub(crate) fn drain_process(&self, id: &str, process: &str) -> Result<(), CannotDrain> {
        self.drain_if(id, |instance| instance.as_str() == process)
    }

    fn drain_if(
        &self,
        id: &str,
        is_meant: impl FnOnce(&InstanceId) -> bool,
    ) -> Result<(), CannotDrain> {
        let mut inner = self.inner.lock();
        let elsewhere = inner.elsewhere(id);
        let absent = |here| elsewhere.unwrap_or(here);
        let Some(known) = inner.workers.get_mut(id) else {
            return Err(absent(CannotDrain::Unknown));
        };
        let Some(line) = known.session.as_ref() else {
            return Err(absent(CannotDrain::Gone));
        };
        if !is_meant(&known.introduction.instance) {
            return Err(CannotDrain::Gone);
        }
        if !known.drains {
            return Err(CannotDrain::TooOld);
        }
        line.drain.cancel();
        known.ends = true;
        drop(inner);
        self.changed.send_replace(());
        Ok(())
    }

    /// True if it is connected, here or to another control plane.
    pub(crate) fn is_connected(&self, id: &str) -> bool {
        let inner = self.inner.lock();
        let here = inner
            .workers
            .get(id)
            .is_some_and(|known| known.session.is_some());
        here || inner.elsewhere(id).is_some()
    }

    /// Forgets a worker that is not connected.
    pub(crate) fn forget(&self, id: &str) -> Result<(), StillThere> {
        let mut inner = self.inner.lock();
        match inner.workers.get(id) {
            None => return Err(StillThere::Unknown),
            Some(known) if known.session.is_some() => return Err(StillThere::Connected),
            Some(_) => drop(inner.workers.remove(id)),
        }
        drop(inner);
        self.changed.send_replace(());
        Ok(())
    }

    /// The stream ended.
    pub(crate) fn leave(&self, worker: &WorkerId, session: SessionId) {
        self.with(worker, session, |known| {
            known.session = None;
            known.gone = Some(SystemTime::now());
            known.draining = 0;
            true
        });
    }

    /// One worker, with respect to this revision.
    pub(crate) fn worker(&self, id: &str, target: &Position) -> Option<wire::Worker> {
        let staging = self.staging();
        self.inner
            .lock()
            .any(id)
            .map(|known| known.show(target, target.revision, staging.as_deref()))
    }

    /// Up to `most` workers after this id, in order, and whether there are more.
    pub(crate) fn page(
        &self,
        after: Option<&str>,
        most: usize,
        target: &Position,
    ) -> (Vec<wire::Worker>, bool) {
        let staging = self.staging();
        let inner = self.inner.lock();
        let later = |id: &WorkerId| after.is_none_or(|after| id.as_str() > after);
        let mut rest = inner
            .all()
            .into_iter()
            .filter(|(id, _)| later(id))
            .map(|(_, known)| known);
        let mut page: Vec<_> = rest
            .by_ref()
            .take(most)
            .map(|k| k.show(target, target.revision, staging.as_deref()))
            .collect();
        share_refusals(&mut page);
        (page, rest.next().is_some())
    }

    /// How far a revision has come.
    pub(crate) fn rollout(&self, revision: Revision, newest: &Position) -> wire::Rollout {
        let staging = self.staging();
        let inner = self.inner.lock();
        let show = |known: &Known| known.show(newest, revision, staging.as_deref());
        let mut workers: Vec<_> = inner.all().into_values().map(show).collect();
        drop(inner);
        share_refusals(&mut workers);
        let count = |state: wire::WorkerState| {
            let in_state = workers.iter().filter(|worker| worker.state() == state);
            u32::try_from(in_state.count()).unwrap_or(u32::MAX)
        };
        let (pending, refused, partial) = (
            count(wire::WorkerState::Pending),
            count(wire::WorkerState::Refused),
            count(wire::WorkerState::Partial),
        );
        let mut rollout = wire::Rollout {
            revision: revision.get(),
            newest_revision: newest.revision.get(),
            applied: count(wire::WorkerState::Applied),
            pending,
            refused,
            gone: count(wire::WorkerState::Gone),
            complete: pending == 0 && refused == 0 && partial == 0,
            workers,
            partial,
            ..wire::Rollout::default()
        };
        if let Some(staging) = staging {
            staging.describe(revision, &mut rollout);
        }
        rollout
    }

    /// The counts alone, for metrics.
    pub(crate) fn counts(&self, newest: &Position) -> RolloutCounts {
        let mut counts = RolloutCounts::default();
        let now = SystemTime::now();
        for known in self.inner.lock().all().into_values() {
            counts.twins += u32::from(known.twin.as_ref().is_some_and(|twin| twin.is_fresh(now)));
            match known.state(newest, newest.revision) {
                wire::WorkerState::Applied => counts.applied += 1,
                wire::WorkerState::Partial => counts.partial += 1,
                wire::WorkerState::Refused => counts.refused += 1,
                wire::WorkerState::Gone => counts.gone += 1,
                wire::WorkerState::Pending | wire::WorkerState::Unspecified => counts.pending += 1,
            }
        }
        counts
    }

    /// How rollouts in rings stand from now on.
    pub(crate) fn stage(&self, staging: Arc<Staging>) {
        *self.staging.lock() = Some(staging);
        self.changed.send_replace(());
    }

    fn staging(&self) -> Option<Arc<Staging>> {
        self.staging.lock().clone()
    }

    /// How often workers are to report, if rollouts need it.
    pub(crate) fn report_every(&self) -> Option<Duration> {
        self.staging().map(|staging| staging.report_every)
    }

    /// All workers as they stand.
    pub(crate) fn look(&self) -> Vec<Seen> {
        let inner = self.inner.lock();
        inner.all().into_values().map(Known::seen).collect()
    }

    /// Tells of changes, as they come; several at once are told of once.
    pub(crate) fn watch(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// Only the stream that counts may say something of its worker. The change tells whether others want to know.
    fn with(&self, worker: &WorkerId, session: SessionId, change: impl FnOnce(&mut Known) -> bool) {
        let mut inner = self.inner.lock();
        let known = inner.workers.get_mut(worker);
        let current = |known: &&mut Known| {
            known
                .session
                .as_ref()
                .is_some_and(|line| line.session == session)
        };
        if let Some(known) = known.filter(current) {
            known.seen = SystemTime::now();
            if let Some(line) = &known.session {
                line.heard();
            }
            let told = change(known);
            drop(inner);
            if told {
                self.changed.send_replace(());
            }
        }
    }
}

impl Inner {
    fn forget(&mut self, now: SystemTime) {
        let long = |gone: SystemTime| now.duration_since(gone).is_ok_and(|for_| for_ > REMEMBERED);
        self.workers
            .retain(|_, known| !known.gone.is_some_and(long));
        if self.workers.len() >= MOST {
            let gone = self
                .workers
                .iter()
                .filter(|(_, known)| known.gone.is_some());
            let longest = gone
                .min_by_key(|(_, known)| known.gone)
                .map(|(id, _)| id.clone());
            longest
                .into_iter()
                .for_each(|id| drop(self.workers.remove(&id)));
        }
    }
}

#[cfg(test)]
mod tests {
    use forebay_proto::{Digest, Epoch, limits};
    use tokio_util::sync::CancellationToken;

    use super::*;

    fn position(epoch: &str, revision: u64) -> Position {
        Position {
            epoch: Epoch::new(epoch).unwrap(),
            revision: Revision::new(revision),
            digest: Digest::of(&revision.to_be_bytes()),
        }
    }

    fn join(fleet: &Fleet, id: &str, applied: Option<Position>) -> (Joined, CancellationToken) {
        let end = CancellationToken::new();
        let introduction = Introduction {
            peer: id.into(),
            ..introduction(id, applied)
        };
        (fleet.joined(introduction, end.clone()), end)
    }

    fn introduced(fleet: &Fleet, instance: &str) -> Joined {
        let introduction = Introduction::plain("w", instance, None);
        fleet.joined(introduction, CancellationToken::new())
    }

    #[test]
    fn a_refusal_holds_for_the_process_that_made_it() {
        let (fleet, newest) = (Fleet::default(), position("aa", 5));
        let joined = introduced(&fleet, "first");
        let refused = Refused {
            position: newest.clone(),
            refusals: Vec::new(),
        };
        let worker = WorkerId::new("w").unwrap();
        fleet.refused(&worker, joined.session, refused);
        let again = introduced(&fleet, "first");
        assert_eq!(again.refused, Some(newest));
        fleet.leave(&worker, again.session);
        assert_eq!(introduced(&fleet, "second").refused, None);
    }

    fn refusal(model: &str) -> wire::Refusal {
        wire::Refusal {
            model: model.to_owned(),
            reason: "INVALID_FIELD".to_owned(),
            ..wire::Refusal::default()
        }
    }

    fn introduction(id: &str, applied: Option<Position>) -> Introduction {
        Introduction::plain(id, "i", applied)
    }

    #[test]
    fn a_worker_without_all_models_is_partial_until_it_has_them() {
        let (fleet, newest) = (Fleet::default(), position("aa", 5));
        let (joined, _) = join(&fleet, "w", None);
        let worker = WorkerId::new("w").unwrap();
        let partly = (newest.clone(), vec![refusal("m")]);
        fleet.applied(&worker, joined.session, partly, 3);
        let rollout = fleet.rollout(newest.revision, &newest);
        assert_eq!(
            (rollout.applied, rollout.partial, rollout.complete),
            (0, 1, false)
        );
        assert_eq!(fleet.counts(&newest).partial, 1);
        let shown = &rollout.workers[0];
        assert_eq!(shown.state(), wire::WorkerState::Partial);
        assert_eq!(
            (shown.refusals[0].model.as_str(), shown.refused_revision),
            ("m", 0)
        );

        let newer = position("aa", 6);
        fleet.applied(&worker, joined.session, (newer.clone(), Vec::new()), 3);
        let rollout = fleet.rollout(newer.revision, &newer);
        assert_eq!(
            (rollout.applied, rollout.partial, rollout.complete),
            (1, 0, true)
        );
    }

    #[test]
    fn a_new_control_plane_learns_of_it_from_the_first_word() {
        let (fleet, newest) = (Fleet::default(), position("aa", 5));
        let introduction = Introduction {
            refusals: vec![refusal("m")],
            ..introduction("w", Some(newest.clone()))
        };
        fleet.joined(introduction, CancellationToken::new());
        assert_eq!(fleet.rollout(newest.revision, &newest).partial, 1);
    }

    #[test]
    fn what_is_in_quarantine_counts_as_refused_under_any_number() {
        let (fleet, newest) = (Fleet::default(), position("aa", 5));
        let introduction = Introduction {
            quarantined: vec![Position {
                revision: Revision::new(3),
                ..newest.clone()
            }],
            ..introduction("w", Some(position("aa", 2)))
        };
        fleet.joined(introduction, CancellationToken::new());
        let rollout = fleet.rollout(newest.revision, &newest);
        assert_eq!((rollout.refused, rollout.complete), (1, false));
        let shown = &rollout.workers[0];
        assert_eq!(
            (shown.refused_revision, shown.refusals[0].reason.as_str()),
            (5, "QUARANTINED")
        );
        let newer = position("aa", 6);
        assert_eq!(fleet.rollout(newer.revision, &newer).pending, 1);
    }

    #[test]
    fn reasons_of_all_workers_together_are_bounded_and_the_first_of_each_comes_first() {
        let (fleet, newest) = (Fleet::default(), position("aa", 5));
        for n in 0..300 {
            let introduction = Introduction {
                refusals: (0..100).map(|n| refusal(&format!("m{n}"))).collect(),
                ..introduction(&format!("w{n}"), Some(newest.clone()))
            };
            fleet.joined(introduction, CancellationToken::new());
        }
        let rollout = fleet.rollout(newest.revision, &newest);
        let shown: usize = rollout.workers.iter().map(|w| w.refusals.len()).sum();
        assert!((900..=limits::REFUSALS_SHOWN).contains(&shown), "{shown}");
        assert!(rollout.workers.iter().all(|w| !w.refusals.is_empty()));
        assert_eq!(rollout.partial, 300);
    }

    #[test]
    fn a_workers_reasons_are_bounded_in_number_and_in_text() {
        assert_eq!(bounded(vec![refusal("m"); 300]).len(), limits::REFUSALS);
        let long = wire::Refusal {
            message: "\u{1b}é".repeat(1_000),
            ..refusal("m")
        };
        let some = bounded(vec![long; 100]);
        assert_eq!(some[0].message, "é".repeat(limits::REFUSAL_CHARS));
        let bytes: usize = some.iter().map(|r| r.message.len()).sum();
        assert!(bytes <= limits::REFUSAL_BYTES && some.len() > 10, "{bytes}");
    }

    #[test]
    fn the_newest_number_with_other_content_is_not_the_newest() {
        let (fleet, newest) = (Fleet::default(), position("aa", 5));
        let other = Position {
            digest: Digest::of(b"other"),
            ..newest.clone()
        };
        join(&fleet, "other", Some(other));
        join(&fleet, "ahead", Some(position("aa", 6)));
        join(&fleet, "same", Some(newest.clone()));
        let rollout = fleet.rollout(newest.revision, &newest);
        assert_eq!(
            (rollout.applied, rollout.pending, rollout.complete),
            (1, 2, false)
        );
    }

    #[test]
    fn a_rollout_is_computed_from_what_is_known() {
        let (fleet, newest) = (Fleet::default(), position("aa", 5));
        join(&fleet, "applied", Some(newest.clone()));
        join(&fleet, "behind", Some(position("aa", 4)));
        join(&fleet, "other-epoch", Some(position("bb", 9)));
        let (refusing, _) = join(&fleet, "refusing", Some(position("aa", 4)));
        let worker = WorkerId::new("refusing").unwrap();
        let refused = Refused {
            position: newest.clone(),
            refusals: Vec::new(),
        };
        fleet.refused(&worker, refusing.session, refused);
        let (gone, _) = join(&fleet, "gone", None);
        fleet.leave(&WorkerId::new("gone").unwrap(), gone.session);

        let rollout = fleet.rollout(newest.revision, &newest);
        let counts = (
            rollout.applied,
            rollout.pending,
            rollout.refused,
            rollout.gone,
        );
        assert_eq!((counts, rollout.complete), ((1, 2, 1, 1), false));
        let lag = |id: &str| {
            let worker = rollout.workers.iter().find(|worker| worker.id == id);
            worker.unwrap().lag_revisions
        };
        assert_eq!(
            (lag("applied"), lag("behind"), lag("other-epoch")),
            (0, 1, 5)
        );
        let before = fleet.rollout(Revision::new(4), &newest);
        assert_eq!((before.applied, before.pending), (3, 1));
    }

    #[test]
    fn a_change_is_told_of_and_a_sign_of_life_is_not() {
        let fleet = Fleet::default();
        let worker = WorkerId::new("w").unwrap();
        let mut changes = fleet.watch();
        let mut told = |after: &dyn Fn()| {
            changes.borrow_and_update();
            after();
            changes.has_changed().unwrap()
        };
        let session = join(&fleet, "w", None).0.session;
        assert!(!told(&|| fleet.seen(&worker, session)));
        assert!(!told(&|| fleet.beat(
            &worker,
            session,
            0,
            (None, Arc::default())
        )));
        assert!(told(&|| fleet.beat(
            &worker,
            session,
            3,
            (None, Arc::default())
        )));
        let newest = position("aa", 5);
        assert_eq!(fleet.worker("w", &newest).unwrap().draining_requests, 3);
        assert!(told(&|| fleet.applied(
            &worker,
            session,
            (newest.clone(), Vec::new()),
            1
        )));
        assert!(told(&|| fleet.leave(&worker, session)));
        assert_eq!(fleet.worker("w", &newest).unwrap().draining_requests, 0);
    }

    #[test]
    fn the_newest_stream_of_an_id_counts_and_remembers_the_refusal() {
        let (fleet, newest) = (Fleet::default(), position("aa", 5));
        let worker = WorkerId::new("w").unwrap();
        let (first, ended) = join(&fleet, "w", None);
        let refused = Refused {
            position: newest.clone(),
            refusals: Vec::new(),
        };
        fleet.refused(&worker, first.session, refused);
        let (second, _) = join(&fleet, "w", None);
        assert!(ended.is_cancelled());
        assert_eq!(
            (second.refused, second.replaces),
            (Some(newest.clone()), Some("w".into()))
        );
        fleet.leave(&worker, first.session);
        assert_eq!(fleet.counts(&newest).gone, 0, "the old stream has no say");
        let whole = (newest.clone(), Vec::new());
        fleet.applied(&worker, second.session, whole, 1);
        assert_eq!(fleet.counts(&newest).applied, 1);
    }
}
