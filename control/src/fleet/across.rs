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

use forebay_proto::{InstanceId, WorkerId};
use tokio::time::Instant;

use super::{
    Fleet,
    contest::{Ousted, PROVE_WITHIN, Twin},
    known::Known,
};

/// A worker's stream, as another replica has it.
#[derive(Debug, Clone)]
pub(crate) struct Elsewhere {
    pub(crate) worker: WorkerId,
    pub(crate) instance: InstanceId,
    /// Since when its process has been let in.
    pub(crate) since: SystemTime,
    /// When this stream was opened.
    pub(crate) connected: SystemTime,
    pub(crate) peer: String,
    pub(crate) replica: String,
    /// The process against which it was proved to be alive.
    pub(crate) turns_away: Option<InstanceId>,
}

/// The question to a worker of ours, because of one elsewhere.
#[derive(Debug)]
pub(super) struct Across {
    instance: InstanceId,
    number: u64,
    since: Instant,
    proved: bool,
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
fn compare(
    instance: &InstanceId,
    (since, connected): (SystemTime, SystemTime),
    there: &Elsewhere,
) -> Compared {
    let elder = (since, instance) < (there.since, &there.instance);
    match (*instance == there.instance, elder) {
        (true, _) if connected < there.connected => Compared::Leftover,
        (true, _) => Compared::Stays,
        (false, true) => Compared::Elder,
        (false, false) => Compared::Younger,
    }
}

impl Fleet {
    /// The streams that are open, for the other replicas.
    pub(crate) fn streams(&self, replica: &str) -> Vec<Elsewhere> {
        let inner = self.inner.lock();
        let open = inner
            .workers
            .values()
            .filter(|known| known.session.is_some());
        let each = open.map(|known| {
            let proved = known.across.as_ref().filter(|across| across.proved);
            Elsewhere {
                worker: known.introduction.worker.clone(),
                instance: known.introduction.instance.clone(),
                since: known.since,
                connected: known.connected,
                peer: known.introduction.peer.clone(),
                replica: replica.to_owned(),
                turns_away: proved.map(|across| across.instance.clone()),
            }
        });
        each.collect()
    }

