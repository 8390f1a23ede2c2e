//! The rules one by one, and what holds of any history.

use proptest::prelude::*;

use super::*;

const LIST: Rules = Rules {
    partial: false,
    keep_empty: Duration::from_secs(300),
};
const RECORDS: Rules = Rules {
    partial: true,
    ..LIST
};

fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

fn named(n: u16) -> Named {
    Named {
        url: EndpointUrl::parse(&format!("http://10.0.0.1:{}", 1_000 + n)).unwrap(),
        parts: 1,
        priority: 0,
        server_name: None,
    }
}

fn list(servers: &[u16]) -> Vec<Named> {
    servers.iter().map(|n| named(*n)).collect()
}

fn used(state: &State) -> Vec<u16> {
    let port = |named: Named| match named.url.address() {
        forebay_proto::endpoint::Address::Host(_, port) => port - 1_000,
        _ => unreachable!(),
    };
    state.used().into_iter().map(port).collect()
}

#[test]
fn a_list_is_taken_at_its_word() {
    let mut state = State::new(LIST, vec![]);
    state.answer(secs(0), list(&[1, 2, 2, 3]));
    assert_eq!(used(&state), [1, 2, 3]);
    state.answer(secs(1), list(&[2, 4]));
    assert_eq!(used(&state), [2, 4]);
    // The weight of one that stays follows.
    let heavier = Named {
        parts: 7,
        ..named(2)
    };
    state.answer(secs(2), vec![heavier.clone(), named(4)]);
    assert_eq!(state.used()[0], heavier);
}

#[test]
fn that_there_are_none_is_believed_after_a_while() {
    let mut state = State::new(LIST, vec![]);
    state.answer(secs(0), list(&[1, 2]));
    state.answer(secs(10), vec![]);
    assert!(state.is_kept_alive());
    assert_eq!(state.next(secs(10)), Some(secs(310)));
    state.answer(secs(309), vec![]);
    assert_eq!(used(&state), [1, 2]);
    // It was said before: the time goes on from then.
    state.advance(secs(310));
    assert!(used(&state).is_empty() && !state.is_kept_alive());
    state.answer(secs(311), list(&[2]));
    assert_eq!(used(&state), [2]);
    // One answer between begins it anew.
    state.answer(secs(312), vec![]);
    state.answer(secs(600), list(&[2]));
    state.answer(secs(601), vec![]);
    state.advance(secs(700));
    assert_eq!(used(&state), [2]);
    let at_once = Rules {
        keep_empty: Duration::ZERO,
        ..LIST
    };
    let mut state = State::new(at_once, list(&[1]));
    state.answer(secs(0), vec![]);
    assert!(used(&state).is_empty());
}

#[test]
fn answers_that_rotate_are_no_changes_and_those_that_only_lack_are() {
    let mut state = State::new(RECORDS, vec![]);
    state.answer(secs(0), list(&[1, 2, 3]));
    state.answer(secs(1), list(&[2, 3, 4]));
    assert_eq!(used(&state), [1, 2, 3, 4]);
    state.answer(secs(2), list(&[1, 4]));
    assert_eq!(used(&state), [1, 2, 3, 4]);
    // What none had for half a minute is gone, if they were some.
    state.advance(secs(32));
    assert_eq!(used(&state), [1, 2, 3, 4]);
    state.answer(secs(3), list(&[1, 4]));
    assert_eq!(state.next(secs(3)), None);
    state.answer(secs(4), list(&[1, 4]));
    assert_eq!(state.next(secs(4)), Some(secs(32)));
    state.advance(secs(32));
    assert_eq!(used(&state), [1, 4]);
    state.answer(secs(33), list(&[1]));
    assert_eq!(used(&state), [1], "scaled down");
    state.answer(secs(34), list(&[8, 9]));
    assert_eq!(used(&state), [8, 9], "all are others");
}

#[test]
fn answers_that_hold_for_long_or_come_again_rotate_as_well() {
    let mut state = State::new(RECORDS, vec![]);
    state.answer(secs(0), list(&[1, 2, 3]));
    // A minute apart, each is the first that lacks another one for longer than half a minute.
    for (n, part) in [[2, 3, 4], [3, 4, 1], [4, 1, 2], [1, 2, 3]]
        .iter()
        .enumerate()
    {
        state.answer(secs(60 * (n as u64 + 1)), list(part));
        state.advance(secs(60 * (n as u64 + 1) + 59));
        assert_eq!(used(&state), [1, 2, 3, 4], "{part:?}");
    }
    // The same part again, from a cache between: what it lacked before is in another one.
    state.answer(secs(300), list(&[1, 2, 3]));
    assert_eq!(used(&state), [1, 2, 3, 4]);
    // What is lacking for the first time when nothing is new is gone.
    state.answer(secs(301), list(&[1, 2]));
    assert_eq!(used(&state), [1, 2]);
    state.answer(secs(360), list(&[1, 5]));
    state.answer(secs(420), list(&[1, 6, 5]));
    assert_eq!(used(&state), [1, 2, 5, 6]);
    state.answer(secs(480), list(&[1, 6, 5]));
    assert_eq!(used(&state), [1, 5, 6]);
}

