//! How a request learns that what it uses of a fleet-wide limit is not this worker's any more.

use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

/// Told at most once.
#[derive(Debug, Clone, Default)]
pub struct Revocation(CancellationToken);

impl Revocation {
    /// Tells it.
    pub(in crate::pool) fn revoke(&self) {
        self.0.cancel();
    }

    /// True once it was told.
    #[must_use]
    pub fn is_revoked(&self) -> bool {
        self.0.is_cancelled()
    }

    /// Waits for it.
    pub(crate) fn told(&self) -> WaitForCancellationFutureOwned {
        self.0.clone().cancelled_owned()
    }
}

/// Waits for it; for ever where there is nothing to wait for.
pub(crate) async fn told(revocation: Option<Revocation>) {
    match revocation {
        Some(revocation) => revocation.told().await,
        None => std::future::pending().await,
    }
}
