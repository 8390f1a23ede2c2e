//! A candidate in a ring: who has it, whether all took it long enough ago, and what speaks against it. Pure; the
//! machine says what follows.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use forebay_proto::{
    Digest, Health, InstanceId, Position, Revision, WorkerId, health::ModelHealth,
};

use super::{gate::Compared, machine::PATIENCE, settings::RolloutSettings};

/// How long a worker of the ring may take to take the candidate.
const TAKE_WITHIN: Duration = Duration::from_secs(120);
/// A worker as it stands.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    pub(crate) worker: WorkerId,
    pub(crate) instance: InstanceId,
    /// It came in the place of a process that had been asked to end, or to go when this one serves.
    pub(crate) succeeds: bool,
    /// It ends, or has ended, as it was asked to.
    pub(crate) ends: bool,
    pub(crate) connected: bool,
    pub(crate) applied: Option<Position>,
    /// What it did not take, as a whole or some of its models.
    pub(crate) refused: Option<Position>,
    pub(crate) health: Health,
    /// The same for the models that were changed last.
    pub(crate) changed: Arc<[ModelHealth]>,
}

/// A candidate in a ring.
#[derive(Debug)]
pub(super) struct Soak {
    candidate: Position,
    /// What the workers are drawn by: the first revision of the rollout.
    rollout: Revision,
    began: Duration,
    ring: usize,
    members: BTreeMap<WorkerId, Member>,
    /// Members that went away.
    left: BTreeMap<WorkerId, Member>,
    /// Since all had taken it for the first time.
    all_took: Option<AllTook>,
}

/// All workers of a ring have taken it.
#[derive(Debug)]
struct AllTook {
    at: Duration,
    /// What the other workers had counted then, and as what process.
    others: BTreeMap<WorkerId, (InstanceId, Health)>,
}

#[derive(Debug)]
struct Member {
    instance: InstanceId,
    /// The process whose place this one took: it goes on if this one does not come to serve.
    before: Option<InstanceId>,
    /// It said that it ends.
    ends: bool,
    /// It did not take all of an earlier revision: what it does not take of this one says nothing.
    troubled: bool,
    since: Duration,
    took: Option<Duration>,
    /// What it had counted when it took it.
    counted: Health,
}

impl Member {
    /// Whether its place was given to this process, or given back, and it did not crash.
    fn gave_way_to(&self, seen: &Seen) -> bool {
        self.ends || seen.succeeds || self.before.as_ref() == Some(&seen.instance)
    }

    /// Another process has its place: that one has to prove itself as long as any.
    fn succeed(&mut self, now: Duration, seen: &Seen) {
        let before = std::mem::replace(&mut self.instance, seen.instance.clone());
        self.before = seen.succeeds.then_some(before);
        (self.ends, self.since, self.took) = (false, now, None);
    }
}

/// How a look at a ring ends.
pub(super) enum Verdict {
    Soaking,
    Soaked,
    Failed(String),
}

impl Soak {
    /// This one goes to ring one.
    pub(super) fn new(now: Duration, candidate: Position) -> Self {
        Self {
            rollout: candidate.revision,
            candidate,
            began: now,
            ring: 0,
            members: BTreeMap::new(),
            left: BTreeMap::new(),
            all_took: None,
        }
    }

    pub(super) fn candidate(&self) -> &Position {
        &self.candidate
    }

    /// Which ring, from 1.
    pub(super) fn ring(&self) -> usize {
        self.ring + 1
    }

    /// The workers that are offered it, in order.
    pub(super) fn members(&self) -> impl Iterator<Item = &WorkerId> {
        self.members.keys()
    }

    /// True if a newer candidate may take its place.
    pub(super) fn may_be_superseded(&self, now: Duration, settings: &RolloutSettings) -> bool {
        self.ring == 0 && now < self.began + settings.soak * PATIENCE
    }

    /// A newer candidate, on the same workers.
    pub(super) fn supersede(&mut self, now: Duration, candidate: Position) {
        self.candidate = candidate;
        (self.left, self.all_took) = (BTreeMap::new(), None);
        for member in self.members.values_mut() {
            (member.since, member.took) = (now, None);
        }
    }

    /// False if the next ring is everybody.
    pub(super) fn next_ring(&mut self, connected: usize, settings: &RolloutSettings) -> bool {
        loop {
            self.ring += 1;
            match settings.rings.size(self.ring, connected) {
                None => return false,
                // A ring that adds nobody proves nothing more.
                Some(size) if size <= self.members.len() => {}
                Some(_) => {
                    self.all_took = None;
                    return true;
                }
            }
        }
    }

