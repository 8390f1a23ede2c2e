//! A control plane on one host, workers on others with their upstreams and clients beside them, and a wire from the
//! control plane to each. Only the wires can fail.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use forebay_mock::{MockConfig, MockServer};
use forebay_proto::wire as proto;
use forebay_testbed::{End, Namespace, Wire};
use forebay_tests::{
    Process, Rotation, Served, eventually, eventually_within, model_at, steady_load,
};
use parking_lot::Mutex;
use prost_types::FieldMask;
use proto::{
    Worker as Known, fleet_client::FleetClient, model_registry_client::ModelRegistryClient,
};
use tempfile::TempDir;
use tokio::{
    sync::oneshot,
    time::{Instant, sleep, timeout},
};
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint};

pub(crate) const MODEL: &str = "m";
const CONTROL_PORT: u16 = 50_051;
const GATEWAY: SocketAddr = local(8_080);
const ADMIN: SocketAddr = local(8_081);
const UPSTREAM: SocketAddr = local(9_000);
/// How often a worker is asked what it runs.
const ASKED: Duration = Duration::from_millis(100);
/// A control plane that knows of workers by pings alone may take this long to know that they are back.
const PATIENCE: Duration = Duration::from_secs(90);
/// A write goes from the control plane's own host: it has no reason to take this long.
const WRITE_WITHIN: Duration = Duration::from_secs(10);

const fn local(port: u16) -> SocketAddr {
    SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), port)
}

/// All of it.
pub(crate) struct Bed {
    pub(crate) workers: Vec<Worker>,
    registry: ModelRegistryClient<Channel>,
    fleet: FleetClient<Channel>,
    control: Process,
    /// After the programs on it.
    host: Namespace,
    dir: TempDir,
}

/// A worker, and what is beside it.
pub(crate) struct Worker {
    pub(crate) wire: Wire,
    /// What it runs, and since when.
    runs: Arc<Mutex<(u64, Instant)>>,
    stop: CancellationToken,
    served: oneshot::Receiver<Served>,
    process: Process,
    _upstream: MockServer,
    _host: Namespace,
}

/// Starts a program on a host.
pub(crate) async fn start(host: &Namespace, binary: &str, args: &[&str]) -> Process {
    let (program, mut all) = Namespace::program(binary);
    all.extend(args.iter().map(|arg| (*arg).to_owned()));
    host.run(move || async move {
        let all: Vec<&str> = all.iter().map(String::as_str).collect();
        Process::start(program, &all, &[])
    })
    .await
}

impl Bed {
    /// Sets it up, with every worker current and under load.
    pub(crate) async fn set_up(binary: &str, workers: usize, rate: u32) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let data = dir.path().join("control").to_string_lossy().into_owned();
        let host = Namespace::make("control").await;
        let listen = SocketAddr::from((Ipv4Addr::UNSPECIFIED, CONTROL_PORT)).to_string();
        let args = ["control", "--control-listen", &listen, "--insecure"];
        let args = [&args[..], &["--data-dir", &data]].concat();
        let mut control = start(&host, binary, &args).await;
        control.printed("Forebay control plane on ").await;
        let url = format!("http://127.0.0.1:{CONTROL_PORT}");
        // Made there: what makes its connections runs where it was made.
        let channel = host.run(move || async move {
            let endpoint = Endpoint::from_shared(url).expect("our own url");
            endpoint.connect_lazy()
        });
        let channel = channel.await;
        let mut bed = Self {
            workers: Vec::new(),
            registry: ModelRegistryClient::new(channel.clone()),
            fleet: FleetClient::new(channel),
            control,
            host,
            dir,
        };
        let model = model_at(MODEL, &format!("http://{UPSTREAM}"));
        let request = proto::CreateModelRequest {
            model: Some(model),
            ..proto::CreateModelRequest::default()
        };
        let made = bed.registry.create_model(request).await;
        let revision = made.expect("the model is registered").into_inner().revision;
        for number in 0..workers {
            let number = u8::try_from(number).expect("a few workers");
            let data = bed.dir.path().join(format!("w{number}"));
            let data = data.to_string_lossy();
            let worker = Worker::start(&bed.host, binary, number, &data, rate);
            bed.workers.push(worker.await);
        }
        for worker in &bed.workers {
            worker.is_current(revision).await;
        }
        bed
    }

    /// Writes, and gives the revision and how long it took; nothing if it failed.
    pub(crate) async fn write(&mut self, number: u64) -> Option<(u64, Duration)> {
        let began = Instant::now();
        let size = 40 + u32::try_from(number % 7).unwrap_or_default();
        let model = proto::Model {
            id: MODEL.to_owned(),
            pool: Some(proto::Pool {
                max_concurrent: Some(size),
                ..proto::Pool::default()
            }),
            ..proto::Model::default()
        };
        let request = proto::UpdateModelRequest {
            model: Some(model),
            update_mask: Some(FieldMask {
                paths: vec!["pool.max_concurrent".to_owned()],
            }),
            ..proto::UpdateModelRequest::default()
        };
        let answered = timeout(WRITE_WITHIN, self.registry.update_model(request)).await;
        let revision = answered.ok()?.ok()?.into_inner().revision;
        Some((revision, began.elapsed()))
    }

    /// The workers as the control plane sees them.
    pub(crate) async fn known(&mut self) -> Vec<Known> {
        let listed = self
            .fleet
            .list_workers(proto::ListWorkersRequest::default());
        let listed = timeout(WRITE_WITHIN, listed).await;
        let listed = listed.expect("the control plane answers");
        listed
            .expect("the fleet can be listed")
            .into_inner()
            .workers
    }

    /// How many streams workers have opened so far.
    pub(crate) fn streams(&self) -> usize {
        self.control.err().matches("worker connected").count()
    }

    /// Waits until the control plane, too, says that every worker runs this.
    pub(crate) async fn is_complete(&self, revision: u64) {
        let count = self.workers.len();
        eventually_within(PATIENCE, "the rollout is complete", async || {
            let mut fleet = self.fleet.clone();
            let asked = proto::GetRolloutRequest {
                revision: Some(revision),
            };
            let rollout = fleet.get_rollout(asked).await.ok()?.into_inner();
            (rollout.complete && rollout.applied as usize == count).then_some(())
        })
        .await;
    }

    /// Ends it, and tells what was served and how many packets the kernel lost before they came to a wire.
    pub(crate) async fn end(self) -> (Served, u64) {
        let (mut served, mut dropped) = (Served::default(), 0);
        for worker in self.workers {
            worker.stop.cancel();
            served.and(worker.served.await.expect("the load ends well"));
            worker.process.kill().await;
            dropped += worker.wire.end();
        }
        self.control.kill().await;
        (served, dropped)
    }
}

