//! Whose turn it is: flows, weights, priorities, and who has to go from a full line.

use proptest::prelude::*;

use super::*;

/// One slot with a connection, in use; the line is as the test makes it.
fn one_slot() -> (Shell, u64) {
    slots(1, 1_000)
}

/// As many slots, all in use by nobody's flow, but the first lease is told.
fn slots(n: usize, max_waiting: usize) -> (Shell, u64) {
    let mut shell = Shell::new(
        Shape {
            max_waiting,
            ..shape(n)
        },
        1,
    );
    let first = shell.acquire();
    for _ in 1..n {
        shell.acquire();
    }
    (0..n).for_each(|_| shell.connect());
    assert_eq!(shell.leases.len(), n);
    (shell, first)
}

/// Gives the slot back, as often, and tells who had it each time.
fn serve(shell: &mut Shell, times: usize) -> Vec<u64> {
    let mut served = Vec::new();
    for _ in 0..times {
        let holder = *shell.leases.keys().next().unwrap();
        let before = shell.granted.len();
        shell.release(holder, Outcome::Reusable);
        served.extend(shell.granted[before..].iter().copied());
    }
    served
}

fn weighing(flow: u64, weight: u32) -> Ask {
    Ask { weight, ..of(flow) }
}

fn urgent(flow: u64, priority: Priority) -> Ask {
    Ask {
        priority,
        ..of(flow)
    }
}

#[test]
fn flows_take_turns_and_each_is_first_come_first_served() {
    let (mut shell, _) = one_slot();
    let a: Vec<u64> = (0..4).map(|_| shell.acquire_of(1)).collect();
    let b: Vec<u64> = (0..2).map(|_| shell.acquire_of(2)).collect();
    let served = serve(&mut shell, 6);
    assert_eq!(served, [a[0], b[0], a[1], b[1], a[2], a[3]]);
}

#[test]
fn without_flows_it_is_one_line() {
    let (mut shell, _) = one_slot();
    let all: Vec<u64> = (0..20).map(|_| shell.acquire()).collect();
    assert_eq!(serve(&mut shell, 20), all);
}

#[test]
fn one_who_had_his_turn_goes_before_all_flows() {
    let (mut shell, _) = one_slot();
    let a = shell.acquire_of(1);
    let again = shell.acquire_as(&of(2), Place::Front);
    let first = shell.acquire_as(&urgent(3, Priority::High), Place::Back);
    assert_eq!(serve(&mut shell, 3), [again, first, a]);
}

#[test]
fn weights_are_kept_with_one_slot_and_with_many() {
    let (mut shell, _) = one_slot();
    let mut heavy = Vec::new();
    for _ in 0..400 {
        heavy.push(shell.acquire_as(&weighing(1, 3), Place::Back));
        shell.acquire_as(&weighing(2, 1), Place::Back);
    }
    let served = serve(&mut shell, 400);
    let of_heavy = served
        .iter()
        .filter(|waiter| heavy.contains(waiter))
        .count();
    assert!((299..=301).contains(&of_heavy), "{of_heavy} of 400");

    let (mut shell, _) = slots(40, 1_000);
    let mut heavy = Vec::new();
    for _ in 0..200 {
        heavy.push(shell.acquire_as(&weighing(1, 3), Place::Back));
        shell.acquire_as(&weighing(2, 1), Place::Back);
    }
    serve(&mut shell, 40);
    let held = shell.leases.keys().filter(|w| heavy.contains(w)).count();
    assert!((29..=31).contains(&held), "{held} of 40 slots");
}

#[test]
fn what_costs_more_has_fewer_turns() {
    let (mut shell, _) = one_slot();
    let mut dear = Vec::new();
    for _ in 0..200 {
        let ask = Ask { cost: 9, ..of(1) };
        dear.push(shell.acquire_as(&ask, Place::Back));
        shell.acquire_of(2);
    }
    let served = serve(&mut shell, 200);
    let of_dear = served.iter().filter(|waiter| dear.contains(waiter)).count();
    assert!((19..=21).contains(&of_dear), "{of_dear} of 200");
}

