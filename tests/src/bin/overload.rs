//! Three times more requests than a model can serve, and one tenant at a hundred times its share: what is still
//! served, how fast, and what the worker's memory does. The worker and the control plane are processes of their own:
//! `overload PATH-OF-FOREBAY [SECONDS [overload|tenants]]`. Ends with 1 if a goal was missed.

#![expect(
    clippy::print_stdout,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a program for the terminal; scenery that cannot be set up ends it"
)]

use std::{collections::BTreeMap, net::SocketAddr, process::ExitCode, time::Duration};

use forebay_mock::{MockConfig, MockServer};
use forebay_proto::wire;
use forebay_tests::{Client, Offered, Process, Tenant, eventually, model_at, offer};
use tokio::time::sleep;
use wire::model_registry_client::ModelRegistryClient;

/// Three times as much as it serves.
const MODEL: &str = "m";
/// That of the tenants: so slow that a hundred times a share is no load for the machine.
const SHARED: &str = "shared";
const SHARED_SLOTS: u32 = 8;
/// Mean tokens there: 1.6 s.
const LONG: f64 = 160.0;
/// Share of the others' requests that may be refused because of the flood.
const MOST_REFUSED: f64 = 0.05;
const SLOTS: u32 = 16;
const MAX_WAITING: u32 = SLOTS * 2;
const MAX_WAIT: Duration = Duration::from_secs(2);
const INTERVAL: Duration = Duration::from_millis(10);
/// Mean tokens: 400 ms.
const TOKENS: f64 = 40.0;
/// What the slots serve a second at the most.
const CAPACITY: f64 = SLOTS as f64 / (TOKENS * 0.01);

struct Scene {
    _control: Process,
    worker: Process,
    client: Client,
    _mock: MockServer,
    _dir: tempfile::TempDir,
}

impl Scene {
    async fn set(forebay: &str) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let path = |name: &str| dir.path().join(name).display().to_string();
        let any = "127.0.0.1:0";
        let control = ["control", "--control-listen", any, "--data-dir", &path("c")];
        let mut control = Process::start(forebay, &control, &[]);
        let rest = control.printed("Forebay control plane on ").await;
        let url = format!("http://{}", rest.split(": ").next().unwrap_or_default());
        let worker = [
            "worker",
            "--worker-id",
            "w",
            "--control",
            &url,
            "--listen",
            any,
            "--admin-listen",
            any,
            "--data-dir",
            &path("w"),
        ];
        let mut worker = Process::start(forebay, &worker, &[]);
        let gateway = worker.printed("gateway   http://").await;
        let end = gateway.find(['/', ' ']).unwrap_or(gateway.len());
        let gateway: SocketAddr = gateway[..end].parse().expect("an address");
        let mock = MockServer::start(MockConfig {
            models: vec![MODEL.to_owned(), SHARED.to_owned()],
            interval: INTERVAL,
            ..MockConfig::default()
        });
        let mock = mock.await.expect("an upstream");
        register(&url, MODEL, SLOTS, &mock.url()).await;
        register(&url, SHARED, SHARED_SLOTS, &mock.url()).await;
        let client = Client::new(gateway);
        eventually("the model is served", async || {
            let status = client.status(SHARED).await?;
            status.is_success().then_some(())
        })
        .await;
        Self {
            _control: control,
            worker,
            client,
            _mock: mock,
            _dir: dir,
        }
    }

    /// In MiB.
    fn memory(&self) -> f64 {
        let path = format!("/proc/{}/status", self.worker.id());
        let status = std::fs::read_to_string(path);
        let status = status.unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<f64>().ok());
        kib.unwrap_or(0.0) / 1024.0
    }

    async fn offer(
        &self,
        model: &str,
        tenants: &[Tenant],
        seconds: u64,
    ) -> BTreeMap<String, Offered> {
        let length = Duration::from_secs(seconds);
        offer(&self.client, model, tenants, length, 7).await
    }
}

async fn register(control: &str, id: &str, slots: u32, upstream: &str) {
    let mut registry = ModelRegistryClient::connect(control.to_owned())
        .await
        .expect("the control plane answers");
    let pool = wire::Pool {
        max_concurrent: Some(slots),
        queue: Some(wire::Queue {
            max_waiting: Some(slots * 2),
            max_wait: Some(prost_types::Duration {
                seconds: MAX_WAIT.as_secs().cast_signed(),
                nanos: 0,
            }),
            tenant_header: Some("x-tenant".to_owned()),
            ..wire::Queue::default()
        }),
        ..wire::Pool::default()
    };
    let model = wire::Model {
        pool: Some(pool),
        ..model_at(id, upstream)
    };
    let request = wire::CreateModelRequest {
        model: Some(model),
        ..Default::default()
    };
    let created = registry.create_model(request).await;
    created.expect("the model is registered");
}

fn tenant(name: &str, rate: f64, tokens: f64, obeys: bool) -> Tenant {
    Tenant {
        name: name.to_owned(),
        rate,
        tokens,
        obeys,
    }
}

fn tell(what: &str, seen: &Offered, seconds: u64) {
    println!(
        "| {what} | {} | {:.1} | {:.0} ms | {:.0} ms | {} | {:?} |",
        seen.requests,
        seen.latencies.len() as f64 / seconds as f64,
        seen.percentile(50).as_secs_f64() * 1_000.0,
        seen.percentile(99).as_secs_f64() * 1_000.0,
        seen.broken + seen.untold,
        seen.refused,
    );
}

