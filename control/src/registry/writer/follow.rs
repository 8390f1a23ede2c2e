//! The writer's part in what it did not write itself: what the store holds after a commit of unknown fate, and what other
//! control planes wrote to a store that they share. What comes so is published as what is written here is, and by nobody
//! else, so that within this process there is one order.

use std::{sync::Arc, time::SystemTime};

use tokio::sync::mpsc;

use super::{Asked, Asker, KeyBook, Published, State, WriteError, Writer, publish};
use crate::store::{Change, News, Store, StoreError, Stored, history::Past, keys::StoredKeys};

impl<S: Store> Writer<S> {
    /// Answers everybody who waits to have what is new, and is next, with one look: it is later than what each asked. Who
    /// went away is not looked for. After a look that failed, those who came meanwhile hear so, too, and what waits behind
    /// them does not wait for one deadline after another. Gives what is to be served next, if it was taken.
    pub(super) fn serve_follows(
        &mut self,
        first: Asker,
        waiting: &mut mpsc::Receiver<Asked>,
    ) -> Option<Asked> {
        let mut askers = vec![first];
        let mut next = take_askers(&mut askers, waiting);
        askers.retain(|asker| !asker.is_closed());
        if askers.is_empty() {
            return next;
        }
        let followed = self.up_to_date().map_err(WriteError::from);
        if followed.is_err() && next.is_none() {
            next = take_askers(&mut askers, waiting);
        }
        for asker in askers {
            drop(asker.send(followed.clone()));
        }
        next
    }

    /// Makes sure that this is what the store holds, as far as is known; or as it is, if it is to be looked up.
    pub(super) fn ready(&mut self, look: bool) -> Result<(), StoreError> {
        match look || self.must_reload {
            true => self.up_to_date(),
            false => Ok(()),
        }
    }

    /// Makes sure that this is what the store holds.
    pub(super) fn up_to_date(&mut self) -> Result<(), StoreError> {
        if self.must_reload {
            let stored = self.store.load()?;
            self.take_whole(stored)?;
            self.must_reload = false;
            self.trouble.send_replace(None);
        }
        match self.store.news()? {
            News::Nothing => Ok(()),
            News::Since { changes, keys } => self.take_changes(changes, keys),
            News::Whole(stored) => {
                self.metrics.replicas.resyncs.inc();
                tracing::warn!(revision = %stored.revision, "the whole registry was read again");
                self.take_whole(*stored)
            }
        }
    }

    /// A commit failed. Of a store that is shared it is no trouble of this process: it goes on with what it has.
    pub(super) fn failed(&mut self, error: &StoreError, writes: usize) {
        self.must_reload |= matches!(error, StoreError::Unknown(_));
        self.tell(error);
        match error {
            StoreError::Conflict => tracing::debug!(writes, "others wrote first, planned anew"),
            error => tracing::error!(%error, writes, "commit failed"),
        }
    }

    pub(super) fn tell(&self, error: &StoreError) {
        if !self.store.is_shared() {
            self.trouble.send_replace(Some(error.to_string()));
        }
    }

    fn take_whole(&mut self, mut stored: Stored) -> Result<(), StoreError> {
        let keys = std::mem::take(&mut stored.keys);
        let book = KeyBook::new(stored.epoch.clone(), keys);
        let state = Arc::new(State::new(stored));
        let past = self.store.past()?;
        let published = publish(&state, String::new()).map_err(StoreError::NotCommitted)?;
        let sealed = self.sealed || state.has_credentials();
        let same_keys = book.version() == self.book.version() && book.epoch() == self.book.epoch();
        if !same_keys || sealed != self.sealed {
            (self.book, self.sealed) = (Arc::new(book), sealed);
            self.publish_keys();
        }
        self.take_over(state, past, published);
        Ok(())
    }

    fn take_changes(
        &mut self,
        changes: Vec<Change>,
        keys: Option<StoredKeys>,
    ) -> Result<(), StoreError> {
        if let Some(keys) = keys {
            self.book = Arc::new(KeyBook::new(self.state.epoch().clone(), keys));
            self.publish_keys();
        }
        if changes.is_empty() {
            return Ok(());
        }
        self.note_credentials(&changes);
        let mut next = State::clone(&self.state);
        let mut past = self.past.clone();
        for change in changes {
            if let Some(entry) = &change.entry {
                // What its writer forgot is forgotten here by the same rule.
                past.add(&entry.log, entry.kind);
            }
            next.apply(change);
        }
        next.forget_answers(SystemTime::now());
        let next = Arc::new(next);
        let published = publish(&next, String::new()).map_err(StoreError::NotCommitted)?;
        self.take_over(next, past, published);
        Ok(())
    }

    fn take_over(&mut self, state: Arc<State>, past: Past, published: Published) {
        let position = &published.position;
        let other = past.digest().is_some_and(|known| known != position.digest);
        self.metrics.history(past.size());
        if other {
            // Another version fills in what is inherited differently. Under this number workers of other control planes
            // run its content, so those of this one keep what they have until somebody writes here.
            tracing::error!(
                revision = %position.revision,
                "a control plane of another version makes another configuration of it; it is not offered from here: \
                 bring all control planes to one version"
            );
        } else if *position != self.published.borrow().position {
            tracing::info!(revision = %position.revision, "revision of another control plane");
            self.published.send_replace(Arc::new(published));
        }
        self.state = state;
        self.past = past;
    }
}

/// Takes those who are next and want to have what is new. Gives the first who wants something else.
fn take_askers(askers: &mut Vec<Asker>, waiting: &mut mpsc::Receiver<Asked>) -> Option<Asked> {
    while let Ok(asked) = waiting.try_recv() {
        match asked {
            Asked::Follow(asker) => askers.push(asker),
            other => return Some(other),
        }
    }
    None
}
