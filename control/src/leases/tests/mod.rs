//! The decider, step by step. What it does under everything at once is for the model test (`tests/tests/leases`).

mod division;
mod processes;
mod starts;

use forebay_proto::{Digest, Epoch, InstanceId, WorkerId};

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

fn epoch() -> Epoch {
    Epoch::new("aa").unwrap()
}

/// A registry that was made just now, or one that was there before.
fn origin(fresh: bool) -> Origin {
    Origin {
        epoch: epoch(),
        fresh,
    }
}

fn position(revision: u64) -> Position {
    Position {
        epoch: epoch(),
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
        Self::of(origin(true), table, limit)
    }

    fn of(origin: Origin, table: Table, limit: Limit) -> Self {
        let on_record = (table.clone(), origin);
        let machine = Machine::new(secs(0), SETTINGS, on_record, MachineFaults::default());
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
