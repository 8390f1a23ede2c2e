//! The waiting line: who waits for a slot, whose turn it is, and who has to go when it is full. Pure: it
//! knows no clock and no connection; the time of an event is an argument.
//!
//! Requests belong to flows (a client's key, a tenant named by a header; otherwise all are one flow), flows to
//! the bands of their priority. The next slot goes to the band, and in it to the flow, that holds least of
//! what is in flight for its weight; generations are long, and what is held is what others lack. Who holds
//! equally much (to a slot of the least weight among those who wait) is served in order of virtual start
//! times, which advance by cost / weight (start-time fair queueing): that decides where there are fewer slots
//! than flows. Within a flow, first come, first served. Nothing in flight is ever cut. docs/adr/0025.
//!
//! A full line turns away the newest of the flow that has most for its weight, in it and of the slots.

use std::{
    collections::{HashMap, VecDeque},
    time::Duration,
};

use super::{
    flow::{BAND_WEIGHTS, Band, Flow, Turn, Waiter},
    types::{Ask, FlowId, Priority, Refused, Seat, WaiterId, Wish},
};

/// Most flows that are told apart; further ones share one.
pub(super) const MOST_FLOWS: usize = 1_024;

/// Where one stands in line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Spot {
    /// Among those who had their turn.
    Again(usize),
    /// In his flow.
    In(Seat, usize),
}

#[derive(Debug)]
pub(super) struct Line<W> {
    /// Those whose connection turned out to be dead: they had their turn.
    again: VecDeque<Waiter<W>>,
    /// By seat. The first is that of all who belong to no flow; one for each band follows, of those whose
    /// flow is not told apart.
    flows: Vec<Flow<W>>,
    seats: HashMap<(Priority, FlowId), Seat>,
    bands: [Band; Priority::ALL.len()],
    /// The bands' virtual time.
    now: u128,
    latest: u128,
    len: usize,
    /// Those who wait for certain endpoints.
    wishing: usize,
}

