//! The writer's part in clients' keys: a change is made durable, then visible to sessions, then answered; and workers get the
//! seal keys before the first configuration that needs them.

use std::{sync::Arc, time::SystemTime};

use forebay_proto::wire;

use super::{KeyBook, KeyWrite, PLANS, PublishedKeys, WriteError, Writer};
use crate::store::{Change, Store, StoreError, history::Edit};

impl<S: Store> Writer<S> {
    /// Plans a change of keys, makes it durable, then visible.
    pub(super) fn serve_key(&mut self, write: &KeyWrite) -> Result<wire::Key, WriteError> {
        let mut planned = Err(StoreError::Conflict.into());
        for attempt in 0..PLANS {
            planned = self.plan_and_commit_key(write, attempt > 0);
            if !matches!(planned, Err(WriteError::Store(StoreError::Conflict))) {
                break;
            }
            self.metrics.replicas.conflicts.inc();
        }
        planned
    }

    fn plan_and_commit_key(
        &mut self,
        write: &KeyWrite,
        look: bool,
    ) -> Result<wire::Key, WriteError> {
        if let Err(error) = self.ready(look) {
            self.tell(&error);
            return Err(error.into());
        }
        let now = SystemTime::now();
        let planned = self.book.plan(write, now);
        let proven = matches!(&planned, Ok(planned) if planned.change.is_some());
        if !look && self.store.is_shared() && (!proven || write.validate_only) {
            return self.plan_and_commit_key(write, true);
        }
        let planned = planned?;
        let shown = |book: &KeyBook| book.show(&planned.record, now);
        let Some(change) = planned.change.filter(|_| !write.validate_only) else {
            return Ok(shown(&self.book));
        };
        let mut next = KeyBook::clone(&self.book);
        next.apply(&change);
        let next = Arc::new(next);
        let published = PublishedKeys::new(next.clone(), &self.vault, self.sealed);
        let published = published.map_err(WriteError::LimitReached)?;
        let timer = self.metrics.commit_seconds.start_timer();
        let committed = self.store.commit_keys(std::slice::from_ref(&change));
        timer.observe_duration();
        if let Err(error) = committed {
            self.failed(&error, 1);
            return Err(error.into());
        }
        self.trouble
            .send_if_modified(|trouble| trouble.take().is_some());
        self.book = next;
        self.keys.send_replace(Arc::new(published));
        let (key, version) = (planned.record.id, change.version);
        let (author, reason) = (&write.origin.author, &write.origin.reason);
        let method = write.command.method();
        tracing::info!(method, %key, version, author, reason, "write committed");
        Ok(shown(&self.book))
    }

    /// From the first credential on workers have the seal keys: told before the configuration that has it.
    pub(super) fn note_credentials(&mut self, changes: &[Change]) {
        let entries = changes.iter().filter_map(|change| change.entry.as_ref());
        let mut edits = entries.flat_map(|entry| &entry.edits);
        if !self.sealed && edits.any(Edit::has_credential) {
            self.sealed = true;
            self.publish_keys();
        }
    }

    pub(super) fn publish_keys(&self) {
        match PublishedKeys::new(self.book.clone(), &self.vault, self.sealed) {
            Ok(published) => drop(self.keys.send_replace(Arc::new(published))),
            // They fitted when they were written.
            Err(error) => tracing::error!(error, "clients' keys cannot be published"),
        }
    }
}
