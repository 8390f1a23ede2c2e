//! The gRPC services: between wire requests and the registry, the fleet and the sessions.

mod fleet;
mod models;
mod settings;
mod status;
mod sync;

use std::sync::Arc;

use forebay_proto::{Digest, limits};
use prost::Message;
use tonic::{Request, Response, Status};
use tracing::{Instrument as _, Span};

pub(crate) use self::{
    fleet::FleetService, models::ModelsService, settings::SettingsService, sync::SyncService,
};
use crate::{
    metrics::Metrics,
    registry::{Answer, Command, RegistryHandle, Write},
    trace_context,
};

/// Longest request id.
const REQUEST_ID_CHARS: usize = 64;

/// What every service needs.
#[derive(Debug, Clone)]
pub(crate) struct Context {
    pub(crate) registry: RegistryHandle,
    pub(crate) fleet: Arc<crate::fleet::Fleet>,
    pub(crate) metrics: Arc<Metrics>,
}

impl Context {
    /// Runs a call under a span that continues the caller's trace, and counts it.
    async fn call<I, O>(
        &self,
        method: &'static str,
        request: Request<I>,
        serve: impl AsyncFnOnce(I) -> Result<O, Status>,
    ) -> Result<Response<O>, Status> {
        let span = tracing::info_span!("rpc", otel.name = method, otel.kind = "server", method);
        trace_context::adopt(&span, request.metadata());
        let result = serve(request.into_inner()).instrument(span).await;
        let code = result
            .as_ref()
            .map_or_else(Status::code, |_| tonic::Code::Ok);
        self.metrics.rpc(method, code);
        if let Err(status) = &result {
            tracing::info!(method, code = ?code, message = status.message(), "call refused");
        }
        result.map(Response::new)
    }

    /// Makes a write.
    async fn write(
        &self,
        command: Command,
        request_id: &str,
        fingerprint: &impl Message,
        validate_only: bool,
    ) -> Result<Answer, Status> {
        Span::current().in_scope(|| tracing::debug!(method = command.method(), "write asked for"));
        let request_id = match request_id {
            "" => None,
            id => {
                check_request_id(id)?;
                let bytes = fingerprint.encode_to_vec();
                let digest = Digest::of(&[command.method().as_bytes(), &bytes].concat());
                Some((id.to_owned(), digest.as_bytes().to_vec()))
            }
        };
        let write = Write {
            command,
            request_id,
            validate_only,
        };
        self.registry.write(write).await.map_err(status::of)
    }
}

fn check_request_id(id: &str) -> Result<(), Status> {
    let good = id.len() <= REQUEST_ID_CHARS && id.bytes().all(|byte| byte.is_ascii_graphic());
    match good {
        true => Ok(()),
        false => Err(status::invalid(
            "request_id",
            "must be 1 to 64 printable ASCII characters without spaces; a UUID is a good choice",
        )),
    }
}

/// Reads a page's size: 0 is 50, above 1000 is 1000.
fn page_size(asked: i32) -> Result<usize, Status> {
    match usize::try_from(asked) {
        Ok(0) => Ok(50),
        Ok(size) => Ok(size.min(1_000)),
        Err(_) => Err(status::invalid(
            "page_size",
            "is negative; use 0 for the default of 50",
        )),
    }
}

/// A page token names the last entry of the page before it. It says so to nobody: clients must not
/// make their own.
fn page_token(last: &str) -> String {
    last.bytes().map(|byte| format!("{byte:02x}")).collect()
}

fn read_page_token(token: &str) -> Result<Option<String>, Status> {
    if token.is_empty() {
        return Ok(None);
    }
    let bytes: Option<Vec<u8>> = match token.len() <= 2 * limits::MODEL_ID_CHARS {
        true => token.as_bytes().chunks(2).map(hex_byte).collect(),
        false => None,
    };
    let text = bytes.and_then(|bytes| String::from_utf8(bytes).ok());
    let refused = "is not one of ours; use the next_page_token of the answer before";
    text.map(Some)
        .ok_or_else(|| status::invalid("page_token", refused))
}

fn hex_byte(pair: &[u8]) -> Option<u8> {
    u8::from_str_radix(
        std::str::from_utf8(pair)
            .ok()
            .filter(|pair| pair.len() == 2)?,
        16,
    )
    .ok()
}

/// The answer is of another kind than its command: a bug of ours.
fn mismatched() -> Status {
    Status::internal("the registry answered with another kind of resource")
}
