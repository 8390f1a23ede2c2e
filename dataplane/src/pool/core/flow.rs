//! The parts of the waiting line: who waits, the flow that he is of, and the band of flows of one priority.

use std::{collections::VecDeque, time::Duration};

use super::types::{FlowId, Priority, Seat, WaiterId, Wish};

/// A cost of 1 at a weight of 1, in virtual time.
const UNIT: u128 = 1 << 20;
/// What a band gets of a full pool relative to the others: the highest nearly everything, and yet the
/// lowest does not stand still.
pub(super) const BAND_WEIGHTS: [u32; Priority::ALL.len()] = [1, 8, 64];

#[derive(Debug)]
pub(super) struct Waiter<W> {
    pub(super) id: WaiterId,
    pub(super) arrived: Duration,
    /// He needs a connection that is newer than his request's last failure.
    pub(super) fresh_since: Option<Duration>,
    pub(super) wish: Wish,
    pub(super) waiter: W,
    pub(super) seat: Seat,
    pub(super) cost: u32,
}

impl<W> Waiter<W> {
    /// True if any connection to any endpoint will do.
    pub(super) fn is_plain(&self) -> bool {
        self.fresh_since.is_none() && self.wish.is_any()
    }
}

/// A flow's or band's claim to the next slot.
#[derive(Debug, Default)]
pub(super) struct Turn {
    pub(super) weight: u32,
    /// Requests that hold a slot.
    pub(super) in_flight: usize,
    /// The virtual time at which its next request starts.
    pub(super) start: u128,
}

impl Turn {
    pub(super) fn charge(&mut self, cost: u32) {
        self.start += u128::from(cost.max(1)) * UNIT / u128::from(self.weight.max(1));
    }

    /// The virtual time at which its next request ends, if it is a small one.
    pub(super) fn would_end(&self) -> u128 {
        self.start + UNIT / u128::from(self.weight.max(1))
    }

    /// How much it holds, in slots of the least weight.
    pub(super) fn holds(&self, least: u32) -> u128 {
        self.in_flight as u128 * u128::from(least) / u128::from(self.weight.max(1))
    }
}

#[derive(Debug)]
pub(super) struct Flow<W> {
    pub(super) name: (Priority, FlowId),
    pub(super) turn: Turn,
    pub(super) line: VecDeque<Waiter<W>>,
}

impl<W> Flow<W> {
    pub(super) fn new(name: (Priority, FlowId)) -> Self {
        Self {
            name,
            turn: Turn {
                weight: 1,
                ..Turn::default()
            },
            line: VecDeque::new(),
        }
    }

    pub(super) fn is_busy(&self) -> bool {
        !self.line.is_empty() || self.turn.in_flight > 0
    }

    /// How much it has for its weight, its band's included: in line, and of the slots.
    pub(super) fn crowding(&self) -> f64 {
        let (priority, _) = self.name;
        let band = BAND_WEIGHTS.get(priority as usize).copied().unwrap_or(1);
        (self.line.len() + self.turn.in_flight) as f64
            / (f64::from(self.turn.weight.max(1)) * f64::from(band))
    }
}

#[derive(Debug, Default)]
pub(super) struct Band {
    pub(super) turn: Turn,
    /// Those of its flows in which somebody waits.
    pub(super) waiting: Vec<Seat>,
    /// Its flows' virtual time: no earlier start is given out.
    pub(super) now: u128,
    pub(super) latest: u128,
}

impl Band {
    /// Its virtual time is that of the first start among those who wait, and never goes back.
    pub(super) fn advance<W>(&mut self, flows: &[Flow<W>]) {
        let waiting = self.waiting.iter().filter_map(|seat| flows.get(seat.0));
        let first = waiting.map(|flow| flow.turn.start).min();
        self.now = self.now.max(first.unwrap_or(0));
    }
}
