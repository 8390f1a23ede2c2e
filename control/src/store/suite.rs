//! One behavioural suite, run on every store.

use std::{
    fs,
    path::Path,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use forebay_proto::{
    Endpoint, EndpointId, EndpointUrl, ModelId, ModelSpec, PoolSettings, PoolSize, Revision,
};

use super::{
    Change, IdemRecord, LogRecord, ModelRecord, Op, OpenError, SettingsRecord, SledStore, Store,
    Stored, memory::MemoryStore,
};

fn time(seconds: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(seconds)
}

fn spec(id: &str, endpoints: usize) -> ModelSpec {
    let endpoints = (0..endpoints).map(|n| {
        let url = format!("http://{}.example:{}", "h".repeat(60), n + 1);
        let url = EndpointUrl::parse(&url).unwrap();
        Endpoint::new(EndpointId::new(format!("e{n}")).unwrap(), url)
    });
    ModelSpec::new(ModelId::new(id).unwrap(), vec![], endpoints.collect()).unwrap()
}

pub(super) fn put(id: &str, endpoints: usize, revision: u64) -> Change {
    let revision = Revision::new(revision);
    let record = ModelRecord {
        spec: spec(id, endpoints),
        revision,
        created: time(1),
        updated: time(revision.get()),
    };
    change(Op::PutModel(record), revision)
}

pub(super) fn change(op: Op, revision: Revision) -> Change {
    Change {
        op,
        log: LogRecord {
            revision,
            time: time(revision.get()),
            method: "Test".into(),
            target: "x".into(),
            request_id: String::new(),
        },
        idem: None,
        forget_idem: Vec::new(),
        forget_log: None,
    }
}

fn ids(stored: &Stored) -> Vec<&str> {
    stored
        .models
        .iter()
        .map(|record| record.spec.id().as_str())
        .collect()
}

/// What every store does, whatever it is made of.
fn behaves(store: &mut impl Store) {
    let fresh = store.load().unwrap();
    assert_eq!((fresh.revision, fresh.models.len()), (Revision::new(1), 0));
    assert_eq!(fresh.settings.settings, PoolSettings::default());

    store
        .commit(&[put("b", 1, 2), put("a", 2, 3), put("b", 3, 4)])
        .unwrap();
    let stored = store.load().unwrap();
    assert_eq!(ids(&stored), ["a", "b"]);
    assert_eq!(stored.revision, Revision::new(4));
    assert_eq!(
        stored.models[1].spec,
        spec("b", 3),
        "the last of a batch stands"
    );
    assert_eq!(stored.models[1].updated, time(4));
    assert_eq!(stored.epoch, fresh.epoch);

    let settings = PoolSettings {
        max_concurrent: PoolSize::new(7).unwrap(),
        ..Default::default()
    };
    let revision = Revision::new(5);
    let record = SettingsRecord {
        settings,
        revision,
        updated: time(5),
    };
    let idem = |id: &str, revision| IdemRecord {
        request_id: id.into(),
        fingerprint: vec![1, 2],
        revision: Revision::new(revision),
        expires: time(9),
        answer: vec![3],
    };
    let first = Change {
        idem: Some(idem("z", 5)),
        ..change(Op::PutSettings(record.clone()), revision)
    };
    let second = Change {
        idem: Some(idem("y", 6)),
        ..change(
            Op::DeleteModel(ModelId::new("a").unwrap()),
            Revision::new(6),
        )
    };
    store.commit(&[first, second]).unwrap();
    let stored = store.load().unwrap();
    assert_eq!((ids(&stored), &stored.settings), (vec!["b"], &record));
    assert_eq!(
        stored.idem,
        [idem("z", 5), idem("y", 6)],
        "in order of revision"
    );

    let forget = Change {
        forget_idem: vec!["z".into()],
        ..put("c", 1, 7)
    };
    store.commit(&[forget]).unwrap();
    assert_eq!(store.load().unwrap().idem, [idem("y", 6)]);
}

fn open(dir: &Path) -> SledStore {
    SledStore::open(dir, &PoolSettings::default()).unwrap()
}

#[test]
fn memory_behaves() {
    behaves(&mut MemoryStore::fresh());
}

#[test]
fn sled_behaves_and_keeps_what_it_acknowledged() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path());
    behaves(&mut store);
    let before = store.load().unwrap();
    drop(store);
    assert_eq!(open(dir.path()).load().unwrap(), before);
}

