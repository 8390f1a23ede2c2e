//! What is checked before a write is planned: all that is wrong, at once, against everything that is
//! registered.

use forebay_proto::{
    Budget, ModelSpec, PoolSettings, ResolvedModel, Revision, Violations, limits,
    pool::check_keepalive, wire,
};
use prost::Message as _;

use super::{State, show::etag};
use crate::{registry::WriteError, store::ModelRecord};

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

    /// All that is wrong with a model, at once.
    pub(super) fn check_model(
        &self,
        spec: Result<ModelSpec, Violations>,
        keepalive: Option<u32>,
        old: Option<&ModelRecord>,
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
        let spec = violations.finish(spec).map_err(WriteError::Invalid)?;
        let before = old.map_or(0, |old| self.encoded_len(&old.spec));
        let total = self.bytes + self.encoded_len(&spec) - before.min(self.bytes);
        if total > limits::CONFIG_BYTES {
            return Err(WriteError::LimitReached(format!(
                "the configuration would take {total} bytes, at most {} are allowed; remove models, \
                 aliases or endpoints",
                limits::CONFIG_BYTES
            )));
        }
        Ok(spec)
    }

    /// An id or alias names one model. `old` is the one that may keep its own.
    pub(super) fn check_names(
        &self,
        spec: &ModelSpec,
        old: Option<&ModelRecord>,
    ) -> Result<(), WriteError> {
        let own = old.map(|old| old.spec.id());
        for (n, name) in spec.names().enumerate() {
            let Some(owner) = self.names.get(name).filter(|owner| Some(*owner) != own) else {
                continue;
            };
            let field = match n.checked_sub(1) {
                None => "model.id".to_owned(),
                Some(alias) => format!("model.aliases[{alias}]"),
            };
            let (name, owner) = (name.to_string(), owner.to_string());
            return Err(WriteError::AlreadyExists { field, name, owner });
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

pub(super) fn required(field: &str) -> WriteError {
    let mut violations = Violations::new();
    violations.add(field, "required");
    WriteError::Invalid(violations)
}

/// Text of a client's, short enough to repeat.
pub(super) fn bounded(text: &str) -> String {
    text.chars().take(limits::MODEL_ID_CHARS).collect()
}
