//! Whom a worker follows next: rules one by one, and histories in which replicas fail, come and go.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

fn chooser(urls: &[&str], seed: u64) -> Chooser {
    let urls = urls.iter().map(|url| url.parse().unwrap()).collect();
    Chooser::new(urls, fastrand::Rng::with_seed(seed))
}

fn three(seed: u64) -> Chooser {
    chooser(&["http://a:1", "http://b:1", "http://c:1"], seed)
}

fn ips(last: &[u8]) -> Vec<IpAddr> {
    last.iter().map(|n| IpAddr::from([10, 0, 0, *n])).collect()
}

fn s(n: u64) -> Duration {
    Duration::from_secs(n)
}

fn shown(chooser: &Chooser) -> Vec<String> {
    chooser.all().iter().map(ToString::to_string).collect()
}

fn epoch(text: &str) -> Epoch {
    Epoch::new(text).unwrap()
}

#[test]
fn a_fleet_spreads_and_so_do_the_workers_of_one_that_died() {
    let now = Instant::now();
    let mut counts = BTreeMap::<String, u32>::new();
    let mut after = BTreeMap::<String, u32>::new();
    for seed in 0..3_000 {
        let mut chooser = three(seed);
        let first = chooser.next(now).unwrap();
        *counts.entry(first.to_string()).or_default() += 1;
        if first.to_string() == "http://a:1" {
            chooser.left(now, &first, (s(100), Left::Lost));
            let next = chooser.next(now).unwrap();
            *after.entry(next.to_string()).or_default() += 1;
        }
    }
    assert!(
        counts.values().all(|n| (900..1_100).contains(n)),
        "{counts:?}"
    );
    assert_eq!(after.len(), 2, "never the dead one: {after:?}");
    assert!(after.values().all(|n| (400..600).contains(n)), "{after:?}");
}

#[test]
fn one_that_failed_rests_while_others_are_left_and_is_tried_when_all_failed() {
    let now = Instant::now();
    let mut chooser = three(1);
    let mut tried = Vec::new();
    for _ in 0..3 {
        let next = chooser.next(now).unwrap();
        assert!(!tried.contains(&next), "{tried:?}");
        chooser.left(now, &next, (s(0), Left::Lost));
        tried.push(next);
    }
    // Nobody is left: the pause alone bounds it, and nothing waits for the end of a rest.
    assert!(chooser.next(now).is_some());
    let later = now + REST_FIRST;
    let back = chooser.next(later).unwrap();
    assert!(tried.contains(&back));
}

#[test]
fn the_only_one_is_tried_again_whatever_it_did() {
    let now = Instant::now();
    for left in Left::ALL {
        let mut chooser = chooser(&["http://a:1"], 3);
        let only = chooser.next(now).unwrap();
        chooser.left(now, &only, (s(0), left));
        assert_eq!(chooser.next(now), Some(only), "{left:?}");
    }
}

#[test]
fn names_become_addresses_and_what_is_known_of_them_is_kept() {
    let now = Instant::now();
    let mut chooser = chooser(&["http://control:50051", "http://10.0.0.9:50051/"], 4);
    assert_eq!(chooser.names(), [(0, "control".to_owned())]);
    let by_name = Replica {
        url: "http://control:50051".parse().unwrap(),
        at: None,
    };
    assert_eq!(
        shown(&chooser),
        ["http://control:50051", "http://10.0.0.9:50051"]
    );
    // An address that was named by itself is not there twice.
    chooser.list(now, 0, &ips(&[1, 2, 9]));
    assert_eq!(
        shown(&chooser),
        [
            "http://10.0.0.9:50051",
            "http://control:50051 (10.0.0.1:50051)",
            "http://control:50051 (10.0.0.2:50051)"
        ]
    );
    assert!(chooser.has(&by_name), "who was connected to by name stays");
    let second = chooser.all()[2].clone();
    chooser.left(now + KEPT, &second, (s(0), Left::Lost));
    let now = now + KEPT;
    chooser.list(now, 0, &ips(&[2, 3]));
    assert_eq!(
        shown(&chooser),
        [
            "http://10.0.0.9:50051",
            "http://control:50051 (10.0.0.2:50051)",
            "http://control:50051 (10.0.0.3:50051)"
        ]
    );
    for _ in 0..50 {
        assert_ne!(chooser.next(now), Some(second.clone()), "it rests still");
    }
    // That there is nothing is no answer.
    chooser.list(now + KEPT, 0, &[]);
    assert_eq!(chooser.all().len(), 3);
}

