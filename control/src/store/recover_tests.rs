//! What becomes of damaged stores: recovered from the export within 5 s, or refused by name; never empty.

use std::{
    fs::{self, OpenOptions},
    os::unix::{
        fs::{FileExt as _, PermissionsExt as _},
        process::ExitStatusExt as _,
    },
    path::Path,
    process::Command,
    time::{Duration, SystemTime},
};

use forebay_proto::{PoolSettings, Revision};
use tokio::time::Instant;

use super::{LockedStore, MAKING, OpenError, Recovered, Recovery, crash, export, open};
use crate::store::{Change, IdemRecord, Store as _, Stored, offline, suite::put};

const LIMIT: Duration = Duration::from_secs(5);
/// The test that is a child's part.
const CHILD: &str = "store::recover::tests::child";
/// Of each kind of damage.
const TIMES: u64 = 100;

fn start(dir: &Path) -> Result<(LockedStore, Option<Recovered>), OpenError> {
    open(dir, &PoolSettings::default(), Recovery::Automatic)
}

/// A store of some models, exported and closed.
fn exported(dir: &Path, models: u64) -> Stored {
    let (mut store, recovered) = start(dir).unwrap();
    assert_eq!(recovered, None);
    for n in 0..models {
        store.commit(&[put(&format!("m{n}"), 3, n + 2)]).unwrap();
    }
    let answer = IdemRecord {
        request_id: "again".into(),
        fingerprint: vec![1],
        revision: Revision::new(models + 1),
        expires: SystemTime::UNIX_EPOCH + Duration::from_secs(9),
        answer: vec![2],
    };
    let remember = Change {
        revision: Revision::new(models + 1),
        entry: None,
        idem: Some(answer),
        forget_idem: Vec::new(),
    };
    store.commit(&[remember]).unwrap();
    let stored = store.load().unwrap();
    export::save(dir, &stored, SystemTime::now()).unwrap();
    stored
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_file() {
            fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
        }
    }
}

/// Opens a damaged copy: the same content again, and if it was built anew, under another epoch.
fn comes_back(dir: &Path, before: &Stored) -> Option<Recovered> {
    let began = Instant::now();
    let (mut store, recovered) = start(dir).unwrap();
    assert!(began.elapsed() < LIMIT, "{:?}", began.elapsed());
    let after = store.load().unwrap();
    assert_eq!(after.models, before.models);
    assert_eq!(after.idem, before.idem);
    assert_eq!(after.settings, before.settings);
    assert!(after.revision >= before.revision);
    let rebuilt = recovered.as_ref().is_some_and(|r| r.export.is_some());
    assert_eq!(after.epoch != before.epoch, rebuilt);
    if rebuilt {
        assert_eq!(after.revision, before.revision.next());
    }
    drop(store);
    let (mut store, again) = start(dir).unwrap();
    assert_eq!((store.load().unwrap(), again), (after, None));
    recovered
}

#[test]
fn flipped_bits_anywhere_are_recovered_from() {
    let origin = tempfile::tempdir().unwrap();
    let before = exported(origin.path(), 40);
    let mut random = fastrand::Rng::with_seed(6);
    let used = used_bytes(&origin.path().join("db"));
    let mut recovered = 0;
    for _ in 0..TIMES {
        let dir = tempfile::tempdir().unwrap();
        copy(origin.path(), dir.path());
        let mut options = OpenOptions::new();
        let options = options.read(true).write(true);
        let file = options.open(dir.path().join("db")).unwrap();
        for _ in 0..random.u64(1..=8) {
            let (at, mut byte) = (random.u64(..used), [0]);
            file.read_exact_at(&mut byte, at).unwrap();
            file.write_all_at(&[byte[0] ^ (1 << random.u8(..8))], at)
                .unwrap();
        }
        recovered += u64::from(comes_back(dir.path(), &before).is_some());
    }
    println!("{recovered} of {TIMES} had to be recovered");
    assert!(recovered > TIMES / 4, "{recovered}");
}

