//! Reads: everything, and what others wrote since. Each at one revision of etcd, so that nothing is seen by halves.
//!
//! What others wrote is read from the registry's own history, not from events of etcd: it is there however long this
//! process was away, and whatever etcd compacted. Where the history does not reach back, everything is read.

use std::sync::Arc;

use forebay_proto::{Revision, limits};
use prost::Message as _;

use super::{
    At, Budget, EtcdStore, TRIES, epoch_of,
    layout::{EditValue, Head, KeysHead, LogValue, revision_of},
    not_read,
};
use crate::{
    etcd::{
        CallError,
        api::{KeyValue, RangeRequest, TxnRequest},
        ops,
    },
    store::{
        Change, IdemRecord, News, StoreError, Stored,
        history::{Edit, Entry, EntryKind, LogRecord},
        keys::{self, StoredKeys},
        records,
    },
};

/// More revisions than that are not read one by one.
const MOST_BEHIND: u64 = 20_000;
/// More answers than that are looked for among all.
const MOST_NUMBERED: u64 = 100;

/// Both heads, and the revision of etcd at which they were read.
pub(super) struct Heads {
    pub(super) head: Option<(Result<Head, String>, i64)>,
    keys: Option<(Result<KeysHead, String>, i64)>,
    pub(super) revision: i64,
}

impl Heads {
    /// When each was written last; 0: it is not there.
    pub(super) fn mods(&self) -> (i64, i64) {
        let head = self.head.as_ref().map_or(0, |(_, head_mod)| *head_mod);
        (
            head,
            self.keys.as_ref().map_or(0, |(_, keys_mod)| *keys_mod),
        )
    }
}

/// Why reading failed.
enum Failed {
    Call(CallError),
    /// What is there makes no sense.
    Damaged(String),
    /// It changed, or was compacted, under the reader.
    Again,
}

impl From<CallError> for Failed {
    fn from(error: CallError) -> Self {
        match error.is_compacted() {
            true => Self::Again,
            false => Self::Call(error),
        }
    }
}

impl From<String> for Failed {
    fn from(what: String) -> Self {
        Self::Damaged(what)
    }
}

impl EtcdStore {
    pub(super) async fn heads(&self, budget: Budget) -> Result<Heads, CallError> {
        let txn = TxnRequest {
            compare: Vec::new(),
            success: vec![
                ops::get(self.layout.head()),
                ops::get(self.layout.keys_head()),
            ],
            failure: Vec::new(),
        };
        let answer = self.etcd.txn(txn, budget).await?;
        let text = |error: prost::DecodeError| format!("a head makes no sense: {error}");
        let (head, keys) = (answer.responses.first(), answer.responses.get(1));
        Ok(Heads {
            head: ops::found(head).map(|kv| {
                (
                    Head::decode(kv.value.as_slice()).map_err(text),
                    kv.mod_revision,
                )
            }),
            keys: ops::found(keys).map(|kv| {
                (
                    KeysHead::decode(kv.value.as_slice()).map_err(text),
                    kv.mod_revision,
                )
            }),
            revision: answer.header.map_or(0, |header| header.revision),
        })
    }

    /// The heads, with nothing half-done behind them.
    async fn settled(&self) -> Result<(Heads, Head, i64), Failed> {
        for _ in 0..TRIES {
            let heads = self.heads(self.budget()).await?;
            let (head, head_mod) = match &heads.head {
                Some((Ok(head), head_mod)) => (head.clone(), *head_mod),
                Some((Err(error), _)) => return Err(Failed::Damaged(error.clone())),
                None => return Err(Failed::Damaged("the head is gone".to_owned())),
            };
            if head.staged == 0 {
                return Ok((heads, head, head_mod));
            }
            tracing::info!(
                revision = head.revision,
                "a large commit is put in its place"
            );
            self.finish(&head, head_mod).await?;
        }
        Err(Failed::Again)
    }

