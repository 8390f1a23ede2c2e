//! One task per worker's stream: carries words between the stream and its state machine, and tells
//! the fleet what they mean. It holds state, not a queue: a slow worker costs one configuration, and
//! never delays another.

mod machine;

use std::{sync::Arc, time::Duration};

use forebay_proto::{InstanceId, Position, Violations, WorkerId, convert::duration_to_wire, wire};
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;
use tonic::{Status, Streaming};
use tracing::Span;
use wire::{from_worker::Message as Heard, to_worker::Message as Say};

use self::machine::{Effect, Event, Machine, SILENCE, TICK, Why};
use crate::{
    fleet::{self, Fleet, Introduction, Joined, Refused},
    registry::Published,
    trace_context,
};

const PROTOCOL: u32 = 1;
/// How long the stream may be full before the worker counts as stalled.
const SEND_WITHIN: Duration = Duration::from_secs(30);

/// The way back to the worker.
pub(crate) type Outbound = mpsc::Sender<Result<wire::ToWorker, Status>>;

/// One stream.
pub(crate) struct Session {
    machine: Machine,
    target: watch::Receiver<Arc<Published>>,
    /// The target that the machine knows: what a push carries.
    current: Arc<Published>,
    fleet: Arc<Fleet>,
    say: Outbound,
    peer: String,
    opened: Instant,
    /// The control plane stops.
    stopping: CancellationToken,
    /// A child of it: a newer stream of the same worker came.
    end: CancellationToken,
    joined: Option<(WorkerId, Joined)>,
    /// The push that is unanswered, for its trace.
    push_span: Option<Span>,
    /// What the worker said last of a push, until the machine has judged whether it counts.
    answer: Option<Answer>,
}

/// A worker's word on a push.
enum Answer {
    Ack { applied: Position, millis: u32 },
    Nack(Refused),
}

/// How a stream ends.
#[derive(Debug)]
enum End {
    /// The worker closed it.
    Closed,
    /// We close it, and say why.
    Told(Status),
}

impl Session {
    /// A stream that has just opened.
    pub(crate) fn new(
        mut target: watch::Receiver<Arc<Published>>,
        fleet: Arc<Fleet>,
        say: Outbound,
        peer: String,
        stopping: CancellationToken,
    ) -> Self {
        let end = stopping.child_token();
        let current = target.borrow_and_update().clone();
        let machine = Machine::new(current.position.clone());
        let opened = Instant::now();
        let (joined, push_span, answer) = (None, None, None);
        Self {
            machine,
            target,
            current,
            fleet,
            say,
            peer,
            opened,
            stopping,
            end,
            joined,
            push_span,
            answer,
        }
    }

    /// Follows the stream to its end.
    pub(crate) async fn run(mut self, mut heard: Streaming<wire::FromWorker>) {
        let end = self.follow(&mut heard).await;
        let worker = self.joined.as_ref().map(|(worker, _)| worker.to_string());
        match end {
            End::Closed => tracing::info!(worker, peer = self.peer, "worker left"),
            End::Told(status) => {
                let reason = status.message().to_owned();
                tracing::info!(worker, peer = self.peer, reason, "worker's stream ended");
                // If it is full, the worker learns of the end all the same.
                drop(self.say.try_send(Err(status)));
            }
        }
        if let Some((worker, joined)) = &self.joined {
            self.fleet.leave(worker, joined.session);
        }
    }

    async fn follow(&mut self, heard: &mut Streaming<wire::FromWorker>) -> End {
        loop {
            let deadline = self.opened + self.machine.next_deadline();
            let event = tokio::select! {
                message = heard.message() => match message {
                    Ok(Some(message)) => self.event_of(message),
                    Ok(None) | Err(_) => return End::Closed,
                },
                changed = self.target.changed() => match changed {
                    Ok(()) => {
                        self.current = self.target.borrow_and_update().clone();
                        Ok(Some(Event::Target(self.current.position.clone())))
                    }
                    Err(_) => Err(Status::unavailable("the control plane is stopping")),
                },
                () = sleep_until(deadline) => Ok(Some(Event::Time)),
                () = self.end.cancelled() => Err(self.ended()),
            };
            let effects = match event {
                Ok(Some(event)) => self.machine.on(self.opened.elapsed(), event),
                Ok(None) => continue,
                Err(status) => return End::Told(status),
            };
            for effect in effects {
                if let Err(end) = self.carry_out(effect).await {
                    return end;
                }
            }
        }
    }

