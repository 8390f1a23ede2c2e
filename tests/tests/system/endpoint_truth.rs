//! What an endpoint serves is asked, told to who registers it, and a wrong one gets no requests.

use std::net::SocketAddr;

use forebay_mock::{MockConfig, MockServer, Speaks};
use forebay_proto::wire;
use forebay_tests::{Chat, Cluster, WorkerHandle, eventually, model_at};
use tonic::Code;
use tonic_types::StatusExt as _;

fn probed(model: wire::Model, mode: wire::ProbeMode) -> wire::Model {
    wire::Model {
        probe: Some(wire::EndpointProbe {
            mode: mode.into(),
            served_name: String::new(),
        }),
        ..model
    }
}

fn model_of(urls: &[String], mode: wire::ProbeMode) -> wire::Model {
    let mut model = probed(model_at("m", &urls[0]), mode);
    let more = urls[1..].iter().map(|url| wire::Endpoint {
        url: url.clone(),
        ..wire::Endpoint::default()
    });
    model.endpoints.extend(more);
    model
}

async fn mock(model: &str) -> MockServer {
    let config = MockConfig::serving(model);
    MockServer::start(config).await.unwrap()
}

/// One that serves this model where another was.
async fn mock_at(model: &str, listen: SocketAddr) -> MockServer {
    eventually("the port is free again", async || {
        let config = MockConfig {
            listen,
            ..MockConfig::serving(model)
        };
        MockServer::start(config).await.ok()
    })
    .await
}

async fn ask(worker: &WorkerHandle) -> (u16, String) {
    let answer = worker.client().chat("m", Chat::Whole, 1).send().await;
    let answer = answer.unwrap();
    (answer.status().as_u16(), answer.text().await.unwrap())
}

async fn quarantined(worker: &WorkerHandle, endpoint: &str) -> f64 {
    let labels = ["model=\"m\"", &format!("endpoint=\"{endpoint}\"")];
    let page = worker.metrics().await;
    page.sum("forebay_endpoint_quarantined", &labels)
}

