//! A worker's stream as a pure state machine: events in, effects out, no IO and no clock.
//!
//! ```text
//!   AwaitHello ──hello──▶ Idle ──target≠applied──▶ Pushing ──ack/nack──▶ Idle
//!        │                  │                       │   ▲
//!        │                  │                       └───┘ resync: the whole, once
//!        └──────────────────┴── silence, deadline, age, error ──▶ Closed
//! ```
//!
//! Invariants: at most one push is unanswered; meanwhile only the newest target is kept. What the
//! worker holds is not sent, what it refused or has in quarantine is not sent again, and nothing older than what it holds
//! is ever sent within an epoch: who holds more than we do waits for us to catch up, as a replica whose store is ahead of
//! it does, and is sent elsewhere if we do not. A delta begins with what the worker said that it holds; one that it cannot
//! use is followed by the whole, at once and once. The first
//! push after a pause goes at once; then they keep [`APART`], so that a storm of writes costs no more. An old
//! stream is ended when nothing is unanswered.

use std::time::Duration;

use forebay_proto::{Digest, Position};

/// From the stream's opening to the worker's first word.
const HELLO_WITHIN: Duration = Duration::from_secs(5);
/// From a push to its answer: applying includes warming.
const ANSWER_WITHIN: Duration = Duration::from_secs(60);
/// How long a worker that is ahead of us waits until we have what it has.
const BEHIND_WITHIN: Duration = Duration::from_secs(5);
/// From one push to the next, unless the worker asks for the whole.
const APART: Duration = Duration::from_millis(50);
/// How often each side gives a sign of life.
pub(super) const TICK: Duration = Duration::from_secs(10);
/// How long the worker may be silent.
pub(super) const SILENCE: Duration = Duration::from_secs(35);

/// What happens to a stream. Times are since it opened.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Event {
    /// The worker's first word: what it holds, what it refused on an earlier stream, and which contents it will not
    /// try again under whatever number.
    Hello {
        applied: Option<Position>,
        refused: Option<Position>,
        quarantined: Vec<Digest>,
    },
    Ack {
        push_id: u64,
        applied: Position,
    },
    Nack {
        push_id: u64,
        attempted: Position,
    },
    Heartbeat {
        applied: Option<Position>,
    },
    /// The worker cannot use the delta.
    Resync {
        push_id: u64,
        applied: Option<Position>,
    },
    /// There is a newer configuration.
    Target(Position),
    /// We have not heard from our store for so long that the worker is to go elsewhere.
    CutOff,
    /// Nothing but time.
    Time,
}

impl Event {
    /// What the worker says that it holds, if it says so.
    pub(super) fn held(&self) -> Option<Option<&Position>> {
        match self {
            Self::Hello { applied, .. }
            | Self::Heartbeat { applied }
            | Self::Resync { applied, .. } => Some(applied.as_ref()),
            Self::Ack { applied, .. } => Some(Some(applied)),
            Self::Nack { .. } | Self::Target(_) | Self::CutOff | Self::Time => None,
        }
    }
}

/// What the shell must do.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Effect {
    Welcome,
    /// The target is to be sent: as a delta from the base, if there is one and that is less; or whole.
    Push {
        push_id: u64,
        base: Option<Position>,
    },
    Tick,
    /// The answer to the push was yes.
    Applied,
    /// The answer to the push was no.
    Refused,
    Close(Why),
}

/// Why a stream is closed by us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Why {
    NoHello,
    NoAnswer,
    Silent,
    /// A message that has no place in this state.
    OutOfTurn,
    /// The worker holds a newer revision of this epoch than we do, and we did not catch up.
    WorkerAhead,
    /// We do not hear from our store.
    CutOff,
    /// It is old: nothing is wrong.
    Age,
}

#[derive(Debug, Clone, PartialEq)]
enum Phase {
    AwaitHello,
    Idle,
    Pushing {
        push_id: u64,
        to: Position,
        since: Duration,
        /// A delta was allowed.
        delta: bool,
    },
    Closed,
}

