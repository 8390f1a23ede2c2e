//! Which endpoint gets a request, which a connection, and what becomes of one that changed.

use super::*;

/// `n` requests at a time, each answered in turn, for a while; gives how many each endpoint got.
fn load(shell: &mut Shell, at_once: usize, requests: usize) -> BTreeMap<OriginId, usize> {
    let mut got = BTreeMap::new();
    let mut line: std::collections::VecDeque<u64> = (0..at_once).map(|_| shell.acquire()).collect();
    for _ in 0..requests {
        while !shell.connects.is_empty() {
            shell.connect();
        }
        let waiter = line.pop_front().unwrap();
        *got.entry(shell.leases[&waiter].origin).or_default() += 1;
        shell.release(waiter, Outcome::Reusable);
        line.push_back(shell.acquire());
    }
    while !shell.connects.is_empty() {
        shell.connect();
    }
    for waiter in line {
        shell.release(waiter, Outcome::Reusable);
    }
    got
}

fn weighted(shell: &mut Shell, size: usize, weights: &[u32]) {
    let spec = |(n, weight): (usize, &u32)| OriginSpec {
        id: OriginId(n as u64),
        endpoint: EndpointKey(n as u64),
        weight: *weight,
        streams: Some(1),
        standing: Standing::Plain,
        like: None,
    };
    let specs: Vec<_> = weights.iter().enumerate().map(spec).collect();
    let effects = shell.core.reshape(shell.now, shape(size), &specs, &[]);
    shell.run(effects);
}

#[test]
fn requests_and_connections_follow_the_weights() {
    let mut shell = Shell::new(shape(40), 0);
    weighted(&mut shell, 40, &[1, 3]);
    let got = load(&mut shell, 20, 4_000);
    let share = got[&OriginId(1)] as f64 / 4_000.0;
    assert!((0.70..0.80).contains(&share), "{share} of 0.75");
    let open = |n| shell.core.census_of(shell.now, OriginId(n)).open;
    assert!(open(1) > open(0), "{} and {}", open(0), open(1));
}

#[test]
fn of_two_the_one_with_less_for_its_weight_is_taken() {
    let mut shell = Shell::new(shape(40), 0);
    weighted(&mut shell, 40, &[1, 3]);
    let waiters: Vec<_> = (0..20).map(|_| shell.acquire()).collect();
    while !shell.connects.is_empty() {
        shell.connect();
    }
    for waiter in waiters {
        shell.release(waiter, Outcome::Reusable);
    }
    for _ in 0..8 {
        shell.acquire();
    }
    let in_flight = [0, 1].map(|n| shell.core.census_of(shell.now, OriginId(n)).in_flight);
    assert_eq!(in_flight, [2, 6]);
}

#[test]
fn a_single_client_is_shared_among_endpoints_too() {
    let mut shell = Shell::new(shape(10), 0);
    weighted(&mut shell, 10, &[1, 1, 1]);
    let got = load(&mut shell, 1, 3_000);
    for n in 0..3 {
        assert!((850..1_150).contains(&got[&OriginId(n)]), "{got:?}");
    }
    assert_eq!(shell.closed, 0);
}

#[test]
fn an_endpoint_that_joins_a_full_pool_gets_its_share_and_then_all_is_still() {
    let mut shell = Shell::new(shape(20), 1);
    load(&mut shell, 20, 200);
    assert_eq!(shell.core.census_of(shell.now, OriginId(0)).open, 20);
    weighted(&mut shell, 20, &[1, 1]);
    load(&mut shell, 20, 2_000);
    let open = [0, 1].map(|n| shell.core.census_of(shell.now, OriginId(n)).open);
    assert!(open[0].abs_diff(open[1]) <= 2, "{open:?}");
    let opened = shell.core.counters.clone();
    load(&mut shell, 20, 2_000);
    let opens = |counters: &Counters| counters.opened().map(|(_, n)| n).sum::<u64>();
    assert_eq!(
        opens(&opened),
        opens(&shell.core.counters),
        "nothing opened any more"
    );
}

#[test]
fn nobody_waits_for_a_connect_beside_an_idle_connection_elsewhere() {
    let mut shell = Shell::new(shape(10), 1);
    let waiters: Vec<_> = (0..5).map(|_| shell.acquire()).collect();
    (0..5).for_each(|_| shell.connect());
    for waiter in waiters {
        shell.release(waiter, Outcome::Reusable);
    }
    weighted(&mut shell, 10, &[1, 1]);
    for _ in 0..5 {
        let waiter = shell.acquire();
        assert!(shell.leases.contains_key(&waiter), "served at once");
    }
    assert!(!shell.connects.is_empty(), "and the other one is dialled");
}

#[test]
fn one_that_fails_gets_nothing_while_another_serves() {
    let mut shell = Shell::new(shape(10), 2);
    shell.acquire();
    let (ticket, dead) = shell.connects.pop().unwrap();
    let effects = shell.core.connect_failed(shell.now, ticket, "refused");
    shell.run(effects);
    let alive = OriginId(1 - dead.0);
    let got = load(&mut shell, 3, 300);
    assert_eq!(got.keys().collect::<Vec<_>>(), [&alive]);
}

