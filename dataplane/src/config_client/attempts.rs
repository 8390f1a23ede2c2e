//! Which configurations ended the process: what is tried, what crashed how often, what is in quarantine. Pure, and its
//! form on disk, which is text, so that it can be read and removed by hand.
//!
//! ```text
//!   free ──tried──▶ trying ──good──▶ free
//!                     │ the process ends without a word
//!                     ▼
//!              crashed once ──tried──▶ trying ──good──▶ free
//!                                        │ the process ends again
//!                                        ▼
//!                                   quarantined
//! ```
//!
//! It is by digest: the same content is the same under another number. What is not remembered is free; at most
//! [`MOST`] are remembered, and those in quarantine longest.

use forebay_proto::{Digest, Epoch, Position, Revision, limits};

/// Most digests remembered.
const MOST: usize = limits::QUARANTINED;
/// Crashes that put one in quarantine.
const TWICE: u32 = 2;
/// More is not counted.
const COUNTED: u32 = 1_000;
const HEAD: &str = "forebay attempts 1";

/// What is known of configurations that are not known to be good.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Attempts {
    trying: Option<Position>,
    /// The longest known first.
    known: Vec<Tried>,
}

/// One that was tried.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Tried {
    pub(super) position: Position,
    pub(super) crashes: u32,
}

impl Tried {
    pub(super) fn is_quarantined(&self) -> bool {
        self.crashes >= TWICE
    }
}

impl Attempts {
    /// The process begins. What was tried when the last one ended ended it.
    pub(super) fn begin(&mut self) -> Option<Tried> {
        let position = self.trying.take()?;
        self.remember(&position, 1);
        self.find(&position.digest).cloned()
    }

    /// This is tried now, or nothing. True if that is a change.
    pub(super) fn set_trying(&mut self, position: Option<&Position>) -> bool {
        let change = self.trying.as_ref() != position;
        self.trying = position.cloned();
        change
    }

    /// It is in force at an end in good order, and not known to be good: it is on trial after the next start.
    pub(super) fn put_on_trial(&mut self, position: &Position) {
        self.remember(position, 0);
    }

    /// It is good.
    pub(super) fn set_good(&mut self, digest: &Digest) {
        self.known.retain(|tried| tried.position.digest != *digest);
        self.trying.take_if(|trying| trying.digest == *digest);
    }

    /// It was tried before and is not known to be good.
    pub(super) fn is_on_trial(&self, digest: &Digest) -> bool {
        self.find(digest).is_some()
    }

    /// Those that are not to be tried again.
    pub(super) fn quarantined(&self) -> Vec<Position> {
        let quarantined = self.known.iter().filter(|tried| tried.is_quarantined());
        quarantined.map(|tried| tried.position.clone()).collect()
    }

    fn find(&self, digest: &Digest) -> Option<&Tried> {
        self.known
            .iter()
            .find(|tried| tried.position.digest == *digest)
    }

    fn remember(&mut self, position: &Position, crashes: u32) {
        let same = |tried: &&mut Tried| tried.position.digest == position.digest;
        match self.known.iter_mut().find(same) {
            Some(tried) => tried.crashes = tried.crashes.saturating_add(crashes).min(COUNTED),
            None => self.known.push(Tried {
                position: position.clone(),
                crashes,
            }),
        }
        if self.known.len() > MOST {
            let last = self.known.len() - 1;
            let free = self
                .known
                .iter()
                .take(last)
                .position(|tried| !tried.is_quarantined());
            self.known.remove(free.unwrap_or(0));
        }
    }

    /// Its form on disk.
    pub(super) fn text(&self) -> String {
        let mut lines = vec![HEAD.to_owned()];
        let position = |p: &Position| format!("{} {} {}", p.epoch, p.revision, p.digest);
        lines.extend(
            self.trying
                .iter()
                .map(|p| format!("trying {}", position(p))),
        );
        let known = self.known.iter();
        lines.extend(known.map(|tried| {
            let (crashes, position) = (tried.crashes, position(&tried.position));
            format!("crashed {crashes} {position}")
        }));
        lines.join("\n") + "\n"
    }

