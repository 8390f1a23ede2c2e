//! One control plane's own workers, as it tells whoever decides of them, and what it hands on to them. Pure.
//!
//! ```text
//!   stream opens ──▶ line ──told──▶ grants of that line are handed on ──stream ends, told──▶ gone
//!                      ▲                        │
//!                      └── another call, or what was told is gone: all lines anew
//! ```
//!
//! A line is a stream under one call: under another one the same stream is another line. What was lent to a line that is
//! no more is not handed on, so whoever decides now need know nothing of what others lent: all of it that may still reach
//! the worker was handed on before, and is in what is told of it. Invariant: of each limit the size and the floor that are
//! told are at least those of each grant that was handed on and is not confirmed.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use forebay_proto::{ModelId, WorkerId};

use super::letters::{Call, LETTER_BYTES, Lent, Letter, size_of};
use crate::leases::words::{Grant, Report, Share, Standing};

/// Grants that were handed on and not confirmed, told apart; of more, the oldest count as one.
const UNCONFIRMED: usize = 16;
/// Most questions that are not asked yet, and their bytes: they go with what there is to tell.
const QUESTIONS: usize = 16;
const QUESTION_BYTES: usize = 512 << 10;

/// What is planted in a test, to see that it is found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct OwnFaults {
    /// Tells what a worker said, without what it was handed since.
    pub forgets_handed: bool,
    /// Hands on whatever comes.
    pub hands_on_all: bool,
}

/// One's own workers.
#[derive(Debug, Default)]
pub struct Own {
    call: Call,
    lines: BTreeMap<WorkerId, Line>,
    /// The newest line, and the newest letter.
    line: u64,
    letter: u64,
    /// The next letter begins anew.
    afresh: bool,
    changed: BTreeSet<WorkerId>,
    questions: Vec<(u64, Vec<u8>)>,
    /// See there.
    pub faults: OwnFaults,
}

#[derive(Debug)]
struct Line {
    number: u64,
    standing: Standing,
    /// Whoever decides may know of it.
    told: bool,
    /// The worker has said nothing since it began.
    repeats: bool,
    /// The number of the last grant of the stream that was handed on, and the same when the line began.
    last: u64,
    base: u64,
    handed: VecDeque<(u64, BTreeMap<ModelId, Share>)>,
}

impl Own {
    /// How a worker of this control plane stands.
    pub fn report(&mut self, worker: &WorkerId, standing: Standing) {
        let known = self.lines.get(worker).map(|line| line.standing.stream);
        if known.is_some_and(|known| known > standing.stream) {
            return;
        }
        if known != Some(standing.stream) {
            if !standing.connected {
                return;
            }
            self.line += 1;
            let line = Line {
                number: self.line,
                standing,
                told: false,
                repeats: false,
                last: 0,
                base: 0,
                handed: VecDeque::new(),
            };
            self.lines.insert(worker.clone(), line);
        } else if let Some(line) = self.lines.get_mut(worker) {
            let confirmed = standing.report.as_ref().map_or(0, |report| report.grant);
            line.handed.retain(|(number, _)| *number > confirmed);
            let number = |standing: &Standing| standing.report.as_ref().map(|report| report.number);
            line.repeats &= number(&line.standing) >= number(&standing);
            line.standing = standing;
            // Nobody heard of it: nobody need hear that it is gone.
            if !line.standing.connected && !line.told {
                self.lines.remove(worker);
                self.changed.remove(worker);
                return;
            }
        }
        self.changed.insert(worker.clone());
    }

    /// Somebody decides, and asks for everything anew. False if that is not new.
    pub fn call(&mut self, call: Call) -> bool {
        let new = call > self.call;
        if new {
            self.call = call;
            self.again();
        }
        new
    }

    /// What was told is gone: everything is told anew.
    pub fn again(&mut self) {
        self.afresh = true;
        self.lines.retain(|_, line| line.standing.connected);
        for line in self.lines.values_mut() {
            self.line += 1;
            (line.number, line.base, line.told) = (self.line, line.last, false);
            line.repeats = true;
        }
        self.changed = self.lines.keys().cloned().collect();
    }