/// It is dialled, but nobody waits for it while another can be had.
#[test]
fn a_dial_to_a_failing_endpoint_keeps_nobody_waiting() {
    let mut shell = Shell::new(shape(10), 2);
    shell.acquire();
    let (ticket, dead) = shell.connects.pop().unwrap();
    let effects = shell.core.connect_failed(shell.now, ticket, "refused");
    shell.run(effects);
    shell.connect();
    shell.sweep(100);
    let waiter = shell.acquire();
    let dialled: Vec<OriginId> = shell.connects.iter().map(|(_, origin)| *origin).collect();
    assert!(dialled.iter().any(|origin| *origin != dead), "{dialled:?}");
    let alive = shell
        .connects
        .iter()
        .position(|(_, origin)| *origin != dead);
    let (ticket, _) = shell.connects.remove(alive.unwrap());
    shell.connected(ticket);
    assert!(shell.granted.contains(&waiter));
}

/// An endpoint that takes no connection, and of which that is not known yet.
#[test]
fn a_dial_that_takes_long_is_not_waited_for_alone() {
    let mut shell = Shell::new(shape(10), 2);
    let waiters: Vec<_> = (0..4).map(|_| shell.acquire()).collect();
    let hole = shell.connects[0].1;
    let to_hole = |shell: &Shell| shell.connects.iter().filter(|(_, o)| *o == hole).count();
    assert_eq!(to_hole(&shell), 2);
    while let Some(at) = shell.connects.iter().position(|(_, o)| *o != hole) {
        let (ticket, _) = shell.connects.remove(at);
        shell.connected(ticket);
    }
    assert_eq!(shell.granted.len(), 2);
    shell.sweep(300);
    while let Some(at) = shell.connects.iter().position(|(_, o)| *o != hole) {
        let (ticket, _) = shell.connects.remove(at);
        shell.connected(ticket);
    }
    assert_eq!(shell.granted.len(), waiters.len());
}

#[test]
fn what_changed_serves_until_its_heir_is_warm_one_for_one() {
    let mut shell = Shell::new(shape(10), 1);
    let waiters: Vec<_> = (0..10).map(|_| shell.acquire()).collect();
    (0..10).for_each(|_| shell.connect());
    for waiter in &waiters[..9] {
        shell.release(*waiter, Outcome::Reusable);
    }
    // One is in use, nine are warm, the pool is full.
    shell.reshape_with(shape(10), &[1], &[0]);
    // Each dial costs one that serves, so the first has to show that there is somebody.
    assert_eq!((shell.connects.len(), shell.closed), (1, 1));
    let waiter = shell.acquire();
    assert_eq!(
        shell.leases[&waiter].origin,
        OriginId(0),
        "no wait for the heir"
    );
    shell.release(waiter, Outcome::Reusable);
    assert_eq!(shell.closed, 2, "what left does not come back");
    assert!(!shell.core.is_warm());
    while !shell.connects.is_empty() {
        shell.connect();
    }
    let replaced = shell.core.counters.opened().last().unwrap().1;
    assert!(replaced >= 7, "{replaced}");
    assert!(shell.core.is_warm());
    let waiter = shell.acquire();
    assert_eq!(shell.leases[&waiter].origin, OriginId(1));
    shell.release(waiters[9], Outcome::Reusable);
    assert_eq!(shell.core.census_of(shell.now, OriginId(0)).open, 0);
}

#[test]
fn an_heir_that_cannot_be_reached_gets_five_seconds() {
    let patient = Shape {
        idle_timeout: at(60_000),
        ..shape(4)
    };
    let mut shell = Shell::new(patient.clone(), 1);
    let waiter = shell.acquire();
    shell.connect();
    shell.release(waiter, Outcome::Reusable);
    shell.reshape_with(patient, &[1], &[0]);
    let open = |shell: &Shell| shell.core.census_of(shell.now, OriginId(0)).open;
    while shell.now < at(4_900) {
        while !shell.connects.is_empty() {
            shell.refuse();
        }
        shell.sweep(100);
        assert_eq!(open(&shell), 1, "after {:?}", shell.now);
    }
    shell.sweep(200);
    assert_eq!(open(&shell), 0);
}

#[test]
fn one_that_is_only_removed_serves_nobody_any_more() {
    let mut shell = Shell::new(shape(4), 2);
    load(&mut shell, 4, 40);
    shell.reshape(shape(4), &[1]);
    assert_eq!(shell.core.census_of(shell.now, OriginId(0)).open, 0);
}

#[test]
fn an_endpoint_without_an_address_is_waited_for_until_that_is_an_error() {
    let mut shell = Shell::new(shape(4), 0);
    let spec = OriginSpec {
        id: OriginId(0),
        endpoint: EndpointKey(0),
        weight: 1,
        streams: Some(1),
        standing: Standing::Unresolved,
        like: None,
    };
    let effects = shell.core.reshape(shell.now, shape(4), &[spec], &[]);
    shell.run(effects);
    shell.acquire();
    shell.sweep(2_000);
    assert!(shell.connects.is_empty() && shell.refused.is_empty());
    let effects = shell
        .core
        .unresolved(shell.now, OriginId(0), "no such name");
    shell.run(effects);
    assert_eq!(shell.refused.len(), 1);
    let next = shell.acquire();
    shell.reshape(shape(4), &[1]);
    shell.connect();
    assert!(shell.granted.contains(&next));
}