    /// Reads as often as it takes.
    async fn reading<T>(
        &self,
        mut read: impl AsyncFnMut() -> Result<T, Failed>,
    ) -> Result<T, StoreError> {
        for _ in 0..TRIES {
            match read().await {
                Ok(found) => return Ok(found),
                Err(Failed::Again) => {}
                Err(Failed::Call(error)) => return Err(not_read(&error)),
                Err(Failed::Damaged(what)) => {
                    return Err(StoreError::NotCommitted(format!(
                        "the registry in {} makes no sense: {what}",
                        self.name()
                    )));
                }
            }
        }
        Err(StoreError::NotCommitted(
            "the registry changes faster than it can be read; try again".to_owned(),
        ))
    }

    pub(super) async fn read_all(&mut self) -> Result<Stored, StoreError> {
        let (stored, at) = self.reading(async || self.whole().await).await?;
        self.at = Some(at);
        Ok(stored)
    }

    async fn whole(&self) -> Result<(Stored, At), Failed> {
        let (heads, head, head_mod) = self.settled().await?;
        let at_revision = heads.revision;
        let settings = self.under("settings", at_revision, 0).await?;
        let settings = settings
            .first()
            .ok_or("the pool settings are missing".to_owned())?;
        let models = self.under("model/", at_revision, 0).await?;
        let models = models.iter().map(|kv| {
            records::decode_model(&kv.value)
                .map_err(|error| format!("{}: {error}", String::from_utf8_lossy(&kv.key)))
        });
        let models = models.collect::<Result<Vec<_>, String>>()?;
        if head.models != models.len() as u64 {
            let (counted, found) = (head.models, models.len());
            return Err(Failed::Damaged(format!(
                "it should hold {counted} models and holds {found}"
            )));
        }
        let idem = self.answers(at_revision, 0).await?;
        let (keys_mod, keys) = self.keys_at(&heads).await?;
        let at = At {
            head_mod,
            keys_mod,
            answers: at_revision,
            models: models
                .iter()
                .map(|model| model.spec.id().to_string())
                .collect(),
            keys: keys.records.iter().map(|key| key.id.to_string()).collect(),
            head: head.clone(),
        };
        let stored = Stored {
            epoch: epoch_of(&head)?,
            revision: Revision::new(head.revision),
            settings: records::decode_settings(&settings.value)?,
            models,
            idem,
            keys,
        };
        Ok((stored, at))
    }

    /// What others wrote since [`At`].
    pub(super) async fn read_news(&mut self) -> Result<News, StoreError> {
        let Some(at) = self.at.clone() else {
            return self
                .read_all()
                .await
                .map(|stored| News::Whole(Box::new(stored)));
        };
        let since = self.reading(async || self.since(&at).await).await?;
        match since {
            Since::Nothing => Ok(News::Nothing),
            Since::These(now, changes, keys) => {
                self.at = Some(*now);
                Ok(News::Since { changes, keys })
            }
            Since::TooMuch => {
                let stored = self.read_all().await?;
                Ok(News::Whole(Box::new(stored)))
            }
        }
    }

