//! Power cuts: what a control plane does to its files is recorded while it is written to, and the disk that a cut
//! at any moment would have left is opened. Nothing acknowledged is lost, and every such store opens.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    path::{Path, PathBuf},
    sync::{Arc, atomic::AtomicU64},
    time::Duration,
};

use fastrand::Rng;
use forebay_tests::eventually_within;
use tokio::time::sleep;

use crate::{
    alone, count,
    disk::{Disk, Loss, place, read},
    plane::{InForce, Plane},
    recording::{Act, Record, Recorder},
    writers::{Asked, Kind, Writers, Written},
};

/// Moments at which the power is cut. Each gives two disks.
const CUTS: usize = 30;
const CUTS_VARIABLE: &str = "FOREBAY_TEST_POWER_CUTS";
/// Starts of the control plane, and how long it is written to after each.
const STARTS: usize = 3;
const WRITING: Duration = Duration::from_millis(1_500);
/// So many writes at least after each, whatever the disk needs for them.
const ENOUGH: u64 = 40;
const PATIENCE: Duration = Duration::from_secs(120);

/// What was done to the disk, and what was answered meanwhile.
#[derive(Default)]
struct Recorded {
    before: Disk,
    records: Vec<Record>,
    epoch: String,
    /// By revision, with how much was recorded when the answer was there.
    writes: BTreeMap<u64, (Asked, u64)>,
}

#[derive(Debug, Default)]
struct Opened {
    disks: usize,
    recovered: usize,
    wrong: Vec<String>,
}

impl Recorded {
    /// Records a control plane that is made, written to, stopped, and started again.
    async fn under_load(omitted: Option<&str>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (data, recorder) = prepared(dir.path());
        let mut recorded = Self::default();
        let numbers = Arc::new(AtomicU64::new(1));
        for _ in 0..STARTS {
            let mut env = recorder.env().to_vec();
            env.extend(omitted.map(|step| ("FOREBAY_TEST_OMIT", step)));
            let plane = Plane::start(&data, &env).await;
            let found = plane.in_force().await;
            recorded.epoch = found.epoch;
            let record = Some(recorder.into.as_path());
            let writers = Writers::start(&plane, found.models.keys(), &numbers, record);
            sleep(WRITING).await;
            // However slow the disk is.
            eventually_within(PATIENCE, "enough is written", async || {
                (writers.acknowledged() >= ENOUGH).then_some(())
            })
            .await;
            recorded.take(writers.stop().await);
            let (code, _, said) = plane.process.terminate().await;
            assert_eq!(code, Some(0), "{said}");
        }
        recorded.records = recorder.records();
        recorded.is_whole(&data);
        recorded
    }

