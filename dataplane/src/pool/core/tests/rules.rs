//! The rules of the module's doc, one by one, by hand.

use super::*;

#[test]
fn every_returned_connection_is_kept_up_to_the_size() {
    let mut shell = Shell::new(shape(50), 1);
    let waiters: Vec<_> = (0..50).map(|_| shell.acquire()).collect();
    (0..50).for_each(|_| shell.connect());
    for waiter in waiters {
        shell.release(waiter, Outcome::Reusable);
    }
    assert_eq!(shell.census().idle, 50);
    assert_eq!(shell.closed, 0);
}

#[test]
fn waiters_are_served_in_order_and_the_newest_idle_goes_first() {
    let mut shell = Shell::new(shape(1), 1);
    let first = shell.acquire();
    let (second, third) = (shell.acquire(), shell.acquire());
    assert_eq!(shell.connects.len(), 1);
    shell.connect();
    shell.release(first, Outcome::Reusable);
    shell.release(second, Outcome::Reusable);
    assert_eq!(shell.granted, [first, second, third]);
}

#[test]
fn a_full_line_refuses_the_newest_only() {
    let mut shell = Shell::new(
        Shape {
            max_waiting: 1,
            ..shape(1)
        },
        1,
    );
    let (first, second, third) = (shell.acquire(), shell.acquire(), shell.acquire());
    assert_eq!(shell.refused, [(third, Refused::QueueFull)]);
    shell.connect();
    shell.release(first, Outcome::Reusable);
    assert_eq!(shell.granted, [first, second]);
}

#[test]
fn nobody_waits_with_max_waiting_zero_but_connects_are_no_queue() {
    let mut shell = Shell::new(
        Shape {
            max_waiting: 0,
            ..shape(2)
        },
        1,
    );
    let (_, _) = (shell.acquire(), shell.acquire());
    assert!(shell.refused.is_empty());
    let third = shell.acquire();
    assert_eq!(shell.refused, [(third, Refused::QueueFull)]);
}

#[test]
fn shrink_closes_idle_ones_first_and_leases_as_they_return() {
    let mut shell = Shell::new(shape(4), 1);
    let waiters: Vec<_> = (0..4).map(|_| shell.acquire()).collect();
    (0..4).for_each(|_| shell.connect());
    shell.release(waiters[0], Outcome::Reusable);
    shell.reshape(shape(2), &[0]);
    assert_eq!((shell.closed, shell.census().active), (1, 3));
    shell.release(waiters[1], Outcome::Reusable);
    assert_eq!(shell.closed, 2, "3 were open for a size of 2");
    shell.release(waiters[2], Outcome::Reusable);
    shell.release(waiters[3], Outcome::Reusable);
    assert_eq!((shell.closed, shell.census().idle), (2, 2));
}

#[test]
fn grow_and_an_equal_push_close_and_open_nothing() {
    let mut shell = Shell::new(shape(2), 1);
    let waiter = shell.acquire();
    shell.connect();
    shell.release(waiter, Outcome::Reusable);
    shell.reshape(shape(2), &[0]);
    shell.reshape(shape(9), &[0]);
    assert_eq!(
        (shell.closed, shell.connects.len(), shell.census().idle),
        (0, 0, 1)
    );
}

#[test]
fn a_removed_endpoint_drains_and_the_other_stays() {
    let mut shell = Shell::new(shape(4), 2);
    let waiters: Vec<_> = (0..4).map(|_| shell.acquire()).collect();
    (0..4).for_each(|_| shell.connect());
    shell.reshape(shape(4), &[1]);
    assert_eq!(shell.census().draining, 2);
    for waiter in waiters {
        shell.release(waiter, Outcome::Reusable);
    }
    assert_eq!((shell.census().idle, shell.closed), (2, 2));
}

