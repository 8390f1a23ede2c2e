//! A control plane that begins: what is on record, what is not, and how long is waited for it.

use super::*;

/// A control plane that was up for long when it began to decide.
#[test]
fn who_is_on_record_is_not_forgotten_because_this_process_is_old() {
    let table = Table {
        lineage: Some(epoch()),
        workers: BTreeMap::from([(id(0), BTreeMap::from([(model(), 1)]))]),
        ..Table::default()
    };
    let now = secs(25 * 60 * 60);
    let on_record = (table, origin(false));
    let mut machine = Machine::new(now, SETTINGS, on_record, MachineFaults::default());
    machine.configure(BTreeMap::from([(model(), limit(8))]));
    machine.pass(now);
    assert_eq!(machine.sum(now, &model(), &limit(8)).unknown, [id(0)]);
}

/// What was granted before the times were made shorter holds for as long as it was granted for, and no longer.
#[test]
fn shorter_times_count_once_what_was_granted_under_the_longer_ones_has_run_out() {
    let before = LeaseSettings {
        ttl: secs(60),
        linger: secs(60),
    };
    let held = BTreeMap::from([(id(0), BTreeMap::from([(model(), 1)]))]);
    let begin = |lineage, workers| {
        let table = Table {
            lineage,
            ttl: before.ttl,
            linger: before.linger,
            workers,
            ..Table::default()
        };
        let on_record = (table, origin(false));
        Machine::new(secs(0), SETTINGS, on_record, MachineFaults::default())
    };
    let mut machine = begin(Some(epoch()), held);
    assert_eq!(machine.patience().safe, before.safe());
    machine.pass(before.safe().saturating_sub(secs(1)));
    assert_eq!(machine.patience().safe, before.safe());
    machine.pass(before.safe());
    assert_eq!(machine.patience().safe, SETTINGS.safe());
    // Of those times nothing is waited for where nobody is on record, if all are.
    let empty = begin(Some(epoch()), BTreeMap::new());
    assert_eq!(empty.patience().safe, SETTINGS.safe());
    let partly = begin(None, BTreeMap::new());
    assert_eq!(partly.patience().safe, before.safe());
}

/// One whose own time is over has what it had lent run out by the shorter times, too.
#[test]
fn one_that_vanishes_later_runs_out_by_the_times_that_it_was_granted_under() {
    let table = Table {
        lineage: Some(epoch()),
        linger: secs(500),
        workers: BTreeMap::from([(id(1), BTreeMap::from([(model(), 1)]))]),
        ..Table::default()
    };
    let mut play = Play::new(table, limit(20));
    for n in 1..=2 {
        play.join(n, "a", false);
    }
    play.now = secs(600);
    play.settle(4);
    assert_eq!(play.sizes(), [10, 10]);
    play.leave(1);
    play.now += SETTINGS.safe().saturating_sub(secs(1));
    play.settle(3);
    assert_eq!(play.sizes(), [10]);
    play.now += secs(1);
    play.settle(3);
    assert_eq!(play.sizes(), [19]);
}

#[test]
fn a_control_plane_that_begins_waits_for_those_on_record_and_renews_the_others() {
    let mut before = Play::new(Table::default(), limit(20));
    for n in 1..=2 {
        before.join(n, "a", false);
    }
    before.settle(4);
    assert_eq!(before.sizes(), [10, 10]);
    let mut play = Play::new(before.table.clone(), limit(20));
    play.now = secs(1);
    play.join(1, "a", false);
    (play.workers.get_mut(&1).unwrap().used) = Use {
        size: 10,
        floor: 1,
        in_flight: 10,
        waiting: 50,
    };
    play.report(1, |_| {});
    assert_eq!(play.divide().len(), 1, "renewed");
    assert_eq!(play.sizes(), [10], "and not grown");
    let pools = play.machine.pools(play.now, None);
    assert!(pools[0].waits_for.contains("w2"), "{}", pools[0].waits_for);
    // A third one is new and gets nothing of what the second may have.
    play.join(3, "n", false);
    play.settle(2);
    assert_eq!(play.sizes().iter().sum::<u32>(), 10);
    // The second one comes back, and holds less than it might have.
    play.join(2, "a", false);
    play.workers.get_mut(&2).unwrap().used.size = 4;
    play.settle(4);
    assert_eq!(play.sizes().iter().sum::<u32>(), 20);
    // Or it never does.
    let mut alone = Play::new(before.table, limit(20));
    alone.now = SETTINGS.safe();
    alone.join(1, "a", false);
    alone.settle(3);
    assert_eq!(alone.sizes(), [19], "its floor is kept for it");
}

