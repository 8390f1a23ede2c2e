//! The state of the registry, and the pure transition that plans a write: no IO, no clock.
//!
//! [`State::plan`] checks everything and says what would change; [`State::apply`] makes the change.
//! The caller commits in between.

mod batch;
mod check;
mod plan;
mod show;
mod undo;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    sync::Arc,
};

use forebay_proto::{Budget, Config, Epoch, ModelId, PoolParams, Revision, Violations, wire};

pub(crate) use self::undo::Undo;
use self::{check::budget, show::show_settings};
use super::Answer;
use crate::store::{
    Change, IdemRecord, ModelRecord, SettingsRecord, Stored, history::Edit, keys::StoredKeys,
};

/// Everything registered, at one revision.
#[derive(Debug, Clone)]
pub(crate) struct State {
    epoch: Epoch,
    revision: Revision,
    settings: SettingsRecord,
    models: BTreeMap<ModelId, Arc<ModelRecord>>,
    /// Each id and alias, and whose it is.
    names: HashMap<ModelId, ModelId>,
    /// Size of the models' encoded configuration, in bytes.
    bytes: usize,
    idem: HashMap<String, Arc<IdemRecord>>,
    idem_order: VecDeque<String>,
}

/// The pool of a model, as far as it may be shared by all workers.
#[derive(Debug, Clone)]
pub(crate) struct PoolOf {
    pub(crate) id: ModelId,
    pub(crate) pool: PoolParams,
    pub(crate) budget: Budget,
    /// That changed the registration last.
    pub(crate) revision: Revision,
    /// Nothing about it changed since it was created.
    pub(crate) is_as_created: bool,
}

/// A write, checked.
#[derive(Debug)]
pub(crate) struct Planned {
    /// What is to be committed; nothing for a repeated, an idle or a trial write.
    pub(crate) change: Option<Change>,
    pub(crate) answer: Answer,
}

impl State {
    pub(crate) fn new(stored: Stored) -> Self {
        let mut state = Self {
            epoch: stored.epoch,
            revision: stored.revision,
            settings: stored.settings,
            models: BTreeMap::new(),
            names: HashMap::new(),
            bytes: 0,
            idem: HashMap::new(),
            idem_order: VecDeque::new(),
        };
        stored
            .models
            .into_iter()
            .for_each(|record| state.put_model(Arc::new(record)));
        stored
            .idem
            .into_iter()
            .for_each(|record| state.put_idem(record));
        state
    }

    /// What a store that holds this would give back.
    pub(crate) fn stored(&self) -> Stored {
        let answers = self.idem_order.iter().filter_map(|id| self.idem.get(id));
        Stored {
            epoch: self.epoch.clone(),
            revision: self.revision,
            settings: self.settings.clone(),
            models: self.models.values().map(|r| (**r).clone()).collect(),
            idem: answers.map(|record| (**record).clone()).collect(),
            // They are elsewhere; who wants them adds them.
            keys: StoredKeys::default(),
        }
    }

    /// Some endpoint has a credential.
    pub(crate) fn has_credentials(&self) -> bool {
        self.models.values().any(|record| record.has_credential())
    }

    /// The seal keys that its credentials are opened with.
    pub(crate) fn seal_keys(&self) -> BTreeSet<u32> {
        let endpoints = self.models.values().flat_map(|r| r.spec.endpoints());
        let sealed = endpoints.filter_map(|endpoint| endpoint.credential.as_ref());
        sealed.map(|sealed| sealed.key_id()).collect()
    }

    pub(crate) fn epoch(&self) -> &Epoch {
        &self.epoch
    }

    pub(crate) fn revision(&self) -> Revision {
        self.revision
    }

    pub(crate) fn model(&self, id: &str) -> Option<wire::Model> {
        self.models
            .get(id)
            .map(|record| self.show(record, &self.settings.settings))
    }

