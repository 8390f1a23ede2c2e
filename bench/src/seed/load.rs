//! The load: waves, clients in a closed loop, random arrivals. It counts what it sent and how long the
//! answers took; connections are counted by the upstreams, not here.
//!
//! A latency begins when the request was due, so that a late start is not hidden.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::{
    task::JoinSet,
    time::{Instant, sleep, sleep_until},
};

use super::{
    plan::{Plan, Shape},
    pool::{Limits, Pool, PostError, Surplus},
    stats::Latencies,
    upstreams::Upstreams,
};

/// Pause between waves, shorter than anybody's idle limit.
pub(crate) const PAUSE: Duration = Duration::from_millis(500);
/// Most requests on their way at once, in sizes of the pool; arrivals wait then, and their latency tells.
const MOST_ON_THEIR_WAY: usize = 20;
/// Most kinds of failures told apart.
const MOST_KINDS: usize = 20;

/// Where requests go: one request per model, to one of the pool's origins.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    pool: Arc<Pool>,
    asks: Arc<[(usize, Bytes)]>,
}

impl Target {
    /// The document's pool, straight in front of the upstreams.
    pub(crate) fn pool(plan: &Plan, upstreams: &Upstreams, limits: Limits) -> Self {
        let origins = upstreams.addrs();
        let asks = (0..plan.models).map(|n| (n, body(&plan.model(n))));
        Self {
            pool: Arc::new(Pool::new(&origins, plan.max_concurrent, limits)),
            asks: asks.collect(),
        }
    }

    /// Clients of a gateway, who keep all their connections to it.
    pub(crate) fn gateway(plan: &Plan, gateway: SocketAddr) -> Self {
        let most = MOST_ON_THEIR_WAY * plan.size();
        let limits = Limits {
            keepalive: most,
            surplus: Surplus::Idle,
            expiry: None,
        };
        let asks = (0..plan.models).map(|n| (0, body(&plan.model(n))));
        Self {
            pool: Arc::new(Pool::new(&[gateway], most, limits)),
            asks: asks.collect(),
        }
    }

    /// One request; the models take turns.
    pub(crate) async fn ask(&self, n: usize) -> Result<(), PostError> {
        let ask = self.asks.get(n % self.asks.len().max(1));
        let (origin, body) = ask.ok_or(PostError::Closed)?;
        self.pool.post(*origin, body.clone()).await
    }

    pub(crate) async fn close(&self) {
        self.pool.close().await;
    }
}

fn body(model: &str) -> Bytes {
    let body = serde_json::json!({
        "model": model,
        "messages": [{"role": "user", "content": "What is a forebay?"}],
    });
    Bytes::from(body.to_string())
}

/// What was seen.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    pub(crate) latencies: Latencies,
    /// What failed, warm-up included.
    pub(crate) failures: BTreeMap<String, usize>,
    /// Connections opened before counting began.
    pub(crate) opened_in_warm_up: u64,
    /// How long was counted.
    pub(crate) counted: Duration,
    /// Most requests on their way at once after the warm-up.
    pub(crate) most_in_flight: usize,
    /// Most connections that were idle at once while the load lasted.
    pub(crate) most_idle: usize,
}

/// One shape of load on one target.
#[derive(Debug)]
pub(crate) struct Load {
    target: Target,
    latencies: Mutex<Latencies>,
    failures: Mutex<BTreeMap<String, usize>>,
    in_flight: AtomicUsize,
    most_in_flight: AtomicUsize,
    most_idle: AtomicUsize,
}

impl Load {
    pub(crate) fn new(target: Target, latencies: Latencies) -> Arc<Self> {
        Arc::new(Self {
            target,
            latencies: Mutex::new(latencies),
            failures: Mutex::default(),
            in_flight: AtomicUsize::new(0),
            most_in_flight: AtomicUsize::new(0),
            most_idle: AtomicUsize::new(0),
        })
    }

    /// Offers the load until it is over and everything is answered.
    pub(crate) async fn run(
        self: &Arc<Self>,
        shape: Shape,
        plan: &Plan,
        upstreams: &Upstreams,
    ) -> Seen {
        let (opened_in_warm_up, counted) = match shape {
            Shape::Waves => self.waves(plan, upstreams).await,
            Shape::Closed => self.closed(plan, upstreams).await,
            Shape::Poisson => self.poisson(plan, plan.busy_rate(), upstreams).await,
            Shape::Document => self.poisson(plan, plan.documents_rate(), upstreams).await,
        };
        Seen {
            latencies: self.latencies.lock().clone(),
            failures: self.failures.lock().clone(),
            opened_in_warm_up,
            counted,
            most_in_flight: self.most_in_flight.load(Ordering::Relaxed),
            most_idle: self.most_idle.load(Ordering::Relaxed),
        }
    }

