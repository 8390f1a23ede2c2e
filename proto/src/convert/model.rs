//! `Model` and its parts.

use super::endpoint::{placeholder, read_endpoint};
use super::failure::{read_failure, write_failure};
use super::units::{duration_in, duration_to_wire, duration_zero_or_in, number_in};
use crate::{
    endpoint::Endpoint,
    ids::ModelId,
    limits,
    model::{ModelSpec, StreamUsage, Streaming},
    pool::{
        AdaptiveOverrides, PoolOverrides, PoolParams, PoolScope, PoolSize, QueueCost,
        RequestHeader, TimeoutOverrides, Timeouts, TurnOverrides,
    },
    probe::{Outcome, ProbeMode, ProbeSpec, ServedName, Verdict},
    violation::{InvalidValue, Violations},
    wire,
};

impl TryFrom<wire::Model> for ModelSpec {
    type Error = Violations;

    /// Reads what an operator may set. Output-only fields are not looked at; whether
    /// `pool.keepalive` may stand there is for the registry, which knows the size.
    fn try_from(wire: wire::Model) -> Result<Self, Violations> {
        let mut violations = Violations::new();
        let failure = violations.here(read_failure(&wire));
        let (id, aliases, endpoints) =
            names_and_endpoints(&mut violations, &wire.id, &wire.aliases, wire.endpoints);
        let pool = violations.part("pool", wire.pool.unwrap_or_default().try_into());
        let timeouts = violations.part("timeouts", wire.timeouts.unwrap_or_default().try_into());
        let probe = violations.part("probe", read_probe(wire.probe));
        let streaming = violations.part("streaming", read_streaming(wire.streaming));
        // Without an id the rest is still checked, under a name that never leaves here.
        let id = id.or_else(|| ModelId::new("refused").ok());
        let spec = id.and_then(|id| violations.here(Self::new(id, aliases, endpoints)));
        let spec = spec.zip(failure);
        let spec = spec.and_then(|(spec, failure)| violations.here(spec.failing(failure)));
        let all = spec.zip(pool).zip(timeouts.zip(probe.zip(streaming)));
        violations.finish(all.map(|((spec, pool), (timeouts, (probe, streaming)))| {
            let spec = spec.asking(pool, timeouts).probed(probe);
            spec.streaming(streaming)
        }))
    }
}

impl From<&ModelSpec> for wire::Model {
    fn from(spec: &ModelSpec) -> Self {
        let mut wire = Self {
            id: spec.id().to_string(),
            aliases: spec.aliases().iter().map(ToString::to_string).collect(),
            endpoints: spec.endpoints().iter().map(Into::into).collect(),
            pool: Some((&spec.pool).into()).filter(|pool| *pool != wire::Pool::default()),
            timeouts: Some((&spec.timeouts).into())
                .filter(|timeouts| *timeouts != wire::Timeouts::default()),
            probe: probe_to_wire(&spec.probe),
            streaming: streaming_to_wire(&spec.streaming),
            ..Self::default()
        };
        write_failure(spec.failure(), &mut wire);
        wire
    }
}

pub(super) fn read_probe(wire: Option<wire::EndpointProbe>) -> Result<ProbeSpec, Violations> {
    let wire = wire.unwrap_or_default();
    let mut violations = Violations::new();
    let mode = match wire::ProbeMode::try_from(wire.mode) {
        Ok(wire::ProbeMode::Unspecified) => ProbeMode::Off,
        Ok(wire::ProbeMode::Report) => ProbeMode::Report,
        Ok(wire::ProbeMode::Enforce) => ProbeMode::Enforce,
        Err(_) => {
            let message = format!("{} is not a mode; use REPORT or ENFORCE", wire.mode);
            violations.add("mode", message);
            ProbeMode::Off
        }
    };
    let served_name = match wire.served_name.as_str() {
        "" => None,
        name => violations.check("served_name", ServedName::new(name)),
    };
    violations.finish(Some(ProbeSpec { mode, served_name }))
}

