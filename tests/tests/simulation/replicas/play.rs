//! The scene that is played in (`super`): three control planes on one registry, workers, an operator; and what must hold
//! after each step.

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

use crate::hosts::{PATIENCE, PORT, incoming, network, registry, showing};

pub(super) const CONTROLS: usize = 3;
/// How often workers look at another control plane, on average.
const LOOK_EVERY: Duration = Duration::from_secs(15);
const TICK: Duration = Duration::from_millis(10);

type Opened = Mutex<Option<(Replicas, Disk)>>;

/// What hosts and checker share.
pub(super) struct Scene {
    seed: u64,
    epoch: &'static str,
    /// The registry that the replicas share.
    opened: Opened,
    /// What the third one serves instead, from its next start on.
    pub(super) elsewhere: Mutex<Option<Arc<Scene>>>,
    pub(super) hears: Vec<watch::Sender<bool>>,
    instances: AtomicU64,
    /// By host.
    pub(super) workers: Mutex<BTreeMap<String, InForce>>,
    /// The newest revision that an operator was answered with.
    written: AtomicU64,
}

impl Scene {
    pub(super) fn new(seed: u64, epoch: &'static str) -> Arc<Self> {
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
    pub(super) fn spread(&self) -> [usize; CONTROLS] {
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

    pub(super) fn moves(&self) -> u32 {
        let workers = self.workers.lock();
        workers.values().map(InForce::moves).sum()
    }

    /// How many workers follow nobody, or hold something else than the newest.
    pub(super) fn not_well(&self) -> usize {
        let newest = self.replicas().map(|replicas| replicas.newest());
        let workers = self.workers.lock();
        let bad = |w: &&InForce| w.follows().is_none() || w.position() != newest;
        workers.values().filter(bad).count()
    }
}

/// The machine of the registry; it never crashes.
pub(super) async fn store(scene: Arc<Scene>) -> turmoil::Result {
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
pub(super) struct Play {
    pub(super) scene: Arc<Scene>,
    pub(super) sim: Sim<'static>,
    held: BTreeMap<String, Position>,
    contents: BTreeMap<u64, Digest>,
}

impl Play {
    pub(super) fn new(seed: u64, workers: usize, writes: Option<(Duration, Duration)>) -> Self {
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
    pub(super) fn worker(&mut self, host: &str, id: &str) {
        let (scene, name, id) = (self.scene.clone(), host.to_owned(), id.to_owned());
        self.sim.host(host, move || {
            worker(scene.clone(), name.clone(), id.clone())
        });
    }

    pub(super) fn crash(&mut self, host: &str) {
        self.sim.crash(host);
        if self.scene.workers.lock().remove(host).is_some() {
            self.held.remove(host);
        }
    }

    /// One step, and what must hold after it.
    pub(super) fn step(&mut self) {
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

    pub(super) fn run(&mut self, time: Duration) {
        let until = self.sim.elapsed() + time;
        while self.sim.elapsed() < until {
            self.step();
        }
    }

    /// Steps until this holds; gives the time that took.
    pub(super) fn until(
        &mut self,
        what: &str,
        most: Duration,
        holds: impl Fn(&Scene) -> bool,
    ) -> Duration {
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
