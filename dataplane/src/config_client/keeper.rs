//! Keeps on disk what is known to be good, and marks what is tried: a task that follows what the configuration client
//! says is about to be in force, and is.
//!
//! ```text
//!   push ──mark (attempts)──▶ in force ──soak, and the process lives──▶ good (a generation)
//!                                │ the process ends without a word: a crash is counted at the next start
//!                                │ the end in good order: kept, on trial after the next start
//! ```
//!
//! A worker that has nothing to serve on disk keeps what it gets at once, on trial: better that than nothing.
//!
//! Two are on trial at most: the one whose soak runs, and the newest. What came and went between them is skipped, so a
//! storm of writes costs two configurations of memory, and leaves the disk behind for two soaks at most. Level-triggered:
//! it looks at what is wanted, however often that changed. It must not delay the client: who waits for a mark does so
//! for [`MARK_WITHIN`] at most.

use std::{io, time::Duration};

use forebay_proto::Position;
use tokio::{
    sync::watch,
    task::spawn_blocking,
    time::{Instant, sleep_until, timeout},
};

use super::{
    attempts::{Attempts, Tried},
    lkg::{Kept, LastKnownGood},
};

/// How long a push waits for its mark.
const MARK_WITHIN: Duration = Duration::from_secs(1);
/// Pause before a configuration that could not be written is tried again.
const SAVE_AGAIN: Duration = Duration::from_secs(10);

/// What the client has and is about to have.
#[derive(Debug, Clone, Default)]
struct Wanted {
    /// About to be put in force.
    trying: Option<Position>,
    in_force: Option<Candidate>,
}

/// In force, and not known to be good.
#[derive(Debug, Clone)]
struct Candidate {
    kept: Kept,
    since: Instant,
    /// Tells two apart that are the same otherwise.
    number: u64,
}

/// The client's end.
#[derive(Debug)]
pub(super) struct Marks {
    wanted: watch::Sender<Wanted>,
    marked: watch::Receiver<Option<Position>>,
    number: u64,
}

impl Marks {
    /// This is about to be put in force. Returns when that is on disk, or cannot be, or takes too long.
    pub(super) async fn trying(&mut self, position: &Position) {
        let trying = Some(position.clone());
        self.wanted
            .send_modify(|wanted| wanted.trying.clone_from(&trying));
        let marked = self.marked.wait_for(|marked| *marked == trying);
        if timeout(MARK_WITHIN, marked).await.is_err() {
            tracing::warn!(%position, "not marked as tried in time, put in force all the same");
        }
    }

    /// It is in force.
    pub(super) fn in_force(&mut self, kept: Kept) {
        self.number += 1;
        let candidate = Candidate {
            kept,
            since: Instant::now(),
            number: self.number,
        };
        self.wanted.send_replace(Wanted {
            trying: None,
            in_force: Some(candidate),
        });
    }

    /// It was refused.
    pub(super) fn refused(&self) {
        self.wanted.send_modify(|wanted| wanted.trying = None);
    }
}

/// The task.
#[derive(Debug)]
pub(super) struct Keeper {
    lkg: LastKnownGood,
    soak: Duration,
    attempts: Attempts,
    /// There is nothing on disk to start from, or it has no models.
    empty: bool,
    wanted: watch::Receiver<Wanted>,
    marked: watch::Sender<Option<Position>>,
    /// The number of the last candidate that was looked at.
    taken: u64,
    soaking: Option<Candidate>,
    newest: Option<Candidate>,
    /// When the first of them is to be written.
    due: Option<Instant>,
}

impl Keeper {
    /// Keeps what has been in force for so long.
    pub(super) fn new(lkg: LastKnownGood, soak: Duration) -> (Self, Marks) {
        let (wanted, follow) = watch::channel(Wanted::default());
        let (marked, told) = watch::channel(None);
        let marks = Marks {
            wanted,
            marked: told,
            number: 0,
        };
        let attempts = lkg.attempts();
        let keeper = Self {
            lkg,
            soak,
            attempts,
            empty: true,
            wanted: follow,
            marked,
            taken: 0,
            soaking: None,
            newest: None,
            due: None,
        };
        (keeper, marks)
    }

    /// The process begins. Gives what ended the last one, if something did. It blocks.
    pub(super) fn begin(&mut self) -> Option<Tried> {
        let crashed = self.attempts.begin();
        if crashed.is_some() {
            self.write();
        }
        crashed
    }

    /// What is not to be tried again.
    pub(super) fn quarantined(&self) -> Vec<Position> {
        self.attempts.quarantined()
    }

    /// What is on disk, the newest first.
    pub(super) fn load(&self) -> Vec<Kept> {
        self.lkg.load().collect()
    }

