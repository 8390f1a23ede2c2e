//! The workers of all control planes, as whoever decides hears of them: which of a worker's lines counts. Pure.
//!
//! A worker that goes from one control plane to another has two lines for a while, and what is said of the older one may
//! come later. Within a process the worker's own count of its streams says which is newer. Of two processes the one whose
//! line came later counts, or the one that takes over; as long as the other one may be alive, it is told so
//! ([`Standing::displaces`]), and what that one may use is kept aside. Streams are numbered here, in the order in which
//! lines come to count, so that to the decider the newer one is the greater one.
//!
//! A line may be of a process that died without a word, until its control plane notices. So what was said before the call
//! ([`Standing::repeated`]) is told as that, but of a process that was heard since this one decides; and no line takes the
//! place of another process's whose worker has said nothing on it since.

use std::collections::{BTreeMap, BTreeSet};

use forebay_proto::{InstanceId, WorkerId};

use super::letters::{Call, Letter};
use crate::leases::words::Standing;

/// Most workers that are remembered.
const MOST: usize = 20_000;
/// Processes of a worker whose streams are counted.
const PROCESSES: usize = 8;

/// What a letter was.
#[derive(Debug, PartialEq, Eq)]
pub enum Heard {
    /// These stand otherwise than before.
    News(Vec<(WorkerId, Standing)>),
    /// It was not written for this call: whoever wrote it is to be called.
    Uncalled,
}

/// All lines.
#[derive(Debug, Default)]
pub struct Lines {
    call: Call,
    peers: BTreeMap<String, Peer>,
    places: BTreeMap<WorkerId, Place>,
    streams: u64,
    orders: u64,
}

#[derive(Debug, Default)]
struct Peer {
    letter: u64,
    lines: BTreeMap<WorkerId, Line>,
}

/// A line of a control plane.
#[derive(Debug)]
struct Line {
    /// Lines that came later have more.
    order: u64,
    /// Its worker said something since the call.
    lives: bool,
    standing: Standing,
}

#[derive(Debug, Default)]
struct Place {
    now: Option<Now>,
    /// The newest stream of each process.
    newest: BTreeMap<InstanceId, u32>,
    /// Processes that were there while another one's line counted.
    beside: BTreeSet<InstanceId>,
}

/// The line that counts, or counted last.
#[derive(Debug)]
struct Now {
    peer: String,
    line: u64,
    order: u64,
    /// Its process said something since this one decides.
    lived: bool,
    /// As it was told last.
    told: Standing,
}

/// A line, and the control plane that has it.
type Told<'a> = (&'a String, &'a Line);

impl Now {
    /// Its line, if that is still there.
    fn of<'a>(&self, lines: &[Told<'a>]) -> Option<&'a Line> {
        let mut lines = lines.iter();
        let own =
            lines.find(|(peer, line)| **peer == self.peer && line.standing.stream == self.line);
        own.map(|(_, line)| *line)
    }
}

impl Lines {
    /// From now on only answers to this call are heard. What is known of those who have not answered yet stays.
    pub fn call(&mut self, call: Call) {
        self.call = call;
    }

    /// A control plane wrote.
    pub fn hear(&mut self, peer: &str, letter: Letter) -> Heard {
        if letter.call != self.call {
            return Heard::Uncalled;
        }
        let known = self.peers.entry(peer.to_owned()).or_default();
        // It may have been sent twice, and come late.
        if letter.number <= known.letter {
            return Heard::News(Vec::new());
        }
        known.letter = letter.number;
        let mut moved = BTreeSet::new();
        if letter.afresh {
            moved.extend(std::mem::take(&mut known.lines).into_keys());
        }
        for (worker, standing) in letter.words {
            let before = known.lines.get(&worker);
            if before.is_some_and(|before| before.standing.stream > standing.stream) {
                continue;
            }
            let same = before.filter(|before| before.standing.stream == standing.stream);
            let order = same.map_or_else(
                || {
                    self.orders += 1;
                    self.orders
                },
                |same| same.order,
            );
            // One that knows no leases says nothing.
            let said = !standing.knows || (standing.report.is_some() && !standing.repeated);
            let line = Line {
                order,
                lives: said || same.is_some_and(|same| same.lives),
                standing,
            };
            known.lines.insert(worker.clone(), line);
            moved.insert(worker);
        }
        Heard::News(self.settle(moved))
    }

