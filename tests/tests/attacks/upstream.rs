//! Upstreams that attack: §2.5 of the catalogue, with their bytes. What they say never reaches a client as success,
//! as another answer, or as anything that is ours to say.

use std::{sync::Arc, time::Duration};

use parking_lot::Mutex;

use super::{
    scene::{GOOD, Play, Scene, chat},
    strict::Answer,
};

const BODY: &str = r#"{"choices":[]}"#;

/// A scene whose upstream plays what is put here.
async fn scene() -> (Scene, Arc<Mutex<(Vec<u8>, bool)>>) {
    let script = Arc::new(Mutex::new((GOOD.to_vec(), false)));
    let read = script.clone();
    let play: Arc<Play> = Arc::new(move |_| read.lock().clone());
    let limits = forebay_dataplane::ClientLimits::default();
    let scene = Scene::start(limits, play, Duration::from_secs(2)).await;
    (scene, script)
}

fn ok(headers: &str) -> String {
    format!("HTTP/1.1 200 OK\r\n{headers}\r\n")
}

async fn told(scene: &Scene, code: &str) -> Answer {
    let mut answers = scene.ask(&chat("e", "attacked")).await;
    assert_eq!(answers.len(), 1, "{answers:?}");
    let answer = answers.remove(0);
    assert!(answer.whole && answer.status == 502, "{answer:?}");
    assert!(answer.text().contains(code), "{}", answer.text());
    answer
}

