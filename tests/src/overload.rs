//! More requests than a model can serve: tenants that come at rates of their own, whatever became of the requests
//! before (open loop), and what becomes of each request.

use std::{collections::BTreeMap, time::Duration};

use serde_json::Value;
use tokio::{
    task::JoinSet,
    time::{Instant, sleep, sleep_until},
};

use crate::{Chat, Client};

/// The header that names the tenant.
const TENANT: &str = "x-tenant";
/// As often as the official SDKs come again.
const RETRIES: u32 = 2;
/// Who comes later than this stood still; what he missed then is not made up for, which would be another load.
const LATE: Duration = Duration::from_millis(100);

/// Requests of one tenant.
#[derive(Debug, Clone)]
pub struct Tenant {
    /// Its name; all of one name are one tenant.
    pub name: String,
    /// Requests a second.
    pub rate: f64,
    /// Mean tokens of an answer; drawn from an exponential distribution.
    pub tokens: f64,
    /// Comes again after a refusal, when it is told to.
    pub obeys: bool,
}

/// What became of requests.
#[derive(Debug, Clone, Default)]
pub struct Offered {
    /// Requests made, repeated ones not counted.
    pub requests: u64,
    /// Times from a request's beginning to its answer's end.
    pub latencies: Vec<Duration>,
    /// Refusals by status and code, and how often; those that were followed by another try, too.
    pub refused: BTreeMap<String, u64>,
    /// Anything else: no answer, or one that is no answer.
    pub broken: u64,
    /// Refusals without a word when to come again.
    pub untold: u64,
}

impl Offered {
    fn add(&mut self, other: Self) {
        self.requests += other.requests;
        self.latencies.extend(other.latencies);
        for (code, n) in other.refused {
            *self.refused.entry(code).or_default() += n;
        }
        self.broken += other.broken;
        self.untold += other.untold;
    }

    /// The time within which so many of a hundred were served; nothing if none was.
    #[must_use]
    pub fn percentile(&self, percent: usize) -> Duration {
        let mut sorted = self.latencies.clone();
        sorted.sort_unstable();
        let at = (sorted.len() * percent / 100).min(sorted.len().saturating_sub(1));
        sorted.get(at).copied().unwrap_or_default()
    }
}

/// Lets these tenants come for so long, and waits for the last answer. The same seed is the same requests.
pub async fn offer(
    client: &Client,
    model: &str,
    tenants: &[Tenant],
    length: Duration,
    seed: u64,
) -> BTreeMap<String, Offered> {
    let mut all = JoinSet::new();
    for (n, tenant) in tenants.iter().enumerate() {
        let (client, model, tenant) = (client.clone(), model.to_owned(), tenant.clone());
        let dice = fastrand::Rng::with_seed(seed ^ (n as u64 + 1));
        all.spawn(async move {
            let seen = come(client, model, &tenant, length, dice).await;
            (tenant.name, seen)
        });
    }
    let mut by_name = BTreeMap::<String, Offered>::new();
    while let Some(ended) = all.join_next().await {
        let (name, seen) = ended.expect("a tenant ends well");
        by_name.entry(name).or_default().add(seen);
    }
    by_name
}

async fn come(
    client: Client,
    model: String,
    tenant: &Tenant,
    length: Duration,
    mut dice: fastrand::Rng,
) -> Offered {
    let mut began = Instant::now();
    let (mut at, mut seen, mut requests) = (0.0, Offered::default(), JoinSet::new());
    loop {
        at += -(1.0 - dice.f64()).ln() / tenant.rate;
        let drawn = (-(1.0 - dice.f64()).ln() * tenant.tokens).ceil();
        let tokens = drawn.clamp(1.0, tenant.tokens * 8.0) as u32;
        let at = Duration::from_secs_f64(at);
        if at >= length {
            break;
        }
        sleep_until(began + at).await;
        let late = (began + at).elapsed();
        if late > LATE {
            began += late;
        }
        let (client, model, tenant) = (client.clone(), model.clone(), tenant.clone());
        requests.spawn(async move { ask(&client, &model, &tenant, tokens).await });
        while let Some(ended) = requests.try_join_next() {
            seen.add(ended.expect("a request ends well"));
        }
    }
    while let Some(ended) = requests.join_next().await {
        seen.add(ended.expect("a request ends well"));
    }
    seen
}

async fn ask(client: &Client, model: &str, tenant: &Tenant, tokens: u32) -> Offered {
    let began = Instant::now();
    let mut seen = Offered {
        requests: 1,
        ..Offered::default()
    };
    for attempt in 0..=RETRIES {
        let chat = client.chat(model, Chat::Whole, tokens);
        let Ok(answer) = chat.header(TENANT, &tenant.name).send().await else {
            seen.broken += 1;
            return seen;
        };
        let status = answer.status().as_u16();
        let millis = answer.headers().get("retry-after-ms").cloned();
        let millis = millis.and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
        let Ok(body) = answer.json::<Value>().await else {
            seen.broken += 1;
            return seen;
        };
        if status == 200 {
            seen.latencies.push(began.elapsed());
            return seen;
        }
        let code = body.pointer("/error/code").and_then(Value::as_str);
        let code = format!("{status} {}", code.unwrap_or("?"));
        *seen.refused.entry(code).or_default() += 1;
        match millis {
            Some(millis) if tenant.obeys && attempt < RETRIES => {
                sleep(Duration::from_millis(millis)).await;
            }
            Some(_) => return seen,
            None => {
                seen.untold += 1;
                return seen;
            }
        }
    }
    seen
}
