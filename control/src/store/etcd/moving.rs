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
        let made = runtime.block_on(async {
            let empty = match store.first_look().await {
                Ok(empty) => empty,
                Err(EtcdError::Unfinished(_)) => {
                    store.wipe().await?;
                    true
                }
                Err(error) => return Err(error),
            };
            if empty {
                store.create(&stored.settings.settings, true).await?;
            }
            Ok(empty)
        })?;
        if !made {
            return Ok(None);
        }
        let loaded = store.load();
        loaded.map_err(|error| store.damaged(error.to_string()))?;
        Ok(Some(store))
    }

    /// All of it is here.
    pub(in crate::store) fn end_migration(&mut self) -> Result<(), StoreError> {
        let mut at = self.loaded()?.clone();
        at.head.unfinished = false;
        self.put_head(at)
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

    /// Removes what an earlier attempt left.
    async fn wipe(&self) -> Result<(), EtcdError> {
        let all = self.layout.key("");
        let txn = TxnRequest {
            compare: Vec::new(),
            success: vec![ops::delete_range(all.clone(), ops::after_prefix(&all))],
            failure: Vec::new(),
        };
        let wiped = self.etcd.txn(txn, Budget::WRITE).await;
        wiped.map(drop).map_err(|error| self.failed(error))
    }
}