/// Each answer has two of four addresses, drawn anew every five seconds.
#[test]
fn a_name_that_answers_in_parts_moves_nobody() {
    let mut now = Instant::now();
    let mut chooser = chooser(&["http://control:50051"], 7);
    let (mut dice, mut last) = (fastrand::Rng::with_seed(7), [0_u32; 5]);
    let mut left_out = 0;
    for answer in 1..500_u32 {
        let mut all = [1, 2, 3, 4];
        dice.shuffle(&mut all);
        chooser.list(now, 0, &ips(&all[..2]));
        all[..2].iter().for_each(|n| last[usize::from(*n)] = answer);
        for n in 1..=4 {
            let address = SocketAddr::new(ips(&[n])[0], 50_051);
            let replica = Replica {
                url: "http://control:50051".parse().unwrap(),
                at: Some(address),
            };
            let named = last[usize::from(n)];
            // Thirty seconds are six answers.
            let listed = named > 0 && answer - named < 6;
            assert_eq!(chooser.has(&replica), listed, "{n} in answer {answer}");
            left_out += u32::from(listed && named < answer);
        }
        // Who has to choose tries what was named before what may be gone.
        let next = chooser.next(now).unwrap();
        assert!(
            all[..2]
                .iter()
                .any(|n| next.at.unwrap().ip() == ips(&[*n])[0])
        );
        now += s(5);
    }
    assert!(left_out > 500, "{left_out}");
}

#[test]
fn what_is_kept_takes_no_room_from_what_was_named() {
    let now = Instant::now();
    let mut chooser = chooser(&["http://control:1"], 7);
    let many: Vec<IpAddr> = (0..MOST as u32)
        .map(|n| IpAddr::from((0x0a00_0000 + n).to_be_bytes()))
        .collect();
    chooser.list(now, 0, &many);
    assert_eq!(chooser.all().len(), MOST);
    let new = [IpAddr::from([10, 9, 9, 9])];
    chooser.list(now, 0, &new);
    let all = chooser.all();
    assert_eq!(all.len(), 1);
    assert_eq!(all[0].at.unwrap().ip(), new[0]);
}

#[test]
fn when_all_failed_each_has_its_turn_and_one_that_does_not_want_us_is_the_last() {
    let mut now = Instant::now();
    let mut chooser = three(5);
    let all = chooser.all();
    // It does not want us; the others are away.
    chooser.left(now, &all[0], (s(0), Left::Foreign));
    // Their rests differ, their turns do not.
    for _ in 0..10 {
        chooser.left(now, &all[1], (s(0), Left::Lost));
        chooser.left(now, &all[2], (s(0), Left::Lost));
    }
    let mut before = None;
    for _ in 0..20 {
        now += Duration::from_millis(100);
        let next = chooser.next(now).unwrap();
        assert_ne!(next, all[0], "there are others");
        assert_ne!(Some(&next), before.as_ref(), "in turns");
        chooser.left(now, &next, (s(0), Left::Lost));
        before = Some(next);
    }
    // All of them do not want us: in turns, too.
    for replica in &all {
        now += Duration::from_millis(1);
        chooser.left(now, replica, (s(0), Left::Refused));
    }
    assert_eq!(chooser.next(now), Some(all[0].clone()));
}

#[test]
fn ipv6_addresses_are_no_names() {
    let chooser = chooser(&["http://[::1]:7", "http://x:7"], 1);
    assert_eq!(chooser.names(), [(1, "x".to_owned())]);
    assert_eq!(shown(&chooser), ["http://[::1]:7", "http://x:7"]);
}

#[test]
fn a_store_is_followed_when_most_speak_of_it_and_never_two() {
    let mut chooser = three(1);
    let all = chooser.all();
    let (old, new) = (epoch("aa"), epoch("bb"));
    chooser.speaks(&all[0], &new);
    assert!(!chooser.most_speak_of(&new), "one of three");
    chooser.speaks(&all[1], &old);
    chooser.speaks(&all[2], &new);
    assert!(chooser.most_speak_of(&new) && !chooser.most_speak_of(&old));
    chooser.speaks(&all[2], &old);
    assert!(!chooser.most_speak_of(&new) && chooser.most_speak_of(&old));
    let mut alone = self::chooser(&["http://a:1"], 1);
    let only = alone.all()[0].clone();
    alone.speaks(&only, &new);
    assert!(alone.most_speak_of(&new), "the only one is all there are");
}

fn load(workers: u32) -> Load {
    Load {
        open: true,
        abreast: true,
        workers,
        hears: true,
    }
}