fn used_bytes(path: &Path) -> u64 {
    let bytes = fs::read(path).unwrap();
    bytes.iter().rposition(|byte| *byte != 0).unwrap() as u64 + 1
}

#[test]
fn files_cut_short_or_gone_are_recovered_from() {
    let origin = tempfile::tempdir().unwrap();
    let before = exported(origin.path(), 40);
    // Once more, so that there is a snapshot.
    drop(start(origin.path()).unwrap());
    let used = used_bytes(&origin.path().join("db"));
    let mut random = fastrand::Rng::with_seed(7);
    let names = names_of_database(fs::read_dir(origin.path()).unwrap());
    assert!(
        names.iter().any(|name| name.starts_with("snap.")),
        "{names:?}"
    );
    let mut recovered = 0;
    for n in 0..TIMES {
        let dir = tempfile::tempdir().unwrap();
        copy(origin.path(), dir.path());
        let name = &names[n as usize % names.len()];
        let path = dir.path().join(name);
        let length = match name.as_str() {
            "db" => random.u64(..used),
            _ => random.u64(..fs::metadata(&path).unwrap().len()),
        };
        match random.u8(..4) {
            0 => fs::remove_file(&path).unwrap(),
            _ => OpenOptions::new()
                .write(true)
                .open(&path)
                .unwrap()
                .set_len(length)
                .unwrap(),
        }
        recovered += u64::from(comes_back(dir.path(), &before).is_some());
    }
    println!("{recovered} of {TIMES} had to be recovered");
    assert!(recovered > TIMES / 4, "{recovered}");
}

fn names_of_database(entries: impl Iterator<Item = std::io::Result<fs::DirEntry>>) -> Vec<String> {
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<_> = names
        .filter(|name| {
            matches!(name.as_str(), "db" | "conf" | "forebay-epoch") || name.starts_with("snap.")
        })
        .collect();
    names.sort();
    names
}

#[test]
fn a_snapshot_that_was_being_written_costs_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let before = exported(dir.path(), 3);
    fs::write(dir.path().join("snap.FFFFFFFFFFFFFFFF.generating"), "half").unwrap();
    assert_eq!(comes_back(dir.path(), &before), None);
}

#[test]
fn a_damaged_snapshot_loses_nothing_that_the_export_lacks() {
    let dir = tempfile::tempdir().unwrap();
    exported(dir.path(), 3);
    let (mut store, _) = start(dir.path()).unwrap();
    store.commit(&[put("later", 1, 5)]).unwrap();
    let before = store.load().unwrap();
    drop(store);
    drop(start(dir.path()).unwrap());
    for path in super::files(dir.path(), |name| name.starts_with("snap.")).unwrap() {
        fs::write(path, "short").unwrap();
    }
    let recovered = comes_back(dir.path(), &before).unwrap();
    assert_eq!(recovered.export, None);
    assert!(
        recovered.to_string().contains("nothing was lost"),
        "{recovered}"
    );
}

#[test]
fn a_database_older_than_its_export_is_not_taken() {
    let (dir, old) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let before = exported(dir.path(), 3);
    let (mut store, _) = start(dir.path()).unwrap();
    copy(dir.path(), old.path());
    store.commit(&[put("later", 1, 5)]).unwrap();
    let after = store.load().unwrap();
    export::save(old.path(), &after, SystemTime::now()).unwrap();
    drop(store);
    let recovered = comes_back(old.path(), &after).unwrap();
    assert!(
        recovered.cause.contains("ends at revision 4"),
        "{recovered}"
    );
    assert!(before.revision < after.revision);
    assert!(recovered.aside.join("db").exists(), "nothing is deleted");
}

#[test]
fn an_export_that_is_damaged_gives_way_to_the_one_before() {
    let dir = tempfile::tempdir().unwrap();
    let first = exported(dir.path(), 3);
    export::save(dir.path(), &first, SystemTime::now()).unwrap();
    let newest = dir.path().join(export::KEPT[0]);
    let mut bytes = fs::read(&newest).unwrap();
    bytes[70] ^= 1;
    fs::write(&newest, &bytes).unwrap();
    fs::remove_file(dir.path().join("db")).unwrap();
    assert!(comes_back(dir.path(), &first).is_some());
}

