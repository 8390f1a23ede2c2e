//! One endpoint (or one of its addresses) within the core: its idle connections, what is in use, and its
//! trouble.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use super::{
    AT_ONCE, ConnId, Connection, EndpointKey, Held, MOST_STREAMS, OriginId, OriginSpec, Outcome,
    Pulse, Seat, Standing, ejection::Health, handover::HANDOVER, idle::IdleLimit, shared::Shared,
};
use crate::pool::counters::CloseReason;

/// First pause after a failed connect; doubles up to [`BACKOFF_MOST`].
const BACKOFF_FIRST: Duration = Duration::from_millis(50);
/// Longest pause between connects to an endpoint that fails.
const BACKOFF_MOST: Duration = Duration::from_secs(2);

/// A connection closed within this time of its beginning was no connection.
const SOON: Duration = Duration::from_secs(1);
/// After this long a connection to an endpoint that failed is taken for a real one.
const HOLDS: Duration = Duration::from_millis(100);
/// After this long without a failure the next one begins a new run.
const FORGOTTEN: Duration = Duration::from_secs(30);
/// A server that leaves an unused connection open for this long leaves it open.
const UNUSED_FOREVER: Duration = Duration::from_secs(60);

/// Where an origin stands in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// It is configured, and gets connections and requests.
    Current,
    /// It changed; what it has open still serves until its heirs are warm, or until this time.
    Leaving(Duration),
    /// It gets nothing any more; requests that are on it finish.
    Retired,
}

#[derive(Debug)]
pub(super) struct Origin<C> {
    pub(super) id: OriginId,
    pub(super) endpoint: EndpointKey,
    pub(super) weight: u32,
    pub(super) phase: Phase,
    pub(super) standing: Standing,
    /// Oldest in front; taken from the back.
    pub(super) idle: VecDeque<Held<C>>,
    /// Connections on loan that carry one request at a time.
    pub(super) active: usize,
    /// Those that carry several.
    pub(super) shared: Vec<Shared<C>>,
    /// Requests that one connection here carries at a time, once that is known.
    pub(super) streams: Option<usize>,
    /// Whether connections to it can be made.
    pub(super) trouble: Option<Trouble>,
    /// Whether it answers as it should.
    pub(super) health: Health,
    /// Signs of life, which its connections note.
    pub(super) pulse: Arc<Pulse>,
    pub(super) idle_limit: IdleLimit,
    /// After how long it closes connections that never carried a request.
    unused_limit: IdleLimit,
    /// When it is looked next whether a resting connection is in need of a request.
    pub(super) turn_at: Duration,
}

/// An endpoint that fails. It is over with the first request that is answered; a connection alone says
/// little, as anything in between may accept it and close it again.
#[derive(Debug, Clone)]
pub(super) struct Trouble {
    /// When this run of failures began.
    pub(super) since: Duration,
    last: Duration,
    retry_at: Duration,
    failures: u32,
    /// When a connection was made since. If it holds, others may follow.
    connected: Option<Duration>,
    /// For how long it has to hold until more are opened that nobody waits for.
    lasts: Duration,
    pub(super) error: Arc<str>,
}

/// Where an origin's next request can go.
#[derive(Debug, Clone, Copy)]
pub(super) enum Spot {
    Idle(usize),
    Shared(usize),
}

impl<C> Origin<C> {
    pub(super) fn new(spec: &OriginSpec) -> Self {
        Self {
            id: spec.id,
            endpoint: spec.endpoint,
            weight: spec.weight,
            phase: Phase::Current,
            standing: spec.standing,
            idle: VecDeque::new(),
            active: 0,
            shared: Vec::new(),
            streams: spec.streams,
            trouble: None,
            health: Health::default(),
            pulse: Arc::default(),
            idle_limit: IdleLimit::default(),
            unused_limit: IdleLimit::default(),
            turn_at: Duration::ZERO,
        }
    }

