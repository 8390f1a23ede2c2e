//! Batches, the way back, and what differs between revisions.

use std::collections::BTreeMap;

use forebay_proto::Revision;

use super::*;
use crate::{
    metrics::Metrics,
    registry::state::Undo,
    secrets::Vault,
    store::{
        SledStore,
        history::{Edit, Target},
    },
};

fn batch(items: Vec<Command>) -> Write {
    write(Command::Batch {
        items,
        allow_missing_fallbacks: false,
    })
}

fn put(model: wire::Model) -> Command {
    Command::Update {
        model,
        mask: Some(vec!["*".into()]),
        allow_missing: true,
    }
}

fn aliased(id: &str, aliases: &[&str]) -> wire::Model {
    wire::Model {
        aliases: aliases.iter().map(ToString::to_string).collect(),
        ..model(id)
    }
}

fn remove(id: &str) -> Command {
    delete(id).command
}

fn rollback(to: u64, expected: Option<u64>) -> Write {
    write(Command::Rollback {
        to: Revision::new(to),
        expected: expected.map(Revision::new),
        content: None,
    })
}

fn counts(answer: Result<Answer, WriteError>) -> (u64, [u32; 4]) {
    match answer {
        Ok(Answer::Batch(batch, _)) => (
            batch.revision,
            [batch.created, batch.updated, batch.deleted, batch.unchanged],
        ),
        other => panic!("{other:?}"),
    }
}

fn ids(state: &State) -> Vec<String> {
    let (models, _) = state.page(None, 1_000);
    models.into_iter().map(|model| model.id).collect()
}

#[test]
fn a_batch_is_one_revision_or_none() {
    let mut bench = Bench::new();
    bench.create(model("old"));
    bench.create(model("same"));
    let write = batch(vec![
        Command::Create(model("new")),
        put(sized("old", 9)),
        put(model("same")),
    ]);
    assert_eq!(counts(bench.make(&write)), (4, [1, 1, 0, 1]));
    assert_eq!(bench.revision(), 4);
    assert_eq!(ids(&bench.state), ["new", "old", "same"]);
    for id in ["new", "old"] {
        assert_eq!(bench.state.model(id).unwrap().revision, 4, "{id}");
    }
    assert_eq!(bench.state.model("same").unwrap().revision, 3);

    let broken = batch(vec![
        remove("new"),
        Command::Create(model("old")),
        remove("same"),
    ]);
    let error = refused(bench.make(&broken));
    assert!(error.contains("items[1].create.model.id"), "{error}");
    assert_eq!((bench.revision(), ids(&bench.state).len()), (4, 3));
}

#[test]
fn all_that_is_wrong_with_a_batch_is_told_at_once_and_where() {
    let mut bench = Bench::new();
    let bad = batch(vec![
        Command::Create(sized("a", 0)),
        Command::Create(model("b")),
        Command::Create(model("b c")),
    ]);
    let error = refused(bench.make(&bad));
    for part in [
        "items[0].create.model.pool.max_concurrent",
        "items[2].create.model.id",
    ] {
        assert!(error.contains(part), "{part}: {error}");
    }
    let missing = refused(bench.make(&batch(vec![Command::Create(model("b")), remove("gone")])));
    assert!(
        missing.starts_with("items[1].delete: model `gone`"),
        "{missing}"
    );
    let twice = batch(vec![Command::Create(model("b")), remove("b")]);
    let error = refused(bench.make(&twice));
    assert!(
        error.contains("items[1].delete: is of the same model as items[0]"),
        "{error}"
    );
    let none = refused(bench.make(&batch(Vec::new())));
    assert!(none.contains("1 to 1000"), "{none}");
    let many = (0..1_001).map(|n| Command::Create(model(&format!("m{n}"))));
    let many = refused(bench.make(&batch(many.collect())));
    assert!(many.contains("1001 changes"), "{many}");
    assert_eq!(bench.revision(), 1);
}