impl Worker {
    async fn start(control: &Namespace, binary: &str, number: u8, data: &str, rate: u32) -> Self {
        let name = format!("w{number}");
        let host = Namespace::make(&name).await;
        let address = |last| Ipv4Addr::new(10, 77, number, last);
        let there = End {
            host: control,
            address: address(1),
        };
        let here = End {
            host: &host,
            address: address(2),
        };
        let wire = Wire::between(there, here).await;
        let upstream = host.run(|| async {
            MockServer::start(MockConfig {
                listen: UPSTREAM,
                // What happens when upstreams close is looked at elsewhere.
                keep_alive: None,
                ..MockConfig::serving(MODEL)
            })
            .await
        });
        let upstream = upstream.await.expect("a mock");
        let url = format!("http://{}:{CONTROL_PORT}", there.address);
        let (gateway, admin) = (GATEWAY.to_string(), ADMIN.to_string());
        let args = ["worker", "--control", &url, "--listen", &gateway];
        let more = ["--admin-listen", &admin, "--worker-id", &name];
        let args = [&args[..], &more, &["--data-dir", data]].concat();
        let mut process = start(&host, binary, &args).await;
        process.printed("admin     http://").await;
        let runs = Arc::new(Mutex::new((0, Instant::now())));
        let stop = CancellationToken::new();
        // Both end with the token, or with the host.
        let (following, stopping) = (runs.clone(), stop.clone());
        drop(host.start(move || follow(following, stopping)).await);
        let stopping = stop.clone();
        let ready = runs.clone();
        let served = host.start(move || async move {
            while ready.lock().0 == 0 {
                sleep(ASKED).await;
            }
            steady_load(Rotation::of(GATEWAY), MODEL, rate, stopping).await
        });
        let served = served.await;
        Self {
            wire,
            runs,
            stop,
            served,
            process,
            _upstream: upstream,
            _host: host,
        }
    }

    /// When it came to run this revision or a newer one, if it does.
    pub(crate) fn runs(&self, revision: u64) -> Option<Instant> {
        let (runs, since) = *self.runs.lock();
        (runs >= revision).then_some(since)
    }

    async fn is_current(&self, revision: u64) {
        eventually("the worker is current", async || self.runs(revision)).await;
    }
}

/// Asks the worker what it runs, on its own host.
async fn follow(runs: Arc<Mutex<(u64, Instant)>>, stop: CancellationToken) {
    let client = reqwest::Client::builder().no_proxy().build();
    let client = client.expect("an HTTP client");
    let url = format!("http://{ADMIN}/config");
    while !stop.is_cancelled() {
        let asked = async { client.get(&url).send().await?.text().await };
        if let Ok(text) = asked.await {
            let now = revision(&text);
            let mut known = runs.lock();
            if now > known.0 {
                *known = (now, Instant::now());
            }
        }
        sleep(ASKED).await;
    }
}

/// Of the document as a whole: models have one, too.
fn revision(document: &str) -> u64 {
    let document: serde_json::Value = serde_json::from_str(document).unwrap_or_default();
    document
        .get("revision")
        .and_then(serde_json::Value::as_u64)
        .unwrap_or_default()
}
