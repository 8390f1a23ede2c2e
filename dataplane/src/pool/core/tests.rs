//! The core against its invariants: by hand for the rules, by random events for the rest.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

type TestCore = Core<u64, u64>;

impl<C, W> Core<C, W> {
    /// The invariants of the module's doc, after every transition.
    pub(super) fn assert_invariants(&self, now: Duration) {
        let (open, size) = (self.open(), self.limit());
        assert!(
            open <= size || self.idle() == 0,
            "1: over size with idle ones"
        );
        let room = self.active() < size;
        let backing_off = self
            .origins
            .iter()
            .all(|origin| !origin.may_connect(now, self.connecting_to(origin.id)));
        if !self.waiters.is_empty() && room {
            let unused = self.origins.iter().any(|origin| origin.unused().is_some());
            let served = |waiter: &Waiter<W>| match waiter.fresh {
                true => unused,
                false => self.idle() > 0,
            };
            assert!(
                !self.waiters.iter().any(served),
                "4: a waiter beside an idle connection for him"
            );
            assert!(
                self.connecting.len() >= self.waiters.len().min(size.saturating_sub(self.active()))
                    || open >= size
                    || backing_off,
                "4: too few connects"
            );
        }
        for origin in &self.origins {
            assert!(
                !origin.retired || origin.idle.is_empty(),
                "5: idle on a retired origin"
            );
        }
        let held = (self.idle() + self.active()) as u64;
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
    leases: BTreeMap<u64, Held<u64>>,
    connects: Vec<(Ticket, OriginId)>,
    waiters: BTreeMap<u64, WaiterId>,
    granted: Vec<u64>,
    refused: Vec<(u64, Refused)>,
    closed: usize,
}

impl Shell {
    fn new(shape: Shape, origins: u64) -> Self {
        let core = Core::new(shape, usize::MAX, (0..origins).map(|n| (OriginId(n), 1)));
        Self {
            core,
            now: Duration::ZERO,
            next: 0,
            leases: BTreeMap::new(),
            connects: Vec::new(),
            waiters: BTreeMap::new(),
            granted: Vec::new(),
            refused: Vec::new(),
            closed: 0,
        }
    }

    fn run(&mut self, effects: Vec<Effect<u64, u64>>) {
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
            }
        }
    }

    fn acquire(&mut self) -> u64 {
        self.acquire_at(Place::Back)
    }

    fn acquire_at(&mut self, place: Place) -> u64 {
        self.next += 1;
        let waiter = self.next;
        let (id, effects) = self.core.acquire(self.now, waiter, place);
        self.waiters.insert(waiter, id);
        self.run(effects);
        waiter
    }

    fn connect(&mut self) {
        let Some((ticket, _)) = self.connects.pop() else {
            return;
        };
        self.next += 1;
        let (_, effects) = self.core.connected(self.now, ticket, self.next);
        self.run(effects);
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
        let pairs: Vec<_> = origins.iter().map(|n| (OriginId(*n), 1)).collect();
        // The core forgets what was being dialled at a removed endpoint.
        self.connects
            .retain(|(_, origin)| origins.contains(&origin.0));
        let effects = self.core.reshape(self.now, shape, &pairs);
        self.run(effects);
    }

    fn sweep(&mut self, millis: u64) {
        self.now += at(millis);
        let effects = self.core.sweep(self.now);
        self.run(effects);
    }
}

#[test]
fn every_returned_connection_is_kept_up_to_the_size() {
    let mut shell = Shell::new(shape(50), 1);
    let waiters: Vec<_> = (0..50).map(|_| shell.acquire()).collect();
    (0..50).for_each(|_| shell.connect());
    for waiter in waiters {
        shell.release(waiter, Outcome::Reusable);
    }
    assert_eq!(shell.core.census().idle, 50);
    assert_eq!(shell.closed, 0);
}

#[test]
fn waiters_are_served_in_order_and_the_newest_idle_goes_first() {
    let mut shell = Shell::new(shape(1), 1);
    let first = shell.acquire();
    let (second, third) = (shell.acquire(), shell.acquire());
    assert_eq!(shell.connects.len(), 1);
    shell.connect();
    shell.release(first, Outcome::Reusable);
    shell.release(second, Outcome::Reusable);
    assert_eq!(shell.granted, [first, second, third]);
}

#[test]
fn a_full_line_refuses_the_newest_only() {
    let mut shell = Shell::new(
        Shape {
            max_waiting: 1,
            ..shape(1)
        },
        1,
    );
    let (first, second, third) = (shell.acquire(), shell.acquire(), shell.acquire());
    assert_eq!(shell.refused, [(third, Refused::QueueFull)]);
    shell.connect();
    shell.release(first, Outcome::Reusable);
    assert_eq!(shell.granted, [first, second]);
}

