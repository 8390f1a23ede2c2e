//! The world around deciders and books: processes, control planes, words on their way, a disk, and what happens to them.

mod planes;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use fastrand::Rng;
use forebay_control::simulation::leases as control;
use forebay_dataplane::leases as worker;
use forebay_proto::{Digest, Epoch, InstanceId, ModelId, Position, Revision, WorkerId};

use self::planes::{Leader, Mail, Plane};

/// One step.
const STEP: u64 = 50;
/// Steps in which anything may happen, and those after which all must be well again.
const WILD: u64 = 3_000;
const CALM: u64 = 1_800;
/// A client's own cut, or ours, reaches the engine within this.
const CUT_WITHIN: u64 = 2_500;

/// What should have ended so long ago, and has not because its process is stopped, is not held against anybody.
const OVERDUE: Duration = Duration::from_millis(100);

/// The longest that a worker is cut off, and that a request takes.
const LONGEST: u64 = 30_000 + 25_000;

/// What is planted.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Faults {
    pub(crate) machine: control::MachineFaults,
    pub(crate) book: worker::BookFaults,
    pub(crate) own: control::OwnFaults,
    /// Who decided before goes on for a while beside the one that does.
    pub(crate) unfenced: bool,
    /// Who decides next does not read what is on record.
    pub(crate) reads_no_table: bool,
}

/// What was seen.
#[derive(Debug, Clone, Default)]
pub(crate) struct Seen {
    /// More than the limit was in flight.
    pub(crate) broken: Option<String>,
    /// Not all of it came to be used, or not evenly.
    pub(crate) unused: Option<String>,
    pub(crate) kills: u64,
    pub(crate) restarts: u64,
    pub(crate) drains: u64,
    pub(crate) partitions: u64,
    pub(crate) control_restarts: u64,
    pub(crate) terms: u64,
    pub(crate) moves: u64,
    pub(crate) pauses: u64,
    pub(crate) lapses: u64,
    pub(crate) revoked: u64,
    pub(crate) changes: u64,
    pub(crate) restores: u64,
    pub(crate) uncounted: u64,
}

impl Seen {
    pub(crate) fn add(&mut self, other: &Self) {
        self.kills += other.kills;
        self.restarts += other.restarts;
        self.drains += other.drains;
        self.partitions += other.partitions;
        self.control_restarts += other.control_restarts;
        self.terms += other.terms;
        self.moves += other.moves;
        self.pauses += other.pauses;
        self.lapses += other.lapses;
        self.revoked += other.revoked;
        self.changes += other.changes;
        self.restores += other.restores;
        self.uncounted += other.uncounted;
    }
}

/// A word on its way.
#[derive(Debug)]
enum Word {
    Standing(control::Standing),
    Grant(Arc<control::Grant>),
}

#[derive(Debug)]
struct Sent {
    at: u64,
    worker: usize,
    stream: u64,
    word: Word,
}

/// A process of a worker.
#[derive(Debug)]
struct Process {
    instance: InstanceId,
    /// The control plane of its stream, and how many it has opened.
    plane: usize,
    count: u32,
    /// Its build tells how many.
    counts: bool,
    /// The store was restored since it was lent anything.
    unheard: bool,
    book: worker::Book,
    /// Until when each request runs, the newest last.
    requests: Vec<u64>,
    /// Requests that were told to end, and until when the engine sees them.
    ending: Vec<u64>,
    stream: Option<u64>,
    reports: u64,
    next_report: u64,
    due: bool,
    drains: bool,
    said_done: bool,
    paused_until: u64,
    lapsed: bool,
}

impl Process {
    fn told_count(&self) -> u32 {
        if self.counts { self.count } else { 0 }
    }
}

#[derive(Debug)]
struct Place {
    id: WorkerId,
    process: Option<Process>,
    /// Words neither go nor come.
    cut_until: u64,
    /// It loses some when the cut ends: the stream is another one.
    appetite: usize,
    /// Its clock: so many thousandths fast.
    fast: i64,
}

