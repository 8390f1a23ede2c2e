//! A registration: what an operator asked for, and what a worker makes of it.

use std::{collections::BTreeSet, time::Duration};

use crate::{
    endpoint::Endpoint,
    failure::FailureSpec,
    ids::ModelId,
    limits,
    pool::{PoolOverrides, PoolParams, PoolSettings, TimeoutOverrides, Timeouts},
    probe::ProbeSpec,
    revision::Revision,
    violation::Violations,
};

/// How streams of a model are passed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Streaming {
    /// Whether the engine is asked for their usage.
    pub usage: StreamUsage,
    /// How long a client may hear nothing before it is sent a comment.
    pub keep_alive: Option<Duration>,
}

/// Whether the engine is asked for the usage of streams whose clients did not ask.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum StreamUsage {
    /// Nothing is added.
    #[default]
    Pass,
    /// It is asked, and what it adds is taken out again.
    Inject,
}

/// A model as it was registered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelSpec {
    id: ModelId,
    aliases: Vec<ModelId>,
    endpoints: Vec<Endpoint>,
    /// What it asks of its pool.
    pub pool: PoolOverrides,
    /// What it asks of deadlines.
    pub timeouts: TimeoutOverrides,
    /// Whether its endpoints are asked what they serve.
    pub probe: ProbeSpec,
    /// What becomes of requests when endpoints fail.
    failure: FailureSpec,
    /// How its streams are passed on.
    pub streaming: Streaming,
}

impl ModelSpec {
    /// Checks what can be checked of a model alone.
    pub fn new(
        id: ModelId,
        aliases: Vec<ModelId>,
        endpoints: Vec<Endpoint>,
    ) -> Result<Self, Violations> {
        let mut violations = Violations::new();
        check_aliases(&id, &aliases, &mut violations);
        check_endpoints(&endpoints, &mut violations);
        let (pool, timeouts, probe) = Default::default();
        let (failure, streaming) = Default::default();
        violations.finish(Some(Self {
            id,
            aliases,
            endpoints,
            pool,
            timeouts,
            probe,
            failure,
            streaming,
        }))
    }

    /// The name.
    #[must_use]
    pub fn id(&self) -> &ModelId {
        &self.id
    }

    /// The same model, asking this much of its pool and deadlines.
    #[must_use]
    pub fn asking(self, pool: PoolOverrides, timeouts: TimeoutOverrides) -> Self {
        Self {
            pool,
            timeouts,
            ..self
        }
    }

    /// The same model, its endpoints asked like this.
    #[must_use]
    pub fn probed(self, probe: ProbeSpec) -> Self {
        Self { probe, ..self }
    }

    /// The same model, that fails like this.
    pub fn failing(self, failure: FailureSpec) -> Result<Self, Violations> {
        let mut violations = Violations::new();
        failure.check(&self.id, &mut violations);
        violations.finish(Some(Self { failure, ..self }))
    }

    /// What becomes of requests when endpoints fail.
    #[must_use]
    pub fn failure(&self) -> &FailureSpec {
        &self.failure
    }

    /// The same model, its streams passed on like this.
    #[must_use]
    pub fn streaming(self, streaming: Streaming) -> Self {
        Self { streaming, ..self }
    }

    /// Other names.
    #[must_use]
    pub fn aliases(&self) -> &[ModelId] {
        &self.aliases
    }

    /// Where it is served. Never empty.
    #[must_use]
    pub fn endpoints(&self) -> &[Endpoint] {
        &self.endpoints
    }

    /// The id and the aliases.
    pub fn names(&self) -> impl Iterator<Item = &ModelId> {
        std::iter::once(&self.id).chain(&self.aliases)
    }

    /// What a worker uses for this model under these settings.
    pub fn resolve(
        &self,
        settings: &PoolSettings,
        revision: Revision,
    ) -> Result<ResolvedModel, Violations> {
        let pool = settings
            .resolve(&self.pool)
            .map_err(|violations| violations.under("pool"))?;
        Ok(ResolvedModel {
            id: self.id.clone(),
            aliases: self.aliases.clone(),
            endpoints: self.endpoints.clone(),
            pool,
            timeouts: self.timeouts.or(&settings.timeouts()),
            probe: self.probe.clone(),
            failure: self.failure.clone(),
            streaming: self.streaming,
            revision,
        })
    }
}

/// A model as a worker uses it: everything inherited is filled in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResolvedModel {
    /// The name.
    pub id: ModelId,
    /// Other names.
    pub aliases: Vec<ModelId>,
    /// Where it is served. Never empty.
    pub endpoints: Vec<Endpoint>,
    /// Pool parameters.
    pub pool: PoolParams,
    /// Deadlines.
    pub timeouts: Timeouts,
    /// Whether its endpoints are asked what they serve.
    pub probe: ProbeSpec,
    /// What becomes of requests when endpoints fail.
    pub failure: FailureSpec,
    /// How its streams are passed on.
    pub streaming: Streaming,
    /// The revision that last changed the registration.
    pub revision: Revision,
}

impl ResolvedModel {
    /// The id and the aliases.
    pub fn names(&self) -> impl Iterator<Item = &ModelId> {
        std::iter::once(&self.id).chain(&self.aliases)
    }
}

fn check_aliases(id: &ModelId, aliases: &[ModelId], violations: &mut Violations) {
    if aliases.len() > limits::ALIASES {
        let message = format!(
            "{} aliases, at most {} are allowed",
            aliases.len(),
            limits::ALIASES
        );
        violations.add("aliases", message);
    }
    let mut seen = BTreeSet::from([id]);
    for (n, alias) in aliases.iter().enumerate() {
        if !seen.insert(alias) {
            let message = format!("`{alias}` stands twice among the id and the aliases; leave one");
            violations.add(format!("aliases[{n}]"), message);
        }
    }
}

fn check_endpoints(endpoints: &[Endpoint], violations: &mut Violations) {
    if endpoints.is_empty() {
        violations.add("endpoints", "at least one endpoint is required");
    }
    if endpoints.len() > limits::ENDPOINTS {
        let (n, most) = (endpoints.len(), limits::ENDPOINTS);
        violations.add(
            "endpoints",
            format!("{n} endpoints, at most {most} are allowed"),
        );
    }
    let sources = endpoints.iter().filter(|e| e.url.discovery().is_some());
    let (n, most) = (sources.count(), limits::SOURCES);
    if n > most {
        let message = format!("{n} endpoints with `discovery`, at most {most} are allowed");
        violations.add("endpoints", message);
    }
    let (mut ids, mut urls) = (BTreeSet::new(), BTreeSet::new());
    for (n, endpoint) in endpoints.iter().enumerate() {
        if !ids.insert(&endpoint.id) {
            let message = format!("`{}` stands twice; give each its own id", endpoint.id);
            violations.add(format!("endpoints[{n}].id"), message);
        }
        if !urls.insert(endpoint.url.to_string()) {
            let message = format!(
                "`{}` stands twice; use `weight` for a larger share",
                endpoint.url
            );
            let field = match endpoint.url.discovery() {
                Some(_) => "discovery",
                None => "url",
            };
            violations.add(format!("endpoints[{n}].{field}"), message);
        }
    }
}