/// The state of one stream.
#[derive(Debug)]
pub(super) struct Machine {
    phase: Phase,
    target: Position,
    applied: Option<Position>,
    refused: Option<Position>,
    quarantined: Vec<Digest>,
    pushes: u64,
    heard: Duration,
    ticked: Duration,
    /// When the next push may go.
    paced: Duration,
    /// Since when the worker has been ahead of us.
    behind: Option<Duration>,
    /// When the stream is old.
    old: Duration,
}

impl Machine {
    /// A stream that has just opened, and when it will be old.
    pub(super) fn new(target: Position, old: Duration) -> Self {
        Self {
            phase: Phase::AwaitHello,
            target,
            applied: None,
            refused: None,
            quarantined: Vec::new(),
            pushes: 0,
            heard: Duration::ZERO,
            ticked: Duration::ZERO,
            paced: Duration::ZERO,
            behind: None,
            old,
        }
    }

    /// What the worker holds, as far as it said.
    pub(super) fn applied(&self) -> Option<&Position> {
        self.applied.as_ref()
    }

    /// Takes an event at this time.
    pub(super) fn on(&mut self, now: Duration, event: Event) -> Vec<Effect> {
        match event {
            Event::Target(target) => {
                self.target = target;
                self.push_if_needed(now)
            }
            Event::Time => self.on_time(now),
            Event::CutOff => match self.phase {
                Phase::Closed => Vec::new(),
                Phase::AwaitHello | Phase::Idle | Phase::Pushing { .. } => self.close(Why::CutOff),
            },
            Event::Hello {
                applied,
                refused,
                quarantined,
            } => self.on_hello(now, applied, refused, quarantined),
            Event::Heartbeat { applied } => self.on_heartbeat(now, applied),
            Event::Ack { push_id, applied } => self.on_ack(now, push_id, applied),
            Event::Nack { push_id, attempted } => self.on_nack(now, push_id, attempted),
            Event::Resync { push_id, applied } => self.on_resync(now, push_id, applied),
        }
    }

    /// When [`Event::Time`] is due.
    pub(super) fn next_deadline(&self) -> Duration {
        match &self.phase {
            Phase::AwaitHello => HELLO_WITHIN,
            Phase::Idle => {
                let alive = (self.ticked + TICK).min(self.heard + SILENCE).min(self.old);
                let caught_up = self.behind.map(|since| since + BEHIND_WITHIN);
                let alive = caught_up.map_or(alive, |within| within.min(alive));
                match self.wanted() {
                    true => alive.min(self.paced),
                    false => alive,
                }
            }
            Phase::Pushing { since, .. } => (self.ticked + TICK)
                .min(self.heard + SILENCE)
                .min(*since + ANSWER_WITHIN),
            Phase::Closed => Duration::MAX,
        }
    }

    fn on_hello(
        &mut self,
        now: Duration,
        applied: Option<Position>,
        refused: Option<Position>,
        quarantined: Vec<Digest>,
    ) -> Vec<Effect> {
        match self.phase {
            Phase::AwaitHello => {}
            Phase::Idle | Phase::Pushing { .. } => return self.close(Why::OutOfTurn),
            Phase::Closed => return Vec::new(),
        }
        (self.heard, self.ticked) = (now, now);
        (self.applied, self.refused) = (applied, refused);
        self.quarantined = quarantined;
        self.phase = Phase::Idle;
        let mut effects = vec![Effect::Welcome];
        effects.extend(self.push_if_needed(now));
        effects
    }

    fn on_heartbeat(&mut self, now: Duration, applied: Option<Position>) -> Vec<Effect> {
        match self.phase {
            Phase::AwaitHello => return self.close(Why::OutOfTurn),
            Phase::Closed => return Vec::new(),
            // The push that is under way changes it; its answer will tell.
            Phase::Pushing { .. } => self.heard = now,
            Phase::Idle => {
                self.heard = now;
                self.applied = applied;
            }
        }
        self.push_if_needed(now)
    }

