//! Requests over HTTP/1.1 that try to be two, or another than they seem: H1–H22 of the catalogue, with their bytes.

use tokio::io::AsyncWriteExt as _;

use super::{
    scene::{CHAT, Scene, post, read_until},
    strict,
};

/// What becomes of the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Then {
    /// The next request on it is served.
    GoesOn,
    /// It is closed, and nothing after is answered.
    Closes,
}
use Then::{Closes, GoesOn};

/// An attack.
pub(crate) struct Row {
    pub(crate) name: &'static str,
    pub(crate) bytes: Vec<u8>,
    /// Any of these; none if the connection is closed without a word.
    pub(crate) status: &'static [u16],
    pub(crate) then: Then,
}

const M: &str = r#"{"model":"m"}"#;
/// `M` as one chunk.
const CHUNK: &str = "d\r\n{\"model\":\"m\"}\r\n0\r\n\r\n";
/// What is hidden behind a request in the hope that it becomes one.
const HIDDEN: &str = "POST /v1/completions HTTP/1.1\r\nHost: gw\r\nx-request-id: hidden\r\ncontent-length: 13\r\n\r\n{\"model\":\"m\"}";

fn row(name: &'static str, bytes: impl Into<Vec<u8>>, status: &'static [u16], then: Then) -> Row {
    Row {
        name,
        bytes: bytes.into(),
        status,
        then,
    }
}

/// With these headers and `M`, of the right length.
fn sized(headers: &str) -> Vec<u8> {
    post(&format!("{headers}content-length: 13\r\n"), M)
}

/// With these headers and `M` in chunks.
fn chunked(headers: &str) -> Vec<u8> {
    post(&format!("{headers}Transfer-Encoding: chunked\r\n"), CHUNK)
}

fn raw(head: &str, body: &str) -> Vec<u8> {
    format!("{head}\r\n\r\n{body}").into_bytes()
}

pub(crate) fn rows() -> Vec<Row> {
    let mut rows = lengths();
    rows.extend(syntax());
    rows.extend(chunks());
    rows.extend(targets());
    rows.extend(fields());
    rows.extend(early());
    rows
}

/// H1–H6.
fn lengths() -> Vec<Row> {
    let both = |headers: &str| post(headers, &format!("0\r\n\r\n{HIDDEN}"));
    let mut rows = vec![
        row(
            "H1 length, then chunked",
            both("Content-Length: 6\r\nTransfer-Encoding: chunked\r\n"),
            &[400],
            Closes,
        ),
        row(
            "H1 chunked, then length",
            both("Transfer-Encoding: chunked\r\nContent-Length: 6\r\n"),
            &[400],
            Closes,
        ),
        row(
            "H1 both, with a body",
            post(
                "Content-Length: 23\r\nTransfer-Encoding: chunked\r\n",
                CHUNK,
            ),
            &[200, 400],
            Closes,
        ),
        row(
            "H5 the same length twice",
            post("Content-Length: 13\r\nContent-Length: 13\r\n", M),
            &[200],
            GoesOn,
        ),
        row(
            "H6 a length beyond all bounds",
            post("Content-Length: 18446744073709551612\r\n", ""),
            &[413],
            Closes,
        ),
        row(
            "H6 the largest length",
            post("Content-Length: 18446744073709551615\r\n", ""),
            &[413, 431],
            Closes,
        ),
        row(
            "H6 more than --max-body-bytes",
            post("Content-Length: 1048577\r\n", ""),
            &[413],
            Closes,
        ),
        row(
            "H2 chunked over HTTP/1.0",
            raw(
                &format!("POST {CHAT} HTTP/1.0\r\nHost: gw\r\nTransfer-Encoding: chunked"),
                CHUNK,
            ),
            &[400],
            Closes,
        ),
    ];
    for te in [
        "Transfer-Encoding: identity",
        "Transfer-Encoding: xchunked",
        "Transfer-Encoding: chunked, identity",
        "Transfer-Encoding: \x0bchunked",
        "Transfer-Encoding : chunked",
        "Transfer-Encoding:\r\n chunked",
        "Transfer-Encoding: gzip, chunked",
        "Transfer-Encoding: chunked, chunked",
        "Transfer-Encoding: identity\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: \"chunked\"",
        "Transfer-Encoding: chunked;q=1",
        "Transfer-Encoding:",
    ] {
        rows.push(row(
            "H2, H3 an encoding",
            post(&format!("{te}\r\n"), CHUNK),
            &[400, 501],
            Closes,
        ));
    }
    for length in [
        "3\r\nContent-Length: 4",
        "3, 3",
        "+3",
        "-1",
        "0x3",
        "",
        "18446744073709551616",
        "3 3",
        "3;a",
    ] {
        let headers = format!("Content-Length: {length}\r\n");
        rows.push(row("H4 a length", post(&headers, HIDDEN), &[400], Closes));
    }
    rows
}

