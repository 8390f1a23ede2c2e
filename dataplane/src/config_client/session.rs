//! One stream to one control plane, from the first word to its end.
//!
//! The worker says what it holds, and what of it it could not take; the control plane answers, then pushes. Each push
//! is applied, but for models that cannot be taken, or refused as a whole, and answered at once, a delta that cannot be used with the wish for the whole. At most one push is
//! unanswered, so the outbound queue cannot fill; if it does, the peer is broken and the stream ends. Every wait has
//! a deadline.
//!
//! A worker that goes elsewhere says so and lets the stream end, between two messages and never in the middle of a push.

use std::{ops::RangeInclusive, time::Duration};

use forebay_proto::{Position, limits, wire};
use tokio::{
    sync::{
        mpsc::{self, error::TrySendError},
        watch,
    },
    time::{Instant, Interval, interval_at, sleep, sleep_until, timeout, timeout_at},
};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Streaming, transport::Channel};
use wire::{from_worker::Message as Say, to_worker::Message as Heard};

use super::{
    ConfigClient, ConfigSource, Kept,
    chooser::{Left, Replica},
    ended::{Ended, Foreign},
    incoming::{Came, Incoming, Pushed, WITHIN},
    keys::OutOfOrder,
    leases::{LEASES, LeaseFollower},
    line,
};
use crate::{apply::Refusal, leases::Unreadable, trace_context};

/// Versions of the protocol that this build speaks: 2 has deltas and chunks, 3 clients' keys and the word to end, 4
/// leases.
const PROTOCOLS: RangeInclusive<u32> = 1..=LEASES;
const WELCOME: Duration = Duration::from_secs(5);
/// How long an answer may wait for pools to be warm.
const WARM_WITHIN: Duration = Duration::from_secs(5);
/// Until the control plane says otherwise.
const HEARTBEAT: Duration = Duration::from_secs(10);
const SILENCE: Duration = Duration::from_secs(35);
/// How long the last word may take to leave.
const LAST_WORD: Duration = Duration::from_millis(500);
/// How often it tells of requests that are still on what an earlier revision had.
const DRAINING: Duration = Duration::from_secs(1);
/// What the control plane may say instead.
const SANE: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(3_600);
/// How long a control plane may take to end the stream of a worker that goes elsewhere.
const PARTED: Duration = Duration::from_secs(1);
/// Most characters of what a control plane calls itself.
const NAME: usize = 64;

/// One stream.
pub(super) struct Session<'a> {
    client: &'a mut ConfigClient,
    replica: &'a Replica,
    say: mpsc::Sender<wire::FromWorker>,
    /// Its connection, to be shown once we are welcome.
    channel: Channel,
    silence: Duration,
    last_heard: Instant,
    heartbeat: Interval,
    /// Requests are still on what an earlier revision had; when to look again.
    draining: Option<Instant>,
    /// It was said that the worker ends.
    told_of_end: bool,
    incoming: Incoming,
    leases: LeaseFollower,
}

impl<'a> Session<'a> {
    /// Follows one control plane until the stream ends, or it is told to leave.
    pub(super) async fn follow(
        client: &'a mut ConfigClient,
        replica: &'a Replica,
        leave: watch::Receiver<Option<Left>>,
        shutdown: &CancellationToken,
    ) -> Ended {
        let followed = async {
            let (say, mut heard, channel) = open(client, replica).await?;
            client.keys.begin();
            let leases = LeaseFollower::new(client.applier.leases().clone());
            let heartbeat = ticker(HEARTBEAT);
            let mut session = Session {
                client,
                replica,
                say,
                channel,
                silence: SILENCE,
                last_heard: Instant::now(),
                heartbeat,
                draining: None,
                told_of_end: false,
                incoming: Incoming::default(),
                leases,
            };
            let left = session.listen(&mut heard, leave, shutdown).await?;
            session.part(heard).await;
            Err(Ended::Away(left))
        };
        let over = async {
            shutdown.cancelled().await;
            // It may have a last word.
            sleep(LAST_WORD * 2).await;
        };
        tokio::select! {
            result = followed => match result {
                Ok::<std::convert::Infallible, _>(never) => match never {},
                Err(ended) => ended,
            },
            () = over => Ended::Stopping,
        }
    }

    /// Goes, in good order: the control plane is not to take this worker for gone.
    async fn part(mut self, mut heard: Streaming<wire::ToWorker>) {
        if self.beat_with(None, true).is_err() {
            return;
        }
        drop(self);
        let ended = async { while let Ok(Some(_)) = heard.message().await {} };
        // One that does not answer finds out by itself.
        drop(timeout(PARTED, ended).await);
    }

