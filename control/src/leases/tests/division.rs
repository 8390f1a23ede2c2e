//! Who is lent how much, as workers come, go and are of other builds, and limits change.

use super::*;

#[test]
fn nothing_is_sent_that_is_not_on_record() {
    let mut play = Play::new(Table::default(), limit(10));
    play.join(1, "a", false);
    play.report(1, |_| {});
    play.machine.pass(play.now);
    let grants = play.machine.publish(play.now);
    assert!(grants[0].1.shares.is_empty(), "{grants:?}");
    let table = play.machine.to_keep().unwrap();
    assert_eq!(table.workers[&id(1)], BTreeMap::from([(model(), 1)]));
    play.machine.kept(table);
    let grants = play.machine.publish(play.now);
    let share = Share { size: 10, floor: 1 };
    assert_eq!(grants[0].1.shares[&model()], share);
    assert_eq!(play.machine.to_keep(), None);
}

#[test]
fn what_is_taken_away_is_given_on_as_it_is_shown_to_be_free() {
    let mut play = Play::new(Table::default(), limit(20));
    play.join(1, "a", false);
    play.settle(3);
    assert_eq!(play.sizes(), [20]);
    play.join(2, "b", false);
    play.workers.get_mut(&2).unwrap().used.waiting = 100;
    play.report(2, |_| {});
    play.divide();
    assert_eq!(play.sizes(), [10, 0], "told, and nothing free yet");
    // Three requests end.
    play.workers.get_mut(&1).unwrap().used.in_flight = 17;
    play.report(1, |_| {});
    play.divide();
    assert_eq!(play.sizes(), [10, 3]);
    assert_eq!(play.figures().used, 20);
    play.settle(2);
    assert_eq!(play.sizes(), [10, 10]);
}

#[test]
fn one_that_vanished_is_counted_until_its_time_is_over_and_its_floor_until_it_is_forgotten() {
    let mut play = Play::new(Table::default(), limit(20));
    play.join(1, "a", false);
    play.join(2, "b", false);
    play.settle(4);
    assert_eq!(play.sizes(), [10, 10]);
    play.leave(2);
    for second in 1..33 {
        play.now = secs(second);
        play.settle(1);
        assert_eq!(play.sizes(), [10], "at {second}");
    }
    play.now += SETTINGS.safe();
    play.settle(2);
    assert_eq!(play.sizes(), [19]);
    let shown = play.machine.leases_of(play.now, "w2");
    assert_eq!(shown[0].state(), forebay_proto::wire::LeaseState::Floor);
    assert_eq!(play.machine.forget("w1"), Forgot::Connected);
    assert_eq!(play.machine.forget("w2"), Forgot::Done);
    assert_eq!(play.machine.forget("w2"), Forgot::Unknown);
    play.settle(2);
    assert_eq!(play.sizes(), [20]);
    assert!(!play.table.workers.contains_key(&id(2)));
}

#[test]
fn grants_that_are_lost_time_and_again_count_and_stop_nothing() {
    let mut play = Play::new(Table::default(), limit(20));
    play.join(1, "a", false);
    play.settle(3);
    let (grant, size) = (play.workers[&1].grant, 20);
    for _ in 0..100 {
        play.report(1, |report| report.grant = grant);
        play.divide();
        // It never came.
        play.workers.get_mut(&1).unwrap().grant = grant;
        assert_eq!(play.figures().used, size);
    }
    play.report(1, |report| report.grant = grant);
    let grants = play.divide();
    assert_eq!(grants.len(), 1, "and the next one is sent all the same");
}

#[test]
fn a_lower_limit_shrinks_first() {
    let mut play = Play::new(Table::default(), limit(30));
    for n in 1..=3 {
        play.join(n, "a", false);
    }
    play.settle(5);
    assert_eq!(play.sizes(), [10, 10, 10]);
    play.configure(limit(9));
    play.report(1, |_| {});
    play.divide();
    assert_eq!(play.sizes(), [3, 3, 3]);
    play.join(4, "n", false);
    play.report(4, |_| {});
    play.divide();
    assert_eq!(play.workers[&4].used.size, 0, "30 may still be in flight");
    play.settle(4);
    assert_eq!(play.sizes().iter().sum::<u32>(), 9);
}

