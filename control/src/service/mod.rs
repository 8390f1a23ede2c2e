//! The gRPC services: between wire requests and the registry, the fleet and the sessions.

mod batch;
mod fleet;
mod fresh;
mod keys;
mod models;
mod origin;
mod page;
mod probing;
mod revisions;
mod settings;
mod status;
mod sync;
mod watch;

use std::sync::Arc;

use forebay_proto::{
    Digest, Violation, Violations,
    wire::{self, batch_item::Change},
};
use prost::Message;
use prost_types::FieldMask;
use tonic::{Request, Response, Status};
use tracing::{Instrument as _, Span};

pub(crate) use self::{
    fleet::FleetService, keys::KeysService, models::ModelsService, revisions::RevisionsService,
    settings::SettingsService, sync::SyncService, watch::Watchers,
};
use crate::{
    cluster::Drains,
    exporter::StoreStatus,
    leases::Leases,
    metrics::Metrics,
    probe::Prober,
    registry::{Answer, Command, RegistryHandle, Write, WriteError},
    session::Abreast,
    store::history::Origin,
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
    pub(crate) status: Arc<StoreStatus>,
    pub(crate) prober: Arc<Prober>,
    /// Whether this control plane hears from its store.
    pub(crate) abreast: Abreast,
    /// Its name among the replicas; empty if there is one.
    pub(crate) replica: Arc<str>,
    pub(crate) leases: Arc<Leases>,
    /// The way to other control planes, if there are any.
    pub(crate) drains: Option<Drains>,
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
        let fresh = fresh::enough(&self.registry, request.metadata());
        let result = match fresh.instrument(span.clone()).await {
            Ok(()) => serve(request.into_inner()).instrument(span).await,
            Err(status) => Err(status),
        };
        let code = result
            .as_ref()
            .map_or_else(Status::code, |_| tonic::Code::Ok);
        self.metrics.rpc(method, code);
        if let Err(status) = &result {
            tracing::info!(method, code = ?code, why = status.message(), "call refused");
        }
        result.map(Response::new)
    }

    /// The same for a call that writes: who does, and why, is told with it.
    async fn call_write<I, O>(
        &self,
        method: &'static str,
        request: Request<I>,
        serve: impl AsyncFnOnce(I, Origin) -> Result<O, Status>,
    ) -> Result<Response<O>, Status> {
        let origin = origin::of(request.metadata(), request.remote_addr());
        let serve = async |asked| match origin {
            Ok(origin) => serve(asked, origin).await,
            Err(violations) => Err(status::violated(&violations)),
        };
        self.call(method, request, serve).await
    }

    /// From here on a model has no token in clear: neither does its fingerprint, nor anything that is kept of it.
    fn seal(&self, model: Option<&mut wire::Model>) -> Result<(), Status> {
        let vault = self.registry.vault();
        let sealed = model.map_or(Ok(()), |model| vault.seal_tokens(model));
        sealed.map_err(|violations| status::violated(&violations))
    }

    fn seal_batch(&self, items: &mut [wire::BatchItem]) -> Result<(), Status> {
        let mut violations = Violations::new();
        for (n, item) in items.iter_mut().enumerate() {
            let (kind, model) = match &mut item.change {
                Some(Change::Create(request)) => ("create", request.model.as_mut()),
                Some(Change::Update(request)) => ("update", request.model.as_mut()),
                Some(Change::Delete(_)) | None => continue,
            };
            let sealed = model.map_or(Ok(()), |model| self.registry.vault().seal_tokens(model));
            violations.part(&format!("items[{n}].{kind}"), sealed);
        }
        let sealed = violations.finish(Some(()));
        sealed.map_err(|violations| status::violated(&violations))
    }

    /// Makes a write.
    async fn write(
        &self,
        command: Command,
        origin: Origin,
        request_id: &str,
        fingerprint: &impl Message,
        validate_only: bool,
    ) -> Result<Answer, Status> {
        let method = command.method();
        Span::current().in_scope(|| tracing::debug!(method, "write asked for"));
        let write = |request_id, validate_only| Write {
            command,
            request_id,
            validate_only,
            origin,
            term: None,
        };
        if let Err(bad_id) = check_request_id(request_id) {
            // Asked as a dry run, so that every bad field is told at once.
            let dry_run = self.registry.write(write(None, true)).await;
            return Err(status::of(with_violation(dry_run.err(), bad_id)));
        }
        let request_id = (!request_id.is_empty()).then(|| {
            let bytes = fingerprint.encode_to_vec();
            let digest = Digest::of(&[method.as_bytes(), &bytes].concat());
            (request_id.to_owned(), digest.as_bytes().to_vec())
        });
        let written = self.registry.write(write(request_id, validate_only)).await;
        written.map_err(status::of)
    }
}

/// A request id is absent or good.
fn check_request_id(id: &str) -> Result<(), Violation> {
    let good = id.len() <= REQUEST_ID_CHARS && id.bytes().all(|byte| byte.is_ascii_graphic());
    let message =
        "must be 1 to 64 printable ASCII characters without spaces; a UUID is a good choice";
    match good {
        true => Ok(()),
        false => Err(Violation {
            field: "request_id".to_owned(),
            message: message.to_owned(),
        }),
    }
}

/// One more bad field, if fields are what was wrong so far.
fn with_violation(error: Option<WriteError>, violation: Violation) -> WriteError {
    let mut violations = match error {
        Some(WriteError::Invalid(violations)) => violations,
        _ => Violations::new(),
    };
    violations.add(violation.field, violation.message);
    WriteError::Invalid(violations)
}

/// The paths of a mask. One that is empty is one that was not meant: some clients cannot leave it out.
fn paths(mask: Option<&FieldMask>) -> Option<Vec<String>> {
    mask.map(|mask| mask.paths.clone())
        .filter(|paths| !paths.is_empty())
}

/// The answer is of another kind than its command: a bug of ours.
fn mismatched() -> Status {
    Status::internal("the registry answered with another kind of resource")
}
