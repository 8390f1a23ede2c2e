//! The core against its invariants: by hand for the rules, by random events for the rest.

use std::collections::{BTreeMap, BTreeSet};

mod balance;
mod ejection;
mod histories;
mod leased;
mod overload;
mod rules;
mod shared;
mod turns;
mod warmth;

use super::{
    flow::Waiter,
    line::MOST_FLOWS,
    types::{FlowId, Priority},
    *,
};
use crate::pool::counters::{Fault, Turn, Verdict};

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
            .all(|origin| !self.may_dial(now, origin) || !self.takes(now, origin));
        if !self.line.is_empty() && room {
            let served = |waiter: &Waiter<W>| {
                let mut origins = self.origins.iter();
                origins.any(|origin| {
                    self.suits(now, origin, &waiter.wish)
                        && origin.spot(waiter.fresh_since).is_some()
                })
            };
            assert!(
                !self.line.iter().any(served),
                "4: a waiter beside an idle connection for him"
            );
            let plain = self.line.iter().filter(|w| w.wish.is_any()).count();
            let wanted = plain.min(self.admitted() - in_flight);
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
        most: size,
        fleet_wide: false,
        warm: 0,
        max_waiting: 100,
        idle_timeout: Duration::from_secs(4),
        max_age: None,
        ejection: RULES,
        checked: false,
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

const RULES: Rules = Rules {
    after: 3,
    base: Duration::from_secs(2),
    most: Duration::from_secs(30),
    panic_percent: 50,
};

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
    /// Those who asked for one endpoint alone, which may be one that is out.
    wanted_one: BTreeSet<u64>,
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
            wanted_one: BTreeSet::new(),
            closed: 0,
        };
        let origins: Vec<u64> = (0..origins).collect();
        shell.reshape(shape, &origins);
        shell
    }

    /// 8: unless it is the one that was asked for, an endpoint that is out gets a trial, or all serve.
    fn check_grant(&self, waiter: u64, held: &Held<TestConn>) {
        let origin = self.core.origins.iter().find(|o| o.id == held.origin);
        if origin.is_some_and(|origin| origin.health.is_out()) && !self.wanted_one.contains(&waiter)
        {
            let sound = |o: &&Origin<TestConn>| !o.health.is_out() && o.may_be_reached(self.now);
            let current = || self.core.origins.iter().filter(|o| o.is_current());
            let out = current().filter(|o| o.health.is_out()).count();
            let all_serve = out * 2 > current().count() || !current().any(|o| sound(&o));
            assert!(held.trial.is_some() || all_serve, "8: one that is out");
        }
    }

    fn run(&mut self, effects: Vec<Effect<TestConn, u64>>) {
        for effect in effects {
            match effect {
                Effect::Grant { waiter, held } => {
                    self.check_grant(waiter, &held);
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
                Effect::Revoke(revocation) => revocation.revoke(),
            }
        }
    }

    /// What the answer of a lease says of its endpoint. The shell notes good ones on the pulse.
    fn judge(&mut self, waiter: u64, verdict: Verdict) -> Option<Turn> {
        let held = self.leases.get(&waiter)?;
        let (origin, in_question) = (held.origin, held.in_question);
        if verdict == Verdict::Answered {
            self.core.pulse_of(origin)?.answered();
            if !in_question {
                return None;
            }
        }
        let (turn, effects) = self.core.judge(self.now, origin, verdict);
        self.run(effects);
        turn
    }

    /// The endpoints of which a trial is under way: its answer is still waited for.
    fn trials(&self) -> impl Iterator<Item = u64> {
        let trial = |held: &&Held<TestConn>| {
            let origin = self.core.origins.iter().find(|o| o.id == held.origin);
            held.trial
                .is_some_and(|trial| origin.is_some_and(|origin| origin.health.is_under_way(trial)))
        };
        self.leases.values().filter(trial).map(|held| held.origin.0)
    }

    fn acquire(&mut self) -> u64 {
        self.acquire_at(Place::Back)
    }

    fn acquire_at(&mut self, place: Place) -> u64 {
        self.acquire_wish(place, Wish::default())
    }

    fn acquire_wish(&mut self, place: Place, wish: Wish) -> u64 {
        self.acquire_by(&Ask::default(), place, wish)
    }

    fn acquire_of(&mut self, flow: u64) -> u64 {
        self.acquire_as(&of(flow), Place::Back)
    }

    fn acquire_as(&mut self, ask: &Ask, place: Place) -> u64 {
        self.acquire_by(ask, place, Wish::default())
    }

    fn acquire_by(&mut self, ask: &Ask, place: Place, wish: Wish) -> u64 {
        self.next += 1;
        let waiter = self.next;
        self.wanted_one.extend(wish.only.map(|_| waiter));
        if place == Place::Back
            && wish.is_any()
            && let Some((held, effects)) = self.core.take_at_once(self.now, ask)
        {
            self.check_grant(waiter, &held);
            self.at_once.push(waiter);
            self.granted.push(waiter);
            self.leases.insert(waiter, held);
            self.run(effects);
            return waiter;
        }
        let (id, effects) = self.core.acquire(self.now, ask, waiter, place, wish);
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
            endpoint: EndpointKey(*n),
            weight: 1,
            streams: if self.streams == 0 { Some(1) } else { None },
            standing: if changed.is_empty() {
                Standing::Plain
            } else {
                Standing::Heir
            },
            like: None,
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
