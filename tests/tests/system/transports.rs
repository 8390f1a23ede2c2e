//! What upstream connections are made of: TLS, Unix sockets, names that change.

use std::{path::Path, time::Duration};

use forebay_mock::{Faults, MockConfig, MockServer, Speaks};
use forebay_proto::wire;
use forebay_tests::{
    Authority, Chat, Cluster, DnsServer, Ended, WorkerHandle, eventually, model_at,
};
use futures_util::future::join_all;
use tokio::time::{Instant, sleep};
use wire::EndpointProtocol;

pub(super) fn model(
    url: &str,
    protocol: EndpointProtocol,
    tls: Option<wire::EndpointTls>,
) -> wire::Model {
    let mut model = model_at("m", url);
    model.endpoints[0].protocol = protocol.into();
    model.endpoints[0].tls = tls;
    model
}

fn trusting(authority: &Authority) -> wire::EndpointTls {
    wire::EndpointTls {
        ca_pem: authority.pem(),
        ..wire::EndpointTls::default()
    }
}

pub(super) async fn update(cluster: &Cluster, model: wire::Model) {
    let request = wire::UpdateModelRequest {
        model: Some(model),
        ..wire::UpdateModelRequest::default()
    };
    let updated = cluster.registry().update_model(request).await;
    cluster
        .rolled_out(updated.unwrap().into_inner().revision)
        .await;
}

/// The pool of the model, as the worker shows it.
pub(super) async fn pool(worker: &WorkerHandle) -> serde_json::Value {
    worker.document("/pools").await["pools"][0].clone()
}

async fn opened(worker: &WorkerHandle, reason: &str) -> f64 {
    let name = "forebay_pool_connections_opened_total";
    let label = format!("reason=\"{reason}\"");
    worker.metrics().await.sum(name, &[&label])
}

