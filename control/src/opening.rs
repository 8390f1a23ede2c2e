//! Opens the store that the settings name, reads it, and starts the writer on it. What differs between a store that is
//! this process's own and one that several share ends here.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use forebay_proto::PoolSettings;
use tokio::runtime::Handle;

use crate::{
    app::{ControlError, SecretPaths},
    cluster::{self, Cluster, Replica, ReplicaSettings},
    etcd::{Etcd, EtcdError, EtcdLocation},
    metrics::Metrics,
    registry::{self, RegistryHandle, WriterThread},
    rollout::{self, Kept},
    secrets::{Missing, Needs, SecretFiles, Vault},
    store::{
        Recovery, Store, StoreLocation,
        etcd::EtcdStore,
        recover::{self, DirLock, Recovered},
    },
};

/// What is needed to open one.
pub(crate) struct Opening {
    pub(crate) store: StoreLocation,
    pub(crate) fresh: PoolSettings,
    pub(crate) recovery: Recovery,
    pub(crate) secrets: SecretPaths,
    pub(crate) replica: ReplicaSettings,
    /// Revisions go to all workers at once.
    pub(crate) all_at_once: bool,
    pub(crate) metrics: Arc<Metrics>,
}

/// A store that is open, with its writer.
pub(crate) struct Opened {
    pub(crate) handle: RegistryHandle,
    pub(crate) writer: WriterThread,
    pub(crate) own: Own,
    /// Where the stable revision of rollouts is kept.
    pub(crate) kept: Kept,
}

/// Whose it is.
pub(crate) enum Own {
    /// Of this process alone, in a directory.
    Directory {
        dir: PathBuf,
        lock: DirLock,
        recovered: Option<Recovered>,
    },
    /// Of several.
    Shared(Box<Cluster>),
}

impl SecretPaths {
    fn below(self, dir: &Path) -> SecretFiles {
        SecretFiles {
            pepper: self.pepper.unwrap_or_else(|| dir.join("pepper")),
            seal_key: self.seal_key.unwrap_or_else(|| dir.join("seal.key")),
        }
    }

    /// With a store that is shared they are given.
    fn given(self) -> Result<SecretFiles, EtcdError> {
        Ok(SecretFiles {
            pepper: self.pepper.ok_or(EtcdError::NoSecret("--pepper-file"))?,
            seal_key: self
                .seal_key
                .ok_or(EtcdError::NoSecret("--seal-key-file"))?,
        })
    }
}

/// Opens it, on a thread that may block.
pub(crate) async fn open(opening: Opening) -> Result<Opened, ControlError> {
    let runtime = Handle::current();
    let opened = tokio::task::spawn_blocking(move || match opening.store.clone() {
        StoreLocation::Sled(dir) => open_directory(opening, dir),
        StoreLocation::Etcd(at) => open_shared(opening, &at, &runtime),
    });
    opened
        .await
        .map_err(|error| ControlError::Internal(error.to_string()))?
}

fn open_directory(opening: Opening, dir: PathBuf) -> Result<Opened, ControlError> {
    let (mut store, recovered) = recover::open(&dir, &opening.fresh, opening.recovery)?;
    let lock = store.lock.clone();
    // What was stable before all went at once is not any more.
    if opening.all_at_once
        && let Err(error) = rollout::forget_stable(&dir)
    {
        tracing::warn!(%error, "the stable revision of earlier rollouts is still kept");
    }
    let needs = needs(&mut store)?;
    let vault = Vault::open(&opening.secrets.below(&dir), &needs, Missing::Made)?;
    let started = registry::start(store, opening.metrics, vault);
    let (handle, writer) = started.map_err(ControlError::Load)?;
    Ok(Opened {
        handle,
        writer,
        kept: Kept::File(dir.clone()),
        own: Own::Directory {
            dir,
            lock,
            recovered,
        },
    })
}

fn open_shared(
    opening: Opening,
    at: &EtcdLocation,
    runtime: &Handle,
) -> Result<Opened, ControlError> {
    let files = opening.secrets.given()?;
    let etcd = Arc::new(Etcd::new(at, &opening.replica.access)?);
    let mut store = EtcdStore::open(etcd.clone(), runtime.clone(), &opening.fresh)?;
    let needs = needs(&mut store)?;
    let vault = Vault::open(&files, &needs, Missing::Refused)?;
    runtime.block_on(cluster::check_secrets(&etcd, &vault, &files))?;
    let started = registry::start(store, opening.metrics, vault);
    let (handle, writer) = started.map_err(ControlError::Load)?;
    let cluster = Cluster::new(etcd, Replica::new(opening.replica.name));
    let kept = Kept::Shared(cluster.shared.clone());
    Ok(Opened {
        handle,
        writer,
        kept,
        own: Own::Shared(Box::new(cluster)),
    })
}

fn needs(store: &mut impl Store) -> Result<Needs, ControlError> {
    let stored = store.load();
    let stored = stored.map_err(|error| ControlError::Load(error.to_string()))?;
    Ok(Needs::of(&stored))
}
