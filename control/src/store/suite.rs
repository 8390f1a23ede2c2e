//! One behavioural suite, run on every store: here on the one in memory and on sled, in `etcd/tests.rs` on three real
//! members of an etcd.

use std::{
    fs,
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use forebay_proto::{
    Endpoint, EndpointId, EndpointUrl, KeyId, KeySpec, ModelId, ModelSpec, PoolSettings, PoolSize,
    Revision,
};

use super::{
    Change, IdemRecord, ModelRecord, OpenError, SettingsRecord, SledStore, Store, Stored,
    history::{Edit, Entry, EntryKind, Forgotten, LogRecord, Origin},
    keys::{KeyChange, KeyRecord, Revoked, StoredKeys},
    memory::MemoryStore,
};

pub(super) fn time(seconds: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(seconds)
}

pub(super) fn spec(id: &str, endpoints: usize) -> ModelSpec {
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
    change(model(record), revision)
}

pub(super) fn model(record: ModelRecord) -> Edit {
    Edit::Model {
        id: record.spec.id().clone(),
        before: None,
        after: Some(Arc::new(record)),
    }
}

pub(super) fn gone(id: &str) -> Edit {
    Edit::Model {
        id: ModelId::new(id).unwrap(),
        before: None,
        after: None,
    }
}

pub(super) fn log(revision: Revision) -> LogRecord {
    LogRecord {
        method: "Test".into(),
        ..LogRecord::of(&[], revision, time(revision.get()))
    }
}

pub(super) fn change(edit: Edit, revision: Revision) -> Change {
    let edits = vec![edit];
    Change {
        revision,
        entry: Some(Entry {
            log: LogRecord::of(&edits, revision, time(revision.get())),
            edits,
            kind: EntryKind::Undoable,
            forget: Vec::new(),
        }),
        idem: None,
        forget_idem: Vec::new(),
    }
}

pub(super) fn ids(stored: &Stored) -> Vec<&str> {
    stored
        .models
        .iter()
        .map(|record| record.spec.id().as_str())
        .collect()
}

/// What every store does, whatever it is made of.
pub(super) fn behaves(store: &mut impl Store) {
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
        ..change(
            Edit::Settings {
                before: Some(Arc::new(fresh.settings.clone())),
                after: Arc::new(record.clone()),
            },
            revision,
        )
    };
    let second = Change {
        idem: Some(idem("y", 6)),
        ..change(gone("a"), Revision::new(6))
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
    keeps_history(store);
}

/// Of a store at revision 7, each since the first with one edit.
fn keeps_history(store: &mut impl Store) {
    let history = store.history();
    let revisions = |from, most| {
        let entries = history.entries(Revision::new(from), most).unwrap();
        let revisions = entries.iter().map(|entry| entry.revision.get());
        revisions.collect::<Vec<_>>()
    };
    assert_eq!(revisions(99, 3), [7, 6, 5], "the newest first");
    assert_eq!(revisions(3, 9), [3, 2, 1]);
    assert_eq!(history.earliest().unwrap(), Revision::new(1));
    let edits = |after, to| {
        let edits = history.edits(Revision::new(after), Revision::new(to));
        let edits = edits.map(|edit| edit.unwrap());
        edits
            .map(|(revision, edit)| (revision.get(), edit.target().to_string()))
            .collect::<Vec<_>>()
    };
    let targets = |edits: Vec<(u64, String)>| {
        let text = edits
            .iter()
            .map(|(revision, target)| format!("{revision} {target}"));
        text.collect::<Vec<_>>().join(", ")
    };
    assert_eq!(targets(edits(2, 6)), "3 a, 4 b, 5 pool settings, 6 a");
    assert_eq!(edits(6, 6), []);
    let after = history.edits(Revision::new(3), Revision::new(4)).next();
    let Some(Ok((_, Edit::Model { after, .. }))) = after else {
        panic!("{after:?}");
    };
    assert_eq!(after.unwrap().spec, spec("b", 3), "as it was written");

    // Several edits as one revision, which makes others go.
    let mut batch = put("d", 2, 8);
    let entry = batch.entry.as_mut().unwrap();
    entry.edits.push(gone("c"));
    entry.forget = [1, 2]
        .map(|revision| Forgotten {
            revision: Revision::new(revision),
            edits: u32::from(revision > 1),
        })
        .to_vec();
    entry.log.digest = Some(forebay_proto::Digest::of(b"x"));
    entry.log.origin.author = "ada".into();
    let written = entry.log.clone();
    store.commit(&[batch]).unwrap();
    assert_eq!(ids(&store.load().unwrap()), ["b", "d"]);
    assert_eq!(
        history.entry(Revision::new(8)).unwrap(),
        Some(written.clone())
    );
    assert_eq!(history.entry(Revision::new(2)).unwrap(), None);
    assert_eq!(history.earliest().unwrap(), Revision::new(2));
    assert_eq!(targets(edits(0, 4)), "3 a, 4 b", "those of 2 went with it");
    assert_eq!(targets(edits(7, 8)), "8 d, 8 c");
    assert_eq!(store.past().unwrap().digest(), written.digest);

    // A beginning has no edits to go back over.
    let mut beginning = put("e", 1, 9);
    beginning.entry.as_mut().unwrap().kind = EntryKind::Beginning;
    store.commit(&[beginning]).unwrap();
    assert_eq!(history.earliest().unwrap(), Revision::new(9));
    assert_eq!(edits(8, 9), []);
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
    let before = (store.load().unwrap(), store.past().unwrap());
    drop(store);
    let mut store = open(dir.path());
    assert_eq!((store.load().unwrap(), store.past().unwrap()), before);
}

/// A copy of a directory that an older build wrote; see the README beside them.
fn fixture(name: &str) -> tempfile::TempDir {
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let dir = tempfile::tempdir().unwrap();
    for file in fs::read_dir(fixture.join(name)).unwrap() {
        let file = file.unwrap().path();
        fs::copy(&file, dir.path().join(file.file_name().unwrap())).unwrap();
    }
    dir
}

#[test]
fn directories_of_later_formats_open_with_all_that_is_in_them() {
    for format in 2..=3 {
        let dir = fixture(&format!("store-format-{format}"));
        let (keys, sealed) = (usize::from(format == 3), format == 3);
        for pass in ["opened", "opened again"] {
            let mut store = open(dir.path());
            let stored = store.load().unwrap();
            let context = format!("format {format}, {pass}");
            assert_eq!(ids(&stored), ["alpha", "beta"], "{context}");
            assert_eq!(stored.settings.settings.max_concurrent.get(), 40);
            assert_eq!(stored.keys.records.len(), keys, "{context}");
            let has = stored.models.iter().any(|model| model.has_credential());
            assert_eq!(has, sealed, "{context}");
            let history = store.history();
            assert_eq!(history.earliest().unwrap(), Revision::new(1), "{context}");
            let entries = history.entries(Revision::new(7), 99).unwrap();
            let lines = entries
                .iter()
                .map(|log| format!("{} {}", log.method, log.targets.join(",")));
            assert_eq!(
                lines.collect::<Vec<_>>(),
                [
                    "DeleteModel gone",
                    "CreateModel gone",
                    "UpdatePoolSettings pool settings",
                    "UpdateModel alpha",
                    "CreateModel beta",
                    "CreateModel alpha",
                    "Create store"
                ],
                "{context}"
            );
        }
        let way_back = dir.path().join(format!("registry.format-{format}.export"));
        assert_eq!(way_back.exists(), format < super::sled::FORMAT);
        if way_back.exists() {
            let (header, _) = super::export::read_file(&way_back).unwrap();
            assert_eq!(header.models, 2);
        }
    }
}

/// Its history begins with the upgrade.
#[test]
fn a_directory_of_the_first_format_is_upgraded_and_loses_nothing() {
    let dir = fixture("store-format-1");
    for pass in ["upgraded", "opened again"] {
        let mut store = open(dir.path());
        let stored = store.load().unwrap();
        assert_eq!(ids(&stored), ["llama-3.1-8b", "qwen3-32b"], "{pass}");
        assert_eq!(stored.revision, Revision::new(7));
        assert_eq!(stored.settings.settings.max_concurrent.get(), 60);
        let ids: Vec<_> = stored
            .idem
            .iter()
            .map(|record| &record.request_id)
            .collect();
        let expected: Vec<_> = (1..=6).map(|n| format!("fixture-{n}")).collect();
        assert_eq!(ids, expected.iter().collect::<Vec<_>>());
        let history = store.history();
        assert_eq!(history.earliest().unwrap(), Revision::new(7));
        let entries = history.entries(Revision::new(7), 99).unwrap();
        let lines = entries
            .iter()
            .map(|log| format!("{} {}", log.method, log.targets.join(",")));
        assert_eq!(
            lines.collect::<Vec<_>>(),
            [
                "DeleteModel gone",
                "UpdateModel qwen3-32b",
                "UpdatePoolSettings pool settings",
                "CreateModel gone",
                "CreateModel qwen3-32b",
                "CreateModel llama-3.1-8b",
                "Create store"
            ]
        );
        assert_eq!(store.past().unwrap().digest(), None);
    }
    // The way back for the version before.
    let (header, stored) =
        super::export::read_file(&dir.path().join("registry.format-1.export")).unwrap();
    assert_eq!((header.revision, stored.models.len()), (7, 2));
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
                known: 3,
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
            change(model(record), revision)
        });
        store.commit(&changes.collect::<Vec<_>>()).unwrap();
    }
    assert_eq!(store.load().unwrap().models.len(), 500);
    let blobs = fs::read_dir(dir.path().join("blobs")).map_or(0, Iterator::count);
    assert_eq!(blobs, 0);
}

