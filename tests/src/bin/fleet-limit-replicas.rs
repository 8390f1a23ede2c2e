//! A fleet-wide limit with several control planes on one etcd, all as processes, under a crowd that always wants more: the
//! control plane that decides is killed, and then stopped where it is and let go on; a member of etcd is killed; a worker
//! is. Prints how much of the limit was used, how long it took until all of it was again, and the most that the engine saw
//! at once. Ends with 1 if that was ever more than the limit.

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
use forebay_etcd::Etcd;
use forebay_mock::{MockConfig, MockServer};
use forebay_proto::wire;
use forebay_tests::{
    Crowd, Process, Scrape, eventually, eventually_within, lasting_addr, model_at,
};
use tempfile::TempDir;
use tokio::time::{Instant, sleep};
use tonic::transport::Endpoint;
use wire::{fleet_client::FleetClient, model_registry_client::ModelRegistryClient};

const MODEL: &str = "m";
const PLANES: usize = 3;
const LOOK_EVERY: Duration = Duration::from_millis(20);
const SETTLES_WITHIN: Duration = Duration::from_secs(150);

#[derive(Debug, Parser)]
struct Args {
    /// The program.
    #[arg(default_value = "target/debug/forebay")]
    forebay: PathBuf,
    /// The limit.
    #[arg(long, default_value_t = 48)]
    limit: u32,
    /// Workers.
    #[arg(long, default_value_t = 5)]
    workers: usize,
    /// Clients.
    #[arg(long, default_value_t = 120)]
    clients: usize,
    /// Tokens of an answer, at the most; at the least a third of them.
    #[arg(long, default_value_t = 30)]
    tokens: u32,
    /// Milliseconds between tokens.
    #[arg(long, default_value_t = 100)]
    interval_ms: u64,
    /// How long each state is measured, in seconds.
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// How long a lease holds.
    #[arg(long, default_value = "10s")]
    ttl: String,
    /// How long what runs goes on then.
    #[arg(long, default_value = "5s")]
    linger: String,
}

struct Scene {
    args: Args,
    etcd: Etcd,
    addrs: Vec<SocketAddr>,
    planes: Vec<Option<Process>>,
    mock: MockServer,
    workers: BTreeMap<usize, (Process, SocketAddr)>,
    crowd: Crowd,
    dir: TempDir,
    peak: u64,
    over: u64,
}

#[tokio::main]
async fn main() -> ExitCode {
    let args = Args::parse();
    let length = Duration::from_secs(args.seconds);
    let mut scene = Scene::set(args).await;
    println!(
        "| | all used again after | used | at once, most | above the limit | requests |\n|---|---|---|---|---|---|"
    );
    scene.see("at first", length).await;

    let leader = scene.leader().await;
    let killed = scene.planes[leader].take().expect("it runs");
    killed.kill().await;
    scene
        .see("the control plane that decides is killed", length)
        .await;
    scene.start_plane(leader).await;
    scene.see("it is back", length).await;

    let leader = scene.leader().await;
    scene.planes[leader].as_ref().expect("it runs").pause();
    sleep(Duration::from_secs(15)).await;
    scene.planes[leader].as_ref().expect("it runs").resume();
    scene
        .see("the one that decides slept for 15 s", length)
        .await;

    let member = scene.etcd.leader().await;
    scene.etcd.kill(member).await;
    scene.see("etcd's leader is killed", length).await;
    scene.etcd.mend().await;
    scene.see("it is back", length).await;

    let (worker, _) = scene.workers.remove(&1).expect("a worker");
    worker.kill().await;
    scene.ask();
    scene.see("a worker is killed", length).await;
    scene.note();
    println!(
        "\nover the whole run the engine saw at most {} at once, and {} requests above its {}",
        scene.peak, scene.over, scene.args.limit
    );
    match scene.over {
        0 => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    }
}

