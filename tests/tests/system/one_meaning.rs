//! Bodies that two readers understand differently reach no upstream: each case with its bytes.

use std::sync::Arc;

use forebay_tests::{Cluster, WorkerHandle, model_at};
use futures_util::future::join_all;
use parking_lot::Mutex;
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};

const CHAT: &str = "/v1/chat/completions";
const AUDIO: &str = "/v1/audio/transcriptions";
const FORM: &str = "multipart/form-data; boundary=xx";

type Heard = Arc<Mutex<Vec<(String, Vec<u8>)>>>;

/// An upstream that keeps what it is sent, head and body.
struct Listening {
    heard: Heard,
    _server: JoinSet<()>,
}

impl Listening {
    async fn start() -> (Self, String) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let heard = Heard::default();
        let (all, mut server) = (heard.clone(), JoinSet::new());
        server.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((socket, _)) = listener.accept().await {
                connections.spawn(listen(socket, all.clone()));
            }
        });
        let this = Self {
            heard,
            _server: server,
        };
        (this, url)
    }

    fn take(&self) -> Vec<(String, Vec<u8>)> {
        std::mem::take(&mut self.heard.lock())
    }
}

async fn listen(mut socket: TcpStream, heard: Heard) {
    let mut bytes = Vec::new();
    while let Ok(1..) = socket.read_buf(&mut bytes).await {
        let Some(end) = bytes.windows(4).position(|w| w == b"\r\n\r\n") else {
            continue;
        };
        let head = String::from_utf8_lossy(&bytes[..end]).to_lowercase();
        let length = head
            .lines()
            .find_map(|line| line.strip_prefix("content-length: "));
        let length: usize = length.map_or(0, |length| length.parse().unwrap());
        if bytes.len() >= end + 4 + length {
            let body = bytes[end + 4..].to_vec();
            bytes.clear();
            heard.lock().push((head, body));
            let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}";
            if socket.write_all(answer).await.is_err() {
                return;
            }
        }
    }
}

struct Setup {
    _cluster: Cluster,
    worker: WorkerHandle,
    upstream: Listening,
}

/// The models `cheap` (also `alias`) and `secret`, at one upstream.
async fn setup() -> Setup {
    let (cluster, worker) = Cluster::with_worker().await;
    let (upstream, url) = Listening::start().await;
    let mut cheap = model_at("cheap", &url);
    cheap.aliases = vec!["alias".to_owned(), "vendor/a".to_owned()];
    cluster.create_and_wait(cheap).await;
    cluster.create_and_wait(model_at("secret", &url)).await;
    Setup {
        _cluster: cluster,
        worker,
        upstream,
    }
}

impl Setup {
    async fn ask(&self, path: &str, headers: &[(&str, &str)], body: &[u8]) -> (u16, String) {
        let mut request = self.worker.client().post(path).body(body.to_vec());
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let answer = request.send().await.unwrap();
        let status = answer.status().as_u16();
        let body: Value = answer.json().await.unwrap();
        let code = body["error"]["code"].as_str().unwrap_or_default();
        (status, code.to_owned())
    }

    async fn refused(&self, status: u16, code: &str, body: impl AsRef<[u8]>) {
        let body = body.as_ref();
        let got = self.ask(CHAT, &[], body).await;
        let text = String::from_utf8_lossy(&body[..body.len().min(100)]);
        assert_eq!(got, (status, code.to_owned()), "{text}");
        assert_eq!(
            self.upstream.take(),
            [],
            "nothing of it went upstream: {text}"
        );
    }

