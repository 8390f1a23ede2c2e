//! `/metrics`: what was measured as it happened, and what can be read off at this instant. The pools'
//! numbers are taken from one look at each pool, so that opened - closed = open holds in every scrape.

use std::time::UNIX_EPOCH;

use prometheus::{Error, GaugeVec, IntCounterVec, IntGaugeVec, Opts, Registry, TextEncoder};

use super::Admin;
use crate::pool::{LeaseSnapshot, PoolSnapshot};

/// Everything, in Prometheus' text format.
pub(super) fn text(admin: &Admin) -> Result<String, Error> {
    let now = Registry::new();
    configuration(admin, &now)?;
    control(admin, &now)?;
    let live = admin.live.load();
    let pools: Vec<PoolSnapshot> = live
        .models
        .values()
        .map(|route| route.pool.snapshot())
        .collect();
    // A removed model has no size any more, but what it still has open counts.
    let draining: Vec<PoolSnapshot> = admin
        .live
        .retired()
        .iter()
        .map(|pool| pool.snapshot())
        .collect();
    sizes(&now, &pools)?;
    leases(&now, &pools)?;
    let all: Vec<&PoolSnapshot> = pools.iter().chain(&draining).collect();
    gauges(&now, &all)?;
    endpoints(&now, &pools)?;
    discovery(&now, &pools)?;
    counters(&now, &all)?;
    let mut families = admin.registry.gather();
    families.extend(now.gather());
    TextEncoder::new().encode_to_string(&families)
}

fn configuration(admin: &Admin, registry: &Registry) -> Result<(), Error> {
    let set = |name: &str, help: &str, value: f64| {
        let gauge = GaugeVec::new(Opts::new(name, help), &[])?;
        gauge.with_label_values::<&str>(&[]).set(value);
        registry.register(Box::new(gauge))
    };
    let live = admin.live.load();
    let revision = live
        .position
        .as_ref()
        .map_or(0, |position| position.revision.get());
    set(
        "forebay_config_revision",
        "The revision in force; 0 before the first.",
        revision as f64,
    )?;
    let keys = admin.keys.load();
    set(
        "forebay_keys_version",
        "The version of the clients' keys in force; 0 if there never was one.",
        keys.position().map_or(0, |position| position.version) as f64,
    )?;
    set(
        "forebay_config_age_seconds",
        "Time since the last word of the control plane, or since the start.",
        admin.status.age().as_secs_f64(),
    )?;
    let budget = live.budget.map_or(0, |budget| budget.get());
    set(
        "forebay_budget_connections",
        "Most connections of the worker, all models together.",
        f64::from(budget),
    )?;
    for (name, help, value) in [
        (
            "forebay_config_models_refused",
            "Models of the revision in force that could not be taken.",
            live.refused,
        ),
        (
            "forebay_config_models_retained",
            "Models that are in force as an earlier revision had them, because they could not be taken.",
            live.retained.len(),
        ),
        (
            "forebay_config_quarantined",
            "Configurations that ended the process twice and are not tried again.",
            admin.status.in_quarantine(),
        ),
    ] {
        set(name, help, value as f64)?;
    }
    let applied = admin
        .status
        .applied_at()
        .and_then(|at| at.duration_since(UNIX_EPOCH).ok());
    set(
        "forebay_config_applied_timestamp_seconds",
        "When the configuration in force was put in force, in seconds since 1970.",
        applied.unwrap_or_default().as_secs_f64(),
    )
}

/// One series, of the one that is followed: addresses come and go.
fn control(admin: &Admin, registry: &Registry) -> Result<(), Error> {
    let connection = gauge(
        registry,
        "forebay_control_connection",
        "Whether there is a stream to the control plane that is followed, or was last.",
        &["control"],
    )?;
    if let Some(followed) = admin.status.followed() {
        let connected = i64::from(followed.since.is_some());
        let series = connection.with_label_values(&[followed.control.as_str()]);
        series.set(connected);
    }
    let twin = gauge(
        registry,
        "forebay_control_turned_away",
        "Whether another process with this worker's id is alive and this one is turned away.",
        &[],
    )?;
    let turned_away = i64::from(admin.status.twin().is_some());
    twin.with_label_values::<&str>(&[]).set(turned_away);
    Ok(())
}

fn gauge(
    registry: &Registry,
    name: &str,
    help: &str,
    labels: &[&str],
) -> Result<IntGaugeVec, Error> {
    let gauge = IntGaugeVec::new(Opts::new(name, help), labels)?;
    registry.register(Box::new(gauge.clone()))?;
    Ok(gauge)
}

