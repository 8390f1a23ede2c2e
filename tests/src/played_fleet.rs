//! A fleet of workers that is played: real gRPC streams, one connection each, and nothing behind them. It says
//! hello, takes what is pushed, whole or as a delta, in one message or in chunks, answers at once, and counts.
//!
//! Of what it is sent it checks no more than that a delta begins with what it holds; the tests of the worker do the
//! rest.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use forebay_proto::wire;
use parking_lot::Mutex;
use prost::Message as _;
use tokio::{
    sync::{Notify, Semaphore, mpsc},
    task::JoinSet,
    time::{Instant, interval, sleep, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Streaming,
    transport::{Channel, Endpoint},
};
use wire::{from_worker::Message as Say, to_worker::Message as Heard};

/// Connects under way at the same time: what one process can do, not what is measured.
const CONNECTING: usize = 256;
const WINDOW: u32 = 64 << 10;
const PATIENCE: Duration = Duration::from_secs(120);

/// What the players saw, all together.
#[derive(Debug, Default)]
struct Seen {
    /// The revision that is waited for, how many hold it, and when the last of them came to do so.
    race: Mutex<Race>,
    finished: Notify,
    pushes: AtomicU64,
    deltas: AtomicU64,
    push_bytes: AtomicU64,
    most_bytes: AtomicUsize,
    lost: AtomicU64,
    /// When pushes came, and which revision each made the worker hold; noted if somebody asked for it.
    arrivals: Mutex<Option<Vec<(u64, Instant)>>>,
}

#[derive(Debug, Default)]
struct Race {
    revision: u64,
    holders: usize,
    wanted: usize,
    ended: Option<Instant>,
}

/// What was pushed since the last look.
#[derive(Debug, Clone, Copy, Default)]
pub struct Pushed {
    /// Pushes, whole or deltas.
    pub pushes: u64,
    /// Deltas among them.
    pub deltas: u64,
    /// Size of their messages, all together.
    pub bytes: u64,
    /// The largest push, its messages together.
    pub most: usize,
}

/// Workers that are played.
#[derive(Debug)]
pub struct PlayedFleet {
    control: String,
    seen: Arc<Seen>,
    held: Arc<Vec<Mutex<Option<wire::Position>>>>,
    playing: JoinSet<()>,
}

impl PlayedFleet {
    /// So many, none of them connected yet.
    #[must_use]
    pub fn new(control: &str, workers: usize) -> Self {
        Self {
            control: control.to_owned(),
            seen: Arc::default(),
            held: Arc::new((0..workers).map(|_| Mutex::default()).collect()),
            playing: JoinSet::new(),
        }
    }

    /// Connects them all at once, and gives the time until all hold this revision.
    pub async fn connect(&mut self, revision: u64) -> Duration {
        let began = Instant::now();
        self.expect(revision);
        let turns = Arc::new(Semaphore::new(CONNECTING));
        for number in 0..self.held.len() {
            let player = Player {
                control: self.control.clone(),
                number,
                seen: self.seen.clone(),
                held: self.held.clone(),
            };
            self.playing.spawn(player.play(turns.clone()));
        }
        self.all_hold().await - began
    }

    /// Cuts every connection.
    pub async fn cut(&mut self) {
        self.playing.shutdown().await;
    }

    /// From now on this revision is waited for.
    pub fn expect(&self, revision: u64) {
        let holders = self.held.iter().filter(|held| {
            let held = held.lock();
            !self.playing.is_empty() && held.as_ref().is_some_and(|held| held.revision >= revision)
        });
        *self.seen.race.lock() = Race {
            revision,
            holders: holders.count(),
            wanted: self.held.len(),
            ended: None,
        };
    }

    /// Whether every worker holds this revision or a newer one.
    #[must_use]
    pub fn holds(&self, revision: u64) -> bool {
        let mut held = self.held.iter();
        held.all(|held| {
            held.lock()
                .as_ref()
                .is_some_and(|held| held.revision >= revision)
        })
    }

    /// When the last worker came to hold the revision that is waited for.
    pub async fn all_hold(&self) -> Instant {
        loop {
            let finished = self.seen.finished.notified();
            if let Some(ended) = self.seen.race.lock().ended {
                return ended;
            }
            if timeout(PATIENCE, finished).await.is_err() {
                let race = self.seen.race.lock();
                panic!("{} of {} hold {}", race.holders, race.wanted, race.revision);
            }
        }
    }

    /// What was pushed since the last look.
    #[must_use]
    pub fn pushed(&self) -> Pushed {
        Pushed {
            pushes: self.seen.pushes.swap(0, Ordering::Relaxed),
            deltas: self.seen.deltas.swap(0, Ordering::Relaxed),
            bytes: self.seen.push_bytes.swap(0, Ordering::Relaxed),
            most: self.seen.most_bytes.swap(0, Ordering::Relaxed),
        }
    }

    /// From now on it is noted when pushes come.
    pub fn note_arrivals(&self) {
        *self.seen.arrivals.lock() = Some(Vec::new());
    }

    /// The revisions that were pushed since then, each with when it came, and no more is noted.
    #[must_use]
    pub fn arrivals(&self) -> Vec<(u64, Instant)> {
        self.seen.arrivals.lock().take().unwrap_or_default()
    }

    /// Streams that ended without being asked to.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.seen.lost.load(Ordering::Relaxed)
    }
}

