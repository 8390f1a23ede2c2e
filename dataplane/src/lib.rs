//! Forebay's worker: an OpenAI-compatible gateway that routes by the request's `model`, serves over
//! connections that are always warm, and changes its configuration live.
//!
//! It never imports the control plane, and serves on when that is gone. See `ARCHITECTURE.md` for
//! the way of a request and of a pushed configuration through these modules.

pub mod admin;
mod app;
pub mod apply;
mod budget;
pub mod config_client;
mod ending;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
pub mod gateway;
mod handover;
mod health;
pub mod keys;
pub mod leases;
mod listeners;
pub mod live;
pub mod metrics;
pub mod pool;
mod resolve;
mod running;
mod shared_socket;
#[cfg(feature = "simulation")]
pub mod simulation;
mod trace_context;

/// Where the spans of a request come from: the beginning of their target.
pub const REQUEST_SPANS: &str = "forebay_dataplane::gateway";

pub use app::{BoundWorker, Exposure, HandOver, WorkerError, WorkerSettings};
pub use gateway::ClientLimits;
pub use listeners::Passed;
