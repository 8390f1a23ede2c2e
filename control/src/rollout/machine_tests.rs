//! The machine against a fleet that is played: what it promises, whatever happens.

use forebay_proto::{
    Digest, Epoch, Health, InstanceId, ModelId,
    health::{ModelHealth, Tally},
};
use proptest::prelude::*;

use super::*;

/// What is wrong with a revision.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Harm {
    None,
    Refused,
    Errors,
}

#[derive(Debug, Clone)]
struct World {
    seen: Vec<Seen>,
    instances: usize,
    /// By revision, from 1.
    harms: Vec<Harm>,
    now: Duration,
}

fn position(revision: usize) -> Position {
    Position {
        epoch: Epoch::new("aa").unwrap(),
        revision: Revision::new(revision as u64),
        digest: Digest::of(&revision.to_be_bytes()),
    }
}

fn settings() -> RolloutSettings {
    RolloutSettings {
        rings: "1,25%".parse().unwrap(),
        soak: Duration::from_secs(10),
        max_errors: 0.1,
        max_slowdown: 3.0,
    }
}

fn worker(n: usize) -> WorkerId {
    WorkerId::new(format!("w{n}")).unwrap()
}

impl World {
    /// So many workers on revision 1.
    fn new(workers: usize) -> (Self, Machine) {
        let seen = (0..workers).map(|n| Seen {
            worker: worker(n),
            instance: InstanceId::new("0").unwrap(),
            succeeds: false,
            ends: false,
            connected: true,
            applied: Some(position(1)),
            refused: None,
            changed: Arc::default(),
            health: Health {
                requests: 100,
                ..Health::default()
            },
        });
        let world = Self {
            seen: seen.collect(),
            instances: 0,
            harms: vec![Harm::None],
            now: Duration::ZERO,
        };
        (world, Machine::new(settings(), position(1), position(1)))
    }

    fn write(&mut self, harm: Harm) -> Event {
        self.harms.push(harm);
        Event::Newest {
            position: position(self.harms.len()),
            proven: false,
        }
    }

    fn harm(&self, position: Option<&Position>) -> Harm {
        let number = position.map_or(0, |position| position.revision.get() as usize);
        number.checked_sub(1).map_or(Harm::None, |n| self.harms[n])
    }

    /// What a session would offer it.
    fn offered(&self, machine: &Machine, n: usize) -> Position {
        let seen = &self.seen[n];
        let ahead = seen
            .applied
            .as_ref()
            .is_some_and(|held| held.is_after(machine.stable()));
        match machine.candidate() {
            Some(candidate) if ahead || machine.members().contains(&seen.worker) => candidate,
            _ => machine.stable(),
        }
        .clone()
    }

    fn take(&mut self, machine: &Machine, n: usize) {
        let offered = self.offered(machine, n);
        let refuses = self.harm(Some(&offered)) == Harm::Refused;
        let seen = &mut self.seen[n];
        if !seen.connected || seen.applied.as_ref() == Some(&offered) {
            return;
        }
        let older = seen
            .applied
            .as_ref()
            .is_some_and(|held| held.revision > offered.revision);
        assert!(!older, "{:?} is offered {offered}", seen.applied);
        match refuses {
            true => seen.refused = Some(offered),
            false => (seen.applied, seen.refused) = (Some(offered), None),
        }
    }

    fn join(&mut self, n: usize, anew: bool) {
        let seen = &mut self.seen[n];
        seen.connected = true;
        if anew {
            self.instances += 1;
            seen.instance = InstanceId::new(self.instances.to_string()).unwrap();
            (seen.refused, seen.health) = (None, Health::default());
        }
    }

    /// Time and traffic go by, then the machine looks.
    fn look(&mut self, machine: &mut Machine, later: Duration) -> Vec<Effect> {
        self.now += later;
        for n in 0..self.seen.len() {
            let fails = self.harm(self.seen[n].applied.as_ref()) == Harm::Errors;
            let health = &mut self.seen[n].health;
            health.requests += 50;
            health.latency[0] += 50;
            health.errors += if fails { 50 } else { 0 };
        }
        let connected = self.connected();
        let (ring, before) = (machine.ring().0, self.fresh(machine));
        let effects = machine.on(self.now, Event::Look(self.seen.clone()));
        if ring > 0 && self.fresh(machine) > before {
            let size = settings().rings.size(ring - 1, connected).unwrap();
            assert!(machine.members().len() <= size, "more than the ring's");
        }
        effects
    }

