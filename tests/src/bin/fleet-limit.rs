//! A fleet-wide limit under a crowd that always wants more: one worker, then eight, one of them cut off from the control
//! plane for a while, one killed, then two. Prints how much of the limit was used, how even, and the most that the engine
//! saw at once. Ends with 1 if that was ever more than the limit, if less than 95 % were used once all was settled, or
//! if workers under the same load differed by more than 10 %.

#![expect(
    clippy::print_stdout,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a program for the terminal; scenery that cannot be set up ends it"
)]

use std::{
    collections::BTreeMap, net::SocketAddr, path::PathBuf, process::ExitCode, time::Duration,
};

use clap::Parser;
use forebay_mock::{MockConfig, MockServer};
use forebay_proto::wire;
use forebay_tests::{Crowd, Process, Relay, Spread, eventually, eventually_within, model_at};
use tempfile::TempDir;
use tokio::time::{Instant, MissedTickBehavior, interval};
use wire::{fleet_client::FleetClient, model_registry_client::ModelRegistryClient};

const MODEL: &str = "m";
/// How often the engine is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// And workers.
const ASK_EVERY: Duration = Duration::from_millis(500);
/// How long it may take until all of a limit is lent again.
const SETTLES_WITHIN: Duration = Duration::from_secs(150);

#[derive(Debug, Parser)]
struct Args {
    /// The program.
    #[arg(default_value = "target/debug/forebay")]
    forebay: PathBuf,
    /// The limit.
    #[arg(long, default_value_t = 192)]
    limit: u32,
    /// Clients.
    #[arg(long, default_value_t = 400)]
    clients: usize,
    /// Whom they ask. Workers are compared when they are loaded evenly.
    #[arg(long, value_enum, default_value_t = Spread::Even)]
    spread: Spread,
    /// Tokens of an answer, at the most; at the least a third of them.
    #[arg(long, default_value_t = 45)]
    tokens: u32,
    /// Milliseconds between tokens.
    #[arg(long, default_value_t = 200)]
    interval_ms: u64,
    /// How long each state is measured, in seconds.
    #[arg(long, default_value_t = 20)]
    seconds: u64,
    /// How long one worker is cut off, in seconds.
    #[arg(long, default_value_t = 60)]
    cut: u64,
    /// How long a lease holds.
    #[arg(long, default_value = "10s")]
    ttl: String,
    /// How long what runs goes on then.
    #[arg(long, default_value = "10s")]
    linger: String,
}

struct Worker {
    process: Process,
    gateway: SocketAddr,
    admin: SocketAddr,
    relay: Relay,
}

struct Scene {
    args: Args,
    _control: Process,
    control: SocketAddr,
    mock: MockServer,
    workers: BTreeMap<usize, Worker>,
    crowd: Crowd,
    dir: TempDir,
    good: bool,
    /// Over the whole run, what happened between measurements included.
    peak: u64,
    over: u64,
}

#[tokio::main]
async fn main() -> ExitCode {
    let args = Args::parse();
    let (seconds, cut) = (
        Duration::from_secs(args.seconds),
        Duration::from_secs(args.cut),
    );
    let mut scene = Scene::set(args).await;
    println!(
        "| | used | least and most of a worker | looks at which one had somebody in line | at once, most | above the limit | requests |\n\
         |---|---|---|---|---|---|---|"
    );
    scene.join(0).await;
    scene.settle().await;
    scene.measure("one worker", seconds, &[]).await;
    let began = Instant::now();
    for n in 1..8 {
        scene.join(n).await;
    }
    scene.settle().await;
    let took = began.elapsed();
    scene.measure("eight workers", seconds, &[]).await;

    scene.workers[&3].relay.cut();
    scene.measure("one of them is cut off", cut, &[3]).await;
    scene.workers[&3].relay.heal();
    scene.settle().await;
    scene.measure("and is back", seconds, &[]).await;

    let killed = scene.workers.remove(&4).expect("a worker");
    killed.process.kill().await;
    scene.ask();
    let death = Instant::now();
    scene.settle().await;
    let missed = death.elapsed();
    scene.measure("one was killed", seconds, &[]).await;

    let began = Instant::now();
    scene.leave([2, 3, 5, 6, 7]).await;
    scene.settle().await;
    let left = began.elapsed();
    scene.measure("two workers", seconds, &[]).await;
    println!(
        "\nall lent again {:.1} s after seven workers were started, {:.1} s after one was killed, {:.1} s after five \
         were told to end",
        took.as_secs_f64(),
        missed.as_secs_f64(),
        left.as_secs_f64()
    );
    scene.note();
    println!(
        "over the whole run the engine saw at most {} at once, and {} requests above its {}",
        scene.peak, scene.over, scene.args.limit
    );
    match scene.good && scene.over == 0 {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    }
}