    /// A control plane is no more.
    pub fn gone(&mut self, peer: &str) -> Vec<(WorkerId, Standing)> {
        let gone = self.peers.remove(peer).unwrap_or_default();
        self.settle(gone.lines.into_keys().collect())
    }

    /// No other control planes are there than these.
    pub fn stay(&mut self, there: &BTreeSet<String>) -> Vec<(WorkerId, Standing)> {
        let peers = self.peers.keys();
        let gone: Vec<_> = peers
            .filter(|peer| !there.contains(*peer))
            .cloned()
            .collect();
        gone.iter().flat_map(|peer| self.gone(peer)).collect()
    }

    /// The control plane and its line that this stream of a worker is, if it counts.
    pub fn line_of(&self, worker: &WorkerId, stream: u64) -> Option<(&str, u64)> {
        let now = self.places.get(worker)?.now.as_ref()?;
        let counts = now.told.stream == stream && now.told.connected;
        counts.then_some((now.peer.as_str(), now.line))
    }

    fn settle(&mut self, moved: BTreeSet<WorkerId>) -> Vec<(WorkerId, Standing)> {
        let mut news = Vec::new();
        for worker in moved {
            if let Some(standing) = self.settle_one(&worker) {
                news.push((worker.clone(), standing));
            }
            // A line that is over was told of, or does not count.
            for peer in self.peers.values_mut() {
                let over = peer
                    .lines
                    .get(&worker)
                    .is_some_and(|line| !line.standing.connected);
                if over {
                    peer.lines.remove(&worker);
                }
            }
        }
        news
    }

    /// How a worker stands, if that is otherwise than before.
    fn settle_one(&mut self, worker: &WorkerId) -> Option<Standing> {
        if !self.places.contains_key(worker) && !self.make_room() {
            return None;
        }
        let lines = self.peers.iter();
        let lines: Vec<(&String, &Line)> = lines
            .filter_map(|(peer, known)| Some((peer, known.lines.get(worker)?)))
            .collect();
        let place = self.places.entry(worker.clone()).or_default();
        for (_, line) in &lines {
            place.count(&line.standing);
        }
        let Some((peer, best)) = place.best(&lines) else {
            return place.end(&lines);
        };
        let now = place.now.as_ref();
        let same = now.filter(|now| now.peer == *peer && now.line == best.standing.stream);
        let (stream, displaces) = match same {
            Some(now) => (now.told.stream, now.told.displaces),
            None => {
                self.streams += 1;
                let alive = now.is_some_and(|now| {
                    let there = now.of(&lines).is_some_and(|line| line.standing.connected);
                    let other = now.told.instance != best.standing.instance;
                    let beside = place.beside.contains(&best.standing.instance);
                    other && (there || beside || best.order < now.order)
                });
                (self.streams, alive)
            }
        };
        let heard = best.lives || place.vouches(peer, best);
        let others = lines.iter().map(|(_, line)| &line.standing);
        let others = others.filter(|other| other.instance != best.standing.instance);
        let others = others.filter(|other| other.connected);
        let beside = others.map(|other| other.instance.clone()).collect();
        let told = Standing {
            stream,
            displaces,
            repeated: !heard,
            ..best.standing.clone()
        };
        let known = now.is_some_and(|now| now.told == told);
        place.beside = beside;
        if known {
            return None;
        }
        place.now = Some(Now {
            peer: peer.clone(),
            line: best.standing.stream,
            order: best.order,
            lived: heard,
            told: told.clone(),
        });
        Some(told)
    }

