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
//! Of one process the younger stream counts, and the older one is a leftover that its replica has not noticed. The process
//! counts its streams itself, so that no two clocks are compared.
//!
//! What was asked and answered is about one stream of the other process: it is forgotten with it, for who is alive now may
//! be dead when that process comes again.

use std::time::SystemTime;

use forebay_proto::InstanceId;
use tokio::time::Instant;

use super::{
    Fleet, Inner,
    contest::{Ousted, Twin},
    known::Known,
    shared,
};

/// The question to a worker of ours, because of one elsewhere.
#[derive(Debug)]
pub(super) struct Across {
    comer: Comer,
    number: u64,
    since: Instant,
}

/// A stream of another process with the id, at another replica.
#[derive(Debug, Clone)]
pub(super) struct Comer {
    pub(super) instance: InstanceId,
    /// When it came, by the clock of the replica that has it: which of that process's streams it is. Nothing: any of them,
    /// by the word of a build that does not say.
    pub(super) connected: Option<SystemTime>,
}

impl Comer {
    fn of(there: &Known) -> Self {
        Self {
            instance: there.introduction.instance.clone(),
            connected: Some(there.connected),
        }
    }

    fn is(&self, known: &Known) -> bool {
        let same = self.instance == known.introduction.instance;
        same && self.connected.is_none_or(|came| came == known.connected)
    }
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
        (true, _) if there.is_later(here) => Compared::Leftover,
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
        for (id, own) in workers.iter_mut() {
            told |=
                own.forgets(|comer| shared::streams_of(others, id).any(|there| comer.is(there)));
        }
        for (id, replica, there) in shared::connected(others) {
            let own = workers.get_mut(id).filter(|own| own.session.is_some());
            let later = |other: &Known| {
                let same = other.introduction.instance == there.introduction.instance;
                same && other.is_later(there)
            };
            // What a process has left behind elsewhere is ended there.
            if let Some(own) = own
                && !shared::streams_of(others, id).any(later)
            {
                *sessions += 1;
                told |= own.meets((there, replica), *sessions);
            }
        }
        told
    }
}

impl Known {
    /// What came of a stream that is no more is forgotten. True if others want to know.
    fn forgets(&mut self, is_there: impl Fn(&Comer) -> bool) -> bool {
        self.across.take_if(|across| !is_there(&across.comer));
        let forgot = self.turns_away.take_if(|comer| !is_there(comer));
        forgot.is_some()
    }

