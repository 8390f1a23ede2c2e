//! Calls to the control plane: connecting, deadlines, safe repetition of writes, and errors that say
//! what to do.

use std::{fmt::Write as _, time::Duration};

use anyhow::{Context as _, anyhow};
use http::Uri;
use tonic::{
    Code, Request, Status,
    transport::{Channel, Endpoint},
};
use tonic_types::StatusExt as _;

use crate::args::ClientArgs;

const CONNECT: Duration = Duration::from_secs(3);
/// How often a write is repeated when its answer was lost. It carries a request id, so that it is
/// made once.
const REPEATS: u32 = 2;

/// Connects to the control plane.
pub(crate) async fn connect(args: &ClientArgs) -> anyhow::Result<Channel> {
    connect_to(&args.control, args.timeout).await
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

/// Makes a write that carries a request id, again if its answer was lost.
pub(crate) async fn write<M: Clone, T, F>(
    message: M,
    send: impl Fn(Request<M>) -> F,
) -> anyhow::Result<T>
where
    F: Future<Output = Result<tonic::Response<T>, Status>>,
{
    let mut repeats = 0;
    loop {
        match send(Request::new(message.clone())).await {
            Err(status) if status.code() == Code::Unavailable && repeats < REPEATS => repeats += 1,
            result => {
                return result
                    .map(tonic::Response::into_inner)
                    .map_err(|status| explain(&status));
            }
        }
    }
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
