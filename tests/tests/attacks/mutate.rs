//! Ten thousand mutations of all of it, in both directions, from one seed: bytes flipped, doubled, cut out and spliced.
//! Nobody knows what each of them should be answered with. But whatever it is, it can be read in one way; the gateway
//! lives, everybody else is served, and nothing is left behind.

use std::{sync::Arc, time::Duration};

use fastrand::Rng;
use tokio::{
    io::AsyncWriteExt as _,
    net::TcpStream,
    task::JoinSet,
    time::{Instant, timeout},
};

use super::{
    framing,
    scene::{GOOD, Play, Scene, chat, post},
    strict,
};

const EACH_WAY: u64 = 5_000;
const AT_ONCE: usize = 32;
/// What a seed is set with, to play one again.
const SEED: &str = "FOREBAY_ATTACK_SEED";

fn seed() -> u64 {
    let given = std::env::var(SEED).ok().and_then(|text| text.parse().ok());
    let seed = given.unwrap_or_else(|| fastrand::u64(..));
    println!("{SEED}={seed}");
    seed
}

/// A few changes to one of these.
fn mutate(corpus: &[Vec<u8>], rng: &mut Rng) -> Vec<u8> {
    let mut bytes = corpus[rng.usize(..corpus.len())].clone();
    for _ in 0..=rng.usize(..3) {
        let at = rng.usize(..=bytes.len());
        let end = (at + rng.usize(..40)).min(bytes.len());
        match rng.u8(..7) {
            0 if at < bytes.len() => bytes[at] ^= 1 << rng.u8(..8),
            1 if at < bytes.len() => bytes[at] = rng.u8(..),
            2 => drop(bytes.drain(at..end)),
            3 => {
                let doubled = bytes[at..end].to_vec();
                bytes.splice(at..at, doubled);
            }
            4 => {
                let odd: [&[u8]; 12] = [
                    b"\r",
                    b"\n",
                    b"\r\n",
                    b"\r\n\r\n",
                    b"\0",
                    b" ",
                    b"\t",
                    b":",
                    b";",
                    b"0\r\n\r\n",
                    b"content-length: 0\r\n",
                    b"transfer-encoding: chunked\r\n",
                ];
                bytes.splice(at..at, odd[rng.usize(..odd.len())].iter().copied());
            }
            _ => {
                let other = &corpus[rng.usize(..corpus.len())];
                let from = rng.usize(..=other.len());
                let until = (from + rng.usize(..400)).min(other.len());
                bytes.splice(at..end, other[from..until].iter().copied());
            }
        }
    }
    bytes
}

fn requests() -> Vec<Vec<u8>> {
    // The largest only cost time.
    let rows = framing::rows().into_iter().map(|row| row.bytes);
    let mut corpus: Vec<_> = rows.filter(|bytes| bytes.len() < 8 * 1024).collect();
    corpus.push([chat("m", "one"), chat("m", "two"), chat("m", "three")].concat());
    corpus.push(post(
        "transfer-encoding: chunked\r\n",
        "5\r\n{\"mod\r\n8\r\nel\":\"m\"}\r\n0\r\n\r\n",
    ));
    corpus.push(
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0\0\0\x08\x06\0\0\0\0\0abcdefgh"
            .to_vec(),
    );
    corpus
}

fn answers() -> Vec<Vec<u8>> {
    let sse = "content-type: text/event-stream\r\n";
    let event = "data: {\"choices\":[]}\n\n";
    [
        String::from_utf8_lossy(GOOD).into_owned(),
        format!("HTTP/1.1 200 OK\r\n{sse}transfer-encoding: chunked\r\n\r\n16\r\n{event}\r\ne\r\ndata: [DONE]\n\n\r\n0\r\n\r\n"),
        format!("HTTP/1.1 200 OK\r\n{sse}connection: close\r\n\r\n{event}data: [DONE]\n\n"),
        "HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}".to_owned(),
        "HTTP/1.1 503 Busy\r\nretry-after: 1\r\ncontent-length: 14\r\nset-cookie: a=b\r\n\r\n{\"error\":\"no\"}".to_owned(),
        "HTTP/1.1 307 Go\r\nlocation: http://evil/\r\ncontent-length: 0\r\n\r\n".to_owned(),
        "HTTP/1.1 101 Switching Protocols\r\nupgrade: h2c\r\nconnection: upgrade\r\n\r\n".to_owned(),
        "HTTP/1.1 200 OK\r\ncontent-length: 2\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\nx-t: 1\r\n\r\n".to_owned(),
        "HTTP/1.0 200 OK\r\ncontent-type: application/json\r\n\r\n{\"choices\":[]}".to_owned(),
        "HTTP/1.1 204 Nothing\r\n\r\n".to_owned(),
    ]
    .map(String::into_bytes)
    .into()
}

