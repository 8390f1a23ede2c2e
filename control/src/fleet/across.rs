//! Two processes with one worker id at two replicas: which of them stays. Level-triggered: what each replica has open is
//! told to the others again and again, and each comes to its own part of the same verdict.
//!
//! ```text
//!   the replica of the older stream          the replica of the younger one
//!   ───────────────────────────────          ─────────────────────────────────────────────
//!   asks its worker whether it is alive      waits: the older one may be of a process that is dead
//!      ├─ it is: says that it turns the
//!      │         other one away              ends its stream (ALREADY_EXISTS)
//!      └─ it is silent: ends its stream      keeps it
//! ```
//!
//! Of one process the younger stream counts, and the older one is a leftover that its replica has not noticed.

use std::time::SystemTime;

use forebay_proto::InstanceId;
use tokio::time::Instant;

use super::{
    Fleet, Inner,
    contest::{Ousted, PROVE_WITHIN, Twin},
    known::Known,
    shared,
};

/// The question to a worker of ours, because of one elsewhere.
#[derive(Debug)]
pub(super) struct Across {
    instance: InstanceId,
    number: u64,
    since: Instant,
}

/// What a stream elsewhere means for one here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Compared {
    /// The one here is older, of another process.
    Elder,
    /// It is younger.
    Younger,
    /// It is an older one of the same process.
    Leftover,
    /// It is the younger one of the same process.
    Stays,
}

/// Each replica comes to the same verdict of the two.
fn compare(here: &Known, there: &Known) -> Compared {
    let of = |known: &'_ Known| (known.since, known.introduction.instance.clone());
    let (ours, theirs) = (of(here), of(there));
    match (ours.1 == theirs.1, ours < theirs) {
        (true, _) if here.connected < there.connected => Compared::Leftover,
        (true, _) => Compared::Stays,
        (false, true) => Compared::Elder,
        (false, false) => Compared::Younger,
    }
}

impl Fleet {
    /// Compares its own workers with those of the others. To be done again and again: an answer may be due.
    pub(crate) fn meet_others(&self) {
        if self.inner.lock().meet() {
            self.changed.send_replace(());
        }
    }
}

impl Inner {
    /// True if others want to know of what came of it.
    pub(super) fn meet(&mut self) -> bool {
        let Self {
            workers,
            others,
            sessions,
        } = self;
        let mut told = false;
        for (id, replica, there) in shared::connected(others) {
            let own = workers.get_mut(id).filter(|own| own.session.is_some());
            if let Some(own) = own {
                *sessions += 1;
                told |= own.meets((there, replica), *sessions);
            }
        }
        told
    }
}

impl Known {
    /// True if others want to know.
    fn meets(&mut self, (there, replica): (&Self, &str), number: u64) -> bool {
        let Some(line) = &self.session else {
            return false;
        };
        let instance = &self.introduction.instance;
        match compare(self, there) {
            Compared::Stays => false,
            Compared::Leftover => {
                line.oust(Ousted::Newer);
                true
            }
            Compared::Younger if there.turns_away.as_ref() == Some(instance) => {
                line.oust(Ousted::Twin(replica.to_owned()));
                true
            }
            Compared::Younger => false,
            // It has said that it goes.
            Compared::Elder if self.ends => {
                line.oust(Ousted::Newer);
                true
            }
            Compared::Elder => self.defends(there, number),
        }
    }

    fn defends(&mut self, there: &Self, number: u64) -> bool {
        let Some(line) = &self.session else {
            return false;
        };
        let (instance, peer) = (&there.introduction.instance, &there.introduction.peer);
        let asked = self.across.as_ref();
        match asked.filter(|across| across.instance == *instance) {
            _ if self.turns_away.as_ref() == Some(instance) => self.shows_twin(there),
            None => {
                drop(line.ask(number, (instance, peer)));
                self.across = Some(Across {
                    instance: instance.clone(),
                    number,
                    since: Instant::now(),
                });
                false
            }
            Some(across) if *line.proof.borrow() >= across.number => {
                self.turns_away = Some(instance.clone());
                self.shows_twin(there)
            }
            Some(across) if across.since.elapsed() > PROVE_WITHIN => {
                line.oust(Ousted::Newer);
                true
            }
            Some(_) => false,
        }
    }

