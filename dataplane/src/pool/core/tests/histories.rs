//! The core under random histories, beside a model of what it may do.

use std::collections::VecDeque;

use proptest::prelude::*;

use super::*;

#[derive(Debug, Clone)]
enum Event {
    Acquire(u64),
    Answered(usize, u64),
    Adaptive(u32),
    AcquireAgain,
    AcquireFresh,
    /// From this endpoint alone.
    AcquireFrom(u64),
    /// From another than these.
    AcquireElsewhere(u8),
    /// What the answer of a lease says: nothing good if there is a fault.
    Judge(usize, Option<Fault>),
    Pause(usize, u64),
    Check(u64, bool),
    Cancel(usize),
    Connect(usize),
    Refuse(usize),
    Release(usize, Outcome),
    UpstreamCloses(u64),
    Allow(usize, usize),
    Reshape {
        size: usize,
        warm: usize,
        origins: u8,
        changed: u8,
    },
    Retire,
    Revive,
    Cap(usize),
    Streams(usize),
    Sweep(u64),
}

fn outcome() -> impl Strategy<Value = Outcome> {
    prop_oneof![
        8 => Just(Outcome::Reusable),
        1 => Just(Outcome::Unused),
        1 => Just(Outcome::Finished),
        1 => Just(Outcome::Aborted),
        1 => Just(Outcome::Declined),
        1 => Just(Outcome::Broken(CloseReason::Error)),
        1 => Just(Outcome::Broken(CloseReason::Upstream)),
    ]
}

fn fault() -> impl Strategy<Value = Option<Fault>> {
    prop_oneof![
        1 => Just(None),
        1 => prop::sample::select(Fault::ALL.to_vec()).prop_map(Some),
    ]
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        8 => (0_u64..6).prop_map(Event::Acquire),
        1 => (any::<usize>(), 0_u64..900).prop_map(|(at, took)| Event::Answered(at, took)),
        1 => (0_u32..4).prop_map(Event::Adaptive),
        1 => Just(Event::AcquireAgain),
        1 => Just(Event::AcquireFresh),
        1 => (0_u64..4).prop_map(Event::AcquireFrom),
        1 => any::<u8>().prop_map(Event::AcquireElsewhere),
        6 => (any::<usize>(), fault()).prop_map(|(at, fault)| Event::Judge(at, fault)),
        1 => (any::<usize>(), 0_u64..3_000).prop_map(|(at, millis)| Event::Pause(at, millis)),
        2 => (0_u64..4, any::<bool>()).prop_map(|(origin, passed)| Event::Check(origin, passed)),
        2 => any::<usize>().prop_map(Event::Cancel),
        8 => any::<usize>().prop_map(Event::Connect),
        1 => any::<usize>().prop_map(Event::Refuse),
        8 => (any::<usize>(), outcome()).prop_map(|(at, outcome)| Event::Release(at, outcome)),
        2 => (0_u64..60).prop_map(Event::UpstreamCloses),
        1 => (any::<usize>(), 0_usize..6).prop_map(|(at, streams)| Event::Allow(at, streams)),
        2 => (1_usize..12, 0_usize..6, 1_u8..16, any::<u8>()).prop_map(
            |(size, warm, origins, changed)| Event::Reshape { size, warm, origins, changed }
        ),
        1 => prop_oneof![Just(Event::Retire), Just(Event::Revive)],
        2 => (0_usize..14).prop_map(Event::Cap),
        1 => (0_usize..5).prop_map(Event::Streams),
        2 => (0_u64..6_000).prop_map(Event::Sweep),
    ]
}

