//! Control planes on an etcd that has a fault: clients write and read through all of them, a worker serves, a member of
//! etcd is killed, cut off, paused or compacted, and everything that was seen is judged (`register.rs`).

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use forebay_etcd::{Etcd, MEMBERS};
use forebay_mock::{MockConfig, MockServer};
use forebay_proto::wire;
use parking_lot::Mutex;
use tokio::{
    task::JoinSet,
    time::{Instant, sleep},
};
use tonic::{Code, Request, Status, transport::Channel};
use wire::model_registry_client::ModelRegistryClient;

use crate::{
    Chat, Client, Ended, Read, Replicas, WorkerHandle, Wrote, eventually_within, judge, model_at,
};

/// Clients that write.
const WRITERS: usize = 4;
/// Models of each.
const MODELS: usize = 5;
/// Clients that read.
const READERS: usize = 2;
/// Clients of the gateway.
const CALLERS: usize = 4;
/// A write is tried at one control plane for so long, then at the next.
const CALL: Duration = Duration::from_secs(8);
/// Then it is given up, its fate unknown.
const WRITE_WITHIN: Duration = Duration::from_secs(40);
/// Between two writes of a client.
const APART: Duration = Duration::from_millis(15);
const READ_EVERY: Duration = Duration::from_millis(120);
/// Before a fault and after it.
const CALM: Duration = Duration::from_millis(800);
/// What the worker serves.
const BASE: &str = "base";

/// What happens to etcd.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The leader is killed (-9) and started again.
    KillLeader,
    /// One of the others is, and stays away for the whole run.
    LoseOne,
    /// The leader is cut off from the others; clients reach it all the same.
    CutOffLeader,
    /// One of the others is.
    CutOffOne,
    /// What the leader says does not reach one of the others; what that one says does.
    OneWay,
    /// The leader is stopped where it is (SIGSTOP).
    PauseLeader,
    /// One of the others is.
    PauseOne,
    /// Everything but the newest is forgotten, again and again.
    Compact,
}

impl Fault {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::KillLeader,
        Self::LoseOne,
        Self::CutOffLeader,
        Self::CutOffOne,
        Self::OneWay,
        Self::PauseLeader,
        Self::PauseOne,
        Self::Compact,
    ];

    /// In words.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::KillLeader => "leader killed",
            Self::LoseOne => "one of three lost",
            Self::CutOffLeader => "leader cut off",
            Self::CutOffOne => "follower cut off",
            Self::OneWay => "cut one way",
            Self::PauseLeader => "leader paused",
            Self::PauseOne => "follower paused",
            Self::Compact => "compacted",
        }
    }
}

/// How a run went.
#[derive(Debug, Clone)]
pub struct Weather {
    /// Writes that were acknowledged.
    pub acknowledged: usize,
    /// Writes without an answer.
    pub unknown: usize,
    /// Longest time without an acknowledged write, all clients together.
    pub gap: Duration,
    /// Longest time that one write took, its repetitions included.
    pub longest: Duration,
    /// Reads that asked for the newest.
    pub reads: usize,
    /// Requests that the worker served.
    pub requests: u64,
    /// And those that failed, with what.
    pub failed: Vec<String>,
    /// All that the history cannot explain, and all that should not be.
    pub wrong: Vec<String>,
}

/// Three members, control planes on them, a worker that serves.
#[derive(Debug)]
pub struct Stand {
    /// The members.
    pub etcd: Etcd,
    /// The control planes.
    pub replicas: Replicas,
    worker: WorkerHandle,
    _upstream: MockServer,
    runs: usize,
}

/// What clients saw.
#[derive(Default)]
struct Seen {
    writes: Mutex<Vec<Wrote>>,
    reads: Mutex<Vec<Read>>,
    requests: AtomicU64,
    failed: Mutex<Vec<String>>,
    stop: AtomicBool,
}