pub(crate) struct World {
    rng: Rng,
    faults: Faults,
    now: u64,
    calm: bool,
    model: ModelId,
    limit: u32,
    /// A limit that was lowered comes into force as it is confirmed that it did, or what was lent before has run out; what
    /// runs then runs to its end, and who is cut off has his floor. Limits that were higher, and until when they may be used.
    before: Vec<(u64, u32)>,
    settings: control::LeaseSettings,
    planes: Vec<Plane>,
    leader: Option<Leader>,
    /// With a planted fault: who decided before, and until when it goes on.
    before_it: Option<(Leader, u64)>,
    next_leader: u64,
    term: u64,
    mail: Vec<(u64, Mail)>,
    disk: control::Table,
    /// As it was once.
    backup: control::Table,
    /// How often it was restored.
    lineage: u32,
    /// Until when floors may be in use that are not on record, and how many.
    floors: (u64, u32),
    disk_full_until: u64,
    streams: u64,
    instances: u64,
    places: Vec<Place>,
    on_the_way: Vec<Sent>,
    last_sent: BTreeMap<(usize, bool), u64>,
    seen: Seen,
    trail: VecDeque<String>,
}

impl World {
    pub(crate) fn new(seed: u64, faults: Faults) -> Self {
        let mut rng = Rng::with_seed(seed);
        let settings = control::LeaseSettings {
            ttl: Duration::from_millis(rng.u64(1_000..5_000)),
            linger: Duration::from_millis(rng.u64(0..8_000)),
        };
        let limit = rng.u32(1..40);
        let count = rng.usize(1..6);
        let mut world = Self {
            faults,
            now: 0,
            calm: false,
            model: ModelId::new("m").expect("a name"),
            limit,
            before: Vec::new(),
            settings,
            planes: Vec::new(),
            leader: None,
            before_it: None,
            next_leader: 0,
            term: 0,
            mail: Vec::new(),
            disk: control::Table::default(),
            backup: control::Table::default(),
            lineage: 0,
            floors: (0, 0),
            disk_full_until: 0,
            streams: 0,
            instances: 0,
            places: Vec::new(),
            on_the_way: Vec::new(),
            last_sent: BTreeMap::new(),
            seen: Seen::default(),
            trail: VecDeque::new(),
            rng,
        };
        for _ in 0..world.rng.usize(1..4) {
            let plane = world.plane();
            world.planes.push(plane);
        }
        for n in 0..count {
            let place = Place {
                id: WorkerId::new(format!("w{n}")).expect("a name"),
                process: None,
                cut_until: 0,
                appetite: world.rng.usize(0..60),
                fast: world.rng.i64(-4..5),
            };
            world.places.push(place);
        }
        world
    }

    pub(crate) fn play(mut self) -> Seen {
        for step in 0..WILD + CALM {
            self.now += STEP;
            if step < WILD {
                self.happen();
            } else if step == WILD {
                self.calm_down();
            }
            self.deliver();
            self.post();
            self.decide();
            for n in 0..self.places.len() {
                self.work(n);
            }
            self.check();
            if self.seen.broken.is_some() {
                return self.seen;
            }
        }
        self.check_use();
        self.seen
    }

    fn note(&mut self, what: String) {
        self.trail.push_back(format!("{}: {what}", self.now));
        if self.trail.len() > 60 {
            self.trail.pop_front();
        }
    }

    /// Something happens, or nothing.
    fn happen(&mut self) {
        let n = self.rng.usize(0..self.places.len());
        match self.rng.u32(0..900) {
            0..6 => self.kill(n),
            6..12 => self.drain(n),
            12..17 => {
                let until = self.now + self.rng.u64(500..30_000);
                self.places[n].cut_until = until;
                self.seen.partitions += 1;
                self.note(format!("w{n} is cut off until {until}"));
            }
            17..20 => {
                let lasts = self.rng.u64(100..12_000);
                let now = self.now;
                if let Some(process) = &mut self.places[n].process {
                    process.paused_until = now + lasts;
                    self.seen.pauses += 1;
                    self.note(format!("w{n} is stopped for {lasts}"));
                }
            }
            20..23 => {
                let plane = self.rng.usize(0..self.planes.len());
                self.kill_plane(plane);
            }
            64..67 if self.leader.is_some() => {
                let lasts = self.rng.u64(0..9_000);
                self.depose(lasts);
            }
            67..70 if self.leader.is_some() => {
                // It may have missed something, and calls again.
                let now = self.now;
                let (mail, rng) = (&mut self.mail, &mut self.rng);
                mail.retain(|(_, mail)| !matches!(mail, Mail::Letter(..)) || rng.bool());
                let planes = self.planes.iter().filter(|plane| plane.back.is_none());
                let there: BTreeSet<String> = planes.map(|plane| plane.name.clone()).collect();
                if let Some(leader) = &mut self.leader {
                    leader.call.round += 1;
                    leader.lines.call(leader.call);
                    let time = Duration::from_millis(now);
                    for (id, standing) in leader.lines.stay(&there) {
                        leader.machine.hear(time, &id, &standing);
                    }
                }
                self.call();
            }
            70..72 => self.backup = self.disk.clone(),
            72 if self.rng.u32(0..8) == 0 => self.restore(),
            23..26 => self.disk_full_until = self.now + self.rng.u64(100..8_000),
            26..30 => self.places[n].appetite = self.rng.usize(0..60),
            30..32 => {
                let limit = self.rng.u32(1..40);
                self.seen.changes += 1;
                self.note(format!("the limit is {limit} after {}", self.limit));
                let safe = u64::try_from(self.settings.safe().as_millis()).unwrap_or(u64::MAX);
                self.before.push((self.now + safe + LONGEST, self.limit));
                self.limit = limit;
                self.configure();
            }
            32..60 if self.places[n].process.is_none() => self.start(n),
            60..64 => {
                // The stream breaks, and what was on its way is lost. Its control plane may take its time to notice.
                self.hang_up(n, 15_000);
                if let Some(process) = &mut self.places[n].process {
                    process.stream = None;
                }
                self.note(format!("the stream of w{n} breaks"));
            }
            _ => {}
        }
    }