    /// It is the same server as this one, which leaves: what is known of its health goes on.
    pub(super) fn resemble(&mut self, like: &Self) {
        self.health = like.health.inherited();
        let trouble = like.trouble.clone();
        // What was connected there is none of its own.
        self.trouble = trouble.map(|trouble| Trouble {
            connected: None,
            ..trouble
        });
    }

    pub(super) fn is_current(&self) -> bool {
        self.phase == Phase::Current
    }

    /// Requests on it.
    pub(super) fn in_flight(&self) -> usize {
        let streams = self.shared.iter().map(|shared| shared.streams);
        self.active + streams.sum::<usize>()
    }

    /// Connections that carry a request.
    pub(super) fn busy(&self) -> usize {
        self.active + self.shared.iter().filter(|shared| !shared.rests()).count()
    }

    /// Connections that carry none.
    pub(super) fn resting(&self) -> usize {
        self.idle.len() + self.shared.iter().filter(|shared| shared.rests()).count()
    }

    /// Connections.
    pub(super) fn open(&self) -> usize {
        self.idle.len() + self.active + self.shared.len()
    }

    /// Requests that its connections can carry at a time, those that they do carry included.
    pub(super) fn slots(&self) -> usize {
        let shared = self.shared.iter().filter(|shared| shared.doomed.is_none());
        let streams = shared.map(|shared| shared.most.max(shared.streams));
        self.idle.len() + self.active + streams.sum::<usize>()
    }

    /// True if none of its connections carried a request.
    pub(super) fn never_used(&self) -> bool {
        let idle = self.idle.iter().all(|held| held.uses == 0);
        idle && self.shared.iter().all(|shared| shared.uses == 0)
    }

    /// How long the connection has rested that has done so longest.
    pub(super) fn coldest(&self) -> Option<Duration> {
        let idle = self.idle.front().map(|held| held.idle_since);
        let resting = self.shared.iter().filter(|shared| shared.rests());
        let shared = resting.map(|shared| shared.idle_since);
        idle.into_iter().chain(shared).min()
    }

    /// One that fails is tried again one connect at a time, after its pause; so is one of which it is not
    /// known what its connections carry.
    pub(super) fn may_connect(&self, now: Duration, connecting: usize) -> bool {
        let ready = |trouble: &Trouble| {
            let holds = |at: Duration| now.saturating_sub(at) >= HOLDS;
            trouble.connected.is_some_and(holds) || (trouble.retry_at <= now && connecting == 0)
        };
        let known = self.streams.is_some() || connecting == 0;
        let stands = self.is_current() && self.standing != Standing::Unresolved;
        stands && known && self.trouble.as_ref().is_none_or(ready)
    }

    /// True if more connections may be opened to it that nobody waits for: of one that fails the first has to show that
    /// they last.
    pub(super) fn may_be_warmed(&self, now: Duration) -> bool {
        let lasts = |trouble: &Trouble| {
            let connected = trouble.connected;
            connected.is_none_or(|at| now.saturating_sub(at) >= trouble.lasts)
        };
        self.trouble.as_ref().is_none_or(lasts)
    }

    /// True if it is known to close connections that never carried a request: none are kept for it ahead of
    /// need unasked.
    pub(super) fn closes_unused(&self, now: Duration) -> bool {
        let limit = self.unused_limit.learned(now);
        limit.is_some_and(|limit| limit < UNUSED_FOREVER)
    }

    /// Where its next request can go: the newest idle connection, or the fullest that has room. One who needs
    /// a fresh one since then gets one that carried nothing, or that is shared and newer than that.
    pub(super) fn spot(&self, fresh_since: Option<Duration>) -> Option<Spot> {
        if self.phase == Phase::Retired {
            return None;
        }
        let shared = self.shared.iter().enumerate();
        let shared = shared.filter(|(_, shared)| {
            let fresh = |since| shared.uses == 0 || shared.born >= since;
            shared.has_room() && fresh_since.is_none_or(fresh)
        });
        let fullest = shared.max_by_key(|(_, shared)| shared.streams);
        let idle = match fresh_since {
            Some(_) => self.idle.iter().rposition(|held| held.uses == 0),
            None => self.idle.len().checked_sub(1),
        };
        fullest
            .map(|(at, _)| Spot::Shared(at))
            .or(idle.map(Spot::Idle))
    }

