//! What is checked before a write is planned: all that is wrong, at once, against everything that is
//! registered.

use std::collections::{HashMap, HashSet};

use forebay_proto::{
    Budget, ModelId, ModelSpec, PoolSettings, ResolvedModel, Revision, Violations, limits,
    pool::check_keepalive, wire,
};
use prost::Message as _;

use super::{State, show::etag};
use crate::{
    registry::WriteError,
    store::{ModelRecord, VALUE_BYTES, history::Edit, record_len},
};

/// Largest record of a model: an answer that is kept for a repeated write has what is resolved beside it.
const RECORD_BYTES: usize = VALUE_BYTES - 1_024;

impl State {
    /// Every registered model must still fit.
    pub(super) fn check_settings(
        &self,
        new: &PoolSettings,
        keepalive: Option<u32>,
    ) -> Result<(), WriteError> {
        let mut violations = Violations::new();
        let budget = budget(new).map_err(WriteError::Invalid)?;
        if let Some(claimed) = keepalive {
            let checked = check_keepalive("settings.keepalive", claimed, budget.get());
            violations.here(checked.map_err(Violations::from));
        }
        for record in self.models.values() {
            if let Err(wrong) = record.spec.resolve(new, record.revision) {
                let message = format!("model `{}` would not fit: {wrong}", record.spec.id());
                violations.add("settings.max_concurrent", message);
            }
        }
        violations.finish(Some(())).map_err(WriteError::Invalid)
    }

    /// All that is wrong with a model by itself, at once.
    pub(super) fn check_model(
        &self,
        spec: Result<ModelSpec, Violations>,
        keepalive: Option<u32>,
    ) -> Result<ModelSpec, WriteError> {
        let mut violations = Violations::new();
        let spec = violations.part("model", spec);
        let resolved = spec
            .as_ref()
            .and_then(|spec| violations.part("model", self.resolve(spec)));
        if let (Some(claimed), Some(model)) = (keepalive, &resolved) {
            let checked = check_keepalive("model.pool.keepalive", claimed, model.pool.size.get());
            violations.here(checked.map_err(Violations::from));
        }
        violations.finish(spec).map_err(WriteError::Invalid)
    }

    /// What concerns all models of changes: how many there are, how large, and how they are called. `prefix` is the
    /// path of an edit in the request.
    pub(super) fn check_together(
        &self,
        edits: &[Edit],
        prefix: &dyn Fn(usize) -> String,
    ) -> Result<(), WriteError> {
        let (mut models, mut bytes) = (self.models.len(), self.bytes);
        let (mut more_models, mut more_bytes) = (0, 0);
        for edit in edits {
            if let Edit::Model { before, after, .. } = edit {
                let length = |record: &ModelRecord| self.encoded_len(&record.spec);
                models -= usize::from(before.is_some()).min(models);
                bytes -= before.as_deref().map_or(0, length).min(bytes);
                more_models += usize::from(after.is_some());
                more_bytes += after.as_deref().map_or(0, length);
            }
        }
        let (models, bytes) = (models + more_models, bytes + more_bytes);
        for (n, edit) in edits.iter().enumerate() {
            check_record(&format!("{}model", prefix(n)), edit)?;
        }
        if more_bytes > 0 && bytes > limits::CONFIG_BYTES {
            return Err(WriteError::LimitReached(format!(
                "the configuration would take {bytes} bytes, at most {} are allowed; remove models, \
                 aliases or endpoints",
                limits::CONFIG_BYTES
            )));
        }
        if models > limits::MODELS.max(self.models.len()) {
            return Err(WriteError::LimitReached(format!(
                "{models} models would be registered, at most {} are allowed; delete some first",
                limits::MODELS
            )));
        }
        self.check_names(edits, prefix)
    }