fn sizes(registry: &Registry, pools: &[PoolSnapshot]) -> Result<(), Error> {
    let model = &["model"];
    let size = gauge(
        registry,
        "forebay_pool_size",
        "Most requests in flight of a model.",
        model,
    )?;
    let keepalive = gauge(
        registry,
        "forebay_pool_keepalive",
        "Most connections kept warm for a model: its pool size.",
        model,
    )?;
    let cap = gauge(
        registry,
        "forebay_pool_cap",
        "Most connections that the worker's budget leaves to a model now; the size unless it binds.",
        model,
    )?;
    let coverage = GaugeVec::new(
        Opts::new(
            "forebay_pool_coverage_ratio",
            "Keepalive divided by pool size.",
        ),
        model,
    )?;
    registry.register(Box::new(coverage.clone()))?;
    for pool in pools {
        let name = &[pool.model.as_str()];
        size.with_label_values(name).set(i64::from(pool.size));
        keepalive
            .with_label_values(name)
            .set(i64::from(pool.keepalive));
        cap.with_label_values(name).set(i64::from(pool.cap));
        coverage.with_label_values(name).set(pool.coverage);
    }
    Ok(())
}

/// Of fleet-wide limits alone.
fn leases(registry: &Registry, pools: &[PoolSnapshot]) -> Result<(), Error> {
    let model = &["model"];
    let size = gauge(
        registry,
        "forebay_lease_size",
        "Most requests in flight that this worker is lent of a fleet-wide limit.",
        model,
    )?;
    let floor = gauge(
        registry,
        "forebay_lease_floor",
        "Of that, what does not run out.",
        model,
    )?;
    let cooling = gauge(
        registry,
        "forebay_lease_cooling",
        "Slots of a fleet-wide limit that count as used for a moment, because their requests were cut short.",
        model,
    )?;
    let expires = GaugeVec::new(
        Opts::new(
            "forebay_lease_expires_seconds",
            "When what is lent runs out unless it is renewed.",
        ),
        model,
    )?;
    registry.register(Box::new(expires.clone()))?;
    let state = gauge(
        registry,
        "forebay_lease_state",
        "How what is lent of a fleet-wide limit stands: 1 for the state that it is in.",
        &["model", "state"],
    )?;
    for pool in pools {
        let Some(lease) = &pool.lease else { continue };
        let name = pool.model.as_str();
        size.with_label_values(&[name]).set(i64::from(pool.size));
        floor.with_label_values(&[name]).set(count(lease.floor));
        cooling.with_label_values(&[name]).set(count(lease.cooling));
        expires
            .with_label_values(&[name])
            .set(lease.expires_seconds);
        for word in LeaseSnapshot::STATES {
            let is = i64::from(lease.state == word);
            state.with_label_values(&[name, word]).set(is);
        }
    }
    Ok(())
}

fn gauges(registry: &Registry, pools: &[&PoolSnapshot]) -> Result<(), Error> {
    let waiting = gauge(
        registry,
        "forebay_pool_waiting",
        "Requests waiting for a connection.",
        &["model"],
    )?;
    let in_flight = gauge(
        registry,
        "forebay_pool_in_flight",
        "Requests in flight; over HTTP/2 several share a connection.",
        &["model"],
    )?;
    let floor = gauge(
        registry,
        "forebay_pool_warm_floor",
        "Connections kept open ahead of need now: as configured, or the decayed peak of what was in use.",
        &["model"],
    )?;
    let admitted = gauge(
        registry,
        "forebay_pool_admission_limit",
        "Most requests in flight that are let in now: the size, or less while the engine is slow.",
        &["model"],
    )?;
    let flows = gauge(
        registry,
        "forebay_queue_flows",
        "Keys or tenants that have requests in flight or in line.",
        &["model"],
    )?;
    let connections = gauge(
        registry,
        "forebay_pool_connections",
        "Connections of a model, by state.",
        &["model", "state"],
    )?;
    for pool in pools {
        let name = pool.model.as_str();
        waiting.with_label_values(&[name]).set(count(pool.waiting));
        floor.with_label_values(&[name]).set(count(pool.warm_floor));
        admitted
            .with_label_values(&[name])
            .set(count(pool.admission_limit));
        flows.with_label_values(&[name]).set(count(pool.flows));
        in_flight
            .with_label_values(&[name])
            .set(count(pool.in_flight));
        for (state, n) in [
            ("idle", pool.idle),
            ("active", pool.active),
            ("connecting", pool.connecting),
            ("draining", pool.draining),
        ] {
            connections.with_label_values(&[name, state]).set(count(n));
        }
    }
    Ok(())
}

