//! The registry: the only writer of configuration.
//!
//! A write is planned by a pure transition ([`State::plan`]), committed by one writer
//! ([`RegistryHandle`]), then published, then answered: durable → visible → acknowledged.

pub(crate) mod difference;
pub(crate) mod keys;
mod mask;
mod past;
mod state;
mod writer;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use bytes::Bytes;
use forebay_proto::{KeyId, Position, Revision, Violations, wire};

#[cfg(feature = "simulation")]
pub(crate) use self::writer::start_here;
pub(crate) use self::{
    past::PastError,
    state::{PoolOf, State},
    writer::{RegistryHandle, WriterThread, start},
};
use crate::store::{
    StoreError,
    history::{Edit, Origin},
};

/// A write that somebody asks for. Wire types, because a field mask merges on the wire.
#[derive(Debug, Clone)]
pub(crate) enum Command {
    Create(wire::Model),
    Update {
        model: wire::Model,
        mask: Option<Vec<String>>,
        allow_missing: bool,
    },
    Delete {
        id: String,
        etag: String,
        allow_missing: bool,
    },
    UpdateSettings {
        settings: wire::PoolDefaults,
        mask: Option<Vec<String>>,
    },
    /// Several of the first three as one.
    Batch {
        items: Vec<Command>,
        /// Fallbacks may be named that are not registered, as those are that were deleted: what was exported is written
        /// again.
        allow_missing_fallbacks: bool,
    },
    /// The content of an earlier revision; if the newest one is what it is expected to be.
    Rollback {
        to: Revision,
        expected: Option<Revision>,
        /// That content, of one who holds it: then nothing must be kept of what came after it.
        content: Option<Arc<State>>,
    },
}

impl Command {
    /// The method's name, for the history and the log.
    pub(crate) fn method(&self) -> &'static str {
        match self {
            Self::Create(_) => "CreateModel",
            Self::Update { .. } => "UpdateModel",
            Self::Delete { .. } => "DeleteModel",
            Self::UpdateSettings { .. } => "UpdatePoolSettings",
            Self::Batch { .. } => "BatchUpdateModels",
            Self::Rollback { .. } => "RollbackRevision",
        }
    }
}

/// A command and how it is to be carried out.
#[derive(Debug, Clone)]
pub(crate) struct Write {
    pub(crate) command: Command,
    /// With the fingerprint of the request that carries it.
    pub(crate) request_id: Option<(String, Vec<u8>)>,
    pub(crate) validate_only: bool,
    pub(crate) origin: Origin,
    /// It is a decision of who is in charge in this term: it is made if that one still is.
    pub(crate) term: Option<u64>,
}

/// What a write is answered with.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Answer {
    Model(Box<wire::Model>),
    Settings(Box<wire::PoolDefaults>),
    Deleted(u64),
    /// Without its changes; they are made of the edits, which a repeated write does not have.
    Batch(Box<wire::BatchUpdateModelsResponse>, Vec<Edit>),
    /// In the same way.
    RolledBack(Box<wire::RollbackRevisionResponse>, Vec<Edit>),
}

/// Why a write was refused.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum WriteError {
    #[error("{0}")]
    Invalid(Violations),
    #[error("model `{0}` does not exist; ListModels shows those that do")]
    NotFound(String),
    #[error(
        "{field}: `{name}` is already a name of model `{owner}`; choose another, or update `{owner}`"
    )]
    AlreadyExists {
        field: String,
        name: String,
        owner: String,
    },
    #[error(
        "etag {given} is not the current one, {current}: somebody changed it meanwhile; read it again"
    )]
    EtagMismatch { given: String, current: String },
    #[error("request_id `{0}` was used for another request; use a new one")]
    RequestIdReused(String),
    #[error("{0}")]
    LimitReached(String),
    #[error("{place}: {error}")]
    Item {
        place: String,
        error: Box<WriteError>,
    },
    #[error(
        "the newest revision is {current}, not {expected}: somebody wrote meanwhile; look at what it changed"
    )]
    Moved {
        expected: Revision,
        current: Revision,
    },
    #[error("key `{0}` does not exist; ListKeys shows those that do")]
    KeyNotFound(String),
    #[error("key `{0}` is revoked, which is for good; make another one")]
    KeyRevoked(KeyId),
    #[error(transparent)]
    Past(#[from] PastError),
    #[error("the control plane has too many writes waiting; try again")]
    Busy,
    #[error("the store refused the write: {0}")]
    Store(#[from] StoreError),
    #[error("the control plane is stopping; the write was not made")]
    Stopping,
}

impl Command {
    /// The kind and number of an item of a batch, in the request's own spelling.
    pub(crate) fn place(&self, n: usize) -> String {
        let kind = match self {
            Self::Create(_) => "create",
            Self::Update { .. } => "update",
            Self::Delete { .. } => "delete",
            Self::UpdateSettings { .. } | Self::Batch { .. } | Self::Rollback { .. } => "change",
        };
        format!("items[{n}].{kind}")
    }

    /// The model that it is of, if it is of one.
    pub(crate) fn model(&self) -> &str {
        match self {
            Self::Create(model) | Self::Update { model, .. } => &model.id,
            Self::Delete { id, .. } => id,
            Self::UpdateSettings { .. } | Self::Batch { .. } | Self::Rollback { .. } => "",
        }
    }
}

impl WriteError {
    /// The same, of an item of a batch.
    fn of_item(self, place: &str) -> Self {
        match self {
            Self::AlreadyExists { field, name, owner } => Self::AlreadyExists {
                field: format!("{place}.{field}"),
                name,
                owner,
            },
            error => Self::Item {
                place: place.to_owned(),
                error: Box::new(error),
            },
        }
    }
}

/// A whole configuration as it is pushed, and the state that it came from.
#[derive(Debug)]
pub(crate) struct Published {
    pub(crate) position: Position,
    /// Encoded once, shared by all streams.
    pub(crate) config: Bytes,
    /// Trace context of the write that made it; may be empty.
    pub(crate) traceparent: String,
    pub(crate) state: Arc<State>,
}