/// A batch as large as one can be, and as one revision: undoing it reads all of it back.
#[test]
fn a_large_batch_is_one_entry_and_spills_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path());
    let widest = spec("m", 60);
    let batch = |revision: u64| {
        let revision = Revision::new(revision);
        let edits = (0..1_000).map(|n| {
            let id = ModelId::new(format!("model-{n}")).unwrap();
            let spec = ModelSpec::new(id, vec![], widest.endpoints().to_vec()).unwrap();
            model(ModelRecord {
                spec,
                revision,
                created: time(1),
                updated: time(1),
            })
        });
        let edits: Vec<_> = edits.collect();
        let mut change = change(gone("x"), revision);
        let entry = change.entry.as_mut().unwrap();
        entry.log = LogRecord::of(&edits, revision, time(1));
        entry.edits = edits;
        change
    };
    for revision in 2..5 {
        store.commit(&[batch(revision)]).unwrap();
    }
    let blobs = || fs::read_dir(dir.path().join("blobs")).map_or(0, Iterator::count);
    assert_eq!(blobs(), 0);
    drop(store);
    let mut store = open(dir.path());
    assert_eq!(store.load().unwrap().models.len(), 1_000);
    let history = store.history();
    let edits = history.edits(Revision::new(2), Revision::new(4));
    assert_eq!(edits.filter(Result::is_ok).count(), 2_000);
    let log = history.entry(Revision::new(4)).unwrap().unwrap();
    assert_eq!((log.edits, log.targets.len()), (1_000, 8));
    assert_eq!(blobs(), 0);
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

