//! Which endpoints get requests, by how they answer.

use super::*;

const A: OriginId = OriginId(0);

fn origin_of(shell: &Shell, waiter: u64) -> u64 {
    shell.leases[&waiter].origin.0
}

/// A pool with as many idle connections to each of its endpoints.
fn warm(origins: u64, each: usize) -> Shell {
    let mut shell = Shell::new(shape(origins as usize * each), origins);
    let size = origins as usize * each;
    shell.reshape(
        Shape {
            warm: size,
            ..shape(size)
        },
        &(0..origins).collect::<Vec<_>>(),
    );
    while !shell.connects.is_empty() {
        shell.connect();
    }
    shell
}

/// A request that is served at once; gives where.
fn ask(shell: &mut Shell, sound: impl Fn(u64) -> bool) -> u64 {
    let waiter = shell.acquire();
    while !shell.leases.contains_key(&waiter) {
        shell.connect();
    }
    let at = origin_of(shell, waiter);
    let verdict = match sound(at) {
        true => Verdict::Answered,
        false => Verdict::Broken(Fault::Status),
    };
    shell.judge(waiter, verdict);
    shell.release(waiter, Outcome::Reusable);
    shell.connect();
    at
}

fn state(shell: &Shell, origin: u64) -> State {
    shell.core.census_of(shell.now, OriginId(origin)).state
}

/// As many requests as it takes; gives how often each endpoint was asked.
fn asks(shell: &mut Shell, n: usize, sound: impl Fn(u64) -> bool) -> BTreeMap<u64, usize> {
    let mut asked = BTreeMap::new();
    for _ in 0..n {
        *asked.entry(ask(shell, &sound)).or_default() += 1;
    }
    asked
}

#[test]
fn one_that_breaks_is_left_out_and_tried_by_one_request_at_a_time() {
    let mut shell = warm(3, 2);
    let asked = asks(&mut shell, 60, |at| at != 0);
    assert!(asked[&0] >= 3 && asked[&0] < 10, "{asked:?}");
    assert_eq!(state(&shell, 0), State::Ejected);
    assert_eq!(
        shell.core.counters.ejected().next(),
        Some((Fault::Status, 1))
    );
    // Its connections rest where they are; no new ones are opened.
    assert_eq!(shell.core.census_of(shell.now, A).open, 2);
    let asked = asks(&mut shell, 100, |_| true);
    assert!(!asked.contains_key(&0), "{asked:?}");
    shell.sweep(2_200);
    assert_eq!(state(&shell, 0), State::HalfOpen);
    // Many at once: one of them is the trial.
    let waiters: Vec<u64> = (0..4).map(|_| shell.acquire()).collect();
    let at_it = waiters.iter().filter(|w| origin_of(&shell, **w) == 0);
    let trial: Vec<u64> = at_it.copied().collect();
    assert_eq!(
        trial.len(),
        1,
        "one of four goes to an endpoint with nothing on it"
    );
    // It breaks, and the next time out is twice as long.
    let turn = shell.judge(trial[0], Verdict::Broken(Fault::Reset));
    assert_eq!(turn, Some(Turn::Out(Fault::Reset)));
    waiters
        .iter()
        .for_each(|w| shell.release(*w, Outcome::Reusable));
    shell.sweep(3_000);
    assert_eq!(state(&shell, 0), State::Ejected);
    shell.sweep(1_500);
    assert_eq!(state(&shell, 0), State::HalfOpen);
    // A trial of which nothing becomes known makes way for the next.
    let waiters: Vec<u64> = (0..4).map(|_| shell.acquire()).collect();
    let trial = *waiters
        .iter()
        .find(|w| origin_of(&shell, **w) == 0)
        .unwrap();
    shell.release(trial, Outcome::Broken(CloseReason::Cancelled));
    assert_eq!(state(&shell, 0), State::HalfOpen);
    waiters
        .iter()
        .for_each(|w| shell.release(*w, Outcome::Reusable));
    let asked = asks(&mut shell, 40, |_| true);
    assert!(asked.contains_key(&0), "{asked:?}");
    assert_eq!(state(&shell, 0), State::Healthy);
}

