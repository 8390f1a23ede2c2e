//! Attacks over HTTP/2, frame by frame: §2.2 of the catalogue, and those of §2.1 that apply.

use std::time::Duration;

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

use super::scene::{CHAT, Scene};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const M: &[u8] = br#"{"model":"m"}"#;
const SOON: Duration = Duration::from_secs(10);

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut frame = length[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// HPACK without tables: each field literally.
fn block(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in fields {
        block.push(0);
        for text in [name, value] {
            let mut length = text.len();
            if length < 127 {
                block.push(u8::try_from(length).unwrap());
            } else {
                block.push(127);
                length -= 127;
                while length >= 128 {
                    block.push(u8::try_from(length % 128).unwrap() | 128);
                    length /= 128;
                }
                block.push(u8::try_from(length).unwrap());
            }
            block.extend(text.as_bytes());
        }
    }
    block
}

/// A request for a chat with these fields instead, or besides.
fn chat<'a>(with: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
    let mut fields = vec![
        (":method", "POST"),
        (":scheme", "http"),
        (":authority", "gw"),
        (":path", CHAT),
    ];
    for (name, value) in with {
        match fields.iter_mut().find(|(known, _)| known == name) {
            Some(field) => field.1 = value,
            None => fields.push((name, value)),
        }
    }
    fields
}

fn request(stream: u32, fields: &[(&str, &str)], body: &[u8]) -> Vec<u8> {
    let head = frame(HEADERS, END_HEADERS, stream, &block(fields));
    [head, frame(DATA, END_STREAM, stream, body)].concat()
}

/// What the server did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Did {
    Answered(u32, u16),
    Reset(u32),
    WentAway,
    Closed,
}

struct Client {
    socket: TcpStream,
    bytes: Vec<u8>,
}

impl Client {
    async fn connect(scene: &Scene) -> Self {
        let mut socket = scene.connect().await;
        let hello = [PREFACE.to_vec(), frame(SETTINGS, 0, 0, &[])].concat();
        socket.write_all(&hello).await.unwrap();
        Self {
            socket,
            bytes: Vec::new(),
        }
    }

    async fn write(&mut self, bytes: &[u8]) -> bool {
        self.socket.write_all(bytes).await.is_ok()
    }

    /// The next thing that the server did.
    async fn next(&mut self) -> Did {
        loop {
            while let Some((kind, flags, stream, payload)) = self.frame() {
                match kind {
                    HEADERS => return Did::Answered(stream, status(&payload)),
                    RST_STREAM => return Did::Reset(stream),
                    GOAWAY => return Did::WentAway,
                    SETTINGS if flags & 1 == 0 => {
                        self.write(&frame(SETTINGS, 1, 0, &[])).await;
                    }
                    PING if flags & 1 == 0 => {
                        self.write(&frame(PING, 1, 0, &payload)).await;
                    }
                    _ => {}
                }
            }
            let read = timeout(SOON, self.socket.read_buf(&mut self.bytes));
            match read.await.expect("the server does something") {
                Ok(0) | Err(_) => return Did::Closed,
                Ok(_) => {}
            }
        }
    }

    fn frame(&mut self) -> Option<(u8, u8, u32, Vec<u8>)> {
        let head: [u8; 9] = self.bytes.get(..9)?.try_into().unwrap();
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
        let payload = self.bytes.get(9..9 + length)?.to_vec();
        self.bytes.drain(..9 + length);
        Some((head[3], head[4], stream, payload))
    }

    /// What it did in the end: nothing on this connection is answered any more.
    async fn end(&mut self) -> Vec<Did> {
        let mut all = Vec::new();
        while all.last() != Some(&Did::Closed) {
            all.push(self.next().await);
        }
        all
    }
}