impl Stand {
    /// Everything started, and a worker that serves a model.
    pub async fn start(replicas: usize) -> Self {
        let etcd = Etcd::start().await;
        let replicas = Replicas::start(&etcd.store("faults"), replicas).await;
        let upstream = MockServer::start(MockConfig::serving(BASE))
            .await
            .expect("a mock");
        let model = model_at(BASE, &upstream.url());
        let request = wire::CreateModelRequest {
            model: Some(model),
            ..wire::CreateModelRequest::default()
        };
        let created = replicas.registry(0).create_model(request).await;
        created.expect("the model is registered");
        let all: Vec<_> = (0..replicas.count()).collect();
        let worker = replicas.worker("w1", &all).await;
        let client = worker.client();
        eventually_within(Duration::from_secs(20), "the worker serves", async || {
            let ended = client.finish(BASE, Chat::Whole, 1).await;
            (ended == Ended::Well).then_some(())
        })
        .await;
        Self {
            etcd,
            replicas,
            worker,
            _upstream: upstream,
            runs: 0,
        }
    }

    /// One run with this fault, which lasts so long.
    pub async fn run(&mut self, fault: Fault, lasts: Duration) -> Weather {
        self.runs += 1;
        let (from, before) = self.content().await;
        let (seen, began) = (Arc::new(Seen::default()), Instant::now());
        let mut clients = JoinSet::new();
        let registries: Vec<_> = (0..self.replicas.count())
            .map(|n| ModelRegistryClient::new(self.replicas.channel(n, CALL)))
            .collect();
        for n in 0..WRITERS {
            let mut registries = registries.clone();
            registries.rotate_left(n % self.replicas.count());
            let writer = Writer {
                n,
                run: self.runs,
                registries,
                began,
                seen: seen.clone(),
            };
            let keys = (0..MODELS).map(|slot| writer.key(slot));
            let there = keys.map(|key| before.contains_key(&key)).collect();
            clients.spawn(writer.write(there));
        }
        for n in 0..READERS {
            let mut registries = registries.clone();
            registries.rotate_left(n % self.replicas.count());
            clients.spawn(read(registries, began, seen.clone()));
        }
        for n in 0..CALLERS {
            let chat = if n % 2 == 0 {
                Chat::Whole
            } else {
                Chat::Stream
            };
            clients.spawn(call(self.worker.client(), chat, seen.clone()));
        }
        sleep(CALM).await;
        self.strike(fault, lasts).await;
        self.etcd.mend().await;
        sleep(CALM).await;
        seen.stop.store(true, Ordering::Relaxed);
        while let Some(ended) = clients.join_next().await {
            ended.expect("a client ends well");
        }
        self.judge(from, &before, &seen).await
    }

    async fn strike(&mut self, fault: Fault, lasts: Duration) {
        let leader = self.etcd.leader().await;
        let other = (leader + 1 + fastrand::usize(..MEMBERS - 1)) % MEMBERS;
        match fault {
            Fault::KillLeader => {
                self.etcd.kill(leader).await;
                sleep(lasts / 2).await;
                self.etcd.restart(leader);
                sleep(lasts / 2).await;
            }
            Fault::LoseOne => {
                self.etcd.kill(other).await;
                sleep(lasts).await;
            }
            Fault::CutOffLeader => {
                self.etcd.isolate(leader);
                sleep(lasts).await;
            }
            Fault::CutOffOne => {
                self.etcd.isolate(other);
                sleep(lasts).await;
            }
            Fault::OneWay => {
                self.etcd.cut_one_way(leader, other);
                sleep(lasts).await;
            }
            Fault::PauseLeader => {
                self.etcd.pause(leader);
                sleep(lasts).await;
            }
            Fault::PauseOne => {
                self.etcd.pause(other);
                sleep(lasts).await;
            }
            Fault::Compact => {
                for _ in 0..5 {
                    self.etcd.compact().await;
                    sleep(lasts / 5).await;
                }
            }
        }
    }

    async fn judge(&self, from: u64, before: &BTreeMap<String, String>, seen: &Seen) -> Weather {
        let (newest, content) = self.content().await;
        let history = self.history(from, newest).await;
        let (writes, mut reads) = (seen.writes.lock().clone(), seen.reads.lock().clone());
        // What is there in the end must be what the history comes to.
        reads.push(Read {
            began: Duration::MAX,
            ended: Duration::MAX,
            revision: newest,
            content,
        });
        let mut wrong = judge(from, before, &history, &writes, &reads);
        wrong.extend(self.converged(newest).await);
        let mut ended: Vec<_> = writes.iter().filter_map(|write| write.ended).collect();
        ended.sort();
        let gaps = ended.iter().zip(ended.iter().skip(1));
        let took = writes
            .iter()
            .filter_map(|w| Some(w.ended?.saturating_sub(w.began)));
        Weather {
            acknowledged: ended.len(),
            unknown: writes.len() - ended.len(),
            gap: gaps
                .map(|(one, next)| *next - *one)
                .max()
                .unwrap_or(Duration::MAX),
            longest: took.max().unwrap_or_default(),
            reads: reads.len(),
            requests: seen.requests.load(Ordering::Relaxed),
            failed: seen.failed.lock().clone(),
            wrong,
        }
    }

