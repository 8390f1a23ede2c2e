//! Clients that take their time, or more places than are theirs: §2.3 of the catalogue, with limits of seconds.

use std::{sync::Arc, time::Duration};

use forebay_dataplane::ClientLimits;
use tokio::{io::AsyncWriteExt as _, time::sleep};

use super::{
    scene::{CHAT, GOOD, Scene, chat, closed_within, drip, post, read_until},
    strict,
};

const SECOND: Duration = Duration::from_secs(1);
/// Far more than any of the limits, on a busy machine.
const AT_LAST: Duration = Duration::from_secs(20);

fn limits() -> ClientLimits {
    ClientLimits {
        first_bytes: SECOND,
        head: SECOND,
        rest: 3 * SECOND,
        unread: 2 * SECOND,
        slow_body: SECOND,
        body: 3 * SECOND,
        ping: SECOND,
        ..ClientLimits::default()
    }
}

async fn scene(limits: ClientLimits) -> Scene {
    // Endless events, for who does not read them.
    let mut events =
        b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
            .to_vec();
    let chunk = format!("1000\r\n{}\r\n", "data: x\n".repeat(512));
    events.extend(chunk.repeat(4_000).into_bytes());
    let play = Arc::new(move |_| (events.clone(), false));
    Scene::start(limits, play, Duration::from_secs(60)).await
}

async fn closed(scene: &Scene, reason: &str) -> f64 {
    let label = format!("reason=\"{reason}\"");
    scene
        .worker
        .metrics()
        .await
        .sum("forebay_client_connections_closed_total", &[label.as_str()])
}