#[test]
fn busy_ones_and_those_that_break_as_all_do_stay() {
    let mut shell = warm(2, 2);
    shell.core.shape.ejection.after = 5;
    // One bad client, whose requests break whatever they come to, alone and amid others.
    for share in [1, 2, 10] {
        for n in 0..200 {
            let bad = n % share == 0;
            ask(&mut shell, |_| !bad);
        }
        assert_eq!(state(&shell, 0), State::Healthy, "one in {share}");
        assert_eq!(state(&shell, 1), State::Healthy, "one in {share}");
        shell.sweep(60_000);
        while !shell.connects.is_empty() {
            shell.connect();
        }
    }
    // A storm of 429, with and without a word of when.
    for n in 0..100_u64 {
        let waiter = shell.acquire();
        let pause = (n % 2 == 0).then_some(at(100));
        assert_eq!(shell.judge(waiter, Verdict::Busy(pause)), None);
        shell.release(waiter, Outcome::Reusable);
    }
    assert_eq!(state(&shell, 0), State::Healthy);
    assert_eq!(state(&shell, 1), State::Healthy);
}

#[test]
fn when_too_many_are_out_all_serve_and_who_answers_is_back() {
    let mut shell = warm(3, 2);
    asks(&mut shell, 200, |at| at == 2);
    assert_eq!(state(&shell, 0), State::Ejected);
    assert_eq!(
        state(&shell, 1),
        State::Ejected,
        "both, for the third answers"
    );
    let asked = asks(&mut shell, 60, |_| false);
    assert_eq!(asked.len(), 3, "{asked:?}");
    asks(&mut shell, 60, |_| true);
    let back = (0..2).filter(|n| state(&shell, *n) == State::Healthy);
    assert_eq!(
        back.count(),
        1,
        "with it there are enough; the other has its trial"
    );
    shell.sweep(3_000);
    asks(&mut shell, 60, |_| true);
    for origin in 0..3 {
        assert_eq!(state(&shell, origin), State::Healthy);
    }
}

#[test]
fn one_that_is_out_serves_when_the_other_cannot_be_reached() {
    let mut shell = warm(2, 1);
    asks(&mut shell, 40, |at| at != 0);
    assert_eq!(state(&shell, 0), State::Ejected);
    // The other closes what it has, and can be connected to no more.
    let idle = shell.core.origins[1].idle[0].id;
    let effects = shell.core.ended(shell.now, idle);
    shell.run(effects);
    let waiter = shell.acquire();
    assert!(
        !shell.leases.contains_key(&waiter),
        "the other is waited for"
    );
    shell.refuse();
    assert_eq!(origin_of(&shell, waiter), 0);
}

#[test]
fn a_full_pool_makes_room_for_those_that_serve() {
    let mut shell = Shell::new(shape(2), 1);
    // Both connections rest at the first endpoint; the second comes later.
    let waiters: Vec<u64> = (0..2).map(|_| shell.acquire()).collect();
    (0..2).for_each(|_| shell.connect());
    waiters
        .iter()
        .for_each(|w| shell.release(*w, Outcome::Reusable));
    shell.reshape(shape(2), &[0, 1]);
    for passed in [false, false] {
        let (_, effects) = shell.core.checked(shell.now, A, passed, (2, 1));
        shell.run(effects);
    }
    assert_eq!(state(&shell, 0), State::Ejected);
    let waiter = shell.acquire();
    assert_eq!(shell.connects.len(), 1, "one of the idle ones gave way");
    shell.connect();
    assert_eq!(origin_of(&shell, waiter), 1);
    assert_eq!(shell.closed, 1);
}

