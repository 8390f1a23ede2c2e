//! On three real members, in one test, so that they are started once: the suite of all stores, then what only a store
//! does that is shared.

mod large;
mod moves;

use forebay_proto::{ModelId, ModelSpec};
use tokio::runtime::Runtime;

use super::{
    layout::{Op, parts},
    *,
};
use crate::{
    etcd::{EtcdAccess, EtcdLocation},
    store::{
        IdemRecord, ModelRecord,
        history::Forgotten,
        suite::{self, change, gone, ids, key, key_change, model, put, spec, time},
    },
};

struct World {
    runtime: Runtime,
    etcd: forebay_etcd::Etcd,
}

impl World {
    fn connect(&self, prefix: &str) -> Arc<Etcd> {
        let at: EtcdLocation = self.etcd.store(prefix).parse().unwrap();
        Arc::new(Etcd::new(&at, &EtcdAccess::default()).unwrap())
    }

    fn open(&self, prefix: &str) -> EtcdStore {
        self.try_open(prefix).unwrap()
    }

    fn try_open(&self, prefix: &str) -> Result<EtcdStore, EtcdError> {
        let runtime = self.runtime.handle().clone();
        EtcdStore::open(self.connect(prefix), runtime, &PoolSettings::default())
    }

    /// Two who have read the same.
    fn two(&self, prefix: &str) -> (EtcdStore, EtcdStore) {
        let (mut one, mut two) = (self.open(prefix), self.open(prefix));
        assert_eq!(one.load().unwrap(), two.load().unwrap());
        (one, two)
    }
}

#[test]
fn on_three_real_members() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    let etcd = runtime.block_on(forebay_etcd::Etcd::start());
    let world = World { runtime, etcd };
    it_behaves_and_keeps_what_it_acknowledged(&world);
    it_keeps_keys(&world);
    a_commit_on_an_older_head_leaves_nothing(&world);
    what_others_wrote_is_told_as_it_was_written(&world);
    what_is_too_much_to_tell_is_told_as_a_whole(&world);
    answers_and_keys_of_others_are_told(&world);
    large::a_large_commit_is_whole_for_everybody(&world);
    large::a_commit_may_change_the_whole_registry(&world);
    large::parts_of_a_commit_that_was_not_made_are_removed(&world);
    large::a_large_commit_that_was_left_half_way_is_finished_by_who_finds_it(&world);
    a_commit_whose_answer_was_lost_is_known_again(&world);
    a_decision_of_an_older_term_is_refused(&world);
    what_is_not_ours_is_refused_untouched(&world);
    moves::a_registry_moves_there_and_back(&world);
    moves::a_large_registry_moves_there_and_back(&world);
    moves::a_migration_touches_no_other_registry(&world);
    compaction_costs_nothing(&world);
    without_a_quorum_nothing_is_written_and_it_says_so(world);
}

fn it_behaves_and_keeps_what_it_acknowledged(world: &World) {
    let mut store = world.open("suite");
    suite::behaves(&mut store);
    let before = (store.load().unwrap(), store.past().unwrap());
    drop(store);
    let mut store = world.open("suite");
    assert_eq!((store.load().unwrap(), store.past().unwrap()), before);
    let other = PoolSettings {
        max_concurrent: forebay_proto::PoolSize::new(9).unwrap(),
        ..PoolSettings::default()
    };
    let mut again = EtcdStore::open(
        world.connect("suite"),
        world.runtime.handle().clone(),
        &other,
    )
    .unwrap();
    assert_eq!(
        again.load().unwrap(),
        before.0,
        "fresh settings change no old registry"
    );
}

fn it_keeps_keys(world: &World) {
    let mut store = world.open("keys");
    suite::keeps_keys(&mut store);
    let stored = store.load().unwrap();
    assert_eq!(world.open("keys").load().unwrap(), stored);
}

