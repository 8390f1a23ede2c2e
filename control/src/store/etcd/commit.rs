//! Writes: a commit as one transaction, or staged in parts; and what became of one whose answer was lost.

use std::collections::BTreeSet;

use prost::Message as _;
use uuid::Uuid;

use super::{
    At, EtcdStore, away,
    layout::{
        Folded, Head, KeysHead, LogValue, MOST_OPS, MOST_PARTS, Op, Part, Witness, fits, fold_keys,
        parts,
    },
    not_read,
};
use crate::{
    etcd::{
        Budget, CallError,
        api::{Compare, KeyValue, RangeRequest, RequestOp, TxnRequest, TxnResponse},
        ops,
    },
    store::{
        Change, StoreError,
        keys::{self, KeyChange},
    },
};

/// How often a commit that is made is put in its place before the store is read anew, which does so, too.
const FINISHES: u32 = 2;

/// What became of a transaction.
enum Made {
    /// By etcd's revision.
    Yes(i64),
    /// What it was planned on is not what is there.
    Conflict,
}

impl EtcdStore {
    pub(super) async fn commit_changes(
        &mut self,
        changes: &[Change],
        term: Option<u64>,
    ) -> Result<(), StoreError> {
        let at = self.loaded()?.clone();
        let commit = Uuid::new_v4().simple().to_string();
        let mut folded = Folded::of(&self.layout, changes, &commit);
        let answered = folded.number_answers(&self.layout, &at.head, at.head_mod);
        let models = folded.models.clone();
        let head = Head {
            revision: folded.revision.map_or(at.head.revision, |new| new.get()),
            earliest: folded
                .earliest
                .map_or(at.head.earliest, |new| new.get().max(at.head.earliest)),
            models: folded.count_models(&at.models),
            commit,
            staged: 0,
            answered,
            ..at.head.clone()
        };
        let witness = folded.witness.clone();
        let ops = folded.into_ops(&self.layout);
        let (head, made) = match fits(&ops) {
            true => {
                let ops = ops.into_iter().map(Op::request).collect();
                let compare = self.planned_on(&at, term);
                let made = self
                    .write_head(&head, compare, ops, witness.as_ref(), term)
                    .await?;
                (head, made)
            }
            false => {
                self.commit_staged(&at, head, ops, witness.as_ref(), term)
                    .await?
            }
        };
        let Some(now) = self.at.as_mut() else {
            return Ok(());
        };
        (now.head, now.head_mod, now.answers) = (head, made, made);
        for (id, there) in models {
            match there {
                true => drop(now.models.insert(id)),
                false => drop(now.models.remove(&id)),
            }
        }
        Ok(())
    }

    /// The head is what this was planned on; and who decides is who did in this term.
    fn planned_on(&self, at: &At, term: Option<u64>) -> Vec<Compare> {
        let mut compare = vec![ops::unchanged_since(self.layout.head(), at.head_mod)];
        if let Some(term) = term {
            let term = i64::try_from(term).unwrap_or(i64::MAX);
            compare.push(ops::made_at(self.layout.leader(), term));
        }
        compare
    }

    /// Writes the head and all else, or nothing. Gives etcd's revision of it.
    pub(super) async fn write_head(
        &self,
        head: &Head,
        compare: Vec<Compare>,
        mut success: Vec<RequestOp>,
        witness: Option<&Witness>,
        term: Option<u64>,
    ) -> Result<i64, StoreError> {
        success.push(ops::put(self.layout.head(), head.encode_to_vec(), 0));
        let mut failure = vec![ops::get(self.layout.head()), ops::get(self.layout.leader())];
        failure.extend(witness.map(|witness| ops::get(witness.key().to_vec())));
        let txn = TxnRequest {
            compare,
            success,
            failure,
        };
        let answer = self.answered(txn).await?;
        let made = judge(&answer, &head.commit, witness, |found| {
            Head::decode(found.value.as_slice()).is_ok_and(|found| found.commit == head.commit)
        });
        match made {
            Made::Yes(revision) => Ok(revision),
            Made::Conflict => {
                let leader = ops::found(answer.responses.get(1)).map(|kv| kv.create_revision);
                let term = term.map(|term| i64::try_from(term).unwrap_or(i64::MAX));
                match term.is_some() && leader != term {
                    true => Err(StoreError::NotCommitted(
                        "this control plane does not decide any more, another one does".to_owned(),
                    )),
                    false => Err(StoreError::Conflict),
                }
            }
        }
    }