#[test]
fn a_check_decides_when_there_is_one() {
    let mut shell = warm(2, 1);
    shell.core.shape.checked = true;
    let check = |shell: &mut Shell, passed| {
        let (turn, effects) = shell.core.checked(shell.now, A, passed, (2, 2));
        shell.run(effects);
        turn
    };
    assert_eq!(check(&mut shell, false), None);
    assert_eq!(check(&mut shell, true), None);
    assert_eq!(check(&mut shell, false), None);
    assert_eq!(check(&mut shell, false), Some(Turn::Out(Fault::Check)));
    assert_eq!(check(&mut shell, false), None, "told once");
    shell.sweep(3_600_000);
    assert_eq!(
        state(&shell, 0),
        State::Ejected,
        "time does not bring it back"
    );
    check(&mut shell, true);
    assert_eq!(state(&shell, 0), State::Ejected);
    check(&mut shell, true);
    assert_eq!(state(&shell, 0), State::HalfOpen);
    asks(&mut shell, 20, |_| true);
    assert_eq!(state(&shell, 0), State::Healthy);
    // What is not asked for any more keeps nobody out.
    check(&mut shell, false);
    check(&mut shell, false);
    assert_eq!(state(&shell, 0), State::Ejected);
    shell.reshape(shape(2), &[0, 1]);
    assert_eq!(state(&shell, 0), State::HalfOpen);
}

#[test]
fn a_good_check_does_not_undo_an_ejection_by_answers() {
    let mut shell = warm(2, 1);
    shell.core.shape.checked = true;
    let check = |shell: &mut Shell, passed| {
        let (_, effects) = shell.core.checked(shell.now, A, passed, (2, 1));
        shell.run(effects);
    };
    asks(&mut shell, 40, |at| at != 0);
    assert_eq!(state(&shell, 0), State::Ejected);
    // It answers checks, and breaks all else.
    (0..3).for_each(|_| check(&mut shell, true));
    assert_eq!(state(&shell, 0), State::Ejected);
    // Nor if checks fail in between.
    for passed in [false, false, true] {
        check(&mut shell, passed);
        assert_eq!(state(&shell, 0), State::Ejected, "{passed}");
    }
    shell.sweep(2_200);
    assert_eq!(state(&shell, 0), State::HalfOpen);
    // A trial that breaks: out for longer, whatever checks say.
    asks(&mut shell, 10, |at| at != 0);
    check(&mut shell, true);
    shell.sweep(3_000);
    assert_eq!(state(&shell, 0), State::Ejected);
    shell.sweep(1_500);
    assert_eq!(state(&shell, 0), State::HalfOpen);
}

#[test]
fn one_that_asks_for_a_pause_is_passed_over_while_others_are_there() {
    let mut shell = warm(2, 2);
    let waiter = shell.acquire();
    let paused = origin_of(&shell, waiter);
    shell.judge(waiter, Verdict::Busy(Some(at(1_000))));
    shell.release(waiter, Outcome::Reusable);
    let asked = asks(&mut shell, 50, |_| true);
    assert!(!asked.contains_key(&paused), "{asked:?}");
    // All say so: all are asked.
    let waiter = shell.acquire();
    shell.judge(waiter, Verdict::Busy(Some(at(1_000))));
    shell.release(waiter, Outcome::Reusable);
    assert_eq!(asks(&mut shell, 50, |_| true).len(), 2);
    shell.sweep(1_000);
    assert_eq!(asks(&mut shell, 50, |_| true).len(), 2);
}

#[test]
fn a_request_is_sent_elsewhere_only_if_somebody_there_does_not_fail_as_well() {
    let mut shell = warm(2, 2);
    assert!(shell.core.has_other(shell.now, &[A]));
    assert!(!shell.core.has_other(shell.now, &[A, OriginId(1)]));
    asks(&mut shell, 40, |_| false);
    assert!(!shell.core.has_other(shell.now, &[A]), "all fail");
    assert!(!shell.core.has_other(shell.now, &[OriginId(1)]), "all fail");
    asks(&mut shell, 10, |_| true);
    assert!(shell.core.has_other(shell.now, &[A]));
    let waiter = shell.acquire_wish(
        Place::Back,
        Wish {
            only: Some(EndpointKey(1)),
            not: vec![],
        },
    );
    shell.judge(waiter, Verdict::Busy(None));
    assert!(!shell.core.has_other(shell.now, &[A]), "it had no room");
    shell.sweep(1_000);
    assert!(shell.core.has_other(shell.now, &[A]));
}

