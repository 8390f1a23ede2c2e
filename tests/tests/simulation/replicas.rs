//! Three control planes that serve one registry, and workers that know all three: they spread, go elsewhere when one dies
//! or falls behind, come back when it returns, and hold to their store and to their ids. The network can be cut, machines
//! crash, and the lines between control planes and the registry fall silent.
//!
//! What must hold at every step: no worker's revision ever goes down, no number has two contents, and none is there that
//! is not durable.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use forebay_control::simulation::{Disk, Replicas};
use forebay_dataplane::simulation::{InForce, Worker};
use forebay_proto::{Digest, Epoch, InstanceId, PoolSettings, Position, WorkerId, wire};
use parking_lot::Mutex;
use tokio::{sync::watch, time::sleep};
use tokio_util::sync::CancellationToken;
use turmoil::{Builder, Sim};

use super::hosts::{PATIENCE, PORT, incoming, network, registry, showing};

const CONTROLS: usize = 3;
/// How often workers look at another control plane, on average.
const LOOK_EVERY: Duration = Duration::from_secs(15);
const TICK: Duration = Duration::from_millis(10);

type Opened = Mutex<Option<(Replicas, Disk)>>;

/// What hosts and checker share.
struct Scene {
    seed: u64,
    epoch: &'static str,
    /// The registry that the replicas share.
    opened: Opened,
    /// What the third one serves instead, from its next start on.
    elsewhere: Mutex<Option<Arc<Scene>>>,
    hears: Vec<watch::Sender<bool>>,
    instances: AtomicU64,
    /// By host.
    workers: Mutex<BTreeMap<String, InForce>>,
    /// The newest revision that an operator was answered with.
    written: AtomicU64,
}

impl Scene {
    fn new(seed: u64, epoch: &'static str) -> Arc<Self> {
        Arc::new(Self {
            seed,
            epoch,
            opened: Opened::default(),
            elsewhere: Mutex::default(),
            hears: (0..CONTROLS).map(|_| watch::Sender::new(true)).collect(),
            instances: AtomicU64::new(0),
            workers: Mutex::default(),
            written: AtomicU64::new(0),
        })
    }

    fn replicas(&self) -> Option<Replicas> {
        let opened = self.opened.lock();
        opened.as_ref().map(|(replicas, _)| replicas.clone())
    }

    /// How many workers follow each control plane.
    fn spread(&self) -> [usize; CONTROLS] {
        let mut spread = [0; CONTROLS];
        for in_force in self.workers.lock().values() {
            let follows = in_force.follows();
            let at = follows.and_then(|follows| {
                (0..CONTROLS).find(|n| follows.starts_with(&format!("http://c{n}:")))
            });
            if let Some(at) = at {
                spread[at] += 1;
            }
        }
        spread
    }

    fn moves(&self) -> u32 {
        let workers = self.workers.lock();
        workers.values().map(InForce::moves).sum()
    }

    /// How many workers follow nobody, or hold something else than the newest.
    fn not_well(&self) -> usize {
        let newest = self.replicas().map(|replicas| replicas.newest());
        let workers = self.workers.lock();
        let bad = |w: &&InForce| w.follows().is_none() || w.position() != newest;
        workers.values().filter(bad).count()
    }
}

/// The machine of the registry; it never crashes.
async fn store(scene: Arc<Scene>) -> turmoil::Result {
    let disk = Disk::new(Epoch::new(scene.epoch)?, PoolSettings::default());
    let (replicas, writing) = Replicas::open(disk.clone())?;
    *scene.opened.lock() = Some((replicas, disk));
    writing.await;
    Ok(())
}

