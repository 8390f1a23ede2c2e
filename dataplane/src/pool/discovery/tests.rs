//! Sources of every kind against a pool: what is read, refused, kept, and how it ends. Lists come over real sockets and files.

use std::{
    fs,
    net::{IpAddr, SocketAddr},
};

use forebay_proto::{
    EndpointUrl, ModelSpec, PoolSettings, Protocol, ResolvedModel, Revision, Weight,
    endpoint::{Bounds, DnsName, ListUrl},
};
use hickory_resolver::proto::rr::{Name, RData, RecordType, rdata::SRV};
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
    pool::{DiscoverySnapshot, PoolSnapshot, conn::Conn, inner::Inner},
    resolve::{Resolver, testing::Dns},
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
        Self::at("127.0.0.1:0".parse().unwrap()).await
    }

    async fn at(addr: SocketAddr) -> Self {
        let listener = TcpListener::bind(addr).await.unwrap();
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
        // Where it broke off cannot be told from where it ends.
        ("malformed", "HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\n\r\n10.0.0.1:80\n".into()),
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
    // That it never said anything is as bad as that it says nothing any more.
    assert!(seen.discovery[0].is_stale());
    put(&json(&["10.0.0.1:80"]));
    let seen = fresh(&pool, 1).await;
    assert!(!seen.discovery[0].is_stale());
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

#[tokio::test]
async fn a_name_has_as_many_servers_as_there_is_room_for() {
    let dns = Dns::start().await;
    let address = |n: u16| RData::from(IpAddr::from([10, 0, (n >> 8) as u8, n as u8]));
    dns.say("pods.test.", RecordType::A, (0..100).map(address).collect());
    let common = Common {
        resolver: Arc::new(dns.resolver(&[])),
        ..common(None)
    };
    let pool = start(discovery(Source::dns("pods.test:80").unwrap()), &common);
    fresh(&pool, 100).await;
    dns.say("pods.test.", RecordType::A, (0..300).map(address).collect());
    let seen = fresh(&pool, limits::TARGETS).await;
    assert_eq!(seen.discovery[0].no_room, 300 - limits::TARGETS);
    let model = ModelId::new("m").unwrap();
    assert!(common.metrics.discovery.count(&model, Why::TooMany) > 0);
}

fn server(priority: u16, port: u16, host: &str) -> RData {
    RData::SRV(SRV::new(priority, 1, port, Name::from_ascii(host).unwrap()))
}

#[tokio::test]
async fn hosts_of_srv_records_are_whole_names_and_those_without_a_port_are_refused() {
    const SERVICE: &str = "_http._tcp.pods.test.";
    let dns = Dns::start().await;
    dns.say(
        SERVICE,
        RecordType::SRV,
        vec![server(0, 0, "p0."), server(0, 80, "p1.")],
    );
    dns.say(
        "p1.",
        RecordType::A,
        vec![RData::from(IpAddr::from([10, 0, 0, 1]))],
    );
    let common = Common {
        resolver: Arc::new(dns.resolver(&["test"])),
        ..common(None)
    };
    let source = Source::Srv(DnsName::new("_http._tcp.pods").unwrap());
    let pool = start(discovery(source), &common);
    let seen = fresh(&pool, 1).await;
    assert_eq!(servers(&seen), ["http://p1:80"]);
    assert_eq!(seen.discovery[0].refused, 1);
    assert_eq!(seen.discovery[0].refused_servers[0].url, "p0:0");
    let asked = async {
        while !dns.was_asked("p1.", RecordType::A) {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(SOON, asked).await.unwrap();
    assert!(!dns.was_asked("p1.test.", RecordType::A));
    // That all are no places is not that there are none.
    dns.say(SERVICE, RecordType::SRV, vec![server(0, 0, "p0.")]);
    let seen = failed(&pool, "refused").await;
    assert_eq!(servers(&seen), ["http://p1:80"]);
}

fn reader(url: &str, common: &Common) -> Reader {
    let model = model(discovery(Source::Http(ListUrl::parse(url).unwrap())));
    let source = Arc::new(model.endpoints[0].clone());
    let discovery = source.url.discovery().unwrap().clone();
    Reader::new(source, discovery, common.clone())
}

#[tokio::test]
async fn a_server_of_lists_that_is_silent_holds_up_no_other() {
    let (silent, good) = (ListServer::start().await, ListServer::start().await);
    good.list("", &json(&["10.0.0.1:80"]));
    let common = common(None);
    let mut waiting = JoinSet::new();
    for _ in 0..2 * AT_ONCE {
        let mut reader = reader(&silent.url(), &common);
        waiting.spawn(async move { reader.look().await });
    }
    timeout(SOON, async {
        while silent.heard("GET") == 0 {
            sleep(Duration::from_millis(1)).await;
        }
    })
    .await
    .unwrap();
    let free = common.discovering.turns.available_permits();
    assert_eq!(free, AT_ONCE - AT_ORIGIN);
    let look = reader(&good.url(), &common).look().await;
    assert!(look.found.is_ok(), "{look:?}");
    // Who waited longer than a list may take has its whole time.
    while let Some(look) = waiting.join_next().await {
        assert_eq!(look.unwrap().found.unwrap_err().why, Why::Timeout);
    }
    assert!(silent.heard("GET") >= 2 * AT_ONCE - 1);
}

#[tokio::test]
async fn the_next_address_of_a_server_of_lists_is_tried_when_one_does_not_answer() {
    // Nobody takes what comes, and there is no room for more than this.
    let dead = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
    dead.bind(&any.into()).unwrap();
    dead.listen(0).unwrap();
    let at = dead.local_addr().unwrap().as_socket().unwrap();
    let mut full = Vec::new();
    while let Ok(stream) = std::net::TcpStream::connect_timeout(&at, Duration::from_millis(100)) {
        full.push(stream);
    }
    let alive = SocketAddr::from(([127, 0, 0, 2], at.port()));
    let good = ListServer::at(alive).await;
    good.list("", &json(&["10.0.0.1:80"]));
    let dns = Dns::start().await;
    let both = [at, alive].map(|at| RData::from(at.ip()));
    dns.say("lists.test.", RecordType::A, both.to_vec());
    let common = Common {
        resolver: Arc::new(dns.resolver(&[])),
        ..common(None)
    };
    let mut reader = reader(&format!("http://lists.test:{}/", at.port()), &common);
    let look = reader.look().await;
    assert!(look.found.is_ok(), "{look:?}");
    // The one that answered is asked first from now on.
    let began = Instant::now();
    assert!(reader.look().await.found.is_ok());
    assert!(began.elapsed() < Duration::from_millis(150));
}

#[tokio::test]
async fn a_file_of_lines_that_is_being_written_is_no_list_yet() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("targets");
    fs::write(&path, "10.0.0.1:80\n").unwrap();
    let source = Source::file(path.to_str().unwrap()).unwrap();
    let pool = start(discovery(source), &common(None));
    fresh(&pool, 1).await;
    let fresh_file = dir.path().join("fresh");
    fs::write(&fresh_file, "10.0.0.2:80\n10.0.0.3:80").unwrap();
    fs::rename(&fresh_file, &path).unwrap();
    let seen = failed(&pool, "malformed").await;
    assert_eq!(servers(&seen), ["http://10.0.0.1:80"]);
    // It was written like that, and nothing came after it.
    fresh(&pool, 2).await;
}

fn kept_in(data: &Path) -> usize {
    fs::read_dir(data.join("discovery")).map_or(0, Iterator::count)
}

async fn kept(data: &Path, files: usize) {
    let wait = async {
        while kept_in(data) != files {
            sleep(Duration::from_millis(5)).await;
        }
    };
    let kept = timeout(SOON, wait).await;
    assert!(kept.is_ok(), "{} files, not {files}", kept_in(data));
}

#[tokio::test]
async fn what_is_used_is_kept_of_another_source_too_and_of_none_that_went() {
    let dir = tempfile::tempdir().unwrap();
    let (one, other) = (dir.path().join("one"), dir.path().join("other"));
    let data = dir.path().join("data");
    fs::create_dir(&data).unwrap();
    // It cannot be written for a while.
    fs::write(data.join("discovery"), "in the way").unwrap();
    fs::write(&one, "10.0.0.1:80\n").unwrap();
    let at = |path: &Path| discovery(Source::file(path.to_str().unwrap()).unwrap());
    let pool = start(at(&one), &common(Some(&data)));
    fresh(&pool, 1).await;
    fs::remove_file(data.join("discovery")).unwrap();
    kept(&data, 1).await;
    let lists = KeptLists::within(&data);
    let source = |path: &Path| format!("m\nfile {}", path.display());
    assert_eq!(lists.load(&source(&one)).unwrap().len(), 1);
    // Another source that says nothing yet: what is used is its last known good.
    pool.reshape(&model(at(&other)));
    failed(&pool, "file").await;
    let wait = async {
        while lists.load(&source(&other)).unwrap().is_empty() {
            sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(SOON, wait).await.unwrap();
    assert!(lists.load(&source(&one)).unwrap().is_empty());
    // A worker that stops needs it again, and a model that is removed does not.
    pool.shutdown();
    drop(pool);
    let pool = start(at(&other), &common(Some(&data)));
    until(&pool, "as before", |s| s.state == "last_known_good").await;
    pool.retire();
    drop(pool);
    kept(&data, 0).await;
}

#[test]
fn the_next_priority_is_used_when_all_of_the_best_serve_another_model() {
    let mut model = model(discovery(Source::file("/x").unwrap()));
    model.probe.mode = forebay_proto::ProbeMode::Enforce;
    let mut inner = Inner::<Conn>::new(&model, usize::MAX, 1);
    let now = Duration::ZERO;
    drop(inner.reshape(now, &model));
    let named = |host: &str, priority| Named {
        url: EndpointUrl::parse(&format!("http://{host}:80")).unwrap(),
        parts: 1,
        priority,
        server_name: None,
    };
    let id = EndpointId::new("pods").unwrap();
    let servers = vec![
        named("10.0.0.1", 0),
        named("10.0.0.2", 0),
        named("10.0.0.3", 1),
    ];
    inner.sources.named(&id, servers, Status::default());
    drop(inner.expand(now));
    let (asked, targets) = inner.to_ask().unwrap();
    assert_eq!(targets.len(), 2);
    drop(inner.found(now, &asked, &targets[0], Some("other")));
    assert!(!inner.weigh_reserves(now));
    drop(inner.found(now, &asked, &targets[1], Some("other")));
    assert!(inner.weigh_reserves(now));
    drop(inner.expand(now));
    assert_eq!(inner.endpoints.len(), 3);
}
