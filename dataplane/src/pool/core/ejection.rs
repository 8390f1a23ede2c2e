//! Whether an endpoint is sound, by how it answers. Pure: the time is an argument.
//!
//! ```text
//!   healthy ──breaks more than its peers──▶ ejected(until) ──time, and checks──▶ half-open
//!      ▲                                        ▲                                  │
//!      └────────── its trial is answered ───────┼──────────────────────────────────┤
//!                                               └────── its trial breaks ──────────┘
//! ```
//!
//! Counted is what only a broken endpoint does. What a busy one does (429, 503 with a word of when, a long
//! prefill), and what a client causes, is not. As a request may break every endpoint that it comes to, one is
//! ejected only if another answers in the same time, and breaks much less.
//!
//! That an endpoint cannot be connected to is no ejection: nothing can be sent to it anyway, and how it is tried
//! again is in `origin.rs` (`Trouble`). The two meet in `health.rs`.

use std::time::Duration;

use super::OriginId;
use crate::pool::counters::Fault;

/// Half of the time over which answers are compared.
const HALF: Duration = Duration::from_secs(10);
/// So many answers within it say something as a share.
const ENOUGH: u64 = 20;
/// One that was sound for this long is ejected as if for the first time.
const FORGOTTEN: Duration = Duration::from_secs(60);
/// How far pauses are spread, so that the workers of a fleet do not come back at once.
const JITTER: f64 = 0.2;

/// When endpoints are ejected, and for how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::pool) struct Rules {
    /// Broken answers in a row; 0: nothing is ejected by answers.
    pub(in crate::pool) after: u32,
    /// The first time out; doubles up to `most`.
    pub(in crate::pool) base: Duration,
    pub(in crate::pool) most: Duration,
    /// If more than this share of the weight would be out, nobody is.
    pub(in crate::pool) panic_percent: u32,
}

/// Where an endpoint stands.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(in crate::pool) enum State {
    /// It gets requests.
    #[default]
    Healthy,
    /// It gets none.
    Ejected,
    /// It gets one, which shows whether it is sound again.
    HalfOpen,
}

/// What came back.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Tally {
    pub(super) good: u64,
    pub(super) broken: u64,
}

impl Tally {
    fn since(self, before: Self) -> Self {
        Self {
            good: self.good.saturating_sub(before.good),
            broken: self.broken.saturating_sub(before.broken),
        }
    }

    /// Less than a quarter of them broken: what of a few looks like half is chance.
    fn is_sound(self) -> bool {
        self.broken * 4 < self.all()
    }

    fn share(self) -> f64 {
        self.broken as f64 / self.all().max(1) as f64
    }

    fn all(self) -> u64 {
        self.good + self.broken
    }
}

/// Another endpoint, to compare with.
#[derive(Debug, Clone, Copy)]
pub(super) struct Peer {
    pub(super) id: OriginId,
    /// Since it is known.
    pub(super) ever: Tally,
    pub(super) lately: Tally,
}

/// What came back lately.
#[derive(Debug, Default)]
struct Window {
    began: Duration,
    before: Tally,
    broken: u64,
    /// Good answers when this half began.
    base: u64,
}

impl Window {
    fn roll(&mut self, now: Duration, answers: u64) {
        let age = now.saturating_sub(self.began);
        if age < HALF {
            return;
        }
        self.before = match age < HALF * 2 {
            true => Tally {
                good: answers.saturating_sub(self.base),
                broken: self.broken,
            },
            false => Tally::default(),
        };
        (self.began, self.broken, self.base) = (now, 0, answers);
    }

    fn tally(&self, answers: u64) -> Tally {
        Tally {
            good: self.before.good + answers.saturating_sub(self.base),
            broken: self.before.broken + self.broken,
        }
    }
}

/// So many in a row are hardly chance where this share of all is broken anyway: one in ten thousand.
fn hardly_chance(share: f64) -> f64 {
    match share > 0.0 {
        true => 1e-4_f64.ln() / share.min(0.999).ln(),
        false => 0.0,
    }
}

/// Why and how long it is out.
#[derive(Debug)]
struct Out {
    why: Fault,
    until: Duration,
    /// Only a check brings it back, not time.
    by_check: bool,
    /// Which trial is under way.
    trial: Option<u32>,
}

