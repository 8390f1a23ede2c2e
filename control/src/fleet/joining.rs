//! Workers that come, and go in good order: who is let in, and what is remembered of who was there before. Who of two
//! processes with one id is, says `contest.rs`.

use std::{
    sync::{Arc, OnceLock},
    time::SystemTime,
};

use forebay_proto::{Health, InstanceId, Position, WorkerId};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{
    Applied, Fleet, Introduction, MOST, Refused, SessionId,
    contest::{Challenge, Line, Ousted, Rival, Twin},
    known::{self, Known},
};

/// An opened session.
pub(crate) struct Joined {
    pub(crate) session: SessionId,
    /// What it refused before, which must not be sent again.
    pub(crate) refused: Option<Position>,
    /// The address of an older stream of the same worker id, which is told to end.
    pub(crate) replaces: Option<String>,
    /// The worker is to be told to end.
    pub(crate) drain: CancellationToken,
    /// The worker is to prove that it is alive.
    pub(crate) challenge: watch::Receiver<Option<Challenge>>,
    /// Why its stream is ended, if it is.
    pub(crate) ousted: Arc<OnceLock<Ousted>>,
}

/// What comes of a worker's first word.
pub(crate) enum Joining {
    In(Joined),
    /// There are too many workers.
    Full,
    /// Another process with the id is there, and was asked whether it is alive.
    Contested(Rival),
}

impl Fleet {
    /// A worker opened a stream. The newest stream of a process is the one that counts; `end` is cancelled when a newer
    /// one comes. The stream of another process that is there is asked first, unless it is `over`: see `contest.rs`.
    pub(crate) fn join(
        &self,
        introduction: Introduction,
        end: CancellationToken,
        over: Option<SessionId>,
    ) -> Joining {
        let now = SystemTime::now();
        let mut inner = self.inner.lock();
        inner.forget(now);
        let known = inner.workers.contains_key(&introduction.worker);
        if !known && inner.workers.len() >= MOST {
            return Joining::Full;
        }
        inner.sessions += 1;
        let session = SessionId(inner.sessions);
        let there = inner.workers.get(&introduction.worker);
        if let Some(line) = there.and_then(|there| there.rival_of(&introduction, now))
            && over != Some(line.session)
        {
            let who = (&introduction.instance, introduction.peer.as_str());
            return Joining::Contested(line.ask(session.0, who));
        }
        let old = inner.workers.remove(&introduction.worker);
        let older = old.as_ref().and_then(|old| {
            old.session.as_ref()?.oust(Ousted::Newer);
            Some(old.introduction.peer.clone())
        });
        let worker = introduction.worker.clone();
        let line = Line::new(session, end, introduction.proves);
        let (drain, challenge) = (line.drain.clone(), line.challenge.subscribe());
        let ousted = line.ousted.clone();
        let elsewhere = inner.refused_elsewhere(&worker, &introduction.instance);
        let known = Known::joined(introduction, line, (old, elsewhere), now);
        let refused = known.refused.as_ref();
        let joined = Joined {
            session,
            refused: refused.map(|refused| refused.position.clone()),
            replaces: older,
            drain,
            challenge,
            ousted,
        };
        inner.workers.insert(worker, known);
        drop(inner);
        self.changed.send_replace(());
        Joining::In(joined)
    }

    /// The worker quoted the number of a question: its process is alive.
    pub(crate) fn proved(&self, worker: &WorkerId, session: SessionId, number: u64) {
        self.with(worker, session, |known| {
            let line = known.session.as_ref();
            line.is_some_and(|line| {
                line.proof.send_replace(number);
                false
            })
        });
    }

    /// Another process came under the id of this worker, which is alive, and was turned away.
    pub(crate) fn turned_away(
        &self,
        worker: &WorkerId,
        session: SessionId,
        (instance, peer): (InstanceId, String),
    ) {
        let at = SystemTime::now();
        self.with(worker, session, |known| {
            known.twin = Some(Twin { instance, peer, at });
            true
        });
    }

    /// The worker goes on with another control plane: it is not one of ours any more.
    pub(crate) fn moves(&self, worker: &WorkerId, session: SessionId) {
        let mut inner = self.inner.lock();
        let current = inner.workers.get(worker).and_then(|w| w.session.as_ref());
        if current.is_some_and(|line| line.session == session) {
            inner.workers.remove(worker);
            drop(inner);
            self.changed.send_replace(());
        }
    }

    /// How many are connected, and whether there is room for more.
    pub(crate) fn load(&self) -> (usize, bool) {
        let inner = self.inner.lock();
        let connected = inner.workers.values().filter(|w| w.session.is_some());
        let connected = connected.count();
        (connected, connected < MOST)
    }
}

impl Known {
    /// A worker that has just come, with what was known of it.
    fn joined(
        introduction: Introduction,
        line: Line,
        (old, refused_elsewhere): (Option<Self>, Option<Refused>),
        now: SystemTime,
    ) -> Self {
        let same = old.as_ref().and_then(|old| old.applied.clone());
        let refusals = introduction.refusals.clone();
        let applied = introduction.applied.clone().map(|position| {
            let same = same.filter(|same| same.position == position);
            Applied {
                at: same.as_ref().map_or(now, |same| same.at),
                millis: same.map_or(0, |same| same.millis),
                position,
                refusals,
            }
        });
        // Another process may have the files, the version or the patience that this one lacked.
        let instance = &introduction.instance;
        let after_another =
            old.as_ref()
                .is_some_and(|old| match old.introduction.instance == *instance {
                    true => old.succeeds,
                    false => old.ends,
                });
        let same = old.filter(|old| old.introduction.instance == *instance);
        let ends = same.as_ref().is_some_and(|old| old.ends);
        if ends {
            line.drain.cancel();
        }
        let health = same.as_ref().map_or_else(Health::default, |old| old.health);
        let told = introduction.refused.clone();
        let since = known::since(now, introduction.let_in);
        let succeeds = introduction.takes_over || after_another;
        Self {
            refused: same
                .and_then(|old| old.refused)
                .or(told)
                .or(refused_elsewhere),
            introduction,
            session: Some(line),
            drains: false,
            ends,
            succeeds,
            applied,
            draining: 0,
            keys_version: 0,
            health,
            changed: Arc::default(),
            twin: None,
            across: None,
            turns_away: None,
            connected: now,
            since,
            seen: now,
            gone: None,
        }
    }
}

#[cfg(test)]
impl Introduction {
    /// Of one that says no more than this.
    pub(crate) fn plain(worker: &str, instance: &str, applied: Option<Position>) -> Self {
        Self {
            worker: WorkerId::new(worker).unwrap(),
            instance: InstanceId::new(instance).unwrap(),
            build: String::new(),
            peer: String::new(),
            gateway: String::new(),
            applied,
            refusals: Vec::new(),
            quarantined: Vec::new(),
            refused: None,
            control: String::new(),
            moves: (0, String::new()),
            proves: true,
            let_in: std::time::Duration::ZERO,
            takes_over: false,
            streams: 0,
        }
    }
}

#[cfg(test)]
impl Fleet {
    /// A worker of which there is no other process.
    pub(crate) fn joined(&self, introduction: Introduction, end: CancellationToken) -> Joined {
        match self.join(introduction, end, None) {
            Joining::In(joined) => joined,
            Joining::Full | Joining::Contested(_) => unreachable!("there is room and no rival"),
        }
    }
}
