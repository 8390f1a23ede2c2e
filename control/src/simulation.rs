//! A control plane whose network and disk are somebody else's, so that a simulation can cut the one and crash
//! beside the other. All else is the product's own code. It never starts a thread.

mod replicas;

use std::{io, sync::Arc, time::Duration};

use forebay_proto::{Epoch, ModelId, PoolSettings, Revision, probe::AddressPolicy};
use futures_util::Stream;
use parking_lot::Mutex;
use prometheus::Registry;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::sync::CancellationToken;
use tonic::transport::server::Connected;

use crate::{
    ControlError, app,
    exporter::StoreStatus,
    fleet::Fleet,
    leases::{LeaseSettings, Leases, LocalBoard},
    metrics::Metrics,
    plan::Plan,
    probe::Prober,
    registry,
    secrets::Vault,
    service::Context,
    session::Abreast,
    store::{
        Change, Store, StoreError, Stored,
        history::{History, Past},
        keys::KeyChange,
        memory::{MemoryStore, Next},
    },
};

pub use replicas::Replicas;

/// Who decides on leases, and what control planes tell one another of them, without tasks: for the model test.
pub mod leases {
    pub use crate::leases::{
        Call, Grant, Heard, LeaseSettings, Lent, Letter, Limit, Lines, Machine, MachineFaults,
        Origin, Own, OwnFaults, Report, Share, Standing, Table, Use,
    };
}

/// Streams end of age within a simulation, too.
const STREAM_AGE: Duration = Duration::from_secs(30);

/// What outlives a crash.
#[derive(Debug, Clone)]
pub struct Disk(Arc<Mutex<MemoryStore>>);

/// What the next commit does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// It fails, and leaves nothing.
    NotCommitted,
    /// Its fate is not known, and it is there.
    UnknownWritten,
    /// Its fate is not known, and it is not there.
    UnknownLost,
}

impl Disk {
    /// An empty one.
    #[must_use]
    pub fn new(epoch: Epoch, settings: PoolSettings) -> Self {
        Self(Arc::new(Mutex::new(MemoryStore::new(epoch, settings))))
    }

    /// The next commit fails.
    pub fn fail_next(&self, fault: Fault) {
        *self.0.lock().next.lock() = match fault {
            Fault::NotCommitted => Next::NotCommitted,
            Fault::UnknownWritten => Next::UnknownWritten,
            Fault::UnknownLost => Next::UnknownLost,
        };
    }

    /// The newest revision on it.
    #[must_use]
    pub fn revision(&self) -> Option<Revision> {
        let stored = self.0.lock().load().ok();
        stored.map(|stored| stored.revision)
    }

    /// The models on it, in order.
    #[must_use]
    pub fn models(&self) -> Vec<ModelId> {
        let stored = self.0.lock().load().ok();
        let models = stored.into_iter().flat_map(|stored| stored.models);
        models.map(|model| model.spec.id().clone()).collect()
    }
}

impl Store for Disk {
    fn load(&mut self) -> Result<Stored, StoreError> {
        self.0.lock().load()
    }

    fn past(&mut self) -> Result<Past, StoreError> {
        self.0.lock().past()
    }

    fn history(&self) -> Arc<dyn History> {
        self.0.lock().history()
    }

    fn commit(&mut self, changes: &[Change]) -> Result<(), StoreError> {
        self.0.lock().commit(changes)
    }

    fn commit_keys(&mut self, changes: &[KeyChange]) -> Result<(), StoreError> {
        self.0.lock().commit_keys(changes)
    }
}

/// Serves what comes in, until told to stop or dropped.
pub async fn run<Io>(
    disk: Disk,
    incoming: impl Stream<Item = io::Result<Io>>,
    shutdown: CancellationToken,
) -> Result<(), ControlError>
where
    Io: AsyncRead + AsyncWrite + Connected + Unpin + Send + 'static,
{
    let internal = |error: prometheus::Error| ControlError::Internal(error.to_string());
    let metrics = Registry::new();
    let own = Arc::new(Metrics::new(&metrics).map_err(internal)?);
    let (registry, writing) =
        registry::start_here(disk, own.clone(), Vault::throwaway()).map_err(ControlError::Load)?;
    let found = registry.published().position.clone();
    let context = Context {
        registry,
        fleet: Arc::new(Fleet::default()),
        metrics: own,
        status: Arc::new(StoreStatus::new(None)),
        prober: Arc::new(Prober::new(AddressPolicy::default())),
        abreast: Abreast::always(),
        replica: Arc::from(""),
        leases: Arc::new(Leases::new(
            Arc::new(LocalBoard::new(None)),
            LeaseSettings::default(),
            found,
        )),
        drains: None,
    };
    let plan = Plan {
        stream_age: Some(STREAM_AGE),
        staged: None,
        cluster: None,
    };
    let serving = app::serve(incoming, context, metrics, plan, shutdown);
    let (served, ()) = tokio::join!(serving, writing);
    served
}
