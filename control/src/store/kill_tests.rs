//! A process that writes is killed, at each crash point and at random: nothing acknowledged is lost, nothing
//! that was refused appears, and the revision never goes back.

use std::{
    collections::BTreeMap,
    io::{BufRead as _, BufReader, Write as _},
    os::unix::process::ExitStatusExt as _,
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, SystemTime},
};

use forebay_proto::{PoolSettings, Revision};

use super::{
    IdemRecord, Recovery, Store as _, Stored, VALUE_BYTES, crash, export, recover, suite::put,
};

const CHILD: &str = "store::kill_tests::child";
const DIR: &str = "FOREBAY_TEST_KILL";
/// Kills in one run of the test; more by this variable.
const KILLS: u64 = 150;
const KILLS_VARIABLE: &str = "FOREBAY_TEST_KILLS";
/// Every step of a commit and of an export.
const POINTS: [&str; 8] = [
    "planned",
    "written",
    "flushed",
    "synced",
    "export-half",
    "export-synced",
    "export-rotated",
    "export-placed",
];

/// Writes until it is killed: one model per revision in turn, and an export now and then.
#[test]
fn child() {
    let Ok(dir) = std::env::var(DIR) else {
        return;
    };
    let dir = Path::new(&dir);
    let (mut store, recovered) =
        recover::open(dir, &PoolSettings::default(), Recovery::Automatic).unwrap();
    assert_eq!(recovered, None, "a kill is no damage");
    let mut out = std::io::stdout();
    for revision in store.load().unwrap().revision.get() + 1.. {
        let mut refused = put("refused", 1, revision);
        refused.idem = Some(too_large(revision));
        store.commit(&[refused]).unwrap_err();
        store
            .commit(&[put(&format!("m{}", revision % 20), 1, revision)])
            .unwrap();
        writeln!(out, "ACK {revision}").unwrap();
        if revision % 5 == 0 {
            export::save(dir, &store.load().unwrap(), SystemTime::now()).unwrap();
        }
    }
}

/// An answer that no store takes.
fn too_large(revision: u64) -> IdemRecord {
    IdemRecord {
        request_id: "refused".into(),
        fingerprint: Vec::new(),
        revision: Revision::new(revision),
        expires: SystemTime::now(),
        answer: vec![0; VALUE_BYTES + 1],
    }
}

fn spawn(dir: &Path, point: Option<(&str, u64)>) -> Child {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", CHILD, "--nocapture"]);
    command.env(DIR, dir).stdout(Stdio::piped());
    if let Some((point, pass)) = point {
        command.env(crash::VARIABLE, format!("{point}:{pass}"));
    }
    command.spawn().unwrap()
}

/// The newest revision that was acknowledged before the end.
fn acknowledged(child: Child, kill_after: Option<u64>) -> u64 {
    let mut child = child;
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let (mut newest, mut seen) = (0, 0);
    for line in lines {
        if let Some(revision) = line.unwrap().strip_prefix("ACK ") {
            newest = revision.parse().unwrap();
            seen += 1;
            if kill_after == Some(seen) {
                child.kill().unwrap();
            }
        }
    }
    assert_eq!(child.wait().unwrap().signal(), Some(9), "it was killed");
    newest
}

/// What must be there at a revision: each model as the last write of it left it.
fn holds(stored: &Stored, revision: Revision) {
    let mut expected = BTreeMap::new();
    for revision in 2..=revision.get() {
        expected.insert(format!("m{}", revision % 20), Revision::new(revision));
    }
    let found = stored.models.iter();
    let found = found.map(|model| (model.spec.id().as_str().to_owned(), model.revision));
    assert_eq!(found.collect::<BTreeMap<_, _>>(), expected);
}

#[test]
fn nothing_acknowledged_is_lost_to_a_kill() {
    let dir = tempfile::tempdir().unwrap();
    let kills = std::env::var(KILLS_VARIABLE).map_or(KILLS, |kills| kills.parse().unwrap());
    let mut random = fastrand::Rng::with_seed(4);
    let mut before = 0;
    for kill in 0..kills {
        let point = POINTS.get(kill as usize % (2 * POINTS.len()));
        let point = point.map(|point| (*point, random.u64(1..=4)));
        let after = point.is_none().then(|| random.u64(1..=12));
        let newest = acknowledged(spawn(dir.path(), point), after).max(before);
        let began = tokio::time::Instant::now();
        let opened = recover::open(dir.path(), &PoolSettings::default(), Recovery::Automatic);
        let (mut store, recovered) = opened.unwrap();
        assert!(began.elapsed() < Duration::from_secs(5));
        assert_eq!(recovered, None, "a kill is no damage");
        let stored = store.load().unwrap();
        let revision = stored.revision.get();
        assert!(revision >= newest, "{point:?}: {newest} became {revision}");
        // One write was under way, and nothing else may have appeared.
        assert!(
            revision <= newest + 1,
            "{point:?}: {newest} became {revision}"
        );
        holds(&stored, stored.revision);
        before = revision;
    }
    assert!(before > kills, "{kills} kills, {before} revisions");
    println!("{kills} kills, {before} revisions");
}

#[test]
fn a_store_that_is_killed_while_it_is_made_is_made_by_the_next_start() {
    let mut random = fastrand::Rng::with_seed(5);
    let mut unmade = 0;
    for n in 0..60 {
        let dir = tempfile::tempdir().unwrap();
        let point = ["flushed", "synced"].get(n % 10).map(|point| (*point, 1));
        let mut child = spawn(dir.path(), point);
        if point.is_none() {
            super::sled::sleep(Duration::from_micros(random.u64(1_000..60_000)));
            child.kill().unwrap();
        }
        let newest = acknowledged(child, None);
        let opened = recover::open(dir.path(), &PoolSettings::default(), Recovery::Automatic);
        let (mut store, recovered) = opened.unwrap();
        assert_eq!(recovered, None, "a kill is no damage");
        let stored = store.load().unwrap();
        assert!(stored.revision.get() >= newest.max(1));
        holds(&stored, stored.revision);
        unmade += u64::from(newest == 0);
    }
    assert!(
        unmade > 10,
        "{unmade} of 60 were killed before their first answer"
    );
    println!("{unmade} of 60 were killed before their first answer");
}
