//! What of a source's answers is in use: a pure state machine. It knows no source, no pool and no clock; the time of an
//! answer is an argument.
//!
//! A server is *used*, *waits* (it came back once too often and has to calm down, or there is no room), or is neither.
//!
//! - What cannot be read is not told here: it changes nothing.
//! - An answer without any server is believed after `keep_empty` only; so one answer never takes away all, but where another
//!   one names others instead.
//! - A server that an answer lacks is gone at once; but where answers may be parts of the whole (DNS) and this one has news
//!   besides, it stays for a while and some more answers, since some servers give another part each time.
//! - One that comes back for the second time within some minutes waits, longer each time, unless nothing else is there.
//! - No more than `limits::TARGETS` are used; those in use stay, and what is lacking longest makes room.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use forebay_proto::{EndpointUrl, endpoint::ServerName, limits};

/// How long a server is used that an answer lacks which may be a part.
pub(super) const KEPT: Duration = Duration::from_secs(30);
/// And for as many answers that lack it, the first one included: what holds for longer than that time is asked for but once
/// within it.
const LACKED: u32 = 3;
/// A server that did not leave for this long is as good as a new one.
const CALM: Duration = Duration::from_secs(300);
/// The first time that one waits which came back too often; doubled each time.
const PAUSE: Duration = Duration::from_secs(1);
/// The longest.
const PAUSE_MOST: Duration = Duration::from_secs(60);
/// Of so many that left it is remembered.
const REMEMBERED: usize = 4 * limits::TARGETS;

/// A server, as its source names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Named {
    pub(crate) url: EndpointUrl,
    /// Its weight, in parts of one (`PARTS` of the pool).
    pub(crate) parts: u32,
    /// The lowest is used first.
    pub(crate) priority: u16,
    /// The name that its certificate must have, if that is not the url's host.
    pub(crate) server_name: Option<ServerName>,
}

/// What holds for one source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Rules {
    /// An answer may be a part of the whole.
    pub(super) partial: bool,
    /// How long servers serve on when there are none.
    pub(super) keep_empty: Duration,
}

#[derive(Debug)]
struct Used {
    named: Named,
    /// Answers lack it.
    missing: Option<Missing>,
}

#[derive(Debug, Clone, Copy)]
struct Missing {
    since: Duration,
    /// So many of them.
    answers: u32,
}

impl Missing {
    /// When it goes by itself; not before more answers have lacked it.
    fn until(self) -> Option<Duration> {
        (self.answers >= LACKED).then(|| self.since + KEPT)
    }
}

#[derive(Debug)]
struct Waits {
    named: Named,
    until: Duration,
}

/// A server that left.
#[derive(Debug)]
struct Left {
    at: Duration,
    returns: u32,
}

/// The servers of one source.
#[derive(Debug)]
pub(super) struct State {
    rules: Rules,
    used: BTreeMap<String, Used>,
    waiting: BTreeMap<String, Waits>,
    left: BTreeMap<String, Left>,
    /// What the last answer had that had any.
    answered: BTreeSet<String>,
    empty_since: Option<Duration>,
}

impl State {
    /// With what was used before.
    pub(super) fn new(rules: Rules, before: Vec<Named>) -> Self {
        let used = before.into_iter().take(limits::TARGETS).map(|named| {
            let used = Used {
                named,
                missing: None,
            };
            (used.named.url.to_string(), used)
        });
        Self {
            rules,
            used: used.collect(),
            waiting: BTreeMap::new(),
            left: BTreeMap::new(),
            answered: BTreeSet::new(),
            empty_since: None,
        }
    }

    /// The source answered. Of two that are at the same place the first counts.
    pub(super) fn answer(&mut self, now: Duration, servers: Vec<Named>) {
        let mut named = BTreeMap::new();
        for server in servers {
            named.entry(server.url.to_string()).or_insert(server);
        }
        if named.is_empty() {
            self.waiting.clear();
            self.empty_since.get_or_insert(now);
            return self.advance(now);
        }
        self.empty_since = None;
        self.take_leave(now, &named);
        self.waiting.retain(|key, _| named.contains_key(key));
        self.answered = named.keys().cloned().collect();
        for (key, named) in named {
            if let Some(used) = self.used.get_mut(&key) {
                (used.named, used.missing) = (named, None);
            } else if let Some(waits) = self.waiting.get_mut(&key) {
                waits.named = named;
            } else {
                let until = now + self.pause(now, &key);
                self.waiting.insert(key, Waits { named, until });
            }
        }
        self.advance(now);
    }