#[test]
fn names_may_move_within_a_batch_in_any_order() {
    for forward in [true, false] {
        let mut bench = Bench::new();
        bench.create(aliased("a", &["x"]));
        bench.create(aliased("b", &["y"]));
        bench.create(aliased("c", &[]));
        let mut items = vec![
            put(aliased("a", &["y", "c"])),
            put(aliased("b", &["x"])),
            remove("c"),
        ];
        if !forward {
            items.reverse();
        }
        assert_eq!(counts(bench.make(&batch(items))), (5, [0, 2, 1, 0]));
        for (name, owner) in [("x", "b"), ("y", "a"), ("c", "a")] {
            let error = refused(bench.make(&write(Command::Create(model(name)))));
            assert!(error.contains(&format!("of model `{owner}`")), "{error}");
        }
    }
}

/// What was exported after a model that stands in was deleted is written again, if the batch says so.
#[test]
fn a_batch_may_name_fallbacks_that_are_gone() {
    let falls_back = |to: &str| wire::Model {
        fallbacks: vec![to.into()],
        ..model("a")
    };
    let mut bench = Bench::new();
    let error = refused(bench.make(&batch(vec![put(falls_back("gone"))])));
    assert!(
        error.contains("items[0].update.model.fallbacks[0]: `gone` is not registered"),
        "{error}"
    );
    assert!(error.contains("allow_missing_fallbacks"), "{error}");
    let again = |to: &str| {
        write(Command::Batch {
            items: vec![put(falls_back(to))],
            allow_missing_fallbacks: true,
        })
    };
    assert_eq!(counts(bench.make(&again("gone"))), (2, [1, 0, 0, 0]));
    assert_eq!(counts(bench.make(&again("gone"))), (2, [0, 0, 0, 1]));
    // That of itself is never right.
    let error = refused(bench.make(&again("a")));
    assert!(error.contains("is this model itself"), "{error}");
}

#[test]
fn a_name_that_two_of_a_batch_want_or_another_keeps_is_refused() {
    let mut bench = Bench::new();
    bench.create(aliased("other", &["kept"]));
    for (items, part) in [
        (
            vec![put(aliased("a", &["x"])), put(aliased("b", &["x"]))],
            "items[1].update.model.aliases[0]: `x` is already a name of model `a`",
        ),
        (
            vec![put(aliased("a", &["b"])), put(model("b"))],
            "items[1].update.model.id: `b` is already a name of model `a`",
        ),
        (
            vec![put(aliased("a", &["kept"]))],
            "items[0].update.model.aliases[0]: `kept` is already a name of model `other`",
        ),
    ] {
        let error = refused(bench.make(&batch(items)));
        assert!(error.contains(part), "{error}");
    }
}

#[test]
fn a_batch_that_changes_nothing_makes_no_revision_and_a_trial_none_either() {
    let mut bench = Bench::new();
    bench.create(model("a"));
    let idle = batch(vec![put(model("a"))]);
    assert_eq!(counts(bench.make(&idle)), (2, [0, 0, 0, 1]));
    let trial = Write {
        validate_only: true,
        ..batch(vec![put(model("b"))])
    };
    assert_eq!(counts(bench.make(&trial)), (2, [1, 0, 0, 0]));
    assert_eq!(bench.revision(), 2);
}

#[test]
fn a_repeated_batch_or_rollback_is_answered_as_before() {
    let mut bench = Bench::new();
    bench.create(model("a"));
    let named = |write: Write, id: &str| Write {
        request_id: Some((id.into(), vec![1])),
        ..write
    };
    let first = named(batch(vec![put(model("b"))]), "r1");
    let answer = counts(bench.make(&first));
    bench.make(&delete("a")).unwrap();
    assert_eq!(counts(bench.make(&first)), answer);
    let back = named(rollback(2, None), "r2");
    let Ok(Answer::RolledBack(answer, _)) = bench.make(&back) else {
        panic!();
    };
    assert_eq!((answer.revision, answer.changed), (5, 2));
    bench.make(&delete("a")).unwrap();
    bench.state = State::new(bench.store.load().unwrap());
    let Ok(Answer::RolledBack(again, _)) = bench.make(&back) else {
        panic!();
    };
    assert_eq!(again, answer);
    assert_eq!(bench.revision(), 6);
}

