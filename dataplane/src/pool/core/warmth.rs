//! How many connections are kept open ahead of need: as many as were in use at most lately, and no fewer
//! than is configured; and how traffic keeps them open. Pure: the time is an argument.

use std::time::Duration;

use super::{
    Connection, Core, Held,
    origin::{Origin, Spot},
};

/// How often it is looked whether a connection is in need of a request.
const TURN_EVERY: Duration = Duration::from_millis(1);

/// After this time a peak counts for 1/e of what it was: a peak of 50 is forgotten after five minutes.
const FADES_IN: Duration = Duration::from_secs(65);

/// The decayed peak of what was in use.
#[derive(Debug, Default)]
pub(super) struct Peak {
    value: f64,
    at: Duration,
}

impl Peak {
    /// So many are in use now.
    pub(super) fn note(&mut self, now: Duration, in_use: usize) {
        self.value = self.faded(now).max(in_use as f64);
        self.at = now;
    }

    /// How many that is worth now.
    pub(super) fn get(&self, now: Duration) -> usize {
        // Never negative, and at most what was in use.
        self.faded(now).round() as usize
    }

    fn faded(&self, now: Duration) -> f64 {
        let gone = now.saturating_sub(self.at).as_secs_f64();
        self.value * (-gone / FADES_IN.as_secs_f64()).exp()
    }
}

impl<C: Connection, W> Core<C, W> {
    /// The newest idle connection is handed out first, so that those that are too many go cold and close. But
    /// one that belongs to the floor would only be opened anew: when half of the time is over that it may rest,
    /// it gets the request instead. A floor that has traffic is kept open by that alone.
    pub(super) fn keep_warm(&mut self, now: Duration, at: usize, spot: Spot) -> Spot {
        let in_need = match (spot, self.origins.get(at)) {
            (Spot::Idle(_), Some(origin)) if now >= origin.turn_at => self.in_need(now, origin),
            _ => return spot,
        };
        if let Some(origin) = self.origins.get_mut(at) {
            origin.turn_at = now + TURN_EVERY;
        }
        in_need.map_or(spot, Spot::Idle)
    }

    /// The coldest of those that stay.
    fn in_need(&self, now: Duration, origin: &Origin<C>) -> Option<usize> {
        let open = self.open();
        // What is too many goes from the cold end; here as many as are this endpoint's share.
        let surplus = open.saturating_sub(self.floor(now)) * origin.open() / open.max(1);
        // Those that never carried a request are not closed for their rest.
        let used = |(at, held): (usize, &Held<C>)| (held.uses > 0).then_some((at, held.idle_since));
        let (at, since) = origin
            .idle
            .iter()
            .enumerate()
            .filter_map(used)
            .nth(surplus)?;
        let limit = origin.idle_limit.limit(now, self.shape.idle_timeout);
        let rested = now.saturating_sub(since);
        (limit / 2 <= rested && rested < limit).then_some(at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peak_fades_within_five_minutes_however_often_it_is_looked_at() {
        let secs = Duration::from_secs;
        let mut peak = Peak::default();
        assert_eq!(peak.get(secs(9)), 0);
        peak.note(secs(10), 50);
        peak.note(secs(10), 3);
        assert_eq!(peak.get(secs(10)), 50);
        let mut watched = Peak::default();
        watched.note(secs(10), 50);
        for tenth in 100..1_000 {
            watched.note(Duration::from_millis(tenth * 100), 0);
        }
        assert_eq!(watched.get(secs(100)), peak.get(secs(100)));
        assert!((10..15).contains(&peak.get(secs(100))));
        assert_eq!(peak.get(secs(315)), 0);
        peak.note(secs(100), 40);
        assert_eq!(peak.get(secs(100)), 40);
        peak.note(Duration::MAX, 0);
        assert_eq!(peak.get(Duration::MAX), 0);
    }
}