#[tokio::main]
async fn main() -> ExitCode {
    let mut args = std::env::args().skip(1);
    let forebay = args.next().unwrap_or("target/debug/forebay".to_owned());
    let seconds: u64 = args
        .next()
        .and_then(|text| text.parse().ok())
        .unwrap_or(120);
    let scene = Scene::set(&forebay).await;
    println!(
        "{SLOTS} slots, {CAPACITY:.0} requests a second at the most, {MAX_WAITING} may wait for {MAX_WAIT:?}"
    );
    println!(
        "| load | requests | served/s | p50 | p99 | broken | refused |\n|---|---|---|---|---|---|---|"
    );
    let part = args.next().unwrap_or_default();
    let mut missed = Vec::new();
    if part != "tenants" {
        missed.extend(overload(&scene, seconds).await);
    }
    if part != "overload" {
        missed.extend(tenants(&scene, seconds).await);
    }
    missed.iter().for_each(|goal| println!("missed: {goal}"));
    match missed.is_empty() {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    }
}

async fn overload(scene: &Scene, seconds: u64) -> Vec<String> {
    let mut missed = Vec::new();
    // As much as keeps every slot busy, and hardly more.
    let peak = &scene
        .offer(
            MODEL,
            &[tenant("a", CAPACITY * 1.1, TOKENS, false)],
            seconds / 4,
        )
        .await["a"];
    tell("1.1 x", peak, seconds / 4);
    let peak = peak.latencies.len() as f64 / (seconds / 4) as f64;
    let start = scene.memory();
    for obeys in [false, true] {
        let load = [tenant("a", CAPACITY * 3.0, TOKENS, obeys)];
        let half = scene.offer(MODEL, &load, seconds / 2).await;
        let middle = scene.memory();
        let mut rest = scene.offer(MODEL, &load, seconds / 2).await;
        let end = scene.memory();
        let mut all = rest.remove("a").unwrap_or_default();
        let first = &half["a"];
        all.requests += first.requests;
        all.latencies.extend(&first.latencies);
        all.broken += first.broken;
        all.untold += first.untold;
        for (code, n) in &first.refused {
            *all.refused.entry(code.clone()).or_default() += n;
        }
        tell(
            if obeys {
                "3 x, obeying retry-after"
            } else {
                "3 x"
            },
            &all,
            seconds,
        );
        println!(
            "memory of the worker: {start:.1} MiB before, {middle:.1} in the middle, {end:.1} at the end"
        );
        let goodput = all.latencies.len() as f64 / seconds as f64;
        if goodput < peak * 0.95 {
            missed.push(format!("goodput {goodput:.1} of {peak:.1} a second"));
        }
        if end > middle * 1.1 + 2.0 {
            missed.push(format!("memory grew from {middle:.1} to {end:.1} MiB"));
        }
        // The longest wait, and the longest answer but one in a hundred.
        let most = MAX_WAIT + INTERVAL.mul_f64(TOKENS * 5.0);
        if !obeys && all.percentile(99) > most {
            missed.push(format!("p99 {:?}, at most {most:?}", all.percentile(99)));
        }
        if all.broken + all.untold > 0 {
            missed.push(format!(
                "{} broken, {} not told when to come again",
                all.broken, all.untold
            ));
        }
        // What is in line at the end is no part of what comes next.
        sleep(MAX_WAIT).await;
    }
    missed
}

async fn tenants(scene: &Scene, seconds: u64) -> Vec<String> {
    let share = f64::from(SHARED_SLOTS) / (LONG * INTERVAL.as_secs_f64()) / 5.0;
    let mut missed = Vec::new();
    let mut load: Vec<Tenant> = (0..4)
        .map(|_| tenant("others", share * 0.7, LONG, false))
        .collect();
    for (n, one) in load.iter_mut().enumerate() {
        one.name = format!("other{n}");
    }
    let (mut p99, mut refused) = (Vec::new(), Vec::new());
    for times in [1.0, 100.0] {
        let mut all = load.clone();
        all.push(tenant("flood", share * times, LONG, false));
        let mut seen = scene.offer(SHARED, &all, seconds).await;
        let flood = seen.remove("flood").unwrap_or_default();
        let others = together(seen.into_values());
        tell(
            &format!("one tenant at {times} x its share"),
            &flood,
            seconds,
        );
        tell("the four others at 0.7 x theirs", &others, seconds);
        if others.broken > 0 {
            missed.push(format!("{} of the others broken", others.broken));
        }
        p99.push(others.percentile(99).as_secs_f64());
        let none: u64 = others.refused.values().sum();
        refused.push(none as f64 / others.requests.max(1) as f64);
        sleep(MAX_WAIT).await;
    }
    // Who comes by chance is over his share now and then, and waits too long also when nobody floods.
    let more = refused[1] - refused[0];
    println!("more of the others refused: {:.1} %", more * 100.0);
    if more > MOST_REFUSED {
        missed.push(format!("refused within their share: {:.1} %", more * 100.0));
    }
    let ratio = p99[1] / p99[0];
    println!("p99 of the others: {ratio:.2} x");
    if ratio > 1.2 {
        missed.push(format!("p99 of the others moved by {ratio:.2} x"));
    }
    missed
}

/// Of several tenants as of one.
fn together(each: impl Iterator<Item = Offered>) -> Offered {
    let mut all = Offered::default();
    for one in each {
        all.requests += one.requests;
        all.latencies.extend(one.latencies);
        all.broken += one.broken;
        for (code, n) in one.refused {
            *all.refused.entry(code).or_default() += n;
        }
    }
    all
}
