//! The store on etcd, which several control planes may share (docs/adr/0028).
//!
//! One key, the head, has the newest revision. Every commit is a transaction that compares the head with what the
//! commit was planned on, so there is one order of revisions, it has no gaps, and who planned on an older head is told
//! so ([`StoreError::Conflict`]) and has written nothing. No counter of a process has a part in it.
//!
//! A commit whose answer is lost is sent again, the same: the comparison lets it through once. If the head moved, the
//! entry of the history (which has the commit's id) tells whether it was this commit. Only when etcd answers nothing
//! for the whole budget its fate is unknown.
//!
//! A commit that one transaction does not take is staged first: parts that nobody reads, then the head, which names
//! them, then each part in its place. With the head it is made. Who finds such a head finishes it before anything else,
//! so a crash in between loses nothing and shows nothing by halves.
//!
//! It is blocking, as stores are, and carries its calls to the runtime that it was given.

mod commit;
mod layout;
mod moving;
mod past;
mod read;

use std::{
    collections::BTreeSet,
    sync::Arc,
    time::{Duration, SystemTime},
};

use forebay_proto::{Epoch, PoolSettings, Revision};
use prost::Message as _;
use tokio::{
    runtime::Handle,
    time::{Instant, sleep},
};
use uuid::Uuid;

pub(crate) use self::layout::Layout;
use self::{
    layout::{Folded, Head},
    past::EtcdHistory,
};
use super::{
    Change, News, SettingsRecord, Store, StoreError, Stored,
    history::{Edit, Entry, EntryKind, History, LogRecord, Past},
    keys::KeyChange,
    sizes::{check_key_sizes, check_sizes},
};
use crate::etcd::{
    Budget, CallError, Etcd, EtcdError,
    api::{RangeRequest, TxnRequest},
    ops,
};

/// The format of what is kept; see `records`. Those before it were never in etcd.
pub(crate) const FORMAT: u32 = 4;
/// How long a start waits for an etcd that does not answer.
const START_PATIENCE: Duration = Duration::from_secs(30);
/// How often something is read anew because it changed, or was compacted, under the reader.
const TRIES: u32 = 16;

/// What this process knows of the store: exactly what it was given or wrote last.
#[derive(Debug, Clone)]
pub(super) struct At {
    head: Head,
    head_mod: i64,
    keys_mod: i64,
    /// Answers up to this revision of etcd's are known.
    answers: i64,
    models: BTreeSet<String>,
    keys: BTreeSet<String>,
}

/// A store in an etcd.
#[derive(Debug)]
pub(crate) struct EtcdStore {
    etcd: Arc<Etcd>,
    runtime: Handle,
    layout: Layout,
    at: Option<At>,
    /// The last call was answered: those to come may wait for an answer.
    in_touch: bool,
}

impl EtcdStore {
    /// Opens the registry, or makes it with these settings as revision 1.
    pub(crate) fn open(
        etcd: Arc<Etcd>,
        runtime: Handle,
        fresh: &PoolSettings,
    ) -> Result<Self, EtcdError> {
        let store = Self::attach(etcd, runtime);
        let runtime = store.runtime.clone();
        runtime.block_on(async {
            if store.first_look().await? {
                store.create(fresh, false).await?;
                // Unless another one was faster; then that is what there is.
                store.first_look().await?;
            }
            store.sweep().await;
            Ok(store)
        })
    }

    /// The same, without a look at what is there.
    fn attach(etcd: Arc<Etcd>, runtime: Handle) -> Self {
        let layout = Layout::new(etcd.at().prefix());
        Self {
            etcd,
            runtime,
            layout,
            at: None,
            in_touch: true,
        }
    }

    /// Opens what is there; nothing if there is nothing.
    pub(crate) fn existing(etcd: Arc<Etcd>, runtime: Handle) -> Result<Option<Self>, EtcdError> {
        let store = Self::attach(etcd, runtime);
        let empty = store.runtime.block_on(store.first_look())?;
        Ok((!empty).then_some(store))
    }

