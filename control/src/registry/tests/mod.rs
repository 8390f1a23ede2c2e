//! The registry's rules by hand, and its durability by random histories.

use std::time::{Duration, SystemTime};

use forebay_proto::wire;
use proptest::prelude::*;

use super::*;
use crate::store::{Store, history::Past, memory::MemoryStore};

mod revisions;
mod shared;
mod writer;

fn model(id: &str) -> wire::Model {
    let url = "http://10.0.0.1:8000".to_owned();
    let endpoint = wire::Endpoint {
        url,
        ..Default::default()
    };
    wire::Model {
        id: id.into(),
        endpoints: vec![endpoint],
        ..Default::default()
    }
}

fn sized(id: &str, size: u32) -> wire::Model {
    let pool = wire::Pool {
        max_concurrent: Some(size),
        ..Default::default()
    };
    wire::Model {
        pool: Some(pool),
        ..model(id)
    }
}

fn write(command: Command) -> Write {
    Write {
        command,
        request_id: None,
        validate_only: false,
        term: None,
        origin: Origin::default(),
    }
}

fn update(model: wire::Model, mask: Option<&[&str]>) -> Write {
    let mask = mask.map(|paths| paths.iter().map(ToString::to_string).collect());
    write(Command::Update {
        model,
        mask,
        allow_missing: false,
    })
}

fn delete(id: &str) -> Write {
    write(Command::Delete {
        id: id.into(),
        etag: String::new(),
        allow_missing: false,
    })
}

/// A state over a memory store, with the order of the writer: plan, commit, apply.
struct Bench {
    store: MemoryStore,
    state: State,
    past: Past,
    now: SystemTime,
}

impl Bench {
    fn new() -> Self {
        let mut store = MemoryStore::fresh();
        let state = State::new(store.load().unwrap());
        let past = store.past().unwrap();
        Self {
            store,
            state,
            past,
            now: SystemTime::UNIX_EPOCH + Duration::from_secs(1_000),
        }
    }

    fn make(&mut self, write: &Write) -> Result<Answer, WriteError> {
        let history = self.store.history();
        let planned = self.state.plan(write, self.now, &*history)?;
        if let Some(mut change) = planned.change {
            if let Some(entry) = &mut change.entry {
                entry.forget = self.past.add(&entry.log, entry.kind);
            }
            self.store.commit(std::slice::from_ref(&change)).unwrap();
            self.state.apply(change);
        }
        Ok(planned.answer)
    }

    fn create(&mut self, model: wire::Model) -> wire::Model {
        expect_model(self.make(&write(Command::Create(model))))
    }

    fn revision(&self) -> u64 {
        self.state.revision().get()
    }
}

fn expect_model(answer: Result<Answer, WriteError>) -> wire::Model {
    match answer {
        Ok(Answer::Model(model)) => *model,
        other => panic!("{other:?}"),
    }
}

fn refused(answer: Result<Answer, WriteError>) -> String {
    answer.expect_err("refused").to_string()
}

#[test]
fn a_registration_is_shown_resolved() {
    let mut bench = Bench::new();
    let created = bench.create(sized("a", 20));
    assert_eq!(
        (created.revision, created.etag.as_str()),
        (2, "\"01234567-2\"")
    );
    let pool = created.resolved_pool.unwrap();
    assert_eq!(
        (pool.max_concurrent, pool.keepalive, pool.coverage),
        (Some(20), Some(20), Some(1.0))
    );
    let own = created.pool.unwrap();
    assert_eq!(
        (own.keepalive, own.idle_timeout),
        (Some(20), None),
        "what was not set is not made up"
    );
    assert_eq!(created.endpoints[0].id, "e1");
}

#[test]
fn names_are_unique_over_ids_and_aliases() {
    let mut bench = Bench::new();
    bench.create(wire::Model {
        aliases: vec!["x".into()],
        ..model("a")
    });
    for taken in ["a", "x"] {
        let error = refused(bench.make(&write(Command::Create(model(taken)))));
        assert!(
            error.contains("model.id") && error.contains("model `a`"),
            "{error}"
        );
    }
    let other = wire::Model {
        aliases: vec!["y".into(), "a".into()],
        ..model("b")
    };
    let error = refused(bench.make(&write(Command::Create(other))));
    assert!(error.contains("model.aliases[1]"), "{error}");
    assert_eq!(bench.revision(), 2);
    bench.make(&delete("a")).unwrap();
    bench.create(model("x"));
}

