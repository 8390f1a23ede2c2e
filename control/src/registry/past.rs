//! Reads the history for those who ask, up to what is published. Each read is on a thread that may block.

use std::{collections::BTreeMap, sync::Arc};

use forebay_proto::Revision;

use super::{Published, RegistryHandle, State, state::Undo, writer::publish};
use crate::store::history::{Edit, History, LogRecord, Target, Unreadable};

/// Why there is no such past.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum PastError {
    #[error("revision {revision} does not exist yet; the newest is {newest}")]
    NotReached {
        revision: Revision,
        newest: Revision,
    },
    #[error(
        "revision {revision} is kept no more; the earliest that can be gone back to is {earliest}"
    )]
    Forgotten {
        revision: Revision,
        earliest: Revision,
    },
    #[error(transparent)]
    Unreadable(#[from] Unreadable),
}

impl PastError {
    /// Refuses a revision whose state cannot be had.
    pub(super) fn check(
        past: &dyn History,
        revision: Revision,
        newest: Revision,
    ) -> Result<(), Self> {
        if revision > newest {
            return Err(Self::NotReached { revision, newest });
        }
        let earliest = past.earliest()?;
        match revision < earliest {
            true => Err(Self::Forgotten { revision, earliest }),
            false => Ok(()),
        }
    }
}

/// A page of history.
#[derive(Debug)]
pub(crate) struct Entries {
    /// The newest first.
    pub(crate) entries: Vec<LogRecord>,
    pub(crate) more: bool,
    pub(crate) earliest: Revision,
}

impl RegistryHandle {
    /// Up to `most` entries from this revision on downwards.
    pub(crate) async fn entries(
        &self,
        from: Option<Revision>,
        most: usize,
    ) -> Result<Entries, PastError> {
        self.reading(move |past, published| {
            let newest = published.position.revision;
            let from = from.map_or(newest, |from| from.min(newest));
            let mut entries = past.entries(from, most + 1)?;
            let more = entries.len() > most;
            entries.truncate(most);
            Ok(Entries {
                entries,
                more,
                earliest: past.earliest()?,
            })
        })
        .await
    }

    /// One entry, and the earliest revision that can be gone back to.
    pub(crate) async fn entry(
        &self,
        revision: Revision,
    ) -> Result<(LogRecord, Revision), PastError> {
        self.reading(move |past, published| {
            let newest = published.position.revision;
            if revision > newest {
                return Err(PastError::NotReached { revision, newest });
            }
            let earliest = past.earliest()?;
            let entry = past.entry(revision)?;
            let forgotten = PastError::Forgotten { revision, earliest };
            entry.map(|entry| (entry, earliest)).ok_or(forgotten)
        })
        .await
    }

    /// The state at this revision.
    pub(crate) async fn at(&self, revision: Revision) -> Result<Arc<State>, PastError> {
        self.reading(move |past, published| {
            let state = &published.state;
            if revision == state.revision() {
                return Ok(state.clone());
            }
            let undo = Undo::read(past, revision, state.revision())?;
            Ok(Arc::new(state.undone(&undo)))
        })
        .await
    }

    /// The configuration of this revision, as it is published.
    pub(crate) async fn published_at(&self, revision: Revision) -> Result<Arc<Published>, String> {
        let state = self.at(revision).await.map_err(|e| e.to_string())?;
        publish(&state, String::new()).map(Arc::new)
    }

    /// What differs between two revisions, in order of target. Absent ones are the newest, and the one before `to`.
    pub(crate) async fn difference(
        &self,
        from: Option<Revision>,
        to: Option<Revision>,
    ) -> Result<(Revision, Revision, Vec<Edit>), PastError> {
        self.reading(move |past, published| {
            let newest = published.position.revision;
            let to = to.unwrap_or(newest);
            PastError::check(past, to, newest)?;
            let from = from.unwrap_or(Revision::new(to.get().saturating_sub(1)));
            PastError::check(past, from, newest)?;
            let edits = net(past, from.min(to), from.max(to))?;
            PastError::check(past, from.min(to), newest)?;
            let edits = match from > to {
                true => edits.into_iter().filter_map(turned).collect(),
                false => edits,
            };
            Ok((from, to, edits))
        })
        .await
    }

    async fn reading<T: Send + 'static>(
        &self,
        read: impl FnOnce(&dyn History, &Published) -> Result<T, PastError> + Send + 'static,
    ) -> Result<T, PastError> {
        // Each may hold what was changed over thousands of revisions. Closed it never is.
        let turn = self.readers.clone().acquire_owned().await;
        let (history, published) = (self.history(), self.published());
        let reading = tokio::task::spawn_blocking(move || {
            // A caller that goes away does not end the read.
            let _turn = turn;
            read(&*history, &published)
        });
        let failed = |error: tokio::task::JoinError| Unreadable(error.to_string());
        reading.await.map_err(failed)?
    }
}

/// The first state of each target and the last, where they differ.
fn net(past: &dyn History, after: Revision, to: Revision) -> Result<Vec<Edit>, PastError> {
    let mut net: BTreeMap<Target, Edit> = BTreeMap::new();
    for edit in past.edits(after, to) {
        let (_, edit) = edit?;
        let target = edit.target();
        let edit = match net.remove(&target) {
            Some(first) => joined(first, edit),
            None => edit,
        };
        net.insert(target, edit);
    }
    Ok(net.into_values().filter(differs).collect())
}

fn joined(first: Edit, last: Edit) -> Edit {
    match (first, last) {
        (Edit::Model { id, before, .. }, Edit::Model { after, .. }) => {
            Edit::Model { id, before, after }
        }
        (Edit::Settings { before, .. }, Edit::Settings { after, .. }) => {
            Edit::Settings { before, after }
        }
        // They are of one target.
        (_, last) => last,
    }
}

fn differs(edit: &Edit) -> bool {
    match edit {
        Edit::Model { before, after, .. } => {
            before.as_ref().map(|record| &record.spec) != after.as_ref().map(|record| &record.spec)
        }
        Edit::Settings { before, after } => {
            before.as_ref().map(|record| &record.settings) != Some(&after.settings)
        }
    }
}

/// The way back. The settings were always there.
fn turned(edit: Edit) -> Option<Edit> {
    match edit {
        Edit::Model { id, before, after } => Some(Edit::Model {
            id,
            before: after,
            after: before,
        }),
        Edit::Settings { before, after } => before.map(|before| Edit::Settings {
            before: Some(after),
            after: before,
        }),
    }
}
