//! `Config`, as it is pushed to workers.

use std::time::Duration;

use super::failure::{read_failure, write_failure};
use super::model::{
    names_and_endpoints, probe_to_wire, read_probe, read_streaming, streaming_to_wire,
};
use crate::{
    config::Config,
    model::{ModelSpec, ResolvedModel},
    pool::{
        AdaptiveOverrides, Budget, PoolOverrides, PoolParams, PoolScope, PoolSettings,
        TimeoutOverrides, Timeouts, TurnOverrides,
    },
    revision::Revision,
    violation::Violations,
    wire,
};

impl From<&Config> for wire::Config {
    fn from(config: &Config) -> Self {
        Self {
            budget: config.budget().get(),
            models: config.models().iter().map(Into::into).collect(),
        }
    }
}

impl TryFrom<wire::Config> for Config {
    type Error = Violations;

    fn try_from(wire: wire::Config) -> Result<Self, Violations> {
        let mut violations = Violations::new();
        let budget = violations.check("budget", Budget::new(wire.budget));
        let given = wire.models.len();
        let models: Vec<ResolvedModel> = wire
            .models
            .into_iter()
            .enumerate()
            .filter_map(|(n, model)| violations.part(&format!("models[{n}]"), model.try_into()))
            .collect();
        let budget = budget.filter(|_| models.len() == given);
        let config = budget.and_then(|budget| violations.here(Self::new(budget, models)));
        violations.finish(config)
    }
}

impl From<&ResolvedModel> for wire::Model {
    fn from(model: &ResolvedModel) -> Self {
        let mut wire = Self {
            id: model.id.to_string(),
            aliases: model.aliases.iter().map(ToString::to_string).collect(),
            endpoints: model.endpoints.iter().map(Into::into).collect(),
            revision: model.revision.get(),
            probe: probe_to_wire(&model.probe),
            streaming: streaming_to_wire(&model.streaming),
            resolved_pool: Some((&model.pool).into()),
            resolved_timeouts: Some((&model.timeouts).into()),
            ..Self::default()
        };
        write_failure(&model.failure, &mut wire);
        wire
    }
}

impl TryFrom<wire::Model> for ResolvedModel {
    type Error = Violations;

    fn try_from(wire: wire::Model) -> Result<Self, Violations> {
        let mut violations = Violations::new();
        let revision = Revision::new(wire.revision);
        let failure = violations.here(read_failure(&wire));
        let (id, aliases, endpoints) =
            names_and_endpoints(&mut violations, &wire.id, &wire.aliases, wire.endpoints);
        let pool = read_pool(wire.resolved_pool);
        let pool = violations.part("resolved_pool", pool);
        let timeouts = read_timeouts(wire.resolved_timeouts);
        let timeouts = violations.part("resolved_timeouts", timeouts);
        let probe = violations.part("probe", read_probe(wire.probe));
        let streaming = violations.part("streaming", read_streaming(wire.streaming));
        let spec = id.and_then(|id| violations.here(ModelSpec::new(id, aliases, endpoints)));
        let spec = spec.zip(failure);
        let spec = spec.and_then(|(spec, failure)| violations.here(spec.failing(failure)));
        let all = spec.zip(pool).zip(timeouts.zip(probe.zip(streaming)));
        violations.finish(
            all.map(|((spec, pool), (timeouts, (probe, streaming)))| Self {
                failure: spec.failure().clone(),
                id: spec.id().clone(),
                aliases: spec.aliases().to_vec(),
                endpoints: spec.endpoints().to_vec(),
                pool,
                timeouts,
                probe,
                streaming,
                revision,
            }),
        )
    }
}

fn read_pool(wire: Option<wire::Pool>) -> Result<PoolParams, Violations> {
    let asked = PoolOverrides::try_from(wire.unwrap_or_default())?;
    let mut violations = Violations::new();
    let size = present(&mut violations, "max_concurrent", asked.max_concurrent)?;
    let params = PoolParams {
        size,
        scope: asked.scope,
        fleet_floor: match asked.scope {
            PoolScope::PerWorker => 0,
            PoolScope::Fleet => asked.fleet_floor.unwrap_or(PoolSettings::FLEET_FLOOR),
        },
        max_waiting: present(&mut violations, "queue.max_waiting", asked.max_waiting)?,
        max_wait: present(&mut violations, "queue.max_wait", asked.max_wait)?,
        warm: present(&mut violations, "warm", asked.warm)?,
        idle_timeout: present(&mut violations, "idle_timeout", asked.idle_timeout)?,
        max_connection_age: asked.max_connection_age.filter(|age| !age.is_zero()),
        // Not in what an older build wrote.
        replay_unanswered: asked.replay_unanswered.unwrap_or(true),
        turns: asked.turns.or(&TurnOverrides::default()),
        adaptive: asked.adaptive.or(&AdaptiveOverrides::default(), size),
    };
    if params.warm > params.size.get() {
        violations.add(
            "warm",
            format!("{} exceeds the size {}", params.warm, params.size),
        );
    }
    violations.finish(Some(params))
}

fn read_timeouts(wire: Option<wire::Timeouts>) -> Result<Timeouts, Violations> {
    let asked = TimeoutOverrides::try_from(wire.unwrap_or_default())?;
    let mut violations = Violations::new();
    let mut read = |field, value: Option<Duration>| present(&mut violations, field, value);
    Ok(Timeouts {
        connect: read("connect", asked.connect)?,
        first_byte: read("first_byte", asked.first_byte)?,
        idle: read("idle", asked.idle)?,
        total: read("total", asked.total)?,
    })
}

/// A pushed configuration is resolved: an absent field is an error of the sender's.
fn present<T>(violations: &mut Violations, field: &str, value: Option<T>) -> Result<T, Violations> {
    value.ok_or_else(|| {
        violations.add(field, "required in a pushed configuration");
        std::mem::take(violations)
    })
}