/// Generations are long: one who holds everything gets nothing more until the others hold as much.
#[test]
fn what_is_held_counts() {
    let (mut shell, _) = slots(10, 1_000);
    for _ in 0..10 {
        shell.acquire_of(1);
    }
    serve(&mut shell, 10);
    for _ in 0..100 {
        shell.acquire_of(1);
    }
    let late: Vec<u64> = (0..8).map(|_| shell.acquire_of(2)).collect();
    assert_eq!(serve(&mut shell, 5), late[..5], "until both hold five");
}

/// Those who wait for an endpoint that has no room are passed by others of their flow, and their flow is not behind for
/// it; when there is room they are the first.
#[test]
fn one_who_wants_a_certain_endpoint_holds_nobody_up() {
    let mut shell = Shell::new(shape(2), 2);
    // In use, one connection at each endpoint.
    let mut at = |endpoint| {
        let only = Some(EndpointKey(endpoint));
        let waiter = shell.acquire_wish(Place::Back, Wish { only, not: vec![] });
        shell.connect();
        waiter
    };
    let (first, second) = (at(0), at(1));
    let only = Some(EndpointKey(0));
    let wish = Wish { only, not: vec![] };
    let picky = shell.acquire_by(&of(1), Place::Back, wish);
    let plain = [shell.acquire_of(1), shell.acquire_of(1)];
    let other = shell.acquire_of(2);
    assert_eq!(shell.core.line.wishing(), 1);
    // A connection to the other endpoint is free: the first plain one of the flow gets it, then the other flow.
    let before = shell.granted.len();
    shell.release(second, Outcome::Reusable);
    shell.release(plain[0], Outcome::Reusable);
    assert_eq!(shell.granted[before..], [plain[0], other]);
    shell.release(first, Outcome::Reusable);
    assert_eq!(shell.granted[before + 2..], [picky]);
    assert_eq!(shell.core.line.wishing(), 0);
    shell.release(other, Outcome::Reusable);
    assert_eq!(shell.granted[before + 3..], [plain[1]]);
}

/// A flow that was away for long has not saved anything up.
#[test]
fn nobody_saves_turns_up() {
    let (mut shell, _) = one_slot();
    for _ in 0..300 {
        shell.acquire_of(1);
    }
    serve(&mut shell, 200);
    let late: Vec<u64> = (0..10).map(|_| shell.acquire_of(2)).collect();
    let served = serve(&mut shell, 20);
    let of_late = served.iter().filter(|waiter| late.contains(waiter)).count();
    assert_eq!(of_late, 10, "turn and turn about: {served:?}");
    assert!(served[..4].iter().filter(|w| late.contains(w)).count() <= 2);
}

#[test]
fn the_urgent_go_first_and_the_lowest_do_not_stand_still() {
    let (mut shell, _) = one_slot();
    let mut low = Vec::new();
    for _ in 0..10 {
        low.push(shell.acquire_as(&urgent(1, Priority::Low), Place::Back));
    }
    for flow in 2..10 {
        for _ in 0..90 {
            shell.acquire_as(&urgent(flow, Priority::High), Place::Back);
        }
    }
    let served = serve(&mut shell, 700);
    let of_low = served.iter().filter(|waiter| low.contains(waiter)).count();
    assert!((9..=11).contains(&of_low), "{of_low} of 700, one in 65");
    // Of those that wait together the urgent go first, however late they came.
    let (mut shell, _) = one_slot();
    let [low, normal, high] =
        Priority::ALL.map(|priority| shell.acquire_as(&urgent(1, priority), Place::Back));
    assert_eq!(serve(&mut shell, 3), [high, normal, low]);
    let (mut shell, _) = slots(8, 1_000);
    let low: Vec<u64> = (0..20)
        .map(|_| shell.acquire_as(&urgent(1, Priority::Low), Place::Back))
        .collect();
    serve(&mut shell, 8);
    let high = shell.acquire_as(&urgent(2, Priority::High), Place::Back);
    assert_eq!(serve(&mut shell, 1), [high], "{low:?}");
}