async fn until_quarantined(worker: &WorkerHandle, endpoint: &str, addresses: f64) {
    eventually("the quarantine", async || {
        (quarantined(worker, endpoint).await == addresses).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_registers_is_told_what_is_served_and_a_wrong_endpoint_is_refused() {
    let cluster = Cluster::start().await;
    let (right, wrong) = (mock("m").await, mock("other").await);
    let gone = mock("m").await;
    let urls = [right.url(), wrong.url(), gone.url()];
    gone.stop().await;
    let mut registry = cluster.registry();
    let mut create = async |mode, validate_only| {
        let request = wire::CreateModelRequest {
            model: Some(model_of(&urls, mode)),
            validate_only,
            ..Default::default()
        };
        registry
            .create_model(request)
            .await
            .map(tonic::Response::into_inner)
    };
    use wire::ProbeVerdict::{Mismatch, Ok as Serves, Unreachable};
    let shown = create(wire::ProbeMode::Report, true).await.unwrap();
    let found: Vec<_> = shown.probe_results.iter().map(|r| r.verdict()).collect();
    assert_eq!(found, [Serves, Mismatch, Unreachable]);
    assert_eq!(shown.probe_results[1].listed, ["other"]);

    for trial in [true, false] {
        let refused = create(wire::ProbeMode::Enforce, trial).await.unwrap_err();
        assert_eq!(refused.code(), Code::FailedPrecondition);
        let details = refused.get_error_details();
        let bad = &details.bad_request().unwrap().field_violations;
        assert_eq!(bad.len(), 1, "{bad:?}");
        assert_eq!(bad[0].field, "model.endpoints[1].url");
        assert!(
            bad[0]
                .description
                .contains("it serves `other`, and not `m`"),
            "{bad:?}"
        );
        assert_eq!(details.error_info().unwrap().reason, "PROBE_FAILED");
    }
    let list = cluster
        .registry()
        .list_models(wire::ListModelsRequest::default())
        .await;
    assert!(
        list.unwrap().into_inner().models.is_empty(),
        "nothing was written"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_update_that_turns_it_on_or_leaves_it_on_is_asked_too() {
    use wire::ProbeVerdict::{Mismatch, Ok as Serves};
    let cluster = Cluster::start().await;
    let (right, wrong) = (mock("m").await, mock("other").await);
    let urls = [right.url(), wrong.url()];
    let shown = cluster
        .create(model_of(&urls, wire::ProbeMode::Report))
        .await;
    assert_eq!(shown.probe_results.len(), 2);
    let get = wire::GetModelRequest { id: "m".to_owned() };
    let kept = cluster
        .registry()
        .get_model(get)
        .await
        .unwrap()
        .into_inner();
    assert!(
        kept.probe_results.is_empty(),
        "only the answer to a write has them"
    );
    let update = |mode: wire::ProbeMode, path: &str| wire::UpdateModelRequest {
        model: Some(wire::Model {
            probe: Some(wire::EndpointProbe {
                mode: mode.into(),
                served_name: "other".to_owned(),
            }),
            ..model_at("m", "")
        }),
        update_mask: Some(prost_types::FieldMask {
            paths: vec![path.to_owned()],
        }),
        ..Default::default()
    };
    let enforce = update(wire::ProbeMode::Enforce, "probe.mode");
    let refused = cluster.registry().update_model(enforce).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    // Under another name it is the right one, and the other is not.
    let named = update(wire::ProbeMode::Unspecified, "probe.served_name");
    let named = cluster
        .registry()
        .update_model(named)
        .await
        .unwrap()
        .into_inner();
    let found: Vec<_> = named.probe_results.iter().map(|r| r.verdict()).collect();
    assert_eq!(found, [Mismatch, Serves]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeated_request_is_answered_as_before_whatever_is_served_by_now() {
    let cluster = Cluster::start().await;
    let upstream = mock("m").await;
    let at = upstream.addr();
    let request = wire::CreateModelRequest {
        model: Some(model_of(&[upstream.url()], wire::ProbeMode::Enforce)),
        request_id: "r1".to_owned(),
        ..Default::default()
    };
    let first = cluster.registry().create_model(request.clone()).await;
    let first = first.unwrap().into_inner();
    upstream.stop().await;
    let _other = mock_at("other", at).await;
    let again = cluster.registry().create_model(request).await;
    let again = again.unwrap().into_inner();
    assert_eq!((again.revision, &again.etag), (first.revision, &first.etag));
    assert_eq!(
        again.probe_results[0].verdict(),
        wire::ProbeVerdict::Mismatch
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_that_comes_back_with_another_model_gets_no_requests_until_it_has_this_one_again()
 {
    let (cluster, worker) = Cluster::with_worker().await;
    let (stays, changes) = (mock("m").await, mock("m").await);
    let at = changes.addr();
    let urls = [stays.url(), changes.url()];
    cluster
        .create_and_wait(model_of(&urls, wire::ProbeMode::Enforce))
        .await;
    eventually("both serve", async || {
        assert_eq!(ask(&worker).await.0, 200);
        (stays.stats().requests > 0 && changes.stats().requests > 0).then_some(())
    })
    .await;
    assert_eq!(quarantined(&worker, "e2").await, 0.0);

    // The engine is started again with other weights.
    changes.stop().await;
    let other = mock_at("other", at).await;
    eventually("it is found out", async || {
        assert_ne!(ask(&worker).await.0, 503);
        (quarantined(&worker, "e2").await == 1.0).then_some(())
    })
    .await;
    let before = other.stats().requests;
    for _ in 0..50 {
        assert_eq!(ask(&worker).await.0, 200);
    }
    assert_eq!(other.stats().requests, before, "siblings serve");
    assert_eq!(quarantined(&worker, "e1").await, 0.0);
    let pools = worker.document("/pools").await.to_string();
    assert!(pools.contains("it serves `other`, and not `m`"), "{pools}");

    // While it is away it stays out, and it returns with the right ones.
    other.stop().await;
    let right = mock_at("m", at).await;
    until_quarantined(&worker, "e2", 0.0).await;
    eventually("it serves again", async || {
        assert_eq!(ask(&worker).await.0, 200);
        (right.stats().requests > 0).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_right_endpoint_requests_are_refused_with_the_reason_and_served_when_there_is_one()
 {
    let (cluster, worker) = Cluster::with_worker().await;
    let only = mock("m").await;
    let at = only.addr();
    let model = model_of(&[only.url()], wire::ProbeMode::Enforce);
    cluster.create_and_wait(model).await;
    assert_eq!(ask(&worker).await.0, 200);
    only.stop().await;
    let other = mock_at("other", at).await;
    eventually("it is found out", async || {
        ask(&worker).await;
        (quarantined(&worker, "e1").await == 1.0).then_some(())
    })
    .await;
    let (status, text) = ask(&worker).await;
    assert_eq!(status, 503, "{text}");
    assert!(
        text.contains("wrong_model") && text.contains("it serves `other`"),
        "{text}"
    );
    let before = other.stats().requests;
    for _ in 0..10 {
        assert_eq!(ask(&worker).await.0, 503);
    }
    assert_eq!(other.stats().requests, before);
    other.stop().await;
    let _right = mock_at("m", at).await;
    until_quarantined(&worker, "e1", 0.0).await;
    assert_eq!(ask(&worker).await.0, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_of_which_it_is_only_reported_is_used() {
    let (cluster, worker) = Cluster::with_worker().await;
    let wrong = mock("other").await;
    let reported = model_of(&[wrong.url()], wire::ProbeMode::Report);
    cluster.create_and_wait(reported).await;
    // Once by the control plane, once by the worker.
    eventually("the worker asks, too", async || {
        (wrong.stats().opened >= 2).then_some(())
    })
    .await;
    let before = wrong.stats().requests;
    ask(&worker).await;
    assert_eq!(wrong.stats().requests, before + 1);
    assert_eq!(quarantined(&worker, "e1").await, 0.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_control_plane_cannot_ask_the_worker_does() {
    let (cluster, worker) = Cluster::with_worker().await;
    let config = MockConfig {
        speaks: Speaks::Http2,
        ..MockConfig::serving("other")
    };
    let http2 = MockServer::start(config).await.unwrap();
    let dir = tempfile::tempdir().unwrap();
    let config = MockConfig {
        unix: Some(dir.path().join("s")),
        ..MockConfig::serving("m")
    };
    let unix = MockServer::start(config).await.unwrap();
    let mut model = model_of(&[http2.url(), unix.url()], wire::ProbeMode::Enforce);
    model.endpoints[0].protocol = wire::EndpointProtocol::Http2.into();
    let shown = cluster.create_and_wait(model).await;
    use wire::ProbeVerdict::NotProbed;
    let found: Vec<_> = shown.probe_results.iter().map(|r| r.verdict()).collect();
    assert_eq!(found, [NotProbed, NotProbed]);
    until_quarantined(&worker, "e1", 1.0).await;
    let before = http2.stats().requests;
    for _ in 0..20 {
        assert_eq!(ask(&worker).await.0, 200);
    }
    assert_eq!(http2.stats().requests, before);
    assert_eq!(quarantined(&worker, "e2").await, 0.0);
}
