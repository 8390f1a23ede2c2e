//! How far a revision has come, as operators see it: watched as it goes, with what still drains.

use std::time::Duration;

use forebay_mock::{MockConfig, MockServer};
use forebay_proto::wire;
use forebay_tests::{Chat, Cluster, Ended, eventually, model_at};
use tokio::time::{Instant, timeout};
use tonic::{Code, Streaming};

const SOON: Duration = Duration::from_secs(5);
const NOWHERE: &str = "http://127.0.0.1:1";

async fn watch(cluster: &Cluster, revision: Option<u64>, follow: bool) -> Streaming<wire::Rollout> {
    let request = wire::WatchRolloutRequest { revision, follow };
    let watching = cluster.fleet().watch_rollout(request).await;
    watching.unwrap().into_inner()
}

async fn next(watching: &mut Streaming<wire::Rollout>) -> Option<wire::Rollout> {
    timeout(SOON, watching.message()).await.unwrap().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_tells_at_once_and_ends_when_all_run_it() {
    let (cluster, worker) = Cluster::with_worker().await;
    let created = cluster.create_and_wait(model_at("m", NOWHERE)).await;
    let mut watching = watch(&cluster, Some(created.revision), false).await;
    let rollout = next(&mut watching).await.unwrap();
    assert_eq!(
        (rollout.revision, rollout.applied, rollout.complete),
        (created.revision, 1, true)
    );
    assert_eq!(next(&mut watching).await, None, "complete: it ends");

    // One that follows sees the worker go, and a revision that nobody runs yet.
    let mut watching = watch(&cluster, None, true).await;
    assert!(next(&mut watching).await.unwrap().complete);
    worker.stop().await;
    let gone = next(&mut watching).await.unwrap();
    assert_eq!((gone.applied, gone.gone), (0, 1));
    let second = cluster.create(model_at("n", NOWHERE)).await;
    let newer = next(&mut watching).await.unwrap();
    assert_eq!(newer.revision, second.revision);
    assert_eq!(newer.workers[0].lag_revisions, 1);

    let request = wire::WatchRolloutRequest {
        revision: Some(99),
        follow: true,
    };
    let early = cluster.fleet().watch_rollout(request).await.unwrap_err();
    assert_eq!(early.code(), Code::FailedPrecondition);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_storm_of_changes_is_told_of_five_times_a_second_and_the_last_of_it_always() {
    let (cluster, _worker) = Cluster::with_worker().await;
    let mut watching = watch(&cluster, None, true).await;
    let began = Instant::now();
    let mut last = 0;
    for n in 0..40 {
        last = cluster
            .create(model_at(&format!("m{n}"), NOWHERE))
            .await
            .revision;
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
    let mut told = 0;
    loop {
        let rollout = next(&mut watching).await.unwrap();
        told += 1;
        if rollout.revision == last && rollout.complete {
            break;
        }
    }
    let most = began.elapsed().as_millis() / 200 + 2;
    assert!(told > 2 && told <= most, "{told} of at most {most}");
}

#[tokio::test(flavor = "multi_thread")]
async fn so_many_watch_and_no_more_and_none_of_them_holds_up_the_end() {
    let mut cluster = Cluster::start().await;
    let mut all = Vec::new();
    for _ in 0..64 {
        all.push(watch(&cluster, None, true).await);
    }
    let request = wire::WatchRolloutRequest::default();
    let refused = cluster.fleet().watch_rollout(request).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted);
    all.pop();
    eventually("there is room again", async || {
        let watching = cluster.fleet().watch_rollout(request).await;
        watching.is_ok().then_some(())
    })
    .await;
    let began = Instant::now();
    cluster.stop_control().await;
    assert!(
        began.elapsed() < Duration::from_secs(4),
        "{:?}",
        began.elapsed()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_on_what_was_before_are_told_of_until_they_are_done() {
    let (cluster, worker) = Cluster::with_worker().await;
    let upstream = MockServer::start(MockConfig::serving("m")).await.unwrap();
    cluster
        .create_and_wait(model_at("m", &upstream.url()))
        .await;
    let draining = async || {
        let id = worker.name().to_owned();
        let mut fleet = cluster.fleet();
        let worker = fleet.get_worker(wire::GetWorkerRequest { id }).await;
        worker.unwrap().into_inner().draining_requests
    };
    let client = worker.client();
    // 2 s of tokens.
    let long = client.finish("m", Chat::Stream, 400);
    let seen = async {
        eventually("the request is under way", async || {
            (upstream.stats().requests == 1).then_some(())
        })
        .await;
        assert_eq!(draining().await, 0);
        let delete = wire::DeleteModelRequest {
            id: "m".to_owned(),
            ..Default::default()
        };
        cluster.registry().delete_model(delete).await.unwrap();
        eventually("it is told of", async || {
            (draining().await == 1).then_some(())
        })
        .await;
    };
    let (ended, ()) = tokio::join!(long, seen);
    assert_eq!(ended, Ended::Well);
    // Not only with the next of the signs of life, which come every ten seconds.
    let told = eventually("it is done", async || (draining().await == 0).then_some(()));
    timeout(Duration::from_secs(3), told).await.unwrap();
}
