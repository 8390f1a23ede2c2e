//! Control plane and workers are cut apart for a while, in one of the ways that the test bed has for real networks
//! (`tests/testbed`), while an operator goes on writing. Workers keep what they have in force, and are current soon
//! after the network is well again.

use std::{sync::Arc, time::Duration};

use forebay_control::simulation::Disk;
use forebay_dataplane::simulation::{Connect, InForce, Io, Worker};
use forebay_proto::{Epoch, InstanceId, PoolSettings, Revision, WorkerId};
use http::Uri;
use parking_lot::Mutex;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use turmoil::{Builder, Sim, net::TcpListener};

use super::{
    hosts::{Accepted, PORT, Write},
    tcp::{Network, Shape, Way},
    world::even_out_task_numbers,
};

pub(super) const WORKERS: usize = 3;
const CONTROL: &str = "control";
/// By then everybody is current for the first time.
const SETTLED: Duration = Duration::from_secs(5);
/// The moments at which the network becomes bad and well again are drawn within this.
const DRAWN: Duration = Duration::from_secs(3);
const LASTS: Duration = Duration::from_secs(60);
/// Nobody waits longer than this for a worker to be current.
const GIVE_UP: Duration = Duration::from_secs(60);
const WRITES: Duration = Duration::from_millis(500);

/// The ways.
pub(super) const CASES: [&str; 6] = [
    "partition",
    "nothing comes to the workers",
    "nothing comes from the workers",
    "30 % of the packets lost, each way",
    "500 ms each way",
    "connections are made, then nothing",
];

fn befall(network: &Network, case: usize) {
    let cut = Shape {
        cut: true,
        ..Shape::default()
    };
    let (to_control, to_workers) = match case {
        0 => (cut, cut),
        1 => (Shape::default(), cut),
        2 => (cut, Shape::default()),
        3 => {
            let lossy = Shape {
                loss: 0.3,
                ..Shape::default()
            };
            (lossy, lossy)
        }
        4 => {
            let slow = Shape {
                delay: Duration::from_millis(500),
                ..Shape::default()
            };
            (slow, slow)
        }
        _ => {
            let mute = Shape {
                handshakes_pass: true,
                ..cut
            };
            (mute, mute)
        }
    };
    network.shape(Way::ToControl, to_control);
    network.shape(Way::ToWorkers, to_workers);
}

/// What hosts and checker share.
#[derive(Default)]
struct World {
    workers: Mutex<[Option<InForce>; WORKERS]>,
    acknowledged: Mutex<Vec<u64>>,
    wrong: Mutex<Option<String>>,
    done: Mutex<bool>,
}

/// What a history came to.
pub(super) struct Played {
    pub(super) case: usize,
    pub(super) writes: u64,
    /// Milliseconds from the network's return until each worker was current.
    pub(super) current: [u64; WORKERS],
}

async fn control(disk: Disk, network: Network) -> turmoil::Result {
    let listener = TcpListener::bind(("0.0.0.0", PORT)).await?;
    let incoming = futures_util::stream::unfold((listener, network), |(listener, network)| async {
        let accepted = listener.accept().await.map(|(socket, peer)| {
            let peer = turmoil::reverse_lookup(peer.ip());
            let io: Box<dyn Io> = match peer.is_some_and(|name| name.starts_with('w')) {
                true => Box::new(network.over(Way::ToWorkers, socket)),
                false => Box::new(socket),
            };
            Accepted(io)
        });
        Some((accepted, (listener, network)))
    });
    forebay_control::simulation::run(disk, Box::pin(incoming), CancellationToken::new()).await?;
    Ok(())
}

async fn worker(world: Arc<World>, network: Network, number: usize) -> turmoil::Result {
    let connect = Connect::new(move |_: Uri| {
        let network = network.clone();
        async move {
            let end = network.connect((CONTROL, PORT)).await?;
            Ok(Box::new(end) as Box<dyn Io>)
        }
    });
    let worker = Worker::new(
        WorkerId::new(format!("w{number}"))?,
        InstanceId::new(format!("i{number}"))?,
        (vec![format!("http://{CONTROL}:{PORT}").parse()?], None),
        connect,
    )?;
    world.workers.lock()[number] = Some(worker.in_force());
    worker.run(CancellationToken::new()).await;
    Ok(())
}