impl Scene {
    async fn set(args: Args) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        for (name, digit) in [("pepper", "1"), ("seal.key", "2")] {
            std::fs::write(dir.path().join(name), digit.repeat(64)).expect("a secret");
        }
        let mock = MockServer::start(MockConfig {
            models: vec![MODEL.to_owned()],
            interval: Duration::from_millis(args.interval_ms),
            max_in_flight: Some(args.limit as usize),
            ..MockConfig::default()
        });
        let crowd = Crowd::new(MODEL, args.clients, args.tokens / 3..=args.tokens);
        let mut scene = Self {
            etcd: Etcd::start().await,
            addrs: (0..PLANES).map(|_| lasting_addr()).collect(),
            planes: (0..PLANES).map(|_| None).collect(),
            mock: mock.await.expect("an engine"),
            workers: BTreeMap::new(),
            crowd,
            dir,
            peak: 0,
            over: 0,
            args,
        };
        for n in 0..PLANES {
            scene.start_plane(n).await;
        }
        for n in 0..scene.args.workers {
            scene.join(n).await;
        }
        scene.register().await;
        scene
    }

    async fn start_plane(&mut self, n: usize) {
        let file = |name: &str| self.dir.path().join(name).display().to_string();
        let (listen, store) = (self.addrs[n].to_string(), self.etcd.store("limit"));
        let (pepper, seal, id) = (file("pepper"), file("seal.key"), format!("c{n}"));
        let limit = self.args.limit.to_string();
        let start = [
            "control",
            "--control-listen",
            &listen,
            "--store",
            &store,
            "--pepper-file",
            &pepper,
            "--seal-key-file",
            &seal,
            "--replica-id",
            &id,
            "--gateway-max-concurrent",
            &limit,
            "--lease-ttl",
            &self.args.ttl,
            "--lease-linger",
            &self.args.linger,
        ];
        let mut plane = Process::start(&self.args.forebay, &start, &[]);
        plane.printed("Forebay control plane on ").await;
        self.planes[n] = Some(plane);
    }

    async fn register(&self) {
        let pool = wire::Pool {
            max_concurrent: Some(self.args.limit),
            scope: wire::PoolScope::Fleet.into(),
            ..wire::Pool::default()
        };
        let model = wire::Model {
            pool: Some(pool),
            ..model_at(MODEL, &self.mock.url())
        };
        let request = wire::CreateModelRequest {
            model: Some(model),
            ..Default::default()
        };
        let mut registry = ModelRegistryClient::connect(format!("http://{}", self.addrs[0]))
            .await
            .expect("the control plane answers");
        let created = registry.create_model(request).await;
        created.expect("the model is registered");
    }

    async fn join(&mut self, n: usize) {
        let name = format!("w{n}");
        let data = self.dir.path().join(&name).display().to_string();
        let control = (0..PLANES).map(|plane| format!("http://{}", self.addrs[plane]));
        let control = control.collect::<Vec<_>>().join(",");
        let any = "127.0.0.1:0";
        let start = [
            "worker",
            "--worker-id",
            &name,
            "--control",
            &control,
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
        let line = process.printed("gateway   http://").await;
        let end = line.find(['/', ' ']).unwrap_or(line.len());
        let gateway = line[..end].parse().expect("an address");
        self.workers.insert(n, (process, gateway));
        self.ask();
    }

    fn ask(&self) {
        let gateways = self.workers.values().map(|(_, gateway)| *gateway);
        self.crowd.ask(gateways.collect());
    }

    async fn leader(&self) -> usize {
        eventually("one decides", async || {
            for (n, addr) in self.addrs.iter().enumerate() {
                let page = async {
                    let page = reqwest::get(format!("http://{addr}/metrics")).await.ok()?;
                    page.text().await.ok()
                };
                let page = tokio::time::timeout(Duration::from_secs(1), page).await;
                if let Ok(Some(page)) = page
                    && Scrape::new(page).sum("forebay_control_leader", &[]) > 0.5
                {
                    return Some(n);
                }
            }
            None
        })
        .await
    }

    /// As any control plane tells it.
    async fn pool(&self) -> Option<wire::FleetPool> {
        for addr in &self.addrs {
            let channel = Endpoint::from_shared(format!("http://{addr}"))
                .expect("an url")
                .connect_timeout(Duration::from_secs(1))
                .timeout(Duration::from_secs(4))
                .connect_lazy();
            let list = wire::ListLeasesRequest::default();
            if let Ok(list) = FleetClient::new(channel).list_leases(list).await {
                return list.into_inner().pools.into_iter().next();
            }
        }
        None
    }

    /// Waits until all of the limit is lent and used, and looks at the engine for so long.
    async fn see(&mut self, what: &str, length: Duration) {
        self.note();
        let began = Instant::now();
        let floors = u32::try_from(self.args.workers - self.workers.len()).unwrap_or(0);
        eventually_within(SETTLES_WITHIN, "all is lent", async || {
            let pool = self.pool().await?;
            let sizes = pool.leases.iter().filter(|lease| lease.size > 0);
            let sizes: Vec<u32> = sizes
                .filter(|lease| lease.state() == wire::LeaseState::Held)
                .map(|lease| lease.size)
                .collect();
            let whole = pool.allotted + floors >= pool.limit;
            let all = sizes.len() == self.workers.len();
            (whole && all && pool.in_flight + 4 >= pool.limit).then_some(())
        })
        .await;
        let took = began.elapsed().as_secs_f64();
        drop(self.crowd.fates());
        let (ends, mut used, mut looks) = (Instant::now() + length, 0.0, 0.0);
        while Instant::now() < ends {
            sleep(LOOK_EVERY).await;
            used += self.mock.stats().in_flight as f64;
            looks += 1.0;
        }
        let stats = self.mock.stats();
        let fates = self.crowd.fates();
        let fates = fates.iter().map(|(word, count)| format!("{count} {word}"));
        println!(
            "| {what} | {took:.1} s | {:.1} % | {} of {} | {} | {} |",
            100.0 * used / looks / f64::from(self.args.limit),
            stats.peak_in_flight,
            self.args.limit,
            stats.over_limit,
            fates.collect::<Vec<_>>().join(", "),
        );
    }

    /// Nothing that the engine saw is lost with its counts.
    fn note(&mut self) {
        let stats = self.mock.stats();
        self.peak = self.peak.max(stats.peak_in_flight);
        self.over += stats.over_limit;
        self.mock.reset_stats();
    }
}
