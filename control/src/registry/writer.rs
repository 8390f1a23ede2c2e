//! The one writer: takes writes in turn, commits them in groups, publishes, answers.
//!
//! Order: durable → visible → acknowledged. When a commit's fate is unknown the state is read back
//! from the store before another write is served; nothing is ever acknowledged that is not durable.
//!
//! Where others write to the store, too, it follows them: before each group it reads what is new (`writer/follow.rs`),
//! and a commit that meets somebody else's is planned anew on what that one left.
//!
//! It runs on a thread of its own because the store blocks.

mod begin;
mod follow;
mod keys;

use std::{sync::Arc, thread, time::SystemTime};

use forebay_proto::{Position, limits, wire};
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tracing::Span;

use self::begin::{Begun, begin};
use super::{
    Answer, Command, Published, State, Write, WriteError,
    keys::{KeyBook, KeyWrite, PublishedKeys},
};
use crate::{
    metrics::Metrics,
    secrets::Vault,
    store::{
        Change, Store, StoreError,
        history::{Entry, History, LogRecord, Past},
    },
    trace_context,
};

/// Most writes waiting; a further one is refused at once.
const WAITING: usize = 1_024;
/// Most reads of the history at a time.
const READERS: usize = 4;
/// Most writes in one commit, and how many edits they have, and bytes, before no further one is added to it: what each
/// store takes by itself it also takes after these.
const GROUP: usize = 64;
const GROUP_EDITS: usize = 4_096;
const GROUP_BYTES: u64 = 8 << 20;
/// How often a group is planned because others were faster. Each time one of them got on.
const PLANS: u32 = 32;

/// What the writer is asked.
#[expect(
    clippy::large_enum_variant,
    reason = "nearly all of them are the large one"
)]
enum Asked {
    Write(Job),
    Key(KeyJob),
    /// To take over what others wrote.
    Follow(Asker),
}

/// Who waits until what others wrote is taken over.
type Asker = oneshot::Sender<Result<(), WriteError>>;

struct KeyJob {
    write: KeyWrite,
    answer: oneshot::Sender<Result<wire::Key, WriteError>>,
}

struct Job {
    write: Write,
    span: Span,
    answer: oneshot::Sender<Result<Answer, WriteError>>,
}

impl Job {
    /// A rollback is committed by itself, because what it goes back from must be on disk.
    fn is_alone(&self) -> bool {
        matches!(self.write.command, Command::Rollback { .. })
    }
}

/// Where writes are handed in.
#[derive(Debug, Clone)]
pub(crate) struct RegistryHandle {
    jobs: mpsc::Sender<Asked>,
    published: watch::Receiver<Arc<Published>>,
    keys: watch::Receiver<Arc<PublishedKeys>>,
    vault: Arc<Vault>,
    trouble: watch::Receiver<Option<String>>,
    history: Arc<dyn History>,
    pub(super) readers: Arc<Semaphore>,
}

impl RegistryHandle {
    /// Makes a write. When it returns, the write is durable and published, or was not made.
    pub(crate) async fn write(&self, write: Write) -> Result<Answer, WriteError> {
        let (answer, answered) = oneshot::channel();
        let job = Job {
            write,
            span: Span::current(),
            answer,
        };
        self.ask(Asked::Write(job))?;
        answered.await.unwrap_or_else(|_| Err(lost()))
    }

    /// Makes a change of clients' keys. When it returns, the change is durable and on its way to the workers, or was not
    /// made.
    pub(crate) async fn write_key(&self, write: KeyWrite) -> Result<wire::Key, WriteError> {
        let (answer, answered) = oneshot::channel();
        self.ask(Asked::Key(KeyJob { write, answer }))?;
        answered.await.unwrap_or_else(|_| Err(lost()))
    }

    /// Takes over what others wrote to the store by now. When it returns, that is published.
    pub(crate) async fn follow(&self) -> Result<(), WriteError> {
        let (answer, answered) = oneshot::channel();
        self.ask(Asked::Follow(answer))?;
        answered.await.unwrap_or_else(|_| Err(lost()))
    }

    fn ask(&self, asked: Asked) -> Result<(), WriteError> {
        self.jobs.try_send(asked).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => WriteError::Busy,
            mpsc::error::TrySendError::Closed(_) => WriteError::Stopping,
        })
    }

    /// Clients' keys.
    pub(crate) fn keys(&self) -> Arc<PublishedKeys> {
        self.keys.borrow().clone()
    }

    /// The same, as they change.
    pub(crate) fn watch_keys(&self) -> watch::Receiver<Arc<PublishedKeys>> {
        self.keys.clone()
    }

    /// The control plane's own secrets.
    pub(crate) fn vault(&self) -> &Vault {
        &self.vault
    }

    /// What is wrong with the store, as it changes; closed when the writer is gone.
    pub(crate) fn trouble(&self) -> watch::Receiver<Option<String>> {
        self.trouble.clone()
    }

    /// Where the history is read.
    pub(super) fn history(&self) -> Arc<dyn History> {
        self.history.clone()
    }

    /// What is in force.
    pub(crate) fn published(&self) -> Arc<Published> {
        self.published.borrow().clone()
    }

    /// The same registry, as one sees it who hears of it later.
    #[cfg(feature = "simulation")]
    pub(crate) fn seen_as(self, published: watch::Receiver<Arc<Published>>) -> Self {
        Self { published, ..self }
    }

    /// What is in force, as it changes.
    pub(crate) fn watch(&self) -> watch::Receiver<Arc<Published>> {
        self.published.clone()
    }
}