async fn control(scene: Arc<Scene>, number: usize) -> turmoil::Result {
    let elsewhere = scene.elsewhere.lock().clone();
    let store = elsewhere.filter(|_| number + 1 == CONTROLS);
    let store = store.unwrap_or_else(|| scene.clone());
    let replicas = loop {
        match store.replicas() {
            Some(replicas) => break replicas,
            None => sleep(TICK).await,
        }
    };
    let hears = scene.hears[number].subscribe();
    let shutdown = CancellationToken::new();
    let incoming = incoming().await?;
    replicas
        .serve(format!("c{number}"), hears, incoming, shutdown)
        .await?;
    Ok(())
}

async fn worker(scene: Arc<Scene>, host: String, id: String) -> turmoil::Result {
    let urls = (0..CONTROLS).map(|n| format!("http://c{n}:{PORT}").parse());
    let instance = scene.instances.fetch_add(1, Ordering::Relaxed);
    let worker = Worker::new(
        WorkerId::new(id)?,
        InstanceId::new(format!("i{instance}"))?,
        (urls.collect::<Result<_, _>>()?, Some(LOOK_EVERY)),
        network(),
    )?;
    scene.workers.lock().insert(host, worker.in_force());
    worker.run(CancellationToken::new()).await;
    Ok(())
}

/// Writes through one control plane after the other, every so often.
async fn operator(scene: Arc<Scene>, every: Duration, until: Duration) -> turmoil::Result {
    let mut dice = fastrand::Rng::with_seed(scene.seed ^ 0x0b5e);
    let mut number = 0;
    while turmoil::elapsed() < until {
        sleep(every.mul_f64(0.5 + dice.f64())).await;
        number += 1;
        let host = format!("c{}", dice.usize(..CONTROLS));
        let Some(mut registry) = registry(&host).await else {
            continue;
        };
        let write = wire::UpdateModelRequest {
            model: Some(showing(&format!("m{}", dice.u64(..4)), number)),
            allow_missing: true,
            ..wire::UpdateModelRequest::default()
        };
        let answered = tokio::time::timeout(PATIENCE, registry.update_model(write)).await;
        if let Ok(Ok(made)) = answered {
            let revision = made.into_inner().revision;
            scene.written.fetch_max(revision, Ordering::Relaxed);
        }
    }
    Ok(())
}

/// A played fleet.
struct Play {
    scene: Arc<Scene>,
    sim: Sim<'static>,
    held: BTreeMap<String, Position>,
    contents: BTreeMap<u64, Digest>,
}

impl Play {
    fn new(seed: u64, workers: usize, writes: Option<(Duration, Duration)>) -> Self {
        fastrand::seed(seed);
        let scene = Scene::new(seed, "0123abcd");
        let mut sim = Builder::new()
            .rng_seed(seed)
            .tick_duration(TICK)
            .min_message_latency(Duration::from_millis(1))
            .max_message_latency(Duration::from_millis(50))
            .simulation_duration(Duration::from_secs(3_600))
            .tcp_capacity(4_096)
            .build();
        let shared = scene.clone();
        sim.host("store", move || store(shared.clone()));
        for n in 0..CONTROLS {
            let shared = scene.clone();
            sim.host(format!("c{n}"), move || control(shared.clone(), n));
        }
        let mut play = Self {
            scene,
            sim,
            held: BTreeMap::new(),
            contents: BTreeMap::new(),
        };
        for n in 0..workers {
            play.worker(&format!("w{n}"), &format!("w{n}"));
        }
        if let Some((every, until)) = writes {
            let operator = operator(play.scene.clone(), every, until);
            play.sim.client("operator", operator);
        }
        play
    }

    /// Adds a worker of this id.
    fn worker(&mut self, host: &str, id: &str) {
        let (scene, name, id) = (self.scene.clone(), host.to_owned(), id.to_owned());
        self.sim.host(host, move || {
            worker(scene.clone(), name.clone(), id.clone())
        });
    }

    fn crash(&mut self, host: &str) {
        self.sim.crash(host);
        if self.scene.workers.lock().remove(host).is_some() {
            self.held.remove(host);
        }
    }

