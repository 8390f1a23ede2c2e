//! Rollouts in rings: the task between what is published and what sessions offer. Without rings it does not exist.
//!
//! It carries out what the machine (`machine.rs`) says: offers, and the way back. It looks at the fleet as it stands,
//! a few times a second while a rollout is under way. It must not decide anything itself.
//!
//! Of several control planes on one store the one in charge does so, and writes down how it stands; the others offer
//! what that says (`shared.rs`).

mod gate;
mod kept;
mod machine;
mod metrics;
mod past;
mod settings;
mod shared;
mod soak;
mod staging;

use std::{path::PathBuf, sync::Arc, time::Duration};

use forebay_proto::Position;
use tokio::{
    sync::watch,
    time::{Instant, sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use self::machine::{Effect, Event, Machine, Return};
pub use self::settings::{BadRings, Rings, RolloutSettings};
pub(crate) use self::{
    kept::remove as forget_stable,
    metrics::RingMetrics,
    past::{Past, RegistryPast},
    shared::forget as forget_shared,
    soak::Seen,
    staging::Staging,
};
use crate::{
    cluster::{Leadership, Shared},
    fleet::Fleet,
    metrics::Metrics,
    session::{Offer, Target},
};

/// How often the fleet is looked at while a rollout is under way.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// How long a return may take to be written.
const RETURN_WITHIN: Duration = Duration::from_secs(15);
/// Workers report so often in a soak.
const REPORTS: u32 = 4;
/// But neither more nor less often than this; with its jitter a worker takes nothing below a second.
const REPORT_FASTEST: Duration = Duration::from_millis(1_250);
const REPORT_SLOWEST: Duration = Duration::from_secs(10);

/// What rollouts in rings work with.
pub(crate) struct Parts<P> {
    pub(crate) settings: RolloutSettings,
    pub(crate) kept: Kept,
    /// Whether this process decides.
    pub(crate) leadership: watch::Receiver<Leadership>,
    pub(crate) past: P,
    pub(crate) fleet: Arc<Fleet>,
    pub(crate) metrics: Arc<Metrics>,
}

/// Where it is kept what is stable.
#[derive(Debug)]
pub(crate) enum Kept {
    /// In a directory.
    File(PathBuf),
    /// With how the rollout stands, where all replicas see it.
    Shared(Shared),
}

/// What a rollout takes and gives; it outlives who is in charge.
struct Line<P> {
    parts: Parts<P>,
    published: watch::Receiver<Offer>,
    offers: watch::Sender<Offer>,
}

/// The task.
struct Conductor<P> {
    parts: Parts<P>,
    /// In which it decides.
    term: u64,
    machine: Machine,
    began: Instant,
    report_every: Duration,
    published: watch::Receiver<Offer>,
    offers: watch::Sender<Offer>,
    /// What the machine speaks of.
    targets: Vec<Arc<Target>>,
    /// What is kept.
    saved: Option<Position>,
    told: Option<Arc<Staging>>,
    /// It is to be written down where others see it, and was not yet.
    unwritten: bool,
    /// What is written down was so at this revision of etcd's.
    written: i64,
}

/// Takes what is published, and gives what sessions are to offer instead.
pub(crate) async fn start<P: Past>(
    parts: Parts<P>,
    mut published: watch::Receiver<Offer>,
    tasks: &TaskTracker,
    stopping: CancellationToken,
) -> watch::Receiver<Offer> {
    if let Kept::Shared(shared) = &parts.kept {
        let shared = shared.clone();
        let first = shared::first_offer(&shared, &parts, &mut published, &stopping).await;
        let (offers, offered) = watch::channel(first);
        let line = Line {
            parts,
            published,
            offers,
        };
        tasks.spawn(shared::run(shared, line, stopping));
        return offered;
    }
    let newest = published.borrow_and_update().stable().clone();
    let saved = match &parts.kept {
        Kept::File(dir) => kept::load(dir),
        Kept::Shared(_) => None,
    };
    let (offers, offered) = watch::channel(Offer::to_all(newest));
    let line = Line {
        parts,
        published,
        offers,
    };
    let term = line.parts.leadership.borrow().term().unwrap_or_default();
    let conductor = Conductor::begin(line, (term, 0), saved, Vec::new()).await;
    tasks.spawn(async move { drop(conductor.run(stopping).await) });
    offered
}

/// Waits until this is not the term.
async fn not_in(term: u64, leadership: &mut watch::Receiver<Leadership>) {
    let told = leadership
        .wait_for(|now| now.term() != Some(term))
        .await
        .is_ok();
    if !told {
        // Who told of it is gone, and with it all that could change it.
        std::future::pending::<()>().await;
    }
}

/// A rollback gives models new numbers, and with them the configuration another digest.
fn same_content(one: &Target, two: &Target) -> bool {
    let (one, two) = (&one.published, &two.published);
    one.position.epoch == two.position.epoch && one.state.has_content_of(&two.state)
}

/// A number stands for one content. Another lineage that has the same under it (a store that was restored or recovered)
/// has what was proven before.
fn stands_for(kept: &Position, found: &Position) -> bool {
    (kept.revision, kept.digest) == (found.revision, found.digest)
}

/// What is to count as stable: what was when the control plane ran last. If that cannot be had, the newest.
async fn stable<P: Past>(past: &P, saved: Option<Position>, newest: &Arc<Target>) -> Arc<Target> {
    let position = &newest.published.position;
    let Some(saved) = saved.filter(|saved| saved.revision < position.revision) else {
        return newest.clone();
    };
    let published = match past.at(saved.revision).await {
        Ok(published) if stands_for(&saved, &published.position) => Ok(published),
        Ok(_) => Err("its content is another now".to_owned()),
        Err(error) => Err(error),
    };
    match published {
        Ok(published) => Target::alone(published),
        Err(error) => {
            tracing::warn!(
                revision = %saved.revision, error,
                "stable revision not to be had, the newest counts as proven"
            );
            newest.clone()
        }
    }
}

impl<P: Past> Conductor<P> {
    /// Takes over what is offered, with what was stable before.
    async fn begin(
        line: Line<P>,
        (term, written): (u64, i64),
        saved: Option<Position>,
        returns: Vec<Return>,
    ) -> Self {
        let Line {
            parts,
            mut published,
            offers,
        } = line;
        let newest = published.borrow_and_update().stable().clone();
        let stable = stable(&parts.past, saved.clone(), &newest).await;
        let position = |target: &Arc<Target>| target.published.position.clone();
        let mut machine =
            Machine::new(parts.settings.clone(), position(&stable), position(&stable));
        machine.remember(returns);
        let (to, proven) = (position(&newest), same_content(&stable, &newest));
        machine.on(
            Duration::ZERO,
            Event::Newest {
                position: to,
                proven,
            },
        );
        let report_every = (parts.settings.soak / REPORTS).clamp(REPORT_FASTEST, REPORT_SLOWEST);
        offers.send_replace(Offer::to_all(stable.clone()));
        let mut conductor = Self {
            parts,
            term,
            machine,
            began: Instant::now(),
            report_every,
            published,
            offers,
            targets: vec![stable, newest],
            saved,
            told: None,
            unwritten: false,
            written,
        };
        conductor.offer();
        conductor.settled().await;
        conductor
    }

    /// Until it is not in charge any more, then it gives back what the next one needs; or to the end.
    async fn run(mut self, stopping: CancellationToken) -> Option<Line<P>> {
        let mut leadership = self.parts.leadership.clone();
        let term = self.term;
        loop {
            let under_way = self.machine.candidate().is_some();
            tokio::select! {
                changed = self.published.changed() => {
                    changed.ok()?;
                    self.newer().await;
                }
                () = sleep(LOOK_EVERY), if under_way || self.unwritten => {
                    self.look().await;
                    self.settled().await;
                }
                () = not_in(term, &mut leadership) => {
                    return Some(Line {
                        parts: self.parts,
                        published: self.published,
                        offers: self.offers,
                    });
                }
                () = stopping.cancelled() => return None,
            }
        }
    }

    async fn newer(&mut self) {
        let target = self.published.borrow_and_update().stable().clone();
        let position = target.published.position.clone();
        let stable = self.target(self.machine.stable());
        let proven = stable.is_some_and(|stable| same_content(stable, &target));
        self.targets.push(target);
        self.step(Event::Newest { position, proven }).await;
        // Its ring is drawn at once.
        self.look().await;
    }

    async fn look(&mut self) {
        if self.machine.candidate().is_some() {
            let fleet = self.parts.fleet.look();
            self.step(Event::Look(fleet)).await;
        }
    }

    async fn step(&mut self, event: Event) {
        let mut next = Some(event);
        while let Some(event) = next.take() {
            for effect in self.machine.on(self.began.elapsed(), event) {
                match effect {
                    Effect::Offer => self.offer(),
                    Effect::Return { reason } => next = Some(self.take_back(&reason).await),
                }
            }
        }
        self.settled().await;
    }

    /// Nothing else is heard meanwhile: the machine wants the answer first.
    async fn take_back(&self, reason: &str) -> Event {
        tracing::error!(reason, "revision taken back");
        let Some(stable) = self.target(self.machine.stable()).cloned() else {
            return Event::NotReturned;
        };
        let past = &self.parts.past;
        let writing = past.return_to(&stable.published, reason, self.term);
        let written = timeout(RETURN_WITHIN, writing).await;
        let written = written.unwrap_or_else(|_| Err("no answer in time".to_owned()));
        match written {
            Ok(by) => {
                self.parts.metrics.rings.returned();
                tracing::warn!(revision = %by, "the content of before is written");
                Event::Returned(by)
            }
            Err(error) => {
                tracing::error!(
                    error,
                    "the way back could not be written; it is tried again"
                );
                Event::NotReturned
            }
        }
    }

    fn target(&self, position: &Position) -> Option<&Arc<Target>> {
        let of = |target: &&Arc<Target>| target.published.position == *position;
        self.targets.iter().rev().find(of)
    }

    fn offer(&self) {
        let Some(stable) = self.target(self.machine.stable()).cloned() else {
            return;
        };
        let candidate = self.machine.candidate();
        let offer = match candidate.and_then(|candidate| self.target(candidate)) {
            None => Offer::to_all(stable),
            Some(candidate) => {
                let members = self.machine.members().clone();
                Offer::in_ring(stable, candidate.clone(), members)
            }
        };
        let newest = self.machine.newest().revision;
        self.offers.send_replace(offer.before(newest));
    }

    /// After each step: what nobody speaks of any more is let go, and who asks is told.
    async fn settled(&mut self) {
        let newest = self.machine.newest().revision;
        let stale = |offer: &mut Offer| {
            let stale = offer.newest() != newest;
            if stale {
                *offer = offer.clone().before(newest);
            }
            stale
        };
        self.offers.send_if_modified(stale);
        let machine = &self.machine;
        let known = [
            Some(machine.stable()),
            machine.candidate(),
            Some(machine.newest()),
        ];
        self.targets
            .retain(|target| known.contains(&Some(&target.published.position)));
        let staging = Arc::new(Staging::new(machine, self.report_every));
        if self.told.as_ref() != Some(&staging) {
            let (ring, stable) = staging.figures();
            self.parts.metrics.rings.stands(ring, stable);
            self.parts.fleet.stage(staging.clone());
            self.told = Some(staging.clone());
            self.unwritten = true;
        }
        match &self.parts.kept {
            Kept::File(_) => {
                self.unwritten = false;
                self.save().await;
            }
            Kept::Shared(shared) if self.unwritten => {
                let (stable, candidate) = (self.machine.stable(), self.machine.candidate());
                let over = (self.term, &mut self.written);
                let written = shared::write(shared, over, (stable, candidate), &staging).await;
                self.unwritten = written.is_err();
                if let Err(error) = written {
                    tracing::debug!(error, "how the rollout stands is not written down yet");
                }
            }
            Kept::Shared(_) => {}
        }
    }

    async fn save(&mut self) {
        let stable = self.machine.stable();
        if self.saved.as_ref() == Some(stable) {
            return;
        }
        let stable = stable.clone();
        self.saved = Some(stable.clone());
        let Kept::File(dir) = &self.parts.kept else {
            return;
        };
        let dir = dir.clone();
        let saving = tokio::task::spawn_blocking(move || kept::save(&dir, &stable));
        let saved = saving.await.map_err(std::io::Error::other).flatten();
        if let Err(error) = saved {
            // The next start finds an older one: its rollout begins anew.
            tracing::warn!(%error, "stable revision not saved");
        }
    }
}

#[cfg(test)]
mod tests;