#[tokio::test(flavor = "multi_thread")]
async fn over_tls_who_is_trusted_serves_and_who_is_not_is_told_apart() {
    let (cluster, worker) = Cluster::with_worker().await;
    let (ours, other) = (Authority::new("ours"), Authority::new("other"));
    let mock = MockServer::start(MockConfig {
        tls: Some(ours.server(&["vllm.internal"])),
        ..MockConfig::serving("m")
    })
    .await
    .unwrap();
    let http1 = EndpointProtocol::Http1;
    let named = |authority: &Authority, name: &str| wire::EndpointTls {
        server_name: name.into(),
        ..trusting(authority)
    };
    let good = named(&ours, "vllm.internal");
    cluster
        .create_and_wait(model(&mock.url(), http1, Some(good)))
        .await;
    for chat in [Chat::Whole, Chat::Stream] {
        assert_eq!(worker.client().finish("m", chat, 20).await, Ended::Well);
    }
    assert_eq!(mock.stats().opened, 1);
    for (bad, why) in [
        (named(&other, "vllm.internal"), "certificate"),
        (named(&ours, "else.internal"), "not valid for"),
        (wire::EndpointTls::default(), "certificate"),
    ] {
        update(&cluster, model(&mock.url(), http1, Some(bad))).await;
        let Ended::Status(502, text) = worker.client().finish("m", Chat::Whole, 1).await else {
            panic!("a server that is not trusted served");
        };
        assert!(
            text.contains("upstream_connect") && text.contains(why),
            "{text}"
        );
    }
    let any = wire::EndpointTls {
        skip_verification: true,
        ..wire::EndpointTls::default()
    };
    update(&cluster, model(&mock.url(), http1, Some(any))).await;
    assert_eq!(
        worker.client().finish("m", Chat::Whole, 1).await,
        Ended::Well
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_certificate_is_shown_and_read_again_when_it_changes() {
    let (cluster, worker) = Cluster::with_worker().await;
    let (servers, clients) = (Authority::new("servers"), Authority::new("clients"));
    let mut tls = servers.server(&["127.0.0.1"]);
    tls.clients = Some(clients.pem());
    let mock = MockServer::start(MockConfig {
        tls: Some(tls),
        ..MockConfig::serving("m")
    })
    .await
    .unwrap();
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str| dir.path().join(name).display().to_string();
    let write = |authority: &Authority| {
        let (certificate, key) = authority.sign(&["worker"]);
        std::fs::write(file("client.pem"), certificate).unwrap();
        std::fs::write(file("client.key"), key).unwrap();
    };
    let with_files = wire::EndpointTls {
        client_certificate_file: file("client.pem"),
        client_key_file: file("client.key"),
        ..trusting(&servers)
    };
    let created = model(&mock.url(), EndpointProtocol::Http1, Some(with_files));
    cluster.create_and_wait(created).await;
    let failure = async || match worker.client().finish("m", Chat::Whole, 1).await {
        Ended::Status(502, text) => text,
        other => panic!("{other:?}"),
    };
    let text = failure().await;
    assert!(text.contains("client.pem cannot be read"), "{text}");
    write(&Authority::new("somebody"));
    failure().await;
    write(&clients);
    eventually("the new certificate is used", async || {
        let ended = worker.client().finish("m", Chat::Whole, 1).await;
        (ended == Ended::Well).then_some(())
    })
    .await;
}

/// On a connection with TLS, bytes that come unasked (session tickets) are no death; a close is.
#[tokio::test(flavor = "multi_thread")]
async fn over_tls_idle_closes_are_seen_and_sent_round() {
    let (cluster, worker) = Cluster::with_worker().await;
    let ours = Authority::new("ours");
    let mock = MockServer::start(MockConfig {
        tls: Some(ours.server(&["127.0.0.1"])),
        keep_alive: Some(Duration::from_millis(3)),
        ..MockConfig::serving("m")
    })
    .await
    .unwrap();
    let http1 = EndpointProtocol::Http1;
    cluster
        .create_and_wait(model(&mock.url(), http1, Some(trusting(&ours))))
        .await;
    let clients = (0..8).map(|n: u64| {
        let client = worker.client();
        async move {
            for round in 0..60 {
                sleep(Duration::from_micros(2_500 + (n * 97 + round * 31) % 1_000)).await;
                let ended = client.finish("m", Chat::Whole, 0).await;
                assert_eq!(ended, Ended::Well);
            }
        }
    });
    join_all(clients).await;
    let stats = mock.stats();
    assert_eq!(stats.completed, 480, "each was run once: {stats:?}");
    assert!(
        stats.closed_idle > 100,
        "the closes were crossed: {stats:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_spoken_is_agreed_upon_in_the_handshake() {
    let (cluster, worker) = Cluster::with_worker().await;
    let ours = Authority::new("ours");
    let start = async |speaks| {
        MockServer::start(MockConfig {
            tls: Some(ours.server(&["127.0.0.1"])),
            speaks,
            ..MockConfig::serving("m")
        })
        .await
        .unwrap()
    };
    let (both, old) = (start(Speaks::Both).await, start(Speaks::Http1).await);
    let auto = |url: &str| model(url, EndpointProtocol::Auto, Some(trusting(&ours)));
    cluster.create_and_wait(auto(&both.url())).await;
    let burst = async || {
        let streams = (0..10).map(|_| {
            let client = worker.client();
            async move { client.finish("m", Chat::Stream, 30).await }
        });
        for ended in join_all(streams).await {
            assert_eq!(ended, Ended::Well);
        }
    };
    burst().await;
    assert_eq!(both.stats().opened, 1);
    update(&cluster, auto(&old.url())).await;
    burst().await;
    assert_eq!(old.stats().peak_in_flight, 10);
    assert_eq!(old.stats().opened, 10);
    // One who must have HTTP/2 says so when there is none.
    let only = model(&old.url(), EndpointProtocol::Http2, Some(trusting(&ours)));
    update(&cluster, only).await;
    // Until then what it had before serves.
    eventually("it is told", async || {
        match worker.client().finish("m", Chat::Whole, 1).await {
            Ended::Status(502, text) => text.contains("upstream_connect").then_some(()),
            ended => {
                assert_eq!(ended, Ended::Well);
                None
            }
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_unix_socket_serves_like_any_other() {
    let (cluster, worker) = Cluster::with_worker().await;
    let dir = tempfile::tempdir().unwrap();
    let start = async |path: &Path| {
        MockServer::start(MockConfig {
            unix: Some(path.to_owned()),
            keep_alive: Some(Duration::from_millis(50)),
            ..MockConfig::serving("m")
        })
        .await
        .unwrap()
    };
    let path = dir.path().join("vllm.sock");
    let mock = start(&path).await;
    cluster.create_and_wait(model_at("m", &mock.url())).await;
    for chat in [Chat::Whole, Chat::Stream] {
        assert_eq!(worker.client().finish("m", chat, 20).await, Ended::Well);
    }
    sleep(Duration::from_millis(100)).await;
    assert_eq!(
        worker.client().finish("m", Chat::Whole, 1).await,
        Ended::Well
    );
    assert_eq!(mock.stats().completed, 3);
    let shown = pool(&worker).await["endpoints"][0].clone();
    assert_eq!(shown["addresses"][0]["address"], path.display().to_string());
    mock.stop().await;
    std::fs::remove_file(&path).unwrap();
    let Ended::Status(502, text) = worker.client().finish("m", Chat::Whole, 1).await else {
        panic!("nobody listens");
    };
    assert!(text.contains("vllm.sock"), "{text}");
}

/// A name with two addresses is two places, and follows its records.
#[tokio::test(flavor = "multi_thread")]
async fn a_name_is_followed_to_all_its_addresses_and_when_they_change() {
    let dns = DnsServer::start().await;
    let mut cluster = Cluster::start().await;
    cluster.ask(dns.addr());
    let worker = cluster.worker("w1").await;
    worker.ready().await;
    let first = MockServer::start(MockConfig::serving("m")).await.unwrap();
    let port = first.addr().port();
    let start = async |host: &str| {
        MockServer::start(MockConfig {
            listen: format!("{host}:{port}").parse().unwrap(),
            ..MockConfig::serving("m")
        })
        .await
        .unwrap()
    };
    let (second, third) = (start("127.0.0.2").await, start("127.0.0.3").await);
    let url = format!("http://vllm.test:{port}");
    cluster.create_and_wait(model_at("m", &url)).await;
    let Ended::Status(502, text) = worker.client().finish("m", Chat::Whole, 1).await else {
        panic!("there is no such name");
    };
    assert!(text.contains("`vllm.test` cannot be resolved"), "{text}");

    dns.set("vllm.test", &["127.0.0.1", "127.0.0.2"]);
    eventually("the name is known", async || {
        let ended = worker.client().finish("m", Chat::Whole, 1).await;
        (ended == Ended::Well).then_some(())
    })
    .await;
    let burst = async || {
        let requests = (0..20).map(|_| {
            let client = worker.client();
            async move { client.finish("m", Chat::Whole, 4).await }
        });
        for ended in join_all(requests).await {
            assert_eq!(ended, Ended::Well);
        }
    };
    burst().await;
    let shares = [&first, &second].map(|mock| mock.stats().requests);
    assert!(shares.iter().all(|share| *share >= 5), "{shares:?}");

    // A stream on an address that goes runs to its end; new requests go to the new one.
    let client = worker.client();
    let streams = (0..8).map(|_| client.finish("m", Chat::Stream, 400));
    let streams = join_all(streams);
    let change = async {
        sleep(Duration::from_millis(100)).await;
        dns.set("vllm.test", &["127.0.0.3"]);
        eventually("the change is followed", async || {
            let shown = pool(&worker).await["endpoints"][0]["addresses"].clone();
            let only = shown.as_array().is_some_and(|all| all.len() == 1);
            (only && shown[0]["address"] == format!("127.0.0.3:{port}")).then_some(())
        })
        .await;
        burst().await;
        assert!(third.stats().requests >= 20);
    };
    let (ended, ()) = tokio::join!(streams, change);
    assert!(ended.iter().all(|ended| *ended == Ended::Well), "{ended:?}");
}

/// The time to give up on a name is 8 s and more.
#[tokio::test(flavor = "multi_thread")]
async fn a_name_without_an_answer_holds_up_no_other() {
    let dns = DnsServer::start().await;
    let mut cluster = Cluster::start().await;
    cluster.ask(dns.addr());
    let worker = cluster.worker("w1").await;
    worker.ready().await;
    let mock = MockServer::start(MockConfig::serving("m")).await.unwrap();
    let port = mock.addr().port();
    dns.set("vllm.test", &["127.0.0.2"]);
    let mut model = model_at("m", &format!("http://vllm.test:{port}"));
    model.endpoints.push(wire::Endpoint {
        id: "silent".to_owned(),
        url: format!("http://silent.test:{port}"),
        ..wire::Endpoint::default()
    });
    let shown = async |address: &str| {
        let pool = pool(&worker).await;
        let endpoints = pool["endpoints"].as_array().cloned().unwrap_or_default();
        let all = endpoints
            .iter()
            .flat_map(|endpoint| endpoint["addresses"].as_array());
        let at = format!("{address}:{port}");
        all.flatten()
            .any(|known| known["address"] == at)
            .then_some(())
    };
    cluster
        .registry()
        .create_model(wire::CreateModelRequest {
            model: Some(model),
            ..wire::CreateModelRequest::default()
        })
        .await
        .unwrap();
    eventually("the first address", async || shown("127.0.0.2").await).await;
    let began = Instant::now();
    dns.set("vllm.test", &["127.0.0.1"]);
    eventually("the second one", async || shown("127.0.0.1").await).await;
    assert!(
        began.elapsed() < Duration::from_secs(4),
        "{:?}",
        began.elapsed()
    );
}

/// Its connections serve until those of the new place are there; then they go.
#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_that_moves_is_warmed_before_its_connections_go() {
    let (cluster, worker) = Cluster::with_worker().await;
    let old = MockServer::start(MockConfig::serving("m")).await.unwrap();
    let new = MockServer::start(MockConfig::serving("m")).await.unwrap();
    cluster.create_and_wait(model_at("m", &old.url())).await;
    let requests = (0..10).map(|_| {
        let client = worker.client();
        async move { client.finish("m", Chat::Stream, 10).await }
    });
    join_all(requests).await;
    let warm = pool(&worker).await["idle"].as_u64().unwrap();
    update(&cluster, model_at("m", &new.url())).await;
    // Acknowledged: the new ones stand.
    assert_eq!(new.stats().opened, warm);
    assert_eq!(opened(&worker, "replace").await as u64, warm);
    eventually("the old ones go", async || {
        (old.stats().open == 0).then_some(())
    })
    .await;
    let before = worker
        .metrics()
        .await
        .sum("forebay_pool_checkouts_total", &[]);
    assert_eq!(
        worker.client().finish("m", Chat::Whole, 1).await,
        Ended::Well
    );
    let after = worker
        .metrics()
        .await
        .sum("forebay_pool_checkouts_total", &[]);
    assert_eq!(after - before, 1.0);
    assert_eq!(
        opened(&worker, "demand").await as u64,
        warm,
        "none for a request since"
    );
}

/// After a storm of cancels the warm connections are back within a second.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_storm_of_cancels_cost_comes_back() {
    let (cluster, worker) = Cluster::with_worker().await;
    let mock = MockServer::start(MockConfig::serving("m")).await.unwrap();
    let big = wire::Model {
        pool: Some(wire::Pool {
            max_concurrent: Some(200),
            ..wire::Pool::default()
        }),
        ..model_at("m", &mock.url())
    };
    cluster
        .settings()
        .update_pool_settings(wire::UpdatePoolSettingsRequest {
            settings: Some(wire::PoolDefaults {
                max_concurrent: Some(200),
                ..wire::PoolDefaults::default()
            }),
            ..wire::UpdatePoolSettingsRequest::default()
        })
        .await
        .unwrap();
    cluster.create_and_wait(big).await;
    let client = worker.client();
    let streams = (0..200).map(|_| client.chat("m", Chat::Stream, 100_000).send());
    let mut streams: Vec<_> = join_all(streams)
        .await
        .into_iter()
        .map(Result::unwrap)
        .collect();
    let open = async || pool(&worker).await;
    assert_eq!(open().await["active"], 200);
    mock.set_faults(Faults::default());
    streams.truncate(100);
    let cancelled = tokio::time::Instant::now();
    eventually("all 100 cancels are seen", async || {
        (open().await["closed"]["cancelled"] == 100).then_some(())
    })
    .await;
    eventually("as good as all 200 are open again", async || {
        let pool = open().await;
        // What was in use lately decays while it is waited for.
        let idle = pool["idle"].as_u64()?;
        (pool["active"] == 100 && (95..=100).contains(&idle)).then_some(())
    })
    .await;
    let took = cancelled.elapsed();
    println!("100 of 200 streams cancelled: all warm again after {took:?}");
}