    fn connected(&self) -> usize {
        self.seen.iter().filter(|seen| seen.connected).count()
    }

    /// Members that hold nothing beyond stable yet: they are offered it because they are of the ring.
    fn fresh(&self, machine: &Machine) -> usize {
        let fresh = self.seen.iter().filter(|seen| {
            let ahead = seen
                .applied
                .as_ref()
                .is_some_and(|held| held.is_after(machine.stable()));
            !ahead && machine.members().contains(&seen.worker)
        });
        fresh.count()
    }

    /// Looks until this many seconds are over; everybody takes what it is offered. Returns are written.
    fn run(&mut self, machine: &mut Machine, seconds: u64) -> Vec<String> {
        let mut reasons = Vec::new();
        for _ in 0..seconds * 4 {
            (0..self.seen.len()).for_each(|n| self.take(machine, n));
            let effects = self.look(machine, Duration::from_millis(250));
            if let Some(reason) = asked(&effects) {
                reasons.push(reason);
                let newest = self.write(Harm::None);
                let by = Revision::new(self.harms.len() as u64);
                machine.on(self.now, Event::Returned(by));
                machine.on(self.now, newest);
            }
        }
        reasons
    }

    fn holders(&self, revision: usize) -> usize {
        let held = Some(position(revision));
        self.seen.iter().filter(|seen| seen.applied == held).count()
    }

    fn member(&self, machine: &Machine) -> usize {
        let of = |seen: &Seen| machine.members().contains(&seen.worker);
        self.seen.iter().position(of).unwrap()
    }
}

fn asked(effects: &[Effect]) -> Option<String> {
    effects.iter().find_map(|effect| match effect {
        Effect::Return { reason } => Some(reason.clone()),
        Effect::Offer => None,
    })
}

#[test]
fn a_good_revision_goes_from_one_to_a_quarter_to_all() {
    let (mut world, mut machine) = World::new(20);
    let event = world.write(Harm::None);
    assert_eq!(machine.on(world.now, event), [Effect::Offer]);
    let mut held = Vec::new();
    for _ in 0..25 {
        world.run(&mut machine, 1);
        held.push(world.holders(2));
    }
    held.dedup();
    assert_eq!(held, [1, 5, 20]);
    assert_eq!((machine.stable(), machine.ring()), (&position(2), (0, 3)));
}

#[test]
fn a_refused_revision_is_taken_back_from_one_worker() {
    let (mut world, mut machine) = World::new(20);
    let event = world.write(Harm::Refused);
    machine.on(world.now, event);
    let reasons = world.run(&mut machine, 30);
    assert_eq!(reasons.len(), 1);
    assert!(
        reasons[0].contains("revision 2") && reasons[0].contains("refused it"),
        "{reasons:?}"
    );
    assert_eq!((world.holders(2), world.holders(3)), (0, 20));
    let returned = &machine.returns()[0];
    assert_eq!((returned.first.get(), returned.by.get()), (2, 3));
}

#[test]
fn a_harmful_revision_is_taken_back_within_a_second_of_its_traffic() {
    let (mut world, mut machine) = World::new(20);
    let event = world.write(Harm::Errors);
    machine.on(world.now, event);
    let reasons = world.run(&mut machine, 1);
    assert!(reasons[0].contains("100.0 % of 50"), "{reasons:?}");
    let behind = |seen: &&Seen| seen.applied == Some(position(3));
    world.run(&mut machine, 1);
    assert_eq!(world.seen.iter().filter(behind).count(), 20, "all at once");
}

#[test]
fn a_worker_that_comes_back_as_another_process_speaks_against_it() {
    let (mut world, mut machine) = World::new(20);
    let event = world.write(Harm::None);
    machine.on(world.now, event);
    world.run(&mut machine, 2);
    let canary = world.member(&machine);
    world.seen[canary].connected = false;
    world.run(&mut machine, 2);
    assert_ne!(world.member(&machine), canary, "replaced");
    assert_eq!(world.holders(2), 2);
    let mut same = (
        world.clone(),
        Machine::new(settings(), position(1), position(2)),
    );
    world.join(canary, true);
    let reasons = world.run(&mut machine, 1);
    assert!(
        reasons[0].contains(&format!("worker w{canary} ")),
        "{reasons:?}"
    );

    // The same process is none the worse, also for a machine that knows of no yesterday.
    same.0.join(canary, false);
    assert_eq!(same.0.run(&mut same.1, 40), [] as [String; 0]);
    assert_eq!(same.0.holders(2), 20);
}

