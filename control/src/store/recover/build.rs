//! Builds a store anew from what was stored. Where it is put is for others.

use std::{path::Path, sync::Arc, time::SystemTime};

use crate::store::{
    Change, OpenError, SledStore, Store as _, Stored, crash,
    history::{Edit, Entry, EntryKind, LogRecord},
    keys::KeyChange,
};

/// Most records in one commit of a rebuilt store.
const GROUP: usize = 256;

/// Builds a store in an empty directory: what is stored, under a new epoch, one revision later.
pub(in crate::store) fn build(dir: &Path, stored: &Stored) -> Result<(), OpenError> {
    let mut store = SledStore::open(dir, &stored.settings.settings)?;
    let mut log = LogRecord::of_store("Recover", stored.revision.next(), SystemTime::now());
    log.origin.reason = format!(
        "built from revision {} of {}",
        stored.revision, stored.epoch
    );
    let change = |edit: Option<Edit>, idem| Change {
        revision: log.revision,
        entry: edit.map(|edit| Entry {
            log: log.clone(),
            edits: vec![edit],
            kind: EntryKind::Beginning,
            forget: Vec::new(),
        }),
        idem,
        forget_idem: Vec::new(),
    };
    let settings = Edit::Settings {
        before: None,
        after: Arc::new(stored.settings.clone()),
    };
    let models = stored.models.iter().map(|record| Edit::Model {
        id: record.spec.id().clone(),
        before: None,
        after: Some(Arc::new(record.clone())),
    });
    let answers = stored.idem.iter().cloned();
    let edits = std::iter::once(settings).chain(models);
    let changes: Vec<_> = (edits.map(|edit| change(Some(edit), None)))
        .chain(answers.map(|answer| change(None, Some(answer))))
        .collect();
    for group in changes.chunks(GROUP) {
        store.commit(group).map_err(|error| OpenError::Damaged {
            dir: dir.to_owned(),
            what: error.to_string(),
        })?;
        crash::at("recovery-half");
    }
    let keys = &stored.keys;
    // The same versions, under the new epoch. What is revoked stays so.
    let changes = keys.records.iter().map(|record| KeyChange {
        version: keys.version,
        floor: keys.floor,
        put: Arc::new(record.clone()),
        forget: Vec::new(),
    });
    let changes: Vec<_> = changes.collect();
    for group in changes.chunks(GROUP) {
        store
            .commit_keys(group)
            .map_err(|error| OpenError::Damaged {
                dir: dir.to_owned(),
                what: error.to_string(),
            })?;
    }
    Ok(())
}
