//! What is played.

use std::{
    collections::BTreeMap,
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use forebay_mock::{MockConfig, MockServer};
use forebay_proto::{Digest, wire};
use forebay_tests::{Client, Rotation, Served, eventually, lasting_addr, model_at, steady_load};
use serde_json::Value;
use tempfile::TempDir;
use tokio::{task::JoinHandle, time::sleep};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::Code;

use crate::{
    Versions,
    fleet::{Control, Worker, run},
    writer::{Writer, Written},
};

const MODEL: &str = "m";
const IDS: [&str; 2] = ["w0", "w1"];
/// So much is written in each state of the fleet, at least.
const WRITES: u64 = 15;
const LOOK: Duration = Duration::from_millis(10);

/// What came of one.
pub(crate) struct Scene {
    pub(crate) served: Served,
}

/// What all scenes have.
struct Stage {
    name: &'static str,
    dir: TempDir,
    addr: SocketAddr,
    upstream: MockServer,
    rotation: Rotation,
    stop: CancellationToken,
    load: Option<JoinHandle<Served>>,
    writes: u64,
}

impl Stage {
    /// Sets it: a control plane of this version with a model, and load on whoever is in rotation.
    async fn set(name: &'static str, versions: &Versions, binary: &str) -> (Self, Control) {
        let dir = tempfile::tempdir().expect("a directory");
        let upstream = MockServer::start(MockConfig {
            models: Vec::new(),
            ..MockConfig::default()
        });
        let upstream = upstream.await.expect("a mock");
        let addr = lasting_addr();
        let control = Control::start(binary, addr, &dir.path().join("control-0")).await;
        let request = wire::CreateModelRequest {
            model: Some(model_at(MODEL, &upstream.url())),
            ..wire::CreateModelRequest::default()
        };
        let made = control.registry().create_model(request).await;
        made.expect("a model can be registered");
        let (rotation, stop) = (Rotation::default(), CancellationToken::new());
        let tracker = TaskTracker::new();
        let (picked, stopping, rate) = (rotation.clone(), stop.clone(), versions.rate);
        let load = tracker.spawn(async move {
            // Begins when somebody is there.
            while picked.is_empty() {
                sleep(LOOK).await;
            }
            steady_load(picked, MODEL, rate, stopping).await
        });
        let stage = Self {
            name,
            dir,
            addr,
            upstream,
            rotation,
            stop,
            load: Some(load),
            writes: 0,
        };
        (stage, control)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn writer(&self, prefix: &'static str) -> Writer {
        Writer::start(self.addr, prefix, self.upstream.url())
    }

    async fn end_of(&mut self, writer: Writer) -> Written {
        let written = writer.end().await;
        self.writes += written.writes;
        written
    }

    /// A worker of this version that gets requests as soon as it is ready.
    async fn worker(&self, binary: &str, id: &str) -> Worker {
        let worker = Worker::start(binary, id, self.addr, &self.path(id)).await;
        worker.ready().await;
        self.rotation.put(worker.gateway);
        worker
    }

    async fn workers(&self, binary: &str) -> Vec<Worker> {
        let mut workers = Vec::new();
        for id in IDS {
            workers.push(self.worker(binary, id).await);
        }
        workers
    }

    /// As a rolling restart does it, one by one: out of rotation, ended in good order, another one in its place.
    async fn replace(&self, workers: Vec<Worker>, binary: &str) -> Vec<Worker> {
        let mut replaced = Vec::new();
        for (worker, id) in workers.into_iter().zip(IDS) {
            self.rotation.take(worker.gateway);
            worker.stop().await;
            replaced.push(self.worker(binary, id).await);
        }
        replaced
    }

    /// No more requests; waits for those under way.
    async fn calm(&mut self) -> Served {
        self.stop.cancel();
        let load = self.load.take().expect("there is a load, once");
        load.await.expect("the load ends well")
    }

    fn told(&self, served: Served) -> Scene {
        let (name, writes) = (self.name, self.writes);
        let (requests, failed) = (served.requests, served.failed);
        println!("| {name} | {requests} | {failed} | {writes} |");
        Scene { served }
    }
}

/// What was answered is there, and every worker has it.
async fn are_right(control: &Control, workers: &[Worker], written: &Written) {
    let there = control.models().await;
    let missing: Vec<_> = written
        .models
        .keys()
        .filter(|id| !there.contains(id))
        .collect();
    assert!(missing.is_empty(), "{missing:?} of {there:?}");
    for worker in workers {
        worker.is_current(control).await;
        let config = worker.config().await;
        let models = config.get("models").and_then(Value::as_array).cloned();
        let models = models.unwrap_or_default();
        for (id, size) in &written.models {
            let model = models
                .iter()
                .find(|model| model.get("id").is_some_and(|it| it == id));
            let found = model.and_then(|model| model.pointer("/pool/max_concurrent")?.as_u64());
            assert_eq!(found, Some(u64::from(*size)), "{id} of {config}");
        }
    }
}

async fn stop(workers: Vec<Worker>) {
    for worker in workers {
        worker.stop().await;
    }
}

/// Waits until so much was written, and the worker runs it.
async fn is_written_to(control: &Control, workers: &[Worker]) {
    let until = control.newest().await + WRITES;
    eventually("it is written to", async || {
        (control.newest().await >= until).then_some(())
    })
    .await;
    for worker in workers {
        worker.is_current(control).await;
    }
}

/// The control plane is the old one: the workers speak what that one knows.
pub(crate) async fn old_control_new_workers(versions: &Versions) -> Scene {
    let name = "control plane of before, workers of now";
    let (mut stage, control) = Stage::set(name, versions, &versions.old).await;
    let mut workers = stage.workers(&versions.new).await;
    let writer = stage.writer("a");
    is_written_to(&control, &workers).await;
    // Without a control plane they serve on, and start from what is on disk.
    control.stop().await;
    workers = stage.replace(workers, &versions.new).await;
    let control = Control::start(&versions.old, stage.addr, &stage.path("control-0")).await;
    is_written_to(&control, &workers).await;
    let written = stage.end_of(writer).await;
    are_right(&control, &workers, &written).await;
    let served = stage.calm().await;
    stop(workers).await;
    control.stop().await;
    stage.told(served)
}

/// The workers are the old ones: what they cannot take is said.
pub(crate) async fn new_control_old_workers(versions: &Versions) -> Scene {
    let name = "control plane of now, workers of before";
    let (mut stage, mut control) = Stage::set(name, versions, &versions.new).await;
    let workers = stage.workers(&versions.old).await;
    let writer = stage.writer("a");
    is_written_to(&control, &workers).await;
    let written = stage.end_of(writer).await;
    are_right(&control, &workers, &written).await;
    // They cannot be told to drain.
    let asked = wire::DrainWorkerRequest {
        id: "w0".to_owned(),
    };
    let refused = control.fleet().drain_worker(asked).await;
    let refused = refused.expect_err("a worker of before cannot be told to end");
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
    // They know nothing of keys: they let in everybody, and the control plane says so.
    let request = wire::CreateKeyRequest {
        key: Some(wire::Key {
            display_name: "mixed".to_owned(),
            ..wire::Key::default()
        }),
        ..wire::CreateKeyRequest::default()
    };
    let made = control.keys().create_key(request).await;
    made.expect("a key can be made");
    control
        .says("the worker is of a version that knows no keys: it serves everybody; replace it")
        .await;
    let served = stage.calm().await;
    // Those in their place let in who has a key.
    stop(workers).await;
    let worker = Worker::start(&versions.new, "w0", stage.addr, &stage.path("w0")).await;
    worker.is_current(&control).await;
    let client = Client::new(worker.gateway);
    eventually("nobody without a key is served", async || {
        let status = client.status(MODEL).await?;
        (status.as_u16() == 401).then_some(())
    })
    .await;
    worker.stop().await;
    control.stop().await;
    stage.told(served)
}

/// A fleet is rolled to the version of now, and back.
pub(crate) async fn there_and_back(versions: &Versions) -> Scene {
    let name = "a fleet of before is rolled to now, and back";
    let (mut stage, control) = Stage::set(name, versions, &versions.old).await;
    let dir = stage.path("control-0");
    let workers = stage.workers(&versions.old).await;
    let writer = stage.writer("a");
    is_written_to(&control, &workers).await;
    // There: the workers first, then the control plane, on its directory.
    let workers = stage.replace(workers, &versions.new).await;
    is_written_to(&control, &workers).await;
    control.stop().await;
    let control = Control::start(&versions.new, stage.addr, &dir).await;
    is_written_to(&control, &workers).await;
    // Back: the workers first; each begins with what the newer one kept.
    let workers = stage.replace(workers, &versions.old).await;
    for worker in &workers {
        let log = worker.log();
        let kept = log.contains("serving the last known good configuration");
        assert!(kept, "what the newer one kept is read: {log}");
    }
    is_written_to(&control, &workers).await;
    let written = stage.end_of(writer).await;
    are_right(&control, &workers, &written).await;
    control.stop().await;
    let control = go_back(&stage, versions, &dir).await;
    for worker in &workers {
        worker.is_current(&control).await;
    }
    are_right(&control, &workers, &written).await;
    let writer = stage.writer("b");
    is_written_to(&control, &workers).await;
    let written = stage.end_of(writer).await;
    are_right(&control, &workers, &written).await;
    let served = stage.calm().await;
    stop(workers).await;
    control.stop().await;
    stage.told(served)
}

/// The control plane of before, with all that was written to the one of now.
async fn go_back(stage: &Stage, versions: &Versions, dir: &Path) -> Control {
    // On the directory itself it does not start, if the format is another one, and leaves it as it is.
    let before = contents(dir);
    if before
        .keys()
        .any(|name| name.starts_with("control/registry.format-"))
    {
        let refused = Control::try_start(&versions.old, stage.addr, dir).await;
        let why = refused.err().expect("a newer format is refused");
        assert!(why.contains("format"), "{why}");
        assert_eq!(contents(dir), before, "and it is as it was");
    }
    let export = stage.path("export").to_string_lossy().into_owned();
    let (from, fresh) = (dir.to_string_lossy(), stage.path("control-1"));
    let to = fresh.to_string_lossy();
    let out = ["control", "export", "--data-dir", &from, "--out", &export];
    run(&versions.new, &out).await;
    let into = ["control", "import", &export, "--data-dir", &to];
    run(&versions.old, &into).await;
    Control::start(&versions.old, stage.addr, &fresh).await
}

/// Every file below a directory, and the digest of what is in it. sled makes the index of its log (`snap.…`) anew
/// whenever it opens.
fn contents(dir: &Path) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let mut folders = vec![dir.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).expect("a folder").flatten() {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let name = path.strip_prefix(dir).unwrap_or(&path).to_string_lossy();
            if name.contains("/snap.") {
                continue;
            }
            let bytes = fs::read(&path).expect("a file");
            found.insert(name.into_owned(), Digest::of(&bytes).to_string());
        }
    }
    found
}
