//! What a control plane keeps through kills and power cuts, as those see it who wrote: the binary under load,
//! asked over gRPC. How to run it at length: docs/bench/durability.md.

#![expect(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "in a test, a wrong assumption is to fail at once"
)]

mod disk;
mod kills;
mod ledger;
mod plane;
mod power_cut;
mod recording;
mod reopening;
mod writers;

use std::str::FromStr;

use tokio::sync::{Mutex, MutexGuard};

/// A count that is small unless the environment says otherwise.
fn count<T: FromStr<Err: std::fmt::Debug>>(variable: &str, otherwise: T) -> T {
    std::env::var(variable).map_or(otherwise, |text| text.parse().unwrap())
}

/// One test at a time: each measures, and loads the machine.
async fn alone() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::const_new(());
    TURN.lock().await
}
