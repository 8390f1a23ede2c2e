//! The history over the wire: who and why, diffs, several changes as one, and a way back that keeps connections.

use std::collections::BTreeSet;

use forebay_mock::{MockConfig, MockServer};
use forebay_proto::{limits, wire};
use forebay_tests::{Chat, Cluster, eventually, model_at};
use prost::Message as _;
use tonic::{Code, Request, Status, transport::Channel};
use tonic_types::StatusExt as _;
use wire::{batch_item::Change, revisions_client::RevisionsClient};

const URL: &str = "http://10.0.0.1:8000";

fn revisions(cluster: &Cluster) -> RevisionsClient<Channel> {
    RevisionsClient::new(cluster.channel())
}

fn sized(id: &str, url: &str, size: u32) -> wire::Model {
    wire::Model {
        pool: Some(wire::Pool {
            max_concurrent: Some(size),
            ..wire::Pool::default()
        }),
        ..model_at(id, url)
    }
}

fn put(model: wire::Model) -> wire::BatchItem {
    wire::BatchItem {
        change: Some(Change::Update(wire::UpdateModelRequest {
            model: Some(model),
            allow_missing: true,
            ..wire::UpdateModelRequest::default()
        })),
    }
}

fn batch(items: Vec<wire::BatchItem>, request_id: &str) -> wire::BatchUpdateModelsRequest {
    wire::BatchUpdateModelsRequest {
        allow_missing_fallbacks: false,
        items,
        request_id: request_id.to_owned(),
        validate_only: false,
    }
}

fn back_to(revision: u64) -> wire::RollbackRevisionRequest {
    wire::RollbackRevisionRequest {
        revision,
        ..wire::RollbackRevisionRequest::default()
    }
}

