//! What is in force: routes and pools of one revision, published together by one atomic swap.
//!
//! A request loads it once and so sees exactly one revision. Nothing here is ever changed; a new
//! revision is a new value.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use forebay_proto::{Budget, Endpoint, EndpointId, ModelId, Position, ResolvedModel};
use http::HeaderValue;
use parking_lot::Mutex;
use tokio::time::{sleep, timeout};

use crate::{
    apply::Refusal,
    keys::KeyCell,
    metrics::ModelMetrics,
    pool::{Lease, Pool},
};

/// The routes and pools of one revision.
#[derive(Debug, Default)]
pub struct Live {
    /// Which revision. `None` before the first.
    pub position: Option<Position>,
    /// Most connections of the worker.
    pub budget: Option<Budget>,
    /// By model id.
    pub models: BTreeMap<ModelId, Arc<Route>>,
    /// How many models of the revision could not be taken.
    pub refused: usize,
    /// Why, bounded.
    pub refusals: Vec<Refusal>,
    /// Models that are as they were in an earlier revision, because this one's could not be taken.
    pub retained: BTreeSet<ModelId>,
    /// By every name: ids and aliases.
    routes: HashMap<ModelId, Arc<Route>>,
}

/// Where requests for a model go.
#[derive(Debug)]
pub struct Route {
    /// The model as registered, resolved.
    pub model: ResolvedModel,
    /// Its connections.
    pub pool: Arc<Pool>,
    /// Its series.
    pub metrics: Arc<ModelMetrics>,
    /// What requests to its endpoints carry, opened.
    pub credentials: Vec<Credential>,
}

/// What requests to one endpoint carry.
#[derive(Debug)]
pub struct Credential {
    /// The endpoint, at the url that the model has for it.
    pub endpoint: EndpointId,
    /// The header, once it could be opened. Until then requests carry none, also none of the client's.
    opened: OnceLock<HeaderValue>,
}

impl Credential {
    /// That of this endpoint, opened if that can be done now.
    pub(crate) fn new(keys: &KeyCell, model: &ModelId, endpoint: &Endpoint) -> Self {
        let opened = keys.credential(model, endpoint);
        Self {
            endpoint: endpoint.id.clone(),
            opened: opened.map_or_else(OnceLock::new, OnceLock::from),
        }
    }

    /// The header. The key that opens it may have come after the configuration: it is looked for until it is there.
    pub(crate) fn value(
        &self,
        keys: &KeyCell,
        model: &ModelId,
        endpoint: &Endpoint,
    ) -> Option<HeaderValue> {
        if let Some(opened) = self.opened.get() {
            return Some(opened.clone());
        }
        let opened = keys.open(model, endpoint)?;
        Some(self.opened.get_or_init(|| opened).clone())
    }
}

/// Whose key a request carries.
#[derive(Debug, Clone)]
pub(crate) enum Carries {
    /// What the client sent, if keys of ours are not in use.
    TheClients,
    /// The endpoint's; nothing if it cannot be had.
    Own(Option<HeaderValue>),
}

impl Route {
    /// What a request over this connection carries. Nothing if it leads to an endpoint, or a url, that the model has not.
    pub(crate) fn carries(&self, lease: &Lease, keys: &KeyCell) -> Option<Carries> {
        let mut endpoints = self.model.endpoints.iter();
        let endpoint = endpoints.find(|endpoint| lease.leads_to(endpoint))?;
        if withholds(endpoint) {
            return Some(Carries::Own(None));
        }
        if endpoint.credential.is_none() {
            return Some(Carries::TheClients);
        }
        let mut credentials = self.credentials.iter();
        let credential = credentials.find(|credential| credential.endpoint == endpoint.id);
        let value = credential.and_then(|own| own.value(keys, &self.model.id, endpoint));
        Some(Carries::Own(value))
    }

    /// True if the model has this endpoint, or a source of it named it.
    pub(crate) fn has(&self, endpoint: &EndpointId) -> bool {
        let mut endpoints = self.model.endpoints.iter();
        let plain = |e: &Endpoint| e.id == *endpoint && e.url.discovery().is_none();
        endpoints.any(plain) || self.pool.has_found(endpoint)
    }

    /// Everything that serves the model.
    pub(crate) fn endpoints(&self) -> Vec<EndpointId> {
        let plain = self.model.endpoints.iter();
        let plain = plain.filter(|endpoint| endpoint.url.discovery().is_none());
        let plain = plain.map(|endpoint| endpoint.id.clone());
        plain.chain(self.pool.found_ids()).collect()
    }
}

/// True if its servers are wherever a source says, and the operator did not say that secrets may go there.
pub(crate) fn withholds(endpoint: &Endpoint) -> bool {
    let discovery = endpoint.url.discovery();
    discovery.is_some_and(|discovery| !discovery.send_credentials)
}

impl Live {
    /// The configuration at this position.
    #[must_use]
    pub fn new(position: Position, budget: Budget, routes: Vec<Arc<Route>>) -> Self {
        let by_name = routes.iter().flat_map(|route| {
            route
                .model
                .names()
                .map(|name| (name.clone(), route.clone()))
                .collect::<Vec<_>>()
        });
        Self {
            position: Some(position),
            budget: Some(budget),
            routes: by_name.collect(),
            models: routes
                .iter()
                .map(|route| (route.model.id.clone(), route.clone()))
                .collect(),
            ..Self::default()
        }
    }