    /// What the other replicas have open of the same workers. To be told again and again.
    pub(crate) fn elsewhere(&self, seen: &[Elsewhere]) {
        let mut inner = self.inner.lock();
        let mut told = false;
        for there in seen {
            inner.sessions += 1;
            let number = inner.sessions;
            let known = inner.workers.get_mut(&there.worker);
            if let Some(known) = known.filter(|known| known.session.is_some()) {
                told |= known.meets(there, number);
            }
        }
        drop(inner);
        if told {
            self.changed.send_replace(());
        }
    }
}

impl Known {
    /// True if others want to know.
    fn meets(&mut self, there: &Elsewhere, number: u64) -> bool {
        let Some(line) = &self.session else {
            return false;
        };
        let instance = &self.introduction.instance;
        match compare(instance, (self.since, self.connected), there) {
            Compared::Stays => false,
            Compared::Leftover => {
                line.oust(Ousted::Newer);
                true
            }
            Compared::Younger if there.turns_away.as_ref() == Some(instance) => {
                line.oust(Ousted::Twin(there.replica.clone()));
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

    fn defends(&mut self, there: &Elsewhere, number: u64) -> bool {
        let Some(line) = &self.session else {
            return false;
        };
        let asked = self.across.as_mut();
        match asked.filter(|across| across.instance == there.instance) {
            None => {
                drop(line.ask(number, (&there.instance, &there.peer)));
                self.across = Some(Across {
                    instance: there.instance.clone(),
                    number,
                    since: Instant::now(),
                    proved: false,
                });
                false
            }
            Some(across) if across.proved || *line.proof.borrow() >= across.number => {
                across.proved = true;
                self.twin = Some(Twin {
                    instance: there.instance.clone(),
                    peer: there.peer.clone(),
                    at: SystemTime::now(),
                });
                true
            }
            Some(across) if across.since.elapsed() > PROVE_WITHIN => {
                line.oust(Ousted::Newer);
                true
            }
            Some(_) => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::advance;
    use tokio_util::sync::CancellationToken;

    use super::{
        super::{Introduction, Joined},
        *,
    };

    fn there(instance: &str, connected: SystemTime) -> Elsewhere {
        Elsewhere {
            worker: WorkerId::new("w").unwrap(),
            instance: InstanceId::new(instance).unwrap(),
            since: connected,
            connected,
            peer: "there".to_owned(),
            replica: "r2".to_owned(),
            turns_away: None,
        }
    }

    fn let_in(fleet: &Fleet, instance: &str) -> (Joined, CancellationToken) {
        let end = CancellationToken::new();
        let introduction = Introduction::plain("w", instance, None);
        let joined = fleet.joined(introduction, end.clone());
        (joined, end)
    }

    #[test]
    fn two_replicas_come_to_the_same_verdict() {
        let (early, late) = (SystemTime::UNIX_EPOCH, SystemTime::now());
        let id = |text| InstanceId::new(text).unwrap();
        let (a, b) = (id("a"), id("b"));
        let of = |instance, at, there| compare(instance, (at, at), &there);
        assert_eq!(of(&a, early, there("b", late)), Compared::Elder);
        assert_eq!(of(&b, late, there("a", early)), Compared::Younger);
        assert_eq!(of(&a, early, there("a", late)), Compared::Leftover);
        assert_eq!(of(&a, late, there("a", early)), Compared::Stays);
        // At the same instant one of them is the elder, too.
        assert_eq!(of(&a, late, there("b", late)), Compared::Elder);
        assert_eq!(of(&b, late, there("a", late)), Compared::Younger);
        // A stream that was opened anew makes nobody younger.
        let anew = compare(&a, (early, late), &there("b", late));
        assert_eq!(anew, Compared::Elder);
    }

    fn later() -> SystemTime {
        SystemTime::now() + Duration::from_secs(9)
    }

    #[tokio::test(start_paused = true)]
    async fn the_elder_turns_the_younger_away_once_it_is_proved_alive() {
        let fleet = Fleet::default();
        let (here, ended) = let_in(&fleet, "here");
        let younger = there("younger", later());
        fleet.elsewhere(std::slice::from_ref(&younger));
        let asked = here.challenge.borrow().clone().unwrap();
        assert_eq!(asked.instance.as_str(), "younger");
        fleet.elsewhere(std::slice::from_ref(&younger));
        assert_eq!(fleet.streams("r1")[0].turns_away, None, "it is not proved");
        fleet.proved(&younger.worker, here.session, asked.number);
        advance(PROVE_WITHIN * 2).await;
        fleet.elsewhere(std::slice::from_ref(&younger));
        let told = &fleet.streams("r1")[0];
        assert_eq!(told.turns_away, Some(younger.instance));
        assert!(!ended.is_cancelled());
    }

    #[tokio::test(start_paused = true)]
    async fn an_elder_that_is_silent_makes_room() {
        let fleet = Fleet::default();
        let (here, ended) = let_in(&fleet, "here");
        let younger = there("younger", later());
        fleet.elsewhere(std::slice::from_ref(&younger));
        advance(PROVE_WITHIN).await;
        fleet.elsewhere(std::slice::from_ref(&younger));
        assert!(!ended.is_cancelled());
        advance(Duration::from_millis(1)).await;
        fleet.elsewhere(&[younger]);
        assert!(ended.is_cancelled());
        assert_eq!(here.ousted.get(), Some(&Ousted::Newer));
    }

    #[tokio::test]
    async fn the_younger_waits_until_it_is_turned_away() {
        let fleet = Fleet::default();
        let (here, ended) = let_in(&fleet, "here");
        let elder = there("elder", SystemTime::UNIX_EPOCH);
        fleet.elsewhere(std::slice::from_ref(&elder));
        assert!(!ended.is_cancelled(), "a restart is let in");
        let elder = Elsewhere {
            turns_away: Some(InstanceId::new("here").unwrap()),
            ..elder
        };
        fleet.elsewhere(&[elder]);
        assert!(ended.is_cancelled());
        assert_eq!(here.ousted.get(), Some(&Ousted::Twin("r2".to_owned())));
    }

    #[tokio::test]
    async fn a_leftover_of_the_same_process_is_ended() {
        let fleet = Fleet::default();
        let (_, ended) = let_in(&fleet, "here");
        fleet.elsewhere(&[there("here", SystemTime::UNIX_EPOCH)]);
        assert!(!ended.is_cancelled());
        fleet.elsewhere(&[there("here", later())]);
        assert!(ended.is_cancelled());
    }
}