    fn name(&self) -> String {
        self.etcd.at().to_string()
    }

    fn damaged(&self, what: impl Into<String>) -> EtcdError {
        EtcdError::Damaged {
            at: self.name(),
            what: what.into(),
        }
    }

    fn failed(&self, error: CallError) -> EtcdError {
        let at = self.name();
        let text = error.to_string();
        match error {
            CallError::Refused(_) => EtcdError::Refused { at, error: text },
            CallError::NotReached(_) | CallError::Unknown(_) => EtcdError::Away { at, error: text },
        }
    }

    /// Waits for etcd, and looks whether there is a registry that this version knows. True: there is none.
    async fn first_look(&self) -> Result<bool, EtcdError> {
        let give_up = Instant::now() + START_PATIENCE;
        let head = loop {
            match self.heads(Budget::WRITE).await {
                Ok(heads) => break heads.head,
                Err(error @ CallError::Refused(_)) => return Err(self.failed(error)),
                Err(error) if Instant::now() >= give_up => return Err(self.failed(error)),
                Err(error) => {
                    tracing::warn!(%error, "etcd does not answer yet");
                    sleep(Duration::from_millis(500)).await;
                }
            }
        };
        if let Some((head, _)) = head {
            let head = head.map_err(|error| self.damaged(error))?;
            if head.format > FORMAT {
                return Err(EtcdError::NewerFormat {
                    at: self.name(),
                    found: head.format,
                    known: FORMAT,
                });
            }
            if head.unfinished {
                return Err(EtcdError::Unfinished(self.name()));
            }
            return Ok(false);
        }
        // It never starts silently empty.
        for kind in ["model/", "log/", "key/"] {
            let prefix = self.layout.key(kind);
            let range = RangeRequest {
                range_end: ops::after_prefix(&prefix),
                key: prefix,
                limit: 1,
                keys_only: true,
                ..RangeRequest::default()
            };
            let any = self.etcd.range(range, Budget::WRITE).await;
            if !any.map_err(|error| self.failed(error))?.kvs.is_empty() {
                return Err(self.damaged("it has data but no head"));
            }
        }
        Ok(true)
    }

    /// Makes the registry, unless it is there. Gives the commit that its head then names, if it is this one.
    async fn create(&self, fresh: &PoolSettings, unfinished: bool) -> Result<String, EtcdError> {
        let (revision, now) = (Revision::ZERO.next(), SystemTime::now());
        let settings = SettingsRecord {
            settings: fresh.clone(),
            revision,
            updated: now,
        };
        let edits = vec![Edit::Settings {
            before: None,
            after: Arc::new(settings),
        }];
        let first = Change {
            revision,
            entry: Some(Entry {
                log: LogRecord::of_store("Create", revision, now),
                edits,
                kind: EntryKind::Beginning,
                forget: Vec::new(),
            }),
            idem: None,
            forget_idem: Vec::new(),
        };
        let commit = Uuid::new_v4().simple().to_string();
        let folded = Folded::of(&self.layout, &[first], &commit);
        let head = Head {
            format: FORMAT,
            epoch: Uuid::new_v4().simple().to_string(),
            revision: revision.get(),
            earliest: revision.get(),
            models: 0,
            commit: commit.clone(),
            staged: 0,
            unfinished,
            answered: 0,
        };
        let ops = folded.into_ops(&self.layout).into_iter();
        let mut success: Vec<_> = ops.map(layout::Op::request).collect();
        success.push(ops::put(self.layout.head(), head.encode_to_vec(), 0));
        let txn = TxnRequest {
            compare: vec![ops::unchanged_since(self.layout.head(), 0)],
            success,
            failure: Vec::new(),
        };
        let made = self.etcd.txn(txn, Budget::WRITE).await;
        made.map(|_| commit).map_err(|error| self.failed(error))
    }