    /// The route of an id or alias.
    #[must_use]
    pub fn route(&self, name: &str) -> Option<&Arc<Route>> {
        self.routes.get(name)
    }

    /// Most connections of all pools together; their keepalive is the same number.
    #[must_use]
    pub fn total_size(&self) -> u64 {
        let sizes = self.models.values();
        let sizes: u64 = sizes
            .map(|route| u64::from(route.model.pool.size.get()))
            .sum();
        let budget = self.budget.map(|budget| u64::from(budget.get()));
        budget.map_or(sizes, |budget| budget.min(sizes))
    }
}

/// How often it is looked whether pools are warm.
const LOOK_EVERY: Duration = Duration::from_millis(2);

/// How often a retired pool is held while it is swept: in the list, and in the copy that is gone through.
const HELD_HERE: usize = 2;

/// Holds what is in force, and the pools of removed models until their last request is done.
#[derive(Debug, Default)]
pub struct LiveCell {
    live: ArcSwap<Live>,
    retired: Mutex<Vec<Arc<Pool>>>,
    /// An endpoint has, or had, a credential, or servers that get none.
    credentials: AtomicBool,
}

impl LiveCell {
    /// What is in force now.
    #[must_use]
    pub fn load(&self) -> Arc<Live> {
        self.live.load_full()
    }

    /// Whether there is anything to look for.
    pub(crate) fn has_credentials(&self) -> bool {
        self.credentials.load(Ordering::Acquire)
    }

    /// True once there is a revision in force.
    pub(crate) fn is_configured(&self) -> bool {
        self.live.load().position.is_some()
    }

    /// Puts a new revision in force.
    pub(crate) fn publish(&self, live: Live) {
        // Before it is seen, and for good: a request may still be on what was in force.
        let matters = |route: &Arc<Route>| {
            let mut endpoints = route.model.endpoints.iter();
            !route.credentials.is_empty() || endpoints.any(withholds)
        };
        if live.models.values().any(matters) {
            self.credentials.store(true, Ordering::Release);
        }
        self.live.store(Arc::new(live));
    }

    /// Takes a pool that is no longer in force and lets it drain.
    pub(crate) fn retire(&self, pool: Arc<Pool>) {
        pool.retire();
        self.retired.lock().push(pool);
    }

    /// Takes back the pool of a model that is registered again while it drains, so that its connections
    /// are counted, and bounded, once.
    pub(crate) fn take_back(&self, model: &ModelId) -> Option<Arc<Pool>> {
        let mut retired = self.retired.lock();
        let at = retired.iter().position(|pool| pool.model() == model)?;
        Some(retired.swap_remove(at))
    }

    /// Waits until the pools of these models are warm, but no longer than this.
    pub(crate) async fn warmed(&self, models: &[ModelId], within: Duration) {
        let live = self.load();
        let routes: Vec<_> = models.iter().filter_map(|id| live.models.get(id)).collect();
        let cold = || routes.iter().any(|route| !route.pool.is_warm());
        let warm = async {
            while cold() {
                sleep(LOOK_EVERY).await;
            }
        };
        if timeout(within, warm).await.is_err() {
            tracing::warn!(?within, "not every pool is warm in time");
        }
    }

    /// All pools, those that drain included.
    pub(crate) fn all_pools(&self) -> Vec<Arc<Pool>> {
        let live = self.load();
        let pools = live.models.values().map(|route| route.pool.clone());
        pools.chain(self.retired()).collect()
    }

    /// Requests in flight on what an earlier revision had.
    pub(crate) fn draining_requests(&self) -> usize {
        let pools = self.all_pools();
        pools.iter().map(|pool| pool.draining_requests()).sum()
    }

    /// The same, of models that were removed and of these alone: what a revision that changed these can have left.
    pub(crate) fn draining_of(&self, models: &[ModelId]) -> usize {
        let live = self.load();
        let changed = models.iter().filter_map(|id| live.models.get(id));
        let changed = changed.map(|route| route.pool.draining_requests());
        let retired = self.retired();
        let retired = retired.iter().map(|pool| pool.draining_requests());
        changed.chain(retired).sum()
    }

    /// Pools that still drain.
    #[must_use]
    pub fn retired(&self) -> Vec<Arc<Pool>> {
        self.retired.lock().clone()
    }

    /// Time went by: see [`Pool::sweep`]. Gives the models whose last pool is gone.
    pub(crate) fn sweep(&self) -> Vec<ModelId> {
        self.load()
            .models
            .values()
            .for_each(|route| route.pool.sweep());
        let draining = self.retired();
        draining.iter().for_each(|pool| pool.sweep());
        let mut gone = Vec::new();
        self.retired.lock().retain(|pool| {
            // A request of the revision before may still hold it, and want a connection.
            let keep = !pool.is_empty() || Arc::strong_count(pool) > HELD_HERE;
            if !keep {
                gone.push(pool.model().clone());
            }
            keep
        });
        gone
    }

    /// Closes what is idle, everywhere: the worker stops.
    pub(crate) fn shutdown(&self) {
        self.load()
            .models
            .values()
            .for_each(|route| route.pool.shutdown());
        self.retired().iter().for_each(|pool| pool.shutdown());
    }
}