    fn calm_down(&mut self) {
        self.note("calm".to_owned());
        self.calm = true;
        self.disk_full_until = 0;
        self.next_leader = self.now;
        for plane in &mut self.planes {
            plane.back = plane.back.map(|_| self.now);
        }
        for n in 0..self.places.len() {
            self.places[n].cut_until = 0;
            self.places[n].appetite = 60;
            if self.places[n].process.is_none() {
                self.start(n);
            }
            if self.places[n]
                .process
                .as_ref()
                .is_some_and(|process| process.drains)
            {
                self.kill(n);
                self.start(n);
            }
            if let Some(process) = &mut self.places[n].process {
                process.paused_until = 0;
            }
        }
    }

    fn start(&mut self, n: usize) {
        self.instances += 1;
        let mut book = worker::Book::default();
        book.faults = self.faults.book;
        self.places[n].process = Some(Process {
            instance: InstanceId::new(format!("i{}", self.instances)).expect("a name"),
            plane: 0,
            count: 0,
            counts: self.rng.u32(0..4) != 0,
            unheard: false,
            book,
            requests: Vec::new(),
            ending: Vec::new(),
            stream: None,
            reports: 0,
            next_report: 0,
            due: false,
            drains: false,
            said_done: false,
            paused_until: 0,
            lapsed: false,
        });
        self.seen.restarts += 1;
        self.note(format!("w{n} starts"));
    }

    fn kill(&mut self, n: usize) {
        if self.places[n].process.is_some() {
            self.seen.kills += 1;
            self.hang_up(n, 1);
            self.places[n].process = None;
            self.note(format!("w{n} is killed"));
        }
    }

    fn drain(&mut self, n: usize) {
        if let Some(process) = &mut self.places[n].process {
            process.drains = true;
            process.due = true;
            self.seen.drains += 1;
            self.note(format!("w{n} drains"));
        }
    }

    fn time(&self) -> Duration {
        Duration::from_millis(self.now)
    }

    /// As the clock of a worker has it.
    fn time_of(&self, n: usize) -> Duration {
        let fast = self.places[n].fast;
        let now = i64::try_from(self.now).unwrap_or(i64::MAX);
        Duration::from_millis(u64::try_from(now + now * fast / 1_000).unwrap_or(0))
    }

    fn configure(&mut self) {
        let limit = control::Limit {
            limit: self.limit,
            floor: 1,
            most: 1_000,
            since: position(1),
            own: None,
        };
        let leaders = self.leader.iter_mut();
        for leader in leaders.chain(self.before_it.iter_mut().map(|(leader, _)| leader)) {
            let limits = BTreeMap::from([(self.model.clone(), limit.clone())]);
            leader.machine.configure(limits);
        }
    }

    fn send(&mut self, worker: usize, stream: u64, up: bool, word: Word) {
        // Mostly quick, sometimes slow, in order but for a few.
        let delay = match self.rng.u32(0..20) {
            0 if !self.calm => self.rng.u64(200..3_000),
            _ => self.rng.u64(0..100),
        };
        let last = self.last_sent.get(&(worker, up)).copied().unwrap_or(0);
        let at = match self.rng.u32(0..30) {
            0 => self.now + delay,
            _ => (self.now + delay).max(last),
        };
        self.last_sent.insert((worker, up), at);
        self.on_the_way.push(Sent {
            at,
            worker,
            stream,
            word,
        });
    }