    /// Every control plane has come to the same, and the worker to it.
    async fn converged(&self, newest: u64) -> Vec<String> {
        let mut wrong = Vec::new();
        let mut digests = Vec::new();
        for n in 0..self.replicas.count() {
            let request = strong(wire::GetRevisionRequest { revision: newest });
            match self.replicas.revisions(n).get_revision(request).await {
                Ok(answer) => digests.push(answer.into_inner().digest),
                Err(status) => wrong.push(format!("c{n}: {}", status.message())),
            }
        }
        digests.dedup();
        if digests.len() != 1 {
            wrong.push(format!(
                "control planes differ on revision {newest}: {digests:?}"
            ));
        }
        let mut fleet = self.replicas.fleet(0);
        eventually_within(Duration::from_secs(20), "the worker has it", async || {
            let request = wire::GetRolloutRequest {
                revision: Some(newest),
            };
            let rollout = fleet.get_rollout(request).await.ok()?.into_inner();
            let there = rollout
                .workers
                .iter()
                .any(|worker| worker.applied_revision >= newest);
            there.then_some(())
        })
        .await;
        wrong
    }

    /// The newest revision and what is there.
    async fn content(&self) -> (u64, BTreeMap<String, String>) {
        let mut registry = self.replicas.registry(0);
        let listed = registry.list_models(strong(everything())).await;
        content_of(listed.expect("models are listed").into_inner())
    }

    /// The writes after one revision up to another, with their names.
    async fn history(&self, from: u64, to: u64) -> Vec<(u64, String)> {
        let (mut history, mut page_token) = (Vec::new(), String::new());
        loop {
            let request = wire::ListRevisionsRequest {
                page_size: 1_000,
                page_token,
            };
            let page = self
                .replicas
                .revisions(0)
                .list_revisions(strong(request))
                .await;
            let page = page.expect("the history is listed").into_inner();
            let entries = page.revisions.into_iter();
            history.extend(entries.map(|entry| (entry.revision, entry.reason)));
            let enough = history.last().is_none_or(|(revision, _)| *revision <= from);
            page_token = page.next_page_token;
            if enough || page_token.is_empty() {
                break;
            }
        }
        history.retain(|(revision, _)| *revision > from && *revision <= to);
        history.reverse();
        history
    }
}

fn everything() -> wire::ListModelsRequest {
    wire::ListModelsRequest {
        page_size: 1_000,
        ..wire::ListModelsRequest::default()
    }
}

/// Asks for the newest there is.
fn strong<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    let value = "strong".parse().expect("ascii");
    request.metadata_mut().insert("forebay-consistency", value);
    request
}

/// But for what the worker serves, which nobody changes.
fn content_of(list: wire::ListModelsResponse) -> (u64, BTreeMap<String, String>) {
    let models = list.models.into_iter().filter(|model| model.id != BASE);
    let content = models.map(|model| {
        let url = model.endpoints.first().map(|endpoint| endpoint.url.clone());
        (model.id, url.unwrap_or_default())
    });
    (list.revision, content.collect())
}

struct Writer {
    n: usize,
    run: usize,
    registries: Vec<ModelRegistryClient<Channel>>,
    began: Instant,
    seen: Arc<Seen>,
}

impl Writer {
    fn key(&self, slot: usize) -> String {
        format!("w{}-{slot}", self.n)
    }

    /// An endpoint that nothing else has.
    fn value(&self, n: usize) -> String {
        let [.., a, b, c] = n.to_be_bytes();
        let port = 10_000 + (self.run % 5_000) * 10 + self.n;
        format!("http://127.{a}.{b}.{c}:{port}")
    }

