//! Limits that hold for all workers together: lent by need, kept to when somebody comes, goes, is cut off or is changed.

use std::time::Duration;

use forebay_control::LeaseSettings;
use forebay_mock::{MockConfig, MockServer};
use forebay_proto::wire;
use forebay_tests::{
    Chat, Cluster, Crowd, Ended, FakeControl, RawClient, Relay, Spread, WorkerHandle, eventually,
    eventually_within, model_at,
};
use wire::{LeaseState, PoolScope};

const LIMIT: u32 = 12;
const QUICK: LeaseSettings = LeaseSettings {
    ttl: Duration::from_secs(2),
    linger: Duration::from_secs(1),
};
/// Until what is lent to one that vanished is lent to others.
const SAFE: Duration = Duration::from_secs(30);

/// An engine that refuses, and counts, what is above the limit.
async fn engine() -> MockServer {
    let config = MockConfig {
        interval: Duration::from_millis(20),
        max_in_flight: Some(LIMIT as usize),
        ..MockConfig::serving("m")
    };
    MockServer::start(config).await.unwrap()
}

fn fleet_wide(engine: &MockServer, limit: u32) -> wire::Model {
    wire::Model {
        pool: Some(wire::Pool {
            max_concurrent: Some(limit),
            scope: PoolScope::Fleet.into(),
            queue: Some(wire::Queue {
                max_waiting: Some(100),
                ..wire::Queue::default()
            }),
            ..wire::Pool::default()
        }),
        ..model_at("m", &engine.url())
    }
}

async fn pool(cluster: &Cluster) -> Option<wire::FleetPool> {
    let mut fleet = cluster.fleet();
    let list = fleet.list_leases(wire::ListLeasesRequest::default()).await;
    list.ok()?.into_inner().pools.into_iter().next()
}

/// Waits until all of it is lent, evenly over so many, and used.
async fn all_lent(cluster: &Cluster, limit: u32, workers: usize) {
    eventually_within(SAFE, "all is lent evenly and used", async || {
        let pool = pool(cluster).await?;
        let held = pool.leases.iter().filter(|l| l.state() == LeaseState::Held);
        let sizes: Vec<u32> = held.map(|lease| lease.size).collect();
        let even = sizes.iter().max()? - sizes.iter().min()? <= 1;
        let whole = sizes.iter().sum::<u32>() == limit && pool.in_flight + 2 >= limit;
        (sizes.len() == workers && even && whole).then_some(())
    })
    .await;
}

fn never_above(engine: &MockServer) {
    let stats = engine.stats();
    assert_eq!(
        (stats.over_limit, stats.peak_in_flight <= u64::from(LIMIT)),
        (0, true),
        "{} at once",
        stats.peak_in_flight
    );
}

async fn ready(cluster: &Cluster, name: &str) -> WorkerHandle {
    let worker = cluster.worker(name).await;
    worker.ready().await;
    worker
}

