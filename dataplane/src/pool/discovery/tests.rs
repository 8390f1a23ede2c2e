//! Sources of every kind against a pool: what is read, refused, kept, and how it ends. Lists come over real sockets and files.

use std::{fs, net::SocketAddr};

use forebay_proto::{
    EndpointUrl, ModelSpec, PoolSettings, Protocol, ResolvedModel, Revision, Weight,
    endpoint::{Bounds, ListUrl},
};
use parking_lot::Mutex;
use prometheus::Registry;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
    task::JoinSet,
    time::timeout,
};
use tokio_util::task::TaskTracker;

use super::*;
use crate::{
    metrics::Metrics,
    pool::{DiscoverySnapshot, PoolSnapshot},
    resolve::Resolver,
};

const SOON: Duration = Duration::from_secs(20);

/// A server of lists that answers each connection with what it is told to, and notes what it is asked.
struct ListServer {
    addr: SocketAddr,
    answer: Arc<Mutex<Vec<u8>>>,
    asked: Arc<Mutex<Vec<String>>>,
    _task: JoinSet<()>,
}

impl ListServer {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let (answer, asked) = <(Arc<Mutex<Vec<u8>>>, Arc<Mutex<Vec<String>>>)>::default();
        let mut task = JoinSet::new();
        let (answers, notes) = (answer.clone(), asked.clone());
        task.spawn(async move {
            loop {
                let Ok((mut socket, _)) = listener.accept().await else {
                    return;
                };
                let mut head = vec![0; 4_096];
                let read = socket.read(&mut head).await.unwrap_or(0);
                let head = String::from_utf8_lossy(&head[..read]).into_owned();
                notes.lock().push(head);
                let answer = answers.lock().clone();
                // Nothing to say: it is silent for as long as it is asked.
                if answer.is_empty() {
                    drop(socket.read(&mut [0; 1]).await);
                    continue;
                }
                drop(socket.write_all(&answer).await);
                drop(socket.shutdown().await);
            }
        });
        Self {
            addr,
            answer,
            asked,
            _task: task,
        }
    }

    fn url(&self) -> String {
        format!("http://{}/targets?job=vllm", self.addr)
    }

    fn say(&self, answer: impl AsRef<[u8]>) {
        *self.answer.lock() = answer.as_ref().to_vec();
    }

    fn list(&self, more: &str, body: &str) {
        let length = body.len();
        self.say(format!(
            "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n{more}\r\n{body}"
        ));
    }

    fn heard(&self, text: &str) -> usize {
        self.asked
            .lock()
            .iter()
            .filter(|head| head.contains(text))
            .count()
    }
}

fn json(targets: &[&str]) -> String {
    serde_json::json!([{ "targets": targets, "labels": { "job": "vllm" } }]).to_string()
}

fn common(data_dir: Option<&Path>) -> Common {
    Common {
        tasks: TaskTracker::new(),
        metrics: Arc::new(Metrics::new(&Registry::new()).unwrap()),
        budget: Arc::default(),
        resolver: Arc::new(Resolver::new(&["127.0.0.1:1".parse().unwrap()])),
        probing: Arc::default(),
        discovering: Arc::new(Discovering::new(data_dir)),
        keys: Arc::default(),
        leases: Arc::new(crate::leases::Leases::new(1)),
    }
}

fn discovery(source: Source) -> Discovery {
    Discovery {
        bounds: Bounds {
            allow: vec![
                "10.0.0.0/8".parse().unwrap(),
                "127.0.0.0/8".parse().unwrap(),
            ],
            ports: Vec::new(),
        },
        refresh: Some(Duration::from_millis(100)),
        ..Discovery::new(source)
    }
}

fn model(discovery: Discovery) -> ResolvedModel {
    let id = EndpointId::new("pods").unwrap();
    let endpoint = Endpoint {
        weight: Weight::new(2).unwrap(),
        ..Endpoint::new(id, EndpointUrl::listed(discovery))
    };
    let spec = ModelSpec::new(ModelId::new("m").unwrap(), vec![], vec![endpoint]).unwrap();
    spec.resolve(&PoolSettings::default(), Revision::new(1))
        .unwrap()
}

fn start(discovery: Discovery, common: &Common) -> Arc<Pool> {
    Pool::new(&model(discovery), common, usize::MAX)
}

fn servers(seen: &PoolSnapshot) -> Vec<String> {
    let endpoints = seen.endpoints.iter();
    endpoints.map(|endpoint| endpoint.url.clone()).collect()
}

