//! Which control plane is next. Pure: what is listed, what became of streams and the time go in; a choice, a pause or a
//! verdict comes out. Chance comes from dice that are handed in.
//!
//! Of those that may be tried one is drawn, each as likely as the others, so that a fleet spreads. One that failed is
//! left alone for a while as long as there are others; if all failed, the one that was left longest ago is next, and one
//! that did not want us after all others, for the pauses alone (`backoff.rs`) bound how often anything is tried. So nothing
//! here ever waits while one may be up.
//!
//! A name may answer in parts, each time with some of its addresses: one that an answer leaves out counts as listed for a
//! while, but those that were named are tried first.
//!
//! ```text
//!   listed ──drawn──▶ followed ──ended: well──▶ listed
//!      ▲                  └──────ended: failed──▶ resting ──time──▶ listed
//!      └── list ── unlisted (moved away from, in good time)
//! ```

use std::{
    collections::BTreeMap,
    fmt,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use forebay_proto::Epoch;
use http::Uri;
use tokio::time::Instant;

use super::backoff::{Backoff, Class, HEALTHY};

/// Most control planes that are known at a time; further ones are left out.
const MOST: usize = 256;
/// How long one that failed is left alone while there are others: about this, doubling.
const REST_FIRST: Duration = Duration::from_secs(1);
const REST_MOST: Duration = Duration::from_secs(5);
/// The same for one that could not be looked at, by one that has no need of it.
const REST_UNSEEN: Duration = Duration::from_secs(30);
/// The same for one that does not want us, or that we must not follow.
const REST_REFUSED: Duration = Duration::from_secs(60);
/// The same for one that stops: it is not back before.
const REST_STOPPING: Duration = Duration::from_secs(5);
/// How long an address is kept after its name last had it: answers may be parts of the whole.
const KEPT: Duration = Duration::from_secs(30);
/// One has at least so many more workers than the other before anybody goes there: otherwise two would trade them.
const MORE: u32 = 2;

/// A control plane as it can be reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Replica {
    /// As it was named.
    pub(crate) url: Uri,
    /// The one of the name's addresses that is meant; none where the name itself is connected to.
    pub(crate) at: Option<SocketAddr>,
}

impl fmt::Display for Replica {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let named = self.url.to_string();
        let named = named.trim_end_matches('/');
        match self.at {
            Some(at) if self.url.authority().map(|a| a.as_str()) != Some(&at.to_string()) => {
                write!(f, "{named} ({at})")
            }
            _ => f.write_str(named),
        }
    }
}

/// Why a worker left a control plane, or did not come to follow it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Left {
    /// It was cut, or could not be opened.
    Lost,
    /// It said that it cannot now.
    Busy,
    /// It does not want us, or we do not understand it.
    Refused,
    /// It stops.
    Stopping,
    /// The stream was old.
    Age,
    /// It does not have what we have.
    Behind,
    /// It is of another store.
    Foreign,
    /// It has as many workers as it can.
    Full,
    /// Another process with our id is alive.
    Twin,
    /// Another one has less to do.
    Balance,
    /// It is no longer among the addresses of its name.
    Unlisted,
}

impl Left {
    /// All of them.
    pub(crate) const ALL: [Self; 11] = [
        Self::Lost,
        Self::Busy,
        Self::Refused,
        Self::Stopping,
        Self::Age,
        Self::Behind,
        Self::Foreign,
        Self::Full,
        Self::Twin,
        Self::Balance,
        Self::Unlisted,
    ];

    /// The metric's label.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Lost => "lost",
            Self::Busy => "busy",
            Self::Refused => "refused",
            Self::Stopping => "stopping",
            Self::Age => "age",
            Self::Behind => "behind",
            Self::Foreign => "foreign",
            Self::Full => "full",
            Self::Twin => "twin",
            Self::Balance => "balance",
            Self::Unlisted => "unlisted",
        }
    }

    /// What it means for coming back.
    pub(super) fn class(self) -> Class {
        match self {
            Self::Stopping | Self::Age | Self::Balance | Self::Unlisted => Class::Told,
            Self::Lost => Class::Lost,
            Self::Busy => Class::Busy,
            Self::Refused | Self::Behind | Self::Foreign | Self::Full => Class::Refused,
            Self::Twin => Class::Twin,
        }
    }
}

/// What a control plane says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Load {
    /// It takes workers.
    pub(super) open: bool,
    /// It has what we have.
    pub(super) abreast: bool,
    pub(super) workers: u32,
    /// It hears from its store.
    pub(super) hears: bool,
}

#[derive(Debug)]
struct Known {
    replica: Replica,
    /// Names that lead to it; and until when it is kept, if the newest answer leaves it out.
    sources: BTreeMap<usize, Option<Instant>>,
    failures: u32,
    /// When it was left, and whether it did not want us or we must not follow it.
    left: Option<(Instant, bool)>,
    rests_until: Option<Instant>,
    /// It could not be looked at, which is no reason not to follow it.
    unseen_until: Option<Instant>,
    /// The store that it spoke of last.
    epoch: Option<Epoch>,
}

