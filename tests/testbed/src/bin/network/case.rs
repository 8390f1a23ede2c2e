//! The ways in which the network between control plane and workers is bad.

use std::time::Duration;

use clap::ValueEnum;
use forebay_testbed::{Cut, Shape, Way, Wire};

/// One of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Case {
    /// Nothing comes through.
    Partition,
    /// Workers are heard, and hear nothing.
    DeafWorkers,
    /// Workers hear, and are not heard.
    MuteWorkers,
    /// Of the packets of each direction 30 % are lost.
    Loss,
    /// Each packet takes 500 ms: a second there and back.
    Delay,
    /// Connections can be made, and then nothing comes through.
    Handshakes,
}

impl Case {
    /// What it is called in tables.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Partition => "partition",
            Self::DeafWorkers => "one way: nothing comes to the workers",
            Self::MuteWorkers => "one way: nothing comes from the workers",
            Self::Loss => "30 % of the packets lost, each way",
            Self::Delay => "500 ms each way",
            Self::Handshakes => "connections are made, then nothing",
        }
    }

    /// Whether streams must break of it.
    pub(crate) fn breaks_streams(self) -> bool {
        match self {
            Self::Partition | Self::DeafWorkers | Self::MuteWorkers | Self::Handshakes => true,
            Self::Loss | Self::Delay => false,
        }
    }

    /// Makes the wire so, whose first end is at the control plane.
    pub(crate) fn befall(self, wire: &Wire) {
        match self {
            Self::Partition => wire.shape_both(Shape::cut()),
            Self::DeafWorkers => wire.shape(Way::There, Shape::cut()),
            Self::MuteWorkers => wire.shape(Way::Back, Shape::cut()),
            Self::Loss => wire.shape_both(Shape::lossy(0.3)),
            Self::Delay => wire.shape_both(Shape::delayed(Duration::from_millis(500))),
            Self::Handshakes => wire.shape_both(Shape {
                cut: Cut::AllButHandshakes,
                ..Shape::default()
            }),
        }
    }
}