    fn on_ack(&mut self, now: Duration, push_id: u64, applied: Position) -> Vec<Effect> {
        match &self.phase {
            Phase::Pushing {
                push_id: asked, to, ..
            } if *asked == push_id => {
                if *to != applied {
                    return self.close(Why::OutOfTurn);
                }
            }
            Phase::Pushing { .. } | Phase::Idle => return Vec::new(),
            Phase::AwaitHello => return self.close(Why::OutOfTurn),
            Phase::Closed => return Vec::new(),
        }
        self.heard = now;
        self.applied = Some(applied);
        self.refused = None;
        self.phase = Phase::Idle;
        let mut effects = vec![Effect::Applied];
        effects.extend(self.push_if_needed(now));
        effects
    }

    fn on_nack(&mut self, now: Duration, push_id: u64, attempted: Position) -> Vec<Effect> {
        match &self.phase {
            Phase::Pushing {
                push_id: asked, to, ..
            } if *asked == push_id && *to == attempted => {}
            Phase::Pushing { .. } | Phase::Idle => return Vec::new(),
            Phase::AwaitHello => return self.close(Why::OutOfTurn),
            Phase::Closed => return Vec::new(),
        }
        self.heard = now;
        self.refused = Some(attempted);
        self.phase = Phase::Idle;
        let mut effects = vec![Effect::Refused];
        effects.extend(self.push_if_needed(now));
        effects
    }

    /// Only a delta can be answered so; hence a whole follows, and no second one.
    fn on_resync(&mut self, now: Duration, push_id: u64, applied: Option<Position>) -> Vec<Effect> {
        match &self.phase {
            Phase::Pushing {
                push_id: asked,
                delta,
                ..
            } if *asked == push_id => {
                if !delta {
                    return self.close(Why::OutOfTurn);
                }
            }
            Phase::Pushing { .. } | Phase::Idle => return Vec::new(),
            Phase::AwaitHello => return self.close(Why::OutOfTurn),
            Phase::Closed => return Vec::new(),
        }
        self.heard = now;
        self.applied = applied;
        self.phase = Phase::Idle;
        match self.wanted() {
            true => self.push(now, None),
            false => Vec::new(),
        }
    }

    fn on_time(&mut self, now: Duration) -> Vec<Effect> {
        match &self.phase {
            Phase::Closed => return Vec::new(),
            Phase::AwaitHello if now >= HELLO_WITHIN => return self.close(Why::NoHello),
            Phase::AwaitHello => return Vec::new(),
            Phase::Pushing { since, .. } if now >= *since + ANSWER_WITHIN => {
                return self.close(Why::NoAnswer);
            }
            Phase::Pushing { .. } | Phase::Idle => {}
        }
        if now >= self.heard + SILENCE {
            return self.close(Why::Silent);
        }
        self.note_ahead(now);
        if self
            .behind
            .is_some_and(|since| now >= since + BEHIND_WITHIN)
        {
            return self.close(Why::WorkerAhead);
        }
        if now >= self.old && matches!(self.phase, Phase::Idle) {
            return self.close(Why::Age);
        }
        let mut effects = Vec::new();
        if now >= self.ticked + TICK {
            self.ticked = now;
            effects.push(Effect::Tick);
        }
        effects.extend(self.push_if_needed(now));
        effects
    }

    /// The worker neither holds nor refused the target, nor has its content in quarantine, nor anything newer.
    fn wanted(&self) -> bool {
        let settled = [&self.applied, &self.refused];
        settled
            .iter()
            .all(|held| held.as_ref() != Some(&self.target))
            && !self.quarantined.contains(&self.target.digest)
            && !self.is_ahead()
    }

    /// The worker holds a newer revision of our epoch than we do.
    fn is_ahead(&self) -> bool {
        let ahead = |held: &Position| {
            held.epoch == self.target.epoch && held.revision > self.target.revision
        };
        self.applied.as_ref().is_some_and(ahead)
    }

    fn note_ahead(&mut self, now: Duration) {
        let idle = matches!(self.phase, Phase::Idle);
        let since = self.behind.unwrap_or(now);
        self.behind = (idle && self.is_ahead()).then_some(since);
    }