    /// One step, and what must hold after it.
    fn step(&mut self) {
        let seed = self.scene.seed;
        let stepped = self.sim.step();
        assert!(stepped.is_ok(), "seed {seed}: {stepped:?}");
        let opened = self.scene.opened.lock();
        let Some((_, disk)) = opened.as_ref() else {
            return;
        };
        let durable = disk.revision().unwrap();
        for (host, in_force) in self.scene.workers.lock().iter() {
            let Some(new) = in_force.position() else {
                assert!(!self.held.contains_key(host), "seed {seed}: {host} lost it");
                continue;
            };
            let old = self.held.insert(host.clone(), new.clone());
            let old = old.filter(|old| *old != new);
            if let Some(old) = old {
                assert_eq!(new.epoch, old.epoch, "seed {seed}: {host}");
                assert!(
                    new.revision > old.revision,
                    "seed {seed}: {host}: {old} to {new}"
                );
            }
            assert!(new.revision <= durable, "seed {seed}: {host} runs {new}");
            let number = new.revision.get();
            let content = *self.contents.entry(number).or_insert(new.digest);
            assert_eq!(content, new.digest, "seed {seed}: two contents of {new}");
        }
    }

    fn run(&mut self, time: Duration) {
        let until = self.sim.elapsed() + time;
        while self.sim.elapsed() < until {
            self.step();
        }
    }

    /// Steps until this holds; gives the time that took.
    fn until(&mut self, what: &str, most: Duration, holds: impl Fn(&Scene) -> bool) -> Duration {
        let began = self.sim.elapsed();
        while !holds(&self.scene) {
            self.step();
            let took = self.sim.elapsed() - began;
            assert!(
                took < most,
                "seed {}: not within {most:?}: {what}; {:?} follow, {} are not well",
                self.scene.seed,
                self.scene.spread(),
                self.scene.not_well()
            );
        }
        self.sim.elapsed() - began
    }
}

/// Two of each by default, for each is minutes of simulated time.
fn seeds() -> std::ops::Range<u64> {
    let from = super::number("FOREBAY_SIMULATION_FROM", 0);
    from..from + (super::number("FOREBAY_SIMULATION_SEEDS", 100) / 50).max(1)
}