    /// True if one more can be remembered: for one that is not there any more.
    fn make_room(&mut self) -> bool {
        if self.places.len() < MOST {
            return true;
        }
        let there = |place: &Place| place.now.as_ref().is_some_and(|now| now.told.connected);
        let mut places = self.places.iter();
        let gone = places.find(|(_, place)| !there(place));
        let gone = gone.map(|(worker, _)| worker.clone());
        gone.is_some_and(|gone| self.places.remove(&gone).is_some())
    }
}

impl Place {
    fn count(&mut self, standing: &Standing) {
        if standing.count == 0 {
            return;
        }
        if self.newest.len() >= PROCESSES && !self.newest.contains_key(&standing.instance) {
            let now = self.now.as_ref().map(|now| now.told.instance.clone());
            let mut others = self.newest.keys();
            let other = others.find(|other| Some(*other) != now.as_ref()).cloned();
            other.map(|other| self.newest.remove(&other));
        }
        let newest = self.newest.entry(standing.instance.clone()).or_default();
        *newest = (*newest).max(standing.count);
    }

    /// The line is of the process that counts, which is known to have lived. Of a build that does not count its streams
    /// only one at the same control plane is known to be no older.
    fn vouches(&self, peer: &str, line: &Line) -> bool {
        let now = self.now.as_ref().filter(|now| now.lived);
        now.is_some_and(|now| {
            let counts = line.standing.count > 0 || now.peer == peer;
            now.told.instance == line.standing.instance && counts
        })
    }