/// A push of which more is to come.
struct Coming {
    push_id: u64,
    to: Option<wire::Position>,
    bytes: usize,
}

struct Player {
    control: String,
    number: usize,
    seen: Arc<Seen>,
    held: Arc<Vec<Mutex<Option<wire::Position>>>>,
}

impl Player {
    async fn play(self, turns: Arc<Semaphore>) {
        loop {
            let turn = turns.acquire().await;
            let opened = open(
                &self.control,
                &format!("played-{}", self.number),
                self.holds(),
            )
            .await;
            drop(turn);
            if let Ok((say, heard)) = opened {
                self.follow(&say, heard).await;
            }
            self.seen.lost.fetch_add(1, Ordering::Relaxed);
            sleep(Duration::from_millis(fastrand::u64(10..250))).await;
        }
    }

    async fn follow(
        &self,
        say: &mpsc::Sender<wire::FromWorker>,
        mut heard: Streaming<wire::ToWorker>,
    ) {
        let mut beat = interval(Duration::from_secs(10));
        let mut coming = None;
        loop {
            let message = tokio::select! {
                message = heard.message() => message,
                _ = beat.tick() => {
                    let alive = Say::Heartbeat(wire::Heartbeat { applied: self.holds(), ..Default::default() });
                    if tell(say, alive).await { continue } else { return }
                }
            };
            let Ok(Some(message)) = message else { return };
            if !self.take(say, &mut coming, message).await {
                return;
            }
        }
    }

    async fn take(
        &self,
        say: &mpsc::Sender<wire::FromWorker>,
        coming: &mut Option<Coming>,
        message: wire::ToWorker,
    ) -> bool {
        let bytes = message.encoded_len();
        match message.message {
            Some(Heard::Push(push)) => {
                let (push_id, to, more) = (push.push_id, push.to, push.chunked_bytes > 0);
                let push = Coming { push_id, to, bytes };
                self.announced(say, coming, push, more).await
            }
            Some(Heard::Delta(delta)) => {
                assert_eq!(delta.from, self.holds(), "a delta begins with what is held");
                self.seen.deltas.fetch_add(1, Ordering::Relaxed);
                let (push_id, to) = (delta.push_id, delta.to);
                let push = Coming { push_id, to, bytes };
                self.announced(say, coming, push, delta.chunked_bytes > 0)
                    .await
            }
            // It was said that workers of this build can be told; nobody does.
            Some(Heard::Drain(_) | Heard::Leases(_) | Heard::Prove(_)) => false,
            Some(Heard::Chunk(chunk)) => {
                let Some(mut push) = coming.take() else {
                    return false;
                };
                push.bytes += bytes;
                self.announced(say, coming, push, !chunk.last).await
            }
            Some(Heard::Goodbye(_)) => false,
            Some(Heard::Welcome(welcome)) => {
                // It came back with what is in force.
                if welcome.target.is_some() && welcome.target == self.holds() {
                    self.arrived(welcome.target.map_or(0, |target| target.revision));
                }
                true
            }
            // It speaks no protocol that has keys.
            Some(Heard::Tick(_) | Heard::Keys(_)) | None => true,
        }
    }