fn s(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// Even within a fifth of the fair share, or one worker where that is more.
fn is_even(spread: [usize; CONTROLS]) -> bool {
    let all: usize = spread.iter().sum();
    let fair = all as f64 / CONTROLS as f64;
    let slack = (fair * 0.2).max(1.0);
    spread.iter().all(|n| (*n as f64 - fair).abs() <= slack)
}

const WORKERS: usize = 18;

#[test]
fn one_of_three_dies_and_returns_and_the_workers_spread_each_time() {
    for seed in seeds() {
        let mut play = Play::new(seed, WORKERS, Some((s(2), s(400))));
        play.until("all follow", s(20), |scene| {
            scene.spread().iter().sum::<usize>() == WORKERS
        });
        // Drawn, so at no certain moment, but after a few looks of each.
        let even = |scene: &Scene| is_even(scene.spread());
        play.until("they are even", s(120), even);

        play.crash("c0");
        play.until("the others have them", s(5), |scene| {
            let spread = scene.spread();
            spread[0] == 0 && spread.iter().sum::<usize>() == WORKERS
        });
        let spread = play.scene.spread();
        assert!(
            spread[1].min(spread[2]) >= WORKERS / 4,
            "seed {seed}: {spread:?}"
        );
        play.run(s(20));

        let before = play.scene.moves();
        play.sim.bounce("c0");
        play.until("it has its share", s(120), even);
        let moved = play.scene.moves() - before;
        assert!(
            moved as usize <= WORKERS,
            "seed {seed}: no storm: {moved} moves"
        );
        let before = play.scene.moves();
        play.run(s(120));
        let moved = play.scene.moves() - before;
        assert!(
            moved as usize <= WORKERS / 3,
            "seed {seed}: {moved} moves in two minutes"
        );
        play.until("it stays so", s(30), even);
        play.until("all have the newest", s(10), |scene| scene.not_well() == 0);
    }
}

/// A control plane that does not hear from the registry lets its workers go; they get what is written meanwhile.
#[test]
fn workers_of_one_that_is_behind_go_where_the_writes_are() {
    for seed in seeds() {
        let mut play = Play::new(seed, 9, Some((s(1), s(600))));
        play.until("all follow", s(20), |scene| {
            scene.spread().iter().sum::<usize>() == 9
        });
        play.run(s(30));
        play.scene.hears[0].send_replace(false);
        play.until("nobody follows it", s(45), |scene| scene.spread()[0] == 0);
        play.run(s(60));
        assert_eq!(
            play.scene.spread()[0],
            0,
            "seed {seed}: nobody goes back to it"
        );
        play.until("all are abreast", s(15), |scene| scene.not_well() == 0);
        play.scene.hears[0].send_replace(true);
        play.until("it has its share", s(180), |scene| scene.spread()[0] >= 2);
    }
}

/// With all of them cut off nobody is better off anywhere: the workers stay, and are well at once when it is over.
#[test]
fn when_none_hears_from_the_store_workers_serve_on_and_nothing_flaps() {
    for seed in seeds() {
        let mut play = Play::new(seed, 9, None);
        play.until("all follow", s(20), |scene| {
            scene.spread().iter().sum::<usize>() == 9
        });
        for hears in &play.scene.hears {
            hears.send_replace(false);
        }
        play.run(s(30));
        let before = play.scene.moves();
        play.run(s(120));
        let moved = play.scene.moves() - before;
        assert!(moved <= 2, "seed {seed}: {moved} moves in two minutes");
        play.until("all follow", s(10), |scene| {
            scene.spread().iter().sum::<usize>() == 9
        });
    }
}

/// Two processes with one id: the elder stays, wherever the other one tries; when it ends, the other one is let in.
#[test]
fn of_two_processes_with_one_id_the_elder_stays() {
    for seed in seeds() {
        let mut play = Play::new(seed, 3, None);
        play.worker("elder", "same");
        let follows = |host: &'static str| {
            move |scene: &Scene| {
                let workers = scene.workers.lock();
                workers.get(host).is_some_and(|w| w.follows().is_some())
            }
        };
        play.until("the elder follows", s(20), follows("elder"));
        play.run(s(5));
        play.worker("twin", "same");
        play.until("the twin is turned away", s(30), |scene| {
            scene
                .workers
                .lock()
                .get("twin")
                .is_some_and(InForce::is_turned_away)
        });
        // It comes again every half minute or so; streams of the elder end of age meanwhile.
        let (mut both, mut elder_away) = (0_u32, 0_u32);
        let until = play.sim.elapsed() + s(300);
        while play.sim.elapsed() < until {
            play.step();
            let (elder, twin) = (follows("elder")(&play.scene), follows("twin")(&play.scene));
            both += u32::from(elder && twin);
            elder_away += u32::from(!elder);
        }
        let share = |steps: u32| f64::from(steps) / 30_000.0;
        assert!(
            share(both) < 0.1,
            "seed {seed}: both for {:.3} of the time",
            share(both)
        );
        assert!(
            share(elder_away) < 0.1,
            "seed {seed}: the elder without a stream for {:.3} of the time",
            share(elder_away)
        );
        play.crash("elder");
        play.until("the twin is let in", s(90), follows("twin"));
    }
}

/// A restart is let in at once, even where the control plane has not noticed that the old process is gone.
#[test]
fn a_restart_behind_a_cut_is_let_in() {
    for seed in seeds() {
        let mut play = Play::new(seed, 1, None);
        play.until("it follows", s(20), |scene| {
            scene.spread().iter().sum::<usize>() == 1
        });
        let at = play.scene.spread().iter().position(|n| *n == 1).unwrap();
        let host = format!("c{at}");
        // Nobody tells the control plane that the process ended.
        play.sim.partition("w0", host.as_str());
        play.crash("w0");
        play.run(s(1));
        play.sim.repair("w0", host.as_str());
        play.sim.bounce("w0");
        play.until("it follows again", s(12), |scene| {
            !scene.workers.lock().is_empty() && scene.not_well() == 0
        });
    }
}

