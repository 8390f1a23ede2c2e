//! Clients' keys and their version.

use std::{
    num::NonZeroU32,
    time::{Duration, UNIX_EPOCH},
};

use super::units::timestamp_to_wire;
use crate::{
    ids::ModelId,
    key::{KeyName, KeySpec, KeyWeight, KeysPosition, LONGEST, Priority, in_range},
    limits,
    revision::{Digest, Epoch},
    violation::{InvalidValue, Violations},
    wire,
};

impl TryFrom<&wire::Key> for KeySpec {
    type Error = Violations;

    fn try_from(wire: &wire::Key) -> Result<Self, Violations> {
        let mut violations = Violations::new();
        let name = violations.check("display_name", KeyName::new(&*wire.display_name));
        if wire.models.len() > limits::KEY_MODELS {
            let (given, most) = (wire.models.len(), limits::KEY_MODELS);
            let message =
                format!("{given} models, at most {most} are allowed; an empty list allows all");
            violations.add("models", message);
        }
        let named = wire.models.iter().enumerate().take(limits::KEY_MODELS);
        let models = named
            .filter_map(|(n, name)| violations.check(&format!("models[{n}]"), ModelId::new(name)))
            .collect();
        let expires = wire.expire_time.as_ref();
        let expires = expires.and_then(|time| violations.check("expire_time", read_time(time)));
        let mut number = |field, value: Option<u32>, range| {
            let value = value.and_then(|value| violations.check(field, in_range(value, range)));
            value.and_then(NonZeroU32::new)
        };
        let requests = number(
            "requests_per_minute",
            wire.requests_per_minute,
            &limits::KEY_REQUESTS,
        );
        let tokens = number(
            "tokens_per_minute",
            wire.tokens_per_minute,
            &limits::KEY_TOKENS,
        );
        let concurrent = number(
            "max_concurrent",
            wire.max_concurrent,
            &limits::KEY_CONCURRENT,
        );
        let weight = match wire.weight {
            Some(weight) => violations.check("weight", KeyWeight::new(weight)),
            None => Some(KeyWeight::default()),
        };
        let priority = violations.check("priority", read_priority(wire.priority));
        let all = name.zip(weight).zip(priority);
        violations.finish(all.map(|((name, weight), priority)| Self {
            name,
            models,
            expires,
            requests_per_minute: requests,
            tokens_per_minute: tokens,
            max_concurrent: concurrent,
            priority,
            weight,
        }))
    }
}

fn read_time(time: &prost_types::Timestamp) -> Result<std::time::SystemTime, InvalidValue> {
    let seconds = u64::try_from(time.seconds).ok();
    let nanos = u32::try_from(time.nanos)
        .ok()
        .filter(|n| *n < 1_000_000_000);
    let since = seconds.zip(nanos).map(|(s, n)| Duration::new(s, n));
    // A hundred years after 1970 and a hundred more: no clock of ours goes further.
    let since = since.filter(|since| *since <= 2 * LONGEST);
    since
        .map(|since| UNIX_EPOCH + since)
        .ok_or_else(|| InvalidValue::new("must be a time between 1970 and 2169"))
}

fn read_priority(wire: i32) -> Result<Priority, InvalidValue> {
    use wire::KeyPriority as Wire;
    match Wire::try_from(wire) {
        Ok(Wire::Low) => Ok(Priority::Low),
        Ok(Wire::Unspecified | Wire::Normal) => Ok(Priority::Normal),
        Ok(Wire::High) => Ok(Priority::High),
        Err(_) => Err(InvalidValue::new(format!(
            "{wire} is not a priority; use LOW, NORMAL or HIGH"
        ))),
    }
}

impl From<&KeySpec> for wire::Key {
    fn from(spec: &KeySpec) -> Self {
        use wire::KeyPriority as Wire;
        let priority = match spec.priority {
            Priority::Low => Wire::Low,
            Priority::Normal => Wire::Normal,
            Priority::High => Wire::High,
        };
        Self {
            display_name: spec.name.as_str().to_owned(),
            models: spec.models.iter().map(ToString::to_string).collect(),
            expire_time: spec.expires.map(timestamp_to_wire),
            requests_per_minute: spec.requests_per_minute.map(NonZeroU32::get),
            tokens_per_minute: spec.tokens_per_minute.map(NonZeroU32::get),
            max_concurrent: spec.max_concurrent.map(NonZeroU32::get),
            priority: priority.into(),
            weight: Some(spec.weight.get()),
            ..Self::default()
        }
    }
}

impl From<&KeysPosition> for wire::KeysPosition {
    fn from(position: &KeysPosition) -> Self {
        Self {
            epoch: position.epoch.as_str().to_owned(),
            version: position.version,
            digest: position.digest.as_bytes().to_vec().into(),
        }
    }
}

impl TryFrom<wire::KeysPosition> for KeysPosition {
    type Error = Violations;

    fn try_from(wire: wire::KeysPosition) -> Result<Self, Violations> {
        let mut violations = Violations::new();
        let epoch = violations.check("epoch", Epoch::new(wire.epoch));
        let digest = violations.check("digest", Digest::from_slice(&wire.digest));
        violations.finish(epoch.zip(digest).map(|(epoch, digest)| Self {
            epoch,
            version: wire.version,
            digest,
        }))
    }
}