    /// The line that counts, if any does.
    fn best<'a>(&self, lines: &[Told<'a>]) -> Option<Told<'a>> {
        let lived = self.now.as_ref().is_some_and(|now| now.lived);
        let there = lines.iter().filter(|(peer, line)| {
            let counts = line.lives || !lived || self.vouches(peer, line);
            line.standing.connected && self.is_newest(line) && counts
        });
        let best = there.max_by_key(|(peer, line)| {
            let heard = line.lives || self.vouches(peer, line);
            (heard, line.standing.takes_over, line.order)
        });
        best.copied()
    }

    /// Nobody has it any more. What was said at the end is told with it.
    fn end(&mut self, lines: &[Told<'_>]) -> Option<Standing> {
        let now = self.now.as_mut()?;
        let last = now.of(lines);
        let told = last.map_or(&now.told, |line| &line.standing);
        let told = Standing {
            stream: now.told.stream,
            displaces: now.told.displaces,
            repeated: !now.lived && !last.is_some_and(|line| line.lives),
            connected: false,
            ..told.clone()
        };
        let news = told != now.told;
        now.told.clone_from(&told);
        news.then_some(told)
    }

    /// Its process has opened no later one. What is not counted goes by the order in which it came, and after one that
    /// lived no earlier one counts again.
    fn is_newest(&self, line: &Line) -> bool {
        let (instance, count) = (&line.standing.instance, line.standing.count);
        if count > 0 {
            let newest = self.newest.get(instance);
            return newest.is_none_or(|newest| *newest <= count);
        }
        let now = self.now.as_ref().filter(|now| now.lived);
        now.is_none_or(|now| now.told.instance != *instance || now.order <= line.order)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::leases::words::Report;

    const CALL: Call = Call { term: 7, round: 1 };

    fn worker() -> WorkerId {
        WorkerId::new("w").unwrap()
    }

    fn word(line: u64, instance: &str, count: u32, connected: bool) -> (WorkerId, Standing) {
        let standing = Standing {
            stream: line,
            instance: InstanceId::new(instance).unwrap(),
            takes_over: false,
            count,
            displaces: false,
            repeated: false,
            knows: true,
            connected,
            report: Some(Report::default()),
        };
        (worker(), standing)
    }

    fn again(line: u64, instance: &str, count: u32) -> (WorkerId, Standing) {
        let (worker, standing) = word(line, instance, count, true);
        let repeated = true;
        (
            worker,
            Standing {
                repeated,
                ..standing
            },
        )
    }

    struct Play(Lines, u64);

    impl Play {
        fn new() -> Self {
            let mut lines = Lines::default();
            lines.call(CALL);
            Self(lines, 0)
        }

        fn write(
            &mut self,
            peer: &str,
            afresh: bool,
            words: Vec<(WorkerId, Standing)>,
        ) -> Option<Standing> {
            self.1 += 1;
            let letter = Letter {
                call: CALL,
                number: self.1,
                afresh,
                words,
                questions: Vec::new(),
            };
            match self.0.hear(peer, letter) {
                Heard::News(news) => news.into_iter().next().map(|(_, standing)| standing),
                Heard::Uncalled => panic!("it was called"),
            }
        }
    }

    #[test]
    fn a_late_end_of_an_older_stream_is_no_end_of_the_newer_one() {
        let mut play = Play::new();
        let first = play.write("a", true, vec![word(1, "i", 1, true)]).unwrap();
        let second = play.write("b", true, vec![word(1, "i", 2, true)]).unwrap();
        assert!(second.stream > first.stream && second.connected && !second.displaces);
        assert_eq!(play.write("a", false, vec![word(1, "i", 1, false)]), None);
        assert_eq!(play.0.line_of(&worker(), second.stream), Some(("b", 1)));
        assert_eq!(play.0.line_of(&worker(), first.stream), None);
        let end = play
            .write("b", false, vec![word(1, "i", 2, false)])
            .unwrap();
        assert_eq!((end.stream, end.connected), (second.stream, false));
        assert_eq!(play.0.line_of(&worker(), second.stream), None);
    }

    #[test]
    fn of_one_process_the_later_stream_counts_whenever_it_is_told_of() {
        let mut play = Play::new();
        let newer = play.write("b", true, vec![word(1, "i", 2, true)]).unwrap();
        // Of one that was cut off, and has not noticed that its worker left.
        assert_eq!(play.write("a", true, vec![word(9, "i", 1, true)]), None);
        let end = play.0.gone("b");
        assert_eq!(end[0].1.stream, newer.stream);
        assert!(!end[0].1.connected, "the other line is no better for that");
        let back = play.write("b", true, vec![word(2, "i", 3, true)]).unwrap();
        assert!(back.stream > newer.stream && !back.displaces);
    }

    #[test]
    fn another_process_counts_and_what_the_one_that_is_there_uses_is_kept_aside() {
        let mut play = Play::new();
        play.write("a", true, vec![word(1, "i", 5, true)]);
        let other = play.write("b", true, vec![word(1, "j", 1, true)]).unwrap();
        assert!(other.displaces, "the first one may be alive");
        // The other one is turned away.
        let first = play
            .write("b", false, vec![word(1, "j", 1, false)])
            .unwrap();
        assert_eq!(first.instance.as_str(), "i");
        assert!(first.displaces && first.stream > other.stream);
        // A restart: the first is gone before the other one comes.
        play.write("a", false, vec![word(1, "i", 5, false)]);
        let next = play.write("b", false, vec![word(2, "k", 1, true)]).unwrap();
        assert!(!next.displaces && next.connected);
    }

    #[test]
    fn a_line_of_a_process_that_may_be_dead_takes_nobodys_place() {
        let mut play = Play::new();
        let first = play.write("a", true, vec![again(1, "dead", 5)]).unwrap();
        assert!(first.connected && first.repeated, "it may be dead");
        let next = play
            .write("b", true, vec![word(1, "alive", 1, true)])
            .unwrap();
        assert!(!next.repeated && next.instance.as_str() == "alive");
        // Everything is told anew.
        assert_eq!(play.write("a", true, vec![again(2, "dead", 5)]), None);
        let same = play.write("b", true, vec![again(2, "alive", 1)]).unwrap();
        assert!(!same.repeated, "it lived since");
        assert!(!play.0.gone("b")[0].1.connected);
        assert_eq!(play.write("a", true, vec![again(3, "dead", 5)]), None);
    }

    #[test]
    fn of_a_build_that_does_not_count_a_line_that_says_nothing_takes_no_living_ones_place() {
        let mut play = Play::new();
        play.write("a", true, vec![word(1, "i", 0, true)]);
        let first = play.write("b", true, vec![word(1, "i", 0, true)]).unwrap();
        // It left the first one, which has not noticed; everything is told anew, by that one last.
        let moved = play.write("b", true, vec![again(2, "i", 0)]).unwrap();
        assert!(moved.stream > first.stream && !moved.repeated);
        assert_eq!(play.write("a", true, vec![again(2, "i", 0)]), None);
        assert_eq!(play.0.line_of(&worker(), moved.stream), Some(("b", 2)));
        assert!(!play.0.gone("b")[0].1.connected, "that is no way back");
        let back = play.write("a", false, vec![word(3, "i", 0, true)]).unwrap();
        assert!(back.connected && !back.displaces, "but this is");
    }

    #[test]
    fn of_a_build_that_does_not_count_no_earlier_line_counts_again() {
        let mut play = Play::new();
        play.write("a", true, vec![word(1, "i", 0, true)]);
        play.write("b", true, vec![word(1, "i", 0, true)]);
        assert!(!play.0.gone("b")[0].1.connected);
        // To one that decides anew both are told, and the one that says something counts.
        let mut play = Play::new();
        play.write("b", true, vec![again(1, "i", 0)]);
        play.write("a", true, vec![again(1, "i", 0)]);
        let lives = play.write("b", false, vec![word(1, "i", 0, true)]).unwrap();
        assert_eq!(play.0.line_of(&worker(), lives.stream), Some(("b", 1)));
    }

    #[test]
    fn one_that_took_over_is_kept_aside_whichever_was_heard_first() {
        let heir = |connected| {
            let (worker, standing) = word(1, "heir", 1, connected);
            let takes_over = true;
            (
                worker,
                Standing {
                    takes_over,
                    ..standing
                },
            )
        };
        let mut play = Play::new();
        play.write("b", true, vec![heir(true)]);
        let older = play.write("a", true, vec![word(1, "older", 5, true)]);
        assert_eq!(older, None, "it is handing over");
        // The stream of the heir breaks; it may be alive, and is not what the older one was before it.
        let older = play.write("b", false, vec![heir(false)]).unwrap();
        assert_eq!(older.instance.as_str(), "older");
        assert!(older.displaces);
    }

    #[test]
    fn letters_that_come_twice_or_late_or_for_another_call_are_not_heard() {
        let mut play = Play::new();
        let letter = |number, connected| Letter {
            call: CALL,
            number,
            afresh: false,
            words: vec![word(1, "i", 1, connected)],
            questions: Vec::new(),
        };
        assert!(play.0.hear("a", letter(1, true)) != Heard::News(Vec::new()));
        assert!(play.0.hear("a", letter(2, false)) != Heard::News(Vec::new()));
        assert_eq!(play.0.hear("a", letter(1, true)), Heard::News(Vec::new()));
        let earlier = Letter {
            call: Call { term: 6, round: 9 },
            ..letter(3, true)
        };
        assert_eq!(play.0.hear("a", earlier), Heard::Uncalled);
    }

    #[test]
    fn who_is_not_told_of_anew_is_gone_and_so_are_those_of_one_that_is() {
        let mut play = Play::new();
        play.write("a", true, vec![word(1, "i", 1, true)]);
        assert!(!play.write("a", true, Vec::new()).unwrap().connected);
        play.write("a", false, vec![word(2, "i", 2, true)]);
        let gone = play.0.stay(&BTreeSet::from(["b".to_owned()]));
        assert!(!gone[0].1.connected);
        assert_eq!(play.0.stay(&BTreeSet::new()), []);
    }
}