/// One of the three is of another store: nobody goes over to it, or to and fro.
#[test]
fn a_control_plane_of_another_store_is_not_followed() {
    for seed in seeds() {
        let mut play = Play::new(seed, 6, Some((s(2), s(200))));
        play.crash("c2");
        let foreign = Scene::new(seed, "beef0000");
        let shared = foreign.clone();
        play.sim.host("other-store", move || store(shared.clone()));
        play.until("all follow", s(30), |scene| {
            scene.spread().iter().sum::<usize>() == 6
        });
        play.run(s(5));
        // At the address of the third there is another cluster's now.
        *play.scene.elsewhere.lock() = Some(foreign);
        play.sim.bounce("c2");
        play.run(s(180));
        play.until("all are well", s(10), |scene| scene.not_well() == 0);
        assert_eq!(play.scene.spread()[2], 0, "seed {seed}");
    }
}

/// Cuts, holds and crashes at random; then calm, in which all must be well and even.
#[test]
fn whatever_fails_all_are_well_and_even_afterwards() {
    for seed in seeds() {
        let mut play = Play::new(seed, 9, Some((s(1), s(90))));
        let mut dice = fastrand::Rng::with_seed(seed ^ 0x7a11);
        let mut wrong: Vec<(Duration, String, Option<String>)> = Vec::new();
        while play.sim.elapsed() < s(90) {
            let time = Duration::from_millis(dice.u64(200..4_000));
            play.run(time);
            let now = play.sim.elapsed();
            let (due, rest): (Vec<_>, Vec<_>) =
                wrong.drain(..).partition(|(until, ..)| *until <= now);
            wrong = rest;
            due.into_iter()
                .for_each(|(_, a, b)| mend(&mut play, &a, b.as_deref()));
            let control = dice.usize(..CONTROLS);
            let (name, worker) = (format!("c{control}"), format!("w{}", dice.usize(..9)));
            let until = now + Duration::from_millis(dice.u64(500..25_000));
            match dice.u8(..6) {
                0 | 1 => {
                    play.sim.partition(name.as_str(), worker.as_str());
                    wrong.push((until, name, Some(worker)));
                }
                2 => {
                    play.sim.hold(name.as_str(), worker.as_str());
                    wrong.push((until, name, Some(worker)));
                }
                3 if play.sim.is_host_running(name.as_str()) => {
                    play.crash(&name);
                    wrong.push((until, name, None));
                }
                4 if play.sim.is_host_running(worker.as_str()) => {
                    play.crash(&worker);
                    wrong.push((until, worker, None));
                }
                _ => {
                    play.scene.hears[control].send_replace(false);
                    wrong.push((until, format!("hears {control}"), None));
                }
            }
        }
        wrong
            .into_iter()
            .for_each(|(_, a, b)| mend(&mut play, &a, b.as_deref()));
        play.until("all are well", s(100), |scene| {
            scene.workers.lock().len() == 9 && scene.not_well() == 0
        });
        play.until("they are even", s(180), |scene| is_even(scene.spread()));
    }
}

fn mend(play: &mut Play, a: &str, b: Option<&str>) {
    match (a.strip_prefix("hears "), b) {
        (Some(number), _) => {
            let number: usize = number.parse().unwrap();
            play.scene.hears[number].send_replace(true);
        }
        (None, Some(b)) => {
            play.sim.repair(a, b);
            play.sim.release(a, b);
        }
        (None, None) if play.sim.is_host_running(a) => {}
        (None, None) => play.sim.bounce(a),
    }
}
