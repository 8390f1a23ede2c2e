//! The flags of `forebay bench`.

mod seed;
mod zero_loss;

use clap::Subcommand;

pub(crate) use self::{
    seed::{Load, Seed},
    zero_loss::ZeroLoss,
};
use super::examples::{SEED_EXAMPLES, ZERO_LOSS_EXAMPLES};

#[derive(Debug, Subcommand)]
pub(crate) enum Bench {
    /// Measure what a keepalive below the pool size costs: the founding experiment, on real sockets.
    #[command(after_help = SEED_EXAMPLES)]
    Seed(Seed),
    /// Look for requests that a gateway loses while it is reconfigured; for any OpenAI-compatible one.
    ///
    /// Starts counting upstreams, whose answers can be checked word by word, makes requests to the gateway
    /// at a fixed rate, runs a command that reconfigures it meanwhile, and tells what was lost. The gateway
    /// must already lead to the upstreams.
    #[command(after_help = ZERO_LOSS_EXAMPLES)]
    ZeroLoss(Box<ZeroLoss>),
}
