//! Several control planes on three real members of an etcd. One test at a time: each starts its own members.

#![expect(
    clippy::unwrap_used,
    reason = "in a test, a wrong assumption is to fail at once"
)]

mod faults;
mod leases;
mod replicas;
mod rings;
mod secure;

use tokio::sync::{Mutex, MutexGuard};

/// On two cores three members, control planes and workers are enough.
async fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::const_new(());
    TURN.lock().await
}