    fn push_if_needed(&mut self, now: Duration) -> Vec<Effect> {
        self.note_ahead(now);
        if !matches!(self.phase, Phase::Idle) || !self.wanted() || now < self.paced {
            return Vec::new();
        }
        // The next stream brings it; else one to whom there is always something to push would never end.
        match now >= self.old {
            true => self.close(Why::Age),
            false => self.push(now, self.applied.clone()),
        }
    }

    fn push(&mut self, now: Duration, base: Option<Position>) -> Vec<Effect> {
        self.pushes += 1;
        let push_id = self.pushes;
        self.phase = Phase::Pushing {
            push_id,
            to: self.target.clone(),
            since: now,
            delta: base.is_some(),
        };
        self.paced = now + APART;
        vec![Effect::Push { push_id, base }]
    }

    fn close(&mut self, why: Why) -> Vec<Effect> {
        self.phase = Phase::Closed;
        vec![Effect::Close(why)]
    }
}

#[cfg(test)]
mod tests {
    use forebay_proto::{Digest, Epoch, Revision};
    use proptest::prelude::*;

    use super::*;

    fn position(revision: u64) -> Position {
        Position {
            epoch: Epoch::new("aa").unwrap(),
            revision: Revision::new(revision),
            digest: Digest::of(&revision.to_be_bytes()),
        }
    }

    fn push(push_id: u64, base: Option<u64>) -> Effect {
        let base = base.map(position);
        Effect::Push { push_id, base }
    }

    fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    fn ack(push_id: u64, revision: u64) -> Event {
        let applied = position(revision);
        Event::Ack { push_id, applied }
    }

    fn resync(push_id: u64, applied: Option<u64>) -> Event {
        let applied = applied.map(position);
        Event::Resync { push_id, applied }
    }

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    const NEVER: Duration = Duration::MAX;

    fn greeted(target: u64, applied: Option<u64>) -> (Machine, Vec<Effect>) {
        let mut machine = Machine::new(position(target), NEVER);
        let applied = applied.map(position);
        let effects = machine.on(
            at(0),
            Event::Hello {
                applied,
                refused: None,
                quarantined: Vec::new(),
            },
        );
        (machine, effects)
    }

    #[test]
    fn a_worker_that_holds_the_newest_is_welcomed_and_left_alone() {
        assert_eq!(greeted(3, Some(3)).1, [Effect::Welcome]);
    }

    #[test]
    fn a_slow_worker_skips_to_the_newest() {
        let (mut machine, effects) = greeted(3, None);
        assert_eq!(effects, [Effect::Welcome, push(1, None)]);
        for revision in 4..9 {
            assert_eq!(machine.on(at(1), Event::Target(position(revision))), []);
        }
        let effects = machine.on(
            at(2),
            Event::Ack {
                push_id: 1,
                applied: position(3),
            },
        );
        assert_eq!(effects, [Effect::Applied, push(2, Some(3))]);
        let effects = machine.on(
            at(2),
            Event::Ack {
                push_id: 2,
                applied: position(8),
            },
        );
        assert_eq!(effects, [Effect::Applied]);
    }

    #[test]
    fn a_refused_revision_is_not_sent_again_until_something_newer_exists() {
        let (mut machine, _) = greeted(3, Some(2));
        let nack = Event::Nack {
            push_id: 1,
            attempted: position(3),
        };
        assert_eq!(machine.on(at(1), nack), [Effect::Refused]);
        assert_eq!(
            machine.on(
                at(2),
                Event::Heartbeat {
                    applied: Some(position(2))
                }
            ),
            []
        );
        assert_eq!(
            machine.on(at(3), Event::Target(position(4))),
            [push(2, Some(2))]
        );

        let mut other = Machine::new(position(3), NEVER);
        let hello = Event::Hello {
            applied: Some(position(2)),
            refused: Some(position(3)),
            quarantined: Vec::new(),
        };
        assert_eq!(
            other.on(at(0), hello),
            [Effect::Welcome],
            "nor on the next stream"
        );
    }

