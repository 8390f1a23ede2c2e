//! Between wire and domain: one conversion each way per message, nowhere else.
//!
//! Reading collects every violation with its path; writing cannot fail.

mod config;
mod discovery;
mod endpoint;
mod failure;
mod health;
mod key;
mod model;
mod position;
mod settings;
mod units;

#[cfg(test)]
mod tests;

pub use endpoint::endpoint_url;
pub use model::probe_result_to_wire;
pub use units::{duration_to_wire, timestamp_to_wire};
