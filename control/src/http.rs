//! The plain HTTP pages on the control port: liveness, readiness, metrics.

use axum::{
    Router,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use prometheus::{Registry, TextEncoder};

use crate::{
    leases::{self, Machine},
    service::Context,
};

#[derive(Debug, Clone)]
struct Pages {
    context: Context,
    registry: Registry,
}

/// The routes.
pub(crate) fn routes(context: Context, registry: Registry) -> Router {
    Router::new()
        .route("/livez", get(|| async { "alive\n" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .with_state(Pages { context, registry })
}

/// Not ready when the store failed: reads and streams go on, writes do not.
async fn ready(State(pages): State<Pages>) -> Response {
    let registry = &pages.context.registry;
    let revision = registry.published().position.revision;
    match registry.trouble().borrow().as_deref() {
        None => {
            let status = &pages.context.status;
            format!("ready: revision {revision}\n{status}").into_response()
        }
        Some(error) => {
            let text = format!("not ready: revision {revision}, the store failed: {error}\n");
            (StatusCode::SERVICE_UNAVAILABLE, text).into_response()
        }
    }
}

async fn metrics(State(pages): State<Pages>) -> Response {
    let Context {
        registry,
        fleet,
        metrics,
        leases,
        ..
    } = &pages.context;
    let published = registry.published();
    let (revision, models) = (published.position.revision.get(), published.state.len());
    metrics.replicas.lags(pages.context.status.lag());
    metrics.observe(revision, models, fleet.counts(&published.position));
    let figures = leases.look(Machine::figures).unwrap_or_default();
    let text = leases::metrics::families(&figures).and_then(|fleet| {
        let mut families = pages.registry.gather();
        families.extend(fleet);
        TextEncoder::new().encode_to_string(&families)
    });
    match text {
        Ok(text) => ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text).into_response(),
        Err(error) => {
            tracing::error!(%error, "metrics cannot be rendered");
            (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response()
        }
    }
}
