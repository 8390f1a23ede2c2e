//! Workers that know several control planes: names and lists, those that are behind, of another store, or die; and two
//! processes with one id. The simulation plays the same with a network that fails.

use std::time::Duration;

use forebay_mock::{MockConfig, MockServer};
use forebay_proto::wire;
use forebay_tests::{
    Cluster, DnsServer, Trio, WorkerHandle, eventually, eventually_within, model_at,
};
use tokio::time::sleep;

/// The control plane that a worker follows.
async fn followed(worker: &WorkerHandle) -> Option<String> {
    let control = worker.document("/config").await["control"].clone();
    let connected = control["connected"] == true;
    connected.then(|| control["url"].as_str().unwrap().to_owned())
}

/// Which one it follows, once it has a configuration.
async fn follows(worker: &WorkerHandle, trio: &Trio) -> usize {
    worker.ready().await;
    let follows = async || trio.number(&followed(worker).await?);
    eventually("it follows one", follows).await
}

async fn moved(worker: &WorkerHandle, trio: &Trio, from: usize) -> usize {
    let moved = async || {
        let at = trio.number(&followed(worker).await?)?;
        (at != from).then_some(at)
    };
    // An address that its name lacks is kept for 30 s, and left within 20 s after that.
    eventually_within(Duration::from_secs(90), "it follows another one", moved).await
}

async fn runs(worker: &WorkerHandle, revision: u64) {
    eventually("it has it", async || {
        (worker.document("/config").await["revision"] == revision).then_some(())
    })
    .await;
}

