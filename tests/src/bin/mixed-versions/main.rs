//! This version beside the one before, in both directions: each control plane with each worker, and a fleet that is rolled
//! from one to the other and back, worker by worker, under load and while it is written to. Ends with 1 if a request
//! failed, or something was not as it must be. `tests/with-previous` makes the binary of the version before.

#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::expect_used,
    clippy::panic,
    reason = "a program for the terminal; scenery that cannot be set up ends it"
)]

mod fleet;
mod scenes;
mod writer;

use std::{path::PathBuf, process::ExitCode};

use clap::Parser;

#[derive(Debug, Parser)]
#[command(about = "This version beside the one before, in both directions")]
struct Args {
    /// The forebay binary of the version before.
    #[arg(long, env = "FOREBAY_PREVIOUS_BINARY")]
    previous: PathBuf,
    /// The one of this version. [default: the one beside this program]
    #[arg(long)]
    current: Option<PathBuf>,
    /// Requests a second.
    #[arg(long, default_value_t = 50)]
    rate: u32,
}

/// Both of them.
#[derive(Debug, Clone)]
struct Versions {
    old: String,
    new: String,
    rate: u32,
}

#[tokio::main]
async fn main() -> ExitCode {
    let args = Args::parse();
    let beside = || Some(std::env::current_exe().ok()?.parent()?.join("forebay"));
    let current = args.current.or_else(beside).unwrap_or_default();
    for binary in [&args.previous, &current] {
        if !binary.is_file() {
            eprintln!("failed: there is no {}", binary.display());
            return ExitCode::FAILURE;
        }
    }
    let [old, new] = [args.previous, current].map(|path| path.to_string_lossy().into_owned());
    let versions = Versions {
        old,
        new,
        rate: args.rate,
    };
    println!("| | requests | failed | writes |\n|---|---|---|---|");
    let scenes = [
        scenes::old_control_new_workers(&versions).await,
        scenes::new_control_old_workers(&versions).await,
        scenes::there_and_back(&versions).await,
    ];
    let mut failed = 0;
    for scene in scenes {
        failed += u32::from(scene.served.failed > 0 || scene.served.requests == 0);
        scene
            .served
            .told
            .iter()
            .for_each(|how| println!("failed: {how}"));
    }
    println!("{} passed, {failed} failed", 3 - failed);
    match failed {
        0 => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    }
}
