//! One trace from a client's call through queue, connect and upstream; one from a registration through
//! commit, push, apply and its answer. Two processes send them to one receiver.

use forebay_mock::{MockConfig, MockServer};
use forebay_proto::wire;
use forebay_tests::{Chat, Receiver, SeenSpan, eventually, model_at};
use tonic::Request;

use crate::roles::{ANY, Control, Worker};

const OPERATOR: (&str, &str) = ("4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7");
const CLIENT: (&str, &str) = ("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331");

fn traceparent((trace, span): (&str, &str)) -> String {
    format!("00-{trace}-{span}-01")
}

/// The one span of this name.
fn span<'a>(spans: &'a [SeenSpan], name: &str) -> &'a SeenSpan {
    let named: Vec<_> = spans.iter().filter(|span| span.name == name).collect();
    assert_eq!(named.len(), 1, "spans {name} of {spans:#?}");
    named[0]
}

#[tokio::test(flavor = "multi_thread")]
async fn traces_join_both_planes_and_the_upstream() {
    let receiver = Receiver::start().await;
    let otlp = receiver.url();
    let env = [("FOREBAY_OTLP_ENDPOINT", otlp.as_str())];
    let dir = tempfile::tempdir().unwrap();
    let control = Control::start(ANY, &dir.path().join("control"), &env).await;
    let worker = Worker::start(&control.url(), "w", &dir.path().join("w"), &env).await;
    worker.ready().await;
    let upstream = MockServer::start(MockConfig::serving("m")).await.unwrap();

    let mut request = Request::new(wire::CreateModelRequest {
        model: Some(model_at("m", &upstream.url())),
        ..Default::default()
    });
    let operator = traceparent(OPERATOR).parse().unwrap();
    request.metadata_mut().insert("traceparent", operator);
    control.registry().create_model(request).await.unwrap();
    eventually("served", async || {
        worker.client().status("m").await.filter(|s| *s == 200)
    })
    .await;
    // The connection is open by now; a second one is wanted, so that there is a connect to be seen.
    let first = worker
        .client()
        .chat("m", Chat::Stream, 40)
        .send()
        .await
        .unwrap();
    let asked = worker
        .client()
        .chat("m", Chat::Stream, 3)
        .header("traceparent", traceparent(CLIENT));
    let answer = asked.send().await.unwrap();
    assert!(answer.text().await.unwrap().contains("[DONE]"));
    drop(first);

    // What is not sent yet is sent at the end.
    for process in [worker.process, control.process] {
        let (code, _, err) = process.terminate().await;
        assert_eq!(code, Some(0), "{err}");
    }
    check_registration(&receiver.of_trace(OPERATOR.0));
    let upstream_span = check_request(&receiver.of_trace(CLIENT.0));
    let passed_on = traceparent((CLIENT.0, &upstream_span));
    let seen = upstream.stats().traceparents;
    assert!(seen.contains(&passed_on), "{passed_on} is not in {seen:?}");
}

fn check_registration(spans: &[SeenSpan]) {
    let (rpc, commit) = (span(spans, "CreateModel"), span(spans, "commit"));
    let (push, apply) = (span(spans, "push"), span(spans, "apply"));
    let answer = span(spans, "answer");
    assert_eq!(rpc.parent, OPERATOR.1);
    assert_eq!(commit.parent, rpc.id);
    assert_eq!(push.parent, commit.id);
    assert_eq!(apply.parent, push.id);
    assert_eq!(answer.parent, push.id);
    assert_eq!(answer.attributes["answer"], "ack");
    assert_eq!(rpc.service, "forebay-control");
    assert_eq!(apply.service, "forebay-worker");
    assert_eq!(commit.attributes["revision"], apply.attributes["revision"]);
}

/// Gives the id of the upstream call's span.
fn check_request(spans: &[SeenSpan]) -> String {
    let request = span(spans, "POST /v1/chat/completions");
    let (queue, connect) = (span(spans, "queue"), span(spans, "connect"));
    let upstream = span(spans, "upstream");
    assert_eq!(request.parent, CLIENT.1);
    assert_eq!(queue.parent, request.id);
    assert_eq!(connect.parent, queue.id);
    assert_eq!(upstream.parent, request.id);
    assert_eq!(request.attributes["model"], "m");
    assert_eq!(request.attributes["status"], "200");
    assert_eq!(upstream.attributes["connection"], "new");
    // Prompts and completions never enter a trace.
    let text = format!("{spans:?}");
    assert!(
        !text.contains("hello") && !text.contains("token0"),
        "{text}"
    );
    upstream.id.clone()
}