#[test]
fn nobody_waits_with_max_waiting_zero_but_connects_are_no_queue() {
    let mut shell = Shell::new(
        Shape {
            max_waiting: 0,
            ..shape(2)
        },
        1,
    );
    let (_, _) = (shell.acquire(), shell.acquire());
    assert!(shell.refused.is_empty());
    let third = shell.acquire();
    assert_eq!(shell.refused, [(third, Refused::QueueFull)]);
}

#[test]
fn shrink_closes_idle_ones_first_and_leases_as_they_return() {
    let mut shell = Shell::new(shape(4), 1);
    let waiters: Vec<_> = (0..4).map(|_| shell.acquire()).collect();
    (0..4).for_each(|_| shell.connect());
    shell.release(waiters[0], Outcome::Reusable);
    shell.reshape(shape(2), &[0]);
    assert_eq!((shell.closed, shell.core.census().active), (1, 3));
    shell.release(waiters[1], Outcome::Reusable);
    assert_eq!(shell.closed, 2, "3 were open for a size of 2");
    shell.release(waiters[2], Outcome::Reusable);
    shell.release(waiters[3], Outcome::Reusable);
    assert_eq!((shell.closed, shell.core.census().idle), (2, 2));
}

#[test]
fn grow_and_an_equal_push_close_and_open_nothing() {
    let mut shell = Shell::new(shape(2), 1);
    let waiter = shell.acquire();
    shell.connect();
    shell.release(waiter, Outcome::Reusable);
    shell.reshape(shape(2), &[0]);
    shell.reshape(shape(9), &[0]);
    assert_eq!(
        (shell.closed, shell.connects.len(), shell.core.census().idle),
        (0, 0, 1)
    );
}

#[test]
fn a_removed_endpoint_drains_and_the_other_stays() {
    let mut shell = Shell::new(shape(4), 2);
    let waiters: Vec<_> = (0..4).map(|_| shell.acquire()).collect();
    (0..4).for_each(|_| shell.connect());
    shell.reshape(shape(4), &[1]);
    assert_eq!(shell.core.census().draining, 2);
    for waiter in waiters {
        shell.release(waiter, Outcome::Reusable);
    }
    assert_eq!((shell.core.census().idle, shell.closed), (2, 2));
}

#[test]
fn a_retired_pool_serves_who_waits_and_then_is_empty() {
    let mut shell = Shell::new(shape(1), 1);
    let (first, second) = (shell.acquire(), shell.acquire());
    shell.connect();
    let effects = shell.core.retire(shell.now);
    shell.run(effects);
    shell.release(first, Outcome::Reusable);
    assert_eq!(shell.granted, [first, second]);
    shell.release(second, Outcome::Reusable);
    assert!(shell.core.is_empty());
}

#[test]
fn used_connections_idle_out_and_the_warm_floor_is_refilled() {
    let mut shell = Shell::new(
        Shape {
            warm: 2,
            ..shape(4)
        },
        1,
    );
    shell.sweep(0);
    (0..2).for_each(|_| shell.connect());
    let waiter = shell.acquire();
    shell.release(waiter, Outcome::Reusable);
    shell.sweep(4_000);
    assert_eq!(
        (shell.closed, shell.core.census().idle),
        (1, 1),
        "the never-used one stays"
    );
    shell.connect();
    let opened: Vec<_> = shell
        .core
        .counters
        .opened()
        .map(|(_, count)| count)
        .collect();
    assert_eq!(opened, [0, 2, 1, 0], "demand, warm, refill, replace");
}

#[test]
fn a_cancelled_waiter_leaves_its_connect_to_the_next() {
    let mut shell = Shell::new(shape(2), 1);
    let first = shell.acquire();
    let id = shell.waiters[&first];
    shell.core.cancel(id);
    let second = shell.acquire();
    shell.connect();
    assert_eq!(shell.granted, [second]);
}

#[test]
fn a_refusing_endpoint_is_retried_for_a_second_and_then_told() {
    let mut shell = Shell::new(shape(2), 1);
    shell.acquire();
    shell.refuse();
    assert!(shell.refused.is_empty(), "patient at first");
    shell.sweep(60);
    assert_eq!(shell.connects.len(), 1, "retried after a pause");
    shell.refuse();
    shell.sweep(1_000);
    shell.refuse();
    assert_eq!(shell.refused.len(), 1);
    shell.sweep(3_000);
    shell.acquire();
    assert_eq!(
        shell.connects.len(),
        1,
        "each request that comes tries again"
    );
    shell.refuse();
    assert_eq!(
        shell.refused.len(),
        2,
        "and is told at once after seconds of failure"
    );
}