/// Waits until the only source of the pool is as wanted.
async fn until(
    pool: &Arc<Pool>,
    what: &str,
    is: impl Fn(&DiscoverySnapshot) -> bool,
) -> PoolSnapshot {
    let wait = async {
        loop {
            let seen = pool.snapshot();
            if is(&seen.discovery[0]) {
                return seen;
            }
            sleep(Duration::from_millis(5)).await;
        }
    };
    match timeout(SOON, wait).await {
        Ok(seen) => seen,
        Err(_) => panic!("not in time: {what}: {:?}", pool.snapshot().discovery),
    }
}

async fn failed(pool: &Arc<Pool>, reason: &str) -> PoolSnapshot {
    until(pool, reason, |seen| seen.reason == Some(reason)).await
}

async fn fresh(pool: &Arc<Pool>, servers: usize) -> PoolSnapshot {
    let what = format!("{servers} servers");
    until(pool, &what, |s| s.state == "fresh" && s.servers == servers).await
}

#[tokio::test]
async fn a_list_is_asked_for_as_prometheus_does_and_again_by_its_tag() {
    let list = ListServer::start().await;
    list.list(
        "etag: \"one\"\r\n",
        &json(&["10.0.0.1:8000", "10.0.0.2:8000"]),
    );
    let source = Source::Http(ListUrl::parse(&list.url()).unwrap());
    let pool = start(discovery(source), &common(None));
    let seen = fresh(&pool, 2).await;
    assert_eq!(
        servers(&seen),
        ["http://10.0.0.1:8000", "http://10.0.0.2:8000"]
    );
    assert_eq!(seen.endpoints[0].id, "pods-10-0-0-1-8000");
    assert_eq!(seen.endpoints[0].source.as_deref(), Some("pods"));
    assert_eq!(seen.endpoints[0].weight, 2);
    list.say("HTTP/1.1 304 Not Modified\r\netag: \"one\"\r\n\r\n");
    timeout(SOON, async {
        while list.heard("if-none-match: \"one\"") < 3 {
            sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .unwrap();
    assert!(list.heard("GET /targets?job=vllm HTTP/1.1\r\n") > 0);
    assert_eq!(list.heard("authorization"), 0);
    fresh(&pool, 2).await;
    list.list(
        "",
        &json(&["10.0.0.2:8000", "10.0.0.3:8000", "10.0.0.3:8000"]),
    );
    let seen = until(&pool, "the new list", |s| s.servers == 2).await;
    let now = || async { servers(&pool.snapshot()) };
    timeout(SOON, async {
        while now().await != ["http://10.0.0.2:8000", "http://10.0.0.3:8000"] {
            sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .unwrap_or_else(|_| panic!("{seen:?}"));
}

#[tokio::test]
async fn whatever_a_list_does_the_servers_that_are_known_serve_on() {
    let list = ListServer::start().await;
    let common = common(None);
    let source = Source::Http(ListUrl::parse(&list.url()).unwrap());
    let pool = start(discovery(source), &common);
    let head = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n";
    let huge = " ".repeat(limits::LIST_BYTES + 1);
    let length = huge.len();
    let cases: Vec<(&str, String)> = vec![
        ("status", "HTTP/1.1 500 No\r\ncontent-length: 0\r\n\r\n".into()),
        ("status", "HTTP/1.1 304 No\r\n\r\n".into()),
        ("status", "HTTP/1.1 206 Part\r\ncontent-length: 2\r\n\r\n[]".into()),
        (
            "redirect",
            "HTTP/1.1 302 Elsewhere\r\nlocation: http://169.254.169.254/\r\ncontent-length: 0\r\n\r\n"
                .into(),
        ),
        (
            "content_type",
            "HTTP/1.1 200 OK\r\ncontent-type: text/html\r\ncontent-length: 2\r\n\r\n[]".into(),
        ),
        (
            "content_type",
            format!("{head}content-encoding: gzip\r\ncontent-length: 2\r\n\r\n[]"),
        ),
        ("malformed", format!("{head}content-length: 2\r\n\r\n{{}}")),
        ("malformed", format!("{head}content-length: 24\r\n\r\n[{{\"targets\":[\"a@b:80\"]}}]")),
        ("too_large", format!("{head}content-length: {length}\r\n\r\n{huge}")),
        // Without a length it is read to its end, or to the limit.
        ("too_large", format!("{head}\r\n{huge}")),
        ("connect", format!("{head}content-length: 99\r\n\r\n[")),
        ("connect", "not HTTP at all\r\n\r\n".into()),
        ("refused", format!("{head}\r\n{}", json(&["169.254.169.254:80", "8.8.8.8:80"]))),
    ];
    let good = json(&["10.0.0.1:8000"]);
    for (reason, answer) in cases {
        list.list("", &good);
        fresh(&pool, 1).await;
        list.say(&answer);
        let seen = failed(&pool, reason).await;
        assert_eq!(seen.discovery[0].state, "stale", "{answer:.80}");
        assert_eq!(servers(&seen), ["http://10.0.0.1:8000"], "{answer:.80}");
    }
    // Nothing was asked of where it pointed.
    assert_eq!(list.heard("Host: 169"), 0);
    let model = ModelId::new("m").unwrap();
    for why in [
        Why::Status,
        Why::Redirect,
        Why::Malformed,
        Why::TooLarge,
        Why::Refused,
    ] {
        assert!(common.metrics.discovery.count(&model, why) > 0, "{why:?}");
    }
}

#[tokio::test]
async fn a_list_that_does_not_come_is_waited_for_no_longer_than_that() {
    let list = ListServer::start().await;
    list.list("", &json(&["10.0.0.1:8000"]));
    let source = Source::Http(ListUrl::parse(&list.url()).unwrap());
    let pool = start(discovery(source), &common(None));
    fresh(&pool, 1).await;
    // Neither a head nor a body that never ends is waited for.
    list.say("");
    failed(&pool, "timeout").await;
    list.list("", &json(&["10.0.0.2:8000"]));
    let seen = fresh(&pool, 1).await;
    assert_eq!(servers(&seen), ["http://10.0.0.2:8000"]);
}

#[tokio::test]
async fn servers_out_of_bounds_are_told_of_and_the_others_used() {
    let list = ListServer::start().await;
    list.list(
        "",
        &json(&[
            "10.0.0.1:8000",
            "169.254.169.254:80",
            "0xa9fea9fe:80",
            "[::ffff:169.254.169.254]:80",
            "metadata.google.internal:80",
            "8.8.8.8:53",
            "[fe80::1]:80",
        ]),
    );
    let source = Source::Http(ListUrl::parse(&list.url()).unwrap());
    let pool = start(discovery(source), &common(None));
    let seen = fresh(&pool, 1).await;
    assert_eq!(servers(&seen), ["http://10.0.0.1:8000"]);
    assert_eq!(seen.discovery[0].refused, 6);
    let why = |url: &str| {
        let mut refused = seen.discovery[0].refused_servers.iter();
        refused.find(|r| r.url == url).unwrap().why.clone()
    };
    assert!(why("http://8.8.8.8:53").contains("discovery.allow"));
    assert!(why("http://169.254.169.254:80").contains("link-local"));
    assert!(why("http://metadata.google.internal:80").contains("metadata"));
}

#[tokio::test]
async fn a_list_at_a_metadata_service_is_not_asked_for() {
    let source = Source::Http(ListUrl::parse("http://169.254.169.254/latest/meta-data").unwrap());
    let pool = start(discovery(source), &common(None));
    let seen = failed(&pool, "blocked").await;
    assert_eq!(seen.discovery[0].state, "waiting");
    assert!(servers(&seen).is_empty());
}

#[tokio::test]
async fn a_file_is_followed_through_renames_and_kept_through_rubbish() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("targets.json");
    let put = |text: &str| {
        let fresh = dir.path().join("fresh");
        fs::write(&fresh, text).unwrap();
        fs::rename(&fresh, &path).unwrap();
    };
    let source = Source::file(path.to_str().unwrap()).unwrap();
    let pool = start(discovery(source), &common(None));
    let seen = failed(&pool, "file").await;
    assert_eq!(seen.discovery[0].state, "waiting");
    put(&json(&["10.0.0.1:80"]));
    fresh(&pool, 1).await;
    put("[{\"targets\": [\"10.0.0.1:80\", \"10.");
    let seen = failed(&pool, "malformed").await;
    assert_eq!(servers(&seen), ["http://10.0.0.1:80"]);
    // What is wrong is told without a word of the file.
    put("secret");
    let seen = failed(&pool, "malformed").await;
    assert!(!format!("{:?}", seen.discovery).contains("secret"));
    fs::remove_file(&path).unwrap();
    let seen = failed(&pool, "file").await;
    assert_eq!(servers(&seen), ["http://10.0.0.1:80"]);
    put(&json(&["10.0.0.1:80", "10.0.0.2:80", "10.0.0.3:80"]));
    fresh(&pool, 3).await;
    // Written in place, too, and of the same size.
    fs::write(&path, json(&["10.0.0.1:80", "10.0.0.2:80", "10.0.0.4:80"])).unwrap();
    timeout(SOON, async {
        while servers(&pool.snapshot())[2] != "http://10.0.0.4:80" {
            sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .unwrap();
    fs::write(&path, vec![b' '; limits::LIST_BYTES + 1]).unwrap();
    failed(&pool, "too_large").await;
    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    failed(&pool, "file").await;
    assert_eq!(servers(&pool.snapshot()).len(), 3);
}

#[tokio::test]
async fn an_empty_list_is_believed_after_a_while_and_not_before() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("targets");
    fs::write(&path, "10.0.0.1:80\n").unwrap();
    let source = Source::file(path.to_str().unwrap()).unwrap();
    let mut said = Discovery {
        keep_empty: Some(Duration::from_secs(86_400)),
        ..discovery(source)
    };
    let pool = start(said.clone(), &common(None));
    fresh(&pool, 1).await;
    fs::write(&path, "# none\n").unwrap();
    let seen = until(&pool, "it is kept", |s| s.state == "empty").await;
    assert_eq!(servers(&seen), ["http://10.0.0.1:80"]);
    // Said at once, it is done at once.
    said.keep_empty = Some(Duration::ZERO);
    pool.reshape(&model(said));
    let seen = until(&pool, "it is empty", |s| s.servers == 0).await;
    assert!(servers(&seen).is_empty());
    assert_eq!(seen.discovery[0].state, "fresh");
}

#[tokio::test]
async fn what_was_known_survives_a_restart_while_the_source_is_silent() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("targets");
    let data = dir.path().join("data");
    fs::write(&path, "10.0.0.1:80\n127.0.0.1:80\n").unwrap();
    let source = Source::file(path.to_str().unwrap()).unwrap();
    let first = start(discovery(source.clone()), &common(Some(&data)));
    fresh(&first, 2).await;
    timeout(SOON, async {
        while fs::read_dir(data.join("discovery")).map_or(0, Iterator::count) == 0 {
            sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .unwrap();
    first.shutdown();
    fs::remove_file(&path).unwrap();
    // What the operator allows by now counts.
    let mut narrow = discovery(source);
    narrow.bounds.allow.pop();
    let second = start(narrow, &common(Some(&data)));
    let seen = until(&second, "the last known good", |s| {
        s.state == "last_known_good"
    })
    .await;
    assert_eq!(servers(&seen), ["http://10.0.0.1:80"]);
    fs::write(&path, "10.0.0.9:80\n").unwrap();
    let seen = fresh(&second, 1).await;
    assert_eq!(servers(&seen), ["http://10.0.0.9:80"]);
}

#[tokio::test]
async fn another_source_takes_over_when_it_has_something_to_say() {
    let dir = tempfile::tempdir().unwrap();
    let (one, other) = (dir.path().join("one"), dir.path().join("other"));
    fs::write(&one, "10.0.0.1:80\n10.0.0.2:80\n").unwrap();
    let at = |path: &Path| discovery(Source::file(path.to_str().unwrap()).unwrap());
    let pool = start(at(&one), &common(None));
    fresh(&pool, 2).await;
    pool.reshape(&model(at(&other)));
    let seen = failed(&pool, "file").await;
    assert_eq!(servers(&seen).len(), 2, "nothing better is known");
    fs::write(&other, "10.0.0.2:80\n").unwrap();
    let seen = fresh(&pool, 1).await;
    assert_eq!(servers(&seen), ["http://10.0.0.2:80"]);
    // And it is the operator's word that ends it.
    let plain = Endpoint::new(
        EndpointId::new("a").unwrap(),
        EndpointUrl::parse("http://10.0.0.3:80").unwrap(),
    );
    let mut plain_model = model(at(&other));
    plain_model.endpoints = vec![plain];
    pool.reshape(&plain_model);
    let seen = pool.snapshot();
    assert_eq!(servers(&seen), ["http://10.0.0.3:80"]);
    assert!(seen.discovery.is_empty());
}

#[tokio::test]
async fn a_request_without_servers_is_told_why() {
    let source = Source::file("/does/not/exist").unwrap();
    let pool = start(discovery(source), &common(None));
    let claim = crate::pool::Claim::until(Instant::now() + SOON);
    let error = pool.acquire(&claim).await.unwrap_err().to_string();
    assert!(
        error.contains("endpoint `pods`: the file cannot be read"),
        "{error}"
    );
}

#[tokio::test]
async fn servers_are_made_in_the_likeness_of_their_endpoint() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("targets");
    fs::write(&path, "vllm-1.test:8000\n").unwrap();
    let mut model = model(Discovery {
        tls: true,
        ..discovery(Source::file(path.to_str().unwrap()).unwrap())
    });
    model.endpoints[0].protocol = Protocol::Http2;
    let pool = Pool::new(&model, &common(None), usize::MAX);
    let seen = fresh(&pool, 1).await;
    assert_eq!(servers(&seen), ["https://vllm-1.test:8000"]);
    assert_eq!(seen.endpoints[0].protocol, "http2");
    assert!(seen.endpoints[0].id.starts_with("pods-vllm-1-test-8000-"));
}