#[test]
fn a_full_line_turns_away_the_newest_of_the_flow_that_fills_it() {
    let (mut shell, _) = slots(1, 4);
    let a: Vec<u64> = (0..4).map(|_| shell.acquire_of(1)).collect();
    let fifth = shell.acquire_of(1);
    assert_eq!(shell.refused, [(fifth, Refused::QueueFull)]);
    let b = [shell.acquire_of(2), shell.acquire_of(2)];
    assert_eq!(
        shell.refused[1..],
        [(a[3], Refused::Displaced), (a[2], Refused::Displaced)]
    );
    let third = shell.acquire_of(2);
    assert_eq!(shell.refused[3..], [(third, Refused::QueueFull)]);
    assert_eq!(serve(&mut shell, 4), [a[0], b[0], a[1], b[1]]);
}

#[test]
fn one_who_has_no_more_than_others_is_told_that_it_is_not_him() {
    let (mut shell, _) = slots(1, 3);
    for flow in 1..4 {
        shell.acquire_of(flow);
    }
    let fourth = shell.acquire_of(4);
    assert_eq!(shell.refused, [(fourth, Refused::Crowded)]);
    // The lowest make room for the others, whoever they are.
    let (mut shell, _) = slots(1, 2);
    let low = [1, 2].map(|flow| shell.acquire_as(&urgent(flow, Priority::Low), Place::Back));
    shell.acquire_of(3);
    assert!(matches!(shell.refused[..], [(w, Refused::Displaced)] if low.contains(&w)));
}

#[test]
fn flows_are_bounded_whatever_names_come() {
    let (mut shell, _) = slots(1, 5_000);
    for flow in 0..3_000 {
        shell.acquire_of(flow);
        assert!(shell.census().flows <= MOST_FLOWS);
    }
    serve(&mut shell, 3_000);
    assert!(shell.waiters.is_empty());
    // What is at rest is forgotten for what comes.
    let named = shell.acquire_of(9_000);
    assert_eq!(serve(&mut shell, 1), [named]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]

    /// Whoever held the slots: once each was given back, those who wait hold as much as each other for their
    /// weight, to a slot of the least weight, and stay so.
    #[test]
    fn slots_come_to_be_held_in_proportion(
        weights in prop::collection::vec(1_u32..6, 2..6),
        size in 1_usize..40,
        releases in prop::collection::vec(any::<usize>(), 200..400),
    ) {
        let (mut shell, _) = slots(size, 100_000);
        let mut whose = BTreeMap::new();
        let asks: Vec<Ask> = (1..).zip(&weights).map(|(flow, weight)| weighing(flow, *weight)).collect();
        for _ in 0..releases.len() + size {
            for (n, ask) in asks.iter().enumerate() {
                whose.insert(shell.acquire_as(ask, Place::Back), n);
            }
        }
        serve(&mut shell, size);
        for at in releases {
            let holders: Vec<u64> = shell.leases.keys().copied().collect();
            shell.release(holders[at % holders.len()], Outcome::Reusable);
            let least = *weights.iter().min().unwrap();
            let holds: Vec<u32> = weights.iter().enumerate().map(|(n, weight)| {
                let held = shell.leases.keys().filter(|w| whose.get(w) == Some(&n)).count() as u32;
                held * least / weight
            }).collect();
            let (low, high) = (holds.iter().min().unwrap(), holds.iter().max().unwrap());
            prop_assert!(high - low <= 1, "{holds:?} of {weights:?}");
        }
    }

    /// With one slot turns are in proportion to the weights, and nobody waits for longer than a round.
    #[test]
    fn turns_are_in_proportion_where_there_is_one_slot(
        weights in prop::collection::vec(1_u32..6, 2..6),
    ) {
        let (mut shell, _) = one_slot();
        shell.reshape(Shape { max_waiting: 100_000, ..shape(1) }, &[0]);
        let total: u32 = weights.iter().sum();
        let rounds = 20;
        let mut whose = BTreeMap::new();
        for _ in 0..rounds * 6 {
            for (n, weight) in weights.iter().enumerate() {
                whose.insert(shell.acquire_as(&weighing(n as u64 + 1, *weight), Place::Back), n);
            }
        }
        let served = serve(&mut shell, (rounds * total) as usize);
        for (n, weight) in weights.iter().enumerate() {
            let got = served.iter().filter(|waiter| whose[waiter] == n).count() as u32;
            prop_assert!(got.abs_diff(rounds * weight) <= 2, "{n}: {got} of {weights:?}");
        }
    }
}