/// A ring's worker that has another process now, which came as it was expected: after an end in good order, or to
/// take over.
fn succeeded(hands_over: bool) -> (World, Machine, usize) {
    let (mut world, mut machine) = World::new(20);
    let event = world.write(Harm::None);
    machine.on(world.now, event);
    world.run(&mut machine, 2);
    let canary = world.member(&machine);
    if !hands_over {
        world.seen[canary].ends = true;
        world.run(&mut machine, 1);
        world.seen[canary].connected = false;
        world.run(&mut machine, 2);
    }
    world.join(canary, true);
    (world.seen[canary].ends, world.seen[canary].succeeds) = (false, hands_over);
    assert_eq!(world.run(&mut machine, 1), [] as [String; 0]);
    (world, machine, canary)
}

#[test]
fn a_worker_that_ended_in_good_order_or_was_taken_over_does_not_speak_against_it() {
    for hands_over in [false, true] {
        let (mut world, mut machine, _) = succeeded(hands_over);
        assert_eq!(world.run(&mut machine, 60), [] as [String; 0]);
        assert_eq!(world.holders(2), 20, "it goes on");

        let (mut world, mut machine, canary) = succeeded(hands_over);
        world.seen[canary].succeeds = false;
        world.join(canary, true);
        let reasons = world.run(&mut machine, 1);
        assert_eq!(reasons.len(), 1, "a crash is one: {reasons:?}");
    }
    // The one that was to take over never served; the one before goes on.
    let (mut world, mut machine, canary) = succeeded(true);
    world.seen[canary].instance = InstanceId::new("0").unwrap();
    world.seen[canary].succeeds = false;
    assert_eq!(world.run(&mut machine, 60), [] as [String; 0]);
    assert_eq!(world.holders(2), 20);
}

/// The process that came has not run for long: the ring waits for it as for any.
#[test]
fn a_process_that_takes_over_soaks_anew() {
    let (mut world, mut machine) = World::new(20);
    let event = world.write(Harm::None);
    machine.on(world.now, event);
    let canary = loop {
        world.run(&mut machine, 1);
        match machine.members().len() {
            0 => {}
            _ => break world.member(&machine),
        }
    };
    let soak = settings().soak.as_secs();
    world.run(&mut machine, soak - 2);
    assert_eq!(world.holders(2), 1);
    world.join(canary, true);
    world.seen[canary].succeeds = true;
    world.run(&mut machine, soak - 2);
    assert_eq!(world.holders(2), 1, "its time began anew");
    world.run(&mut machine, 4);
    assert!(world.holders(2) > 1);
}

#[test]
fn newer_writes_take_its_place_on_the_same_worker_but_not_for_ever() {
    let (mut world, mut machine) = World::new(20);
    let event = world.write(Harm::None);
    machine.on(world.now, event);
    world.run(&mut machine, 2);
    let canary = world.member(&machine);
    let mut stable = Vec::new();
    for _ in 0..120 {
        let event = world.write(Harm::None);
        machine.on(world.now, event);
        world.run(&mut machine, 1);
        stable.push(machine.stable().revision.get());
        if stable.last() > Some(&1) {
            break;
        }
        let held = world.seen[canary].applied.as_ref();
        assert!(machine.ring().0 != 1 || held == machine.candidate());
    }
    assert!(
        stable.len() <= 52,
        "three soaks, then two whole ones: {}",
        stable.len()
    );
    let moved = *stable.last().unwrap() as usize;
    assert_eq!(world.holders(moved), 20, "everywhere");
    world.run(&mut machine, 60);
    assert_eq!(
        world.holders(world.harms.len()),
        20,
        "the newest in the end"
    );
}

#[test]
fn what_could_not_be_taken_back_is_tried_again_and_a_correction_is_taken_up() {
    let (mut world, mut machine) = World::new(20);
    let event = world.write(Harm::Errors);
    machine.on(world.now, event);
    let second = Duration::from_secs(1);
    let mut tries = 0;
    for _ in 0..14 {
        (0..20).for_each(|n| world.take(&machine, n));
        if asked(&world.look(&mut machine, second)).is_some() {
            tries += 1;
            machine.on(world.now, Event::NotReturned);
        }
    }
    assert_eq!((tries, world.holders(2)), (3, 1));
    let event = world.write(Harm::None);
    machine.on(world.now, event);
    assert_eq!(world.run(&mut machine, 30), [] as [String; 0]);
    assert_eq!(world.holders(3), 20);
}

