//! Servers that answer in every way but the right one, and names that lead elsewhere the second time.

use std::{
    collections::HashMap,
    io,
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use forebay_proto::{EndpointId, EndpointUrl, ModelId, ProbeMode};
use parking_lot::Mutex;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream},
    task::JoinSet,
    time::sleep,
};

use super::*;

type Serve = fn(DuplexStream, Arc<AtomicUsize>) -> Served;
type Served = std::pin::Pin<Box<dyn Future<Output = ()> + Send>>;

/// A network in memory that notes what is dialled.
#[derive(Debug, Clone, Default)]
struct Captured {
    /// What a name leads to, the first time, the second, and so on; the last answer stays.
    names: Arc<Mutex<HashMap<String, Vec<Vec<IpAddr>>>>>,
    dialled: Arc<Mutex<Vec<SocketAddr>>>,
    lookups: Arc<AtomicUsize>,
    served: Arc<AtomicUsize>,
    serve: Option<Serve>,
    tasks: Arc<Mutex<JoinSet<()>>>,
}

#[tonic::async_trait]
impl Network for Captured {
    async fn resolve(&self, name: &str) -> Result<Vec<IpAddr>, String> {
        self.lookups.fetch_add(1, Ordering::SeqCst);
        let mut names = self.names.lock();
        let answers = names.get_mut(name).ok_or("no such name")?;
        Ok(match answers.len() {
            1 => answers[0].clone(),
            _ => answers.remove(0),
        })
    }

    async fn dial(&self, to: SocketAddr) -> io::Result<Box<dyn Io>> {
        self.dialled.lock().push(to);
        let serve = self.serve.ok_or(io::ErrorKind::ConnectionRefused)?;
        let (ours, theirs) = tokio::io::duplex(64 << 10);
        self.tasks.lock().spawn(serve(theirs, self.served.clone()));
        Ok(Box::new(ours))
    }
}

impl Captured {
    fn serving(serve: Serve) -> Self {
        Self {
            serve: Some(serve),
            ..Self::default()
        }
    }

    fn name(self, name: &str, answers: &[&[&str]]) -> Self {
        let parse = |answer: &&[&str]| answer.iter().map(|ip| ip.parse().unwrap()).collect();
        let answers = answers.iter().map(parse).collect();
        self.names.lock().insert(name.to_owned(), answers);
        self
    }

    async fn probe(&self, urls: &[&str]) -> Vec<Outcome> {
        let prober = Prober::over(AddressPolicy::default(), Box::new(self.clone()));
        prober.probe(&model(urls)).await
    }

    async fn verdict(&self, url: &str) -> Verdict {
        self.probe(&[url]).await.remove(0).verdict
    }
}

fn model(urls: &[&str]) -> ModelSpec {
    let endpoints = urls.iter().enumerate().map(|(n, url)| {
        let id = EndpointId::new(format!("e{n}")).unwrap();
        Endpoint::new(id, EndpointUrl::parse(url).unwrap())
    });
    let mut model =
        ModelSpec::new(ModelId::new("m").unwrap(), vec![], endpoints.collect()).unwrap();
    model.probe.mode = ProbeMode::Enforce;
    model
}

/// Reads a request's head and answers with these bytes, then closes.
async fn answer(mut io: DuplexStream, bytes: Vec<u8>) {
    let (mut head, mut byte) = (Vec::new(), [0_u8]);
    while !head.ends_with(b"\r\n\r\n") && io.read_exact(&mut byte).await.is_ok() {
        head.push(byte[0]);
    }
    let head = String::from_utf8(head).unwrap().to_ascii_lowercase();
    assert!(head.starts_with("get /v1/models http/1.1\r\n"), "{head}");
    assert!(
        !head.contains("authorization") && !head.contains("cookie"),
        "{head}"
    );
    drop(io.write_all(&bytes).await);
    drop(io.shutdown().await);
}

macro_rules! serve {
    ($bytes:expr) => {
        |io, served| {
            served.fetch_add(1, Ordering::SeqCst);
            Box::pin(answer(io, $bytes.to_vec()))
        }
    };
}

