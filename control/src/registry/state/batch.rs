//! Several changes as one revision: each is looked at against the state before the batch, then all of them together.

use std::{collections::HashMap, time::SystemTime};

use forebay_proto::{Violations, limits, wire};

use super::State;
use crate::{
    registry::{Answer, Command, WriteError},
    store::history::Edit,
};

impl State {
    /// What a batch changes, or all that is wrong with its fields at once.
    pub(super) fn batch(
        &self,
        items: &[Command],
        allow_missing_fallbacks: bool,
        now: SystemTime,
    ) -> Result<(Vec<Edit>, Answer), WriteError> {
        check_items(items)?;
        let mut violations = Violations::new();
        let mut refused = None;
        let mut edits = Vec::new();
        let mut places = Vec::new();
        for (n, item) in items.iter().enumerate() {
            match self.edit(item, now) {
                Ok(Some(edit)) => {
                    edits.push(edit);
                    places.push(item.place(n));
                }
                Ok(None) => {}
                Err(WriteError::Invalid(wrong)) => {
                    violations.part::<()>(&item.place(n), Err(wrong));
                }
                Err(error) => refused = refused.or(Some(error.of_item(&item.place(n)))),
            }
        }
        violations.finish(Some(())).map_err(WriteError::Invalid)?;
        if let Some(error) = refused {
            return Err(error);
        }
        let prefix = |n: usize| match places.get(n) {
            Some(place) => format!("{place}."),
            None => String::new(),
        };
        self.check_together(&edits, &prefix)?;
        if !allow_missing_fallbacks {
            self.check_fallbacks(&edits, &prefix)?;
        }
        let answer = self.batch_answer(items.len(), &edits);
        Ok((edits, answer))
    }

    fn batch_answer(&self, items: usize, edits: &[Edit]) -> Answer {
        let mut answer = wire::BatchUpdateModelsResponse {
            revision: match edits.is_empty() {
                true => self.revision.get(),
                false => self.revision.next().get(),
            },
            ..wire::BatchUpdateModelsResponse::default()
        };
        for edit in edits {
            match edit {
                Edit::Model { before: None, .. } => answer.created += 1,
                Edit::Model { after: None, .. } => answer.deleted += 1,
                Edit::Model { .. } | Edit::Settings { .. } => answer.updated += 1,
            }
        }
        let unchanged = items.saturating_sub(edits.len());
        answer.unchanged = u32::try_from(unchanged).unwrap_or(u32::MAX);
        Answer::Batch(Box::new(answer), edits.to_vec())
    }
}

/// Their number, and that no two are of the same model.
fn check_items(items: &[Command]) -> Result<(), WriteError> {
    let mut violations = Violations::new();
    if items.is_empty() || items.len() > limits::BATCH {
        let message = format!(
            "{} changes; 1 to {} are allowed, make several batches of more",
            items.len(),
            limits::BATCH
        );
        violations.add("items", message);
        return Err(WriteError::Invalid(violations));
    }
    let mut seen: HashMap<&str, usize> = HashMap::new();
    for (n, item) in items.iter().enumerate() {
        let id = item.model();
        match seen.insert(id, n) {
            Some(first) if !id.is_empty() => {
                let message =
                    format!("is of the same model as items[{first}]; make one change of the two");
                violations.add(item.place(n), message);
            }
            _ => {}
        }
    }
    violations.finish(Some(())).map_err(WriteError::Invalid)
}