#[test]
fn without_an_export_and_without_leave_it_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    exported(dir.path(), 3);
    fs::remove_file(dir.path().join("db")).unwrap();
    let refused = open(dir.path(), &PoolSettings::default(), Recovery::Forbidden);
    let error = refused.unwrap_err().to_string();
    assert!(
        error.contains("its database is gone") && error.contains("control import"),
        "{error}"
    );
    for name in export::KEPT {
        drop(fs::remove_file(dir.path().join(name)));
    }
    let error = start(dir.path()).unwrap_err().to_string();
    assert!(error.contains("there is no export"), "{error}");
    assert!(!dir.path().join("db").exists());
}

#[test]
fn an_export_changed_or_cut_anywhere_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let stored = exported(dir.path(), 2);
    let bytes = fs::read(dir.path().join(export::KEPT[0])).unwrap();
    assert_eq!(export::read(&bytes[..]).unwrap().1, stored);
    let mode = fs::metadata(dir.path().join(export::KEPT[0]))
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
    for at in 0..bytes.len() {
        export::read(&bytes[..at]).unwrap_err();
        let mut changed = bytes.clone();
        changed[at] ^= 1 << (at % 8);
        export::read(&changed[..]).unwrap_err();
    }
    export::read(&[&bytes[..], b"x"].concat()[..]).unwrap_err();
}

#[test]
fn an_import_makes_a_store_and_only_in_an_empty_directory() {
    let (dir, out, new, scratch) = (
        tempfile::tempdir().unwrap(),
        tempfile::tempdir().unwrap(),
        tempfile::tempdir().unwrap(),
        tempfile::tempdir().unwrap(),
    );
    let before = exported(dir.path(), 5);
    let file = out.path().join("x");
    let header = offline::export_directory(dir.path(), &file, scratch.path()).unwrap();
    assert_eq!((header.revision, header.models), (6, 5));
    let error = offline::import(&file, dir.path()).unwrap_err().to_string();
    assert!(error.contains("not empty"), "{error}");
    offline::import(&file, new.path()).unwrap();
    let scratch = tempfile::tempdir().unwrap();
    let report = offline::check(new.path(), scratch.path()).unwrap();
    assert!(report.is_sound(), "{report:?}");
    let (mut store, recovered) = start(new.path()).unwrap();
    let after = store.load().unwrap();
    assert_eq!((recovered, &after.models), (None, &before.models));
    assert_ne!(after.epoch, before.epoch);
    let error = offline::check(new.path(), scratch.path()).unwrap_err();
    assert!(
        matches!(error, offline::OfflineError::Open(OpenError::InUse { .. })),
        "{error}"
    );
}

/// The models of the largest fleet, in the form in which they are opened.
#[test]
fn ten_thousand_models_are_opened_and_recovered_in_time() {
    let dir = tempfile::tempdir().unwrap();
    let (mut store, _) = start(dir.path()).unwrap();
    for group in 0..100 {
        let models = (0..100).map(|n| put(&format!("m{group}-{n}"), 3, 2 + group * 100 + n));
        store.commit(&models.collect::<Vec<_>>()).unwrap();
    }
    let stored = store.load().unwrap();
    let began = Instant::now();
    export::save(dir.path(), &stored, SystemTime::now()).unwrap();
    let saved = began.elapsed();
    drop(store);
    let began = Instant::now();
    let (store, recovered) = start(dir.path()).unwrap();
    let reopened = began.elapsed();
    assert_eq!(recovered, None);
    drop(store);
    fs::remove_file(dir.path().join("db")).unwrap();
    let began = Instant::now();
    let (mut store, recovered) = start(dir.path()).unwrap();
    let rebuilt = began.elapsed();
    println!("saved in {saved:?}, reopened in {reopened:?}, recovered in {rebuilt:?}");
    assert!(recovered.is_some());
    assert_eq!(store.load().unwrap().models.len(), 10_000);
    // In an optimised build a tenth of it (docs/operating.md); this one shares two cores with other tests.
    assert!(rebuilt < 4 * LIMIT, "{rebuilt:?}");
    assert!(reopened < 4 * LIMIT, "{reopened:?}");
}

