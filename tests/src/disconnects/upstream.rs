//! An upstream that answers by the name of a request, and tells when that request's connection is gone.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::oneshot,
    task::JoinSet,
    time::{Instant, interval},
};

const EVERY: Duration = Duration::from_millis(20);
const HEAD: &[u8] =
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";
const EVENT: &[u8] =
    b"3f\r\ndata: {\"choices\":[{\"delta\":{\"content\":\"a\"},\"index\":0}]}      \n\n\r\n";

/// Whom to tell of a request.
#[derive(Debug)]
pub(super) struct Expected {
    pub(super) arrived: oneshot::Sender<()>,
    pub(super) gone: oneshot::Sender<Instant>,
}

#[derive(Debug, Default)]
struct Shared {
    expected: Mutex<HashMap<String, Expected>>,
    strays: AtomicU64,
    open: AtomicU64,
}

#[derive(Debug)]
pub(super) struct Upstream {
    addr: SocketAddr,
    shared: Arc<Shared>,
    _server: JoinSet<()>,
}

impl Upstream {
    pub(super) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let addr = listener.local_addr().expect("a bound port");
        let shared = Arc::new(Shared::default());
        let serving = shared.clone();
        let mut server = JoinSet::new();
        server.spawn(async move {
            let mut all = JoinSet::new();
            loop {
                tokio::select! {
                    Ok((socket, _)) = listener.accept() => {
                        all.spawn(serve(socket, serving.clone()));
                    }
                    Some(_) = all.join_next() => {}
                }
            }
        });
        Self {
            addr,
            shared,
            _server: server,
        }
    }

    pub(super) fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    pub(super) fn expect(&self, name: &str, expected: Expected) {
        let mut all = self.shared.expected.lock();
        all.insert(name.to_owned(), expected);
    }

    /// Requests that nobody expected here.
    pub(super) fn strays(&self) -> u64 {
        self.shared.strays.load(Ordering::Relaxed)
    }

    /// Connections that are open.
    pub(super) fn open(&self) -> u64 {
        self.shared.open.load(Ordering::Relaxed)
    }
}

struct Open(Arc<Shared>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}

async fn serve(mut socket: TcpStream, shared: Arc<Shared>) {
    shared.open.fetch_add(1, Ordering::Relaxed);
    let _open = Open(shared.clone());
    let mut bytes = Vec::new();
    let (name, streams) = loop {
        match socket.read_buf(&mut bytes).await {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
        let text = String::from_utf8_lossy(&bytes);
        let Some((head, body)) = text.split_once("\r\n\r\n") else {
            continue;
        };
        if !body.ends_with('}') {
            continue;
        }
        let header = |name: &str| head.lines().find_map(|line| line.strip_prefix(name));
        let name = header("x-request-id: ").unwrap_or_default().to_owned();
        break (name, body.contains("\"begin\""));
    };
    let expected = shared.expected.lock().remove(&name);
    let Some(expected) = expected else {
        shared.strays.fetch_add(1, Ordering::Relaxed);
        return;
    };
    let _ = expected.arrived.send(());
    if !streams || socket.write_all(HEAD).await.is_ok() {
        until_gone(&mut socket, streams).await;
    }
    let _ = expected.gone.send(Instant::now());
}

async fn until_gone(socket: &mut TcpStream, streams: bool) {
    let mut ticks = interval(EVERY);
    let (mut reads, mut writes) = socket.split();
    loop {
        tokio::select! {
            read = reads.read_u8() => if read.is_err() { return },
            _ = ticks.tick(), if streams => {
                if writes.write_all(EVENT).await.is_err() {
                    return;
                }
            }
        }
    }
}
