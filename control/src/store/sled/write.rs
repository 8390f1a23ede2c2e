//! What a change writes, inside a transaction: the current state, the history, the answers. Closures of
//! transactions may run twice, so nothing here has an effect elsewhere.

use std::convert::Infallible;

use forebay_proto::Revision;
use sled::transaction::{ConflictableTransactionError, TransactionalTree};

use super::{KEY_EARLIEST, KEY_KEYS, KEY_MODELS, KEY_REVISION, KEY_SETTINGS};
use crate::store::{
    Change,
    history::{Edit, Entry, EntryKind},
    keys::{self, KeyChange},
    records,
};

/// The parts of an edit, in its key.
pub(super) const PART_NAME: u8 = 0;
pub(super) const PART_BEFORE: u8 = 1;
pub(super) const PART_AFTER: u8 = 2;

/// What a transaction's closure gives.
pub(super) type Written = Result<(), ConflictableTransactionError<Infallible>>;

/// The trees inside a transaction.
pub(super) struct Trees<'a> {
    pub(super) meta: &'a TransactionalTree,
    pub(super) settings: &'a TransactionalTree,
    pub(super) models: &'a TransactionalTree,
    pub(super) log: &'a TransactionalTree,
    pub(super) edits: &'a TransactionalTree,
    pub(super) idem: &'a TransactionalTree,
}

/// Writes one change.
pub(super) fn write(trees: &Trees<'_>, change: &Change) -> Written {
    if let Some(entry) = &change.entry {
        write_entry(trees, entry)?;
        let revision = change.revision.get().to_be_bytes();
        trees.meta.insert(KEY_REVISION, &revision)?;
    }
    for request_id in &change.forget_idem {
        trees.idem.remove(request_id.as_bytes())?;
    }
    if let Some(record) = &change.idem {
        trees
            .idem
            .insert(record.request_id.as_bytes(), records::encode_idem(record))?;
    }
    Ok(())
}

fn write_entry(trees: &Trees<'_>, entry: &Entry) -> Written {
    for (n, edit) in (0_u32..).zip(&entry.edits) {
        write_current(trees, edit)?;
        if entry.kind == EntryKind::Undoable {
            write_edit(trees, entry.log.revision, n, edit)?;
        }
    }
    let revision = entry.log.revision.get().to_be_bytes();
    trees
        .log
        .insert(&revision, records::encode_log(&entry.log))?;
    if entry.kind == EntryKind::Beginning {
        trees.meta.insert(KEY_EARLIEST, &revision)?;
    }
    for old in &entry.forget {
        let revision = old.revision.get().to_be_bytes();
        trees.log.remove(&revision)?;
        for n in 0..old.edits {
            for part in [PART_NAME, PART_BEFORE, PART_AFTER] {
                trees.edits.remove(&edit_key(old.revision, n, part))?;
            }
        }
        let earliest = trees.meta.get(KEY_EARLIEST)?;
        if earliest.as_deref().map_or(0, number) < old.revision.get() {
            trees.meta.insert(KEY_EARLIEST, &revision)?;
        }
    }
    Ok(())
}

fn write_current(trees: &Trees<'_>, edit: &Edit) -> Written {
    match edit {
        Edit::Settings { after, .. } => {
            trees
                .settings
                .insert(KEY_SETTINGS, records::encode_settings(after))?;
        }
        Edit::Model {
            id,
            after: Some(record),
            ..
        } => {
            let key = id.as_str().as_bytes();
            let old = trees.models.insert(key, records::encode_model(record))?;
            count_models(trees, u64::from(old.is_none()), 0)?;
        }
        Edit::Model {
            id, after: None, ..
        } => {
            let old = trees.models.remove(id.as_str().as_bytes())?;
            count_models(trees, 0, u64::from(old.is_some()))?;
        }
    }
    Ok(())
}

fn write_edit(trees: &Trees<'_>, revision: Revision, n: u32, edit: &Edit) -> Written {
    let (name, before, after) = records::edit_parts(edit);
    let values = [
        (PART_NAME, Some(name)),
        (PART_BEFORE, before),
        (PART_AFTER, after),
    ];
    for (part, value) in values {
        if let Some(value) = value {
            trees.edits.insert(&edit_key(revision, n, part), value)?;
        }
    }
    Ok(())
}

/// In order of revision, then of edit, then of part.
pub(super) fn edit_key(revision: Revision, n: u32, part: u8) -> [u8; 13] {
    let mut key = [part; 13];
    let (head, rest) = key.split_at_mut(8);
    head.copy_from_slice(&revision.get().to_be_bytes());
    rest.iter_mut()
        .zip(n.to_be_bytes())
        .for_each(|(to, from)| *to = from);
    key
}

fn count_models(trees: &Trees<'_>, more: u64, fewer: u64) -> Written {
    let count = trees.meta.get(KEY_MODELS)?;
    let count = (count.as_deref().map_or(0, number) + more).saturating_sub(fewer);
    trees.meta.insert(KEY_MODELS, &count.to_be_bytes())?;
    Ok(())
}

/// Writes a change of clients' keys, and how many there are then.
pub(super) fn write_keys(
    meta: &TransactionalTree,
    tree: &TransactionalTree,
    change: &KeyChange,
) -> Written {
    let head = meta.get(KEY_KEYS)?;
    let counted = head.and_then(|head| keys::decode_head(&head).ok());
    let mut count = counted.map_or(0, |(_, count)| count);
    let old = tree.insert(change.put.id.as_str().as_bytes(), keys::encode(&change.put))?;
    count += u64::from(old.is_none());
    for id in &change.forget {
        let old = tree.remove(id.as_str().as_bytes())?;
        count = count.saturating_sub(u64::from(old.is_some()));
    }
    let head = keys::encode_head(change.version, change.floor, count);
    meta.insert(KEY_KEYS, head)?;
    Ok(())
}

/// A number as it is kept. One that is malformed matches nothing it is compared with.
pub(super) fn number(bytes: &[u8]) -> u64 {
    bytes.try_into().map_or(u64::MAX / 2, u64::from_be_bytes)
}