pub(super) fn key(n: u8, revoked: bool) -> KeyRecord {
    KeyRecord {
        id: KeyId::of_random(&[n; 9]),
        hash: [n; 32],
        pepper: 7,
        spec: KeySpec::default(),
        version: 0,
        created: time(1),
        creator: Origin {
            author: "me".into(),
            reason: "why".into(),
        },
        updated: time(2),
        revoked: revoked.then(|| Revoked {
            time: time(3),
            by: Origin::default(),
        }),
    }
}

pub(super) fn key_change(version: u64, record: KeyRecord, forget: &[u8]) -> KeyChange {
    KeyChange {
        version,
        floor: version / 2,
        put: Arc::new(KeyRecord { version, ..record }),
        forget: forget.iter().map(|n| KeyId::of_random(&[*n; 9])).collect(),
    }
}

/// Keys are kept as they were written, beside everything else, which they leave alone.
pub(super) fn keeps_keys(store: &mut impl Store) {
    let before = store.load().unwrap();
    assert_eq!(before.keys, StoredKeys::default());
    store
        .commit_keys(&[key_change(1, key(1, false), &[])])
        .unwrap();
    let both = [
        key_change(2, key(2, false), &[]),
        key_change(3, key(1, true), &[]),
    ];
    store.commit_keys(&both).unwrap();
    let after = store.load().unwrap();
    assert_eq!((after.keys.version, after.keys.floor), (3, 1));
    assert_eq!(after.keys.records.len(), 2);
    assert!(
        after
            .keys
            .records
            .iter()
            .any(|k| k.revoked.is_some() && k.version == 3)
    );
    assert_eq!(after.revision, before.revision);
    store
        .commit_keys(&[key_change(4, key(3, false), &[1])])
        .unwrap();
    let after = store.load().unwrap();
    let ids: Vec<_> = after.keys.records.iter().map(|key| key.id).collect();
    assert_eq!(ids, [2, 3].map(|n| KeyId::of_random(&[n; 9])));
    assert_eq!(after.models, before.models);
}

