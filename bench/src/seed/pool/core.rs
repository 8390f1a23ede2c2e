//! The document's pool as a pure state: which connections are idle, which one a request gets, and which
//! are closed as surplus. It is the subject of the experiment and follows httpcore, on which the
//! document's gateway stands. It knows no socket, no task and no clock.
//!
//! A connection is *taken* (new or idle), then *given back* or *gone*. What is given back is kept as
//! long as it is usable, no more than `keepalive` of them; the eldest go first, whichever came back.

use std::time::Duration;

use tokio::time::Instant;

/// What `keepalive` is compared with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Surplus {
    /// The idle connections, as the setting is documented.
    Idle,
    /// All connections, busy ones too, as httpcore 1.0.9 does: it takes the length of a list that has an
    /// entry for each.
    All,
}

/// How much is kept, and for how long.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) keepalive: usize,
    pub(crate) surplus: Surplus,
    /// An idle connection is closed after this long.
    pub(crate) expiry: Option<Duration>,
}

/// The place of a connection in the pool while a request has it.
#[derive(Debug)]
pub(crate) struct Slot {
    origin: usize,
    born: u64,
}

/// What a request gets, and what is to be closed.
#[derive(Debug)]
pub(crate) struct Taken<C> {
    pub(crate) slot: Slot,
    /// None: one is to be opened.
    pub(crate) connection: Option<C>,
    pub(crate) closing: Vec<C>,
}

#[derive(Debug)]
struct Idle<C> {
    slot: Slot,
    since: Instant,
    connection: C,
}

/// The pool over all origins.
#[derive(Debug)]
pub(crate) struct Core<C> {
    limits: Limits,
    /// By age, the eldest first.
    idle: Vec<Idle<C>>,
    busy: usize,
    born: u64,
    most_idle: usize,
}

impl<C> Core<C> {
    pub(crate) fn new(limits: Limits) -> Self {
        Self {
            limits,
            idle: Vec::new(),
            busy: 0,
            born: 0,
            most_idle: 0,
        }
    }

    /// A request to this origin takes the eldest usable connection, or a place for a new one.
    pub(crate) fn take(
        &mut self,
        origin: usize,
        now: Instant,
        usable: impl Fn(&C) -> bool,
    ) -> Taken<C> {
        let closing = self.sweep(now, usable);
        self.busy += 1;
        let found = self.idle.iter().position(|idle| idle.slot.origin == origin);
        let (slot, connection) = match found.map(|at| self.idle.remove(at)) {
            Some(idle) => (idle.slot, Some(idle.connection)),
            None => {
                self.born += 1;
                let born = self.born;
                (Slot { origin, born }, None)
            }
        };
        Taken {
            slot,
            connection,
            closing,
        }
    }

    /// A connection comes back; what is surplus is to be closed.
    pub(crate) fn give_back(
        &mut self,
        slot: Slot,
        connection: C,
        now: Instant,
        usable: impl Fn(&C) -> bool,
    ) -> Vec<C> {
        self.busy -= 1;
        let at = self.idle.partition_point(|idle| idle.slot.born < slot.born);
        let since = now;
        self.idle.insert(
            at,
            Idle {
                slot,
                since,
                connection,
            },
        );
        let closing = self.sweep(now, usable);
        self.most_idle = self.most_idle.max(self.idle.len());
        closing
    }

    /// A connection that was taken is no more.
    pub(crate) fn gone(&mut self, _: Slot) {
        self.busy -= 1;
    }

    /// Takes all idle ones out.
    pub(crate) fn clear(&mut self) -> Vec<C> {
        self.idle.drain(..).map(|idle| idle.connection).collect()
    }

    /// Most that were kept idle at once.
    pub(crate) fn most_idle(&self) -> usize {
        self.most_idle
    }

    fn sweep(&mut self, now: Instant, usable: impl Fn(&C) -> bool) -> Vec<C> {
        let expiry = self.limits.expiry;
        let over = |idle: &mut Idle<C>| {
            let expired = expiry.is_some_and(|expiry| now.duration_since(idle.since) > expiry);
            expired || !usable(&idle.connection)
        };
        let mut closing: Vec<_> = self.idle.extract_if(.., over).collect();
        let surplus = self.surplus().min(self.idle.len());
        closing.extend(self.idle.drain(..surplus));
        closing.into_iter().map(|idle| idle.connection).collect()
    }