#[test]
fn who_may_have_a_pool_of_its_own_counts_with_it_until_it_says_otherwise() {
    let own = Limit {
        own: Some(50),
        ..limit(60)
    };
    let mut play = Play::new(Table::default(), own);
    play.join(1, "a", false);
    play.join(2, "b", false).applied = 4;
    play.report(1, |_| {});
    // The second has yet to take the configuration.
    play.report(2, |report| report.uses.clear());
    play.divide();
    assert_eq!(play.sizes(), [10, 0]);
    assert_eq!(play.figures().held_back, 50);
    // It could not, and goes on with what it had.
    play.workers.get_mut(&2).unwrap().applied = 9;
    play.workers.get_mut(&2).unwrap().own = BTreeMap::from([(model(), 50)]);
    play.report(2, |report| report.uses.clear());
    play.divide();
    assert_eq!(play.figures().held_back, 50);
    let shown = play.machine.leases_of(play.now, "w2");
    assert_eq!(shown[0].state(), forebay_proto::wire::LeaseState::OwnPool);
    play.workers.get_mut(&2).unwrap().own.clear();
    play.settle(4);
    assert_eq!(play.sizes(), [30, 30]);
}

#[test]
fn a_build_that_knows_no_leases_gets_nothing_and_counts_with_what_it_may_have_had() {
    let old = |play: &mut Play| {
        let standing = Standing {
            stream: 100,
            instance: InstanceId::new("old").unwrap(),
            takes_over: false,
            count: 0,
            displaces: false,
            repeated: false,
            knows: false,
            connected: true,
            report: None,
        };
        play.machine.hear(play.now, &id(9), &standing);
    };
    let mut play = Play::new(Table::default(), limit(60));
    old(&mut play);
    play.join(1, "a", false);
    play.settle(3);
    assert_eq!(play.sizes(), [60], "it never had the model");
    let shown = play.machine.leases_of(play.now, "w9");
    assert_eq!(shown[0].state(), forebay_proto::wire::LeaseState::TooOld);
    assert!(shown[0].reason.contains("replace it"));
    let own = Limit {
        own: Some(50),
        ..limit(60)
    };
    let mut play = Play::new(Table::default(), own);
    old(&mut play);
    play.join(1, "a", false);
    play.settle(3);
    assert_eq!(play.sizes(), [10]);
}

#[test]
fn one_that_ends_gives_back_as_it_goes_and_leaves_nothing() {
    let mut play = Play::new(Table::default(), limit(20));
    play.join(1, "a", false);
    play.join(2, "b", false);
    play.settle(4);
    let used = &mut play.workers.get_mut(&2).unwrap().used;
    (used.in_flight, used.waiting) = (4, 0);
    play.report(2, |report| report.ending = true);
    play.divide();
    assert_eq!(play.sizes()[1], 4);
    play.workers.get_mut(&2).unwrap().used = Use::default();
    play.report(2, |report| {
        report.done = true;
        report.uses.clear();
    });
    play.leave(2);
    play.settle(2);
    assert_eq!(play.sizes(), [20]);
    assert!(!play.table.workers.contains_key(&id(2)));
}

#[test]
fn one_that_is_silent_gets_nothing_more_and_is_counted() {
    let mut play = Play::new(Table::default(), limit(20));
    play.join(1, "a", false);
    play.join(2, "b", false);
    play.settle(4);
    let silent = play.workers.remove(&2).unwrap();
    for _ in 0..30 {
        play.now += secs(1);
        play.settle(1);
        assert!(play.sizes()[0] <= 10);
    }
    play.now += SETTINGS.safe();
    play.settle(2);
    assert_eq!(play.sizes(), [19]);
    // It is back on the same stream: as it left, less what ran out.
    play.workers.insert(2, silent);
    let used = &mut play.workers.get_mut(&2).unwrap().used;
    (used.size, used.in_flight) = (1, 1);
    play.report(2, |_| {});
    play.divide();
    assert_eq!(play.figures().used, 20);
    play.settle(3);
    assert_eq!(play.sizes(), [10, 10]);
}
