//! Which endpoints get requests: those that are sound, that did not ask for a pause, and that were not tried with
//! this request. An ejection alone never leaves a request without an endpoint: if too many are out, or nothing
//! else can be reached, all serve.

use std::time::Duration;

use super::{
    Connection, Core, Effects, Held, OriginId, Wish,
    ejection::{Peer, State},
    origin::Origin,
};
use crate::pool::counters::{Fault, Turn, Verdict};

/// Longest pause that an endpoint is granted that asks for one.
const PAUSE_MOST: Duration = Duration::from_secs(60);
/// An endpoint that had no room this lately is not asked in another's stead.
const DECLINED: Duration = Duration::from_secs(1);

/// What holds for all endpoints of the pool now.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Mood {
    /// Not every endpoint simply gets requests. If it is not so, nothing else is looked at.
    uneasy: bool,
    /// Too many are out: all serve.
    pub(super) panics: bool,
    /// There are endpoints that asked for no pause.
    heeds_pauses: bool,
}

impl<C: Connection, W> Core<C, W> {
    /// Looks at how the endpoints stand together.
    pub(super) fn weigh(&mut self, now: Duration) {
        if !self.mood.uneasy {
            return;
        }
        let percent = u64::from(self.shape.ejection.panic_percent);
        let current = || self.origins.iter().filter(|origin| origin.is_current());
        let weight = |origin: &Origin<C>| u64::from(origin.weight);
        let all: u64 = current().map(weight).sum();
        let out: u64 = current().filter(|o| o.health.is_out()).map(weight).sum();
        let sound = |origin: &&Origin<C>| !origin.health.is_out() && origin.may_be_reached(now);
        let panics = out > 0 && (out * 100 > all * percent || !current().any(|o| sound(&o)));
        let busy = |origin: &Origin<C>| origin.health.is_busy(now);
        let serves = |o: &Origin<C>| (panics || !o.health.is_out()) && o.may_be_reached(now);
        self.mood = Mood {
            uneasy: self.origins.iter().any(|o| o.health.is_out() || busy(o)),
            panics,
            heeds_pauses: current().any(|origin| serves(origin) && !busy(origin)),
        };
    }

    /// True if it may get a request.
    pub(super) fn takes(&self, now: Duration, origin: &Origin<C>) -> bool {
        if !self.mood.uneasy {
            return true;
        }
        let pauses = self.mood.heeds_pauses && origin.health.is_busy(now);
        let sound = match origin.health.state(now) {
            State::Healthy => true,
            State::Ejected => self.mood.panics,
            State::HalfOpen => self.mood.panics || origin.health.admits_trial(now),
        };
        sound && !pauses
    }

    /// True if it may get the request that wishes for this. Who wants one endpoint gets it however it stands.
    pub(super) fn suits(&self, now: Duration, origin: &Origin<C>, wish: &Wish) -> bool {
        match wish.only {
            Some(only) => origin.endpoint == only,
            None => !wish.not.contains(&origin.id) && self.takes(now, origin),
        }
    }

    /// True if a connection to it may be opened: none to one that is ejected, one for a trial.
    pub(super) fn may_dial(&self, now: Duration, origin: &Origin<C>) -> bool {
        let connecting = self.connecting_to(origin.id);
        let sound = || match origin.health.state(now) {
            State::Healthy => true,
            State::Ejected => self.mood.panics,
            State::HalfOpen => self.mood.panics || (origin.open() == 0 && connecting == 0),
        };
        origin.may_connect(now, connecting) && (!self.mood.uneasy || sound())
    }

    /// Notes on a connection that is handed out whether anything hangs on its answer.
    pub(super) fn put_to_trial(&mut self, now: Duration, at: usize, held: &mut Held<C>) {
        if !self.mood.uneasy {
            return;
        }
        let panics = self.mood.panics;
        if let Some(origin) = self.origins.get_mut(at) {
            held.in_question = origin.health.is_out();
            held.trial = match panics {
                true => None,
                false => origin.health.begin_trial(now),
            };
        }
    }