fn a_commit_on_an_older_head_leaves_nothing(world: &World) {
    let (mut one, mut two) = world.two("conflict");
    one.commit(&[put("a", 1, 2)]).unwrap();
    let error = two.commit(&[put("b", 1, 2)]).unwrap_err();
    assert!(matches!(error, StoreError::Conflict), "{error}");
    assert_eq!(ids(&one.load().unwrap()), ["a"]);
    assert!(matches!(two.news().unwrap(), News::Since { .. }));
    two.commit(&[put("b", 1, 3)]).unwrap();
    let error = one.commit(&[put("c", 1, 3)]).unwrap_err();
    assert!(matches!(error, StoreError::Conflict), "{error}");
    assert_eq!(ids(&two.load().unwrap()), ["a", "b"]);
    // Of keys there is an order of their own.
    one.load().unwrap();
    one.commit_keys(&[key_change(1, key(1, false), &[])])
        .unwrap();
    let error = two
        .commit_keys(&[key_change(1, key(2, false), &[])])
        .unwrap_err();
    assert!(matches!(error, StoreError::Conflict), "{error}");
    two.news().unwrap();
    two.commit_keys(&[key_change(2, key(2, false), &[])])
        .unwrap();
    assert_eq!(two.load().unwrap().keys.records.len(), 2);
}

fn changes_of(news: News) -> Vec<Change> {
    match news {
        News::Since { changes, .. } => changes,
        other => panic!("{other:?}"),
    }
}

fn what_others_wrote_is_told_as_it_was_written(world: &World) {
    let (mut one, mut two) = world.two("news");
    assert!(matches!(two.news().unwrap(), News::Nothing));
    let written = [
        put("a", 1, 2),
        put("b", 2, 3),
        change(gone("a"), Revision::new(4)),
    ];
    one.commit(&written[..2]).unwrap();
    one.commit(&written[2..]).unwrap();
    assert_eq!(changes_of(two.news().unwrap()), written);
    assert!(matches!(two.news().unwrap(), News::Nothing), "once");
    // What it was told counts as read: it may write on.
    two.commit(&[put("c", 1, 5)]).unwrap();
    assert_eq!(changes_of(one.news().unwrap()), [put("c", 1, 5)]);
    assert_eq!(one.load().unwrap(), two.load().unwrap());
    // Its own writes are no news.
    one.commit(&[put("d", 1, 6)]).unwrap();
    assert!(matches!(one.news().unwrap(), News::Nothing));
}

fn what_is_too_much_to_tell_is_told_as_a_whole(world: &World) {
    let (mut one, mut two) = world.two("whole");
    let mut forgetting = put("b", 1, 3);
    forgetting.entry.as_mut().unwrap().forget = [1, 2]
        .map(|revision| Forgotten {
            revision: Revision::new(revision),
            edits: 1,
        })
        .to_vec();
    one.commit(&[put("a", 1, 2), forgetting]).unwrap();
    let News::Whole(stored) = two.news().unwrap() else {
        panic!("the history does not reach back so far");
    };
    assert_eq!(*stored, one.load().unwrap());
    let mut beginning = put("c", 1, 4);
    beginning.entry.as_mut().unwrap().kind = EntryKind::Beginning;
    one.commit(&[beginning]).unwrap();
    assert!(matches!(two.news().unwrap(), News::Whole(_)));
    // Another lineage, under the feet of who runs.
    let (old, new) = one.new_epoch().unwrap();
    let News::Whole(stored) = two.news().unwrap() else {
        panic!("another epoch is another registry");
    };
    assert_eq!((old != new, stored.epoch.to_string()), (true, new));
}

pub(super) fn answer(id: &str, revision: u64) -> IdemRecord {
    IdemRecord {
        request_id: id.into(),
        fingerprint: vec![1],
        revision: Revision::new(revision),
        expires: time(9),
        answer: vec![3],
    }
}

fn answers_and_keys_of_others_are_told(world: &World) {
    let (mut one, mut two) = world.two("answers");
    let answered = Change {
        idem: Some(answer("x", 2)),
        ..put("a", 1, 2)
    };
    // One that only keeps an answer makes no revision, and is told of all the same.
    let only = Change {
        revision: Revision::new(2),
        entry: None,
        idem: Some(answer("y", 2)),
        forget_idem: vec!["x".into()],
    };
    one.commit(&[answered]).unwrap();
    assert_eq!(
        changes_of(two.news().unwrap())[1].idem,
        Some(answer("x", 2))
    );
    one.commit(&[only]).unwrap();
    let told = changes_of(two.news().unwrap());
    assert_eq!((told.len(), &told[0].idem), (1, &Some(answer("y", 2))));
    assert_eq!(told[0].revision, Revision::new(2));
    assert_eq!(two.load().unwrap().idem, [answer("y", 2)]);
    only_new_answers_are_read(world, (&mut one, &mut two));
    one.commit_keys(&[key_change(1, key(1, false), &[])])
        .unwrap();
    let News::Since { changes, keys } = two.news().unwrap() else {
        panic!("keys are news");
    };
    assert_eq!(
        (changes.len(), keys.unwrap()),
        (0, one.load().unwrap().keys)
    );
}

