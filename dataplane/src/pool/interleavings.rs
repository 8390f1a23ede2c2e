//! The desk under every interleaving of a few threads: who lines up, goes away, gives back, while
//! connections are made, end, and do not fit any more. The checker (shuttle) decides at each point where
//! another thread may run which one does.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use forebay_proto::{
    Endpoint, EndpointId, EndpointUrl, ModelId, ModelSpec, PoolSettings, PoolSize, ResolvedModel,
    Revision,
};
use parking_lot::Mutex;
use shuttle::{Config, Runner, check_random, future::block_on, scheduler::DfsScheduler, thread};

use super::{
    claim::{FlowId, Priority},
    core::{Ask, ConnId, Connection, OriginId, Outcome, Place, Ticket, Wish},
    counters::CloseReason,
    desk::{Desk, Dial, Loan, Upstream},
    inner::Inner,
    lock::interleaved::{checked, others_may_run},
};

/// What happened to the connections of one run.
#[derive(Debug, Default)]
struct Ledger {
    made: AtomicUsize,
    closed: AtomicUsize,
    /// Requests on connections now, and most of them at once.
    busy: AtomicUsize,
    most: AtomicUsize,
    connects: Mutex<Vec<thread::JoinHandle<()>>>,
    names: Mutex<Vec<ConnId>>,
}

/// A connection that only counts.
#[derive(Debug)]
struct Counted(Arc<Ledger>);

impl Connection for Counted {
    fn is_shared(&self) -> bool {
        false
    }

    fn streams(&self) -> usize {
        1
    }

    fn another(&self) -> Option<Self> {
        None
    }
}

impl Upstream for Counted {
    fn close(self) {
        self.0.closed.fetch_add(1, Ordering::SeqCst);
    }

    fn is_closed(&self) -> bool {
        false
    }

    fn is_live(&self) -> bool {
        true
    }
}

/// Each connect is a thread of its own.
#[derive(Debug)]
struct Threads(Arc<Ledger>);

impl Dial<Counted> for Threads {
    fn dial(&self, desk: &Arc<Desk<Counted>>, ticket: Ticket, origin: OriginId) {
        let (ledger, desk) = (self.0.clone(), desk.clone());
        let connect = thread::spawn(move || {
            others_may_run();
            ledger.made.fetch_add(1, Ordering::SeqCst);
            desk.connected(ticket, origin, Counted(ledger.clone()));
        });
        self.0.connects.lock().push(connect);
    }
}

struct Run {
    ledger: Arc<Ledger>,
    desk: Arc<Desk<Counted>>,
}

fn model(size: u32) -> ResolvedModel {
    let url = EndpointUrl::parse("http://10.0.0.1").unwrap();
    let endpoint = Endpoint::new(EndpointId::new("a").unwrap(), url);
    let mut spec = ModelSpec::new(ModelId::new("m").unwrap(), vec![], vec![endpoint]).unwrap();
    spec.pool.max_concurrent = PoolSize::new(size).ok();
    spec.resolve(&PoolSettings::default(), Revision::new(1))
        .unwrap()
}

impl Run {
    fn new(size: u32) -> Self {
        let ledger = Arc::<Ledger>::default();
        let mut inner = Inner::new(&model(size), usize::MAX, 1);
        let none = inner.reshape(Duration::ZERO, &model(size));
        assert!(none.is_empty());
        let dial = Threads(ledger.clone());
        let desk = Desk::new(inner, Box::new(dial), Arc::default());
        Self { ledger, desk }
    }

    /// An upstream that closes the connection that was used last, so many times.
    fn upstream(&self, times: usize) -> thread::JoinHandle<()> {
        let (ledger, desk) = (self.ledger.clone(), self.desk.clone());
        thread::spawn(move || {
            for _ in 0..times {
                others_may_run();
                let name = ledger.names.lock().pop();
                if let Some(name) = name {
                    desk.ended(name);
                }
            }
        })
    }

    /// Lines up, uses what it gets, and gives it back in this way.
    fn client(&self, outcome: Outcome) -> thread::JoinHandle<()> {
        self.client_of(Ask::default(), outcome)
    }

    /// The same, as one of a flow.
    fn client_of(&self, ask: Ask, outcome: Outcome) -> thread::JoinHandle<()> {
        let (ledger, desk) = (self.ledger.clone(), self.desk.clone());
        thread::spawn(move || {
            let loan = match desk.take(&ask) {
                Some(loan) => loan,
                None => block_on(desk.line_up(&ask, Place::Back, Wish::default()))
                    .unwrap()
                    .unwrap(),
            };
            use_and_return(&ledger, loan, outcome);
        })
    }

    /// Lines up and goes away again.
    fn quitter(&self) -> thread::JoinHandle<()> {
        let desk = self.desk.clone();
        thread::spawn(move || {
            let line = desk.line_up(&Ask::default(), Place::Back, Wish::default());
            others_may_run();
            drop(line);
        })
    }

