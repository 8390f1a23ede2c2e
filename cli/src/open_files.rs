//! The process's limit of open files. Every connection is one.

use rustix::process::{Resource, getrlimit, setrlimit};

/// Raises it as far as the process may.
pub(crate) fn raise_limit() {
    let mut limit = getrlimit(Resource::Nofile);
    if limit.current == limit.maximum {
        return;
    }
    limit.current = limit.maximum;
    match setrlimit(Resource::Nofile, limit) {
        Ok(()) => tracing::debug!(limit = ?limit.maximum, "the open-file limit was raised"),
        Err(error) => tracing::warn!(%error, "the open-file limit could not be raised"),
    }
}
