//! What this worker may use of fleet-wide limits, as it was told: numbers and times. Pure: the time is an argument.
//!
//! A grant holds for its time to live from when the worker *made* the report that it answers: the control plane counts
//! from when it sent the grant, which is later, so that it never takes for free what is still used here, however long
//! either was on its way. A grant that answers nothing known, or comes after a newer one, is not looked at.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use forebay_proto::ModelId;

/// Reports whose time is remembered; older ones are answered by nobody any more.
const REMEMBERED: usize = 64;

/// What is lent of one limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Lent {
    /// Most requests in flight.
    pub size: u32,
    /// The same when it has run out.
    pub floor: u32,
}

/// What the control plane says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    /// Grows.
    pub number: u64,
    /// The report that it answers.
    pub answers: u64,
    /// How long it holds, from when that was made.
    pub ttl: Duration,
    /// How long what runs beyond the floor goes on after that.
    pub linger: Duration,
    /// Of each limit. What is not named is nothing.
    pub shares: BTreeMap<ModelId, Lent>,
}

/// What became of a grant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Taken {
    /// It is in force, and says something else than the one before.
    Changed,
    /// It is in force, and only its time is another.
    Renewed,
    /// It is too old, or answers nothing that was asked.
    Stale,
}

/// What is planted in a test, to see that it is found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct BookFaults {
    /// The time of a grant is counted from when it came.
    pub counts_from_receipt: bool,
    /// Grants are taken in whatever order they come.
    pub takes_old_grants: bool,
}

/// The book.
#[derive(Debug, Clone, Default)]
pub struct Book {
    shares: BTreeMap<ModelId, Lent>,
    until: Duration,
    end: Duration,
    /// The newest grant of the stream.
    grant: u64,
    reports: u64,
    /// When reports of the stream were made, the oldest first.
    made: VecDeque<(u64, Duration)>,
    /// See there.
    pub faults: BookFaults,
}

impl Book {
    /// A stream begins: its numbers begin anew. What is held is held.
    pub fn begin(&mut self) {
        self.grant = 0;
        self.reports = 0;
        self.made.clear();
    }

    /// A report is made now: its number, and the grant that it goes by.
    pub fn report(&mut self, now: Duration) -> (u64, u64) {
        self.reports += 1;
        self.made.push_back((self.reports, now));
        if self.made.len() > REMEMBERED {
            self.made.pop_front();
        }
        (self.reports, self.grant)
    }

    /// Takes a grant that came now.
    pub fn take(&mut self, now: Duration, grant: Grant) -> Taken {
        let mut made = self.made.iter();
        let made = made.find_map(|(number, at)| (*number == grant.answers).then_some(*at));
        let Some(made) = made else {
            return Taken::Stale;
        };
        if grant.number <= self.grant && !self.faults.takes_old_grants {
            return Taken::Stale;
        }
        let from = match self.faults.counts_from_receipt {
            true => now,
            false => made,
        };
        self.grant = grant.number;
        self.until = from.saturating_add(grant.ttl);
        self.end = self.until.saturating_add(grant.linger);
        let same = self.shares == grant.shares;
        self.shares = grant.shares;
        match same {
            true => Taken::Renewed,
            false => Taken::Changed,
        }
    }

    /// What another process of this worker was lent is this one's as well, until that time.
    pub fn inherit(&mut self, model: &ModelId, lent: Lent, (until, linger): (Duration, Duration)) {
        // Of both times the earlier one holds.
        self.until = match self.shares.values().any(|own| own.size > 0) {
            true => self.until.min(until),
            false => until,
        };
        self.end = self.until.saturating_add(linger);
        let own = self.shares.entry(model.clone()).or_default();
        own.size = own.size.saturating_add(lent.size);
        own.floor = own.floor.saturating_add(lent.floor);
    }

    /// Gives everything back.
    pub fn drop_all(&mut self) {
        self.shares.clear();
    }

