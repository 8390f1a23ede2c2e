//! `forebay bench zero-loss`: finds nothing where nothing is lost, and exactly what was done where a gateway
//! cuts, fails, resets, alters and repeats. A harness that cannot see loss would be worth nothing.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use forebay_tests::{Process, eventually, lasting_addr};
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};

use crate::roles::{ANY, FOREBAY, run};

/// Runs the harness; its exit code, its report, and what it said beside it.
async fn zero_loss(
    gateway: &str,
    upstreams: &[SocketAddr],
    more: &[&str],
) -> (Option<i32>, Value, String) {
    let upstreams: Vec<_> = upstreams.iter().map(SocketAddr::to_string).collect();
    let url = format!("http://{gateway}/v1");
    let args = [
        "bench",
        "zero-loss",
        "--url",
        &url,
        "--upstream-listen",
        &upstreams.join(","),
        "--output",
        "json",
        "--stream-tokens",
        "8",
        "--token-interval",
        "2ms",
        "--seed",
        "7",
    ];
    let (code, out, err) = run(&[&args, more].concat()).await;
    assert!(out.starts_with('{'), "no report: {out}{err}");
    (code, serde_json::from_str(&out).unwrap(), err)
}

/// Forebay, the address of its gateway, and the url of its control plane.
async fn standalone(data: &str) -> (Process, String, String) {
    let args = [
        "standalone",
        "--listen",
        ANY,
        "--admin-listen",
        ANY,
        "--control-listen",
        ANY,
        "--data-dir",
        data,
    ];
    let mut standalone = Process::start(FOREBAY, &args, &[]);
    let gateway = standalone.printed("gateway   http://").await;
    let gateway = gateway.split('/').next().unwrap().to_owned();
    let control = standalone.printed("control   ").await;
    let control = format!("http://{}", control.split(' ').next().unwrap());
    (standalone, gateway, control)
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_while_a_pool_changes_under_load() {
    let dir = tempfile::tempdir().unwrap();
    let (standalone, gateway, control) = standalone(dir.path().to_str().unwrap()).await;
    let upstreams = [lasting_addr(), lasting_addr()];
    let endpoint = |n: usize| format!("http://{}", upstreams[n]);
    let (a, b) = (endpoint(0), endpoint(1));
    let create = [
        "models",
        "create",
        "m",
        "--alias",
        "also-m",
        "--endpoint",
        &a,
        // A machine that is busy with other tests makes a long line; that is not what this is about.
        "--max-waiting",
        "10000",
        "--control",
        &control,
    ];
    let (code, _, err) = run(&create).await;
    assert_eq!(code, Some(0), "{err}");

    // The size, and every second time the endpoints.
    let hook = format!(
        "if [ $((FOREBAY_BENCH_STEP % 4)) -lt 2 ]; then e='--endpoint {a}'; else e='--endpoint {a} --endpoint {b}'; fi; \
         {FOREBAY} models update m $e --max-concurrent $((20 + FOREBAY_BENCH_STEP * 7 % 60)) --control {control}"
    );
    let more = [
        "--model",
        "m,also-m",
        "--rate",
        "100",
        "--duration",
        "3s",
        "--warm-up",
        "500ms",
        "--baseline",
        "--hook",
        &hook,
        "--every",
        "100ms",
    ];
    let (code, report, err) = zero_loss(&gateway, &upstreams, &more).await;
    assert_eq!(code, Some(0), "{err}{report:#}");
    for phase in ["baseline", "measured"] {
        let phase = &report[phase];
        assert_eq!(phase["requests"], 300, "{report:#}");
        assert_eq!(phase["ok"], 300, "{report:#}");
        assert_eq!(phase["duplicated"], 0, "{report:#}");
        assert_eq!(phase["upstream"]["requests"], 300, "{report:#}");
        assert!(phase["streams"].as_u64().unwrap() > 60, "{report:#}");
    }
    let hooks = &report["measured"]["hooks"];
    assert!(hooks["run"].as_u64().unwrap() > 2, "{report:#}");
    assert_eq!(hooks["failed"], 0, "{report:#}");
    assert_eq!(report["lost_per_reconfiguration"], 0.0);
    assert!(report["added_ms"]["p99"].is_f64(), "{report:#}");
    standalone.terminate().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_lossy_gateway_does_is_what_is_reported() {
    let upstream = lasting_addr();
    let gateway = Lossy::start(upstream).await;
    let more = [
        "--model",
        "m",
        "--rate",
        "100",
        "--duration",
        "4s",
        "--warm-up",
        "0s",
        "--stream-share",
        "0.5",
    ];
    let (code, report, err) = zero_loss(&gateway.addr.to_string(), &[upstream], &more).await;
    let did = &gateway.did;
    let done = |what: &AtomicU64| {
        let times = what.load(Ordering::Relaxed);
        assert!(times >= 5, "the gateway did too little: {did:?}");
        times
    };
    let measured = &report["measured"];
    for (told, times) in [
        ("/failed/status_503", done(&did.failed)),
        ("/cut/aborted", done(&did.cut)),
        ("/cut/text_altered", done(&did.altered)),
        ("/cut/text_missing", done(&did.missing)),
        ("/reset/reused", done(&did.reset)),
        ("/duplicated", done(&did.duplicated)),
    ] {
        assert_eq!(measured.pointer(told), Some(&times.into()), "{report:#}");
    }
    let lost = [
        &did.failed,
        &did.cut,
        &did.altered,
        &did.missing,
        &did.reset,
    ];
    let lost: u64 = lost.map(done).iter().sum();
    assert_eq!(measured["reset"]["new"], 0, "{report:#}");
    assert_eq!(measured["ok"], 400 - lost, "{report:#}");
    assert_eq!(code, Some(1));
    assert!(err.contains(&format!("{lost} requests lost")), "{err}");
}

/// An upstream is a gateway to itself.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_above_the_bound_is_not_sent_and_counts_as_failed() {
    let upstream = lasting_addr();
    let bound = [
        "--model",
        "m",
        "--rate",
        "200",
        "--duration",
        "1s",
        "--warm-up",
        "0s",
        "--stream-share",
        "1",
        "--most-in-flight",
        "1",
        "--allow-loss",
    ];
    let (code, report, err) = zero_loss(&upstream.to_string(), &[upstream], &bound).await;
    assert_eq!(code, Some(0), "{err}");
    let measured = &report["measured"];
    let (ok, unsent) = (
        measured["ok"].as_u64().unwrap(),
        measured["failed"]["too_many_in_flight"].as_u64().unwrap(),
    );
    assert!(ok > 0 && unsent > 0, "{report:#}");
    assert_eq!(ok + unsent, 200, "{report:#}");
    assert_eq!(measured["upstream"]["requests"], ok, "{report:#}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_run_that_is_interrupted_tells_what_it_found() {
    let upstream = lasting_addr().to_string();
    let url = format!("http://{upstream}/v1");
    let dir = tempfile::tempdir().unwrap();
    let begun = dir.path().join("begun");
    let hook = format!("touch {}", begun.display());
    let args = [
        "bench",
        "zero-loss",
        "--url",
        &url,
        "--upstream-listen",
        &upstream,
        "--model",
        "m",
        "--rate",
        "100",
        "--duration",
        "1h",
        "--warm-up",
        "0s",
        "--every",
        "500ms",
        "--hook",
        &hook,
        "--output",
        "json",
    ];
    let harness = Process::start(FOREBAY, &args, &[]);
    eventually("the hook has run", async || begun.exists().then_some(())).await;
    let (code, out, err) = harness.terminate().await;
    assert_eq!(code, Some(0), "{err}");
    let report: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(report["interrupted"], true);
    let measured = &report["measured"];
    assert!(measured["requests"].as_u64().unwrap() > 20, "{report:#}");
    assert_eq!(measured["ok"], measured["requests"], "{report:#}");
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_flags_and_dead_gateways_are_told_at_once() {
    let bad = ["--model", "m", "--rate", "0", "--stream-share", "2"];
    let (code, _, err) = run(&[&["bench", "zero-loss"][..], &bad].concat()).await;
    assert_eq!(code, Some(64));
    assert!(err.contains("--rate 0: from 1 to 20000"), "{err}");
    assert!(err.contains("--stream-share 2: from 0"), "{err}");

    let taken = TcpListener::bind(ANY).await.unwrap();
    let taken = taken.local_addr().unwrap().to_string();
    let free = lasting_addr().to_string();
    for (listen, told) in [
        (&taken, format!("cannot listen on {taken}")),
        (&free, "it failed (connect)".to_owned()),
    ] {
        let (code, _, err) = run(&[
            "bench",
            "zero-loss",
            "--upstream-listen",
            listen,
            "--model",
            "m",
            "--url",
            "http://127.0.0.1:1/v1",
        ])
        .await;
        assert_eq!(code, Some(1), "{err}");
        assert!(err.contains(&told), "{err}");
    }
}

/// A gateway that keeps connections well, and everything else now and then.
struct Lossy {
    addr: SocketAddr,
    did: Arc<Did>,
    _server: JoinSet<()>,
}

/// What it did wrong, each so many times.
#[derive(Debug, Default)]
struct Did {
    requests: AtomicU64,
    failed: AtomicU64,
    cut: AtomicU64,
    altered: AtomicU64,
    missing: AtomicU64,
    reset: AtomicU64,
    duplicated: AtomicU64,
}

/// The requests that come before the load are served well.
const TRIES: u64 = 2;

impl Lossy {
    async fn start(upstream: SocketAddr) -> Self {
        let listener = TcpListener::bind(ANY).await.unwrap();
        let addr = listener.local_addr().unwrap();
        let did = Arc::new(Did::default());
        let mut server = JoinSet::new();
        let shared = did.clone();
        server.spawn(async move {
            let mut clients = JoinSet::new();
            while let Ok((socket, _)) = listener.accept().await {
                clients.spawn(serve(socket, upstream, shared.clone()));
            }
        });
        Self {
            addr,
            did,
            _server: server,
        }
    }
}

async fn serve(mut client: TcpStream, upstream: SocketAddr, did: Arc<Did>) {
    let add = |what: &AtomicU64| what.fetch_add(1, Ordering::Relaxed);
    let mut reused = false;
    while let Some(request) = read_request(&mut client).await {
        let n = add(&did.requests);
        let answer = match n % 20 {
            _ if n < TRIES => forward(upstream, &request).await,
            2 if reused => {
                add(&did.reset);
                rustix::net::sockopt::set_socket_linger(&client, Some(Duration::ZERO)).unwrap();
                return;
            }
            5 => {
                add(&did.failed);
                b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n".to_vec()
            }
            8 => {
                add(&did.duplicated);
                forward(upstream, &request).await;
                forward(upstream, &request).await
            }
            11 => {
                add(&did.cut);
                let answer = forward(upstream, &request).await;
                let all_but_the_end = &answer[..answer.len() - 10];
                drop(client.write_all(all_but_the_end).await);
                return;
            }
            14 => {
                add(&did.altered);
                altered(forward(upstream, &request).await)
            }
            16..20 => without_an_event(forward(upstream, &request).await, &did.missing),
            _ => forward(upstream, &request).await,
        };
        if client.write_all(&answer).await.is_err() {
            return;
        }
        reused = true;
    }
}

/// A whole request with a content-length; none at the end of the connection.
async fn read_request(client: &mut TcpStream) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    loop {
        if client.read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
        let text = String::from_utf8_lossy(&bytes);
        let Some((head, body)) = text.split_once("\r\n\r\n") else {
            continue;
        };
        let length = head
            .lines()
            .find_map(|line| line.strip_prefix("content-length: "))
            .map_or(0, |length| length.parse().unwrap());
        if body.len() >= length {
            return Some(bytes);
        }
    }
}

/// Asks the upstream on a connection of its own, and gives the answer as if that would stay open.
async fn forward(upstream: SocketAddr, request: &[u8]) -> Vec<u8> {
    let request = String::from_utf8(request.to_vec()).unwrap();
    let request = request.replacen("\r\n", "\r\nconnection: close\r\n", 1);
    let mut socket = TcpStream::connect(upstream).await.unwrap();
    socket.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    socket.read_to_end(&mut answer).await.unwrap();
    let answer = String::from_utf8(answer).unwrap();
    answer.replacen("connection: close\r\n", "", 1).into_bytes()
}

/// The checksum of the first word ends in another digit.
fn altered(answer: Vec<u8>) -> Vec<u8> {
    let answer = String::from_utf8(answer).unwrap();
    let at = answer.find("\"content\":\"0.").unwrap() + "\"content\":\"0.00000000.0000000".len();
    let other = if &answer[at..=at] == "0" { "1" } else { "0" };
    format!("{}{other}{}", &answer[..at], &answer[at + 1..]).into_bytes()
}

/// A stream loses the chunk of its third word, and is well framed all the same. Others stay as they are.
fn without_an_event(answer: Vec<u8>, missing: &AtomicU64) -> Vec<u8> {
    let text = String::from_utf8(answer).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    if !head.contains("chunked") {
        return text.into_bytes();
    }
    missing.fetch_add(1, Ordering::Relaxed);
    // A chunk is a line with its length and one with its content.
    let lines: Vec<_> = body.split("\r\n").collect();
    let at = lines
        .iter()
        .position(|line| line.contains("\"content\":\"2."))
        .unwrap();
    let kept = lines
        .iter()
        .enumerate()
        .filter(|(n, _)| *n != at && *n != at - 1);
    let body: Vec<_> = kept.map(|(_, line)| *line).collect();
    format!("{head}\r\n\r\n{}", body.join("\r\n")).into_bytes()
}
