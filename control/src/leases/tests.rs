//! The decider, step by step. What it does under everything at once is for the model test (`tests/tests/leases`).

use forebay_proto::{Digest, Epoch, InstanceId, Revision, WorkerId};

use super::{
    words::{Grant, Share, Table, Use},
    *,
};

const SETTINGS: LeaseSettings = LeaseSettings {
    ttl: Duration::from_secs(10),
    linger: Duration::from_secs(20),
};

fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

fn model() -> ModelId {
    ModelId::new("m").unwrap()
}

fn id(n: u32) -> WorkerId {
    WorkerId::new(format!("w{n}")).unwrap()
}

fn position(revision: u64) -> Position {
    Position {
        epoch: Epoch::new("aa").unwrap(),
        revision: Revision::new(revision),
        digest: Digest::of(b""),
    }
}

fn limit(limit: u32) -> Limit {
    Limit {
        limit,
        floor: 1,
        most: 1_000,
        since: position(5),
        own: None,
    }
}

/// A control plane that was up for long when it began to decide.
#[test]
fn who_is_on_record_is_not_forgotten_because_this_process_is_old() {
    let table = Table {
        workers: BTreeMap::from([(id(0), BTreeMap::from([(model(), 1)]))]),
        ..Table::default()
    };
    let now = secs(25 * 60 * 60);
    let mut machine = Machine::new(now, SETTINGS, table, MachineFaults::default());
    machine.configure(BTreeMap::from([(model(), limit(8))]));
    machine.pass(now);
    assert_eq!(machine.sum(now, &model(), &limit(8)).unknown, [id(0)]);
}

/// What was granted before the times were made shorter holds for as long as it was granted for.
#[test]
fn shorter_times_count_from_the_next_one_who_decides() {
    let table = Table {
        ttl: secs(60),
        linger: secs(60),
        ..Table::default()
    };
    let before = LeaseSettings {
        ttl: secs(60),
        linger: secs(60),
    };
    let machine = Machine::new(secs(0), SETTINGS, table, MachineFaults::default());
    assert_eq!(machine.patience().safe, before.safe());
}

/// Plays workers that do as they are told.
struct Play {
    machine: Machine,
    now: Duration,
    workers: BTreeMap<u32, Played>,
    table: Table,
    streams: u64,
}

struct Played {
    standing: Standing,
    used: Use,
    number: u64,
    grant: u64,
    own: BTreeMap<ModelId, u32>,
    applied: u64,
}

impl Play {
    fn new(table: Table, limit: Limit) -> Self {
        let machine = Machine::new(secs(0), SETTINGS, table.clone(), MachineFaults::default());
        let mut play = Self {
            machine,
            now: secs(0),
            workers: BTreeMap::new(),
            table,
            streams: 0,
        };
        play.configure(limit);
        play
    }

    fn configure(&mut self, limit: Limit) {
        self.machine.configure(BTreeMap::from([(model(), limit)]));
    }

    fn join(&mut self, n: u32, instance: &str, takes_over: bool) -> &mut Played {
        self.join_as(n, instance, takes_over, false)
    }

    fn join_as(
        &mut self,
        n: u32,
        instance: &str,
        takes_over: bool,
        displaces: bool,
    ) -> &mut Played {
        self.streams += 1;
        let standing = Standing {
            stream: self.streams,
            instance: InstanceId::new(instance).unwrap(),
            takes_over,
            count: 0,
            displaces,
            repeated: false,
            knows: true,
            connected: true,
            report: None,
        };
        self.machine.hear(self.now, &id(n), &standing);
        let played = Played {
            standing,
            used: Use::default(),
            number: 0,
            grant: 0,
            own: BTreeMap::new(),
            applied: 9,
        };
        self.workers.insert(n, played);
        self.workers.get_mut(&n).unwrap()
    }

    fn report(&mut self, n: u32, change: impl FnOnce(&mut Report)) {
        let worker = self.workers.get_mut(&n).unwrap();
        worker.number += 1;
        let mut report = Report {
            number: worker.number,
            grant: worker.grant,
            applied: Some(position(worker.applied)),
            uses: BTreeMap::from([(model(), worker.used)]),
            own: worker.own.clone(),
            alone: true,
            weight: 1,
            ..Report::default()
        };
        change(&mut report);
        worker.standing.report = Some(report);
        self.machine.hear(self.now, &id(n), &worker.standing);
    }

    fn leave(&mut self, n: u32) {
        let mut worker = self.workers.remove(&n).unwrap();
        worker.standing.connected = false;
        self.machine.hear(self.now, &id(n), &worker.standing);
    }

