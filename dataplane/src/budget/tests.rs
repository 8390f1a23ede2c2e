//! The task that divides, against pools that go on in between.

use std::cell::RefCell;

use proptest::prelude::*;

use super::*;

/// A pool reduced to its counts: it opens nothing above its cap, and gives back what is above it.
#[derive(Debug, Default)]
struct Fake {
    need: Need,
    cap: usize,
}

impl Fake {
    /// Comes to rest: uses what is idle, opens what may be, closes what must be.
    fn rest(&mut self) {
        let need = &mut self.need;
        while need.waiting > 0 && need.busy < self.cap.min(need.size) {
            if need.idle > 0 {
                need.idle -= 1;
            } else if need.busy + need.idle >= self.cap.min(need.size) {
                break;
            }
            need.busy += 1;
            need.waiting -= 1;
        }
        let most = self.cap.min(need.size);
        need.idle = need.idle.min(most.saturating_sub(need.busy));
    }
}

impl Member for RefCell<Fake> {
    fn need(&self) -> Need {
        self.borrow().need
    }

    fn set_cap(&self, cap: usize) {
        let mut fake = self.borrow_mut();
        fake.cap = cap;
        fake.rest();
    }

    fn lower_cap(&self, cap: usize) -> usize {
        let cap = cap.min(self.borrow().cap);
        self.set_cap(cap);
        cap
    }
}

#[derive(Debug, Clone)]
enum Event {
    Want(usize, usize),
    Done(usize, usize),
    Size(usize, usize),
    Divide,
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        3 => (0_usize..6, 1_usize..6).prop_map(|(who, n)| Event::Want(who, n)),
        3 => (0_usize..6, 1_usize..6).prop_map(|(who, n)| Event::Done(who, n)),
        1 => (0_usize..6, 0_usize..12).prop_map(|(who, n)| Event::Size(who, n)),
        3 => Just(Event::Divide),
    ]
}

fn play(fakes: &[RefCell<Fake>], budget: &Budget, event: &Event) {
    match *event {
        Event::Want(who, n) => {
            let mut fake = fakes[who].borrow_mut();
            fake.need.waiting += n;
            fake.rest();
        }
        Event::Done(who, n) => {
            let mut fake = fakes[who].borrow_mut();
            let done = n.min(fake.need.busy);
            fake.need.busy -= done;
            fake.need.idle += done;
            fake.rest();
        }
        Event::Size(who, size) => {
            // As the applier does it: nothing grows before its cap says so.
            let old = fakes[who].borrow().need.size;
            fakes[who].lower_cap(old);
            let mut fake = fakes[who].borrow_mut();
            fake.need.size = size;
            fake.rest();
        }
        Event::Divide => budget.divide(fakes),
    }
}

fn setup(limit: usize) -> (Vec<RefCell<Fake>>, Budget) {
    let budget = Budget::default();
    budget.configure(limit, usize::MAX);
    let fake = || {
        let need = Need {
            size: 5,
            ..Need::default()
        };
        RefCell::new(Fake { need, cap: 0 })
    };
    ((0..6).map(|_| fake()).collect(), budget)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_000))]

    /// Whatever the pools do between two passes, all together never have more open than the budget,
    /// but for what ran before a pool became smaller; and nobody who waits is forgotten.
    #[test]
    fn the_sum_never_exceeds_the_budget(
        limit in 1_usize..25,
        events in proptest::collection::vec(event(), 1..80),
    ) {
        let (fakes, budget) = setup(limit);
        for event in &events {
            play(&fakes, &budget, event);
            let open: usize = fakes.iter().map(|fake| fake.borrow().need.open()).sum();
            prop_assert!(open <= limit, "{open} of {limit} after {event:?}");
        }
        for _ in 0..400 {
            budget.divide(&fakes);
            for who in 0..fakes.len() {
                let size = fakes[who].borrow().need.size.max(1);
                play(&fakes, &budget, &Event::Size(who, size));
                play(&fakes, &budget, &Event::Done(who, 1));
            }
        }
        for fake in &fakes {
            prop_assert_eq!(fake.borrow().need.waiting, 0, "everybody is served in the end");
        }
    }
}

#[test]
fn a_model_with_demand_gets_the_next_slot_that_is_free() {
    let (fakes, budget) = setup(10);
    for who in [0, 1] {
        play(&fakes, &budget, &Event::Want(who, 9));
    }
    budget.divide(&fakes);
    assert_eq!([0, 1].map(|n: usize| fakes[n].borrow().need.busy), [5, 5]);
    play(&fakes, &budget, &Event::Want(2, 1));
    budget.divide(&fakes);
    assert_eq!(fakes[2].borrow().need.busy, 0, "streams are not cut");
    play(&fakes, &budget, &Event::Done(1, 1));
    budget.divide(&fakes);
    assert_eq!(
        fakes[2].borrow().need.busy,
        1,
        "not to those who wait at the first"
    );
}

/// One that held everything gives back one by one; two that have nothing get them in turn.
#[test]
fn what_comes_free_goes_to_who_has_least() {
    let (fakes, budget) = setup(10);
    fakes[0].borrow_mut().need.size = 10;
    play(&fakes, &budget, &Event::Want(0, 30));
    budget.divide(&fakes);
    assert_eq!(fakes[0].borrow().need.busy, 10);
    for who in [1, 2] {
        play(&fakes, &budget, &Event::Want(who, 5));
    }
    for _ in 0..4 {
        budget.divide(&fakes);
        play(&fakes, &budget, &Event::Done(0, 1));
        budget.divide(&fakes);
    }
    assert_eq!([1, 2].map(|n: usize| fakes[n].borrow().need.busy), [2, 2]);
}