    fn deliver(&mut self) {
        let mut arrived: Vec<Sent> = Vec::new();
        let (now, places) = (self.now, &self.places);
        self.on_the_way.retain(|sent| {
            places[sent.worker]
                .process
                .as_ref()
                .is_some_and(|p| p.stream == Some(sent.stream))
        });
        let mut kept = Vec::new();
        for sent in self.on_the_way.drain(..) {
            match sent.at <= now && places[sent.worker].cut_until <= now {
                true => arrived.push(sent),
                false => kept.push(sent),
            }
        }
        self.on_the_way = kept;
        arrived.sort_by_key(|sent| sent.at);
        for sent in arrived {
            let own = self.time_of(sent.worker);
            match sent.word {
                Word::Standing(standing) => {
                    let place = &self.places[sent.worker];
                    let process = place.process.as_ref().expect("it has a stream");
                    self.planes[process.plane].own.report(&place.id, standing);
                }
                Word::Grant(grant) => {
                    let Some(process) = &mut self.places[sent.worker].process else {
                        continue;
                    };
                    // A stopped process reads later.
                    if process.paused_until > self.now {
                        self.on_the_way.push(Sent {
                            at: process.paused_until,
                            word: Word::Grant(grant),
                            ..sent
                        });
                        continue;
                    }
                    let shares = grant.shares.iter();
                    let shares = shares.map(|(model, share)| {
                        let (size, floor) = (share.size, share.floor);
                        (model.clone(), worker::Lent { size, floor })
                    });
                    let grant = worker::Grant {
                        number: grant.number,
                        answers: grant.answers,
                        ttl: grant.ttl,
                        linger: grant.linger,
                        shares: shares.collect(),
                    };
                    process.unheard = false;
                    if process.book.take(own, grant) == worker::Taken::Changed {
                        process.due = true;
                    }
                }
            }
        }
    }

    /// One worker goes on.
    fn work(&mut self, n: usize) {
        let (now, own) = (self.now, self.time_of(n));
        let up: Vec<usize> = (0..self.planes.len())
            .filter(|n| self.planes[*n].back.is_none())
            .collect();
        let connects = !up.is_empty() && self.places[n].cut_until <= now;
        let appetite = self.places[n].appetite;
        let model = self.model.clone();
        let Some(process) = &mut self.places[n].process else {
            return;
        };
        process.ending.retain(|until| *until > now);
        process.requests.retain(|until| *until > now);
        if process.paused_until > now {
            return;
        }
        if process.drains && process.requests.is_empty() && process.ending.is_empty() {
            if !process.said_done {
                process.said_done = true;
                process.book.drop_all();
                process.due = true;
            } else if process.stream.is_none() || self.rng.u32(0..4) == 0 {
                self.hang_up(n, 1);
                self.places[n].process = None;
                self.note(format!("w{n} ends"));
                return;
            }
        }
        let Some(process) = &mut self.places[n].process else {
            return;
        };
        let size = process.book.size_at(own, &model) as usize;
        let lapsed = own >= process.book.until() && process.book.lent(&model).is_some();
        self.seen.lapses += u64::from(lapsed && !process.lapsed);
        process.lapsed = lapsed;
        if lapsed && own >= process.book.end() + OVERDUE {
            // A process that is stopped can end nothing; once it goes on, that is the first that it does.
            process.requests.truncate(size);
            process.ending.clear();
        }
        if lapsed && own >= process.book.end() {
            // The newest first; the engine sees it a little later.
            while process.requests.len() + process.ending.len() > size
                && !process.requests.is_empty()
            {
                process.requests.pop();
                process.ending.push(now + self.rng.u64(0..CUT_WITHIN));
                self.seen.revoked += 1;
            }
        }
        let wanted = if process.drains { 0 } else { appetite };
        while process.requests.len() + process.ending.len() < size.min(wanted) {
            process.requests.push(now + self.rng.u64(50..25_000));
        }
        let process_in_flight = process.requests.len() + process.ending.len();
        let waiting = wanted.saturating_sub(process_in_flight);
        if process.stream.is_none() && connects && self.rng.u32(0..6) == 0 {
            self.streams += 1;
            process.stream = Some(self.streams);
            let plane = up[self.rng.usize(0..up.len())];
            let moves = process.plane != plane && process.count > 0;
            self.seen.moves += u64::from(moves);
            self.seen.uncounted += u64::from(moves && !process.counts);
            (process.plane, process.count) = (plane, process.count + 1);
            process.book.begin();
            (process.reports, process.due) = (0, true);
        }
        let Some(stream) = process.stream else { return };
        let renew = u64::try_from(self.settings.ttl.as_millis()).unwrap_or(u64::MAX) / 5;
        if !process.due && now < process.next_report {
            return;
        }
        process.next_report = now + renew;
        process.due = process_in_flight > size;
        let (number, grant) = process.book.report(own);
        process.reports = number;
        let lent = process.book.lent(&model).unwrap_or_default();
        let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        let used = control::Use {
            size: count(size),
            floor: lent.floor,
            in_flight: count(process_in_flight),
            waiting: count(waiting),
        };
        let standing = control::Standing {
            stream,
            instance: process.instance.clone(),
            takes_over: false,
            count: process.told_count(),
            displaces: false,
            repeated: false,
            knows: true,
            connected: true,
            report: Some(control::Report {
                number,
                grant,
                applied: Some(position(1)),
                uses: match process.said_done {
                    true => BTreeMap::new(),
                    false => BTreeMap::from([(model, used)]),
                },
                own: BTreeMap::new(),
                done: process.said_done,
                ending: process.drains,
                alone: true,
                weight: 1,
            }),
        };
        self.send(n, stream, true, Word::Standing(standing));
    }

