//! The core against its invariants: by hand for the rules, by random events for the rest.

use std::collections::BTreeMap;

mod balance;
mod histories;
mod overload;
mod rules;
mod shared;
mod turns;
mod warmth;

use super::{
    line::{MOST_FLOWS, Waiter},
    types::{FlowId, Priority},
    *,
};

/// A connection that carries so many requests at a time; 0 stands for one of HTTP/1.1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct TestConn {
    name: u64,
    streams: usize,
}

impl Connection for TestConn {
    fn is_shared(&self) -> bool {
        self.streams > 0
    }

    fn streams(&self) -> usize {
        self.streams.max(1)
    }

    fn another(&self) -> Option<Self> {
        self.is_shared().then_some(*self)
    }
}

type TestCore = Core<TestConn, u64>;

impl<C: Connection, W> Core<C, W> {
    /// The invariants of the module's doc, after every transition.
    pub(super) fn assert_invariants(&self, now: Duration) {
        let (open, most, in_flight) = (self.open(), self.limit(), self.in_flight());
        assert!(
            open <= most || self.resting() == 0,
            "1: over size with idle ones"
        );
        self.line.assert_invariants();
        assert!(self.admitted() <= self.shape.size, "7: more is let in");
        let room = in_flight < self.admitted() && self.busy() < most;
        let backing_off = self
            .origins
            .iter()
            .all(|origin| !origin.may_connect(now, self.connecting_to(origin.id)));
        if !self.line.is_empty() && room {
            let can = |since| self.origins.iter().any(|o| o.spot(since).is_some());
            let served = |waiter: &Waiter<W>| can(waiter.fresh_since);
            assert!(
                !self.line.iter().any(served),
                "4: a waiter beside an idle connection for him"
            );
            let wanted = self.line.len().min(self.admitted() - in_flight);
            assert!(
                self.expected(now) >= wanted || open >= most || backing_off,
                "4: too few connects"
            );
        }
        for origin in &self.origins {
            assert!(
                origin.phase != Phase::Retired || origin.resting() == 0,
                "5: idle on a retired origin"
            );
            for shared in &origin.shared {
                assert!(
                    shared.doomed.is_none() || !shared.rests(),
                    "5: doomed and at rest"
                );
            }
        }
        let held = self.origins.iter().map(Origin::open).sum::<usize>() as u64;
        assert_eq!(self.counters.open(), held, "6: what is counted is held");
    }
}

fn shape(size: usize) -> Shape {
    Shape {
        size,
        warm: 0,
        max_waiting: 100,
        idle_timeout: Duration::from_secs(4),
        max_age: None,
        adaptive: None,
    }
}

/// One of a flow.
fn of(flow: u64) -> Ask {
    Ask {
        flow: match flow {
            0 => FlowId::SHARED,
            n => FlowId::new(n + 1),
        },
        ..Ask::default()
    }
}

fn at(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

/// Plays the shell: keeps what is granted, connecting and closed.
struct Shell {
    core: TestCore,
    now: Duration,
    next: u64,
    /// Of the connections that are made next.
    streams: usize,
    leases: BTreeMap<u64, Held<TestConn>>,
    connects: Vec<(Ticket, OriginId)>,
    waiters: BTreeMap<u64, WaiterId>,
    granted: Vec<u64>,
    /// Those that did not line up.
    at_once: Vec<u64>,
    refused: Vec<(u64, Refused)>,
    closed: usize,
}

impl Shell {
    fn new(shape: Shape, origins: u64) -> Self {
        let mut shell = Self {
            core: Core::new(shape.clone(), usize::MAX, 7),
            now: Duration::ZERO,
            next: 0,
            streams: 0,
            leases: BTreeMap::new(),
            connects: Vec::new(),
            waiters: BTreeMap::new(),
            granted: Vec::new(),
            at_once: Vec::new(),
            refused: Vec::new(),
            closed: 0,
        };
        let origins: Vec<u64> = (0..origins).collect();
        shell.reshape(shape, &origins);
        shell
    }

    fn run(&mut self, effects: Vec<Effect<TestConn, u64>>) {
        for effect in effects {
            match effect {
                Effect::Grant { waiter, held } => {
                    self.waiters.remove(&waiter);
                    self.granted.push(waiter);
                    self.leases.insert(waiter, held);
                }
                Effect::Refuse { waiter, why } => {
                    self.waiters.remove(&waiter);
                    self.refused.push((waiter, why));
                }
                Effect::Connect { ticket, origin } => self.connects.push((ticket, origin)),
                Effect::Close { .. } => self.closed += 1,
                Effect::LetGo { .. } => {}
            }
        }
    }

    fn acquire(&mut self) -> u64 {
        self.acquire_at(Place::Back)
    }

    fn acquire_at(&mut self, place: Place) -> u64 {
        self.acquire_as(&Ask::default(), place)
    }

    fn acquire_of(&mut self, flow: u64) -> u64 {
        self.acquire_as(&of(flow), Place::Back)
    }

    fn acquire_as(&mut self, ask: &Ask, place: Place) -> u64 {
        self.next += 1;
        let waiter = self.next;
        if place == Place::Back
            && let Some((held, effects)) = self.core.take_at_once(self.now, ask)
        {
            self.at_once.push(waiter);
            self.granted.push(waiter);
            self.leases.insert(waiter, held);
            self.run(effects);
            return waiter;
        }
        let (id, effects) = self.core.acquire(self.now, ask, waiter, place);
        self.waiters.insert(waiter, id);
        self.run(effects);
        waiter
    }

    fn connect(&mut self) {
        let Some((ticket, _)) = self.connects.pop() else {
            return;
        };
        self.connected(ticket);
    }

    fn connected(&mut self, ticket: Ticket) -> Option<ConnId> {
        self.next += 1;
        let (name, streams) = (self.next, self.streams);
        let conn = TestConn { name, streams };
        let (id, effects) = self.core.connected(self.now, ticket, conn);
        self.run(effects);
        id
    }

    fn refuse(&mut self) {
        let Some((ticket, _)) = self.connects.pop() else {
            return;
        };
        let effects = self.core.connect_failed(self.now, ticket, "refused");
        self.run(effects);
    }

    fn release(&mut self, waiter: u64, outcome: Outcome) {
        let Some(held) = self.leases.remove(&waiter) else {
            return;
        };
        let effects = self.core.release(self.now, held, outcome);
        self.run(effects);
    }

    fn reshape(&mut self, shape: Shape, origins: &[u64]) {
        self.reshape_with(shape, origins, &[]);
    }

    /// Where some of those that go have changed, and others take their place.
    fn reshape_with(&mut self, shape: Shape, origins: &[u64], changed: &[u64]) {
        let spec = |n: &u64| OriginSpec {
            id: OriginId(*n),
            weight: 1,
            streams: if self.streams == 0 { Some(1) } else { None },
            standing: if changed.is_empty() {
                Standing::Plain
            } else {
                Standing::Heir
            },
        };
        let specs: Vec<_> = origins.iter().map(spec).collect();
        let changed: Vec<_> = changed.iter().map(|n| OriginId(*n)).collect();
        // The core forgets what was being dialled at a removed endpoint.
        self.connects
            .retain(|(_, origin)| origins.contains(&origin.0));
        let effects = self.core.reshape(self.now, shape, &specs, &changed);
        self.run(effects);
    }

    fn census(&self) -> Census {
        self.core.census(self.now)
    }

    fn sweep(&mut self, millis: u64) {
        self.now += at(millis);
        let effects = self.core.sweep(self.now);
        self.run(effects);
    }
}