    /// A division; what is sent comes.
    fn divide(&mut self) -> Vec<(WorkerId, Arc<Grant>)> {
        self.machine.pass(self.now);
        if let Some(table) = self.machine.to_keep() {
            self.table = table.clone();
            self.machine.kept(table);
        }
        let grants = self.machine.publish(self.now);
        for (to, grant) in &grants {
            let worker = self.workers.iter_mut().find(|(n, _)| id(**n) == *to);
            let (_, worker) = worker.unwrap();
            worker.grant = grant.number;
            let share = grant.shares.get(&model()).copied().unwrap_or_default();
            (worker.used.size, worker.used.floor) = (share.size, share.floor);
        }
        grants
    }

    /// Rounds in which all who are there use what they may and say so.
    fn settle(&mut self, rounds: usize) {
        for _ in 0..rounds {
            let all: Vec<u32> = self.workers.keys().copied().collect();
            for n in all {
                let used = &mut self.workers.get_mut(&n).unwrap().used;
                // What is above ends, and what is free is taken.
                used.in_flight = used.size;
                used.waiting = 500;
                self.report(n, |_| {});
            }
            self.divide();
        }
    }

    fn sizes(&self) -> Vec<u32> {
        self.workers
            .values()
            .map(|worker| worker.used.size)
            .collect()
    }

    fn figures(&self) -> super::view::Figures {
        self.machine.figures(self.now).remove(0)
    }
}

#[test]
fn nothing_is_sent_that_is_not_on_record() {
    let mut play = Play::new(Table::default(), limit(10));
    play.join(1, "a", false);
    play.report(1, |_| {});
    play.machine.pass(play.now);
    let grants = play.machine.publish(play.now);
    assert!(grants[0].1.shares.is_empty(), "{grants:?}");
    let table = play.machine.to_keep().unwrap();
    assert_eq!(table.workers[&id(1)], BTreeMap::from([(model(), 1)]));
    play.machine.kept(table);
    let grants = play.machine.publish(play.now);
    let share = Share { size: 10, floor: 1 };
    assert_eq!(grants[0].1.shares[&model()], share);
    assert_eq!(play.machine.to_keep(), None);
}

#[test]
fn what_is_taken_away_is_given_on_as_it_is_shown_to_be_free() {
    let mut play = Play::new(Table::default(), limit(20));
    play.join(1, "a", false);
    play.settle(3);
    assert_eq!(play.sizes(), [20]);
    play.join(2, "b", false);
    play.workers.get_mut(&2).unwrap().used.waiting = 100;
    play.report(2, |_| {});
    play.divide();
    assert_eq!(play.sizes(), [10, 0], "told, and nothing free yet");
    // Three requests end.
    play.workers.get_mut(&1).unwrap().used.in_flight = 17;
    play.report(1, |_| {});
    play.divide();
    assert_eq!(play.sizes(), [10, 3]);
    assert_eq!(play.figures().used, 20);
    play.settle(2);
    assert_eq!(play.sizes(), [10, 10]);
}

#[test]
fn one_that_vanished_is_counted_until_its_time_is_over_and_its_floor_until_it_is_forgotten() {
    let mut play = Play::new(Table::default(), limit(20));
    play.join(1, "a", false);
    play.join(2, "b", false);
    play.settle(4);
    assert_eq!(play.sizes(), [10, 10]);
    play.leave(2);
    for second in 1..33 {
        play.now = secs(second);
        play.settle(1);
        assert_eq!(play.sizes(), [10], "at {second}");
    }
    play.now += SETTINGS.safe();
    play.settle(2);
    assert_eq!(play.sizes(), [19]);
    let shown = play.machine.leases_of(play.now, "w2");
    assert_eq!(shown[0].state(), forebay_proto::wire::LeaseState::Floor);
    assert!(!play.machine.forget("w1"), "it is there");
    assert!(play.machine.forget("w2"));
    play.settle(2);
    assert_eq!(play.sizes(), [20]);
    assert!(!play.table.workers.contains_key(&id(2)));
}

#[test]
fn a_new_process_of_the_same_worker_frees_what_the_old_one_had() {
    let mut play = Play::new(Table::default(), limit(20));
    play.join(1, "a", false);
    play.join(2, "b", false);
    play.settle(4);
    play.leave(2);
    play.now = secs(1);
    play.join(2, "c", false);
    assert_eq!(play.figures().used, 10);
    play.settle(3);
    assert_eq!(play.sizes(), [10, 10]);
}

