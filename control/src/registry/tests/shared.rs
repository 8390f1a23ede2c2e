//! Two writers on one store: one order of revisions, whoever writes, and each has what the other wrote.

use forebay_proto::Revision;
use parking_lot::Mutex;
use prometheus::Registry;

use super::*;
use crate::{
    metrics::Metrics,
    registry::WriterThread,
    secrets::Vault,
    store::{
        Change, News, Store, StoreError, Stored,
        history::{History, Past},
        keys::KeyChange,
        memory::Next,
    },
};

/// What several have in common.
struct Common {
    store: MemoryStore,
    log: Vec<Change>,
    key_versions: u64,
    /// So many commits meet somebody else's that is not there.
    conflicts: u32,
    /// How often somebody looked what is new.
    looks: u32,
    /// Nobody answers who looks.
    away: bool,
    /// How many edits each commit had.
    sizes: Vec<usize>,
}

/// One's way to it: how much of it is known.
struct Way {
    common: Arc<Mutex<Common>>,
    known: usize,
    keys: u64,
}

impl Way {
    fn two(store: MemoryStore) -> (Self, Self) {
        let common = Arc::new(Mutex::new(Common {
            store,
            log: Vec::new(),
            key_versions: 0,
            conflicts: 0,
            looks: 0,
            away: false,
            sizes: Vec::new(),
        }));
        let way = || Self {
            common: common.clone(),
            known: 0,
            keys: 0,
        };
        (way(), way())
    }
}

impl Store for Way {
    fn load(&mut self) -> Result<Stored, StoreError> {
        let mut common = self.common.lock();
        (self.known, self.keys) = (common.log.len(), common.key_versions);
        common.store.load()
    }

    fn past(&mut self) -> Result<Past, StoreError> {
        self.common.lock().store.past()
    }

    fn history(&self) -> Arc<dyn History> {
        self.common.lock().store.history()
    }

    fn commit(&mut self, changes: &[Change]) -> Result<(), StoreError> {
        let mut common = self.common.lock();
        if common.conflicts > 0 {
            common.conflicts -= 1;
            return Err(StoreError::Conflict);
        }
        if self.known != common.log.len() {
            return Err(StoreError::Conflict);
        }
        let entries = changes.iter().flat_map(|change| &change.entry);
        let edits = entries.map(|entry| entry.edits.len()).sum();
        common.sizes.push(edits);
        let result = common.store.commit(changes);
        if common.store.load().unwrap().revision >= changes.last().unwrap().revision {
            common.log.extend_from_slice(changes);
        }
        if result.is_ok() {
            self.known = common.log.len();
        }
        result
    }

    fn commit_keys(&mut self, changes: &[KeyChange]) -> Result<(), StoreError> {
        let mut common = self.common.lock();
        if self.keys != common.key_versions {
            return Err(StoreError::Conflict);
        }
        common.store.commit_keys(changes)?;
        common.key_versions += 1;
        self.keys = common.key_versions;
        Ok(())
    }

    fn is_shared(&self) -> bool {
        true
    }

    fn news(&mut self) -> Result<News, StoreError> {
        let mut common = self.common.lock();
        common.looks += 1;
        if common.away {
            return Err(StoreError::NotCommitted("away".to_owned()));
        }
        let changes = common.log[self.known..].to_vec();
        let keys = match self.keys == common.key_versions {
            true => None,
            false => Some(common.store.load()?.keys),
        };
        (self.known, self.keys) = (common.log.len(), common.key_versions);
        Ok(match (changes.is_empty(), &keys) {
            (true, None) => News::Nothing,
            _ => News::Since { changes, keys },
        })
    }
}