    fn ended(&self) -> Status {
        match self.stopping.is_cancelled() {
            true => Status::unavailable("the control plane is stopping"),
            false => Status::aborted("a newer stream of this worker id has come"),
        }
    }

    fn event_of(&mut self, message: wire::FromWorker) -> Result<Option<Event>, Status> {
        if let Some((worker, joined)) = &self.joined {
            self.fleet.seen(worker, joined.session);
        }
        match message.message {
            Some(Heard::Hello(hello)) => self.hello(hello).map(Some),
            Some(Heard::Ack(ack)) => {
                let applied = position("ack.applied", ack.applied)?;
                self.answer = Some(Answer::Ack {
                    applied: applied.clone(),
                    millis: ack.apply_millis,
                });
                Ok(Some(Event::Ack {
                    push_id: ack.push_id,
                    applied,
                }))
            }
            Some(Heard::Nack(nack)) => {
                let attempted = position("nack.attempted", nack.attempted)?;
                self.answer = Some(Answer::Nack(Refused {
                    position: attempted.clone(),
                    refusals: fleet::bounded(nack.refusals),
                }));
                Ok(Some(Event::Nack {
                    push_id: nack.push_id,
                    attempted,
                }))
            }
            Some(Heard::Heartbeat(beat)) => {
                let applied = beat.applied.map(|p| position("heartbeat.applied", Some(p)));
                Ok(Some(Event::Heartbeat {
                    applied: applied.transpose()?,
                }))
            }
            // A word of a later version.
            None => Ok(None),
        }
    }

    fn hello(&mut self, hello: wire::Hello) -> Result<Event, Status> {
        if self.joined.is_some() {
            return Err(Why::OutOfTurn.status());
        }
        if hello.protocol_min > PROTOCOL || hello.protocol_max < PROTOCOL {
            return Err(Status::failed_precondition(format!(
                "the worker speaks protocol {} to {}, this control plane speaks {PROTOCOL}",
                hello.protocol_min, hello.protocol_max
            )));
        }
        let introduction = introduce(hello, &self.peer)
            .map_err(|violations| Status::invalid_argument(violations.to_string()))?;
        let worker = introduction.worker.clone();
        let applied = introduction.applied.clone();
        let joined = self
            .fleet
            .join(introduction, self.end.clone())
            .ok_or_else(|| {
                Status::resource_exhausted("this control plane knows as many workers as it can")
            })?;
        if let Some(older) = &joined.replaces {
            tracing::warn!(
                %worker, peer = self.peer, older,
                "worker id connected again, the older stream is ended"
            );
        }
        let applied_revision = applied.as_ref().map_or(0, |applied| applied.revision.get());
        tracing::info!(%worker, peer = self.peer, applied_revision, "worker connected");
        let refused = joined.refused.clone();
        self.joined = Some((worker, joined));
        Ok(Event::Hello { applied, refused })
    }

    /// What the worker said counts.
    fn note_answer(&mut self) {
        let (Some(answer), Some((worker, joined))) = (self.answer.take(), &self.joined) else {
            return;
        };
        let refused = match answer {
            Answer::Ack { applied, millis } => {
                self.fleet.applied(worker, joined.session, applied, millis);
                return;
            }
            Answer::Nack(refused) => refused,
        };
        for refusal in &refused.refusals {
            tracing::error!(
                %worker, revision = %refused.position.revision, field = refusal.field,
                reason = refusal.reason, why = refusal.message, "worker refused the revision"
            );
        }
        self.fleet.refused(worker, joined.session, refused);
    }

