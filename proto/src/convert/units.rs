//! Durations, timestamps and small numbers.

use std::{
    ops::RangeInclusive,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use crate::{pool::in_range, violation::InvalidValue, violation::Violations};

/// A duration as the wire has it.
#[must_use]
pub fn duration_to_wire(duration: Duration) -> prost_types::Duration {
    prost_types::Duration {
        seconds: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(duration.subsec_nanos()).unwrap_or(0),
    }
}

/// A time as the wire has it. Times before 1970 become 1970.
#[must_use]
pub fn timestamp_to_wire(time: SystemTime) -> prost_types::Timestamp {
    let since = duration_to_wire(time.duration_since(UNIX_EPOCH).unwrap_or_default());
    prost_types::Timestamp {
        seconds: since.seconds,
        nanos: since.nanos,
    }
}

/// Reads an optional duration that must lie in the range.
pub(super) fn duration_in(
    violations: &mut Violations,
    field: &str,
    wire: Option<prost_types::Duration>,
    range: &RangeInclusive<Duration>,
) -> Option<Duration> {
    let duration = violations.check(field, read_duration(wire?))?;
    violations.check(field, in_range(duration, range))
}

/// Reads an optional duration that is zero or lies in the range.
pub(super) fn duration_zero_or_in(
    violations: &mut Violations,
    field: &str,
    wire: Option<prost_types::Duration>,
    range: &RangeInclusive<Duration>,
) -> Option<Duration> {
    match wire {
        Some(prost_types::Duration {
            seconds: 0,
            nanos: 0,
        }) => Some(Duration::ZERO),
        other => duration_in(violations, field, other, range),
    }
}

/// Reads an optional number that must lie in the range.
pub(super) fn number_in(
    violations: &mut Violations,
    field: &str,
    wire: Option<u32>,
    range: &RangeInclusive<u32>,
) -> Option<u32> {
    violations.check(field, in_range(wire?, range))
}

fn read_duration(wire: prost_types::Duration) -> Result<Duration, InvalidValue> {
    match (u64::try_from(wire.seconds), u32::try_from(wire.nanos)) {
        (Ok(seconds), Ok(nanos)) if nanos < 1_000_000_000 => Ok(Duration::new(seconds, nanos)),
        _ => Err(InvalidValue::new(
            "must be a duration of zero or more, such as `4s` or `0.5s`",
        )),
    }
}
