//! The way back: the state at an earlier revision is the current one with everything since then undone, and a
//! rollback is a new revision that makes it so.

use std::{collections::BTreeMap, sync::Arc, time::SystemTime};

use forebay_proto::{ModelId, Revision, limits, wire};

use super::State;
use crate::{
    registry::{Answer, PastError, WriteError},
    store::{
        ModelRecord, SettingsRecord,
        history::{Edit, History},
    },
};

/// What was changed since a revision, as it was then.
#[derive(Debug, Clone)]
pub(crate) struct Undo {
    to: Revision,
    settings: Option<Arc<SettingsRecord>>,
    models: BTreeMap<ModelId, Option<Arc<ModelRecord>>>,
}

impl Undo {
    /// Reads what it takes from the newest revision back to that one.
    pub(crate) fn read(
        past: &dyn History,
        to: Revision,
        newest: Revision,
    ) -> Result<Self, PastError> {
        PastError::check(past, to, newest)?;
        let mut undo = Self {
            to,
            settings: None,
            models: BTreeMap::new(),
        };
        for edit in past.edits(to, newest) {
            match edit?.1 {
                Edit::Settings { before, .. } => undo.settings = undo.settings.or(before),
                Edit::Model { id, before, .. } => {
                    undo.models.entry(id).or_insert(before);
                }
            }
        }
        // Something may have been forgotten while it was read.
        PastError::check(past, to, newest)?;
        Ok(undo)
    }
}

impl State {
    /// The state at the revision that is gone back to.
    pub(crate) fn undone(&self, undo: &Undo) -> Self {
        let mut state = self.clone();
        let settings = undo.settings.iter().map(|settings| Edit::Settings {
            before: None,
            after: settings.clone(),
        });
        let models = undo.models.iter().map(|(id, before)| Edit::Model {
            id: id.clone(),
            before: None,
            after: before.clone(),
        });
        state.put_edits(&settings.chain(models).collect::<Vec<_>>());
        state.revision = undo.to;
        state
    }

    /// What it takes to have this content again.
    pub(super) fn back_to(&self, content: &Self) -> Undo {
        let ids = self.models.keys().chain(content.models.keys());
        Undo {
            to: content.revision,
            settings: Some(Arc::new(content.settings.clone())),
            models: ids
                .map(|id| (id.clone(), content.models.get(id).cloned()))
                .collect(),
        }
    }

    /// The same models and settings, whichever revisions they are of.
    pub(crate) fn has_content_of(&self, other: &Self) -> bool {
        let same = |(one, two): (&Arc<ModelRecord>, &Arc<ModelRecord>)| one.spec == two.spec;
        self.settings.settings == other.settings.settings
            && self.models.len() == other.models.len()
            && self.models.values().zip(other.models.values()).all(same)
    }

    /// What a rollback changes. Equal content stays what it is, with its revision.
    pub(super) fn rollback(
        &self,
        undo: &Undo,
        expected: Option<Revision>,
        now: SystemTime,
    ) -> Result<(Vec<Edit>, Answer), WriteError> {
        if let Some(expected) = expected.filter(|expected| *expected != self.revision) {
            let current = self.revision;
            return Err(WriteError::Moved { expected, current });
        }
        let settings = undo.settings.iter();
        let settings = settings.filter(|old| old.settings != self.settings.settings);
        let settings = settings.map(|old| Edit::Settings {
            before: Some(Arc::new(self.settings.clone())),
            after: Arc::new(SettingsRecord {
                settings: old.settings.clone(),
                revision: self.revision.next(),
                updated: now,
            }),
        });
        let models = undo.models.iter().filter_map(|(id, old)| {
            let current = self.models.get(id);
            let same = old.as_ref().map(|old| &old.spec) == current.map(|current| &current.spec);
            (!same).then(|| Edit::Model {
                id: id.clone(),
                before: current.cloned(),
                after: old.as_ref().map(|old| Arc::new(self.again(old, now))),
            })
        });
        let edits: Vec<_> = settings.chain(models).collect();
        self.check_usable(&edits)?;
        let answer = wire::RollbackRevisionResponse {
            revision: match edits.is_empty() {
                true => self.revision.get(),
                false => self.revision.next().get(),
            },
            changes: Vec::new(),
            changed: u32::try_from(edits.len()).unwrap_or(u32::MAX),
        };
        let answer = Answer::RolledBack(Box::new(answer), edits.clone());
        Ok((edits, answer))
    }

    fn again(&self, old: &ModelRecord, now: SystemTime) -> ModelRecord {
        ModelRecord {
            revision: self.revision.next(),
            updated: now,
            ..old.clone()
        }
    }

    /// It was accepted once; this version may be stricter than the one that did.
    fn check_usable(&self, edits: &[Edit]) -> Result<(), WriteError> {
        let mut state = self.clone();
        state.put_edits(edits);
        state.config().map_err(WriteError::Invalid)?;
        match state.bytes > limits::CONFIG_BYTES {
            true => Err(WriteError::LimitReached(format!(
                "the configuration would take {} bytes, at most {} are allowed",
                state.bytes,
                limits::CONFIG_BYTES
            ))),
            false => Ok(()),
        }
    }
}
