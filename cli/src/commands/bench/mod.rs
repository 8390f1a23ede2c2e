//! `forebay bench`.

mod seed;

use crate::args::{Bench, LogArgs};

/// Runs one of them.
pub(crate) async fn run(log: &LogArgs, command: Bench) -> anyhow::Result<()> {
    match command {
        Bench::Seed(args) => seed::run(log, args).await,
    }
}
