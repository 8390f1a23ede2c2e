//! A store in memory, for tests and simulations: the reference for the suite, and the one that fails on demand.

use std::{collections::BTreeMap, sync::Arc};

use forebay_proto::{Epoch, ModelId, PoolSettings, Revision};
use parking_lot::Mutex;

use super::{
    Change, IdemRecord, ModelRecord, SettingsRecord, Store, StoreError, Stored,
    history::{Edit, Edits, Entry, EntryKind, History, Kept, LogRecord, Past, Unreadable},
    keys::{KeyChange, StoredKeys},
};

/// What the next commit does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Next {
    #[default]
    Works,
    NotCommitted,
    /// Fails, but the change is there.
    UnknownWritten,
    /// Fails, and the change is not there.
    UnknownLost,
}

#[derive(Debug, Clone)]
pub(crate) struct MemoryStore {
    epoch: Epoch,
    revision: Revision,
    settings: SettingsRecord,
    models: BTreeMap<ModelId, ModelRecord>,
    idem: BTreeMap<String, IdemRecord>,
    keys: StoredKeys,
    entries: Arc<Mutex<Entries>>,
    pub(crate) next: Arc<Mutex<Next>>,
}

#[derive(Debug)]
struct Entries {
    earliest: Revision,
    kept: BTreeMap<Revision, (LogRecord, Vec<Edit>)>,
}

impl MemoryStore {
    pub(crate) fn new(epoch: Epoch, settings: PoolSettings) -> Self {
        let revision = Revision::new(1);
        let updated = std::time::UNIX_EPOCH;
        let log = LogRecord::of_store("Create", revision, updated);
        let entries = Entries {
            earliest: revision,
            kept: BTreeMap::from([(revision, (log, Vec::new()))]),
        };
        Self {
            epoch,
            revision,
            settings: SettingsRecord {
                settings,
                revision,
                updated,
            },
            models: BTreeMap::new(),
            idem: BTreeMap::new(),
            keys: StoredKeys::default(),
            entries: Arc::new(Mutex::new(entries)),
            next: Arc::default(),
        }
    }

    /// A fresh one, for a test.
    #[cfg(test)]
    pub(crate) fn fresh() -> Self {
        let epoch = Epoch::new("0123456789abcdef").unwrap();
        Self::new(epoch, PoolSettings::default())
    }

    fn write(&mut self, change: &Change) {
        if let Some(entry) = &change.entry {
            self.write_entry(entry);
            self.revision = change.revision;
        }
        for request_id in &change.forget_idem {
            self.idem.remove(request_id);
        }
        if let Some(record) = &change.idem {
            self.idem.insert(record.request_id.clone(), record.clone());
        }
    }

    fn write_entry(&mut self, entry: &Entry) {
        for edit in &entry.edits {
            match edit {
                Edit::Settings { after, .. } => self.settings = SettingsRecord::clone(after),
                Edit::Model {
                    id,
                    after: Some(record),
                    ..
                } => drop(self.models.insert(id.clone(), ModelRecord::clone(record))),
                Edit::Model {
                    id, after: None, ..
                } => drop(self.models.remove(id)),
            }
        }
        let mut entries = self.entries.lock();
        let edits = match entry.kind {
            EntryKind::Undoable => entry.edits.clone(),
            EntryKind::Beginning => {
                entries.earliest = entry.log.revision;
                Vec::new()
            }
        };
        entries
            .kept
            .insert(entry.log.revision, (entry.log.clone(), edits));
        for old in &entry.forget {
            entries.kept.remove(&old.revision);
            entries.earliest = entries.earliest.max(old.revision);
        }
    }
}

/// Reads what the store has.
#[derive(Debug)]
struct MemoryHistory(Arc<Mutex<Entries>>);

impl History for MemoryHistory {
    fn earliest(&self) -> Result<Revision, Unreadable> {
        Ok(self.0.lock().earliest)
    }

    fn entry(&self, revision: Revision) -> Result<Option<LogRecord>, Unreadable> {
        let entries = self.0.lock();
        Ok(entries.kept.get(&revision).map(|(log, _)| log.clone()))
    }

    fn entries(&self, from: Revision, most: usize) -> Result<Vec<LogRecord>, Unreadable> {
        let entries = self.0.lock();
        let newest_first = entries.kept.range(..=from).rev();
        Ok(newest_first
            .take(most)
            .map(|(_, (log, _))| log.clone())
            .collect())
    }

    fn edits(&self, after: Revision, to: Revision) -> Edits<'_> {
        if after >= to {
            return Box::new(std::iter::empty());
        }
        let entries = self.0.lock();
        let entries = entries.kept.range(after.next()..=to);
        let edits: Vec<_> = entries
            .flat_map(|(revision, (_, edits))| {
                edits.iter().map(|edit| Ok((*revision, edit.clone())))
            })
            .collect();
        Box::new(edits.into_iter())
    }
}

impl Store for MemoryStore {
    fn load(&mut self) -> Result<Stored, StoreError> {
        let mut idem: Vec<_> = self.idem.values().cloned().collect();
        idem.sort_by_key(|record| record.revision);
        Ok(Stored {
            epoch: self.epoch.clone(),
            revision: self.revision,
            settings: self.settings.clone(),
            models: self.models.values().cloned().collect(),
            idem,
            keys: self.keys.clone(),
        })
    }

    fn past(&mut self) -> Result<Past, StoreError> {
        let entries = self.entries.lock();
        let logs = entries.kept.values().map(|(log, _)| log);
        let kept = logs.clone().map(|log| Kept {
            revision: log.revision,
            edits: log.edits,
            bytes: log.bytes,
        });
        let digest = logs.clone().next_back().and_then(|log| log.digest);
        Ok(Past::new(entries.earliest, kept, digest))
    }

    fn history(&self) -> Arc<dyn History> {
        Arc::new(MemoryHistory(self.entries.clone()))
    }

    fn commit(&mut self, changes: &[Change]) -> Result<(), StoreError> {
        self.fall(|this| changes.iter().for_each(|change| this.write(change)))
    }

    fn commit_keys(&mut self, changes: &[KeyChange]) -> Result<(), StoreError> {
        self.fall(|this| {
            changes.iter().for_each(|change| {
                let records = &mut this.keys.records;
                records.retain(|old| old.id != change.put.id && !change.forget.contains(&old.id));
                records.push((*change.put).clone());
                records.sort_by_key(|record| record.id);
                (this.keys.version, this.keys.floor) = (change.version, change.floor);
            })
        })
    }
}

impl MemoryStore {
    fn fall(&mut self, write: impl FnOnce(&mut Self)) -> Result<(), StoreError> {
        let next = std::mem::take(&mut *self.next.lock());
        if next == Next::Works || next == Next::UnknownWritten {
            write(self);
        }
        match next {
            Next::Works => Ok(()),
            Next::NotCommitted => Err(StoreError::NotCommitted("on demand".to_owned())),
            Next::UnknownWritten | Next::UnknownLost => {
                Err(StoreError::Unknown("on demand".to_owned()))
            }
        }
    }
}
