//! When exports are made, what is in them, and what is said of those that fail.

use std::{
    collections::BTreeSet,
    fs::{self, File},
};

use forebay_proto::wire;
use prometheus::Registry;
use tokio::task::JoinSet;

use super::*;
use crate::secrets::Vault;
use crate::{
    registry::{self, Command, RegistryHandle, Write},
    store::{history::Origin, memory::MemoryStore},
};

/// Longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(60);

struct Bench {
    dir: tempfile::TempDir,
    lock: DirLock,
    registry: RegistryHandle,
    status: Arc<StoreStatus>,
    metrics: Arc<Metrics>,
    stop: CancellationToken,
    exporting: JoinSet<()>,
}

impl Bench {
    /// An exporter at work on a fresh registry.
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("data");
        fs::create_dir(&data).unwrap();
        let lock = Arc::new(File::create(dir.path().join("lock")).unwrap());
        let metrics = Arc::new(Metrics::new(&Registry::new()).unwrap());
        let (registry, _) =
            registry::start(MemoryStore::fresh(), metrics.clone(), Vault::throwaway()).unwrap();
        let status = Arc::new(StoreStatus::new(None));
        let exporter = Exporter {
            dir: data,
            lock: lock.clone(),
            published: registry.watch(),
            keys: registry.watch_keys(),
            status: status.clone(),
            metrics: metrics.clone(),
        };
        let stop = CancellationToken::new();
        let exporting = JoinSet::from_iter([exporter.run(stop.clone())]);
        Self {
            dir,
            lock,
            registry,
            status,
            metrics,
            stop,
            exporting,
        }
    }

    fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    async fn create(&self, id: &str) {
        let model = wire::Model {
            id: id.to_owned(),
            endpoints: vec![wire::Endpoint {
                url: "http://10.0.0.1:8000".to_owned(),
                ..Default::default()
            }],
            ..Default::default()
        };
        let write = Write {
            command: Command::Create(model),
            origin: Origin::default(),
            request_id: None,
            validate_only: false,
            term: None,
        };
        self.registry.write(write).await.unwrap();
    }

    /// The revisions of the exports that there are, the newest first, and the models in them.
    fn exported(&self) -> Vec<(u64, usize)> {
        let (whole, others) = export::whole(&self.data());
        assert!(others.is_empty(), "{others:?}");
        let both = whole.iter().map(|(_, header, stored)| {
            assert_eq!(header.models, stored.models.len() as u64);
            (header.revision, stored.models.len())
        });
        both.collect()
    }

    async fn until(&self, what: impl Fn(&Self) -> bool) {
        let began = Instant::now();
        while !what(self) {
            assert!(began.elapsed() < PATIENCE, "{:?}", self.exported());
            sleep(Duration::from_millis(10)).await;
        }
    }

    async fn end(mut self) {
        self.stop.cancel();
        while let Some(ended) = self.exporting.join_next().await {
            ended.unwrap();
        }
        assert_eq!(Arc::strong_count(&self.lock), 1, "the directory is free");
    }
}

/// On the real clock: on a paused one each wait for the writer's thread would be as long as a pause.
#[tokio::test]
async fn writes_that_follow_one_another_are_exported_together() {
    let bench = Bench::start();
    bench.until(|bench| bench.exported() == [(1, 0)]).await;
    let began = Instant::now();
    let mut seen = BTreeSet::new();
    for n in 0..100 {
        bench.create(&format!("m{n}")).await;
        seen.insert(bench.metrics.export_revision.get());
    }
    // Twice a second at most.
    let most = began.elapsed().as_millis() / 500 + 2;
    assert!(seen.len() as u128 <= most, "{seen:?}");
    bench.until(|bench| bench.exported()[0] == (101, 100)).await;
    bench
        .until(|bench| bench.metrics.export_revision.get() == 101)
        .await;
    assert_eq!(bench.metrics.export_failures.get(), 0);
    // Without a write nothing is exported: the one before stays what it is.
    let kept = bench.exported();
    sleep(2 * PAUSE).await;
    assert_eq!(bench.exported(), kept);
    bench.end().await;
}

#[tokio::test(start_paused = true)]
async fn an_export_that_fails_is_told_of_and_made_again() {
    let bench = Bench::start();
    bench.until(|bench| bench.exported() == [(1, 0)]).await;
    let away = bench.dir.path().join("away");
    fs::rename(bench.data(), &away).unwrap();
    bench.create("m").await;
    bench
        .until(|bench| bench.metrics.export_failures.get() > 1)
        .await;
    let said = bench.status.to_string();
    assert!(said.contains("the automatic export failed"), "{said}");
    assert_eq!(bench.metrics.export_revision.get(), 1);
    fs::rename(&away, bench.data()).unwrap();
    bench
        .until(|bench| bench.exported() == [(2, 1), (1, 0)])
        .await;
    bench
        .until(|bench| bench.status.to_string().is_empty())
        .await;
    bench.end().await;
}

/// On the real clock: on a paused one the pause would be over before the writer's thread has answered.
#[tokio::test]
async fn a_good_end_exports_the_last_write_after_the_writer_is_gone() {
    let mut bench = Bench::start();
    bench.until(|bench| bench.exported() == [(1, 0)]).await;
    bench.create("last").await;
    let data = bench.data();
    let watched = bench.registry.watch();
    // The last handle goes, and the writer with it.
    let metrics = bench.metrics.clone();
    bench.registry = registry::start(MemoryStore::fresh(), metrics, Vault::throwaway())
        .unwrap()
        .0;
    bench.stop.cancel();
    while let Some(ended) = bench.exporting.join_next().await {
        ended.unwrap();
    }
    assert_eq!(watched.borrow().position.revision, Revision::new(2));
    let newest = export::whole(&data).0.remove(0).1;
    assert_eq!((newest.revision, newest.models), (2, 1));
    bench.end().await;
}