#[test]
fn one_that_could_not_be_looked_at_is_followed_all_the_same() {
    let mut chooser = three(9);
    let now = Instant::now();
    let all = chooser.all();
    chooser.unseen(now, &all[1]);
    chooser.unseen(now, &all[2]);
    assert_eq!(
        chooser.another(now, &all[0]),
        None,
        "not looked at again at once"
    );
    chooser.left(now, &all[0], (s(9), Left::Lost));
    let next = chooser.next(now).unwrap();
    assert_ne!(next, all[0], "those two may be up");
    assert!(chooser.another(now + s(31), &all[0]).is_some());
}

#[test]
fn who_is_at_one_that_does_not_hear_from_its_store_goes_to_one_that_does() {
    let mut chooser = three(9);
    let to = chooser.all()[0].clone();
    let deaf = Load {
        open: false,
        hears: false,
        ..load(1)
    };
    let behind = Load {
        abreast: false,
        ..load(0)
    };
    for _ in 0..200 {
        assert!(chooser.goes(deaf, load(100), &to));
        assert!(!chooser.goes(deaf, deaf, &to));
        assert!(!chooser.goes(deaf, behind, &to));
    }
}

#[test]
fn nobody_goes_to_one_that_is_closed_behind_or_hardly_less_busy() {
    let mut chooser = three(9);
    let to = chooser.all()[0].clone();
    for (own, other) in [
        (
            load(100),
            Load {
                open: false,
                ..load(0)
            },
        ),
        (
            load(100),
            Load {
                abreast: false,
                ..load(0)
            },
        ),
        (load(1), load(0)),
        (load(100), load(90)),
        (load(50), load(100)),
        (load(0), load(0)),
    ] {
        assert!(
            (0..200).all(|_| !chooser.goes(own, other, &to)),
            "{own:?} {other:?}"
        );
    }
    assert!((0..200).any(|_| chooser.goes(load(2), load(0), &to)));
    let now = Instant::now();
    let from = chooser.all()[1].clone();
    assert_eq!(
        chooser.left(now, &from, (s(9), Left::Balance)),
        Duration::ZERO
    );
    assert_eq!(chooser.next(now), Some(to), "where it looked");
}

#[test]
fn an_old_stream_is_opened_again_where_it_was_if_workers_are_spread_by_looking() {
    let now = Instant::now();
    for sees in [true, false] {
        let mut chooser = three(2);
        chooser.sees(sees);
        let own = chooser.all()[1].clone();
        let mut same = 0;
        for _ in 0..300 {
            chooser.left(now, &own, (s(900), Left::Age));
            same += u32::from(chooser.next(now) == Some(own.clone()));
        }
        match sees {
            true => assert_eq!(same, 300),
            false => assert!((60..140).contains(&same), "{same}"),
        }
    }
}

/// Plays a fleet: each worker looks at another control plane once in a round. Gives how many each has after each round,
/// and how many went.
fn rounds(at: &mut [usize], open: &[bool], count: usize, seed: u64) -> (Vec<Vec<u32>>, usize) {
    let urls: Vec<String> = (0..open.len()).map(|n| format!("http://r{n}:1")).collect();
    let urls: Vec<&str> = urls.iter().map(String::as_str).collect();
    let mut choosers: Vec<_> = (0..at.len() as u64)
        .map(|n| chooser(&urls, seed * 100_000 + n))
        .collect();
    let now = Instant::now();
    let (mut history, mut went) = (Vec::new(), 0);
    let mut dice = fastrand::Rng::with_seed(seed);
    for _ in 0..count {
        let mut turns: Vec<usize> = (0..at.len()).collect();
        dice.shuffle(&mut turns);
        for worker in turns {
            let loads: Vec<u32> = (0..open.len())
                .map(|r| at.iter().filter(|at| **at == r).count() as u32)
                .collect();
            let chooser = &mut choosers[worker];
            let all = chooser.all();
            let own = at[worker];
            let Some(other) = chooser.another(now, &all[own]) else {
                continue;
            };
            let n = all.iter().position(|replica| *replica == other).unwrap();
            let seen = Load {
                open: open[n],
                ..load(loads[n])
            };
            if chooser.goes(load(loads[own]), seen, &other) {
                chooser.left(now, &all[own], (s(60), Left::Balance));
                chooser.next(now);
                at[worker] = n;
                went += 1;
            }
        }
        let loads = (0..open.len()).map(|r| at.iter().filter(|at| **at == r).count() as u32);
        history.push(loads.collect());
    }
    (history, went)
}