    /// Records a control plane that finds its database cut short, and builds it again from its export.
    async fn recovery() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (data, recorder) = prepared(dir.path());
        let mut recorded = Self::default();
        let plane = Plane::start(&data, &[]).await;
        recorded.epoch = plane.in_force().await.epoch;
        let writers = Writers::start(&plane, [].iter(), &Arc::new(AtomicU64::new(1)), None);
        sleep(WRITING).await;
        recorded.take(writers.stop().await);
        let (code, _, said) = plane.process.terminate().await;
        assert_eq!(code, Some(0), "{said}");
        let database = File::options().write(true).open(data.join("control/db"));
        let database = database.unwrap();
        database
            .set_len(database.metadata().unwrap().len() / 2)
            .unwrap();
        recorded.before = Disk::of(&data);
        let plane = Plane::start(&data, &recorder.env()).await;
        assert_ne!(plane.in_force().await.epoch, recorded.epoch, "built anew");
        plane.process.terminate().await;
        recorded.records = recorder.records();
        recorded
    }

    fn take(&mut self, written: Vec<Written>) {
        for one in written {
            assert_eq!(one.lost, None, "nobody was killed");
            for write in one.acknowledged {
                let made = (write.asked, write.recorded);
                self.writes.insert(write.answer.revision(), made);
            }
        }
    }

    /// Played again, the records are the directory: nothing is missing from them.
    fn is_whole(&self, data: &Path) {
        let mut disk = Disk::default();
        self.records.iter().for_each(|record| disk.apply(record));
        let (played, real) = (
            disk.after(Loss::Nothing, &mut Rng::with_seed(0)),
            read(data),
        );
        let names = |image: &BTreeMap<_, _>| image.keys().cloned().collect::<Vec<String>>();
        assert_eq!(names(&played), names(&real));
        for (path, content) in real {
            assert!(played[&path] == content, "{path} is not as it was recorded");
        }
    }

    /// Cuts the power at so many moments, and opens what is left each time.
    async fn cut(mut self, cuts: usize, random: &mut Rng) -> Opened {
        let mut moments: Vec<_> = (0..cuts).map(|n| self.moment(n, random)).collect();
        moments.sort_unstable();
        let mut disk = std::mem::take(&mut self.before);
        let (mut opened, mut done) = (Opened::default(), 0);
        for moment in moments {
            let newly = &self.records[done..moment];
            newly.iter().for_each(|record| disk.apply(record));
            done = moment;
            for loss in [Loss::Everything, Loss::Some] {
                let dir = tempfile::tempdir().unwrap();
                place(&disk.after(loss, random), dir.path());
                self.open(dir.path(), moment, loss, &mut opened).await;
            }
        }
        opened
    }

    /// Every second one is the moment before a sync, when there is most to lose.
    fn moment(&self, n: usize, random: &mut Rng) -> usize {
        let syncs = self.records.iter().enumerate();
        let syncs = syncs.filter(|(_, record)| matches!(record.act, Act::Synced));
        let syncs: Vec<_> = syncs.map(|(n, _)| n).filter(|n| *n > 0).collect();
        match n.is_multiple_of(2) {
            true => syncs[random.usize(..syncs.len())],
            false => random.usize(1..=self.records.len()),
        }
    }

    async fn open(&self, data: &Path, moment: usize, loss: Loss, opened: &mut Opened) {
        let cut = self.records[moment - 1].end;
        let where_cut = format!("{loss:?} lost after record {moment}");
        opened.disks += 1;
        match Plane::try_start(data, &[]).await {
            Err(said) => opened.wrong.push(format!("{where_cut}: {said}")),
            Ok(plane) => {
                let found = plane.in_force().await;
                let repeated = self.repeat(&plane, &found).await;
                let said = plane.process.err();
                plane.process.kill().await;
                opened.recovered += usize::from(found.epoch != self.epoch);
                let wrong = self.compare(&found, cut).or(repeated);
                let wrong = wrong.map(|what| format!("{where_cut}: {what}: {said}"));
                opened.wrong.extend(wrong);
            }
        }
    }

    /// What is wrong with the answer to the newest write that is there, asked for again under its request id.
    async fn repeat(&self, plane: &Plane, found: &InForce) -> Option<String> {
        let newest = found.revision - u64::from(found.epoch != self.epoch);
        let (asked, _) = self.writes.get(&newest)?;
        let again = asked.ask(&mut plane.registry()).await;
        let same = again
            .as_ref()
            .is_ok_and(|answer| answer.revision() == newest);
        (!same).then(|| format!("{asked:?} got revision {newest}, and now {again:?}"))
    }

    /// What is wrong with what was found after a cut.
    fn compare(&self, found: &InForce, cut: u64) -> Option<String> {
        // A store that was built anew is one revision further than what it was built from.
        let revision = found.revision - u64::from(found.epoch != self.epoch);
        let before = self.writes.iter().filter(|(_, (_, seen))| *seen <= cut);
        let acknowledged = before.map(|(revision, _)| *revision).max();
        if acknowledged > Some(revision) {
            return Some(format!(
                "{acknowledged:?} was acknowledged, {revision} is there: lost"
            ));
        }
        let mut expected = BTreeMap::new();
        for (revision, (asked, _)) in self.writes.range(..=revision) {
            match asked.kind {
                Kind::Delete => expected.remove(&asked.model),
                Kind::Create | Kind::Update => {
                    expected.insert(asked.model.clone(), (asked, *revision))
                }
            };
        }
        let same = expected.len() == found.models.len()
            && found.models.iter().all(|(id, model)| {
                let expected = expected.get(id);
                expected.is_some_and(|(asked, revision)| {
                    asked.is(model) && (model.revision == *revision || found.epoch != self.epoch)
                })
            });
        (!same).then(|| format!("revision {revision} should hold {expected:?}, not {found:?}"))
    }
}

fn prepared(dir: &Path) -> (PathBuf, Recorder) {
    let (data, own) = (dir.join("data"), dir.join("own"));
    fs::create_dir(&data).unwrap();
    fs::create_dir(&own).unwrap();
    let recorder = Recorder::new(&data, &own);
    (data, recorder)
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_acknowledged_is_lost_to_a_power_cut() {
    let _alone = alone().await;
    let recorded = Recorded::under_load(None).await;
    let (writes, records) = (recorded.writes.len(), recorded.records.len());
    let opened = recorded
        .cut(count(CUTS_VARIABLE, CUTS), &mut Rng::with_seed(17))
        .await;
    let Opened {
        disks,
        recovered,
        wrong,
    } = opened;
    println!(
        "{writes} acknowledged writes, {records} records, {disks} disks: {} lost something or did not open, {recovered} \
         were new or built again",
        wrong.len()
    );
    assert!(writes > 100, "{writes} writes");
    assert_eq!(wrong, [""; 0], "{} of {disks}", wrong.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_power_cut_in_a_recovery_is_made_good() {
    let _alone = alone().await;
    let recorded = Recorded::recovery().await;
    let records = recorded.records.len();
    let cuts = count(CUTS_VARIABLE, CUTS) / 2;
    let Opened {
        disks,
        recovered,
        wrong,
    } = recorded.cut(cuts, &mut Rng::with_seed(19)).await;
    println!(
        "{records} records of a recovery, {disks} disks: {} lost something or did not open",
        wrong.len()
    );
    assert_eq!(wrong, [""; 0], "{} of {disks}", wrong.len());
    assert_eq!(recovered, disks);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_sync_a_power_cut_is_noticed() {
    let _alone = alone().await;
    let recorded = Recorded::under_load(Some("fdatasync")).await;
    let opened = recorded.cut(10, &mut Rng::with_seed(18)).await;
    let lost = opened.wrong.iter().filter(|what| what.contains("lost"));
    println!("{} of {} lost something", lost.count(), opened.disks);
    assert!(opened.wrong.len() > 3, "{opened:?}");
}