    /// Those that an answer lacks.
    fn take_leave(&mut self, now: Duration, named: &BTreeMap<String, Named>) {
        let only_lacks = named.keys().all(|key| self.answered.contains(key));
        let others_alone = !named.keys().any(|key| self.used.contains_key(key));
        let lacks = self.used.keys().filter(|key| !named.contains_key(*key));
        for key in lacks.cloned().collect::<Vec<_>>() {
            // What the one before lacked, too, may be in another part: that the same part comes again says nothing of it.
            let shrank = only_lacks && self.answered.contains(&key);
            if !self.rules.partial || shrank || others_alone {
                self.remove(now, &key);
            } else if let Some(used) = self.used.get_mut(&key) {
                let first = Missing {
                    since: now,
                    answers: 0,
                };
                let missing = used.missing.get_or_insert(first);
                missing.answers = missing.answers.saturating_add(1);
            }
        }
    }

    fn remove(&mut self, now: Duration, key: &str) {
        if self.used.remove(key).is_none() {
            return;
        }
        if self.left.len() >= REMEMBERED {
            let oldest = self.left.iter().min_by_key(|(_, left)| left.at);
            if let Some(oldest) = oldest.map(|(key, _)| key.clone()) {
                self.left.remove(&oldest);
            }
        }
        let left = self.left.entry(key.to_owned());
        left.or_insert(Left {
            at: now,
            returns: 0,
        })
        .at = now;
    }

    /// How long one that comes has to wait.
    fn pause(&mut self, now: Duration, key: &str) -> Duration {
        let recent = |left: &&mut Left| now.saturating_sub(left.at) < CALM;
        let Some(left) = self.left.get_mut(key).filter(recent) else {
            return Duration::ZERO;
        };
        left.returns = left.returns.saturating_add(1);
        match left.returns.checked_sub(2) {
            None => Duration::ZERO,
            Some(times) => PAUSE.saturating_mul(1 << times.min(16)).min(PAUSE_MOST),
        }
    }

    /// Time went by.
    pub(super) fn advance(&mut self, now: Duration) {
        self.left.retain(|key, left| {
            let waits = self.waiting.contains_key(key);
            waits || now.saturating_sub(left.at) < CALM
        });
        let over = |since: Duration, time: Duration| now.saturating_sub(since) >= time;
        if self
            .empty_since
            .is_some_and(|since| over(since, self.rules.keep_empty))
        {
            self.used.clear();
        }
        let gone = self.used.iter();
        let due = |used: &Used| used.missing.and_then(Missing::until);
        let gone = gone.filter(|(_, used)| due(used).is_some_and(|until| until <= now));
        for key in gone.map(|(key, _)| key.clone()).collect::<Vec<_>>() {
            self.remove(now, &key);
        }
        let alone = self.used.is_empty();
        let due = self
            .waiting
            .iter()
            .filter(|(_, waits)| alone || waits.until <= now);
        for key in due.map(|(key, _)| key.clone()).collect::<Vec<_>>() {
            if !self.make_room(now) {
                return;
            }
            if let Some(waits) = self.waiting.remove(&key) {
                let used = Used {
                    named: waits.named,
                    missing: None,
                };
                self.used.insert(key, used);
            }
        }
    }

    /// True if there is room for one more.
    fn make_room(&mut self, now: Duration) -> bool {
        if self.used.len() < limits::TARGETS {
            return true;
        }
        let missing = self.used.iter();
        let missing = missing.filter_map(|(key, used)| Some((used.missing?.since, key.clone())));
        let Some((_, key)) = missing.min() else {
            return false;
        };
        self.remove(now, &key);
        true
    }

    /// When something changes by itself.
    pub(super) fn next(&self, now: Duration) -> Option<Duration> {
        let waiting = self.waiting.values().map(|waits| waits.until);
        // What is due already waits for room.
        let waiting = waiting.filter(|until| *until > now);
        let missing = self.used.values().filter_map(|used| used.missing?.until());
        let empty = self.empty_since.filter(|_| !self.used.is_empty());
        let empty = empty.map(|since| since + self.rules.keep_empty);
        waiting.chain(missing).chain(empty).min()
    }

    /// Those in use, in order of place.
    pub(super) fn used(&self) -> Vec<Named> {
        let used = self.used.values().map(|used| used.named.clone());
        used.collect()
    }

    /// The source says that there are none, and those that were there serve on.
    pub(super) fn is_kept_alive(&self) -> bool {
        self.empty_since.is_some() && !self.used.is_empty()
    }

    /// Those that came back too often, and those for which there is no room.
    pub(super) fn waiting(&self, now: Duration) -> (usize, usize) {
        let due = |waits: &&Waits| waits.until <= now;
        let no_room = self.waiting.values().filter(due).count();
        (self.waiting.len() - no_room, no_room)
    }
}

#[cfg(test)]
#[path = "state_tests.rs"]
mod tests;