    async fn passes(&self, body: &str) {
        let got = self.ask(CHAT, &[], body.as_bytes()).await;
        assert_eq!(got.0, 200, "{body}");
        let heard = self.upstream.take();
        assert_eq!(heard.len(), 1);
        assert_eq!(heard[0].1, body.as_bytes(), "byte for byte");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn j1_j2_j3_a_key_that_is_there_twice() {
    let setup = setup().await;
    for body in [
        r#"{"model":"cheap","model":"secret"}"#,
        r#"{"model":"cheap","mod\u0065l":"secret"}"#,
        r#"{"model":"cheap","Model":"secret"}"#,
        r#"{"model":"cheap","MODE\u004c":"secret"}"#,
        r#"{"model":"cheap","stream":false,"stream":true}"#,
        r#"{"model":"cheap","ſtream":true}"#,
        r#"{"model":"cheap","max_tokens":1,"max_tokens":100000}"#,
        r#"{"model":"cheap","n":1,"\u006e":100}"#,
        r#"{"model":"cheap","stream_options":{"include_usage":true,"include_usage":false}}"#,
    ] {
        setup.refused(400, "ambiguous_key", body).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn j4_a_key_that_is_somewhere_else() {
    let setup = setup().await;
    setup
        .passes(r#"{"x":{"model":"secret"},"model":"cheap"}"#)
        .await;
    setup
        .passes(r#"{"x":"\"model\":\"secret\"","model":"cheap"}"#)
        .await;
    setup
        .passes(r#"{"mod\u0065l":"cheap", "x":[{"model":1,"model":2}]}"#)
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn j5_a_root_that_is_no_object() {
    let setup = setup().await;
    for body in [r#"["cheap",true]"#, r#""cheap""#, "7", "null", "", " "] {
        setup.refused(400, "invalid_json", body).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn j6_bytes_and_numbers_that_are_none() {
    let setup = setup().await;
    for body in [
        &b"{\"model\":\"cheap\",\"x\":\"\xff\"}"[..],
        b"{\"model\":\"cheap\",\"x\":\"\xc0\xaf\"}",
        b"{\"model\":\"cheap\",\"x\":\"\xed\xa0\x80\"}",
        br#"{"model":"cheap","x":"\ud800"}"#,
        br#"{"model":"cheap","x":"\udc00\ud800"}"#,
        br#"{"model":"cheap","x":1e400}"#,
        br#"{"model":"cheap","x":-1e999999999999}"#,
        br#"{"model":"cheap","x":01}"#,
    ] {
        setup.refused(400, "invalid_json", body).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn j7_deep_nesting() {
    let setup = setup().await;
    let deep = |n: usize| {
        let (open, close) = ("[".repeat(n), "]".repeat(n));
        format!("{{\"model\":\"cheap\",\"x\":{open}{close}}}")
    };
    setup.passes(&deep(63)).await;
    for n in [64, 127, 100_000] {
        setup.refused(400, "invalid_json", deep(n)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn j8_what_only_some_call_json() {
    let setup = setup().await;
    let good = r#"{"model":"cheap"}"#;
    let utf16: Vec<u8> = good.encode_utf16().flat_map(u16::to_le_bytes).collect();
    let utf32: Vec<u8> = good
        .chars()
        .flat_map(|c| u32::from(c).to_be_bytes())
        .collect();
    let mut cases = vec![utf16, utf32, [b"\xef\xbb\xbf", good.as_bytes()].concat()];
    for body in [
        r#"{"model":"cheap"}{"model":"secret"}"#,
        "{\"model\":\"cheap\"}\0",
        r#"{"model":"cheap"} //"#,
        r#"{"model":/**/"cheap"}"#,
        r#"{"model":"cheap","x":NaN}"#,
        r#"{"model":"cheap","x":-Infinity}"#,
        r#"{"model":"cheap",}"#,
        r#"{'model':'cheap'}"#,
    ] {
        cases.push(body.as_bytes().to_vec());
    }
    for body in cases {
        setup.refused(400, "invalid_json", body).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn j9_models_that_are_none() {
    let setup = setup().await;
    for value in ["null", "[]", "7", "\"\"", "{}", "true"] {
        let body = format!("{{\"model\":{value}}}");
        setup.refused(400, "model_missing", body).await;
    }
    setup.refused(400, "model_missing", "{}").await;
    let long = format!("\"{}\"", "a".repeat(10_000));
    for value in [
        long.as_str(),
        r#""a\u0000b""#,
        r#""a\nb""#,
        r#""../x""#,
        "\"ch\u{435}ap\"",
        "\" cheap\"",
        "\"cheap \"",
    ] {
        let body = format!("{{\"model\":{value}}}");
        setup.refused(400, "invalid_model", body).await;
    }
    for value in ["CHEAP", "cheap/", "nobody"] {
        let body = format!("{{\"model\":\"{value}\"}}");
        let (status, _) = setup.ask(CHAT, &[], body.as_bytes()).await;
        assert!(matches!(status, 400 | 404), "{value}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn j10_content_types_and_encodings() {
    let setup = setup().await;
    let body = br#"{"model":"cheap"}"#;
    let upstream = "\ncontent-type: application/json\r\n";
    for good in [
        &[][..],
        &[("content-type", "application/json")],
        &[("content-type", "Application/JSON; charset=\"UTF-8\"")],
        &[("content-encoding", "identity")],
    ] {
        assert_eq!(setup.ask(CHAT, good, body).await.0, 200, "{good:?}");
        let heard = setup.upstream.take();
        let head = format!("{}\r\n", heard[0].0);
        assert!(head.contains(upstream), "{head}");
        assert!(!head.contains("content-encoding"), "{head}");
    }
    for bad in [
        &[("content-type", "text/plain")][..],
        &[("content-type", "application/x-www-form-urlencoded")],
        &[("content-type", "application/json; charset=utf-16")],
        &[("content-type", "application/json, text/plain")],
        &[
            ("content-type", "application/json"),
            ("content-type", "text/plain"),
        ],
        &[("content-encoding", "gzip")],
        &[("content-encoding", "identity"), ("content-encoding", "br")],
    ] {
        let got = setup.ask(CHAT, bad, body).await;
        assert_eq!(got, (415, "unsupported_media_type".to_owned()), "{bad:?}");
    }
    assert_eq!(setup.upstream.take(), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn j11_values_of_another_kind() {
    let setup = setup().await;
    for value in [
        r#""stream":"true""#,
        r#""stream":1"#,
        r#""max_tokens":-2"#,
        r#""max_tokens":1.0"#,
        r#""max_tokens":"1""#,
        r#""max_completion_tokens":1e3"#,
        r#""n":18446744073709551616"#,
        r#""best_of":[]"#,
        r#""stream_options":"x""#,
        r#""stream_options":{"include_usage":1}"#,
    ] {
        let body = format!("{{\"model\":\"cheap\",{value}}}");
        setup.refused(400, "invalid_value", body).await;
    }
    setup
        .passes(r#"{"model":"cheap","stream":null,"max_tokens":null,"n":1}"#)
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn j12_where_a_model_is_served_is_not_for_clients_to_say() {
    let setup = setup().await;
    for key in [
        "api_base",
        "base_url",
        "api_key",
        "user_config",
        "api\\u005fbase",
    ] {
        let body = format!("{{\"model\":\"cheap\",\"{key}\":\"http://x\"}}");
        setup.refused(400, "forbidden_key", body).await;
    }
    setup
        .refused(400, "ambiguous_key", r#"{"model":"cheap","API_BASE":1}"#)
        .await;
    setup
        .passes(r#"{"model":"cheap","x":{"api_base":1}}"#)
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_alias_is_replaced_in_place_and_nothing_else_changes() {
    let setup = setup().await;
    for (sent, heard) in [
        (
            r#" {"x":"é", "model" : "alias" ,"y":1.50}"#,
            r#" {"x":"é", "model" : "cheap" ,"y":1.50}"#,
        ),
        (r#"{"model":"vendor\/a"}"#, r#"{"model":"cheap"}"#),
        (
            r#"{"mod\u0065l":"\u0061lias"}"#,
            r#"{"mod\u0065l":"cheap"}"#,
        ),
    ] {
        assert_eq!(setup.ask(CHAT, &[], sent.as_bytes()).await.0, 200);
        assert_eq!(setup.upstream.take()[0].1, heard.as_bytes());
    }
    let form = |model: &str| form(&[("file\"; filename=\"a.wav", "RIFF"), ("model", model)]);
    let (sent, heard) = (form("alias"), form("cheap"));
    let got = setup.ask(AUDIO, &[("content-type", FORM)], sent.as_bytes());
    assert_eq!(got.await.0, 200);
    assert_eq!(setup.upstream.take()[0].1, heard.as_bytes());
}

fn form(parts: &[(&str, &str)]) -> String {
    let part = |(name, value): &(&str, &str)| {
        format!("--xx\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\r\n{value}\r\n")
    };
    parts.iter().map(part).collect::<String>() + "--xx--\r\n"
}

/// Forms that no reader gets to see, and why.
fn bad_forms() -> Vec<(String, &'static str)> {
    let file = ("file\"; filename=\"a.wav", "RIFF");
    let many: Vec<(&str, &str)> = std::iter::repeat_n(("x", "y"), 65).collect();
    let good = form(&[("model", "cheap")]);
    vec![
        (
            form(&[("model", "cheap"), file, ("model", "secret")]),
            "ambiguous_key",
        ),
        (
            form(&[("model", "cheap"), ("Model", "secret")]),
            "ambiguous_key",
        ),
        (
            form(&[("model\"; filename*=UTF-8''x; x=\"", "cheap")]),
            "invalid_form",
        ),
        (form(&[("x\\\"; name=\"model", "cheap")]), "invalid_form"),
        (form(&[("a\"; name=\"model", "cheap")]), "invalid_form"),
        (form(&[("model\"; filename=\"a", "cheap")]), "invalid_value"),
        (
            form(&[("model", "cheap"), ("stream", "yes")]),
            "invalid_value",
        ),
        (
            form(&[("model", "cheap"), ("api_base", "x")]),
            "forbidden_key",
        ),
        (form(&[file]), "model_missing"),
        (form(&[("model", "cheap\r\n--xxx")]), "invalid_form"),
        (form(&many), "invalid_form"),
        (format!("preamble\r\n{good}"), "invalid_form"),
        (format!("{good}epilogue"), "invalid_form"),
        (good.replace("\r\n", "\n"), "invalid_form"),
        (good.replace("--xx--", "--xx"), "invalid_form"),
        (
            good.replace(
                "\"\r\n\r\n",
                "\"\r\nContent-Transfer-Encoding: base64\r\n\r\n",
            ),
            "invalid_form",
        ),
        (
            good.replace("\"\r\n\r\n", "\"\r\n x: y\r\n\r\n"),
            "invalid_form",
        ),
        (
            good.replace(
                "\"\r\n\r\n",
                &format!("\"\r\nx: {}\r\n\r\n", "y".repeat(9_000)),
            ),
            "invalid_form",
        ),
        (String::new(), "invalid_form"),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn forms_that_mean_two_things() {
    let setup = setup().await;
    let ask = async |body: &str| {
        setup
            .ask(AUDIO, &[("content-type", FORM)], body.as_bytes())
            .await
    };
    let file = ("file\"; filename=\"a.wav", "RIFF");
    for good in [
        form(&[("model", "cheap"), file]),
        form(&[file, ("stream", "true"), ("model", "cheap")]),
    ] {
        assert_eq!(ask(&good).await.0, 200, "{good}");
        assert_eq!(setup.upstream.take()[0].1, good.as_bytes());
    }
    let good = form(&[("model", "cheap")]);
    for (bad, code) in bad_forms() {
        assert_eq!(ask(&bad).await, (400, code.to_owned()), "{bad}");
    }
    for content_type in [
        "multipart/form-data",
        "application/json",
        "multipart/form-data; boundary=a; boundary=xx",
    ] {
        let headers = [("content-type", content_type)];
        let got = setup.ask(AUDIO, &headers, good.as_bytes()).await;
        assert_eq!(got.0, 415, "{content_type}");
    }
    assert_eq!(setup.upstream.take(), [], "nothing of it went upstream");
}

/// What is read is read the same when many do so at once, and a long prompt is no other matter.
#[tokio::test(flavor = "multi_thread")]
async fn long_bodies_at_once() {
    let setup = setup().await;
    let body = format!(r#"{{"x":"{}","model":"alias"}}"#, "é\\n".repeat(100_000));
    let all = (0..20).map(|_| setup.ask(CHAT, &[], body.as_bytes()));
    assert!(join_all(all).await.iter().all(|(status, _)| *status == 200));
    let wanted = body.replace("alias", "cheap");
    assert!(
        setup
            .upstream
            .take()
            .iter()
            .all(|(_, body)| body == wanted.as_bytes())
    );
}