impl<W> Line<W> {
    pub(super) fn new() -> Self {
        let overflow = Priority::ALL.map(|priority| Flow::new((priority, FlowId::OVERFLOW)));
        let shared = Flow::new((Priority::Normal, FlowId::SHARED));
        let band = |weight| Band {
            turn: Turn {
                weight,
                ..Turn::default()
            },
            ..Band::default()
        };
        Self {
            again: VecDeque::new(),
            flows: std::iter::once(shared).chain(overflow).collect(),
            seats: HashMap::new(),
            bands: BAND_WEIGHTS.map(band),
            now: 0,
            latest: 0,
            len: 0,
            wishing: 0,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// How many wait for certain endpoints.
    pub(super) fn wishing(&self) -> usize {
        self.wishing
    }

    /// Those who wait for certain endpoints: those who had their turn, then the others as they came.
    pub(super) fn wishes(&self) -> Vec<&Waiter<W>> {
        if self.wishing == 0 {
            return Vec::new();
        }
        let waiting = self.bands.iter().flat_map(|band| &band.waiting);
        let flows = waiting.filter_map(|seat| self.flows.get(seat.0));
        let lines = flows.flat_map(|flow| &flow.line);
        let wishes = |waiter: &&Waiter<W>| !waiter.wish.is_any();
        let mut in_turn: Vec<&Waiter<W>> = lines.filter(wishes).collect();
        in_turn.sort_unstable_by_key(|waiter| waiter.id.seq);
        self.again.iter().filter(wishes).chain(in_turn).collect()
    }

    /// Lines up behind the others of his flow.
    pub(super) fn push(
        &mut self,
        now: Duration,
        seq: u64,
        ask: &Ask,
        wish: Wish,
        waiter: W,
    ) -> WaiterId {
        let seat = self.seat(ask);
        let id = WaiterId { seq, seat };
        let starts = self.is_first(seat);
        if let Some(flow) = self.flows.get_mut(seat.0) {
            flow.turn.start = flow.turn.start.max(starts);
            self.wishing += usize::from(!wish.is_any());
            flow.line.push_back(Waiter {
                id,
                arrived: now,
                fresh_since: None,
                wish,
                waiter,
                seat,
                cost: ask.cost,
            });
            self.len += 1;
        }
        id
    }

    /// Lines up before everybody.
    pub(super) fn push_front(
        &mut self,
        now: Duration,
        seq: u64,
        ask: &Ask,
        fresh_since: Option<Duration>,
        wish: Wish,
        waiter: W,
    ) -> WaiterId {
        let seat = self.seat(ask);
        let id = WaiterId { seq, seat };
        self.wishing += usize::from(!wish.is_any());
        self.again.push_front(Waiter {
            id,
            arrived: now,
            fresh_since,
            wish,
            waiter,
            seat,
            cost: 0,
        });
        self.len += 1;
        id
    }

    /// Takes out one who went away.
    pub(super) fn remove(&mut self, id: WaiterId) -> Option<W> {
        let in_flow = self.flows.get(id.seat.0).and_then(|flow| {
            let at = flow.line.binary_search_by_key(&id.seq, |w| w.id.seq);
            at.ok().map(|at| Spot::In(id.seat, at))
        });
        let again = || self.again.iter().position(|waiter| waiter.id == id);
        let spot = in_flow.or_else(|| again().map(Spot::Again))?;
        self.take_out(spot).map(|waiter| waiter.waiter)
    }

    /// Whose turn it is among those who can be served.
    pub(super) fn next(&self, can: impl Fn(&Waiter<W>) -> bool) -> Option<Spot> {
        if let Some(at) = self.again.iter().position(&can) {
            return Some(Spot::Again(at));
        }
        let waiting = || self.bands.iter().filter(|band| !band.waiting.is_empty());
        let least_band = waiting().map(|band| band.turn.weight).min()?;
        let mut best = None;
        for band in waiting() {
            // By where a request of its would end: of those that begin together the weightier is first.
            let of_band = (band.turn.holds(least_band), band.turn.would_end());
            let flows = || band.waiting.iter().filter_map(|seat| self.of(*seat));
            let least = flows().map(|(_, flow)| flow.turn.weight).min();
            for (seat, flow) in flows() {
                let able = flow.line.iter().position(&can);
                let Some((at, first)) = able.and_then(|at| Some((at, flow.line.get(at)?))) else {
                    continue;
                };
                let holds = flow.turn.holds(least.unwrap_or(1));
                let order = (of_band, holds, flow.turn.start, first.id.seq);
                if best.is_none_or(|(known, _)| order < known) {
                    best = Some((order, Spot::In(seat, at)));
                }
            }
        }
        best.map(|(_, spot)| spot)
    }

    pub(super) fn at(&self, spot: Spot) -> Option<&Waiter<W>> {
        match spot {
            Spot::Again(at) => self.again.get(at),
            Spot::In(seat, at) => self.flows.get(seat.0)?.line.get(at),
        }
    }

    /// His turn: he gets a slot.
    pub(super) fn serve(&mut self, spot: Spot) -> Option<(Waiter<W>, Seat)> {
        // Before he is taken out: the virtual time is that of the first start among those who wait.
        if let Spot::In(seat, _) = spot {
            self.note_start(seat);
        }
        let cost = self.at(spot)?.cost;
        if let Spot::In(seat, _) = spot {
            self.charge(seat, cost);
        }
        let waiter = self.take_out(spot)?;
        let seat = waiter.seat;
        self.sit_down(seat);
        Some((waiter, seat))
    }

    /// One who does not have to wait gets a slot.
    pub(super) fn serve_at_once(&mut self, ask: &Ask) -> Seat {
        let seat = self.seat(ask);
        self.sit_down(seat);
        seat
    }

    /// A slot is free again.
    pub(super) fn leave(&mut self, seat: Seat) {
        if let Some(flow) = self.flows.get_mut(seat.0) {
            let (priority, _) = flow.name;
            flow.turn.in_flight = flow.turn.in_flight.saturating_sub(1);
            if let Some(band) = self.bands.get_mut(priority as usize) {
                band.turn.in_flight = band.turn.in_flight.saturating_sub(1);
            }
        }
    }

    /// Turns one away, as the line is longer than it may be by the one who came last: the newest of the flow
    /// that has most. Why says whether that one has more than its share.
    pub(super) fn turn_away(&mut self, last: WaiterId) -> Option<(W, Refused)> {
        let own = self.flows.get(last.seat.0)?;
        if own.line.back().is_none_or(|newest| newest.id != last) {
            return None;
        }
        let waiting = self.bands.iter().flat_map(|band| &band.waiting);
        let flows = waiting.filter_map(|seat| self.of(*seat));
        let crowded = flows.max_by(|(_, a), (_, b)| a.crowding().total_cmp(&b.crowding()));
        let (fullest, most) = crowded.map(|(seat, flow)| (seat, flow.crowding()))?;
        if own.crowding() < most {
            let newest = self.flows.get(fullest.0)?.line.len().checked_sub(1)?;
            let gone = self.take_out(Spot::In(fullest, newest))?;
            return Some((gone.waiter, Refused::Displaced));
        }
        let why = match own.line.len() == 1 && self.holds_less_than_others(last.seat) {
            true => Refused::Crowded,
            false => Refused::QueueFull,
        };
        let newest = own.line.len() - 1;
        let gone = self.take_out(Spot::In(last.seat, newest))?;
        Some((gone.waiter, why))
    }

    /// Everybody who waited for as long, in no order.
    pub(super) fn take_those_who_waited(
        &mut self,
        now: Duration,
        patience: Duration,
    ) -> Vec<Waiter<W>> {
        let long = |waiter: &Waiter<W>| now.saturating_sub(waiter.arrived) >= patience;
        let mut gone = Vec::new();
        loop {
            // In each line the oldest stands first; of those who had their turn, last.
            let again = self.again.iter().rposition(&long).map(Spot::Again);
            let waiting = self.bands.iter().flat_map(|band| &band.waiting);
            let mut waiting = waiting.filter_map(|seat| self.of(*seat));
            let in_flow = || {
                let aged = waiting.find(|(_, flow)| flow.line.front().is_some_and(long));
                aged.map(|(seat, _)| Spot::In(seat, 0))
            };
            let Some(waiter) = again.or_else(in_flow).and_then(|spot| self.take_out(spot)) else {
                return gone;
            };
            gone.push(waiter);
        }
    }

    /// Those who need a connection that is newer than their failure.
    pub(super) fn wanting_fresh(&self) -> usize {
        let fresh = |waiter: &&Waiter<W>| waiter.fresh_since.is_some();
        self.again.iter().filter(fresh).count()
    }

    /// When the one arrived who has waited longest.
    pub(super) fn oldest(&self) -> Option<Duration> {
        let waiting = self.bands.iter().flat_map(|band| &band.waiting);
        let flows = waiting.filter_map(|seat| self.of(*seat));
        let fronts = flows.filter_map(|(_, flow)| flow.line.front());
        let all = fronts.chain(&self.again);
        all.map(|waiter| waiter.arrived).min()
    }

    /// Flows that have somebody in flight or in line.
    pub(super) fn busy_flows(&self) -> usize {
        self.flows.iter().filter(|flow| flow.is_busy()).count()
    }

    fn of(&self, seat: Seat) -> Option<(Seat, &Flow<W>)> {
        self.flows.get(seat.0).map(|flow| (seat, flow))
    }

    /// The seat of a flow, which is made if there is none.
    fn seat(&mut self, ask: &Ask) -> Seat {
        if ask.flow == FlowId::SHARED && ask.priority == Priority::Normal {
            return Seat::SHARED;
        }
        let name = (ask.priority, ask.flow);
        let seat = match self.seats.get(&name) {
            Some(seat) => *seat,
            None => self.make_seat(name),
        };
        if let Some(flow) = self.flows.get_mut(seat.0)
            && flow.name == name
        {
            flow.turn.weight = ask.weight.max(1);
        }
        seat
    }

    fn make_seat(&mut self, name: (Priority, FlowId)) -> Seat {
        let overflow = Seat(1 + name.0 as usize);
        if self.flows.len() < MOST_FLOWS {
            let seat = Seat(self.flows.len());
            self.flows.push(Flow::new(name));
            self.seats.insert(name, seat);
            return seat;
        }
        // What is at rest can be forgotten; best one whose start says nothing any more.
        let fixed = 1 + Priority::ALL.len();
        let resting = self.flows.iter().enumerate().skip(fixed);
        let resting = resting.filter(|(_, flow)| !flow.is_busy());
        let Some((at, _)) = resting.min_by_key(|(_, flow)| flow.turn.start) else {
            return overflow;
        };
        if let Some(flow) = self.flows.get_mut(at) {
            self.seats.remove(&flow.name);
            *flow = Flow::new(name);
        }
        self.seats.insert(name, Seat(at));
        Seat(at)
    }

    fn sit_down(&mut self, seat: Seat) {
        if let Some(flow) = self.flows.get_mut(seat.0) {
            let (priority, _) = flow.name;
            flow.turn.in_flight += 1;
            if let Some(band) = self.bands.get_mut(priority as usize) {
                band.turn.in_flight += 1;
            }
        }
    }

    /// If he is the first to wait in his flow, it waits from now on; so does its band. The earliest start
    /// that it can have.
    fn is_first(&mut self, seat: Seat) -> u128 {
        let Some((_, flow)) = self.of(seat).filter(|(_, flow)| flow.line.is_empty()) else {
            return 0;
        };
        let (priority, _) = flow.name;
        let starts = self.bands.iter().filter(|band| !band.waiting.is_empty());
        let first = starts.map(|band| band.turn.start).min();
        self.now = self.now.max(first.unwrap_or(0));
        let now = self.now;
        let flows = &self.flows;
        let Some(band) = self.bands.get_mut(priority as usize) else {
            return 0;
        };
        if band.waiting.is_empty() {
            band.turn.start = band.turn.start.max(now);
        }
        band.advance(flows);
        band.waiting.push(seat);
        band.now
    }

    /// Somebody of this flow is about to be served.
    fn note_start(&mut self, seat: Seat) {
        let Some((_, flow)) = self.of(seat) else {
            return;
        };
        let (priority, _) = flow.name;
        let waiting = self.bands.iter().filter(|band| !band.waiting.is_empty());
        let first = waiting.map(|band| band.turn.start).min();
        self.now = self.now.max(first.unwrap_or(0));
        if let Some(band) = self.bands.get_mut(priority as usize) {
            band.advance(&self.flows);
        }
    }

    fn charge(&mut self, seat: Seat, cost: u32) {
        let Some(flow) = self.flows.get_mut(seat.0) else {
            return;
        };
        let (priority, _) = flow.name;
        flow.turn.charge(cost);
        if let Some(band) = self.bands.get_mut(priority as usize) {
            band.latest = band.latest.max(flow.turn.start);
            band.turn.charge(cost);
            self.latest = self.latest.max(band.turn.start);
        }
    }

    fn take_out(&mut self, spot: Spot) -> Option<Waiter<W>> {
        let waiter = match spot {
            Spot::Again(at) => self.again.remove(at),
            Spot::In(seat, at) => {
                let flow = self.flows.get_mut(seat.0)?;
                let waiter = flow.line.remove(at);
                let (priority, _) = flow.name;
                let emptied = flow.line.is_empty();
                if emptied && let Some(band) = self.bands.get_mut(priority as usize) {
                    band.waiting.retain(|waiting| *waiting != seat);
                    // Where nobody waits nobody is owed anything.
                    if band.waiting.is_empty() {
                        band.now = band.latest;
                    }
                }
                waiter
            }
        }?;
        self.len -= 1;
        self.wishing -= usize::from(!waiter.wish.is_any());
        if self.bands.iter().all(|band| band.waiting.is_empty()) {
            self.now = self.latest;
        }
        Some(waiter)
    }

    /// True if this flow has no more slots for its weight than the mean of all that have or want some.
    fn holds_less_than_others(&self, seat: Seat) -> bool {
        let busy = || self.flows.iter().filter(|flow| flow.is_busy());
        let (slots, weights) = busy().fold((0, 0), |(slots, weights), flow| {
            let turn = &flow.turn;
            (
                slots + turn.in_flight as u64,
                weights + u64::from(turn.weight),
            )
        });
        let others = busy().count() > 1;
        let own = self.of(seat).map(|(_, flow)| &flow.turn);
        others
            && own
                .is_some_and(|own| own.in_flight as u64 * weights <= slots * u64::from(own.weight))
    }
}

#[cfg(test)]
impl<W> Line<W> {
    pub(super) fn iter(&self) -> impl Iterator<Item = &Waiter<W>> {
        let lines = self.flows.iter().flat_map(|flow| &flow.line);
        self.again.iter().chain(lines)
    }

    /// What must hold between transitions.
    pub(super) fn assert_invariants(&self) {
        assert_eq!(
            self.len,
            self.iter().count(),
            "the length is that of the lines"
        );
        let wishing = self.iter().filter(|waiter| !waiter.wish.is_any());
        assert_eq!(self.wishing, wishing.count(), "who wishes is known");
        assert!(self.flows.len() <= MOST_FLOWS, "flows without bound");
        for (n, band) in self.bands.iter().enumerate() {
            let own = self.flows.iter().filter(|flow| flow.name.0 as usize == n);
            let in_flight = own.map(|flow| flow.turn.in_flight).sum::<usize>();
            assert_eq!(
                band.turn.in_flight, in_flight,
                "a band holds what its flows hold"
            );
        }
        let mut waits = vec![0; self.flows.len()];
        for seat in self.bands.iter().flat_map(|band| &band.waiting) {
            waits[seat.0] += 1;
        }
        for (flow, waits) in self.flows.iter().zip(waits) {
            assert_eq!(
                waits,
                usize::from(!flow.line.is_empty()),
                "who waits is known"
            );
            let ids: Vec<u64> = flow.line.iter().map(|waiter| waiter.id.seq).collect();
            assert!(ids.is_sorted(), "3: the order of a flow");
        }
    }

    pub(super) fn in_flight(&self) -> usize {
        self.bands.iter().map(|band| band.turn.in_flight).sum()
    }
}