    async fn answered(&self, txn: TxnRequest) -> Result<TxnResponse, StoreError> {
        let answer = self.etcd.txn(txn, self.budget()).await;
        answer.map_err(|error| match error {
            CallError::Unknown(_) => StoreError::Unknown(away(&error)),
            CallError::Refused(_) | CallError::NotReached(_) => not_read(&error),
        })
    }

    /// Parts first, which nobody reads; then the head that names them; then each in its place.
    async fn commit_staged(
        &self,
        at: &At,
        head: Head,
        ops: Vec<Op>,
        witness: Option<&Witness>,
        term: Option<u64>,
    ) -> Result<(Head, i64), StoreError> {
        let parts = parts(ops);
        if parts.len() > MOST_PARTS {
            return Err(StoreError::NotCommitted(format!(
                "it takes {} values of etcd, at most {MOST_PARTS} are allowed; change fewer models at once",
                parts.len()
            )));
        }
        self.sweep_passed(at.head_mod).await;
        let staged = u32::try_from(parts.len()).unwrap_or(u32::MAX);
        let staging = Head { staged, ..head };
        let made = match self.stage(at, &staging.commit, &parts, term).await {
            // From here on it is made.
            Ok(compare) => {
                self.write_head(&staging, compare, Vec::new(), witness, term)
                    .await
            }
            Err(error) => Err(error),
        };
        if let Err(error) = &made
            && !matches!(error, StoreError::Unknown(_))
        {
            self.unstage(&staging.commit).await;
        }
        self.put_in_place(staging, made?).await
    }

    /// Writes the parts of a commit where nobody reads; gives what its head then compares. Each of them compares what the
    /// head will: a part that would be of no use is refused, also one that a member executes late.
    async fn stage(
        &self,
        at: &At,
        commit: &str,
        parts: &[Part],
        term: Option<u64>,
    ) -> Result<Vec<Compare>, StoreError> {
        let keys = (0..parts.len()).map(|n| self.layout.part(commit, n));
        let mut compare = self.planned_on(at, term);
        compare.extend(keys.map(ops::exists));
        for (n, part) in parts.iter().enumerate() {
            let key = self.layout.part(commit, n);
            let txn = TxnRequest {
                compare: self.planned_on(at, term),
                success: vec![ops::put(key, part.encode_to_vec(), 0)],
                failure: Vec::new(),
            };
            // Not there yet, whatever becomes of the part.
            let staged = self.etcd.txn(txn, self.budget()).await;
            if !staged.map_err(|error| not_read(&error))?.succeeded {
                // The head's transaction is refused for the same reason, and tells which.
                break;
            }
        }
        Ok(compare)
    }

    /// Removes the parts of a commit that was not made and never will be. Should it fail, they are swept later.
    async fn unstage(&self, commit: &str) {
        let staged = self.layout.staged(commit);
        let txn = TxnRequest {
            compare: Vec::new(),
            success: vec![ops::delete_range(
                staged.clone(),
                ops::after_prefix(&staged),
            )],
            failure: Vec::new(),
        };
        if let Err(error) = self.etcd.txn(txn, Budget::SHORT).await {
            tracing::debug!(%error, commit, "staged parts are left for a later sweep");
        }
    }

