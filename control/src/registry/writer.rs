//! The one writer: takes writes in turn, commits them in groups, publishes, answers.
//!
//! Order: durable → visible → acknowledged. When a commit's fate is unknown the state is read back
//! from the store before another write is served; nothing is ever acknowledged that is not durable.
//!
//! It runs on a thread of its own because the store blocks.

use std::{sync::Arc, thread, time::SystemTime};

use forebay_proto::{Position, limits};
use tokio::sync::{mpsc, oneshot, watch};
use tracing::Span;

use super::{Answer, Published, State, Write, WriteError};
use crate::{
    metrics::Metrics,
    store::{Change, Op, Store, StoreError},
    trace_context,
};

/// Most writes waiting; a further one is refused at once.
const WAITING: usize = 1_024;
/// Most writes in one commit.
const GROUP: usize = 64;

struct Job {
    write: Write,
    span: Span,
    answer: oneshot::Sender<Result<Answer, WriteError>>,
}

/// Where writes are handed in.
#[derive(Debug, Clone)]
pub(crate) struct RegistryHandle {
    jobs: mpsc::Sender<Job>,
    published: watch::Receiver<Arc<Published>>,
    trouble: watch::Receiver<Option<String>>,
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
        self.jobs.try_send(job).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => WriteError::Busy,
            mpsc::error::TrySendError::Closed(_) => WriteError::Stopping,
        })?;
        // The writer took it and ended without a word.
        let lost = || StoreError::Unknown("the writer ended before it answered".to_owned());
        answered.await.unwrap_or_else(|_| Err(lost().into()))
    }

    /// What is wrong with the store, as it changes; closed when the writer is gone.
    pub(crate) fn trouble(&self) -> watch::Receiver<Option<String>> {
        self.trouble.clone()
    }

    /// What is in force.
    pub(crate) fn published(&self) -> Arc<Published> {
        self.published.borrow().clone()
    }

    /// What is in force, as it changes.
    pub(crate) fn watch(&self) -> watch::Receiver<Arc<Published>> {
        self.published.clone()
    }
}

/// The writer's thread. It ends when the last handle is dropped, after what was handed in.
pub(crate) type WriterThread = thread::JoinHandle<()>;

/// Reads the store and starts the writer.
pub(crate) fn start(
    store: impl Store,
    metrics: Arc<Metrics>,
) -> Result<(RegistryHandle, WriterThread), String> {
    let (handle, writer, waiting) = prepare(store, metrics)?;
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
) -> Result<(RegistryHandle, impl Future<Output = ()>), String> {
    let (handle, mut writer, mut waiting) = prepare(store, metrics)?;
    let writing = async move {
        while let Some(first) = waiting.recv().await {
            writer.serve_group(first, &mut waiting);
        }
    };
    Ok((handle, writing))
}

fn prepare<S: Store>(
    mut store: S,
    metrics: Arc<Metrics>,
) -> Result<(RegistryHandle, Writer<S>, mpsc::Receiver<Job>), String> {
    let state = store
        .load()
        .map(State::new)
        .map_err(|error| error.to_string())?;
    let state = Arc::new(state);
    let first = publish(&state, String::new())?;
    let (published, watching) = watch::channel(Arc::new(first));
    let (trouble, troubled) = watch::channel(None);
    let (jobs, waiting) = mpsc::channel(WAITING);
    let writer = Writer {
        store,
        state,
        published,
        trouble,
        metrics,
        must_reload: false,
    };
    let handle = RegistryHandle {
        jobs,
        published: watching,
        trouble: troubled,
    };
    Ok((handle, writer, waiting))
}

struct Writer<S> {
    store: S,
    state: Arc<State>,
    published: watch::Sender<Arc<Published>>,
    trouble: watch::Sender<Option<String>>,
    metrics: Arc<Metrics>,
    must_reload: bool,
}

impl<S: Store> Writer<S> {
    fn run(mut self, mut waiting: mpsc::Receiver<Job>) {
        while let Some(first) = waiting.blocking_recv() {
            self.serve_group(first, &mut waiting);
        }
    }

    /// The first and those that wait behind it.
    fn serve_group(&mut self, first: Job, waiting: &mut mpsc::Receiver<Job>) {
        let mut group = vec![first];
        while group.len() < GROUP
            && let Ok(job) = waiting.try_recv()
        {
            group.push(job);
        }
        self.serve(group);
    }

    fn serve(&mut self, group: Vec<Job>) {
        if let Err(error) = self.reload_if_needed() {
            self.trouble.send_replace(Some(error.to_string()));
            return refuse_all(group, &error);
        }
        let now = SystemTime::now();
        let mut next = State::clone(&self.state);
        let mut changes = Vec::new();
        let mut spans = Vec::new();
        let mut answers = Vec::with_capacity(group.len());
        for job in group {
            let planned = job.span.in_scope(|| next.plan(&job.write, now));
            let answer = planned.map(|planned| {
                if let Some(change) = planned.change {
                    let revision = change.revision();
                    spans.push(tracing::info_span!(parent: &job.span, "commit", %revision));
                    next.apply(change.clone());
                    changes.push(change);
                }
                planned.answer
            });
            answers.push((job.answer, answer));
        }
        if let Err(error) = self.commit(Arc::new(next), &changes, &spans) {
            for (answer, _) in answers {
                drop(answer.send(Err(error.clone())));
            }
            return;
        }
        drop(spans);
        for (answer, result) in answers {
            // A client that went away meanwhile finds its write made.
            drop(answer.send(result));
        }
    }

    /// Makes the changes durable, then visible.
    fn commit(
        &mut self,
        next: Arc<State>,
        changes: &[Change],
        spans: &[Span],
    ) -> Result<(), WriteError> {
        let Some(last) = spans.last() else {
            return Ok(());
        };
        // Before the commit: what cannot be published must not become durable.
        let published = publish(&next, trace_context::to_text(last));
        let published = published.map_err(StoreError::NotCommitted)?;
        let timer = self.metrics.commit_seconds.start_timer();
        let committed = self.store.commit(changes);
        timer.observe_duration();
        if let Err(error) = committed {
            self.must_reload = matches!(error, StoreError::Unknown(_));
            self.trouble.send_replace(Some(error.to_string()));
            tracing::error!(%error, writes = changes.len(), "commit failed");
            return Err(error.into());
        }
        self.state = next;
        self.trouble
            .send_if_modified(|trouble| trouble.take().is_some());
        if published.position != self.published.borrow().position {
            self.published.send_replace(Arc::new(published));
        }
        for change in changes.iter().filter(|c| c.op != Op::Remember) {
            let (method, target) = (&change.log.method, &change.log.target);
            tracing::info!(method, target, revision = %change.revision(), "write committed");
        }
        Ok(())
    }

    /// After a commit of unknown fate: what the store holds now is what was committed.
    fn reload_if_needed(&mut self) -> Result<(), StoreError> {
        if !self.must_reload {
            return Ok(());
        }
        let state = Arc::new(State::new(self.store.load()?));
        let published = publish(&state, String::new()).map_err(StoreError::NotCommitted)?;
        if state.revision() != self.state.revision() {
            self.published.send_replace(Arc::new(published));
        }
        self.state = state;
        self.trouble.send_replace(None);
        self.must_reload = false;
        Ok(())
    }
}

fn refuse_all(group: Vec<Job>, error: &StoreError) {
    for job in group {
        drop(job.answer.send(Err(error.clone().into())));
    }
}

fn publish(state: &Arc<State>, traceparent: String) -> Result<Published, String> {
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