    async fn listen(
        &mut self,
        heard: &mut Streaming<wire::ToWorker>,
        mut leave: watch::Receiver<Option<Left>>,
        shutdown: &CancellationToken,
    ) -> Result<Left, Ended> {
        let stopping = self.client.status.clone();
        loop {
            let silent = self.last_heard + self.silence;
            let complete = self.incoming.deadline();
            let due = complete.map_or(silent, |complete| complete.min(silent));
            let drained = self.draining.unwrap_or(due);
            let look = self.leases.next();
            let ending = self.client.status.is_stopping();
            let message = tokio::select! {
                message = timeout_at(due, heard.message()) => message,
                _ = self.heartbeat.tick() => {
                    self.client.keys.save().await;
                    self.beat()?;
                    continue;
                }
                () = stopping.stopping(), if !self.told_of_end => {
                    self.told_of_end = true;
                    self.beat()?;
                    continue;
                }
                () = sleep_until(drained), if self.draining.is_some() => {
                    self.beat()?;
                    continue;
                }
                left = told_to_leave(&mut leave), if complete.is_none() => return Ok(left),
                () = sleep_until(look.unwrap_or(due)), if look.is_some() => {
                    if let Some(report) = self.leases.look(&self.client.live, ending) {
                        self.say(Say::Leases(report))?;
                    }
                    continue;
                }
                () = shutdown.cancelled() => return Err(self.farewell(heard).await),
            };
            let message = match (message, due == silent) {
                (Ok(message), _) => message?,
                (Err(_), true) => return Err(Ended::Silent(self.silence)),
                (Err(_), false) => return Err(Ended::NoAnswer(WITHIN)),
            };
            self.last_heard = Instant::now();
            self.client.status.heard();
            let message = message.and_then(|message| message.message);
            self.hear(message.ok_or(Ended::Closed)?).await?;
        }
    }

    async fn hear(&mut self, message: Heard) -> Result<(), Ended> {
        let held = self.client.held.as_ref();
        let came = match message {
            Heard::Welcome(welcome) => return self.welcome(&welcome),
            Heard::Tick(tick) => {
                self.note_target(tick.target);
                return Ok(());
            }
            Heard::Drain(wire::Drain {}) => {
                tracing::info!("the control plane tells this worker to end");
                self.client.status.ask_to_end();
                return Ok(());
            }
            Heard::Goodbye(goodbye) => return Err(Ended::Told(goodbye.reason())),
            Heard::Prove(prove) => return self.prove(&prove),
            Heard::Keys(push) => return self.keys(push).await,
            Heard::Leases(grant) => {
                let taken = self.leases.take(grant, &self.client.live);
                return taken.map_err(|Unreadable| Ended::Protocol("a grant that cannot be read"));
            }
            Heard::Push(push) => self.incoming.push(push)?,
            Heard::Delta(delta) => self.incoming.delta(delta, held)?,
            Heard::Chunk(chunk) => self.incoming.chunk(chunk, held)?,
        };
        match came {
            Came::More => Ok(()),
            Came::Push(pushed) => self.push(pushed).await,
            Came::Useless { push_id, why } => {
                tracing::warn!(why, "delta not usable, asking for the whole configuration");
                self.client.metrics.resynced();
                let applied = self.applied();
                self.say(Say::Resync(wire::Resync { push_id, applied }))
            }
        }
    }

    /// What is held of fleet-wide limits is free from now on, if the worker ends.
    async fn farewell(&mut self, heard: &mut Streaming<wire::ToWorker>) -> Ended {
        if let Some(report) = self.leases.farewell()
            && self.say(Say::Leases(report)).is_ok()
        {
            // Nothing more is said: what was is sent before the stream ends.
            let (silent, _) = mpsc::channel(1);
            self.say = silent;
            let ended = async { while let Ok(Some(_)) = heard.message().await {} };
            drop(timeout(LAST_WORD, ended).await);
        }
        Ended::Stopping
    }

    async fn keys(&mut self, push: wire::KeysPush) -> Result<(), Ended> {
        match self.client.keys.take(push).await {
            Ok(false) => Ok(()),
            Ok(true) => {
                let held = self.client.keys.held();
                self.say(Say::KeysHeld(wire::KeysHeld { held }))
            }
            Err(OutOfOrder) => Err(Ended::Protocol("a part of keys out of order")),
        }
    }