/// The part that is killed: says what became of it, if it is not.
#[test]
fn child() {
    let Ok(dir) = std::env::var("FOREBAY_TEST_OPEN") else {
        return;
    };
    match start(Path::new(&dir)) {
        Ok((mut store, recovered)) => {
            let models = store.load().unwrap().models.len();
            println!("OPENED {models} {}", recovered.is_some());
        }
        Err(error) => println!("REFUSED {error}"),
    }
}

#[test]
fn a_recovery_that_is_killed_at_any_step_is_made_good_by_the_next_start() {
    let origin = tempfile::tempdir().unwrap();
    let before = exported(origin.path(), 20);
    for point in [
        "recovery-half",
        "recovery-built",
        "recovery-database-aside",
        "recovery-aside",
        "recovery-half-placed",
        "recovery-placed",
    ] {
        let dir = tempfile::tempdir().unwrap();
        copy(origin.path(), dir.path());
        let length = used_bytes(&dir.path().join("db")) / 2;
        let file = OpenOptions::new().write(true).open(dir.path().join("db"));
        file.unwrap().set_len(length).unwrap();
        let status = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", CHILD, "--nocapture"])
            .env("FOREBAY_TEST_OPEN", dir.path())
            .env(crash::VARIABLE, format!("{point}:1"))
            .stderr(std::process::Stdio::null())
            .status()
            .unwrap();
        assert_eq!(status.signal(), Some(9), "{point}");
        let (mut store, _) = start(dir.path()).unwrap();
        let after = store.load().unwrap();
        assert_eq!(after.models, before.models, "{point}");
        assert!(after.revision >= before.revision, "{point}");
        let asides = super::files(dir.path(), |name| name.starts_with("damaged-")).unwrap();
        assert!(
            asides.iter().any(|aside| aside.join("db").exists()),
            "{point}"
        );
    }
}

#[test]
fn a_database_that_was_killed_while_it_was_made_is_made_anew_and_no_other_one() {
    // sled does not open with a part of its settings.
    let broken = |with: &[(&str, &str)]| {
        let dir = tempfile::tempdir().unwrap();
        drop(start(dir.path()).unwrap());
        let conf = dir.path().join("conf");
        let half = fs::read(&conf).unwrap();
        fs::write(&conf, &half[..half.len() / 2]).unwrap();
        fs::remove_file(dir.path().join("forebay-epoch")).unwrap();
        for (name, content) in with {
            fs::write(dir.path().join(name), content).unwrap();
        }
        dir
    };
    let half = broken(&[(MAKING, "")]);
    let (mut store, recovered) = start(half.path()).unwrap();
    assert_eq!(recovered, None, "nothing is lost");
    store.commit(&[put("a", 1, 2)]).unwrap();
    assert!(!half.path().join(MAKING).exists());
    drop(store);
    let (mut store, _) = start(half.path()).unwrap();
    assert_eq!(store.load().unwrap().models.len(), 1);
    // Of one that was opened before, or of somebody else, nothing is touched.
    for with in [
        &[][..],
        &[(MAKING, ""), ("forebay-epoch", "aa")],
        &[(MAKING, ""), ("registry.export", "x")],
    ] {
        let dir = broken(with);
        let before = fs::read(dir.path().join("db")).unwrap();
        let error = start(dir.path()).map(drop).unwrap_err();
        assert!(matches!(error, OpenError::Damaged { .. }), "{error}");
        assert_eq!(fs::read(dir.path().join("db")).unwrap(), before);
    }
}
