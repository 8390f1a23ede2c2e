//! Requests that only one endpoint can answer.

use super::*;

fn origin_of(shell: &Shell, waiter: u64) -> Option<u64> {
    shell.leases.get(&waiter).map(|held| held.origin.0)
}

#[test]
fn each_is_served_by_its_endpoint_and_no_other() {
    let mut shell = Shell::new(shape(4), 3);
    for _ in 0..5 {
        for only in 0..3 {
            let waiter = shell.acquire_of(only);
            shell.connect();
            assert_eq!(origin_of(&shell, waiter), Some(only));
            shell.release(waiter, Outcome::Reusable);
        }
    }
    assert_eq!(shell.core.counters.open(), 3, "no more than one each");
}

#[test]
fn in_a_full_pool_an_idle_connection_elsewhere_gives_way() {
    let mut shell = Shell::new(shape(1), 2);
    let first = shell.acquire_of(0);
    shell.connect();
    let second = shell.acquire_of(1);
    assert!(shell.connects.is_empty(), "it is in use");
    shell.release(first, Outcome::Reusable);
    assert_eq!(shell.closed, 1);
    shell.connect();
    assert_eq!(origin_of(&shell, second), Some(1));
}

#[test]
fn others_are_not_held_up() {
    let mut shell = Shell::new(shape(3), 2);
    let busy = shell.acquire_of(0);
    shell.connect();
    let choosy = shell.acquire_of(1);
    let ticket = shell.connects.pop().unwrap().0;
    shell.release(busy, Outcome::Reusable);
    let other = shell.acquire();
    assert_eq!(origin_of(&shell, other), Some(0));
    shell.connected(ticket);
    assert_eq!(origin_of(&shell, choosy), Some(1));
}

#[test]
fn where_the_endpoint_is_gone_or_fails_they_are_sent_away() {
    let mut shell = Shell::new(shape(1), 2);
    let busy = shell.acquire_of(0);
    shell.connect();
    let waits = shell.acquire_of(1);
    shell.reshape(shape(1), &[0]);
    assert_eq!(shell.refused.len(), 1);
    assert_eq!(shell.refused[0].0, waits);
    shell.release(busy, Outcome::Reusable);
    shell.reshape(shape(1), &[0, 1]);
    shell.acquire_of(1);
    for _ in 0..40 {
        match shell.connects.last() {
            Some((_, OriginId(1))) => shell.refuse(),
            _ => shell.connect(),
        }
        shell.sweep(100);
    }
    assert_eq!(shell.refused.len(), 2, "it fails");
    assert!(shell.waiters.is_empty());
    let fine = shell.acquire();
    assert_eq!(origin_of(&shell, fine), Some(0), "others are not harmed");
}

/// Whatever comes in between, everybody is served or sent away.
#[test]
fn nobody_is_forgotten() {
    for seed in 0..300 {
        let mut dice = fastrand::Rng::with_seed(seed);
        let mut shell = Shell::new(shape(dice.usize(1..4)), 3);
        for _ in 0..80 {
            match dice.u32(0..8) {
                0..2 => drop(shell.acquire()),
                2..4 => drop(shell.acquire_of(dice.u64(0..4))),
                4 => shell.connect(),
                5 if dice.bool() => shell.refuse(),
                6 => shell.sweep(dice.u64(1..300)),
                _ => {
                    let held = shell.leases.keys().copied().next();
                    let outcome = match dice.bool() {
                        true => Outcome::Reusable,
                        false => Outcome::Broken(CloseReason::Cancelled),
                    };
                    held.into_iter()
                        .for_each(|waiter| shell.release(waiter, outcome));
                }
            }
        }
        for _ in 0..200 {
            shell.connect();
            let held: Vec<u64> = shell.leases.keys().copied().collect();
            held.into_iter()
                .for_each(|waiter| shell.release(waiter, Outcome::Reusable));
            shell.sweep(50);
        }
        assert!(shell.waiters.is_empty(), "{seed}: {:?}", shell.waiters);
    }
}