    /// What is to be told now, if anything is; as much as a letter takes.
    pub fn letter(&mut self) -> Option<Letter> {
        // Nobody decides, or what is told is for nobody.
        if self.call == Call::default() || self.is_quiet() {
            return None;
        }
        let mut words = Vec::new();
        let asked = self.questions.iter().map(|(_, question)| question.len());
        let mut bytes: usize = asked.sum();
        while let Some(worker) = self.changed.first() {
            let Some(line) = self.lines.get_mut(worker) else {
                self.changed.pop_first();
                continue;
            };
            let standing = line.as_told(self.faults);
            bytes += size_of(worker, &standing);
            if bytes > LETTER_BYTES && !words.is_empty() {
                break;
            }
            line.told = true;
            words.push((worker.clone(), standing));
            self.changed.pop_first();
        }
        self.letter += 1;
        Some(Letter {
            call: self.call,
            number: self.letter,
            afresh: std::mem::take(&mut self.afresh),
            words,
            questions: std::mem::take(&mut self.questions),
        })
    }

    /// It was told, for certain.
    pub fn sent(&mut self, letter: &Letter) {
        for (worker, standing) in &letter.words {
            let line = self.lines.get(worker);
            let over = line.is_some_and(|line| line.number == standing.stream);
            if over && !standing.connected {
                self.lines.remove(worker);
            }
        }
    }

    /// It was perhaps not told: it is to be told again. Questions are not: whoever asked does not wait for so long, and
    /// what is to be forgotten must not be forgotten later than asked.
    pub fn unsent(&mut self, letter: Letter) {
        if letter.call == self.call {
            self.afresh |= letter.afresh;
        }
        let words = letter.words.into_iter().map(|(worker, _)| worker);
        let there = words.filter(|worker| self.lines.contains_key(worker));
        self.changed.extend(there);
    }

    /// What is lent to a worker, as its stream is to be told; nothing if that is not for a line that there is.
    pub fn hand_on(&mut self, lent: &Lent) -> Option<Grant> {
        let line = self.lines.get_mut(&lent.worker)?;
        let of_this_line = lent.grant.stream == line.number || self.faults.hands_on_all;
        let number = line.base.saturating_add(lent.grant.number);
        if !of_this_line || number <= line.last || !line.standing.connected {
            return None;
        }
        line.last = number;
        line.handed.push_back((number, lent.grant.shares.clone()));
        line.fold();
        Some(Grant {
            stream: line.standing.stream,
            number,
            ..(*lent.grant).clone()
        })
    }

    /// Whether the last letter was full: what is left need not wait.
    pub(super) fn is_cut_short(&self) -> bool {
        !self.changed.is_empty()
    }

    /// Whether there is nothing to tell.
    pub(super) fn is_quiet(&self) -> bool {
        self.changed.is_empty() && !self.afresh && self.questions.is_empty()
    }

    /// This is to be asked. False if too much is asked already.
    pub(super) fn ask(&mut self, number: u64, question: Vec<u8>) -> bool {
        let asked = self.questions.iter().map(|(_, question)| question.len());
        let bytes = asked.sum::<usize>() + question.len();
        let room = self.questions.len() < QUESTIONS && bytes <= QUESTION_BYTES;
        if room {
            self.questions.push((number, question));
        }
        room
    }
}

impl Line {
    fn fold(&mut self) {
        if self.handed.len() <= UNCONFIRMED {
            return;
        }
        let Some((_, oldest)) = self.handed.pop_front() else {
            return;
        };
        if let Some((_, next)) = self.handed.front_mut() {
            for (model, share) in oldest {
                let known = next.entry(model).or_default();
                known.size = known.size.max(share.size);
                known.floor = known.floor.max(share.floor);
            }
        }
    }