/// Absent when nothing is said, as in what an older build wrote: the same content has the same bytes.
pub(super) fn probe_to_wire(probe: &ProbeSpec) -> Option<wire::EndpointProbe> {
    let mode = match probe.mode {
        ProbeMode::Off => wire::ProbeMode::Unspecified,
        ProbeMode::Report => wire::ProbeMode::Report,
        ProbeMode::Enforce => wire::ProbeMode::Enforce,
    };
    let name = probe.served_name.as_ref().map(ToString::to_string);
    let wire = wire::EndpointProbe {
        mode: mode.into(),
        served_name: name.unwrap_or_default(),
    };
    Some(wire).filter(|wire| *wire != wire::EndpointProbe::default())
}

pub(super) fn read_streaming(wire: Option<wire::Streaming>) -> Result<Streaming, Violations> {
    let wire = wire.unwrap_or_default();
    let mut violations = Violations::new();
    let usage = match wire::StreamUsage::try_from(wire.usage) {
        Ok(wire::StreamUsage::Unspecified | wire::StreamUsage::Pass) => StreamUsage::Pass,
        Ok(wire::StreamUsage::Inject) => StreamUsage::Inject,
        Err(_) => {
            let message = format!("{} is not a word for it; use PASS or INJECT", wire.usage);
            violations.add("usage", message);
            StreamUsage::Pass
        }
    };
    let keep_alive = duration_in(
        &mut violations,
        "keep_alive",
        wire.keep_alive,
        &limits::KEEP_ALIVE,
    );
    violations.finish(Some(Streaming { usage, keep_alive }))
}

/// Absent when nothing is said, like a probe.
pub(super) fn streaming_to_wire(streaming: &Streaming) -> Option<wire::Streaming> {
    let usage = match streaming.usage {
        StreamUsage::Pass => wire::StreamUsage::Unspecified,
        StreamUsage::Inject => wire::StreamUsage::Inject,
    };
    let wire = wire::Streaming {
        usage: usage.into(),
        keep_alive: streaming.keep_alive.map(duration_to_wire),
    };
    Some(wire).filter(|wire| *wire != wire::Streaming::default())
}

/// What was found at an endpoint, for whoever wrote it.
#[must_use]
pub fn probe_result_to_wire(endpoint: &Endpoint, found: &Outcome) -> wire::ProbeResult {
    let verdict = match found.verdict {
        Verdict::Ok => wire::ProbeVerdict::Ok,
        Verdict::Unreachable => wire::ProbeVerdict::Unreachable,
        Verdict::Mismatch => wire::ProbeVerdict::Mismatch,
        Verdict::Blocked => wire::ProbeVerdict::Blocked,
        Verdict::Unknown => wire::ProbeVerdict::Unknown,
        Verdict::NotProbed => wire::ProbeVerdict::NotProbed,
    };
    wire::ProbeResult {
        endpoint_id: endpoint.id.to_string(),
        verdict: verdict.into(),
        message: found.message.clone(),
        listed: found.listed.iter().map(ToString::to_string).collect(),
    }
}

/// Reads the id, the aliases and the endpoints. What is bad is noted, and something that is like nothing
/// else stands in its place, so that what is told of the others has the right index. It never leaves
/// the conversion: a violation was noted.
pub(super) fn names_and_endpoints(
    violations: &mut Violations,
    id: &str,
    aliases: &[String],
    endpoints: Vec<wire::Endpoint>,
) -> (Option<ModelId>, Vec<ModelId>, Vec<Endpoint>) {
    let id = violations.check("id", ModelId::new(id));
    let aliases = aliases.iter().enumerate();
    let aliases = aliases
        .filter_map(|(n, alias)| {
            violations
                .check(&format!("aliases[{n}]"), ModelId::new(alias))
                .or_else(|| ModelId::new(format!("refused-alias-{n}")).ok())
        })
        .collect();
    let endpoints = endpoints
        .into_iter()
        .enumerate()
        .filter_map(|(n, endpoint)| {
            violations
                .part(&format!("endpoints[{n}]"), read_endpoint(n, endpoint))
                .or_else(|| placeholder(n))
        })
        .collect();
    (id, aliases, endpoints)
}

impl TryFrom<wire::Pool> for PoolOverrides {
    type Error = Violations;