impl Known {
    /// The newest answer of a name has it.
    fn is_named(&self) -> bool {
        self.sources.values().any(Option::is_none)
    }
}

/// The one who chooses.
#[derive(Debug)]
pub(super) struct Chooser {
    sources: Vec<Uri>,
    /// When each name was answered last.
    answered: BTreeMap<usize, Instant>,
    known: Vec<Known>,
    backoff: Backoff,
    /// Where we go next, because we looked.
    bound_for: Option<Replica>,
    /// Control planes say how busy they are: then that is what workers are spread by.
    sees: bool,
    dice: fastrand::Rng,
}

impl Chooser {
    /// Of these. Each is connected to by its name until its addresses are known.
    pub(super) fn new(sources: Vec<Uri>, dice: fastrand::Rng) -> Self {
        let mut chooser = Self {
            sources,
            answered: BTreeMap::new(),
            known: Vec::new(),
            backoff: Backoff::default(),
            bound_for: None,
            sees: false,
            dice,
        };
        for source in 0..chooser.sources.len() {
            chooser.put(source, None);
        }
        chooser
    }

    /// The names that have to be followed, by number.
    pub(super) fn names(&self) -> Vec<(usize, String)> {
        let named = self.sources.iter().enumerate();
        let named = named.filter_map(|(n, url)| Some((n, name(url)?.to_owned())));
        named.collect()
    }

    /// A name has these addresses now. What is known of those that stay is kept. One that is not among them stays for a
    /// while, if there is room.
    pub(super) fn list(&mut self, now: Instant, source: usize, addresses: &[IpAddr]) {
        let port = self.sources.get(source).map(port);
        let Some(port) = port.filter(|_| !addresses.is_empty()) else {
            return;
        };
        let before = self.answered.insert(source, now);
        let named: Vec<_> = addresses
            .iter()
            .map(|ip| SocketAddr::new(*ip, port))
            .collect();
        let crowded = self.known.len() + named.len() > MOST;
        let until = before.filter(|_| !crowded).map(|named| named + KEPT);
        let left_out = |known: &&mut Known| known.replica.at.is_none_or(|at| !named.contains(&at));
        for known in self.known.iter_mut().filter(left_out) {
            let kept = known.sources.remove(&source);
            let until = kept.and_then(|before| before.or(until));
            if let Some(until) = until.filter(|until| now < *until) {
                known.sources.insert(source, Some(until));
            }
        }
        self.known.retain(|known| !known.sources.is_empty());
        for at in named {
            self.put(source, Some(at));
        }
    }

    fn put(&mut self, source: usize, at: Option<SocketAddr>) {
        let Some(url) = self.sources.get(source).cloned() else {
            return;
        };
        let at = at.or_else(|| literal(&url));
        let full = self.known.len() >= MOST;
        let mut same = self.known.iter_mut();
        let same = same.find(|known| match at {
            Some(at) => known.replica.at == Some(at),
            None => known.replica.url == url,
        });
        match same {
            Some(known) => {
                known.sources.insert(source, None);
            }
            None if full => {}
            None => self.known.push(Known {
                replica: Replica { url, at },
                sources: BTreeMap::from([(source, None)]),
                failures: 0,
                left: None,
                rests_until: None,
                unseen_until: None,
                epoch: None,
            }),
        }
    }

    /// All that are listed.
    #[cfg(test)]
    pub(super) fn all(&self) -> Vec<Replica> {
        let all = self.known.iter().map(|known| known.replica.clone());
        all.collect()
    }

    /// Whether this one still is. One that was connected to by its name is for as long as the name is.
    pub(super) fn has(&self, replica: &Replica) -> bool {
        let named = replica.at.is_none() && self.sources.contains(&replica.url);
        named || self.find(replica).is_some()
    }

    fn find(&self, replica: &Replica) -> Option<&Known> {
        self.known.iter().find(|known| known.replica == *replica)
    }

    fn find_mut(&mut self, replica: &Replica) -> Option<&mut Known> {
        let mut known = self.known.iter_mut();
        known.find(|known| known.replica == *replica)
    }

    /// The one to try now.
    pub(super) fn next(&mut self, now: Instant) -> Option<Replica> {
        let bound_for = self.bound_for.take();
        if let Some(bound_for) = bound_for.filter(|replica| self.find(replica).is_some()) {
            return Some(bound_for);
        }
        let free = self.free(now, None);
        if !free.is_empty() {
            return free.get(self.dice.usize(..free.len())).cloned();
        }
        let first = self.known.iter().min_by_key(|known| {
            let (at, shunned) = known.left.unzip();
            (shunned, at)
        });
        first.map(|known| known.replica.clone())
    }