    /// Looks at the fleet.
    pub(super) fn look(
        &mut self,
        now: Duration,
        fleet: &[Seen],
        stable: &Position,
        settings: &RolloutSettings,
    ) -> Verdict {
        let connected: BTreeMap<&WorkerId, &Seen> = fleet
            .iter()
            .filter(|seen| seen.connected)
            .map(|seen| (&seen.worker, seen))
            .collect();
        if let Some(why) = self
            .crashed(&connected)
            .or_else(|| self.refused(&connected))
        {
            return Verdict::Failed(why);
        }
        self.follow_processes(now, fleet);
        self.let_go(&connected);
        self.take_in(now, &connected, stable);
        self.fill(now, &connected, settings);
        if let Some(why) = self.note_taken(now, &connected) {
            return Verdict::Failed(why);
        }
        self.judge(now, &connected, stable, settings)
    }

    /// A member that is another process now, though nobody asked the one before to end.
    fn crashed(&self, connected: &BTreeMap<&WorkerId, &Seen>) -> Option<String> {
        let (worker, _) = self
            .members
            .iter()
            .chain(&self.left)
            .find(|(worker, member)| {
                let seen = connected.get(worker);
                seen.is_some_and(|seen| {
                    seen.instance != member.instance && !member.gave_way_to(seen)
                })
            })?;
        Some(format!(
            "worker {worker} took it and came back as another process"
        ))
    }

    /// Members that end, and those that have their places now.
    fn follow_processes(&mut self, now: Duration, fleet: &[Seen]) {
        for seen in fleet {
            let (members, left) = (&mut self.members, &mut self.left);
            let member = members
                .get_mut(&seen.worker)
                .or_else(|| left.get_mut(&seen.worker));
            match member {
                Some(member) if member.instance == seen.instance => member.ends |= seen.ends,
                Some(member) if seen.connected => member.succeed(now, seen),
                _ => {}
            }
        }
    }

    fn refused(&self, connected: &BTreeMap<&WorkerId, &Seen>) -> Option<String> {
        let troubled = |seen: &Seen| {
            let member = self.members.get(&seen.worker);
            member.is_some_and(|member| member.troubled)
        };
        let refusing =
            |seen: &&&Seen| seen.refused.as_ref() == Some(&self.candidate) && !troubled(seen);
        let seen = connected.values().find(refusing)?;
        let how = match seen.applied.as_ref() == Some(&self.candidate) {
            true => "could not take all of its models",
            false => "refused it",
        };
        Some(format!("worker {} {how}", seen.worker))
    }

    /// Members that are not connected make room for others.
    fn let_go(&mut self, connected: &BTreeMap<&WorkerId, &Seen>) {
        let (stay, gone): (BTreeMap<_, _>, BTreeMap<_, _>) = std::mem::take(&mut self.members)
            .into_iter()
            .partition(|(worker, _)| connected.contains_key(worker));
        self.members = stay;
        self.left.extend(gone);
    }

    /// Those who hold more than stable are of the ring, whatever its size.
    fn take_in(
        &mut self,
        now: Duration,
        connected: &BTreeMap<&WorkerId, &Seen>,
        stable: &Position,
    ) {
        let more = |seen: &&&Seen| {
            let applied = seen.applied.as_ref();
            applied.is_some_and(|held| held.is_after(stable))
        };
        for seen in connected.values().filter(more) {
            self.add(now, seen);
        }
    }

    fn fill(
        &mut self,
        now: Duration,
        connected: &BTreeMap<&WorkerId, &Seen>,
        settings: &RolloutSettings,
    ) {
        let size = settings.rings.size(self.ring, connected.len());
        let missing = size.unwrap_or(0).saturating_sub(self.members.len());
        if missing == 0 {
            return;
        }
        // One that is in trouble anyway proves little: it is the last to be drawn.
        let mut others: Vec<(bool, Digest, &Seen)> = connected
            .values()
            .filter(|seen| !self.members.contains_key(&seen.worker))
            .map(|seen| {
                (
                    self.in_trouble(seen),
                    rank(&seen.worker, self.rollout),
                    *seen,
                )
            })
            .collect();
        others.sort_by(|a, b| (a.0, a.1.as_bytes()).cmp(&(b.0, b.1.as_bytes())));
        for (_, _, seen) in others.into_iter().take(missing) {
            self.add(now, seen);
        }
    }

    /// It did not take all of what it was offered before.
    fn in_trouble(&self, seen: &Seen) -> bool {
        let refused = seen.refused.as_ref();
        refused.is_some_and(|refused| *refused != self.candidate)
    }

