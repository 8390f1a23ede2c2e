//! The history of the registry: one entry per revision, each with the resources that it changed as they were
//! before and after. Current state and history are written in one transaction; the state at an earlier revision is the
//! current one with the entries since then undone.
//!
//! It owns what an entry is and how much is kept ([`Past`]); it reads nothing and decides nothing about content.

mod past;

use std::{sync::Arc, time::SystemTime};

use forebay_proto::{Digest, ModelId, Revision};

pub(crate) use self::past::{Forgotten, Kept, Past};
use super::{ModelRecord, SettingsRecord, records};

/// Most targets that an entry names by itself.
pub(crate) const NAMED: usize = 8;

/// Who makes a write, and why.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Origin {
    pub(crate) author: String,
    pub(crate) reason: String,
}

/// What an entry says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LogRecord {
    pub(crate) revision: Revision,
    pub(crate) time: SystemTime,
    pub(crate) method: String,
    /// At most [`NAMED`] of them.
    pub(crate) targets: Vec<String>,
    pub(crate) request_id: String,
    pub(crate) origin: Origin,
    /// Of the configuration that workers got, if they got this one.
    pub(crate) digest: Option<Digest>,
    /// Whose content it brought back.
    pub(crate) rolled_back_to: Option<Revision>,
    /// How many edits are kept with it.
    pub(crate) edits: u32,
    /// Bytes that they take.
    pub(crate) bytes: u64,
}

impl LogRecord {
    /// About these edits; who, how and why is to be filled in.
    pub(crate) fn of(edits: &[Edit], revision: Revision, time: SystemTime) -> Self {
        let named = edits.iter().take(NAMED);
        Self {
            revision,
            time,
            method: String::new(),
            targets: named.map(|edit| edit.target().to_string()).collect(),
            request_id: String::new(),
            origin: Origin::default(),
            digest: None,
            rolled_back_to: None,
            edits: u32::try_from(edits.len()).unwrap_or(u32::MAX),
            bytes: edits.iter().map(records::edit_len).sum(),
        }
    }

    /// About the store itself: a history begins with it.
    pub(crate) fn of_store(method: &str, revision: Revision, time: SystemTime) -> Self {
        Self {
            method: method.to_owned(),
            targets: vec!["store".to_owned()],
            ..Self::of(&[], revision, time)
        }
    }
}

/// A resource that can change.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Target {
    /// First, so that its changes are told first.
    Settings,
    Model(ModelId),
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Settings => f.write_str("pool settings"),
            Self::Model(id) => id.fmt(f),
        }
    }
}

/// One resource before and after. Of a model one of the two may be missing, of the settings the former.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Edit {
    Model {
        id: ModelId,
        before: Option<Arc<ModelRecord>>,
        after: Option<Arc<ModelRecord>>,
    },
    Settings {
        before: Option<Arc<SettingsRecord>>,
        after: Arc<SettingsRecord>,
    },
}

impl Edit {
    /// Whose it is.
    pub(crate) fn target(&self) -> Target {
        match self {
            Self::Model { id, .. } => Target::Model(id.clone()),
            Self::Settings { .. } => Target::Settings,
        }
    }

    /// Before or afterwards an endpoint of it has a credential.
    pub(crate) fn knows_credential(&self) -> bool {
        let before = match self {
            Self::Model { before, .. } => before.as_ref(),
            Self::Settings { .. } => None,
        };
        self.has_credential() || before.is_some_and(|record| record.has_credential())
    }

    /// Afterwards an endpoint of it has a credential.
    pub(crate) fn has_credential(&self) -> bool {
        match self {
            Self::Model {
                after: Some(record),
                ..
            } => record.has_credential(),
            Self::Model { after: None, .. } | Self::Settings { .. } => false,
        }
    }
}

/// A new revision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) log: LogRecord,
    pub(crate) edits: Vec<Edit>,
    pub(crate) kind: EntryKind,
    /// Entries to forget.
    pub(crate) forget: Vec<Forgotten>,
}

/// What an entry means for the history.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum EntryKind {
    /// Its edits are kept, so that it can be undone.
    Undoable,
    /// The history begins with it: its edits only make the current state.
    Beginning,
}

/// A failure to read the history.
#[derive(Debug, Clone, thiserror::Error)]
#[error("the history cannot be read: {0}")]
pub(crate) struct Unreadable(pub(crate) String);

/// Edits in order of revision, each with its own.
pub(crate) type Edits<'a> = Box<dyn Iterator<Item = Result<(Revision, Edit), Unreadable>> + 'a>;

/// Reads the history. Entries of commits under way may be seen: whoever reads asks for what is published.
pub(crate) trait History: std::fmt::Debug + Send + Sync {
    /// The earliest revision whose state can be had.
    fn earliest(&self) -> Result<Revision, Unreadable>;

    /// One entry.
    fn entry(&self, revision: Revision) -> Result<Option<LogRecord>, Unreadable>;

    /// Up to `most` entries from this revision on downwards.
    fn entries(&self, from: Revision, most: usize) -> Result<Vec<LogRecord>, Unreadable>;

    /// The edits after one revision, up to and with another.
    fn edits(&self, after: Revision, to: Revision) -> Edits<'_>;
}
