//! `/config`: what is in force, as JSON. There is nothing secret in it: of credentials their fingerprints, of clients' keys
//! how many there are.

use forebay_proto::{
    Endpoint, FailureSpec, ProbeMode, QueueCost, RetryOn, StreamUsage, Streaming,
    endpoint::TlsRoots,
};
use serde_json::{Value, json};

use crate::{
    apply::Refusal,
    config_client::{ConfigSource, ConfigStatus},
    keys::KeyCell,
    live::{Live, Route},
};

/// The document.
pub(super) fn document(live: &Live, keys: &KeyCell, status: &ConfigStatus) -> Value {
    let ring = keys.load();
    let position = ring.position();
    let source = match status.source() {
        ConfigSource::None => "none",
        ConfigSource::LastKnownGood => "last_known_good",
        ConfigSource::ControlPlane => "control_plane",
    };
    json!({
        "source": source,
        "control": control(status),
        "stale_seconds": status.stale_for().map(|stale| stale.as_secs()),
        "epoch": live.position.as_ref().map(|position| position.epoch.as_str()),
        "revision": live.position.as_ref().map(|position| position.revision.get()),
        "digest": live.position.as_ref().map(|position| position.digest.to_string()),
        "budget": live.budget.map(|budget| budget.get()),
        "keys": {
            "required": keys.is_required(),
            "version": position.map_or(0, |position| position.version),
            "count": ring.len(),
        },
        "models": live.models.values().map(|route| model(live, route)).collect::<Vec<_>>(),
        "refusals": live.refusals.iter().map(refusal).collect::<Vec<_>>(),
    })
}

/// Which control plane is followed, or was last.
fn control(status: &ConfigStatus) -> Value {
    let (followed, (moves, because)) = (status.followed(), status.moves());
    let since = followed.as_ref().and_then(|followed| followed.since);
    json!({
        "url": followed.as_ref().map(|followed| &followed.control),
        "replica": followed.as_ref().map(|followed| &followed.replica),
        "connected": since.is_some(),
        "moves": moves,
        "moved_because": because,
        "turned_away": status.twin(),
    })
}

fn refusal(refusal: &Refusal) -> Value {
    json!({
        "model": refusal.model,
        "field": refusal.field,
        "reason": refusal.reason.word(),
        "message": refusal.message,
    })
}

fn model(live: &Live, route: &Route) -> Value {
    let model = &route.model;
    let (pool, timeouts) = (&model.pool, &model.timeouts);
    json!({
        "id": model.id.as_str(),
        "aliases": model.aliases.iter().map(|alias| alias.as_str()).collect::<Vec<_>>(),
        "revision": model.revision.get(),
        "retained": live.retained.contains(&model.id),
        "endpoints": model.endpoints.iter().map(endpoint).collect::<Vec<_>>(),
        "probe": model.probe.is_on().then(|| json!({
            "expects": model.probe.expected(&model.id),
            "enforced": model.probe.mode == ProbeMode::Enforce,
        })),
        "pool": {
            "max_concurrent": pool.size.get(),
            "keepalive": pool.size.get(),
            "max_waiting": pool.max_waiting,
            "max_wait_seconds": pool.max_wait.as_secs_f64(),
            "warm": pool.warm,
            "idle_timeout_seconds": pool.idle_timeout.as_secs_f64(),
            "max_connection_age_seconds": pool.max_connection_age.map(|age| age.as_secs_f64()),
            "replay_unanswered": pool.replay_unanswered,
            "tenant_header": pool.turns.tenant_header.as_ref().map(|header| header.as_str()),
            "priority_header": pool.turns.priority_header.as_ref().map(|header| header.as_str()),
            "cost": match pool.turns.cost {
                QueueCost::Request => "request",
                QueueCost::Tokens => "tokens",
            },
            "adaptive": pool.adaptive.map(|adaptive| json!({
                "min": adaptive.min,
                "target_first_byte_seconds": adaptive.target_first_byte.map(|t| t.as_secs_f64()),
                "tolerance_percent": adaptive.tolerance_percent,
            })),
        },
        "timeouts": {
            "connect_seconds": timeouts.connect.as_secs_f64(),
            "first_byte_seconds": timeouts.first_byte.as_secs_f64(),
            "idle_seconds": timeouts.idle.as_secs_f64(),
            "total_seconds": timeouts.total.as_secs_f64(),
        },
        "health": health(&model.failure),
        "ejection": ejection(&model.failure),
        "retry": retry(&model.failure),
        "fallbacks": model.failure.fallbacks.iter().map(|id| id.as_str()).collect::<Vec<_>>(),
        "streaming": streaming(model.streaming),
    })
}

/// Nothing: endpoints are not checked.
fn health(failure: &FailureSpec) -> Option<Value> {
    let health = &failure.health;
    let (unhealthy, healthy) = health.after();
    health.path.as_ref().map(|path| {
        json!({
            "path": path.as_str(),
            "interval_seconds": health.interval().as_secs_f64(),
            "timeout_seconds": health.timeout().as_secs_f64(),
            "unhealthy_after": unhealthy,
            "healthy_after": healthy,
        })
    })
}

fn ejection(failure: &FailureSpec) -> Value {
    let ejection = &failure.ejection;
    json!({
        "failures": ejection.failures(),
        "base_time_seconds": ejection.base_time().as_secs_f64(),
        "max_time_seconds": ejection.max_time().as_secs_f64(),
        "panic_percent": ejection.panic_percent(),
    })
}

fn retry(failure: &FailureSpec) -> Value {
    let causes = [
        RetryOn::Busy,
        RetryOn::BadGateway,
        RetryOn::ServerError,
        RetryOn::Reset,
    ];
    let on = causes.iter().filter(|cause| failure.retry.is_on(**cause));
    json!({
        "max_attempts": failure.retry.max_attempts(),
        "on": on.map(|cause| cause.word()).collect::<Vec<_>>(),
    })
}

fn streaming(streaming: Streaming) -> Value {
    json!({
        "usage": match streaming.usage {
            StreamUsage::Pass => "pass",
            StreamUsage::Inject => "inject",
        },
        "keep_alive_seconds": streaming.keep_alive.map(|every| every.as_secs_f64()),
    })
}

fn endpoint(endpoint: &Endpoint) -> Value {
    let tls = &endpoint.tls;
    let tls = endpoint.url.is_tls().then(|| {
        json!({
            "roots": match tls.roots {
                TlsRoots::System => "system",
                TlsRoots::Pem(_) => "pem",
                TlsRoots::Unverified => "unverified",
            },
            "server_name": tls.server_name.as_ref().map(|name| name.as_str()),
            "client_certificate_file": tls.identity.as_ref().map(|identity| identity.certificate()),
        })
    });
    json!({
        "id": endpoint.id.as_str(),
        "url": endpoint.url.discovery().is_none().then(|| endpoint.url.to_string()),
        "discovery": endpoint.url.discovery().map(|discovery| json!({
            "source": discovery.source.to_string(),
            "https": discovery.tls,
            "allow": discovery.bounds.allow.iter().map(ToString::to_string).collect::<Vec<_>>(),
            "ports": discovery.bounds.ports.iter().map(ToString::to_string).collect::<Vec<_>>(),
            "refresh_seconds": discovery.refresh().as_secs_f64(),
            "keep_empty_seconds": discovery.keep_empty().as_secs_f64(),
            "send_credentials": discovery.send_credentials,
        })),
        "weight": endpoint.weight.get(),
        "protocol": endpoint.protocol.word(),
        "tls": tls,
        "credential": endpoint.credential.as_ref().map(|sealed| sealed.fingerprint()),
    })
}
