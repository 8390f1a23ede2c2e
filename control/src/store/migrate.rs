//! Moves a registry from one store to another: from a directory to an etcd and back, with its history, under a new epoch.
//!
//! The revisions keep their numbers and their content; a new epoch, because from here on the two may go apart and a number
//! stands for one content only within an epoch. Workers take the whole of it once and change nothing.
//!
//! The source is read and never written. The target must be empty. A directory is built aside and put in its place at the
//! end; an etcd is marked as unfinished until the end, and refused by whoever opens it. What was written is read back and
//! compared before it counts.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::SystemTime,
};

use forebay_proto::{ModelId, Revision};
use tokio::runtime::Handle;

use super::{
    Change, ModelRecord, OfflineError, OpenError, SettingsRecord, SledStore, Store, StoreError,
    StoreLocation, Stored,
    etcd::EtcdStore,
    export,
    history::{Edit, Entry, EntryKind, Forgotten, LogRecord},
    keys::KeyChange,
    offline, recover,
};
use crate::etcd::{Etcd, EtcdAccess, EtcdError};

/// Most changes in one commit, and how many edits they have, and bytes, before no further one is added to it.
const GROUP: usize = 256;
const GROUP_EDITS: usize = 4_096;
const GROUP_BYTES: u64 = 8 << 20;
/// Most entries that are read of a history; no store keeps as many.
const ENTRIES: usize = 1_000_000;

/// Why it was not done.
#[derive(Debug, thiserror::Error)]
pub enum MigrateError {
    /// Both are of one kind.
    #[error("--from and --to are both {0}; one must be sled:DIRECTORY and the other etcd://…")]
    SameKind(&'static str),
    /// A directory cannot be used.
    #[error(transparent)]
    Directory(#[from] OfflineError),
    /// An etcd cannot be used.
    #[error(transparent)]
    Etcd(#[from] EtcdError),
    /// There is nothing to move.
    #[error("{0} holds no registry")]
    Nothing(String),
    /// There is something in the way.
    #[error("{0} holds a registry already; name another directory or prefix, or remove it first")]
    NotEmpty(String),
    /// Control planes are at work on it.
    #[error(
        "{0} is in use by {1} control planes, or was written to meanwhile; stop them first, so that nothing is written \
         meanwhile"
    )]
    InUse(String, usize),
    /// It failed half-way.
    #[error("{0}; the source is as it was, run it again")]
    Failed(String),
    /// What was written is not what was read.
    #[error(
        "what was read back from {at} is not what was written ({what}); the source is as it was"
    )]
    Differs {
        /// The target.
        at: String,
        /// In what.
        what: &'static str,
    },
}

impl From<StoreError> for MigrateError {
    fn from(error: StoreError) -> Self {
        Self::Failed(error.to_string())
    }
}

/// What was moved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Migrated {
    /// The lineage before.
    pub from_epoch: String,
    /// And now.
    pub epoch: String,
    /// The newest revision, as it was.
    pub revision: u64,
    /// The earliest revision that can be gone back to, as it was.
    pub earliest: u64,
    /// Models.
    pub models: usize,
    /// Answers to repeated writes.
    pub answers: usize,
    /// Clients' keys, revoked ones included.
    pub keys: usize,
    /// Lines of history from before the earliest revision, which are not moved.
    pub dropped: usize,
    /// Something was made with a pepper or a seal key.
    pub needs_secrets: bool,
}

/// A registry with its history.
#[derive(Debug, PartialEq)]
struct Contents {
    stored: Stored,
    earliest: Revision,
    /// After the earliest, each with what it changed.
    entries: Vec<Entry>,
    /// That of the earliest, if it is kept.
    first: Option<LogRecord>,
    dropped: usize,
}