    /// What was made with its head goes to its place.
    async fn put_in_place(&self, staging: Head, made: i64) -> Result<(Head, i64), StoreError> {
        for _ in 0..FINISHES {
            match self.finish(&staging, made).await {
                Ok(Some(finished)) => return Ok(finished),
                // Somebody else finished it, and went on. What they wrote is told of as news.
                Ok(None) => {
                    return Ok((
                        Head {
                            staged: 0,
                            ..staging
                        },
                        made,
                    ));
                }
                Err(error) => {
                    tracing::warn!(%error, "a large commit is made, and not in its place yet");
                }
            }
        }
        // Made, and unseen until somebody finishes it: this process, as it reads the store anew.
        Err(StoreError::Unknown(
            "it is made, and not in force yet".to_owned(),
        ))
    }

    /// Puts the parts of a commit in their places. Nothing if the head is another by now.
    pub(super) async fn finish(
        &self,
        head: &Head,
        head_mod: i64,
    ) -> Result<Option<(Head, i64)>, CallError> {
        let unmoved = || vec![ops::unchanged_since(self.layout.head(), head_mod)];
        for n in 0..head.staged as usize {
            let read = TxnRequest {
                compare: unmoved(),
                success: vec![ops::get(self.layout.part(&head.commit, n))],
                failure: Vec::new(),
            };
            let read = self.etcd.txn(read, Budget::WRITE).await?;
            if !read.succeeded {
                return Ok(None);
            }
            let part = ops::found(read.responses.first());
            let part = part.and_then(|part| Part::decode(part.value.as_slice()).ok());
            let part =
                part.ok_or_else(|| CallError::Unknown("a staged part is gone".to_owned()))?;
            // All of them are under the same head, which is moved only when all are there; done twice they are the same.
            for ops in part.ops.chunks(MOST_OPS) {
                let write = TxnRequest {
                    compare: unmoved(),
                    success: ops.iter().cloned().map(Op::request).collect(),
                    failure: Vec::new(),
                };
                if !self.etcd.txn(write, Budget::WRITE).await?.succeeded {
                    return Ok(None);
                }
            }
        }
        let staged = self.layout.staged(&head.commit);
        let head = Head {
            staged: 0,
            ..head.clone()
        };
        let clear = TxnRequest {
            compare: unmoved(),
            success: vec![
                ops::put(self.layout.head(), head.encode_to_vec(), 0),
                ops::delete_range(staged.clone(), ops::after_prefix(&staged)),
            ],
            failure: vec![ops::get(self.layout.head())],
        };
        let cleared = self.etcd.txn(clear, Budget::WRITE).await?;
        let made = judge(&cleared, &head.commit, None, |found| {
            Head::decode(found.value.as_slice()).is_ok_and(|found| found == head)
        });
        Ok(match made {
            Made::Yes(revision) => Some((head, revision)),
            Made::Conflict => None,
        })
    }

    pub(super) async fn commit_key_changes(
        &mut self,
        changes: &[KeyChange],
    ) -> Result<(), StoreError> {
        let at = self.loaded()?.clone();
        let Some(last) = changes.last() else {
            return Ok(());
        };
        let (ops, after, witness): (_, BTreeSet<String>, _) =
            fold_keys(&self.layout, changes, &at.keys);
        if !fits(&ops) {
            return Err(StoreError::NotCommitted(
                "it is more than one transaction of etcd takes; change fewer keys at once"
                    .to_owned(),
            ));
        }
        let commit = Uuid::new_v4().simple().to_string();
        let head = KeysHead {
            head: keys::encode_head(last.version, last.floor, after.len() as u64),
            commit: commit.clone(),
        };
        let mut success: Vec<_> = ops.into_iter().map(Op::request).collect();
        success.push(ops::put(self.layout.keys_head(), head.encode_to_vec(), 0));
        let mut failure = vec![
            ops::get(self.layout.keys_head()),
            ops::get(self.layout.leader()),
        ];
        failure.extend(
            witness
                .as_ref()
                .map(|witness| ops::get(witness.key().to_vec())),
        );
        let txn = TxnRequest {
            compare: vec![ops::unchanged_since(self.layout.keys_head(), at.keys_mod)],
            success,
            failure,
        };
        let answer = self.answered(txn).await?;
        let made = judge(&answer, &commit, witness.as_ref(), |found| {
            KeysHead::decode(found.value.as_slice()).is_ok_and(|found| found.commit == commit)
        });
        let Made::Yes(revision) = made else {
            return Err(StoreError::Conflict);
        };
        if let Some(now) = self.at.as_mut() {
            (now.keys_mod, now.keys) = (revision, after);
        }
        Ok(())
    }

