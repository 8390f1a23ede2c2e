//! When something is good, and what a crash leaves behind.

use bytes::Bytes;
use forebay_proto::{Digest, Epoch, Revision, wire};
use prost::Message as _;
use tempfile::TempDir;
use tokio::task::JoinHandle;

use super::*;

const SOAK: Duration = Duration::from_secs(10);

fn kept(revision: u64) -> Kept {
    let model = Bytes::from(vec![revision as u8; 100]);
    config(revision, vec![model])
}

fn config(revision: u64, models: Vec<Bytes>) -> Kept {
    let envelope = wire::Envelope { budget: 1, models };
    let config = Bytes::from(envelope.encode_to_vec());
    let position = Position {
        epoch: Epoch::new("ab").unwrap(),
        revision: Revision::new(revision),
        digest: Digest::of(&config),
    };
    Kept {
        position,
        config,
        retained: Vec::new(),
    }
}

/// A keeper that runs, over the lives of its process.
struct Scene {
    dir: TempDir,
    marks: Option<Marks>,
    running: Option<JoinHandle<()>>,
    crashed: Option<Tried>,
}

#[expect(
    clippy::disallowed_methods,
    reason = "a test that kills the task, as a crash does"
)]
impl Scene {
    /// With one that is good, of revision 0, on disk.
    fn begin() -> Self {
        let mut scene = Self::empty();
        scene.lkg().save(&kept(0)).unwrap();
        scene.start();
        scene
    }

    fn empty() -> Self {
        let mut scene = Self {
            dir: tempfile::tempdir().unwrap(),
            marks: None,
            running: None,
            crashed: None,
        };
        scene.start();
        scene
    }

    fn lkg(&self) -> LastKnownGood {
        LastKnownGood::open(self.dir.path()).unwrap()
    }

    fn start(&mut self) {
        let (mut keeper, marks) = Keeper::new(self.lkg(), SOAK);
        self.crashed = keeper.begin();
        if let Some(kept) = keeper.load().first() {
            keeper.found(kept);
        }
        self.marks = Some(marks);
        self.running = Some(tokio::spawn(keeper.run()));
    }

    async fn push(&mut self, revision: u64) {
        self.push_kept(kept(revision)).await;
    }

    async fn push_kept(&mut self, kept: Kept) {
        let marks = self.marks.as_mut().unwrap();
        let revision = kept.position.revision;
        marks.trying(&kept.position).await;
        let on_disk = LastKnownGood::open(self.dir.path()).unwrap().attempts();
        assert!(
            on_disk.text().contains(&format!("trying ab {revision} ")),
            "before it is in force"
        );
        marks.in_force(kept);
    }

    fn crash(&mut self) {
        // The marks live on: the keeper must not take it for an end in good order.
        self.running.take().unwrap().abort();
        self.start();
    }

    async fn stop(&mut self) {
        self.marks = None;
        self.running.take().unwrap().await.unwrap();
        self.start();
    }

    /// Lets what is on its way to the disk get there.
    async fn until(&self, what: impl Fn(&LastKnownGood) -> bool) {
        let lkg = self.lkg();
        for _ in 0..5_000 {
            if what(&lkg) {
                return;
            }
            // The clock stands still, the disk does not.
            let rest = || std::thread::park_timeout(Duration::from_millis(1));
            tokio::task::spawn_blocking(rest).await.unwrap();
        }
        let on_disk: Vec<_> = lkg.load().map(|kept| kept.position).collect();
        panic!("{on_disk:?}, {:?}", lkg.attempts());
    }

    async fn on_disk(&self, revisions: &[u64]) {
        let wanted: Vec<Kept> = revisions.iter().map(|revision| kept(*revision)).collect();
        self.until(|lkg| lkg.load().collect::<Vec<_>>() == wanted)
            .await;
    }

    async fn nothing_tried(&self) {
        self.until(|lkg| lkg.attempts() == Attempts::default())
            .await;
    }
}

async fn pass(time: Duration) {
    // Step by step, so that what is on its way to the disk gets there.
    for _ in 0..10 {
        tokio::time::advance(time / 10).await;
        tokio::task::spawn_blocking(|| ()).await.unwrap();
        tokio::task::yield_now().await;
    }
}

#[tokio::test(start_paused = true)]
async fn it_is_good_after_its_soak_and_not_before() {
    let mut scene = Scene::begin();
    scene.push(1).await;
    pass(SOAK - Duration::from_millis(10)).await;
    scene.on_disk(&[0]).await;
    assert!(scene.lkg().attempts().text().contains("trying ab 1"));
    pass(Duration::from_millis(20)).await;
    scene.on_disk(&[1, 0]).await;
    pass(SOAK).await;
    scene.nothing_tried().await;
    scene.crash();
    assert_eq!(scene.crashed, None, "what is good does not count");
}