/// What is known of one endpoint.
#[derive(Debug, Default)]
pub(super) struct Health {
    window: Window,
    /// Broken answers since the last good one.
    run: u32,
    /// Good answers when the last broken one came.
    answers: u64,
    /// How its peers stood when this run began.
    run_began: Vec<(OriginId, Tally)>,
    broken: u64,
    out: Option<Out>,
    /// How often in short order it was ejected.
    level: u32,
    back_at: Option<Duration>,
    trials: u32,
    /// It asked not to be asked until then.
    busy_until: Option<Duration>,
    /// It said that it can take no more.
    declined_at: Option<Duration>,
    checks_failed: u32,
    checks_passed: u32,
}

impl Health {
    pub(super) fn state(&self, now: Duration) -> State {
        match &self.out {
            None => State::Healthy,
            Some(out) if out.by_check || now < out.until => State::Ejected,
            Some(_) => State::HalfOpen,
        }
    }

    /// The same, for the same server under another name. What is counted, and a trial under way, are of the name before.
    pub(super) fn inherited(&self) -> Self {
        let out = self.out.as_ref();
        Self {
            out: out.map(|out| Out {
                trial: None,
                ..*out
            }),
            level: self.level,
            back_at: self.back_at,
            busy_until: self.busy_until,
            declined_at: self.declined_at,
            checks_failed: self.checks_failed,
            checks_passed: self.checks_passed,
            ..Self::default()
        }
    }

    /// True if it is not simply sound.
    pub(super) fn is_out(&self) -> bool {
        self.out.is_some()
    }

    /// Why it is out, and until when; without an end if a check decides.
    pub(super) fn out(&self) -> Option<(Fault, Option<Duration>)> {
        let out = self.out.as_ref()?;
        Some((out.why, (!out.by_check).then_some(out.until)))
    }

    /// True if only a check brings it back.
    pub(super) fn fails_checks(&self) -> bool {
        self.out.as_ref().is_some_and(|out| out.by_check)
    }

    pub(super) fn is_busy(&self, now: Duration) -> bool {
        self.busy_until.is_some_and(|until| now < until)
    }

    /// Until when it asked not to be asked.
    pub(super) fn busy_until(&self) -> Option<Duration> {
        self.busy_until
    }

    /// True if it had no room a moment ago.
    pub(super) fn declined_within(&self, now: Duration, within: Duration) -> bool {
        let declined = |at: Duration| now.saturating_sub(at) < within;
        self.declined_at.is_some_and(declined)
    }

    /// True if all that came lately was broken.
    pub(super) fn fails(&self, answers: u64, rules: &Rules) -> bool {
        self.run >= rules.after.max(1) && self.answers == answers
    }

    /// What came back since it is known.
    pub(super) fn ever(&self, answers: u64) -> Tally {
        Tally {
            good: answers,
            broken: self.broken,
        }
    }

    /// What came back lately.
    pub(super) fn tally(&self, answers: u64) -> Tally {
        self.window.tally(answers)
    }

    /// Time went by.
    pub(super) fn roll(&mut self, now: Duration, answers: u64) {
        self.window.roll(now, answers);
        self.busy_until = self.busy_until.filter(|until| now < *until);
    }

    /// True if one request may show whether it is sound again.
    pub(super) fn admits_trial(&self, now: Duration) -> bool {
        let free = |out: &Out| out.trial.is_none();
        self.state(now) == State::HalfOpen && self.out.as_ref().is_some_and(free)
    }

    /// A trial begins. Its name tells it from those before and after.
    pub(super) fn begin_trial(&mut self, now: Duration) -> Option<u32> {
        if !self.admits_trial(now) {
            return None;
        }
        self.trials = self.trials.wrapping_add(1);
        let out = self.out.as_mut()?;
        out.trial = Some(self.trials);
        out.trial
    }

    /// It is over. If nothing was said of it, nothing is known; the next one may begin.
    pub(super) fn end_trial(&mut self, trial: u32) {
        if let Some(out) = self.out.as_mut().filter(|out| out.trial == Some(trial)) {
            out.trial = None;
        }
    }

    #[cfg(test)]
    pub(super) fn is_under_way(&self, trial: u32) -> bool {
        let out = self.out.as_ref();
        out.is_some_and(|out| out.trial == Some(trial))
    }

    /// It answers. True if it was out.
    pub(super) fn answered(&mut self, now: Duration) -> bool {
        let back = self.out.take_if(|out| !out.by_check).is_some();
        if back {
            self.back_at = Some(now);
            self.run = 0;
        }
        back
    }