#[test]
fn one_that_takes_over_has_nothing_until_it_speaks_for_both() {
    let mut play = Play::new(Table::default(), limit(20));
    play.join(1, "a", false);
    play.settle(3);
    play.now = secs(1);
    play.join(1, "heir", true);
    play.report(1, |report| report.alone = false);
    play.divide();
    assert_eq!(play.sizes(), [0], "the one before may use all");
    assert_eq!(play.figures().used, 20);
    // It was handed all but what the old one keeps, which counts as its own.
    let used = &mut play.workers.get_mut(&1).unwrap().used;
    (used.size, used.floor, used.in_flight) = (20, 1, 7);
    play.report(1, |_| {});
    play.divide();
    assert_eq!(play.sizes(), [20]);
    assert_eq!(play.figures().used, 20);
}

#[test]
fn one_that_comes_while_another_is_there_leaves_it_what_it_may_use_until_its_time_is_over() {
    let mut play = Play::new(Table::default(), limit(20));
    play.join(1, "a", false);
    play.settle(3);
    play.join_as(1, "b", false, true);
    while play.now < SETTINGS.safe() {
        // That it is alone is what it thinks.
        play.report(1, |_| {});
        play.divide();
        assert_eq!(play.sizes(), [0]);
        assert_eq!(play.figures().used, 20);
        play.now += secs(2);
    }
    play.report(1, |_| {});
    play.divide();
    assert_eq!(play.sizes(), [20]);
}

#[test]
fn grants_that_are_lost_time_and_again_count_and_stop_nothing() {
    let mut play = Play::new(Table::default(), limit(20));
    play.join(1, "a", false);
    play.settle(3);
    let (grant, size) = (play.workers[&1].grant, 20);
    for _ in 0..100 {
        play.report(1, |report| report.grant = grant);
        play.divide();
        // It never came.
        play.workers.get_mut(&1).unwrap().grant = grant;
        assert_eq!(play.figures().used, size);
    }
    play.report(1, |report| report.grant = grant);
    let grants = play.divide();
    assert_eq!(grants.len(), 1, "and the next one is sent all the same");
}

#[test]
fn the_process_before_counts_no_longer_than_its_time() {
    let mut play = Play::new(Table::default(), limit(20));
    play.join(1, "a", false);
    play.settle(3);
    play.join(1, "heir", true);
    let safe = SETTINGS.safe();
    while play.now < safe {
        play.report(1, |report| report.alone = false);
        play.divide();
        assert_eq!(play.sizes(), [0]);
        play.now += secs(2);
    }
    play.report(1, |report| report.alone = false);
    play.divide();
    assert_eq!(play.sizes(), [19], "but for the floor");
}

#[test]
fn a_control_plane_that_begins_waits_for_those_on_record_and_renews_the_others() {
    let mut before = Play::new(Table::default(), limit(20));
    for n in 1..=2 {
        before.join(n, "a", false);
    }
    before.settle(4);
    assert_eq!(before.sizes(), [10, 10]);
    let mut play = Play::new(before.table.clone(), limit(20));
    play.now = secs(1);
    play.join(1, "a", false);
    (play.workers.get_mut(&1).unwrap().used) = Use {
        size: 10,
        floor: 1,
        in_flight: 10,
        waiting: 50,
    };
    play.report(1, |_| {});
    assert_eq!(play.divide().len(), 1, "renewed");
    assert_eq!(play.sizes(), [10], "and not grown");
    let pools = play.machine.pools(play.now, None);
    assert!(pools[0].waits_for.contains("w2"), "{}", pools[0].waits_for);
    // A third one is new and gets nothing of what the second may have.
    play.join(3, "n", false);
    play.settle(2);
    assert_eq!(play.sizes().iter().sum::<u32>(), 10);
    // The second one comes back, and holds less than it might have.
    play.join(2, "a", false);
    play.workers.get_mut(&2).unwrap().used.size = 4;
    play.settle(4);
    assert_eq!(play.sizes().iter().sum::<u32>(), 20);
    // Or it never does.
    let mut alone = Play::new(before.table, limit(20));
    alone.now = SETTINGS.safe();
    alone.join(1, "a", false);
    alone.settle(3);
    assert_eq!(alone.sizes(), [19], "its floor is kept for it");
}

#[test]
fn the_time_that_counts_at_a_start_is_the_longest_that_was_granted() {
    let table = Table {
        linger: secs(500),
        workers: BTreeMap::from([(id(2), BTreeMap::from([(model(), 1)]))]),
        ..Table::default()
    };
    let mut play = Play::new(table, limit(20));
    play.now = secs(400);
    play.join(1, "a", false);
    play.settle(3);
    assert_eq!(play.sizes(), [0]);
    assert_eq!(play.table.linger, secs(500));
    play.now = secs(600);
    play.settle(3);
    assert_eq!(play.sizes(), [19]);
}