/// Each endpoint's share; a name that has several addresses is one endpoint.
fn endpoints(registry: &Registry, pools: &[PoolSnapshot]) -> Result<(), Error> {
    let labels = &["model", "endpoint"];
    let open = gauge(
        registry,
        "forebay_endpoint_connections",
        "Connections open to an endpoint.",
        labels,
    )?;
    let in_flight = gauge(
        registry,
        "forebay_endpoint_in_flight",
        "Requests in flight at an endpoint.",
        labels,
    )?;
    let quarantined = gauge(
        registry,
        "forebay_endpoint_quarantined",
        "Addresses of an endpoint that get no requests, because another model is served there.",
        labels,
    )?;
    let state = gauge(
        registry,
        "forebay_endpoint_state",
        "Addresses of an endpoint, by how they stand.",
        &["model", "endpoint", "state"],
    )?;
    for pool in pools {
        for endpoint in &pool.endpoints {
            // Servers that a source names come and go: they count for the endpoint that an operator named.
            let id = endpoint.source.as_ref().unwrap_or(&endpoint.id);
            let name = &[pool.model.as_str(), id.as_str()];
            let addresses = || endpoint.addresses.iter();
            let open_now = addresses().map(|address| address.open).sum();
            let in_flight_now = addresses().map(|address| address.in_flight).sum();
            open.with_label_values(name).add(count(open_now));
            in_flight.with_label_values(name).add(count(in_flight_now));
            let wrong = count(endpoint.quarantined.len());
            quarantined.with_label_values(name).add(wrong);
            for word in ["healthy", "unreachable", "ejected", "half_open"] {
                let so = addresses().filter(|address| address.state == word);
                let labels = &[pool.model.as_str(), id.as_str(), word];
                state.with_label_values(labels).add(count(so.count()));
            }
        }
    }
    Ok(())
}

/// What sources name; by the endpoints that operators named.
fn discovery(registry: &Registry, pools: &[PoolSnapshot]) -> Result<(), Error> {
    let labels = &["model", "endpoint"];
    let servers = gauge(
        registry,
        "forebay_discovery_targets",
        "Servers that a source of endpoints names, by what becomes of them.",
        &["model", "endpoint", "state"],
    )?;
    let stale = gauge(
        registry,
        "forebay_discovery_stale",
        "1 if a source does not say now which servers there are: those that were known serve, if there are any.",
        labels,
    )?;
    let age = Opts::new(
        "forebay_discovery_last_success_age_seconds",
        "Time since a source was understood; absent until it was.",
    );
    let age = GaugeVec::new(age, labels)?;
    registry.register(Box::new(age.clone()))?;
    for pool in pools {
        for source in &pool.discovery {
            let name = &[pool.model.as_str(), source.endpoint.as_str()];
            let is_stale = i64::from(source.is_stale());
            stale.with_label_values(name).set(is_stale);
            if let Some(seconds) = source.last_success_seconds {
                age.with_label_values(name).set(seconds);
            }
            for (state, n) in [
                ("used", source.servers),
                ("double", source.doubles),
                ("calming", source.calming),
                ("no_room", source.no_room),
                ("refused", source.refused),
            ] {
                let labels = &[pool.model.as_str(), source.endpoint.as_str(), state];
                servers.with_label_values(labels).set(count(n));
            }
        }
    }
    Ok(())
}

fn counters(registry: &Registry, pools: &[&PoolSnapshot]) -> Result<(), Error> {
    let counter = |name: &str, help: &str, label: &str| {
        let counter = IntCounterVec::new(Opts::new(name, help), &["model", label])?;
        registry.register(Box::new(counter.clone()))?;
        Ok::<_, Error>(counter)
    };
    let opened = counter(
        "forebay_pool_connections_opened_total",
        "Connections opened, by reason.",
        "reason",
    )?;
    let closed = counter(
        "forebay_pool_connections_closed_total",
        "Connections closed, by reason.",
        "reason",
    )?;
    let checkouts = counter(
        "forebay_pool_checkouts_total",
        "Connections handed out, reused or new.",
        "kind",
    )?;
    let stale = counter(
        "forebay_pool_stale_total",
        "Connections found dead, at checkout or when the request was to be sent.",
        "found",
    )?;
    let ejections = counter(
        "forebay_ejections_total",
        "Ejections of endpoints, by what showed that they are broken.",
        "reason",
    )?;
    let turned_away = counter(
        "forebay_queue_refused_total",
        "Requests that left the line without a connection, by reason.",
        "reason",
    )?;
    for pool in pools {
        let name = pool.model.as_str();
        for (reason, n) in &pool.ejected {
            ejections.with_label_values(&[name, reason]).inc_by(*n);
        }
        for (reason, n) in &pool.turned_away {
            turned_away.with_label_values(&[name, reason]).inc_by(*n);
        }
        for (reason, n) in &pool.opened {
            opened.with_label_values(&[name, reason]).inc_by(*n);
        }
        for (reason, n) in &pool.closed {
            closed.with_label_values(&[name, reason]).inc_by(*n);
        }
        checkouts
            .with_label_values(&[name, "reused"])
            .inc_by(pool.checkouts_reused);
        checkouts
            .with_label_values(&[name, "new"])
            .inc_by(pool.checkouts_new);
        stale
            .with_label_values(&[name, "checkout"])
            .inc_by(pool.stale_at_checkout);
        stale
            .with_label_values(&[name, "send"])
            .inc_by(pool.stale_at_send);
    }
    Ok(())
}

fn count(n: usize) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}