    fn surplus(&self) -> usize {
        let counted = match self.limits.surplus {
            Surplus::Idle => self.idle.len(),
            Surplus::All => self.idle.len() + self.busy,
        };
        counted.saturating_sub(self.limits.keepalive)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn core(keepalive: usize, surplus: Surplus) -> Core<usize> {
        Core::new(Limits {
            keepalive,
            surplus,
            expiry: Some(Duration::from_secs(5)),
        })
    }

    /// Takes one for each of 150 requests, 50 per model; a new connection is called by its number.
    fn wave(core: &mut Core<usize>, now: Instant) -> (Vec<(Slot, usize)>, usize) {
        let mut opened = 0;
        let taken = (0..150)
            .map(|n| {
                let taken = core.take(n % 3, now, |_| true);
                assert!(taken.closing.is_empty());
                opened += usize::from(taken.connection.is_none());
                (taken.slot, taken.connection.unwrap_or(n))
            })
            .collect();
        (taken, opened)
    }

    fn back(core: &mut Core<usize>, taken: Vec<(Slot, usize)>, now: Instant) -> usize {
        let closed = taken
            .into_iter()
            .map(|(slot, connection)| core.give_back(slot, connection, now, |_| true).len());
        closed.sum()
    }

    #[tokio::test(start_paused = true)]
    async fn exactly_keepalive_are_kept_and_the_rest_is_reopened_by_the_next_wave() {
        let now = Instant::now();
        let mut core = core(100, Surplus::Idle);
        let (mut taken, opened) = wave(&mut core, now);
        assert_eq!(opened, 150);
        for _ in 0..3 {
            assert_eq!(back(&mut core, taken, now), 50);
            assert_eq!((core.idle.len(), core.busy), (100, 0));
            assert_eq!(core.most_idle(), 100);
            let (again, opened) = wave(&mut core, now);
            assert_eq!((opened, core.idle.len(), core.busy), (50, 0, 150));
            taken = again;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_keepalive_of_the_size_keeps_all() {
        let now = Instant::now();
        let mut core = core(150, Surplus::Idle);
        for (n, new) in [150, 0, 0].into_iter().enumerate() {
            let (taken, opened) = wave(&mut core, now);
            assert_eq!(opened, new, "wave {n}");
            assert_eq!(back(&mut core, taken, now), 0);
        }
        assert_eq!(core.most_idle(), 150);
    }

    /// One comes back while 149 are busy: documented, it is kept; counted as httpcore does, closed.
    #[tokio::test(start_paused = true)]
    async fn counting_busy_ones_closes_what_comes_back_under_load() {
        let now = Instant::now();
        for (surplus, closed) in [(Surplus::Idle, 0), (Surplus::All, 1)] {
            let mut core = core(100, surplus);
            let (mut taken, _) = wave(&mut core, now);
            let (slot, connection) = taken.pop().unwrap();
            let closing = core.give_back(slot, connection, now, |_| true);
            assert_eq!(closing.len(), closed, "{surplus:?}");
            assert_eq!(
                core.take(2, now, |_| true).connection.is_none(),
                closed == 1
            );
        }
    }

    /// Whichever comes back first: the eldest is closed first, and handed out first.
    #[tokio::test(start_paused = true)]
    async fn the_eldest_go_first() {
        let now = Instant::now();
        let mut core = core(2, Surplus::Idle);
        let slots: Vec<_> = (0..3).map(|_| core.take(0, now, |_| true).slot).collect();
        let mut closed = Vec::new();
        for (slot, connection) in slots.into_iter().zip([1, 2, 3]).rev() {
            closed.extend(core.give_back(slot, connection, now, |_| true));
        }
        assert_eq!(closed, [1]);
        assert_eq!(core.take(0, now, |_| true).connection, Some(2));
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_too_old_or_of_no_use_is_not_handed_out() {
        let now = Instant::now();
        let mut core = core(10, Surplus::Idle);
        let first = core.take(0, now, |_| true);
        assert!(core.give_back(first.slot, 7, now, |_| true).is_empty());
        let other = core.take(1, now, |_| true);
        assert_eq!(other.connection, None, "it belongs to another origin");
        core.gone(other.slot);
        let late = core.take(0, now + Duration::from_millis(5_001), |_| true);
        assert_eq!((late.connection, late.closing), (None, vec![7]));
        assert!(core.give_back(late.slot, 8, now, |_| true).is_empty());
        let dead = core.take(0, now, |connection| *connection != 8);
        assert_eq!((dead.connection, dead.closing), (None, vec![8]));
        assert_eq!(core.busy, 1);
    }
}
