//! The task on a clock that stands still, with a registry that is played.

use std::path::Path;

use forebay_proto::{Digest, Epoch, PoolSettings, PoolSize, Revision, WorkerId};
use parking_lot::Mutex;
use prometheus::Registry;

use super::*;
use crate::{
    fleet::{Introduction, Refused, SessionId},
    registry::{Published, State},
    store::{Store as _, memory::MemoryStore},
};

/// Each revision has content of its own.
pub(in crate::rollout) fn published(revision: u64) -> Arc<Published> {
    let size = u32::try_from(revision).unwrap();
    let settings = PoolSettings {
        max_concurrent: PoolSize::new(size).unwrap(),
        ..PoolSettings::default()
    };
    let mut store = MemoryStore::new(Epoch::new("aa").unwrap(), settings);
    let state = State::new(store.load().unwrap());
    Arc::new(Published {
        position: position(revision),
        config: revision.to_be_bytes().to_vec().into(),
        traceparent: String::new(),
        state: Arc::new(state),
    })
}

pub(in crate::rollout) fn position(revision: u64) -> Position {
    Position {
        epoch: Epoch::new("aa").unwrap(),
        revision: Revision::new(revision),
        digest: Digest::of(&revision.to_be_bytes()),
    }
}

/// A registry that is played.
#[derive(Debug, Clone, Default)]
pub(in crate::rollout) struct Played {
    /// It has this revision, with this content.
    has: Option<(u64, u64)>,
    /// So many returns fail.
    fails: Arc<Mutex<u32>>,
    asked: Arc<Mutex<Vec<(u64, String)>>>,
}

impl Played {
    pub(in crate::rollout) fn with(has: Option<(u64, u64)>) -> Self {
        Self {
            has,
            ..Self::default()
        }
    }
}

impl Past for Played {
    async fn at(&self, revision: Revision) -> Result<Arc<Published>, String> {
        let has = self.has.filter(|(has, _)| *has == revision.get());
        let (revision, content) = has.ok_or("kept no more")?;
        let of_content = published(content);
        let position = Position {
            digest: of_content.position.digest,
            ..position(revision)
        };
        Ok(Arc::new(Published {
            position,
            config: of_content.config.clone(),
            traceparent: String::new(),
            state: of_content.state.clone(),
        }))
    }

    async fn return_to(
        &self,
        stable: &Published,
        reason: &str,
        _: u64,
    ) -> Result<Revision, String> {
        let stable = stable.position.revision;
        self.asked.lock().push((stable.get(), reason.to_owned()));
        let mut fails = self.fails.lock();
        if *fails > 0 {
            *fails -= 1;
            return Err("the disk is full".to_owned());
        }
        Ok(Revision::new(99))
    }
}

/// What a rollout in rings of one and then all has.
pub(in crate::rollout) fn parts(dir: &Path, past: Played, fleet: Arc<Fleet>) -> Parts<Played> {
    Parts {
        settings: RolloutSettings {
            rings: "1".parse().unwrap(),
            soak: Duration::from_secs(10),
            max_errors: 0.1,
            max_slowdown: 3.0,
        },
        kept: Kept::File(dir.to_owned()),
        leadership: Leadership::alone().1,
        past,
        fleet,
        metrics: Arc::new(Metrics::new(&Registry::new()).unwrap()),
    }
}

struct World {
    fleet: Arc<Fleet>,
    newest: watch::Sender<Offer>,
    offers: watch::Receiver<Offer>,
    sessions: Vec<(WorkerId, SessionId)>,
    tasks: TaskTracker,
    stop: CancellationToken,
    dir: tempfile::TempDir,
    past: Played,
}

impl World {
    /// A control plane that starts with this revision, and four workers that hold the first.
    async fn start(newest: u64, saved: Option<u64>, past: Played) -> Self {
        let dir = tempfile::tempdir().unwrap();
        if let Some(saved) = saved {
            kept::save(dir.path(), &position(saved)).unwrap();
        }
        let fleet = Arc::<Fleet>::default();
        let sessions = ["a", "b", "c", "d"].map(|id| {
            let introduction = Introduction::plain(id, "i", Some(position(1)));
            let joined = fleet.joined(introduction, CancellationToken::new());
            (WorkerId::new(id).unwrap(), joined.session)
        });
        let first = Offer::to_all(Target::alone(published(newest)));
        let (newest, published) = watch::channel(first);
        let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
        let parts = parts(dir.path(), past.clone(), fleet.clone());
        let offers = start(parts, published, &tasks, stop.clone()).await;
        Self {
            fleet,
            newest,
            offers,
            sessions: sessions.to_vec(),
            tasks,
            stop,
            dir,
            past,
        }
    }

    fn publish(&self, revision: u64) {
        let target = Target::alone(published(revision));
        self.newest.send_replace(Offer::to_all(target));
    }

    /// What each worker is offered.
    fn offered(&self) -> Vec<u64> {
        let offer = self.offers.borrow();
        let offered = self.sessions.iter().map(|(worker, _)| {
            let target = offer.of(Some(worker), None);
            target.revision().get()
        });
        offered.collect()
    }