#[test]
fn content_that_is_stable_already_goes_to_all_at_once() {
    let (mut world, mut machine) = World::new(20);
    let event = world.write(Harm::None);
    machine.on(world.now, event);
    world.run(&mut machine, 2);
    world.harms.push(Harm::None);
    let undone = Position {
        digest: position(1).digest,
        ..position(3)
    };
    machine.on(
        world.now,
        Event::Newest {
            position: undone.clone(),
            proven: true,
        },
    );
    assert_eq!((machine.stable(), machine.candidate()), (&undone, None));
}

#[test]
fn after_a_restart_who_holds_it_keeps_it_and_the_rest_wait() {
    let (mut world, _) = World::new(20);
    world.harms.push(Harm::None);
    for n in [3, 4, 5] {
        world.seen[n].applied = Some(position(2));
    }
    let mut machine = Machine::new(settings(), position(1), position(2));
    world.run(&mut machine, 9);
    assert_eq!(world.holders(2), 3);
    assert_eq!(machine.members().len(), 3, "no more are drawn");
    world.run(&mut machine, 30);
    assert_eq!(world.holders(2), 20);
}

#[test]
fn a_model_is_judged_if_the_candidate_changed_it_and_not_if_stable_did() {
    for (changed_by, fails) in [(1, false), (2, true)] {
        let (mut world, mut machine) = World::new(4);
        let event = world.write(Harm::None);
        machine.on(world.now, event);
        let told = ModelHealth {
            model: ModelId::new("m").unwrap(),
            revision: Revision::new(changed_by),
            before: Tally {
                requests: 300,
                errors: 0,
            },
            since: Tally {
                requests: 40,
                errors: 40,
            },
        };
        for seen in &mut world.seen {
            seen.changed = Arc::new([told.clone()]);
        }
        let reasons = world.run(&mut machine, 2);
        assert_eq!(!reasons.is_empty(), fails, "{reasons:?}");
        assert!(
            reasons.iter().all(|why| why.contains("for model m")),
            "{reasons:?}"
        );
    }
}

/// A worker that lacks a model of stable lacks it of the candidate, too: that is no fault of the candidate's.
#[test]
fn what_is_wrong_with_a_worker_anyway_does_not_speak_against_a_revision() {
    let (mut world, mut machine) = World::new(4);
    (0..3).for_each(|n| world.seen[n].refused = Some(position(1)));
    let event = world.write(Harm::None);
    machine.on(world.now, event);
    world.look(&mut machine, Duration::ZERO);
    assert_eq!(world.member(&machine), 3, "the one that is well is drawn");
    let partial = |world: &mut World, machine: &Machine| {
        for n in 0..4 {
            world.take(machine, n);
            let seen = &mut world.seen[n];
            seen.refused = seen.applied.clone().filter(|_| n < 3);
        }
    };
    world.seen[3].connected = false;
    for _ in 0..100 {
        partial(&mut world, &machine);
        let effects = world.look(&mut machine, Duration::from_millis(250));
        assert_eq!(asked(&effects), None);
    }
    assert_eq!(world.holders(2), 3);

    // One that was well and is not any more is another matter.
    let (mut world, mut machine) = World::new(4);
    let event = world.write(Harm::None);
    machine.on(world.now, event);
    world.look(&mut machine, Duration::ZERO);
    let canary = world.member(&machine);
    world.take(&machine, canary);
    world.seen[canary].refused = world.seen[canary].applied.clone();
    let reason = asked(&world.look(&mut machine, Duration::ZERO)).unwrap();
    assert!(
        reason.contains("could not take all of its models"),
        "{reason}"
    );
}

#[test]
fn a_worker_that_never_takes_it_does_not_hold_it_up_for_ever() {
    let (mut world, mut machine) = World::new(4);
    let event = world.write(Harm::None);
    machine.on(world.now, event);
    let second = Duration::from_secs(1);
    let waited = (0..200).find(|_| asked(&world.look(&mut machine, second)).is_some());
    assert!(
        waited.is_some_and(|n| (119..=121).contains(&n)),
        "{waited:?}"
    );
}

