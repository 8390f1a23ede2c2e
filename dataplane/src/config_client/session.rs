//! One stream to one control plane, from the first word to its end.
//!
//! The worker says what it holds; the control plane answers, then pushes. Each push is applied or
//! refused as a whole and answered at once. At most one push is unanswered, so the outbound queue
//! cannot fill; if it does, the peer is broken and the stream ends. Every wait has a deadline.

use std::{ops::RangeInclusive, time::Duration};

use forebay_proto::{Position, limits, wire};
use http::Uri;
use tokio::{
    sync::mpsc,
    time::{Instant, Interval, interval_at, timeout, timeout_at},
};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Streaming, transport::Endpoint};
use wire::{from_worker::Message as Say, to_worker::Message as Heard};

use super::{ConfigClient, ConfigSource, Kept};
use crate::{apply::Refusal, trace_context};

/// Versions of the protocol that this build speaks.
const PROTOCOL: u32 = 1;
const CONNECT: Duration = Duration::from_secs(3);
const WELCOME: Duration = Duration::from_secs(5);
/// How long an answer may wait for pools to be warm.
const WARM_WITHIN: Duration = Duration::from_secs(5);
/// Until the control plane says otherwise.
const HEARTBEAT: Duration = Duration::from_secs(10);
const SILENCE: Duration = Duration::from_secs(35);
/// What the control plane may say instead.
const SANE: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(3_600);
const PING: Duration = Duration::from_secs(10);
const PING_ANSWER: Duration = Duration::from_secs(5);

