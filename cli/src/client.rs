//! Calls to the control plane: connecting, deadlines, safe repetition of writes, and errors that say
//! what to do.

use std::{env, fmt::Write as _, time::Duration};

use anyhow::{Context as _, anyhow};
use http::Uri;
use tonic::{
    Code, Request, Status,
    metadata::{BinaryMetadataKey, BinaryMetadataValue},
    transport::{Channel, Endpoint},
};
use tonic_types::StatusExt as _;

use crate::args::{ClientArgs, WriteArgs};

const CONNECT: Duration = Duration::from_secs(3);
/// How often a write is repeated when its answer was lost. It carries a request id, so that it is
/// made once.
const REPEATS: u32 = 2;

/// Connects to the first of the control planes that answers.
pub(crate) async fn connect(args: &ClientArgs) -> anyhow::Result<Channel> {
    let mut failed = anyhow!("--control names no control plane");
    for control in &args.control {
        match connect_to(control, args.timeout).await {
            Ok(channel) => return Ok(channel),
            Err(error) => failed = error,
        }
    }
    Err(failed)
}

/// Connects to the control plane at this address.
pub(crate) async fn connect_to(control: &Uri, within: Duration) -> anyhow::Result<Channel> {
    let endpoint = Endpoint::from(control.clone())
        .connect_timeout(CONNECT)
        .timeout(within);
    endpoint.connect().await.with_context(|| {
        format!(
            "no control plane answers at {control}; start one with `forebay control`, or name \
             another with --control"
        )
    })
}

/// Makes a call.
pub(crate) async fn call<T>(
    result: impl Future<Output = Result<tonic::Response<T>, Status>>,
) -> anyhow::Result<T> {
    result
        .await
        .map(tonic::Response::into_inner)
        .map_err(|status| explain(&status))
}

fn signed<M>(message: M, args: &WriteArgs) -> Request<M> {
    signed_by(message, args.author.as_ref(), args.reason.as_ref())
}

/// A message under the name of who writes, with the reason.
pub(crate) fn signed_by<M>(
    message: M,
    author: Option<&String>,
    reason: Option<&String>,
) -> Request<M> {
    let user = || env::var("USER").or_else(|_| env::var("LOGNAME")).ok();
    let author = author.cloned().or_else(user);
    let mut request = Request::new(message);
    let metadata = request.metadata_mut();
    for (key, text) in [
        ("x-forebay-author-bin", author.as_ref()),
        ("x-forebay-reason-bin", reason),
    ] {
        if let Some(text) = text {
            let value = BinaryMetadataValue::from_bytes(text.as_bytes());
            metadata.insert_bin(BinaryMetadataKey::from_static(key), value);
        }
    }
    request
}

/// Makes a write that carries a request id, again if its answer was lost. It is made once: the id says
/// so. When its fate stays unknown, that is what is told, whatever the last attempt said.
pub(crate) async fn write<M: Clone, T, F>(
    message: M,
    args: &WriteArgs,
    send: impl Fn(Request<M>) -> F,
) -> anyhow::Result<T>
where
    F: Future<Output = Result<tonic::Response<T>, Status>>,
{
    let mut repeats = 0;
    let mut lost = false;
    loop {
        let status = match send(signed(message.clone(), args)).await {
            Ok(response) => return Ok(response.into_inner()),
            Err(status) => status,
        };
        let unknown = is_unknown(&status);
        lost |= unknown;
        // The store knows its own fate only after a restart: at once is too soon.
        let told = reason(&status).is_some();
        if unknown && !told && repeats < REPEATS {
            repeats += 1;
            continue;
        }
        let error = explain(&status);
        return Err(match lost && !is_refusal(&status) {
            true => error
                .context("the write may have been made all the same; look before you repeat it"),
            false => error,
        });
    }
}

/// The answer was lost, or the control plane does not know itself.
fn is_unknown(status: &Status) -> bool {
    match status.code() {
        Code::Unavailable => reason(status).is_none_or(|reason| reason == "COMMIT_UNKNOWN"),
        Code::DeadlineExceeded | Code::Cancelled | Code::Unknown => true,
        _ => false,
    }
}

/// The control plane looked at it and said no: then no earlier attempt was made either, or the answer
/// would have been that of the earlier one.
fn is_refusal(status: &Status) -> bool {
    matches!(
        status.code(),
        Code::InvalidArgument | Code::NotFound | Code::AlreadyExists | Code::Aborted
    )
}

fn reason(status: &Status) -> Option<String> {
    let details = status.get_error_details();
    details.error_info().map(|info| info.reason.clone())
}

/// A request id: the one given, or a new one.
pub(crate) fn request_id(given: Option<&String>) -> String {
    given
        .cloned()
        .unwrap_or_else(|| uuid::Uuid::new_v4().to_string())
}

/// What went wrong, one line per bad field.
pub(crate) fn explain(status: &Status) -> anyhow::Error {
    let details = status.get_error_details();
    let violations = details
        .bad_request()
        .map(|bad| bad.field_violations.as_slice());
    let mut text = match violations.unwrap_or_default() {
        [] | [_] => status.message().to_owned(),
        several => {
            let mut text = format!("{} fields are not valid", several.len());
            for violation in several {
                // Writing to a string cannot fail.
                let _ = write!(text, "\n  {}: {}", violation.field, violation.description);
            }
            text
        }
    };
    if let Some(info) = details.error_info() {
        let _ = write!(text, " ({})", info.reason);
    }
    anyhow!(text)
}
