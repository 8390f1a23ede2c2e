//! What a writer begins with: the store as it is read, and its newest revision as one of this version's making.

use std::{sync::Arc, time::SystemTime};

use super::{KeyBook, PLANS, Published, State, complete, publish};
use crate::store::{
    Change, Store, StoreError,
    history::{Edit, Entry, EntryKind, History, LogRecord, Past},
};

/// What a writer begins with.
pub(super) struct Begun {
    pub(super) first: Published,
    pub(super) book: Arc<KeyBook>,
    pub(super) past: Past,
    pub(super) sealed: bool,
}

/// Reads the store, and makes the newest revision one of this version's making.
pub(super) fn begin<S: Store>(store: &mut S) -> Result<Begun, String> {
    for _ in 0..PLANS {
        let mut stored = store.load().map_err(|error| error.to_string())?;
        let book = KeyBook::new(stored.epoch.clone(), std::mem::take(&mut stored.keys));
        let mut state = State::new(stored);
        let mut past = store.past().map_err(|error| error.to_string())?;
        let mut first = publish(&Arc::new(state.clone()), String::new())?;
        // A number stands for one content, and workers hold what another version made of it.
        if past
            .digest()
            .is_some_and(|known| known != first.position.digest)
        {
            let change = upgrade(&state, &mut past, SystemTime::now())?;
            match store.commit(std::slice::from_ref(&change)) {
                Ok(()) => {}
                Err(StoreError::Conflict) => continue,
                Err(error) => return Err(error.to_string()),
            }
            state.apply(change);
            first = publish(&Arc::new(state), String::new())?;
        }
        let sealed = first.state.has_credentials() || had_credentials(&*store.history(), &first);
        return Ok(Begun {
            first,
            book: Arc::new(book),
            past,
            sealed,
        });
    }
    Err(StoreError::Conflict.to_string())
}

/// There was a credential, as far back as is known: a worker may hold that revision, because the newest one is soaking
/// elsewhere or was refused, and needs the seal keys for as long as it does.
fn had_credentials(history: &dyn History, newest: &Published) -> bool {
    let newest = newest.position.revision;
    let earliest = history.earliest();
    let mut edits = earliest.map(|earliest| history.edits(earliest, newest));
    // What cannot be read may have some: to tell workers of keys that they do not need is no harm.
    let known =
        |edit: Result<_, _>| edit.map_or(true, |(_, edit): (_, Edit)| edit.knows_credential());
    edits.as_mut().map_or(true, |edits| edits.any(known))
}

/// The same content under the next number, because this version makes another configuration of it.
fn upgrade(state: &State, past: &mut Past, now: SystemTime) -> Result<Change, String> {
    let revision = state.revision().next();
    let mut log = LogRecord::of(&[], revision, now);
    log.method = "Upgrade".to_owned();
    log.origin.reason = "this version fills in what is inherited differently".to_owned();
    let mut change = Change {
        revision,
        entry: Some(Entry {
            log,
            edits: Vec::new(),
            kind: EntryKind::Undoable,
            forget: Vec::new(),
        }),
        idem: None,
        forget_idem: Vec::new(),
    };
    let mut next = state.clone();
    next.apply(change.clone());
    let published = publish(&Arc::new(next), String::new())?;
    *past = complete(std::slice::from_mut(&mut change), past, &published);
    Ok(change)
}
