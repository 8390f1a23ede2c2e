//! What an attack is played on: a gateway, an upstream that keeps every byte it gets, and one whose answers are
//! played; and how it is seen that nothing is left of it.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Once,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use forebay_dataplane::ClientLimits;
use forebay_proto::wire;
use forebay_tests::{Cluster, WorkerHandle, eventually, model_at};
use parking_lot::Mutex;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::{RwLock, RwLockReadGuard, RwLockWriteGuard},
    task::JoinSet,
    time::{sleep, timeout},
};

use super::strict;

pub(crate) const CHAT: &str = "/v1/chat/completions";
pub(crate) const GOOD: &[u8] =
    b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 14\r\n\r\n{\"choices\":[]}";
const SOON: Duration = Duration::from_secs(10);

/// Every panic of this process, of whichever task.
static PANICS: AtomicU64 = AtomicU64::new(0);

fn count_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            // Those of the tests themselves are told by who runs them.
            let ours = |place: &std::panic::Location<'_>| place.file().contains("tests/attacks");
            if !info.location().is_some_and(ours) {
                PANICS.fetch_add(1, Ordering::Relaxed);
            }
            before(info);
        }));
    });
}

static ALONE: RwLock<()> = RwLock::const_new(());

#[expect(dead_code, reason = "held, not looked at")]
enum Turn {
    Shared(RwLockReadGuard<'static, ()>),
    Alone(RwLockWriteGuard<'static, ()>),
}

/// What an upstream answers a request with, and whether it closes then.
pub(crate) type Play = dyn Fn(u64) -> (Vec<u8>, bool) + Send + Sync;

/// An upstream that keeps what it gets.
pub(crate) struct Upstream {
    addr: SocketAddr,
    seen: Arc<Seen>,
    _server: JoinSet<()>,
}

#[derive(Default)]
struct Seen {
    connections: AtomicU64,
    most_on_one: AtomicU64,
    requests: Mutex<Vec<strict::Request>>,
    odd: Mutex<Vec<String>>,
}

impl Upstream {
    pub(crate) async fn start(play: Arc<Play>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let seen = Arc::<Seen>::default();
        let (mut server, all) = (JoinSet::new(), seen.clone());
        server.spawn(async move {
            let mut serving = JoinSet::new();
            while let Ok((socket, _)) = listener.accept().await {
                all.connections.fetch_add(1, Ordering::Relaxed);
                serving.spawn(serve(socket, all.clone(), play.clone()));
                while serving.try_join_next().is_some() {}
            }
        });
        Self {
            addr,
            seen,
            _server: server,
        }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    pub(crate) fn connections(&self) -> u64 {
        self.seen.connections.load(Ordering::Relaxed)
    }

    /// Most requests that a connection carried.
    pub(crate) fn most_on_one(&self) -> u64 {
        self.seen.most_on_one.load(Ordering::Relaxed)
    }

    pub(crate) fn count(&self) -> usize {
        self.seen.requests.lock().len()
    }

    pub(crate) fn last(&self) -> strict::Request {
        self.seen.requests.lock().last().unwrap().clone()
    }

    /// Whatever came can be read in one way only, and is what the gateway means to send.
    pub(crate) fn assert_plain(&self) {
        let odd = self.seen.odd.lock();
        assert!(odd.is_empty(), "ambiguous upstream: {odd:?}");
        const SENT: [&str; 15] = [
            "host",
            "content-length",
            "x-request-id",
            "accept-encoding",
            "accept",
            "authorization",
            "content-type",
            "user-agent",
            "idempotency-key",
            "openai-beta",
            "openai-organization",
            "openai-project",
            "x-api-key",
            "traceparent",
            "tracestate",
        ];
        for request in self.seen.requests.lock().iter() {
            let addr = self.addr.to_string();
            assert_eq!(request.header("host"), Some(addr.as_str()));
            assert_eq!(request.header("accept-encoding"), Some("identity"));
            assert!(request.target.starts_with("/v1/"), "{request:?}");
            for (name, _) in &request.headers {
                assert!(SENT.contains(&name.as_str()), "{name} went upstream");
            }
            let body: serde_json::Value = serde_json::from_slice(&request.body).unwrap();
            assert!(body["model"].is_string(), "{body}");
        }
    }
}

async fn serve(mut socket: TcpStream, seen: Arc<Seen>, play: Arc<Play>) {
    let (mut bytes, mut carried) = (Vec::new(), 0);
    loop {
        let (request, end) = match strict::request(&bytes) {
            Ok(Some(read)) => read,
            Ok(None) => match socket.read_buf(&mut bytes).await {
                Ok(0) | Err(_) => return,
                Ok(_) => continue,
            },
            Err(why) => {
                let text = String::from_utf8_lossy(&bytes);
                return seen.odd.lock().push(format!("{why}: {text:?}"));
            }
        };
        bytes.drain(..end);
        carried += 1;
        seen.most_on_one.fetch_max(carried, Ordering::Relaxed);
        let number = {
            let mut all = seen.requests.lock();
            all.push(request);
            all.len() as u64 - 1
        };
        let (answer, close) = play(number);
        if socket.write_all(&answer).await.is_err() || close {
            return;
        }
    }
}

/// A gateway with two models: `m`, whose upstream is good, and `e`, whose upstream plays.
pub(crate) struct Scene {
    _cluster: Cluster,
    pub(crate) worker: WorkerHandle,
    pub(crate) good: Upstream,
    pub(crate) evil: Upstream,
    panics: u64,
    _turn: Turn,
}

impl Scene {
    pub(crate) async fn start(limits: ClientLimits, play: Arc<Play>, impatience: Duration) -> Self {
        let turn = Turn::Shared(ALONE.read().await);
        Self::in_turn(limits, play, impatience, turn).await
    }

    /// With nothing special, while no other test of this process runs: for who measures it.
    pub(crate) async fn alone() -> Self {
        let play: Arc<Play> = Arc::new(|_| (GOOD.to_vec(), false));
        let turn = Turn::Alone(ALONE.write().await);
        Self::in_turn(ClientLimits::default(), play, Duration::from_secs(60), turn).await
    }

    async fn in_turn(
        limits: ClientLimits,
        play: Arc<Play>,
        impatience: Duration,
        turn: Turn,
    ) -> Self {
        count_panics();
        let panics = PANICS.load(Ordering::Relaxed);
        let mut cluster = Cluster::start().await;
        cluster.limit(limits);
        let worker = cluster.worker("w1").await;
        worker.ready().await;
        let good = Upstream::start(Arc::new(|_| (GOOD.to_vec(), false))).await;
        let evil = Upstream::start(play).await;
        cluster.create_and_wait(model_at("m", &good.url())).await;
        let impatience = prost_types::Duration::try_from(impatience).ok();
        let model = wire::Model {
            timeouts: Some(wire::Timeouts {
                first_byte: impatience,
                idle: impatience,
                ..wire::Timeouts::default()
            }),
            pool: Some(wire::Pool {
                warm: Some(0),
                ..wire::Pool::default()
            }),
            ..model_at("e", &evil.url())
        };
        cluster.create_and_wait(model).await;
        Self {
            _cluster: cluster,
            worker,
            good,
            evil,
            panics,
            _turn: turn,
        }
    }

    /// With nothing special.
    pub(crate) async fn plain() -> Self {
        let play: Arc<Play> = Arc::new(|_| (GOOD.to_vec(), false));
        Self::start(ClientLimits::default(), play, Duration::from_secs(60)).await
    }

    pub(crate) async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.worker.gateway()).await.unwrap()
    }

    /// Asks on a new connection, byte by byte.
    pub(crate) async fn ask(&self, bytes: &[u8]) -> Vec<strict::Answer> {
        let mut socket = self.connect().await;
        socket.write_all(bytes).await.unwrap();
        let read = read_until(&mut socket, |bytes| {
            strict::answers(bytes).is_ok_and(|all| all.last().is_some_and(|last| last.whole))
        });
        strict::answers(&read.await).unwrap()
    }

    /// Everybody else is served as ever.
    pub(crate) async fn sentinel(&self) {
        let answers = self.ask(&chat("m", "sentinel")).await;
        let statuses: Vec<_> = answers.iter().map(|answer| answer.status).collect();
        assert_eq!(statuses, [200], "{answers:?}");
    }

    /// Nothing is left: no panic, no request, no connection that is in use.
    pub(crate) async fn assert_clean(&self) {
        self.good.assert_plain();
        self.evil.assert_plain();
        eventually("nothing is in use", async || {
            let page = self.worker.metrics().await;
            let clients = page.sum("forebay_client_connections", &["state=\"active\""]);
            let leases = page.sum("forebay_pool_connections", &["state=\"active\""]);
            let flight = page.sum("forebay_pool_in_flight", &[]);
            (clients + leases + flight == 0.0).then_some(())
        })
        .await;
        self.sentinel().await;
        assert_eq!(PANICS.load(Ordering::Relaxed), self.panics, "a panic");
    }
}

/// A chat that names itself.
pub(crate) fn chat(model: &str, id: &str) -> Vec<u8> {
    let body = format!(r#"{{"model":"{model}","messages":[]}}"#);
    post(
        &format!("x-request-id: {id}\r\ncontent-length: {}\r\n", body.len()),
        &body,
    )
}

/// A request with these headers.
pub(crate) fn post(headers: &str, body: &str) -> Vec<u8> {
    format!("POST {CHAT} HTTP/1.1\r\nHost: gw\r\n{headers}\r\n{body}").into_bytes()
}

/// Reads until this is so, or the other side closed; panics if neither comes.
pub(crate) async fn read_until(socket: &mut TcpStream, done: impl Fn(&[u8]) -> bool) -> Vec<u8> {
    let mut bytes = Vec::new();
    let reading = async {
        while !done(&bytes) {
            match socket.read_buf(&mut bytes).await {
                Ok(0) | Err(_) => return,
                Ok(_) => {}
            }
        }
    };
    let ended = timeout(SOON, reading).await.is_ok();
    assert!(
        ended,
        "nothing more came: {:?}",
        String::from_utf8_lossy(&bytes)
    );
    bytes
}

/// Reads to the end, however long it takes, up to this.
pub(crate) async fn closed_within(socket: &mut TcpStream, within: Duration) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    let end = timeout(within, socket.read_to_end(&mut bytes)).await;
    end.is_ok().then_some(bytes)
}

/// Writes a byte at a time; false if the other side did not want it all.
pub(crate) async fn drip(socket: &mut TcpStream, bytes: &[u8], every: Duration) -> bool {
    for byte in bytes {
        if socket.write_all(&[*byte]).await.is_err() {
            return false;
        }
        sleep(every).await;
    }
    true
}