/// A push that a worker does not survive ends its stream, and is answered by nobody.
#[test]
fn workers_that_go_without_having_taken_it_speak_against_it() {
    let (mut world, mut machine) = World::new(6);
    let event = world.write(Harm::None);
    machine.on(world.now, event);
    let second = Duration::from_secs(1);
    let mut reasons = Vec::new();
    for _ in 0..2 {
        reasons.extend(asked(&world.look(&mut machine, second)));
        let member = world.member(&machine);
        world.seen[member].connected = false;
    }
    assert_eq!(
        reasons,
        Vec::<String>::new(),
        "one may go for a reason of its own"
    );
    let reason = asked(&world.look(&mut machine, second)).unwrap();
    assert!(
        reason.contains("went away without having taken it"),
        "{reason}"
    );
}

#[test]
fn one_that_goes_and_comes_back_gets_no_more_time() {
    let (mut world, mut machine) = World::new(1);
    let event = world.write(Harm::None);
    machine.on(world.now, event);
    let mut reason = None;
    for _ in 0..6 {
        for connected in [true, false] {
            world.seen[0].connected = connected;
            reason = reason.or(asked(&world.look(&mut machine, Duration::from_secs(15))));
        }
    }
    assert!(
        reason.is_some() && world.now >= Duration::from_secs(120),
        "{reason:?}"
    );
}

#[derive(Debug, Clone)]
enum Op {
    Write(Harm),
    Take(usize),
    Leave(usize),
    Join(usize, bool),
    /// Milliseconds later; whether a return would be written, and what is written after it before it is seen.
    Look(u64, bool, Option<Harm>),
}

fn op() -> impl Strategy<Value = Op> {
    let harm = || {
        prop_oneof![
            3 => Just(Harm::None),
            1 => Just(Harm::Refused),
            1 => Just(Harm::Errors)
        ]
    };
    let n = || 0_usize..12;
    let next = proptest::option::of(harm());
    prop_oneof![
        2 => harm().prop_map(Op::Write),
        8 => n().prop_map(Op::Take),
        1 => n().prop_map(Op::Leave),
        2 => (n(), any::<bool>()).prop_map(|(n, anew)| Op::Join(n, anew)),
        8 => (0_u64..8_000, any::<bool>(), next)
            .prop_map(|(later, written, next)| Op::Look(later, written, next)),
    ]
}

/// What must hold between any two events.
fn check(world: &World, machine: &Machine, stable: &mut Revision) {
    assert!(machine.stable().revision >= *stable, "stable went down");
    *stable = machine.stable().revision;
    assert_eq!(
        world.harm(Some(machine.stable())),
        Harm::None,
        "harm is stable"
    );
    let candidate = machine.candidate();
    assert!(candidate.is_none_or(|candidate| candidate.is_after(machine.stable())));
    assert!(candidate.is_some() || machine.members().is_empty());
}

fn answer(world: &mut World, machine: &mut Machine, written: bool, next: Option<Harm>) {
    if !written {
        machine.on(world.now, Event::NotReturned);
        return;
    }
    let newest = world.write(Harm::None);
    let by = Revision::new(world.harms.len() as u64);
    machine.on(world.now, Event::Returned(by));
    let newest = match next {
        None => newest,
        Some(harm) => world.write(harm),
    };
    machine.on(world.now, newest);
}

proptest! {
    #[test]
    fn whatever_happens_harm_stays_in_the_ring_and_all_end_on_one(ops in proptest::collection::vec(op(), 1..120)) {
        let (mut world, mut machine) = World::new(12);
        let mut stable = Revision::ZERO;
        for op in ops {
            match op {
                Op::Write(harm) => {
                    let event = world.write(harm);
                    machine.on(world.now, event);
                }
                Op::Take(n) => world.take(&machine, n),
                Op::Leave(n) => world.seen[n].connected = false,
                Op::Join(n, anew) => world.join(n, anew),
                Op::Look(later, written, next) => {
                    let effects = world.look(&mut machine, Duration::from_millis(later));
                    if asked(&effects).is_some() {
                        answer(&mut world, &mut machine, written, next);
                    }
                }
            }
            check(&world, &machine, &mut stable);
        }
        // Nothing more goes wrong: it comes to rest.
        (0..12).for_each(|n| world.join(n, false));
        for _ in 0..6 {
            world.run(&mut machine, 60);
            check(&world, &machine, &mut stable);
        }
        prop_assert_eq!(machine.candidate(), None);
        prop_assert_eq!(machine.stable(), &position(world.harms.len()));
        prop_assert_eq!(world.holders(world.harms.len()), 12);
    }
}
