//! Connections that carry several requests at a time.

use super::*;

fn shell(size: usize, streams: usize) -> Shell {
    let mut shell = Shell::new(shape(size), 0);
    shell.streams = streams;
    shell.reshape(shape(size), &[0]);
    shell
}

#[test]
fn one_connect_serves_as_many_as_the_connection_carries_and_no_more() {
    let mut shell = shell(50, 8);
    let waiters: Vec<_> = (0..20).map(|_| shell.acquire()).collect();
    assert_eq!(shell.connects.len(), 1, "what it carries is not known yet");
    shell.connect();
    assert_eq!(shell.granted, waiters[..8]);
    assert_eq!(shell.connects.len(), 2, "12 more, 8 on each");
    shell.connect();
    shell.connect();
    assert_eq!(shell.granted, waiters);
    let census = shell.census();
    assert_eq!((census.active, census.idle, census.in_flight), (3, 0, 20));
    for waiter in waiters {
        shell.release(waiter, Outcome::Reusable);
    }
    let census = shell.census();
    assert_eq!((census.active, census.idle, shell.closed), (0, 3, 0));
}

#[test]
fn the_size_bounds_requests_whatever_a_connection_could_carry() {
    let mut shell = shell(5, 32);
    let waiters: Vec<_> = (0..9).map(|_| shell.acquire()).collect();
    shell.connect();
    assert_eq!(shell.granted, waiters[..5]);
    assert!(shell.connects.is_empty(), "a second one would serve nobody");
    shell.release(waiters[1], Outcome::Aborted);
    assert_eq!(shell.granted, waiters[..6], "and the connection goes on");
    assert_eq!(shell.closed, 0);
}

#[test]
fn a_connection_that_ends_takes_its_places_with_it_and_is_counted_once() {
    let mut shell = shell(10, 4);
    let waiters: Vec<_> = (0..4).map(|_| shell.acquire()).collect();
    shell.connect();
    let id = shell.leases[&waiters[0]].id;
    let effects = shell.core.ended(shell.now, id);
    shell.run(effects);
    for waiter in waiters {
        shell.release(waiter, Outcome::Broken(CloseReason::Upstream));
    }
    assert_eq!((shell.closed, shell.core.counters.open()), (1, 0));
    // None of them was answered: as good as no connection.
    let next = shell.acquire();
    shell.sweep(60);
    shell.connect();
    assert_eq!(shell.granted.last(), Some(&next));
}

/// The server goes in good order, and answers what it has.
#[test]
fn one_whose_end_is_told_early_is_closed_after_its_last_request() {
    let mut shell = shell(10, 4);
    let (first, second) = (shell.acquire(), shell.acquire());
    shell.connect();
    let id = shell.leases[&first].id;
    let effects = shell.core.ended(shell.now, id);
    shell.run(effects);
    assert_eq!((shell.closed, shell.census().in_flight), (0, 2));
    let third = shell.acquire();
    assert!(!shell.granted.contains(&third), "it takes no more");
    shell.release(first, Outcome::Reusable);
    assert_eq!(shell.closed, 0);
    shell.release(second, Outcome::Reusable);
    assert_eq!(shell.closed, 1);
}

#[test]
fn one_who_needs_a_fresh_one_shares_a_newer_one_with_others() {
    let mut shell = shell(10, 4);
    let waiters: Vec<_> = (0..3).map(|_| shell.acquire()).collect();
    shell.connect();
    // All three fail together, and the connection with them.
    shell.now += at(10);
    let id = shell.leases[&waiters[0]].id;
    let effects = shell.core.ended(shell.now, id);
    shell.run(effects);
    for waiter in &waiters {
        shell.release(*waiter, Outcome::Broken(CloseReason::Error));
    }
    let again: Vec<_> = (0..3)
        .map(|_| shell.acquire_at(Place::FrontForFresh))
        .collect();
    assert_eq!(shell.connects.len(), 1);
    shell.now += at(10);
    shell.connect();
    for waiter in again {
        assert!(shell.granted.contains(&waiter));
    }
}

#[test]
fn one_that_declined_gets_no_more_than_it_took() {
    let mut shell = shell(10, 4);
    let waiters: Vec<_> = (0..3).map(|_| shell.acquire()).collect();
    shell.connect();
    shell.release(waiters[2], Outcome::Declined);
    let again = shell.acquire_at(Place::Front);
    assert!(!shell.granted.contains(&again), "not to the same one");
    shell.connect();
    assert!(shell.granted.contains(&again));
    assert_eq!(shell.closed, 0);
}

#[test]
fn one_that_is_going_gets_no_more_and_closes_after_its_last() {
    let mut shell = shell(10, 4);
    let (first, second) = (shell.acquire(), shell.acquire());
    shell.connect();
    shell.release(first, Outcome::Finished);
    assert_eq!(shell.closed, 0, "another is on it");
    let third = shell.acquire();
    assert!(!shell.granted.contains(&third));
    shell.connect();
    assert!(shell.granted.contains(&third));
    shell.release(second, Outcome::Reusable);
    assert_eq!(shell.closed, 1);
}

#[test]
fn the_server_may_change_how_many_it_takes() {
    let mut shell = shell(10, 4);
    let waiters: Vec<_> = (0..2).map(|_| shell.acquire()).collect();
    shell.connect();
    let id = shell.leases[&waiters[0]].id;
    let effects = shell.core.allow(shell.now, id, 2);
    shell.run(effects);
    let third = shell.acquire();
    assert!(!shell.granted.contains(&third));
    let effects = shell.core.allow(shell.now, id, 3);
    shell.run(effects);
    assert!(shell.granted.contains(&third));
}

#[test]
fn an_old_one_is_closed_after_its_last_request_and_an_idle_one_by_the_idle_limit() {
    let old = Shape {
        max_age: Some(at(1_000)),
        ..shape(10)
    };
    let mut shell = shell(10, 4);
    let waiter = shell.acquire();
    shell.connect();
    shell.reshape(old, &[0]);
    shell.sweep(1_500);
    assert_eq!(shell.closed, 0);
    let other = shell.acquire();
    assert!(!shell.granted.contains(&other), "it is on its way out");
    shell.release(waiter, Outcome::Reusable);
    assert_eq!(shell.closed, 1);
    shell.connect();
    shell.release(other, Outcome::Reusable);
    shell.reshape(shape(10), &[0]);
    shell.sweep(4_000);
    assert_eq!(shell.closed, 2);
}

#[test]
fn a_retired_endpoint_keeps_what_is_in_use_until_its_last_request() {
    let mut shell = shell(10, 4);
    let (first, second) = (shell.acquire(), shell.acquire());
    shell.connect();
    shell.reshape(shape(10), &[1]);
    assert_eq!(shell.census().draining, 1);
    shell.release(first, Outcome::Reusable);
    assert_eq!(shell.closed, 0);
    shell.release(second, Outcome::Reusable);
    assert_eq!(shell.closed, 1);
}