    /// What is lent of a limit, and whatever became of its time.
    #[must_use]
    pub fn lent(&self, model: &ModelId) -> Option<Lent> {
        self.shares.get(model).map(|lent| Lent {
            floor: lent.floor.min(lent.size),
            ..*lent
        })
    }

    /// The same, when its time is looked at.
    #[must_use]
    pub fn size_at(&self, now: Duration, model: &ModelId) -> u32 {
        let lent = self.lent(model).unwrap_or_default();
        match now < self.until {
            true => lent.size,
            false => lent.floor,
        }
    }

    /// When what is lent runs out.
    #[must_use]
    pub fn until(&self) -> Duration {
        self.until
    }

    /// When what runs beyond the floors is ended.
    #[must_use]
    pub fn end(&self) -> Duration {
        self.end
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id() -> ModelId {
        ModelId::new("m").unwrap()
    }

    fn secs(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    fn grant(number: u64, answers: u64, size: u32) -> Grant {
        Grant {
            number,
            answers,
            ttl: secs(10),
            linger: secs(60),
            shares: BTreeMap::from([(id(), Lent { size, floor: 1 })]),
        }
    }

    #[test]
    fn time_counts_from_the_report_and_not_from_the_answer() {
        let mut book = Book::default();
        assert_eq!(book.report(secs(1)), (1, 0));
        assert_eq!(book.take(secs(9), grant(1, 1, 24)), Taken::Changed);
        assert_eq!((book.until(), book.end()), (secs(11), secs(71)));
        assert_eq!(book.size_at(secs(10), &id()), 24);
        assert_eq!(book.size_at(secs(11), &id()), 1, "the floor is left");
        assert_eq!(book.report(secs(3)), (2, 1));
        assert_eq!(book.take(secs(12), grant(2, 2, 24)), Taken::Renewed);
        assert_eq!(book.size_at(secs(12), &id()), 24);
    }

    #[test]
    fn what_is_old_or_unasked_for_is_not_taken() {
        let mut book = Book::default();
        assert_eq!(book.take(secs(0), grant(1, 1, 9)), Taken::Stale);
        book.report(secs(1));
        assert_eq!(book.take(secs(1), grant(2, 1, 9)), Taken::Changed);
        assert_eq!(book.take(secs(1), grant(1, 1, 50)), Taken::Stale);
        assert_eq!(book.take(secs(1), grant(2, 1, 50)), Taken::Stale);
        book.begin();
        assert_eq!(book.take(secs(1), grant(3, 1, 50)), Taken::Stale);
        assert_eq!(book.size_at(secs(1), &id()), 9, "what is held is held");
        for n in 0..100 {
            book.report(secs(n));
        }
        assert_eq!(book.take(secs(101), grant(1, 3, 50)), Taken::Stale);
        assert_eq!(book.take(secs(101), grant(1, 99, 8)), Taken::Changed);
    }

    #[test]
    fn what_is_inherited_adds_up_and_the_earlier_time_holds() {
        let mut book = Book::default();
        let lent = Lent { size: 20, floor: 1 };
        book.inherit(&id(), lent, (secs(5), secs(2)));
        assert_eq!((book.size_at(secs(4), &id()), book.until()), (20, secs(5)));
        assert_eq!((book.size_at(secs(5), &id()), book.end()), (1, secs(7)));
        book.report(secs(2));
        book.take(secs(2), grant(1, 1, 4));
        book.inherit(&id(), lent, (secs(9), secs(2)));
        assert_eq!((book.size_at(secs(8), &id()), book.until()), (24, secs(9)));
        book.inherit(&id(), lent, (secs(50), secs(2)));
        assert_eq!(book.until(), secs(9));
    }

    #[test]
    fn a_floor_is_never_more_than_what_is_lent() {
        let mut book = Book::default();
        book.report(secs(0));
        assert_eq!(book.take(secs(0), grant(1, 1, 0)), Taken::Changed);
        assert_eq!(book.size_at(secs(99), &id()), 0);
        assert_eq!(book.lent(&ModelId::new("other").unwrap()), None);
        book.drop_all();
        assert_eq!(book.lent(&id()), None);
    }
}