fn only_new_answers_are_read(world: &World, (one, two): (&mut EtcdStore, &mut EtcdStore)) {
    let only = |id: &str| Change {
        revision: Revision::new(2),
        entry: None,
        idem: Some(answer(id, 2)),
        forget_idem: Vec::new(),
    };
    // Whoever looked among all would find this.
    let nonsense = one.layout.answer("nonsense");
    let write = |op| TxnRequest {
        success: vec![op],
        ..TxnRequest::default()
    };
    let put = write(ops::put(nonsense.clone(), b"nonsense".to_vec(), 0));
    world
        .runtime
        .block_on(one.etcd.txn(put, Budget::WRITE))
        .unwrap();
    one.commit(&[only("z")]).unwrap();
    let told = changes_of(two.news().unwrap());
    assert_eq!((told.len(), &told[0].idem), (1, &Some(answer("z", 2))));
    let delete = write(ops::delete(nonsense));
    world
        .runtime
        .block_on(one.etcd.txn(delete, Budget::WRITE))
        .unwrap();
    // After a commit of a build that does not count them, they are looked for.
    let mut at = one.at.clone().unwrap();
    at.head.answered = 0;
    one.at = Some(at);
    one.commit(&[only("v")]).unwrap();
    let told = changes_of(two.news().unwrap());
    assert_eq!((told.len(), &told[0].idem), (1, &Some(answer("v", 2))));
    one.commit(&[only("w")]).unwrap();
    let told = changes_of(two.news().unwrap());
    assert_eq!((told.len(), &told[0].idem), (1, &Some(answer("w", 2))));
}

fn a_commit_whose_answer_was_lost_is_known_again(world: &World) {
    let mut store = world.open("lost");
    store.load().unwrap();
    let before = store.at.clone();
    store.commit(&[put("a", 1, 2)]).unwrap();
    // The very same transaction again, as after a lost answer; and after somebody else went on.
    let after = store.at.clone().unwrap();
    for others in [false, true] {
        if others {
            let mut other = world.open("lost");
            other.load().unwrap();
            other.commit(&[put("b", 1, 3)]).unwrap();
        }
        store.at.clone_from(&before);
        let at = before.clone().unwrap();
        let witness = layout::Witness::Entry(store.layout.log(Revision::new(2)));
        let compare = vec![ops::unchanged_since(store.layout.head(), at.head_mod)];
        let again = store.write_head(&after.head, compare, Vec::new(), Some(&witness), None);
        let made = world.runtime.block_on(again).unwrap();
        assert_eq!(made, after.head_mod, "{others}");
        // Another commit of the same content is another commit.
        let other = Head {
            commit: "another".to_owned(),
            ..after.head.clone()
        };
        let compare = vec![ops::unchanged_since(store.layout.head(), at.head_mod)];
        let again = store.write_head(&other, compare, Vec::new(), Some(&witness), None);
        let error = world.runtime.block_on(again).unwrap_err();
        assert!(matches!(error, StoreError::Conflict), "{error}");
    }
}

