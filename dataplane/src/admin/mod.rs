//! The admin port: what an operator or a monitor asks of one worker. Read-only.

mod config;
mod scrape;

use std::{sync::Arc, time::Duration};

use axum::{
    Json, Router,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use prometheus::Registry;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::{
    config_client::{ConfigSource, ConfigStatus},
    keys::KeyCell,
    live::LiveCell,
    pool::PoolSnapshot,
};

/// What the admin port can tell.
#[derive(Debug, Clone)]
pub struct Admin {
    /// What is in force.
    pub live: Arc<LiveCell>,
    /// Clients' keys.
    pub keys: Arc<KeyCell>,
    /// Where it comes from.
    pub status: Arc<ConfigStatus>,
    /// What was measured.
    pub registry: Registry,
}

impl Admin {
    /// Serves until told to stop.
    pub async fn run(
        self,
        listener: TcpListener,
        shutdown: CancellationToken,
    ) -> std::io::Result<()> {
        let router = Router::new()
            .route("/livez", get(|| async { "alive\n" }))
            .route("/readyz", get(ready))
            .route("/metrics", get(metrics))
            .route("/pools", get(pools))
            .route("/config", get(config))
            .with_state(self);
        axum::serve(listener, router)
            .with_graceful_shutdown(shutdown.cancelled_owned())
            .await
    }
}

/// Ready once a configuration is in force, whatever became of the control plane since.
async fn ready(State(admin): State<Admin>) -> Response {
    let Some(position) = admin.live.load().position.clone() else {
        let text = "not ready: no configuration yet, waiting for the control plane\n";
        return (StatusCode::SERVICE_UNAVAILABLE, text).into_response();
    };
    if admin.status.is_stopping() {
        let text = "not ready: draining, requests in flight finish\n";
        return (StatusCode::SERVICE_UNAVAILABLE, text).into_response();
    }
    let source = match admin.status.source() {
        ConfigSource::LastKnownGood => ", last known good",
        ConfigSource::ControlPlane | ConfigSource::None => "",
    };
    let age = match (admin.status.stale_for(), admin.status.followed()) {
        (Some(stale), _) => format!("stale for {}", rounded(stale)),
        (None, Some(followed)) => format!("live from {}", followed.control),
        (None, None) => "live".to_owned(),
    };
    let twin = match admin.status.twin() {
        Some(_) => {
            "; another process has this worker's id and is alive: give each its own --worker-id"
        }
        None => "",
    };
    format!(
        "ready: revision {}{source}, {age}{twin}\n",
        position.revision
    )
    .into_response()
}

async fn metrics(State(admin): State<Admin>) -> Response {
    match scrape::text(&admin) {
        Ok(text) => ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text).into_response(),
        Err(error) => {
            tracing::error!(%error, "metrics cannot be rendered");
            (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response()
        }
    }
}

async fn pools(State(admin): State<Admin>) -> Json<serde_json::Value> {
    let live = admin.live.load();
    let pools: Vec<PoolSnapshot> = live
        .models
        .values()
        .map(|route| route.pool.snapshot())
        .collect();
    let retired: Vec<PoolSnapshot> = admin
        .live
        .retired()
        .iter()
        .map(|pool| pool.snapshot())
        .collect();
    let total = live.total_size();
    Json(serde_json::json!({
        "revision": live.position.as_ref().map(|position| position.revision.get()),
        "budget": live.budget.map(|budget| budget.get()),
        "max_connections": total,
        "max_keepalive_connections": total,
        "pools": pools,
        "draining": retired,
    }))
}

async fn config(State(admin): State<Admin>) -> Json<serde_json::Value> {
    let document = config::document(&admin.live.load(), &admin.keys, &admin.status);
    Json(document)
}

/// Seconds under a minute, then minutes, then hours.
fn rounded(duration: Duration) -> String {
    match duration.as_secs() {
        seconds @ 0..60 => format!("{seconds}s"),
        seconds @ 60..3_600 => format!("{}m", seconds / 60),
        seconds => format!("{}h{}m", seconds / 3_600, seconds % 3_600 / 60),
    }
}
