//! Bursts whose gaps sweep an upstream's idle limit from below to above it: where a gateway that keeps a
//! connection too long loses requests.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use forebay_mock::{MockConfig, MockServer};
use forebay_proto::wire;
use parking_lot::Mutex;
use tokio::{task::JoinSet, time::sleep};

use crate::{Chat, Client, Cluster, Ended, WorkerHandle, model_at};

/// Failures that are kept as text.
const KEPT: usize = 10;
/// Connections of each pool.
const SIZE: u32 = 10;
/// Gaps, as parts of the idle limit.
const GAPS: std::ops::Range<f64> = 0.5..1.5;

/// One upstream, and how it is asked.
#[derive(Debug, Clone, Copy)]
pub struct IdleSweep {
    /// Its idle limit.
    pub limit: Duration,
    /// Models, each with a pool and gaps of its own.
    pub models: usize,
    /// Requests of a burst.
    pub burst: usize,
    /// Requests in all, at least.
    pub requests: u64,
}

/// What came of it.
#[derive(Debug)]
pub struct Swept {
    /// Requests made.
    pub requests: u64,
    /// Those that did not end well.
    pub failed: u64,
    /// Some of them.
    pub failures: Vec<String>,
    /// Requests that the upstream ran.
    pub executed: u64,
    /// Connections that the upstream closed because they were idle.
    pub closed_idle: u64,
    /// Connections that were opened.
    pub opened: u64,
}

impl IdleSweep {
    /// Registers the models, sends all bursts, and counts at both ends.
    pub async fn run(self, cluster: &Cluster, worker: &WorkerHandle) -> Swept {
        let names: Vec<String> = (0..self.models)
            .map(|n| format!("m{}-{n}", self.limit.as_millis()))
            .collect();
        let mock = MockServer::start(MockConfig {
            models: names.clone(),
            keep_alive: Some(self.limit),
            ..MockConfig::default()
        })
        .await
        .expect("an upstream");
        for name in &names {
            let model = wire::Model {
                pool: Some(wire::Pool {
                    max_concurrent: Some(SIZE),
                    queue: Some(wire::Queue {
                        max_waiting: Some(10_000),
                        ..wire::Queue::default()
                    }),
                    ..wire::Pool::default()
                }),
                ..model_at(name, &mock.url())
            };
            cluster.create_and_wait(model).await;
        }
        let counts = Arc::<Counts>::default();
        // One for all, so that its idle connections are few.
        let client = worker.client();
        let mut crowd = JoinSet::new();
        for name in names {
            crowd.spawn(self.ask(client.clone(), name, counts.clone()));
        }
        while let Some(ended) = crowd.join_next().await {
            ended.expect("an asking task");
        }
        let stats = mock.stats();
        Swept {
            requests: counts.requests.load(Ordering::Relaxed),
            failed: counts.failed.load(Ordering::Relaxed),
            failures: counts.failures.lock().clone(),
            executed: stats.completed,
            closed_idle: stats.closed_idle,
            opened: stats.opened,
        }
    }

    async fn ask(self, client: Client, model: String, counts: Arc<Counts>) {
        while counts.requests.load(Ordering::Relaxed) < self.requests {
            let part = GAPS.start + fastrand::f64() * (GAPS.end - GAPS.start);
            sleep(self.limit.mul_f64(part)).await;
            let mut burst = JoinSet::new();
            for _ in 0..self.burst {
                let (client, model) = (client.clone(), model.clone());
                burst.spawn(async move { client.finish(&model, Chat::Whole, 0).await });
            }
            while let Some(ended) = burst.join_next().await {
                counts.requests.fetch_add(1, Ordering::Relaxed);
                match ended.expect("a request") {
                    Ended::Well => {}
                    other => counts.failure(format!("{other:?}")),
                }
            }
        }
    }
}

#[derive(Debug, Default)]
struct Counts {
    requests: AtomicU64,
    failed: AtomicU64,
    failures: Mutex<Vec<String>>,
}

impl Counts {
    fn failure(&self, text: String) {
        self.failed.fetch_add(1, Ordering::Relaxed);
        let mut kept = self.failures.lock();
        if kept.len() < KEPT {
            kept.push(text);
        }
    }
}