    fn welcome(&mut self, welcome: &wire::Welcome) -> Result<(), Ended> {
        if !PROTOCOLS.contains(&welcome.protocol) {
            return Err(Ended::Protocol("the control plane speaks another version"));
        }
        let read = |duration: Option<_>, default| match duration.map(Duration::try_from) {
            Some(Ok(duration)) if SANE.contains(&duration) => duration,
            _ => default,
        };
        self.leases.welcome(welcome.protocol);
        self.silence = read(welcome.silence_limit, SILENCE);
        self.heartbeat = ticker(read(welcome.tick_interval, HEARTBEAT));
        self.check_store(welcome.target.clone())?;
        self.note_target(welcome.target.clone());
        let replica: String = welcome.replica.chars().take(NAME).collect();
        tracing::info!(
            worker = %self.client.identity.worker, control = %self.replica, replica, "following the control plane"
        );
        if let Some(because) = self.client.status.arrived(self.replica, replica) {
            self.client.metrics.control.moved(because);
        }
        *self.client.shared.channel.lock() = Some(self.channel.clone());
        // How requests go in this process is not in its first word, and a rollout may look before the next beat.
        self.beat()
    }

    /// What is in force is not given up for what another store has, unless that is the store of most control planes.
    fn check_store(&self, theirs: Option<wire::Position>) -> Result<(), Ended> {
        // A build that does not say what it has will say so when it pushes.
        let Some(Ok(theirs)) = theirs.map(Position::try_from) else {
            return Ok(());
        };
        let mut chooser = self.client.shared.chooser.lock();
        chooser.speaks(self.replica, &theirs.epoch);
        match self.client.live.load().position.clone() {
            Some(ours) if ours.epoch != theirs.epoch && !chooser.most_speak_of(&theirs.epoch) => {
                Err(Ended::Foreign(Box::new(Foreign { theirs, ours })))
            }
            _ => Ok(()),
        }
    }

    /// Another process has come under our id. That one is alive who answers.
    fn prove(&mut self, prove: &wire::Prove) -> Result<(), Ended> {
        let (instance, peer) = (plain(&prove.instance_id), plain(&prove.peer));
        tracing::error!(
            worker = %self.client.identity.worker, instance, peer,
            "another process connects to the control plane under this worker's id; give each its own --worker-id"
        );
        self.beat_with(Some(prove.number), false)
    }

    /// What the control plane wants may be what the last known good file already had.
    fn note_target(&self, target: Option<wire::Position>) {
        if target.is_some() && target == self.applied() {
            self.client.status.confirmed();
        }
    }

    async fn push(&mut self, push: Pushed) -> Result<(), Ended> {
        let position = push.to;
        let to = wire::Position::from(&position);
        self.check_store(Some(to.clone()))?;
        if let Some(refusal) = self.client.refuses(&position) {
            return self.refuse(push.push_id, to, &position, vec![refusal]);
        }
        if let Some(marks) = &mut self.client.marks {
            marks.trying(&position).await;
        }
        let span = tracing::info_span!("apply", revision = %position.revision);
        trace_context::adopt_text(&span, &push.traceparent);
        let began = Instant::now();
        let result = span.in_scope(|| self.client.applier.apply(&position, &push.config, &[]));
        let took = began.elapsed();
        match result {
            Ok(mut applied) => {
                self.client.metrics.applied(took.as_secs_f64());
                let revision = position.revision;
                let changed = std::mem::take(&mut applied.changed);
                let refusals = applied.refusals.iter().map(to_wire).collect();
                let kept = Kept {
                    position,
                    config: push.config,
                    retained: Vec::new(),
                };
                self.client
                    .took(kept, applied, ConfigSource::ControlPlane, true);
                let live = self.client.live.load();
                let routes = changed.iter().filter_map(|id| live.models.get(id));
                let counters =
                    routes.map(|route| (route.model.id.clone(), route.metrics.health.clone()));
                self.client.changed.note(revision, counters);
                // It serves already; it counts as applied when nobody has to wait for a connect.
                self.client.live.warmed(&changed, WARM_WITHIN).await;
                let apply_millis = u32::try_from(took.as_millis()).unwrap_or(u32::MAX);
                self.say(Say::Ack(wire::Ack {
                    push_id: push.push_id,
                    applied: Some(to),
                    apply_millis,
                    refusals,
                }))?;
                match self.client.live.draining_of(&changed) {
                    0 => Ok(()),
                    _ => self.beat(),
                }
            }
            Err(refusals) => {
                if let Some(marks) = &self.client.marks {
                    marks.refused();
                }
                self.refuse(push.push_id, to, &position, refusals)
            }
        }
    }

    fn refuse(
        &mut self,
        push_id: u64,
        to: wire::Position,
        position: &Position,
        refusals: Vec<Refusal>,
    ) -> Result<(), Ended> {
        for refusal in &refusals {
            self.client.metrics.rejected(refusal.reason);
            tracing::error!(
                %position, field = refusal.field, reason = refusal.reason.word(),
                why = refusal.message, "configuration refused, serving on what is in force"
            );
        }
        let nack = wire::Nack {
            push_id,
            attempted: Some(to),
            refusals: refusals.iter().map(to_wire).collect(),
        };
        self.client.refused = Some(nack.clone());
        self.say(Say::Nack(nack))
    }

