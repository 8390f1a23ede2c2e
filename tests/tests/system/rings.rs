//! Rollouts in rings: what is good gets everywhere, and what is harmful stays with one worker and is taken back.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use forebay_control::RolloutSettings;
use forebay_mock::{Faults, MockConfig, MockServer};
use forebay_proto::wire;
use forebay_tests::{Cluster, WorkerHandle, eventually, eventually_within, model_at};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep},
};

const WORKERS: usize = 20;
/// The promise.
const TAKEN_BACK_WITHIN: Duration = Duration::from_secs(30);

fn rings() -> RolloutSettings {
    RolloutSettings {
        rings: "1,25%".parse().unwrap(),
        soak: Duration::from_secs(5),
        max_errors: 0.1,
        max_slowdown: 3.0,
    }
}

async fn fleet() -> (Cluster, Vec<WorkerHandle>) {
    let cluster = Cluster::with_rings(rings()).await;
    let mut workers = Vec::new();
    for n in 0..WORKERS {
        workers.push(cluster.worker(&format!("w{n}")).await);
    }
    for worker in &workers {
        worker.ready().await;
    }
    (cluster, workers)
}

async fn rollout(cluster: &Cluster, revision: u64) -> wire::Rollout {
    let request = wire::GetRolloutRequest {
        revision: Some(revision),
    };
    let rollout = cluster.fleet().get_rollout(request).await;
    rollout.unwrap().into_inner()
}

async fn update(cluster: &Cluster, model: wire::Model) -> u64 {
    let request = wire::UpdateModelRequest {
        model: Some(model),
        ..Default::default()
    };
    let updated = cluster.registry().update_model(request).await;
    updated.unwrap().into_inner().revision
}

async fn history(cluster: &Cluster, revision: u64) -> wire::Revision {
    let mut revisions = wire::revisions_client::RevisionsClient::new(cluster.channel());
    let request = wire::GetRevisionRequest { revision };
    let told = revisions.get_revision(request).await;
    told.unwrap().into_inner()
}

/// What a worker's clients saw.
#[derive(Debug, Default)]
struct Seen {
    good: AtomicU64,
    bad: AtomicU64,
}

/// Clients that ask each worker all the time.
struct Traffic {
    seen: Vec<Arc<Seen>>,
    stop: Arc<AtomicBool>,
    tasks: JoinSet<()>,
}

impl Traffic {
    /// Each asks for these models in turn.
    fn start(workers: &[WorkerHandle], models: &'static [&'static str]) -> Self {
        let (stop, mut tasks) = (Arc::<AtomicBool>::default(), JoinSet::new());
        let mut seen = Vec::new();
        for worker in workers {
            let (client, own) = (worker.client(), Arc::<Seen>::default());
            seen.push(own.clone());
            let stop = stop.clone();
            tasks.spawn(async move {
                for model in models.iter().cycle() {
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                    let good = client.status(model).await.is_some_and(|s| s.is_success());
                    let counter = if good { &own.good } else { &own.bad };
                    counter.fetch_add(1, Ordering::Relaxed);
                    sleep(Duration::from_millis(50)).await;
                }
            });
        }
        Self { seen, stop, tasks }
    }

    async fn stop(self) -> Vec<(u64, u64)> {
        self.stop.store(true, Ordering::Relaxed);
        self.tasks.join_all().await;
        let read = |n: &AtomicU64| n.load(Ordering::Relaxed);
        self.seen
            .iter()
            .map(|s| (read(&s.good), read(&s.bad)))
            .collect()
    }
}

/// Registers what is valid and harmful: a pool of 1 to an endpoint that answers 500. It is offered to one worker.
async fn harm(cluster: &Cluster) -> (MockServer, u64) {
    let bad = MockServer::start(MockConfig::serving("m")).await.unwrap();
    bad.set_faults(Faults {
        status: Some(500),
        status_for: u32::MAX,
        ..Faults::default()
    });
    let mut harmful = model_at("m", &bad.url());
    harmful.pool = Some(wire::Pool {
        max_concurrent: Some(1),
        ..Default::default()
    });
    let harmful = update(cluster, harmful).await;
    eventually("it is in the first ring", async || {
        let rollout = rollout(cluster, harmful).await;
        let members = rollout.workers.iter().filter(|worker| worker.in_ring);
        let members = members.count();
        assert!(members <= 1);
        let ring = rollout.stage() == wire::RolloutStage::Ring && rollout.ring == 1;
        (ring && members == 1).then_some(())
    })
    .await;
    (bad, harmful)
}

