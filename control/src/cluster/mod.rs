//! Which process decides, where several control planes serve one fleet: who leases fleet-wide limits and leads rollouts.

use tokio::sync::watch;

/// Whether this process decides. A term is a fencing token: it only grows, and what was decided under an older one is
/// refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Leadership {
    /// Another one does.
    #[expect(dead_code, reason = "with sled there is one process, and it leads")]
    Follower,
    /// This one does.
    Leader {
        /// Since this term.
        term: u64,
    },
}

/// There is one process, and it decides.
pub(crate) fn alone() -> watch::Receiver<Leadership> {
    // What was said stays readable when nobody can say anything else any more.
    watch::channel(Leadership::Leader { term: 1 }).1
}