#[test]
fn wishes_are_served_by_whom_they_name_and_refused_when_there_is_none() {
    let mut shell = Shell::new(shape(2), 2);
    // Two idle ones at whoever got them; the pool is full.
    let waiters: Vec<u64> = (0..2).map(|_| shell.acquire()).collect();
    (0..2).for_each(|_| shell.connect());
    waiters
        .iter()
        .for_each(|w| shell.release(*w, Outcome::Reusable));
    for endpoint in [0, 1, 0, 1] {
        let only = Some(EndpointKey(endpoint));
        let waiter = shell.acquire_wish(Place::Back, Wish { only, not: vec![] });
        while !shell.connects.is_empty() {
            shell.connect();
        }
        assert_eq!(origin_of(&shell, waiter), endpoint);
        // Also while the only connection to it is in use, and those at the other rest.
        let second = shell.acquire_wish(Place::Back, Wish { only, not: vec![] });
        while !shell.connects.is_empty() {
            shell.connect();
        }
        assert_eq!(origin_of(&shell, second), endpoint);
        shell.release(waiter, Outcome::Reusable);
        shell.release(second, Outcome::Reusable);
        let not = vec![OriginId(endpoint)];
        let other = shell.acquire_wish(Place::Front, Wish { only: None, not });
        while !shell.connects.is_empty() {
            shell.connect();
        }
        assert_eq!(origin_of(&shell, other), 1 - endpoint);
        shell.release(other, Outcome::Reusable);
    }
    for (only, not) in [
        (Some(EndpointKey(9)), vec![]),
        (None, vec![OriginId(0), OriginId(1)]),
    ] {
        shell.acquire_wish(Place::Back, Wish { only, not });
        assert_eq!(
            shell.refused.pop().map(|(_, why)| why),
            Some(Refused::NoEndpoint)
        );
    }
    // One who waits for an endpoint that goes is told.
    let only = Some(EndpointKey(1));
    let wish = || Wish { only, not: vec![] };
    for _ in 0..2 {
        shell.acquire_wish(Place::Back, wish());
    }
    while !shell.connects.is_empty() {
        shell.connect();
    }
    shell.acquire_wish(Place::Back, wish());
    shell.reshape(shape(2), &[0]);
    assert_eq!(
        shell.refused.pop().map(|(_, why)| why),
        Some(Refused::NoEndpoint)
    );
}

/// What it says of these endpoints now, of which the newer one is the older one under another name.
fn renamed(shell: &mut Shell, size: usize, kept: &[u64], (old, new): (u64, u64)) {
    let spec = |n: u64, like: Option<u64>| OriginSpec {
        id: OriginId(n),
        endpoint: EndpointKey(n),
        weight: 1,
        streams: Some(1),
        standing: Standing::Heir,
        like: like.map(OriginId),
    };
    let kept = kept.iter().map(|n| spec(*n, None));
    let specs: Vec<_> = kept.chain([spec(new, Some(old))]).collect();
    let effects = shell
        .core
        .reshape(shell.now, shape(size), &specs, &[OriginId(old)]);
    shell.run(effects);
}

#[test]
fn one_that_is_out_is_out_whatever_else_is_changed() {
    let mut shell = warm(3, 2);
    asks(&mut shell, 60, |at| at != 0);
    assert_eq!(state(&shell, 0), State::Ejected);
    let (why, until) = shell.core.origins[0].health.out().unwrap();
    // Another goes, another comes, its own weight changes.
    shell.reshape(shape(6), &[0, 2, 3]);
    shell.core.origins[0].weight = 5;
    shell.reshape(shape(8), &[0, 2, 3]);
    assert_eq!(
        shell.core.origins[0].health.out(),
        Some((why, until)),
        "nor is its time out another"
    );
    // The first of a list goes, so that it has another name.
    renamed(&mut shell, 8, &[2, 3], (0, 7));
    assert_eq!(state(&shell, 7), State::Ejected);
    let heir = |shell: &Shell| {
        let mut origins = shell.core.origins.iter();
        origins.position(|o| o.id == OriginId(7)).unwrap()
    };
    let at = heir(&shell);
    assert_eq!(shell.core.origins[at].health.out(), Some((why, until)));
    let asked = asks(&mut shell, 100, |_| true);
    assert!(!asked.contains_key(&7), "{asked:?}");
    shell.sweep(2_200);
    assert_eq!(state(&shell, 7), State::HalfOpen);
    asks(&mut shell, 60, |_| true);
    assert_eq!(state(&shell, 7), State::Healthy);
}