    /// How long a call may take: one that failed just now is not waited for long.
    fn budget(&self) -> Budget {
        match self.in_touch {
            true => Budget::WRITE,
            false => Budget::SHORT,
        }
    }

    /// What became of calls, in the words of stores.
    fn note<T>(&mut self, result: Result<T, StoreError>) -> Result<T, StoreError> {
        self.in_touch = matches!(result, Ok(_) | Err(StoreError::Conflict));
        result
    }

    fn loaded(&self) -> Result<&At, StoreError> {
        self.at
            .as_ref()
            .ok_or_else(|| StoreError::NotCommitted("the store was not read yet".to_owned()))
    }

    fn commit_in(&mut self, changes: &[Change], term: Option<u64>) -> Result<(), StoreError> {
        check_sizes(changes)?;
        let runtime = self.runtime.clone();
        let committed = runtime.block_on(self.commit_changes(changes, term));
        self.note(committed)
    }
}

/// Why a call was of no use, with the way out: what etcd refuses it refuses again, what nobody answers may be tried again.
fn away(error: &CallError) -> String {
    match error {
        CallError::Refused(status) => format!(
            "etcd refused it ({}); {}",
            status.message(),
            way_out(status)
        ),
        CallError::NotReached(_) | CallError::Unknown(_) => format!(
            "etcd does not answer ({error}); what is registered stays in force, try again when it does"
        ),
    }
}

fn way_out(status: &tonic::Status) -> &'static str {
    match status.code() {
        tonic::Code::ResourceExhausted => {
            "make room: compact and defragment it, then disarm its alarm (`etcdctl alarm disarm`)"
        }
        tonic::Code::PermissionDenied => {
            "give the user of --etcd-user a role that may read and write all below the prefix"
        }
        _ => "see its alarms and its user's permissions",
    }
}

fn not_read(error: &CallError) -> StoreError {
    StoreError::NotCommitted(away(error))
}

/// The lineage as it is written.
fn epoch_of(head: &Head) -> Result<Epoch, String> {
    Epoch::new(head.epoch.clone()).map_err(|error| format!("its epoch {error}"))
}

impl Store for EtcdStore {
    fn load(&mut self) -> Result<Stored, StoreError> {
        let runtime = self.runtime.clone();
        let loaded = runtime.block_on(self.read_all());
        self.note(loaded)
    }

    fn past(&mut self) -> Result<Past, StoreError> {
        let at = self.loaded()?;
        let (earliest, revision) = (at.head.earliest, at.head.revision);
        let history = self.reader();
        let past = history.past(Revision::new(earliest), Revision::new(revision));
        past.map_err(|error| StoreError::NotCommitted(error.to_string()))
    }

    fn history(&self) -> Arc<dyn History> {
        Arc::new(self.reader())
    }

    fn commit(&mut self, changes: &[Change]) -> Result<(), StoreError> {
        self.commit_in(changes, None)
    }

    fn commit_as(&mut self, changes: &[Change], term: u64) -> Result<(), StoreError> {
        self.commit_in(changes, Some(term))
    }

    fn commit_keys(&mut self, changes: &[KeyChange]) -> Result<(), StoreError> {
        check_key_sizes(changes)?;
        let runtime = self.runtime.clone();
        let committed = runtime.block_on(self.commit_key_changes(changes));
        self.note(committed)
    }

    fn is_shared(&self) -> bool {
        true
    }

    fn news(&mut self) -> Result<News, StoreError> {
        let runtime = self.runtime.clone();
        let news = runtime.block_on(self.read_news());
        self.note(news)
    }
}

impl EtcdStore {
    fn reader(&self) -> EtcdHistory {
        EtcdHistory {
            etcd: self.etcd.clone(),
            runtime: self.runtime.clone(),
            layout: self.layout.clone(),
        }
    }
}

#[cfg(test)]
mod tests;
