//! The words of the core: what goes in, what comes out, what it holds.

use std::{sync::Arc, time::Duration};

use forebay_proto::AdaptiveParams;

use super::ejection::{Rules, State};
pub(in crate::pool) use crate::pool::claim::{Ask, FlowId, Priority};
use crate::pool::counters::{CloseReason, Fault};
use crate::pool::revocation::Revocation;

/// An endpoint of one generation, or one of its addresses. Whatever changes who is at the other end makes
/// a new one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(in crate::pool) struct OriginId(pub(in crate::pool) u64);

/// An endpoint as it is configured, whatever its addresses and generations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(in crate::pool) struct EndpointKey(pub(in crate::pool) u64);

/// Which endpoints a request may go to. Nothing is said: any.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(in crate::pool) struct Wish {
    /// To this one alone: it has something that no other has.
    pub(in crate::pool) only: Option<EndpointKey>,
    /// To none of these: they were tried.
    pub(in crate::pool) not: Vec<OriginId>,
}

impl Wish {
    /// True if any will do.
    pub(in crate::pool) fn is_any(&self) -> bool {
        self.only.is_none() && self.not.is_empty()
    }
}

/// What the core is told of an origin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::pool) struct OriginSpec {
    pub(in crate::pool) id: OriginId,
    /// Which endpoint it is, or is an address of.
    pub(in crate::pool) endpoint: EndpointKey,
    /// Its share relative to the others.
    pub(in crate::pool) weight: u32,
    /// Requests that one connection will carry at a time, if that is known before there is one.
    pub(in crate::pool) streams: Option<usize>,
    /// Where it stands: an endpoint whose name is not resolved yet cannot be dialled.
    pub(in crate::pool) standing: Standing,
    /// The same server under the name that it had before: what is known of its health goes for this one.
    pub(in crate::pool) like: Option<OriginId>,
}

/// Whether an origin can be dialled, and whom it follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::pool) enum Standing {
    /// It can.
    Plain,
    /// It can, and takes the place of one that changed: it is warmed before that one's connections go.
    Heir,
    /// Its addresses are not known.
    Unresolved,
}

/// A connect under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::pool) struct Ticket(pub(super) u64);

/// A request that waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::pool) struct WaiterId {
    pub(super) seq: u64,
    pub(super) seat: Seat,
}

/// The flow that a request counts for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::pool) struct Seat(pub(super) usize);

impl Seat {
    /// That of all who belong to no flow.
    pub(super) const SHARED: Self = Self(0);
}

/// An open connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::pool) struct ConnId(pub(super) u64);

/// What the core must know of a connection.
pub(in crate::pool) trait Connection: Sized {
    /// True if its protocol carries several requests at a time.
    fn is_shared(&self) -> bool;

    /// Requests that it can carry at a time; 1 if it is not shared.
    fn streams(&self) -> usize;

    /// Another handle on it, for the next request beside others; `None` if it is not shared.
    fn another(&self) -> Option<Self>;
}

/// The parameters, as the core needs them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::pool) struct Shape {
    /// Most requests in flight now. Of a fleet-wide pool it is the share that is lent to it.
    pub(in crate::pool) size: usize,
    /// Most that it may ever be.
    pub(in crate::pool) most: usize,
    /// The size is lent.
    pub(in crate::pool) fleet_wide: bool,
    pub(in crate::pool) warm: usize,
    pub(in crate::pool) max_waiting: usize,
    pub(in crate::pool) idle_timeout: Duration,
    pub(in crate::pool) max_age: Option<Duration>,
    /// When endpoints are ejected.
    pub(in crate::pool) ejection: Rules,
    /// Endpoints are checked.
    pub(in crate::pool) checked: bool,
    /// Less than the size is let in while the engine is slow.
    pub(in crate::pool) adaptive: Option<AdaptiveParams>,
}