    /// A push so far: it is answered when no more is to come.
    async fn announced(
        &self,
        say: &mpsc::Sender<wire::FromWorker>,
        coming: &mut Option<Coming>,
        push: Coming,
        more: bool,
    ) -> bool {
        if more {
            *coming = Some(push);
            return true;
        }
        self.count(push.bytes);
        if let (Some(arrivals), Some(to)) = (&mut *self.seen.arrivals.lock(), &push.to) {
            arrivals.push((to.revision, Instant::now()));
        }
        self.hold(push.to.clone());
        let ack = wire::Ack {
            push_id: push.push_id,
            applied: push.to,
            apply_millis: 1,
            ..wire::Ack::default()
        };
        tell(say, Say::Ack(ack)).await
    }

    fn count(&self, bytes: usize) {
        self.seen.pushes.fetch_add(1, Ordering::Relaxed);
        self.seen
            .push_bytes
            .fetch_add(bytes as u64, Ordering::Relaxed);
        self.seen.most_bytes.fetch_max(bytes, Ordering::Relaxed);
    }

    fn holds(&self) -> Option<wire::Position> {
        self.held
            .get(self.number)
            .and_then(|held| held.lock().clone())
    }

    fn hold(&self, to: Option<wire::Position>) {
        let revision = to.as_ref().map_or(0, |to| to.revision);
        if let Some(held) = self.held.get(self.number) {
            *held.lock() = to;
        }
        self.arrived(revision);
    }

    fn arrived(&self, revision: u64) {
        let mut race = self.seen.race.lock();
        if revision < race.revision || race.ended.is_some() {
            return;
        }
        race.holders += 1;
        if race.holders == race.wanted {
            race.ended = Some(Instant::now());
            self.seen.finished.notify_waiters();
        }
    }
}

pub(crate) async fn tell(say: &mpsc::Sender<wire::FromWorker>, message: Say) -> bool {
    let message = wire::FromWorker {
        message: Some(message),
    };
    say.send(message).await.is_ok()
}

pub(crate) type OpenError = Box<dyn std::error::Error + Send + Sync>;
pub(crate) type Stream = (mpsc::Sender<wire::FromWorker>, Streaming<wire::ToWorker>);

pub(crate) async fn open(
    control: &str,
    worker: &str,
    applied: Option<wire::Position>,
) -> Result<Stream, OpenError> {
    let channel = Endpoint::from_shared(control.to_owned())?
        .tcp_nodelay(true)
        // Who reads nothing is to stall its peer soon, not to fill its own memory.
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(WINDOW)
        .connect()
        .await?;
    open_on(channel, worker, applied).await
}

/// Opens a worker's stream on a connection, and says hello.
pub(crate) async fn open_on(
    channel: Channel,
    worker: &str,
    applied: Option<wire::Position>,
) -> Result<Stream, OpenError> {
    let mut stub = wire::worker_sync_client::WorkerSyncClient::new(channel)
        .max_decoding_message_size(forebay_proto::limits::MESSAGE_BYTES);
    let (say, said) = mpsc::channel(4);
    let hello = wire::Hello {
        worker_id: worker.to_owned(),
        instance_id: worker.to_owned(),
        build: "played".to_owned(),
        protocol_min: 1,
        protocol_max: 2,
        applied,
        ..wire::Hello::default()
    };
    tell(&say, Say::Hello(hello)).await;
    let heard = stub.sync(ReceiverStream::new(said)).await?;
    Ok((say, heard.into_inner()))
}