#[test]
fn a_rollback_is_a_new_revision_with_old_content() {
    let mut bench = Bench::new();
    let created = bench.create(sized("kept", 5));
    bench.create(model("later"));
    bench.make(&update(sized("kept", 7), None)).unwrap();
    let settings = wire::PoolDefaults {
        max_concurrent: Some(60),
        ..wire::PoolDefaults::default()
    };
    let mask = None;
    bench
        .make(&write(Command::UpdateSettings { settings, mask }))
        .unwrap();
    let back = Write {
        origin: Origin {
            author: "ada".into(),
            reason: "it was better".into(),
        },
        ..rollback(2, Some(5))
    };
    bench.make(&back).unwrap();
    assert_eq!(ids(&bench.state), ["kept"]);
    let kept = bench.state.model("kept").unwrap();
    assert_eq!(kept.pool.unwrap().max_concurrent, Some(5));
    assert_eq!((kept.revision, kept.create_time), (6, created.create_time));
    assert_eq!(bench.state.settings().max_concurrent, Some(50));
    let entry = bench
        .store
        .history()
        .entry(Revision::new(6))
        .unwrap()
        .unwrap();
    assert_eq!(entry.rolled_back_to, Some(Revision::new(2)));
    assert_eq!(entry.targets, ["pool settings", "kept", "later"]);
    assert_eq!(entry.origin, back.origin);
    assert_eq!(entry.method, "RollbackRevision");

    // And back again.
    bench.make(&rollback(5, None)).unwrap();
    assert_eq!(ids(&bench.state), ["kept", "later"]);
    assert_eq!(bench.state.settings().max_concurrent, Some(60));
    assert_eq!(bench.revision(), 7);
}

#[test]
fn a_rollback_to_what_is_there_or_is_not_is_told() {
    let mut bench = Bench::new();
    bench.create(model("a"));
    bench.make(&delete("a")).unwrap();
    let Ok(Answer::RolledBack(answer, _)) = bench.make(&rollback(1, None)) else {
        panic!();
    };
    assert_eq!((answer.revision, answer.changed), (3, 0));
    let ahead = refused(bench.make(&rollback(4, None)));
    assert!(
        ahead.contains("revision 4 does not exist yet; the newest is 3"),
        "{ahead}"
    );
    let moved = refused(bench.make(&rollback(2, Some(2))));
    assert!(moved.contains("the newest revision is 3, not 2"), "{moved}");
    let zero = refused(bench.make(&rollback(0, None)));
    assert!(
        zero.contains("the earliest that can be gone back to is 1"),
        "{zero}"
    );
}

/// What a revision is, but for its number.
fn content(state: &State) -> (BTreeMap<String, wire::Model>, wire::PoolDefaults) {
    let (models, _) = state.page(None, 1_000);
    let models = models.into_iter().map(|model| (model.id.clone(), model));
    (models.collect(), state.settings())
}

fn without_revisions(
    (models, settings): (BTreeMap<String, wire::Model>, wire::PoolDefaults),
) -> (Vec<wire::Model>, wire::PoolDefaults) {
    let models = models.into_values().map(|model| wire::Model {
        etag: String::new(),
        revision: 0,
        create_time: None,
        update_time: None,
        ..model
    });
    let settings = wire::PoolDefaults {
        etag: String::new(),
        revision: 0,
        update_time: None,
        ..settings
    };
    (models.collect(), settings)
}

fn any_command() -> impl Strategy<Value = Command> {
    let items = prop::collection::vec(command(), 1..5).prop_map(|items| {
        let of_models = items
            .into_iter()
            .filter(|item| !matches!(item, Command::UpdateSettings { .. }));
        batch(of_models.collect()).command
    });
    prop_oneof![
        3 => command(),
        2 => items,
        1 => (1_u64..30).prop_map(|to| Command::Rollback { to: Revision::new(to), expected: None, content: None }),
    ]
}