#[test]
fn the_settings_of_a_fresh_store_do_not_change_an_old_one() {
    let dir = tempfile::tempdir().unwrap();
    drop(open(dir.path()));
    let other = PoolSettings {
        max_concurrent: PoolSize::new(9).unwrap(),
        ..Default::default()
    };
    let stored = SledStore::open(dir.path(), &other).unwrap().load().unwrap();
    assert_eq!(stored.settings.settings, PoolSettings::default());
}

#[test]
fn two_on_one_directory_are_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let _first = open(dir.path());
    let error = SledStore::open(dir.path(), &PoolSettings::default()).unwrap_err();
    assert!(matches!(error, OpenError::InUse { .. }), "{error}");
    assert!(
        error.to_string().contains("another control plane"),
        "{error}"
    );
}

#[test]
fn a_newer_format_is_refused_untouched() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path());
    store.commit(&[put("a", 1, 2)]).unwrap();
    store
        .meta()
        .insert("format", &99_u32.to_be_bytes())
        .unwrap();
    drop(store);
    let error = SledStore::open(dir.path(), &PoolSettings::default()).unwrap_err();
    assert!(
        matches!(
            error,
            OpenError::NewerFormat {
                found: 99,
                known: 1,
                ..
            }
        ),
        "{error}"
    );
}

#[test]
fn a_file_in_the_place_of_the_directory_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    fs::write(&file, "x").unwrap();
    let error = SledStore::open(&file, &PoolSettings::default())
        .unwrap_err()
        .to_string();
    assert!(error.contains(&file.display().to_string()), "{error}");
}

#[test]
fn nothing_spills_to_unsynced_files() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path());
    let widest = spec("m", 64);
    for batch in 0..10_u64 {
        let changes = (0..50).map(|n| {
            let revision = 2 + batch * 50 + n;
            let id = ModelId::new(format!("model-{revision}")).unwrap();
            let spec = ModelSpec::new(id, vec![], widest.endpoints().to_vec()).unwrap();
            let revision = Revision::new(revision);
            let record = ModelRecord {
                spec,
                revision,
                created: time(1),
                updated: time(1),
            };
            change(Op::PutModel(record), revision)
        });
        store.commit(&changes.collect::<Vec<_>>()).unwrap();
    }
    assert_eq!(store.load().unwrap().models.len(), 500);
    let blobs = fs::read_dir(dir.path().join("blobs")).map_or(0, Iterator::count);
    assert_eq!(blobs, 0);
}

#[test]
fn flipped_bits_are_told_of_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path());
    store.commit(&[put("a", 60, 2)]).unwrap();
    drop(store);
    let file = dir.path().join("db");
    let mut bytes = fs::read(&file).unwrap();
    for byte in bytes.iter_mut().take(4_096) {
        *byte ^= 0xff;
    }
    fs::write(&file, &bytes).unwrap();
    let opened = SledStore::open(dir.path(), &PoolSettings::default());
    let error = match opened.map(|mut store| store.load()) {
        Err(error) => error.to_string(),
        Ok(loaded) => loaded.expect_err("lost in silence").to_string(),
    };
    assert!(
        error.contains("damaged") || error.contains("should hold"),
        "{error}"
    );
}

#[test]
fn an_emptied_database_is_not_taken_for_a_fresh_one() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path());
    store.commit(&[put("a", 1, 2)]).unwrap();
    drop(store);
    let mut files = fs::read_dir(dir.path())
        .unwrap()
        .map(|entry| entry.unwrap().path());
    files
        .by_ref()
        .filter(|path| path.is_file() && !path.ends_with("forebay-epoch"))
        .for_each(|path| fs::remove_file(path).unwrap());
    let error = SledStore::open(dir.path(), &PoolSettings::default())
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("damaged") && error.contains("should hold"),
        "{error}"
    );
}