    fn try_from(wire: wire::Pool) -> Result<Self, Violations> {
        let mut violations = Violations::new();
        let v = &mut violations;
        let scope = read_scope(v, wire.scope);
        let size = wire.max_concurrent.map(PoolSize::new);
        let queue = wire.queue.unwrap_or_default();
        let pool = Self {
            max_concurrent: size.and_then(|size| v.check("max_concurrent", size)),
            scope,
            fleet_floor: number_in(
                v,
                "fleet_floor",
                wire.fleet_floor,
                &(0..=*limits::POOL_SIZE.end()),
            ),
            max_waiting: number_in(
                v,
                "queue.max_waiting",
                queue.max_waiting,
                &limits::MAX_WAITING,
            ),
            max_wait: duration_in(v, "queue.max_wait", queue.max_wait, &limits::MAX_WAIT),
            warm: number_in(v, "warm", wire.warm, &(0..=*limits::POOL_SIZE.end())),
            idle_timeout: duration_in(v, "idle_timeout", wire.idle_timeout, &limits::IDLE_TIMEOUT),
            max_connection_age: duration_zero_or_in(
                v,
                "max_connection_age",
                wire.max_connection_age,
                &limits::CONNECTION_AGE,
            ),
            replay_unanswered: wire.replay_unanswered,
            turns: read_turns(v, &queue),
            adaptive: read_adaptive(v, wire.adaptive),
        };
        violations.finish(Some(pool))
    }
}

impl From<&PoolOverrides> for wire::Pool {
    fn from(pool: &PoolOverrides) -> Self {
        let turns = &pool.turns;
        let queue = wire::Queue {
            max_waiting: pool.max_waiting,
            max_wait: pool.max_wait.map(duration_to_wire),
            tenant_header: turns.tenant_header.as_ref().map(header_to_wire),
            priority_header: turns.priority_header.as_ref().map(header_to_wire),
            cost: turns.cost.map(cost_to_wire),
        };
        let adaptive = wire::Adaptive {
            min: pool.adaptive.min,
            target_first_byte: pool.adaptive.target_first_byte.map(duration_to_wire),
            tolerance_percent: pool.adaptive.tolerance_percent,
        };
        Self {
            max_concurrent: pool.max_concurrent.map(PoolSize::get),
            // What is as it always was is not told: the record stays.
            scope: match pool.scope {
                PoolScope::PerWorker => wire::PoolScope::Unspecified,
                PoolScope::Fleet => wire::PoolScope::Fleet,
            }
            .into(),
            fleet_floor: pool.fleet_floor,
            queue: Some(queue).filter(|queue| *queue != wire::Queue::default()),
            warm: pool.warm,
            idle_timeout: pool.idle_timeout.map(duration_to_wire),
            max_connection_age: pool.max_connection_age.map(duration_to_wire),
            replay_unanswered: pool.replay_unanswered,
            adaptive: Some(adaptive).filter(|adaptive| *adaptive != wire::Adaptive::default()),
            ..Self::default()
        }
    }
}

impl From<&PoolParams> for wire::Pool {
    /// Everything, output-only fields included.
    fn from(pool: &PoolParams) -> Self {
        let turns = &pool.turns;
        let header = |header: &RequestHeader| header.as_str().to_owned();
        Self {
            max_concurrent: Some(pool.size.get()),
            scope: match pool.scope {
                PoolScope::PerWorker => wire::PoolScope::PerWorker,
                PoolScope::Fleet => wire::PoolScope::Fleet,
            }
            .into(),
            fleet_floor: pool.is_fleet_wide().then_some(pool.fleet_floor),
            queue: Some(wire::Queue {
                max_waiting: Some(pool.max_waiting),
                max_wait: Some(duration_to_wire(pool.max_wait)),
                // What is as it always was is not told: the digest stays.
                tenant_header: turns.tenant_header.as_ref().map(header),
                priority_header: turns.priority_header.as_ref().map(header),
                cost: (turns.cost != QueueCost::default()).then(|| cost_to_wire(turns.cost)),
            }),
            warm: Some(pool.warm),
            idle_timeout: Some(duration_to_wire(pool.idle_timeout)),
            max_connection_age: Some(duration_to_wire(
                pool.max_connection_age.unwrap_or_default(),
            )),
            replay_unanswered: Some(pool.replay_unanswered),
            adaptive: pool.adaptive.map(|adaptive| wire::Adaptive {
                min: Some(adaptive.min),
                target_first_byte: adaptive.target_first_byte.map(duration_to_wire),
                tolerance_percent: Some(adaptive.tolerance_percent),
            }),
            keepalive: Some(pool.size.get()),
            coverage: Some(1.0),
        }
    }
}