proptest! {
    /// Whatever happened since: each earlier revision can be seen as it was, byte for byte as workers got it, and
    /// gone back to.
    #[test]
    fn every_revision_can_be_seen_and_gone_back_to(commands in prop::collection::vec(any_command(), 1..25)) {
        let mut bench = Bench::new();
        let mut seen = vec![(bench.state.config().unwrap().encode(), content(&bench.state))];
        for command in commands {
            let before = bench.revision();
            let _ = bench.make(&write(command));
            let config = (bench.state.config().unwrap().encode(), content(&bench.state));
            match bench.revision() - before {
                0 => prop_assert_eq!(seen.last(), Some(&config)),
                1 => seen.push(config),
                _ => prop_assert!(false, "more than one revision"),
            }
            let reloaded = State::new(bench.store.load().unwrap());
            prop_assert_eq!(reloaded.bytes(), bench.state.bytes());
        }
        let newest = bench.state.revision();
        for (n, (config, content_then)) in seen.iter().enumerate() {
            let to = Revision::new(n as u64 + 1);
            let undo = Undo::read(&*bench.store.history(), to, newest).unwrap();
            let state = bench.state.undone(&undo);
            prop_assert_eq!(&state.config().unwrap().encode(), config);
            prop_assert_eq!(&content(&state), content_then);
            prop_assert_eq!(state.bytes(), State::new(state.stored()).bytes());
        }
        for (n, (_, content_then)) in seen.iter().enumerate() {
            bench.make(&rollback(n as u64 + 1, None)).unwrap();
            let now = without_revisions(content(&bench.state));
            prop_assert_eq!(now, without_revisions(content_then.clone()));
        }
    }
}

fn running(store: MemoryStore) -> RegistryHandle {
    let metrics = Arc::new(Metrics::new(&prometheus::Registry::new()).unwrap());
    start(store, metrics, Vault::throwaway()).unwrap().0
}

#[tokio::test]
async fn what_differs_is_told_in_either_direction() {
    let registry = running(MemoryStore::fresh());
    for command in [
        Command::Create(sized("a", 5)),
        Command::Create(model("b")),
        put(sized("a", 6)),
        put(sized("a", 5)),
        remove("b"),
    ] {
        registry.write(write(command)).await.unwrap();
    }
    let revision = |n| Some(Revision::new(n));
    let targets = |edits: &[Edit]| edits.iter().map(Edit::target).collect::<Vec<_>>();
    let model = |id: &str| Target::Model(forebay_proto::ModelId::new(id).unwrap());
    let (from, to, edits) = registry.difference(revision(1), None).await.unwrap();
    assert_eq!((from.get(), to.get()), (1, 6));
    assert_eq!(targets(&edits), [model("a")], "b came and went");
    let (_, _, edits) = registry.difference(revision(2), revision(5)).await.unwrap();
    assert_eq!(targets(&edits), [model("b")], "a is what it was");
    let (_, _, back) = registry.difference(revision(5), revision(2)).await.unwrap();
    assert!(
        matches!(
            &back[..],
            [Edit::Model {
                after: None,
                before: Some(_),
                ..
            }]
        ),
        "{back:?}"
    );
    let (from, to, edits) = registry.difference(None, None).await.unwrap();
    assert_eq!((from.get(), to.get(), edits.len()), (5, 6, 1));
    let error = registry.difference(revision(7), None).await.unwrap_err();
    assert!(matches!(error, PastError::NotReached { .. }), "{error}");
}

#[tokio::test]
async fn the_past_is_read_up_to_what_is_published() {
    let store = MemoryStore::fresh();
    let registry = running(store.clone());
    registry
        .write(write(Command::Create(sized("a", 5))))
        .await
        .unwrap();
    registry.write(write(put(sized("a", 6)))).await.unwrap();
    let at = registry.at(Revision::new(2)).await.unwrap();
    assert_eq!(at.model("a").unwrap().pool.unwrap().max_concurrent, Some(5));
    let entries = registry.entries(None, 2).await.unwrap();
    let numbers: Vec<_> = entries
        .entries
        .iter()
        .map(|log| log.revision.get())
        .collect();
    assert_eq!(
        (numbers, entries.more, entries.earliest.get()),
        (vec![3, 2], true, 1)
    );
    let (entry, _) = registry.entry(Revision::new(3)).await.unwrap();
    assert_eq!(entry.digest, Some(registry.published().position.digest));
}

