//! Puts a pushed configuration in force, or refuses it with reasons and changes nothing.
//!
//! Order: decode and validate all, check what only this process knows, build what is new off to the
//! side, swap routes and pools at once, then resize and retire. Connections that still fit stay open
//! and requests in flight finish on what they began with. It must not do IO.

mod open_files;
mod plan;

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use forebay_proto::{
    Config, Digest, Endpoint, ModelId, Position, ResolvedModel, Violations, endpoint::TlsRoots,
    limits,
};

pub use self::{
    open_files::{client_connections, open_file_limit},
    plan::{Action, Step, plan},
};
use crate::{
    live::{Live, LiveCell, Route},
    pool::{Common, Pool},
};

/// Why a configuration was refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// Path of the field; empty when it is the configuration as a whole.
    pub field: String,
    /// What kind of refusal it is.
    pub reason: RefusalReason,
    /// For people.
    pub message: String,
}

/// The kinds of refusal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RefusalReason {
    /// A field is not valid.
    InvalidField,
    /// The bytes are not what the digest says.
    DigestMismatch,
    /// It is older than what is in force.
    OlderRevision,
    /// It has the number of what is in force but other content.
    SameRevisionOtherDigest,
    /// The process may not open that many files.
    OpenFiles,
    /// It would remove every model, and comes from another store than what is in force.
    EmptyStore,
}

impl RefusalReason {
    /// The stable word, also the metric's label.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::InvalidField => "INVALID_FIELD",
            Self::DigestMismatch => "DIGEST_MISMATCH",
            Self::OlderRevision => "OLDER_REVISION",
            Self::SameRevisionOtherDigest => "SAME_REVISION_OTHER_DIGEST",
            Self::OpenFiles => "OPEN_FILES",
            Self::EmptyStore => "EMPTY_STORE",
        }
    }
}

/// The one who changes what is in force. There is exactly one per worker.
#[derive(Debug)]
pub struct Applier {
    live: Arc<LiveCell>,
    common: Common,
    open_files: u64,
}

impl Applier {
    /// Changes `live`; pools are made with what is `common` to them; `open_files` is what the process may
    /// open.
    #[must_use]
    pub(crate) fn new(live: Arc<LiveCell>, common: Common, open_files: u64) -> Self {
        Self {
            live,
            common,
            open_files,
        }
    }

    /// Puts a configuration in force. Gives the models whose pools it made or changed.
    pub fn apply(&self, position: &Position, bytes: &[u8]) -> Result<Vec<ModelId>, Vec<Refusal>> {
        let old = self.live.load();
        check_position(old.position.as_ref(), position).map_err(|refusal| vec![refusal])?;
        let config = decode(position, bytes)?;
        check_not_emptied(&old, position, &config).map_err(|refusal| vec![refusal])?;
        open_files::check(&config, self.open_files).map_err(|message| {
            vec![Refusal {
                field: String::new(),
                reason: RefusalReason::OpenFiles,
                message,
            }]
        })?;
        Ok(self.put_in_force(&old, position, &config))
    }

    fn put_in_force(&self, old: &Live, position: &Position, config: &Config) -> Vec<ModelId> {
        // Until all is settled nobody moves caps.
        let _turn = self.common.budget.turn();
        let before: Vec<&ResolvedModel> = old.models.values().map(|route| &route.model).collect();
        let steps = plan(&before, config.models());
        let cap = self.configure_budget(config);
        let new = self.build(old, position, config, cap);
        let routes = new.models.clone();
        self.live.publish(new);
        for step in &steps {
            self.settle(step, old, &routes);
        }
        log_changes(position, config.budget(), &steps, &routes);
        let changed = steps.into_iter().filter(|step| match step.action {
            Action::Create | Action::Resize | Action::Replace => true,
            Action::Keep | Action::Retire => false,
        });
        changed.map(|step| step.model).collect()
    }

    /// The new value, with the pools of the old one where the model stays.
    fn build(&self, old: &Live, position: &Position, config: &Config, cap: usize) -> Live {
        let route = |model: &ResolvedModel| {
            // Held before its pool is made: while somebody holds them they are not forgotten.
            let metrics = self.common.metrics.model(&model.id);
            let pool = match old.models.get(&model.id) {
                Some(route) => route.pool.clone(),
                None => self.pool_of(model, cap),
            };
            Arc::new(Route {
                model: model.clone(),
                pool,
                metrics,
            })
        };
        let routes = config.models().iter().map(route).collect();
        Live::new(position.clone(), config.budget(), routes)
    }

