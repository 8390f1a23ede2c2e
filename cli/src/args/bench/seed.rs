//! The flags of `forebay bench seed`.

use std::{ops::RangeInclusive, path::PathBuf, time::Duration};

use clap::{Args, ValueEnum};

use crate::args::client::Output;

const HANDSHAKE: RangeInclusive<Duration> = Duration::ZERO..=Duration::from_secs(5);
const SERVICE_TIME: RangeInclusive<Duration> = Duration::from_millis(10)..=Duration::from_secs(10);

/// The sizes, times and rates of the experiment, as the founding document has them unless told otherwise.
#[derive(Debug, Args)]
pub(crate) struct Seed {
    /// How many models, each with an upstream of its own.
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=16))]
    pub(crate) models: u16,
    /// Most requests of a model in flight.
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u16).range(1..=500))]
    pub(crate) max_concurrent: u16,
    /// Most idle connections of the document's pool, all models together. [default: twice --max-concurrent]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1_000))]
    pub(crate) keepalive: Option<u16>,
    /// In which ways requests come, separated by commas. [default: all]
    #[arg(long, value_name = "SHAPE", value_enum, value_delimiter = ',')]
    pub(crate) load: Vec<Load>,
    /// How many synchronized waves; the first is the warm-up.
    #[arg(long, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u16).range(2..=1_000))]
    pub(crate) waves: u16,
    /// How long each of the other shapes of load is counted.
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..=600))]
    pub(crate) seconds: u16,
    /// What a new connection costs, such as 115ms.
    #[arg(long, value_name = "TIME", default_value = "115ms", value_parser = handshake)]
    pub(crate) handshake: Duration,
    /// What a request takes upstream, such as 200ms.
    #[arg(long, value_name = "TIME", default_value = "200ms", value_parser = service_time)]
    pub(crate) service_time: Duration,
    /// Where the random arrivals begin; the same number gives the same arrivals.
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(crate) seed: u64,
    /// Write seed.json, seed.md and the pictures into this directory.
    #[arg(long, value_name = "DIR")]
    pub(crate) out: Option<PathBuf>,
    /// Form of what is printed.
    #[arg(short, long, hide_env_values = true, env = "FOREBAY_OUTPUT", value_name = "FORM", value_enum, default_value_t = Output::Table)]
    pub(crate) output: Output,
}

/// In which way requests come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Load {
    /// All at once, wait for all, pause.
    Waves,
    /// A client per slot, each with the next request as soon as it has its answer.
    Closed,
    /// Random arrivals that keep 65 % of the slots busy.
    Poisson,
    /// Random arrivals at the document's rate: as many per second and model as it has slots.
    Document,
}

fn handshake(text: &str) -> Result<Duration, String> {
    within(text, &HANDSHAKE)
}

fn service_time(text: &str) -> Result<Duration, String> {
    within(text, &SERVICE_TIME)
}

/// Reads a time between two others.
fn within(text: &str, bounds: &RangeInclusive<Duration>) -> Result<Duration, String> {
    let time = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    if bounds.contains(&time) {
        return Ok(time);
    }
    Err(format!(
        "must be between {} and {}",
        humantime::format_duration(*bounds.start()),
        humantime::format_duration(*bounds.end())
    ))
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use crate::args::Cli;

    #[test]
    fn every_flag_has_bounds_and_names_them() {
        for (flag, value, limit) in [
            ("--models", "0", "1..=16"),
            ("--models", "17", "1..=16"),
            ("--max-concurrent", "501", "1..=500"),
            ("--keepalive", "0", "1..=1000"),
            ("--waves", "1", "2..=1000"),
            ("--seconds", "0", "1..=600"),
            ("--handshake", "6s", "between 0s and 5s"),
            ("--service-time", "9ms", "between 10ms and 10s"),
            ("--service-time", "soon", "number"),
            ("--load", "tides", "waves, closed, poisson, document"),
            ("--seed", "-1", "-1"),
            ("--output", "xml", "table"),
        ] {
            let line = ["forebay", "bench", "seed", &format!("{flag}={value}")];
            let error = Cli::try_parse_from(line).unwrap_err().to_string();
            for part in [flag, value, limit] {
                assert!(error.contains(part), "{flag} {value}: {error}");
            }
        }
    }
}
