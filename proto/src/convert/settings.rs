//! `PoolDefaults`.

use super::{
    model::{read_adaptive, read_turns},
    units::{duration_in, duration_to_wire, duration_zero_or_in, number_in},
};
use crate::{
    limits,
    pool::{ModelsConcurrent, PoolOverrides, PoolScope, PoolSettings, PoolSize},
    violation::Violations,
    wire,
};

impl TryFrom<wire::PoolDefaults> for PoolSettings {
    type Error = Violations;

    /// Reads what an operator may set; what is absent takes the built-in default.
    fn try_from(wire: wire::PoolDefaults) -> Result<Self, Violations> {
        let mut violations = Violations::new();
        let v = &mut violations;
        let defaults = Self::default();
        let size = match wire.max_concurrent {
            Some(size) => v.check("max_concurrent", PoolSize::new(size)),
            None => Some(defaults.max_concurrent),
        };
        let models = match wire.max_models_concurrent {
            Some(models) => v.check("max_models_concurrent", ModelsConcurrent::new(models)),
            None => Some(defaults.max_models_concurrent),
        };
        let queue = wire.queue.unwrap_or_default();
        let pool = PoolOverrides {
            max_concurrent: None,
            scope: PoolScope::PerWorker,
            fleet_floor: None,
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
        let timeouts = v.part("timeouts", wire.timeouts.unwrap_or_default().try_into());
        let settings = size
            .zip(models)
            .zip(timeouts)
            .map(|((size, models), timeouts)| Self {
                max_concurrent: size,
                max_models_concurrent: models,
                pool,
                timeouts,
            });
        if let Some(settings) = &settings {
            violations.check("max_models_concurrent", settings.budget());
        }
        violations.finish(settings)
    }
}

impl From<&PoolSettings> for wire::PoolDefaults {
    /// What was set, and the output-only arithmetic.
    fn from(settings: &PoolSettings) -> Self {
        let budget = settings
            .budget()
            .map(|budget| budget.get())
            .unwrap_or(*limits::BUDGET.end());
        let pool = wire::Pool::from(&settings.pool);
        let timeouts = wire::Timeouts::from(&settings.timeouts);
        Self {
            max_concurrent: Some(settings.max_concurrent.get()),
            max_models_concurrent: Some(settings.max_models_concurrent.get()),
            queue: pool.queue,
            warm: settings.pool.warm,
            idle_timeout: settings.pool.idle_timeout.map(duration_to_wire),
            max_connection_age: settings.pool.max_connection_age.map(duration_to_wire),
            replay_unanswered: settings.pool.replay_unanswered,
            adaptive: pool.adaptive,
            timeouts: Some(timeouts).filter(|timeouts| *timeouts != wire::Timeouts::default()),
            keepalive: Some(budget),
            budget,
            coverage: Some(1.0),
            ..Self::default()
        }
    }
}