    fn shows_twin(&mut self, there: &Self) -> bool {
        let first = self.twin.is_none();
        self.twin = Some(Twin {
            instance: there.introduction.instance.clone(),
            peer: there.introduction.peer.clone(),
            at: SystemTime::now(),
        });
        first
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use forebay_proto::WorkerId;
    use tokio::time::advance;
    use tokio_util::sync::CancellationToken;

    use super::{
        super::{Introduction, Joined},
        *,
    };

    fn let_in(fleet: &Fleet, instance: &str, for_: u64) -> (Joined, CancellationToken) {
        let end = CancellationToken::new();
        let introduction = Introduction {
            let_in: Duration::from_secs(for_),
            ..Introduction::plain("w", instance, None)
        };
        (fleet.joined(introduction, end.clone()), end)
    }

    /// What one has is told to the other.
    fn tell(from: &Fleet, name: &str, to: &Fleet) {
        for (n, part) in from.export(name, 1) {
            to.import(name, n, Some(&part));
        }
    }

    fn asked(joined: &Joined) -> Option<u64> {
        joined.challenge.borrow().as_ref().map(|asked| asked.number)
    }

    fn worker() -> WorkerId {
        WorkerId::new("w").unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn the_elder_turns_the_younger_away_once_it_is_proved_alive() {
        let (r1, r2) = (Fleet::default(), Fleet::default());
        let (elder, elder_ended) = let_in(&r1, "elder", 9);
        let (younger, younger_ended) = let_in(&r2, "younger", 0);
        tell(&r1, "r1", &r2);
        assert!(asked(&younger).is_none() && !younger_ended.is_cancelled());
        tell(&r2, "r2", &r1);
        let number = asked(&elder).unwrap();
        tell(&r1, "r1", &r2);
        assert!(!younger_ended.is_cancelled(), "the other one may be dead");
        r1.proved(&worker(), elder.session, number);
        advance(PROVE_WITHIN * 2).await;
        r1.meet_others();
        tell(&r1, "r1", &r2);
        assert!(younger_ended.is_cancelled() && !elder_ended.is_cancelled());
        assert_eq!(younger.ousted.get(), Some(&Ousted::Twin("r1".to_owned())));
    }

    #[tokio::test(start_paused = true)]
    async fn an_elder_that_is_silent_makes_room() {
        let (r1, r2) = (Fleet::default(), Fleet::default());
        let (elder, elder_ended) = let_in(&r1, "elder", 9);
        let (_, younger_ended) = let_in(&r2, "younger", 0);
        tell(&r2, "r2", &r1);
        advance(PROVE_WITHIN).await;
        r1.meet_others();
        assert!(!elder_ended.is_cancelled());
        advance(Duration::from_millis(1)).await;
        r1.meet_others();
        tell(&r1, "r1", &r2);
        assert!(elder_ended.is_cancelled() && !younger_ended.is_cancelled());
        assert_eq!(elder.ousted.get(), Some(&Ousted::Newer));
    }

    /// A stream that was opened anew makes nobody younger.
    #[tokio::test(start_paused = true)]
    async fn who_was_there_first_is_not_when_a_stream_was_opened() {
        let (r1, r2) = (Fleet::default(), Fleet::default());
        let (younger, _) = let_in(&r1, "a", 3);
        let (elder, _) = let_in(&r2, "b", 60);
        tell(&r1, "r1", &r2);
        tell(&r2, "r2", &r1);
        assert!(asked(&elder).is_some() && asked(&younger).is_none());
    }

    #[tokio::test]
    async fn a_leftover_of_the_same_process_is_ended() {
        let (r1, r2) = (Fleet::default(), Fleet::default());
        let (_, first) = let_in(&r1, "same", 0);
        let (_, second) = let_in(&r2, "same", 5);
        tell(&r1, "r1", &r2);
        tell(&r2, "r2", &r1);
        assert!(first.is_cancelled() && !second.is_cancelled());
    }
}