    #[test]
    fn stale_answers_are_ignored() {
        let (mut machine, _) = greeted(3, None);
        assert_eq!(
            machine.on(
                at(1),
                Event::Ack {
                    push_id: 9,
                    applied: position(3)
                }
            ),
            []
        );
        assert_eq!(
            machine.on(
                at(1),
                Event::Nack {
                    push_id: 1,
                    attempted: position(2)
                }
            ),
            []
        );
        assert_eq!(
            machine.on(
                at(1),
                Event::Ack {
                    push_id: 1,
                    applied: position(3)
                }
            ),
            [Effect::Applied]
        );
    }

    #[test]
    fn nothing_older_is_pushed() {
        let (mut machine, effects) = greeted(3, Some(4));
        assert_eq!(effects, [Effect::Welcome], "it waits for us to catch up");
        assert_eq!(machine.next_deadline(), BEHIND_WITHIN);
        assert_eq!(machine.on(ms(4_999), Event::Time), []);
        assert_eq!(
            machine.on(BEHIND_WITHIN, Event::Time),
            [Effect::Close(Why::WorkerAhead)]
        );
        let mut machine = Machine::new(position(3), NEVER);
        let other = Position {
            epoch: Epoch::new("bb").unwrap(),
            ..position(9)
        };
        let hello = Event::Hello {
            applied: Some(other.clone()),
            refused: None,
            quarantined: Vec::new(),
        };
        let push = Effect::Push {
            push_id: 1,
            base: Some(other),
        };
        assert_eq!(machine.on(at(0), hello), [Effect::Welcome, push]);
    }

    #[test]
    fn what_is_in_quarantine_is_not_sent_under_any_number() {
        let mut machine = Machine::new(position(3), NEVER);
        let hello = Event::Hello {
            applied: Some(position(2)),
            refused: None,
            quarantined: vec![position(3).digest, position(5).digest],
        };
        assert_eq!(machine.on(at(0), hello), [Effect::Welcome]);
        let again = Position {
            digest: position(3).digest,
            ..position(4)
        };
        assert_eq!(machine.on(at(1), Event::Target(again)), []);
        assert_eq!(machine.on(at(2), Event::Target(position(5))), []);
        let next = Event::Target(position(6));
        assert_eq!(machine.on(at(3), next), [push(1, Some(2))]);
    }

    #[test]
    fn every_wait_ends() {
        let mut machine = Machine::new(position(1), NEVER);
        assert_eq!(
            machine.on(at(5), Event::Time),
            [Effect::Close(Why::NoHello)]
        );

        let (mut machine, _) = greeted(1, Some(1));
        assert_eq!(machine.on(at(10), Event::Time), [Effect::Tick]);
        assert_eq!(
            machine.on(at(35), Event::Time),
            [Effect::Close(Why::Silent)]
        );

        let (mut machine, _) = greeted(1, None);
        for second in [20, 40] {
            machine.on(at(second), Event::Heartbeat { applied: None });
        }
        assert_eq!(
            machine.on(at(60), Event::Time),
            [Effect::Close(Why::NoAnswer)]
        );
    }

    #[test]
    fn words_out_of_turn_close_the_stream() {
        for event in [
            Event::Ack {
                push_id: 1,
                applied: position(1),
            },
            Event::Nack {
                push_id: 1,
                attempted: position(1),
            },
            Event::Heartbeat { applied: None },
        ] {
            let mut machine = Machine::new(position(1), NEVER);
            assert_eq!(machine.on(at(0), event), [Effect::Close(Why::OutOfTurn)]);
            assert_eq!(machine.on(at(0), Event::Time), [], "closed is closed");
        }
        let (mut machine, _) = greeted(1, Some(1));
        let hello = Event::Hello {
            applied: None,
            refused: None,
            quarantined: Vec::new(),
        };
        assert_eq!(machine.on(at(1), hello), [Effect::Close(Why::OutOfTurn)]);
    }

