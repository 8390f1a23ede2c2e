//! The pool on real sockets, against the mock.

use std::time::Duration;

use bytes::Bytes;
use forebay_mock::{Faults, MockConfig, MockServer};
use forebay_proto::{
    Endpoint, EndpointId, EndpointUrl, ModelSpec, PoolSettings, PoolSize, Revision,
};
use http::{Request, uri::PathAndQuery};
use http_body_util::BodyExt as _;
use prometheus::Registry;
use tokio::{
    task::JoinSet,
    time::{sleep, timeout},
};

use super::*;

const SOON: Duration = Duration::from_secs(10);

fn model(url: &str, size: u32) -> ResolvedModel {
    let url = EndpointUrl::parse(url).unwrap();
    let endpoint = Endpoint::new(EndpointId::new("a").unwrap(), url);
    let mut spec = ModelSpec::new(ModelId::new("m").unwrap(), vec![], vec![endpoint]).unwrap();
    spec.pool.max_concurrent = Some(PoolSize::new(size).unwrap());
    spec.pool.max_waiting = Some(10_000);
    spec.resolve(&PoolSettings::default(), Revision::new(1))
        .unwrap()
}

fn pool(url: &str, size: u32) -> Arc<Pool> {
    Pool::new(&model(url, size), &common(), usize::MAX)
}

fn common() -> Common {
    Common {
        tasks: TaskTracker::new(),
        metrics: Arc::new(Metrics::new(&Registry::new()).unwrap()),
        budget: Arc::default(),
        resolver: Arc::new(Resolver::new(&[])),
        probing: Arc::default(),
        discovering: Arc::default(),
        keys: Arc::default(),
        leases: Arc::default(),
    }
}

async fn mock(config: MockConfig) -> MockServer {
    MockServer::start(MockConfig {
        models: vec!["m".to_owned()],
        ..config
    })
    .await
    .unwrap()
}

async fn lease(pool: &Arc<Pool>) -> Lease {
    pool.acquire(&Claim::until(Instant::now() + SOON))
        .await
        .unwrap()
}

fn request(lease: &Lease) -> Request<RequestBody> {
    let body = br#"{"model":"m","max_tokens":1,"messages":[]}"#;
    let body = RequestBody::from(Bytes::from_static(body));
    let mut request = Request::post("/").body(body).unwrap();
    lease.address(
        PathAndQuery::from_static("/v1/chat/completions"),
        &mut request,
    );
    request
}

/// One request from beginning to end.
async fn serve(pool: &Arc<Pool>) -> Kind {
    let mut lease = lease(pool).await;
    let response = lease.send(request(&lease)).await.unwrap();
    assert_eq!(response.status(), 200);
    response.into_body().collect().await.unwrap();
    let kind = lease.kind();
    lease.finish();
    kind
}

/// Waits until the pool is as wanted; in the meantime its counts must add up.
async fn until(pool: &Arc<Pool>, what: &str, is: impl Fn(&PoolSnapshot) -> bool) -> PoolSnapshot {
    let wait = async {
        loop {
            let seen = pool.snapshot();
            let sum = |counts: &std::collections::BTreeMap<_, u64>| counts.values().sum::<u64>();
            let open = (seen.idle + seen.active + seen.draining) as u64;
            assert_eq!(sum(&seen.opened) - sum(&seen.closed), open, "{seen:?}");
            if is(&seen) {
                return seen;
            }
            sleep(Duration::from_millis(2)).await;
        }
    };
    match timeout(SOON, wait).await {
        Ok(seen) => seen,
        Err(_) => panic!("not in time: {what}: {:?}", pool.snapshot()),
    }
}

#[tokio::test]
async fn a_returned_connection_is_used_again() {
    let mock = mock(MockConfig::default()).await;
    let pool = pool(&mock.url(), 4);
    assert_eq!(serve(&pool).await, Kind::New);
    until(&pool, "the connection rests", |seen| seen.idle == 1).await;
    for _ in 0..20 {
        assert_eq!(serve(&pool).await, Kind::Reused);
    }
    assert_eq!((mock.stats().opened, mock.stats().completed), (1, 21));
}

