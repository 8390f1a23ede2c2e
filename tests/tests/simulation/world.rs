//! One history: who is there, what must always hold, and what must hold in the end.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use forebay_control::simulation::Disk;
use forebay_dataplane::simulation::InForce;
use forebay_proto::{Digest, Epoch, PoolSettings, Position};
use parking_lot::Mutex;
use turmoil::{Builder, Sim};

use super::{hosts, trouble::Trouble};

pub(super) const WORKERS: usize = 3;
pub(super) const OPERATORS: usize = 2;
const TROUBLED: Duration = Duration::from_secs(40);
/// After which all must be well again: the longest back-off and the longest silence, and some.
const HEALED: Duration = Duration::from_secs(120);
const TICK: Duration = Duration::from_millis(10);

/// Models and the number that each should show.
pub(super) type Expected = BTreeMap<String, u64>;

/// What hosts and checker share.
pub(super) struct World {
    pub(super) seed: u64,
    instances: AtomicU64,
    workers: Mutex<Vec<Option<InForce>>>,
    operators: Mutex<[Operator; OPERATORS]>,
    wrong: Mutex<Option<String>>,
}

#[derive(Default)]
struct Operator {
    expected: Expected,
    found: Option<Expected>,
    newest: u64,
    writes: u64,
    repeated: u64,
}

/// What a history came to.
pub(super) struct Played {
    /// When which worker put what in force.
    pub(super) trace: Vec<String>,
    pub(super) writes: u64,
    pub(super) repeated: u64,
    pub(super) troubles: u64,
}

impl Played {
    /// One number for all that happened.
    pub(super) fn fingerprint(&self) -> u64 {
        let digest = Digest::of(self.trace.join("\n").as_bytes());
        let first = digest.as_bytes().first_chunk();
        first.map_or(0, |bytes| u64::from_be_bytes(*bytes))
    }
}

impl World {
    pub(super) fn next_instance(&self) -> u64 {
        self.instances.fetch_add(1, Ordering::Relaxed)
    }

    pub(super) fn started(&self, worker: usize, in_force: InForce) {
        self.workers.lock()[worker] = Some(in_force);
    }

    /// A write was answered, at the latest try of so many.
    pub(super) fn acknowledged(&self, number: usize, revision: u64, tries: u64) {
        let operator = &mut self.operators.lock()[number];
        if revision <= operator.newest {
            let newest = operator.newest;
            self.fails(format!("revision {revision} was answered after {newest}"));
        }
        operator.newest = revision;
        operator.writes += 1;
        operator.repeated += u64::from(tries > 1);
    }

    /// Whether the model is there, as far as this operator knows.
    pub(super) fn expects(&self, number: usize, model: &str) -> bool {
        self.operators.lock()[number].expected.contains_key(model)
    }

    pub(super) fn expect(&self, number: usize, model: &str, shows: Option<u64>) {
        let expected = &mut self.operators.lock()[number].expected;
        match shows {
            Some(shows) => expected.insert(model.to_owned(), shows),
            None => expected.remove(model),
        };
    }

    pub(super) fn found(&self, number: usize, found: Expected) {
        self.operators.lock()[number].found = Some(found);
    }

    /// Something that must not be.
    pub(super) fn fails(&self, what: String) {
        self.wrong.lock().get_or_insert(what);
    }

    fn all_found(&self) -> bool {
        self.operators.lock().iter().all(|o| o.found.is_some())
    }
}

/// Holds at every step.
struct Checker {
    world: Arc<World>,
    disk: Disk,
    held: [Option<Position>; WORKERS],
    contents: BTreeMap<u64, Digest>,
    trace: Vec<String>,
}

impl Checker {
    fn look(&mut self, now: Duration) {
        let seed = self.world.seed;
        if let Some(wrong) = &*self.world.wrong.lock() {
            panic!("seed {seed}: {wrong}");
        }
        let durable = self.disk.revision().unwrap();
        for (n, in_force) in self.world.workers.lock().iter().enumerate() {
            let position = in_force.as_ref().and_then(InForce::position);
            if position == self.held[n] {
                continue;
            }
            let Some(new) = &position else {
                panic!("seed {seed}: w{n} lost its configuration");
            };
            if let Some(old) = &self.held[n] {
                assert!(
                    new.revision > old.revision,
                    "seed {seed}: w{n} went from {old} to {new}"
                );
            }
            assert!(
                new.revision <= durable,
                "seed {seed}: w{n} runs {new}, durable is {durable}"
            );
            if new.revision == durable {
                let models = in_force.as_ref().map(InForce::models);
                let durable = self.disk.models();
                assert_eq!(
                    models,
                    Some(durable),
                    "seed {seed}: w{n} at {new}, and the disk"
                );
            }
            let content = *self
                .contents
                .entry(new.revision.get())
                .or_insert(new.digest);
            assert_eq!(content, new.digest, "seed {seed}: two contents of {new}");
            self.trace.push(format!("{}ms w{n} {new}", now.as_millis()));
            self.held[n] = position;
        }
    }

