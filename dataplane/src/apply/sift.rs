//! Sifts a pushed configuration: each model is read on its own, and what is bad costs only itself.
//!
//! Pure: what was pushed and what was there before in, what is to be in force out. The outcome does not depend on the
//! order in which models are given. It must not touch a pool.
//!
//! - A good model is as it was pushed, names included; nothing that was there before can take one from it.
//! - A bad one is *retained* as it was before, without names that others have now, or *left out*.
//! - If the id of a bad one cannot be read, it may be any of those that are absent: none of them is removed.

use std::collections::{BTreeMap, BTreeSet, btree_map::Entry};

use bytes::Bytes;
use forebay_proto::{
    Budget, ModelId, ResolvedModel, Violations, limits, parts, violation::Violation, wire,
};
use prost::Message as _;

use super::{Refusal, RefusalReason, guard::guarded};

/// A model that cannot be taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Bad {
    /// Its id, if that can be read.
    pub(super) id: Option<ModelId>,
    /// Where it stands in what was pushed.
    at: usize,
    reason: RefusalReason,
    /// At least one.
    why: Vec<Violation>,
}

/// A pushed configuration whose models were looked at one by one.
#[derive(Debug, Clone)]
pub(super) struct Sifted<'a> {
    pub(super) budget: Budget,
    good: BTreeMap<ModelId, (usize, ResolvedModel)>,
    bad: Vec<Bad>,
    /// What was there before, as far as it can still be used.
    before: BTreeMap<&'a ModelId, &'a ResolvedModel>,
}

/// What is to be in force.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Merged {
    /// In order of id.
    pub(super) models: Vec<ResolvedModel>,
    /// Those of them that are as they were before because what was pushed is bad.
    pub(super) retained: BTreeSet<ModelId>,
}

impl<'a> Sifted<'a> {
    /// Reads the envelope, then model by model. What is wrong with the envelope is wrong with the whole.
    pub(super) fn read(
        config: &Bytes,
        before: impl IntoIterator<Item = &'a ResolvedModel>,
    ) -> Result<Self, Violations> {
        let mut violations = Violations::new();
        let envelope = wire::Envelope::decode(config.clone()).unwrap_or_else(|error| {
            violations.add("config", format!("cannot be decoded: {error}"));
            wire::Envelope::default()
        });
        if !violations.is_empty() {
            return Err(violations);
        }
        let (n, most) = (envelope.models.len(), limits::MODELS);
        if n > most {
            violations.add("models", format!("{n} models, at most {most} are allowed"));
        }
        let budget = violations.check("budget", Budget::new(envelope.budget));
        let budget = violations.finish(budget)?;
        let mut sifted = Self {
            budget,
            good: BTreeMap::new(),
            bad: Vec::new(),
            before: before.into_iter().map(|m| (&m.id, m)).collect(),
        };
        sifted.read_models(&envelope.models);
        sifted.check_names();
        Ok(sifted)
    }

    fn read_models(&mut self, models: &[Bytes]) {
        for (at, encoded) in models.iter().enumerate() {
            let read = guarded(|| read_model(encoded, self.budget));
            let (reason, why) = match read {
                Ok(Ok(model)) => {
                    match self.good.entry(model.id.clone()) {
                        Entry::Vacant(free) => drop(free.insert((at, model))),
                        Entry::Occupied(taken) => self.bad.push(Bad::twice(at, taken.key())),
                    }
                    continue;
                }
                Ok(Err(violations)) => (
                    RefusalReason::InvalidField,
                    violations.as_slice().to_owned(),
                ),
                Err(panic) => (
                    RefusalReason::BuildFailed,
                    vec![at_model(format!("reading it panicked: {panic}"))],
                ),
            };
            let id = guarded(|| read_id(encoded)).ok().flatten();
            self.bad.push(Bad {
                id,
                at,
                reason,
                why,
            });
        }
        // Of several under one id none can be told to be the right one.
        let bad = self.bad.iter().filter_map(|bad| bad.id.clone());
        for id in bad.collect::<BTreeSet<_>>() {
            if let Some((at, _)) = self.good.remove(&id) {
                self.bad.push(Bad::twice(at, &id));
            }
        }
    }

    /// Ids come before aliases, lesser ids before greater ones.
    fn check_names(&mut self) {
        let mut owners: BTreeMap<&ModelId, &ModelId> =
            self.good.keys().map(|id| (id, id)).collect();
        let mut clashes = Vec::new();
        for (id, (at, model)) in &self.good {
            let clash = model.aliases.iter().enumerate().find_map(|(n, alias)| {
                let owner = *owners.get(alias)?;
                let message = format!("`{alias}` is also a name of model `{owner}`");
                let field = format!("aliases[{n}]");
                Some(Violation { field, message })
            });
            match clash {
                Some(why) => clashes.push((*at, id.clone(), why)),
                None => owners.extend(model.aliases.iter().map(|alias| (alias, id))),
            }
        }
        for (at, id, why) in clashes {
            self.good.remove(&id);
            self.bad.push(Bad {
                id: Some(id),
                at,
                reason: RefusalReason::InvalidField,
                why: vec![why],
            });
        }
    }

