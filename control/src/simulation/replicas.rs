//! Several control planes that serve one registry, as replicas on a shared store do: each has its own workers, and hears
//! of writes over a line that can be cut. What each one's workers are is compared now and then.

use std::{
    io,
    sync::{Arc, Weak},
    time::Duration,
};

use forebay_proto::{Position, probe::AddressPolicy};
use futures_util::Stream;
use parking_lot::Mutex;
use prometheus::Registry;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::watch,
    time::interval,
};
use tokio_util::sync::CancellationToken;
use tonic::transport::server::Connected;

use super::{Disk, STREAM_AGE};
use crate::{
    ControlError, app,
    exporter::StoreStatus,
    fleet::Fleet,
    leases::{LeaseSettings, Leases, LocalBoard},
    metrics::Metrics,
    plan::Plan,
    probe::Prober,
    registry::{self, Published, RegistryHandle},
    secrets::Vault,
    service::Context,
    session::Abreast,
};

/// So many there are at most, of the names `c0`, `c1`, …
const CONTROLS: usize = 3;
/// How often replicas compare whom they have.
const COMPARE_EVERY: Duration = Duration::from_secs(1);

/// Who serves it, by name.
type Fleets = Vec<(String, Weak<Fleet>)>;

/// The registry and who serves it. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Replicas {
    registry: RegistryHandle,
    fleets: Arc<Mutex<Fleets>>,
}

impl Replicas {
    /// Opens the store. The second part is the writer; it must be run.
    pub fn open(disk: Disk) -> Result<(Self, impl Future<Output = ()> + Send), ControlError> {
        let internal = |error: prometheus::Error| ControlError::Internal(error.to_string());
        let metrics = Arc::new(Metrics::new(&Registry::new()).map_err(internal)?);
        let (registry, writing) =
            registry::start_here(disk, metrics, Vault::throwaway()).map_err(ControlError::Load)?;
        let fleets = Arc::default();
        Ok((Self { registry, fleets }, writing))
    }

    /// The newest configuration.
    #[must_use]
    pub fn newest(&self) -> Position {
        self.registry.published().position.clone()
    }

    /// Serves what comes in as a replica of this name, until told to stop or dropped. It hears from the store while
    /// `hears` says so.
    pub async fn serve<Io>(
        self,
        name: String,
        hears: watch::Receiver<bool>,
        incoming: impl Stream<Item = io::Result<Io>>,
        shutdown: CancellationToken,
    ) -> Result<(), ControlError>
    where
        Io: AsyncRead + AsyncWrite + Connected + Unpin + Send + 'static,
    {
        let internal = |error: prometheus::Error| ControlError::Internal(error.to_string());
        let metrics = Registry::new();
        let own = Arc::new(Metrics::new(&metrics).map_err(internal)?);
        let fleet = Arc::new(Fleet::default());
        let (say, published) = watch::channel(self.registry.published());
        let context = Context {
            registry: self.registry.clone().seen_as(published),
            fleet: fleet.clone(),
            metrics: own,
            status: Arc::new(StoreStatus::new(None)),
            prober: Arc::new(Prober::new(AddressPolicy::default())),
            abreast: Abreast::told_by(hears.clone()),
            replica: Arc::from(name.as_str()),
            leases: Arc::new(Leases::new(
                Arc::new(LocalBoard::new(None)),
                LeaseSettings::default(),
                self.registry.published().position.clone(),
            )),
            drains: None,
        };
        let known = (name.clone(), Arc::downgrade(&fleet));
        self.fleets.lock().push(known);
        let plan = Plan {
            stream_age: Some(STREAM_AGE),
            staged: None,
            cluster: None,
        };
        tokio::select! {
            served = app::serve(incoming, context, metrics, plan, shutdown) => served,
            () = hear(self.registry.watch(), say, hears.clone()) => Ok(()),
            () = self.compare(&name, &fleet, hears) => Ok(()),
        }
    }

    /// Tells the others of its workers, as they would hear of them over the store, and compares.
    async fn compare(&self, name: &str, own: &Fleet, hears: watch::Receiver<bool>) {
        let mut ticks = interval(COMPARE_EVERY);
        loop {
            ticks.tick().await;
            if !*hears.borrow() {
                continue;
            }
            own.meet_others();
            let mut fleets = self.fleets.lock();
            fleets.retain(|(_, fleet)| fleet.strong_count() > 0);
            let alive: Vec<_> = fleets.iter().filter(|(other, _)| other != name).collect();
            for number in 0..CONTROLS {
                let other = format!("c{number}");
                let fleet = alive.iter().find(|(name, _)| *name == other);
                let fleet = fleet.and_then(|(_, fleet)| fleet.upgrade());
                let part = fleet.and_then(|fleet| fleet.export(&other, 1).pop());
                own.import(&other, 0, part.as_ref().map(|(_, bytes)| bytes.as_slice()));
            }
        }
    }
}

/// Passes on what the store has, while it is heard. It ends when nobody listens.
async fn hear(
    mut store: watch::Receiver<Arc<Published>>,
    say: watch::Sender<Arc<Published>>,
    mut hears: watch::Receiver<bool>,
) {
    loop {
        if hears.wait_for(|hears| *hears).await.is_err() {
            return std::future::pending().await;
        }
        let newest = store.borrow_and_update().clone();
        say.send_replace(newest);
        let changed = tokio::select! {
            changed = store.changed() => changed,
            changed = hears.changed() => changed,
        };
        if changed.is_err() {
            return std::future::pending().await;
        }
    }
}