/// The writer took it and ended without a word.
fn lost() -> WriteError {
    StoreError::Unknown("the writer ended before it answered".to_owned()).into()
}

/// The writer's thread. It ends when the last handle is dropped, after what was handed in.
pub(crate) type WriterThread = thread::JoinHandle<()>;

/// Reads the store and starts the writer.
pub(crate) fn start(
    store: impl Store,
    metrics: Arc<Metrics>,
    vault: Vault,
) -> Result<(RegistryHandle, WriterThread), String> {
    let (handle, writer, waiting) = prepare(store, metrics, vault)?;
    let thread = thread::Builder::new()
        .name("forebay-writer".to_owned())
        .spawn(move || writer.run(waiting))
        .map_err(|error| error.to_string())?;
    Ok((handle, thread))
}

/// The same as a task, for a simulation: its store never blocks, and threads would make chance of the order.
#[cfg(feature = "simulation")]
pub(crate) fn start_here(
    store: impl Store,
    metrics: Arc<Metrics>,
    vault: Vault,
) -> Result<(RegistryHandle, impl Future<Output = ()>), String> {
    let (handle, mut writer, mut waiting) = prepare(store, metrics, vault)?;
    let writing = async move {
        let mut next = waiting.recv().await;
        while let Some(first) = next {
            next = match writer.serve_group(first, &mut waiting) {
                Some(taken) => Some(taken),
                None => waiting.recv().await,
            };
        }
    };
    Ok((handle, writing))
}

fn prepare<S: Store>(
    mut store: S,
    metrics: Arc<Metrics>,
    vault: Vault,
) -> Result<(RegistryHandle, Writer<S>, mpsc::Receiver<Asked>), String> {
    let Begun {
        first,
        book,
        past,
        sealed,
    } = begin(&mut store)?;
    let state = first.state.clone();
    let (published, watching) = watch::channel(Arc::new(first));
    let vault = Arc::new(vault);
    let first_keys = PublishedKeys::new(book.clone(), &vault, sealed)?;
    let (keys, watching_keys) = watch::channel(Arc::new(first_keys));
    let (trouble, troubled) = watch::channel(None);
    let (jobs, waiting) = mpsc::channel(WAITING);
    let history = store.history();
    metrics.history(past.size());
    let writer = Writer {
        store,
        state,
        past,
        published,
        book,
        sealed,
        keys,
        vault: vault.clone(),
        trouble,
        metrics,
        must_reload: false,
    };
    let handle = RegistryHandle {
        jobs,
        published: watching,
        keys: watching_keys,
        vault,
        trouble: troubled,
        history,
        readers: Arc::new(Semaphore::new(READERS)),
    };
    Ok((handle, writer, waiting))
}

struct Writer<S> {
    store: S,
    state: Arc<State>,
    past: Past,
    published: watch::Sender<Arc<Published>>,
    /// Clients' keys.
    book: Arc<KeyBook>,
    /// There is, or was, a credential: workers need the seal keys.
    sealed: bool,
    keys: watch::Sender<Arc<PublishedKeys>>,
    vault: Arc<Vault>,
    trouble: watch::Sender<Option<String>>,
    metrics: Arc<Metrics>,
    must_reload: bool,
}

impl<S: Store> Writer<S> {
    fn run(mut self, mut waiting: mpsc::Receiver<Asked>) {
        let mut next = waiting.blocking_recv();
        while let Some(first) = next {
            let taken = self.serve_group(first, &mut waiting);
            next = taken.or_else(|| waiting.blocking_recv());
        }
    }

    /// The first and those that wait behind it and go with it. Gives the one after them, if it was taken already.
    fn serve_group(&mut self, first: Asked, waiting: &mut mpsc::Receiver<Asked>) -> Option<Asked> {
        match first {
            Asked::Write(job) => {
                let mut next = None;
                let mut group = vec![job];
                while next.is_none()
                    && group.len() < GROUP
                    && !group.iter().any(Job::is_alone)
                    && let Ok(asked) = waiting.try_recv()
                {
                    match asked {
                        Asked::Write(job) if !job.is_alone() => group.push(job),
                        other => next = Some(other),
                    }
                }
                self.serve(group);
                next
            }
            // It makes no revision, so it is by itself.
            Asked::Key(job) => {
                let answer = self.serve_key(&job.write);
                drop(job.answer.send(answer));
                None
            }
            Asked::Follow(asker) => self.serve_follows(asker, waiting),
        }
    }

