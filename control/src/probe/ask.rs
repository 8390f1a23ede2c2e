//! One question over one connection, which is closed after it.

use std::pin::pin;

use bytes::Bytes;
use forebay_proto::{
    limits,
    probe::{Outcome, PATH, Verdict, judge},
};
use http::{Request, header};
use http_body_util::{BodyExt as _, Empty, LengthLimitError, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;

use super::network::Io;

/// Most bytes of a response's head.
const HEAD: usize = 16 << 10;

/// Asks what is served there, and judges the answer by this name. It ends when its caller's patience does.
pub(super) async fn ask(io: Box<dyn Io>, authority: &str, expected: &str) -> Outcome {
    let request = Request::get(PATH)
        .header(header::HOST, authority)
        .header(header::ACCEPT, "application/json")
        .header(header::ACCEPT_ENCODING, "identity")
        .header(header::USER_AGENT, "forebay-probe")
        .header(header::CONNECTION, "close")
        .body(Empty::<Bytes>::new());
    let Ok(request) = request else {
        return Outcome::unknown("its url cannot stand in a request");
    };
    let handshake = http1::Builder::new()
        .max_buf_size(HEAD)
        .handshake(TokioIo::new(io));
    let Ok((mut sender, connection)) = handshake.await else {
        return broken_off();
    };
    let answer = async move {
        match sender.send_request(request).await {
            Ok(response) => {
                let status = response.status().as_u16();
                let body = Limited::new(response.into_body(), limits::PROBE_BODY_BYTES);
                match body.collect().await {
                    Ok(body) => judge(expected, status, &body.to_bytes()),
                    Err(error) if error.is::<LengthLimitError>() => Outcome::unknown(format!(
                        "its answer to {PATH} is larger than {} bytes",
                        limits::PROBE_BODY_BYTES
                    )),
                    Err(_) => Outcome::unknown(format!("its answer to {PATH} breaks off")),
                }
            }
            Err(error) if error.is_parse() => Outcome::unknown("it does not answer in HTTP/1.1"),
            Err(_) => broken_off(),
        }
    };
    let (mut answer, mut connection) = (pin!(answer), pin!(connection));
    tokio::select! {
        biased;
        found = &mut answer => return found,
        // How that ended is told to the answer.
        _ = &mut connection => {}
    }
    answer.await
}

fn broken_off() -> Outcome {
    let what = "it closed the connection without an answer";
    Outcome::new(Verdict::Unreachable, what)
}
