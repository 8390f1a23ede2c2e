//! What a pool counts, and the words for it. Opened minus closed is what is open, at every instant: both are counted in
//! the transition that makes them true, under the pool's lock.

use std::time::Duration;

use super::core::Refused;

/// Why a connection was opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OpenReason {
    /// A request waited for it.
    Demand,
    /// The warm floor was filled for the first time.
    Warm,
    /// The warm floor was filled again after a close.
    Refill,
    /// A changed endpoint's connections were opened ahead of need.
    Replace,
}

impl OpenReason {
    /// All of them, in the order of their counters.
    pub const ALL: [Self; 4] = [Self::Demand, Self::Warm, Self::Refill, Self::Replace];

    /// The metric's label.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Demand => "demand",
            Self::Warm => "warm",
            Self::Refill => "refill",
            Self::Replace => "replace",
        }
    }
}

/// Why a connection was closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CloseReason {
    /// It sat idle for longer than the idle limit.
    Idle,
    /// It was older than the age limit.
    Age,
    /// The upstream closed it, or asked for it to be closed.
    Upstream,
    /// A request on it failed.
    Error,
    /// The client went away in mid-request; HTTP/1.1 cannot cancel otherwise.
    Cancelled,
    /// The pool became smaller.
    Shrink,
    /// Its endpoint or model was removed.
    Removed,
    /// Its place was needed for another connection.
    Evicted,
    /// The worker stops.
    Shutdown,
}

impl CloseReason {
    /// All of them, in the order of their counters.
    pub const ALL: [Self; 9] = [
        Self::Idle,
        Self::Age,
        Self::Upstream,
        Self::Error,
        Self::Cancelled,
        Self::Shrink,
        Self::Removed,
        Self::Evicted,
        Self::Shutdown,
    ];

    /// The metric's label.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Age => "age",
            Self::Upstream => "upstream",
            Self::Error => "error",
            Self::Cancelled => "cancelled",
            Self::Shrink => "shrink",
            Self::Removed => "removed",
            Self::Evicted => "evicted",
            Self::Shutdown => "shutdown",
        }
    }
}

/// What shows that an endpoint is broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// It answers with 500, 502, or 503 as no engine does that is merely busy.
    Status,
    /// It closed the connection before it answered.
    Reset,
    /// It answers in a way that HTTP does not allow.
    Protocol,
    /// It broke off in the middle of an answer.
    Cut,
    /// It fails its health checks.
    Check,
}

impl Fault {
    /// All of them, in the order of their counters.
    pub const ALL: [Self; 5] = [
        Self::Status,
        Self::Reset,
        Self::Protocol,
        Self::Cut,
        Self::Check,
    ];

    /// The metric's label.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Status => "status",
            Self::Reset => "reset",
            Self::Protocol => "protocol",
            Self::Cut => "cut",
            Self::Check => "check",
        }
    }
}

/// What an answer says of the endpoint that it came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It answers. Told only of one that is in question; of others its pulse tells.
    Answered,
    /// It has no room now, and may have said when it will have.
    Busy(Option<Duration>),
    /// It does what only a broken one does.
    Broken(Fault),
}

/// What a verdict changed; for the pool's own log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Turn {
    /// It is ejected.
    Out(Fault),
    /// It is healthy again.
    Back,
}

/// Why a request left the line without a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TurnedAway {
    /// The line is full, and its flow has more of it than others.
    Full,
    /// The same, when one came of a flow that has less.
    Displaced,
    /// The line is full of others' requests.
    Crowded,
    /// It waited for as long as it may.
    Timeout,
    /// Its client would have given up before the answer.
    Impatient,
    /// This process leaves, and has none of the fleet-wide limit for it.
    Dry,
}

impl TurnedAway {
    /// All of them, in the order of their counters.
    pub const ALL: [Self; 6] = [
        Self::Full,
        Self::Displaced,
        Self::Crowded,
        Self::Timeout,
        Self::Impatient,
        Self::Dry,
    ];

    /// The metric's label.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Displaced => "displaced",
            Self::Crowded => "crowded",
            Self::Timeout => "timeout",
            Self::Impatient => "client_deadline",
            Self::Dry => "leaving",
        }
    }
}

/// Totals since the pool was made.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counters {
    opened: [u64; OpenReason::ALL.len()],
    closed: [u64; CloseReason::ALL.len()],
    ejected: [u64; Fault::ALL.len()],
    turned_away: [u64; TurnedAway::ALL.len()],
    /// Connections handed out that had carried a request before.
    pub reused: u64,
    /// Connections handed out for their first request.
    pub new: u64,
    /// Connects that failed.
    pub connect_failures: u64,
    /// Connections found dead when they were to be handed out.
    pub stale_at_checkout: u64,
    /// Connections found dead at the first byte of a request.
    pub stale_at_send: u64,
}

impl Counters {
    pub(super) fn count_opened(&mut self, reason: OpenReason) {
        if let Some(count) = self.opened.get_mut(reason as usize) {
            *count += 1;
        }
    }

    pub(super) fn count_closed(&mut self, reason: CloseReason) {
        if let Some(count) = self.closed.get_mut(reason as usize) {
            *count += 1;
        }
    }

    pub(super) fn count_ejected(&mut self, why: Fault) {
        if let Some(count) = self.ejected.get_mut(why as usize) {
            *count += 1;
        }
    }

    /// Ejections of endpoints, by what showed that they are broken.
    pub fn ejected(&self) -> impl Iterator<Item = (Fault, u64)> {
        Fault::ALL.into_iter().zip(self.ejected)
    }

    pub(super) fn count_turned_away(&mut self, reason: TurnedAway) {
        if let Some(count) = self.turned_away.get_mut(reason as usize) {
            *count += 1;
        }
    }

    pub(super) fn count_refused(&mut self, why: &Refused) {
        match why {
            Refused::QueueFull => self.count_turned_away(TurnedAway::Full),
            Refused::Displaced => self.count_turned_away(TurnedAway::Displaced),
            Refused::Crowded => self.count_turned_away(TurnedAway::Crowded),
            Refused::Dry => self.count_turned_away(TurnedAway::Dry),
            Refused::ConnectFailed(_) | Refused::NoEndpoint => {}
        }
    }

    /// Left the line without a connection, by reason.
    pub fn turned_away(&self) -> impl Iterator<Item = (TurnedAway, u64)> {
        TurnedAway::ALL.into_iter().zip(self.turned_away)
    }

    /// Opened, by reason.
    pub fn opened(&self) -> impl Iterator<Item = (OpenReason, u64)> {
        OpenReason::ALL.into_iter().zip(self.opened)
    }

    /// Closed, by reason.
    pub fn closed(&self) -> impl Iterator<Item = (CloseReason, u64)> {
        CloseReason::ALL.into_iter().zip(self.closed)
    }

    /// Opened minus closed.
    #[must_use]
    pub fn open(&self) -> u64 {
        let opened: u64 = self.opened.iter().sum();
        opened.saturating_sub(self.closed.iter().sum())
    }
}