    async fn carry_out(&mut self, effect: Effect) -> Result<(), End> {
        let published = self.current.clone();
        match effect {
            Effect::Welcome => self.send(Say::Welcome(welcome(&published))).await,
            Effect::Tick => {
                let target = Some((&published.position).into());
                self.send(Say::Tick(wire::Tick { target })).await
            }
            Effect::Push { push_id } => {
                let push = self.push(push_id, &published);
                self.send(Say::Push(push)).await
            }
            Effect::Applied => {
                self.note_answer();
                self.answered("ack");
                Ok(())
            }
            Effect::Refused => {
                self.note_answer();
                self.answered("nack");
                Ok(())
            }
            Effect::Close(why) => Err(End::Told(why.status())),
        }
    }

    /// The push is in the trace of the write that it carries, and the worker's part in its.
    fn push(&mut self, push_id: u64, published: &Published) -> wire::Push {
        let worker = self.joined.as_ref().map(|(worker, _)| worker.to_string());
        let revision = published.position.revision;
        let span = tracing::info_span!("push", worker, %revision);
        trace_context::adopt_text(&span, &published.traceparent);
        let traceparent = trace_context::to_text(&span);
        self.push_span = Some(span);
        let (to, config) = (Some((&published.position).into()), published.config.clone());
        wire::Push {
            push_id,
            to,
            config,
            traceparent,
        }
    }

    fn answered(&mut self, answer: &'static str) {
        if let Some(push) = self.push_span.take() {
            let span = tracing::info_span!(parent: &push, "answer", answer);
            span.in_scope(|| tracing::debug!(answer, "push answered"));
        }
    }

    async fn send(&self, message: Say) -> Result<(), End> {
        let message = wire::ToWorker {
            message: Some(message),
        };
        match timeout(SEND_WITHIN, self.say.send(Ok(message))).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(End::Closed),
            Err(_) => Err(End::Told(Status::deadline_exceeded(format!(
                "the worker has not read for {SEND_WITHIN:?}"
            )))),
        }
    }
}

fn welcome(published: &Published) -> wire::Welcome {
    // Jitter, so that a fleet that reconnected together does not beat together.
    let tick = TICK.mul_f64(0.8 + 0.4 * fastrand::f64());
    wire::Welcome {
        protocol: PROTOCOL,
        target: Some((&published.position).into()),
        tick_interval: Some(duration_to_wire(tick)),
        silence_limit: Some(duration_to_wire(SILENCE)),
    }
}

fn introduce(hello: wire::Hello, peer: &str) -> Result<Introduction, Violations> {
    let mut violations = Violations::new();
    let worker = violations.check("hello.worker_id", WorkerId::new(&hello.worker_id));
    let instance = violations.check("hello.instance_id", InstanceId::new(&hello.instance_id));
    let applied = match hello.applied {
        Some(applied) => violations
            .part("hello.applied", Position::try_from(applied))
            .map(Some),
        None => Some(None),
    };
    let all = worker.zip(instance).zip(applied);
    violations.finish(all.map(|((worker, instance), applied)| Introduction {
        worker,
        instance,
        build: plain(&hello.build, 64),
        peer: peer.to_owned(),
        gateway: plain(&hello.gateway_address, 256),
        applied,
    }))
}

/// Text that will stand on an operator's terminal.
fn plain(text: &str, most: usize) -> String {
    text.chars()
        .filter(|c| !c.is_control())
        .take(most)
        .collect()
}

fn position(field: &str, wire: Option<wire::Position>) -> Result<Position, Status> {
    let wire = wire.ok_or_else(|| Status::invalid_argument(format!("{field}: required")))?;
    Position::try_from(wire)
        .map_err(|violations| Status::invalid_argument(violations.under(field).to_string()))
}

impl Why {
    fn status(self) -> Status {
        match self {
            Self::NoHello => Status::deadline_exceeded("no hello in time"),
            Self::NoAnswer => Status::deadline_exceeded("no answer to the push in time"),
            Self::Silent => Status::deadline_exceeded("the worker was silent for too long"),
            Self::OutOfTurn => Status::invalid_argument("a message that has no place here"),
            Self::WorkerAhead => Status::failed_precondition(
                "the worker runs a newer revision than this control plane has; is it on an old store?",
            ),
        }
    }
}