#[tokio::test(start_paused = true)]
async fn a_storm_leaves_the_disk_behind_for_no_more_than_two_soaks() {
    let mut scene = Scene::begin();
    for revision in 1..=15 {
        scene.push(revision).await;
        pass(Duration::from_secs(1)).await;
    }
    scene.on_disk(&[1, 0]).await;
    for revision in 16..=30 {
        scene.push(revision).await;
        pass(Duration::from_secs(1)).await;
    }
    let newest = |lkg: &LastKnownGood| lkg.load().next().unwrap().position.revision.get();
    scene.until(|lkg| newest(lkg) >= 10).await;
    assert!(newest(&scene.lkg()) <= 20);
    pass(SOAK * 2).await;
    scene.until(|lkg| lkg.load().next() == Some(kept(30))).await;
}

#[tokio::test(start_paused = true)]
async fn a_crash_within_the_soak_counts_and_two_are_enough() {
    let mut scene = Scene::begin();
    for crashes in 1..=2 {
        scene.push(1).await;
        pass(Duration::from_secs(3)).await;
        scene.crash();
        let tried = scene.crashed.take().unwrap();
        assert_eq!((tried.position, tried.crashes), (kept(1).position, crashes));
        scene.on_disk(&[0]).await;
    }
    let attempts = scene.lkg().attempts();
    assert_eq!(attempts.quarantined(), [kept(1).position]);
}

#[tokio::test(start_paused = true)]
async fn an_end_in_good_order_is_no_crash_and_loses_nothing() {
    let mut scene = Scene::begin();
    scene.push(1).await;
    for _ in 0..3 {
        scene.stop().await;
        assert_eq!(scene.crashed, None);
        scene.on_disk(&[1, 0]).await;
        assert!(scene.lkg().attempts().is_on_trial(&kept(1).position.digest));
        scene.marks.as_mut().unwrap().in_force(kept(1));
    }
    pass(SOAK * 2).await;
    scene.on_disk(&[1, 0]).await;
    scene.nothing_tried().await;
}

#[tokio::test(start_paused = true)]
async fn what_was_refused_is_not_tried() {
    let mut scene = Scene::begin();
    scene.push(1).await;
    let marks = scene.marks.as_mut().unwrap();
    marks.trying(&kept(2).position).await;
    marks.refused();
    let tried = |lkg: &LastKnownGood| lkg.attempts().text().contains("trying ab 1 ");
    scene.until(tried).await;
    scene.crash();
    assert_eq!(scene.crashed.take().unwrap().position, kept(1).position);
}

#[tokio::test(start_paused = true)]
async fn one_that_cannot_be_written_is_tried_again() {
    let mut scene = Scene::begin();
    // In its way.
    let way = scene.dir.path().join("writing");
    std::fs::create_dir(&way).unwrap();
    scene.push(1).await;
    pass(SOAK * 2).await;
    scene.on_disk(&[0]).await;
    std::fs::remove_dir(&way).unwrap();
    pass(SAVE_AGAIN * 2).await;
    scene.on_disk(&[1, 0]).await;
}

#[tokio::test(start_paused = true)]
async fn the_first_of_all_is_kept_at_once_and_on_trial() {
    let mut scene = Scene::empty();
    for crashes in 1..=2 {
        scene.push(1).await;
        scene.on_disk(&[1]).await;
        scene.crash();
        assert_eq!(scene.crashed.take().unwrap().crashes, crashes);
    }
    assert_eq!(scene.lkg().attempts().quarantined(), [kept(1).position]);
}

#[tokio::test(start_paused = true)]
async fn one_without_models_is_as_good_as_none() {
    let mut scene = Scene::empty();
    let nothing = config(1, Vec::new());
    scene.push_kept(nothing.clone()).await;
    scene
        .until(|lkg| lkg.load().next() == Some(nothing.clone()))
        .await;
    scene.push(2).await;
    scene.until(|lkg| lkg.load().next() == Some(kept(2))).await;
    scene.push(3).await;
    pass(SOAK / 2).await;
    assert_eq!(
        scene.lkg().load().next(),
        Some(kept(2)),
        "this one has time"
    );
}

/// Nobody answers: as if the disk hung.
#[tokio::test(start_paused = true)]
async fn a_disk_that_hangs_delays_and_does_not_prevent() {
    let dir = tempfile::tempdir().unwrap();
    let (_keeper, mut marks) = Keeper::new(LastKnownGood::open(dir.path()).unwrap(), SOAK);
    let began = Instant::now();
    marks.trying(&kept(1).position).await;
    assert_eq!(began.elapsed().as_secs(), MARK_WITHIN.as_secs());
}