#[test]
fn a_good_endpoint_serves_when_the_other_refuses() {
    let mut shell = Shell::new(shape(4), 2);
    let waiter = shell.acquire();
    shell.refuse();
    assert_eq!(shell.connects.len(), 1, "the other one at once");
    shell.connect();
    assert_eq!(shell.granted, [waiter]);
}

#[test]
fn old_connections_retire_at_their_return() {
    let mut shell = Shell::new(
        Shape {
            max_age: Some(at(1_000)),
            ..shape(1)
        },
        1,
    );
    let waiter = shell.acquire();
    shell.connect();
    shell.now = at(1_500);
    shell.release(waiter, Outcome::Reusable);
    assert_eq!(shell.closed, 1);
}

#[derive(Debug, Clone)]
enum Event {
    Acquire,
    AcquireFresh,
    Cancel(prop::sample::Index),
    Connect,
    Refuse,
    Release(prop::sample::Index, bool),
    UpstreamCloses(u64),
    Reshape {
        size: usize,
        warm: usize,
        origins: Vec<u64>,
    },
    Cap(usize),
    Sweep(u64),
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        4 => Just(Event::Acquire),
        1 => Just(Event::AcquireFresh),
        1 => any::<prop::sample::Index>().prop_map(Event::Cancel),
        4 => Just(Event::Connect),
        1 => Just(Event::Refuse),
        4 => (any::<prop::sample::Index>(), prop::bool::weighted(0.8))
            .prop_map(|(index, good)| Event::Release(index, good)),
        1 => (0_u64..60).prop_map(Event::UpstreamCloses),
        1 => (1_usize..12, 0_usize..6, prop::collection::btree_set(0_u64..4, 1..4)).prop_map(
            |(size, warm, origins)| Event::Reshape {
                size,
                warm,
                origins: origins.into_iter().collect()
            }
        ),
        1 => (0_usize..14).prop_map(Event::Cap),
        1 => (0_u64..3_000).prop_map(Event::Sweep),
    ]
}

fn play(shell: &mut Shell, event: Event) {
    match event {
        Event::Acquire => {
            shell.acquire();
        }
        Event::AcquireFresh => {
            shell.acquire_at(Place::FrontForFresh);
        }
        Event::Cancel(index) if !shell.waiters.is_empty() => {
            let waiter = *index.get(&shell.waiters.keys().copied().collect::<Vec<_>>());
            if let Some(id) = shell.waiters.remove(&waiter) {
                shell.core.cancel(id);
            }
        }
        Event::Connect => shell.connect(),
        Event::Refuse => shell.refuse(),
        Event::Release(index, good) if !shell.leases.is_empty() => {
            let waiter = *index.get(&shell.leases.keys().copied().collect::<Vec<_>>());
            let broken = Outcome::Broken(CloseReason::Error);
            shell.release(waiter, if good { Outcome::Reusable } else { broken });
        }
        Event::UpstreamCloses(id) => {
            let effects = shell.core.ended(shell.now, ConnId(id));
            shell.run(effects);
        }
        Event::Reshape {
            size,
            warm,
            origins,
        } => {
            shell.reshape(
                Shape {
                    warm,
                    max_waiting: 5,
                    ..shape(size)
                },
                &origins,
            );
        }
        Event::Cap(cap) => {
            let effects = shell.core.set_cap(shell.now, cap);
            shell.run(effects);
        }
        Event::Sweep(millis) => shell.sweep(millis),
        Event::Cancel(_) | Event::Release(..) => {}
    }
}

/// Something in between accepts for an engine that is down: no storm of connects, and an answer soon.
#[test]
fn an_endpoint_that_accepts_and_closes_is_treated_as_one_that_refuses() {
    let mut shell = Shell::new(shape(4), 1);
    shell.acquire();
    let mut connects = 0;
    while shell.refused.is_empty() && shell.now < at(10_000) {
        while !shell.connects.is_empty() {
            connects += 1;
            shell.connect();
            let leases: Vec<_> = shell.leases.keys().copied().collect();
            for waiter in leases {
                shell.release(waiter, Outcome::Broken(CloseReason::Upstream));
                let (id, effects) = shell.core.acquire(shell.now, waiter, Place::Front);
                shell.waiters.insert(waiter, id);
                shell.run(effects);
            }
        }
        shell.sweep(50);
    }
    assert!(shell.now <= at(4_000), "refused after {:?}", shell.now);
    assert!(connects < 12, "{connects} connects");
    assert!(
        matches!(&shell.refused[0].1, Refused::ConnectFailed(error) if error.contains("as soon as"))
    );
}