/// H7, H8.
fn syntax() -> Vec<Row> {
    let mut rows = vec![
        row(
            "H8 line feeds alone",
            format!("POST {CHAT} HTTP/1.1\nHost: gw\ncontent-length: 13\n\n{M}"),
            &[200],
            GoesOn,
        ),
        row(
            "H8 line feeds, mixed",
            format!("POST {CHAT} HTTP/1.1\r\nHost: gw\ncontent-length: 13\r\n\n{M}"),
            &[200],
            GoesOn,
        ),
        row(
            "H8 leading line ends",
            [b"\r\n\r\n".to_vec(), sized("")].concat(),
            &[200],
            GoesOn,
        ),
    ];
    for headers in [
        "X-A: a\r\n b\r\n",
        " X-A: a\r\n",
        "X-A: a\rX-B: b\r\n",
        "X-A: a\0b\r\n",
        "X-A: a\x7fb\r\n",
        "X-A\r\n",
        ": a\r\n",
        "X A: a\r\n",
        "X-A : a\r\n",
    ] {
        rows.push(row("H7 a header", sized(headers), &[400], Closes));
    }
    for line in [
        format!("POST  {CHAT} HTTP/1.1"),
        format!("POST\t{CHAT} HTTP/1.1"),
        format!("POST {CHAT}  HTTP/1.1"),
        format!("POST {CHAT}"),
        format!("POST {CHAT} HTTP/0.9"),
        format!("POST {CHAT} HTTP/1.2"),
        format!("POST {CHAT} HTTP/2.0"),
        format!("POST {CHAT} http/1.1"),
        format!(" POST {CHAT} HTTP/1.1"),
        format!("POST {CHAT} HTTP/1.1 "),
    ] {
        let head = format!("{line}\r\nHost: gw\r\ncontent-length: 13");
        rows.push(row("H7 a request line", raw(&head, M), &[400], Closes));
    }
    rows
}

/// H9–H11.
fn chunks() -> Vec<Row> {
    let te = "Transfer-Encoding: chunked\r\n";
    let mut rows = vec![row("H9 chunks", chunked(""), &[200], GoesOn)];
    for good in [
        "d;a=b\r\n{\"model\":\"m\"}\r\n0\r\n\r\n",
        "d \r\n{\"model\":\"m\"}\r\n0\r\n\r\n",
        "0000000000d\r\n{\"model\":\"m\"}\r\n0\r\n\r\n",
        "D\r\n{\"model\":\"m\"}\r\n000\r\n\r\n",
        "d\r\n{\"model\":\"m\"}\r\n0\r\nContent-Length: 5\r\nAuthorization: Bearer x\r\n\r\n",
    ] {
        rows.push(row("H9, H11 chunks", post(te, good), &[200], GoesOn));
    }
    let long = format!("d;{}\r\n{M}\r\n0\r\n\r\n", "x".repeat(17 * 1024));
    let trailer = format!("d\r\n{M}\r\n0\r\nx-t: {}\r\n\r\n", "x".repeat(17 * 1024));
    for bad in [
        "d;\n{\"model\":\"m\"}\r\n0\r\n\r\n",
        "d;a\rb\r\n{\"model\":\"m\"}\r\n0\r\n\r\n",
        "d\n{\"model\":\"m\"}\r\n0\r\n\r\n",
        "d\r\n{\"model\":\"m\"}0\r\n\r\n",
        " d\r\n{\"model\":\"m\"}\r\n0\r\n\r\n",
        "+d\r\n{\"model\":\"m\"}\r\n0\r\n\r\n",
        "0xd\r\n{\"model\":\"m\"}\r\n0\r\n\r\n",
        "1000000000000000d\r\n{\"model\":\"m\"}\r\n0\r\n\r\n",
        "1000000000000000d0\r\n{\"model\":\"m\"}\r\n0\r\n\r\n",
        "-1\r\n{\"model\":\"m\"}\r\n0\r\n\r\n",
        "\r\n{\"model\":\"m\"}\r\n0\r\n\r\n",
        long.as_str(),
        trailer.as_str(),
    ] {
        rows.push(row(
            "H10, H11 broken chunks",
            post(te, bad),
            &[400, 413],
            Closes,
        ));
    }
    rows
}