    /// Its trouble, unless that is so old that nothing is known any more.
    pub(super) fn fresh_trouble(&self, now: Duration) -> Option<&Trouble> {
        let fresh = |trouble: &&Trouble| now.saturating_sub(trouble.last) < FORGOTTEN;
        self.trouble.as_ref().filter(fresh)
    }

    /// True if connects may be expected to succeed.
    pub(super) fn is_reachable(&self, now: Duration) -> bool {
        self.fresh_trouble(now)
            .is_none_or(|trouble| trouble.connected.is_some())
    }

    /// True if it can be asked, as far as is known.
    pub(super) fn may_be_reached(&self, now: Duration) -> bool {
        let resolved = self.standing != Standing::Unresolved;
        self.is_current() && resolved && self.is_reachable(now)
    }

    /// It was found that somebody is there: a connect need not wait for the end of its pause.
    pub(super) fn try_now(&mut self, now: Duration) {
        if let Some(trouble) = &mut self.trouble {
            trouble.retry_at = trouble.retry_at.min(now);
        }
    }

    /// A connection was made.
    pub(super) fn connected(&mut self, now: Duration) {
        if let Some(trouble) = &mut self.trouble {
            trouble.connected.get_or_insert(now);
        }
    }

    /// A request on it ended; what that says of the endpoint.
    pub(super) fn note_end(&mut self, now: Duration, held: &Held<C>, outcome: Outcome) {
        if let Some(trial) = held.trial {
            self.health.end_trial(trial);
        }
        match outcome {
            Outcome::Reusable | Outcome::Finished => self.trouble = None,
            Outcome::Broken(CloseReason::Upstream) if held.uses <= 1 => {
                self.closed_unused(now, held.born);
            }
            // It had rested, and was found closed when it was to be used again.
            Outcome::Broken(CloseReason::Upstream)
                if now.saturating_sub(held.granted) < AT_ONCE =>
            {
                let rested = held.rested();
                self.idle_limit.closed(now, rested);
            }
            Outcome::Unused | Outcome::Aborted | Outcome::Declined | Outcome::Broken(_) => {}
        }
    }

    /// Takes out the connection of this name if it was at rest. One with requests on it takes no more, and
    /// is closed after the last: a server that goes in good order still answers them.
    pub(super) fn ended(&mut self, now: Duration, id: ConnId) -> Option<C> {
        let (conn, uses, born, rested_since) =
            if let Some(at) = self.idle.iter().position(|held| held.id == id) {
                let held = self.idle.remove(at)?;
                (held.conn, held.uses, held.born, held.idle_since)
            } else {
                let at = self.shared.iter().position(|shared| shared.id == id)?;
                let shared = self.shared.get_mut(at)?;
                if !shared.rests() {
                    shared.doomed.get_or_insert(CloseReason::Upstream);
                    return None;
                }
                let shared = self.shared.remove(at);
                (shared.conn, shared.uses, shared.born, shared.idle_since)
            };
        match uses {
            0 => self.closed_unused(now, born),
            _ => self
                .idle_limit
                .closed(now, now.saturating_sub(rested_since)),
        }
        Some(conn)
    }

    /// It is configured no more. One that changed serves until its heirs do.
    pub(super) fn leave(&mut self, now: Duration, changed: bool) {
        if self.is_current() {
            self.phase = match changed && self.resting() > 0 {
                true => Phase::Leaving(now + HANDOVER),
                false => Phase::Retired,
            };
        }
    }

