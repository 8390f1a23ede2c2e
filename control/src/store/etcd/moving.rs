//! A registry that is moved here from another store, and one that gets a new epoch.

use std::sync::Arc;

use prost::Message as _;
use tokio::runtime::Handle;
use uuid::Uuid;

use super::{At, EtcdStore, StoreError, not_read};
use crate::{
    etcd::{
        Budget, CallError, Etcd, EtcdError,
        api::{RangeRequest, TxnRequest},
        ops,
    },
    store::{Store as _, Stored},
};

/// What a registry has at its prefix: these keys, and all below these.
const OWN: [&str; 6] = [
    "head/config",
    "head/keys",
    "head/rollout",
    "settings",
    "secrets",
    "leader",
];
const BELOW: [&str; 11] = [
    "model/",
    "log/",
    "edit/",
    "answer/",
    "answered/",
    "key/",
    "staged/",
    "leases/",
    "workers/",
    "drain/",
    "replica/",
];

impl EtcdStore {
    /// A fresh registry, marked as unfinished, in the place of nothing or of one that was left unfinished. Nothing if there
    /// is another.
    pub(in crate::store) fn begin_migration(
        etcd: Arc<Etcd>,
        runtime: Handle,
        stored: &Stored,
    ) -> Result<Option<Self>, EtcdError> {
        let mut store = Self::attach(etcd, runtime);
        let runtime = store.runtime.clone();
        let own = runtime.block_on(async {
            let empty = match store.first_look().await {
                Err(EtcdError::Unfinished(_)) => {
                    store.wipe().await?;
                    // Unless the head moved meanwhile: then somebody else is at work on it.
                    match store.first_look().await {
                        Err(EtcdError::Unfinished(_)) => false,
                        looked => looked?,
                    }
                }
                looked => looked?,
            };
            match empty {
                true => store
                    .create(&stored.settings.settings, true)
                    .await
                    .map(Some),
                false => Ok(None),
            }
        })?;
        let Some(own) = own else {
            return Ok(None);
        };
        let loaded = store.load();
        loaded.map_err(|error| store.damaged(error.to_string()))?;
        // Somebody else may have been faster: a registry of theirs is not to be filled.
        let is_own = |at: &At| at.head.commit == own && at.head.unfinished;
        Ok(store.at.as_ref().is_some_and(is_own).then_some(store))
    }

    /// All of it is here.
    pub(in crate::store) fn end_migration(&mut self) -> Result<(), StoreError> {
        let mut at = self.loaded()?.clone();
        at.head.unfinished = false;
        match self.put_head(at.clone()) {
            Err(StoreError::Unknown(why)) => {
                let heads = self.runtime.block_on(self.heads(Budget::READ));
                match heads.map(|heads| heads.head) {
                    // Its answer was lost.
                    Ok(Some((Ok(head), _))) if head == at.head => Ok(()),
                    // Not made yet, and from now on it may only be by a member that sleeps.
                    Ok(_) => Err(StoreError::Unknown(why)),
                    Err(_) => Err(StoreError::Unknown(format!(
                        "all is written, and only whether it is marked as complete is not known: {why}; \
                         `forebay control check` tells"
                    ))),
                }
            }
            ended => ended,
        }
    }

    /// It is as it was read: nobody wrote since, and nobody is at work on it.
    pub(in crate::store) fn is_as_loaded(&self) -> Result<bool, StoreError> {
        let at = self.loaded()?;
        let heads = self.runtime.block_on(self.heads(Budget::WRITE));
        let heads = heads.map_err(|error| not_read(&error))?;
        Ok(heads.mods() == (at.head_mod, at.keys_mod))
    }

    /// From now on it is another lineage. Gives the one before and this one.
    pub(in crate::store) fn new_epoch(&mut self) -> Result<(String, String), StoreError> {
        let mut at = self.loaded()?.clone();
        let epoch = Uuid::new_v4().simple().to_string();
        let old = std::mem::replace(&mut at.head.epoch, epoch.clone());
        self.put_head(at)?;
        Ok((old, epoch))
    }

    /// How many control planes are at work on it.
    pub(in crate::store) fn replicas(&self) -> Result<usize, StoreError> {
        let key = self.layout.key("replica/");
        let range = RangeRequest {
            range_end: ops::after_prefix(&key),
            key,
            keys_only: true,
            ..RangeRequest::default()
        };
        let found = self.runtime.block_on(self.etcd.range(range, Budget::WRITE));
        found
            .map(|found| found.kvs.len())
            .map_err(|error| not_read(&error))
    }

    fn put_head(&mut self, at: At) -> Result<(), StoreError> {
        let head = at.head.encode_to_vec();
        let txn = TxnRequest {
            compare: vec![ops::unchanged_since(self.layout.head(), at.head_mod)],
            success: vec![ops::put(self.layout.head(), head.clone(), 0)],
            failure: vec![ops::get(self.layout.head())],
        };
        let answer = self.runtime.block_on(self.etcd.txn(txn, Budget::WRITE));
        let answer = answer.map_err(|error| match error {
            error @ CallError::Unknown(_) => StoreError::Unknown(super::away(&error)),
            error => not_read(&error),
        })?;
        // Sent twice, it finds itself.
        let found = ops::found(answer.responses.first()).filter(|found| found.value == head);
        let revision = match (answer.succeeded, found) {
            (true, _) => answer.header.map_or(0, |header| header.revision),
            (false, Some(found)) => found.mod_revision,
            (false, None) => return Err(StoreError::Conflict),
        };
        self.at = Some(At {
            head_mod: revision,
            ..at
        });
        Ok(())
    }

    /// Removes what an earlier attempt left: of all that a registry has here and of nothing else, such as a registry at a
    /// longer prefix; and only under the head that marks it as unfinished, also if a member executes it late.
    pub(super) async fn wipe(&self) -> Result<(), EtcdError> {
        let heads = self.heads(Budget::WRITE).await;
        let heads = heads.map_err(|error| self.failed(error))?;
        let head_mod = match heads.head {
            Some((Ok(head), head_mod)) if head.unfinished => head_mod,
            _ => return Ok(()),
        };
        let one = OWN.iter().map(|name| ops::delete(self.layout.key(name)));
        let below = BELOW.iter().map(|name| {
            let key = self.layout.key(name);
            ops::delete_range(key.clone(), ops::after_prefix(&key))
        });
        let txn = TxnRequest {
            compare: vec![ops::unchanged_since(self.layout.head(), head_mod)],
            success: one.chain(below).collect(),
            failure: Vec::new(),
        };
        let wiped = self.etcd.txn(txn, Budget::WRITE).await;
        wiped.map(drop).map_err(|error| self.failed(error))
    }
}