#[test]
fn keepalive_is_the_size_or_refused_with_the_arithmetic() {
    let mut bench = Bench::new();
    let with = |keepalive| {
        let mut model = sized("a", 150);
        model.pool.as_mut().unwrap().keepalive = Some(keepalive);
        write(Command::Create(model))
    };
    let error = refused(bench.make(&with(100)));
    for part in [
        "model.pool.keepalive",
        "150 connections, 100 keepalive",
        "66.7 %",
        "50 connections",
    ] {
        assert!(error.contains(part), "{part} not in {error}");
    }
    bench.make(&with(150)).unwrap();

    // What was read may be sent back with its etag, though the size changes.
    let mut read = bench.state.model("a").unwrap();
    read.pool.as_mut().unwrap().max_concurrent = Some(80);
    let updated = expect_model(bench.make(&update(read.clone(), None)));
    assert_eq!(updated.pool.unwrap().keepalive, Some(80));
    let without_etag = wire::Model {
        etag: String::new(),
        ..read
    };
    assert!(refused(bench.make(&update(without_etag, None))).contains("150 keepalive"));

    let settings = wire::PoolDefaults {
        keepalive: Some(100),
        ..Default::default()
    };
    let error = refused(bench.make(&write(Command::UpdateSettings {
        settings,
        mask: None,
    })));
    assert!(
        error.contains("settings.keepalive") && error.contains("66.7 %"),
        "{error}"
    );
}

#[test]
fn an_update_changes_what_it_names_and_nothing_is_a_no_op() {
    let mut bench = Bench::new();
    bench.create(sized("a", 20));
    let after = expect_model(bench.make(&update(sized("a", 30), None)));
    assert_eq!(
        (after.pool.unwrap().max_concurrent, after.revision),
        (Some(30), 3)
    );
    let same = expect_model(bench.make(&update(sized("a", 30), None)));
    assert_eq!((same.revision, bench.revision()), (3, 3));
    let cleared = wire::Model {
        id: "a".into(),
        ..Default::default()
    };
    let after = expect_model(bench.make(&update(cleared, Some(&["pool.max_concurrent"]))));
    assert_eq!(
        after.resolved_pool.unwrap().max_concurrent,
        Some(50),
        "inherited again"
    );
    assert!(matches!(
        bench.make(&update(model("b"), None)),
        Err(WriteError::NotFound(_))
    ));
    let upsert = Command::Update {
        model: model("b"),
        mask: None,
        allow_missing: true,
    };
    assert_eq!(expect_model(bench.make(&write(upsert))).id, "b");
}

#[test]
fn an_old_etag_is_refused() {
    let mut bench = Bench::new();
    let first = bench.create(sized("a", 20));
    bench.make(&update(sized("a", 30), None)).unwrap();
    let late = wire::Model {
        etag: first.etag.clone(),
        ..sized("a", 40)
    };
    assert!(matches!(
        bench.make(&update(late, None)),
        Err(WriteError::EtagMismatch { .. })
    ));
    let late = Command::Delete {
        id: "a".into(),
        etag: first.etag,
        allow_missing: true,
    };
    assert!(matches!(
        bench.make(&write(late)),
        Err(WriteError::EtagMismatch { .. })
    ));
    bench.make(&delete("a")).unwrap();
    assert!(matches!(
        bench.make(&delete("a")),
        Err(WriteError::NotFound(_))
    ));
}

#[test]
fn settings_reach_every_model_that_inherits_and_spare_the_others() {
    let mut bench = Bench::new();
    bench.create(model("inherits"));
    bench.create(sized("own", 120));
    let settings = |max| wire::PoolDefaults {
        max_concurrent: Some(max),
        ..Default::default()
    };
    let set = |max| {
        write(Command::UpdateSettings {
            settings: settings(max),
            mask: None,
        })
    };
    bench.make(&set(60)).unwrap();
    let size = |id: &str| {
        bench
            .state
            .model(id)
            .unwrap()
            .resolved_pool
            .unwrap()
            .max_concurrent
    };
    assert_eq!((size("inherits"), size("own")), (Some(60), Some(120)));
    let error = refused(bench.make(&set(30)));
    assert!(
        error.contains("model `own` would not fit") && error.contains("120"),
        "{error}"
    );
}

#[test]
fn a_repeated_request_gets_the_first_answer_also_from_disk() {
    let mut bench = Bench::new();
    let request = Write {
        request_id: Some(("r1".into(), vec![1])),
        ..write(Command::Create(model("a")))
    };
    let first = bench.make(&request).unwrap();
    assert_eq!(bench.make(&request).unwrap(), first);
    bench.state = State::new(bench.store.load().unwrap());
    assert_eq!(bench.make(&request).unwrap(), first);
    assert_eq!(bench.revision(), 2);
    let misused = Write {
        request_id: Some(("r1".into(), vec![2])),
        ..request.clone()
    };
    assert!(matches!(
        bench.make(&misused),
        Err(WriteError::RequestIdReused(_))
    ));
    bench.now += Duration::from_secs(25 * 3_600);
    assert!(matches!(
        bench.make(&request),
        Err(WriteError::AlreadyExists { .. })
    ));
}