    /// When all is over: everything came back, nobody waits, and what was made was closed or is idle.
    fn settle(&self, size: usize) {
        let waiting = self.desk.with(|inner, now| inner.core.census(now).waiting);
        assert_eq!(waiting, 0, "who went away still stands in line");
        self.join_connects();
        let (census, counted) = self
            .desk
            .with(|inner, now| (inner.core.census(now), inner.core.counters.open()));
        assert_eq!(census.in_flight, 0, "a slot was lost");
        assert_eq!(census.waiting, 0, "somebody waits for ever");
        let (made, closed) = (
            self.ledger.made.load(Ordering::SeqCst),
            self.ledger.closed.load(Ordering::SeqCst),
        );
        assert_eq!(made - closed, census.idle, "made - closed = idle");
        assert_eq!(counted, census.idle as u64);
        assert!(self.ledger.most.load(Ordering::SeqCst) <= size);
    }

    fn join_connects(&self) {
        loop {
            let connect = self.ledger.connects.lock().pop();
            match connect {
                Some(connect) => connect.join().unwrap(),
                None => return,
            }
        }
    }
}

fn use_and_return(ledger: &Ledger, mut loan: Loan<Counted>, outcome: Outcome) {
    let name = loan.start().unwrap().id;
    ledger.names.lock().push(name);
    let busy = ledger.busy.fetch_add(1, Ordering::SeqCst) + 1;
    ledger.most.fetch_max(busy, Ordering::SeqCst);
    others_may_run();
    ledger.busy.fetch_sub(1, Ordering::SeqCst);
    loan.give_back(outcome);
}

fn join(threads: impl IntoIterator<Item = thread::JoinHandle<()>>) {
    for thread in threads {
        thread.join().unwrap();
    }
}

/// Every schedule there is.
fn every(run: impl Fn() + Send + Sync + 'static) {
    let runner = Runner::new(DfsScheduler::new(None, false), Config::new());
    let schedules = checked(|| runner.run(run));
    println!("{schedules} schedules, all of them");
    assert!(schedules > 10, "{schedules}: nothing was interleaved");
}

/// Many, of a scene that has too many for all.
fn many(run: impl Fn() + Send + Sync + 'static) {
    checked(|| check_random(run, 5_000));
}

#[test]
fn two_clients_of_one_slot() {
    many(|| {
        let run = Run::new(1);
        let clients = [run.client(Outcome::Reusable), run.client(Outcome::Reusable)];
        join(clients);
        run.settle(1);
    });
}

/// The grant crosses the leaving: the connection comes back, and is there for the next one.
#[test]
fn one_who_leaves_while_he_is_served() {
    every(|| {
        let run = Run::new(1);
        join([run.quitter()]);
        run.settle(1);
    });
}

#[test]
fn one_who_leaves_and_one_who_stays() {
    many(|| {
        let run = Run::new(1);
        join([run.quitter(), run.client(Outcome::Reusable)]);
        run.settle(1);
    });
}

/// A connection ends by itself while it is handed out, in use, or given back.
#[test]
fn an_end_that_crosses_a_loan() {
    every(|| {
        let run = Run::new(1);
        join([run.client(Outcome::Reusable), run.upstream(1)]);
        run.settle(1);
    });
}

#[test]
fn a_shrink_that_crosses_loans() {
    many(|| {
        let run = Run::new(2);
        let clients = [
            run.client(Outcome::Reusable),
            run.client(Outcome::Unused),
            run.client(Outcome::Broken(CloseReason::Error)),
        ];
        let desk = run.desk.clone();
        let operator = thread::spawn(move || {
            desk.change(|inner, now| inner.reshape(now, &model(1)));
            others_may_run();
            desk.change(|inner, now| inner.reshape(now, &model(2)));
        });
        join(clients);
        join([operator]);
        run.settle(2);
    });
}

/// Flows and bands come and go while somebody leaves the line.
#[test]
fn flows_that_cross_a_leaving() {
    many(|| {
        let run = Run::new(2);
        let of = |flow, priority| Ask {
            flow: FlowId::new(flow),
            priority,
            ..Ask::default()
        };
        join([
            run.client_of(of(7, Priority::Normal), Outcome::Reusable),
            run.client_of(of(8, Priority::High), Outcome::Reusable),
            run.quitter(),
            run.client_of(of(8, Priority::High), Outcome::Broken(CloseReason::Error)),
        ]);
        run.settle(2);
        let busy = run.desk.with(|inner, now| inner.core.census(now).flows);
        assert_eq!(busy, 0, "a flow is counted for something that is gone");
    });
}

#[test]
fn clients_quitters_and_closes_all_at_once() {
    many(|| {
        let run = Run::new(2);
        join([
            run.client(Outcome::Reusable),
            run.quitter(),
            run.client(Outcome::Broken(CloseReason::Cancelled)),
            run.quitter(),
            run.client(Outcome::Reusable),
            run.upstream(3),
        ]);
        run.settle(2);
    });
}