    /// Reads it. What is not understood is as if it were not there: at worst something is tried once more.
    pub(super) fn parse(text: &str) -> Self {
        let mut lines = text.lines();
        let mut attempts = Self::default();
        if lines.next() != Some(HEAD) {
            return attempts;
        }
        for line in lines.take(MOST + 1) {
            let words: Vec<&str> = line.split_whitespace().collect();
            match words.as_slice() {
                ["trying", rest @ ..] => attempts.trying = position(rest),
                ["crashed", crashes, rest @ ..] => {
                    if let (Ok(crashes), Some(position)) = (crashes.parse(), position(rest)) {
                        attempts.remember(&position, crashes);
                    }
                }
                _ => {}
            }
        }
        attempts
    }
}

fn position(words: &[&str]) -> Option<Position> {
    let [epoch, revision, digest] = words else {
        return None;
    };
    Some(Position {
        epoch: Epoch::new(*epoch).ok()?,
        revision: Revision::new(revision.parse().ok()?),
        digest: Digest::from_hex(digest).ok()?,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn at(revision: u64) -> Position {
        Position {
            epoch: Epoch::new("ab").unwrap(),
            revision: Revision::new(revision),
            digest: Digest::of(&revision.to_be_bytes()),
        }
    }

    /// Starts, tries this, and ends without a word.
    fn crash(attempts: &mut Attempts, revision: u64) {
        attempts.set_trying(Some(&at(revision)));
        *attempts = Attempts::parse(&attempts.text());
        attempts.begin();
    }

    #[test]
    fn what_ends_the_process_twice_is_quarantined_by_its_digest() {
        let mut attempts = Attempts::default();
        assert_eq!(attempts.begin(), None);
        crash(&mut attempts, 7);
        assert_eq!(attempts.quarantined(), []);
        assert!(attempts.is_on_trial(&at(7).digest));
        crash(&mut attempts, 8);
        crash(&mut attempts, 7);
        assert_eq!(attempts.quarantined(), [at(7)]);
        assert_eq!(attempts.begin(), None, "it is counted once");
    }

    #[test]
    fn what_turned_out_good_is_free_again() {
        let mut attempts = Attempts::default();
        crash(&mut attempts, 7);
        attempts.set_trying(Some(&at(7)));
        attempts.set_good(&at(7).digest);
        assert_eq!(attempts, Attempts::default());
        crash(&mut attempts, 7);
        assert_eq!(attempts.quarantined(), []);
    }

    #[test]
    fn an_end_in_good_order_is_no_crash() {
        let mut attempts = Attempts::default();
        for _ in 0..5 {
            attempts.set_trying(Some(&at(7)));
            attempts.set_trying(None);
            attempts.put_on_trial(&at(7));
            attempts = Attempts::parse(&attempts.text());
            assert_eq!(attempts.begin(), None);
        }
        assert!(attempts.is_on_trial(&at(7).digest));
        assert_eq!(attempts.quarantined(), []);
    }

    #[test]
    fn what_is_in_quarantine_stays_longest() {
        let mut attempts = Attempts::default();
        crash(&mut attempts, 1);
        crash(&mut attempts, 1);
        for revision in 2..40 {
            crash(&mut attempts, revision);
        }
        assert_eq!(attempts.known.len(), MOST);
        assert_eq!(attempts.quarantined(), [at(1)]);
        for revision in 50..70 {
            crash(&mut attempts, revision);
            crash(&mut attempts, revision);
        }
        assert_eq!(attempts.quarantined().len(), MOST);
        assert!(attempts.is_on_trial(&at(69).digest), "the newest is in");
        assert!(!attempts.is_on_trial(&at(1).digest));
    }

    proptest! {
        #[test]
        fn it_is_read_as_it_was_written(trying: Option<u64>, crashed in proptest::collection::vec((0..20_u64, 0..4_u32), 0..12)) {
            let mut attempts = Attempts::default();
            for (revision, crashes) in crashed {
                attempts.remember(&at(revision), crashes);
            }
            attempts.set_trying(trying.map(at).as_ref());
            prop_assert_eq!(Attempts::parse(&attempts.text()), attempts);
        }

        #[test]
        fn nothing_on_disk_is_taken_amiss(text in ".{0,200}", head: bool) {
            let text = if head { format!("{HEAD}\n{text}") } else { text };
            let attempts = Attempts::parse(&text);
            prop_assert!(attempts.known.len() <= MOST);
        }
    }
}