/// Repeated after somebody else made the model, it would remove that.
#[test]
fn a_request_that_changed_nothing_is_remembered_too() {
    let mut bench = Bench::new();
    let delete = Write {
        request_id: Some(("r1".into(), vec![1])),
        ..write(Command::Delete {
            id: "a".into(),
            etag: String::new(),
            allow_missing: true,
        })
    };
    assert_eq!(bench.make(&delete).unwrap(), Answer::Deleted(1));
    assert_eq!(bench.revision(), 1, "no revision is made of nothing");
    bench.create(model("a"));
    bench.state = State::new(bench.store.load().unwrap());
    assert_eq!(bench.make(&delete).unwrap(), Answer::Deleted(1));
    assert!(bench.state.model("a").is_some());
}

#[test]
fn an_update_that_may_create_is_checked_like_any() {
    let mut bench = Bench::new();
    let update = |etag: &str, mask: Option<&[&str]>| {
        let from = wire::Model {
            etag: etag.into(),
            ..model("a")
        };
        match update(from, mask).command {
            Command::Update { model, mask, .. } => write(Command::Update {
                model,
                mask,
                allow_missing: true,
            }),
            other => write(other),
        }
    };
    let gone = bench.make(&update("\"01234567-1\"", None));
    assert!(
        matches!(gone, Err(WriteError::EtagMismatch { .. })),
        "{gone:?}"
    );
    let unknown = refused(bench.make(&update("", Some(&["pool.nonsense"]))));
    assert!(unknown.contains("pool.nonsense"), "{unknown}");
    expect_model(bench.make(&update("", Some(&["pool"]))));
}

#[test]
fn a_trial_writes_nothing() {
    let mut bench = Bench::new();
    bench.create(model("there"));
    let trial = Write {
        validate_only: true,
        ..delete("there")
    };
    assert_eq!(
        bench.make(&trial).unwrap(),
        Answer::Deleted(2),
        "the current one"
    );
    bench.make(&delete("there")).unwrap();
    let trial = Write {
        validate_only: true,
        ..write(Command::Create(model("a")))
    };
    assert_eq!(
        expect_model(bench.make(&trial)).revision,
        4,
        "as it would be"
    );
    assert_eq!((bench.revision(), bench.state.len()), (3, 0));
    let bad = Write {
        validate_only: true,
        ..write(Command::Create(model("a b")))
    };
    assert!(matches!(bench.make(&bad), Err(WriteError::Invalid(_))));
}

#[test]
fn all_that_is_wrong_is_told_at_once() {
    let mut bench = Bench::new();
    let bad = wire::Model {
        aliases: vec!["/".into()],
        endpoints: vec![wire::Endpoint {
            url: "x".into(),
            ..Default::default()
        }],
        ..sized("a b", 0)
    };
    let Err(WriteError::Invalid(violations)) = bench.make(&write(Command::Create(bad))) else {
        panic!("accepted");
    };
    let fields: Vec<_> = violations
        .as_slice()
        .iter()
        .map(|v| v.field.as_str())
        .collect();
    assert_eq!(
        fields,
        [
            "model.id",
            "model.aliases[0]",
            "model.endpoints[0].url",
            "model.pool.max_concurrent"
        ]
    );
}

fn command() -> impl Strategy<Value = Command> {
    let id = || "[a-d]";
    prop_oneof![
        3 => (id(), 1_u32..200).prop_map(|(id, size)| Command::Create(sized(&id, size))),
        3 => (id(), 1_u32..200, prop::option::of(id()), any::<bool>()).prop_map(
            |(id, size, alias, allow_missing)| {
                let aliases = alias.into_iter().collect();
                let model = wire::Model { aliases, ..sized(&id, size) };
                Command::Update { model, mask: None, allow_missing }
            }
        ),
        2 => id().prop_map(|id| Command::Delete { id, etag: String::new(), allow_missing: true }),
        1 => (1_u32..120, 1_u32..4).prop_map(|(size, models)| Command::UpdateSettings {
            settings: wire::PoolDefaults {
                max_concurrent: Some(size),
                max_models_concurrent: Some(models),
                ..Default::default()
            },
            mask: None,
        }),
    ]
}

proptest! {
    /// Whatever is asked for: revisions grow by one per change, what is in memory is what the store
    /// would give back, and it is always a configuration that workers accept.
    #[test]
    fn memory_is_what_the_store_holds(commands in prop::collection::vec(command(), 1..40)) {
        let mut bench = Bench::new();
        for command in commands {
            let before = bench.revision();
            let _ = bench.make(&write(command));
            prop_assert!(bench.revision() == before || bench.revision() == before + 1);
            let reloaded = State::new(bench.store.load().unwrap());
            prop_assert_eq!(reloaded.page(None, 100), bench.state.page(None, 100));
            prop_assert_eq!(reloaded.settings(), bench.state.settings());
            let config = bench.state.config().unwrap();
            prop_assert_eq!(&reloaded.config().unwrap(), &config);
            let (bytes, _) = config.encode();
            prop_assert_eq!(forebay_proto::Config::decode(&bytes).unwrap(), config);
        }
    }
}
