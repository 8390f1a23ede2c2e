//! Several processes of one worker: one after another, one beside another, one in place of another.

use super::*;

#[test]
fn a_new_process_of_the_same_worker_frees_what_the_old_one_had() {
    let mut play = Play::new(Table::default(), limit(20));
    play.join(1, "a", false);
    play.join(2, "b", false);
    play.settle(4);
    play.leave(2);
    play.now = secs(1);
    play.join(2, "c", false);
    assert_eq!(play.figures().used, 10);
    play.settle(3);
    assert_eq!(play.sizes(), [10, 10]);
}

#[test]
fn one_that_takes_over_has_nothing_until_it_speaks_for_both() {
    let mut play = Play::new(Table::default(), limit(20));
    play.join(1, "a", false);
    play.settle(3);
    play.now = secs(1);
    play.join(1, "heir", true);
    play.report(1, |report| report.alone = false);
    play.divide();
    assert_eq!(play.sizes(), [0], "the one before may use all");
    assert_eq!(play.figures().used, 20);
    // It was handed all but what the old one keeps, which counts as its own.
    let used = &mut play.workers.get_mut(&1).unwrap().used;
    (used.size, used.floor, used.in_flight) = (20, 1, 7);
    play.report(1, |_| {});
    play.divide();
    assert_eq!(play.sizes(), [20]);
    assert_eq!(play.figures().used, 20);
}

#[test]
fn one_that_comes_while_another_is_there_leaves_it_what_it_may_use_until_its_time_is_over() {
    let mut play = Play::new(Table::default(), limit(20));
    play.join(1, "a", false);
    play.settle(3);
    play.join_as(1, "b", false, true);
    while play.now < SETTINGS.safe() {
        // That it is alone is what it thinks.
        play.report(1, |_| {});
        play.divide();
        assert_eq!(play.sizes(), [0]);
        assert_eq!(play.figures().used, 20);
        play.now += secs(2);
    }
    play.report(1, |_| {});
    play.divide();
    assert_eq!(play.sizes(), [20]);
}

#[test]
fn the_process_before_counts_no_longer_than_its_time() {
    let mut play = Play::new(Table::default(), limit(20));
    play.join(1, "a", false);
    play.settle(3);
    play.join(1, "heir", true);
    let safe = SETTINGS.safe();
    while play.now < safe {
        play.report(1, |report| report.alone = false);
        play.divide();
        assert_eq!(play.sizes(), [0]);
        play.now += secs(2);
    }
    play.report(1, |report| report.alone = false);
    play.divide();
    assert_eq!(play.sizes(), [19], "but for the floor");
}

#[test]
fn who_takes_over_speaks_for_the_one_before_it_and_for_no_other() {
    let mut play = Play::new(Table::default(), limit(20));
    play.join(1, "a", false);
    play.settle(3);
    // Another process comes while that one may be alive, and hands over.
    play.now = secs(1);
    play.join_as(1, "b", false, true);
    play.report(1, |_| {});
    play.divide();
    play.join(1, "heir", true);
    play.now = secs(2);
    play.report(1, |_| {});
    play.divide();
    assert_eq!((play.sizes(), play.figures().used), (vec![0], 20));
    // That one takes over from a process before it, and is followed in turn.
    play.join(1, "heirs-heir", true);
    play.report(1, |report| report.alone = false);
    play.report(1, |_| {});
    play.divide();
    assert_eq!((play.sizes(), play.figures().used), (vec![0], 20));
    play.now = SETTINGS.safe() + secs(1);
    play.report(1, |_| {});
    play.divide();
    assert_eq!(play.sizes(), [20]);
}

#[test]
fn an_heir_of_an_heir_speaks_for_both_before_it() {
    let mut play = Play::new(Table::default(), limit(20));
    play.join(1, "a", false);
    play.settle(3);
    play.join(1, "heir", true);
    play.report(1, |report| report.alone = false);
    play.join(1, "heirs-heir", true);
    play.report(1, |report| report.alone = false);
    play.divide();
    assert_eq!((play.sizes(), play.figures().used), (vec![0], 20));
    play.report(1, |_| {});
    play.divide();
    assert_eq!(play.sizes(), [20]);
}

#[test]
fn many_processes_one_after_another_are_kept_aside_as_one() {
    let mut play = Play::new(Table::default(), limit(20));
    play.join(1, "a", false);
    play.settle(3);
    for n in 0..100 {
        play.join_as(1, &format!("b{n}"), false, true);
        play.report(1, |_| {});
        play.divide();
        assert_eq!((play.sizes(), play.figures().used), (vec![0], 20));
    }
    play.now = SETTINGS.safe();
    play.report(1, |_| {});
    play.divide();
    assert_eq!(play.sizes(), [20]);
}
