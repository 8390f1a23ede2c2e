//! Of streams to control planes.

use prometheus::{Error, IntCounterVec, Registry};

use super::by_reason;
use crate::config_client::Left;

/// How often streams ended and the worker moved, and why.
#[derive(Debug)]
pub(crate) struct ControlMetrics {
    ended: IntCounterVec,
    moves: IntCounterVec,
}

impl ControlMetrics {
    pub(super) fn new(registry: &Registry) -> Result<Self, Error> {
        let ended = by_reason(
            registry,
            "forebay_control_stream_ends_total",
            "Streams to a control plane that ended or did not come about, by reason.",
        )?;
        let moves = by_reason(
            registry,
            "forebay_control_moves_total",
            "How often this worker went from one control plane to another, by why it left the former.",
        )?;
        for left in Left::ALL {
            ended.with_label_values(&[left.word()]);
            moves.with_label_values(&[left.word()]);
        }
        Ok(Self { ended, moves })
    }

    /// A stream ended.
    pub(crate) fn ended(&self, left: Left) {
        self.ended.with_label_values(&[left.word()]).inc();
    }

    /// The worker follows another control plane than before.
    pub(crate) fn moved(&self, because: Left) {
        self.moves.with_label_values(&[because.word()]).inc();
    }
}
