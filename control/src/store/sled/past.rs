//! The history as sled keeps it, for reading. Trees may be read by anybody at any time; what is there of one entry
//! is all of it, but an entry may go while another is read.

use std::sync::Arc;

use forebay_proto::{ModelId, Revision};
use sled::{IVec, Tree};

use super::{
    KEY_EARLIEST, SledStore, number,
    write::{PART_AFTER, PART_BEFORE, PART_NAME, edit_key},
};
use crate::store::{
    history::{Edit, Edits, History, Kept, LogRecord, Past, Unreadable},
    records,
};

/// Reads the trees of a store.
#[derive(Debug, Clone)]
pub(super) struct SledHistory {
    meta: Tree,
    log: Tree,
    edits: Tree,
}

impl SledStore {
    pub(super) fn history_reader(&self) -> SledHistory {
        SledHistory {
            meta: self.meta.clone(),
            log: self.log.clone(),
            edits: self.edits.clone(),
        }
    }
}

impl SledHistory {
    /// What is known of it at the store's start.
    pub(super) fn past(&self) -> Result<Past, Unreadable> {
        let mut kept = Vec::with_capacity(self.log.len());
        let mut digest = None;
        for entry in &self.log {
            let log = decode_log(entry)?;
            kept.push(Kept {
                revision: log.revision,
                edits: log.edits,
                bytes: log.bytes,
            });
            digest = log.digest;
        }
        Ok(Past::new(self.earliest()?, kept, digest))
    }
}

impl History for SledHistory {
    fn earliest(&self) -> Result<Revision, Unreadable> {
        let earliest = self.meta.get(KEY_EARLIEST).map_err(unreadable)?;
        Ok(Revision::new(earliest.as_deref().map_or(0, number)))
    }

    fn entry(&self, revision: Revision) -> Result<Option<LogRecord>, Unreadable> {
        let value = self.log.get(revision.get().to_be_bytes());
        let value = value.map_err(unreadable)?;
        value
            .map(|bytes| records::decode_log(revision, &bytes).map_err(Unreadable))
            .transpose()
    }

    fn entries(&self, from: Revision, most: usize) -> Result<Vec<LogRecord>, Unreadable> {
        let range = self.log.range(..=from.get().to_be_bytes());
        range.rev().take(most).map(decode_log).collect()
    }

    fn edits(&self, after: Revision, to: Revision) -> Edits<'_> {
        let first = edit_key(after.next(), 0, 0);
        let last = edit_key(to, u32::MAX, u8::MAX);
        if first > last {
            return Box::new(std::iter::empty());
        }
        let parts = self.edits.range(first..=last);
        Box::new(EditsOf {
            parts: parts.peekable(),
        })
    }
}

/// Puts parts together.
struct EditsOf<I: Iterator> {
    parts: std::iter::Peekable<I>,
}

impl<I: Iterator<Item = sled::Result<(IVec, IVec)>>> EditsOf<I> {
    /// The value of this part of this edit, if it comes next.
    fn part(&mut self, revision: Revision, n: u32, part: u8) -> Option<IVec> {
        let key = edit_key(revision, n, part);
        let next = self
            .parts
            .next_if(|next| next.as_ref().is_ok_and(|(found, _)| **found == key));
        next.and_then(Result::ok).map(|(_, value)| value)
    }

    fn edit(&mut self, first: sled::Result<(IVec, IVec)>) -> Result<(Revision, Edit), Unreadable> {
        let (key, name) = first.map_err(unreadable)?;
        let malformed = || Unreadable("an edit has no name".to_owned());
        let (revision, n) = read_key(&key).ok_or_else(malformed)?;
        let before = self.part(revision, n, PART_BEFORE);
        let after = self.part(revision, n, PART_AFTER);
        let edit = match name.is_empty() {
            true => settings_edit(before, after),
            false => model_edit(&name, before, after),
        };
        Ok((revision, edit.map_err(Unreadable)?))
    }
}

impl<I: Iterator<Item = sled::Result<(IVec, IVec)>>> Iterator for EditsOf<I> {
    type Item = Result<(Revision, Edit), Unreadable>;

    fn next(&mut self) -> Option<Self::Item> {
        let first = self.parts.next()?;
        Some(self.edit(first))
    }
}

/// Revision and number of an edit, from the key of its name.
fn read_key(key: &[u8]) -> Option<(Revision, u32)> {
    let (revision, rest) = key.split_first_chunk::<8>()?;
    let (n, part) = rest.split_first_chunk::<4>()?;
    let revision = Revision::new(u64::from_be_bytes(*revision));
    (part == [PART_NAME]).then_some((revision, u32::from_be_bytes(*n)))
}

fn settings_edit(before: Option<IVec>, after: Option<IVec>) -> Result<Edit, String> {
    let after = after.ok_or("the settings of an edit are gone")?;
    Ok(Edit::Settings {
        before: before
            .map(|bytes| records::decode_settings(&bytes).map(Arc::new))
            .transpose()?,
        after: Arc::new(records::decode_settings(&after)?),
    })
}

fn model_edit(name: &[u8], before: Option<IVec>, after: Option<IVec>) -> Result<Edit, String> {
    let record = |bytes: IVec| records::decode_model(&bytes).map(Arc::new);
    let name = String::from_utf8_lossy(name);
    Ok(Edit::Model {
        id: ModelId::new(name).map_err(|error| error.to_string())?,
        before: before.map(record).transpose()?,
        after: after.map(record).transpose()?,
    })
}

fn decode_log(entry: sled::Result<(IVec, IVec)>) -> Result<LogRecord, Unreadable> {
    let (key, value) = entry.map_err(unreadable)?;
    let revision = key.as_ref().try_into().map(u64::from_be_bytes);
    let revision = revision.map_err(|_| Unreadable("an entry has no number".to_owned()))?;
    records::decode_log(Revision::new(revision), &value).map_err(Unreadable)
}

fn unreadable(error: sled::Error) -> Unreadable {
    Unreadable(error.to_string())
}