    fn in_flight(&self) -> Vec<u32> {
        let processes = (0..self.places.len()).map(|n| {
            let own = self.time_of(n);
            self.places[n].process.as_ref().map_or(0, |process| {
                let all = process.requests.len() + process.ending.len();
                let stopped =
                    process.paused_until > self.now && own >= process.book.end() + OVERDUE;
                match stopped {
                    true => all.min(process.book.size_at(own, &self.model) as usize),
                    false => all,
                }
            })
        });
        processes
            .map(|n| u32::try_from(n).unwrap_or(u32::MAX))
            .collect()
    }

    fn check(&mut self) {
        let each = self.in_flight();
        let used: u32 = each.iter().sum();
        let now = self.now;
        self.before.retain(|(until, _)| *until > now);
        let before = self.before.iter().map(|(_, limit)| *limit).max();
        let floors = self.floors_off_record();
        if used > self.limit.max(before.unwrap_or(0)) + floors {
            let trail: Vec<_> = self.trail.iter().cloned().collect();
            self.seen.broken = Some(format!(
                "at {}: {used} in flight of {}: {each:?}; {:?}\n{}",
                self.now,
                self.limit,
                self.settings,
                trail.join("\n")
            ));
        }
    }

    /// What a restored store does not have on record is waited for, but floors do not run out: who is cut off for longer
    /// than that has one that nobody counts.
    fn floors_off_record(&mut self) -> u32 {
        let processes = self
            .places
            .iter()
            .filter_map(|place| place.process.as_ref());
        let unheard = processes.filter(|process| process.unheard).count();
        if unheard > 0 {
            let safe = u64::try_from(self.settings.safe().as_millis()).unwrap_or(u64::MAX);
            let (_, before) = self.floors;
            let count = u32::try_from(unheard).unwrap_or(u32::MAX).max(before);
            self.floors = (self.now + safe + LONGEST, count);
        }
        match self.floors.0 > self.now {
            true => self.floors.1,
            false => {
                self.floors = (0, 0);
                0
            }
        }
    }

    /// When all is well again, everybody who wants has as much as the others, and nothing is left.
    fn check_use(&mut self) {
        let each = self.in_flight();
        let used: u32 = each.iter().sum();
        let (least, most) = (each.iter().min(), each.iter().max());
        let fair = most
            .zip(least)
            .is_some_and(|(most, least)| most - least <= 1);
        let whole = used == self.limit.min(60 * u32::try_from(each.len()).unwrap_or(1));
        if !fair || !whole {
            let trail: Vec<_> = self.trail.iter().cloned().collect();
            self.seen.unused = Some(format!(
                "in the end {each:?} of {}; {:?}\n{}",
                self.limit,
                self.settings,
                trail.join("\n")
            ));
        }
    }
}

/// Of a store that was restored so often.
fn lineage(restored: u32) -> Epoch {
    Epoch::new(format!("{restored:02x}")).expect("an epoch")
}

fn position(revision: u64) -> Position {
    Position {
        epoch: Epoch::new("aa").expect("an epoch"),
        revision: Revision::new(revision),
        digest: Digest::of(b""),
    }
}
