//! Two processes with one worker id: which of them is let in.
//!
//! ```text
//!   the stream that is there        the process that comes
//!   ─────────────────────────       ─────────────────────────────────────────────
//!   none, or it has ended           is let in: a start, a restart, a hand-over
//!   of the same process             is let in, the old stream is ended: a reconnect
//!   of a process that ends          is let in: it has said that it goes
//!   of one that came later          is let in: its stream was renewed, and the other one came in between
//!   of another process              waits, while that one is asked to prove that it is alive
//!      ├─ it does                   is turned away (ALREADY_EXISTS), and both are told
//!      ├─ its stream ends           is let in: it was a restart
//!      └─ it is silent              is let in: it is dead, frozen or cut off
//! ```
//!
//! The one that was there stays, so two never throw one another out in turns; one that was frozen and comes back is the
//! one that comes, and is turned away in its turn. Proof is a word that quotes the number of the question; a build that
//! does not know the question proves itself by any word. This is of one replica; `across.rs` has the same of several.

use std::{
    sync::{Arc, OnceLock},
    time::{Duration, SystemTime},
};

use forebay_proto::InstanceId;
use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;

use super::SessionId;

/// How long one may take to prove that it is alive: longer than it takes to apply a configuration and warm its pools,
/// for it does not listen meanwhile.
pub(super) const PROVE_WITHIN: Duration = Duration::from_secs(8);
/// The same for one whose build does not know the question: longer than it lets pass between two signs of life.
const HEARD_WITHIN: Duration = Duration::from_secs(15);
/// How long it is shown that another process came: longer than that one stays away.
const SHOWN: Duration = Duration::from_secs(120);

/// How its session is told.
#[derive(Debug)]
pub(super) struct Line {
    pub(super) session: SessionId,
    /// It is to end; `ousted` says why.
    pub(super) end: CancellationToken,
    pub(super) ousted: Arc<OnceLock<Ousted>>,
    /// The worker is to end.
    pub(super) drain: CancellationToken,
    /// Its build answers the question.
    pub(super) proves: bool,
    pub(super) challenge: watch::Sender<Option<Challenge>>,
    /// The newest question that it answered.
    pub(super) proof: watch::Sender<u64>,
    /// Cancelled when it is no more.
    pub(super) gone: CancellationToken,
}

impl Drop for Line {
    fn drop(&mut self) {
        self.gone.cancel();
    }
}

impl Line {
    pub(super) fn new(session: SessionId, end: CancellationToken, proves: bool) -> Self {
        Self {
            session,
            end,
            ousted: Arc::default(),
            drain: CancellationToken::new(),
            proves,
            challenge: watch::Sender::default(),
            proof: watch::Sender::default(),
            gone: CancellationToken::new(),
        }
    }

    /// Ends it.
    pub(super) fn oust(&self, why: Ousted) {
        // The first reason stands.
        drop(self.ousted.set(why));
        self.end.cancel();
    }

    /// It is asked, because of this process; what it must quote is the number.
    pub(super) fn ask(&self, number: u64, (instance, peer): (&InstanceId, &str)) -> Rival {
        let challenge = Challenge {
            number,
            instance: instance.clone(),
            peer: peer.to_owned(),
        };
        let proof = self.proof.subscribe();
        self.challenge.send_replace(Some(challenge));
        Rival {
            session: self.session,
            number,
            until: Instant::now() + self.prove_within(),
            proof,
            gone: self.gone.clone(),
        }
    }

    /// How long it may take to prove that it is alive.
    pub(super) fn prove_within(&self) -> Duration {
        match self.proves {
            true => PROVE_WITHIN,
            false => HEARD_WITHIN,
        }
    }

    /// It said something.
    pub(super) fn heard(&self) {
        if !self.proves
            && let Some(challenge) = self.challenge.borrow().as_ref()
        {
            self.proof.send_replace(challenge.number);
        }
    }
}

/// Why a stream is ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Ousted {
    /// A newer one of the same worker counts.
    Newer,
    /// An older one of another process does, which another replica has.
    Twin(String),
}

/// The question to the one that is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Challenge {
    pub(crate) number: u64,
    /// The process that came.
    pub(crate) instance: InstanceId,
    pub(crate) peer: String,
}

/// The one that is there, and was asked.
#[derive(Debug)]
pub(crate) struct Rival {
    pub(crate) session: SessionId,
    number: u64,
    until: Instant,
    proof: watch::Receiver<u64>,
    gone: CancellationToken,
}

/// What came of the question.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    Alive,
    /// Its stream has ended.
    Gone,
    /// It did not answer.
    Silent,
}

impl Rival {
    /// Waits for the answer.
    pub(crate) async fn judge(&mut self) -> Verdict {
        let (number, until) = (self.number, self.until);
        tokio::select! {
            biased;
            proved = self.proof.wait_for(|proof| *proof >= number) => match proved.map(drop) {
                Ok(()) => Verdict::Alive,
                // Its line is no more.
                Err(_) => Verdict::Gone,
            },
            () = self.gone.cancelled() => Verdict::Gone,
            () = sleep_until(until) => Verdict::Silent,
        }
    }
}

/// A process that was turned away.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Twin {
    pub(super) instance: InstanceId,
    pub(super) peer: String,
    pub(super) at: SystemTime,
}

impl Twin {
    /// Whether it is to be shown.
    pub(super) fn is_fresh(&self, now: SystemTime) -> bool {
        now.duration_since(self.at).is_ok_and(|ago| ago < SHOWN)
    }
}

#[cfg(test)]
#[path = "contest_tests.rs"]
mod tests;
