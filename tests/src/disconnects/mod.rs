//! Clients that leave, in every way and at every moment, and an upstream that notes when it hears of it.

mod client;
mod upstream;

use std::{collections::BTreeMap, time::Duration};

use fastrand::Rng;
use forebay_proto::wire;
use futures_util::future::join_all;
use tokio::{
    runtime::Handle,
    time::{Instant, sleep, timeout},
};

use self::{client::Leaver, upstream::Upstream};
use crate::{Cluster, WorkerHandle, eventually, eventually_within, model_at};

/// Longest time for a step that comes before the client leaves, and for the upstream to hear of it.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often it is looked whether a line is empty.
const LOOK_EVERY: Duration = Duration::from_millis(2);

/// When a client leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Moment {
    /// While it waits for a connection.
    Queued,
    /// Before the first byte of a stream.
    BeforeFirstByte,
    /// In a stream.
    MidStream,
    /// While a whole answer is made.
    Whole,
}

/// How it leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Way {
    /// With a FIN.
    Fin,
    /// With a RST.
    Rst,
    /// With a FIN behind a byte that nobody reads.
    FinAfterByte,
    /// HTTP/2: it resets its stream.
    ResetStream,
    /// HTTP/2: it drops the connection.
    DropConnection,
}

/// One of them.
pub type Variant = (Moment, Way);

/// All of them.
#[must_use]
pub fn variants() -> Vec<Variant> {
    use Moment::{BeforeFirstByte, MidStream, Queued, Whole};
    use Way::{DropConnection, Fin, FinAfterByte, ResetStream, Rst};
    let ways = [Fin, Rst, FinAfterByte, ResetStream, DropConnection];
    let moments = [Queued, BeforeFirstByte, MidStream, Whole];
    let all = moments
        .iter()
        .flat_map(|moment| ways.map(|way| (*moment, way)));
    all.collect()
}

/// A run.
#[derive(Debug, Clone, Copy)]
pub struct Disconnects {
    /// How many clients leave.
    pub rounds: usize,
    /// How many at a time.
    pub lanes: usize,
    /// Decides who leaves when and how.
    pub seed: u64,
}

/// What was seen.
#[derive(Debug, Default)]
pub struct Departures {
    /// From a client's leaving to the upstream's hearing of it (of those that waited in line: to the line's being
    /// empty), sorted.
    pub delays: BTreeMap<Variant, Vec<Duration>>,
    /// Rounds in which something else happened.
    pub failures: Vec<String>,
    /// Requests that went upstream although their client had left the line.
    pub strays: u64,
    /// Requests that the worker counted as 499.
    pub counted: u64,
    /// Streams that it counted as left by their client, and the events counted in them.
    pub streams_left: u64,
    /// See `streams_left`.
    pub events: u64,
    /// Tasks that are left over.
    pub leaked_tasks: usize,
    /// Slots and connections that are left over.
    pub leaked_slots: u64,
    /// See `leaked_slots`.
    pub leaked_connections: u64,
    /// How long it took.
    pub took: Duration,
}

impl Departures {
    /// All delays, sorted.
    #[must_use]
    pub fn all(&self) -> Vec<Duration> {
        let mut all: Vec<_> = self.delays.values().flatten().copied().collect();
        all.sort_unstable();
        all
    }

    fn add(&mut self, variant: Variant, round: Result<Duration, String>) {
        match round {
            Ok(delay) => self.delays.entry(variant).or_default().push(delay),
            Err(failure) => self.failures.push(format!("{variant:?}: {failure}")),
        }
    }
}

/// What a share of sorted delays does not exceed.
#[must_use]
pub fn quantile(sorted: &[Duration], share: f64) -> Duration {
    let at = (sorted.len() as f64 * share).ceil() as usize;
    let at = at.clamp(1, sorted.len().max(1)) - 1;
    sorted.get(at).copied().unwrap_or_default()
}

impl Disconnects {
    /// Runs them. The models are this run's own.
    pub async fn run(self, cluster: &Cluster, worker: &WorkerHandle) -> Departures {
        let upstream = Upstream::start().await;
        for lane in 0..self.lanes {
            for (name, size) in [("line", 1), ("open", 4)] {
                let model = model(&format!("{name}-{lane}"), &upstream.url(), size);
                cluster.create_and_wait(model).await;
            }
        }
        let tasks_before = quiet_tasks().await;
        let began = Instant::now();
        let lanes = (0..self.lanes).map(|lane| self.lane(lane, worker, &upstream));
        let mut seen = Departures::default();
        for lane in join_all(lanes).await {
            for (variant, round) in lane {
                seen.add(variant, round);
            }
        }
        seen.took = began.elapsed();
        seen.delays.values_mut().for_each(|all| all.sort_unstable());
        self.take_stock(&mut seen, worker, &upstream, tasks_before)
            .await;
        seen
    }