    /// True if others want to know.
    fn meets(&mut self, (there, replica): (&Self, &str), number: u64) -> bool {
        let Some(line) = &self.session else {
            return false;
        };
        let turned = there.turns_away.as_ref();
        match compare(self, there) {
            Compared::Stays => false,
            Compared::Leftover => {
                line.oust(Ousted::Newer);
                true
            }
            Compared::Younger if turned.is_some_and(|comer| comer.is(self)) => {
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
        let turned = self.turns_away.as_ref();
        match asked.filter(|across| across.comer.is(there)) {
            _ if turned.is_some_and(|comer| comer.is(there)) => self.shows_twin(there),
            None => {
                drop(line.ask(number, (instance, peer)));
                self.across = Some(Across {
                    comer: Comer::of(there),
                    number,
                    since: Instant::now(),
                });
                false
            }
            Some(across) if *line.proof.borrow() >= across.number => {
                self.turns_away = Some(Comer::of(there));
                self.shows_twin(there);
                true
            }
            Some(across) if across.since.elapsed() > line.prove_within() => {
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

    use forebay_proto::{Digest, Epoch, Position, Revision, WorkerId};
    use tokio::time::advance;
    use tokio_util::sync::CancellationToken;

    use super::{
        super::{Introduction, Joined, contest::PROVE_WITHIN},
        *,
    };

    fn let_in(fleet: &Fleet, instance: &str, for_: u64) -> (Joined, CancellationToken) {
        opened(fleet, instance, (for_, 0))
    }

    fn opened(
        fleet: &Fleet,
        instance: &str,
        (for_, streams): (u64, u32),
    ) -> (Joined, CancellationToken) {
        let end = CancellationToken::new();
        let introduction = Introduction {
            let_in: Duration::from_secs(for_),
            control: format!("stream {streams}"),
            streams,
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

    fn position() -> Position {
        Position {
            epoch: Epoch::new("aa").unwrap(),
            revision: Revision::new(1),
            digest: Digest::of(b""),
        }
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

    #[tokio::test(start_paused = true)]
    async fn an_elder_that_is_heard_of_now_and_then_has_longer() {
        let (r1, r2) = (Fleet::default(), Fleet::default());
        let (end, worker) = (CancellationToken::new(), worker());
        let introduction = Introduction {
            proves: false,
            let_in: Duration::from_secs(9),
            ..Introduction::plain("w", "elder", None)
        };
        let elder = r1.joined(introduction, end.clone());
        let_in(&r2, "younger", 0);
        tell(&r2, "r2", &r1);
        advance(Duration::from_secs(12)).await;
        r1.meet_others();
        r1.seen(&worker, elder.session);
        advance(PROVE_WITHIN).await;
        r1.meet_others();
        assert!(!end.is_cancelled());
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

    /// The clock of the first replica is ahead, so its stream looks younger than the one that came after it.
    #[test]
    fn which_stream_of_a_process_is_the_later_one_the_process_says_and_no_clock() {
        let (r1, r2) = (Fleet::default(), Fleet::default());
        let (_, second) = opened(&r2, "same", (5, 2));
        let (_, first) = opened(&r1, "same", (0, 1));
        tell(&r2, "r2", &r1);
        tell(&r1, "r1", &r2);
        assert!(first.is_cancelled() && !second.is_cancelled());
        for fleet in [&r1, &r2] {
            let shown = fleet.worker("w", &position()).unwrap();
            assert_eq!(shown.control, "stream 2");
        }
    }

    /// One of both is told of by a control plane that does not pass on how many streams there were.
    #[test]
    fn where_one_replica_does_not_count_the_clocks_decide() {
        let (r1, r2) = (Fleet::default(), Fleet::default());
        let (_, first) = opened(&r1, "same", (0, 7));
        let (_, second) = opened(&r2, "same", (5, 0));
        tell(&r1, "r1", &r2);
        tell(&r2, "r2", &r1);
        assert!(first.is_cancelled() && !second.is_cancelled());
    }

    /// The elder at one replica, which has turned the younger one away from the other.
    fn turned_away() -> (Fleet, Fleet, Joined, CancellationToken) {
        let (r1, r2) = (Fleet::default(), Fleet::default());
        let (elder, ended) = let_in(&r1, "elder", 9);
        let (younger, turned) = let_in(&r2, "younger", 0);
        tell(&r2, "r2", &r1);
        r1.proved(&worker(), elder.session, asked(&elder).unwrap());
        r1.meet_others();
        tell(&r1, "r1", &r2);
        assert!(turned.is_cancelled());
        r2.leave(&worker(), younger.session);
        tell(&r2, "r2", &r1);
        (r1, r2, elder, ended)
    }

    #[tokio::test(start_paused = true)]
    async fn who_comes_again_has_the_elder_asked_again() {
        let (r1, r2, elder, ended) = turned_away();
        let before = asked(&elder);
        tell(&r1, "r1", &r2);
        let (_, turned) = let_in(&r2, "younger", 0);
        tell(&r2, "r2", &r1);
        tell(&r1, "r1", &r2);
        assert!(!turned.is_cancelled(), "the elder may be dead by now");
        assert!(asked(&elder) > before);
        advance(PROVE_WITHIN + Duration::from_millis(1)).await;
        r1.meet_others();
        assert!(ended.is_cancelled() && !turned.is_cancelled());
    }

    /// What was said of a stream that is gone is heard late.
    #[tokio::test(start_paused = true)]
    async fn what_was_said_of_one_stream_does_not_end_the_next() {
        let (r1, r2) = (Fleet::default(), Fleet::default());
        let (elder, _) = let_in(&r1, "elder", 9);
        let (first, _) = let_in(&r2, "younger", 0);
        tell(&r2, "r2", &r1);
        r1.proved(&worker(), elder.session, asked(&elder).unwrap());
        r1.meet_others();
        r2.leave(&worker(), first.session);
        let (_, next) = let_in(&r2, "younger", 0);
        tell(&r1, "r1", &r2);
        assert!(!next.is_cancelled());
        tell(&r2, "r2", &r1);
        r1.proved(&worker(), elder.session, asked(&elder).unwrap());
        r1.meet_others();
        tell(&r1, "r1", &r2);
        assert!(next.is_cancelled(), "it is turned away by its own");
    }

    #[tokio::test(start_paused = true)]
    async fn what_the_younger_one_left_behind_elsewhere_is_nothing_to_the_elder() {
        let (r1, r2, r3) = (Fleet::default(), Fleet::default(), Fleet::default());
        let (elder, _) = let_in(&r1, "elder", 9);
        opened(&r3, "younger", (0, 1));
        opened(&r2, "younger", (0, 2));
        tell(&r3, "r3", &r1);
        tell(&r2, "r2", &r1);
        let number = asked(&elder).unwrap();
        for _ in 0..3 {
            r1.meet_others();
        }
        assert_eq!(asked(&elder), Some(number), "asked once");
        r1.proved(&worker(), elder.session, number);
        r1.meet_others();
        let mut changes = r1.watch();
        changes.borrow_and_update();
        r1.meet_others();
        assert!(!changes.has_changed().unwrap(), "it is settled");
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