#[tokio::test(flavor = "multi_thread")]
async fn what_breaks_the_rules_is_a_502_and_its_connection_is_not_used_again() {
    let (scene, script) = scene().await;
    let sized = format!("content-length: {}\r\n", BODY.len());
    let chunk = "e\r\n{\"choices\":[]}\r\n0\r\n\r\n";
    let rows = [
        ("two lengths", ok("content-length: 10\r\ntransfer-encoding: chunked\r\n") + chunk),
        ("the other way round", ok("transfer-encoding: chunked\r\ncontent-length: 10\r\n") + chunk),
        ("identity", ok("transfer-encoding: identity\r\n") + BODY),
        ("an encoding more", ok("transfer-encoding: gzip, chunked\r\n") + chunk),
        ("differing lengths", ok("content-length: 14\r\ncontent-length: 10\r\n") + BODY),
        ("a folded header", ok(&format!("x-a: a\r\n b\r\n{sized}")) + BODY),
        ("a bare CR", ok(&format!("x-a: a\rx-b: b\r\n{sized}")) + BODY),
        ("a negative length", ok("content-length: -1\r\n") + BODY),
        ("status 000", format!("HTTP/1.1 000 OK\r\n{sized}\r\n{BODY}")),
        ("status 999", format!("HTTP/1.1 999 OK\r\n{sized}\r\n{BODY}")),
        ("a control byte", format!("HTTP/1.1 200 O\x01K\r\n{sized}\r\n{BODY}")),
        ("101 headers", ok(&format!("{}{sized}", "x-a: b\r\n".repeat(100))) + BODY),
        ("500 kB", ok(&format!("x-a: {}\r\n{sized}", "x".repeat(500_000))) + BODY),
        ("no HTTP", "+PONG\r\n".repeat(10)),
        ("50,000 interim answers", "HTTP/1.1 103 Early Hints\r\n\r\n".repeat(50_000) + &ok(&sized) + BODY),
        ("9 interim answers", "HTTP/1.1 103 Early Hints\r\n\r\n".repeat(9)),
        ("a switch", "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: h2c\r\n\r\n".to_owned()),
        ("a redirect", "HTTP/1.1 307 Temporary Redirect\r\nlocation: http://169.254.169.254/\r\ncontent-length: 0\r\n\r\n".to_owned()),
        ("304", "HTTP/1.1 304 Not Modified\r\n\r\n".to_owned()),
        ("gzip", ok(&format!("content-encoding: gzip\r\n{sized}")) + BODY),
    ];
    for (name, bytes) in rows {
        *script.lock() = (bytes.into_bytes(), false);
        let before = scene.evil.count();
        let answer = told(&scene, "upstream_reset").await;
        assert_eq!(answer.header("location"), None);
        assert_eq!(scene.evil.count() - before, 1, "{name}: it may have run");
        assert_eq!(scene.evil.most_on_one(), 1, "{name}: discarded");
    }
    let page = scene.worker.metrics().await;
    let closed = page.sum(
        "forebay_pool_connections_closed_total",
        &["model=\"e\"", "reason=\"error\""],
    );
    assert_eq!(closed, 20.0);
    scene.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn some_interim_answers_are_fine_each_time() {
    let (scene, script) = scene().await;
    let bytes = [
        "HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n"
            .repeat(8)
            .as_bytes(),
        GOOD,
    ]
    .concat();
    *script.lock() = (bytes, false);
    for _ in 0..3 {
        let answers = scene.ask(&chat("e", "hinted")).await;
        assert_eq!((answers.len(), answers[0].status), (1, 200));
    }
    assert_eq!(scene.evil.connections(), 1);
    scene.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_does_not_speak_in_our_name_nor_to_others_than_its_client() {
    let (scene, script) = scene().await;
    let answer = ok(
        "connection: x-secret, openai-hop\r\nkeep-alive: timeout=5\r\nserver: evil\r\nset-cookie: a=b\r\n\
                     proxy-authenticate: Basic\r\nx-secret: 1\r\nopenai-hop: 1\r\nx-forebay-endpoint: forged\r\n\
                     x-request-id: forged\r\nlocation: http://evil/\r\nalt-svc: h3=\":443\"\r\n\
                     strict-transport-security: max-age=1\r\naccess-control-allow-origin: *\r\n\
                     openai-processing-ms: 7\r\nx-ratelimit-limit-requests: 9\r\nretry-after: 1\r\n\
                     content-type: application/json\r\ncontent-length: 14\r\n",
    );
    let answer = (answer + BODY).replace("200 OK", "200 Forged");
    *script.lock() = (answer.into_bytes(), false);
    let answers = scene.ask(&chat("e", "mine")).await;
    assert_eq!(answers[0].reason, "OK");
    let mut names: Vec<_> = answers[0]
        .headers
        .iter()
        .map(|(name, _)| name.as_str())
        .collect();
    names.sort_unstable();
    let passed = [
        "content-length",
        "content-type",
        "date",
        "openai-processing-ms",
        "retry-after",
        "x-ratelimit-limit-requests",
        "x-request-id",
    ];
    assert_eq!(names, passed);
    assert_eq!(answers[0].header("x-request-id"), Some("mine"));
    scene.assert_clean().await;
}

/// What comes behind an answer is not the next one.
#[tokio::test(flavor = "multi_thread")]
async fn an_answer_more_is_nobodys() {
    let (scene, script) = scene().await;
    let poison = "HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nPOISON";
    for _ in 0..20 {
        *script.lock() = ([GOOD, poison.as_bytes()].concat(), false);
        let answers = scene.ask(&chat("e", "poisoned")).await;
        assert_eq!(answers[0].text(), BODY);
        assert_eq!(answers.len(), 1);
        assert_eq!(scene.evil.most_on_one(), 1, "not used again");
    }
    scene.assert_clean().await;
}

/// Never a clean end: a length that is missed, chunks that break off or are broken.
#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_is_cut_stays_cut() {
    let (scene, script) = scene().await;
    for bytes in [
        ok("content-length: 100\r\n") + BODY,
        ok("transfer-encoding: chunked\r\n") + "e\r\n{\"choices\":[]}\r\n",
        ok("transfer-encoding: chunked\r\n") + "e\r\n{\"choices\":[]}",
        ok("transfer-encoding: chunked\r\n") + "e\r\n{\"choices\":[]}\r\nzz\r\n",
        ok("transfer-encoding: chunked\r\n") + "e\r\n{\"choices\":[]}\r\nffffffffffffffff\r\n",
    ] {
        *script.lock() = (bytes.into_bytes(), true);
        let answers = scene.ask(&chat("e", "cut")).await;
        assert!(!answers[0].whole, "{answers:?}");
    }
    scene.assert_clean().await;
}

/// Nothing of what leads elsewhere is dialled, and no credential leaves for it.
#[tokio::test(flavor = "multi_thread")]
async fn a_redirect_is_not_followed() {
    let (scene, script) = scene().await;
    let elsewhere = scene.good.url();
    for status in [301, 302, 303, 307, 308] {
        let answer = format!(
            "HTTP/1.1 {status} Go\r\nlocation: {elsewhere}/v1/chat/completions\r\ncontent-length: 0\r\n\r\n"
        );
        *script.lock() = (answer.into_bytes(), false);
        let before = scene.good.count();
        assert!(
            told(&scene, "upstream_reset")
                .await
                .text()
                .contains("a redirect")
        );
        assert_eq!(scene.good.count(), before);
        assert_eq!(scene.evil.last().target, "/v1/chat/completions");
    }
    scene.assert_clean().await;
}