/// A cluster of which the workers are used, not the control plane.
async fn bystander() -> Cluster {
    Cluster::start().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_goes_elsewhere_when_its_control_plane_ends_and_says_where_it_is() {
    let mut trio = Trio::start(vec![model_at("m", "http://10.0.0.1:80")]).await;
    let workers = bystander().await;
    let worker = workers.worker_of("w1", &trio.urls()).await;
    let first = follows(&worker, &trio).await;
    trio.stop_one(first).await;
    let second = moved(&worker, &trio, first).await;
    let control = worker.document("/config").await["control"].clone();
    assert_eq!(
        (&control["moves"], &control["moved_because"]),
        (&1.into(), &"stopping".into())
    );
    let page = worker.metrics().await;
    assert_eq!(
        page.sum("forebay_control_moves_total", &["reason=\"stopping\""]),
        1.0
    );
    let connection = page.samples("forebay_control_connection").next().unwrap();
    assert!(connection.labels.contains(&trio.url(second)) && connection.value == 1.0);
    eventually("the other one shows it", async || {
        let known = trio.workers(second).await;
        let known = known.iter().find(|known| known.id == "w1")?;
        let told = (
            known.control.as_str(),
            known.moves,
            known.moved_because.as_str(),
        );
        (told == (trio.url(second).as_str(), 1, "stopping")).then_some(())
    })
    .await;
}

/// One of three returns: workers come back to it by themselves, and the one that they leave forgets them.
#[tokio::test(flavor = "multi_thread")]
async fn workers_spread_again_when_a_control_plane_returns() {
    let mut trio = Trio::start(vec![model_at("m", "http://10.0.0.1:80")]).await;
    trio.stop_one(2).await;
    let workers = bystander().await;
    let mut all = Vec::new();
    for n in 0..9 {
        all.push(workers.worker_of(&format!("w{n}"), &trio.urls()).await);
    }
    for worker in &all {
        follows(worker, &trio).await;
    }
    trio.start_one(2).await;
    let spread = async || {
        let mut connected = Vec::new();
        for n in 0..3 {
            let known = trio.workers(n).await;
            connected.push(
                known
                    .iter()
                    .filter(|known| known.gone_time.is_none())
                    .count(),
            );
        }
        let all_there = connected.iter().sum::<usize>() == 9;
        (all_there && connected.iter().all(|n| (2..=4).contains(n))).then_some(())
    };
    // They look every second here, and once every half minute (on average) at one that they could not look at.
    eventually_within(Duration::from_secs(90), "they spread", spread).await;
    for n in 0..3 {
        let gone = trio.workers(n).await;
        let gone = gone.iter().filter(|known| known.gone_time.is_some());
        assert_eq!(gone.count(), 0, "who moved is not gone");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_stands_for_all_its_addresses_and_a_changed_record_moves_nobody_who_is_well() {
    let trio = Trio::start(vec![model_at("m", "http://10.0.0.1:80")]).await;
    let dns = DnsServer::start().await;
    dns.set("control.test", &["127.0.0.1"]);
    let mut workers = bystander().await;
    workers.ask(dns.addr());
    let url = format!("http://control.test:{}", trio.port());
    let worker = workers.worker_of("w1", &url).await;
    assert_eq!(follows(&worker, &trio).await, 0);
    let shown = followed(&worker).await.unwrap();
    assert_eq!(shown, format!("{url} ({})", trio.addr(0)));

    // Others come: it may go there only because they have less to do, and one is not less than one.
    dns.set("control.test", &["127.0.0.1", "127.0.0.2"]);
    sleep(Duration::from_secs(4)).await;
    assert_eq!(follows(&worker, &trio).await, 0);
    // A server that says nothing takes nobody away.
    dns.set("control.test", &[]);
    sleep(Duration::from_secs(3)).await;
    assert_eq!(follows(&worker, &trio).await, 0);
    // Its own is taken off the list: it goes, in good time.
    dns.set("control.test", &["127.0.0.2", "127.0.0.3"]);
    let at = moved(&worker, &trio, 0).await;
    assert!(at > 0);
    let control = worker.document("/config").await["control"].clone();
    assert_eq!(control["moved_because"], "unlisted");
    eventually("who was left knows that it is not gone", async || {
        trio.workers(0).await.is_empty().then_some(())
    })
    .await;
}

/// It has a revision that the others do not have yet: it waits for neither, and never goes back.
#[tokio::test(flavor = "multi_thread")]
async fn a_control_plane_that_is_behind_is_left_for_one_that_is_not() {
    let mut trio = Trio::start(vec![model_at("m", "http://10.0.0.1:80")]).await;
    let workers = bystander().await;
    let worker = workers.worker_of("w1", &trio.urls()).await;
    let first = follows(&worker, &trio).await;
    let others = [(first + 1) % 3, (first + 2) % 3];
    let revision = trio.write(first, model_at("n", "http://10.0.0.2:80")).await;
    runs(&worker, revision).await;
    let same = trio
        .write(others[0], model_at("n", "http://10.0.0.2:80"))
        .await;
    assert_eq!(same, revision);
    trio.stop_one(first).await;
    // One of them has it, the other one does not: whichever it tries first, this is where it stays.
    eventually_within(
        Duration::from_secs(40),
        "it is with the one that has it",
        async || (trio.number(&followed(&worker).await?)? == others[0]).then_some(()),
    )
    .await;
    sleep(Duration::from_secs(7)).await;
    assert_eq!(follows(&worker, &trio).await, others[0]);
    let config = worker.document("/config").await;
    assert_eq!(config["revision"], revision);

    // The one that is behind catches up, and is as good as the other one from then on.
    trio.write(others[1], model_at("n", "http://10.0.0.2:80"))
        .await;
    trio.stop_one(others[0]).await;
    assert_eq!(moved(&worker, &trio, others[0]).await, others[1]);
    assert_eq!(worker.document("/config").await["revision"], revision);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_control_plane_of_another_store_is_refused_until_most_are_of_it() {
    let mut trio = Trio::start(vec![model_at("m", "http://10.0.0.1:80")]).await;
    let workers = bystander().await;
    let worker = workers.worker_of("w1", &trio.urls()).await;
    let first = follows(&worker, &trio).await;
    let epoch = worker.document("/config").await["epoch"].clone();
    let others = [(first + 1) % 3, (first + 2) % 3];
    for n in others {
        trio.stop_one(n).await;
    }
    trio.start_foreign(others[0]).await;
    trio.write(others[0], model_at("x", "http://10.0.0.9:80"))
        .await;
    trio.stop_one(first).await;
    // Nobody else is there, and all the same it is not followed.
    eventually_within(Duration::from_secs(40), "it was tried", async || {
        let page = worker.metrics().await;
        let tried = page.sum("forebay_control_stream_ends_total", &["reason=\"foreign\""]);
        (tried >= 1.0).then_some(())
    })
    .await;
    let config = worker.document("/config").await;
    assert_eq!(
        (&config["epoch"], &config["control"]["connected"]),
        (&epoch, &false.into())
    );
    assert_eq!(config["models"][0]["id"], "m");
    trio.start_one(first).await;
    eventually_within(Duration::from_secs(60), "it is back", async || {
        (trio.number(&followed(&worker).await?)? == first).then_some(())
    })
    .await;
}

/// Two processes with one id: the elder stays, both are told, and when it ends the other one is let in.
#[tokio::test(flavor = "multi_thread")]
async fn of_two_processes_with_one_id_the_elder_stays() {
    let cluster = Cluster::start().await;
    cluster.create(model_at("m", "http://10.0.0.1:80")).await;
    let elder = cluster.worker_in("w1", "elder", &cluster.url()).await;
    elder.ready().await;
    let request = || wire::GetWorkerRequest {
        id: "w1".to_owned(),
    };
    let known = async || {
        let known = cluster.fleet().get_worker(request()).await;
        known.ok().map(|known| known.into_inner())
    };
    let first = eventually("it is known", known).await.instance_id;
    let twin = cluster.worker_in("w1", "twin", &cluster.url()).await;
    let shown = eventually("the twin is shown", async || known().await?.twin).await;
    assert_ne!(shown.instance_id, first);
    eventually("it is told", async || {
        let control = twin.document("/config").await["control"].clone();
        let text = control["turned_away"].as_str()?.to_owned();
        text.contains("--worker-id").then_some(())
    })
    .await;
    let page = twin.metrics().await;
    assert_eq!(page.sum("forebay_control_turned_away", &[]), 1.0);
    let page = cluster.metrics().await;
    assert!(page.sum("forebay_control_workers_turned_away_total", &[]) >= 1.0);
    assert_eq!(page.sum("forebay_control_duplicate_workers", &[]), 1.0);
    // The elder was not disturbed.
    assert_eq!(known().await.unwrap().instance_id, first);
    assert!(followed(&elder).await.is_some());
    let page = elder.metrics().await;
    assert_eq!(page.sum("forebay_control_stream_ends_total", &[]), 0.0);

    elder.stop().await;
    eventually_within(Duration::from_secs(75), "the twin is let in", async || {
        (known().await?.instance_id == shown.instance_id).then_some(())
    })
    .await;
    twin.ready().await;
}

/// A restart finds the stream of the old process gone, or sees it go.
#[tokio::test(flavor = "multi_thread")]
async fn a_restart_is_let_in_at_once() {
    let cluster = Cluster::start().await;
    let upstream = MockServer::start(MockConfig::serving("m")).await.unwrap();
    cluster.create(model_at("m", &upstream.url())).await;
    for _ in 0..3 {
        let worker = cluster.worker("w1").await;
        let at_once = Duration::from_secs(5);
        eventually_within(at_once, "it follows", async || {
            followed(&worker).await.map(drop)
        })
        .await;
        worker.stop().await;
    }
}