    /// Tells the budget what comes. Under one that binds, a pool that will grow must not do so before its
    /// cap says so.
    fn configure_budget(&self, config: &Config) -> usize {
        let sizes = config.models().iter();
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
        let limit = config.budget().get() as usize;
        let cap = self.common.budget.configure(limit, committed + new);
        if cap == 0 {
            pools.iter().for_each(|pool| {
                pool.lower_cap(pool.need().open());
            });
        }
        cap
    }

    fn pool_of(&self, model: &ResolvedModel, cap: usize) -> Arc<Pool> {
        match self.live.take_back(&model.id) {
            Some(pool) => {
                pool.revive(model);
                pool
            }
            None => Pool::new(model, &self.common, cap),
        }
    }

    fn settle(&self, step: &Step, old: &Live, new: &BTreeMap<ModelId, Arc<Route>>) {
        match step.action {
            Action::Create | Action::Keep => {}
            Action::Resize | Action::Replace => {
                if let Some(route) = new.get(&step.model) {
                    route.pool.reshape(&route.model);
                }
            }
            Action::Retire => {
                if let Some(route) = old.models.get(&step.model) {
                    self.live.retire(route.pool.clone());
                }
            }
        }
    }
}

/// Within an epoch the revision never goes down, and a number stands for one content.
fn check_position(held: Option<&Position>, pushed: &Position) -> Result<(), Refusal> {
    let Some(held) = held.filter(|held| held.epoch == pushed.epoch) else {
        return Ok(());
    };
    let refuse = |reason, message| {
        Err(Refusal {
            field: "to.revision".to_owned(),
            reason,
            message,
        })
    };
    if pushed.revision < held.revision {
        let message = format!("{pushed} is older than {held}, which is in force");
        return refuse(RefusalReason::OlderRevision, message);
    }
    if pushed.revision == held.revision && pushed.digest != held.digest {
        let message =
            format!("{pushed} has the number of {held}, which is in force, but other content");
        return refuse(RefusalReason::SameRevisionOtherDigest, message);
    }
    Ok(())
}

/// A control plane that lost its store must not take the fleet with it. Within one store, somebody
/// removed the last model on purpose.
fn check_not_emptied(old: &Live, pushed: &Position, config: &Config) -> Result<(), Refusal> {
    let held = old.position.as_ref().filter(|_| !old.models.is_empty());
    match held {
        Some(held) if config.models().is_empty() && held.epoch != pushed.epoch => Err(Refusal {
            field: "models".to_owned(),
            reason: RefusalReason::EmptyStore,
            message: format!(
                "{pushed} has no models and comes from another store than {held}, which is in force \
                 with {}; bring the old store back, or register the models anew",
                old.models.len()
            ),
        }),
        _ => Ok(()),
    }
}

fn decode(position: &Position, bytes: &[u8]) -> Result<Config, Vec<Refusal>> {
    let digest = Digest::of(bytes);
    if digest != position.digest {
        let message = format!(
            "the content has digest {digest}, announced was {}",
            position.digest
        );
        let (field, reason) = ("to.digest".to_owned(), RefusalReason::DigestMismatch);
        return Err(vec![Refusal {
            field,
            reason,
            message,
        }]);
    }
    Config::decode(bytes).map_err(|violations| refusals(&violations))
}

fn refusals(violations: &Violations) -> Vec<Refusal> {
    let bounded = violations.as_slice().iter().take(limits::REFUSALS);
    bounded
        .map(|violation| Refusal {
            field: violation.field.clone(),
            reason: RefusalReason::InvalidField,
            message: violation
                .message
                .chars()
                .take(limits::REFUSAL_CHARS)
                .collect(),
        })
        .collect()
}

/// One line per changed pool, in the words that an operator of the seed's gateway looks for. The
/// totals are those of the worker.
fn log_changes(
    position: &Position,
    budget: forebay_proto::Budget,
    steps: &[Step],
    routes: &BTreeMap<ModelId, Arc<Route>>,
) {
    let sizes: u64 = routes
        .values()
        .map(|route| u64::from(route.model.pool.size.get()))
        .sum();
    let total = sizes.min(u64::from(budget.get()));
    for step in steps.iter().filter(|step| step.action != Action::Keep) {
        let size = routes
            .get(&step.model)
            .map_or(0, |route| route.model.pool.size.get());
        tracing::info!(
            model = %step.model,
            revision = %position.revision,
            action = ?step.action,
            pool_size = size,
            pool_keepalive = size,
            "HTTP Client Pool: max_connections={total}, max_keepalive_connections={total}",
        );
        let route = routes.get(&step.model);
        warn_of_unverified(route.map(|route| &route.model));
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

#[cfg(test)]
mod tests;
