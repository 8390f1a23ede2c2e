//! A store in memory, for tests and simulations: the reference for the suite, and the one that fails on demand.

use std::{collections::BTreeMap, sync::Arc};

use forebay_proto::{Epoch, ModelId, PoolSettings, Revision};
use parking_lot::Mutex;

use super::{Change, IdemRecord, ModelRecord, Op, SettingsRecord, Store, StoreError, Stored};

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
    pub(crate) next: Arc<Mutex<Next>>,
}

impl MemoryStore {
    pub(crate) fn new(epoch: Epoch, settings: PoolSettings) -> Self {
        let revision = Revision::new(1);
        let updated = std::time::UNIX_EPOCH;
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
        match &change.op {
            Op::Remember => {}
            Op::PutModel(record) => {
                self.models.insert(record.spec.id().clone(), record.clone());
            }
            Op::DeleteModel(id) => {
                self.models.remove(id);
            }
            Op::PutSettings(record) => self.settings = record.clone(),
        }
        for request_id in &change.forget_idem {
            self.idem.remove(request_id);
        }
        if let Some(record) = &change.idem {
            self.idem.insert(record.request_id.clone(), record.clone());
        }
        self.revision = change.revision();
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
        })
    }

    fn commit(&mut self, changes: &[Change]) -> Result<(), StoreError> {
        let next = std::mem::take(&mut *self.next.lock());
        if next == Next::Works || next == Next::UnknownWritten {
            changes.iter().for_each(|change| self.write(change));
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