    /// It has no room, and perhaps said when it will have.
    pub(super) fn busy(&mut self, now: Duration, after: Option<Duration>) {
        self.declined_at = Some(now);
        self.busy_until = after.map(|after| now + after).or(self.busy_until);
    }

    /// It broke, where its peers gave so much. True if it is ejected for that.
    pub(super) fn broke(
        &mut self,
        now: Duration,
        why: Fault,
        answers: u64,
        peers: &[Peer],
        rules: &Rules,
        dice: f64,
    ) -> bool {
        self.window.roll(now, answers);
        self.window.broken += 1;
        self.broken += 1;
        if answers != self.answers || self.run == 0 {
            self.run = 0;
            self.run_began = peers.iter().map(|peer| (peer.id, peer.ever)).collect();
        }
        self.run = self.run.saturating_add(1);
        self.answers = answers;
        let ejected = rules.after > 0
            && match &self.out {
                // While all serve because too many are out, each may break many times.
                Some(out) => !out.by_check && out.until <= now,
                None => self.is_outlier(answers, peers, rules),
            };
        if ejected {
            self.eject(now, why, rules, dice);
        }
        ejected
    }

    /// True if it breaks enough, and another has been answering all the while.
    fn is_outlier(&self, answers: u64, peers: &[Peer], rules: &Rules) -> bool {
        let enough = u64::from(rules.after);
        let answered_meanwhile = |peer: &&Peer| {
            let mut began = self.run_began.iter().filter(|(id, _)| *id == peer.id);
            let meanwhile = began.next().map(|(_, before)| peer.ever.since(*before));
            meanwhile.is_some_and(|tally| tally.good >= enough && tally.is_sound())
        };
        if self.run >= rules.after {
            let meanwhile = peers.iter().filter(answered_meanwhile);
            let least = meanwhile.map(|peer| peer.lately.share()).reduce(f64::min);
            if least.is_some_and(|share| f64::from(self.run) >= hardly_chance(share)) {
                return true;
            }
        }
        let own = self.tally(answers);
        // Also by number: who was asked more had more good ones before, and no fewer broken ones since.
        let sounder = |peer: &Peer| {
            peer.lately.good >= enough
                && peer.lately.is_sound()
                && peer.lately.broken * 4 < own.broken
        };
        own.all() >= ENOUGH && own.broken >= own.good && peers.iter().any(sounder)
    }

    fn eject(&mut self, now: Duration, why: Fault, rules: &Rules, dice: f64) {
        let again = self.out.is_some();
        let recent = |at: Duration| now.saturating_sub(at) < FORGOTTEN;
        self.level = match again || self.back_at.is_some_and(recent) {
            true => self.level.saturating_add(1),
            false => 0,
        };
        let pause = rules
            .base
            .saturating_mul(1 << self.level.min(16))
            .min(rules.most);
        self.out = Some(Out {
            why,
            until: now + pause.mul_f64(1.0 - JITTER / 2.0 + JITTER * dice),
            by_check: false,
            trial: None,
        });
    }

    /// A check found it so. True if that ejects it.
    pub(super) fn checked(&mut self, now: Duration, passed: bool, after: (u32, u32)) -> bool {
        let (unhealthy_after, healthy_after) = after;
        if passed {
            self.checks_failed = 0;
            self.checks_passed = self.checks_passed.saturating_add(1);
            if self.checks_passed >= healthy_after {
                self.half_open();
            }
            return false;
        }
        self.checks_passed = 0;
        self.checks_failed = self.checks_failed.saturating_add(1);
        if self.checks_failed < unhealthy_after {
            return false;
        }
        let held = self.out.as_ref().is_some_and(|out| out.by_check);
        // A pause for what it answered goes on meanwhile.
        let until = self.out.as_ref().map_or(now, |out| out.until.max(now));
        self.out = Some(Out {
            why: Fault::Check,
            until,
            by_check: true,
            trial: None,
        });
        !held
    }

    /// No check keeps it out any more: it may show that it is sound, once it has paused for what it answered.
    fn half_open(&mut self) {
        if let Some(out) = &mut self.out {
            out.by_check = false;
        }
    }

    /// What is not looked at any more keeps nobody out.
    pub(super) fn heed(&mut self, rules: &Rules, checked: bool) {
        let by_check = self.out.as_ref().is_some_and(|out| out.by_check);
        match (by_check, rules.after > 0) {
            (true, _) if !checked => self.half_open(),
            (false, false) => self.out = None,
            _ => {}
        }
    }
}
