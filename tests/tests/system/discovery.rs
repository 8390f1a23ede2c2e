//! Servers that sources name: scaled up and down under load, out of reach, wrong, and what becomes of secrets.

use std::{
    fs,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use forebay_mock::{MockConfig, MockServer};
use forebay_proto::wire;
use forebay_tests::{Chat, Cluster, DnsServer, Ended, ListServer, WorkerHandle, eventually};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::task::JoinSet;
use wire::discovery::Source;

const SERVICE: &str = "_http._tcp.vllm.test";

/// Everybody who may name servers.
struct Sources {
    dns: DnsServer,
    list: ListServer,
    dir: TempDir,
    port: u16,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Dns,
    Srv,
    Json,
    Lines,
    Http,
}

impl Sources {
    async fn start(port: u16) -> Self {
        let dns = DnsServer::start().await;
        for n in 1..=9 {
            dns.set(&format!("p{n}.test"), &[&format!("127.0.0.{n}")]);
        }
        Self {
            dns,
            list: ListServer::start().await,
            dir: tempfile::tempdir().unwrap(),
            port,
        }
    }

    fn file(&self, kind: Kind) -> PathBuf {
        let name = if kind == Kind::Json { "t.json" } else { "t" };
        self.dir.path().join(name)
    }

    fn source(&self, kind: Kind) -> Source {
        match kind {
            Kind::Dns => Source::Dns(format!("vllm.test:{}", self.port)),
            Kind::Srv => Source::Srv(SERVICE.to_owned()),
            Kind::Json | Kind::Lines => Source::File(self.file(kind).to_str().unwrap().to_owned()),
            Kind::Http => Source::Http(self.list.url()),
        }
    }

    /// From now on the source of this kind names 127.0.0.n for each of these.
    fn name(&self, kind: Kind, servers: &[u8]) {
        let port = self.port;
        let places: Vec<String> = servers
            .iter()
            .map(|n| format!("127.0.0.{n}:{port}"))
            .collect();
        match kind {
            Kind::Dns => {
                let addresses: Vec<String> =
                    servers.iter().map(|n| format!("127.0.0.{n}")).collect();
                let addresses: Vec<&str> = addresses.iter().map(String::as_str).collect();
                self.dns.set("vllm.test", &addresses);
            }
            Kind::Srv => {
                let hosts: Vec<String> = servers.iter().map(|n| format!("p{n}.test")).collect();
                let records: Vec<_> = hosts
                    .iter()
                    .map(|host| (0, 1, port, host.as_str()))
                    .collect();
                self.dns.set_service(SERVICE, &records);
            }
            Kind::Json => self.put(kind, &json!([{ "targets": places }]).to_string()),
            Kind::Lines => self.put(kind, &format!("# engines\n{}\n", places.join("\n"))),
            Kind::Http => self.list.list(&places),
        }
    }

    fn put(&self, kind: Kind, text: &str) {
        let fresh = self.dir.path().join("fresh");
        fs::write(&fresh, text).unwrap();
        fs::rename(&fresh, self.file(kind)).unwrap();
    }

    fn discovery(&self, kind: Kind) -> wire::Discovery {
        let polled = !matches!(kind, Kind::Dns | Kind::Srv);
        wire::Discovery {
            source: Some(self.source(kind)),
            allow: vec!["127.0.0.0/8".to_owned()],
            refresh: polled.then_some(prost_types::Duration {
                seconds: 0,
                nanos: 100_000_000,
            }),
            ..wire::Discovery::default()
        }
    }
}

fn endpoint(id: &str, discovery: wire::Discovery) -> wire::Endpoint {
    wire::Endpoint {
        id: id.to_owned(),
        discovery: Some(discovery),
        ..wire::Endpoint::default()
    }
}

/// Nothing rests too long, so that what is closed was closed by a change.
fn model(endpoints: Vec<wire::Endpoint>) -> wire::Model {
    wire::Model {
        id: "m".to_owned(),
        endpoints,
        pool: Some(wire::Pool {
            idle_timeout: Some(prost_types::Duration {
                seconds: 600,
                nanos: 0,
            }),
            ..wire::Pool::default()
        }),
        ..wire::Model::default()
    }
}

/// Mocks on one port of 127.0.0.1, .2, and so on.
async fn mocks(count: u8, config: &MockConfig) -> Vec<MockServer> {
    eventually("a port that is free on every address", async || {
        let mut mocks: Vec<MockServer> = Vec::new();
        for n in 1..=count {
            let port = mocks.first().map_or(0, |first| first.addr().port());
            let mock = MockServer::start(MockConfig {
                listen: format!("127.0.0.{n}:{port}").parse().unwrap(),
                keep_alive: None,
                name: format!("mock-{n}"),
                ..config.clone()
            });
            mocks.push(mock.await.ok()?);
        }
        Some(mocks)
    })
    .await
}

async fn source_of(worker: &WorkerHandle, at: usize) -> Value {
    worker.document("/pools").await["pools"][0]["discovery"][at].clone()
}

async fn until_servers(worker: &WorkerHandle, servers: usize) {
    eventually(&format!("{servers} servers"), async || {
        let source = source_of(worker, 0).await;
        (source["servers"] == servers && source["state"] == "fresh").then_some(())
    })
    .await;
}

async fn until_state(worker: &WorkerHandle, state: &str) -> Value {
    eventually(&format!("the source is {state}"), async || {
        let source = source_of(worker, 0).await;
        (source["state"] == state).then_some(source)
    })
    .await
}

/// Clients that ask without a pause, until they are told to end.
struct Load {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicUsize>,
    clients: JoinSet<Vec<Ended>>,
}

impl Load {
    fn start(worker: &WorkerHandle, clients: usize) -> Self {
        let (stop, done) = (Arc::<AtomicBool>::default(), Arc::<AtomicUsize>::default());
        let mut tasks = JoinSet::new();
        for n in 0..clients {
            let (client, stop, done) = (worker.client(), stop.clone(), done.clone());
            let chat = if n % 2 == 0 {
                Chat::Whole
            } else {
                Chat::Stream
            };
            tasks.spawn(async move {
                let mut ended = Vec::new();
                while !stop.load(Ordering::Acquire) {
                    ended.push(client.finish("m", chat, 4).await);
                    done.fetch_add(1, Ordering::AcqRel);
                }
                ended
            });
        }
        Self {
            stop,
            done,
            clients: tasks,
        }
    }

    async fn more(&self, requests: usize) {
        let wanted = self.done.load(Ordering::Acquire) + requests;
        eventually("more requests", async || {
            (self.done.load(Ordering::Acquire) >= wanted).then_some(())
        })
        .await;
    }

    /// How many there were; each of them ended well.
    async fn end(mut self) -> usize {
        self.stop.store(true, Ordering::Release);
        let mut count = 0;
        while let Some(ended) = self.clients.join_next().await {
            let ended = ended.unwrap();
            count += ended.len();
            let bad: Vec<_> = ended.iter().filter(|e| **e != Ended::Well).collect();
            assert!(
                bad.is_empty(),
                "{} of {}: {:?}",
                bad.len(),
                ended.len(),
                bad[0]
            );
        }
        count
    }
}

/// 2 → 5 → 1 servers under load, told by one kind of source: nothing fails, and connections to those that stay, stay.
async fn scaled(kind: Kind, warm: u32) -> String {
    let mocks = mocks(5, &MockConfig::serving("m")).await;
    let sources = Sources::start(mocks[0].addr().port()).await;
    let mut cluster = Cluster::start().await;
    cluster.ask(sources.dns.addr());
    let worker = cluster.worker("w1").await;
    worker.ready().await;
    sources.name(kind, &[1, 2]);
    let mut model = model(vec![endpoint("pods", sources.discovery(kind))]);
    model.pool.as_mut().unwrap().warm = Some(warm);
    cluster.create_and_wait(model).await;
    until_servers(&worker, 2).await;
    let load = Load::start(&worker, 12);
    load.more(100).await;

    sources.name(kind, &[1, 2, 3, 4, 5]);
    until_servers(&worker, 5).await;
    eventually("all five serve", async || {
        let busy = mocks.iter().all(|mock| mock.stats().requests > 10);
        busy.then_some(())
    })
    .await;
    load.more(100).await;

    sources.name(kind, &[1]);
    until_servers(&worker, 1).await;
    eventually("those that are gone are let go of", async || {
        let gone = mocks[1..].iter().all(|mock| mock.stats().open == 0);
        gone.then_some(())
    })
    .await;
    let before: Vec<u64> = mocks[1..]
        .iter()
        .map(|mock| mock.stats().requests)
        .collect();
    load.more(100).await;
    let after: Vec<u64> = mocks[1..]
        .iter()
        .map(|mock| mock.stats().requests)
        .collect();
    assert_eq!(before, after, "what is gone gets nothing");
    let requests = load.end().await;
    for mock in &mocks {
        let stats = mock.stats();
        assert_eq!((stats.cancelled, stats.closed_reset), (0, 0), "{stats:?}");
    }
    let first = mocks[0].stats();
    let closed = first.opened - first.open;
    assert_eq!(
        closed, 0,
        "connections to the server that stayed, stayed: {first:?}"
    );
    assert!(first.opened <= 50, "{first:?}");
    let opened = first.opened;
    format!(
        "{kind:?}: {requests} requests, none failed; {opened} connections to the one that stayed, none closed"
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn scaled_by_the_addresses_of_a_name() {
    println!("{}", scaled(Kind::Dns, 0).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn scaled_by_the_records_of_a_service() {
    println!("{}", scaled(Kind::Srv, 0).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn scaled_by_a_file_of_json() {
    println!("{}", scaled(Kind::Json, 0).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn scaled_by_a_file_of_lines() {
    println!("{}", scaled(Kind::Lines, 0).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn scaled_by_a_list_at_a_url() {
    println!("{}", scaled(Kind::Http, 20).await);
}

/// All servers are others at once: the new ones are warm before the old ones' connections go.
#[tokio::test(flavor = "multi_thread")]
async fn all_replaced_under_load() {
    let mocks = mocks(4, &MockConfig::serving("m")).await;
    let sources = Sources::start(mocks[0].addr().port()).await;
    let (cluster, worker) = Cluster::with_worker().await;
    sources.name(Kind::Http, &[1, 2]);
    let mut model = model(vec![endpoint("pods", sources.discovery(Kind::Http))]);
    // More than are in use, so that some rest when it happens.
    model.pool.as_mut().unwrap().warm = Some(30);
    cluster.create_and_wait(model).await;
    until_servers(&worker, 2).await;
    let load = Load::start(&worker, 12);
    load.more(100).await;
    sources.name(Kind::Http, &[3, 4]);
    eventually("the new ones serve, the old ones are gone", async || {
        let old = mocks[..2].iter().all(|mock| mock.stats().open == 0);
        let new = mocks[2..].iter().all(|mock| mock.stats().requests > 10);
        (old && new).then_some(())
    })
    .await;
    load.more(100).await;
    load.end().await;
    let metrics = worker.metrics().await;
    let opened = "forebay_pool_connections_opened_total";
    let replaced = metrics.sum(opened, &["reason=\"replace\""]);
    assert!(replaced > 0.0, "the heirs were warmed");
}

/// Whatever a source does, the servers that it named serve.
#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_is_broken_or_says_nothing_takes_nothing_away() {
    let mocks = mocks(2, &MockConfig::serving("m")).await;
    let sources = Sources::start(mocks[0].addr().port()).await;
    let mut cluster = Cluster::start().await;
    cluster.ask(sources.dns.addr());
    let worker = cluster.worker("w1").await;
    worker.ready().await;
    sources.name(Kind::Srv, &[1, 2]);
    cluster
        .create_and_wait(model(vec![endpoint("pods", sources.discovery(Kind::Srv))]))
        .await;
    until_servers(&worker, 2).await;
    let load = Load::start(&worker, 4);
    load.more(20).await;
    sources.dns.break_down(true);
    let seen = until_state(&worker, "stale").await;
    assert_eq!(seen["reason"], "resolve");
    load.more(20).await;
    sources.dns.break_down(false);
    until_state(&worker, "fresh").await;
    // No such name: they are kept for a while, and that is told.
    sources.name(Kind::Srv, &[]);
    let seen = until_state(&worker, "empty").await;
    assert_eq!(seen["servers"], 2);
    load.more(20).await;
    let metrics = worker.metrics().await;
    let labels = ["model=\"m\"", "endpoint=\"pods\""];
    assert_eq!(metrics.sum("forebay_discovery_stale", &labels), 1.0);
    let used = ["endpoint=\"pods\"", "state=\"used\""];
    assert_eq!(metrics.sum("forebay_discovery_targets", &used), 2.0);
    assert!(metrics.sum("forebay_discovery_errors_total", &["reason=\"empty\""]) > 0.0);
    assert!(metrics.sum("forebay_discovery_errors_total", &["reason=\"resolve\""]) > 0.0);
    // Series are by what an operator named.
    let by_pods = metrics.sum(
        "forebay_endpoint_state",
        &["endpoint=\"pods\"", "state=\"healthy\""],
    );
    assert_eq!(by_pods, 2.0);
    sources.name(Kind::Srv, &[2]);
    until_servers(&worker, 1).await;
    load.end().await;
}

/// A worker that starts while nobody answers serves with what it knew.
#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_starts_while_its_source_is_silent_serves() {
    let mocks = mocks(1, &MockConfig::serving("m")).await;
    let sources = Sources::start(mocks[0].addr().port()).await;
    let (mut cluster, worker) = Cluster::with_worker().await;
    sources.name(Kind::Http, &[1]);
    let model = model(vec![endpoint("pods", sources.discovery(Kind::Http))]);
    cluster.create_and_wait(model).await;
    until_servers(&worker, 1).await;
    let kept = cluster.dir().join("w1/discovery");
    let good = cluster.dir().join("w1/last-known-good/current");
    eventually("both are kept", async || {
        let lists = fs::read_dir(&kept).ok()?.count();
        (lists == 1 && good.exists()).then_some(())
    })
    .await;
    worker.stop().await;
    cluster.stop_control().await;
    sources
        .list
        .say("HTTP/1.1 500 No\r\ncontent-length: 0\r\n\r\n");
    let worker = cluster.worker("w1").await;
    let ended = eventually("it serves", async || {
        let ended = worker.client().finish("m", Chat::Stream, 4).await;
        (ended == Ended::Well).then_some(ended)
    })
    .await;
    assert_eq!(ended, Ended::Well);
    assert_eq!(source_of(&worker, 0).await["state"], "last_known_good");
}

/// The best priority serves alone; the next one when nothing of it can be reached; weights are shares.
#[tokio::test(flavor = "multi_thread")]
async fn priorities_and_weights_of_a_service() {
    let mut mocks = mocks(3, &MockConfig::serving("m")).await;
    let sources = Sources::start(mocks[0].addr().port()).await;
    let mut cluster = Cluster::start().await;
    cluster.ask(sources.dns.addr());
    let worker = cluster.worker("w1").await;
    worker.ready().await;
    let port = sources.port;
    let records = [
        (5, 30, port, "p1.test"),
        (5, 10, port, "p2.test"),
        (9, 1, port, "p3.test"),
    ];
    sources.dns.set_service(SERVICE, &records);
    cluster
        .create_and_wait(model(vec![endpoint("pods", sources.discovery(Kind::Srv))]))
        .await;
    until_servers(&worker, 2).await;
    let load = Load::start(&worker, 16);
    load.more(600).await;
    load.end().await;
    let [one, two, three] = [0, 1, 2].map(|n: usize| mocks[n].stats().requests);
    assert_eq!(three, 0, "a reserve is a reserve");
    let share = one as f64 / (one + two) as f64;
    assert!(
        (0.6..0.9).contains(&share),
        "3 to 1 was asked for: {one} to {two}"
    );
    for gone in mocks.drain(..2) {
        gone.stop().await;
    }
    eventually("the reserve serves", async || {
        let ended = worker.client().finish("m", Chat::Whole, 1).await;
        (ended == Ended::Well).then_some(())
    })
    .await;
    assert!(mocks[0].stats().requests > 0);
}

/// One place has one pool of connections, whoever names it.
#[tokio::test(flavor = "multi_thread")]
async fn what_two_sources_name_counts_once() {
    let mocks = mocks(2, &MockConfig::serving("m")).await;
    let port = mocks[0].addr().port();
    let sources = Sources::start(port).await;
    let (cluster, worker) = Cluster::with_worker().await;
    sources.name(Kind::Http, &[1, 2]);
    sources.name(Kind::Json, &[1, 2]);
    let plain = wire::Endpoint {
        id: "a".to_owned(),
        url: format!("http://127.0.0.1:{port}"),
        ..wire::Endpoint::default()
    };
    cluster
        .create_and_wait(model(vec![
            endpoint("x", sources.discovery(Kind::Http)),
            endpoint("y", sources.discovery(Kind::Json)),
            plain,
        ]))
        .await;
    eventually("both are read", async || {
        let (x, y) = (source_of(&worker, 0).await, source_of(&worker, 1).await);
        let counts = [&x["servers"], &x["doubles"], &y["servers"], &y["doubles"]];
        (counts == [1, 1, 0, 2]).then_some(())
    })
    .await;
    let pools = worker.document("/pools").await;
    let endpoints = pools["pools"][0]["endpoints"].as_array().unwrap();
    let ids: Vec<_> = endpoints
        .iter()
        .map(|e| e["id"].as_str().unwrap())
        .collect();
    assert_eq!(ids, ["a".to_owned(), format!("x-127-0-0-2-{port}")]);
    let load = Load::start(&worker, 8);
    load.more(50).await;
    load.end().await;
}

/// Why a model of this endpoint is refused.
async fn refused(cluster: &Cluster, endpoint: wire::Endpoint) -> String {
    let request = wire::CreateModelRequest {
        model: Some(model(vec![endpoint])),
        validate_only: true,
        ..wire::CreateModelRequest::default()
    };
    let refused = cluster.registry().create_model(request).await.unwrap_err();
    refused.message().to_owned()
}

/// Secrets go to servers that a list names only where the operator said so, and how far.
#[tokio::test(flavor = "multi_thread")]
async fn secrets_go_to_named_servers_only_with_the_operators_word() {
    let mocks = mocks(
        1,
        &MockConfig {
            api_key: Some("upstream-key".to_owned()),
            ..MockConfig::serving("m")
        },
    )
    .await;
    let sources = Sources::start(mocks[0].addr().port()).await;
    let (cluster, worker) = Cluster::with_worker().await;
    sources.name(Kind::Http, &[1]);
    let credential = wire::Credential {
        bearer_token: "upstream-key".to_owned(),
        ..wire::Credential::default()
    };
    let mut with = endpoint("pods", sources.discovery(Kind::Http));
    with.credential = Some(credential.clone());
    assert!(
        refused(&cluster, with.clone())
            .await
            .contains("send_credentials")
    );
    // Nor is a client's passed on there.
    let bare = endpoint("pods", sources.discovery(Kind::Http));
    cluster.create_and_wait(model(vec![bare])).await;
    until_servers(&worker, 1).await;
    let status = async || {
        let chat = worker.client().chat("m", Chat::Whole, 1);
        let answer = chat.bearer_auth("upstream-key").send().await.unwrap();
        answer.status().as_u16()
    };
    assert_eq!(status().await, 401);
    // With the word they are.
    let discovery = with.discovery.as_mut().unwrap();
    discovery.send_credentials = true;
    let allowed = std::mem::take(&mut with.credential);
    let updated = cluster.update(model(vec![with.clone()])).await;
    cluster.rolled_out(updated.revision).await;
    eventually("the client's own is passed on", async || {
        (status().await == 200).then_some(())
    })
    .await;
    with.credential = allowed;
    let updated = cluster.update(model(vec![with.clone()])).await;
    assert_eq!(
        updated.endpoints[0]
            .credential
            .as_ref()
            .unwrap()
            .sealed
            .len(),
        0
    );
    cluster.rolled_out(updated.revision).await;
    let own = async || worker.client().finish("m", Chat::Whole, 1).await;
    eventually("the endpoint's own is sent", async || {
        (own().await == Ended::Well).then_some(())
    })
    .await;
    // A wider reach is another place: the secret is to be given again.
    with.credential = None;
    with.discovery
        .as_mut()
        .unwrap()
        .allow
        .push("10.0.0.0/8".to_owned());
    let request = wire::UpdateModelRequest {
        model: Some(model(vec![with])),
        ..wire::UpdateModelRequest::default()
    };
    let refused = cluster.registry().update_model(request).await.unwrap_err();
    assert!(refused.message().contains("goes nowhere else"), "{refused}");
    assert_eq!(own().await, Ended::Well);
}

/// The address that is dialled is the one that counts, not what a list, or a record, calls it.
#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_leads_out_of_bounds_is_not_dialled() {
    let mocks = mocks(1, &MockConfig::serving("m")).await;
    let sources = Sources::start(mocks[0].addr().port()).await;
    let mut cluster = Cluster::start().await;
    cluster.ask(sources.dns.addr());
    let worker = cluster.worker("w1").await;
    worker.ready().await;
    sources.name(Kind::Srv, &[1]);
    let narrow = wire::Discovery {
        allow: vec!["127.0.0.2".to_owned()],
        ..sources.discovery(Kind::Srv)
    };
    cluster
        .create_and_wait(model(vec![endpoint("pods", narrow)]))
        .await;
    until_servers(&worker, 1).await;
    let text = eventually("it is told why", async || {
        match worker.client().finish("m", Chat::Whole, 1).await {
            Ended::Status(502, text) if text.contains("discovery.allow") => Some(text),
            _ => None,
        }
    })
    .await;
    assert!(
        text.contains("127.0.0.1") && text.contains("p1.test"),
        "{text}"
    );
    assert_eq!(mocks[0].stats().opened, 0);
    // It moves to where it may be, and is served from.
    let second = MockServer::start(MockConfig {
        listen: format!("127.0.0.2:{}", sources.port).parse().unwrap(),
        ..MockConfig::serving("m")
    })
    .await
    .unwrap();
    sources.dns.set("p1.test", &["127.0.0.2"]);
    eventually("it serves", async || {
        let ended = worker.client().finish("m", Chat::Whole, 1).await;
        (ended == Ended::Well).then_some(())
    })
    .await;
    assert!(second.stats().requests > 0);
    assert_eq!(mocks[0].stats().opened, 0);
}

/// Each server is an endpoint of its own: shown, and kept to by what goes on from it.
#[tokio::test(flavor = "multi_thread")]
async fn a_response_is_asked_for_where_it_was_made() {
    let mocks = mocks(3, &MockConfig::serving("m")).await;
    let port = mocks[0].addr().port();
    let sources = Sources::start(port).await;
    let (cluster, worker) = Cluster::with_worker().await;
    sources.name(Kind::Lines, &[1, 2, 3]);
    let model = model(vec![endpoint("pods", sources.discovery(Kind::Lines))]);
    cluster.create_and_wait(model).await;
    until_servers(&worker, 3).await;
    let client = worker.client();
    let mut made = Vec::new();
    for _ in 0..12 {
        let body = json!({"model": "m", "input": "x", "max_output_tokens": 2});
        let request = client.post("/v1/responses").json(&body);
        let answer = request
            .header("x-forebay-explain", "1")
            .send()
            .await
            .unwrap();
        assert_eq!(answer.status().as_u16(), 200);
        let at = answer.headers()["x-forebay-endpoint"]
            .to_str()
            .unwrap()
            .to_owned();
        assert!(
            at.starts_with("pods-127-0-0-") && at.ends_with(&format!("-{port}")),
            "{at}"
        );
        let body: Value = answer.json().await.unwrap();
        made.push((body["id"].as_str().unwrap().to_owned(), at));
    }
    for (id, at) in &made {
        let request = client.get(&format!("/v1/responses/{id}"));
        let answer = request
            .header("x-forebay-explain", "1")
            .send()
            .await
            .unwrap();
        assert_eq!(answer.status().as_u16(), 200, "{id}");
        assert_eq!(answer.headers()["x-forebay-endpoint"].to_str().unwrap(), at);
    }
    // Where it was made is gone, and says so.
    let (id, at) = &made[0];
    let stays: Vec<u8> = (1..=3)
        .filter(|n| *at != format!("pods-127-0-0-{n}-{port}"))
        .collect();
    sources.name(Kind::Lines, &stays);
    until_servers(&worker, 2).await;
    let answer = client
        .get(&format!("/v1/responses/{id}"))
        .send()
        .await
        .unwrap();
    assert_eq!(answer.status().as_u16(), 404);
}

/// What is wrong with it is told by field, and what is right comes back as it was given.
#[tokio::test(flavor = "multi_thread")]
async fn a_discovery_is_checked_and_shown() {
    let (cluster, worker) = Cluster::with_worker().await;
    let refuse = async |endpoint| refused(&cluster, endpoint).await;
    let said = |source: Option<Source>| wire::Discovery {
        source,
        ..wire::Discovery::default()
    };
    for (discovery, part) in [
        (said(None), "discovery.source: required"),
        (said(Some(Source::Srv("a b".to_owned()))), "discovery.srv:"),
        (
            said(Some(Source::Dns("10.0.0.1:80".to_owned()))),
            "discovery.dns:",
        ),
        (
            said(Some(Source::File("targets".to_owned()))),
            "discovery.file:",
        ),
        (
            said(Some(Source::Http("http://u:p@a/".to_owned()))),
            "discovery.http:",
        ),
    ] {
        let text = refuse(endpoint("pods", discovery)).await;
        assert!(text.contains(part), "{part}: {text}");
    }
    let both = wire::Endpoint {
        url: "http://10.0.0.1:80".to_owned(),
        ..endpoint("pods", said(Some(Source::Srv(SERVICE.to_owned()))))
    };
    assert!(refuse(both).await.contains("contradicts `discovery`"));
    let given = wire::Discovery {
        allow: vec!["10.1.0.0/16".to_owned()],
        ports: vec!["8000-8099".to_owned(), "9000".to_owned()],
        https: true,
        keep_empty: Some(prost_types::Duration {
            seconds: 60,
            nanos: 0,
        }),
        ..said(Some(Source::Srv(SERVICE.to_owned())))
    };
    let mut asked = model(vec![endpoint("pods", given.clone())]);
    asked.probe = Some(wire::EndpointProbe {
        mode: wire::ProbeMode::Report.into(),
        served_name: String::new(),
    });
    let created = cluster.create_and_wait(asked).await;
    assert_eq!(created.endpoints[0].discovery, Some(given));
    assert_eq!(created.endpoints[0].url, "");
    let probed = &created.probe_results[0];
    assert_eq!(probed.verdict(), wire::ProbeVerdict::NotProbed);
    assert!(
        probed.message.contains("workers find its servers"),
        "{}",
        probed.message
    );
    let config = worker.document("/config").await;
    let shown = &config["models"][0]["endpoints"][0];
    assert_eq!(shown["discovery"]["source"], format!("srv {SERVICE}"));
    assert_eq!(shown["discovery"]["keep_empty_seconds"], 60.0);
    assert_eq!(shown["url"], Value::Null);
}