fn running(store: impl Store) -> (RegistryHandle, WriterThread) {
    let metrics = Arc::new(Metrics::new(&Registry::new()).unwrap());
    start(store, metrics, Vault::throwaway()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn two_writers_make_one_order_without_gaps() {
    let (one, two) = Way::two(MemoryStore::fresh());
    let (one, two) = (running(one).0, running(two).0);
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..200 {
        let registry = if n % 2 == 0 { one.clone() } else { two.clone() };
        tasks.spawn(async move {
            let create = write(Command::Create(model(&format!("m{n}"))));
            expect_model(registry.write(create).await).revision
        });
    }
    let mut revisions = tasks.join_all().await;
    revisions.sort_unstable();
    assert_eq!(revisions, (2..202).collect::<Vec<_>>());
    for registry in [&one, &two] {
        registry.follow().await.unwrap();
    }
    let (one, two) = (one.published(), two.published());
    assert_eq!(one.position, two.position, "and with it the digest");
    assert_eq!(one.state.stored(), two.state.stored());
}

#[tokio::test]
async fn a_write_is_planned_on_what_others_wrote() {
    let (one, two) = Way::two(MemoryStore::fresh());
    let (one, two) = (running(one).0, running(two).0);
    let first = expect_model(one.write(write(Command::Create(model("a")))).await);
    let error = refused(two.write(write(Command::Create(model("a")))).await);
    assert!(error.contains("already a name"), "{error}");
    let mut stale = model("a");
    stale.etag.clone_from(&first.etag);
    let mut wider = stale.clone();
    wider.aliases = vec!["b".into()];
    expect_model(two.write(update(wider, None)).await);
    let error = refused(one.write(update(stale, None)).await);
    assert!(error.contains("is not the current one"), "{error}");
    // What one answered to a request the other knows, too.
    let request = Write {
        request_id: Some(("id".into(), vec![1])),
        ..write(Command::Create(model("c")))
    };
    let answer = expect_model(one.write(request.clone()).await);
    assert_eq!(expect_model(two.write(request).await), answer);
    assert_eq!(two.published().position.revision, Revision::new(4));
}

#[tokio::test]
async fn who_always_meets_another_gives_up_and_says_so() {
    let (one, two) = Way::two(MemoryStore::fresh());
    let common = one.common.clone();
    let (one, _two) = (running(one).0, running(two).0);
    common.lock().conflicts = 3;
    expect_model(one.write(write(Command::Create(model("a")))).await);
    common.lock().conflicts = u32::MAX;
    let error = refused(one.write(write(Command::Create(model("b")))).await);
    assert!(
        error.contains("other control planes write all the time"),
        "{error}"
    );
    assert!(
        one.trouble().borrow().is_none(),
        "which is no trouble of the store"
    );
    common.lock().conflicts = 0;
    expect_model(one.write(write(Command::Create(model("b")))).await);
}

#[tokio::test]
async fn after_an_answer_that_was_lost_the_store_says_what_is_there() {
    for (fate, there) in [(Next::UnknownWritten, true), (Next::UnknownLost, false)] {
        let store = MemoryStore::fresh();
        let next = store.next.clone();
        let (one, two) = Way::two(store);
        let (one, two) = (running(one).0, running(two).0);
        *next.lock() = fate;
        let error = refused(one.write(write(Command::Create(model("a")))).await);
        assert!(error.contains("unknown"), "{error}");
        for registry in [&two, &one] {
            registry.follow().await.unwrap();
            assert_eq!(
                registry.published().state.model("a").is_some(),
                there,
                "{fate:?}"
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn those_who_wait_for_what_is_new_share_one_look() {
    let (one, two) = Way::two(MemoryStore::fresh());
    let common = one.common.clone();
    let (one, _two) = (running(one).0, running(two).0);
    for away in [false, true] {
        let mut asked = tokio::task::JoinSet::new();
        let before = {
            let mut common = common.lock();
            common.away = away;
            let ask = |registry: RegistryHandle| async move { registry.follow().await };
            let mut asking: Vec<_> = (0..100).map(|_| Box::pin(ask(one.clone()))).collect();
            // They wait in the order in which they ask, while the store is held.
            for asking in &mut asking {
                assert!(at_once(asking.as_mut()).is_none());
            }
            // Half of them go away.
            for asking in asking.into_iter().step_by(2) {
                asked.spawn(asking);
            }
            common.looks
        };
        for answer in asked.join_all().await {
            assert_eq!(answer.is_err(), away);
        }
        let looks = common.lock().looks - before;
        assert!(looks <= 2, "{looks} looks, for 100 who asked");
    }
}

/// What is ready at once.
fn at_once<F: Future>(future: std::pin::Pin<&mut F>) -> Option<F::Output> {
    let waker = std::task::Waker::noop();
    match future.poll(&mut std::task::Context::from_waker(waker)) {
        std::task::Poll::Ready(ready) => Some(ready),
        std::task::Poll::Pending => None,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn large_writes_that_wait_together_are_committed_in_several() {
    let (one, two) = Way::two(MemoryStore::fresh());
    let common = one.common.clone();
    let (one, _two) = (running(one).0, running(two).0);
    let mut writes: Vec<_> = (0..8)
        .map(|n| {
            let models = (0..1_000).map(|m| Command::Create(model(&format!("m{n}-{m}"))));
            let batch = write(Command::Batch {
                items: models.collect(),
                allow_missing_fallbacks: false,
            });
            let registry = one.clone();
            Box::pin(async move { registry.write(batch).await })
        })
        .collect();
    {
        let _held = common.lock();
        for write in &mut writes {
            assert!(at_once(write.as_mut()).is_none());
        }
    }
    for write in writes {
        write.await.unwrap();
    }
    let sizes = common.lock().sizes.clone();
    assert!(sizes.iter().all(|edits| *edits <= 5_000), "{sizes:?}");
    assert_eq!(sizes.iter().sum::<usize>(), 8_000);
}