fn reason(status: &Status) -> String {
    let details = status.get_error_details();
    let info = details.error_info().expect("a google.rpc.ErrorInfo");
    info.reason.clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rollback_goes_to_the_workers_and_closes_nothing_that_fits() {
    let (cluster, worker) = Cluster::with_worker().await;
    let upstream = MockServer::start(MockConfig {
        keep_alive: None,
        ..MockConfig::serving("kept")
    })
    .await
    .unwrap();
    let first = cluster
        .create_and_wait(sized("kept", &upstream.url(), 5))
        .await;
    let client = worker.client();
    let served = async || {
        client
            .chat("kept", Chat::Whole, 1)
            .send()
            .await
            .unwrap()
            .status()
    };
    assert_eq!(served().await, 200);
    let mut request = Request::new(batch(
        vec![
            put(model_at("extra", URL)),
            put(sized("kept", &upstream.url(), 9)),
        ],
        "b1",
    ));
    let metadata = request.metadata_mut();
    metadata.insert("x-forebay-author", "ada".parse().unwrap());
    metadata.insert("x-forebay-reason", "more room".parse().unwrap());
    let made = cluster.registry().batch_update_models(request).await;
    let made = made.unwrap().into_inner();
    assert_eq!((made.revision, made.created, made.updated), (3, 1, 1));
    cluster.rolled_out(made.revision).await;

    let mut revisions = revisions(&cluster);
    let back = revisions.rollback_revision(back_to(first.revision)).await;
    let back = back.unwrap().into_inner();
    assert_eq!((back.revision, back.changed), (4, 2));
    cluster.rolled_out(back.revision).await;
    assert_eq!(served().await, 200);
    assert_eq!(upstream.stats().opened, 1, "the connection went along");
    let config = worker.document("/config").await;
    let text = config.to_string();
    assert!(
        !text.contains("extra") && text.contains("\"kept\""),
        "{text}"
    );

    told_by_the_history(&cluster).await;
}

async fn told_by_the_history(cluster: &Cluster) {
    let mut revisions = revisions(cluster);
    let list = revisions.list_revisions(wire::ListRevisionsRequest::default());
    let list = list.await.unwrap().into_inner().revisions;
    let lines: Vec<_> = list
        .iter()
        .map(|entry| (entry.revision, entry.method.as_str(), entry.changes))
        .collect();
    assert_eq!(
        lines,
        [
            (4, "RollbackRevision", 2),
            (3, "BatchUpdateModels", 2),
            (2, "CreateModel", 1),
            (1, "Create", 0)
        ]
    );
    assert_eq!(list[0].rolled_back_to, 2);
    assert_eq!(
        (list[1].author.as_str(), list[1].reason.as_str()),
        ("ada", "more room")
    );
    assert!(
        list[2].author.starts_with("127.0.0.1:"),
        "{}",
        list[2].author
    );
    // What the history says is what the workers have.
    let mut fleet = cluster.fleet();
    eventually("the worker's digest", async || {
        let workers = fleet.list_workers(wire::ListWorkersRequest::default());
        let workers = workers.await.ok()?.into_inner().workers;
        (workers.first()?.applied_digest == list[0].digest).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_whose_answer_was_lost_is_made_once() {
    let cluster = Cluster::start().await;
    let items = vec![put(model_at("a", URL)), put(model_at("b", URL))];
    let mut registry = cluster.registry();
    let first = registry
        .batch_update_models(batch(items.clone(), "lost"))
        .await;
    let first = first.unwrap().into_inner();
    let gone = wire::DeleteModelRequest {
        id: "a".into(),
        ..wire::DeleteModelRequest::default()
    };
    registry.delete_model(gone).await.unwrap();
    let again = registry
        .batch_update_models(batch(items.clone(), "lost"))
        .await;
    let again = again.unwrap().into_inner();
    assert_eq!(
        again,
        wire::BatchUpdateModelsResponse {
            changes: Vec::new(),
            ..first
        }
    );
    let other = registry
        .batch_update_models(batch(vec![items[0].clone()], "lost"))
        .await;
    assert_eq!(reason(&other.unwrap_err()), "REQUEST_ID_REUSED");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_counts_for_the_batch_is_said_once() {
    let cluster = Cluster::start().await;
    let mut item = put(model_at("a", URL));
    if let Some(Change::Update(update)) = &mut item.change {
        update.request_id = "x".into();
        update.validate_only = true;
    }
    let items = vec![item, wire::BatchItem { change: None }];
    let bad = cluster
        .registry()
        .batch_update_models(batch(items, ""))
        .await;
    let bad = bad.unwrap_err();
    let details = bad.get_error_details();
    let fields = details.bad_request().unwrap().field_violations.iter();
    let fields: BTreeSet<_> = fields.map(|violation| violation.field.as_str()).collect();
    assert_eq!(
        fields,
        BTreeSet::from([
            "items[0].update.request_id",
            "items[0].update.validate_only",
            "items[1]"
        ])
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reason_that_is_too_long_is_refused_and_nothing_is_written() {
    let cluster = Cluster::start().await;
    let mut request = Request::new(wire::CreateModelRequest {
        model: Some(model_at("a", URL)),
        ..wire::CreateModelRequest::default()
    });
    let long = "r".repeat(limits::REASON_CHARS + 1);
    request
        .metadata_mut()
        .insert("x-forebay-reason", long.parse().unwrap());
    let refused = cluster.registry().create_model(request).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    assert!(
        refused
            .message()
            .contains("x-forebay-reason: has 513 characters"),
        "{refused}"
    );
    let list = cluster
        .registry()
        .list_models(wire::ListModelsRequest::default())
        .await;
    assert_eq!(list.unwrap().into_inner().revision, 1);
}

/// 300 models with texts as long as they may be: more than a megabyte of differences.
#[tokio::test(flavor = "multi_thread")]
async fn a_large_diff_comes_in_pages_that_any_client_takes() {
    let cluster = Cluster::start().await;
    let wide = |n: usize| {
        let endpoint = |e: usize| wire::Endpoint {
            url: format!("http://{}.example:{}", "h".repeat(60), n * 64 + e + 1),
            ..wire::Endpoint::default()
        };
        wire::Model {
            endpoints: (0..60).map(endpoint).collect(),
            ..model_at(&format!("m{n:03}"), URL)
        }
    };
    let items = (0..300).map(|n| put(wide(n)));
    let made = cluster
        .registry()
        .batch_update_models(batch(items.collect(), ""))
        .await;
    let made = made.unwrap().into_inner();
    assert_eq!(made.created, 300);
    assert!(made.changes.len() < 300 && made.encoded_len() <= (1 << 20) + 64);

    let mut revisions = revisions(&cluster);
    let (mut seen, mut pages, mut page_token) = (Vec::new(), 0, String::new());
    loop {
        let request = wire::DiffRevisionsRequest {
            from: Some(1),
            to: Some(2),
            page_size: 1_000,
            page_token,
        };
        let page = revisions
            .diff_revisions(request)
            .await
            .unwrap()
            .into_inner();
        assert!(
            page.encoded_len() < (1 << 20) + 1_024,
            "{}",
            page.encoded_len()
        );
        seen.extend(page.changes.into_iter().map(|change| change.model));
        pages += 1;
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    let all: Vec<_> = (0..300).map(|n| format!("m{n:03}")).collect();
    assert_eq!(seen, all);
    assert!(pages > 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_past_that_is_not_there_is_refused_with_a_reason() {
    let cluster = Cluster::start().await;
    cluster.create(model_at("a", URL)).await;
    let mut revisions = revisions(&cluster);
    let ahead = revisions.rollback_revision(back_to(3)).await.unwrap_err();
    assert_eq!(
        (ahead.code(), reason(&ahead).as_str()),
        (Code::FailedPrecondition, "REVISION_NOT_REACHED")
    );
    let moved = wire::RollbackRevisionRequest {
        expected_revision: Some(1),
        ..back_to(1)
    };
    let moved = revisions.rollback_revision(moved).await.unwrap_err();
    assert_eq!(
        (moved.code(), reason(&moved).as_str()),
        (Code::Aborted, "REVISION_MOVED")
    );
    let before = wire::ListModelsRequest {
        at_revision: 1,
        ..wire::ListModelsRequest::default()
    };
    let before = cluster
        .registry()
        .list_models(before)
        .await
        .unwrap()
        .into_inner();
    assert_eq!((before.revision, before.models.len()), (1, 0));
    let token = wire::ListRevisionsRequest {
        page_token: "61".into(),
        ..wire::ListRevisionsRequest::default()
    };
    let token = revisions.list_revisions(token).await.unwrap_err();
    assert!(token.message().contains("page_token"), "{token}");
}
