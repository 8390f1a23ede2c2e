//! What operators and workers see of several control planes: one registry, one fleet, one in charge; and what goes on
//! without etcd.

use std::time::Duration;

use forebay_etcd::Etcd;
use forebay_proto::wire;
use forebay_tests::{Chat, Ended, Replicas, eventually, model_at};
use tonic::{Code, Request};

use crate::turn;

fn create(id: &str) -> wire::CreateModelRequest {
    wire::CreateModelRequest {
        model: Some(model_at(id, "http://127.0.0.1:9")),
        ..wire::CreateModelRequest::default()
    }
}

fn with<T>(message: T, key: &'static str, value: &str) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert(key, value.parse().unwrap());
    request
}

fn get(id: &str) -> wire::GetModelRequest {
    wire::GetModelRequest { id: id.to_owned() }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_one_writes_all_have_and_who_asks_for_it_sees_it_at_once() {
    let _turn = turn().await;
    let etcd = Etcd::start().await;
    let replicas = Replicas::start(&etcd.store("all"), 3).await;
    for n in 0..30_usize {
        let id = format!("m{n}");
        let created = replicas
            .registry(n % 3)
            .create_model(create(&id))
            .await
            .unwrap();
        let revision = created.into_inner().revision;
        assert_eq!(revision, n as u64 + 2, "revisions have no gaps");
        let mut other = replicas.registry((n + 1) % 3);
        let found = other
            .get_model(with(get(&id), "forebay-consistency", "strong"))
            .await;
        assert_eq!(found.unwrap().into_inner().revision, revision);
        let mut third = replicas.registry((n + 2) % 3);
        let least = revision.to_string();
        let found = third
            .get_model(with(get(&id), "forebay-min-revision", &least))
            .await;
        assert_eq!(found.unwrap().into_inner().revision, revision);
    }
    let ahead = with(get("m1"), "forebay-min-revision", "99999");
    let refused = replicas.registry(0).get_model(ahead).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
    writes_see_what_others_wrote(&replicas).await;
    eventually("replicas count one another", async || {
        let count = replicas
            .metrics(1)
            .await
            .sum("forebay_control_replicas", &[]);
        (count > 2.5).then_some(())
    })
    .await;
}

/// Whether or not they were told of it yet.
async fn writes_see_what_others_wrote(replicas: &Replicas) {
    for n in 0..10_usize {
        let id = format!("m{n}");
        let request = wire::DeleteModelRequest {
            id: id.clone(),
            ..wire::DeleteModelRequest::default()
        };
        replicas
            .registry(n % 3)
            .delete_model(request)
            .await
            .unwrap();
        let again = replicas
            .registry((n + 1) % 3)
            .create_model(create(&id))
            .await;
        again.unwrap();
        let twice = replicas
            .registry((n + 2) % 3)
            .create_model(create(&id))
            .await;
        assert_eq!(twice.unwrap_err().code(), Code::AlreadyExists);
    }
    // A repeated request gets its answer from whoever is asked.
    let request = wire::CreateModelRequest {
        request_id: "once".into(),
        ..create("once")
    };
    let first = replicas
        .registry(0)
        .create_model(request.clone())
        .await
        .unwrap()
        .into_inner();
    for n in 0..3 {
        let again = replicas
            .registry(n)
            .create_model(request.clone())
            .await
            .unwrap();
        assert_eq!(again.into_inner(), first, "c{n}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_keys_reach_the_workers_of_all() {
    let _turn = turn().await;
    let etcd = Etcd::start().await;
    let replicas = Replicas::start(&etcd.store("keys"), 2).await;
    let worker = replicas.worker("w", &[1]).await;
    replicas
        .registry(0)
        .create_model(create("m"))
        .await
        .unwrap();
    let channel = replicas.channel(0, Duration::from_secs(10));
    let mut keys = wire::keys_client::KeysClient::new(channel);
    let made = keys
        .create_key(wire::CreateKeyRequest::default())
        .await
        .unwrap()
        .into_inner();
    eventually("the key is asked for", async || {
        let ended = worker.client().finish("m", Chat::Whole, 1).await;
        matches!(ended, Ended::Status(401, _)).then_some(())
    })
    .await;
    let id = made.key.unwrap().id;
    let channel = replicas.channel(1, Duration::from_secs(10));
    let mut others = wire::keys_client::KeysClient::new(channel);
    let revoke = wire::RevokeKeyRequest {
        id,
        ..wire::RevokeKeyRequest::default()
    };
    others.revoke_key(revoke).await.unwrap();
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_fleet_is_one_and_a_worker_is_where_it_is_connected() {
    let _turn = turn().await;
    let etcd = Etcd::start().await;
    let mut replicas = Replicas::start(&etcd.store("fleet"), 2).await;
    let (one, two) = (
        replicas.worker("w0", &[0]).await,
        replicas.worker("w1", &[1]).await,
    );
    let created = replicas
        .registry(0)
        .create_model(create("m"))
        .await
        .unwrap()
        .into_inner();
    for n in 0..2 {
        let mut fleet = replicas.fleet(n);
        eventually(
            &format!("c{n} sees both workers on the newest"),
            async || {
                let request = wire::GetRolloutRequest {
                    revision: Some(created.revision),
                };
                let rollout = fleet.get_rollout(request).await.ok()?.into_inner();
                (rollout.complete && rollout.applied == 2).then_some(())
            },
        )
        .await;
    }
    let unknown = wire::DrainWorkerRequest { id: "w9".into() };
    let refused = replicas.fleet(0).drain_worker(unknown).await.unwrap_err();
    assert_eq!(refused.code(), Code::NotFound, "{refused}");
    // Asked at one that does not have the worker.
    let drain = wire::DrainWorkerRequest { id: "w1".into() };
    replicas.fleet(0).drain_worker(drain).await.unwrap();
    let ready = format!("http://{}/readyz", two.admin());
    eventually("it ends", async || {
        reqwest::get(&ready).await.is_err().then_some(())
    })
    .await;
    // One that ends takes its workers out of the others' view.
    replicas.stop(1).await;
    let mut fleet = replicas.fleet(0);
    eventually("its worker is not told of any more", async || {
        let list = fleet
            .list_workers(wire::ListWorkersRequest::default())
            .await
            .ok()?;
        (list.into_inner().workers.len() == 1).then_some(())
    })
    .await;
    one.stop().await;
    two.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_etcd_reads_and_streams_go_on_and_writes_say_what_is_wrong() {
    let _turn = turn().await;
    let mut etcd = Etcd::start().await;
    let replicas = Replicas::start(&etcd.store("away"), 2).await;
    let worker = replicas.worker("w", &[0]).await;
    replicas
        .registry(0)
        .create_model(create("m"))
        .await
        .unwrap();
    let strong = with(get("m"), "forebay-consistency", "strong");
    replicas.registry(1).get_model(strong).await.unwrap();
    for n in 0..3 {
        etcd.kill(n).await;
    }
    let refused = replicas
        .registry(0)
        .create_model(create("n"))
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable, "{refused}");
    assert!(
        refused.message().contains("etcd does not answer"),
        "{refused}"
    );
    let strong = with(get("m"), "forebay-consistency", "strong");
    let refused = replicas.registry(0).get_model(strong).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable, "{refused}");
    replicas.registry(0).get_model(get("m")).await.unwrap();
    eventually("it says so, and is ready all the same", async || {
        let (status, text) = replicas.ready(0).await;
        assert_eq!(status, 200, "{text}");
        text.contains("writes are refused").then_some(())
    })
    .await;
    assert!(
        replicas
            .metrics(0)
            .await
            .sum("forebay_store_lag_seconds", &[])
            > 2.0
    );
    // A worker that comes now gets what was registered.
    let late = replicas.worker("late", &[1]).await;
    eventually("the late worker serves the model", async || {
        let ended = late.client().finish("m", Chat::Whole, 1).await;
        matches!(ended, Ended::Status(502 | 503, _)).then_some(())
    })
    .await;
    etcd.mend().await;
    let created = replicas
        .registry(1)
        .create_model(create("n"))
        .await
        .unwrap()
        .into_inner();
    for client in [worker.client(), late.client()] {
        eventually("workers get what is written then", async || {
            let ended = client.finish("n", Chat::Whole, 1).await;
            matches!(ended, Ended::Status(502 | 503, _)).then_some(())
        })
        .await;
    }
    assert_eq!(created.revision, 3);
    let (_, text) = eventually("all is well", async || {
        let ready = replicas.ready(0).await;
        (!ready.1.contains("refused")).then_some(ready)
    })
    .await;
    assert!(text.contains("revision 3"), "{text}");
    worker.stop().await;
    late.stop().await;
}