const RIGHT: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 23\r\n\r\n{\"data\":[{\"id\":\"m\"}]} \n";
const OTHER: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 21\r\n\r\n{\"data\":[{\"id\":\"x\"}]}";

#[tokio::test]
async fn what_it_serves_is_what_counts() {
    let right = Captured::serving(serve!(RIGHT));
    assert_eq!(right.verdict("http://10.0.0.5:8000").await, Verdict::Ok);
    let other = Captured::serving(serve!(OTHER))
        .probe(&["http://10.0.0.5"])
        .await;
    assert_eq!(other[0].verdict, Verdict::Mismatch);
    assert_eq!(other[0].listed.len(), 1);
    let none = Captured::default();
    assert_eq!(none.verdict("http://10.0.0.5").await, Verdict::Unreachable);
    assert_eq!(none.verdict("http://nowhere").await, Verdict::Unreachable);
}

#[tokio::test]
async fn a_name_that_leads_elsewhere_the_second_time_is_asked_once_and_dialled_where_it_was_checked()
 {
    let network = Captured::serving(serve!(RIGHT))
        .name("rebinding.test", &[&["10.0.0.5"], &["169.254.169.254"]]);
    assert_eq!(
        network.verdict("http://rebinding.test:8000").await,
        Verdict::Ok
    );
    assert_eq!(network.lookups.load(Ordering::SeqCst), 1);
    assert_eq!(*network.dialled.lock(), ["10.0.0.5:8000".parse().unwrap()]);
    // Asked anew it leads there, and nothing is dialled.
    assert_eq!(
        network.verdict("http://rebinding.test:8000").await,
        Verdict::Blocked
    );
    assert_eq!(network.dialled.lock().len(), 1);
}

#[tokio::test]
async fn nothing_that_is_blocked_is_dialled() {
    let network = Captured::serving(serve!(RIGHT))
        .name("localhost", &[&["127.0.0.1", "::1"]])
        .name("localhost.", &[&["127.0.0.1"]])
        .name("both.test", &[&["10.0.0.5", "169.254.169.254"]])
        .name("nat.test", &[&["64:ff9b::a9fe:a9fe"]])
        .name("metadata.google.internal", &[&["10.0.0.5"]]);
    let urls = [
        "http://169.254.169.254",
        "http://2852039166",
        "http://0xa9fea9fe",
        "http://0251.0376.0251.0376",
        "http://169.254.43518",
        "http://[::ffff:169.254.169.254]",
        "http://[fd00:ec2::254]",
        "http://100.100.100.200",
        "http://127.0.0.1:8000",
        "http://127.1:8000",
        "http://0:8000",
        "http://[::1]:8000",
        "http://localhost:8000",
        "http://localhost.:8000",
        "http://both.test",
        "http://nat.test",
        "http://metadata.google.internal",
        "https://169.254.169.254",
    ];
    for url in urls {
        assert_eq!(network.verdict(url).await, Verdict::Blocked, "{url}");
    }
    assert_eq!(*network.dialled.lock(), []);
}

#[tokio::test]
async fn answers_that_are_none_are_unknown_and_their_text_stays_here() {
    let servers: [(&str, Serve, Verdict); 9] = [
        ("a redirect", serve!(b"HTTP/1.1 302 Found\r\nlocation: http://169.254.169.254/secret\r\ncontent-length: 0\r\n\r\n"), Verdict::Unknown),
        ("no HTTP", serve!(b"SSH-2.0-secret\r\n\r\n"), Verdict::Unknown),
        ("no list", serve!(b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nsecret"), Verdict::Unknown),
        ("an error", serve!(b"HTTP/1.1 500 secret\r\ncontent-length: 6\r\n\r\nsecret"), Verdict::Unknown),
        ("less than it says", serve!(b"HTTP/1.1 200 OK\r\ncontent-length: 900\r\n\r\n{\"data\":[{\"id\":\"m\"}]}"), Verdict::Unknown),
        ("two lengths", serve!(b"HTTP/1.1 200 OK\r\ncontent-length: 21\r\ncontent-length: 22\r\n\r\n{\"data\":[{\"id\":\"m\"}]}"), Verdict::Unknown),
        ("a broken chunk", serve!(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\nsecret"), Verdict::Unknown),
        ("nothing", serve!(b""), Verdict::Unreachable),
        ("too much", |io, _| Box::pin(async move {
            let n = one_too_many();
            let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {n}\r\n\r\n");
            answer(io, [head.into_bytes(), vec![b' '; n]].concat()).await;
        }), Verdict::Unknown),
    ];
    for (what, serve, verdict) in servers {
        let network = Captured::serving(serve);
        let found = network.probe(&["http://10.0.0.5"]).await.remove(0);
        assert_eq!(found.verdict, verdict, "{what}: {found:?}");
        assert!(
            !format!("{found:?}").contains("secret"),
            "{what}: {found:?}"
        );
        assert_eq!(network.dialled.lock().len(), 1, "{what}");
    }
    // An end without a length is an end.
    let closed = Captured::serving(serve!(
        b"HTTP/1.0 200 OK\r\n\r\n{\"data\":[{\"id\":\"m\"}]}"
    ));
    assert_eq!(closed.verdict("http://10.0.0.5").await, Verdict::Ok);
}

fn one_too_many() -> usize {
    forebay_proto::limits::PROBE_BODY_BYTES + 1
}

#[tokio::test(start_paused = true)]
async fn one_that_says_nothing_costs_two_seconds_and_many_cost_five() {
    let silent: Serve = |io, served| {
        Box::pin(async move {
            served.fetch_add(1, Ordering::SeqCst);
            sleep(Duration::from_secs(3_600)).await;
            drop(io);
        })
    };
    let network = Captured::serving(silent);
    let began = Instant::now();
    assert_eq!(
        network.verdict("http://10.0.0.5").await,
        Verdict::Unreachable
    );
    assert_eq!(began.elapsed().as_secs(), 2);
    let urls: Vec<String> = (0..64).map(|n| format!("http://10.0.1.{n}")).collect();
    let urls: Vec<&str> = urls.iter().map(String::as_str).collect();
    let (began, before) = (Instant::now(), network.served.load(Ordering::SeqCst));
    let found = network.probe(&urls).await;
    assert_eq!(began.elapsed().as_secs(), 5);
    let asked = network.served.load(Ordering::SeqCst) - before;
    assert_eq!(asked, 3 * AT_ONCE, "so many at a time");
    let unasked = found.iter().filter(|f| f.verdict == Verdict::NotProbed);
    assert_eq!(unasked.count(), 64 - asked);
}

#[tokio::test]
async fn what_only_workers_can_ask_is_said_and_not_dialled() {
    let network = Captured::serving(serve!(RIGHT));
    for url in ["https://10.0.0.5", "unix:///run/vllm.sock"] {
        assert_eq!(network.verdict(url).await, Verdict::NotProbed, "{url}");
    }
    assert!(network.dialled.lock().is_empty());
}