/// A connection whose driver has not been polled yet is not ready, but it is not dead either.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_new_connection_is_not_taken_for_a_dead_one() {
    let mock = mock(MockConfig::default()).await;
    for _ in 0..300 {
        let pool = pool(&mock.url(), 1);
        drop(lease(&pool).await);
        assert_eq!(pool.snapshot().stale_at_checkout, 0);
        pool.shutdown();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_crowd_never_exceeds_the_size() {
    let mock = mock(MockConfig::default()).await;
    let pool = pool(&mock.url(), 8);
    let mut crowd = JoinSet::new();
    for _ in 0..400 {
        let pool = pool.clone();
        crowd.spawn(async move { serve(&pool).await });
    }
    crowd.join_all().await;
    let stats = mock.stats();
    assert_eq!(stats.completed, 400);
    assert_eq!((stats.opened, stats.peak_in_flight), (8, 8));
    let seen = until(&pool, "all rest", |seen| seen.idle == 8).await;
    assert_eq!((seen.checkouts_new, seen.checkouts_reused), (8, 392));
}

#[tokio::test]
async fn a_lease_that_sent_nothing_gives_its_connection_back() {
    let mock = mock(MockConfig::default()).await;
    let pool = pool(&mock.url(), 1);
    drop(lease(&pool).await);
    let seen = pool.snapshot();
    assert_eq!((seen.idle, seen.active), (1, 0));
    assert_eq!(
        serve(&pool).await,
        Kind::New,
        "its first request is yet to come"
    );
}

#[tokio::test]
async fn a_lease_dropped_with_its_request_in_flight_closes_the_connection_and_frees_the_slot() {
    let mock = mock(MockConfig {
        latency: Duration::from_secs(60),
        ..MockConfig::default()
    })
    .await;
    let pool = pool(&mock.url(), 1);
    {
        let mut lease = lease(&pool).await;
        let request = request(&lease);
        assert!(
            timeout(Duration::from_millis(50), lease.send(request))
                .await
                .is_err()
        );
    }
    let seen = until(&pool, "closed", |seen| seen.closed["cancelled"] == 1).await;
    assert_eq!((seen.idle, seen.active), (0, 0));
    let told = async {
        while mock.stats().cancelled == 0 {
            sleep(Duration::from_millis(1)).await;
        }
    };
    timeout(Duration::from_millis(200), told).await.unwrap();
    drop(lease(&pool).await);
}

#[tokio::test]
async fn a_waiter_that_goes_leaves_the_line_and_one_out_of_time_is_told_why() {
    let mock = mock(MockConfig::default()).await;
    let pool = pool(&mock.url(), 1);
    let held = lease(&pool).await;
    assert!(
        timeout(Duration::from_millis(20), lease(&pool))
            .await
            .is_err()
    );
    assert_eq!(pool.snapshot().waiting, 0);
    let late = pool
        .acquire(&Claim::until(Instant::now() + Duration::from_millis(20)))
        .await;
    let Err(AcquireError::Timeout { busy, .. }) = late else {
        panic!("{late:?}");
    };
    assert!(
        busy.to_string()
            .starts_with("model `m` has 1 of 1 slots in use"),
        "{busy}"
    );
    assert_eq!(pool.snapshot().waiting, 0);
    drop(held);
    assert_eq!(serve(&pool).await, Kind::New);
}

#[tokio::test]
async fn a_connection_that_the_upstream_closes_leaves_the_pool_at_once() {
    let mock = mock(MockConfig {
        keep_alive: Some(Duration::from_millis(50)),
        ..MockConfig::default()
    })
    .await;
    let pool = pool(&mock.url(), 4);
    serve(&pool).await;
    let replaced = |seen: &PoolSnapshot| seen.closed["upstream"] == 1 && seen.idle == 1;
    let seen = until(&pool, "closed, and another in its place", replaced).await;
    assert_eq!((seen.opened["refill"], seen.stale_at_checkout), (1, 0));
    assert_eq!(serve(&pool).await, Kind::New);
}

/// Runs on a thread of its own, so that it can close a connection while this runtime does not run:
/// then hyper has not seen the close, as on a busy worker.
struct Closing {
    url: String,
    close: std::sync::mpsc::Sender<()>,
    server: std::thread::JoinHandle<()>,
}

impl Closing {
    /// Serves one request on one connection, then closes it when it is told to.
    fn start() -> Self {
        use std::io::{Read as _, Write as _};

        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (close, told) = std::sync::mpsc::channel();
        let server = std::thread::spawn(move || {
            let (mut socket, _) = listener.accept().unwrap();
            let _ = socket.read(&mut [0; 4096]).unwrap();
            socket
                .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}")
                .unwrap();
            told.recv().unwrap();
        });
        Self { url, close, server }
    }

    /// Blocks this thread, and so its runtime, until the connection is closed.
    fn close(self) {
        self.close.send(()).unwrap();
        self.server.join().unwrap();
    }
}

#[tokio::test]
async fn a_close_that_hyper_has_not_seen_is_seen_at_checkout() {
    let upstream = Closing::start();
    let pool = pool(&upstream.url, 1);
    serve(&pool).await;
    until(&pool, "the connection rests", |seen| seen.idle == 1).await;
    // One that was in use a moment ago is not looked at here, but at its first byte.
    tokio::time::sleep(Duration::from_millis(20)).await;
    upstream.close();
    // Nothing listens any more, so that no other connection is to be had.
    let claim = Claim::until(Instant::now() + Duration::from_millis(50));
    let nothing = pool.acquire(&claim);
    assert!(nothing.await.is_err());
    let seen = pool.snapshot();
    assert_eq!((seen.stale_at_checkout, seen.closed["upstream"]), (1, 1));
}

