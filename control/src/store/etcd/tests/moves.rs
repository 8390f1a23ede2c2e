//! A registry with its history, from a directory to etcd and back.

use std::{ffi::OsString, fs, path::Path};

use super::*;
use crate::store::{SledStore, StoreLocation, migrate, recover};

/// A directory whose history was trimmed, with answers and keys; and what it holds.
fn source(dir: &Path) -> (Stored, Past) {
    let mut store = SledStore::open(dir, &PoolSettings::default()).unwrap();
    let mut forgetting = put("b", 2, 4);
    forgetting.entry.as_mut().unwrap().forget = [1, 2]
        .map(|revision| Forgotten {
            revision: Revision::new(revision),
            edits: u32::from(revision > 1),
        })
        .to_vec();
    let answered = Change {
        idem: Some(answer("x", 5)),
        ..put("c", 1, 5)
    };
    let first = [put("a", 1, 2), put("b", 1, 3), forgetting, answered];
    store.commit(&first).unwrap();
    let models = store.load().unwrap().models;
    let old = models
        .into_iter()
        .find(|m| m.spec.id().as_str() == "b")
        .unwrap();
    let new = ModelRecord {
        spec: spec("b", 3),
        revision: Revision::new(6),
        ..old.clone()
    };
    let edit = Edit::Model {
        id: ModelId::new("b").unwrap(),
        before: Some(Arc::new(old)),
        after: Some(Arc::new(new)),
    };
    let mut update = change(edit, Revision::new(6));
    update.entry.as_mut().unwrap().log.digest = Some(forebay_proto::Digest::of(b"six"));
    store.commit(&[update]).unwrap();
    let keys = [
        key_change(1, key(1, false), &[]),
        key_change(2, key(2, true), &[]),
    ];
    store.commit_keys(&keys).unwrap();
    (store.load().unwrap(), store.past().unwrap())
}

fn files(dir: &Path) -> Vec<(OsString, Vec<u8>)> {
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap());
    let files = entries.filter(|e| e.path().is_file() && e.file_name() != "forebay-lock");
    let mut files: Vec<_> = files
        .map(|entry| (entry.file_name(), fs::read(entry.path()).unwrap()))
        .collect();
    files.sort();
    files
}

fn move_it(
    world: &World,
    from: &StoreLocation,
    to: &StoreLocation,
) -> Result<migrate::Migrated, String> {
    let scratch = tempfile::tempdir().unwrap();
    let (access, runtime) = (EtcdAccess::default(), world.runtime.handle());
    let moved = migrate::migrate(from, to, &access, runtime, scratch.path());
    moved.map_err(|error| error.to_string())
}

fn refused(world: &World, from: &StoreLocation, to: &StoreLocation, why: &str) {
    let error = move_it(world, from, to).unwrap_err();
    assert!(error.contains(why), "{why}: {error}");
}

pub(super) fn a_registry_moves_there_and_back(world: &World) {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let there = source(&at("source"));
    let untouched = files(&at("source"));
    let from = StoreLocation::Sled(at("source"));
    let to: StoreLocation = world.etcd.store("moved").parse().unwrap();
    // One that was cut short is refused by who opens it, and done again.
    let (cut, runtime) = (world.connect("moved"), world.runtime.handle().clone());
    let begun = EtcdStore::begin_migration(cut, runtime, &there.0).unwrap();
    drop(begun.unwrap());
    let error = world.try_open("moved").unwrap_err().to_string();
    assert!(error.contains("not finished"), "{error}");
    let moved = move_it(world, &from, &to).unwrap();
    let counts = (moved.revision, moved.earliest, moved.models, moved.keys);
    assert_eq!(counts, (6, 2, 3, 2));
    assert!(moved.needs_secrets && moved.epoch != moved.from_epoch);
    assert!(files(&at("source")) == untouched, "the source is as it was");
    refused(world, &from, &to, "holds a registry already");
    let there = moved_well(world, &there);
    let home = StoreLocation::Sled(at("home"));
    assert_eq!(move_it(world, &to, &home).unwrap().revision, 7);
    refused(world, &to, &home, "not empty");
    let opened = recover::open(&at("home"), &PoolSettings::default(), Default::default());
    let (mut store, recovered) = opened.unwrap();
    assert_eq!(recovered, None);
    let found = store.load().unwrap();
    assert_ne!(found.epoch, there.0.epoch);
    let same = Stored {
        epoch: there.0.epoch.clone(),
        ..found
    };
    assert_eq!((same, store.past().unwrap()), there);
    refused(world, &to, &to, "both");
    let nothing: StoreLocation = world.etcd.store("nothing").parse().unwrap();
    refused(
        world,
        &nothing,
        &StoreLocation::Sled(at("empty")),
        "holds no registry",
    );
}