    /// By the numbers of the line, and with what may come into force since the worker said so.
    fn as_told(&self, faults: OwnFaults) -> Standing {
        let report = self.standing.report.as_ref().map(|said| {
            let mut report = Report {
                grant: said.grant.saturating_sub(self.base),
                ..said.clone()
            };
            let handed = self.handed.iter().filter(|(n, _)| *n > said.grant);
            for (_, shares) in handed.filter(|_| !faults.forgets_handed) {
                for (model, used) in &mut report.uses {
                    let share = shares.get(model).copied().unwrap_or_default();
                    used.size = used.size.max(share.size);
                    used.floor = used.floor.max(share.floor);
                }
            }
            report
        });
        Standing {
            stream: self.number,
            repeated: self.repeats && report.is_some(),
            report,
            ..self.standing.clone()
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, time::Duration};

    use forebay_proto::InstanceId;

    use super::*;
    use crate::leases::words::Use;

    fn model() -> ModelId {
        ModelId::new("m").unwrap()
    }

    fn worker() -> WorkerId {
        WorkerId::new("w").unwrap()
    }

    fn standing(stream: u64, connected: bool, report: Option<(u64, u64, u32)>) -> Standing {
        let report = report.map(|(number, grant, size)| Report {
            number,
            grant,
            uses: BTreeMap::from([(
                model(),
                Use {
                    size,
                    ..Use::default()
                },
            )]),
            ..Report::default()
        });
        Standing {
            stream,
            instance: InstanceId::new("i").unwrap(),
            takes_over: false,
            count: 1,
            displaces: false,
            repeated: false,
            knows: true,
            connected,
            report,
        }
    }

    fn lent(line: u64, number: u64, size: u32) -> Lent {
        let grant = Grant {
            stream: line,
            number,
            answers: 1,
            ttl: Duration::from_secs(1),
            linger: Duration::from_secs(1),
            shares: BTreeMap::from([(model(), Share { size, floor: 1 })]),
        };
        Lent {
            worker: worker(),
            grant: Arc::new(grant),
        }
    }

    fn told(own: &mut Own) -> Letter {
        let letter = own.letter().unwrap();
        own.sent(&letter);
        letter
    }

    fn use_in(letter: &Letter) -> (u64, u32) {
        let report = letter.words[0].1.report.as_ref().unwrap();
        (report.grant, report.uses[&model()].size)
    }

    #[test]
    fn nothing_is_told_before_somebody_asks_and_then_everything() {
        let mut own = Own::default();
        own.report(&worker(), standing(1, true, Some((1, 0, 0))));
        assert_eq!(own.letter(), None);
        assert!(own.call(Call { term: 5, round: 1 }));
        assert!(!own.call(Call { term: 4, round: 9 }), "that is older");
        let letter = told(&mut own);
        assert!(letter.afresh && letter.words.len() == 1);
        assert_eq!(own.letter(), None);
        own.report(&worker(), standing(1, true, Some((2, 0, 0))));
        let letter = told(&mut own);
        assert!(!letter.afresh && letter.number == 2);
        own.report(&worker(), standing(1, false, Some((2, 0, 0))));
        assert!(!told(&mut own).words[0].1.connected);
        assert_eq!((own.lines.len(), own.letter()), (0, None));
    }

    #[test]
    fn what_was_not_told_is_told_again_and_begins_anew_if_it_was_to() {
        let mut own = Own::default();
        own.call(Call { term: 5, round: 1 });
        own.report(&worker(), standing(1, true, None));
        let lost = own.letter().unwrap();
        own.report(&worker(), standing(1, false, None));
        own.unsent(lost);
        let letter = told(&mut own);
        assert!(letter.afresh, "the first one may not have come");
        assert!(!letter.words[0].1.connected, "it may have come");
        let lost = own.letter();
        assert_eq!(lost, None);
    }

    #[test]
    fn under_another_call_old_grants_are_not_handed_on_and_those_that_were_count() {
        let mut own = Own::default();
        own.call(Call { term: 5, round: 1 });
        own.report(&worker(), standing(9, true, Some((1, 0, 3))));
        let line = told(&mut own).words[0].1.stream;
        let handed = own.hand_on(&lent(line, 1, 20)).unwrap();
        assert_eq!((handed.stream, handed.number), (9, 1));
        assert_eq!(own.hand_on(&lent(line, 1, 20)), None, "once");
        own.call(Call { term: 6, round: 1 });
        assert_eq!(own.hand_on(&lent(line, 2, 50)), None);
        let letter = told(&mut own);
        assert_eq!(use_in(&letter), (0, 20), "it may come into force");
        let line = letter.words[0].1.stream;
        let handed = own.hand_on(&lent(line, 1, 7)).unwrap();
        assert_eq!(handed.number, 2, "the worker takes no older one");
        own.report(&worker(), standing(9, true, Some((2, 1, 20))));
        assert_eq!(use_in(&told(&mut own)), (0, 20));
        own.report(&worker(), standing(9, true, Some((3, 2, 7))));
        assert_eq!(use_in(&told(&mut own)), (1, 7));
    }

    #[test]
    fn what_was_said_before_a_call_is_told_as_that() {
        let mut own = Own::default();
        own.call(Call { term: 5, round: 1 });
        own.report(&worker(), standing(1, true, Some((1, 0, 0))));
        assert!(!told(&mut own).words[0].1.repeated);
        own.call(Call { term: 6, round: 1 });
        assert!(told(&mut own).words[0].1.repeated);
        own.report(&worker(), standing(1, true, Some((1, 0, 0))));
        assert!(told(&mut own).words[0].1.repeated, "it is the same");
        own.report(&worker(), standing(1, true, Some((2, 0, 0))));
        assert!(!told(&mut own).words[0].1.repeated);
    }

    #[test]
    fn a_letter_with_all_that_it_may_have_is_one_that_etcd_takes() {
        let mut own = Own::default();
        own.call(Call { term: 5, round: 1 });
        while own.ask(1, vec![b'w'; 100 << 10]) {}
        let long = |n: usize| ModelId::new(format!("{n:0>128}")).unwrap();
        let uses = (0..500).map(|n| (long(n), Use::default()));
        for n in 0..3 {
            let mut standing = standing(1, true, Some((1, 0, 0)));
            let report = standing.report.as_mut().unwrap();
            report.uses = uses.clone().collect();
            report.own = (0..500).map(|n| (long(n), 1)).collect();
            own.report(&WorkerId::new(format!("w{n}")).unwrap(), standing);
        }
        let letter = own.letter().unwrap();
        assert!(letter.questions.len() > 1 && !letter.words.is_empty());
        let bytes = letter.encode().len();
        assert!(bytes < 1 << 20, "{bytes}");
    }

    #[test]
    fn an_older_stream_says_nothing_of_a_newer_one() {
        let mut own = Own::default();
        own.call(Call { term: 5, round: 1 });
        own.report(&worker(), standing(1, true, None));
        let first = told(&mut own).words[0].1.stream;
        own.report(&worker(), standing(2, true, None));
        own.report(&worker(), standing(1, false, None));
        let letter = told(&mut own);
        assert!(letter.words[0].1.connected && letter.words[0].1.stream > first);
        assert_eq!(own.hand_on(&lent(first, 1, 5)), None);
    }

    #[test]
    fn what_is_not_confirmed_is_bounded_and_never_less() {
        let mut own = Own::default();
        own.call(Call { term: 5, round: 1 });
        own.report(&worker(), standing(1, true, Some((1, 0, 1))));
        let line = told(&mut own).words[0].1.stream;
        for n in 1..100 {
            own.hand_on(&lent(line, n, if n == 1 { 90 } else { 2 }))
                .unwrap();
        }
        assert_eq!(own.lines[&worker()].handed.len(), UNCONFIRMED);
        own.call(Call { term: 6, round: 1 });
        assert_eq!(use_in(&told(&mut own)), (0, 90));
    }
}
