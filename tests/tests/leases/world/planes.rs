//! Control planes of the world: each has workers, one of them decides; what they write for one another comes late, twice
//! or not at all. They are killed, and another one decides.

use std::sync::Arc;

use forebay_control::simulation::leases as control;

use super::{Word, World, lineage};

/// What control planes write for one another, on its way.
#[derive(Debug)]
pub(super) enum Mail {
    Letter(String, control::Letter),
    Lent(String, control::Lent),
    Call(String, control::Call),
    /// The lease of that one is over.
    Gone(String),
    /// A stream ended a while ago, and its control plane notices.
    Ended(String, usize, control::Standing),
}

/// A control plane.
#[derive(Debug)]
pub(super) struct Plane {
    /// Of its process.
    pub(super) name: String,
    pub(super) own: control::Own,
    pub(super) back: Option<u64>,
}

/// The one that decides.
#[derive(Debug)]
pub(super) struct Leader {
    pub(super) plane: usize,
    pub(super) call: control::Call,
    pub(super) machine: control::Machine,
    pub(super) lines: control::Lines,
    pub(super) called: u64,
}

impl World {
    pub(super) fn plane(&mut self) -> Plane {
        self.instances += 1;
        let mut own = control::Own::default();
        own.faults = self.faults.own;
        Plane {
            name: format!("c{}", self.instances),
            own,
            back: None,
        }
    }

    pub(super) fn kill_plane(&mut self, n: usize) {
        let back = self.now + self.rng.u64(100..20_000);
        if self.planes[n].back.replace(back).is_some() {
            return;
        }
        self.seen.control_restarts += 1;
        for place in &mut self.places {
            if let Some(process) = place.process.as_mut().filter(|p| p.plane == n) {
                process.stream = None;
            }
        }
        let name = self.planes[n].name.clone();
        let heard = self.now + self.rng.u64(0..6_000);
        self.mail.push((heard, Mail::Gone(name.clone())));
        self.note(format!("control plane {name} is killed"));
        if self.leader.as_ref().is_some_and(|leader| leader.plane == n) {
            self.leader = None;
            self.next_leader = self.now + self.rng.u64(100..7_000);
        }
    }

    /// The store is restored from what it was once, or moved without its table; all control planes were stopped.
    pub(super) fn restore(&mut self) {
        self.seen.restores += 1;
        self.note("the store is restored".to_owned());
        for n in 0..self.planes.len() {
            self.kill_plane(n);
        }
        (self.leader, self.before_it) = (None, None);
        self.lineage += 1;
        self.disk = match self.rng.bool() {
            true => self.backup.clone(),
            false => control::Table::default(),
        };
        for place in &mut self.places {
            if let Some(process) = &mut place.process {
                process.unheard = true;
            }
        }
    }

    /// Another one decides, and this one goes on as a control plane.
    pub(super) fn depose(&mut self, lasts: u64) {
        self.seen.terms += 1;
        self.note("another one is to decide".to_owned());
        let (now, leader) = (self.now, self.leader.take());
        if let Some(leader) = leader.filter(|_| self.faults.unfenced) {
            self.before_it = Some((leader, now + 9_000));
        }
        self.next_leader = now + lasts / 3;
    }

    /// Who decides calls all.
    pub(super) fn call(&mut self) {
        let Some(leader) = &mut self.leader else {
            return;
        };
        leader.called = self.now;
        let call = leader.call;
        for n in 0..self.planes.len() {
            let at = self.now + self.mail_delay();
            let name = self.planes[n].name.clone();
            self.mail.push((at, Mail::Call(name, call)));
        }
    }

    fn mail_delay(&mut self) -> u64 {
        match self.rng.u32(0..20) {
            0 if !self.calm => self.rng.u64(200..4_000),
            _ => self.rng.u64(0..100),
        }
    }

    /// The control plane hears that the stream ended, if it can, within this.
    pub(super) fn hang_up(&mut self, n: usize, within: u64) {
        let Some(process) = &self.places[n].process else {
            return;
        };
        let Some(stream) = process.stream else { return };
        let gone = control::Standing {
            stream,
            instance: process.instance.clone(),
            takes_over: false,
            count: process.told_count(),
            displaces: false,
            repeated: false,
            knows: true,
            connected: false,
            report: None,
        };
        // Who is cut off is missed when a ping is not answered.
        let within = match self.places[n].cut_until > self.now {
            true => 15_000,
            false => within,
        };
        let name = self.planes[process.plane].name.clone();
        let at = self.now + self.rng.u64(0..within);
        self.mail.push((at, Mail::Ended(name, n, gone)));
    }