    /// What an answer, or its lack, says of an endpoint.
    pub(in crate::pool) fn judge(
        &mut self,
        now: Duration,
        id: OriginId,
        verdict: Verdict,
    ) -> (Option<Turn>, Effects<C, W>) {
        let (rules, dice) = (self.shape.ejection, self.dice.f64());
        let peers = match verdict {
            Verdict::Broken(_) => self.peers(id),
            Verdict::Answered | Verdict::Busy(_) => Vec::new(),
        };
        let Some(origin) = self.origin_mut(id) else {
            return (None, Vec::new());
        };
        let turn = match verdict {
            Verdict::Answered => origin.health.answered(now).then_some(Turn::Back),
            Verdict::Busy(after) => {
                let after = after.map(|after| after.min(PAUSE_MOST));
                origin.health.busy(now, after);
                origin.health.answered(now).then_some(Turn::Back)
            }
            Verdict::Broken(why) => {
                if why == Fault::Cut {
                    origin.pulse.retract();
                }
                let answers = origin.pulse.answers();
                let out = origin.health.broke(now, why, answers, &peers, &rules, dice);
                out.then_some(Turn::Out(why))
            }
        };
        let changed = turn.is_some() || matches!(verdict, Verdict::Busy(Some(_)));
        self.note(turn);
        match changed {
            true => (turn, self.pump_uneasy(now)),
            false => (turn, Vec::new()),
        }
    }

    /// A check found an endpoint so. One that can be connected to is not waited for any longer.
    pub(in crate::pool) fn checked(
        &mut self,
        now: Duration,
        id: OriginId,
        passed: bool,
        after: (u32, u32),
    ) -> (Option<Turn>, Effects<C, W>) {
        let Some(origin) = self.origin_mut(id) else {
            return (None, Vec::new());
        };
        if passed {
            origin.try_now(now);
        }
        let out = origin.health.checked(now, passed, after);
        let turn = out.then_some(Turn::Out(Fault::Check));
        self.note(turn);
        (turn, self.pump_uneasy(now))
    }

    fn note(&mut self, turn: Option<Turn>) {
        if let Some(Turn::Out(why)) = turn {
            self.counters.count_ejected(why);
        }
    }

    pub(super) fn pump_uneasy(&mut self, now: Duration) -> Effects<C, W> {
        self.mood.uneasy = true;
        self.pump(now)
    }

    /// The others, to compare with.
    fn peers(&self, id: OriginId) -> Vec<Peer> {
        let others = self.origins.iter().filter(|o| o.is_current() && o.id != id);
        let peer = |origin: &Origin<C>| {
            let answers = origin.pulse.answers();
            Peer {
                id: origin.id,
                ever: origin.health.ever(answers),
                lately: origin.health.tally(answers),
            }
        };
        others.map(peer).collect()
    }

    /// True if a request that failed at these may be sent to another: one that is there, and does not fail as well.
    pub(in crate::pool) fn has_other(&mut self, now: Duration, tried: &[OriginId]) -> bool {
        self.weigh(now);
        let rules = self.shape.ejection;
        self.origins.iter().any(|origin| {
            let fails = origin.health.fails(origin.pulse.answers(), &rules);
            let declines = origin.health.declined_within(now, DECLINED);
            let out = origin.health.state(now) == State::Ejected;
            origin.is_current()
                && !tried.contains(&origin.id)
                && !(fails || declines || out)
                && origin.may_be_reached(now)
                && self.takes(now, origin)
        })
    }

    /// True if nothing can be expected of any endpoint: checks fail, or connects do.
    pub(in crate::pool) fn is_down(&self, now: Duration) -> bool {
        let mut current = self.origins.iter().filter(|origin| origin.is_current());
        current.all(|origin| !origin.may_be_reached(now) || origin.health.fails_checks())
    }

    /// Time went by.
    pub(super) fn roll(&mut self, now: Duration) {
        for origin in &mut self.origins {
            origin.health.roll(now, origin.pulse.answers());
        }
    }

    /// What the configuration does not ask for any more keeps nobody out.
    pub(super) fn heed(&mut self) {
        let (rules, checked) = (self.shape.ejection, self.shape.checked);
        for origin in &mut self.origins {
            origin.health.heed(&rules, checked);
        }
    }
}