    /// A model that is named newly as a fallback is registered, when all of the edits are made: otherwise it is most
    /// likely misspelt. One that is deleted later is passed over by workers: it must be possible to delete it, and to
    /// write what was exported then.
    pub(super) fn check_fallbacks(
        &self,
        edits: &[Edit],
        prefix: &dyn Fn(usize) -> String,
    ) -> Result<(), WriteError> {
        let mut violations = Violations::new();
        for (n, edit) in edits.iter().enumerate() {
            let Edit::Model {
                before,
                after: Some(after),
                ..
            } = edit
            else {
                continue;
            };
            let before = before.as_ref().map(|record| record.spec.failure());
            for (at, name) in after.spec.failure().fallbacks.iter().enumerate() {
                let known = before.is_some_and(|before| before.fallbacks.contains(name));
                if known || self.is_registered_after(edits, name) {
                    continue;
                }
                let field = format!("{}model.fallbacks[{at}]", prefix(n));
                let message = match self.names.get(name) {
                    Some(owner) => format!("`{name}` is an alias; name the model, `{owner}`"),
                    None => format!(
                        "`{name}` is not registered; register it first, or with it, or leave it out; in a batch \
                         `allow_missing_fallbacks` takes it all the same"
                    ),
                };
                violations.add(field, message);
            }
        }
        violations.finish(Some(())).map_err(WriteError::Invalid)
    }

    /// True if there is a model of this id when all of the edits are made.
    fn is_registered_after(&self, edits: &[Edit], name: &ModelId) -> bool {
        let edited = edits.iter().rev().find_map(|edit| match edit {
            Edit::Model { id, after, .. } if id == name => Some(after.is_some()),
            _ => None,
        });
        edited.unwrap_or_else(|| self.models.contains_key(name))
    }

    /// An id or alias names one model, when all of the edits are made.
    fn check_names(
        &self,
        edits: &[Edit],
        prefix: &dyn Fn(usize) -> String,
    ) -> Result<(), WriteError> {
        let ids = edits.iter().filter_map(|edit| match edit {
            Edit::Model { id, .. } => Some(id),
            Edit::Settings { .. } => None,
        });
        let touched: HashSet<&ModelId> = ids.collect();
        let mut taken: HashMap<&ModelId, &ModelId> = HashMap::new();
        for (n, edit) in edits.iter().enumerate() {
            let Edit::Model {
                id,
                after: Some(record),
                ..
            } = edit
            else {
                continue;
            };
            for (name_n, name) in record.spec.names().enumerate() {
                let before = self.names.get(name);
                let before = before.filter(|owner| !touched.contains(owner));
                let Some(owner) = before.or(taken.insert(name, id)) else {
                    continue;
                };
                let field = match name_n.checked_sub(1) {
                    None => format!("{}model.id", prefix(n)),
                    Some(alias) => format!("{}model.aliases[{alias}]", prefix(n)),
                };
                let (name, owner) = (name.to_string(), owner.to_string());
                return Err(WriteError::AlreadyExists { field, name, owner });
            }
        }
        Ok(())
    }

    pub(super) fn check_etag(&self, given: &str, revision: Revision) -> Result<(), WriteError> {
        let current = etag(&self.epoch, revision);
        match given {
            "" => Ok(()),
            given if given == current => Ok(()),
            given => Err(WriteError::EtagMismatch {
                given: bounded(given),
                current,
            }),
        }
    }

    pub(super) fn resolve(&self, spec: &ModelSpec) -> Result<ResolvedModel, Violations> {
        spec.resolve(&self.settings.settings, self.revision.next())
    }

    /// Bytes of a model in the encoded configuration, its tag and length included.
    pub(super) fn encoded_len(&self, spec: &ModelSpec) -> usize {
        let resolved = self.resolve(spec);
        resolved.map_or(0, |model| wire::Model::from(&model).encoded_len() + 8)
    }
}

pub(super) fn budget(settings: &PoolSettings) -> Result<Budget, Violations> {
    let mut violations = Violations::new();
    let budget = violations.check("settings.max_models_concurrent", settings.budget());
    violations.finish(budget)
}

/// Larger ones the store would refuse, and with it whatever is committed together with them.
fn check_record(field: &str, edit: &Edit) -> Result<(), WriteError> {
    let Edit::Model {
        id,
        after: Some(record),
        ..
    } = edit
    else {
        return Ok(());
    };
    let bytes = record_len(record);
    match bytes > RECORD_BYTES {
        true => Err(WriteError::LimitReached(format!(
            "{field}: `{id}` takes {bytes} bytes, at most {RECORD_BYTES} are allowed; name fewer endpoints or shorter \
             certificates, or make several models of it"
        ))),
        false => Ok(()),
    }
}

pub(super) fn required(field: &str) -> WriteError {
    let mut violations = Violations::new();
    violations.add(field, "required");
    WriteError::Invalid(violations)
}

/// Text of a client's, short enough to repeat.
pub(super) fn bounded(text: &str) -> String {
    text.chars().take(limits::MODEL_ID_CHARS).collect()
}
