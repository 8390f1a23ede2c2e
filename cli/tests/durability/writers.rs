//! Writers, each with a connection and models of its own, that write as fast as they are answered, under
//! request ids, until the control plane is gone or they are told to stop.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use forebay_proto::wire;
use forebay_tests::model_at;
use tokio::{task::JoinSet, time::Instant};
use tonic::{Code, Status, transport::Channel};
use wire::model_registry_client::ModelRegistryClient;

use crate::plane::Plane;

pub(crate) const WRITERS: usize = 8;
/// Models that one writer creates, changes and deletes.
const MODELS: usize = 8;

/// A write that somebody asks for. Its number is nobody else's.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Asked {
    pub(crate) model: String,
    pub(crate) number: u64,
    pub(crate) kind: Kind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Create,
    Update,
    Delete,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Answer {
    Model(Box<wire::Model>),
    Deleted(u64),
}

/// An acknowledged write.
#[derive(Debug, Clone)]
pub(crate) struct Acknowledged {
    pub(crate) asked: Asked,
    pub(crate) answer: Answer,
    /// How much was recorded of the disk when the answer was there.
    pub(crate) recorded: u64,
}

/// What one writer did.
#[derive(Debug, Default)]
pub(crate) struct Written {
    pub(crate) acknowledged: Vec<Acknowledged>,
    /// The write whose answer was lost.
    pub(crate) lost: Option<Asked>,
    /// From the first question to the last answer.
    pub(crate) took: Duration,
}

impl Answer {
    pub(crate) fn revision(&self) -> u64 {
        match self {
            Self::Model(model) => model.revision,
            Self::Deleted(revision) => *revision,
        }
    }
}

impl Asked {
    /// The model as it is asked for. Its number is in several places, so that half a write would be seen.
    pub(crate) fn content(&self) -> wire::Model {
        let port = 1_024 + self.number % 64_000;
        let total = Duration::from_millis(1_000_000 + self.number);
        wire::Model {
            pool: Some(wire::Pool {
                max_concurrent: Some(1 + u32::try_from(self.number % 149).unwrap()),
                ..wire::Pool::default()
            }),
            timeouts: Some(wire::Timeouts {
                total: Some(total.try_into().unwrap()),
                ..wire::Timeouts::default()
            }),
            ..model_at(&self.model, &format!("http://127.0.0.1:{port}"))
        }
    }

    /// Whether a model is as this write leaves it, all of it.
    pub(crate) fn is(&self, model: &wire::Model) -> bool {
        let own = self.content();
        let of_pool =
            |model: &wire::Model| model.pool.as_ref().and_then(|pool| pool.max_concurrent);
        let of_timeouts = |model: &wire::Model| model.timeouts.as_ref().and_then(|t| t.total);
        let of_endpoints = |model: &wire::Model| {
            let urls = model.endpoints.iter().map(|endpoint| endpoint.url.clone());
            urls.collect::<Vec<_>>()
        };
        self.kind != Kind::Delete
            && of_pool(&own) == of_pool(model)
            && of_timeouts(&own) == of_timeouts(model)
            && of_endpoints(&own) == of_endpoints(model)
    }

    /// Asks for it; as often as one likes, it is the same request.
    pub(crate) async fn ask(
        &self,
        registry: &mut ModelRegistryClient<Channel>,
    ) -> Result<Answer, Status> {
        let request_id = format!("write-{}", self.number);
        let model = Some(self.content());
        let answer = match self.kind {
            Kind::Create => {
                let request = wire::CreateModelRequest {
                    model,
                    request_id,
                    ..Default::default()
                };
                registry.create_model(request).await?.into_inner()
            }
            Kind::Update => {
                let request = wire::UpdateModelRequest {
                    model,
                    request_id,
                    ..Default::default()
                };
                registry.update_model(request).await?.into_inner()
            }
            Kind::Delete => {
                let request = wire::DeleteModelRequest {
                    id: self.model.clone(),
                    request_id,
                    ..Default::default()
                };
                let answer = registry.delete_model(request).await?.into_inner();
                return Ok(Answer::Deleted(answer.revision));
            }
        };
        Ok(Answer::Model(Box::new(answer)))
    }
}

