//! The table in etcd: who may hold something, in parts, under a head that each write compares and writes anew. So a write
//! whose answer was lost, and which comes late, does not undo a newer one.

use std::collections::BTreeMap;

use super::{
    BYTES, EtcdBoard,
    letters::{PARTS, parts_of, table_of},
    name,
};
use crate::{
    etcd::{
        Budget, CallError,
        api::{RangeRequest, RequestOp, TxnRequest},
        ops,
    },
    leases::{
        board::{Fenced, TableError},
        words::Table,
    },
};

/// Parts in a transaction.
const AT_ONCE: usize = 100;
/// How often it is tried when the head was not as it was known.
const TRIES: usize = 3;

/// What of the table is in etcd.
#[derive(Debug, Default)]
pub(super) struct Kept {
    /// The term in which it was read, if it is known.
    term: Option<u64>,
    /// When the head was written last; 0: there is none.
    head: i64,
    parts: BTreeMap<u32, Vec<u8>>,
}

#[cfg(test)]
impl Kept {
    pub(super) fn head(&self) -> i64 {
        self.head
    }

    pub(super) fn parts(&self) -> &BTreeMap<u32, Vec<u8>> {
        &self.parts
    }

    pub(super) fn set(&mut self, head: i64, parts: BTreeMap<u32, Vec<u8>>) {
        (self.head, self.parts) = (head, parts);
    }
}

impl EtcdBoard {
    /// What is on record. Whoever was made to decide before it reads has all that others wrote.
    pub(super) async fn read_table(&self) -> Result<Option<Table>, TableError> {
        let mut kept = self.kept.lock().await;
        *kept = self.kept_now().await?;
        if kept.head == 0 {
            return Ok(None);
        }
        let table = table_of(kept.parts.values().map(Vec::as_slice));
        let at = String::from_utf8_lossy(&self.key("table/")).into_owned();
        table
            .map(Some)
            .map_err(|what| TableError::Unreadable { at, what })
    }

    async fn kept_now(&self) -> Result<Kept, TableError> {
        let prefix = self.key("table/");
        let all = RangeRequest {
            range_end: ops::after_prefix(&prefix),
            key: prefix.clone(),
            ..RangeRequest::default()
        };
        let mut kept = Kept::default();
        for kv in self.shared.etcd.all(all).await.map_err(away)? {
            let Some(name) = name(&prefix, &kv.key) else {
                continue;
            };
            match name.parse() {
                Ok(n) => drop(kept.parts.insert(n, kv.value)),
                Err(_) => kept.head = kv.mod_revision,
            }
        }
        Ok(kept)
    }

    /// Writes what is not as it is on record.
    pub(super) async fn write_table(&self, term: u64, table: &Table) -> Result<(), TableError> {
        let parts = parts_of(table);
        fit(&parts)?;
        let mut kept = self.kept.lock().await;
        for _ in 0..TRIES {
            if kept.term != Some(term) {
                *kept = self.kept_now().await?;
                kept.term = Some(term);
            }
            if self.write_parts(term, &mut kept, &parts).await? {
                return Ok(());
            }
            // An answer was lost, and what was written is there.
            kept.term = None;
        }
        Err(TableError::Away("it changes all the time".to_owned()))
    }

    /// False if the head was another than is known.
    async fn write_parts(
        &self,
        term: u64,
        kept: &mut Kept,
        parts: &BTreeMap<u32, Vec<u8>>,
    ) -> Result<bool, TableError> {
        // The first part says whether all are in the others: it is the last to be written.
        let changed = (1..PARTS).chain([0]);
        let changed = changed.filter(|n| kept.parts.get(n) != parts.get(n));
        let mut changed = changed.collect::<Vec<_>>().into_iter();
        let mut next = changed.next();
        let mut first = kept.head == 0;
        while next.is_some() || first {
            first = false;
            let (mut some, mut bytes, mut ops) = (Vec::new(), 0, Vec::new());
            while let Some(n) = next.filter(|_| ops.len() < AT_ONCE) {
                let part = parts.get(&n);
                bytes += part.map_or(0, Vec::len);
                if bytes > BYTES && !ops.is_empty() {
                    break;
                }
                ops.push(self.put_part(n, part));
                some.push(n);
                next = changed.next();
            }
            // Until it is answered, nothing is known of it.
            kept.term = None;
            let Some(head) = self.write_head(term, kept.head, ops).await? else {
                return Ok(false);
            };
            (kept.term, kept.head) = (Some(term), head);
            for n in some {
                match parts.get(&n) {
                    Some(part) => drop(kept.parts.insert(n, part.clone())),
                    None => drop(kept.parts.remove(&n)),
                }
            }
        }
        Ok(true)
    }

    fn put_part(&self, n: u32, part: Option<&Vec<u8>>) -> RequestOp {
        let key = self.key(&format!("table/{n:04}"));
        match part {
            Some(part) => ops::put(key, part.clone(), 0),
            None => ops::delete(key),
        }
    }

    /// Gives etcd's revision of it, or nothing if the head was another.
    async fn write_head(
        &self,
        term: u64,
        known: i64,
        mut success: Vec<RequestOp>,
    ) -> Result<Option<i64>, TableError> {
        let head = self.key("table/head");
        success.push(ops::put(head.clone(), Vec::new(), 0));
        let txn = TxnRequest {
            compare: vec![self.in_term(term), ops::unchanged_since(head, known)],
            success,
            failure: vec![ops::get(self.shared.layout.leader())],
        };
        let answer = self
            .shared
            .etcd
            .txn(txn, Budget::SHORT)
            .await
            .map_err(away)?;
        if answer.succeeded {
            return Ok(Some(answer.header.map_or(0, |header| header.revision)));
        }
        let leader = ops::found(answer.responses.first()).map(|kv| kv.create_revision);
        match leader == i64::try_from(term).ok() {
            true => Ok(None),
            false => Err(Fenced.into()),
        }
    }
}

/// What etcd would refuse is refused here, by its name: who is on record stays so, and nobody new gets anything.
fn fit(parts: &BTreeMap<u32, Vec<u8>>) -> Result<(), TableError> {
    let most = BYTES;
    let bytes = parts.values().map(Vec::len).max().unwrap_or(0);
    match bytes <= most {
        true => Ok(()),
        false => Err(TableError::TooLarge { bytes, most }),
    }
}

fn away(error: CallError) -> TableError {
    TableError::Away(error.to_string())
}
