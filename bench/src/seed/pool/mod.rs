//! The document's pool on real sockets: one request at a time on each HTTP/1.1 connection, a gate of so
//! many requests per origin, and [`core`] to say what is kept. It also serves as the clients in front of
//! a gateway, with everything kept.
//!
//! The gates are those of the document's gateway (`GATEWAY_MAX_CONCURRENT` per model). With them no origin
//! has more connections than its gate lets through, so that the whole never exceeds its size and
//! httpcore's third case, an idle connection evicted for another origin, never comes up.

mod core;

use std::{io, net::SocketAddr, time::Duration};

use bytes::Bytes;
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::{
    net::TcpStream,
    sync::Semaphore,
    time::{Instant, timeout},
};
use tokio_util::task::TaskTracker;

use self::core::{Core, Slot};
pub(crate) use self::core::{Limits, Surplus};

/// Longest time of a request, its wait at the gate aside.
const WITHIN: Duration = Duration::from_secs(60);
/// Longest wait for closed connections to be gone.
const CLOSED_WITHIN: Duration = Duration::from_secs(5);

type Connection = SendRequest<Full<Bytes>>;

/// A request that was not answered well.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PostError {
    #[error("no connection: {0}")]
    Connect(#[from] io::Error),
    #[error("the connection failed: {0}")]
    Exchange(#[from] hyper::Error),
    #[error("answered {0}")]
    Status(StatusCode),
    #[error("no answer within {WITHIN:?}")]
    Late,
    #[error("the pool was closed")]
    Closed,
}

#[derive(Debug)]
struct Origin {
    addr: SocketAddr,
    gate: Semaphore,
}

/// A pool over some origins.
#[derive(Debug)]
pub(crate) struct Pool {
    core: Mutex<Core<Connection>>,
    origins: Vec<Origin>,
    drivers: TaskTracker,
}

impl Pool {
    /// A pool that lets so many requests through to each origin at once.
    pub(crate) fn new(origins: &[SocketAddr], gate: usize, limits: Limits) -> Self {
        let origin = |addr: &SocketAddr| Origin {
            addr: *addr,
            gate: Semaphore::new(gate),
        };
        Self {
            core: Mutex::new(Core::new(limits)),
            origins: origins.iter().map(origin).collect(),
            drivers: TaskTracker::new(),
        }
    }

    /// Sends a chat to an origin, reads the answer to its end, and gives the connection back.
    pub(crate) async fn post(&self, origin: usize, body: Bytes) -> Result<(), PostError> {
        let target = self.origins.get(origin).ok_or(PostError::Closed)?;
        let _through = target.gate.acquire().await.map_err(|_| PostError::Closed)?;
        let taken = {
            let mut core = self.core.lock();
            core.take(origin, Instant::now(), Connection::is_ready)
        };
        // Not under the lock: what is dropped here closes a socket.
        drop(taken.closing);
        let answered = self.answered(target.addr, taken.connection, body);
        match timeout(WITHIN, answered).await {
            Ok(Ok((status, connection))) => {
                self.give_back(taken.slot, connection);
                match status {
                    StatusCode::OK => Ok(()),
                    status => Err(PostError::Status(status)),
                }
            }
            Ok(Err(error)) => {
                self.core.lock().gone(taken.slot);
                Err(error)
            }
            Err(_) => {
                self.core.lock().gone(taken.slot);
                Err(PostError::Late)
            }
        }
    }

    /// Most idle connections at once.
    pub(crate) fn most_idle(&self) -> usize {
        self.core.lock().most_idle()
    }

    /// Closes what is idle and waits until it is gone. Nothing may be in flight.
    pub(crate) async fn close(&self) {
        let idle = self.core.lock().clear();
        drop(idle);
        self.drivers.close();
        // What still runs then ends with the runtime; the next contestant has upstreams of its own.
        drop(timeout(CLOSED_WITHIN, self.drivers.wait()).await);
    }

    fn give_back(&self, slot: Slot, connection: Option<Connection>) {
        let mut core = self.core.lock();
        let closing = match connection {
            Some(connection) => {
                core.give_back(slot, connection, Instant::now(), Connection::is_ready)
            }
            None => {
                core.gone(slot);
                Vec::new()
            }
        };
        drop(core);
        drop(closing);
    }

    /// The status, and the connection if it can carry another request.
    async fn answered(
        &self,
        addr: SocketAddr,
        connection: Option<Connection>,
        body: Bytes,
    ) -> Result<(StatusCode, Option<Connection>), PostError> {
        let mut connection = match connection {
            Some(connection) => connection,
            None => self.open(addr).await?,
        };
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = http::Method::POST;
        *request.uri_mut() = http::Uri::from_static("/v1/chat/completions");
        let headers = request.headers_mut();
        let json = http::HeaderValue::from_static("application/json");
        headers.insert(header::CONTENT_TYPE, json);
        if let Ok(host) = http::HeaderValue::from_str(&addr.to_string()) {
            headers.insert(header::HOST, host);
        }
        let response = connection.send_request(request).await?;
        let status = response.status();
        response.into_body().collect().await?;
        // The answer's end is seen here a moment before the connection is free for the next.
        let free = connection.ready().await.is_ok();
        Ok((status, free.then_some(connection)))
    }

    async fn open(&self, addr: SocketAddr) -> Result<Connection, PostError> {
        let socket = TcpStream::connect(addr).await?;
        socket.set_nodelay(true)?;
        let (sender, driver) = http1::handshake(TokioIo::new(socket)).await?;
        // Ends when its sender is dropped or the other side closes.
        self.drivers.spawn(driver);
        Ok(sender)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use forebay_mock::{MockConfig, MockServer};
    use tokio::task::JoinSet;

    use super::*;

    const MODELS: usize = 3;
    const EACH: usize = 10;

    async fn upstreams() -> Vec<MockServer> {
        upstreams_that_close(None).await
    }

    async fn upstreams_that_close(keep_alive: Option<Duration>) -> Vec<MockServer> {
        let mut mocks = Vec::new();
        for _ in 0..MODELS {
            let config = MockConfig {
                latency: Duration::from_millis(20),
                tokens: 0,
                keep_alive,
                ..MockConfig::serving("m")
            };
            mocks.push(MockServer::start(config).await.unwrap());
        }
        mocks
    }

    async fn at_once(pool: &Arc<Pool>, requests: usize) {
        let mut tasks = JoinSet::new();
        for n in 0..requests {
            let pool = pool.clone();
            let body = Bytes::from_static(br#"{"model":"m"}"#);
            tasks.spawn(async move { pool.post(n % MODELS, body).await });
        }
        while let Some(answered) = tasks.join_next().await {
            answered.unwrap().unwrap();
        }
    }

    fn pool(mocks: &[MockServer], keepalive: usize) -> Arc<Pool> {
        let origins: Vec<_> = mocks.iter().map(MockServer::addr).collect();
        let limits = Limits {
            keepalive,
            surplus: Surplus::Idle,
            expiry: None,
        };
        Arc::new(Pool::new(&origins, EACH, limits))
    }

    fn sum(mocks: &[MockServer], what: impl Fn(&forebay_mock::MockStats) -> u64) -> u64 {
        mocks.iter().map(|mock| what(&mock.stats())).sum()
    }

    async fn open_are(mocks: &[MockServer], wanted: u64) {
        let give_up = Instant::now() + Duration::from_secs(10);
        while sum(mocks, |stats| stats.open) != wanted {
            assert!(
                Instant::now() < give_up,
                "{}",
                sum(mocks, |stats| stats.open)
            );
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    #[tokio::test]
    async fn the_surplus_is_closed_and_opened_again_on_real_sockets() {
        let mocks = upstreams().await;
        let pool = pool(&mocks, 20);
        for opened in [30, 40, 50] {
            at_once(&pool, MODELS * EACH).await;
            open_are(&mocks, 20).await;
            assert_eq!(sum(&mocks, |stats| stats.opened), opened);
        }
        assert_eq!(pool.most_idle(), 20);
        pool.close().await;
        open_are(&mocks, 0).await;
    }

    #[tokio::test]
    async fn no_more_than_the_gate_lets_through() {
        let mocks = upstreams().await;
        let pool = pool(&mocks, MODELS * EACH);
        at_once(&pool, 8 * MODELS * EACH).await;
        for mock in &mocks {
            assert_eq!(mock.stats().peak_open, EACH as u64);
        }
        assert_eq!(sum(&mocks, |stats| stats.opened), (MODELS * EACH) as u64);
    }

    #[tokio::test]
    async fn a_connection_that_the_server_closed_while_it_was_idle_is_not_used() {
        let mocks = upstreams_that_close(Some(Duration::from_millis(20))).await;
        let pool = pool(&mocks, MODELS * EACH);
        for opened in [3, 6, 9] {
            at_once(&pool, MODELS).await;
            open_are(&mocks, 0).await;
            assert_eq!(sum(&mocks, |stats| stats.opened), opened);
        }
    }

    #[tokio::test]
    async fn a_connection_that_the_server_closes_with_its_answer_is_not_kept() {
        let mocks = upstreams().await;
        let pool = pool(&mocks, MODELS * EACH);
        let closing = forebay_mock::Faults {
            close_after_response: true,
            ..Default::default()
        };
        mocks
            .iter()
            .for_each(|mock| mock.set_faults(closing.clone()));
        for _ in 0..3 {
            at_once(&pool, MODELS).await;
        }
        assert_eq!(sum(&mocks, |stats| stats.opened), 9);
        assert_eq!(pool.most_idle(), 0);
    }
}