/// Writers at work.
pub(crate) struct Writers {
    stop: Arc<AtomicBool>,
    acknowledged: Arc<AtomicU64>,
    tasks: JoinSet<Written>,
}

impl Writers {
    /// Starts them. They take their numbers from `numbers`, and find the models that there are; `record` is the
    /// record of what is done to the disk, if there is one.
    pub(crate) fn start<'a>(
        plane: &Plane,
        models: impl Iterator<Item = &'a String>,
        numbers: &Arc<AtomicU64>,
        record: Option<&Path>,
    ) -> Self {
        let models: BTreeSet<_> = models.cloned().collect();
        let stop = Arc::new(AtomicBool::new(false));
        let acknowledged = Arc::new(AtomicU64::new(0));
        let writers = (0..WRITERS).map(|writer| {
            let prefix = format!("w{writer}-");
            let own = models.iter().filter(|model| model.starts_with(&prefix));
            Writer {
                own: own.cloned().collect(),
                prefix,
                registry: plane.registry(),
                numbers: numbers.clone(),
                record: record.map(Path::to_owned),
                stop: stop.clone(),
                acknowledged: acknowledged.clone(),
            }
        });
        Self {
            tasks: writers.map(Writer::write).collect(),
            stop,
            acknowledged,
        }
    }

    /// How many writes were acknowledged so far.
    pub(crate) fn acknowledged(&self) -> u64 {
        self.acknowledged.load(Ordering::Relaxed)
    }

    /// Ends when the control plane is gone.
    pub(crate) async fn end(self) -> Vec<Written> {
        self.tasks.join_all().await
    }

    /// Lets each writer get its last answer.
    pub(crate) async fn stop(self) -> Vec<Written> {
        self.stop.store(true, Ordering::Relaxed);
        self.tasks.join_all().await
    }
}

struct Writer {
    prefix: String,
    own: BTreeSet<String>,
    registry: ModelRegistryClient<Channel>,
    numbers: Arc<AtomicU64>,
    record: Option<PathBuf>,
    stop: Arc<AtomicBool>,
    acknowledged: Arc<AtomicU64>,
}

impl Writer {
    async fn write(mut self) -> Written {
        let mut written = Written::default();
        let began = Instant::now();
        while !self.stop.load(Ordering::Relaxed) {
            let asked = self.next();
            match asked.ask(&mut self.registry).await {
                Ok(answer) => {
                    self.acknowledged.fetch_add(1, Ordering::Relaxed);
                    let record = self.record.as_ref();
                    let recorded = record.map_or(0, |record| record.metadata().unwrap().len());
                    written.took = began.elapsed();
                    written.acknowledged.push(Acknowledged {
                        asked,
                        answer,
                        recorded,
                    });
                }
                Err(status) => {
                    assert!(is_loss(&status), "{asked:?} is refused: {status:?}");
                    written.lost = Some(asked);
                    break;
                }
            }
        }
        written
    }

    fn next(&mut self) -> Asked {
        let model = format!("{}{}", self.prefix, fastrand::usize(..MODELS));
        let kind = match (self.own.contains(&model), fastrand::u8(..4)) {
            (false, _) => Kind::Create,
            (true, 0) => Kind::Delete,
            (true, _) => Kind::Update,
        };
        match kind {
            Kind::Create => drop(self.own.insert(model.clone())),
            Kind::Delete => drop(self.own.remove(&model)),
            Kind::Update => {}
        }
        Asked {
            model,
            number: self.numbers.fetch_add(1, Ordering::Relaxed),
            kind,
        }
    }
}

/// Whether an answer was lost, which is not to be refused.
fn is_loss(status: &Status) -> bool {
    matches!(
        status.code(),
        Code::Unavailable | Code::Unknown | Code::Cancelled | Code::Internal
    )
}
