//! The store on sled 0.34.7.
//!
//! Durability: sled's own `flush` ends in `sync_file_range`, which survives a killed process but not
//! a power cut, so each commit is transaction → `flush` → `fdatasync` on the database file, and only
//! then acknowledged (docs/adr/0003).
//!
//! States: open → failed. After a failed flush or sync the file's state is unknown and a second try
//! could hide the loss; the store answers nothing but errors until the process starts anew.
//!
//! A crash before the sync leaves the commit either whole or absent: a transaction is never torn.
//!
//! It never starts silently empty: some damage makes sled open as if nothing had ever been written.
//! A marker beside the database names its epoch, and the number of models is kept with them, so that
//! what is missing is told of.

mod files;
mod past;
mod upgrade;
mod write;

use std::{
    convert::Infallible,
    fs::{self, File},
    path::Path,
    sync::Arc,
    time::SystemTime,
};

use forebay_proto::{Epoch, PoolSettings, Revision};
use sled::{
    Db, Mode, Transactional as _, Tree,
    transaction::{TransactionError, TransactionResult},
};
use uuid::Uuid;

pub(super) use self::files::{MARKER, read_marker, sleep, write_marker};
use self::{
    files::{open_error, open_patiently, sync_settings},
    write::{Trees, number, write},
};
use super::{
    Change, OpenError, SettingsRecord, Store, StoreError, Stored, crash,
    history::{Edit, Entry, EntryKind, History, LogRecord, Past},
    keys::{self, KeyChange, StoredKeys},
    records,
    sizes::{check_key_sizes, check_sizes},
};

/// The format of the directory; see `records` and `upgrade`.
pub(super) const FORMAT: u32 = 4;
/// Above a leaf of the largest values, so that nothing spills to unsynced files. Fixed at creation.
const SEGMENT_BYTES: usize = 8 << 20;
const CACHE_BYTES: u64 = 32 << 20;

const KEY_FORMAT: &str = "format";
const KEY_EPOCH: &str = "epoch";
const KEY_REVISION: &str = "revision";
const KEY_SETTINGS: &str = "pool";
const KEY_MODELS: &str = "models";
/// The earliest revision whose state can be had.
const KEY_EARLIEST: &str = "earliest";
/// Of clients' keys: the version, what is known since, and how many there are.
const KEY_KEYS: &str = "keys";

/// A store in a directory.
#[derive(Debug)]
pub(crate) struct SledStore {
    db: Db,
    meta: Tree,
    models: Tree,
    settings: Tree,
    log: Tree,
    edits: Tree,
    idem: Tree,
    keys: Tree,
    /// A second descriptor of the database file, to sync it.
    file: File,
    failed: Option<String>,
}

impl SledStore {
    /// Opens the directory, or makes it with these settings as revision 1.
    pub(crate) fn open(dir: &Path, fresh: &PoolSettings) -> Result<Self, OpenError> {
        let io_error = |error| OpenError::Io {
            dir: dir.to_owned(),
            error,
        };
        fs::create_dir_all(dir).map_err(io_error)?;
        let config = sled::Config::new()
            .path(dir)
            .mode(Mode::HighThroughput)
            .flush_every_ms(Some(500))
            .segment_size(SEGMENT_BYTES)
            .cache_capacity(CACHE_BYTES);
        let db = open_patiently(&config).map_err(|error| open_error(dir, error))?;
        sync_settings(dir).map_err(io_error)?;
        let tree = |name: &str| db.open_tree(name).map_err(|error| open_error(dir, error));
        // Before anything is written: a newer format stays as it is.
        let meta = tree("meta")?;
        check_format(dir, &meta)?;
        let mut store = Self {
            meta,
            models: tree("models")?,
            settings: tree("settings")?,
            log: tree("log")?,
            edits: tree("edits")?,
            idem: tree("idem")?,
            keys: tree("keys")?,
            file: File::open(dir.join("db")).map_err(io_error)?,
            db,
            failed: None,
        };
        if store.meta.is_empty() && !store.models.is_empty() {
            let what = "it has data but no format number".to_owned();
            return Err(OpenError::Damaged {
                dir: dir.to_owned(),
                what,
            });
        }
        let marker = read_marker(dir).map_err(io_error)?;
        if store.meta.is_empty() && marker.is_none() {
            store.create(dir, fresh)?;
        }
        store.check_marker(dir, marker)?;
        store.upgrade(dir)?;
        Ok(store)
    }