#[tokio::test]
async fn a_close_between_checkout_and_the_first_byte_leaves_nothing_sent() {
    let upstream = Closing::start();
    let pool = pool(&upstream.url, 1);
    serve(&pool).await;
    until(&pool, "the connection rests", |seen| seen.idle == 1).await;
    let mut lease = lease(&pool).await;
    upstream.close();
    let failed = lease.send(request(&lease)).await.unwrap_err();
    assert_eq!(failed.progress, Progress::NothingSent, "{failed:?}");
    assert_eq!(lease.kind(), Kind::Reused);
}

#[tokio::test]
async fn an_upstream_that_asks_for_the_close_is_not_used_again() {
    let mock = mock(MockConfig::default()).await;
    mock.set_faults(Faults {
        close_after_response: true,
        ..Faults::default()
    });
    let pool = pool(&mock.url(), 1);
    for _ in 0..3 {
        assert_eq!(serve(&pool).await, Kind::New);
    }
    assert_eq!(mock.stats().opened, 3);
}

#[tokio::test]
async fn an_endpoint_that_refuses_is_named() {
    let gone = mock(MockConfig::default()).await;
    let url = gone.url();
    gone.stop().await;
    let pool = pool(&url, 2);
    let sweeping = async {
        loop {
            sleep(SWEEP).await;
            pool.sweep();
        }
    };
    let claim = Claim::until(Instant::now() + SOON);
    let refused = tokio::select! {
        refused = pool.acquire(&claim) => refused,
        () = sweeping => unreachable!("sweeps for ever"),
    };
    let Err(AcquireError::Connect { error, .. }) = refused else {
        panic!("{refused:?}");
    };
    assert!(
        error.contains(&url) && error.contains("endpoint `a`"),
        "{error}"
    );
    assert!(pool.snapshot().connect_failures > 0);
}

#[tokio::test]
async fn a_shrink_closes_what_rests_and_then_what_returns() {
    let mock = mock(MockConfig::default()).await;
    let pool = pool(&mock.url(), 6);
    let mut leases = Vec::new();
    for _ in 0..6 {
        leases.push(lease(&pool).await);
    }
    leases.truncate(3);
    pool.reshape(&model(&mock.url(), 2));
    let seen = pool.snapshot();
    assert_eq!((seen.idle, seen.active, seen.closed["shrink"]), (0, 3, 3));
    drop(leases);
    let seen = pool.snapshot();
    assert_eq!((seen.idle, seen.active, seen.closed["shrink"]), (2, 0, 4));
}

#[tokio::test]
async fn a_retired_pool_empties_when_its_last_request_is_done() {
    let mock = mock(MockConfig::default()).await;
    let pool = pool(&mock.url(), 2);
    let held = lease(&pool).await;
    drop(lease(&pool).await);
    pool.retire();
    assert!(!pool.is_empty());
    drop(held);
    assert!(pool.is_empty());
    assert_eq!(pool.snapshot().closed["removed"], 2);
}

/// A client that gives up before the line has come to it is not served, and takes no slot from others.
#[tokio::test]
async fn who_gives_up_soon_leaves_the_line_in_time() {
    let mock = mock(MockConfig::default()).await;
    let pool = pool(&mock.url(), 1);
    // What is known of answers: they take about 400 ms to begin.
    for _ in 0..3 {
        let mut lease = lease(&pool).await;
        lease.answered_after(Duration::from_millis(400));
        drop(lease);
    }
    let held = lease(&pool).await;
    let began = Instant::now();
    let claim = |patience: u64| Claim {
        patience: Some(began + Duration::from_millis(patience)),
        ..Claim::until(began + SOON)
    };
    let refused = pool.acquire(&claim(300)).await.unwrap_err();
    assert!(
        matches!(refused, AcquireError::Impatient { .. }),
        "{refused}"
    );
    assert_eq!(pool.snapshot().waiting, 0);
    let refused = pool.acquire(&claim(900)).await.unwrap_err();
    let AcquireError::Impatient { waited, .. } = refused else {
        panic!("{refused}");
    };
    let left = Duration::from_millis(900) - waited;
    assert!(
        left >= Duration::from_millis(300),
        "{left:?} are left for the answer"
    );
    assert_eq!(pool.snapshot().turned_away["client_deadline"], 2);
    drop(held);
    // Where there is room, he is served however little he waits.
    let quick = claim(300);
    assert!(pool.acquire(&quick).await.is_ok());
}