/// A connection with its history, or one request's place on a shared one. Idle ones live in the core,
/// those in use with their lease.
#[derive(Debug)]
pub(in crate::pool) struct Held<C> {
    pub(in crate::pool) conn: C,
    pub(in crate::pool) id: ConnId,
    pub(in crate::pool) origin: OriginId,
    pub(in crate::pool) uses: u64,
    /// Others may be on the same connection.
    pub(in crate::pool) shared: bool,
    /// Its endpoint is out: how this one is answered is to be told at once.
    pub(in crate::pool) in_question: bool,
    /// The trial that it is.
    pub(super) trial: Option<u32>,
    pub(super) born: Duration,
    pub(super) idle_since: Duration,
    pub(super) granted: Duration,
    /// While it is on loan: whose request it carries.
    pub(super) seat: Seat,
    /// While it is on loan from a fleet-wide pool: how its end is told.
    pub(super) lent: Option<(u64, Revocation)>,
}

impl<C> Held<C> {
    /// Told when the share of the limit that it uses is lost.
    pub(in crate::pool) fn revocation(&self) -> Option<&Revocation> {
        self.lent.as_ref().map(|(_, revocation)| revocation)
    }

    /// How long it had rested when it was handed out; nothing if it was new.
    pub(in crate::pool) fn rested(&self) -> Duration {
        self.granted.saturating_sub(self.idle_since)
    }
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
    /// The request ended without its answer's end, and the connection goes on (HTTP/2).
    Aborted,
    /// The server declined the request without a look at it, and the connection goes on (HTTP/2).
    Declined,
    /// It cannot be used again.
    Broken(CloseReason),
}

/// Why a waiter is sent away.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::pool) enum Refused {
    /// The line is full, and his flow has more of it than others.
    QueueFull,
    /// The same; he was in it, and made room for one of a flow that has less.
    Displaced,
    /// The line is full of others' requests, none of whom has more than he would.
    Crowded,
    ConnectFailed(Arc<str>),
    /// There is none that it may go to.
    NoEndpoint,
    /// What is lent to the pool is nothing, and stays so.
    Dry,
}

/// What the shell must do.
#[derive(Debug)]
pub(in crate::pool) enum Effect<C, W> {
    Grant {
        waiter: W,
        held: Held<C>,
    },
    Refuse {
        waiter: W,
        why: Refused,
    },
    Connect {
        ticket: Ticket,
        origin: OriginId,
    },
    Close {
        conn: C,
    },
    /// Lets go of a handle; the connection goes on.
    LetGo {
        conn: C,
    },
    /// The request is to end: what it uses is not this worker's any more.
    Revoke(Revocation),
}

/// What a transition brings with it.
pub(in crate::pool) type Effects<C, W> = Vec<Effect<C, W>>;

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

/// What is open to one origin.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(in crate::pool) struct OriginCensus {
    pub(in crate::pool) open: usize,
    pub(in crate::pool) in_flight: usize,
    pub(in crate::pool) state: State,
    /// No connection to it can be made.
    pub(in crate::pool) unreachable: bool,
    /// Why it is out.
    pub(in crate::pool) why: Option<Fault>,
    /// For how long it asked not to be asked.
    pub(in crate::pool) pauses: Option<Duration>,
}

/// Counts at one instant.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(in crate::pool) struct Census {
    pub(in crate::pool) idle: usize,
    pub(in crate::pool) active: usize,
    pub(in crate::pool) draining: usize,
    pub(in crate::pool) connecting: usize,
    pub(in crate::pool) waiting: usize,
    /// Requests; several may be on one connection.
    pub(in crate::pool) in_flight: usize,
    /// Requests on what was removed.
    pub(in crate::pool) draining_requests: usize,
    /// Connections kept open ahead of need now.
    pub(in crate::pool) floor: usize,
    /// Most requests in flight that are let in now.
    pub(in crate::pool) admitted: usize,
    /// Flows that have requests in flight or in line.
    pub(in crate::pool) flows: usize,
    /// Requests that wait and could be served.
    pub(in crate::pool) wanting: usize,
    /// Slots that count as used for a while: of requests that were cut short.
    pub(in crate::pool) cooling: usize,
    /// Requests in flight that do not end with the lease.
    pub(in crate::pool) lasting: usize,
}
