//! The words of the core: what goes in, what comes out, what it holds.

use std::{sync::Arc, time::Duration};

use crate::pool::counters::CloseReason;

/// An endpoint of one generation. A changed url is a new origin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(in crate::pool) struct OriginId(pub(in crate::pool) u64);

/// A connect under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::pool) struct Ticket(pub(super) u64);

/// A request that waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::pool) struct WaiterId(pub(super) u64);

/// An open connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::pool) struct ConnId(pub(super) u64);

/// The parameters, as the core needs them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::pool) struct Shape {
    pub(in crate::pool) size: usize,
    pub(in crate::pool) warm: usize,
    pub(in crate::pool) max_waiting: usize,
    pub(in crate::pool) idle_timeout: Duration,
    pub(in crate::pool) max_age: Option<Duration>,
}

/// An open connection with its history. Idle ones live in the core, active ones with their lease.
#[derive(Debug)]
pub(in crate::pool) struct Held<C> {
    pub(in crate::pool) conn: C,
    pub(in crate::pool) id: ConnId,
    pub(in crate::pool) origin: OriginId,
    pub(in crate::pool) uses: u64,
    pub(super) born: Duration,
    pub(super) idle_since: Duration,
    pub(super) granted: Duration,
}

/// How a connection comes back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::pool) enum Outcome {
    /// At a message boundary: it can carry the next request.
    Reusable,
    /// It was handed out but nothing was asked of it.
    Unused,
    /// It carried an answer to its end, and the upstream closes it.
    Finished,
    /// It cannot be used again.
    Broken(CloseReason),
}

/// Why a waiter is sent away.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::pool) enum Refused {
    QueueFull,
    ConnectFailed(Arc<str>),
}

/// What the shell must do.
#[derive(Debug)]
pub(in crate::pool) enum Effect<C, W> {
    Grant { waiter: W, held: Held<C> },
    Refuse { waiter: W, why: Refused },
    Connect { ticket: Ticket, origin: OriginId },
    Close { conn: C },
}

/// Where a waiter stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::pool) enum Place {
    Back,
    /// For one whose connection turned out to be dead: it had waited its turn.
    Front,
    /// The same, for one that must have a connection that carried no request yet.
    FrontForFresh,
}

/// How long connections to an endpoint may rest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::pool) struct Idle {
    pub(in crate::pool) announced: Option<Duration>,
    pub(in crate::pool) learned: Option<Duration>,
    pub(in crate::pool) limit: Duration,
}

/// Counts at one instant.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(in crate::pool) struct Census {
    pub(in crate::pool) idle: usize,
    pub(in crate::pool) active: usize,
    pub(in crate::pool) draining: usize,
    pub(in crate::pool) connecting: usize,
    pub(in crate::pool) waiting: usize,
}