    /// Removes parts of commits that were never made, left by who ended before it could. Those that were staged before
    /// the head was last written were staged for a head before it, so no commit will ever find them of use; the others
    /// may be of one that is about to be made.
    async fn sweep_passed(&self, head_mod: i64) {
        let staged = self.layout.key("staged/");
        let range = RangeRequest {
            range_end: ops::after_prefix(&staged),
            key: staged,
            keys_only: true,
            ..RangeRequest::default()
        };
        let Ok(found) = self.etcd.range(range, Budget::SHORT).await else {
            return;
        };
        let passed = found
            .kvs
            .into_iter()
            .filter(|kv| kv.mod_revision < head_mod);
        let passed: Vec<_> = passed
            .take(MOST_OPS)
            .map(|kv| ops::delete(kv.key))
            .collect();
        if passed.is_empty() {
            return;
        }
        // That head has nothing staged, or it would have been finished first.
        let txn = TxnRequest {
            compare: vec![ops::unchanged_since(self.layout.head(), head_mod)],
            success: passed,
            failure: Vec::new(),
        };
        if let Err(error) = self.etcd.txn(txn, Budget::SHORT).await {
            tracing::debug!(%error, "staged parts were not swept");
        }
    }

    /// Removes parts of commits that were never made. One that is about to be made compares that its parts are there.
    pub(super) async fn sweep(&self) {
        let heads = match self.heads(Budget::WRITE).await {
            Ok(heads) => heads,
            Err(_) => return,
        };
        let Some((Ok(head), head_mod)) = heads.head else {
            return;
        };
        if head.staged > 0 {
            return;
        }
        let staged = self.layout.key("staged/");
        let past_staged = ops::after_prefix(&staged);
        // Those of a numbering from before a build that did not count are taken out by no later answer.
        let (first, kept) = self.layout.answered_stale(&head);
        let sweep = TxnRequest {
            compare: vec![ops::unchanged_since(self.layout.head(), head_mod)],
            success: vec![
                ops::delete_range(staged, past_staged),
                ops::delete_range(first, kept),
            ],
            failure: Vec::new(),
        };
        if let Err(error) = self.etcd.txn(sweep, Budget::WRITE).await {
            tracing::debug!(%error, "staged parts were not swept");
        }
    }
}

impl Witness {
    pub(super) fn key(&self) -> &[u8] {
        match self {
            Self::Entry(key) | Self::Value(key, _) => key,
        }
    }
}

/// Of a transaction that may have been sent twice: made by this answer, by one that was lost, or not at all. The
/// responses of a failed one are the head, the leader and the witness.
fn judge(
    answer: &TxnResponse,
    commit: &str,
    witness: Option<&Witness>,
    is_ours: impl Fn(&KeyValue) -> bool,
) -> Made {
    if answer.succeeded {
        return Made::Yes(answer.header.as_ref().map_or(0, |header| header.revision));
    }
    let head = ops::found(answer.responses.first()).filter(|head| is_ours(head));
    let seen = ops::found(answer.responses.get(2)).filter(|found| match witness {
        Some(Witness::Entry(_)) => {
            LogValue::decode(found.value.as_slice()).is_ok_and(|log| log.commit == commit)
        }
        Some(Witness::Value(_, value)) => found.value == *value,
        None => false,
    });
    match head.or(seen) {
        Some(found) => Made::Yes(found.mod_revision),
        None => Made::Conflict,
    }
}