    /// A worker that crashed begins anew.
    fn forget(&mut self, crashed: &[String]) {
        for host in crashed {
            let number = host.strip_prefix('w').and_then(|n| n.parse::<usize>().ok());
            if let Some(n) = number {
                self.held[n] = None;
                self.world.workers.lock()[n] = None;
            }
        }
    }

    fn is_well(&self) -> bool {
        let durable = self.disk.revision();
        let held = |held: &Option<Position>| held.as_ref().map(|held| held.revision);
        self.held.iter().all(|position| held(position) == durable) && self.world.all_found()
    }
}

fn build(world: &Arc<World>, disk: &Disk) -> Sim<'static> {
    let mut sim = Builder::new()
        .rng_seed(world.seed)
        .tick_duration(TICK)
        .min_message_latency(Duration::from_millis(1))
        .max_message_latency(Duration::from_millis(100))
        .simulation_duration(TROUBLED + HEALED * 2)
        .tcp_capacity(4_096)
        .build();
    let control = disk.clone();
    sim.host("control", move || hosts::control(control.clone()));
    for n in 0..WORKERS {
        let world = world.clone();
        sim.host(format!("w{n}"), move || hosts::worker(world.clone(), n));
    }
    for n in 0..OPERATORS {
        let operator = hosts::operator(world.clone(), n, TROUBLED);
        sim.client(format!("operator{n}"), operator);
    }
    sim
}

/// tokio ends the tasks of a runtime in an order that comes from their numbers: each history begins with the same.
pub(super) fn even_out_task_numbers() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    let local = tokio::task::LocalSet::new();
    local.block_on(&runtime, async {
        let even = |id: u64| id.is_multiple_of(64);
        while !even(
            tokio::task::spawn_local(async {})
                .id()
                .to_string()
                .parse()
                .unwrap(),
        ) {}
    });
}

/// Plays one history. Panics, with the seed, where something must not be.
pub(super) fn play(seed: u64) -> Played {
    even_out_task_numbers();
    fastrand::seed(seed);
    let world = Arc::new(World {
        seed,
        instances: AtomicU64::new(0),
        workers: Mutex::new(vec![None; WORKERS]),
        operators: Mutex::default(),
        wrong: Mutex::default(),
    });
    let disk = Disk::new(Epoch::new("0123abcd").unwrap(), PoolSettings::default());
    let mut sim = build(&world, &disk);
    let mut trouble = Trouble::new(seed);
    let mut checker = Checker {
        world: world.clone(),
        disk: disk.clone(),
        held: [const { None }; WORKERS],
        contents: BTreeMap::new(),
        trace: Vec::new(),
    };
    let mut healed = false;
    loop {
        let now = sim.elapsed();
        if now < TROUBLED {
            trouble.step(now, &mut sim, &disk);
        } else if !healed {
            trouble.heal(&mut sim);
            healed = true;
        }
        checker.forget(&std::mem::take(&mut trouble.crashed));
        let stepped = sim.step();
        assert!(stepped.is_ok(), "seed {seed}: {stepped:?}");
        checker.look(now);
        if healed && checker.is_well() {
            break;
        }
        assert!(
            now < TROUBLED + HEALED,
            "seed {seed}: not well again: durable {:?}, held {:?}, operators done: {}",
            disk.revision(),
            checker
                .held
                .each_ref()
                .map(|held| held.as_ref().map(|held| held.revision)),
            world.all_found(),
        );
    }
    let operators = std::mem::take(&mut *world.operators.lock());
    let expected: Expected = operators.iter().flat_map(|o| o.expected.clone()).collect();
    // Each wrote only models of its own, and the last one who looked saw all of them.
    let last = operators.iter().filter_map(|o| o.found.as_ref());
    let newest = last.clone().any(|found| *found == expected);
    assert!(
        newest,
        "seed {seed}: acknowledged, and only that: {expected:?}; found {:?}",
        last.collect::<Vec<_>>()
    );
    Played {
        trace: checker.trace,
        writes: operators.iter().map(|o| o.writes).sum(),
        repeated: operators.iter().map(|o| o.repeated).sum(),
        troubles: trouble.made,
    }
}
