//! Puts in force what was found good: makes pools, swaps routes and pools at once, reshapes and retires.
//!
//! What is done for one model is guarded. A pool that panicked is not trusted any more: it drains, and one of the
//! earlier form is made in its place. Then all is put together again, without what failed; each round has at least
//! one model less to fail, so there is an end.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use forebay_proto::{Budget, Endpoint, ModelId, Position, ResolvedModel, endpoint::TlsRoots};

use super::{
    Action, Applied, Applier, Step,
    guard::guarded,
    plan,
    sift::{Merged, Sifted},
};
use crate::{
    live::{Credential, Live, Route},
    pool::Pool,
};

/// What was done so far on the way to a new configuration.
#[derive(Default)]
struct Work {
    /// Pools that were made, or taken back.
    made: BTreeMap<ModelId, Arc<Pool>>,
    /// Models whose pools have taken their new form.
    shaped: BTreeSet<ModelId>,
}

impl Applier {
    pub(super) fn put_in_force(
        &self,
        old: &Live,
        position: &Position,
        mut sifted: Sifted<'_>,
        mut merged: Merged,
    ) -> Applied {
        // Until all is settled nobody moves caps.
        let _turn = self.common.budget.turn();
        let before: Vec<&ResolvedModel> = old.models.values().map(|route| &route.model).collect();
        let mut work = Work::default();
        let steps = loop {
            let cap = self.configure_budget(sifted.budget, &merged.models);
            let failed = self.make_pools(old, &merged, cap, &mut work);
            if !failed.is_empty() {
                failed.iter().for_each(|(id, why)| sifted.fail(id, why));
                merged = sifted.merge();
                continue;
            }
            self.publish(old, position, &sifted, &merged, &work);
            let steps = plan(&before, &merged.models);
            let failed = self.reshape(&steps, &mut work);
            if failed.is_empty() {
                break steps;
            }
            for (id, why) in &failed {
                self.replace_pool(old, id, why, cap, &mut sifted, &mut work);
            }
            merged = sifted.merge();
        };
        self.retire(old, work);
        // Those of fleet-wide limits have nothing until they are told.
        self.common.leases.sync(&self.live);
        log_changes(position, sifted.budget, &steps, &merged.models);
        let changed = steps.into_iter().filter(|step| match step.action {
            Action::Create | Action::Resize | Action::Replace => true,
            Action::Keep | Action::Retire => false,
        });
        let retained = |model: &&ResolvedModel| merged.retained.contains(&model.id);
        Applied {
            changed: changed.map(|step| step.model).collect(),
            refusals: sifted.refusals(&merged),
            retained: merged.models.iter().filter(retained).cloned().collect(),
        }
    }

    /// Makes the pools that are missing. Gives the models for which that failed, and why.
    fn make_pools(
        &self,
        old: &Live,
        merged: &Merged,
        cap: usize,
        work: &mut Work,
    ) -> Vec<(ModelId, String)> {
        let mut failed = Vec::new();
        for model in &merged.models {
            if old.models.contains_key(&model.id) || work.made.contains_key(&model.id) {
                continue;
            }
            match self.pool_of(model, cap) {
                Ok(pool) => drop(work.made.insert(model.id.clone(), pool)),
                Err(why) => failed.push((model.id.clone(), why)),
            }
        }
        failed
    }

    fn pool_of(&self, model: &ResolvedModel, cap: usize) -> Result<Arc<Pool>, String> {
        let Some(pool) = self.live.take_back(&model.id) else {
            return self.new_pool(model, cap);
        };
        let revived = guarded(|| {
            #[cfg(test)]
            self.faults.trip("revive", &model.id);
            pool.revive(model);
        });
        if revived.is_err() {
            // It goes on to drain, if it still can.
            drop(guarded(|| self.live.retire(pool.clone())));
        }
        revived.map(|()| pool)
    }

    fn new_pool(&self, model: &ResolvedModel, cap: usize) -> Result<Arc<Pool>, String> {
        guarded(|| {
            #[cfg(test)]
            self.faults.trip("make", &model.id);
            Pool::new(model, &self.common, cap)
        })
    }

    /// The new value, with the pools of the old one where the model stays.
    fn publish(
        &self,
        old: &Live,
        position: &Position,
        sifted: &Sifted<'_>,
        merged: &Merged,
        work: &Work,
    ) {
        let route = |model: &ResolvedModel| {
            // Looked up before its pool is used: while somebody holds them they are not forgotten.
            let metrics = self.common.metrics.model(&model.id);
            let made = work.made.get(&model.id);
            let pool = made.or_else(|| old.models.get(&model.id).map(|route| &route.pool))?;
            Some(Arc::new(Route {
                model: model.clone(),
                pool: pool.clone(),
                metrics,
                credentials: self.credentials(model),
            }))
        };
        let routes = merged.models.iter().filter_map(route).collect();
        let mut new = Live::new(position.clone(), sifted.budget, routes);
        new.refused = sifted.refused();
        new.refusals = sifted.refusals(merged);
        new.retained = merged.retained.clone();
        self.live.publish(new);
    }

    /// Those of a model, opened if their keys are there. They are few, and opened anew with each configuration.
    fn credentials(&self, model: &ResolvedModel) -> Vec<Credential> {
        let endpoints = model.endpoints.iter();
        let with = endpoints.filter(|endpoint| endpoint.credential.is_some());
        let own = with.map(|endpoint| Credential::new(&self.common.keys, &model.id, endpoint));
        own.collect()
    }

