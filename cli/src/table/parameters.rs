//! What is shown of a model beside its names and its pool: failing, streams, turns, admission.

use forebay_proto::wire;

use super::{dash, duration, number};

/// What was said of failing; what was not is as documented.
pub(super) fn failure(model: &wire::Model) -> Vec<(&'static str, String)> {
    let mut rows = Vec::new();
    if let Some(health) = &model.health {
        let every = match &health.interval {
            Some(interval) => duration(Some(interval)),
            None => "5s".to_owned(),
        };
        rows.push((
            "health",
            format!("{} every {every}", dash(health.path.clone())),
        ));
    }
    if let Some(ejection) = &model.ejection {
        let after = match ejection.failures.unwrap_or(5) {
            0 => "never by answers".to_owned(),
            failures => format!("after {failures} broken answers in a row"),
        };
        rows.push(("ejection", after));
    }
    if let Some(retry) = &model.retry {
        let on: Vec<&str> = retry.on().map(retry_on).collect();
        let on = if on.is_empty() {
            "busy".to_owned()
        } else {
            on.join(", ")
        };
        let attempts = retry.max_attempts.unwrap_or(2);
        rows.push(("retry", format!("{attempts} endpoints at most, after {on}")));
    }
    if !model.fallbacks.is_empty() {
        rows.push(("fallbacks", model.fallbacks.join(", ")));
    }
    rows
}

fn retry_on(cause: wire::RetryOn) -> &'static str {
    match cause {
        wire::RetryOn::Unspecified => "nothing",
        wire::RetryOn::Busy => "busy",
        wire::RetryOn::BadGateway => "bad-gateway",
        wire::RetryOn::ServerError => "server-error",
        wire::RetryOn::Reset => "reset",
    }
}

pub(super) fn streams_of(streaming: &wire::Streaming) -> String {
    let usage = match streaming.usage() {
        wire::StreamUsage::Inject => "usage asked for",
        wire::StreamUsage::Unspecified | wire::StreamUsage::Pass => "as they come",
    };
    match &streaming.keep_alive {
        None => usage.to_owned(),
        every => format!("{usage}, a comment every {}", duration(every.as_ref())),
    }
}

/// How turns are given in the line, where they are.
pub(super) fn turns(queue: &wire::Queue) -> String {
    let header = |what: &str, name: &Option<String>| {
        let name = name.as_deref().filter(|name| !name.is_empty());
        name.map(|name| format!(", {what} by `{name}`"))
    };
    let tenants = header("turns", &queue.tenant_header);
    let priorities = header("priority", &queue.priority_header);
    let tokens = i32::from(wire::QueueCost::Tokens);
    let cost = (queue.cost == Some(tokens)).then(|| ", weighed by tokens".to_owned());
    tenants.into_iter().chain(priorities).chain(cost).collect()
}

/// How many requests are let in.
pub(super) fn admission(adaptive: Option<&wire::Adaptive>) -> String {
    let adaptive = adaptive.filter(|adaptive| adaptive.min.is_some_and(|min| min > 0));
    let Some(adaptive) = adaptive else {
        return "up to the pool size".to_owned();
    };
    let target = adaptive.target_first_byte.as_ref();
    let target = target.filter(|target| target.seconds > 0 || target.nanos > 0);
    let slow = match target {
        Some(target) => format!("a first byte after {}", duration(Some(target))),
        None => format!(
            "{} % of the quickest",
            adaptive.tolerance_percent.unwrap_or(200)
        ),
    };
    format!(
        "down to {} while the engine is slow ({slow}) or refuses",
        number(adaptive.min)
    )
}
