//! How much of the limits of a configuration is used, and a word when half and four fifths of one are passed: once
//! per crossing, so that an operator hears of it before a write is refused.

use forebay_proto::limits;

use crate::{
    metrics::{Limit, Metrics},
    registry::Published,
};

/// How near a limit is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
enum Level {
    #[default]
    Far,
    /// From 50 %.
    Half,
    /// From 80 %.
    Near,
}

impl Level {
    fn of(used: usize, most: usize) -> Self {
        match used.saturating_mul(100) / most.max(1) {
            0..50 => Self::Far,
            50..80 => Self::Half,
            _ => Self::Near,
        }
    }
}

/// What was said last of each limit.
#[derive(Debug, Default)]
pub(super) struct Alarms {
    models: Level,
    bytes: Level,
    endpoints: Level,
}

impl Alarms {
    /// Looks at a configuration.
    pub(super) fn look(&mut self, published: &Published, metrics: &Metrics) {
        let state = &published.state;
        for (limit, level, used, most) in [
            (Limit::Models, &mut self.models, state.len(), limits::MODELS),
            (
                Limit::ConfigBytes,
                &mut self.bytes,
                published.config.len(),
                limits::CONFIG_BYTES,
            ),
            (
                Limit::ModelEndpoints,
                &mut self.endpoints,
                state.most_endpoints(),
                limits::ENDPOINTS,
            ),
        ] {
            metrics.used(limit, used as f64 / most as f64);
            say(limit, level, used, most);
        }
    }
}

fn say(limit: Limit, level: &mut Level, used: usize, most: usize) {
    let limit = limit.label();
    match crossed(level, Level::of(used, most)) {
        None => {}
        Some(Level::Near) => tracing::error!(
            limit,
            used,
            most,
            "more than 80 % of a limit are used; remove models, aliases or endpoints"
        ),
        Some(Level::Half) => tracing::warn!(limit, used, most, "half of a limit is used"),
        Some(Level::Far) => tracing::info!(limit, used, most, "less than half of a limit is used"),
    }
}

/// The new level, if it is another one.
fn crossed(level: &mut Level, new: Level) -> Option<Level> {
    (std::mem::replace(level, new) != new).then_some(new)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_crossing_is_told_of_once() {
        let mut level = Level::default();
        let mut at = |used| crossed(&mut level, Level::of(used, 10_000));
        assert_eq!(at(4_999), None);
        assert_eq!(at(5_000), Some(Level::Half));
        assert_eq!(at(7_999), None);
        assert_eq!(at(8_000), Some(Level::Near));
        assert_eq!(at(10_000), None);
        assert_eq!(at(6_000), Some(Level::Half), "and back");
        assert_eq!(at(0), Some(Level::Far));
    }
}