    /// The first wave is the warm-up.
    async fn waves(self: &Arc<Self>, plan: &Plan, upstreams: &Upstreams) -> (u64, Duration) {
        let mut opened = 0;
        let mut began = Instant::now();
        for wave in 0..plan.waves {
            let due = Instant::now();
            let mut tasks = JoinSet::new();
            for n in 0..plan.size() {
                let load = self.clone();
                tasks.spawn(async move { load.one(n, due, wave > 0).await });
            }
            while tasks.join_next().await.is_some() {}
            sleep(PAUSE).await;
            if wave == 0 {
                opened = upstreams.opened();
                began = Instant::now();
            }
        }
        self.load_ends();
        (opened, began.elapsed())
    }

    /// Clients begin one after the other, so that they do not march in step, but all of them before the
    /// first has its answer, so that each needs a connection of its own from the beginning.
    async fn closed(self: &Arc<Self>, plan: &Plan, upstreams: &Upstreams) -> (u64, Duration) {
        let began = Instant::now();
        let count_from = began + plan.warm_up();
        let end = count_from + plan.time;
        let size = plan.size();
        let step = plan.service_time / 2 / u32::try_from(size).unwrap_or(u32::MAX).max(1);
        let mut clients = JoinSet::new();
        for n in 0..size {
            let load = self.clone();
            clients.spawn(async move {
                sleep(step * u32::try_from(n).unwrap_or_default()).await;
                while Instant::now() < end {
                    let due = Instant::now();
                    load.one(n, due, due >= count_from).await;
                }
            });
        }
        sleep_until(count_from).await;
        let opened = upstreams.opened();
        sleep_until(end).await;
        self.load_ends();
        while clients.join_next().await.is_some() {}
        (opened, count_from.elapsed())
    }

    async fn poisson(
        self: &Arc<Self>,
        plan: &Plan,
        rate: f64,
        upstreams: &Upstreams,
    ) -> (u64, Duration) {
        let mut random = fastrand::Rng::with_seed(plan.seed);
        let mut due = Instant::now();
        let count_from = due + plan.warm_up();
        let end = count_from + plan.time;
        let mut opened = None;
        let mut tasks = JoinSet::new();
        loop {
            due += gap(&mut random, rate);
            let n = random.usize(..plan.models);
            if due >= count_from && opened.is_none() {
                sleep_until(count_from).await;
                opened = Some(upstreams.opened());
            }
            if due >= end {
                break;
            }
            sleep_until(due).await;
            while tasks.try_join_next().is_some() {}
            if tasks.len() >= MOST_ON_THEIR_WAY * plan.size() {
                tasks.join_next().await;
            }
            let (load, counted) = (self.clone(), due >= count_from);
            tasks.spawn(async move { load.one(n, due, counted).await });
        }
        self.load_ends();
        while tasks.join_next().await.is_some() {}
        (opened.unwrap_or_default(), count_from.elapsed())
    }

    /// What becomes idle from now on says nothing about the load.
    fn load_ends(&self) {
        let most = self.target.pool.most_idle();
        self.most_idle.store(most, Ordering::Relaxed);
    }

    async fn one(&self, n: usize, due: Instant, counted: bool) {
        let now = 1 + self.in_flight.fetch_add(1, Ordering::Relaxed);
        if counted {
            self.most_in_flight.fetch_max(now, Ordering::Relaxed);
        }
        let answered = self.target.ask(n).await;
        let latency = due.elapsed();
        self.in_flight.fetch_sub(1, Ordering::Relaxed);
        match answered {
            Ok(()) if counted => self.latencies.lock().record(latency),
            Ok(()) => {}
            Err(error) => {
                let mut failures = self.failures.lock();
                let mut kind = error.to_string();
                if failures.len() >= MOST_KINDS && !failures.contains_key(&kind) {
                    kind = "others".to_owned();
                }
                *failures.entry(kind).or_default() += 1;
            }
        }
    }
}

/// Time to the next arrival.
fn gap(random: &mut fastrand::Rng, rate: f64) -> Duration {
    // 1 − u is never 0.
    Duration::from_secs_f64(-(1.0 - random.f64()).ln() / rate)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gaps_have_the_rate_that_was_asked_for_and_repeat_with_their_seed() {
        let gaps = |seed| {
            let mut random = fastrand::Rng::with_seed(seed);
            (0..20_000)
                .map(|_| gap(&mut random, 500.0))
                .collect::<Vec<_>>()
        };
        let first = gaps(1);
        let mean = first.iter().sum::<Duration>().as_secs_f64() / 20_000.0;
        assert!((mean - 0.002).abs() < 0.000_1, "{mean}");
        let longer = first.iter().filter(|gap| gap.as_secs_f64() > 0.002).count();
        // e⁻¹ of them are longer than the mean.
        assert!((7_000..7_700).contains(&longer), "{longer}");
        assert_eq!(first, gaps(1));
        assert_ne!(first, gaps(2));
    }
}