/// H12–H17.
fn targets() -> Vec<Row> {
    let to =
        |line: &str, host: &str| raw(&format!("{line} HTTP/1.1\r\n{host}content-length: 13"), M);
    let gw = "Host: gw\r\n";
    let mut rows = vec![
        row(
            "H13 the same host",
            to(&format!("POST http://gw{CHAT}"), gw),
            &[200],
            GoesOn,
        ),
        row(
            "H13 another host",
            to(&format!("POST http://evil{CHAT}"), gw),
            &[400],
            Closes,
        ),
        row(
            "H13 somebody in front",
            to(&format!("POST http://u:p@gw{CHAT}"), gw),
            &[400],
            Closes,
        ),
        row(
            "H13 another scheme",
            to("POST file://gw/etc/passwd", gw),
            &[400],
            Closes,
        ),
        row(
            "H14 CONNECT",
            raw(
                "CONNECT 169.254.169.254:80 HTTP/1.1\r\nHost: 169.254.169.254:80",
                HIDDEN,
            ),
            &[405],
            Closes,
        ),
        row(
            "H14 OPTIONS *",
            raw("OPTIONS * HTTP/1.1\r\nHost: gw", ""),
            &[405],
            Closes,
        ),
        row(
            "H17 h2c",
            sized(
                "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n",
            ),
            &[200],
            GoesOn,
        ),
        row(
            "H17 a web socket",
            raw(
                "GET /v1/models HTTP/1.1\r\nHost: gw\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13",
                "",
            ),
            &[200],
            GoesOn,
        ),
    ];
    for method in ["get", "TRACE", "PRI", "Post", "LOCK"] {
        let head = format!("{method} {CHAT} HTTP/1.1\r\nHost: gw");
        rows.push(row("H14 a method", raw(&head, ""), &[405], Closes));
    }
    for host in [
        "",
        "Host: gw\r\nHost: gw\r\n",
        "Host: a b/@c\r\n",
        "Host:\r\n",
        "Host: gw/x\r\n",
        "Host: u@gw\r\n",
        "Host: gw, evil\r\n",
    ] {
        rows.push(row(
            "H12 a host",
            to(&format!("POST {CHAT}"), host),
            &[400],
            Closes,
        ));
    }
    for path in [
        "/v1/../admin",
        "/v1/%2e%2e/admin",
        "/v1%2fchat",
        "//v1",
        "/v1/%00",
        "/v1\\admin",
        "/v1/ä",
        "/metrics",
        "/v1/chat/completions/",
        "/v1/chat/completions%00",
    ] {
        rows.push(row(
            "H15 a path",
            to(&format!("POST {path}"), gw),
            &[400, 404],
            GoesOn,
        ));
    }
    rows
}