    async fn since(&self, at: &At) -> Result<Since, Failed> {
        let (heads, head, head_mod) = self.settled().await?;
        let keys_mod = heads.keys.as_ref().map_or(0, |(_, keys_mod)| *keys_mod);
        if (head_mod, keys_mod) == (at.head_mod, at.keys_mod) {
            return Ok(Since::Nothing);
        }
        let behind = head.revision.checked_sub(at.head.revision);
        let reaches = head.epoch == at.head.epoch
            && keys_mod >= at.keys_mod
            && at.head.revision >= head.earliest
            && behind.is_some_and(|behind| behind <= MOST_BEHIND);
        if !reaches {
            return Ok(Since::TooMuch);
        }
        let (from, to) = (
            Revision::new(at.head.revision),
            Revision::new(head.revision),
        );
        let Some(mut changes) = self.entries(from, to, heads.revision).await? else {
            return Ok(Since::TooMuch);
        };
        let mut now = At {
            head_mod,
            keys_mod,
            answers: heads.revision,
            head,
            ..at.clone()
        };
        for edit in changes
            .iter()
            .flat_map(|change| &change.entry)
            .flat_map(|e| &e.edits)
        {
            if let Edit::Model { id, after, .. } = edit {
                match after {
                    Some(_) => drop(now.models.insert(id.to_string())),
                    None => drop(now.models.remove(id.as_str())),
                }
            }
        }
        if now.models.len() as u64 != now.head.models {
            return Ok(Since::TooMuch);
        }
        let numbered = self.numbered_answers(&at.head, &now.head, heads.revision);
        let answers = match numbered.await? {
            Some(answers) => answers,
            None => self.answers(heads.revision, at.answers + 1).await?,
        };
        changes.extend(answers.into_iter().map(|answer| Change {
            revision: to,
            entry: None,
            idem: Some(answer),
            forget_idem: Vec::new(),
        }));
        let keys = match keys_mod == at.keys_mod {
            true => None,
            false => Some(self.keys_at(&heads).await?.1),
        };
        if let Some(keys) = &keys {
            now.keys = keys.records.iter().map(|key| key.id.to_string()).collect();
        }
        Ok(Since::These(Box::new(now), changes, keys))
    }

    /// The entries after one revision up to another, each with its edits. Nothing if one of them is missing.
    async fn entries(
        &self,
        from: Revision,
        to: Revision,
        at_revision: i64,
    ) -> Result<Option<Vec<Change>>, Failed> {
        let range = |from, to| RangeRequest {
            key: from,
            range_end: to,
            revision: at_revision,
            ..RangeRequest::default()
        };
        let (first, last) = (from.next(), to.next());
        if first == last {
            return Ok(Some(Vec::new()));
        }
        let logs = range(self.layout.log(first), self.layout.log(last));
        let logs = self.etcd.all(logs).await?;
        if logs.len() as u64 != to.get() - from.get() {
            return Ok(None);
        }
        let edits = range(self.layout.edits(first), self.layout.edits(last));
        let mut edits = self.etcd.all(edits).await?.into_iter().peekable();
        let mut changes = Vec::with_capacity(logs.len());
        for kv in &logs {
            let log = read_log(&self.layout, kv)?;
            let revision = log.revision;
            let mut own = Vec::new();
            let prefix = self.layout.edits(revision);
            while let Some(edit) = edits.next_if(|kv| kv.key.starts_with(&prefix)) {
                own.push(read_edit(&edit)?);
            }
            if own.len() != log.edits as usize {
                return Ok(None);
            }
            changes.push(Change {
                revision,
                entry: Some(Entry {
                    log,
                    edits: own,
                    kind: EntryKind::Undoable,
                    forget: Vec::new(),
                }),
                idem: None,
                forget_idem: Vec::new(),
            });
        }
        Ok(Some(changes))
    }

    /// All below a name, at this revision; only what was written since another one, if that is not 0.
    async fn under(&self, kind: &str, at: i64, since: i64) -> Result<Vec<KeyValue>, CallError> {
        let key = self.layout.key(kind);
        let range_end = match kind.ends_with('/') {
            true => ops::after_prefix(&key),
            false => Vec::new(),
        };
        let range = RangeRequest {
            key,
            range_end,
            revision: at,
            min_mod_revision: since,
            ..RangeRequest::default()
        };
        self.etcd.all(range).await
    }