    #[test]
    fn a_delta_that_cannot_be_used_is_followed_by_the_whole_once() {
        let (mut machine, effects) = greeted(3, Some(2));
        assert_eq!(effects, [Effect::Welcome, push(1, Some(2))]);
        assert_eq!(
            machine.on(ms(1), resync(9, Some(2))),
            [],
            "of no push of ours"
        );
        machine.on(ms(1), Event::Target(position(4)));
        let effects = machine.on(ms(2), resync(1, Some(1)));
        assert_eq!(effects, [push(2, None)], "at once, and the newest");
        let effects = machine.on(ms(3), resync(2, Some(1)));
        assert_eq!(
            effects,
            [Effect::Close(Why::OutOfTurn)],
            "a whole needs no base"
        );

        let (mut machine, _) = greeted(3, Some(2));
        machine.on(ms(1), resync(1, Some(2)));
        assert_eq!(machine.on(ms(2), ack(2, 3)), [Effect::Applied]);
        let effects = machine.on(at(1), Event::Target(position(4)));
        assert_eq!(effects, [push(3, Some(3))], "a delta again");
    }

    #[test]
    fn a_lone_write_goes_at_once_and_those_of_a_storm_keep_apart() {
        let (mut machine, _) = greeted(1, Some(1));
        let effects = machine.on(ms(1_000), Event::Target(position(2)));
        assert_eq!(effects, [push(1, Some(1))]);
        machine.on(ms(1_001), ack(1, 2));
        for n in 0..40 {
            let target = Event::Target(position(3 + n));
            assert_eq!(machine.on(ms(1_002 + n), target), [], "too soon");
            assert_eq!(machine.next_deadline(), ms(1_050));
        }
        assert_eq!(machine.on(ms(1_050), Event::Time), [push(2, Some(2))]);
        // The answer comes late: what waited meanwhile goes at once.
        machine.on(ms(1_060), Event::Target(position(50)));
        let effects = machine.on(ms(1_200), ack(2, 42));
        assert_eq!(effects, [Effect::Applied, push(3, Some(42))]);
    }

    #[test]
    fn an_old_stream_is_ended_when_nothing_is_unanswered() {
        let hello = || Event::Hello {
            applied: Some(position(1)),
            refused: None,
            quarantined: Vec::new(),
        };
        let mut machine = Machine::new(position(1), at(8));
        machine.on(at(0), hello());
        assert_eq!(machine.next_deadline(), at(8));
        assert_eq!(machine.on(at(8), Event::Time), [Effect::Close(Why::Age)]);

        let mut machine = Machine::new(position(2), at(8));
        machine.on(at(0), hello());
        assert_eq!(machine.on(at(8), Event::Time), []);
        assert_eq!(machine.on(at(9), ack(1, 2)), [Effect::Applied]);
        assert_eq!(machine.next_deadline(), at(8), "due");
        assert_eq!(machine.on(at(9), Event::Time), [Effect::Close(Why::Age)]);

        // Though there is something to push always.
        let mut machine = Machine::new(position(2), at(8));
        machine.on(at(0), hello());
        machine.on(at(7), Event::Target(position(3)));
        assert_eq!(
            machine.on(at(9), ack(1, 2)),
            [Effect::Applied, Effect::Close(Why::Age)]
        );
    }

    #[test]
    fn a_worker_that_was_ahead_stays_when_we_catch_up() {
        let (mut machine, _) = greeted(3, Some(5));
        assert_eq!(machine.on(at(1), Event::Target(position(4))), []);
        assert_eq!(machine.on(at(2), Event::Target(position(5))), []);
        assert_eq!(
            machine.on(at(9), Event::Time),
            [],
            "nothing is sent, nobody goes"
        );
        assert_eq!(
            machine.on(at(9), Event::Target(position(6))),
            [push(1, Some(5))]
        );
    }

    #[test]
    fn who_does_not_hear_from_its_store_sends_the_worker_elsewhere() {
        let (mut machine, _) = greeted(3, Some(3));
        assert_eq!(
            machine.on(at(1), Event::CutOff),
            [Effect::Close(Why::CutOff)]
        );
        assert_eq!(machine.on(at(1), Event::CutOff), []);
    }