pub(super) fn a_large_registry_moves_there_and_back(world: &World) {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| StoreLocation::Sled(dir.path().join(name));
    let mut store = SledStore::open(&dir.path().join("source"), &PoolSettings::default()).unwrap();
    for n in 0..10 {
        let models = n * 1_000..(n + 1) * 1_000;
        store.commit(&[large::many(2 + n as u64, models)]).unwrap();
    }
    drop(store);
    let to: StoreLocation = world.etcd.store("many").parse().unwrap();
    for (from, to) in [(&at("source"), &to), (&to, &at("home"))] {
        let moved = move_it(world, from, to).unwrap();
        assert_eq!((moved.revision, moved.models), (11, 10_000));
    }
}

pub(super) fn a_migration_touches_no_other_registry(world: &World) {
    let runtime = || world.runtime.handle().clone();
    let begin = |stored: &Stored| {
        let begun = EtcdStore::begin_migration(world.connect("guarded"), runtime(), stored);
        begun.unwrap()
    };
    let mut below = world.open("guarded/blue");
    let stored = below.load().unwrap();
    below.commit(&[put("a", 1, 2)]).unwrap();
    // What was left unfinished is removed, and nothing of the registry below it.
    let cut = begin(&stored).unwrap();
    let mut store = begin(&stored).unwrap();
    assert_eq!(ids(&below.load().unwrap()), ["a"]);
    // Who was overtaken writes no more.
    let mut cut = cut;
    let error = cut.commit(&[put("b", 1, 2)]).unwrap_err();
    assert!(matches!(error, StoreError::Conflict), "{error}");
    // A wipe that is late finds another head.
    store.commit(&[put("c", 1, 2)]).unwrap();
    store.end_migration().unwrap();
    world.runtime.block_on(cut.wipe()).unwrap();
    assert_eq!(ids(&world.open("guarded").load().unwrap()), ["c"]);
    assert!(begin(&stored).is_none(), "it is in force");
    // Written to, or in use, it is not what was read.
    assert!(store.is_as_loaded().unwrap());
    let mut other = world.open("guarded");
    other.load().unwrap();
    other.commit(&[put("d", 1, 3)]).unwrap();
    assert!(!store.is_as_loaded().unwrap());
}

/// It is what it was, and goes on; gives what it is then.
fn moved_well(world: &World, there: &(Stored, Past)) -> (Stored, Past) {
    let mut store = world.open("moved");
    let found = Stored {
        epoch: there.0.epoch.clone(),
        ..store.load().unwrap()
    };
    assert_eq!(found, there.0);
    assert_eq!(store.past().unwrap().digest(), there.1.digest());
    let history = store.history();
    assert_eq!(history.earliest().unwrap(), Revision::new(2));
    let entries = history.entries(Revision::new(9), 9).unwrap();
    let lines = entries
        .iter()
        .map(|log| (log.revision.get(), log.method.as_str()));
    // What the history begins with was forgotten, and has a line that says whence it is.
    let expected = [(6, ""), (5, ""), (4, ""), (3, ""), (2, "Migrate")];
    assert_eq!(lines.collect::<Vec<_>>(), expected);
    store.commit(&[put("d", 1, 7)]).unwrap();
    (store.load().unwrap(), store.past().unwrap())
}