    /// Refuses a database that is not the one that was written here.
    fn check_marker(&self, dir: &Path, marker: Option<String>) -> Result<(), OpenError> {
        let epoch = self
            .meta
            .get(KEY_EPOCH)
            .map_err(|error| open_error(dir, error))?;
        let epoch = epoch.map(|epoch| String::from_utf8_lossy(&epoch).into_owned());
        match (epoch, marker) {
            (Some(epoch), None) => write_marker(dir, &epoch).map_err(|error| OpenError::Io {
                dir: dir.to_owned(),
                error,
            }),
            (Some(epoch), Some(marker)) if epoch == marker => Ok(()),
            (found, expected) => {
                let found = found.unwrap_or_else(|| "nothing".to_owned());
                let expected = expected.unwrap_or_default();
                let what = format!("it should hold the registry {expected} and holds {found}");
                Err(OpenError::Damaged {
                    dir: dir.to_owned(),
                    what,
                })
            }
        }
    }

    fn create(&mut self, dir: &Path, fresh: &PoolSettings) -> Result<(), OpenError> {
        let failed = |error: StoreError| OpenError::Damaged {
            dir: dir.to_owned(),
            what: error.to_string(),
        };
        let epoch = Uuid::new_v4().simple().to_string();
        let (revision, now) = (Revision::ZERO.next(), SystemTime::now());
        let settings = SettingsRecord {
            settings: fresh.clone(),
            revision,
            updated: now,
        };
        let log = LogRecord::of_store("Create", revision, now);
        let first = Change {
            revision,
            entry: Some(Entry {
                log,
                edits: vec![Edit::Settings {
                    before: None,
                    after: Arc::new(settings),
                }],
                kind: EntryKind::Beginning,
                forget: Vec::new(),
            }),
            idem: None,
            forget_idem: Vec::new(),
        };
        let result = self.transaction(|trees| {
            trees.meta.insert(KEY_FORMAT, &FORMAT.to_be_bytes())?;
            trees.meta.insert(KEY_EPOCH, epoch.as_bytes())?;
            write(trees, &first)
        });
        result
            .map_err(|error| self.fail(&error))
            .and_then(|()| self.sync())
            .map_err(failed)?;
        // The directory's own entry, and the file's in it.
        let sync_dir = |dir: &Path| File::open(dir)?.sync_all();
        let parent = dir.parent().filter(|parent| !parent.as_os_str().is_empty());
        let both = sync_dir(dir).and_then(|()| parent.map_or(Ok(()), sync_dir));
        both.map_err(|error| OpenError::Io {
            dir: dir.to_owned(),
            error,
        })
    }