    /// Pools that stay take the form of what is in force now. Gives the models for which that failed, and why.
    fn reshape(&self, steps: &[Step], work: &mut Work) -> Vec<(ModelId, String)> {
        let live = self.live.load();
        let mut failed = Vec::new();
        for step in steps {
            let changes = matches!(step.action, Action::Resize | Action::Replace);
            let route = live.models.get(&step.model).filter(|_| changes);
            let Some(route) = route.filter(|_| !work.shaped.contains(&step.model)) else {
                continue;
            };
            let reshaped = guarded(|| {
                #[cfg(test)]
                self.faults.trip("reshape", &step.model);
                route.pool.reshape(&route.model);
            });
            match reshaped {
                Ok(()) => drop(work.shaped.insert(step.model.clone())),
                Err(why) => failed.push((step.model.clone(), why)),
            }
        }
        failed
    }

    /// The pool of this model panicked on the way to its new form: the model stays as it was, with a new pool.
    fn replace_pool(
        &self,
        old: &Live,
        id: &ModelId,
        why: &str,
        cap: usize,
        sifted: &mut Sifted<'_>,
        work: &mut Work,
    ) {
        let earlier = old.models.get(id).map(|route| &route.model);
        match earlier.map(|model| self.new_pool(model, cap)) {
            Some(Ok(pool)) => drop(work.made.insert(id.clone(), pool)),
            Some(Err(_)) | None => sifted.forget(id),
        }
        sifted.fail(id, why);
    }

    /// Pools that are not in force any more drain.
    fn retire(&self, old: &Live, work: Work) {
        let live = self.live.load();
        let before = old.models.values().map(|route| route.pool.clone());
        for pool in before.chain(work.made.into_values()) {
            let route = live.models.get(pool.model());
            if !route.is_some_and(|route| Arc::ptr_eq(&route.pool, &pool))
                && let Err(why) = guarded(|| self.live.retire(pool.clone()))
            {
                tracing::error!(model = %pool.model(), why, "pool cannot drain, it is dropped");
            }
        }
    }

    /// Tells the budget what comes. Under one that binds, a pool that will grow must not do so before its
    /// cap says so.
    fn configure_budget(&self, budget: Budget, models: &[ResolvedModel]) -> usize {
        let sizes = models.iter();
        let mut sizes: HashMap<&ModelId, usize> = sizes
            .map(|model| (&model.id, model.pool.size.get() as usize))
            .collect();
        let pools = self.live.all_pools();
        let committed: usize = pools
            .iter()
            .map(|pool| {
                let size = sizes.remove(pool.model()).unwrap_or(0);
                size.max(pool.need().open())
            })
            .sum();
        let new: usize = sizes.into_values().sum();
        let limit = budget.get() as usize;
        let cap = self.common.budget.configure(limit, committed + new);
        if cap == 0 {
            pools.iter().for_each(|pool| {
                pool.lower_cap(pool.need().open());
            });
        }
        cap
    }
}

/// One line per changed pool, in the words that an operator of the seed's gateway looks for. The
/// totals are those of the worker.
fn log_changes(position: &Position, budget: Budget, steps: &[Step], models: &[ResolvedModel]) {
    let sizes = models.iter();
    let sizes: u64 = sizes.map(|model| u64::from(model.pool.size.get())).sum();
    let total = sizes.min(u64::from(budget.get()));
    for step in steps.iter().filter(|step| step.action != Action::Keep) {
        let at = models.binary_search_by(|model| model.id.cmp(&step.model));
        let model = at.ok().and_then(|at| models.get(at));
        let size = model.map_or(0, |model| model.pool.size.get());
        tracing::info!(
            model = %step.model,
            revision = %position.revision,
            action = ?step.action,
            pool_size = size,
            pool_keepalive = size,
            "HTTP Client Pool: max_connections={total}, max_keepalive_connections={total}",
        );
        warn_of_unverified(model);
    }
}

fn warn_of_unverified(model: Option<&ResolvedModel>) {
    let endpoints = model.into_iter().flat_map(|model| &model.endpoints);
    let unverified = |e: &&Endpoint| e.url.is_tls() && e.tls.roots == TlsRoots::Unverified;
    for endpoint in endpoints.filter(unverified) {
        tracing::warn!(
            model = model.map(|model| model.id.as_str()),
            endpoint = %endpoint.id,
            "its certificate is not verified (`tls.skip_verification`)",
        );
    }
}

/// Panics where a test wants them.
#[cfg(test)]
#[derive(Debug, Default)]
pub(super) struct Faults(parking_lot::Mutex<BTreeSet<(&'static str, ModelId)>>);

#[cfg(test)]
impl Faults {
    pub(super) fn set(&self, faults: &[(&'static str, &str)]) {
        let id = |id: &str| ModelId::new(id).unwrap();
        *self.0.lock() = faults
            .iter()
            .map(|(step, model)| (*step, id(model)))
            .collect();
    }

    fn trip(&self, step: &'static str, model: &ModelId) {
        let planted = self.0.lock().contains(&(step, model.clone()));
        assert!(!planted, "planted at {step} of {model}");
    }
}