/// The same, many times faster, for the long run.
fn any_event(dice: &mut fastrand::Rng) -> Event {
    let at = dice.usize(..);
    match dice.u8(0..60) {
        58 => Event::Answered(at, dice.u64(0..900)),
        59 => Event::Adaptive(dice.u32(0..4)),
        0..8 => Event::Acquire(dice.u64(0..6)),
        8 => Event::AcquireAgain,
        9 => Event::AcquireFresh,
        10..12 => Event::Cancel(at),
        12..20 => Event::Connect(at),
        20 => Event::Refuse(at),
        21..29 => Event::Release(
            at,
            match dice.u8(0..14) {
                0..8 => Outcome::Reusable,
                8 => Outcome::Unused,
                9 => Outcome::Finished,
                10 => Outcome::Aborted,
                13 => Outcome::Declined,
                11 => Outcome::Broken(CloseReason::Error),
                _ => Outcome::Broken(CloseReason::Upstream),
            },
        ),
        29..31 => Event::UpstreamCloses(dice.u64(0..60)),
        31 => Event::Allow(at, dice.usize(0..6)),
        32..35 => Event::Reshape {
            size: dice.usize(1..12),
            warm: dice.usize(0..6),
            origins: dice.u8(1..16),
            changed: dice.u8(..),
        },
        35 => Event::Retire,
        36 => Event::Revive,
        37..39 => Event::Cap(dice.usize(0..14)),
        39 => Event::Streams(dice.usize(0..5)),
        40 => Event::AcquireFrom(dice.u64(0..4)),
        41 => Event::AcquireElsewhere(dice.u8(..)),
        42..48 => {
            let fault = Fault::ALL[dice.usize(0..Fault::ALL.len())];
            Event::Judge(at, dice.bool().then_some(fault))
        }
        48 => Event::Pause(at, dice.u64(0..3_000)),
        49..51 => Event::Check(dice.u64(0..4), dice.bool()),
        _ => Event::Sweep(dice.u64(0..6_000)),
    }
}

/// A flow and what its requests claim: weights and priorities differ.
fn ask_of(flow: u64) -> Ask {
    Ask {
        weight: (flow % 3 + 1) as u32,
        priority: Priority::ALL[(flow as usize + 1) % 3],
        cost: (flow % 2 * 7 + 1) as u32,
        ..of(flow)
    }
}

/// Of one who had his turn: he goes before everybody.
const AGAIN: u64 = 99;

/// What the core may do: who waits, in which order, and who may be served before whom.
#[derive(Debug, Default)]
struct Model {
    /// Who, whether he needs a fresh one or certain endpoints, and his flow.
    line: VecDeque<(u64, bool, u64)>,
    adaptive: u32,
    granted: usize,
    size: usize,
}

impl Model {
    /// Takes note of what was granted since the last time: those who had their turn before the others, and each
    /// flow in order; but past those who need a fresher connection, and never to somebody who does not wait.
    fn follow(&mut self, shell: &Shell) {
        for waiter in &shell.granted[self.granted..] {
            let at = self.line.iter().position(|(known, ..)| known == waiter);
            let at = at.unwrap_or_else(|| panic!("{waiter} does not wait"));
            let (_, _, flow) = self.line[at];
            let first = |other: &u64| *other == flow || *other == AGAIN;
            let passed = self.line.range(..at).filter(|(_, _, flow)| first(flow));
            let passed: Vec<_> = passed.collect();
            // What one endpoint alone is asked for, others may not be allowed to have.
            let may_pass = shell.wanted_one.contains(waiter);
            assert!(
                may_pass || passed.iter().all(|(_, fresh, _)| *fresh),
                "3: {waiter} was served before {passed:?}"
            );
            self.line.remove(at);
        }
        self.granted = shell.granted.len();
        self.line
            .retain(|(waiter, ..)| shell.waiters.contains_key(waiter));
        assert_eq!(self.line.len(), shell.waiters.len());
    }
}

fn pick<T: Copy>(from: impl Iterator<Item = T>, at: usize) -> Option<T> {
    let all: Vec<T> = from.collect();
    all.get(at.checked_rem(all.len())?).copied()
}

fn play(shell: &mut Shell, model: &mut Model, event: Event) {
    let before = shell.leases.len();
    ask(shell, model, &event);
    happen(shell, &event);
    configure(shell, model, &event);
    model.follow(shell);
    assert!(
        shell.leases.len() <= before.max(model.size) || shell.census().in_flight <= model.size,
        "7: more requests than the size"
    );
    check(shell);
}

