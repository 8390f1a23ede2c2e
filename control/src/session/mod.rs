//! One task per worker's stream: carries words between the stream and its state machine, and tells
//! the fleet what they mean. It holds state, not a queue: a slow worker costs one configuration, and
//! never delays another. While the stream is full the worker is listened to all the same.

mod abreast;
mod admit;
mod end;
mod feed;
mod keys;
mod leases;
mod machine;
mod offer;
mod outbox;
mod push;
mod usage;
mod words;

use std::{sync::Arc, time::Duration};

use forebay_proto::{Health, Position, WorkerId, health::CHANGED, wire};
use tokio::{
    sync::{mpsc, watch},
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;
use tonic::{Status, Streaming};
use tracing::Span;
use wire::{from_worker::Message as Heard, to_worker::Message as Say};

pub(crate) use self::{
    abreast::Abreast,
    feed::{Target, follow, targets},
    offer::Offer,
};
use self::{
    end::{End, challenged, stopping, time_of, told},
    keys::KeyPushes,
    leases::{LEASES, LeaseLine, allotted},
    machine::{Effect, Event, Machine, TICK, Why},
    outbox::Outbox,
    words::{position, welcome},
};
use crate::{
    fleet::{self, Fleet, Joined, Refused},
    leases::Board,
    metrics::Metrics,
    registry::keys::PublishedKeys,
};

/// Versions of the protocol that are spoken: the second has deltas and chunks, the third clients' keys and the word that
/// a worker is to end, the fourth leases.
const PROTOCOLS: std::ops::RangeInclusive<u32> = 1..=LEASES;
const DELTAS: u32 = 2;
const KEYS: u32 = 3;
const DRAINS: u32 = 3;

/// The way back to the worker. Boxed, because a channel keeps room for dozens of messages.
pub(crate) type Outbound = mpsc::Sender<Box<Result<wire::ToWorker, Status>>>;

/// One stream.
pub(crate) struct Session {
    machine: Machine,
    offers: watch::Receiver<Offer>,
    /// Not all workers are offered the same.
    differs: bool,
    /// The target that the machine knows: what a push carries.
    current: Arc<Target>,
    fleet: Arc<Fleet>,
    metrics: Arc<Metrics>,
    /// Clients' keys, and where the worker stands with them.
    keys: watch::Receiver<Arc<PublishedKeys>>,
    key_pushes: KeyPushes,
    /// Where leases are asked for and lent.
    board: Arc<dyn Board>,
    leases: Option<LeaseLine>,
    /// What the worker speaks.
    protocol: u32,
    outbox: Outbox,
    say: Outbound,
    peer: String,
    opened: Instant,
    /// The control plane stops.
    stopping: CancellationToken,
    /// A child of it: a newer stream of the same worker came.
    end: CancellationToken,
    joined: Option<(WorkerId, Joined)>,
    /// Whether we hear from our store.
    abreast: Abreast,
    /// Its name among the replicas.
    replica: Arc<str>,
    /// The worker proves that it is alive when it is asked, and understands why it is sent elsewhere.
    proves: bool,
    /// The worker is to be told to end, and was not yet.
    drain: Option<CancellationToken>,
    /// That it knows no keys was said.
    warned: bool,
    /// The push that is unanswered, for its trace.
    push_span: Option<Span>,
    /// What the worker said last of a push, until the machine has judged whether it counts.
    answer: Option<Answer>,
}

/// A worker's word on a push.
enum Answer {
    Ack {
        applied: Position,
        refusals: Vec<wire::Refusal>,
        millis: u32,
    },
    Nack(Refused),
}

impl Session {
    /// A stream that has just opened.
    pub(crate) fn new(
        (mut offers, keys): (watch::Receiver<Offer>, watch::Receiver<Arc<PublishedKeys>>),
        (fleet, metrics): (Arc<Fleet>, Arc<Metrics>),
        board: Arc<dyn Board>,
        say: Outbound,
        peer: String,
        (stopping, abreast): (CancellationToken, Abreast),
        (old, replica): (Duration, Arc<str>),
    ) -> Self {
        let end = stopping.child_token();
        let offer = offers.borrow_and_update().clone();
        let (differs, current) = (offer.differs(), offer.stable().clone());
        let machine = Machine::new(current.published.position.clone(), old);
        let (protocol, outbox) = (*PROTOCOLS.end(), Outbox::default());
        let opened = Instant::now();
        let (joined, drain, push_span, answer, leases) = (None, None, None, None, None);
        Self {
            machine,
            offers,
            differs,
            current,
            fleet,
            metrics,
            keys,
            key_pushes: KeyPushes::default(),
            board,
            leases,
            protocol,
            outbox,
            say,
            peer,
            opened,
            stopping,
            end,
            joined,
            abreast: abreast.of_stream(),
            replica,
            proves: false,
            drain,
            warned: false,
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
            End::Told(status) => self.tell_end(worker, status),
            End::Goodbye(reason, status) => {
                if self.protocol >= DELTAS {
                    let reason = reason.into();
                    let goodbye = wire::ToWorker {
                        message: Some(Say::Goodbye(wire::Goodbye { reason })),
                    };
                    drop(self.say.try_send(Box::new(Ok(goodbye))));
                }
                self.tell_end(worker, status);
            }
        }
        drop(self.leases.take());
        if let Some((worker, joined)) = &self.joined {
            self.fleet.leave(worker, joined.session);
        }
    }

    fn tell_end(&self, worker: Option<String>, status: Status) {
        let reason = status.message().to_owned();
        tracing::info!(worker, peer = self.peer, reason, "worker's stream ended");
        // If it is full, the worker learns of the end all the same.
        drop(self.say.try_send(Box::new(Err(status))));
    }

    async fn follow(&mut self, heard: &mut Streaming<wire::FromWorker>) -> End {
        let say = self.say.clone();
        loop {
            let stalled = self.outbox.stalled_at();
            let due = self.opened + self.machine.next_deadline();
            let late = self.key_pushes.due().map(|late| self.opened + late);
            let due = late.map_or(due, |late| late.min(due));
            let deadline = stalled.map_or(due, |stalled| stalled.min(due));
            let event = tokio::select! {
                room = say.reserve(), if !self.outbox.is_empty() => {
                    let Ok(room) = room else { return End::Closed };
                    if let Some(message) = self.outbox.take() {
                        room.send(Box::new(Ok(message)));
                    }
                    continue;
                }
                message = heard.message() => match message {
                    Ok(Some(message)) => self.event_of(message).await,
                    Ok(None) | Err(_) => return End::Closed,
                },
                changed = self.offers.changed() => match changed {
                    Ok(()) => Ok(self.choose(self.machine.applied().cloned())),
                    Err(_) => return stopping(),
                },
                () = allotted(self.leases.as_mut()), if self.outbox.is_empty() => {
                    if let Some(line) = &mut self.leases {
                        line.say(&mut self.outbox);
                    }
                    continue;
                }
                changed = self.keys.changed() => match changed {
                    Ok(()) => {
                        self.push_keys();
                        continue;
                    }
                    Err(_) => return stopping(),
                },
                () = sleep_until(deadline) => time_of(late, stalled),
                () = self.end.cancelled() => return self.ended(),
                behind = self.abreast.next(), if self.proves => match behind {
                    true => Ok(Some(Event::CutOff)),
                    false => continue,
                },
                challenge = challenged(self.joined.as_mut()) => {
                    self.ask(challenge);
                    continue;
                }
                () = told(self.drain.as_ref()) => {
                    self.drain = None;
                    self.outbox.say(Say::Drain(wire::Drain {}));
                    continue;
                }
            };
            let effects = match event {
                Ok(Some(event)) => self.take(event),
                Ok(None) => continue,
                Err(status) => return End::Told(status),
            };
            for effect in effects {
                if let Err(end) = self.carry_out(effect) {
                    return end;
                }
            }
        }
    }

    /// What the worker says it holds may decide what it is offered.
    fn take(&mut self, event: Event) -> Vec<Effect> {
        let now = self.opened.elapsed();
        let mut effects = Vec::new();
        if self.differs
            && let Some(held) = event.held()
            && let Some(target) = self.choose(held.cloned())
        {
            effects.extend(self.machine.on(now, target));
        }
        effects.extend(self.machine.on(now, event));
        effects
    }

    /// What the worker, which holds this, is to be offered; nothing if it is offered that.
    fn choose(&mut self, held: Option<Position>) -> Option<Event> {
        let worker = self.joined.as_ref().map(|(worker, _)| worker);
        let offer = self.offers.borrow_and_update();
        self.differs = offer.differs();
        let target = offer.of(worker, held.as_ref());
        if Arc::ptr_eq(target, &self.current) {
            return None;
        }
        self.current = target.clone();
        Some(Event::Target(self.current.published.position.clone()))
    }

    async fn event_of(&mut self, message: wire::FromWorker) -> Result<Option<Event>, Status> {
        if let Some((worker, joined)) = &self.joined {
            self.fleet.seen(worker, joined.session);
        }
        match message.message {
            Some(Heard::Hello(hello)) => self.hello(hello).await.map(Some),
            Some(Heard::Ack(ack)) => {
                let applied = position("ack.applied", ack.applied)?;
                self.answer = Some(Answer::Ack {
                    applied: applied.clone(),
                    refusals: fleet::bounded(ack.refusals),
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
            Some(Heard::Heartbeat(beat)) => self.beat(beat).map(Some),
            Some(Heard::Resync(resync)) => {
                let applied = resync.applied.map(|p| position("resync.applied", Some(p)));
                Ok(Some(Event::Resync {
                    push_id: resync.push_id,
                    applied: applied.transpose()?,
                }))
            }
            Some(Heard::KeysHeld(held)) => {
                self.hear_keys(held.held)?;
                Ok(None)
            }
            Some(Heard::Leases(report)) => {
                // One that was not told that there are any has no place for it.
                if let Some(line) = &mut self.leases {
                    line.hear(report);
                }
                Ok(None)
            }
            // A word of a later version.
            None => Ok(None),
        }
    }

    fn beat(&mut self, beat: wire::Heartbeat) -> Result<Event, Status> {
        let applied = beat.applied.map(|p| position("heartbeat.applied", Some(p)));
        let applied = applied.transpose()?;
        if let Some((worker, joined)) = &self.joined {
            let changed = beat.changed.into_iter().take(CHANGED);
            let changed = changed.filter_map(|told| told.try_into().ok()).collect();
            let health = (beat.health.map(Health::from), changed);
            self.fleet
                .beat(worker, joined.session, beat.draining_requests, health);
            if beat.stopping {
                self.fleet.ends(worker, joined.session);
            }
            if beat.proves > 0 {
                self.fleet.proved(worker, joined.session, beat.proves);
            }
            if beat.moves {
                tracing::info!(%worker, peer = self.peer, "worker goes on with another control plane");
                self.fleet.moves(worker, joined.session);
            }
        }
        Ok(Event::Heartbeat { applied })
    }

    /// What the worker said counts.
    fn note_answer(&mut self) {
        let (Some(answer), Some((worker, joined))) = (self.answer.take(), &self.joined) else {
            return;
        };
        let refused = match answer {
            Answer::Ack {
                applied,
                refusals,
                millis,
            } => {
                for refusal in &refusals {
                    tracing::error!(
                        %worker, revision = %applied.revision, model = refusal.model, field = refusal.field,
                        reason = refusal.reason, why = refusal.message, "worker could not take a model"
                    );
                }
                let applied = (applied, refusals);
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

    /// The stream is old enough. Whoever opens it again is back here, unless it hears that there is nothing to be had.
    fn aged(&self) -> End {
        let reason = match self.proves && self.abreast.has_lost() {
            true => wire::goodbye::Reason::Behind,
            false => wire::goodbye::Reason::Age,
        };
        End::Goodbye(reason, Why::Age.status())
    }

    fn carry_out(&mut self, effect: Effect) -> Result<(), End> {
        match effect {
            Effect::Welcome => {
                let often = self.fleet.report_every().unwrap_or(TICK);
                let target = &self.current.published.position;
                let welcome = welcome((self.protocol, &self.replica), target, often);
                self.outbox.say(Say::Welcome(welcome));
                // Before any configuration: it may need them.
                self.push_keys();
            }
            Effect::Tick => {
                let target = Some((&self.current.published.position).into());
                self.outbox.say(Say::Tick(wire::Tick { target }));
            }
            Effect::Push { push_id, base } => self.push(push_id, base),
            Effect::Applied => {
                self.note_answer();
                self.answered("ack");
            }
            Effect::Refused => {
                self.note_answer();
                self.answered("nack");
            }
            Effect::Close(Why::Age) => return Err(self.aged()),
            Effect::Close(why @ (Why::WorkerAhead | Why::CutOff)) if self.proves => {
                let reason = wire::goodbye::Reason::Behind;
                return Err(End::Goodbye(reason, why.status()));
            }
            Effect::Close(why) => return Err(End::Told(why.status())),
        }
        Ok(())
    }
}