/// The trial of the one before has its answer there: it must not be waited for here.
#[test]
fn a_trial_that_is_under_way_stays_with_the_name_that_it_has() {
    let mut shell = warm(3, 2);
    asks(&mut shell, 60, |at| at != 0);
    shell.sweep(2_200);
    let waiters: Vec<u64> = (0..4).map(|_| shell.acquire()).collect();
    assert_eq!(shell.trials().collect::<Vec<_>>(), [0]);
    renamed(&mut shell, 6, &[1, 2], (0, 7));
    assert_eq!(state(&shell, 7), State::HalfOpen);
    waiters
        .iter()
        .for_each(|w| shell.release(*w, Outcome::Broken(CloseReason::Cancelled)));
    asks(&mut shell, 60, |_| true);
    assert_eq!(state(&shell, 7), State::Healthy, "it had one of its own");
}

/// Connections are made, and closed again before they carried anything.
#[test]
fn one_that_closes_what_is_opened_ahead_of_need_is_not_stormed() {
    let asked = Shape {
        warm: 40,
        ..shape(50)
    };
    for lives in [50, 200, 500, 900] {
        let mut shell = Shell::new(asked.clone(), 1);
        let mut open: Vec<(Duration, ConnId)> = Vec::new();
        let mut made = 0;
        for _ in 0..6_000 {
            shell.sweep(10);
            while let Some((ticket, _)) = shell.connects.pop() {
                made += 1;
                let id = shell.connected(ticket).unwrap();
                open.push((shell.now + at(lives), id));
            }
            let over = open.extract_if(.., |(ends, _)| *ends <= shell.now);
            for (_, id) in over.collect::<Vec<_>>() {
                let effects = shell.core.ended(shell.now, id);
                shell.run(effects);
            }
        }
        // The first time nothing is known of it; then it is one in two seconds.
        assert!(made <= 40 + 40, "{made} in a minute, each for {lives} ms");
    }
}

/// What is opened ahead of need does not go to one that is out, however often its connections are closed.
#[test]
fn nothing_is_opened_ahead_of_need_to_one_that_is_out() {
    let mut shell = warm(2, 4);
    asks(&mut shell, 60, |at| at != 0);
    shell.sweep(1_100);
    assert_eq!(state(&shell, 0), State::Ejected);
    while let Some(idle) = shell.core.origins[0].idle.front().map(|held| held.id) {
        let effects = shell.core.ended(shell.now, idle);
        shell.run(effects);
    }
    let to_it = |shell: &Shell| shell.connects.iter().filter(|(_, o)| *o == A).count();
    for _ in 0..50 {
        shell.sweep(10);
        assert_eq!(to_it(&shell), 0);
        while !shell.connects.is_empty() {
            shell.connect();
        }
    }
    // Then one at a time, after its pause, for the trial.
    let mut dialled = 0;
    for _ in 0..300 {
        shell.sweep(10);
        shell.acquire();
        assert!(to_it(&shell) <= 1);
        while let Some(at) = shell.connects.iter().position(|(_, o)| *o == A) {
            let (ticket, _) = shell.connects.remove(at);
            dialled += 1;
            let effects = shell.core.connect_failed(shell.now, ticket, "refused");
            shell.run(effects);
        }
        while !shell.connects.is_empty() {
            shell.connect();
        }
        let leases: Vec<u64> = shell.leases.keys().copied().collect();
        leases
            .iter()
            .for_each(|w| shell.release(*w, Outcome::Reusable));
    }
    assert!((1..=8).contains(&dialled), "{dialled}");
}