    /// A good one turned out to be bad when its pool was built. One that was not good any more cannot be retained
    /// either.
    pub(super) fn fail(&mut self, id: &ModelId, why: &str) {
        let why = at_model(format!("building its pool failed: {why}"));
        match self.good.remove(id) {
            Some((at, _)) => self.bad.push(Bad {
                id: Some(id.clone()),
                at,
                reason: RefusalReason::BuildFailed,
                why: vec![why],
            }),
            None => drop(self.before.remove(id)),
        }
    }

    /// What was there before under this id cannot be had again.
    pub(super) fn forget(&mut self, id: &ModelId) {
        self.before.remove(id);
    }

    /// What is to be in force.
    pub(super) fn merge(&self) -> Merged {
        let good = self.good.values().map(|(_, model)| model);
        let mut names: BTreeSet<&ModelId> = good.clone().flat_map(ResolvedModel::names).collect();
        let named: BTreeSet<&ModelId> = self.bad.iter().filter_map(|bad| bad.id.as_ref()).collect();
        let nameless = self.bad.iter().any(|bad| bad.id.is_none());
        let room = limits::MODELS.saturating_sub(self.good.len());
        let keep: Vec<&ResolvedModel> = self
            .before
            .values()
            .copied()
            .filter(|model| nameless || named.contains(&model.id))
            .filter(|model| !names.contains(&model.id))
            .take(room)
            .collect();
        names.extend(keep.iter().map(|model| &model.id));
        let mut models: Vec<ResolvedModel> = good.cloned().collect();
        for model in &keep {
            let mut kept = (*model).clone();
            kept.aliases.retain(|alias| !names.contains(alias));
            names.extend(model.aliases.iter());
            models.push(kept);
        }
        models.sort_by(|a, b| a.id.cmp(&b.id));
        Merged {
            models,
            retained: keep.iter().map(|model| model.id.clone()).collect(),
        }
    }

    /// How many models are bad.
    pub(super) fn refused(&self) -> usize {
        self.bad.len()
    }

    /// Why, of each at least one reason as far as there is room.
    pub(super) fn refusals(&self, merged: &Merged) -> Vec<Refusal> {
        let mut bad: Vec<&Bad> = self.bad.iter().collect();
        bad.sort_by_key(|bad| bad.at);
        let each = (limits::REFUSALS / bad.len().max(1)).max(1);
        let mut refusals: Vec<Refusal> = bad
            .iter()
            .take(limits::REFUSALS)
            .flat_map(|bad| bad.refusals(merged, each))
            .collect();
        if bad.len() > limits::REFUSALS {
            refusals.truncate(limits::REFUSALS - 1);
            let more = bad.len() - refusals.len();
            let message = format!("{more} more models could not be taken");
            refusals.push(Refusal {
                model: String::new(),
                field: "models".to_owned(),
                reason: RefusalReason::InvalidField,
                message,
            });
        }
        refusals
    }
}

impl Bad {
    fn twice(at: usize, id: &ModelId) -> Self {
        Self {
            id: Some(id.clone()),
            at,
            reason: RefusalReason::InvalidField,
            why: vec![Violation {
                field: "id".to_owned(),
                message: format!("`{id}` stands twice among the models; leave one"),
            }],
        }
    }

    fn refusals(&self, merged: &Merged, most: usize) -> impl Iterator<Item = Refusal> {
        let model = self
            .id
            .as_ref()
            .map_or_else(String::new, ToString::to_string);
        let outcome = match &self.id {
            Some(id) if merged.retained.contains(id) => "; the model is served as it was before",
            Some(_) => "; the model is left out",
            None => "; it has no readable id, so no model is removed",
        };
        let at = self.at;
        self.why.iter().take(most).map(move |why| {
            let field = match why.field.as_str() {
                "" => format!("models[{at}]"),
                field => format!("models[{at}].{field}"),
            };
            let room = limits::REFUSAL_CHARS.saturating_sub(outcome.len());
            let short: String = why.message.chars().take(room).collect();
            Refusal {
                model: model.clone(),
                field,
                reason: self.reason,
                message: format!("{short}{outcome}"),
            }
        })
    }
}

fn at_model(message: String) -> Violation {
    let field = String::new();
    Violation { field, message }
}

/// The id of a model that is bad, as far as it can be read.
fn read_id(encoded: &Bytes) -> Option<ModelId> {
    let model = wire::Model::decode(encoded.clone()).ok();
    let id = model.and_then(|model| ModelId::new(&model.id).ok());
    id.or_else(|| parts::model_id(encoded))
}

fn read_model(encoded: &Bytes, budget: Budget) -> Result<ResolvedModel, Violations> {
    let wire = wire::Model::decode(encoded.clone())
        .map_err(|error| Violations::from(at_model(format!("cannot be decoded: {error}"))))?;
    let model = ResolvedModel::try_from(wire)?;
    if model.pool.size.get() > budget.get() && !model.pool.is_fleet_wide() {
        let (size, budget) = (model.pool.size, budget.get());
        return Err(Violations::from(Violation {
            field: "pool.max_concurrent".to_owned(),
            message: format!("{size} connections exceed the worker's budget of {budget}"),
        }));
    }
    Ok(model)
}

#[cfg(test)]
#[path = "sift_tests.rs"]
mod tests;