    fn transaction(
        &self,
        work: impl Fn(&Trees<'_>) -> write::Written,
    ) -> TransactionResult<(), Infallible> {
        let trees = (
            &self.meta,
            &self.settings,
            &self.models,
            &self.log,
            &self.edits,
            &self.idem,
        );
        trees.transaction(|(meta, settings, models, log, edits, idem)| {
            work(&Trees {
                meta,
                settings,
                models,
                log,
                edits,
                idem,
            })
        })
    }

    /// The barrier. Afterwards the commit survives a power cut.
    fn sync(&mut self) -> Result<(), StoreError> {
        let flush = || self.db.flush().map(drop);
        let flushed = crash::step("flush", flush).map_err(|error| error.to_string());
        crash::at("flushed");
        let sync = || crash::step("fdatasync", || self.file.sync_data());
        let synced = flushed.and_then(|()| sync().map_err(|error| error.to_string()));
        crash::at("synced");
        synced.map_err(|error| {
            self.failed = Some(error.clone());
            StoreError::Unknown(error)
        })
    }

    /// Reads every record of every tree: what sled cannot give back is told of now, not at some later write.
    pub(super) fn verify(&self) -> Result<(), String> {
        for tree in [
            &self.meta,
            &self.models,
            &self.settings,
            &self.log,
            &self.edits,
            &self.idem,
            &self.keys,
        ] {
            for entry in tree {
                entry.map_err(|error| error.to_string())?;
            }
        }
        Ok(())
    }

    /// A transaction that failed in the storage may have changed trees before it did.
    fn fail(&mut self, error: &TransactionError<Infallible>) -> StoreError {
        let error = match error {
            TransactionError::Storage(error) => error.to_string(),
            TransactionError::Abort(never) => match *never {},
        };
        self.failed = Some(error.clone());
        StoreError::Unknown(error)
    }

    fn check_failed(&self) -> Result<(), StoreError> {
        match &self.failed {
            Some(error) => Err(StoreError::NotCommitted(format!(
                "the store failed ({error}); restart the control plane, which reads back what is on disk"
            ))),
            None => Ok(()),
        }
    }

    fn read(&self) -> Result<Stored, String> {
        let text = |error: sled::Error| error.to_string();
        let meta = |key: &str| {
            let value = self.meta.get(key).map_err(text)?;
            value.ok_or_else(|| format!("`{key}` is missing"))
        };
        let epoch = String::from_utf8_lossy(&meta(KEY_EPOCH)?).into_owned();
        let revision = meta(KEY_REVISION)?
            .as_ref()
            .try_into()
            .map(u64::from_be_bytes);
        let settings = self.settings.get(KEY_SETTINGS).map_err(text)?;
        let settings = settings.ok_or("the pool settings are missing")?;
        let models = self.models.iter().map(|entry| {
            let (key, value) = entry.map_err(text)?;
            records::decode_model(&value)
                .map_err(|error| format!("model {}: {error}", String::from_utf8_lossy(&key)))
        });
        let idem = self.idem.iter().map(|entry| {
            let (key, value) = entry.map_err(text)?;
            records::decode_idem(String::from_utf8_lossy(&key).into_owned(), &value)
        });
        let models = models.collect::<Result<Vec<_>, String>>()?;
        let counted = self.meta.get(KEY_MODELS).map_err(text)?;
        let counted = counted.as_deref().map_or(0, number);
        if counted != models.len() as u64 {
            return Err(format!(
                "it should hold {counted} models and holds {}",
                models.len()
            ));
        }
        let mut idem = idem.collect::<Result<Vec<_>, String>>()?;
        idem.sort_by_key(|record| record.revision);
        Ok(Stored {
            epoch: Epoch::new(epoch).map_err(|error| format!("`{KEY_EPOCH}`: {error}"))?,
            revision: Revision::new(revision.map_err(|_| "the revision is malformed")?),
            settings: records::decode_settings(&settings)?,
            models,
            idem,
            keys: self.read_keys()?,
        })
    }

    fn read_keys(&self) -> Result<StoredKeys, String> {
        let text = |error: sled::Error| error.to_string();
        let head = self.meta.get(KEY_KEYS).map_err(text)?;
        let (mut stored, count) = match head {
            Some(head) => keys::decode_head(&head)?,
            None => (StoredKeys::default(), 0),
        };
        for entry in &self.keys {
            let (key, value) = entry.map_err(text)?;
            let record = keys::decode(&value)
                .map_err(|error| format!("key {}: {error}", String::from_utf8_lossy(&key)))?;
            stored.records.push(record);
        }
        match stored.records.len() as u64 == count {
            true => Ok(stored),
            false => Err(format!(
                "it should hold {count} clients' keys and holds {}",
                stored.records.len()
            )),
        }
    }
}

impl Store for SledStore {
    fn load(&mut self) -> Result<Stored, StoreError> {
        self.check_failed()?;
        self.read().map_err(StoreError::NotCommitted)
    }

    fn past(&mut self) -> Result<Past, StoreError> {
        self.check_failed()?;
        self.history_reader()
            .past()
            .map_err(|error| StoreError::NotCommitted(error.to_string()))
    }

    fn history(&self) -> Arc<dyn History> {
        Arc::new(self.history_reader())
    }

    fn commit(&mut self, changes: &[Change]) -> Result<(), StoreError> {
        self.check_failed()?;
        check_sizes(changes)?;
        crash::at("planned");
        let result =
            self.transaction(|trees| changes.iter().try_for_each(|change| write(trees, change)));
        result.map_err(|error| self.fail(&error))?;
        crash::at("written");
        self.sync()
    }

    fn commit_keys(&mut self, changes: &[KeyChange]) -> Result<(), StoreError> {
        self.check_failed()?;
        check_key_sizes(changes)?;
        crash::at("keys-planned");
        let written = (&self.meta, &self.keys).transaction(|(meta, tree)| {
            let mut changes = changes.iter();
            changes.try_for_each(|change| write::write_keys(meta, tree, change))
        });
        written.map_err(|error| self.fail(&error))?;
        crash::at("keys-written");
        self.sync()
    }
}

/// Refuses what a newer version wrote.
fn check_format(dir: &Path, meta: &Tree) -> Result<(), OpenError> {
    let damaged = |what: &str| OpenError::Damaged {
        dir: dir.to_owned(),
        what: what.to_owned(),
    };
    let found = meta
        .get(KEY_FORMAT)
        .map_err(|error| open_error(dir, error))?;
    let Some(found) = found else {
        return match meta.is_empty() {
            true => Ok(()),
            false => Err(damaged("it has data but no format number")),
        };
    };
    let found = found.as_ref().try_into().map(u32::from_be_bytes);
    match found.map_err(|_| damaged("its format number is malformed"))? {
        upgrade::OLDEST..=FORMAT => Ok(()),
        found => Err(OpenError::NewerFormat {
            dir: dir.to_owned(),
            found,
            known: FORMAT,
        }),
    }
}

#[cfg(test)]
impl SledStore {
    pub(super) fn meta(&self) -> &Tree {
        &self.meta
    }
}
