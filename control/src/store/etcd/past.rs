//! The history as etcd keeps it, for reading, page by page. What is there of one entry is all of it, but an entry may go
//! while another is read.

use std::{collections::VecDeque, sync::Arc};

use forebay_proto::Revision;
use prost::Message as _;
use tokio::runtime::Handle;

use super::{
    layout::{Head, Layout, revision_of},
    read::{read_edit, read_log},
};
use crate::{
    etcd::{
        Budget, CallError, Etcd,
        api::{KeyValue, RangeRequest, range_request::SortOrder},
    },
    store::history::{Edit, Edits, History, Kept, LogRecord, Past, Unreadable},
};

/// Reads it.
#[derive(Debug, Clone)]
pub(super) struct EtcdHistory {
    pub(super) etcd: Arc<Etcd>,
    pub(super) runtime: Handle,
    pub(super) layout: Layout,
}

fn unreadable(error: CallError) -> Unreadable {
    Unreadable(super::away(&error))
}

impl EtcdHistory {
    /// What is known of it up to this revision.
    pub(super) fn past(&self, earliest: Revision, to: Revision) -> Result<Past, Unreadable> {
        let range = RangeRequest {
            key: self.layout.log(Revision::ZERO),
            range_end: self.layout.log(to.next()),
            ..RangeRequest::default()
        };
        let entries = self
            .runtime
            .block_on(self.etcd.all(range))
            .map_err(unreadable)?;
        let mut kept = Vec::with_capacity(entries.len());
        let mut digest = None;
        for kv in &entries {
            let log = read_log(&self.layout, kv).map_err(Unreadable)?;
            kept.push(Kept {
                revision: log.revision,
                edits: log.edits,
                bytes: log.bytes,
            });
            digest = log.digest;
        }
        Ok(Past::new(earliest, kept, digest))
    }

    fn one(&self, key: Vec<u8>) -> Result<Option<KeyValue>, Unreadable> {
        let range = RangeRequest {
            key,
            ..RangeRequest::default()
        };
        let found = self.runtime.block_on(self.etcd.range(range, Budget::READ));
        Ok(found.map_err(unreadable)?.kvs.into_iter().next())
    }
}

impl History for EtcdHistory {
    fn earliest(&self) -> Result<Revision, Unreadable> {
        let head = self.one(self.layout.head())?;
        let head = head.and_then(|kv| Head::decode(kv.value.as_slice()).ok());
        let head = head.ok_or_else(|| Unreadable("the head is gone".to_owned()))?;
        Ok(Revision::new(head.earliest))
    }

    fn entry(&self, revision: Revision) -> Result<Option<LogRecord>, Unreadable> {
        let found = self.one(self.layout.log(revision))?;
        found
            .map(|kv| read_log(&self.layout, &kv).map_err(Unreadable))
            .transpose()
    }

    fn entries(&self, from: Revision, most: usize) -> Result<Vec<LogRecord>, Unreadable> {
        let mut found = Vec::new();
        let mut end = self.layout.log(from.next());
        while found.len() < most {
            let range = RangeRequest {
                key: self.layout.log(Revision::ZERO),
                range_end: end.clone(),
                limit: i64::try_from(most - found.len()).unwrap_or(i64::MAX),
                sort_order: SortOrder::Descend.into(),
                ..RangeRequest::default()
            };
            let page = self.runtime.block_on(self.etcd.page(range, Budget::READ));
            let (page, next) = page.map_err(unreadable)?;
            for kv in &page {
                found.push(read_log(&self.layout, kv).map_err(Unreadable)?);
            }
            match (page.last(), next) {
                (Some(last), Some(_)) => end.clone_from(&last.key),
                _ => break,
            }
        }
        Ok(found)
    }

    fn edits(&self, after: Revision, to: Revision) -> Edits<'_> {
        if after >= to {
            return Box::new(std::iter::empty());
        }
        Box::new(Pages {
            history: self,
            next: Some(self.layout.edits(after.next())),
            end: self.layout.edits(to.next()),
            page: VecDeque::new(),
        })
    }
}

/// Edits, of which a page is held at a time.
struct Pages<'a> {
    history: &'a EtcdHistory,
    next: Option<Vec<u8>>,
    end: Vec<u8>,
    page: VecDeque<KeyValue>,
}

impl Iterator for Pages<'_> {
    type Item = Result<(Revision, Edit), Unreadable>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.page.is_empty() {
            let range = RangeRequest {
                key: self.next.take()?,
                range_end: self.end.clone(),
                ..RangeRequest::default()
            };
            let EtcdHistory { runtime, etcd, .. } = self.history;
            match runtime.block_on(etcd.page(range, Budget::READ)) {
                Ok((page, next)) => (self.page, self.next) = (page.into(), next),
                Err(error) => return Some(Err(unreadable(error))),
            }
        }
        let kv = self.page.pop_front()?;
        let revision = revision_of(&self.history.layout, "edit/", &kv.key);
        let revision = revision.ok_or_else(|| Unreadable("an edit has no number".to_owned()));
        Some(revision.and_then(|revision| {
            let edit = read_edit(&kv).map_err(Unreadable)?;
            Ok((revision, edit))
        }))
    }
}