/// Moves a registry. On a thread that may block.
pub fn migrate(
    from: &StoreLocation,
    to: &StoreLocation,
    access: &EtcdAccess,
    runtime: &Handle,
    scratch: &Path,
) -> Result<Migrated, MigrateError> {
    match (from, to) {
        (StoreLocation::Sled(from), StoreLocation::Etcd(to)) => {
            let etcd = Arc::new(Etcd::new(to, access)?);
            let contents = read_directory(from, scratch)?;
            let mut store = EtcdStore::begin_migration(etcd, runtime.clone(), &contents.stored)?
                .ok_or_else(|| MigrateError::NotEmpty(to.to_string()))?;
            fill(&mut store, &contents)?;
            let epoch = compare(&mut store, &contents, &to.to_string())?;
            store.end_migration()?;
            Ok(report(&contents, epoch))
        }
        (StoreLocation::Etcd(from), StoreLocation::Sled(to)) => {
            let etcd = Arc::new(Etcd::new(from, access)?);
            let at = from.to_string();
            let store = EtcdStore::existing(etcd, runtime.clone())?;
            let mut store = store.ok_or_else(|| MigrateError::Nothing(at.clone()))?;
            match store.replicas()? {
                0 => {}
                some => return Err(MigrateError::InUse(at, some)),
            }
            let contents = read(&mut store)?;
            let unchanged = || match (store.replicas()?, store.is_as_loaded()?) {
                (0, true) => Ok(()),
                (some, _) => Err(MigrateError::InUse(at.clone(), some)),
            };
            let epoch = into_directory(to, &contents, unchanged)?;
            Ok(report(&contents, epoch))
        }
        (StoreLocation::Sled(_), StoreLocation::Sled(_)) => Err(MigrateError::SameKind("sled")),
        (StoreLocation::Etcd(_), StoreLocation::Etcd(_)) => Err(MigrateError::SameKind("etcd")),
    }
}

/// Gives the registry of an etcd a new epoch, as after a snapshot of it was restored: what workers hold may be newer than
/// what is there, under the same numbers. Gives the old one and the new one.
pub fn new_epoch(
    at: &StoreLocation,
    access: &EtcdAccess,
    runtime: &Handle,
) -> Result<(String, String), MigrateError> {
    let StoreLocation::Etcd(at) = at else {
        return Err(MigrateError::SameKind(
            "sled, whose restores draw a new epoch by themselves",
        ));
    };
    let etcd = Arc::new(Etcd::new(at, access)?);
    let store = EtcdStore::existing(etcd, runtime.clone())?;
    let mut store = store.ok_or_else(|| MigrateError::Nothing(at.to_string()))?;
    store.load()?;
    Ok(store.new_epoch()?)
}

/// Everything in an etcd, for an export.
pub(super) fn read_etcd(
    at: &crate::etcd::EtcdLocation,
    access: &EtcdAccess,
    runtime: &Handle,
) -> Result<Stored, MigrateError> {
    let etcd = Arc::new(Etcd::new(at, access)?);
    let store = EtcdStore::existing(etcd, runtime.clone())?;
    let mut store = store.ok_or_else(|| MigrateError::Nothing(at.to_string()))?;
    Ok(store.load()?)
}

fn report(contents: &Contents, epoch: String) -> Migrated {
    let stored = &contents.stored;
    let sealed = stored.models.iter().any(ModelRecord::has_credential);
    Migrated {
        from_epoch: stored.epoch.to_string(),
        epoch,
        revision: stored.revision.get(),
        earliest: contents.earliest.get(),
        models: stored.models.len(),
        answers: stored.idem.len(),
        keys: stored.keys.records.len(),
        dropped: contents.dropped,
        needs_secrets: sealed || !stored.keys.records.is_empty(),
    }
}

/// Reads a directory by way of a copy, while nobody works in it.
fn read_directory(dir: &Path, scratch: &Path) -> Result<Contents, MigrateError> {
    if !offline::holds_registry(dir) {
        return Err(OfflineError::Nothing(dir.to_owned()).into());
    }
    let _lock = recover::lock(dir).map_err(OfflineError::from)?;
    offline::copy(dir, scratch)?;
    let store = recover::attempt(scratch, &forebay_proto::PoolSettings::default());
    let mut store = store.map_err(OfflineError::from)?;
    read(&mut store)
}

