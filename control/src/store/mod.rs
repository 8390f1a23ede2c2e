//! What survives: the trait that keeps the registry durable, and what it keeps.
//!
//! The store is a log with a current state; the memory above it is the database. It is called by one
//! writer. [`Store::commit`] returns only when every change is on the disk platter's side of the last
//! cache that we can reach; an error says whether the changes may be there all the same.

pub(crate) mod crash;
pub(crate) mod etcd;
pub(crate) mod export;
pub(crate) mod history;
pub(crate) mod keys;
mod migrate;
pub(crate) mod offline;
mod records;
pub(crate) mod recover;
mod sizes;
mod sled;

#[cfg(test)]
mod hostile_tests;
#[cfg(test)]
mod kill_tests;
#[cfg(any(test, feature = "simulation"))]
pub(crate) mod memory;
#[cfg(test)]
mod suite;

use std::{io, path::PathBuf, str::FromStr, sync::Arc, time::SystemTime};

use forebay_proto::{Epoch, ModelSpec, PoolSettings, Revision};

pub(crate) use self::sled::SledStore;
pub use self::{
    export::{ExportError, ExportHeader},
    migrate::{MigrateError, Migrated, migrate, new_epoch},
    offline::{
        CheckReport, OfflineError, check, check_etcd, export_directory, export_etcd, import,
    },
    recover::Recovery,
};
use self::{
    history::{Entry, History, Past},
    keys::{KeyChange, StoredKeys},
};
use crate::etcd::{BadEtcd, EtcdLocation};

/// Largest stored value: above this, sled would spill to files that it never syncs.
pub(crate) const VALUE_BYTES: usize = 64 * 1024;

/// Where the registry is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StoreLocation {
    /// An embedded database in this directory.
    Sled(PathBuf),
    /// An etcd, which several control planes may share.
    Etcd(EtcdLocation),
}

impl std::fmt::Display for StoreLocation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Sled(dir) => write!(f, "sled:{}", dir.display()),
            Self::Etcd(at) => at.fmt(f),
        }
    }
}

/// A location that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadLocation {
    /// It begins with nothing that is known.
    #[error("{0:?} is not a store; write `sled:DIRECTORY` or `etcd://HOST:PORT[,HOST:PORT…]`")]
    Unknown(String),
    /// An etcd that makes no sense.
    #[error(transparent)]
    Etcd(#[from] BadEtcd),
}

impl FromStr for StoreLocation {
    type Err = BadLocation;

    fn from_str(text: &str) -> Result<Self, BadLocation> {
        if EtcdLocation::is_meant(text) {
            return Ok(Self::Etcd(text.parse()?));
        }
        match text.strip_prefix("sled:") {
            Some(dir) if !dir.is_empty() => Ok(Self::Sled(dir.into())),
            _ => Err(BadLocation::Unknown(text.to_owned())),
        }
    }
}

/// Bytes that a model takes in a store.
pub(crate) fn record_len(record: &ModelRecord) -> usize {
    records::encode_model(record).len()
}

/// A registered model and its history in brief.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ModelRecord {
    pub(crate) spec: ModelSpec,
    pub(crate) revision: Revision,
    pub(crate) created: SystemTime,
    pub(crate) updated: SystemTime,
}

impl ModelRecord {
    /// An endpoint of it has a credential.
    pub(crate) fn has_credential(&self) -> bool {
        let mut endpoints = self.spec.endpoints().iter();
        endpoints.any(|endpoint| endpoint.credential.is_some())
    }
}

/// The pool settings and their history in brief.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SettingsRecord {
    pub(crate) settings: PoolSettings,
    pub(crate) revision: Revision,
    pub(crate) updated: SystemTime,
}

/// The answer that a write with a request id got.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct IdemRecord {
    pub(crate) request_id: String,
    pub(crate) fingerprint: Vec<u8>,
    pub(crate) revision: Revision,
    pub(crate) expires: SystemTime,
    pub(crate) answer: Vec<u8>,
}

