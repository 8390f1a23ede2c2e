//! The registry as a client meets it: every bad field at once, etags, masks, idempotence, dry runs.

use std::collections::BTreeSet;

use forebay_proto::wire;
use forebay_tests::{Cluster, model_at};
use prost_types::FieldMask;
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

const URL: &str = "http://10.0.0.1:8000";

fn create(model: wire::Model) -> wire::CreateModelRequest {
    wire::CreateModelRequest {
        model: Some(model),
        ..Default::default()
    }
}

fn update(model: wire::Model, paths: &[&str]) -> wire::UpdateModelRequest {
    wire::UpdateModelRequest {
        model: Some(model),
        update_mask: Some(FieldMask {
            paths: paths.iter().map(ToString::to_string).collect(),
        }),
        ..Default::default()
    }
}

/// The fields that an error names.
fn fields(status: &Status) -> BTreeSet<String> {
    let details = status.get_error_details();
    let bad = details.bad_request().expect("a google.rpc.BadRequest");
    bad.field_violations
        .iter()
        .map(|v| v.field.clone())
        .collect()
}

fn reason(status: &Status) -> String {
    let details = status.get_error_details();
    details
        .error_info()
        .expect("a google.rpc.ErrorInfo")
        .reason
        .clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_bad_field_is_named_at_once() {
    let cluster = Cluster::start().await;
    let bad = wire::Model {
        id: "no spaces".to_owned(),
        aliases: vec!["ok".to_owned(), String::new()],
        endpoints: vec![
            wire::Endpoint {
                id: "a".to_owned(),
                url: "ftp://host".to_owned(),
                weight: Some(0),
                ..wire::Endpoint::default()
            },
            wire::Endpoint {
                id: "b".to_owned(),
                url: "http://host:8000/v1".to_owned(),
                ..wire::Endpoint::default()
            },
        ],
        pool: Some(wire::Pool {
            max_concurrent: Some(0),
            keepalive: Some(100),
            ..wire::Pool::default()
        }),
        timeouts: Some(wire::Timeouts {
            connect: Some(prost_types::Duration {
                seconds: -1,
                nanos: 0,
            }),
            ..wire::Timeouts::default()
        }),
        ..wire::Model::default()
    };
    let status = cluster
        .registry()
        .create_model(create(bad))
        .await
        .unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    assert_eq!(reason(&status), "INVALID_ARGUMENT");
    let named = fields(&status);
    for field in [
        "model.id",
        "model.aliases[1]",
        "model.endpoints[0].url",
        "model.endpoints[0].weight",
        "model.endpoints[1].url",
        "model.pool.max_concurrent",
        "model.timeouts.connect",
    ] {
        assert!(named.contains(field), "{field} is not in {named:?}");
        assert!(status.message().contains(field), "{}", status.message());
    }
    let list = cluster
        .registry()
        .list_models(wire::ListModelsRequest::default())
        .await;
    assert_eq!(list.unwrap().into_inner().models, []);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_seeds_mistake_is_refused_with_the_arithmetic() {
    let cluster = Cluster::start().await;
    let wrong = wire::Model {
        pool: Some(wire::Pool {
            max_concurrent: Some(150),
            keepalive: Some(100),
            ..wire::Pool::default()
        }),
        ..model_at("m", URL)
    };
    let status = cluster
        .registry()
        .create_model(create(wrong))
        .await
        .unwrap_err();
    assert_eq!(
        fields(&status).into_iter().collect::<Vec<_>>(),
        ["model.pool.keepalive"]
    );
    let request = wire::UpdatePoolSettingsRequest {
        settings: Some(wire::PoolDefaults {
            keepalive: Some(100),
            ..wire::PoolDefaults::default()
        }),
        ..Default::default()
    };
    let pool = cluster
        .settings()
        .update_pool_settings(request)
        .await
        .unwrap_err();
    assert_eq!(
        fields(&pool).into_iter().collect::<Vec<_>>(),
        ["settings.keepalive"]
    );
    for status in [status, pool] {
        for part in ["150 connections", "100", "66.7 %", "50"] {
            assert!(
                status.message().contains(part),
                "{part}: {}",
                status.message()
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_update_changes_what_is_named_and_nothing_else() {
    let cluster = Cluster::start().await;
    let before = cluster
        .create(wire::Model {
            aliases: vec!["alias".to_owned()],
            pool: Some(wire::Pool {
                max_concurrent: Some(20),
                warm: Some(5),
                ..wire::Pool::default()
            }),
            ..model_at("m", URL)
        })
        .await;
    let mut registry = cluster.registry();
    let change = wire::Model {
        id: "m".to_owned(),
        pool: Some(wire::Pool {
            max_concurrent: Some(30),
            ..wire::Pool::default()
        }),
        ..wire::Model::default()
    };
    let after = registry
        .update_model(update(change, &["pool.max_concurrent"]))
        .await;
    let after = after.unwrap().into_inner();
    let pool = after.pool.unwrap();
    assert_eq!((pool.max_concurrent, pool.warm), (Some(30), Some(5)));
    assert_eq!(after.resolved_pool.unwrap().keepalive, Some(30));
    assert_eq!(
        (&after.aliases, &after.endpoints),
        (&before.aliases, &before.endpoints)
    );
    assert!(after.revision > before.revision && after.etag != before.etag);

    let unknown = registry
        .update_model(update(model_at("m", URL), &["pool.nonsense"]))
        .await;
    let unknown = unknown.unwrap_err();
    assert!(unknown.message().contains("pool.nonsense"), "{unknown:?}");
    // What only the server writes may be named, and stays as it is (AIP-203).
    let read_only = update(model_at("m", URL), &["etag", "revision"]);
    let same = registry.update_model(read_only).await.unwrap().into_inner();
    assert_eq!((same.revision, same.etag), (after.revision, after.etag));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stale_etag_is_refused_and_a_fresh_one_is_not() {
    let cluster = Cluster::start().await;
    let first = cluster.create(model_at("m", URL)).await;
    let mut registry = cluster.registry();
    let mut change = wire::Model {
        aliases: vec!["other".to_owned()],
        etag: first.etag.clone(),
        ..wire::Model::default()
    };
    change.id = "m".to_owned();
    let second = registry
        .update_model(update(change.clone(), &["aliases"]))
        .await;
    assert_ne!(second.unwrap().into_inner().etag, first.etag);
    change.aliases = vec!["third".to_owned()];
    let stale = registry
        .update_model(update(change, &["aliases"]))
        .await
        .unwrap_err();
    assert_eq!(
        (stale.code(), reason(&stale).as_str()),
        (Code::Aborted, "ETAG_MISMATCH")
    );
    let delete = wire::DeleteModelRequest {
        id: "m".to_owned(),
        etag: first.etag,
        ..Default::default()
    };
    let stale = registry.delete_model(delete).await.unwrap_err();
    assert_eq!(stale.code(), Code::Aborted);
}

#[tokio::test(flavor = "multi_thread")]
async fn names_are_taken_once_whether_as_id_or_alias() {
    let cluster = Cluster::start().await;
    cluster
        .create(wire::Model {
            aliases: vec!["both".to_owned()],
            ..model_at("m", URL)
        })
        .await;
    for model in [
        model_at("m", URL),
        model_at("both", URL),
        wire::Model {
            aliases: vec!["m".to_owned()],
            ..model_at("n", URL)
        },
    ] {
        let taken = cluster
            .registry()
            .create_model(create(model))
            .await
            .unwrap_err();
        assert_eq!(
            (taken.code(), reason(&taken).as_str()),
            (Code::AlreadyExists, "NAME_TAKEN")
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeated_request_is_made_once_and_a_dry_run_not_at_all() {
    let cluster = Cluster::start().await;
    let mut registry = cluster.registry();
    let dry = wire::CreateModelRequest {
        validate_only: true,
        ..create(model_at("m", URL))
    };
    let shown = registry.create_model(dry).await.unwrap().into_inner();
    assert_eq!(shown.resolved_pool.unwrap().max_concurrent, Some(50));
    let get = wire::GetModelRequest { id: "m".to_owned() };
    let absent = registry.get_model(get).await.unwrap_err();
    assert_eq!(
        (absent.code(), reason(&absent).as_str()),
        (Code::NotFound, "MODEL_NOT_FOUND")
    );

    let request = wire::CreateModelRequest {
        request_id: "7f0c2a52-6f6d-4a53-9d6d-0c1a3a7f4f11".to_owned(),
        ..create(model_at("m", URL))
    };
    let first = registry
        .create_model(request.clone())
        .await
        .unwrap()
        .into_inner();
    let again = registry
        .create_model(request.clone())
        .await
        .unwrap()
        .into_inner();
    assert_eq!(first, again);
    let bad = wire::CreateModelRequest {
        request_id: "two words".to_owned(),
        ..create(model_at("", URL))
    };
    let bad = fields(&registry.create_model(bad).await.unwrap_err());
    assert!(
        bad.contains("request_id") && bad.contains("model.id"),
        "{bad:?}"
    );
    let other = wire::CreateModelRequest {
        model: Some(model_at("n", URL)),
        ..request
    };
    let reused = registry.create_model(other).await.unwrap_err();
    assert_eq!(reason(&reused), "REQUEST_ID_REUSED");
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_come_in_pages() {
    let cluster = Cluster::start().await;
    for n in 0..7 {
        cluster.create(model_at(&format!("m{n}"), URL)).await;
    }
    let (mut seen, mut token) = (Vec::new(), String::new());
    loop {
        let request = wire::ListModelsRequest {
            page_size: 3,
            page_token: token,
            ..wire::ListModelsRequest::default()
        };
        let page = cluster
            .registry()
            .list_models(request)
            .await
            .unwrap()
            .into_inner();
        assert!(page.models.len() <= 3);
        seen.extend(page.models.into_iter().map(|model| model.id));
        token = page.next_page_token;
        if token.is_empty() {
            break;
        }
    }
    assert_eq!(seen, ["m0", "m1", "m2", "m3", "m4", "m5", "m6"]);
    let bad = wire::ListModelsRequest {
        page_size: -1,
        page_token: "nonsense".to_owned(),
        ..wire::ListModelsRequest::default()
    };
    let bad = cluster.registry().list_models(bad).await.unwrap_err();
    assert_eq!(
        fields(&bad),
        BTreeSet::from(["page_size".to_owned(), "page_token".to_owned()])
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_larger_than_the_budget_is_refused_at_registration() {
    let cluster = Cluster::start().await;
    let large = wire::Model {
        pool: Some(wire::Pool {
            max_concurrent: Some(151),
            ..wire::Pool::default()
        }),
        ..model_at("m", URL)
    };
    let status = cluster
        .registry()
        .create_model(create(large))
        .await
        .unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    for part in ["151", "150", "50", "3"] {
        assert!(status.message().contains(part), "{}", status.message());
    }
}
