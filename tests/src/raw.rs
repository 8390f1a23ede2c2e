//! Both ends of a connection, byte by byte: an upstream that breaks rules, and a client that does.

use std::{
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
    task::JoinSet,
    time::timeout,
};

const SOON: Duration = Duration::from_secs(10);

/// What an upstream does after its answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum After {
    /// It waits for the next request.
    Keep,
    /// It closes the connection.
    Close,
    /// It breaks the connection off (RST).
    Reset,
    /// It closes the connection after this long, whatever comes meanwhile.
    CloseAfter(Duration),
}

/// An upstream that answers every request with the same bytes.
#[derive(Debug)]
pub struct RawUpstream {
    addr: SocketAddr,
    connections: Arc<AtomicU64>,
    requests: Arc<AtomicU64>,
    heads: Arc<Mutex<Vec<String>>>,
    _server: JoinSet<()>,
}

impl RawUpstream {
    /// Starts on a free port.
    pub async fn start(answer: &str, after: After) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let addr = listener.local_addr().expect("a bound port");
        let connections = Arc::new(AtomicU64::new(0));
        let mut server = JoinSet::new();
        let requests = Arc::new(AtomicU64::new(0));
        let (answer, count) = (answer.to_owned(), connections.clone());
        let heads = Arc::new(Mutex::new(Vec::new()));
        let asked = (requests.clone(), heads.clone());
        server.spawn(async move {
            let mut all = JoinSet::new();
            while let Ok((socket, _)) = listener.accept().await {
                count.fetch_add(1, Ordering::Relaxed);
                all.spawn(serve(socket, answer.clone(), after, asked.clone()));
            }
        });
        Self {
            addr,
            connections,
            requests,
            heads,
            _server: server,
        }
    }

    /// Its origin.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// Requests read so far.
    #[must_use]
    pub fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }

    /// The heads of these requests, as they came.
    #[must_use]
    pub fn heads(&self) -> Vec<String> {
        self.heads.lock().clone()
    }

    /// Connections accepted so far.
    #[must_use]
    pub fn connections(&self) -> u64 {
        self.connections.load(Ordering::Relaxed)
    }
}

async fn serve(
    mut socket: TcpStream,
    answer: String,
    after: After,
    (requests, heads): (Arc<AtomicU64>, Arc<Mutex<Vec<String>>>),
) {
    let limit = match after {
        After::Keep | After::Close | After::Reset => SOON,
        After::CloseAfter(limit) => limit,
    };
    let mut within = SOON;
    while let Ok(Some(head)) = timeout(within, read_request(&mut socket)).await {
        heads.lock().push(head);
        requests.fetch_add(1, Ordering::Relaxed);
        if socket.write_all(answer.as_bytes()).await.is_err() || after == After::Close {
            return;
        }
        if after == After::Reset {
            return reset(&socket);
        }
        within = limit;
    }
}

/// Once it is dropped the other end gets a RST in place of a FIN.
fn reset(socket: &TcpStream) {
    let linger = rustix::net::sockopt::set_socket_linger(socket, Some(Duration::ZERO));
    linger.expect("the socket is ours");
}

/// Reads a request with a content-length to its end, and gives its head. Nothing when there is none.
async fn read_request(socket: &mut TcpStream) -> Option<String> {
    let mut bytes = Vec::new();
    loop {
        match socket.read_buf(&mut bytes).await {
            Ok(0) | Err(_) => return None,
            Ok(_) => {}
        }
        let text = String::from_utf8_lossy(&bytes);
        let Some((head, body)) = text.split_once("\r\n\r\n") else {
            continue;
        };
        let length = head.lines().find_map(|line| {
            let (name, value) = line.split_once(':')?;
            name.eq_ignore_ascii_case("content-length")
                .then(|| value.trim().parse::<usize>().ok())?
        });
        if body.len() >= length.unwrap_or(0) {
            return Some(head.to_owned());
        }
    }
}

/// A client's connection.
#[derive(Debug)]
pub struct RawClient(TcpStream);

impl RawClient {
    /// Connects.
    pub async fn connect(addr: SocketAddr) -> Self {
        Self(TcpStream::connect(addr).await.expect("a connection"))
    }

    /// Writes.
    pub async fn write(&mut self, bytes: &[u8]) {
        timeout(SOON, self.0.write_all(bytes))
            .await
            .expect("the server reads")
            .expect("the server is there");
    }

    /// Asks for a chat in this version (`HTTP/1.0`).
    pub async fn chat_in(&mut self, version: &str, model: &str, stream: bool) {
        let body = format!(r#"{{"model":"{model}","stream":{stream},"messages":[]}}"#);
        let head = format!(
            "POST /v1/chat/completions {version}\r\nhost: x\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        self.write(format!("{head}{body}").as_bytes()).await;
    }

    /// Asks for a chat.
    pub async fn chat(&mut self, model: &str, stream: bool, tokens: u32) {
        let body = format!(
            r#"{{"model":"{model}","stream":{stream},"max_tokens":{tokens},"messages":[]}}"#
        );
        let head = format!(
            "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        self.write(format!("{head}{body}").as_bytes()).await;
    }

    /// Reads until this has come, and gives all that came.
    pub async fn read_until(&mut self, text: &str) -> String {
        let mut bytes = Vec::new();
        let reading = async {
            while !String::from_utf8_lossy(&bytes).contains(text) {
                let read = self
                    .0
                    .read_buf(&mut bytes)
                    .await
                    .expect("a readable socket");
                assert!(
                    read > 0,
                    "closed before {text:?}: {:?}",
                    String::from_utf8_lossy(&bytes)
                );
            }
        };
        timeout(SOON, reading)
            .await
            .expect("what is waited for comes");
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Reads to the end of the connection.
    pub async fn read_to_end(&mut self) -> String {
        // A reset is an end, too.
        self.read_to_its_end().await.0
    }

    /// The same, and whether that was a clean one (FIN).
    pub async fn read_to_its_end(&mut self) -> (String, bool) {
        let mut bytes = Vec::new();
        let read = timeout(SOON, self.0.read_to_end(&mut bytes)).await;
        let clean = read.expect("the connection ends").is_ok();
        (String::from_utf8_lossy(&bytes).into_owned(), clean)
    }

    /// Leaves with a RST instead of a FIN.
    pub fn reset(self) {
        reset(&self.0);
    }
}