#[test]
fn memory_keeps_keys() {
    keeps_keys(&mut MemoryStore::fresh());
}

#[test]
fn sled_keeps_keys_and_an_export_has_them() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path());
    keeps_keys(&mut store);
    let stored = store.load().unwrap();
    drop(store);
    assert_eq!(open(dir.path()).load().unwrap().keys, stored.keys);

    let file = dir.path().join("with-keys");
    super::export::write_file(&file, &stored, time(9)).unwrap();
    let text = std::fs::read(&file).unwrap();
    assert!(text.starts_with(b"forebay-export 2 "));
    let (_, read) = super::export::read_file(&file).unwrap();
    assert_eq!(read, stored);
    let built = dir.path().join("built");
    super::offline::import(&file, &built).unwrap();
    assert_eq!(open(&built).load().unwrap().keys, stored.keys);

    // Without keys an older version can read it.
    let plain = Stored {
        keys: StoredKeys::default(),
        ..stored
    };
    let file = dir.path().join("plain");
    super::export::write_file(&file, &plain, time(9)).unwrap();
    assert!(
        std::fs::read(&file)
            .unwrap()
            .starts_with(b"forebay-export 1 ")
    );
}

/// Formats 2 and 3 are format 4 without what came since.
#[test]
fn a_directory_of_an_older_format_gets_its_number_and_a_way_back() {
    for older in [2_u32, 3] {
        let dir = tempfile::tempdir().unwrap();
        let mut store = open(dir.path());
        store.commit(&[put("m", 1, 2)]).unwrap();
        let before = (store.load().unwrap(), store.past().unwrap());
        store.meta().insert("format", &older.to_be_bytes()).unwrap();
        store.meta().flush().unwrap();
        drop(store);
        let mut store = open(dir.path());
        assert_eq!((store.load().unwrap(), store.past().unwrap()), before);
        let format = store.meta().get("format").unwrap().unwrap();
        assert_eq!(&format[..], 4_u32.to_be_bytes());
        let way_back = dir.path().join(format!("registry.format-{older}.export"));
        let (header, _) = super::export::read_file(&way_back).unwrap();
        assert_eq!((header.revision, header.models), (2, 1));
        assert!(
            fs::read(way_back)
                .unwrap()
                .starts_with(b"forebay-export 1 ")
        );
    }
}

/// What a version without discovery would take for damage has a number that it knows not.
#[test]
fn an_export_with_a_source_says_so() {
    use forebay_proto::endpoint::{Discovery, Source};
    let dir = tempfile::tempdir().unwrap();
    let mut store = open(dir.path());
    store.commit(&[put("m", 1, 2)]).unwrap();
    let mut stored = store.load().unwrap();
    let discovery = Discovery::new(Source::file("/etc/targets.json").unwrap());
    let endpoint = Endpoint::new(
        EndpointId::new("pods").unwrap(),
        EndpointUrl::listed(discovery),
    );
    let record = stored.models[0].clone();
    let id = record.spec.id().clone();
    stored.models[0] = ModelRecord {
        spec: ModelSpec::new(id, vec![], vec![endpoint]).unwrap(),
        ..record
    };
    let file = dir.path().join("with-a-source");
    super::export::write_file(&file, &stored, time(9)).unwrap();
    let text = fs::read(&file).unwrap();
    assert!(text.starts_with(b"forebay-export 3 "));
    let (_, read) = super::export::read_file(&file).unwrap();
    assert_eq!(read, stored);
}