fn read(store: &mut impl Store) -> Result<Contents, MigrateError> {
    let stored = store.load()?;
    let history = store.history();
    let unreadable = |error: super::history::Unreadable| MigrateError::Failed(error.to_string());
    let earliest = history.earliest().map_err(unreadable)?;
    let mut logs = history
        .entries(stored.revision, ENTRIES)
        .map_err(unreadable)?;
    logs.reverse();
    let mut edits: BTreeMap<Revision, Vec<Edit>> = BTreeMap::new();
    for edit in history.edits(earliest, stored.revision) {
        let (revision, edit) = edit.map_err(unreadable)?;
        edits.entry(revision).or_default().push(edit);
    }
    let mut contents = Contents {
        stored,
        earliest,
        entries: Vec::new(),
        first: None,
        dropped: 0,
    };
    for log in logs {
        match log.revision.cmp(&earliest) {
            std::cmp::Ordering::Less => contents.dropped += 1,
            std::cmp::Ordering::Equal => contents.first = Some(log),
            std::cmp::Ordering::Greater => contents.entries.push(Entry {
                edits: edits.remove(&log.revision).unwrap_or_default(),
                log,
                kind: EntryKind::Undoable,
                forget: Vec::new(),
            }),
        }
    }
    let expected = contents
        .stored
        .revision
        .get()
        .saturating_sub(earliest.get());
    let whole = contents.entries.len() as u64 == expected
        && contents
            .entries
            .iter()
            .all(|entry| entry.edits.len() == entry.log.edits as usize);
    match whole {
        true => Ok(contents),
        false => Err(MigrateError::Failed("the history has gaps".to_owned())),
    }
}

/// The state at the earliest revision: the newest, with all since then undone.
fn base(contents: &Contents) -> (Arc<SettingsRecord>, BTreeMap<ModelId, Arc<ModelRecord>>) {
    let mut settings = Arc::new(contents.stored.settings.clone());
    let models = contents.stored.models.iter();
    let mut models: BTreeMap<_, _> = models
        .map(|record| (record.spec.id().clone(), Arc::new(record.clone())))
        .collect();
    let edits = contents.entries.iter().flat_map(|entry| &entry.edits);
    for edit in edits.rev() {
        match edit {
            Edit::Settings { before, .. } => {
                if let Some(before) = before {
                    settings = before.clone();
                }
            }
            Edit::Model { id, before, .. } => match before {
                Some(before) => drop(models.insert(id.clone(), before.clone())),
                None => drop(models.remove(id)),
            },
        }
    }
    (settings, models)
}

/// Writes everything into a store that was just made.
fn fill(store: &mut impl Store, contents: &Contents) -> Result<(), MigrateError> {
    let fresh = store.load()?.revision;
    let (settings, models) = base(contents);
    let earliest = contents.earliest;
    let of_store = || LogRecord::of_store("Migrate", earliest, SystemTime::now());
    let first = contents.first.clone().unwrap_or_else(of_store);
    let mut edits = vec![Edit::Settings {
        before: None,
        after: settings,
    }];
    edits.extend(models.into_iter().map(|(id, record)| Edit::Model {
        id,
        before: None,
        after: Some(record),
    }));
    let forget = match earliest > fresh {
        true => vec![Forgotten {
            revision: fresh,
            edits: 0,
        }],
        false => Vec::new(),
    };
    let beginnings = edits.chunks(GROUP).map(|edits| Change {
        revision: earliest,
        entry: Some(Entry {
            log: first.clone(),
            edits: edits.to_vec(),
            kind: EntryKind::Beginning,
            forget: forget.clone(),
        }),
        idem: None,
        forget_idem: Vec::new(),
    });
    for beginning in beginnings {
        store.commit(&[beginning])?;
    }
    let entries = contents.entries.iter().map(|entry| Change {
        revision: entry.log.revision,
        entry: Some(entry.clone()),
        idem: None,
        forget_idem: Vec::new(),
    });
    let answers = contents.stored.idem.iter().map(|answer| Change {
        revision: contents.stored.revision,
        entry: None,
        idem: Some(answer.clone()),
        forget_idem: Vec::new(),
    });
    let changes: Vec<_> = entries.chain(answers).collect();
    for group in groups(&changes) {
        store.commit(group)?;
    }
    let keys = &contents.stored.keys;
    let changes = keys.records.iter().map(|record| KeyChange {
        version: keys.version,
        floor: keys.floor,
        put: Arc::new(record.clone()),
        forget: Vec::new(),
    });
    for group in changes.collect::<Vec<_>>().chunks(GROUP / 4) {
        store.commit_keys(group)?;
    }
    Ok(())
}