/// `:status` as a server writes it first on a connection: from the static table, or its number after that name.
fn status(block: &[u8]) -> u16 {
    // A change of the table's size may come first.
    let block = if block[0] & 0xe0 == 0x20 {
        &block[1..]
    } else {
        block
    };
    if let Some(known) = block[0].checked_sub(0x88).filter(|at| *at < 7) {
        return [200, 204, 206, 304, 400, 404, 500][usize::from(known)];
    }
    let length = usize::from(block[1] & 0x7f);
    let text = &block[2..2 + length];
    if block[1] & 0x80 == 0 {
        return std::str::from_utf8(text).unwrap().parse().unwrap();
    }
    let mut bits = text
        .iter()
        .flat_map(|byte| (0..8).rev().map(move |at| byte >> at & 1));
    let mut status = 0;
    for _ in 0..3 {
        let mut take =
            |count| (0..count).fold(0, |value, _| value << 1 | u16::from(bits.next().unwrap()));
        let first = take(5);
        // Huffman: 0 to 2 are 5 bits long, 3 to 9 are 6.
        let digit = if first < 3 {
            first
        } else {
            (first << 1 | take(1)) - 0b01_1001 + 3
        };
        status = status * 10 + digit;
    }
    status
}

#[test]
fn statuses_are_read() {
    assert_eq!(status(&[0x8c]), 400);
    assert_eq!(status(&[0x48, 0x03, b'4', b'2', b'1']), 421);
    // 4 = 011010, 0 = 00000, 5 = 011011; 1 = 00001, 3 = 011001.
    assert_eq!(
        status(&[0x48, 0x83, 0b0110_1000, 0b0000_1101, 0b1111_1111]),
        405
    );
    assert_eq!(
        status(&[0x48, 0x83, 0b0110_1000, 0b0010_1100, 0b1000_0000]),
        413
    );
}

/// What the gateway itself has to refuse; the connection goes on.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_library_lets_pass_is_refused_here_too() {
    let scene = Scene::plain().await;
    let long = "x".repeat(9 * 1024);
    let path = format!("/{long}");
    let rows: [(&[(&str, &str)], u16); 15] = [
        (&[("host", "gw")], 200),
        (&[("host", "evil")], 400),
        (&[(":authority", "evil"), ("host", "gw")], 400),
        (&[(":authority", "u:p@gw")], 400),
        (&[(":scheme", "file")], 400),
        (&[(":method", "TRACE")], 405),
        (&[(":method", "get")], 405),
        (&[(":path", "/v1/../admin")], 404),
        (&[(":path", "/v1/%2e%2e/admin")], 404),
        (&[(":path", "//v1")], 404),
        (&[(":path", &path)], 414),
        (&[("expect", "x")], 417),
        (
            &[
                ("x-forebay-tenant", "a"),
                ("content_length", "3"),
                ("x_request_id", "a"),
            ],
            200,
        ),
        (&[("x-forwarded-for", "1.2.3.4"), ("cookie", "a=b")], 200),
        (&[("content-length", "1048577")], 413),
    ];
    for (with, status) in rows {
        let before = scene.good.count();
        let mut client = Client::connect(&scene).await;
        let body: &[u8] = if status == 413 { b"" } else { M };
        let fields = chat(with);
        match status {
            413 => {
                client
                    .write(&frame(HEADERS, END_HEADERS, 1, &block(&fields)))
                    .await
            }
            _ => client.write(&request(1, &fields, body)).await,
        };
        assert_eq!(client.next().await, Did::Answered(1, status), "{with:?}");
        client.write(&request(3, &chat(&[]), M)).await;
        let mut did = client.next().await;
        if did == Did::Reset(1) {
            did = client.next().await;
        }
        assert_eq!(did, Did::Answered(3, 200), "behind {with:?}");
        assert_eq!(scene.good.count() - before, 1 + usize::from(status == 200));
    }
    scene.assert_clean().await;
}

