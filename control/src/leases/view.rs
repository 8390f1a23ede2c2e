//! How fleet-wide limits and leases look: to operators and to monitors. It changes nothing.

use std::time::Duration;

use forebay_proto::{ModelId, WorkerId, limits, wire};

use super::{
    holder::{Holder, Terms},
    machine::{Limit, Machine, Sum},
};

/// Names told of those that are waited for.
const NAMED: usize = 3;

/// One limit in numbers.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Figures {
    pub(crate) model: ModelId,
    pub(crate) limit: u32,
    pub(crate) allotted: u32,
    pub(crate) in_flight: u32,
    pub(crate) waiting: u32,
    pub(crate) held_back: u32,
    pub(crate) used: u32,
}

impl Figures {
    /// in_flight / limit.
    pub(crate) fn utilisation(&self) -> f64 {
        f64::from(self.in_flight) / f64::from(self.limit.max(1))
    }
}

impl Machine {
    /// All limits in numbers.
    pub(crate) fn figures(&self, now: Duration) -> Vec<Figures> {
        let limits = self.limits().iter();
        limits
            .map(|(model, limit)| self.figures_of(now, model, limit, &self.sum(now, model, limit)))
            .collect()
    }

    /// Those who get a part.
    fn members(&self, now: Duration, model: &ModelId) -> impl Iterator<Item = &Holder> {
        let patience = self.patience();
        let part = move |holder: &&Holder| holder.takes_part(now, model, patience);
        self.workers.values().filter(part)
    }

    fn figures_of(&self, now: Duration, model: &ModelId, limit: &Limit, sum: &Sum) -> Figures {
        let mut figures = Figures {
            model: model.clone(),
            limit: limit.limit,
            allotted: 0,
            in_flight: 0,
            waiting: 0,
            held_back: u32::try_from(sum.held_back).unwrap_or(u32::MAX),
            used: u32::try_from(sum.used).unwrap_or(u32::MAX),
        };
        for holder in self.members(now, model) {
            if let Some(hold) = holder.holds.get(model) {
                figures.allotted = figures.allotted.saturating_add(hold.granted.size);
                figures.in_flight = figures.in_flight.saturating_add(hold.said.in_flight);
                figures.waiting = figures.waiting.saturating_add(hold.said.waiting);
            }
        }
        figures
    }

    /// All limits, or one, with who has what.
    pub(crate) fn pools(&self, now: Duration, only: Option<&str>) -> Vec<wire::FleetPool> {
        let limits = self.limits().iter();
        let wanted = limits.filter(|(model, _)| only.is_none_or(|only| model.as_str() == only));
        wanted
            .map(|(model, limit)| {
                let sum = self.sum(now, model, limit);
                let figures = self.figures_of(now, model, limit, &sum);
                wire::FleetPool {
                    model: model.to_string(),
                    limit: figures.limit,
                    allotted: figures.allotted,
                    in_flight: figures.in_flight,
                    waiting: figures.waiting,
                    held_back: figures.held_back,
                    utilisation: figures.utilisation(),
                    waits_for: waits_for(limit, &sum, &figures),
                    leases: self
                        .workers
                        .iter()
                        .filter_map(|(id, holder)| self.lease(now, (id, holder), model, limit))
                        .collect(),
                }
            })
            .collect()
    }

    /// What one worker has of all limits, bounded.
    pub(crate) fn leases_of(&self, now: Duration, worker: &str) -> Vec<wire::Lease> {
        let Some((id, holder)) = self.workers.get_key_value(worker) else {
            return Vec::new();
        };
        let limits = self.limits().iter();
        limits
            .filter_map(|(model, limit)| self.lease(now, (id, holder), model, limit))
            .take(limits::LEASES_SHOWN)
            .collect()
    }

    fn lease(
        &self,
        now: Duration,
        (id, holder): (&WorkerId, &Holder),
        model: &ModelId,
        limit: &Limit,
    ) -> Option<wire::Lease> {
        let terms = Terms {
            model,
            since: &limit.since,
            own: limit.own,
        };
        let patience = self.patience();
        let may_use = holder.may_use(now, terms, patience);
        let hold = holder.holds.get(model).cloned().unwrap_or_default();
        let own = holder.own_pool(terms);
        let unknown = holder.is_unknown(now, model, patience);
        use wire::LeaseState as State;
        let (state, reason) = if unknown {
            let why =
                "not heard of since this control plane started; what it was lent may be in use";
            (State::Unknown, why.to_owned())
        } else if !holder.knows {
            let why = match own {
                0 => "its build knows no leases, and does not serve the model; replace it",
                _ => {
                    "its build knows no leases: it may serve the model as it was before, with a pool of its own; replace it"
                }
            };
            (State::TooOld, why.to_owned())
        } else if own > 0 {
            let why = format!(
                "may still serve the model as it was before, with a pool of {own} of its own"
            );
            (State::OwnPool, why)
        } else if holder.takes_part(now, model, patience) {
            match hold.said.in_flight > hold.granted.size {
                true => (State::Shrinking, String::new()),
                false => (State::Held, String::new()),
            }
        } else if holder.connected {
            (State::Pending, String::new())
        } else if may_use == 0 {
            return None;
        } else if holder.has_run_out(now, patience) {
            let why = "kept for it until it is back or forgotten (`forebay fleet forget`)";
            (State::Floor, why.to_owned())
        } else {
            let why = "not connected; what it was lent has not run out";
            (State::RunningOut, why.to_owned())
        };
        Some(wire::Lease {
            model: model.to_string(),
            worker_id: id.to_string(),
            state: state.into(),
            size: hold.granted.size,
            floor: hold.granted.floor,
            in_flight: hold.said.in_flight,
            waiting: hold.said.waiting,
            may_use,
            reason,
        })
    }
}

/// Why nobody is granted more now.
fn waits_for(limit: &Limit, sum: &Sum, figures: &Figures) -> String {
    if !sum.unknown.is_empty() {
        let named: Vec<&str> = sum
            .unknown
            .iter()
            .take(NAMED)
            .map(WorkerId::as_str)
            .collect();
        let more = sum.unknown.len().saturating_sub(named.len());
        let more = match more {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        return format!(
            "{}{more} to come back, or what was lent before this control plane started to run out",
            named.join(", ")
        );
    }
    if sum.unrecorded {
        return "what was lent before this store was made, moved or restored to run out: who may hold some is not on record"
            .to_owned();
    }
    if sum.used > u64::from(limit.limit) {
        return format!(
            "{} that may be in use to become {} by requests that end",
            sum.used, limit.limit
        );
    }
    let wanted = figures.in_flight.saturating_add(figures.waiting);
    if sum.held_back > 0 && wanted > figures.allotted {
        return format!("{} held back for workers that are not there", sum.held_back);
    }
    String::new()
}