/// What requests do.
fn ask(shell: &mut Shell, model: &mut Model, event: &Event) {
    match *event {
        Event::Acquire(flow) => {
            model.line.push_back((shell.next + 1, false, flow));
            shell.acquire_as(&ask_of(flow), Place::Back);
        }
        Event::AcquireAgain => {
            model.line.push_front((shell.next + 1, false, AGAIN));
            shell.acquire_at(Place::Front);
        }
        Event::AcquireFresh => {
            model.line.push_front((shell.next + 1, true, AGAIN));
            shell.acquire_at(Place::FrontForFresh);
        }
        Event::AcquireFrom(endpoint) => {
            // One of a flow like all others.
            let flow = endpoint;
            model.line.push_back((shell.next + 1, true, flow));
            let only = Some(EndpointKey(endpoint));
            shell.acquire_by(&ask_of(flow), Place::Back, Wish { only, not: vec![] });
        }
        Event::AcquireElsewhere(bits) => {
            model.line.push_front((shell.next + 1, true, AGAIN));
            let not = (0..4).filter(|n| bits & (1 << n) != 0).map(OriginId);
            let not = not.collect();
            shell.acquire_wish(Place::Front, Wish { only: None, not });
        }
        Event::Cancel(at) => {
            if let Some(waiter) = pick(shell.waiters.keys().copied(), at) {
                let id = shell.waiters.remove(&waiter).unwrap();
                assert!(shell.core.cancel(id).is_some(), "nobody to cancel");
            }
        }
        _ => {}
    }
}

/// What connections do, and time.
fn happen(shell: &mut Shell, event: &Event) {
    match *event {
        Event::Connect(at) if !shell.connects.is_empty() => {
            let (ticket, _) = shell.connects.remove(at % shell.connects.len());
            shell.connected(ticket);
        }
        Event::Refuse(at) if !shell.connects.is_empty() => {
            let (ticket, _) = shell.connects.remove(at % shell.connects.len());
            let effects = shell.core.connect_failed(shell.now, ticket, "refused");
            shell.run(effects);
        }
        Event::Release(at, outcome) => {
            if let Some(waiter) = pick(shell.leases.keys().copied(), at) {
                shell.release(waiter, outcome);
            }
        }
        Event::Judge(at, fault) => {
            if let Some(waiter) = pick(shell.leases.keys().copied(), at) {
                shell.judge(waiter, fault.map_or(Verdict::Answered, Verdict::Broken));
            }
        }
        Event::Pause(at, millis) => {
            if let Some(waiter) = pick(shell.leases.keys().copied(), at) {
                let pause = Duration::from_millis(millis);
                shell.judge(waiter, Verdict::Busy(Some(pause)));
            }
        }
        Event::Check(origin, passed) => {
            let (_, effects) = shell
                .core
                .checked(shell.now, OriginId(origin), passed, (2, 1));
            shell.run(effects);
        }
        Event::UpstreamCloses(id) => {
            // While it is on loan, the end of one that is not shared is told by its lease.
            let effects = shell.core.ended(shell.now, ConnId(id));
            shell.run(effects);
        }
        Event::Allow(at, streams) => {
            if let Some(waiter) = pick(shell.leases.keys().copied(), at) {
                let id = shell.leases[&waiter].id;
                let effects = shell.core.allow(shell.now, id, streams);
                shell.run(effects);
            }
        }
        Event::Answered(at, took) => {
            let answered = Answered {
                sent: shell.now.saturating_sub(Duration::from_millis(took)),
                bytes: at % 100_000,
                how: match at % 7 {
                    0 => How::Refused,
                    _ => How::Stream(Duration::from_millis(took)),
                },
            };
            let effects = shell.core.answered(shell.now, &answered);
            shell.run(effects);
        }
        Event::Streams(streams) => shell.streams = streams,
        Event::Sweep(millis) => shell.sweep(millis),
        _ => {}
    }
}

/// What operators and the budget do.
fn configure(shell: &mut Shell, model: &mut Model, event: &Event) {
    match *event {
        Event::Reshape {
            size,
            warm,
            origins,
            changed,
        } => {
            model.size = size;
            let bits = |bits: u8| (0..4).filter(move |n| bits & (1 << n) != 0);
            let origins: Vec<u64> = bits(origins).collect();
            let changed: Vec<u64> = bits(changed).filter(|n| !origins.contains(n)).collect();
            let adaptive = forebay_proto::AdaptiveParams {
                min: model.adaptive.min(size as u32),
                target_first_byte: None,
                tolerance_percent: 150,
            };
            let shape = Shape {
                warm,
                max_waiting: 5,
                checked: true,
                adaptive: (model.adaptive > 0).then_some(adaptive),
                ..shape(size)
            };
            shell.reshape_with(shape, &origins, &changed);
        }
        Event::Adaptive(min) => model.adaptive = min,
        Event::Retire => {
            let effects = shell.core.retire(shell.now);
            shell.run(effects);
        }
        Event::Revive => shell.core.revive(),
        Event::Cap(cap) => {
            let effects = shell.core.set_cap(shell.now, cap);
            shell.run(effects);
        }
        _ => {}
    }
}