#[test]
fn a_lower_limit_shrinks_first() {
    let mut play = Play::new(Table::default(), limit(30));
    for n in 1..=3 {
        play.join(n, "a", false);
    }
    play.settle(5);
    assert_eq!(play.sizes(), [10, 10, 10]);
    play.configure(limit(9));
    play.report(1, |_| {});
    play.divide();
    assert_eq!(play.sizes(), [3, 3, 3]);
    play.join(4, "n", false);
    play.report(4, |_| {});
    play.divide();
    assert_eq!(play.workers[&4].used.size, 0, "30 may still be in flight");
    play.settle(4);
    assert_eq!(play.sizes().iter().sum::<u32>(), 9);
}

#[test]
fn who_may_have_a_pool_of_its_own_counts_with_it_until_it_says_otherwise() {
    let own = Limit {
        own: Some(50),
        ..limit(60)
    };
    let mut play = Play::new(Table::default(), own);
    play.join(1, "a", false);
    play.join(2, "b", false).applied = 4;
    play.report(1, |_| {});
    // The second has yet to take the configuration.
    play.report(2, |report| report.uses.clear());
    play.divide();
    assert_eq!(play.sizes(), [10, 0]);
    assert_eq!(play.figures().held_back, 50);
    // It could not, and goes on with what it had.
    play.workers.get_mut(&2).unwrap().applied = 9;
    play.workers.get_mut(&2).unwrap().own = BTreeMap::from([(model(), 50)]);
    play.report(2, |report| report.uses.clear());
    play.divide();
    assert_eq!(play.figures().held_back, 50);
    let shown = play.machine.leases_of(play.now, "w2");
    assert_eq!(shown[0].state(), forebay_proto::wire::LeaseState::OwnPool);
    play.workers.get_mut(&2).unwrap().own.clear();
    play.settle(4);
    assert_eq!(play.sizes(), [30, 30]);
}

#[test]
fn a_build_that_knows_no_leases_gets_nothing_and_counts_with_what_it_may_have_had() {
    let old = |play: &mut Play| {
        let standing = Standing {
            stream: 100,
            instance: InstanceId::new("old").unwrap(),
            takes_over: false,
            count: 0,
            displaces: false,
            repeated: false,
            knows: false,
            connected: true,
            report: None,
        };
        play.machine.hear(play.now, &id(9), &standing);
    };
    let mut play = Play::new(Table::default(), limit(60));
    old(&mut play);
    play.join(1, "a", false);
    play.settle(3);
    assert_eq!(play.sizes(), [60], "it never had the model");
    let shown = play.machine.leases_of(play.now, "w9");
    assert_eq!(shown[0].state(), forebay_proto::wire::LeaseState::TooOld);
    assert!(shown[0].reason.contains("replace it"));
    let own = Limit {
        own: Some(50),
        ..limit(60)
    };
    let mut play = Play::new(Table::default(), own);
    old(&mut play);
    play.join(1, "a", false);
    play.settle(3);
    assert_eq!(play.sizes(), [10]);
}

#[test]
fn one_that_ends_gives_back_as_it_goes_and_leaves_nothing() {
    let mut play = Play::new(Table::default(), limit(20));
    play.join(1, "a", false);
    play.join(2, "b", false);
    play.settle(4);
    let used = &mut play.workers.get_mut(&2).unwrap().used;
    (used.in_flight, used.waiting) = (4, 0);
    play.report(2, |report| report.ending = true);
    play.divide();
    assert_eq!(play.sizes()[1], 4);
    play.workers.get_mut(&2).unwrap().used = Use::default();
    play.report(2, |report| {
        report.done = true;
        report.uses.clear();
    });
    play.leave(2);
    play.settle(2);
    assert_eq!(play.sizes(), [20]);
    assert!(!play.table.workers.contains_key(&id(2)));
}

#[test]
fn one_that_is_silent_gets_nothing_more_and_is_counted() {
    let mut play = Play::new(Table::default(), limit(20));
    play.join(1, "a", false);
    play.join(2, "b", false);
    play.settle(4);
    let silent = play.workers.remove(&2).unwrap();
    for _ in 0..30 {
        play.now += secs(1);
        play.settle(1);
        assert!(play.sizes()[0] <= 10);
    }
    play.now += SETTINGS.safe();
    play.settle(2);
    assert_eq!(play.sizes(), [19]);
    // It is back on the same stream: as it left, less what ran out.
    play.workers.insert(2, silent);
    let used = &mut play.workers.get_mut(&2).unwrap().used;
    (used.size, used.in_flight) = (1, 1);
    play.report(2, |_| {});
    play.divide();
    assert_eq!(play.figures().used, 20);
    play.settle(3);
    assert_eq!(play.sizes(), [10, 10]);
}