#[test]
fn a_retired_pool_serves_who_waits_and_then_is_empty() {
    let mut shell = Shell::new(shape(1), 1);
    let (first, second) = (shell.acquire(), shell.acquire());
    shell.connect();
    let effects = shell.core.retire(shell.now);
    shell.run(effects);
    shell.release(first, Outcome::Reusable);
    assert_eq!(shell.granted, [first, second]);
    shell.release(second, Outcome::Reusable);
    assert!(shell.core.is_empty());
}

#[test]
fn used_connections_idle_out_and_the_warm_floor_is_refilled() {
    let mut shell = Shell::new(
        Shape {
            warm: 2,
            ..shape(4)
        },
        1,
    );
    shell.sweep(0);
    (0..2).for_each(|_| shell.connect());
    let waiter = shell.acquire();
    shell.release(waiter, Outcome::Reusable);
    shell.sweep(4_000);
    assert_eq!(
        (shell.closed, shell.census().idle),
        (1, 1),
        "the never-used one stays"
    );
    shell.connect();
    let opened: Vec<_> = shell
        .core
        .counters
        .opened()
        .map(|(_, count)| count)
        .collect();
    assert_eq!(opened, [0, 2, 1, 0], "demand, warm, refill, replace");
}

#[test]
fn a_cancelled_waiter_leaves_its_connect_to_the_next() {
    let mut shell = Shell::new(shape(2), 1);
    let first = shell.acquire();
    let id = shell.waiters[&first];
    shell.core.cancel(id);
    let second = shell.acquire();
    shell.connect();
    assert_eq!(shell.granted, [second]);
}

#[test]
fn a_refusing_endpoint_is_retried_for_a_second_and_then_told() {
    let mut shell = Shell::new(shape(2), 1);
    shell.acquire();
    shell.refuse();
    assert!(shell.refused.is_empty(), "patient at first");
    shell.sweep(60);
    assert_eq!(shell.connects.len(), 1, "retried after a pause");
    shell.refuse();
    shell.sweep(1_000);
    shell.refuse();
    assert_eq!(shell.refused.len(), 1);
    shell.sweep(3_000);
    shell.acquire();
    assert_eq!(
        shell.connects.len(),
        1,
        "each request that comes tries again"
    );
    shell.refuse();
    assert_eq!(
        shell.refused.len(),
        2,
        "and is told at once after seconds of failure"
    );
}

#[test]
fn a_good_endpoint_serves_when_the_other_refuses() {
    let mut shell = Shell::new(shape(4), 2);
    let waiter = shell.acquire();
    shell.refuse();
    assert_eq!(shell.connects.len(), 1, "the other one at once");
    shell.connect();
    assert_eq!(shell.granted, [waiter]);
}

#[test]
fn old_connections_retire_at_their_return() {
    let mut shell = Shell::new(
        Shape {
            max_age: Some(at(1_000)),
            ..shape(1)
        },
        1,
    );
    let waiter = shell.acquire();
    shell.connect();
    shell.now = at(1_500);
    shell.release(waiter, Outcome::Reusable);
    assert_eq!(shell.closed, 1);
}

/// Something in between accepts for an engine that is down: no storm of connects, and an answer soon.
#[test]
fn an_endpoint_that_accepts_and_closes_is_treated_as_one_that_refuses() {
    let mut shell = Shell::new(shape(4), 1);
    shell.acquire();
    let mut connects = 0;
    while shell.refused.is_empty() && shell.now < at(10_000) {
        while !shell.connects.is_empty() {
            connects += 1;
            shell.connect();
            let leases: Vec<_> = shell.leases.keys().copied().collect();
            for waiter in leases {
                shell.release(waiter, Outcome::Broken(CloseReason::Upstream));
                let (ask, wish) = (Ask::default(), Wish::default());
                let place = Place::Front;
                let acquired = shell.core.acquire(shell.now, &ask, waiter, place, wish);
                let (id, effects) = acquired;
                shell.waiters.insert(waiter, id);
                shell.run(effects);
            }
        }
        shell.sweep(50);
    }
    assert!(shell.now <= at(4_000), "refused after {:?}", shell.now);
    assert!(connects < 12, "{connects} connects");
    assert!(
        matches!(&shell.refused[0].1, Refused::ConnectFailed(error) if error.contains("as soon as"))
    );
}