/// Everything that a store holds, as the registry needs it at its start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Stored {
    pub(crate) epoch: Epoch,
    pub(crate) revision: Revision,
    pub(crate) settings: SettingsRecord,
    pub(crate) models: Vec<ModelRecord>,
    /// In order of revision.
    pub(crate) idem: Vec<IdemRecord>,
    pub(crate) keys: StoredKeys,
}

/// One write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Change {
    pub(crate) revision: Revision,
    /// The revision that it makes; nothing when only the answer is kept, and the revision stays what it is.
    pub(crate) entry: Option<Entry>,
    pub(crate) idem: Option<IdemRecord>,
    /// Request ids to forget.
    pub(crate) forget_idem: Vec<String>,
}

/// Why a commit failed.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum StoreError {
    /// Nothing was written.
    #[error("not committed: {0}")]
    NotCommitted(String),
    /// It may or may not be on disk.
    #[error("unknown whether committed: {0}")]
    Unknown(String),
    /// Nothing was written, because somebody else wrote since what it was planned on.
    #[error("not committed: other control planes write all the time; try again")]
    Conflict,
}

/// What others wrote to a shared store, since what it gave or took last.
#[derive(Debug)]
pub(crate) enum News {
    Nothing,
    /// These, in their order; and all clients' keys, if any of them changed.
    Since {
        changes: Vec<Change>,
        keys: Option<StoredKeys>,
    },
    /// More than can be told one by one: this is everything.
    Whole(Box<Stored>),
}

/// Why a store cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process has it.
    #[error("{} is in use by another control plane; stop that one, or choose another --data-dir or --store", .dir.display())]
    InUse {
        /// The directory.
        dir: PathBuf,
    },
    /// The directory cannot be used.
    #[error("{} cannot be used as a data directory: {error}; check its owner and mode, or choose another --data-dir or --store", .dir.display())]
    Io {
        /// The directory.
        dir: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// There is no room.
    #[error("{} cannot be used as a data directory: its disk is full ({error}); nothing in it was lost; make room there, or choose another --data-dir or --store", .dir.display())]
    Full {
        /// The directory.
        dir: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// It was written by a newer version.
    #[error("{} has format {found}, this version knows {known}; it was left untouched; use the version that wrote it", .dir.display())]
    NewerFormat {
        /// The directory.
        dir: PathBuf,
        /// Its format.
        found: u32,
        /// Ours.
        known: u32,
    },
    /// It cannot be read.
    #[error("the store in {} is damaged: {what}; it was left as it is; make another one from an export with `forebay control import`, put a copy of it in place, or start with another --data-dir", .dir.display())]
    Damaged {
        /// The directory.
        dir: PathBuf,
        /// What is wrong.
        what: String,
    },
}

impl OpenError {
    /// A full disk is not a bad directory.
    pub(crate) fn from_io(dir: impl Into<PathBuf>, error: io::Error) -> Self {
        let dir = dir.into();
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::Full { dir, error },
            _ => Self::Io { dir, error },
        }
    }
}

/// Keeps the registry durable. Blocking; called by one writer.
pub(crate) trait Store: Send + 'static {
    /// Everything that was committed.
    fn load(&mut self) -> Result<Stored, StoreError>;

    /// What is known of the history without reading it.
    fn past(&mut self) -> Result<Past, StoreError>;

    /// Where the history is read, by anybody.
    fn history(&self) -> Arc<dyn History>;

    /// Makes these changes durable, all or none. Their revisions follow one another, but for those that only keep
    /// an answer, which have that of the change before them.
    fn commit(&mut self, changes: &[Change]) -> Result<(), StoreError>;

    /// The same, if who is in charge in this term still is. Where only one process writes, it is.
    fn commit_as(&mut self, changes: &[Change], _term: u64) -> Result<(), StoreError> {
        self.commit(changes)
    }

    /// Makes changes of clients' keys durable, all or none. The revision stays what it is.
    fn commit_keys(&mut self, changes: &[KeyChange]) -> Result<(), StoreError>;

    /// Others write to it, too: what is planned on what was read may meet [`StoreError::Conflict`], and there may be
    /// [`News`].
    fn is_shared(&self) -> bool {
        false
    }

    /// What others wrote, up to now.
    fn news(&mut self) -> Result<News, StoreError> {
        Ok(News::Nothing)
    }
}
