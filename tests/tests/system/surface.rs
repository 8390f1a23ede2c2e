//! Every path that is served, its errors in the shape of its API, and what is asked about responses.

use std::{collections::BTreeSet, time::Duration};

use forebay_mock::{MockConfig, MockServer};
use forebay_proto::wire;
use forebay_tests::{Client, Cluster, WorkerHandle, model_at};
use serde_json::{Value, json};

async fn mock(name: &str) -> MockServer {
    MockServer::start(MockConfig {
        name: name.to_owned(),
        interval: Duration::from_millis(1),
        tokens: 3,
        ..MockConfig::serving("m")
    })
    .await
    .unwrap()
}

/// A model `m` (also `vendor/m`) at so many mocks.
async fn setup(mocks: usize) -> (Cluster, WorkerHandle, Vec<MockServer>) {
    let (cluster, worker) = Cluster::with_worker().await;
    let mut all = Vec::new();
    for n in 0..mocks {
        all.push(mock(&format!("mock{n}")).await);
    }
    cluster.create_and_wait(model_of(&all)).await;
    (cluster, worker, all)
}

fn model_of(mocks: &[MockServer]) -> wire::Model {
    let endpoint = |mock: &MockServer| wire::Endpoint {
        url: mock.url(),
        ..wire::Endpoint::default()
    };
    wire::Model {
        aliases: vec!["vendor/m".to_owned()],
        endpoints: mocks.iter().map(endpoint).collect(),
        ..model_at("m", "")
    }
}

async fn post(client: &Client, path: &str, body: Value) -> (u16, Value) {
    let answer = client.post(path).json(&body).send().await.unwrap();
    (answer.status().as_u16(), answer.json().await.unwrap())
}