fn a_decision_of_an_older_term_is_refused(world: &World) {
    let mut store = world.open("terms");
    store.load().unwrap();
    let lead = |store: &EtcdStore| {
        let txn = TxnRequest {
            compare: Vec::new(),
            success: vec![ops::delete(store.layout.leader())],
            failure: Vec::new(),
        };
        let put = TxnRequest {
            compare: Vec::new(),
            success: vec![ops::put(store.layout.leader(), b"me".to_vec(), 0)],
            failure: Vec::new(),
        };
        world.runtime.block_on(async {
            store.etcd.txn(txn, Budget::WRITE).await.unwrap();
            let made = store.etcd.txn(put, Budget::WRITE).await.unwrap();
            u64::try_from(made.header.unwrap().revision).unwrap()
        })
    };
    let error = store
        .commit_as(&[put("a", 1, 2)], 7)
        .unwrap_err()
        .to_string();
    assert!(error.contains("does not decide"), "nobody does: {error}");
    let first = lead(&store);
    store.commit_as(&[put("a", 1, 2)], first).unwrap();
    let second = lead(&store);
    assert!(second > first);
    let error = store.commit_as(&[put("b", 1, 3)], first).unwrap_err();
    assert!(matches!(error, StoreError::NotCommitted(_)), "{error}");
    assert!(
        error.to_string().contains("does not decide any more"),
        "{error}"
    );
    store.commit_as(&[put("c", 1, 3)], second).unwrap();
    assert_eq!(ids(&store.load().unwrap()), ["a", "c"]);
}

fn what_is_not_ours_is_refused_untouched(world: &World) {
    let mut store = world.open("format");
    store.load().unwrap();
    let mut at = store.at.clone().unwrap();
    at.head.format = 99;
    let put = |key: Vec<u8>, value: Vec<u8>| {
        let txn = TxnRequest {
            compare: Vec::new(),
            success: vec![ops::put(key, value, 0)],
            failure: Vec::new(),
        };
        world
            .runtime
            .block_on(store.etcd.txn(txn, Budget::WRITE))
            .unwrap();
    };
    put(store.layout.head(), at.head.encode_to_vec());
    let error = world.try_open("format").unwrap_err();
    assert!(
        matches!(error, EtcdError::NewerFormat { found: 99, .. }),
        "{error}"
    );
    let layout = Layout::new("/headless");
    put(layout.key("model/a"), Vec::new());
    let error = world.try_open("headless").unwrap_err().to_string();
    assert!(error.contains("data but no head"), "{error}");
    put(store.layout.head(), b"nonsense".to_vec());
    let error = world.try_open("format").unwrap_err().to_string();
    assert!(error.contains("damaged"), "{error}");
}

fn compaction_costs_nothing(world: &World) {
    let (mut one, mut two) = world.two("compaction");
    for revision in 2..6 {
        one.commit(&[put("a", 1, revision)]).unwrap();
        world.runtime.block_on(world.etcd.compact());
    }
    assert_eq!(changes_of(two.news().unwrap()).len(), 4);
    two.commit(&[put("b", 1, 6)]).unwrap();
    world.runtime.block_on(world.etcd.compact());
    assert_eq!(one.load().unwrap().revision, Revision::new(6));
    assert_eq!(
        one.history()
            .edits(Revision::new(1), Revision::new(6))
            .count(),
        5
    );
}

fn without_a_quorum_nothing_is_written_and_it_says_so(world: World) {
    let World { runtime, mut etcd } = world;
    let at: EtcdLocation = etcd.store("quorum").parse().unwrap();
    let connected = Arc::new(Etcd::new(&at, &EtcdAccess::default()).unwrap());
    let mut store = EtcdStore::open(
        connected,
        runtime.handle().clone(),
        &PoolSettings::default(),
    )
    .unwrap();
    store.load().unwrap();
    store.commit(&[put("a", 1, 2)]).unwrap();
    // One of three is not missed, whichever it is.
    for n in 0..forebay_etcd::MEMBERS {
        runtime.block_on(etcd.kill(n));
        store.commit(&[put("a", 1, 3 + n as u64)]).unwrap();
        runtime.block_on(etcd.mend());
    }
    runtime.block_on(async {
        etcd.kill(0).await;
        etcd.kill(1).await;
    });
    let error = store.commit(&[put("b", 1, 6)]).unwrap_err();
    assert!(
        error.to_string().contains("etcd does not answer"),
        "{error}"
    );
    let error = store.news().unwrap_err().to_string();
    assert!(error.contains("etcd does not answer"), "{error}");
    // What became of it is read when somebody answers again.
    runtime.block_on(etcd.mend());
    let stored = store.load().unwrap();
    let written = stored.revision == Revision::new(6);
    assert_eq!(ids(&stored).contains(&"b"), written, "whole or not at all");
    store
        .commit(&[put("c", 1, stored.revision.get() + 1)])
        .unwrap();
}
