//! What a control plane does with thousands of workers: how long a write takes to reach them all, what a stream
//! costs it, and what happens when all come back at once. The workers are played in this process, the control
//! plane is a process of its own. Figures: docs/bench/fleet.md.

#![expect(
    clippy::print_stdout,
    clippy::expect_used,
    reason = "a program for the terminal; scenery that cannot be set up ends it"
)]

mod stall;

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use clap::Parser;
use forebay_proto::wire;
use forebay_tests::{PlayedFleet, Process, Stalled, model_at};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep},
};
use tonic::transport::Channel;
use wire::{fleet_client::FleetClient, model_registry_client::ModelRegistryClient};

const SETTLE: Duration = Duration::from_secs(3);

#[derive(Debug, Parser)]
#[command(about = "Plays a fleet of workers on a control plane and measures it")]
struct Args {
    /// The forebay binary.
    forebay: PathBuf,
    /// Workers.
    #[arg(long, default_value_t = 1_000)]
    workers: usize,
    /// Models in force.
    #[arg(long, default_value_t = 100)]
    models: usize,
    /// Writes, one after the other, each timed until the last worker has answered.
    #[arg(long, default_value_t = 100)]
    writes: usize,
    /// Workers beside them that read nothing.
    #[arg(long, default_value_t = 0)]
    stalled: usize,
    /// Instead of all else: writes at 1,000 a second without the stalled workers and with them, so many times.
    #[arg(long, default_value_t = 0)]
    stall_pairs: usize,
}

#[tokio::main]
async fn main() {
    let args = Args::parse();
    let data = tempfile::tempdir().expect("a directory");
    let dir = data.path().to_string_lossy().into_owned();
    let start = [
        "control",
        "--control-listen",
        "127.0.0.1:0",
        "--data-dir",
        &dir,
    ];
    let mut control = Process::start(&args.forebay, &start, &[]);
    let url = format!("http://{}", control.printed("http://").await.trim());
    let pid = control.id();
    let registry = ModelRegistryClient::connect(url.clone()).await;
    let fleet_client = FleetClient::connect(url.clone()).await;
    let mut bench = Bench {
        registry: registry.expect("the control plane answers"),
        fleet_client: fleet_client.expect("the control plane answers"),
        fleet: PlayedFleet::new(&url, args.workers),
        pid,
        revision: 1,
        written: args.models,
    };
    for model in 0..args.models {
        bench.write(model).await;
    }
    if args.stall_pairs > 0 {
        bench.connect(&args).await;
        bench.stall_pairs(&args, &url).await;
        println!("streams lost: {}", bench.fleet.lost());
        control.kill().await;
        return;
    }
    let stalled = Stalled::open(&url, args.stalled).await;
    bench.connect(&args).await;
    bench.writes(&args, &stalled).await;
    bench.storm(&args).await;
    println!("streams lost: {}", bench.fleet.lost());
    drop(stalled);
    control.kill().await;
}

struct Bench {
    registry: ModelRegistryClient<Channel>,
    fleet_client: FleetClient<Channel>,
    fleet: PlayedFleet,
    pid: u32,
    revision: u64,
    /// Numbers of writes that storms have used.
    written: usize,
}

impl Bench {
    /// Makes a new revision.
    async fn write(&mut self, model: usize) -> Duration {
        let request = update(model, usize::try_from(self.revision).unwrap_or_default());
        let began = Instant::now();
        let model = self.registry.update_model(request).await;
        self.revision = model.expect("the write is made").into_inner().revision;
        began.elapsed()
    }

    async fn connect(&mut self, args: &Args) {
        sleep(SETTLE).await;
        let before = memory_kib(self.pid);
        let took = self.fleet.connect(self.revision).await;
        sleep(SETTLE).await;
        let after = memory_kib(self.pid);
        let each = (after.saturating_sub(before)) as f64 / args.workers as f64;
        println!(
            "{} workers, {} models: all current after {took:.1?}; {before} KiB, then {after} KiB: {each:.1} KiB for each stream",
            args.workers, args.models
        );
        let pushed = self.fleet.pushed();
        println!(
            "first pushes: {} bytes on average",
            pushed.bytes / pushed.pushes.max(1)
        );
    }