/// Why a stream ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum Ended {
    #[error("cannot connect: {0}")]
    Connect(#[from] tonic::transport::Error),
    #[error("{}: {}", .0.code(), .0.message())]
    Status(#[from] tonic::Status),
    #[error("no answer within {0:?}")]
    NoAnswer(Duration),
    #[error("silent for {0:?}")]
    Silent(Duration),
    #[error("closed by the control plane")]
    Closed,
    #[error("protocol error: {0}")]
    Protocol(&'static str),
    #[error("stopping")]
    Stopping,
}

/// One stream.
pub(super) struct Session<'a> {
    client: &'a mut ConfigClient,
    say: mpsc::Sender<wire::FromWorker>,
    silence: Duration,
    last_heard: Instant,
    heartbeat: Interval,
}

impl<'a> Session<'a> {
    /// Follows one control plane until the stream ends.
    pub(super) async fn follow(
        client: &'a mut ConfigClient,
        uri: &Uri,
        shutdown: &CancellationToken,
    ) -> Ended {
        let followed = async {
            let (say, heard) = open(client, uri).await?;
            let heartbeat = ticker(HEARTBEAT);
            let mut session = Session {
                client,
                say,
                silence: SILENCE,
                last_heard: Instant::now(),
                heartbeat,
            };
            session.listen(heard).await
        };
        tokio::select! {
            result = followed => match result {
                Ok(never) => match never {},
                Err(ended) => ended,
            },
            () = shutdown.cancelled() => Ended::Stopping,
        }
    }

    async fn listen(
        &mut self,
        mut heard: Streaming<wire::ToWorker>,
    ) -> Result<std::convert::Infallible, Ended> {
        loop {
            let message = tokio::select! {
                message = timeout_at(self.last_heard + self.silence, heard.message()) => message,
                _ = self.heartbeat.tick() => {
                    self.say(Say::Heartbeat(wire::Heartbeat { applied: self.applied() }))?;
                    continue;
                }
            };
            let message = message.map_err(|_| Ended::Silent(self.silence))??;
            self.last_heard = Instant::now();
            self.client.status.heard();
            match message
                .and_then(|message| message.message)
                .ok_or(Ended::Closed)?
            {
                Heard::Welcome(welcome) => self.welcome(&welcome)?,
                Heard::Push(push) => self.push(push).await?,
                Heard::Tick(tick) => self.note_target(tick.target),
            }
        }
    }

    fn welcome(&mut self, welcome: &wire::Welcome) -> Result<(), Ended> {
        if welcome.protocol != PROTOCOL {
            return Err(Ended::Protocol("the control plane speaks another version"));
        }
        let read = |duration: Option<_>, default| match duration.map(Duration::try_from) {
            Some(Ok(duration)) if SANE.contains(&duration) => duration,
            _ => default,
        };
        self.silence = read(welcome.silence_limit, SILENCE);
        self.heartbeat = ticker(read(welcome.tick_interval, HEARTBEAT));
        self.note_target(welcome.target.clone());
        tracing::info!(worker = %self.client.identity.worker, "following the control plane");
        Ok(())
    }

    /// What the control plane wants may be what the last known good file already had.
    fn note_target(&self, target: Option<wire::Position>) {
        if target.is_some() && target == self.applied() {
            self.client.status.confirmed();
        }
    }

    async fn push(&mut self, push: wire::Push) -> Result<(), Ended> {
        let to = push
            .to
            .clone()
            .ok_or(Ended::Protocol("a push without a position"))?;
        let Ok(position) = Position::try_from(to.clone()) else {
            return Err(Ended::Protocol("a push with a malformed position"));
        };
        let span = tracing::info_span!("apply", revision = %position.revision);
        trace_context::adopt_text(&span, &push.traceparent);
        let began = Instant::now();
        let result = span.in_scope(|| self.client.applier.apply(&position, &push.config));
        let took = began.elapsed();
        match result {
            Ok(changed) => {
                self.client.status.applied(ConfigSource::ControlPlane);
                self.client.metrics.applied(took.as_secs_f64());
                self.client.keep.send_replace(Some(Kept {
                    position,
                    config: push.config,
                }));
                // It serves already; it counts as applied when nobody has to wait for a connect.
                self.client.live.warmed(&changed, WARM_WITHIN).await;
                let apply_millis = u32::try_from(took.as_millis()).unwrap_or(u32::MAX);
                self.say(Say::Ack(wire::Ack {
                    push_id: push.push_id,
                    applied: Some(to),
                    apply_millis,
                }))
            }
            Err(refusals) => self.refuse(push.push_id, to, &position, refusals),
        }
    }

    fn refuse(
        &self,
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
        let refusals = refusals.into_iter().map(to_wire).collect();
        self.say(Say::Nack(wire::Nack {
            push_id,
            attempted: Some(to),
            refusals,
        }))
    }

    fn applied(&self) -> Option<wire::Position> {
        self.client.live.load().position.as_ref().map(Into::into)
    }

    fn say(&self, message: Say) -> Result<(), Ended> {
        let message = wire::FromWorker {
            message: Some(message),
        };
        self.say
            .try_send(message)
            .map_err(|_| Ended::Protocol("the control plane does not read our answers"))
    }
}

async fn open(
    client: &ConfigClient,
    uri: &Uri,
) -> Result<(mpsc::Sender<wire::FromWorker>, Streaming<wire::ToWorker>), Ended> {
    let endpoint = Endpoint::from(uri.clone())
        .connect_timeout(CONNECT)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(PING)
        .keep_alive_timeout(PING_ANSWER)
        .keep_alive_while_idle(true);
    let channel = timeout(CONNECT * 2, client.connect(&endpoint)).await;
    let channel = channel.map_err(|_| Ended::NoAnswer(CONNECT * 2))??;
    let mut stub = wire::worker_sync_client::WorkerSyncClient::new(channel)
        .max_decoding_message_size(limits::MESSAGE_BYTES)
        .max_encoding_message_size(limits::MESSAGE_BYTES);
    let (say, said) = mpsc::channel(8);
    let hello = wire::FromWorker {
        message: Some(Say::Hello(hello(client))),
    };
    say.try_send(hello)
        .map_err(|_| Ended::Protocol("no room for the first word"))?;
    let opened = timeout(WELCOME, stub.sync(ReceiverStream::new(said))).await;
    let heard = opened.map_err(|_| Ended::NoAnswer(WELCOME))??;
    Ok((say, heard.into_inner()))
}

fn hello(client: &ConfigClient) -> wire::Hello {
    let identity = &client.identity;
    wire::Hello {
        worker_id: identity.worker.to_string(),
        instance_id: identity.instance.to_string(),
        build: identity.build.clone(),
        protocol_min: PROTOCOL,
        protocol_max: PROTOCOL,
        applied: client.live.load().position.as_ref().map(Into::into),
        gateway_address: identity.gateway_address.clone(),
    }
}

fn to_wire(refusal: Refusal) -> wire::Refusal {
    wire::Refusal {
        model: String::new(),
        field: refusal.field,
        reason: refusal.reason.word().to_owned(),
        message: refusal.message,
    }
}

fn ticker(every: Duration) -> Interval {
    interval_at(Instant::now() + every, every)
}