/// What the library refuses: a stream or the connection ends, and nothing of it goes upstream.
#[tokio::test(flavor = "multi_thread")]
async fn what_breaks_the_protocol_is_reset() {
    let scene = Scene::plain().await;
    let lists: [&[(&str, &str)]; 15] = [
        &[("content-length", "18446744073709551616")],
        &[("content-length", "5")],
        &[("content-length", "13"), ("Content-Length", "13")],
        &[("transfer-encoding", "chunked")],
        &[("connection", "close")],
        &[("te", "gzip")],
        &[("upgrade", "h2c")],
        &[(":path", "/v1 /x")],
        &[(":path", "/v1\r\nhost: evil")],
        &[(":path", "")],
        &[("Accept", "a")],
        &[("x-a", "a\r\nx-b: b")],
        &[("x-a", "a\0b")],
        &[(":status", "200")],
        &[(":method", "CONNECT"), (":protocol", "websocket")],
    ];
    let mut blocks: Vec<_> = lists.iter().map(|with| block(&chat(with))).collect();
    let missing = |name: &str| {
        let left: Vec<_> = chat(&[])
            .into_iter()
            .filter(|(known, _)| *known != name)
            .collect();
        block(&left)
    };
    blocks.extend([":method", ":path", ":scheme"].map(missing));
    blocks.push([block(&[(":path", CHAT)]), block(&chat(&[]))].concat());
    blocks.push([block(&[("x-a", "b")]), block(&chat(&[]))].concat());
    blocks.push(vec![0xff; 64]);
    for block in blocks {
        let mut client = Client::connect(&scene).await;
        let bytes = [
            frame(HEADERS, END_HEADERS, 1, &block),
            frame(DATA, END_STREAM, 1, M),
        ]
        .concat();
        client.write(&bytes).await;
        let did = client.next().await;
        let refused = matches!(
            did,
            Did::Reset(1) | Did::WentAway | Did::Closed | Did::Answered(1, 400 | 405)
        );
        assert!(refused, "{did:?}: {:?}", String::from_utf8_lossy(&block));
    }
    assert_eq!(scene.good.count(), 0);
    // A CONNECT that has what a CONNECT has.
    let mut client = Client::connect(&scene).await;
    let connect = block(&[(":method", "CONNECT"), (":authority", "169.254.169.254:80")]);
    client
        .write(&frame(HEADERS, END_HEADERS, 1, &connect))
        .await;
    assert_eq!(client.next().await, Did::Answered(1, 405));
    // A list of 20 kB, and one of 100 kB.
    for (kib, refused) in [(20, Did::Answered(1, 431)), (100, Did::WentAway)] {
        let mut client = Client::connect(&scene).await;
        let long = "x".repeat(kib * 1_000);
        let block = block(&chat(&[("x-a", &long)]));
        let mut pieces = block.chunks(16_000);
        let mut bytes = frame(HEADERS, 0, 1, pieces.next().unwrap());
        let mut rest = pieces.peekable();
        while let Some(piece) = rest.next() {
            let flags = if rest.peek().is_none() {
                END_HEADERS
            } else {
                0
            };
            bytes.extend(frame(CONTINUATION, flags, 1, piece));
        }
        client.write(&bytes).await;
        assert_eq!(client.next().await, refused, "{kib} kB");
    }
    scene.assert_clean().await;
}

fn resident() -> u64 {
    let pages = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = pages
        .split(' ')
        .nth(1)
        .and_then(|pages| pages.parse::<u64>().ok());
    pages.unwrap_or_default() * 4096
}