    async fn writes(&mut self, args: &Args, stalled: &Stalled) {
        let mut all = Vec::new();
        let mut answered = Vec::new();
        let before = memory_kib(self.pid);
        for write in 0..args.writes {
            self.fleet.expect(self.revision + 1);
            let began = Instant::now();
            answered.push(self.write(write % args.models.max(1)).await);
            all.push(self.fleet.all_hold().await - began);
            // A lone write: those of a storm wait for each other.
            sleep(Duration::from_millis(60)).await;
        }
        let pushed = self.fleet.pushed();
        println!(
            "from the write's sending to its answer: {}",
            quantiles(&mut answered)
        );
        println!(
            "from the write's sending to the last worker's answer: {}",
            quantiles(&mut all)
        );
        println!(
            "a push takes {} bytes on average, {} at most; {} of {} were deltas",
            pushed.bytes / pushed.pushes.max(1),
            pushed.most,
            pushed.deltas,
            pushed.pushes
        );
        let after = memory_kib(self.pid);
        println!(
            "memory: {before} KiB before the writes, {after} KiB after them; {} workers read nothing",
            stalled.len()
        );
    }

    async fn storm(&mut self, args: &Args) {
        let steady = memory_kib(self.pid);
        self.fleet.cut().await;
        sleep(SETTLE).await;
        let highest = Highest::watch(self.pid);
        let took = self.fleet.connect(self.revision).await;
        sleep(SETTLE).await;
        let most = highest.end();
        println!(
            "{} workers come back at once: all current after {took:.1?}; {steady} KiB before, {most} KiB at most",
            args.workers
        );
    }
}

/// A model with a value of its own for each number.
fn update(model: usize, number: usize) -> wire::UpdateModelRequest {
    let seconds = 100 + i64::try_from(number % 80_000).unwrap_or(0);
    let url = format!("http://10.0.{}.{}:8000", model / 250, model % 250 + 1);
    wire::UpdateModelRequest {
        model: Some(wire::Model {
            timeouts: Some(wire::Timeouts {
                total: Some(prost_types::Duration { seconds, nanos: 0 }),
                ..wire::Timeouts::default()
            }),
            ..model_at(&format!("model-{model:05}"), &url)
        }),
        allow_missing: true,
        ..wire::UpdateModelRequest::default()
    }
}

/// The most that a process's memory came to since this began.
struct Highest {
    kib: Arc<AtomicU64>,
    _watching: JoinSet<()>,
}

impl Highest {
    fn watch(pid: u32) -> Self {
        let kib = Arc::new(AtomicU64::new(0));
        let highest = kib.clone();
        let mut watching = JoinSet::new();
        watching.spawn(async move {
            loop {
                highest.fetch_max(memory_kib(pid), Ordering::Relaxed);
                sleep(Duration::from_millis(20)).await;
            }
        });
        Self {
            kib,
            _watching: watching,
        }
    }

    fn end(self) -> u64 {
        self.kib.load(Ordering::Relaxed)
    }
}

/// Private memory of a process.
fn memory_kib(pid: u32) -> u64 {
    let rollup = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup"));
    let rollup = rollup.expect("the process can be looked at");
    let line = rollup
        .lines()
        .find(|line| line.starts_with("Private_Dirty:"));
    let kib = line.and_then(|line| line.split_whitespace().nth(1)?.parse().ok());
    kib.expect("a number of KiB")
}

fn quantiles(times: &mut [Duration]) -> String {
    times.sort();
    let at = |share: f64| {
        let place = (times.len().saturating_sub(1)) as f64 * share;
        times
            .get(place.round() as usize)
            .copied()
            .unwrap_or_default()
    };
    format!(
        "p50 {:.1?}, p99 {:.1?}, most {:.1?}",
        at(0.5),
        at(0.99),
        at(1.0)
    )
}
