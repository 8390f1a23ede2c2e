//! The writer: what is answered, what is visible, and a store that fails under it.

use forebay_proto::Revision;
use prometheus::Registry;

use super::*;
use crate::{metrics::Metrics, secrets::Vault, store::memory::Next};

fn running(store: MemoryStore) -> RegistryHandle {
    let metrics = Arc::new(Metrics::new(&Registry::new()).unwrap());
    start(store, metrics, Vault::throwaway()).unwrap().0
}

#[tokio::test]
async fn writes_are_visible_when_they_are_answered() {
    let registry = running(MemoryStore::fresh());
    let writes = (0..100).map(|n| {
        let registry = registry.clone();
        async move {
            let id = format!("m{n}");
            let answer = registry.write(write(Command::Create(model(&id)))).await;
            let visible = registry.published();
            assert!(visible.state.model(&id).is_some());
            expect_model(answer).revision
        }
    });
    let mut tasks = tokio::task::JoinSet::new();
    writes.for_each(|write| drop(tasks.spawn(write)));
    let mut revisions = tasks.join_all().await;
    revisions.sort_unstable();
    assert_eq!(
        revisions,
        (2..102).collect::<Vec<_>>(),
        "each its own revision"
    );
}

#[tokio::test]
async fn what_is_not_durable_is_neither_acknowledged_nor_visible() {
    let store = MemoryStore::fresh();
    let next = store.next.clone();
    let registry = running(store);
    for (n, (failure, there)) in [
        (Next::NotCommitted, false),
        (Next::UnknownLost, false),
        (Next::UnknownWritten, true),
    ]
    .into_iter()
    .enumerate()
    {
        *next.lock() = failure;
        let id = format!("m{n}");
        let before = registry.published().position.revision;
        let error = refused(registry.write(write(Command::Create(model(&id)))).await);
        assert!(
            error.contains(if n == 0 { "not committed" } else { "unknown" }),
            "{error}"
        );
        assert_eq!(registry.published().position.revision, before);
        // The next write is served on what the store really holds.
        registry
            .write(write(Command::Create(model(&format!("after{n}")))))
            .await
            .unwrap();
        assert_eq!(
            registry.published().state.model(&id).is_some(),
            there,
            "{failure:?}"
        );
    }
    assert_eq!(registry.published().position.revision, Revision::new(5));
}