    async fn lane(
        self,
        lane: usize,
        worker: &WorkerHandle,
        upstream: &Upstream,
    ) -> Vec<(Variant, Result<Duration, String>)> {
        let mut random = Rng::with_seed(self.seed ^ lane as u64);
        let mut holder = Leaver::new(worker.gateway(), upstream, &format!("line-{lane}"));
        let mut rounds = Vec::new();
        let held = holder
            .ask(Moment::MidStream, Way::Fin, &format!("holder-{lane}"))
            .await;
        if let Err(failure) = held {
            rounds.push(((Moment::Queued, Way::Fin), Err(failure)));
            return rounds;
        }
        let mut all = variants();
        for round in (lane..self.rounds).step_by(self.lanes) {
            // All of them, in an order of their own each time.
            let at = (round / self.lanes) % all.len();
            if at == 0 {
                random.shuffle(&mut all);
            }
            let Some(variant) = all.get(at).copied() else {
                continue;
            };
            let (moment, way) = variant;
            let name = format!("r{lane}-{round}");
            let gone = match moment {
                Moment::Queued => leave_line(worker, upstream, lane, way, &name).await,
                _ => {
                    let model = format!("open-{lane}");
                    let mut leaver = Leaver::new(worker.gateway(), upstream, &model);
                    match leaver.ask(moment, way, &name).await {
                        Ok(()) => leaver.leave(way).await,
                        Err(failure) => Err(failure),
                    }
                }
            };
            rounds.push((variant, gone));
        }
        drop(holder.leave(Way::Rst).await);
        rounds
    }

    async fn take_stock(
        self,
        seen: &mut Departures,
        worker: &WorkerHandle,
        upstream: &Upstream,
        tasks_before: usize,
    ) {
        let left = seen.all().len() as u64 + self.lanes as u64;
        // The last ones are counted when their tasks have ended.
        let _ = timeout(
            PATIENCE,
            eventually_within(2 * PATIENCE, "all are counted", async || {
                let page = worker.metrics().await;
                let gone = page.sum("forebay_requests_total", &["code=\"499\""]);
                (gone >= left as f64).then_some(())
            }),
        )
        .await;
        let page = worker.metrics().await;
        seen.counted = page.sum("forebay_requests_total", &["code=\"499\""]) as u64;
        let gone = ["end=\"client_gone\""];
        seen.streams_left = page.sum("forebay_streams_total", &gone) as u64;
        seen.events = page.sum("forebay_tokens_total", &["kind=\"counted\""]) as u64;
        seen.strays = upstream.strays();
        // What rests is closed, too, and tasks end after what they served: what leaks is there for ever.
        let _ = timeout(
            PATIENCE,
            eventually_within(2 * PATIENCE, "nothing is left over", async || {
                left_over(seen, worker, upstream, tasks_before).await;
                let left = seen.leaked_slots + seen.leaked_connections + seen.leaked_tasks as u64;
                (left == 0).then_some(())
            }),
        )
        .await;
    }
}

async fn left_over(
    seen: &mut Departures,
    worker: &WorkerHandle,
    upstream: &Upstream,
    tasks_before: usize,
) {
    let page = worker.metrics().await;
    let slots = page.sum("forebay_pool_in_flight", &[]) + page.sum("forebay_pool_waiting", &[]);
    seen.leaked_slots = slots as u64;
    // What is kept warm is nobody's leak: it rests on both sides, with a task on each.
    let all = page.sum("forebay_pool_connections", &[]) as u64;
    let resting = page.sum("forebay_pool_connections", &["idle"]) as u64;
    seen.leaked_connections = all.abs_diff(resting) + upstream.open().abs_diff(resting);
    let tasks = quiet_tasks().await.saturating_sub(2 * resting as usize);
    seen.leaked_tasks = tasks.saturating_sub(tasks_before);
}

/// Tasks of this process, once their number rests.
async fn quiet_tasks() -> usize {
    let alive = || Handle::current().metrics().num_alive_tasks();
    eventually("the number of tasks rests", async || {
        let before = alive();
        sleep(Duration::from_millis(300)).await;
        (alive() == before).then_some(before)
    })
    .await
}

async fn leave_line(
    worker: &WorkerHandle,
    upstream: &Upstream,
    lane: usize,
    way: Way,
    name: &str,
) -> Result<Duration, String> {
    let model = format!("line-{lane}");
    let waiting = async |wanted: u64| loop {
        let pools = worker.document("/pools").await;
        let pools = pools.get("pools").and_then(|pools| pools.as_array());
        let pool = pools.and_then(|all| all.iter().find(|pool| pool["model"] == model.as_str()));
        if pool.and_then(|pool| pool["waiting"].as_u64()) == Some(wanted) {
            return;
        }
        sleep(LOOK_EVERY).await;
    };
    let mut leaver = Leaver::new(worker.gateway(), upstream, &model);
    leaver.ask(Moment::Queued, way, name).await?;
    timeout(PATIENCE, waiting(1))
        .await
        .map_err(|_| "it does not wait".to_owned())?;
    let left = leaver.go(way).await;
    let empty = timeout(PATIENCE, waiting(0)).await;
    empty.map_err(|_| "the line is not empty".to_owned())?;
    Ok(left.elapsed())
}

fn model(id: &str, url: &str, size: u32) -> wire::Model {
    let soon = prost_types::Duration {
        seconds: 0,
        nanos: 200_000_000,
    };
    wire::Model {
        pool: Some(wire::Pool {
            max_concurrent: Some(size),
            warm: Some(0),
            idle_timeout: Some(soon),
            ..wire::Pool::default()
        }),
        ..model_at(id, url)
    }
}
