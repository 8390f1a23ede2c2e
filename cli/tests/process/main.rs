//! The binary as a process: what it prints, how it ends, and what survives when it is killed.

#![expect(
    clippy::indexing_slicing,
    clippy::unwrap_used,
    reason = "in a test, a wrong assumption is to fail at once"
)]

mod activation;
mod bad_start;
mod bench_seed;
mod commands;
mod demo;
mod durability;
mod etcd;
mod handover;
mod handover_limits;
mod keys;
mod nack;
mod offline;
mod paused;
mod poison;
mod quarantine;
mod roles;
mod rolling;
mod rollout;
mod stopping;
mod traces;
mod zero_loss;
