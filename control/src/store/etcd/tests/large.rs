//! Commits of more than one transaction takes: they are whole for everybody, or not there.

use super::*;

/// As large as one can be: thousands of operations, megabytes.
pub(super) fn large(revision: u64, models: usize) -> Change {
    let widest = spec("m", 60);
    let revision = Revision::new(revision);
    let edits = (0..models).map(|n| {
        let id = ModelId::new(format!("model-{n:04}")).unwrap();
        let spec = ModelSpec::new(id, vec![], widest.endpoints().to_vec()).unwrap();
        model(ModelRecord {
            spec,
            revision,
            created: time(1),
            updated: time(revision.get()),
        })
    });
    let edits: Vec<_> = edits.collect();
    let mut large = change(gone("x"), revision);
    let entry = large.entry.as_mut().unwrap();
    entry.log = LogRecord::of(&edits, revision, time(1));
    entry.edits = edits;
    large
}

pub(super) fn a_large_commit_is_whole_for_everybody(world: &World) {
    let (mut one, mut two) = world.two("large");
    one.commit(&[large(2, 1_000)]).unwrap();
    assert_eq!(one.load().unwrap().models.len(), 1_000);
    assert_eq!(changes_of(two.news().unwrap()), [large(2, 1_000)]);
    // Many small ones in a group, too.
    let group: Vec<_> = (3..67)
        .map(|revision| put(&format!("g{revision}"), 3, revision))
        .collect();
    two.commit(&group).unwrap();
    assert_eq!(changes_of(one.news().unwrap()), group);
    one.commit(&[put("after", 1, 67)]).unwrap();
    let stored = one.load().unwrap();
    assert_eq!(
        (stored.models.len(), stored.revision),
        (1_065, Revision::new(67))
    );
    let history = one.history();
    assert_eq!(
        history.edits(Revision::new(1), Revision::new(67)).count(),
        1_065
    );
    let newest = history.entries(Revision::new(67), 150).unwrap();
    let revisions: Vec<_> = newest.iter().map(|log| log.revision.get()).collect();
    assert_eq!(revisions, (1..=67).rev().collect::<Vec<_>>());
    let rest = world.runtime.block_on(one.heads(Budget::READ)).unwrap();
    assert_eq!(rest.head.unwrap().0.unwrap().staged, 0);
}

/// Models that are small, and many.
pub(super) fn many(revision: u64, models: std::ops::Range<usize>) -> Change {
    let at = Revision::new(revision);
    let edits = models.map(|n| model(record_of(&format!("model-{n:05}"), at)));
    let edits: Vec<_> = edits.collect();
    let mut many = change(gone("x"), at);
    let entry = many.entry.as_mut().unwrap();
    entry.log = LogRecord::of(&edits, at, time(1));
    entry.edits = edits;
    many
}

fn record_of(id: &str, revision: Revision) -> ModelRecord {
    ModelRecord {
        spec: spec(id, 1),
        revision,
        created: time(1),
        updated: time(revision.get()),
    }
}

fn staged_keys(world: &World, store: &EtcdStore) -> usize {
    let staged = store.layout.key("staged/");
    let range = RangeRequest {
        range_end: ops::after_prefix(&staged),
        key: staged,
        ..RangeRequest::default()
    };
    world.runtime.block_on(store.etcd.all(range)).unwrap().len()
}

pub(super) fn a_commit_may_change_the_whole_registry(world: &World) {
    let (mut one, mut two) = world.two("all");
    // A model, and its edit in the history: over 20,000 operations.
    one.commit(&[many(2, 0..10_000)]).unwrap();
    assert_eq!(changes_of(two.news().unwrap()), [many(2, 0..10_000)]);
    assert_eq!(two.load().unwrap().models.len(), 10_000);
    assert_eq!(staged_keys(world, &one), 0);
}

