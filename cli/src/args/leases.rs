//! The flags of fleet-wide limits: of a model, and of the control plane that lends them.

use std::time::Duration;

use clap::{Args, ValueEnum};
use forebay_control::LeaseSettings;
use forebay_proto::{limits, wire};

/// Over what a pool's size is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ScopeArg {
    /// Each worker may have as many requests in flight
    PerWorker,
    /// All workers together; each is lent a part of it
    Fleet,
}

/// What can be said of a model's size alone.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Pool and deadlines")]
pub(crate) struct ScopeArgs {
    /// Over what --max-concurrent is counted.
    #[arg(long, value_enum, value_name = "SCOPE")]
    pub(crate) scope: Option<ScopeArg>,
    /// With scope fleet: what each worker may always use, also when it cannot reach the control plane.
    #[arg(long, value_name = "N")]
    pub(crate) fleet_floor: Option<u32>,
}

impl ScopeArgs {
    /// Says it of a pool.
    pub(crate) fn write(&self, pool: &mut Option<wire::Pool>) {
        if self.scope.is_none() && self.fleet_floor.is_none() {
            return;
        }
        let pool = pool.get_or_insert_default();
        pool.fleet_floor = self.fleet_floor;
        if let Some(scope) = self.scope {
            pool.set_scope(match scope {
                ScopeArg::PerWorker => wire::PoolScope::PerWorker,
                ScopeArg::Fleet => wire::PoolScope::Fleet,
            });
        }
    }

    /// The paths of what was given.
    pub(crate) fn paths(&self) -> Vec<String> {
        let scope = self.scope.map(|_| "pool.scope".to_owned());
        let floor = self.fleet_floor.map(|_| "pool.fleet_floor".to_owned());
        scope.into_iter().chain(floor).collect()
    }
}

/// How long what is lent holds.
#[derive(Debug, Args)]
#[command(next_help_heading = "Fleet-wide limits")]
pub(crate) struct LeaseArgs {
    /// How long a worker may use what it was lent of a fleet-wide limit without hearing of the control plane. `500ms` to
    /// `5m`; workers say what they use five times as often.
    #[arg(long, hide_env_values = true, env = "FOREBAY_LEASE_TTL", value_name = "TIME", default_value = "10s", value_parser = ttl)]
    pub(crate) lease_ttl: Duration,
    /// How long requests that run then may go on, before they are ended and what they use is lent to others. `0s` to
    /// `1h`.
    #[arg(long, hide_env_values = true, env = "FOREBAY_LEASE_LINGER", value_name = "TIME", default_value = "60s", value_parser = linger)]
    pub(crate) lease_linger: Duration,
}

impl LeaseArgs {
    /// What they say.
    pub(crate) fn settings(&self) -> LeaseSettings {
        LeaseSettings {
            ttl: self.lease_ttl,
            linger: self.lease_linger,
        }
    }
}

fn ttl(text: &str) -> Result<Duration, String> {
    let ttl = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    match limits::LEASE_TTL.contains(&ttl) {
        true => Ok(ttl),
        false => Err("must be `500ms` to `5m`".to_owned()),
    }
}

fn linger(text: &str) -> Result<Duration, String> {
    let linger = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    match limits::LEASE_LINGER.contains(&linger) {
        true => Ok(linger),
        false => Err("must be `0s` to `1h`".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_out_of_bounds_is_refused_with_the_bounds() {
        assert_eq!(ttl("2s"), Ok(Duration::from_secs(2)));
        assert_eq!(linger("0s"), Ok(Duration::ZERO));
        for bad in [
            ttl("499ms"),
            ttl("6m"),
            linger("61m"),
            ttl("soon"),
            linger("-1s"),
        ] {
            assert!(bad.is_err());
        }
    }

    #[test]
    fn only_what_was_given_is_named() {
        let args = ScopeArgs {
            scope: Some(ScopeArg::PerWorker),
            fleet_floor: None,
        };
        assert_eq!(args.paths(), ["pool.scope"]);
        let mut pool = None;
        args.write(&mut pool);
        assert_eq!(pool.unwrap().scope(), wire::PoolScope::PerWorker);
        let mut nothing = None;
        ScopeArgs::default().write(&mut nothing);
        assert_eq!(nothing, None);
    }
}
