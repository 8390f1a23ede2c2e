//! What becomes of requests when endpoints fail: `HealthCheck`, `Ejection`, `Retry`, `fallbacks`.

use super::units::{duration_in, duration_to_wire, number_in};
use crate::{
    failure::{CheckPath, EjectionSpec, FailureSpec, HealthSpec, RetryOn, RetrySpec},
    ids::ModelId,
    limits,
    violation::Violations,
    wire,
};

/// Reads them, under the model's own path.
pub(super) fn read_failure(wire: &wire::Model) -> Result<FailureSpec, Violations> {
    let mut violations = Violations::new();
    let v = &mut violations;
    let health = v.part("health", read_health(wire.health.clone()));
    let ejection = v.part("ejection", read_ejection(wire.ejection.unwrap_or_default()));
    let retry = v.part("retry", read_retry(wire.retry.clone()));
    let fallbacks = wire.fallbacks.iter().enumerate();
    let fallbacks = fallbacks
        .filter_map(|(n, id)| v.check(&format!("fallbacks[{n}]"), ModelId::new(id)))
        .collect();
    let all = health.zip(ejection).zip(retry);
    violations.finish(all.map(|((health, ejection), retry)| FailureSpec {
        health,
        ejection,
        retry,
        fallbacks,
    }))
}

/// Writes them. What is not said stays unsaid, so that older revisions keep their digest.
pub(super) fn write_failure(spec: &FailureSpec, to: &mut wire::Model) {
    to.health = Some((&spec.health).into()).filter(|h| *h != wire::HealthCheck::default());
    to.ejection = Some((&spec.ejection).into()).filter(|e| *e != wire::Ejection::default());
    to.retry = Some((&spec.retry).into()).filter(|r| *r != wire::Retry::default());
    to.fallbacks = spec.fallbacks.iter().map(ToString::to_string).collect();
}

fn read_health(wire: Option<wire::HealthCheck>) -> Result<HealthSpec, Violations> {
    let wire = wire.unwrap_or_default();
    let mut violations = Violations::new();
    let v = &mut violations;
    let path = match wire.path.as_str() {
        "" => None,
        path => v.check("path", CheckPath::new(path)),
    };
    let count = &limits::CHECKS;
    let health = HealthSpec {
        path,
        interval: duration_in(v, "interval", wire.interval, &limits::CHECK_INTERVAL),
        timeout: duration_in(v, "timeout", wire.timeout, &limits::CHECK_TIMEOUT),
        unhealthy_after: number_in(v, "unhealthy_after", wire.unhealthy_after, count),
        healthy_after: number_in(v, "healthy_after", wire.healthy_after, count),
    };
    if let Some(timeout) = health.timeout.filter(|t| *t > health.interval()) {
        let interval = health.interval();
        let message = format!(
            "{timeout:?} is longer than the interval of {interval:?}; the next check would begin before this one ends"
        );
        v.add("timeout", message);
    }
    violations.finish(Some(health))
}

fn read_ejection(wire: wire::Ejection) -> Result<EjectionSpec, Violations> {
    let mut violations = Violations::new();
    let v = &mut violations;
    let time = &limits::EJECTION_TIME;
    let ejection = EjectionSpec {
        failures: number_in(v, "failures", wire.failures, &limits::EJECTION_FAILURES),
        base_time: duration_in(v, "base_time", wire.base_time, time),
        max_time: duration_in(v, "max_time", wire.max_time, time),
        panic_percent: number_in(v, "panic_percent", wire.panic_percent, &(0..=100)),
    };
    if let Some(most) = ejection.max_time.filter(|t| *t < ejection.base_time()) {
        let base = ejection.base_time();
        let message = format!("{most:?} is less than the first time out, `base_time`, of {base:?}");
        v.add("max_time", message);
    }
    violations.finish(Some(ejection))
}

fn read_retry(wire: Option<wire::Retry>) -> Result<RetrySpec, Violations> {
    use wire::RetryOn as Wire;
    let wire = wire.unwrap_or_default();
    let mut violations = Violations::new();
    let v = &mut violations;
    let attempts = &limits::RETRY_ATTEMPTS;
    let max_attempts = number_in(v, "max_attempts", wire.max_attempts, attempts);
    let mut on = Vec::new();
    for (n, cause) in wire.on.into_iter().enumerate() {
        let cause = match Wire::try_from(cause) {
            Ok(Wire::Busy) => RetryOn::Busy,
            Ok(Wire::BadGateway) => RetryOn::BadGateway,
            Ok(Wire::ServerError) => RetryOn::ServerError,
            Ok(Wire::Reset) => RetryOn::Reset,
            Ok(Wire::Unspecified) | Err(_) => {
                let message =
                    format!("{cause} is not a cause; use BUSY, BAD_GATEWAY, SERVER_ERROR or RESET");
                v.add(format!("on[{n}]"), message);
                continue;
            }
        };
        match on.contains(&cause) {
            true => v.add(format!("on[{n}]"), "stands twice; leave one"),
            false => on.push(cause),
        }
    }
    violations.finish(Some(RetrySpec { max_attempts, on }))
}

impl From<&HealthSpec> for wire::HealthCheck {
    fn from(health: &HealthSpec) -> Self {
        let path = health.path.as_ref();
        Self {
            path: path.map_or_else(String::new, ToString::to_string),
            interval: health.interval.map(duration_to_wire),
            timeout: health.timeout.map(duration_to_wire),
            unhealthy_after: health.unhealthy_after,
            healthy_after: health.healthy_after,
        }
    }
}

impl From<&EjectionSpec> for wire::Ejection {
    fn from(ejection: &EjectionSpec) -> Self {
        Self {
            failures: ejection.failures,
            base_time: ejection.base_time.map(duration_to_wire),
            max_time: ejection.max_time.map(duration_to_wire),
            panic_percent: ejection.panic_percent,
        }
    }
}

impl From<&RetrySpec> for wire::Retry {
    fn from(retry: &RetrySpec) -> Self {
        use wire::RetryOn as Wire;
        let on = retry.on.iter().map(|cause| match cause {
            RetryOn::Busy => Wire::Busy.into(),
            RetryOn::BadGateway => Wire::BadGateway.into(),
            RetryOn::ServerError => Wire::ServerError.into(),
            RetryOn::Reset => Wire::Reset.into(),
        });
        Self {
            max_attempts: retry.max_attempts,
            on: on.collect(),
        }
    }
}