/// Sends, and reads what comes until it ends or seems to.
async fn exchange(gateway: std::net::SocketAddr, bytes: &[u8], quiet: Duration) -> Vec<u8> {
    let mut socket = TcpStream::connect(gateway).await.unwrap();
    drop(socket.write_all(bytes).await);
    let mut read = Vec::new();
    loop {
        let more = tokio::io::AsyncReadExt::read_buf(&mut socket, &mut read);
        match timeout(quiet, more).await {
            Ok(Ok(1..)) => {}
            Ok(Ok(0) | Err(_)) | Err(_) => return read,
        }
    }
}

/// What may be said to a client, whatever came.
fn assert_sayable(read: &[u8], why: &[u8]) {
    // Frames of HTTP/2 are another matter.
    if !read.starts_with(b"HTTP/1.") {
        return;
    }
    let answers = strict::answers(read);
    let answers = answers.unwrap_or_else(|error| {
        panic!(
            "{error}: {:?}\nfor {:?}",
            String::from_utf8_lossy(read),
            String::from_utf8_lossy(why)
        )
    });
    for answer in answers {
        assert!(matches!(answer.status, 200..=299 | 400..=599), "{answer:?}");
        for name in ["set-cookie", "location", "upgrade", "server", "link"] {
            assert_eq!(answer.header(name), None, "{answer:?}");
        }
    }
}

async fn sentinel(gateway: std::net::SocketAddr) {
    let ask = chat("m", "sentinel");
    let mut socket = TcpStream::connect(gateway).await.unwrap();
    socket.write_all(&ask).await.unwrap();
    let done = |bytes: &[u8]| strict::answers(bytes).is_ok_and(|all| all.iter().any(|a| a.whole));
    let read = super::scene::read_until(&mut socket, done).await;
    assert_eq!(strict::answers(&read).unwrap()[0].status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_comes_from_either_side_it_is_read_in_one_way() {
    let seed = seed();
    let corpus = answers();
    let play: Arc<Play> = Arc::new(move |number| {
        let mut rng = Rng::with_seed(seed ^ number << 20);
        let bytes = mutate(&corpus, &mut rng);
        (bytes, rng.u8(..8) > 0)
    });
    let limits = forebay_dataplane::ClientLimits::default();
    let scene = Scene::start(limits, play, Duration::from_millis(100)).await;
    let gateway = scene.worker.gateway();
    let began = Instant::now();
    let corpus = Arc::new(requests());
    let mut going = JoinSet::new();
    for number in 0..2 * EACH_WAY {
        while going.len() >= AT_ONCE {
            going.join_next().await.unwrap().unwrap();
        }
        let corpus = corpus.clone();
        going.spawn(async move {
            let mut rng = Rng::with_seed(seed.wrapping_add(number));
            // Half of them from the client's side; the other upstream makes up the rest.
            let (bytes, quiet) = match number % 2 {
                0 => (mutate(&corpus, &mut rng), Duration::from_millis(15)),
                _ => (chat("e", "mutated"), Duration::from_secs(5)),
            };
            let bytes = match number % 2 {
                0 => bytes,
                _ => [
                    &bytes[..],
                    b"GET /bye HTTP/1.1\r\nhost: gw\r\nconnection: close\r\n\r\n",
                ]
                .concat(),
            };
            let read = exchange(gateway, &bytes, quiet).await;
            assert_sayable(&read, &bytes);
            sentinel(gateway).await;
        });
    }
    while let Some(ended) = going.join_next().await {
        ended.unwrap();
    }
    println!("{} mutations in {:?}", 2 * EACH_WAY, began.elapsed());
    // Some found no connection, for their upstream closes most of them.
    assert!(scene.evil.count() as u64 >= EACH_WAY / 2);
    scene.assert_clean().await;
}