    fn event() -> impl Strategy<Value = Event> {
        let revision = || (1_u64..6).prop_map(position);
        let held = || proptest::option::of(revision());
        let push_id = || 1_u64..6;
        prop_oneof![
            revision().prop_map(Event::Target),
            (push_id(), revision()).prop_map(|(push_id, applied)| Event::Ack { push_id, applied }),
            (push_id(), revision())
                .prop_map(|(push_id, attempted)| Event::Nack { push_id, attempted }),
            (push_id(), held()).prop_map(|(push_id, applied)| Event::Resync { push_id, applied }),
            held().prop_map(|applied| Event::Heartbeat { applied }),
            Just(Event::Time),
            Just(Event::CutOff),
        ]
    }

    /// What a stream was seen to do, from outside.
    #[derive(Default)]
    struct Watched {
        unanswered: Option<(u64, bool)>,
        /// What the worker said last that counts.
        held: Option<Position>,
        /// What it refused, and nothing was applied since.
        refused: Option<Position>,
        pushed_at: Option<Duration>,
        closed: bool,
    }

    impl Watched {
        fn check(&mut self, now: Duration, event: &Event, target: &Position, effects: &[Effect]) {
            if self.closed {
                return assert_eq!(effects, [], "closed is closed");
            }
            let asked = self.unanswered;
            match event {
                Event::Ack { push_id, applied } if asked.is_some_and(|a| a.0 == *push_id) => {
                    self.held = Some(applied.clone());
                }
                Event::Resync { push_id, applied } if asked.is_some_and(|a| a.0 == *push_id) => {
                    match effects {
                        [Effect::Push { base: None, .. }] => {
                            assert!(asked.is_some_and(|a| a.1), "a whole after a whole");
                        }
                        [] => {
                            let ahead = |held: &Position| held.revision > target.revision;
                            let settled = [applied, &self.refused].contains(&&Some(target.clone()));
                            assert!(settled || applied.as_ref().is_some_and(ahead));
                        }
                        other => assert!(matches!(other, [Effect::Close(_)]), "{other:?}"),
                    }
                    (self.unanswered, self.pushed_at) = (None, None);
                    self.held = applied.clone();
                }
                Event::Heartbeat { applied } if asked.is_none() => self.held = applied.clone(),
                _ => {}
            }
            for effect in effects {
                match effect {
                    Effect::Push { push_id, base } => {
                        assert_eq!(self.unanswered, None, "one at a time");
                        assert!(base.is_none() || *base == self.held, "from what it holds");
                        let older = self
                            .held
                            .as_ref()
                            .is_some_and(|h| h.revision > target.revision);
                        assert!(!older, "nothing older");
                        assert!(self.pushed_at.is_none_or(|then| now >= then + APART));
                        self.unanswered = Some((*push_id, base.is_some()));
                        self.pushed_at = Some(now);
                    }
                    Effect::Applied => (self.unanswered, self.refused) = (None, None),
                    Effect::Refused => {
                        self.unanswered = None;
                        self.refused = match event {
                            Event::Nack { attempted, .. } => Some(attempted.clone()),
                            _ => None,
                        };
                    }
                    Effect::Close(_) => self.closed = true,
                    Effect::Welcome | Effect::Tick => {}
                }
            }
        }
    }

    proptest! {
        #[test]
        fn whatever_comes_the_promises_hold(events in proptest::collection::vec((0_u64..90, event()), 1..80)) {
            let (mut machine, effects) = greeted(1, None);
            let (mut target, mut now) = (position(1), at(0));
            let mut watched = Watched::default();
            watched.check(now, &Event::Time, &target, &effects);
            for (later, event) in events {
                now += ms(later);
                if let Event::Target(newer) = &event {
                    target = newer.clone();
                }
                let effects = machine.on(now, event.clone());
                watched.check(now, &event, &target, &effects);
                prop_assert!(machine.next_deadline() > Duration::ZERO);
            }
        }
    }
}