#[tokio::test(flavor = "multi_thread")]
async fn harm_stays_with_one_worker_and_is_taken_back_and_the_rollout_says_why() {
    let (cluster, workers) = fleet().await;
    let good = MockServer::start(MockConfig::serving("m")).await.unwrap();
    let first = cluster.create(model_at("m", &good.url())).await.revision;
    eventually_within(
        TAKEN_BACK_WITHIN,
        "a good revision is everywhere",
        async || rollout(&cluster, first).await.complete.then_some(()),
    )
    .await;
    let traffic = Traffic::start(&workers, &["m"]);
    sleep(Duration::from_secs(2)).await;

    let began = Instant::now();
    let (bad, harmful) = harm(&cluster).await;
    let returned = eventually_within(TAKEN_BACK_WITHIN, "it is taken back", async || {
        let rollout = rollout(&cluster, harmful).await;
        (rollout.stage() == wire::RolloutStage::Returned).then_some(rollout)
    })
    .await;
    let by = returned.return_revision;
    eventually("all run what was before", async || {
        let rollout = rollout(&cluster, by).await;
        (rollout.complete && rollout.applied as usize == WORKERS).then_some(())
    })
    .await;
    let took = began.elapsed();
    println!(
        "taken back everywhere after {took:?}: {}",
        returned.return_reason
    );
    assert!(took < TAKEN_BACK_WITHIN, "{took:?}");
    for part in [
        format!("revision {harmful}"),
        "errors: ".to_owned(),
        "on the others".to_owned(),
    ] {
        assert!(
            returned.return_reason.contains(&part),
            "{}",
            returned.return_reason
        );
    }
    let told = history(&cluster, by).await;
    assert_eq!(
        (told.author.as_str(), told.rolled_back_to),
        ("forebay", first)
    );
    assert_eq!(told.reason, returned.return_reason);
    sleep(Duration::from_secs(1)).await;
    let seen = traffic.stop().await;
    let affected = seen.iter().filter(|(_, bad)| *bad > 0).count();
    assert_eq!(affected, 1, "{seen:?}");
    let get = wire::GetModelRequest { id: "m".to_owned() };
    let model = cluster
        .registry()
        .get_model(get)
        .await
        .unwrap()
        .into_inner();
    assert_eq!(model.endpoints[0].url, good.url());
    assert_eq!(model.pool.unwrap_or_default().max_concurrent, None);
    for worker in &workers {
        let status = worker.client().status("m").await.unwrap();
        assert!(status.is_success(), "{}: {status}", worker.name());
    }
    assert!(bad.stats().requests > 0);
    let page = cluster.metrics().await;
    assert_eq!(page.sum("forebay_rollout_returns_total", &[]), 1.0);
    assert_eq!(page.sum("forebay_rollout_stable_revision", &[]), by as f64);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_good_goes_from_one_to_a_quarter_to_all_and_a_newcomer_gets_what_is_stable() {
    let (cluster, mut workers) = fleet().await;
    let created = cluster
        .create(model_at("m", "http://127.0.0.1:1"))
        .await
        .revision;
    let mut most = Vec::new();
    let mut newcomer = false;
    eventually_within(TAKEN_BACK_WITHIN, "it is everywhere", async || {
        let rollout = rollout(&cluster, created).await;
        if rollout.stage() == wire::RolloutStage::Ring {
            most.push(rollout.applied);
        }
        if rollout.ring == 2 && !newcomer {
            newcomer = true;
            let worker = cluster.worker("newcomer").await;
            worker.ready().await;
            let revision = worker.metrics().await.sum("forebay_config_revision", &[]);
            assert!(revision < created as f64, "{revision}");
            workers.push(worker);
        }
        let everywhere = rollout.stage() == wire::RolloutStage::Everywhere;
        (everywhere && rollout.complete).then_some(())
    })
    .await;
    // A quarter of 20 is 5, of 21 it is 6.
    most.dedup();
    assert!(most.iter().all(|n| *n <= 6), "{most:?}");
    assert!(
        most.contains(&1) && most.iter().any(|n| *n >= 5),
        "{most:?}"
    );
    assert!(newcomer);
    assert_eq!(
        rollout(&cluster, created).await.applied as usize,
        WORKERS + 1
    );
}

/// A restart in mid-rollout: who has the candidate keeps it, and a worker that comes gets what was stable, out of the
/// history.
#[tokio::test(flavor = "multi_thread")]
async fn a_restart_of_the_control_plane_in_the_middle_changes_nothing_for_the_rest() {
    let mut cluster = Cluster::with_rings(rings()).await;
    let mut workers = Vec::new();
    for n in 0..4 {
        workers.push(cluster.worker(&format!("w{n}")).await);
    }
    let everywhere = async |cluster: &Cluster, revision: u64| {
        eventually_within(TAKEN_BACK_WITHIN, "it is everywhere", async || {
            let rollout = rollout(cluster, revision).await;
            let everywhere = rollout.stage() == wire::RolloutStage::Everywhere;
            (everywhere && rollout.complete && rollout.applied > 0).then_some(())
        })
        .await;
    };
    let first = cluster
        .create(model_at("m", "http://127.0.0.1:1"))
        .await
        .revision;
    everywhere(&cluster, first).await;
    let second = cluster
        .create(model_at("n", "http://127.0.0.1:1"))
        .await
        .revision;
    let holder = eventually("one worker has it", async || {
        let rollout = rollout(&cluster, second).await;
        let applied = wire::WorkerState::Applied;
        let mut holders = rollout.workers.into_iter().filter(|w| w.state() == applied);
        holders.next().map(|worker| worker.id)
    })
    .await;
    cluster.stop_control().await;
    cluster.start_control().await;
    let newcomer = cluster.worker("newcomer").await;
    newcomer.ready().await;
    assert_eq!(
        newcomer.metrics().await.sum("forebay_config_revision", &[]),
        first as f64
    );
    let rollout = eventually("the others are back", async || {
        let rollout = rollout(&cluster, second).await;
        (rollout.workers.len() == 5).then_some(rollout)
    })
    .await;
    assert_eq!(
        (rollout.stage(), rollout.ring),
        (wire::RolloutStage::Ring, 1)
    );
    assert_eq!(rollout.stable_revision, first);
    for worker in &rollout.workers {
        let held = if worker.id == holder { second } else { first };
        assert_eq!(worker.applied_revision, held, "{}", worker.id);
    }
    everywhere(&cluster, second).await;
}

/// Two thirds of the traffic are fine: less than what is allowed fails, but all of what was changed.
#[tokio::test(flavor = "multi_thread")]
async fn harm_to_one_model_does_not_drown_in_the_traffic_of_the_others() {
    let lenient = RolloutSettings {
        max_errors: 0.6,
        ..rings()
    };
    let cluster = Cluster::with_rings(lenient).await;
    let mut workers = Vec::new();
    for n in 0..3 {
        workers.push(cluster.worker(&format!("w{n}")).await);
    }
    let good = MockServer::start(MockConfig {
        models: Vec::new(),
        ..MockConfig::default()
    });
    let good = good.await.unwrap();
    let mut last = 0;
    for id in ["m", "busy"] {
        last = cluster.create(model_at(id, &good.url())).await.revision;
    }
    eventually_within(TAKEN_BACK_WITHIN, "both are everywhere", async || {
        let rollout = rollout(&cluster, last).await;
        (rollout.complete && rollout.applied == 3).then_some(())
    })
    .await;
    let traffic = Traffic::start(&workers, &["m", "busy", "busy"]);
    // Twenty requests for the model on each, before.
    sleep(Duration::from_secs(5)).await;
    let (_bad, harmful) = harm(&cluster).await;
    let returned = eventually_within(TAKEN_BACK_WITHIN, "it is taken back", async || {
        let rollout = rollout(&cluster, harmful).await;
        (rollout.stage() == wire::RolloutStage::Returned).then_some(rollout)
    })
    .await;
    traffic.stop().await;
    let reason = returned.return_reason;
    assert!(reason.contains("for model m"), "{reason}");
}

/// An operator who sees the harm first need not wait for anything: the old content is proven, under whatever number.
#[tokio::test(flavor = "multi_thread")]
async fn a_rollback_by_hand_in_the_middle_goes_to_all_at_once() {
    let cluster = Cluster::with_rings(rings()).await;
    let mut workers = Vec::new();
    for n in 0..4 {
        workers.push(cluster.worker(&format!("w{n}")).await);
    }
    for worker in &workers {
        worker.ready().await;
    }
    let created = cluster.create(model_at("m", "http://127.0.0.1:1")).await;
    eventually_within(TAKEN_BACK_WITHIN, "everywhere", async || {
        let seen = rollout(&cluster, created.revision).await;
        (seen.complete && seen.applied == 4).then_some(())
    })
    .await;
    let changed = update(&cluster, model_at("m", "http://127.0.0.1:2")).await;
    eventually("the first ring has it", async || {
        (rollout(&cluster, changed).await.applied == 1).then_some(())
    })
    .await;
    let began = Instant::now();
    let mut revisions = wire::revisions_client::RevisionsClient::new(cluster.channel());
    let request = wire::RollbackRevisionRequest {
        revision: created.revision,
        ..Default::default()
    };
    let back = revisions.rollback_revision(request).await;
    let back = back.unwrap().into_inner().revision;
    assert_ne!(
        history(&cluster, back).await.digest,
        history(&cluster, created.revision).await.digest,
        "the same content under other numbers"
    );
    eventually("the way back is everywhere", async || {
        let seen = rollout(&cluster, back).await;
        (seen.complete && seen.applied == 4).then_some(())
    })
    .await;
    assert!(
        began.elapsed() < rings().soak,
        "without a soak: {:?}",
        began.elapsed()
    );
}
