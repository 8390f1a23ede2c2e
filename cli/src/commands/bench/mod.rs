//! `forebay bench`.

mod seed;
mod zero_loss;

use crate::args::{Bench, LogArgs};

/// Runs one of them.
pub(crate) async fn run(log: &LogArgs, command: Bench) -> anyhow::Result<()> {
    match command {
        Bench::Seed(args) => seed::run(log, args).await,
        Bench::ZeroLoss(args) => zero_loss::run(*args).await,
    }
}