/// As many of a kind as are let through, up to 2 million: the connection has to end.
#[tokio::test(flavor = "multi_thread")]
async fn floods_end_by_themselves() {
    let scene = Scene::alone().await;
    scene.sentinel().await;
    let head = |stream| frame(HEADERS, END_HEADERS, stream, &block(&chat(&[])));
    let open = frame(HEADERS, 0, 1, &block(&chat(&[])));
    let reset = |stream| {
        [
            head(stream),
            frame(RST_STREAM, 0, stream, &8u32.to_be_bytes()),
        ]
        .concat()
    };
    // The server is made to reset: a window that overflows (MadeYouReset).
    let made = |stream| {
        let full = 0x7fff_ffff_u32.to_be_bytes();
        [
            head(stream),
            frame(8, 0, stream, &full),
            frame(8, 0, stream, &full),
        ]
        .concat()
    };
    type Next<'a> = Box<dyn Fn(u32) -> Vec<u8> + Send + Sync + 'a>;
    let floods: [(&str, Vec<u8>, Next<'_>); 8] = [
        ("rapid reset", Vec::new(), Box::new(|n| reset(2 * n + 1))),
        ("made you reset", Vec::new(), Box::new(|n| made(2 * n + 1))),
        (
            "empty continuations",
            open.clone(),
            Box::new(|_| frame(CONTINUATION, 0, 1, &[])),
        ),
        (
            "small continuations",
            open,
            Box::new(|_| frame(CONTINUATION, 0, 1, &[0])),
        ),
        ("empty data", head(1), Box::new(|_| frame(DATA, 0, 1, &[]))),
        ("small data", head(1), Box::new(|_| frame(DATA, 0, 1, b" "))),
        (
            "pings",
            Vec::new(),
            Box::new(|_| frame(PING, 0, 0, &[7; 8])),
        ),
        (
            "settings",
            Vec::new(),
            Box::new(|_| frame(SETTINGS, 0, 0, &[0, 3, 0, 0, 0, 9])),
        ),
    ];
    let before = resident();
    for (name, first, next) in floods {
        let client = Client::connect(&scene).await;
        let (mut reading, mut writing) = client.socket.into_split();
        let write = async {
            let mut sent = 0;
            if writing.write_all(&first).await.is_err() {
                return sent;
            }
            while sent < 2_000_000 {
                let some: Vec<u8> = (sent..sent + 1_000).flat_map(&next).collect();
                match timeout(SOON, writing.write_all(&some))
                    .await
                    .expect("it is read or ends")
                {
                    Ok(()) => sent += 1_000,
                    Err(_) => break,
                }
            }
            sent
        };
        let read = async {
            let mut dropped = [0; 4096];
            while matches!(reading.read(&mut dropped).await, Ok(1..)) {}
        };
        let both = timeout(Duration::from_secs(60), async {
            tokio::join!(write, read).0
        });
        let sent = both
            .await
            .unwrap_or_else(|_| panic!("{name}: the connection stays"));
        println!("{name}: ended after at most {sent}");
    }
    let grown = resident().saturating_sub(before);
    assert!(grown < 64 << 20, "{grown} bytes more");
    scene.assert_clean().await;
}

/// No more at once than it was told.
#[tokio::test(flavor = "multi_thread")]
async fn streams_over_the_limit_are_refused_and_the_others_served() {
    let scene = Scene::plain().await;
    let mut client = Client::connect(&scene).await;
    // So that the server's settings are known to have been seen.
    client.write(&request(1, &chat(&[]), M)).await;
    assert_eq!(client.next().await, Did::Answered(1, 200));
    let heads: Vec<u8> = (1..=101u32)
        .flat_map(|n| frame(HEADERS, END_HEADERS, 2 * n + 1, &block(&chat(&[]))))
        .collect();
    client.write(&heads).await;
    let mut refused = client.next().await;
    // The one that was answered may count for a moment more.
    if refused == Did::Reset(201) {
        refused = client.next().await;
    }
    assert_eq!(refused, Did::Reset(203));
    client.write(&frame(DATA, END_STREAM, 3, M)).await;
    assert_eq!(client.next().await, Did::Answered(3, 200));
    drop(client);
    scene.assert_clean().await;
    let mut client = Client::connect(&scene).await;
    client.write(&frame(DATA, 0, 0, M)).await;
    let end = client.end().await;
    assert!(end.contains(&Did::Closed), "{end:?}");
}