    /// This one of disk is about to be put in force. True if it has yet to prove good. It blocks.
    pub(super) fn trying_again(&mut self, position: &Position) -> bool {
        let on_trial = self.attempts.is_on_trial(&position.digest);
        let trying = Some(position).filter(|_| on_trial);
        if self.attempts.set_trying(trying) {
            self.write();
        }
        on_trial
    }

    /// This one of disk is in force.
    pub(super) fn found(&mut self, kept: &Kept) {
        self.empty = !kept.has_models();
    }

    /// Follows until the client ends.
    pub(super) async fn run(mut self) {
        loop {
            let due = self.due;
            let rest = async {
                match due {
                    Some(due) => sleep_until(due).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                changed = self.wanted.changed() => if changed.is_err() { break },
                () = rest => self.promote().await,
            }
            self.look().await;
        }
        self.end().await;
    }

    /// Takes what is in force, and marks what is tried.
    async fn look(&mut self) {
        let wanted = self.wanted.borrow_and_update().clone();
        self.take(wanted.in_force);
        let newest = self.newest.as_ref().or(self.soaking.as_ref());
        let trying = wanted
            .trying
            .clone()
            .or_else(|| newest.map(|candidate| candidate.kept.position.clone()));
        if self.attempts.set_trying(trying.as_ref()) {
            self.write_soon().await;
        }
        self.marked.send_replace(wanted.trying);
        let newest = self.newest.as_ref().or(self.soaking.as_ref());
        let first = newest.filter(|_| self.empty);
        if let Some(kept) = first.map(|candidate| candidate.kept.clone()) {
            let position = kept.position.clone();
            match self.save(kept.clone()).await {
                Ok(()) => {
                    self.found(&kept);
                    // What came before it is not to take its place on disk.
                    if let Some(newest) = self.newest.take() {
                        self.due = Some(newest.since + self.soak);
                        self.soaking = Some(newest);
                    }
                }
                Err(error) => tracing::error!(%position, %error, "first configuration not saved"),
            }
        }
    }

    fn take(&mut self, in_force: Option<Candidate>) {
        let Some(candidate) = in_force.filter(|candidate| candidate.number > self.taken) else {
            return;
        };
        self.taken = candidate.number;
        match &self.soaking {
            None => {
                self.due = Some(candidate.since + self.soak);
                self.soaking = Some(candidate);
            }
            Some(_) => self.newest = Some(candidate),
        }
    }

    /// The process lived through the soak.
    async fn promote(&mut self) {
        let Some(candidate) = self.soaking.take() else {
            self.due = None;
            return;
        };
        let position = candidate.kept.position.clone();
        match self.save(candidate.kept.clone()).await {
            Ok(()) => {
                tracing::debug!(%position, "last known good saved");
                self.attempts.set_good(&position.digest);
                self.write_soon().await;
                self.soaking = self.newest.take();
                self.due = self.soaking.as_ref().map(|next| next.since + self.soak);
            }
            Err(error) => {
                tracing::error!(%position, %error, "last known good not saved");
                // What is newer is as good a try.
                let next = self.newest.take().unwrap_or(candidate);
                let again = Instant::now() + SAVE_AGAIN;
                self.due = Some(again.max(next.since + self.soak));
                self.soaking = Some(next);
            }
        }
    }

    /// The process ends in good order: that is no crash, and what is in force is not lost.
    async fn end(mut self) {
        // It was in force when the client ended, looked at or not.
        let wanted = self.wanted.borrow_and_update().clone();
        self.take(wanted.in_force);
        let newest = self.newest.take().or(self.soaking.take());
        let mut changed = self.attempts.set_trying(None);
        if let Some(candidate) = &newest {
            self.attempts.put_on_trial(&candidate.kept.position);
            changed = true;
        }
        if changed {
            self.write_soon().await;
        }
        if let Some(candidate) = newest {
            let position = candidate.kept.position.clone();
            if let Err(error) = self.save(candidate.kept).await {
                tracing::error!(%position, %error, "last known good not saved");
            }
        }
    }

    async fn save(&self, kept: Kept) -> io::Result<()> {
        let lkg = self.lkg.clone();
        let saved = spawn_blocking(move || lkg.save(&kept)).await;
        saved.map_err(io::Error::other).flatten()
    }

    async fn write_soon(&self) {
        let (lkg, attempts) = (self.lkg.clone(), self.attempts.clone());
        let written = spawn_blocking(move || lkg.save_attempts(&attempts)).await;
        tell(written.map_err(io::Error::other).flatten());
    }

    fn write(&self) {
        tell(self.lkg.save_attempts(&self.attempts));
    }
}

fn tell(written: io::Result<()>) {
    if let Err(error) = written {
        tracing::error!(%error, "what is tried is not marked on disk");
    }
}

#[cfg(test)]
#[path = "keeper_tests.rs"]
mod tests;