/// A worker must not get another content under a number that it knows.
#[tokio::test]
async fn a_version_that_makes_something_else_of_it_makes_a_new_revision_of_it() {
    let dir = tempfile::tempdir().unwrap();
    let open = || SledStore::open(dir.path(), &forebay_proto::PoolSettings::default()).unwrap();
    let mut store = open();
    let state = State::new(store.load().unwrap());
    let create = write(Command::Create(model("a")));
    let planned = state.plan(&create, SystemTime::now(), &*store.history());
    let mut change = planned.unwrap().change.unwrap();
    // As another version had written it.
    change.entry.as_mut().unwrap().log.digest = Some(forebay_proto::Digest::of(b"another"));
    store.commit(&[change]).unwrap();
    drop(store);
    for start_number in 1..=2 {
        let metrics = Arc::new(Metrics::new(&prometheus::Registry::new()).unwrap());
        let (registry, writer) = start(open(), metrics, Vault::throwaway()).unwrap();
        let position = registry.published().position.clone();
        assert_eq!(position.revision, Revision::new(3), "start {start_number}");
        assert_eq!(ids(&registry.published().state), ["a"]);
        let (entry, _) = registry.entry(position.revision).await.unwrap();
        assert_eq!(entry.digest, Some(position.digest));
        assert_eq!(entry.method, "Upgrade");
        drop(registry);
        writer.join().unwrap();
    }
}

/// The newest revision may be one that soaks elsewhere, or that was refused: who holds one before it opens credentials.
#[tokio::test]
async fn workers_have_the_seal_keys_for_what_they_may_still_hold() {
    let dir = tempfile::tempdir().unwrap();
    let open = || {
        let settings = forebay_proto::PoolSettings::default();
        let store = SledStore::open(dir.path(), &settings).unwrap();
        let metrics = Arc::new(Metrics::new(&prometheus::Registry::new()).unwrap());
        start(store, metrics, Vault::throwaway()).unwrap()
    };
    let (registry, writer) = open();
    assert!(registry.keys().seal.is_empty(), "there is nothing to open");
    registry
        .write(write(Command::Create(model("plain"))))
        .await
        .unwrap();
    let mut sealed = model("a");
    sealed.endpoints[0].credential = Some(wire::Credential {
        bearer_token: "token".into(),
        ..wire::Credential::default()
    });
    registry.vault().seal_tokens(&mut sealed).unwrap();
    for asked in [Command::Create(sealed), remove("a")] {
        registry.write(write(asked)).await.unwrap();
        assert_eq!(registry.keys().seal.len(), 1);
    }
    drop(registry);
    writer.join().unwrap();
    let (registry, writer) = open();
    assert_eq!(registry.keys().seal.len(), 1, "after a restart, too");
    drop(registry);
    writer.join().unwrap();
}

/// What a rollout takes back need not be in the history any more.
#[test]
fn content_that_is_held_is_gone_back_to_without_the_history() {
    let mut bench = Bench::new();
    bench.create(sized("kept", 5));
    bench.create(model("gone"));
    let held = Arc::new(bench.state.clone());
    bench
        .make(&batch(vec![
            put(sized("kept", 7)),
            remove("gone"),
            put(model("new")),
        ]))
        .unwrap();
    assert!(!bench.state.has_content_of(&held));
    bench
        .make(&write(Command::Rollback {
            to: held.revision(),
            expected: None,
            content: Some(held.clone()),
        }))
        .unwrap();
    assert_eq!(ids(&bench.state), ["gone", "kept"]);
    assert!(bench.state.has_content_of(&held), "under other revisions");
    assert_ne!(
        bench.state.config().unwrap().encode().1,
        held.config().unwrap().encode().1
    );
    let entry = bench
        .store
        .history()
        .entry(Revision::new(5))
        .unwrap()
        .unwrap();
    assert_eq!(entry.rolled_back_to, Some(Revision::new(3)));
}

const PEM: &str = include_str!("../../../../proto/src/endpoint/test-ca.pem");

#[test]
fn a_model_larger_than_a_record_is_refused_by_itself() {
    let mut bench = Bench::new();
    let endpoint = |n: usize| wire::Endpoint {
        url: format!("https://h{n}"),
        tls: Some(wire::EndpointTls {
            ca_pem: PEM.repeat(34_000 / PEM.len()),
            ..wire::EndpointTls::default()
        }),
        ..wire::Endpoint::default()
    };
    let wide = wire::Model {
        endpoints: (0..2).map(endpoint).collect(),
        ..model("wide")
    };
    let error = refused(bench.make(&write(Command::Create(wide))));
    assert!(
        error.contains("model: `wide` takes") && error.contains("64512"),
        "{error}"
    );
    bench.create(model("a"));
}