/// Without a cap nothing was tried: the request waits for the budget, whatever failed before.
#[test]
fn a_pool_without_a_cap_refuses_nobody_for_an_endpoint_that_may_be_back() {
    let mut shell = Shell::new(shape(4), 1);
    shell.acquire();
    shell.refuse();
    shell.sweep(4_000);
    shell.refuse();
    shell.sweep(1_000);
    assert_eq!(shell.refused.len(), 1, "with a cap it is told");
    let effects = shell.core.set_cap(shell.now, 0);
    shell.run(effects);
    shell.connects.clear();
    shell.acquire();
    shell.sweep(2_000);
    assert_eq!(shell.refused.len(), 1, "without one it waits");
    assert_eq!(shell.core.need(shell.now).waiting, 1, "and is counted");
}

/// Also without anybody waiting: the warm floor.
#[test]
fn a_warm_floor_does_not_storm_an_endpoint_that_accepts_and_closes() {
    let warm = Shape {
        warm: 4,
        ..shape(4)
    };
    let mut shell = Shell::new(warm, 1);
    let mut connects = 0;
    for _ in 0..100 {
        shell.sweep(100);
        while let Some((ticket, _)) = shell.connects.pop() {
            connects += 1;
            let id = shell.connected(ticket).unwrap();
            let effects = shell.core.ended(shell.now, id);
            shell.run(effects);
        }
    }
    assert!(connects < 20, "{connects} connects in ten seconds");
}

#[test]
fn one_who_needs_a_fresh_connection_gets_no_other_and_holds_up_nobody() {
    let mut shell = Shell::new(shape(2), 1);
    let (first, second) = (shell.acquire(), shell.acquire());
    shell.connect();
    shell.connect();
    shell.release(first, Outcome::Reusable);
    shell.release(second, Outcome::Reusable);
    // Two that were used lie idle and the pool is full: the coldest gives way.
    let fresh = shell.acquire_at(Place::FrontForFresh);
    assert_eq!((shell.granted.len(), shell.closed), (2, 1));
    let other = shell.acquire();
    assert_eq!(
        shell.granted.last(),
        Some(&other),
        "the idle one is for others"
    );
    shell.connect();
    assert_eq!(shell.granted.last(), Some(&fresh));
    assert_eq!(shell.leases[&fresh].uses, 1);
}

#[test]
fn a_dial_to_a_removed_endpoint_takes_no_place() {
    let mut shell = Shell::new(shape(2), 1);
    shell.acquire();
    shell.acquire();
    let black_hole = shell.connects.clone();
    shell.reshape(shape(2), &[7]);
    assert_eq!(
        shell.connects.len(),
        2,
        "the new endpoint is dialled at once"
    );
    shell.connect();
    shell.connect();
    assert_eq!(shell.granted.len(), 2);
    let closed = shell.closed;
    assert!(shell.connected(black_hole[0].0).is_none());
    assert_eq!(shell.closed, closed + 1);
}

#[test]
fn a_pool_that_is_back_before_it_was_empty_is_bounded_once() {
    let mut shell = Shell::new(shape(2), 1);
    let first = shell.acquire();
    shell.connect();
    let effects = shell.core.retire(shell.now);
    shell.run(effects);
    shell.core.revive();
    shell.reshape(shape(2), &[0]);
    shell.acquire();
    shell.acquire();
    shell.connect();
    assert_eq!(
        shell.granted.len(),
        2,
        "of two slots one was in use all the time"
    );
    shell.release(first, Outcome::Reusable);
    assert_eq!((shell.granted.len(), shell.closed), (3, 0));
}