/// Without a cap nothing was tried: the request waits for the budget, whatever failed before.
#[test]
fn a_pool_without_a_cap_refuses_nobody_for_an_endpoint_that_may_be_back() {
    let mut shell = Shell::new(shape(4), 1);
    shell.acquire();
    shell.refuse();
    shell.sweep(4_000);
    shell.refuse();
    shell.sweep(1_000);
    assert_eq!(shell.refused.len(), 1, "with a cap it is told");
    let effects = shell.core.set_cap(shell.now, 0);
    shell.run(effects);
    shell.connects.clear();
    shell.acquire();
    shell.sweep(2_000);
    assert_eq!(shell.refused.len(), 1, "without one it waits");
    assert_eq!(shell.core.need(shell.now).waiting, 1, "and is counted");
}

/// Also without anybody waiting: the warm floor.
#[test]
fn a_warm_floor_does_not_storm_an_endpoint_that_accepts_and_closes() {
    let warm = Shape {
        warm: 4,
        ..shape(4)
    };
    let mut shell = Shell::new(warm, 1);
    let mut connects = 0;
    for _ in 0..100 {
        shell.sweep(100);
        while let Some((ticket, _)) = shell.connects.pop() {
            connects += 1;
            let (id, effects) = shell.core.connected(shell.now, ticket, connects);
            shell.run(effects);
            let effects = shell.core.ended(shell.now, id.unwrap());
            shell.run(effects);
        }
    }
    assert!(connects < 20, "{connects} connects in ten seconds");
}

#[test]
fn one_who_needs_a_fresh_connection_gets_no_other_and_holds_up_nobody() {
    let mut shell = Shell::new(shape(2), 1);
    let (first, second) = (shell.acquire(), shell.acquire());
    shell.connect();
    shell.connect();
    shell.release(first, Outcome::Reusable);
    shell.release(second, Outcome::Reusable);
    // Two that were used lie idle and the pool is full: the coldest gives way.
    let fresh = shell.acquire_at(Place::FrontForFresh);
    assert_eq!((shell.granted.len(), shell.closed), (2, 1));
    let other = shell.acquire();
    assert_eq!(
        shell.granted.last(),
        Some(&other),
        "the idle one is for others"
    );
    shell.connect();
    assert_eq!(shell.granted.last(), Some(&fresh));
    assert_eq!(shell.leases[&fresh].uses, 1);
}

#[test]
fn a_dial_to_a_removed_endpoint_takes_no_place() {
    let mut shell = Shell::new(shape(2), 1);
    shell.acquire();
    shell.acquire();
    let black_hole = shell.connects.clone();
    shell.reshape(shape(2), &[7]);
    assert_eq!(
        shell.connects.len(),
        2,
        "the new endpoint is dialled at once"
    );
    shell.connect();
    shell.connect();
    assert_eq!(shell.granted.len(), 2);
    let (id, effects) = shell.core.connected(shell.now, black_hole[0].0, 99);
    assert!(id.is_none() && matches!(effects[..], [Effect::Close { conn: 99 }]));
}

#[test]
fn a_pool_that_is_back_before_it_was_empty_is_bounded_once() {
    let mut shell = Shell::new(shape(2), 1);
    let first = shell.acquire();
    shell.connect();
    let effects = shell.core.retire(shell.now);
    shell.run(effects);
    shell.core.revive();
    shell.reshape(shape(2), &[0]);
    shell.acquire();
    shell.acquire();
    shell.connect();
    assert_eq!(
        shell.granted.len(),
        2,
        "of two slots one was in use all the time"
    );
    shell.release(first, Outcome::Reusable);
    assert_eq!((shell.granted.len(), shell.closed), (3, 0));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Whatever happens, the invariants hold after each transition (asserted in `pump`), nobody is
    /// granted twice, and when all ends well everybody was answered and the counts add up.
    #[test]
    fn random_histories_keep_the_invariants(events in prop::collection::vec(event(), 1..300)) {
        let mut shell = Shell::new(shape(4), 1);
        for event in events {
            play(&mut shell, event);
            let census = shell.core.census();
            prop_assert_eq!(census.active + census.draining, shell.leases.len());
            prop_assert_eq!(census.connecting, shell.connects.len());
            prop_assert_eq!(shell.core.counters.open(), (census.idle + shell.leases.len()) as u64);
        }
        play(&mut shell, Event::Cap(usize::MAX));
        for _ in 0..2_000 {
            if shell.waiters.is_empty() {
                break;
            }
            let lease = shell.leases.keys().next().copied();
            lease.into_iter().for_each(|waiter| shell.release(waiter, Outcome::Reusable));
            shell.connect();
            shell.sweep(100);
        }
        prop_assert!(shell.waiters.is_empty(), "liveness");
        let mut granted = shell.granted.clone();
        granted.sort_unstable();
        granted.dedup();
        prop_assert_eq!(granted.len(), shell.granted.len(), "granted twice");
    }
}