/// H16, H18–H21.
fn fields() -> Vec<Row> {
    let many = |count: usize| sized(&"x-a: b\r\n".repeat(count));
    let long = |bytes: usize| sized(&format!("x-a: {}\r\n", "x".repeat(bytes)));
    let path = |bytes: usize| {
        let head = format!(
            "POST /{} HTTP/1.1\r\nHost: gw\r\ncontent-length: 13",
            "x".repeat(bytes)
        );
        raw(&head, M)
    };
    let mut rows = vec![
        row("H16 62 headers more", many(62), &[200], GoesOn),
        row("H16 63 headers more", many(63), &[431], Closes),
        row("H16 101 headers", many(101), &[431], Closes),
        row("H16 30 KiB", long(30 * 1024), &[200], GoesOn),
        row("H16 33 KiB", long(33 * 1024), &[431], Closes),
        row("H16 500 KiB", long(500 * 1024), &[431], Closes),
        row("H16 a path of 8 KiB", path(8 * 1024 - 2), &[404], GoesOn),
        row("H16 a path of 9 KiB", path(9 * 1024), &[414], Closes),
        row("H16 a path of 70 KiB", path(70 * 1024), &[414, 431], Closes),
        row(
            "H18 what passes",
            sized("Connection: x-hop\r\nx-hop: 1\r\n"),
            &[200],
            GoesOn,
        ),
        row(
            "H19 names that look like others",
            sized(
                "Content_Length: 3\r\nX_Forebay_Tenant: a\r\nX-Forebay-Tenant: a\r\nX-Forebay-Endpoint: a\r\nx_request_id: a\r\n",
            ),
            &[200],
            GoesOn,
        ),
        row(
            "H20 where it came from",
            sized(
                "X-Forwarded-For: 1.2.3.4\r\nForwarded: for=1.2.3.4\r\nX-Real-IP: 1.2.3.4\r\nCookie: a=b\r\n",
            ),
            &[200],
            GoesOn,
        ),
        row(
            "H21 more than fits",
            post("Expect: 100-continue\r\nContent-Length: 1048577\r\n", ""),
            &[413],
            Closes,
        ),
        row(
            "H21 an expectation that fits",
            sized("Expect: 100-continue\r\n"),
            &[200],
            GoesOn,
        ),
        row(
            "H21 another expectation",
            sized("Expect: x\r\n"),
            &[417],
            Closes,
        ),
    ];
    for name in [
        "authorization",
        "x-api-key",
        "content-length",
        "x-forebay-tenant",
        "close, Host",
        "keep-alive, openai-organization",
    ] {
        let headers = format!("Authorization: Bearer x\r\nConnection: {name}\r\n");
        rows.push(row(
            "H18 a protected header",
            sized(&headers),
            &[400],
            Closes,
        ));
    }
    rows
}

/// H22: refused while the body is still on its way; what of it looks like a request is none.
fn early() -> Vec<Row> {
    let to = |headers: &str, body: &str| {
        raw(
            &format!("POST /nowhere HTTP/1.1\r\nHost: gw\r\n{headers}"),
            body,
        )
    };
    vec![
        row(
            "H22 part of a body",
            to("Content-Length: 100000", HIDDEN),
            &[404],
            Closes,
        ),
        row(
            "H22 part of the chunks",
            to(
                "Transfer-Encoding: chunked",
                "fff\r\nPOST /v1/completions HTTP/1.1\r\n",
            ),
            &[404],
            Closes,
        ),
        row(
            "H22 a body like a request",
            to(&format!("Content-Length: {}", HIDDEN.len()), HIDDEN),
            &[404],
            GoesOn,
        ),
        row(
            "H22 too large, like requests",
            post("Content-Length: 2000000\r\n", &HIDDEN.repeat(1_000)),
            &[413],
            Closes,
        ),
        row(
            "H22 too large in chunks",
            post(
                "Transfer-Encoding: chunked\r\n",
                &format!("200000\r\n{}", "x".repeat(0x20_0000)),
            ),
            &[413],
            Closes,
        ),
    ]
}