/// What is counted is what the shell holds.
fn check(shell: &Shell) {
    let mut trials: Vec<u64> = shell.trials().collect();
    trials.sort_unstable();
    trials.dedup();
    assert_eq!(
        trials.len(),
        shell.trials().count(),
        "8: two trials at once"
    );
    let counted = shell.core.line.in_flight();
    assert_eq!(
        counted,
        shell.leases.len(),
        "9: each is counted for its flow"
    );
    let census = shell.census();
    assert_eq!(census.connecting, shell.connects.len());
    assert_eq!(census.waiting, shell.waiters.len());
    let exclusive = shell.leases.values().filter(|held| !held.shared).count();
    let busy = census.active + census.draining;
    assert!(busy >= exclusive);
    assert_eq!(shell.core.counters.open(), (census.idle + busy) as u64);
    for held in shell.leases.values().filter(|held| held.shared) {
        let same = shell.leases.values().filter(|other| other.id == held.id);
        assert!(same.count() <= MOST_STREAMS, "7: more than it carries");
    }
}

/// When all ends well everybody is answered.
fn end(shell: &mut Shell, model: &mut Model) {
    play(shell, model, Event::Revive);
    play(shell, model, Event::Streams(0));
    let all = Event::Reshape {
        size: 4,
        warm: 0,
        origins: 1,
        changed: 0,
    };
    play(shell, model, all);
    play(shell, model, Event::Cap(usize::MAX));
    for _ in 0..2_000 {
        if shell.waiters.is_empty() {
            break;
        }
        let lease = shell.leases.keys().next().copied();
        lease
            .into_iter()
            .for_each(|waiter| shell.release(waiter, Outcome::Reusable));
        shell.connect();
        shell.sweep(100);
        model.follow(shell);
    }
    assert!(shell.waiters.is_empty(), "liveness");
    let leases: Vec<u64> = shell.leases.keys().copied().collect();
    for waiter in leases {
        shell.release(waiter, Outcome::Reusable);
    }
    assert_eq!(shell.census().in_flight, 0, "conservation");
    assert_eq!(shell.census().active + shell.census().draining, 0);
    let mut granted = shell.granted.clone();
    granted.sort_unstable();
    granted.dedup();
    assert_eq!(granted.len(), shell.granted.len(), "granted twice");
}

fn history(events: impl Iterator<Item = Event>) {
    let mut shell = Shell::new(shape(4), 1);
    let mut model = Model {
        size: 4,
        ..Model::default()
    };
    for event in events {
        play(&mut shell, &mut model, event);
    }
    end(&mut shell, &mut model);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Whatever happens, the invariants hold after each transition (asserted when the core comes to rest),
    /// the order of the line is kept, and when all ends well everybody was answered and the counts add up.
    #[test]
    fn random_histories_keep_the_invariants(events in prop::collection::vec(event(), 1..300)) {
        history(events.into_iter());
    }
}

/// The long run. Says the seed of a history that fails; shorten it in `one_history`.
#[test]
fn a_hundred_thousand_histories_keep_the_invariants() {
    let threads: Vec<_> = (0..2_u64)
        .map(|thread| {
            std::thread::spawn(move || {
                for n in 0..50_000 {
                    let seed = thread * 1_000_000 + n;
                    let mut dice = fastrand::Rng::with_seed(seed);
                    let length = dice.usize(1..60);
                    let events: Vec<Event> = (0..length).map(|_| any_event(&mut dice)).collect();
                    let told = format!("seed {seed}: {events:?}");
                    if let Err(panic) = std::panic::catch_unwind(|| history(events.into_iter())) {
                        eprintln!("{told}");
                        std::panic::resume_unwind(panic);
                    }
                }
            })
        })
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
}
