//! The flags of rollouts in rings.

use std::time::Duration;

use clap::Args;
use forebay_control::{Rings, RolloutSettings};

/// How a new revision reaches the workers.
#[derive(Debug, Args)]
#[command(next_help_heading = "Rollouts in rings")]
pub(crate) struct RingArgs {
    /// Offer each new revision to so many workers first, then to more, then to all: numbers and shares, such as
    /// 1,25%. [default: to all at once]
    #[arg(
        long,
        hide_env_values = true,
        env = "FOREBAY_RINGS",
        value_name = "RINGS"
    )]
    pub(crate) rings: Option<Rings>,
    /// How long a ring runs it before the next one gets it.
    #[arg(long, hide_env_values = true, env = "FOREBAY_RING_SOAK", value_name = "TIME", default_value = "10s", value_parser = soak)]
    pub(crate) ring_soak: Duration,
    /// By how many points the share of failed requests may be above that of the other workers.
    #[arg(long, hide_env_values = true, env = "FOREBAY_RING_MAX_ERRORS", value_name = "PERCENT", default_value = "10%", value_parser = share)]
    pub(crate) ring_max_errors: f64,
    /// How many times the other workers' p99 time to an answer's head is allowed.
    #[arg(long, hide_env_values = true, env = "FOREBAY_RING_MAX_SLOWDOWN", value_name = "TIMES", default_value = "3", value_parser = times)]
    pub(crate) ring_max_slowdown: f64,
}

impl RingArgs {
    /// What they say; nothing without rings.
    pub(crate) fn settings(&self) -> Option<RolloutSettings> {
        self.rings.clone().map(|rings| RolloutSettings {
            rings,
            soak: self.ring_soak,
            max_errors: self.ring_max_errors,
            max_slowdown: self.ring_max_slowdown,
        })
    }
}

/// Shorter than a report of the workers it would prove nothing.
fn soak(text: &str) -> Result<Duration, String> {
    let soak = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    let most = Duration::from_secs(24 * 3_600);
    match (Duration::from_secs(5)..=most).contains(&soak) {
        true => Ok(soak),
        false => Err("must be `5s` to `24h`".to_owned()),
    }
}

fn share(text: &str) -> Result<f64, String> {
    let percent = text.strip_suffix('%').unwrap_or(text).parse::<f64>();
    match percent {
        Ok(percent) if (0.0..=100.0).contains(&percent) => Ok(percent / 100.0),
        _ => Err("must be `0%` to `100%`".to_owned()),
    }
}

fn times(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(times) if (1.0..=1_000.0).contains(&times) => Ok(times),
        _ => Err("must be `1` to `1000`".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_out_of_bounds_is_refused_with_the_bounds() {
        assert_eq!(soak("10s"), Ok(Duration::from_secs(10)));
        assert_eq!(share("12.5%"), Ok(0.125));
        assert_eq!(times("2.5"), Ok(2.5));
        for bad in [soak("4s").err(), soak("25h").err(), soak("soon").err()] {
            assert!(bad.is_some());
        }
        for bad in ["-1%", "101%", "NaN", "much"] {
            assert!(share(bad).is_err(), "{bad}");
        }
        for bad in ["0.5", "NaN", "inf", "twice"] {
            assert!(times(bad).is_err(), "{bad}");
        }
    }
}