/// One of three returns, empty: within four rounds (of 15 s each by default) they are even within a fifth, no more go
/// than twice those that must, and then they rest.
#[test]
fn one_that_returns_gets_its_share_without_a_storm() {
    for workers in [30_usize, 300, 1_200] {
        for seed in 0..5 {
            let mut at: Vec<usize> = (0..workers).map(|n| n % 2).collect();
            let (history, went) = rounds(&mut at, &[true; 3], 4, seed);
            let fair = workers as f64 / 3.0;
            let even = |loads: &[u32]| {
                loads
                    .iter()
                    .all(|n| (f64::from(*n) - fair).abs() <= fair * 0.2)
            };
            assert!(
                even(&history[3]),
                "{workers} workers, seed {seed}: {history:?}"
            );
            assert!(
                went <= workers * 2 / 3,
                "{workers} workers, seed {seed}: {went} went"
            );
            let (history, went) = rounds(&mut at, &[true; 3], 20, seed + 50);
            assert!(even(&history[19]), "it stays so: {history:?}");
            assert!(
                went <= workers / 5,
                "it rests: {went} of {workers} in 20 rounds"
            );
        }
    }
}

#[test]
fn nobody_goes_to_one_that_takes_nobody() {
    let mut at: Vec<usize> = (0..200).map(|n| n % 2).collect();
    let (history, went) = rounds(&mut at, &[true, true, false], 5, 1);
    assert_eq!((history[4][2], went), (0, 0));
}

#[derive(Debug, Clone)]
enum Step {
    Next,
    Left(usize, u64, usize),
    List(usize, Vec<u8>),
    Unseen(usize),
    Look(usize, u32, u32),
    Later(u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => Just(Step::Next),
        4 => (any::<usize>(), 0..200_u64, 0..Left::ALL.len()).prop_map(|(r, lived, left)| Step::Left(r, lived, left)),
        2 => (0..2_usize, proptest::collection::vec(any::<u8>(), 0..6)).prop_map(|(n, ips)| Step::List(n, ips)),
        1 => any::<usize>().prop_map(Step::Unseen),
        2 => (any::<usize>(), 0..200_u32, 0..200_u32).prop_map(|(r, own, other)| Step::Look(r, own, other)),
        3 => (0..120_u64).prop_map(Step::Later),
    ]
}

proptest! {
    /// Whatever happens there is somebody to try, who is listed; one that may be tried comes before one that rests; and
    /// no pause is longer than a minute and a bit.
    #[test]
    fn there_is_always_somebody_and_never_the_wrong_one(
        seed in any::<u64>(), steps in proptest::collection::vec(step(), 1..80)
    ) {
        let mut chooser = chooser(&["http://one:1", "http://two:2", "http://10.0.0.1:1"], seed);
        let mut now = Instant::now();
        for step in steps {
            let all = chooser.all();
            prop_assert!(!all.is_empty() && all.len() <= MOST);
            let addresses: std::collections::BTreeSet<_> = all.iter().filter_map(|replica| replica.at).collect();
            prop_assert_eq!(addresses.len(), all.iter().filter(|r| r.at.is_some()).count(), "each once");
            let pick = |n: usize| all[n % all.len()].clone();
            match step {
                Step::Next => {
                    let bound_for = chooser.bound_for.clone().filter(|to| all.contains(to));
                    let free = chooser.free(now, None);
                    let next = chooser.next(now).unwrap();
                    prop_assert!(all.contains(&next));
                    match bound_for {
                        Some(to) => prop_assert_eq!(next, to),
                        None => prop_assert!(free.is_empty() || free.contains(&next)),
                    }
                }
                Step::Left(n, lived, left) => {
                    let left = Left::ALL[left];
                    let pause = chooser.left(now, &pick(n), (s(lived), left));
                    let rested = [Left::Lost, Left::Foreign, Left::Stopping].contains(&left);
                    prop_assert!(!rested || !chooser.free(now, None).contains(&pick(n)));
                    prop_assert!(pause <= s(61));
                }
                Step::List(n, last) => chooser.list(now, n, &ips(&last)),
                Step::Unseen(n) => chooser.unseen(now, &pick(n)),
                Step::Look(n, own, other) => {
                    let to = pick(n);
                    let another = chooser.another(now, &to);
                    prop_assert_ne!(another, Some(to.clone()));
                    let went = chooser.goes(load(own), load(other), &to);
                    prop_assert!(!went || own >= other + MORE);
                }
                Step::Later(n) => now += s(n),
            }
        }
    }
}