    fn beat(&mut self) -> Result<(), Ended> {
        self.beat_with(None, false)
    }

    fn beat_with(&mut self, proves: Option<u64>, moves: bool) -> Result<(), Ended> {
        let draining = self.client.live.draining_requests();
        self.draining = (draining > 0).then(|| Instant::now() + DRAINING);
        let changed = self.client.changed.read();
        let changed = changed.map(|told| (&told).into()).collect();
        self.say(Say::Heartbeat(wire::Heartbeat {
            applied: self.applied(),
            draining_requests: u32::try_from(draining).unwrap_or(u32::MAX),
            health: Some((&self.client.metrics.health.read()).into()),
            changed,
            stopping: self.client.status.is_stopping(),
            proves: proves.unwrap_or_default(),
            moves,
        }))
    }

    fn applied(&self) -> Option<wire::Position> {
        self.client.live.load().position.as_ref().map(Into::into)
    }

    fn say(&self, message: Say) -> Result<(), Ended> {
        let message = wire::FromWorker {
            message: Some(message),
        };
        match self.say.try_send(message) {
            // What the control plane said at its end is still to be heard, and is the reason.
            Ok(()) | Err(TrySendError::Closed(_)) => Ok(()),
            Err(TrySendError::Full(_)) => Err(Ended::Protocol(
                "the control plane does not read our answers",
            )),
        }
    }
}

type Opened = (
    mpsc::Sender<wire::FromWorker>,
    Streaming<wire::ToWorker>,
    Channel,
);

async fn open(client: &ConfigClient, replica: &Replica) -> Result<Opened, Ended> {
    let channel = timeout(line::WITHIN, client.shared.line.connect(replica)).await;
    let channel = channel.map_err(|_| Ended::NoAnswer(line::WITHIN))??;
    let mut stub = wire::worker_sync_client::WorkerSyncClient::new(channel.clone())
        .max_decoding_message_size(limits::MESSAGE_BYTES)
        .max_encoding_message_size(limits::WORKER_MESSAGE_BYTES);
    let (say, said) = mpsc::channel(8);
    let hello = wire::FromWorker {
        message: Some(Say::Hello(hello(client, replica))),
    };
    say.try_send(hello)
        .map_err(|_| Ended::Protocol("no room for the first word"))?;
    let opened = timeout(WELCOME, stub.sync(ReceiverStream::new(said))).await;
    let heard = opened.map_err(|_| Ended::NoAnswer(WELCOME))??;
    Ok((say, heard.into_inner(), channel))
}

fn hello(client: &ConfigClient, replica: &Replica) -> wire::Hello {
    let (identity, live) = (&client.identity, client.live.load());
    let (moves, because) = client.status.moves_with(replica);
    wire::Hello {
        worker_id: identity.worker.to_string(),
        instance_id: identity.instance.to_string(),
        build: identity.build.clone(),
        protocol_min: *PROTOCOLS.start(),
        protocol_max: *PROTOCOLS.end(),
        applied: live.position.as_ref().map(Into::into),
        gateway_address: identity.gateway_address.clone(),
        quarantined: client.quarantined.iter().map(Into::into).collect(),
        refusals: live.refusals.iter().map(to_wire).collect(),
        keys: client.keys.held(),
        control: replica.to_string(),
        moves,
        moved_because: because.map_or_else(String::new, |left| left.word().to_owned()),
        proves: true,
        refused: client.refused.clone(),
        takes_over: client.identity.takes_over,
        let_in_millis: u64::try_from(client.status.let_in_for().as_millis()).unwrap_or_default(),
        streams: client.status.opens(),
    }
}

/// Waits until it is time to go.
async fn told_to_leave(leave: &mut watch::Receiver<Option<Left>>) -> Left {
    let told = leave.wait_for(Option::is_some).await;
    match told.map(|left| *left) {
        Ok(Some(left)) => left,
        Ok(None) | Err(_) => std::future::pending().await,
    }
}

/// Text of somebody else's, for the log.
fn plain(text: &str) -> String {
    let plain = text.chars().filter(|c| !c.is_control());
    plain.take(NAME).collect()
}

fn to_wire(refusal: &Refusal) -> wire::Refusal {
    wire::Refusal {
        model: refusal.model.clone(),
        field: refusal.field.clone(),
        reason: refusal.reason.word().to_owned(),
        message: refusal.message.clone(),
    }
}

fn ticker(every: Duration) -> Interval {
    interval_at(Instant::now() + every, every)
}
