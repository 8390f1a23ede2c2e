//! The product on a network that fails. `network check` proves that wires do what they say; `network run` cuts control
//! plane and workers apart, in each of the ways of [`Case`], while the workers serve and the control plane is written to,
//! and times how long the workers take to be current after the network is well again. Ends with 1 if a request failed, a
//! write failed, or they took too long. Figures: docs/bench/network.md.

#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::expect_used,
    reason = "a program for the terminal; scenery that cannot be set up ends it"
)]

mod bed;
mod case;
mod proofs;
mod report;
mod run;
mod stand;

use std::{path::PathBuf, process::ExitCode, time::Duration};

use clap::{Parser, Subcommand};
use forebay_testbed::what_is_missing;

use self::{case::Case, run::Plan};

#[derive(Debug, Parser)]
#[command(about = "The product on a network that fails; needs root")]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Proves that wires delay, lose and cut as they say, and that nothing is left of a bed whose process was killed.
    Check,
    /// Cuts control plane and workers apart, and measures.
    Run(Run),
    /// Hosts with a wire from the first to each of the others, to be looked at and shaped by hand: see what it prints.
    Stand {
        /// Their names, two at least.
        #[arg(required = true, num_args = 2..)]
        hosts: Vec<String>,
        /// Starts this on each, a program and its arguments, and ends it with this one.
        #[arg(long)]
        program: Option<String>,
    },
}

#[derive(Debug, clap::Args)]
struct Run {
    /// How often each.
    #[arg(long, default_value_t = 1)]
    runs: usize,
    /// How long the network is bad; up to 3 s more, drawn.
    #[arg(long, default_value = "60s", value_parser = humantime::parse_duration)]
    lasts: Duration,
    /// In which ways; all unless said. At the same time, each on hosts of its own.
    #[arg(long = "case", value_enum, value_delimiter = ',')]
    cases: Vec<Case>,
    /// Workers of each control plane.
    #[arg(long, default_value_t = 2)]
    workers: usize,
    /// Requests a second for each worker.
    #[arg(long, default_value_t = 10)]
    rate: u32,
    /// The forebay binary. [default: the one beside this program]
    #[arg(long)]
    binary: Option<PathBuf>,
}

#[tokio::main]
async fn main() -> ExitCode {
    let args = Args::parse();
    if let Some(missing) = what_is_missing() {
        eprintln!("failed: {missing}");
        return ExitCode::FAILURE;
    }
    let good = match args.command {
        Command::Check => proofs::all().await,
        Command::Stand { hosts, program } => {
            stand::stand(&hosts, program).await;
            true
        }
        Command::Run(run) => match binary(run.binary) {
            Ok(binary) => {
                let plan = Plan {
                    runs: run.runs,
                    lasts: run.lasts,
                    workers: run.workers,
                    rate: run.rate,
                    binary,
                };
                run::all(plan, run.cases).await
            }
            Err(why) => {
                eprintln!("failed: {why}");
                false
            }
        },
    };
    match good {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    }
}

fn binary(said: Option<PathBuf>) -> Result<String, String> {
    let beside = || {
        let own = std::env::current_exe().ok()?;
        Some(own.parent()?.join("forebay"))
    };
    let binary = said.or_else(beside).unwrap_or_default();
    match binary.is_file() {
        true => Ok(binary.to_string_lossy().into_owned()),
        false => Err(format!(
            "there is no {}: cargo build, or say --binary",
            binary.display()
        )),
    }
}
