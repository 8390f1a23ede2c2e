//! System tests: real control planes, workers and mocks in one process, on free ports.

#![expect(
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "in a test, a wrong assumption is to fail at once"
)]

mod admission;
mod bad_input;
mod budget;
mod cancel;
mod controls;
mod disconnects;
mod discovery;
mod ejection;
mod endpoint_truth;
mod fallback;
mod fleet_limits;
mod hard_clients;
mod hard_upstreams;
mod http2;
mod keys;
mod lifecycle;
mod one_meaning;
mod registry;
mod retries;
mod revisions;
mod rings;
mod rollouts;
mod sessions;
mod skeptic;
mod stale;
mod stream;
mod streams;
mod surface;
mod transports;
mod upstream_faults;