#[test]
fn the_time_that_counts_at_a_start_is_the_longest_that_was_granted() {
    let table = Table {
        lineage: Some(epoch()),
        linger: secs(500),
        workers: BTreeMap::from([(id(2), BTreeMap::from([(model(), 1)]))]),
        ..Table::default()
    };
    let mut play = Play::new(table, limit(20));
    play.now = secs(400);
    play.join(1, "a", false);
    play.settle(3);
    assert_eq!(play.sizes(), [0]);
    assert_eq!(play.table.linger, secs(500));
    play.now = secs(600);
    play.settle(3);
    assert_eq!(play.sizes(), [19]);
}

/// Who holds ten, says so and wants more; and one that is new.
fn one_that_holds_and_one_that_is_new(play: &mut Play) {
    play.join(1, "a", false).used = Use {
        size: 10,
        floor: 1,
        in_flight: 10,
        waiting: 50,
    };
    play.report(1, |_| {});
    play.join(2, "n", false);
    play.settle(3);
}

#[test]
fn without_a_table_of_this_store_nothing_grows_until_what_may_have_been_lent_has_run_out() {
    let on_record = BTreeMap::from([(id(1), BTreeMap::from([(model(), 1)]))]);
    let of = |lineage: Option<&str>| Table {
        lineage: lineage.map(|epoch| Epoch::new(epoch).unwrap()),
        workers: on_record.clone(),
        ..Table::default()
    };
    // None; one that was restored or moved; one of which it is not known.
    for table in [Table::default(), of(Some("bb")), of(None)] {
        let mut play = Play::of(origin(false), table, limit(20));
        one_that_holds_and_one_that_is_new(&mut play);
        assert_eq!(
            play.sizes(),
            [10, 0],
            "renewed, and somebody may hold the rest"
        );
        let pools = play.machine.pools(play.now, None);
        let waits = &pools[0].waits_for;
        assert!(waits.contains("not on record"), "{waits}");
        assert_eq!(play.table.lineage, None);
        // Who is next does not know it either, however much of it is over.
        play.now = SETTINGS.safe().saturating_sub(secs(1));
        play.settle(1);
        let mut next = Play::of(origin(false), play.table.clone(), limit(20));
        one_that_holds_and_one_that_is_new(&mut next);
        assert_eq!(next.sizes(), [10, 0]);
        // Whoever did not come has run out.
        play.now = SETTINGS.safe();
        play.settle(4);
        assert_eq!(play.sizes(), [10, 10]);
        assert_eq!(play.table.lineage, Some(epoch()));
        let mut next = Play::of(origin(false), play.table.clone(), limit(20));
        one_that_holds_and_one_that_is_new(&mut next);
        next.settle(3);
        assert_eq!(next.sizes(), [10, 10], "all are known");
    }
}

#[test]
fn a_registry_that_is_new_waits_for_nobody_and_a_table_from_before_it_is_none_of_its() {
    let mut play = Play::of(origin(true), Table::default(), limit(20));
    play.join(1, "a", false);
    play.settle(3);
    assert_eq!(play.sizes(), [20]);
    assert_eq!(play.table.lineage, Some(epoch()));
    let left = Table {
        lineage: Some(Epoch::new("bb").unwrap()),
        ..Table::default()
    };
    let mut play = Play::of(origin(true), left, limit(20));
    play.join(1, "a", false);
    play.settle(3);
    assert_eq!(play.sizes(), [0]);
}

#[test]
fn the_longest_time_is_on_record_for_as_long_as_it_is_waited_for() {
    let table = Table {
        linger: secs(500),
        ..Table::default()
    };
    let mut play = Play::of(origin(false), table, limit(20));
    play.now = secs(400);
    play.join(1, "a", false);
    play.settle(2);
    assert_eq!((play.sizes(), play.table.linger), (vec![0], secs(500)));
    play.now = secs(600);
    play.settle(2);
    assert_eq!(
        (play.sizes(), play.table.linger),
        (vec![20], SETTINGS.linger)
    );
}