pub(super) fn parts_of_a_commit_that_was_not_made_are_removed(world: &World) {
    let (mut one, mut two) = world.two("not-made");
    one.commit(&[put("a", 1, 2)]).unwrap();
    let error = two.commit(&[many(2, 0..300)]).unwrap_err();
    assert!(matches!(error, StoreError::Conflict), "{error}");
    let error = one.commit_as(&[many(3, 0..300)], 7).unwrap_err();
    assert!(error.to_string().contains("does not decide"), "{error}");
    assert_eq!(staged_keys(world, &one), 0);
    // What one leaves that ends between is removed as somebody stages after the head went on.
    leave_half_way(&one, &world.runtime, large(3, 300), false);
    let left = staged_keys(world, &one);
    assert!(left > 0);
    one.commit(&[put("b", 1, 3)]).unwrap();
    assert_eq!(staged_keys(world, &one), left);
    one.commit(&[many(4, 0..300)]).unwrap();
    assert_eq!(staged_keys(world, &one), 0);
    assert_eq!(one.load().unwrap().models.len(), 302);
}

/// What a process leaves that ends with the head written and nothing in its place.
fn leave_half_way(store: &EtcdStore, runtime: &Runtime, change: Change, heads: bool) {
    let at = store.at.clone().unwrap();
    let folded = Folded::of(&store.layout, std::slice::from_ref(&change), "left");
    let head = Head {
        revision: change.revision.get(),
        models: folded.count_models(&at.models),
        commit: "left".to_owned(),
        ..at.head.clone()
    };
    let ops: Vec<Op> = folded.into_ops(&store.layout);
    let parts = parts(ops);
    assert!(parts.len() > 1);
    runtime.block_on(async {
        for (n, part) in parts.iter().enumerate() {
            let put = ops::put(store.layout.part("left", n), part.encode_to_vec(), 0);
            let txn = TxnRequest {
                compare: Vec::new(),
                success: vec![put],
                failure: Vec::new(),
            };
            store.etcd.txn(txn, Budget::WRITE).await.unwrap();
        }
        let staged = u32::try_from(parts.len()).unwrap();
        let head = Head { staged, ..head };
        let txn = TxnRequest {
            compare: vec![ops::unchanged_since(store.layout.head(), at.head_mod)],
            success: vec![ops::put(store.layout.head(), head.encode_to_vec(), 0)],
            failure: Vec::new(),
        };
        if heads {
            assert!(store.etcd.txn(txn, Budget::WRITE).await.unwrap().succeeded);
        }
    });
}

pub(super) fn a_large_commit_that_was_left_half_way_is_finished_by_who_finds_it(world: &World) {
    let (one, mut two) = world.two("half-way");
    leave_half_way(&one, &world.runtime, large(2, 300), true);
    assert_eq!(changes_of(two.news().unwrap()), [large(2, 300)]);
    let (one, mut three) = world.two("half-way");
    leave_half_way(&one, &world.runtime, large(3, 300), true);
    let stored = three.load().unwrap();
    assert_eq!(
        (stored.revision, stored.models.len()),
        (Revision::new(3), 300)
    );
    assert_eq!(stored.models[0].updated, time(3));
    let (one, mut four) = world.two("half-way");
    leave_half_way(&one, &world.runtime, large(4, 300), true);
    let error = four.commit(&[put("b", 1, 4)]).unwrap_err();
    assert!(matches!(error, StoreError::Conflict), "{error}");
    four.news().unwrap();
    four.commit(&[put("b", 1, 5)]).unwrap();
    assert_eq!(four.load().unwrap().models.len(), 301);
    // Parts without a head were never made, and are swept by the next start.
    let one = world.open("half-way-2");
    let mut loaded = one;
    loaded.load().unwrap();
    leave_half_way(&loaded, &world.runtime, large(2, 300), false);
    let mut next = world.open("half-way-2");
    assert_eq!(next.load().unwrap().revision, Revision::new(1));
    let staged = loaded.layout.key("staged/");
    let range = RangeRequest {
        range_end: ops::after_prefix(&staged),
        key: staged,
        ..RangeRequest::default()
    };
    assert_eq!(
        world.runtime.block_on(next.etcd.all(range)).unwrap().len(),
        0
    );
}