    /// Up to `most` models after this id, in order, and whether there are more.
    pub(crate) fn page(&self, after: Option<&str>, most: usize) -> (Vec<wire::Model>, bool) {
        let later = |id: &ModelId| after.is_none_or(|after| id.as_str() > after);
        let mut rest = self
            .models
            .iter()
            .filter(|(id, _)| later(id))
            .map(|(_, record)| record);
        let page = rest.by_ref().take(most);
        let page = page
            .map(|record| self.show(record, &self.settings.settings))
            .collect();
        (page, rest.next().is_some())
    }

    pub(crate) fn len(&self) -> usize {
        self.models.len()
    }

    /// Endpoints of the model that has the most of them.
    pub(crate) fn most_endpoints(&self) -> usize {
        let endpoints = self.models.values().map(|r| r.spec.endpoints().len());
        endpoints.max().unwrap_or_default()
    }

    #[cfg(test)]
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(crate) fn settings(&self) -> wire::PoolDefaults {
        show_settings(&self.settings, &self.epoch)
    }

    /// The configuration as workers use it.
    pub(crate) fn config(&self) -> Result<Config, Violations> {
        let settings = &self.settings.settings;
        let models: Result<Vec<_>, _> = self
            .models
            .values()
            .map(|r| r.spec.resolve(settings, r.revision))
            .collect();
        Config::new(budget(settings)?, models?)
    }

    /// The pools of all models.
    pub(crate) fn pools(&self) -> Vec<PoolOf> {
        let settings = &self.settings.settings;
        let Ok(budget) = budget(settings) else {
            return Vec::new();
        };
        let pool = |record: &Arc<ModelRecord>| {
            Some(PoolOf {
                id: record.spec.id().clone(),
                pool: settings.resolve(&record.spec.pool).ok()?,
                budget,
                revision: record.revision,
                is_as_created: record.created == record.updated,
            })
        };
        self.models.values().filter_map(pool).collect()
    }

    /// Makes a planned change.
    pub(crate) fn apply(&mut self, change: Change) {
        self.revision = change.revision;
        if let Some(entry) = change.entry {
            self.put_edits(&entry.edits);
        }
        for request_id in change.forget_idem {
            self.idem.remove(&request_id);
            self.idem_order.retain(|known| *known != request_id);
        }
        change
            .idem
            .into_iter()
            .for_each(|record| self.put_idem(record));
    }

    /// All that goes first: a name may go from one model to another.
    fn put_edits(&mut self, edits: &[Edit]) {
        for edit in edits {
            match edit {
                Edit::Settings { after, .. } => self.put_settings(SettingsRecord::clone(after)),
                Edit::Model { id, .. } => self.remove_model(id),
            }
        }
        for edit in edits {
            if let Edit::Model {
                after: Some(record),
                ..
            } = edit
            {
                self.put_model(record.clone());
            }
        }
    }

    /// What is inherited is part of each model's size.
    fn put_settings(&mut self, record: SettingsRecord) {
        self.settings = record;
        let sizes = self.models.values();
        self.bytes = sizes.map(|record| self.encoded_len(&record.spec)).sum();
    }

    fn put_model(&mut self, record: Arc<ModelRecord>) {
        self.remove_model(record.spec.id());
        self.bytes += self.encoded_len(&record.spec);
        for name in record.spec.names() {
            self.names.insert(name.clone(), record.spec.id().clone());
        }
        self.models.insert(record.spec.id().clone(), record);
    }

    fn remove_model(&mut self, id: &ModelId) {
        let Some(old) = self.models.remove(id) else {
            return;
        };
        self.bytes = self.bytes.saturating_sub(self.encoded_len(&old.spec));
        for name in old.spec.names() {
            self.names.remove(name);
        }
    }

    fn put_idem(&mut self, record: IdemRecord) {
        let id = record.request_id.clone();
        if self.idem.insert(id.clone(), Arc::new(record)).is_none() {
            self.idem_order.push_back(id);
        }
    }
}