    /// Takes out those of its resting connections that are to be closed.
    pub(super) fn let_go(&mut self, close: impl Fn(&Rest) -> bool) -> Vec<C> {
        let origin = self.id;
        let (closing, keeping): (VecDeque<_>, _) = self.idle.drain(..).partition(|held| {
            close(&Rest {
                origin,
                uses: held.uses,
                born: held.born,
                idle_since: held.idle_since,
            })
        });
        self.idle = keeping;
        let shared = self.shared.extract_if(.., |shared| {
            let rest = Rest {
                origin,
                uses: shared.uses,
                born: shared.born,
                idle_since: shared.idle_since,
            };
            shared.rests() && close(&rest)
        });
        let shared: Vec<C> = shared.map(|shared| shared.conn).collect();
        closing
            .into_iter()
            .map(|held| held.conn)
            .chain(shared)
            .collect()
    }

    /// Takes out the connection that has rested longest.
    pub(super) fn pop_coldest(&mut self) -> Option<C> {
        let coldest = self.coldest()?;
        if self
            .idle
            .front()
            .is_some_and(|held| held.idle_since == coldest)
        {
            return self.idle.pop_front().map(|held| held.conn);
        }
        let at = self
            .shared
            .iter()
            .position(|shared| shared.rests() && shared.idle_since == coldest)?;
        Some(self.shared.remove(at).conn)
    }

    /// A connection was closed by the upstream before it carried an answer. Soon after it was made, that
    /// is as good as no connection; later, it is how long this server waits for a first request.
    pub(super) fn closed_unused(&mut self, now: Duration, born: Duration) {
        match now.saturating_sub(born) < SOON {
            true => {
                self.failed(now, "it closes connections as soon as they are made");
                if let Some(trouble) = &mut self.trouble {
                    trouble.lasts = SOON;
                }
            }
            false => self.unused_limit.closed(now, now.saturating_sub(born)),
        }
    }

    pub(super) fn failed(&mut self, now: Duration, error: &str) {
        // Of a failure long ago nothing is known any more.
        let recent = |trouble: &&Trouble| now.saturating_sub(trouble.last) < FORGOTTEN;
        let (since, failures) = match self.trouble.as_ref().filter(recent) {
            Some(trouble) => (trouble.since, trouble.failures.saturating_add(1)),
            None => (now, 1),
        };
        let pause = BACKOFF_FIRST.saturating_mul(1 << failures.min(16).saturating_sub(1));
        let retry_at = now + pause.min(BACKOFF_MOST);
        self.trouble = Some(Trouble {
            since,
            last: now,
            retry_at,
            failures,
            connected: None,
            lasts: HOLDS,
            error: error.into(),
        });
    }
}

/// A connection at rest.
#[derive(Debug)]
pub(super) struct Rest {
    pub(super) origin: OriginId,
    pub(super) uses: u64,
    pub(super) born: Duration,
    pub(super) idle_since: Duration,
}

impl<C: Connection> Origin<C> {
    /// A connection was made.
    pub(super) fn admit(&mut self, conn: C, id: ConnId, now: Duration) {
        self.streams = Some(conn.streams().clamp(1, MOST_STREAMS));
        if conn.is_shared() {
            self.shared.push(Shared::new(conn, id, now));
            return;
        }
        self.idle.push_back(Held {
            lent: None,
            conn,
            id,
            origin: self.id,
            uses: 0,
            shared: false,
            in_question: false,
            trial: None,
            born: now,
            idle_since: now,
            granted: now,
            seat: Seat::SHARED,
        });
    }

    /// Takes what stands there into use.
    pub(super) fn take(&mut self, spot: Spot, now: Duration) -> Option<Held<C>> {
        match spot {
            Spot::Idle(at) => {
                let mut held = self.idle.remove(at)?;
                held.uses += 1;
                (held.in_question, held.trial) = (false, None);
                held.granted = now;
                self.active += 1;
                Some(held)
            }
            Spot::Shared(at) => self.shared.get_mut(at)?.grant(self.id, now),
        }
    }
}

/// Orders `a / weight` before `b / weight`, without dividing.
pub(super) fn lighter(a: usize, a_weight: u32, b: usize, b_weight: u32) -> std::cmp::Ordering {
    let scaled = |n: usize, weight: u32| (n as u64).saturating_mul(u64::from(weight));
    scaled(a, b_weight).cmp(&scaled(b, a_weight))
}