fn read_scope(v: &mut Violations, scope: i32) -> PoolScope {
    match wire::PoolScope::try_from(scope) {
        Ok(wire::PoolScope::Unspecified | wire::PoolScope::PerWorker) => PoolScope::PerWorker,
        Ok(wire::PoolScope::Fleet) => PoolScope::Fleet,
        Err(_) => {
            let message = format!("{scope} is not a scope; use PER_WORKER or FLEET");
            v.add("scope", message);
            PoolScope::PerWorker
        }
    }
}

/// How turns are given, of a model or of the settings.
pub(super) fn read_turns(v: &mut Violations, queue: &wire::Queue) -> TurnOverrides {
    let mut header = |field, name: &Option<String>| {
        let name = name.as_deref().map(RequestHeader::parse);
        name.and_then(|name| v.check(field, name))
    };
    let tenant_header = header("queue.tenant_header", &queue.tenant_header);
    let priority_header = header("queue.priority_header", &queue.priority_header);
    let cost = queue
        .cost
        .map(|cost| match wire::QueueCost::try_from(cost) {
            Ok(wire::QueueCost::Unspecified | wire::QueueCost::Request) => Ok(QueueCost::Request),
            Ok(wire::QueueCost::Tokens) => Ok(QueueCost::Tokens),
            Err(_) => Err(InvalidValue::new(format!(
                "{cost} is not a cost; use REQUEST or TOKENS"
            ))),
        });
    TurnOverrides {
        tenant_header,
        priority_header,
        cost: cost.and_then(|cost| v.check("queue.cost", cost)),
    }
}

/// How less is let in, of a model or of the settings.
pub(super) fn read_adaptive(v: &mut Violations, wire: Option<wire::Adaptive>) -> AdaptiveOverrides {
    let wire = wire.unwrap_or_default();
    let sizes = 0..=*limits::POOL_SIZE.end();
    AdaptiveOverrides {
        min: number_in(v, "adaptive.min", wire.min, &sizes),
        target_first_byte: duration_zero_or_in(
            v,
            "adaptive.target_first_byte",
            wire.target_first_byte,
            &limits::TIMEOUT,
        ),
        tolerance_percent: number_in(
            v,
            "adaptive.tolerance_percent",
            wire.tolerance_percent,
            &limits::TOLERANCE_PERCENT,
        ),
    }
}

fn header_to_wire(header: &Option<RequestHeader>) -> String {
    let name = header.as_ref().map(RequestHeader::as_str);
    name.unwrap_or_default().to_owned()
}

fn cost_to_wire(cost: QueueCost) -> i32 {
    match cost {
        QueueCost::Request => wire::QueueCost::Request,
        QueueCost::Tokens => wire::QueueCost::Tokens,
    }
    .into()
}

impl TryFrom<wire::Timeouts> for TimeoutOverrides {
    type Error = Violations;

    fn try_from(wire: wire::Timeouts) -> Result<Self, Violations> {
        let mut violations = Violations::new();
        let v = &mut violations;
        let timeouts = Self {
            connect: duration_in(v, "connect", wire.connect, &limits::TIMEOUT),
            first_byte: duration_in(v, "first_byte", wire.first_byte, &limits::TIMEOUT),
            idle: duration_in(v, "idle", wire.idle, &limits::TIMEOUT),
            total: duration_in(v, "total", wire.total, &limits::TIMEOUT),
        };
        violations.finish(Some(timeouts))
    }
}

impl From<&TimeoutOverrides> for wire::Timeouts {
    fn from(timeouts: &TimeoutOverrides) -> Self {
        Self {
            connect: timeouts.connect.map(duration_to_wire),
            first_byte: timeouts.first_byte.map(duration_to_wire),
            idle: timeouts.idle.map(duration_to_wire),
            total: timeouts.total.map(duration_to_wire),
        }
    }
}

impl From<&Timeouts> for wire::Timeouts {
    fn from(timeouts: &Timeouts) -> Self {
        Self {
            connect: Some(duration_to_wire(timeouts.connect)),
            first_byte: Some(duration_to_wire(timeouts.first_byte)),
            idle: Some(duration_to_wire(timeouts.idle)),
            total: Some(duration_to_wire(timeouts.total)),
        }
    }
}
