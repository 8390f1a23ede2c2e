//! A balancer as simple as they come: takes turns over the workers that say on `/readyz` that they are ready, keeps
//! connections to them alive, and sends nothing twice. What a worker loses while it is restarted, its clients lose.

use std::{
    convert::Infallible,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures_util::{TryStreamExt as _, future::join_all};
use http::{HeaderMap, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::{
    body::{Frame, Incoming},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use parking_lot::Mutex;
use tokio::{net::TcpListener, task::JoinSet, time::interval};

/// How often workers are asked whether they are ready: less than their `--drain-delay`.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// Who is slower than that is as he was: on a busy machine all are at once.
const ANSWER_WITHIN: Duration = Duration::from_secs(10);
const LONGEST: Duration = Duration::from_secs(120);

type Body = UnsyncBoxBody<Bytes, reqwest::Error>;

/// A worker behind it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Behind {
    /// Where requests go.
    pub gateway: SocketAddr,
    /// Where it is asked whether it is ready.
    pub admin: SocketAddr,
}

/// A running balancer; dropping it stops it.
#[derive(Debug)]
pub struct Balancer {
    addr: SocketAddr,
    shared: Arc<Shared>,
    _tasks: JoinSet<()>,
}

#[derive(Debug)]
struct Shared {
    ready: Mutex<Vec<SocketAddr>>,
    turn: AtomicUsize,
    failed: AtomicU64,
    http: reqwest::Client,
}

impl Balancer {
    /// Starts one before these workers, none of which need run yet.
    pub async fn start(listen: SocketAddr, workers: Vec<Behind>) -> Self {
        let listener = TcpListener::bind(listen).await.expect("a free port");
        let addr = listener.local_addr().expect("a bound port");
        let http = reqwest::Client::builder().no_proxy().timeout(LONGEST);
        let shared = Arc::new(Shared {
            ready: Mutex::default(),
            turn: AtomicUsize::new(0),
            failed: AtomicU64::new(0),
            http: http.build().expect("an HTTP client"),
        });
        let mut tasks = JoinSet::new();
        tasks.spawn(look(shared.clone(), workers));
        tasks.spawn(accept(listener, shared.clone()));
        Self {
            addr,
            shared,
            _tasks: tasks,
        }
    }

    /// Where clients connect.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// The workers that are ready, as far as it knows.
    #[must_use]
    pub fn ready(&self) -> Vec<SocketAddr> {
        self.shared.ready.lock().clone()
    }

    /// Requests that found no worker, or that one did not answer.
    #[must_use]
    pub fn failed(&self) -> u64 {
        self.shared.failed.load(Ordering::Relaxed)
    }
}

async fn look(shared: Arc<Shared>, workers: Vec<Behind>) {
    let client = reqwest::Client::builder().no_proxy().timeout(ANSWER_WITHIN);
    let client = client.build().expect("an HTTP client");
    let mut ticks = interval(LOOK_EVERY);
    loop {
        ticks.tick().await;
        let before = shared.ready.lock().clone();
        let each = workers.iter().map(async |worker| {
            let answer = client.get(format!("http://{}/readyz", worker.admin)).send();
            let ready = match answer.await {
                Ok(answer) => answer.status().is_success(),
                Err(error) => error.is_timeout() && before.contains(&worker.gateway),
            };
            ready.then_some(worker.gateway)
        });
        *shared.ready.lock() = join_all(each).await.into_iter().flatten().collect();
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let Ok((socket, _)) = accepted else { continue };
                drop(socket.set_nodelay(true));
                let shared = shared.clone();
                connections.spawn(async move {
                    let service = service_fn(move |request| pass(shared.clone(), request));
                    let serving = http1::Builder::new()
                        .timer(TokioTimer::new())
                        .serve_connection(TokioIo::new(socket), service);
                    // A client that goes away is none of ours.
                    drop(serving.await);
                });
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn pass(
    shared: Arc<Shared>,
    request: Request<Incoming>,
) -> Result<Response<Body>, Infallible> {
    let answer = to_worker(&shared, request).await;
    Ok(answer.unwrap_or_else(|why| {
        shared.failed.fetch_add(1, Ordering::Relaxed);
        let body = Full::new(Bytes::from(why)).map_err(|never| match never {});
        let mut answer = Response::new(body.boxed_unsync());
        *answer.status_mut() = StatusCode::BAD_GATEWAY;
        answer
    }))
}

async fn to_worker(shared: &Shared, request: Request<Incoming>) -> Result<Response<Body>, String> {
    let (head, body) = request.into_parts();
    let body = body.collect().await.map_err(|error| error.to_string())?;
    let worker = {
        let ready = shared.ready.lock();
        let turn = shared.turn.fetch_add(1, Ordering::Relaxed);
        let worker = ready.get(turn % ready.len().max(1)).copied();
        worker.ok_or("balancer: no worker is ready")?
    };
    let url = format!("http://{worker}{}", head.uri);
    let asked = shared.http.request(head.method, url);
    let asked = asked.headers(passed(&head.headers)).body(body.to_bytes());
    let answer = asked.send().await;
    let answer = answer.map_err(|error| format!("balancer: {worker}: {error:?}"))?;
    let mut told = Response::builder().status(answer.status());
    if let Some(headers) = told.headers_mut() {
        *headers = passed(answer.headers());
    }
    let frames = answer.bytes_stream().map_ok(Frame::data);
    told.body(StreamBody::new(frames).boxed_unsync())
        .map_err(|error| error.to_string())
}

/// What is of a request, not of a connection.
fn passed(headers: &HeaderMap) -> HeaderMap {
    let own = [
        header::CONNECTION,
        header::TRANSFER_ENCODING,
        header::CONTENT_LENGTH,
        header::HOST,
    ];
    let passed = headers.iter().filter(|(name, _)| !own.contains(name));
    passed
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect()
}
