//! A whole configuration as workers use it: the models with everything inherited filled in.

use std::collections::BTreeMap;

use bytes::Bytes;
use prost::Message as _;

use crate::{
    ids::ModelId, limits, model::ResolvedModel, pool::Budget, revision::Digest,
    violation::Violations, wire,
};

/// A configuration that a worker can apply. Models are in order of id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    budget: Budget,
    models: Vec<ResolvedModel>,
}

impl Config {
    /// Checks what can be checked only of the whole: names are unique, pools fit the budget.
    pub fn new(budget: Budget, mut models: Vec<ResolvedModel>) -> Result<Self, Violations> {
        models.sort_by(|a, b| a.id.cmp(&b.id));
        let mut violations = Violations::new();
        if models.len() > limits::MODELS {
            let (n, most) = (models.len(), limits::MODELS);
            violations.add("models", format!("{n} models, at most {most} are allowed"));
        }
        let fleet_wide = models
            .iter()
            .filter(|model| model.pool.is_fleet_wide())
            .count();
        if fleet_wide > limits::FLEET_MODELS {
            let most = limits::FLEET_MODELS;
            let message =
                format!("{fleet_wide} models with scope FLEET, at most {most} are allowed");
            violations.add("models", message);
        }
        let mut owners: BTreeMap<&ModelId, &ModelId> = BTreeMap::new();
        for (n, model) in models.iter().enumerate() {
            if model.pool.size.get() > budget.get() && !model.pool.is_fleet_wide() {
                let (size, budget) = (model.pool.size, budget.get());
                let message = format!("{size} connections exceed the worker's budget of {budget}");
                violations.add(format!("models[{n}].pool.max_concurrent"), message);
            }
            for name in model.names() {
                if let Some(owner) = owners.insert(name, &model.id) {
                    let message = format!("`{name}` is also a name of model `{owner}`");
                    violations.add(format!("models[{n}]"), message);
                }
            }
        }
        violations
            .finish(Some(()))
            .map(|()| Self { budget, models })
    }

    /// Most connections of a worker.
    #[must_use]
    pub fn budget(&self) -> Budget {
        self.budget
    }

    /// The models, in order of id.
    #[must_use]
    pub fn models(&self) -> &[ResolvedModel] {
        &self.models
    }

    /// The bytes that are pushed, and their digest.
    #[must_use]
    pub fn encode(&self) -> (Bytes, Digest) {
        let bytes = Bytes::from(wire::Config::from(self).encode_to_vec());
        let digest = Digest::of(&bytes);
        (bytes, digest)
    }

    /// Reads what was pushed. All violations at once.
    pub fn decode(bytes: &[u8]) -> Result<Self, Violations> {
        let wire = wire::Config::decode(bytes).map_err(|error| {
            let mut violations = Violations::new();
            violations.add("config", format!("cannot be decoded: {error}"));
            violations
        })?;
        Self::try_from(wire)
    }
}