    fn add(&mut self, now: Duration, seen: &Seen) {
        // Its time goes on while it is away.
        let back = self.left.remove(&seen.worker);
        let troubled = self.in_trouble(seen);
        let member = || {
            back.unwrap_or_else(|| Member {
                instance: seen.instance.clone(),
                before: None,
                ends: seen.ends,
                troubled,
                since: now,
                took: None,
                counted: seen.health,
            })
        };
        self.members
            .entry(seen.worker.clone())
            .or_insert_with(member);
    }

    /// Who holds the candidate by now. One that does not for too long speaks against it.
    fn note_taken(
        &mut self,
        now: Duration,
        connected: &BTreeMap<&WorkerId, &Seen>,
    ) -> Option<String> {
        let mut late = None;
        for (worker, member) in &mut self.members {
            let seen = connected.get(worker);
            if member.took.is_none()
                && let Some(seen) = seen
                && seen.applied.as_ref() == Some(&self.candidate)
            {
                (member.took, member.counted) = (Some(now), seen.health);
            }
            if member.took.is_none() && now >= member.since + TAKE_WITHIN {
                late = late.or_else(|| Some(worker.clone()));
            }
        }
        let late =
            late.map(|worker| format!("worker {worker} did not take it within {TAKE_WITHIN:?}"));
        late.or_else(|| self.lost(now))
    }

    /// A push that its worker does not survive ends the stream and not in an answer. One may have gone for a reason
    /// of its own.
    fn lost(&self, now: Duration) -> Option<String> {
        let untaken = self.left.iter().filter(|(_, member)| member.took.is_none());
        let names: Vec<_> = untaken.clone().map(|(id, _)| id.as_str()).collect();
        let long = |(_, member): (&WorkerId, &Member)| now >= member.since + TAKE_WITHIN;
        match names.as_slice() {
            [] => None,
            [one] => untaken
                .clone()
                .any(long)
                .then(|| format!("worker {one} went away without having taken it")),
            several => Some(format!(
                "workers {} went away without having taken it",
                several.join(", ")
            )),
        }
    }

    fn judge(
        &mut self,
        now: Duration,
        connected: &BTreeMap<&WorkerId, &Seen>,
        stable: &Position,
        settings: &RolloutSettings,
    ) -> Verdict {
        let latest = self.members.values().map(|member| member.took).max();
        let all = self.members.values().all(|member| member.took.is_some());
        if all && self.all_took.is_none() && !self.members.is_empty() {
            let others = connected
                .values()
                .filter(|seen| !self.members.contains_key(&seen.worker));
            let counted =
                others.map(|seen| (seen.worker.clone(), (seen.instance.clone(), seen.health)));
            self.all_took = Some(AllTook {
                at: now,
                others: counted.collect(),
            });
        }
        let compared = self.compare(connected, stable);
        if let Some(why) = compared.errors(settings) {
            return Verdict::Failed(why);
        }
        let (Some(first), Some(Some(latest)), true) = (&self.all_took, latest, all) else {
            return Verdict::Soaking;
        };
        let soaked = now >= latest + settings.soak || now >= first.at + settings.soak * PATIENCE;
        match (soaked, compared.slowness(settings)) {
            (false, _) => Verdict::Soaking,
            (true, Some(why)) => Verdict::Failed(why),
            (true, None) => Verdict::Soaked,
        }
    }

    fn compare(&self, connected: &BTreeMap<&WorkerId, &Seen>, stable: &Position) -> Compared {
        let mut compared = Compared::default();
        for (worker, member) in &self.members {
            if let Some(seen) = connected.get(worker).filter(|_| member.took.is_some()) {
                compared.ring.add(&seen.health.since(&member.counted));
                compared.before.add(&member.counted);
                // What stable changed is not its doing.
                let changed = seen.changed.iter();
                for told in changed.filter(|told| told.revision > stable.revision) {
                    let sum = compared.changed.entry(told.model.clone()).or_default();
                    sum.before.add(&told.before);
                    sum.since.add(&told.since);
                }
            }
        }
        let others = self.all_took.iter().flat_map(|all| &all.others);
        for (worker, (instance, before)) in others {
            let seen = connected
                .get(worker)
                .filter(|seen| seen.instance == *instance);
            if let Some(seen) = seen.filter(|_| !self.members.contains_key(worker)) {
                compared.others.add(&seen.health.since(before));
            }
        }
        compared
    }
}

/// The place of a worker in the draw of a rollout: the same wherever it is computed.
fn rank(worker: &WorkerId, rollout: Revision) -> Digest {
    Digest::of(format!("{rollout} {worker}").as_bytes())
}
