//! A worker's stream as a pure state machine: events in, effects out, no IO and no clock.
//!
//! ```text
//!   AwaitHello ──hello──▶ Idle ──target≠applied──▶ Pushing ──ack/nack──▶ Idle
//!        │                  │                         │
//!        └──────────────────┴── silence, deadline, protocol error ──▶ Closed
//! ```
//!
//! Invariants: at most one push is unanswered; meanwhile only the newest target is kept. What the
//! worker holds is not sent, what it refused is not sent again, and nothing older than what it holds
//! is ever sent within an epoch.

use std::time::Duration;

use forebay_proto::Position;

/// From the stream's opening to the worker's first word.
const HELLO_WITHIN: Duration = Duration::from_secs(5);
/// From a push to its answer: applying includes warming.
const ANSWER_WITHIN: Duration = Duration::from_secs(60);
/// How often each side gives a sign of life.
pub(super) const TICK: Duration = Duration::from_secs(10);
/// How long the worker may be silent.
pub(super) const SILENCE: Duration = Duration::from_secs(35);

/// What happens to a stream. Times are since it opened.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Event {
    /// The worker's first word: what it holds, and what it refused on an earlier stream.
    Hello {
        applied: Option<Position>,
        refused: Option<Position>,
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
    /// There is a newer configuration.
    Target(Position),
    /// Nothing but time.
    Time,
}

/// What the shell must do.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Effect {
    Welcome,
    Push {
        push_id: u64,
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
    /// The worker holds a newer revision of this epoch than we do.
    WorkerAhead,
}

#[derive(Debug, Clone, PartialEq)]
enum Phase {
    AwaitHello,
    Idle,
    Pushing {
        push_id: u64,
        to: Position,
        since: Duration,
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
    pushes: u64,
    heard: Duration,
    ticked: Duration,
}

impl Machine {
    /// A stream that has just opened.
    pub(super) fn new(target: Position) -> Self {
        Self {
            phase: Phase::AwaitHello,
            target,
            applied: None,
            refused: None,
            pushes: 0,
            heard: Duration::ZERO,
            ticked: Duration::ZERO,
        }
    }

    /// Takes an event at this time.
    pub(super) fn on(&mut self, now: Duration, event: Event) -> Vec<Effect> {
        match event {
            Event::Target(target) => {
                self.target = target;
                self.push_if_needed(now)
            }
            Event::Time => self.on_time(now),
            Event::Hello { applied, refused } => self.on_hello(now, applied, refused),
            Event::Heartbeat { applied } => self.on_heartbeat(now, applied),
            Event::Ack { push_id, applied } => self.on_ack(now, push_id, applied),
            Event::Nack { push_id, attempted } => self.on_nack(now, push_id, attempted),
        }
    }

    /// When [`Event::Time`] is due.
    pub(super) fn next_deadline(&self) -> Duration {
        match &self.phase {
            Phase::AwaitHello => HELLO_WITHIN,
            Phase::Idle => (self.ticked + TICK).min(self.heard + SILENCE),
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
    ) -> Vec<Effect> {
        match self.phase {
            Phase::AwaitHello => {}
            Phase::Idle | Phase::Pushing { .. } => return self.close(Why::OutOfTurn),
            Phase::Closed => return Vec::new(),
        }
        (self.heard, self.ticked) = (now, now);
        (self.applied, self.refused) = (applied, refused);
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
        if now >= self.ticked + TICK {
            self.ticked = now;
            return vec![Effect::Tick];
        }
        Vec::new()
    }

    fn push_if_needed(&mut self, now: Duration) -> Vec<Effect> {
        let idle = matches!(self.phase, Phase::Idle);
        let settled = [&self.applied, &self.refused];
        if !idle
            || settled
                .iter()
                .any(|held| held.as_ref() == Some(&self.target))
        {
            return Vec::new();
        }
        let ahead = |held: &Position| {
            held.epoch == self.target.epoch && held.revision > self.target.revision
        };
        if self.applied.as_ref().is_some_and(ahead) {
            return self.close(Why::WorkerAhead);
        }
        self.pushes += 1;
        let push_id = self.pushes;
        self.phase = Phase::Pushing {
            push_id,
            to: self.target.clone(),
            since: now,
        };
        vec![Effect::Push { push_id }]
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

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn greeted(target: u64, applied: Option<u64>) -> (Machine, Vec<Effect>) {
        let mut machine = Machine::new(position(target));
        let applied = applied.map(position);
        let effects = machine.on(
            at(0),
            Event::Hello {
                applied,
                refused: None,
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
        assert_eq!(effects, [Effect::Welcome, Effect::Push { push_id: 1 }]);
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
        assert_eq!(effects, [Effect::Applied, Effect::Push { push_id: 2 }]);
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
            [Effect::Push { push_id: 2 }]
        );

        let mut other = Machine::new(position(3));
        let hello = Event::Hello {
            applied: Some(position(2)),
            refused: Some(position(3)),
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
        assert_eq!(
            greeted(3, Some(4)).1,
            [Effect::Welcome, Effect::Close(Why::WorkerAhead)]
        );
        let mut machine = Machine::new(position(3));
        let other = Position {
            epoch: Epoch::new("bb").unwrap(),
            ..position(9)
        };
        let hello = Event::Hello {
            applied: Some(other),
            refused: None,
        };
        assert_eq!(
            machine.on(at(0), hello),
            [Effect::Welcome, Effect::Push { push_id: 1 }]
        );
    }

    #[test]
    fn every_wait_ends() {
        let mut machine = Machine::new(position(1));
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
            let mut machine = Machine::new(position(1));
            assert_eq!(machine.on(at(0), event), [Effect::Close(Why::OutOfTurn)]);
            assert_eq!(machine.on(at(0), Event::Time), [], "closed is closed");
        }
        let (mut machine, _) = greeted(1, Some(1));
        let hello = Event::Hello {
            applied: None,
            refused: None,
        };
        assert_eq!(machine.on(at(1), hello), [Effect::Close(Why::OutOfTurn)]);
    }

    fn event() -> impl Strategy<Value = Event> {
        let revision = || (1_u64..6).prop_map(position);
        prop_oneof![
            revision().prop_map(Event::Target),
            (1_u64..6, revision()).prop_map(|(push_id, applied)| Event::Ack { push_id, applied }),
            (1_u64..6, revision())
                .prop_map(|(push_id, attempted)| Event::Nack { push_id, attempted }),
            proptest::option::of(revision()).prop_map(|applied| Event::Heartbeat { applied }),
            Just(Event::Time),
        ]
    }

    proptest! {
        #[test]
        fn at_most_one_push_is_unanswered(events in proptest::collection::vec(event(), 1..60)) {
            let (mut machine, mut effects) = greeted(1, None);
            let mut unanswered = 0;
            for (second, event) in events.into_iter().enumerate() {
                for effect in &effects {
                    match effect {
                        Effect::Push { .. } => unanswered += 1,
                        Effect::Applied | Effect::Refused => unanswered -= 1,
                        Effect::Welcome | Effect::Tick | Effect::Close(_) => {}
                    }
                    prop_assert!((0..=1).contains(&unanswered));
                }
                let now = at(second as u64);
                effects = machine.on(now, event);
                prop_assert!(machine.next_deadline() > Duration::ZERO);
            }
        }
    }
}