    /// Creates, changes and deletes models of its own, of which these are there, and one that all change.
    async fn write(mut self, mut there: Vec<bool>) {
        let mut n = 0;
        while !self.seen.stop.load(Ordering::Relaxed) {
            n += 1;
            let slot = n % MODELS;
            let Some(known) = there.get_mut(slot) else {
                return;
            };
            let (key, value) = (self.key(slot), self.value(n));
            let (key, value) = match (n % 7, *known) {
                (0, _) => ("shared".to_owned(), Some(value)),
                (3, true) => {
                    *known = false;
                    (key, None)
                }
                _ => {
                    *known = true;
                    (key, Some(value))
                }
            };
            if !self.one(n, key, value).await {
                // What became of it is not known, so neither is what could be written next.
                return;
            }
            sleep(APART.mul_f64(0.5 + fastrand::f64())).await;
        }
    }

    /// One write, at one control plane after the other until it is answered. The request's id makes it one.
    async fn one(&mut self, n: usize, key: String, value: Option<String>) -> bool {
        let tag = format!("r{}-w{}-{n}", self.run, self.n);
        let began = self.began.elapsed();
        let give_up = Instant::now() + WRITE_WITHIN;
        let mut answered = None;
        while answered.is_none() && Instant::now() < give_up {
            let Some(registry) = self.registries.first_mut() else {
                break;
            };
            match ask(registry, &tag, &key, value.as_deref()).await {
                Ok(revision) => answered = Some(revision),
                Err(status) => {
                    let passes = [
                        Code::Unavailable,
                        Code::Aborted,
                        Code::Cancelled,
                        Code::DeadlineExceeded,
                        Code::ResourceExhausted,
                        Code::Unknown,
                        Code::Internal,
                    ];
                    if !passes.contains(&status.code()) {
                        let what = format!("{tag}: {:?} {}", status.code(), status.message());
                        self.seen.failed.lock().push(what);
                        return false;
                    }
                    sleep(Duration::from_millis(20)).await;
                }
            }
            self.registries.rotate_left(1);
        }
        self.seen.writes.lock().push(Wrote {
            tag,
            key,
            value,
            began,
            ended: answered.map(|_| self.began.elapsed()),
            revision: answered.unwrap_or(0),
        });
        answered.is_some()
    }
}

async fn ask(
    registry: &mut ModelRegistryClient<Channel>,
    tag: &str,
    key: &str,
    value: Option<&str>,
) -> Result<u64, Status> {
    fn tagged<T>(message: T, tag: &str) -> Request<T> {
        let mut request = Request::new(message);
        let reason = tag.parse().expect("ascii");
        request.metadata_mut().insert("x-forebay-reason", reason);
        request
    }
    match value {
        Some(url) => {
            let request = wire::UpdateModelRequest {
                model: Some(model_at(key, url)),
                allow_missing: true,
                request_id: tag.to_owned(),
                ..wire::UpdateModelRequest::default()
            };
            let answer = registry.update_model(tagged(request, tag)).await?;
            Ok(answer.into_inner().revision)
        }
        None => {
            let request = wire::DeleteModelRequest {
                id: key.to_owned(),
                request_id: tag.to_owned(),
                ..wire::DeleteModelRequest::default()
            };
            let answer = registry.delete_model(tagged(request, tag)).await?;
            Ok(answer.into_inner().revision)
        }
    }
}

/// Reads the newest, at one control plane after the other.
async fn read(mut registries: Vec<ModelRegistryClient<Channel>>, began: Instant, seen: Arc<Seen>) {
    while !seen.stop.load(Ordering::Relaxed) {
        registries.rotate_left(1);
        let Some(registry) = registries.first_mut() else {
            return;
        };
        let asked = began.elapsed();
        // One that is refused saw nothing.
        if let Ok(list) = registry.list_models(strong(everything())).await {
            let (revision, content) = content_of(list.into_inner());
            let ended = began.elapsed();
            seen.reads.lock().push(Read {
                began: asked,
                ended,
                revision,
                content,
            });
        }
        sleep(READ_EVERY.mul_f64(0.5 + fastrand::f64())).await;
    }
}

/// A client of the gateway.
async fn call(client: Client, chat: Chat, seen: Arc<Seen>) {
    while !seen.stop.load(Ordering::Relaxed) {
        let ended = client.finish(BASE, chat, 4).await;
        seen.requests.fetch_add(1, Ordering::Relaxed);
        if ended != Ended::Well {
            seen.failed.lock().push(format!("{ended:?}"));
        }
        sleep(Duration::from_millis(10)).await;
    }
}