/// Its own way to the control plane is always well.
async fn operator(world: Arc<World>, until: Duration) -> turmoil::Result {
    for number in 1.. {
        let write = match number {
            1 => Write::Create(number),
            _ => Write::Update(number),
        };
        match write.send("m", &format!("r{number}")).await {
            Ok(revision) => world.acknowledged.lock().push(revision),
            Err(why) => {
                *world.wrong.lock() = Some(format!("{write:?} failed: {why:?}"));
                return Ok(());
            }
        }
        let now = turmoil::elapsed();
        if now >= until {
            break;
        }
        sleep(WRITES.min(until - now)).await;
    }
    *world.done.lock() = true;
    Ok(())
}

fn build(
    seed: u64,
    world: &Arc<World>,
    disk: &Disk,
    network: &Network,
    until: Duration,
) -> Sim<'static> {
    let mut sim = Builder::new()
        .rng_seed(seed)
        .tick_duration(Duration::from_millis(10))
        .min_message_latency(Duration::from_millis(1))
        .max_message_latency(Duration::from_millis(10))
        .simulation_duration(until + GIVE_UP * 2)
        .tcp_capacity(4_096)
        .build();
    let (own, net) = (disk.clone(), network.clone());
    sim.host(CONTROL, move || control(own.clone(), net.clone()));
    for number in 0..WORKERS {
        let (world, network) = (world.clone(), network.clone());
        let name = format!("w{number}");
        sim.host(name, move || worker(world.clone(), network.clone(), number));
    }
    sim.client("operator", operator(world.clone(), until));
    sim
}

/// Who has what in force; nobody loses it, and nobody goes back.
struct Checker {
    seed: u64,
    held: [Option<Revision>; WORKERS],
}

impl Checker {
    fn look(&mut self, world: &World) {
        let seed = self.seed;
        if let Some(wrong) = &*world.wrong.lock() {
            panic!("seed {seed}: {wrong}");
        }
        for (n, in_force) in world.workers.lock().iter().enumerate() {
            let position = in_force.as_ref().and_then(InForce::position);
            let now = position.map(|position| position.revision);
            assert!(
                now >= self.held[n],
                "seed {seed}: w{n} had {:?}, has {now:?}",
                self.held[n]
            );
            self.held[n] = now;
        }
    }
}

/// Plays one history. Panics, with the seed, where something must not be.
pub(super) fn play(seed: u64) -> Played {
    even_out_task_numbers();
    fastrand::seed(seed);
    let mut dice = fastrand::Rng::with_seed(seed ^ 0xbad);
    let case = usize::try_from(seed).unwrap_or_default() % CASES.len();
    // A third of them last for anything between: what TCP and pings are at then is different each time.
    let lasts = match dice.u8(..3) {
        0 => LASTS.mul_f64(dice.f64()),
        _ => LASTS,
    };
    let begins = SETTLED + DRAWN.mul_f64(dice.f64());
    let ends = begins + lasts + DRAWN.mul_f64(dice.f64());
    let (world, network) = (Arc::new(World::default()), Network::new(seed));
    let disk = Disk::new(Epoch::new("0123abcd").unwrap(), PoolSettings::default());
    let mut sim = build(seed, &world, &disk, &network, ends);
    let mut checker = Checker {
        seed,
        held: [None; WORKERS],
    };
    let (mut bad, mut well) = (false, false);
    let mut current = [None; WORKERS];
    loop {
        let now = sim.elapsed();
        if !bad && now >= begins {
            let all = checker.held.iter().all(Option::is_some);
            assert!(all, "seed {seed}: nobody is without a configuration");
            befall(&network, case);
            bad = true;
        }
        if !well && now >= ends {
            network.heal();
            well = true;
        }
        let stepped = sim.step();
        assert!(stepped.is_ok(), "seed {seed}: {stepped:?}");
        checker.look(&world);
        let target = disk.revision();
        for (current, held) in current.iter_mut().zip(checker.held) {
            if well && *world.done.lock() && held == target {
                current.get_or_insert(now.saturating_sub(ends));
            }
        }
        if let [Some(a), Some(b), Some(c)] = current {
            let writes = world.acknowledged.lock().len() as u64;
            let millis = |took: Duration| u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
            return Played {
                case,
                writes,
                current: [a, b, c].map(millis),
            };
        }
        assert!(
            now < ends + GIVE_UP,
            "seed {seed}: {} for {lasts:?}: not current: {:?} of {target:?}",
            CASES[case],
            checker.held
        );
    }
}