/// What came of one attack, and of the request behind it.
async fn play(scene: &Scene, row: &Row) -> Result<(), String> {
    let before = scene.good.count();
    let mut socket = scene.connect().await;
    // An error says that it was closed: what came before can be read all the same.
    drop(socket.write_all(&row.bytes).await);
    let sentinel = post("x-request-id: sentinel\r\ncontent-length: 13\r\n", M);
    drop(socket.write_all(&sentinel).await);
    let served = |bytes: &[u8]| {
        let answers = strict::answers(bytes).unwrap_or_default();
        let is_it = |a: &strict::Answer| a.whole && a.header("x-request-id") == Some("sentinel");
        answers.iter().any(is_it)
    };
    let bytes = read_until(&mut socket, served).await;
    let mut answers = strict::answers(&bytes)?;
    let went_on = served(&bytes);
    if went_on {
        let last = answers.pop().ok_or("no answer")?;
        if last.status != 200 {
            return Err(format!("the request behind it got {}", last.status));
        }
    }
    if went_on != (row.then == GoesOn) {
        return Err(format!("went on: {went_on}; {answers:?}"));
    }
    let [answer] = &answers[..] else {
        return Err(format!("not one answer: {answers:?}"));
    };
    if !row.status.contains(&answer.status) || !answer.whole {
        return Err(format!("{} {}", answer.status, answer.text()));
    }
    let ours = answer.header("x-request-id").is_some();
    if ours && answer.status >= 400 && !answer.text().contains("\"code\"") {
        return Err(format!("no error that can be read: {answer:?}"));
    }
    let upstream = scene.good.count() - before;
    let meant = usize::from(answer.status == 200 && !row.name.contains("web socket"))
        + usize::from(went_on);
    match upstream == meant {
        true => Ok(()),
        false => Err(format!("{upstream} requests upstream, not {meant}")),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_tries_to_be_two_requests_is_one_or_none() {
    let scene = Scene::plain().await;
    let mut wrong = Vec::new();
    for row in rows() {
        if let Err(why) = play(&scene, &row).await {
            let start =
                String::from_utf8_lossy(&row.bytes[..row.bytes.len().min(160)]).into_owned();
            wrong.push(format!("{}: {why}\n    {start:?}", row.name));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    scene.assert_clean().await;
    let page = scene.worker.metrics().await;
    assert_eq!(
        page.sum("forebay_requests_total", &["source=\"gateway\""]),
        1.0,
        "the list of models"
    );
}

/// A client that writes everything before it reads hears all the same why it was refused.
#[tokio::test(flavor = "multi_thread")]
async fn who_still_sends_hears_the_refusal() {
    let scene = Scene::plain().await;
    for headers in [
        "content-length: 20000000\r\n",
        "content-length: 20000000\r\nx-a: b\r\nexpect: 200-ok\r\n",
    ] {
        let mut socket = scene.connect().await;
        socket.write_all(&post(headers, "")).await.unwrap();
        socket.write_all(&vec![b'x'; 20_000_000]).await.unwrap();
        let read = read_until(&mut socket, |_| false).await;
        let answers = strict::answers(&read).unwrap();
        let [answer] = &answers[..] else {
            panic!("{answers:?}");
        };
        assert!([413, 417].contains(&answer.status) && answer.whole);
        assert_eq!(answer.header("connection"), Some("close"));
    }
    scene.assert_clean().await;
}

/// Of names that are configured only those are served.
#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_is_not_allowed_is_misdirected() {
    let limits = forebay_dataplane::ClientLimits {
        allowed_hosts: vec!["gw".to_owned()],
        ..forebay_dataplane::ClientLimits::default()
    };
    let play = std::sync::Arc::new(|_| (super::scene::GOOD.to_vec(), false));
    let scene = Scene::start(limits, play, std::time::Duration::from_secs(60)).await;
    scene.sentinel().await;
    let elsewhere = b"GET /v1/models HTTP/1.1\r\nHost: gw.evil\r\n\r\n";
    assert_eq!(scene.ask(elsewhere).await[0].status, 421);
    scene.assert_clean().await;
}
