//! What is behind the pool's lock. Nothing here waits, wakes or closes.

use std::{collections::HashMap, time::Duration};

use forebay_proto::{Endpoint, PoolParams, ResolvedModel};
use tokio::sync::oneshot;

use super::{
    Effects, Granted,
    conn::Conn,
    core::{Core, OriginId, Shape},
};

/// A pool's state: the core, and what the shell must know of endpoints to dial.
#[derive(Debug)]
pub(super) struct Inner {
    pub(super) core: Core<Conn, oneshot::Sender<Granted>>,
    pub(super) params: PoolParams,
    pub(super) connect_timeout: Duration,
    pub(super) origins: HashMap<OriginId, Endpoint>,
    /// Those that were removed and still have connections.
    pub(super) former: HashMap<OriginId, Endpoint>,
    pub(super) next_origin: u64,
    /// Decayed mean of how long a slot is in use, for `retry-after`.
    pub(super) mean_use: Duration,
}

impl Inner {
    pub(super) fn reshape(&mut self, now: Duration, model: &ResolvedModel) -> Effects {
        let wanted: Vec<_> = model
            .endpoints
            .iter()
            .map(|e| (self.origin_of(e), e))
            .collect();
        let pairs: Vec<_> = wanted.iter().map(|(id, e)| (*id, e.weight.get())).collect();
        self.params = model.pool.clone();
        self.connect_timeout = model.timeouts.connect;
        let effects = self.core.reshape(now, shape(&model.pool), &pairs);
        let wanted = wanted.into_iter().map(|(id, e)| (id, e.clone())).collect();
        self.former
            .extend(std::mem::replace(&mut self.origins, wanted));
        let (core, origins) = (&self.core, &self.origins);
        self.former
            .retain(|id, _| core.knows(*id) && !origins.contains_key(id));
        effects
    }

    /// The same endpoint at the same url keeps its origin, and with it its connections.
    pub(super) fn origin_of(&mut self, endpoint: &Endpoint) -> OriginId {
        let same = |known: &Endpoint| known.id == endpoint.id && known.url == endpoint.url;
        let mut known = self.origins.iter().chain(&self.former);
        if let Some((id, _)) = known.find(|(id, known)| same(known) && self.core.knows(**id)) {
            return *id;
        }
        self.next_origin += 1;
        OriginId(self.next_origin)
    }

    pub(super) fn note_use(&mut self, used: Duration) {
        self.mean_use = self.mean_use.mul_f64(0.9) + used.mul_f64(0.1);
    }

    /// The time in which the line ahead drains, from 1 s to 60 s.
    pub(super) fn retry_after(&self, waiting: usize) -> Duration {
        let slots = self.core.cap().clamp(1, self.params.size.get() as usize);
        let turns = (waiting + 1) as f64 / slots as f64;
        let seconds = (turns * self.mean_use.as_secs_f64())
            .ceil()
            .clamp(1.0, 60.0);
        Duration::from_secs_f64(seconds)
    }
}

pub(super) fn shape(params: &PoolParams) -> Shape {
    Shape {
        size: params.size.get() as usize,
        warm: params.warm as usize,
        max_waiting: params.max_waiting as usize,
        idle_timeout: params.idle_timeout,
        max_age: params.max_connection_age,
    }
}
