//! Forebay's control plane: the only writer of configuration.
//!
//! It takes registrations over gRPC, makes each a durable revision, and pushes the newest to every
//! worker. It never imports the data plane. See `ARCHITECTURE.md` for the way of a registration
//! through these modules.

mod accept;
mod app;
mod cluster;
mod etcd;
mod exporter;
mod fleet;
mod http;
mod leases;
mod metrics;
mod opening;
mod plan;
mod probe;
mod registry;
mod rollout;
mod secrets;
mod service;
mod session;
#[cfg(feature = "simulation")]
pub mod simulation;
mod store;
mod trace_context;

pub use app::{BoundControl, ControlError, ControlSettings, Exposure, SecretPaths};
pub use cluster::ReplicaSettings;
pub use etcd::{BadEtcd, EtcdAccess, EtcdError, EtcdLocation};
pub use leases::LeaseSettings;
pub use rollout::{BadRings, Rings, RolloutSettings};
pub use secrets::SecretsError;
pub use store::{
    BadLocation, CheckReport, ExportError, ExportHeader, MigrateError, Migrated, OfflineError,
    OpenError, Recovery, StoreLocation, check, check_etcd, export_directory, export_etcd, import,
    migrate, new_epoch,
};
