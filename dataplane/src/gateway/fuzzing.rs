//! The request path without sockets, for fuzzers: what hyper makes of bytes, and what is decided about that. The
//! oracles here say in other words what the code that they watch over should have made sure.

use std::{convert::Infallible, future::poll_fn, pin::pin};

use bytes::Bytes;
use http::{HeaderValue, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Empty, Full, Limited};
use hyper::{
    body::Incoming, client::conn::http1 as client, server::conn::http1 as server,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, duplex},
    runtime::{Builder, Runtime},
};

use super::{
    answer::broken_rule,
    caller::Caller,
    form_body,
    head::{self, Hosts},
    headers, json_body,
    media::Media,
    paths::{self, Target},
};

const LARGEST: usize = 1 << 20;
/// What hyper reads, in one piece.
const PIPE: usize = 64 * 1024;

thread_local! {
    static RUNTIME: Option<Runtime> = Builder::new_current_thread().build().ok();
}

fn run(future: impl Future<Output = ()>) {
    RUNTIME.with(|runtime| runtime.as_ref().map(|runtime| runtime.block_on(future)));
}

/// A client sends this and closes its side; each request in it is decided.
pub(crate) fn request(bytes: &[u8]) {
    run(async {
        let (ours, theirs) = duplex(PIPE);
        let (mut read, mut write) = tokio::io::split(theirs);
        let service = service_fn(async |request| Ok::<_, Infallible>(decide(request).await));
        let mut builder = server::Builder::new();
        builder.header_read_timeout(None).max_buf_size(PIPE);
        let serving = builder.serve_connection(TokioIo::new(ours), service);
        let sending = async {
            // It stops reading when it has had enough.
            drop(write.write_all(bytes).await);
            drop(write.shutdown().await);
            drop(write);
        };
        let reading = async {
            let mut dropped = Vec::new();
            drop(read.read_to_end(&mut dropped).await);
        };
        drop(tokio::join!(serving, sending, reading));
    });
}

async fn decide(request: Request<Incoming>) -> Response<Full<Bytes>> {
    let (mut parts, body) = request.into_parts();
    head::drop_foreign(&mut parts.headers);
    let status = match head::check(&parts, &Hosts::default()) {
        Err(error) => error.shape().0,
        Ok(()) => {
            assert_one_meaning(&parts);
            let body = Limited::new(body, LARGEST).collect().await;
            let found = paths::find(&parts.method, parts.uri.path(), parts.uri.query());
            match (found.target, body) {
                (Err(_), _) => 404,
                (_, Err(_)) => 400,
                (Ok(Target::Inference(operation)), Ok(body)) => {
                    let body = body.to_bytes();
                    let reading = match Media::of(&parts.headers, operation.model) {
                        Ok(Media::Json) => json_body::read(&body),
                        Ok(Media::Form(boundary)) => form_body::read(&body, &boundary),
                        Err(error) => Err(error),
                    };
                    if reading.is_ok() { 200 } else { 400 }
                }
                (Ok(_), Ok(_)) => 200,
            }
        }
    };
    let mut response = Response::new(Full::default());
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or_default();
    if status != 200 {
        let close = HeaderValue::from_static("close");
        response.headers_mut().insert(header::CONNECTION, close);
    }
    response
}

/// Nobody who reads what was let through can read it otherwise.
fn assert_one_meaning(parts: &http::request::Parts) {
    let all = |name| parts.headers.get_all(name).iter();
    assert!(all(header::HOST).count() <= 1, "two hosts");
    let encodings: Vec<_> = all(header::TRANSFER_ENCODING).collect();
    assert!(encodings.len() <= 1, "two encodings");
    let lengths = all(header::CONTENT_LENGTH).count();
    assert!(lengths <= 1, "two lengths");
    assert!(
        encodings.is_empty() || lengths == 0,
        "an encoding and a length"
    );
    assert!(parts.headers.len() <= 64, "{}", parts.headers.len());
    let up = headers::for_upstream(
        &parts.headers,
        &HeaderValue::from_static("id"),
        &Caller::anybody(),
    );
    for (name, value) in &up {
        assert!(!name.as_str().contains('_') && !name.as_str().starts_with("x-forebay-"));
        assert!(!value.as_bytes().iter().any(|byte| b"\r\n\0".contains(byte)));
    }
    for name in [
        header::HOST,
        header::CONNECTION,
        header::UPGRADE,
        header::TRANSFER_ENCODING,
        header::COOKIE,
    ] {
        assert!(!up.contains_key(name), "not ours to pass on");
    }
}

/// An upstream answers a request with this and closes.
pub(crate) fn answer(bytes: &[u8]) {
    run(async {
        let (ours, theirs) = duplex(PIPE);
        let (mut read, mut write) = tokio::io::split(theirs);
        let mut builder = client::Builder::new();
        builder.read_buf_exact_size(Some(8 * 1024));
        let Ok((mut sender, driver)) = builder.handshake(TokioIo::new(ours)).await else {
            return;
        };
        let asking = async {
            let request = Request::post("/v1/completions").header(header::HOST, "upstream");
            let Ok(request) = request.body(Empty::<Bytes>::new()) else {
                return;
            };
            if let Ok(response) = sender.send_request(request).await {
                judge(response).await;
            }
            drop(sender);
        };
        let answering = async {
            let mut some = [0; 1024];
            drop(read.read(&mut some).await);
            drop(write.write_all(bytes).await);
            drop(write.shutdown().await);
        };
        let (mut driver, mut both) = (
            pin!(driver),
            pin!(async { tokio::join!(asking, answering) }),
        );
        let mut driven = false;
        poll_fn(|cx| {
            driven = driven || driver.as_mut().poll(cx).is_ready();
            both.as_mut().poll(cx).map(drop)
        })
        .await;
    });
}

async fn judge(mut response: Response<Incoming>) {
    if broken_rule(&response).is_some() {
        return;
    }
    assert!(matches!(response.status().as_u16(), 200..=299 | 400..=599));
    headers::strip_for_client(response.headers_mut());
    for name in [
        header::CONNECTION,
        header::TRANSFER_ENCODING,
        header::SET_COOKIE,
        header::LOCATION,
        header::SERVER,
    ] {
        assert!(!response.headers().contains_key(name), "not for the client");
    }
    // Cut or whole: that is what its end says.
    drop(Limited::new(response.into_body(), LARGEST).collect().await);
}