    /// What control planes wrote comes, and they write.
    pub(super) fn post(&mut self) {
        for n in 0..self.planes.len() {
            if self.planes[n].back.is_some_and(|back| back <= self.now) {
                self.planes[n] = self.plane();
                let call = self.leader.as_ref().map(|leader| leader.call);
                call.map(|call| self.planes[n].own.call(call));
            }
        }
        let (now, mut come, mut kept) = (self.now, Vec::new(), Vec::new());
        for (at, mail) in self.mail.drain(..) {
            match at <= now {
                true => come.push((at, mail)),
                false => kept.push((at, mail)),
            }
        }
        self.mail = kept;
        come.sort_by_key(|(at, _)| *at);
        for (_, mail) in come {
            self.take_in(mail);
        }
        for n in 0..self.planes.len() {
            let name = self.planes[n].name.clone();
            while let Some(letter) = self.planes[n].own.letter() {
                let at = self.now + self.mail_delay();
                // It is written once, twice, or not at all, and its writer does not always know.
                match self.rng.u32(0..60) {
                    0 if !self.calm => {
                        self.planes[n].own.unsent(letter);
                        break;
                    }
                    1 => {
                        self.mail
                            .push((at, Mail::Letter(name.clone(), letter.clone())));
                        self.planes[n].own.unsent(letter);
                        break;
                    }
                    2 => {
                        let late = at + self.rng.u64(0..3_000);
                        self.mail
                            .push((late, Mail::Letter(name.clone(), letter.clone())));
                    }
                    _ => {}
                }
                self.planes[n].own.sent(&letter);
                self.mail.push((at, Mail::Letter(name.clone(), letter)));
            }
        }
    }

    fn take_in(&mut self, mail: Mail) {
        let (now, time) = (self.now, self.time());
        let plane = |planes: &[Plane], name: &str| {
            let known = |plane: &Plane| plane.name == name && plane.back.is_none();
            planes.iter().position(known)
        };
        match mail {
            Mail::Call(name, call) => {
                if let Some(n) = plane(&self.planes, &name) {
                    self.planes[n].own.call(call);
                }
            }
            Mail::Ended(name, n, standing) => {
                let id = self.places[n].id.clone();
                if let Some(n) = plane(&self.planes, &name) {
                    self.planes[n].own.report(&id, standing);
                }
            }
            Mail::Lent(name, lent) => {
                let Some(n) = plane(&self.planes, &name) else {
                    return;
                };
                if let Some(grant) = self.planes[n].own.hand_on(&lent) {
                    let worker = self.places.iter().position(|place| place.id == lent.worker);
                    let worker = worker.expect("a worker that there is");
                    self.send(worker, grant.stream, false, Word::Grant(Arc::new(grant)));
                }
            }
            Mail::Letter(name, letter) => {
                let before = self.before_it.iter_mut().map(|(leader, _)| leader);
                let leaders = self.leader.iter_mut().chain(before);
                let mut uncalled = false;
                for (n, leader) in leaders.enumerate() {
                    match leader.lines.hear(&name, letter.clone()) {
                        control::Heard::News(news) => {
                            for (id, standing) in news {
                                leader.machine.hear(time, &id, &standing);
                            }
                        }
                        control::Heard::Uncalled => {
                            uncalled |= n == 0 && leader.called + 1_000 <= now;
                        }
                    }
                }
                if uncalled {
                    self.call();
                }
            }
            Mail::Gone(name) => {
                if let Some(leader) = &mut self.leader {
                    for (id, standing) in leader.lines.gone(&name) {
                        leader.machine.hear(time, &id, &standing);
                    }
                }
            }
        }
    }

    fn elect(&mut self) {
        let alive = (0..self.planes.len()).filter(|n| self.planes[*n].back.is_none());
        let alive: Vec<usize> = alive.collect();
        if self.leader.is_some() || self.now < self.next_leader || alive.is_empty() {
            return;
        }
        self.term += 1;
        let call = control::Call {
            term: self.term,
            round: 1,
        };
        let table = match self.faults.reads_no_table {
            true => control::Table::default(),
            false => self.disk.clone(),
        };
        let origin = control::Origin {
            epoch: lineage(self.lineage),
            fresh: self.term == 1 || self.faults.reads_no_table,
        };
        let (settings, faults) = (self.settings, self.faults.machine);
        let mut lines = control::Lines::default();
        lines.call(call);
        let plane = alive[self.rng.usize(0..alive.len())];
        self.leader = Some(Leader {
            plane,
            call,
            machine: control::Machine::new(self.time(), settings, (table, origin), faults),
            lines,
            called: 0,
        });
        self.note(format!(
            "{} decides in term {}",
            self.planes[plane].name, self.term
        ));
        self.configure();
        self.call();
    }

    pub(super) fn decide(&mut self) {
        self.elect();
        let (now, full) = (self.time(), self.disk_full_until > self.now);
        if self
            .before_it
            .as_ref()
            .is_some_and(|(_, until)| *until < self.now)
        {
            self.before_it = None;
        }
        let before = self.before_it.iter_mut().map(|(leader, _)| leader);
        let mut sent = Vec::new();
        for leader in self.leader.iter_mut().chain(before) {
            let machine = &mut leader.machine;
            machine.pass(now);
            let mut grants = machine.publish(now);
            if let Some(table) = machine.to_keep().filter(|_| !full) {
                self.disk = table.clone();
                machine.kept(table);
                grants.extend(machine.publish(now));
            }
            for (worker, grant) in grants {
                if let Some((peer, line)) = leader.lines.line_of(&worker, grant.stream) {
                    let grant = Arc::new(control::Grant {
                        stream: line,
                        ..(*grant).clone()
                    });
                    sent.push(Mail::Lent(peer.to_owned(), control::Lent { worker, grant }));
                }
            }
        }
        for mail in sent {
            let at = self.now + self.mail_delay();
            // Some are not written.
            if self.calm || self.rng.u32(0..60) != 0 {
                self.mail.push((at, mail));
            }
        }
    }
}