#[tokio::test(flavor = "multi_thread")]
async fn a_limit_holds_while_workers_come_and_go() {
    let cluster = Cluster::start().await;
    let engine = engine().await;
    let first = ready(&cluster, "w1").await;
    cluster.create_and_wait(fleet_wide(&engine, LIMIT)).await;
    let crowd = Crowd::new("m", 30, 5..=25);
    crowd.ask(vec![first.gateway()]);
    all_lent(&cluster, LIMIT, 1).await;
    let (second, third) = (ready(&cluster, "w2").await, ready(&cluster, "w3").await);
    crowd.ask(vec![first.gateway(), second.gateway(), third.gateway()]);
    all_lent(&cluster, LIMIT, 3).await;
    for worker in [&first, &second, &third] {
        let pool = eventually("its share is the size of its pool", async || {
            let mut pools = worker.document("/pools").await;
            let pool = pools["pools"][0].take();
            (pool["size"] == LIMIT / 3).then_some(pool)
        })
        .await;
        assert_eq!(pool["keepalive"], LIMIT / 3);
        assert_eq!(pool["scope"], "fleet");
        assert_eq!(pool["fleet_limit"], LIMIT);
        assert_eq!(pool["lease"]["floor"], 1);
        let page = worker.metrics().await;
        let (size, lease) = ("forebay_pool_size", "forebay_lease_size");
        assert_eq!(
            page.sum(size, &["model=\"m\""]),
            page.sum(lease, &["model=\"m\""])
        );
        assert_eq!(page.sum("forebay_lease_state", &["model=\"m\""]), 1.0);
    }
    let page = cluster.metrics().await;
    assert_eq!(page.sum("forebay_fleet_limit", &["model=\"m\""]), 12.0);
    assert!(page.sum("forebay_fleet_may_be_used", &["model=\"m\""]) <= 12.0);
    // Who ends in good order leaves nothing behind, not even a floor.
    crowd.ask_only(vec![first.gateway()]).await;
    // What runs there is served to its end.
    let mut running = Vec::new();
    for worker in [&second, &third] {
        let mut client = RawClient::connect(worker.gateway()).await;
        client.chat("m", true, 50).await;
        client.read_until("token0").await;
        running.push(client);
    }
    tokio::join!(second.stop(), third.stop());
    for mut stream in running {
        let text = stream.read_to_end().await;
        assert!(text.contains("[DONE]"), "{text}");
    }
    all_lent(&cluster, LIMIT, 1).await;
    never_above(&engine);
    let fates = crowd.fates();
    assert_eq!(fates.keys().collect::<Vec<_>>(), ["served"], "{fates:?}");
    drop(crowd);
    first.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_is_cut_off_keeps_its_floor_and_is_back_when_it_is_back() {
    let cluster = Cluster::with_leases(QUICK).await;
    let engine = engine().await;
    let relay = Relay::to(cluster.addr()).await;
    let near = ready(&cluster, "near").await;
    let far = cluster.worker_of("far", &relay.url()).await;
    far.ready().await;
    cluster.create_and_wait(fleet_wide(&engine, LIMIT)).await;
    // Not at random: whoever waits at the one that is cut off would be missing at the other.
    let crowd = Crowd::spread(Spread::Even, "m", 30, 5..=25);
    crowd.ask(vec![near.gateway(), far.gateway()]);
    all_lent(&cluster, LIMIT, 2).await;
    relay.cut();
    eventually_within(SAFE, "the others have all but a floor", async || {
        let pool = pool(&cluster).await?;
        let sizes: Vec<u32> = pool.leases.iter().map(|lease| lease.may_use).collect();
        (sizes == [1, LIMIT - 1]).then_some(())
    })
    .await;
    let pools = far.document("/pools").await;
    assert_eq!(pools["pools"][0]["lease"]["state"], "lapsed");
    assert_eq!(pools["pools"][0]["size"], 1);
    assert!(pools["pools"][0]["in_flight"].as_u64() <= Some(1));
    // It serves on, with that.
    crowd.ask(vec![near.gateway()]);
    eventually_within(SAFE, "the floor serves", async || {
        let ended = far.client().finish("m", Chat::Whole, 1).await;
        (ended == Ended::Well).then_some(())
    })
    .await;
    relay.heal();
    crowd.ask(vec![near.gateway(), far.gateway()]);
    eventually_within(Duration::from_secs(60), "it is back", async || {
        let pool = pool(&cluster).await?;
        let held = pool.leases.iter().filter(|l| l.state() == LeaseState::Held);
        (held.map(|lease| lease.size).collect::<Vec<_>>() == [6, 6]).then_some(())
    })
    .await;
    never_above(&engine);
    drop(crowd);
    tokio::join!(near.stop(), far.stop());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_runs_when_a_lease_is_lost_is_told_in_the_stream() {
    let cluster = Cluster::with_leases(QUICK).await;
    let engine = engine().await;
    let relay = Relay::to(cluster.addr()).await;
    let far = cluster.worker_of("far", &relay.url()).await;
    far.ready().await;
    cluster.create_and_wait(fleet_wide(&engine, LIMIT)).await;
    let mut streams = Vec::new();
    for _ in 0..3 {
        let mut client = RawClient::connect(far.gateway()).await;
        client.chat("m", true, 1_000).await;
        client.read_until("token1 ").await;
        streams.push(client);
    }
    assert_eq!(engine.stats().in_flight, 3);
    relay.cut();
    // The floor is one: two of three are ended, the newest, and told why.
    eventually_within(SAFE, "two are ended", async || {
        (engine.stats().in_flight == 1).then_some(())
    })
    .await;
    relay.heal();
    let first = streams.remove(0);
    for mut stream in streams {
        let text = stream.read_to_end().await;
        assert!(text.contains(r#""code":"lease_lost""#), "{text}");
        assert!(!text.contains("[DONE]") && !text.ends_with("0\r\n\r\n"));
    }
    drop(first);
    far.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_control_plane_that_was_away_goes_on_where_it_was() {
    let mut cluster = Cluster::start().await;
    let engine = engine().await;
    let (one, two) = (ready(&cluster, "w1").await, ready(&cluster, "w2").await);
    cluster.create_and_wait(fleet_wide(&engine, LIMIT)).await;
    let crowd = Crowd::new("m", 30, 5..=25);
    crowd.ask(vec![one.gateway(), two.gateway()]);
    all_lent(&cluster, LIMIT, 2).await;
    cluster.stop_control().await;
    let sizes = one.document("/pools").await;
    assert_eq!(sizes["pools"][0]["size"], 6);
    cluster.start_control().await;
    all_lent(&cluster, LIMIT, 2).await;
    never_above(&engine);
    let fates = crowd.fates();
    assert_eq!(fates.keys().collect::<Vec<_>>(), ["served"], "{fates:?}");
    drop(crowd);
    tokio::join!(one.stop(), two.stop());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scope_and_a_limit_are_changed_under_load() {
    let cluster = Cluster::start().await;
    let engine = engine().await;
    let (one, two) = (ready(&cluster, "w1").await, ready(&cluster, "w2").await);
    // Each its own six: together what the engine takes.
    let own = wire::Model {
        pool: Some(wire::Pool {
            max_concurrent: Some(LIMIT / 2),
            queue: Some(wire::Queue {
                max_waiting: Some(100),
                ..wire::Queue::default()
            }),
            ..wire::Pool::default()
        }),
        ..model_at("m", &engine.url())
    };
    cluster.create_and_wait(own.clone()).await;
    let crowd = Crowd::new("m", 30, 5..=25);
    crowd.ask(vec![one.gateway(), two.gateway()]);
    eventually("all is used", async || {
        (engine.stats().in_flight == 12).then_some(())
    })
    .await;
    let updated = cluster.update(fleet_wide(&engine, LIMIT)).await;
    cluster.rolled_out(updated.revision).await;
    all_lent(&cluster, LIMIT, 2).await;
    never_above(&engine);
    let updated = cluster.update(fleet_wide(&engine, 5)).await;
    cluster.rolled_out(updated.revision).await;
    all_lent(&cluster, 5, 2).await;
    // What began with more room comes to its end.
    eventually("no more run than may", async || {
        (engine.stats().in_flight <= 5).then_some(())
    })
    .await;
    engine.reset_stats();
    eventually("it is used", async || {
        (engine.stats().requests > 50).then_some(())
    })
    .await;
    assert!(
        engine.stats().peak_in_flight <= 5,
        "{}",
        engine.stats().peak_in_flight
    );
    let updated = cluster.update(own).await;
    cluster.rolled_out(updated.revision).await;
    eventually("all is used", async || {
        (engine.stats().in_flight == 12).then_some(())
    })
    .await;
    assert_eq!(engine.stats().over_limit, 0);
    // Who decides hears of a revision as workers do, and not before them.
    eventually("there is no such limit any more", async || {
        let request = wire::ListLeasesRequest {
            model: "m".to_owned(),
        };
        let refused = cluster.fleet().list_leases(request).await.err()?;
        (refused.code() == tonic::Code::NotFound).then_some(())
    })
    .await;
    let fates = crowd.fates();
    assert_eq!(fates.keys().collect::<Vec<_>>(), ["served"], "{fates:?}");
    drop(crowd);
    tokio::join!(one.stop(), two.stop());
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_that_are_cut_short_count_until_the_engine_knows() {
    let (cluster, worker) = Cluster::with_worker().await;
    let engine = engine().await;
    cluster.create_and_wait(fleet_wide(&engine, LIMIT)).await;
    let crowd = Crowd::new("m", 14, 5..=25);
    crowd.ask(vec![worker.gateway()]);
    all_lent(&cluster, LIMIT, 1).await;
    // Clients that leave in the middle, again and again.
    let mut leaving = tokio::task::JoinSet::new();
    for n in 0..60 {
        let client = worker.client();
        leaving.spawn(async move {
            let patience = Duration::from_millis(200 + n * 40);
            let asked = client.finish("m", Chat::Stream, 1_000);
            drop(tokio::time::timeout(patience, asked).await);
        });
    }
    leaving.join_all().await;
    assert!(engine.stats().cancelled > 0);
    never_above(&engine);
    drop(crowd);
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_worker_that_was_never_told_lets_nobody_in() {
    let mut control = FakeControl::start().await;
    let cluster = Cluster::start().await;
    let engine = engine().await;
    let worker = cluster.worker_of("w", &control.url()).await;
    let (stream, _) = control.accept().await;
    let mut model = fleet_wide(&engine, LIMIT);
    if let Some(pool) = &mut model.pool {
        pool.queue = Some(wire::Queue {
            max_waiting: Some(0),
            ..wire::Queue::default()
        });
    }
    let push = forebay_tests::push_of(1, vec![model]);
    stream.say(wire::to_worker::Message::Push(push)).await;
    worker.ready().await;
    let status = worker.client().status("m").await;
    assert_eq!(status.map(|status| status.as_u16()), Some(429));
    let pools = worker.document("/pools").await;
    assert_eq!(pools["pools"][0]["lease"]["state"], "none");
    assert_eq!(engine.stats().requests, 0);
    drop(stream);
    worker.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_is_gone_can_be_forgotten_and_one_that_is_there_cannot() {
    let cluster = Cluster::with_leases(QUICK).await;
    let engine = engine().await;
    let relay = Relay::to(cluster.addr()).await;
    let near = ready(&cluster, "near").await;
    let far = cluster.worker_of("far", &relay.url()).await;
    far.ready().await;
    cluster.create_and_wait(fleet_wide(&engine, LIMIT)).await;
    let crowd = Crowd::new("m", 30, 5..=25);
    crowd.ask(vec![near.gateway()]);
    let forget = async |id: &str| {
        let request = wire::ForgetWorkerRequest { id: id.to_owned() };
        cluster.fleet().forget_worker(request).await
    };
    let refused = forget("near").await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::FailedPrecondition);
    assert!(refused.message().contains("drain"), "{}", refused.message());
    let refused = forget("nobody").await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::NotFound);
    // It vanishes without a word: its process ends behind a way that is cut.
    relay.cut();
    far.stop().await;
    drop(relay);
    eventually_within(SAFE, "it is gone", async || {
        forget("far").await.ok().map(drop)
    })
    .await;
    all_lent(&cluster, LIMIT, 1).await;
    never_above(&engine);
    drop(crowd);
    near.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_limit_may_be_is_checked() {
    let cluster = Cluster::start().await;
    let engine = engine().await;
    let create = async |model: wire::Model| {
        let request = wire::CreateModelRequest {
            model: Some(model),
            validate_only: true,
            ..Default::default()
        };
        cluster.registry().create_model(request).await
    };
    // More than a worker's budget of 150: it is no worker's alone.
    let created = create(fleet_wide(&engine, 192)).await.unwrap().into_inner();
    let pool = created.resolved_pool.unwrap();
    assert_eq!(
        (pool.max_concurrent, pool.fleet_floor),
        (Some(192), Some(1))
    );
    assert_eq!(pool.scope(), PoolScope::Fleet);
    let with = |change: &dyn Fn(&mut wire::Pool)| {
        let mut model = fleet_wide(&engine, 10);
        change(model.pool.get_or_insert_default());
        model
    };
    for (model, field) in [
        (with(&|pool| pool.fleet_floor = Some(11)), "fleet_floor"),
        (
            with(&|pool| {
                pool.scope = 0;
                pool.fleet_floor = Some(1);
            }),
            "fleet_floor",
        ),
        (with(&|pool| pool.scope = 9), "scope"),
        (with(&|pool| pool.keepalive = Some(5)), "keepalive"),
    ] {
        let refused = create(model).await.unwrap_err();
        assert!(refused.message().contains(field), "{}", refused.message());
    }
}