    /// The answers between two heads, by their numbers. Nothing if they are to be looked for: there are too many, or
    /// they were not counted.
    async fn numbered_answers(
        &self,
        from: &Head,
        to: &Head,
        at_revision: i64,
    ) -> Result<Option<Vec<IdemRecord>>, Failed> {
        let Some(count) = to.answered.checked_sub(from.answered) else {
            return Ok(None);
        };
        if from.answered == 0 || count > MOST_NUMBERED {
            return Ok(None);
        }
        if count == 0 {
            return Ok(Some(Vec::new()));
        }
        let range = RangeRequest {
            key: self.layout.answered(from.answered + 1),
            range_end: self.layout.answered(to.answered + 1),
            revision: at_revision,
            ..RangeRequest::default()
        };
        let ids = self.etcd.all(range).await?;
        if ids.len() as u64 != count {
            return Ok(None);
        }
        let mut found = Vec::with_capacity(ids.len());
        for id in ids {
            let one = RangeRequest {
                key: self.layout.answer(&String::from_utf8_lossy(&id.value)),
                revision: at_revision,
                ..RangeRequest::default()
            };
            // One that is forgotten by now is none.
            found.extend(self.etcd.range(one, self.budget()).await?.kvs);
        }
        self.read_answers(found).map(Some)
    }

    /// Answers in order of revision.
    async fn answers(&self, at: i64, since: i64) -> Result<Vec<IdemRecord>, Failed> {
        let found = self.under("answer/", at, since).await?;
        self.read_answers(found)
    }

    fn read_answers(&self, found: Vec<KeyValue>) -> Result<Vec<IdemRecord>, Failed> {
        let prefix = self.layout.answer("");
        let mut answers = Vec::with_capacity(found.len());
        for kv in found {
            let id = kv.key.strip_prefix(prefix.as_slice()).unwrap_or_default();
            let id = String::from_utf8_lossy(id).into_owned();
            let record = records::decode_idem(id, &kv.value)?;
            answers.push((record.revision, kv.mod_revision, record));
        }
        answers.sort_by_key(|(revision, made, _)| (*revision, *made));
        Ok(answers.into_iter().map(|(_, _, record)| record).collect())
    }

    async fn keys_at(&self, heads: &Heads) -> Result<(i64, StoredKeys), Failed> {
        let (mut stored, count, keys_mod) = match &heads.keys {
            None => return Ok((0, StoredKeys::default())),
            Some((Ok(head), keys_mod)) => {
                let (stored, count) = keys::decode_head(&head.head)?;
                (stored, count, *keys_mod)
            }
            Some((Err(error), _)) => return Err(Failed::Damaged(error.clone())),
        };
        for kv in self.under("key/", heads.revision, 0).await? {
            stored.records.push(keys::decode(&kv.value)?);
        }
        match stored.records.len() as u64 == count && count <= 2 * limits::KEYS as u64 {
            true => Ok((keys_mod, stored)),
            false => Err(Failed::Damaged(format!(
                "it should hold {count} clients' keys and holds {}",
                stored.records.len()
            ))),
        }
    }
}

/// What there is since some point.
enum Since {
    Nothing,
    These(Box<At>, Vec<Change>, Option<StoredKeys>),
    TooMuch,
}

pub(super) fn read_log(layout: &super::Layout, kv: &KeyValue) -> Result<LogRecord, String> {
    let revision = revision_of(layout, "log/", &kv.key).ok_or("an entry has no number")?;
    let value = LogValue::decode(kv.value.as_slice()).map_err(|error| error.to_string())?;
    records::decode_log(revision, &value.record)
}

pub(super) fn read_edit(kv: &KeyValue) -> Result<Edit, String> {
    let value = EditValue::decode(kv.value.as_slice()).map_err(|error| error.to_string())?;
    let EditValue {
        name,
        before,
        after,
    } = value;
    if name.is_empty() {
        let read = |bytes: Vec<u8>| records::decode_settings(&bytes).map(Arc::new);
        let after = after.ok_or("the settings of an edit are gone")?;
        return Ok(Edit::Settings {
            before: before.map(read).transpose()?,
            after: read(after)?,
        });
    }
    let read = |bytes: Vec<u8>| records::decode_model(&bytes).map(Arc::new);
    let id = forebay_proto::ModelId::new(String::from_utf8_lossy(&name));
    Ok(Edit::Model {
        id: id.map_err(|error| error.to_string())?,
        before: before.map(read).transpose()?,
        after: after.map(read).transpose()?,
    })
}