    /// In as many commits as their size takes; mostly one.
    fn serve(&mut self, mut group: Vec<Job>) {
        while !group.is_empty() {
            let mut planned = Err(StoreError::Conflict.into());
            for attempt in 0..PLANS {
                planned = self.plan_and_commit(&group, attempt > 0);
                if !matches!(planned, Err(WriteError::Store(StoreError::Conflict))) {
                    break;
                }
                self.metrics.replicas.conflicts.inc();
            }
            match planned {
                Err(error) => return refuse_all(group, &error),
                Ok(results) => {
                    let served = group.drain(..results.len());
                    for (job, result) in served.zip(results) {
                        // A client that went away meanwhile finds its write made.
                        drop(job.answer.send(result));
                    }
                }
            }
        }
    }

    /// Plans a group and commits it as one: the answers to each, or why there are none. Answers only the first of them if
    /// all are more than one commit may take. A commit proves by itself that what it was planned on was the newest; what
    /// is answered without one is planned again on what is looked up.
    fn plan_and_commit(
        &mut self,
        group: &[Job],
        look: bool,
    ) -> Result<Vec<Result<Answer, WriteError>>, WriteError> {
        if let Err(error) = self.ready(look) {
            self.tell(&error);
            return Err(error.into());
        }
        let now = SystemTime::now();
        let history = self.store.history();
        let mut next = State::clone(&self.state);
        let mut changes = Vec::new();
        let mut spans = Vec::new();
        let mut answers = Vec::with_capacity(group.len());
        let mut term = None;
        let (mut edits, mut bytes) = (0, 0);
        for job in group {
            if edits >= GROUP_EDITS || bytes >= GROUP_BYTES {
                break;
            }
            let planned = job.span.in_scope(|| next.plan(&job.write, now, &*history));
            let answer = planned.map(|planned| {
                if let Some(change) = planned.change {
                    let revision = change.revision;
                    spans.push(tracing::info_span!(parent: &job.span, "commit", %revision));
                    next.apply(change.clone());
                    let entry = change.entry.as_ref();
                    edits += entry.map_or(0, |entry| entry.edits.len());
                    bytes += entry.map_or(0, |entry| entry.log.bytes);
                    changes.push(change);
                    term = term.or(job.write.term);
                }
                planned.answer
            });
            answers.push(answer);
        }
        if !look && self.store.is_shared() && changes.len() < answers.len() {
            return self.plan_and_commit(group, true);
        }
        self.commit(Arc::new(next), changes, &spans, term)?;
        Ok(answers)
    }

    /// Makes the changes durable, then visible.
    fn commit(
        &mut self,
        next: Arc<State>,
        mut changes: Vec<Change>,
        spans: &[Span],
        term: Option<u64>,
    ) -> Result<(), WriteError> {
        let Some(last) = spans.last() else {
            return Ok(());
        };
        // Before the commit: what cannot be published must not become durable.
        let published = publish(&next, trace_context::to_text(last));
        let published = published.map_err(StoreError::NotCommitted)?;
        let past = complete(&mut changes, &self.past, &published);
        let timer = self.metrics.commit_seconds.start_timer();
        let committed = match term {
            Some(term) => self.store.commit_as(&changes, term),
            None => self.store.commit(&changes),
        };
        timer.observe_duration();
        if let Err(error) = committed {
            self.failed(&error, changes.len());
            return Err(error.into());
        }
        self.state = next;
        self.note_credentials(&changes);
        self.metrics.history(past.size());
        self.past = past;
        self.trouble
            .send_if_modified(|trouble| trouble.take().is_some());
        if published.position != self.published.borrow().position {
            self.published.send_replace(Arc::new(published));
        }
        for Entry { log, .. } in changes.iter().filter_map(|change| change.entry.as_ref()) {
            let LogRecord { method, origin, .. } = log;
            let (targets, more) = (
                log.targets.join(","),
                log.edits as usize - log.targets.len(),
            );
            let (author, reason) = (&origin.author, &origin.reason);
            let revision = log.revision;
            tracing::info!(method, targets, more, %revision, author, reason, "write committed");
        }
        Ok(())
    }
}

/// Fills in what is known when all of a commit is: what it is published as, and what goes to make room.
fn complete(changes: &mut [Change], past: &Past, published: &Published) -> Past {
    let mut past = past.clone();
    let entries = changes
        .iter_mut()
        .filter_map(|change| change.entry.as_mut());
    if let Some(newest) = entries.last() {
        newest.log.digest = Some(published.position.digest);
    }
    for entry in changes
        .iter_mut()
        .filter_map(|change| change.entry.as_mut())
    {
        entry.forget = past.add(&entry.log, entry.kind);
    }
    past
}

fn refuse_all(group: Vec<Job>, error: &WriteError) {
    for job in group {
        drop(job.answer.send(Err(error.clone())));
    }
}

pub(super) fn publish(state: &Arc<State>, traceparent: String) -> Result<Published, String> {
    let config = state
        .config()
        .map_err(|violations| violations.to_string())?;
    let (config, digest) = config.encode();
    if config.len() > limits::MESSAGE_BYTES {
        return Err(format!("the configuration takes {} bytes", config.len()));
    }
    let position = Position {
        epoch: state.epoch().clone(),
        revision: state.revision(),
        digest,
    };
    Ok(Published {
        position,
        config,
        traceparent,
        state: state.clone(),
    })
}