async fn get(client: &Client, path: &str) -> (u16, Value) {
    let answer = client.get(path).send().await.unwrap();
    (answer.status().as_u16(), answer.json().await.unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn every_path_is_served_with_an_alias_in_it() {
    let (_cluster, worker, mocks) = setup(1).await;
    let client = worker.client();
    for (path, wanted, has) in [
        ("/v1/chat/completions", json!({"messages": []}), "choices"),
        ("/v1/completions", json!({"prompt": "x"}), "choices"),
        ("/v1/embeddings", json!({"input": "x"}), "data"),
        ("/v1/responses", json!({"input": "x"}), "output"),
        (
            "/v1/messages",
            json!({"messages": [], "max_tokens": 1}),
            "content",
        ),
        (
            "/v1/messages/count_tokens",
            json!({"messages": []}),
            "input_tokens",
        ),
        (
            "/v1/rerank",
            json!({"query": "x", "documents": ["y"]}),
            "results",
        ),
        (
            "/v2/rerank",
            json!({"query": "x", "documents": ["y"]}),
            "results",
        ),
        (
            "/rerank",
            json!({"query": "x", "documents": ["y"]}),
            "results",
        ),
        ("/v1/score", json!({"text_1": "x", "text_2": ["y"]}), "data"),
        ("/score", json!({"text_1": "x", "text_2": ["y"]}), "data"),
        ("/classify", json!({"input": ["x"]}), "data"),
        ("/pooling", json!({"input": ["x"]}), "data"),
        ("/tokenize", json!({"prompt": "x y"}), "tokens"),
        ("/detokenize", json!({"tokens": [1, 2]}), "prompt"),
    ] {
        let mut body = wanted.clone();
        body["model"] = json!("vendor/m");
        let (status, answer) = post(&client, path, body).await;
        assert_eq!(status, 200, "{path}: {answer}");
        assert!(answer.get(has).is_some(), "{path}: {answer}");
        // Without a model: for the two that are asked without one, it is the only one.
        let (status, answer) = post(&client, path, wanted).await;
        match path {
            "/tokenize" | "/detokenize" => assert_eq!(status, 200, "{path}: {answer}"),
            "/v1/messages" | "/v1/messages/count_tokens" => {
                assert_eq!(answer["type"], "error", "{answer}");
                assert_eq!(answer["error"]["type"], "invalid_request_error");
            }
            _ => assert_eq!(
                (status, &answer["error"]["param"]),
                (400, &json!("model")),
                "{path}"
            ),
        }
    }
    let speech = client
        .post("/v1/audio/speech")
        .json(&json!({"model": "m", "input": "x"}));
    let speech = speech.send().await.unwrap();
    assert_eq!(speech.headers()["content-type"], "audio/wav");
    assert!(speech.bytes().await.unwrap().starts_with(b"RIFF"));
    assert_eq!(mocks[0].stats().by_model.keys().collect::<Vec<_>>(), ["m"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_have_the_shape_of_their_api() {
    let (cluster, worker, _mocks) = setup(1).await;
    let client = worker.client();
    let (status, answer) = post(&client, "/v1/messages", json!({"model": "nobody"})).await;
    assert_eq!(status, 404);
    assert_eq!(answer["error"]["type"], "not_found_error", "{answer}");
    assert_eq!(answer.get("type"), Some(&json!("error")));
    let wrong = client.get("/v1/messages").send().await.unwrap();
    assert_eq!(
        (wrong.status().as_u16(), &wrong.headers()["allow"]),
        (405, &"POST".parse().unwrap())
    );
    let body: Value = wrong.json().await.unwrap();
    assert_eq!(body["type"], "error");
    // With two models it must be said which.
    cluster
        .create_and_wait(model_at("other", "http://127.0.0.1:1"))
        .await;
    let (status, answer) = post(&client, "/tokenize", json!({"prompt": "x"})).await;
    let message = answer["error"]["message"].as_str().unwrap();
    assert_eq!(status, 400);
    assert!(message.contains("m, other"), "{message}");
}

#[tokio::test(flavor = "multi_thread")]
async fn audio_goes_up_whole_and_streams() {
    let (_cluster, worker, _mocks) = setup(1).await;
    let client = worker.client();
    let sound = "RIFF\0\r\n--x\r\n\r\n".repeat(20_000);
    for (before, stream) in [(true, "false"), (false, "true")] {
        let part = |name: &str, value: &str| {
            format!("--b\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\r\n{value}\r\n")
        };
        let file = format!(
            "--b\r\nContent-Disposition: form-data; name=\"file\"; filename=\"a.wav\"\r\n\
             Content-Type: audio/wav\r\n\r\n{sound}\r\n"
        );
        let model = part("model", "vendor/m");
        let stream_part = part("stream", stream);
        let body = match before {
            true => format!("{model}{stream_part}{file}--b--\r\n"),
            false => format!("{file}{stream_part}{model}--b--\r\n"),
        };
        let answer = client
            .post("/v1/audio/transcriptions")
            .header("content-type", "multipart/form-data; boundary=\"b\"")
            .body(body)
            .send()
            .await
            .unwrap();
        assert_eq!(answer.status(), 200);
        let text = answer.text().await.unwrap();
        match before {
            true => assert!(
                text.contains(&format!("\"seconds\":{}", sound.len())),
                "{text}"
            ),
            false => assert!(text.ends_with("data: [DONE]\n\n"), "{text}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn models_are_those_of_the_configuration() {
    let (_cluster, worker, mocks) = setup(1).await;
    let client = worker.client();
    let (_, list) = get(&client, "/v1/models").await;
    let ids: BTreeSet<&str> = list["data"]
        .as_array()
        .unwrap()
        .iter()
        .map(|m| m["id"].as_str().unwrap())
        .collect();
    assert_eq!(ids, BTreeSet::from(["m", "vendor/m"]));
    for path in ["/v1/models/vendor/m", "/v1/models/vendor%2Fm"] {
        assert_eq!(get(&client, path).await.1["id"], "vendor/m", "{path}");
    }
    assert_eq!(get(&client, "/v1/models/nobody").await.0, 404);
    let url = format!("http://{}/v1/models", worker.gateway());
    let http = reqwest::Client::new();
    let head = http.head(&url).send().await.unwrap();
    assert_eq!(head.status(), 200);
    let length = head.headers()["content-length"]
        .to_str()
        .unwrap()
        .to_owned();
    assert_ne!(length, "0");
    assert_eq!(head.text().await.unwrap(), "");
    let deleted = http.delete(&url).send().await.unwrap();
    assert_eq!(deleted.status(), 405);
    assert_eq!(deleted.headers()["allow"], "GET, HEAD");
    assert_eq!(mocks[0].stats().requests, 0);
}

/// Makes a response, read as a whole or as a stream; gives its id.
async fn respond(client: &Client, extra: Value) -> String {
    let mut body = json!({"model": "m", "input": "x"});
    body.as_object_mut()
        .unwrap()
        .extend(extra.as_object().unwrap().clone());
    let answer = client
        .post("/v1/responses")
        .json(&body)
        .send()
        .await
        .unwrap();
    assert_eq!(answer.status(), 200);
    let text = answer.text().await.unwrap();
    let text = match body["stream"] == json!(true) {
        true => {
            assert!(text.contains("event: response.completed"), "{text}");
            text.lines()
                .find_map(|line| line.strip_prefix("data: "))
                .unwrap()
        }
        false => &text,
    };
    let value: Value = serde_json::from_str(text).unwrap();
    let id = value["id"].as_str().or(value["response"]["id"].as_str());
    id.unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_asked_about_a_response_goes_where_it_was_made() {
    let (_cluster, worker, mocks) = setup(3).await;
    let client = worker.client();
    for n in 0..12 {
        let id = respond(&client, json!({"stream": n % 2 == 0})).await;
        let before: u64 = mocks.iter().map(|mock| mock.stats().requests).sum();
        let (status, answer) = get(&client, &format!("/v1/responses/{id}?stream=false&x=y")).await;
        assert_eq!(
            (status, answer["id"].as_str()),
            (200, Some(id.as_str())),
            "{answer}"
        );
        let after: u64 = mocks.iter().map(|mock| mock.stats().requests).sum();
        assert_eq!(after, before + 1, "only the one that made it was asked");
        let next = respond(&client, json!({"previous_response_id": id})).await;
        assert_ne!(next, id);
    }
    let id = respond(
        &client,
        json!({"background": true, "max_output_tokens": 10_000}),
    )
    .await;
    let (status, answer) = post(&client, &format!("/v1/responses/{id}/cancel"), json!({})).await;
    assert_eq!((status, &answer["status"]), (200, &json!("cancelled")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_did_not_see_it_made_asks() {
    let (cluster, worker, mocks) = setup(3).await;
    let other = cluster.worker("w2").await;
    other.ready().await;
    forebay_tests::eventually("the other one serves", async || {
        other
            .client()
            .status("m")
            .await
            .filter(|status| *status == 200)
    })
    .await;
    for _ in 0..4 {
        let id = respond(&worker.client(), json!({})).await;
        let path = format!("/v1/responses/{id}");
        assert_eq!(get(&other.client(), &path).await.1["id"], json!(id));
        let before: u64 = mocks.iter().map(|mock| mock.stats().requests).sum();
        assert_eq!(get(&other.client(), &path).await.0, 200);
        let after: u64 = mocks.iter().map(|mock| mock.stats().requests).sum();
        assert_eq!(after, before + 1, "the second time it is known");
    }
    let (status, answer) = get(&other.client(), "/v1/responses/resp_nobody").await;
    assert_eq!(
        (status, &answer["error"]["code"]),
        (404, &json!("response_not_found"))
    );
    assert_eq!(answer["error"]["param"], "response_id");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_response_whose_endpoint_is_gone_is_gone() {
    let (cluster, worker, mut mocks) = setup(2).await;
    let client = worker.client();
    let mut ids = Vec::new();
    // Which endpoint makes one is chance; each has made some.
    while ids.len() < 8 || mocks.iter().any(|mock| mock.stats().requests == 0) {
        ids.push(respond(&client, json!({})).await);
    }
    let (gone, made) = (mocks.pop().unwrap(), ids.len() as u64);
    let model = wire::UpdateModelRequest {
        model: Some(model_of(&mocks)),
        update_mask: Some(prost_types::FieldMask {
            paths: vec!["endpoints".to_owned()],
        }),
        ..wire::UpdateModelRequest::default()
    };
    cluster.registry().update_model(model).await.unwrap();
    let asked = gone.stats().requests;
    let mut statuses = BTreeSet::new();
    forebay_tests::eventually("it is taken out", async || {
        statuses.clear();
        for id in &ids {
            statuses.insert(get(&client, &format!("/v1/responses/{id}")).await.0);
        }
        statuses.contains(&404).then_some(())
    })
    .await;
    assert_eq!(statuses, BTreeSet::from([200, 404]));
    assert!(
        gone.stats().requests <= asked + made,
        "no more than while it was there"
    );
}

/// Every slot is in use elsewhere: what only one endpoint can answer waits its turn, and gets it.
#[tokio::test(flavor = "multi_thread")]
async fn a_full_pool_makes_room_at_the_right_endpoint() {
    let (cluster, worker) = Cluster::with_worker().await;
    let mocks = [mock("a").await, mock("b").await];
    let model = wire::Model {
        pool: Some(wire::Pool {
            max_concurrent: Some(1),
            ..wire::Pool::default()
        }),
        ..model_of(&mocks)
    };
    cluster.create_and_wait(model).await;
    let client = worker.client();
    let mut ids = Vec::new();
    for _ in 0..6 {
        ids.push(respond(&client, json!({})).await);
    }
    for id in ids.iter().chain(&ids) {
        assert_eq!(get(&client, &format!("/v1/responses/{id}")).await.0, 200);
    }
    let peak = mocks.iter().map(|mock| mock.stats().peak_open).max();
    assert_eq!(peak, Some(1));
}