#[tokio::test(flavor = "multi_thread")]
async fn who_says_nothing_or_says_it_slowly_is_closed() {
    let scene = scene(limits()).await;
    let mut silent = scene.connect().await;
    assert_eq!(closed_within(&mut silent, AT_LAST).await, Some(Vec::new()));
    assert_eq!(closed(&scene, "silent").await, 1.0);

    let mut preface = scene.connect().await;
    preface.write_all(b"PRI * HTT").await.unwrap();
    assert!(closed_within(&mut preface, AT_LAST).await.is_some());
    assert_eq!(closed(&scene, "silent").await, 2.0);

    let mut slow = scene.connect().await;
    let head = format!("POST {CHAT} HTTP/1.1\r\nx-a: {}", "b".repeat(500));
    let all = drip(&mut slow, head.as_bytes(), Duration::from_millis(40)).await;
    assert!(!all, "a head for 20 s");
    assert_eq!(closed(&scene, "slow_head").await, 1.0);

    // The second head on a connection, too.
    let mut slow = scene.connect().await;
    slow.write_all(&chat("m", "first")).await.unwrap();
    read_until(&mut slow, |bytes| strict::find(bytes, b"choices").is_some()).await;
    slow.write_all(b"POST ").await.unwrap();
    assert!(closed_within(&mut slow, AT_LAST).await.is_some());
    assert_eq!(closed(&scene, "slow_head").await, 2.0);
    scene.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_body_that_drips_is_a_408_whatever_it_drips() {
    let scene = scene(limits()).await;
    let bodies = [
        post("content-length: 500\r\n", ""),
        post("transfer-encoding: chunked\r\n", "fff\r\n"),
        post("transfer-encoding: chunked\r\n", "d;"),
    ];
    for head in bodies {
        let mut socket = scene.connect().await;
        socket.write_all(&head).await.unwrap();
        let dripped = drip(&mut socket, &[b'x'; 200], Duration::from_millis(20)).await;
        let read = closed_within(&mut socket, AT_LAST)
            .await
            .expect("it is closed");
        let answers = strict::answers(&read).unwrap();
        // Closed while it still dripped, what it was told may be lost with what it sent.
        if dripped || !answers.is_empty() {
            assert_eq!(answers[0].status, 408, "{answers:?}");
        }
    }
    let page = scene.worker.metrics().await;
    assert_eq!(
        page.sum(
            "forebay_requests_total",
            &["code=\"408\"", "source=\"client\""]
        ),
        3.0
    );
    // One that comes at a pace may take longer than the first second.
    let body = format!(r#"{{"model":"m","pad":"{}"}}"#, "x".repeat(20_000));
    let mut steady = scene.connect().await;
    steady
        .write_all(&post(&format!("content-length: {}\r\n", body.len()), ""))
        .await
        .unwrap();
    for piece in body.as_bytes().chunks(2_000) {
        steady.write_all(piece).await.unwrap();
        sleep(Duration::from_millis(180)).await;
    }
    let read = read_until(&mut steady, |bytes| {
        strict::find(bytes, b"choices").is_some()
    })
    .await;
    assert_eq!(strict::answers(&read).unwrap()[0].status, 200);
    drop(steady);
    scene.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_rests_for_too_long_or_reads_nothing_is_closed() {
    let scene = scene(limits()).await;
    let mut resting = scene.connect().await;
    resting.write_all(&chat("m", "rests")).await.unwrap();
    let read = closed_within(&mut resting, AT_LAST)
        .await
        .expect("it is closed");
    assert_eq!(strict::answers(&read).unwrap()[0].status, 200);
    assert_eq!(closed(&scene, "idle").await, 1.0);

    let mut deaf = scene.connect().await;
    deaf.write_all(&chat("e", "deaf")).await.unwrap();
    forebay_tests::eventually("its connection is closed", async || {
        (closed(&scene, "unread").await == 1.0).then_some(())
    })
    .await;
    drop(deaf);
    scene.assert_clean().await;
}

/// HTTP/2 without a request: settings, and not even an answer to a ping.
#[tokio::test(flavor = "multi_thread")]
async fn over_http2_who_does_not_answer_a_ping_is_closed() {
    let scene = scene(limits()).await;
    let mut deaf = scene.connect().await;
    deaf.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0")
        .await
        .unwrap();
    assert!(closed_within(&mut deaf, AT_LAST).await.is_some());
    scene.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_has_its_share_and_the_longest_idle_gives_way() {
    let limits = ClientLimits {
        per_peer: Some(4),
        ..ClientLimits::default()
    };
    let scene = scene(limits).await;
    let mut idle = Vec::new();
    for number in 0..4 {
        let mut socket = scene.connect().await;
        socket
            .write_all(&chat("m", &format!("n{number}")))
            .await
            .unwrap();
        read_until(&mut socket, |bytes| {
            strict::find(bytes, b"choices").is_some()
        })
        .await;
        idle.push(socket);
        // Time is told to the second.
        sleep(Duration::from_millis(1_100)).await;
    }
    scene.sentinel().await;
    let oldest = closed_within(&mut idle[0], AT_LAST).await;
    assert_eq!(oldest, Some(Vec::new()), "the first had rested longest");
    assert_eq!(closed(&scene, "evicted").await, 1.0);
    for socket in &mut idle[1..] {
        socket.write_all(&chat("m", "still here")).await.unwrap();
        let read = read_until(socket, |bytes| strict::find(bytes, b"choices").is_some()).await;
        assert!(read.starts_with(&GOOD[..12]));
    }
    // All in use: the next one is not taken.
    let mut busy = Vec::new();
    drop(idle);
    for _ in 0..4 {
        let mut socket = scene.connect().await;
        socket.write_all(&chat("e", "busy")).await.unwrap();
        read_until(&mut socket, |bytes| strict::find(bytes, b"data").is_some()).await;
        busy.push(socket);
    }
    let mut refused = scene.connect().await;
    assert_eq!(closed_within(&mut refused, AT_LAST).await, Some(Vec::new()));
    assert!(closed(&scene, "peer_limit").await >= 1.0);
    drop(busy);
    scene.assert_clean().await;
}
