//! What a record may take. The limit is sled's, which above it would spill to files that it never syncs; other stores
//! keep to it, so that a registry can move from one to another.

use super::{
    Change, StoreError, VALUE_BYTES,
    keys::{self, KeyChange},
    records,
};

/// Refuses records that are too large.
pub(super) fn check_sizes(changes: &[Change]) -> Result<(), StoreError> {
    for change in changes {
        let answer = change.idem.as_ref().map_or(0, |idem| idem.answer.len());
        let entry = change.entry.iter();
        let log = entry
            .clone()
            .map(|entry| records::encode_log(&entry.log).len());
        let edits = entry.flat_map(|entry| &entry.edits).map(|edit| {
            let (_, before, after) = records::edit_parts(edit);
            let length = |part: Option<Vec<u8>>| part.map_or(0, |bytes| bytes.len());
            length(before).max(length(after))
        });
        let most = edits.chain(log).chain([answer]).max().unwrap_or_default();
        if most > VALUE_BYTES {
            return Err(StoreError::NotCommitted(format!(
                "a record of revision {} takes {most} bytes, at most {VALUE_BYTES} are allowed",
                change.revision
            )));
        }
    }
    Ok(())
}

/// The same of clients' keys.
pub(super) fn check_key_sizes(changes: &[KeyChange]) -> Result<(), StoreError> {
    let longest = changes.iter().map(|change| keys::encode(&change.put).len());
    match longest.max().filter(|most| *most > VALUE_BYTES) {
        None => Ok(()),
        Some(most) => Err(StoreError::NotCommitted(format!(
            "a key takes {most} bytes, at most {VALUE_BYTES} are allowed"
        ))),
    }
}
