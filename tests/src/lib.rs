//! The harness of the system tests: real control planes, workers and mocks on free ports of the
//! loopback interface, each owned by a handle that stops it.
//!
//! It asserts nothing about the product by itself; a step of the scenery that fails panics, with
//! what it was doing.

#![expect(
    clippy::expect_used,
    clippy::panic,
    reason = "scenery that cannot be set up ends the test, here and now"
)]

mod balancer;
mod bodies;
mod calm;
mod client;
mod cluster;
mod crowd;
mod disconnects;
mod dns;
mod etcd_faults;
mod fake_control;
mod idle_sweep;
mod lists;
mod otlp;
mod outage;
mod overload;
mod pki;
mod played_fleet;
mod poison;
mod ports;
mod position;
mod process;
mod raw;
mod register;
mod relay;
mod replicas;
mod scrape;
mod stalled;
mod steady;
mod trio;
mod wait;

pub use balancer::{Balancer, Behind};
pub use bodies::{BOUNDARY, Bodies};
pub use calm::calmly;
pub use client::{Chat, Client, Ended};
pub use cluster::{Cluster, WorkerHandle, model_at};
pub use crowd::{Crowd, Fates, Spread};
pub use disconnects::{Departures, Disconnects, Moment, Variant, Way, quantile, variants};
pub use dns::DnsServer;
pub use etcd_faults::{Fault, Stand, Weather};
pub use fake_control::{FakeControl, FakeStream, push_of};
pub use idle_sweep::{IdleSweep, Swept};
pub use lists::ListServer;
pub use otlp::{Receiver, SeenSpan};
pub use outage::{Outage, Weathered};
pub use overload::{Offered, Tenant, offer};
pub use pki::Authority;
pub use played_fleet::{PlayedFleet, Pushed};
pub use poison::{Poison, poison};
pub use ports::lasting_addr;
pub use position::newest_position;
pub use process::Process;
pub use raw::{After, RawClient, RawUpstream};
pub use register::{Read, Wrote, judge};
pub use relay::Relay;
pub use replicas::Replicas;
pub use scrape::{Sample, Scrape};
pub use stalled::Stalled;
pub use steady::{Rotation, Served, steady_load};
pub use trio::Trio;
pub use wait::{eventually, eventually_within};
