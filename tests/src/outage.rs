//! All endpoints of a model fail for a while and return, under a steady load that does not wait for answers: how
//! often upstreams were asked meanwhile, what came upon them when they returned, and when all was well again.

use std::{ops::Range, time::Duration};

use forebay_mock::{Faults, MockServer, MockStats};
use tokio::{
    task::JoinSet,
    time::{Instant, MissedTickBehavior, interval, sleep_until},
};

use crate::WorkerHandle;

/// What fails, for how long, under which load.
#[derive(Debug, Clone)]
pub struct Outage {
    /// The model that is asked for.
    pub model: String,
    /// Requests a second.
    pub rate: u32,
    /// How long it lasts.
    pub lasts: Duration,
    /// What the endpoints do meanwhile.
    pub fault: Faults,
}

/// What was seen.
#[derive(Debug, Clone)]
pub struct Weathered {
    /// Requests that clients made during the outage.
    pub requests: u64,
    /// What upstreams got of them meanwhile: requests, or connections where none could be made.
    pub attempts: u64,
    /// Requests that upstreams got in the first second after it.
    pub first_second: u64,
    /// Requests that clients began in that second.
    pub begun: u64,
    /// Time from the return to the beginning of the last request that failed.
    pub recovered: Duration,
    /// Requests that failed after the return.
    pub failed_after: u64,
}

impl Weathered {
    /// True if it was as it must be (R30 of the reliability card): no more than 1.2 attempts a request, at most
    /// twice the steady load at the return, and well again within five seconds.
    #[must_use]
    pub fn is_good(&self, rate: u32) -> bool {
        self.attempts * 10 <= self.requests * 12
            && self.first_second <= self.begun.max(u64::from(rate)) * 2
            && self.recovered <= Duration::from_secs(5)
    }
}

impl Outage {
    /// Load before it, through it, and for ten seconds after it.
    pub async fn run(&self, worker: &WorkerHandle, upstreams: &[MockServer]) -> Weathered {
        const BEFORE: Duration = Duration::from_secs(1);
        const AFTER: Duration = Duration::from_secs(10);
        let began = Instant::now();
        let (breaks, returns) = (began + BEFORE, began + BEFORE + self.lasts);
        let mut requests = JoinSet::new();
        let client = worker.client();
        let load = async {
            let mut ticks = interval(Duration::from_secs(1) / self.rate);
            // What a machine that stood still missed is not made up for: that would be a stampede of our own.
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            while Instant::now() < returns + AFTER {
                ticks.tick().await;
                let at = Instant::now();
                let (client, model) = (client.clone(), self.model.clone());
                requests.spawn(async move {
                    let status = client.status(&model).await;
                    (at, status.is_some_and(|status| status.is_success()))
                });
            }
        };
        let sum = |of: fn(&MockStats) -> u64| -> u64 {
            upstreams.iter().map(|upstream| of(&upstream.stats())).sum()
        };
        let (count, opened) = (|| sum(|seen| seen.requests), || sum(|seen| seen.opened));
        let set = |faults: &Faults| {
            upstreams
                .iter()
                .for_each(|up| up.set_faults(faults.clone()))
        };
        let weather = async {
            sleep_until(breaks).await;
            let broke = Instant::now();
            set(&self.fault);
            let (requests_before, opened_before) = (count(), opened());
            sleep_until(returns).await;
            let attempts = match self.fault.refuse {
                true => (count() - requests_before).max(opened() - opened_before),
                false => count() - requests_before,
            };
            // When it was, not when it should have been.
            let returned = Instant::now();
            set(&Faults::default());
            let at_return = count();
            sleep_until(returned + Duration::from_secs(1)).await;
            let first = returned..Instant::now();
            (broke..returned, attempts, first, count() - at_return)
        };
        let ((), (broken, attempts, first, first_second)) = tokio::join!(load, weather);
        let ended = requests.join_all().await;
        let within = |span: &Range<Instant>| {
            let begun = ended.iter().filter(|(at, _)| span.contains(at));
            begun.count() as u64
        };
        let failed = ended.iter().filter(|(at, ok)| *at >= broken.end && !ok);
        let last = failed.clone().map(|(at, _)| *at - broken.end).max();
        Weathered {
            requests: within(&broken),
            attempts,
            first_second,
            begun: within(&first),
            recovered: last.unwrap_or_default(),
            failed_after: failed.count() as u64,
        }
    }
}