    /// Those that are offered this take it, or refuse it.
    fn answer(&self, revision: u64, refuse: bool) {
        let offered = self.offered();
        for ((worker, session), offered) in self.sessions.iter().zip(offered) {
            let position = position(revision);
            match (offered == revision, refuse) {
                (false, _) => {}
                (true, false) => self
                    .fleet
                    .applied(worker, *session, (position, Vec::new()), 1),
                (true, true) => {
                    let refusals = Vec::new();
                    let refused = Refused { position, refusals };
                    self.fleet.refused(worker, *session, refused);
                }
            }
        }
    }

    fn saved(&self) -> Option<u64> {
        kept::load(self.dir.path()).map(|saved| saved.revision.get())
    }

    async fn end(self) {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}

async fn later(seconds: u64) {
    for _ in 0..seconds * 4 {
        sleep(Duration::from_millis(250)).await;
        // The file is written on a thread of its own, which a clock that stands still does not wait for.
        tokio::task::spawn_blocking(|| {}).await.unwrap();
    }
}

fn count(offered: &[u64], revision: u64) -> usize {
    offered
        .iter()
        .filter(|offered| **offered == revision)
        .count()
}

#[tokio::test(start_paused = true)]
async fn one_worker_is_offered_it_then_all_and_what_is_stable_is_kept() {
    let world = World::start(1, None, Played::default()).await;
    assert_eq!(world.offered(), [1, 1, 1, 1]);
    assert_eq!(world.saved(), Some(1));
    world.publish(2);
    later(1).await;
    assert_eq!(count(&world.offered(), 2), 1, "{:?}", world.offered());
    assert_eq!(world.offers.borrow().newest(), Revision::new(2));
    world.answer(2, false);
    later(9).await;
    assert_eq!((count(&world.offered(), 2), world.saved()), (1, Some(1)));
    later(3).await;
    assert_eq!((world.offered(), world.saved()), (vec![2; 4], Some(2)));
    world.end().await;
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_taken_back_at_once_is_tried_again_until_it_is() {
    let past = Played::default();
    *past.fails.lock() = 2;
    let world = World::start(1, None, past).await;
    world.publish(2);
    later(1).await;
    world.answer(2, true);
    later(3).await;
    let stage = |revision| {
        world
            .fleet
            .rollout(Revision::new(revision), &position(2))
            .stage()
    };
    assert_eq!(stage(2), forebay_proto::wire::RolloutStage::Returning);
    later(12).await;
    let asked = world.past.asked.lock().clone();
    assert_eq!(asked.len(), 3, "{asked:?}");
    assert!(
        asked
            .iter()
            .all(|(to, why)| *to == 1 && why.contains("refused it")),
        "{asked:?}"
    );
    assert_eq!(stage(2), forebay_proto::wire::RolloutStage::Returned);
    assert_eq!(count(&world.offered(), 2), 1, "until the return is here");
    world.publish(99);
    later(1).await;
    assert_eq!((world.offered(), world.saved()), (vec![99; 4], Some(99)));
    world.end().await;
}

#[tokio::test(start_paused = true)]
async fn after_a_restart_stable_is_what_it_was_if_it_can_be_had() {
    let has = |content| Played {
        has: Some((1, content)),
        ..Played::default()
    };
    let world = World::start(5, Some(1), has(1)).await;
    later(1).await;
    assert_eq!(count(&world.offered(), 5), 1, "the rest wait");
    assert_eq!(count(&world.offered(), 1), 3);
    world.end().await;
    // The number has another content now; it is kept no more; it is not older.
    for (saved, past) in [(1, has(7)), (1, Played::default()), (6, has(1))] {
        let world = World::start(5, Some(saved), past).await;
        later(1).await;
        assert_eq!((world.offered(), world.saved()), (vec![5; 4], Some(5)));
        world.end().await;
    }
}

#[tokio::test(start_paused = true)]
async fn what_waits_is_known_of_though_nobody_is_offered_it() {
    let world = World::start(1, None, Played::default()).await;
    world.publish(2);
    later(31).await;
    world.publish(3);
    later(1).await;
    assert_eq!(
        count(&world.offered(), 3),
        0,
        "the first has waited long enough"
    );
    assert_eq!(world.offers.borrow().newest(), Revision::new(3));
    let rollout = world.fleet.rollout(Revision::new(3), &position(3));
    assert_eq!(rollout.stage(), forebay_proto::wire::RolloutStage::Waiting);
    world.answer(2, false);
    later(12).await;
    assert_eq!(count(&world.offered(), 3), 1, "its turn");
    assert_eq!(count(&world.offered(), 2), 3);
    world.end().await;
}

#[tokio::test(start_paused = true)]
async fn what_was_proven_is_so_in_another_lineage_that_has_the_same_under_its_number() {
    let has = |content| Played {
        has: Some((1, content)),
        ..Played::default()
    };
    for (past, expected) in [(has(1), 1), (has(7), 5)] {
        let saved = Position {
            epoch: Epoch::new("bb").unwrap(),
            ..position(1)
        };
        let newest = Target::alone(published(5));
        let stable = stable(&past, Some(saved), &newest).await;
        assert_eq!(stable.revision(), Revision::new(expected));
    }
}