#[test]
fn one_that_comes_and_goes_waits_longer_each_time_unless_it_is_alone() {
    let mut state = State::new(LIST, vec![]);
    let mut now = secs(0);
    state.answer(now, list(&[1, 2]));
    for expected in [0, 1, 2, 4, 8, 16, 32, 60, 60] {
        now += secs(1);
        state.answer(now, list(&[1]));
        assert_eq!(used(&state), [1]);
        now += secs(1);
        state.answer(now, list(&[1, 2]));
        if expected > 0 {
            assert_eq!(used(&state), [1], "{expected}");
            assert_eq!(state.waiting(now), (1, 0));
            assert_eq!(state.next(now), Some(now + secs(expected)));
            now += secs(expected);
            state.advance(now);
        }
        assert_eq!(used(&state), [1, 2], "{expected}");
    }
    // Alone it does not wait.
    state.answer(now + secs(1), list(&[1]));
    state.answer(now + secs(2), list(&[2]));
    assert_eq!(used(&state), [2]);
    // After a while it is as good as new.
    now += secs(400);
    state.answer(now, list(&[1, 2]));
    state.answer(now + secs(1), list(&[1]));
    state.answer(now + secs(2), list(&[1, 2]));
    assert_eq!(used(&state), [1, 2]);
}

#[test]
fn there_is_a_limit_and_those_in_use_stay() {
    let all: Vec<u16> = (0..limits::TARGETS as u16 + 10).collect();
    let mut state = State::new(RECORDS, list(&[300]));
    let mut wanted = list(&[300]);
    wanted.extend(list(&all));
    state.answer(secs(0), wanted);
    assert_eq!(state.used().len(), limits::TARGETS);
    assert!(used(&state).contains(&300));
    assert_eq!(state.waiting(secs(0)), (0, 11));
    // What waits for room is no reason to wake up.
    assert_eq!(state.next(secs(0)), None);
    // One that is lacking makes room for one that is there.
    let mut rest = list(&all);
    rest.push(named(400));
    state.answer(secs(1), rest);
    assert!(!used(&state).contains(&300));
    assert_eq!(state.used().len(), limits::TARGETS);
}

#[derive(Debug, Clone)]
enum Event {
    Answer(Vec<u16>),
    Time(u64),
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let event = prop_oneof![
        3 => prop::collection::vec(0_u16..6, 0..6).prop_map(Event::Answer),
        1 => (0_u64..400).prop_map(Event::Time),
    ];
    prop::collection::vec(event, 0..40)
}

proptest! {
    #[test]
    fn whatever_is_answered(events in events(), partial: bool) {
        let rules = Rules { partial, ..LIST };
        let mut state = State::new(rules, vec![]);
        let mut now = secs(0);
        let mut ever = BTreeSet::new();
        let mut last: Vec<u16> = Vec::new();
        let mut empty_since = None;
        for event in events {
            let before = used(&state);
            match event {
                Event::Answer(servers) => {
                    now += secs(1);
                    state.answer(now, list(&servers));
                    ever.extend(servers.iter().copied());
                    if servers.is_empty() {
                        empty_since.get_or_insert(now);
                    } else {
                        empty_since = None;
                        prop_assert!(!used(&state).is_empty(), "{servers:?} and nothing is used");
                        let named: BTreeSet<u16> = servers.iter().copied().collect();
                        // Only those of an answer come, and those that stay are not lost.
                        for server in used(&state) {
                            prop_assert!(named.contains(&server) || before.contains(&server));
                        }
                        for server in &before {
                            prop_assert!(!named.contains(server) || used(&state).contains(server));
                        }
                        if !partial {
                            prop_assert!(used(&state).iter().all(|s| named.contains(s)));
                        }
                    }
                    last = servers;
                }
                Event::Time(n) => {
                    now += secs(n);
                    state.advance(now);
                }
            }
            // Nothing takes away all but the word that there are none, kept to for long enough.
            if empty_since.is_none_or(|since| now - since < rules.keep_empty) {
                prop_assert!(before.is_empty() || !used(&state).is_empty());
            }
            prop_assert!(used(&state).iter().all(|server| ever.contains(server)));
            prop_assert!(state.next(now).is_none_or(|next| next >= now));
        }
        // In the end it is as the source says, if that stays the same.
        if !last.is_empty() {
            for _ in 0..200 {
                now += secs(1);
                state.answer(now, list(&last));
            }
            let mut last = last;
            last.sort_unstable();
            last.dedup();
            prop_assert_eq!(used(&state), last);
        }
    }

    /// However a source flaps, the pool is not shaken with it.
    #[test]
    fn the_changes_of_one_server_are_bounded(present in prop::collection::vec(any::<bool>(), 600)) {
        let mut state = State::new(LIST, vec![]);
        let (mut changes, mut was) = (0, false);
        for (second, present) in present.into_iter().enumerate() {
            let servers: &[u16] = if present { &[1, 2] } else { &[1] };
            state.answer(secs(second as u64), list(servers));
            let is = used(&state).contains(&2);
            changes += usize::from(is != was);
            was = is;
        }
        // In ten minutes: free once, then 1, 2, 4, … 60 s between.
        prop_assert!(changes <= 36, "{changes}");
    }
}

#[test]
fn an_answer_without_any_is_no_news_for_the_next_one_that_only_lacks_some() {
    let mut state = State::new(RECORDS, vec![]);
    state.answer(secs(0), list(&[1, 2]));
    state.answer(secs(1), vec![]);
    assert_eq!(used(&state), [1, 2]);
    state.answer(secs(2), list(&[2]));
    assert_eq!(used(&state), [2]);
}