    /// Another one than this to look at, if one may be tried.
    pub(super) fn another(&mut self, now: Instant, than: &Replica) -> Option<Replica> {
        let mut free = self.free(now, Some(than));
        let seen = |known: &Known| known.unseen_until.is_none_or(|until| until <= now);
        free.retain(|replica| self.find(replica).is_some_and(seen));
        match free.len() {
            0 => None,
            some => free.get(self.dice.usize(..some)).cloned(),
        }
    }

    fn free(&self, now: Instant, but: Option<&Replica>) -> Vec<Replica> {
        let free = self.known.iter().filter(|known| {
            known.rests_until.is_none_or(|until| until <= now) && but != Some(&known.replica)
        });
        let (named, kept): (Vec<&Known>, Vec<_>) = free.partition(|known| known.is_named());
        let first = if named.is_empty() { kept } else { named };
        first.iter().map(|known| known.replica.clone()).collect()
    }

    /// The stream to this one lived for so long and ended so. Gives the pause until the next is tried.
    pub(super) fn left(
        &mut self,
        now: Instant,
        replica: &Replica,
        (lived, left): (Duration, Left),
    ) -> Duration {
        let (spread, share) = (0.5 + self.dice.f64() / 2.0, self.dice.f64());
        if let Some(known) = self.find_mut(replica) {
            if lived >= HEALTHY {
                known.failures = 0;
            }
            let rest = match left {
                Left::Age | Left::Balance | Left::Unlisted | Left::Twin => None,
                Left::Stopping => Some(REST_STOPPING),
                Left::Lost | Left::Busy => {
                    let doubled = REST_FIRST.saturating_mul(1 << known.failures.min(10));
                    Some(doubled.min(REST_MOST))
                }
                Left::Refused | Left::Behind | Left::Foreign | Left::Full => Some(REST_REFUSED),
            };
            known.left = Some((now, rest == Some(REST_REFUSED)));
            if rest.is_some() {
                known.failures = known.failures.saturating_add(1);
            }
            known.rests_until = rest.map(|rest| now + rest.mul_f64(spread));
        }
        // Going just anywhere would undo what looking has evened out.
        if left == Left::Age && self.sees && self.find(replica).is_some() {
            self.bound_for = Some(replica.clone());
        }
        if self.bound_for.is_some() {
            return Duration::ZERO;
        }
        let others = self.free(now, Some(replica)).len();
        self.backoff
            .after(lived, left.class(), (self.known.len(), others), share)
    }

    /// Whether the own one says how busy it is.
    pub(super) fn sees(&mut self, sees: bool) {
        self.sees = sees;
    }

    /// It cannot be looked at, and is not for a while.
    pub(super) fn unseen(&mut self, now: Instant, replica: &Replica) {
        let spread = 0.5 + self.dice.f64() / 2.0;
        if let Some(known) = self.find_mut(replica) {
            known.unseen_until = Some(now + REST_UNSEEN.mul_f64(spread));
        }
    }

    /// Whether to go to another one, which was looked at just now, as the own one was: always from one that does not hear
    /// from its store to one that does. Otherwise, of those that could, as many do as make the two even, drawn each by
    /// itself, without asking anybody.
    pub(super) fn goes(&mut self, own: Load, other: Load, to: &Replica) -> bool {
        if !other.open || !other.abreast {
            return false;
        }
        // Who would stay would not hear of anything that is written.
        if other.hears && !own.hears {
            self.bound_for = Some(to.clone());
            return true;
        }
        let more = own.workers.saturating_sub(other.workers);
        // A tenth is not worth the going.
        let worth = more >= MORE && more > own.workers / 10;
        let share = f64::from(more) / (2.0 * f64::from(own.workers.max(1)));
        if !worth || self.dice.f64() >= share {
            return false;
        }
        self.bound_for = Some(to.clone());
        true
    }

    /// What it spoke of.
    pub(super) fn speaks(&mut self, replica: &Replica, of: &Epoch) {
        if let Some(known) = self.find_mut(replica) {
            known.epoch = Some(of.clone());
        }
    }

    /// Whether a store is that of most control planes that are listed, each by its last word. There is no other of which
    /// that is true at the same time, so two stores cannot pull a worker to and fro.
    pub(super) fn most_speak_of(&self, epoch: &Epoch) -> bool {
        let those = self.known.iter();
        let those = those.filter(|known| known.epoch.as_ref() == Some(epoch));
        those.count() * 2 > self.known.len()
    }
}

/// The name in a url, if it is one.
fn name(url: &Uri) -> Option<&str> {
    let host = url.host()?;
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    bare.parse::<IpAddr>().is_err().then_some(host)
}

fn port(url: &Uri) -> u16 {
    url.port_u16().unwrap_or(80)
}

fn literal(url: &Uri) -> Option<SocketAddr> {
    let host = url.host()?;
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    Some(SocketAddr::new(bare.parse().ok()?, port(url)))
}

#[cfg(test)]
#[path = "chooser_tests.rs"]
mod tests;
