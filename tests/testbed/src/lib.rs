//! Several hosts on one machine: network namespaces, and wires between them that delay, lose and cut packets, as the
//! kernel's own netem would if every kernel had it. Needs root, `ip` (iproute2) and `/dev/net/tun`, and leaves nothing
//! behind, however it ends: namespaces have no name once they are made, devices go with this process, and so do the
//! programs that run on them.
//!
//! It knows nothing of the product. A step that fails panics, with what it was doing; what the machine lacks is told of
//! by [`what_is_missing`] before.

#![expect(
    clippy::expect_used,
    reason = "scenery that cannot be set up ends the run, here and now"
)]

mod lane;
mod machine;
mod namespace;
mod wire;

pub use lane::{Counts, Cut, Lane, MOST_BYTES, MOST_PACKETS, Shape};
pub use machine::what_is_missing;
pub use namespace::Namespace;
pub use wire::{End, Way, Wire};