impl Scene {
    async fn set(args: Args) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let data = dir.path().join("c").display().to_string();
        let start = [
            "control",
            "--control-listen",
            "127.0.0.1:0",
            "--data-dir",
            &data,
            // One worker alone is to be lent all of it.
            "--gateway-max-concurrent",
            &args.limit.to_string(),
            "--lease-ttl",
            &args.ttl,
            "--lease-linger",
            &args.linger,
        ];
        let mut control = Process::start(&args.forebay, &start, &[]);
        let rest = control.printed("Forebay control plane on ").await;
        let addr = rest.split(": ").next().unwrap_or_default();
        let addr: SocketAddr = addr.parse().expect("an address");
        let mock = MockServer::start(MockConfig {
            models: vec![MODEL.to_owned()],
            interval: Duration::from_millis(args.interval_ms),
            max_in_flight: Some(args.limit as usize),
            ..MockConfig::default()
        });
        let mock = mock.await.expect("an engine");
        let mut registry = ModelRegistryClient::connect(format!("http://{addr}"))
            .await
            .expect("the control plane answers");
        let pool = wire::Pool {
            max_concurrent: Some(args.limit),
            scope: wire::PoolScope::Fleet.into(),
            ..wire::Pool::default()
        };
        let model = wire::Model {
            pool: Some(pool),
            ..model_at(MODEL, &mock.url())
        };
        let request = wire::CreateModelRequest {
            model: Some(model),
            ..Default::default()
        };
        let created = registry.create_model(request).await;
        created.expect("the model is registered");
        let tokens = args.tokens / 3..=args.tokens;
        let crowd = Crowd::spread(args.spread, MODEL, args.clients, tokens);
        Self {
            args,
            _control: control,
            control: addr,
            mock,
            workers: BTreeMap::new(),
            crowd,
            dir,
            good: true,
            peak: 0,
            over: 0,
        }
    }

    async fn join(&mut self, n: usize) {
        let relay = Relay::to(self.control).await;
        let name = format!("w{n}");
        let data = self.dir.path().join(&name).display().to_string();
        let any = "127.0.0.1:0";
        let start = [
            "worker",
            "--worker-id",
            &name,
            "--control",
            &relay.url(),
            "--listen",
            any,
            "--admin-listen",
            any,
            "--data-dir",
            &data,
            "--max-connections-per-peer",
            "0",
        ];
        let mut process = Process::start(&self.args.forebay, &start, &[]);
        let read = |line: String| -> SocketAddr {
            let end = line.find(['/', ' ']).unwrap_or(line.len());
            line[..end].parse().expect("an address")
        };
        let gateway = read(process.printed("gateway   http://").await);
        let admin = read(process.printed("admin     http://").await);
        let ready = format!("http://{admin}/readyz");
        eventually("the worker is ready", async || {
            let answer = reqwest::get(&ready).await.ok()?;
            answer.status().is_success().then_some(())
        })
        .await;
        let worker = Worker {
            process,
            gateway,
            admin,
            relay,
        };
        self.workers.insert(n, worker);
        self.ask();
    }

    /// Tells these to end, all at once.
    async fn leave(&mut self, all: [usize; 5]) {
        let left = all.map(|n| self.workers.remove(&n).expect("a worker"));
        self.ask();
        left.iter().for_each(|worker| worker.process.signal_end());
        for mut worker in left {
            let ended = worker.process.ends_within(SETTLES_WITHIN).await;
            assert!(ended, "still running: {}", worker.process.err());
        }
    }

    fn ask(&self) {
        let gateways = self.workers.values().map(|worker| worker.gateway);
        self.crowd.ask(gateways.collect());
    }

    /// Waits until all of the limit is lent but for floors of those that are gone, and used.
    async fn settle(&self) {
        let mut fleet = FleetClient::connect(format!("http://{}", self.control))
            .await
            .expect("the control plane answers");
        eventually_within(SETTLES_WITHIN, "all is lent", async || {
            let list = fleet.list_leases(wire::ListLeasesRequest::default()).await;
            let list = list.ok()?.into_inner();
            let pool = list.pools.first()?;
            let spare = pool.limit - pool.allotted.min(pool.limit);
            let sizes = pool.leases.iter().filter(|lease| lease.size > 0);
            let sizes: Vec<u32> = sizes
                .filter(|lease| lease.state() == wire::LeaseState::Held)
                .map(|lease| lease.size)
                .collect();
            let even = sizes.iter().max()? - sizes.iter().min()? <= 1;
            let all = sizes.len() == self.workers.len();
            (spare <= 2 && even && all && pool.in_flight + 4 >= pool.limit).then_some(())
        })
        .await;
    }

    /// Looks at the engine and the workers for so long.
    async fn measure(&mut self, what: &str, length: Duration, cut_off: &[usize]) {
        self.note();
        drop(self.crowd.fates());
        let ends = Instant::now() + length;
        let mut looks = interval(LOOK_EVERY);
        looks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        let mut used = Vec::new();
        let mut each: BTreeMap<usize, Vec<f64>> = BTreeMap::new();
        let mut in_line = Vec::new();
        let mut asked = Instant::now();
        while Instant::now() < ends {
            looks.tick().await;
            used.push(self.mock.stats().in_flight as f64);
            if asked.elapsed() < ASK_EVERY {
                continue;
            }
            asked = Instant::now();
            for (n, worker) in self.workers.iter().filter(|(n, _)| !cut_off.contains(n)) {
                let answer = reqwest::get(format!("http://{}/pools", worker.admin)).await;
                let Ok(answer) = answer else { continue };
                let pools: serde_json::Value = answer.json().await.unwrap_or_default();
                let now = pools["pools"][0]["in_flight"].as_f64().unwrap_or(0.0);
                each.entry(*n).or_default().push(now);
                let waiting = pools["pools"][0]["waiting"].as_f64().unwrap_or(0.0);
                in_line.push(f64::from(u8::from(waiting > 0.0)));
            }
        }
        let mean = |all: &[f64]| all.iter().sum::<f64>() / all.len().max(1) as f64;
        let share = mean(&used) / f64::from(self.args.limit);
        let each: Vec<f64> = each.values().map(|all| mean(all)).collect();
        let least = each.iter().copied().fold(f64::MAX, f64::min);
        let most = each.iter().copied().fold(0.0, f64::max);
        let stats = self.mock.stats();
        println!(
            "| {what} | {:.1} % | {least:.1} and {most:.1} | {:.1} % | {} of {} | {} | {} |",
            share * 100.0,
            mean(&in_line) * 100.0,
            stats.peak_in_flight,
            self.args.limit,
            stats.over_limit,
            self.crowd
                .fates()
                .iter()
                .map(|(word, count)| format!("{count} {word}"))
                .collect::<Vec<_>>()
                .join(", "),
        );
        let settled = cut_off.is_empty();
        self.good &= !settled || (share >= 0.95 && most <= least * 1.1);
    }

    /// Nothing that the engine saw is lost with its counts.
    fn note(&mut self) {
        let stats = self.mock.stats();
        self.peak = self.peak.max(stats.peak_in_flight);
        self.over += stats.over_limit;
        self.mock.reset_stats();
    }
}
