//! Clients' keys and endpoints' credentials, from the operator's call to what an upstream sees.

use std::time::{Duration, SystemTime};

use forebay_control::RolloutSettings;
use forebay_mock::{MockConfig, MockServer};
use forebay_proto::{convert::timestamp_to_wire, wire};
use forebay_tests::{
    After, Chat, Client, Cluster, RawUpstream, WorkerHandle, eventually, eventually_within,
    model_at,
};
use reqwest::{RequestBuilder, Response};
use serde_json::Value;
use tokio::{task::JoinSet, time::Instant};

/// The promise.
const REVOKED_WITHIN: Duration = Duration::from_secs(5);
const ANSWER: &str = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 14\r\n\r\n\
                      {\"choices\":[]}";

/// Makes a key: its id and its text.
async fn make(cluster: &Cluster, key: wire::Key) -> (String, String) {
    let request = wire::CreateKeyRequest {
        key: Some(key),
        validate_only: false,
    };
    let made = cluster
        .keys()
        .create_key(request)
        .await
        .unwrap()
        .into_inner();
    (made.key.unwrap().id, made.secret)
}

async fn revoke(cluster: &Cluster, id: &str) -> wire::Key {
    let request = wire::RevokeKeyRequest {
        id: id.to_owned(),
        etag: String::new(),
    };
    cluster
        .keys()
        .revoke_key(request)
        .await
        .unwrap()
        .into_inner()
}

/// Waits until the worker holds the newest keys.
async fn told(cluster: &Cluster, workers: &[&WorkerHandle]) {
    let request = wire::ListKeysRequest::default();
    let newest = cluster.keys().list_keys(request).await.unwrap();
    let newest = newest.into_inner().version;
    for worker in workers {
        eventually("the worker has the newest keys", async || {
            let config = worker.document("/config").await;
            (config["keys"]["version"].as_u64() == Some(newest)).then_some(())
        })
        .await;
    }
}

fn with(request: RequestBuilder, key: &str) -> RequestBuilder {
    request.bearer_auth(key)
}

async fn chat(client: &Client, key: &str) -> Response {
    let request = client.chat("m", Chat::Whole, 1);
    with(request, key).send().await.unwrap()
}

async fn code_of(answer: Response) -> (u16, String) {
    let status = answer.status().as_u16();
    let error: Value = answer.json().await.unwrap();
    let code = error["error"]["code"].as_str().unwrap_or_default();
    (status, code.to_owned())
}

async fn status(client: &Client, key: &str) -> u16 {
    chat(client, key).await.status().as_u16()
}

#[tokio::test(flavor = "multi_thread")]
async fn from_the_first_key_on_who_has_none_stays_out() {
    let (cluster, worker) = Cluster::with_worker().await;
    let upstream = RawUpstream::start(ANSWER, After::Keep).await;
    cluster
        .create_and_wait(model_at("m", &upstream.url()))
        .await;
    let client = worker.client();
    // Without keys the client's own is the upstream's.
    assert_eq!(status(&client, "the-upstreams-own").await, 200);
    assert!(upstream.heads()[0].contains("Bearer the-upstreams-own"));

    let (id, key) = make(&cluster, wire::Key::default()).await;
    assert!(forebay_proto::key::is_well_formed(&key), "{key}");
    assert_eq!(&key[4..16], id);
    told(&cluster, &[&worker]).await;
    assert_eq!(status(&client, &key).await, 200);
    let last = upstream.heads().pop().unwrap().to_lowercase();
    assert!(
        !last.contains("authorization") && !last.contains("fbk_"),
        "{last}"
    );

    let requests = upstream.requests();
    let plain = client.chat("m", Chat::Whole, 1).send().await.unwrap();
    assert_eq!(plain.headers()["www-authenticate"], "Bearer");
    assert_eq!(code_of(plain).await, (401, "invalid_api_key".to_owned()));
    let mut wrong = key.clone();
    wrong.replace_range(20..21, if &key[20..21] == "a" { "b" } else { "a" });
    let long = "x".repeat(4_000);
    for other in [&wrong, "fbk_", "sk-something", &long] {
        let refused = code_of(chat(&client, other).await).await;
        assert_eq!(refused, (401, "invalid_api_key".to_owned()), "{other}");
    }
    let anthropic = client.chat("m", Chat::Whole, 1).header("x-api-key", &key);
    assert_eq!(anthropic.send().await.unwrap().status(), 200);
    let both = client
        .chat("m", Chat::Whole, 1)
        .header("x-api-key", "other");
    let both = with(both, &key).send().await.unwrap();
    assert_eq!(code_of(both).await, (400, "two_api_keys".to_owned()));
    let models = client.get("/v1/models").send().await.unwrap();
    assert_eq!(models.status(), 401);
    assert_eq!(upstream.requests(), requests + 1);

    let page = worker.metrics().await;
    let rejected = |reason: &str| page.sum("forebay_auth_rejected_total", &[reason]);
    assert_eq!(rejected("reason=\"missing\""), 2.0);
    assert_eq!(rejected("reason=\"unknown\""), 4.0);
    assert_eq!(rejected("reason=\"two_keys\""), 1.0);

    // With the last key gone the door stays shut.
    revoke(&cluster, &id).await;
    told(&cluster, &[&worker]).await;
    assert_eq!(status(&client, &key).await, 401);
    assert_eq!(client.status("m").await.unwrap().as_u16(), 401);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_uses_the_models_that_it_names() {
    let (cluster, worker) = Cluster::with_worker().await;
    let upstream = RawUpstream::start(ANSWER, After::Keep).await;
    for id in ["m", "n"] {
        let mut model = model_at(id, &upstream.url());
        model.aliases = vec![format!("{id}-alias")];
        cluster.create_and_wait(model).await;
    }
    let of = |models: &[&str]| wire::Key {
        models: models.iter().map(ToString::to_string).collect(),
        ..wire::Key::default()
    };
    let (_, by_id) = make(&cluster, of(&["m"])).await;
    let (_, by_alias) = make(&cluster, of(&["n-alias"])).await;
    told(&cluster, &[&worker]).await;
    let client = worker.client();
    for (key, name, expected) in [
        (&by_id, "m", 200),
        (&by_id, "m-alias", 200),
        (&by_id, "n", 403),
        (&by_id, "does-not-exist", 403),
        (&by_alias, "n-alias", 200),
        (&by_alias, "n", 403),
    ] {
        let request = client.chat(name, Chat::Whole, 1);
        let answer = with(request, key).send().await.unwrap();
        assert_eq!(answer.status().as_u16(), expected, "{name}");
        if expected == 403 {
            assert_eq!(answer.headers()["x-should-retry"], "false");
            assert_eq!(code_of(answer).await.1, "model_not_allowed");
        }
    }
    for (key, names) in [(&by_id, vec!["m", "m-alias"]), (&by_alias, vec!["n-alias"])] {
        let list = with(client.get("/v1/models"), key).send().await.unwrap();
        let list: Value = list.json().await.unwrap();
        let data = list["data"].as_array().unwrap();
        let listed: Vec<_> = data.iter().map(|m| m["id"].as_str().unwrap()).collect();
        assert_eq!(listed, names);
    }
    let one = with(client.get("/v1/models/n"), &by_id)
        .send()
        .await
        .unwrap();
    assert_eq!(one.status(), 403);
}

/// Makes requests with the key until it is refused, at each worker, and tells how long that took at the slowest.
async fn until_refused(workers: &[WorkerHandle], key: &str) -> Duration {
    let began = Instant::now();
    for worker in workers {
        let client = worker.client();
        eventually_within(REVOKED_WITHIN, "the revoked key is refused", async || {
            (status(&client, key).await == 401).then_some(())
        })
        .await;
    }
    began.elapsed()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revoked_key_is_refused_everywhere_whatever_a_rollout_does() {
    let rings = RolloutSettings {
        rings: "1,50%".parse().unwrap(),
        soak: Duration::from_secs(4),
        max_errors: 0.1,
        max_slowdown: 3.0,
    };
    let mut cluster = Cluster::with_rings(rings).await;
    let upstream = RawUpstream::start(ANSWER, After::Keep).await;
    cluster.create(model_at("m", &upstream.url())).await;
    let mut workers = Vec::new();
    for n in 0..4 {
        let worker = cluster.worker(&format!("w{n}")).await;
        worker.ready().await;
        workers.push(worker);
    }
    let mut keys = Vec::new();
    for _ in 0..3 {
        keys.push(make(&cluster, wire::Key::default()).await);
    }
    told(&cluster, &workers.iter().collect::<Vec<_>>()).await;
    for worker in &workers {
        // The first model, too, comes in rings.
        eventually_within(Duration::from_secs(60), "the worker serves", async || {
            (status(&worker.client(), &keys[0].1).await == 200).then_some(())
        })
        .await;
    }

    // A candidate soaks in its first ring.
    cluster.create(model_at("other", &upstream.url())).await;
    let revoked = revoke(&cluster, &keys[0].0).await;
    let took = until_refused(&workers, &keys[0].1).await;
    assert!(took < REVOKED_WITHIN, "{took:?}");
    assert_eq!(revoked.state(), wire::KeyState::Revoked);
    for worker in &workers {
        assert_eq!(status(&worker.client(), &keys[1].1).await, 200);
    }

    // Rolled back to before the key was made, and started anew: it stays revoked.
    let mut revisions = wire::revisions_client::RevisionsClient::new(cluster.channel());
    let back = wire::RollbackRevisionRequest {
        revision: 2,
        ..Default::default()
    };
    revisions.rollback_revision(back).await.unwrap();
    cluster.stop_control().await;
    cluster.start_control().await;
    let request = wire::GetKeyRequest {
        id: keys[0].0.clone(),
    };
    let kept = cluster.keys().get_key(request).await.unwrap().into_inner();
    assert_eq!(kept.state(), wire::KeyState::Revoked);
    for worker in &workers {
        assert_eq!(status(&worker.client(), &keys[0].1).await, 401);
        assert_eq!(status(&worker.client(), &keys[1].1).await, 200);
    }

    away_and_alone(cluster, workers, &keys).await;
}

/// Workers that are away learn of what was revoked meanwhile, and know it still when they start alone.
async fn away_and_alone(
    mut cluster: Cluster,
    mut workers: Vec<WorkerHandle>,
    keys: &[(String, String)],
) {
    // While a worker was away a key was revoked: it learns of it before it serves what it did not.
    let away = workers.pop().unwrap();
    away.stop().await;
    revoke(&cluster, &keys[1].0).await;
    let back = cluster.worker("w3").await;
    told(&cluster, &[&back]).await;
    assert_eq!(status(&back.client(), &keys[1].1).await, 401);
    assert_eq!(status(&back.client(), &keys[2].1).await, 200);

    // And with the control plane gone it still knows.
    cluster.stop_control().await;
    back.stop().await;
    let alone = cluster.worker("w3").await;
    alone.ready().await;
    assert_eq!(status(&alone.client(), &keys[0].1).await, 401);
    assert_eq!(status(&alone.client(), &keys[1].1).await, 401);
    assert_eq!(status(&alone.client(), &keys[2].1).await, 200);
    let files = std::fs::read_dir(cluster.dir().join("w3/last-known-good")).unwrap();
    for file in files {
        let bytes = std::fs::read(file.unwrap().path()).unwrap();
        let text = String::from_utf8_lossy(&bytes);
        assert!(keys.iter().all(|(_, key)| !text.contains(&key[17..])));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_ends_when_its_time_is_over() {
    let (cluster, worker) = Cluster::with_worker().await;
    let upstream = RawUpstream::start(ANSWER, After::Keep).await;
    cluster
        .create_and_wait(model_at("m", &upstream.url()))
        .await;
    let soon = SystemTime::now() + Duration::from_secs(4);
    let key = wire::Key {
        expire_time: Some(timestamp_to_wire(soon)),
        ..wire::Key::default()
    };
    let (id, key) = make(&cluster, key).await;
    told(&cluster, &[&worker]).await;
    let client = worker.client();
    assert_eq!(status(&client, &key).await, 200);
    eventually("the key has expired", async || {
        (status(&client, &key).await == 401).then_some(())
    })
    .await;
    assert!(SystemTime::now() >= soon);
    let request = wire::GetKeyRequest { id: id.clone() };
    let shown = cluster.keys().get_key(request).await.unwrap().into_inner();
    assert_eq!(shown.state(), wire::KeyState::Expired);
    // A longer one it is again.
    let request = wire::UpdateKeyRequest {
        key: Some(wire::Key {
            id,
            expire_time: Some(timestamp_to_wire(soon + Duration::from_secs(600))),
            ..wire::Key::default()
        }),
        ..wire::UpdateKeyRequest::default()
    };
    cluster.keys().update_key(request).await.unwrap();
    told(&cluster, &[&worker]).await;
    assert_eq!(status(&client, &key).await, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_keeps_to_its_limits_and_is_told_how_it_stands() {
    let (cluster, worker) = Cluster::with_worker().await;
    let upstream = RawUpstream::start(ANSWER, After::Keep).await;
    cluster
        .create_and_wait(model_at("m", &upstream.url()))
        .await;
    let requests = wire::Key {
        requests_per_minute: Some(3),
        ..wire::Key::default()
    };
    let tokens = wire::Key {
        tokens_per_minute: Some(60),
        ..wire::Key::default()
    };
    let (_, few) = make(&cluster, requests).await;
    let (_, short) = make(&cluster, tokens).await;
    told(&cluster, &[&worker]).await;
    let client = worker.client();
    for left in [2, 1, 0] {
        let answer = chat(&client, &few).await;
        assert_eq!(answer.status(), 200);
        assert_eq!(answer.headers()["x-ratelimit-limit-requests"], "3");
        let told = &answer.headers()["x-ratelimit-remaining-requests"];
        assert_eq!(told, left.to_string().as_str());
    }
    let refused = chat(&client, &few).await;
    let after: u64 = refused.headers()["retry-after"]
        .to_str()
        .unwrap()
        .parse()
        .unwrap();
    assert!((1..=20).contains(&after), "{after}");
    assert!(refused.headers().contains_key("x-ratelimit-reset-requests"));
    assert!(!refused.headers().contains_key("x-should-retry"));
    assert_eq!(
        code_of(refused).await,
        (429, "rate_limit_exceeded".to_owned())
    );
    // Some 25 tokens each.
    let mut served = 0;
    let refused = loop {
        let answer = chat(&client, &short).await;
        match answer.status().as_u16() {
            200 => served += 1,
            _ => break answer,
        }
    };
    assert!((1..=3).contains(&served), "{served}");
    assert_eq!(refused.headers()["x-ratelimit-limit-tokens"], "60");
    assert_eq!(
        code_of(refused).await,
        (429, "rate_limit_exceeded".to_owned())
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_has_so_many_requests_at_a_time_and_each_is_given_back_once() {
    let (cluster, worker) = Cluster::with_worker().await;
    let upstream = MockServer::start(MockConfig {
        interval: Duration::from_millis(20),
        ..MockConfig::serving("m")
    })
    .await
    .unwrap();
    cluster
        .create_and_wait(model_at("m", &upstream.url()))
        .await;
    let key = wire::Key {
        max_concurrent: Some(2),
        ..wire::Key::default()
    };
    let (_, key) = make(&cluster, key).await;
    told(&cluster, &[&worker]).await;
    let client = worker.client();
    for _round in 0..3 {
        let mut streams = Vec::new();
        for _ in 0..2 {
            let stream = with(client.chat("m", Chat::Stream, 1_000), &key);
            let stream = stream.send().await.unwrap();
            assert_eq!(stream.status(), 200);
            streams.push(stream);
        }
        let refused = chat(&client, &key).await;
        assert_eq!(refused.headers()["retry-after"], "1");
        assert_eq!(
            code_of(refused).await,
            (429, "rate_limit_exceeded".to_owned())
        );
        // Their clients go away in the middle.
        drop(streams);
        eventually("the places are free again", async || {
            (status(&client, &key).await == 200).then_some(())
        })
        .await;
        eventually("nothing is in flight", async || {
            (upstream.stats().in_flight == 0).then_some(())
        })
        .await;
    }
}

fn with_token(model: wire::Model, tokens: &[&str]) -> wire::Model {
    let endpoints = model.endpoints.into_iter().zip(tokens);
    let endpoints = endpoints.map(|(endpoint, token)| wire::Endpoint {
        credential: (!token.is_empty()).then(|| wire::Credential {
            bearer_token: (*token).to_owned(),
            ..wire::Credential::default()
        }),
        ..endpoint
    });
    wire::Model {
        endpoints: endpoints.collect(),
        ..model
    }
}

async fn update(cluster: &Cluster, model: wire::Model) -> wire::Model {
    let request = wire::UpdateModelRequest {
        model: Some(model),
        ..wire::UpdateModelRequest::default()
    };
    let updated = cluster.registry().update_model(request).await;
    let updated = updated.unwrap().into_inner();
    cluster.rolled_out(updated.revision).await;
    updated
}

/// What stands in `authorization` of each request.
fn carried(upstream: &RawUpstream) -> Vec<String> {
    let heads = upstream.heads();
    let value = |head: &String| {
        let mut lines = head.lines();
        let line = lines.find(|line| line.to_lowercase().starts_with("authorization:"));
        line.map_or(String::new(), |line| line[14..].trim().to_owned())
    };
    heads.iter().map(value).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn each_upstream_sees_its_own_credential_and_no_other() {
    let (cluster, worker) = Cluster::with_worker().await;
    // One closes each connection after its answer: retries and new connections all the time.
    let a = RawUpstream::start(ANSWER, After::Close).await;
    let b = RawUpstream::start(ANSWER, After::Keep).await;
    let open = RawUpstream::start(ANSWER, After::Keep).await;
    let mut both = model_at("m", &a.url());
    both.endpoints.push(wire::Endpoint {
        url: b.url(),
        ..wire::Endpoint::default()
    });
    cluster
        .create_and_wait(with_token(both.clone(), &["token-of-a", "token-of-b"]))
        .await;
    cluster.create_and_wait(model_at("n", &open.url())).await;
    let client = worker.client();
    let mut traffic = JoinSet::new();
    for n in 0..8 {
        let client = client.clone();
        traffic.spawn(async move {
            for round in 0..250 {
                let model = if (n + round) % 3 == 0 { "n" } else { "m" };
                let request = client.chat(model, Chat::Whole, 1);
                let request = request.header("x-api-key", "of-the-client");
                let answer = with(request, "of-the-client").send().await.unwrap();
                assert!(answer.status().is_success() || answer.status() == 502);
            }
        });
    }
    // Meanwhile the two change places, and pools are made anew.
    for round in 0..6 {
        let (first, second) = match round % 2 {
            0 => ((&b, "token-of-b"), (&a, "token-of-a")),
            _ => ((&a, "token-of-a"), (&b, "token-of-b")),
        };
        both.endpoints[0].url = first.0.url();
        both.endpoints[1].url = second.0.url();
        update(&cluster, with_token(both.clone(), &[first.1, second.1])).await;
    }
    traffic.join_all().await;
    for (upstream, own) in [(&a, "Bearer token-of-a"), (&b, "Bearer token-of-b")] {
        let carried = carried(upstream);
        assert!(carried.len() > 100, "{}", carried.len());
        let foreign: Vec<_> = carried.iter().filter(|value| *value != own).collect();
        assert!(foreign.is_empty(), "{foreign:?}");
    }
    // An endpoint without one gets what the client sends, as long as there are no keys.
    assert!(
        carried(&open)
            .iter()
            .all(|value| value == "Bearer of-the-client")
    );
    for upstream in [&a, &b] {
        let heads = upstream.heads();
        assert!(
            heads
                .iter()
                .all(|head| !head.to_lowercase().contains("x-api-key"))
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_credential_is_kept_cleared_and_never_read_back() {
    const CANARY: &str = "canary-5d1f0c";
    let (cluster, worker) = Cluster::with_worker().await;
    let a = RawUpstream::start(ANSWER, After::Keep).await;
    let b = RawUpstream::start(ANSWER, After::Keep).await;
    let model = model_at("m", &a.url());
    let created = cluster
        .create_and_wait(with_token(model.clone(), &[CANARY]))
        .await;
    let credential = created.endpoints[0].credential.clone().unwrap();
    assert!(credential.bearer_token.is_empty() && credential.sealed.is_empty());
    assert_eq!(credential.fingerprint.len(), 16);
    let client = worker.client();
    assert_eq!(status(&client, "x").await, 200);

    // Left out it stays, also when the endpoint is given back as it was read, and the same again is no change.
    let kept = update(&cluster, model.clone()).await;
    assert_eq!(kept.revision, created.revision);
    let again = update(&cluster, with_token(model.clone(), &[CANARY])).await;
    assert_eq!(again.revision, created.revision);
    let mut read = again.clone();
    read.endpoints[0].weight = Some(7);
    let weighted = update(&cluster, read).await;
    let after = weighted.endpoints[0].credential.clone().unwrap();
    assert_eq!(after.fingerprint, credential.fingerprint);
    assert_eq!(status(&client, "x").await, 200);
    assert!(
        carried(&a)
            .iter()
            .all(|value| *value == format!("Bearer {CANARY}"))
    );

    // It does not move to another place by itself.
    let elsewhere = wire::UpdateModelRequest {
        model: Some(model_at("m", &b.url())),
        ..wire::UpdateModelRequest::default()
    };
    let refused = cluster
        .registry()
        .update_model(elsewhere)
        .await
        .unwrap_err();
    assert!(
        refused.message().contains("model.endpoints[0].credential"),
        "{refused}"
    );
    assert!(!refused.message().contains(CANARY));
    no_forgery(&cluster, &b).await;

    let mut cleared = model.clone();
    cleared.endpoints[0].credential = Some(wire::Credential {
        clear: true,
        ..wire::Credential::default()
    });
    let cleared = update(&cluster, cleared).await;
    assert!(cleared.endpoints[0].credential.is_none());
    assert_eq!(status(&client, "x").await, 200);
    assert_eq!(carried(&a).last().unwrap(), "Bearer x");

    let request = wire::DiffRevisionsRequest {
        from: Some(1),
        to: Some(created.revision),
        ..Default::default()
    };
    nothing_tells(&cluster, &worker, request, CANARY, &credential.fingerprint).await;
}

/// A sealed one cannot be smuggled in.
async fn no_forgery(cluster: &Cluster, upstream: &RawUpstream) {
    let mut forged = model_at("forged", &upstream.url());
    forged.endpoints[0].credential = Some(wire::Credential {
        sealed: vec![1; 64].into(),
        fingerprint: "0123456789abcdef".into(),
        ..wire::Credential::default()
    });
    let request = wire::CreateModelRequest {
        model: Some(forged),
        ..wire::CreateModelRequest::default()
    };
    let refused = cluster.registry().create_model(request).await.unwrap_err();
    assert!(refused.message().contains("bearer_token"), "{refused}");
}

/// What goes through history tells fingerprints, and no file has it in clear.
async fn nothing_tells(
    cluster: &Cluster,
    worker: &WorkerHandle,
    request: wire::DiffRevisionsRequest,
    canary: &str,
    fingerprint: &str,
) {
    let mut revisions = wire::revisions_client::RevisionsClient::new(cluster.channel());
    let diff = revisions.diff_revisions(request).await.unwrap();
    let diff = format!("{diff:?}");
    assert!(
        diff.contains(fingerprint) && !diff.contains(canary),
        "{diff}"
    );
    assert!(!diff.contains("sealed"), "{diff}");
    let config = worker.document("/config").await.to_string();
    let pools = worker.document("/pools").await.to_string();
    assert!(!config.contains(canary) && !pools.contains(canary));
    let mut folders = vec![cluster.dir().to_owned()];
    let mut files = 0;
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => folders.push(path),
                false => {
                    let bytes = std::fs::read(&path).unwrap();
                    let found = bytes.windows(canary.len()).any(|w| w == canary.as_bytes());
                    assert!(!found, "{}", path.display());
                    files += 1;
                }
            }
        }
    }
    assert!(files > 5, "{files}");
}
