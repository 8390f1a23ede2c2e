//! How a connection comes back from a request: kept, closed, or, if others are on it, a little freer.

use std::time::Duration;

use super::{Connection, Core, Effect, Held, Outcome};
use crate::pool::counters::CloseReason;

impl<C: Connection, W> Core<C, W> {
    /// A lease ended.
    pub(in crate::pool) fn release(
        &mut self,
        now: Duration,
        held: Held<C>,
        outcome: Outcome,
    ) -> Vec<Effect<C, W>> {
        let mut held = held;
        self.line.leave(held.seat);
        self.take_back(now, held.lent.take(), outcome);
        if let Some(origin) = self.origin_mut(held.origin) {
            origin.note_end(now, &held, outcome);
        }
        match held.shared {
            true => self.release_shared(now, held, outcome),
            false => self.release_whole(now, held, outcome),
        }
    }

    fn release_whole(
        &mut self,
        now: Duration,
        mut held: Held<C>,
        outcome: Outcome,
    ) -> Vec<Effect<C, W>> {
        let fits = self.open() <= self.limit();
        let no_room = self.no_room();
        let idle_pool = self.retired && self.line.is_empty();
        let too_old = self.is_too_old(now, held.born);
        let Some(origin) = self.origin_mut(held.origin) else {
            self.counters.count_closed(CloseReason::Removed);
            return self.pump_with(now, Effect::Close { conn: held.conn });
        };
        origin.active = origin.active.saturating_sub(1);
        let close = match outcome {
            Outcome::Broken(reason) => Some(reason),
            Outcome::Aborted | Outcome::Declined => Some(CloseReason::Cancelled),
            Outcome::Finished => Some(CloseReason::Upstream),
            _ if !origin.is_current() || idle_pool => Some(CloseReason::Removed),
            _ if !fits => Some(no_room),
            _ if too_old => Some(CloseReason::Age),
            Outcome::Reusable | Outcome::Unused => None,
        };
        if let Some(reason) = close {
            self.counters.count_closed(reason);
            self.forget_retired();
            return self.pump_with(now, Effect::Close { conn: held.conn });
        }
        match outcome {
            Outcome::Unused => held.uses = held.uses.saturating_sub(1),
            _ => held.idle_since = now,
        }
        origin.idle.push_back(held);
        // With one endpoint, and nobody who waits, nothing has become due.
        match self.line.is_empty() && self.origins.len() == 1 && !self.retired {
            true => Vec::new(),
            false => self.pump(now),
        }
    }

    /// One request's place on a connection is free again.
    fn release_shared(
        &mut self,
        now: Duration,
        held: Held<C>,
        outcome: Outcome,
    ) -> Vec<Effect<C, W>> {
        let fits = self.open() <= self.limit();
        let no_room = self.no_room();
        let too_old = self.is_too_old(now, held.born);
        let origin = self.origin_mut(held.origin);
        let shared = origin.and_then(|o| o.shared.iter_mut().find(|shared| shared.id == held.id));
        // Its end may have been told before.
        if let Some(shared) = shared {
            shared.streams = shared.streams.saturating_sub(1);
            match outcome {
                Outcome::Unused => shared.uses = shared.uses.saturating_sub(1),
                _ if shared.rests() => shared.idle_since = now,
                _ => {}
            }
            let doom = match outcome {
                Outcome::Broken(reason) => Some(reason),
                Outcome::Finished => Some(CloseReason::Upstream),
                _ if !fits => Some(no_room),
                _ if too_old => Some(CloseReason::Age),
                Outcome::Reusable | Outcome::Unused | Outcome::Aborted | Outcome::Declined => None,
            };
            if outcome == Outcome::Declined {
                shared.declined();
            }
            shared.doomed = shared.doomed.or(doom);
        }
        self.pump_with(now, Effect::LetGo { conn: held.conn })
    }

    fn is_too_old(&self, now: Duration, born: Duration) -> bool {
        let most = self.shape.max_age;
        most.is_some_and(|most| now.saturating_sub(born) >= most)
    }
}