/// Changes in groups of which any store takes each as one commit: one change may have a thousand models.
fn groups(changes: &[Change]) -> impl Iterator<Item = &[Change]> {
    let (mut edits, mut bytes, mut count) = (0, 0, 0);
    changes.chunk_by(move |change, _| {
        let entry = change.entry.as_ref();
        edits += entry.map_or(0, |entry| entry.edits.len());
        bytes += entry.map_or(0, |entry| entry.log.bytes);
        count += 1;
        let goes_on = count < GROUP && edits < GROUP_EDITS && bytes < GROUP_BYTES;
        if !goes_on {
            (edits, bytes, count) = (0, 0, 0);
        }
        goes_on
    })
}

/// Reads it back; gives its epoch.
fn compare(store: &mut impl Store, contents: &Contents, at: &str) -> Result<String, MigrateError> {
    let mut found = read(store)?;
    let epoch = std::mem::replace(&mut found.stored.epoch, contents.stored.epoch.clone());
    let differs = |what| MigrateError::Differs {
        at: at.to_owned(),
        what,
    };
    let by_id = |answers: &[super::IdemRecord]| -> BTreeMap<String, super::IdemRecord> {
        let answers = answers.iter();
        answers
            .map(|answer| (answer.request_id.clone(), answer.clone()))
            .collect()
    };
    if by_id(&found.stored.idem) != by_id(&contents.stored.idem) {
        return Err(differs("its answers"));
    }
    found.stored.idem.clone_from(&contents.stored.idem);
    if found.stored != contents.stored {
        return Err(differs("what is registered"));
    }
    if (found.earliest, &found.entries) != (contents.earliest, &contents.entries) {
        return Err(differs("its history"));
    }
    if epoch == contents.stored.epoch {
        return Err(differs("its epoch, which should be new"));
    }
    Ok(epoch.to_string())
}

/// Builds it aside; puts it in its place if the source is unchanged then.
fn into_directory(
    dir: &Path,
    contents: &Contents,
    unchanged: impl FnOnce() -> Result<(), MigrateError>,
) -> Result<String, MigrateError> {
    let io_error = |error: io::Error| OfflineError::from(OpenError::from_io(dir, error));
    let _lock = offline::take_empty(dir)?;
    let built: PathBuf = dir.join(offline::IMPORTING);
    if built.exists() {
        fs::remove_dir_all(&built).map_err(io_error)?;
    }
    let settings = &contents.stored.settings.settings;
    let mut epoch = String::new();
    let mut failed = None;
    recover::calmly(dir, || {
        let mut store = SledStore::open(&built, settings)?;
        let written = fill(&mut store, contents);
        match written.and_then(|()| compare(&mut store, contents, &dir.display().to_string())) {
            Ok(new) => epoch = new,
            Err(error) => failed = Some(error),
        }
        Ok(())
    })
    .map_err(OfflineError::from)?;
    if let Some(error) = failed {
        return Err(error);
    }
    // What was acknowledged since it was read would be lost without a word.
    unchanged()?;
    // First the export: from here on a start makes good what a crash leaves half-done.
    let mut stored = contents.stored.clone();
    stored.epoch = forebay_proto::Epoch::new(epoch.clone())
        .map_err(|error| MigrateError::Failed(error.to_string()))?;
    export::save(dir, &stored, SystemTime::now()).map_err(io_error)?;
    recover::place(dir, &built).map_err(io_error)?;
    recover::attempt(dir, settings).map_err(OfflineError::from)?;
    Ok(epoch)
}
