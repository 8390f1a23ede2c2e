//! Whether this process may open as many files as a configuration needs. A worker that accepted
//! more would fail in the middle of the night, in `accept`.

use forebay_proto::{Budget, ResolvedModel};
use rustix::process::{Resource, getrlimit};

/// Listeners, logs, the control stream, the last-known-good file, and some air.
const RESERVE: u64 = 64;

/// How many files this process may open.
#[must_use]
pub fn open_file_limit() -> u64 {
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}

/// How many clients may be connected under this limit: as many as [`check`] counts on, so that a crowd of
/// them cannot take the files of the upstreams, the admin port and the control stream.
#[must_use]
pub fn client_connections(limit: u64) -> usize {
    let clients = limit.saturating_sub(RESERVE) / 2;
    usize::try_from(clients).unwrap_or(usize::MAX).max(1)
}

/// Says why a configuration does not fit the limit, with the arithmetic.
///
/// Each connection to an upstream serves a connection of a client, so a slot needs two files.
pub(super) fn check(models: &[ResolvedModel], budget: Budget, limit: u64) -> Result<(), String> {
    let slots: u64 = models
        .iter()
        .map(|model| u64::from(model.pool.size.get()))
        .sum();
    // All together never have more open than the budget.
    let slots = slots.min(u64::from(budget.get()));
    let needed = slots * 2 + RESERVE;
    if needed <= limit {
        return Ok(());
    }
    Err(format!(
        "{slots} connections to upstreams and as many to clients, and {RESERVE} other files need \
         {needed} open files; this process may open {limit}; raise its limit (`ulimit -n`, \
         `LimitNOFILE=`) or make the pools smaller"
    ))
}
