//! `forebay bench`.

mod zero_loss;

use crate::args::Bench;

/// Runs one of them.
pub(crate) async fn run(command: Bench) -> anyhow::Result<()> {
    match command {
        Bench::ZeroLoss(args) => zero_loss::run(*args).await,
    }
}
