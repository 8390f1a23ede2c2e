//! Pool parameters: what a model asks for, what it inherits, and what a worker uses in the end.
//!
//! Keepalive is not a parameter: it is the size, always.

use std::{fmt, ops::RangeInclusive, time::Duration};

use crate::{
    limits,
    violation::{InvalidValue, Violation, Violations},
};

/// Most requests in flight of one model on one worker, and most connections kept warm for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct PoolSize(u32);

impl PoolSize {
    /// Checks the range.
    pub fn new(size: u32) -> Result<Self, InvalidValue> {
        in_range(size, &limits::POOL_SIZE).map(Self)
    }

    /// The number.
    #[must_use]
    pub fn get(self) -> u32 {
        self.0
    }
}

impl fmt::Display for PoolSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Most connections of one worker, all models together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Budget(u32);

impl Budget {
    /// Checks the range.
    pub fn new(connections: u32) -> Result<Self, InvalidValue> {
        in_range(connections, &limits::BUDGET).map(Self)
    }

    /// The number.
    #[must_use]
    pub fn get(self) -> u32 {
        self.0
    }
}

/// The name of a request header, in lower case.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestHeader(String);

impl RequestHeader {
    /// Checks that it is one. Nothing stands for no header.
    pub fn parse(name: &str) -> Result<Option<Self>, InvalidValue> {
        let token = |c: u8| c.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&c);
        if name.len() > limits::HEADER_NAME_CHARS || !name.bytes().all(token) {
            return Err(InvalidValue::new(format!(
                "must be the name of a header, such as `x-tenant`, of at most {} characters; or empty for none",
                limits::HEADER_NAME_CHARS
            )));
        }
        Ok((!name.is_empty()).then(|| Self(name.to_ascii_lowercase())))
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// By what requests are weighed against each other.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum QueueCost {
    /// Each counts as one.
    #[default]
    Request,
    /// By their size, a token for four bytes.
    Tokens,
}

/// How turns are given in the line. `None` is inherited.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TurnOverrides {
    /// The header that names the tenant; `Some(None)` is none, whatever is inherited.
    pub tenant_header: Option<Option<RequestHeader>>,
    /// The header that names the priority.
    pub priority_header: Option<Option<RequestHeader>>,
    /// By what requests are weighed.
    pub cost: Option<QueueCost>,
}

/// How turns are given in the line, filled in.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TurnParams {
    /// The header that names the tenant.
    pub tenant_header: Option<RequestHeader>,
    /// The header that names the priority.
    pub priority_header: Option<RequestHeader>,
    /// By what requests are weighed.
    pub cost: QueueCost,
}

impl TurnOverrides {
    /// What holds, where this asks first.
    #[must_use]
    pub fn or(&self, inherited: &Self) -> TurnParams {
        let first = |own: &Option<Option<RequestHeader>>, other: &Option<Option<RequestHeader>>| {
            own.clone().or_else(|| other.clone()).flatten()
        };
        TurnParams {
            tenant_header: first(&self.tenant_header, &inherited.tenant_header),
            priority_header: first(&self.priority_header, &inherited.priority_header),
            cost: self.cost.or(inherited.cost).unwrap_or_default(),
        }
    }
}

/// How far fewer requests are let in while the engine is slow. `None` is inherited.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AdaptiveOverrides {
    /// The least that is let in; zero: always as many as the size.
    pub min: Option<u32>,
    /// A stream that begins later than this is slow; zero: by comparison.
    pub target_first_byte: Option<Duration>,
    /// A stream that takes so much longer than the quickest of its size of late is slow.
    pub tolerance_percent: Option<u32>,
}

/// How far fewer requests are let in while the engine is slow, filled in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AdaptiveParams {
    /// The least that is let in; at least 1, at most the size.
    pub min: u32,
    /// A stream that begins later than this is slow.
    pub target_first_byte: Option<Duration>,
    /// Without a target: a stream that takes so much longer than the quickest of its size of late.
    pub tolerance_percent: u32,
}

impl AdaptiveParams {
    /// When nobody says otherwise: twice the quickest.
    pub const TOLERANCE_PERCENT: u32 = 200;
}

impl AdaptiveOverrides {
    /// What holds, where this asks first; nothing if nobody wants it.
    #[must_use]
    pub fn or(&self, inherited: &Self, size: PoolSize) -> Option<AdaptiveParams> {
        let min = self.min.or(inherited.min).filter(|min| *min > 0)?;
        let target = self.target_first_byte.or(inherited.target_first_byte);
        Some(AdaptiveParams {
            // An inherited least gives way to a small pool.
            min: min.min(size.get()),
            target_first_byte: target.filter(|target| !target.is_zero()),
            tolerance_percent: self
                .tolerance_percent
                .or(inherited.tolerance_percent)
                .unwrap_or(AdaptiveParams::TOLERANCE_PERCENT),
        })
    }
}

/// Over what a pool's size is counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum PoolScope {
    /// Each worker may have as many.
    #[default]
    PerWorker,
    /// All workers together.
    Fleet,
}

/// What a model asks for. `None` is inherited from [`PoolSettings`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PoolOverrides {
    /// Size.
    pub max_concurrent: Option<PoolSize>,
    /// Over what it is counted.
    pub scope: PoolScope,
    /// Of a fleet-wide size, what each worker may always use.
    pub fleet_floor: Option<u32>,
    /// Longest waiting line.
    pub max_waiting: Option<u32>,
    /// Longest wait.
    pub max_wait: Option<Duration>,
    /// Connections opened ahead of need.
    pub warm: Option<u32>,
    /// Idle limit.
    pub idle_timeout: Option<Duration>,
    /// Age limit; zero is none.
    pub max_connection_age: Option<Duration>,
    /// Whether an unanswered request is sent once more.
    pub replay_unanswered: Option<bool>,
    /// How turns are given in the line.
    pub turns: TurnOverrides,
    /// Whether, and how, less is let in while the engine is slow.
    pub adaptive: AdaptiveOverrides,
}

/// What a worker uses: every parameter, filled in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolParams {
    /// Size, and keepalive. Fleet-wide, it is what all workers have together, and each has its lease of it.
    pub size: PoolSize,
    /// Over what that is counted.
    pub scope: PoolScope,
    /// Of a fleet-wide size, what each worker may always use; otherwise nothing.
    pub fleet_floor: u32,
    /// Longest waiting line.
    pub max_waiting: u32,
    /// Longest wait.
    pub max_wait: Duration,
    /// Connections opened ahead of need; at most the size.
    pub warm: u32,
    /// Idle limit.
    pub idle_timeout: Duration,
    /// Age limit.
    pub max_connection_age: Option<Duration>,
    /// A request whose reused connection was closed at once, unanswered, is sent once more.
    pub replay_unanswered: bool,
    /// How turns are given in the line.
    pub turns: TurnParams,
    /// How less is let in while the engine is slow; nothing: as many as the size, always.
    pub adaptive: Option<AdaptiveParams>,
}

/// Deadlines of a request that a model asks for. `None` is inherited.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TimeoutOverrides {
    /// For a new connection.
    pub connect: Option<Duration>,
    /// To the response head.
    pub first_byte: Option<Duration>,
    /// Silence within a response.
    pub idle: Option<Duration>,
    /// The whole request.
    pub total: Option<Duration>,
}

/// Deadlines of a request, filled in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Timeouts {
    /// For a new connection.
    pub connect: Duration,
    /// To the response head.
    pub first_byte: Duration,
    /// Silence within a response.
    pub idle: Duration,
    /// The whole request.
    pub total: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(2),
            first_byte: Duration::from_secs(600),
            idle: Duration::from_secs(120),
            total: Duration::from_secs(3600),
        }
    }
}

impl TimeoutOverrides {
    /// Fills in what is absent.
    #[must_use]
    pub fn or(&self, inherited: &Timeouts) -> Timeouts {
        Timeouts {
            connect: self.connect.unwrap_or(inherited.connect),
            first_byte: self.first_byte.unwrap_or(inherited.first_byte),
            idle: self.idle.unwrap_or(inherited.idle),
            total: self.total.unwrap_or(inherited.total),
        }
    }
}

/// What every model inherits, and the budget of a worker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolSettings {
    /// Size of a pool unless its model says otherwise.
    pub max_concurrent: PoolSize,
    /// How many pools of that size the budget holds.
    pub max_models_concurrent: ModelsConcurrent,
    /// The other parameters, as far as they are set here.
    pub pool: PoolOverrides,
    /// Deadlines, as far as they are set here.
    pub timeouts: TimeoutOverrides,
}

/// How many pools of default size a worker's budget holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ModelsConcurrent(u32);

impl ModelsConcurrent {
    /// Checks the range.
    pub fn new(models: u32) -> Result<Self, InvalidValue> {
        in_range(models, &limits::MODELS_CONCURRENT).map(Self)
    }

    /// The number.
    #[must_use]
    pub fn get(self) -> u32 {
        self.0
    }
}

impl Default for PoolSettings {
    /// The seed's gateway: 50 requests per model x 3 models.
    fn default() -> Self {
        Self {
            max_concurrent: PoolSize(50),
            max_models_concurrent: ModelsConcurrent(3),
            pool: PoolOverrides::default(),
            timeouts: TimeoutOverrides::default(),
        }
    }
}

impl PoolParams {
    /// Most requests in flight on one worker of this budget, whatever is lent to it.
    #[must_use]
    pub fn most_on_one(&self, budget: Budget) -> u32 {
        self.size.get().min(budget.get())
    }

    /// True if the size is what all workers have together.
    #[must_use]
    pub fn is_fleet_wide(&self) -> bool {
        self.scope == PoolScope::Fleet
    }
}

impl PoolSettings {
    /// Of a fleet-wide limit, what each worker is sure of when nobody says otherwise.
    pub const FLEET_FLOOR: u32 = 1;
    /// Idle limit when nobody says otherwise: below vLLM's 5 s, which it does not announce.
    pub const IDLE_TIMEOUT: Duration = Duration::from_secs(4);
    /// Longest wait when nobody says otherwise.
    pub const MAX_WAIT: Duration = Duration::from_secs(30);

    /// The budget: `max_concurrent` x `max_models_concurrent`.
    pub fn budget(&self) -> Result<Budget, InvalidValue> {
        let (size, models) = (self.max_concurrent.get(), self.max_models_concurrent.get());
        let product = size.saturating_mul(models);
        Budget::new(product).map_err(|_| {
            InvalidValue::new(format!(
                "max_concurrent {size} x max_models_concurrent {models} = {product} connections, at \
                 most {} are allowed; lower one of them",
                limits::BUDGET.end()
            ))
        })
    }

    /// The deadlines, filled in.
    #[must_use]
    pub fn timeouts(&self) -> Timeouts {
        self.timeouts.or(&Timeouts::default())
    }

    /// What a worker uses for a model that asks for this much.
    ///
    /// Violations have paths relative to the model's pool.
    pub fn resolve(&self, asked: &PoolOverrides) -> Result<PoolParams, Violations> {
        let mut violations = Violations::new();
        let size = asked.max_concurrent.unwrap_or(self.max_concurrent);
        if let Some(budget) = violations.check("", self.budget())
            && size.get() > budget.get()
            && asked.scope == PoolScope::PerWorker
        {
            violations.add("max_concurrent", over_budget(size, budget, self));
        }
        check_floor(asked, size, &mut violations);
        let warm = asked.warm.or(self.pool.warm).unwrap_or(0);
        if asked.warm.is_some() && warm > size.get() {
            violations.add(
                "warm",
                format!("{warm} warm connections do not fit a pool of {size}; at most {size}"),
            );
        }
        if let Some(min) = asked.adaptive.min.filter(|min| *min > size.get()) {
            violations.add(
                "adaptive.min",
                format!("{min} requests are more than a pool of {size} lets in; at most {size}"),
            );
        }
        let max_wait = asked
            .max_wait
            .or(self.pool.max_wait)
            .unwrap_or(Self::MAX_WAIT);
        let idle = asked
            .idle_timeout
            .or(self.pool.idle_timeout)
            .unwrap_or(Self::IDLE_TIMEOUT);
        let age = asked.max_connection_age.or(self.pool.max_connection_age);
        let waiting = asked.max_waiting.or(self.pool.max_waiting);
        violations.finish(Some(PoolParams {
            size,
            scope: asked.scope,
            fleet_floor: match asked.scope {
                PoolScope::PerWorker => 0,
                PoolScope::Fleet => asked.fleet_floor.unwrap_or(Self::FLEET_FLOOR),
            },
            max_waiting: waiting.unwrap_or(size.get().saturating_mul(2)),
            max_wait,
            // An inherited floor gives way to a small pool.
            warm: warm.min(size.get()),
            idle_timeout: idle,
            max_connection_age: age.filter(|age| !age.is_zero()),
            replay_unanswered: asked
                .replay_unanswered
                .or(self.pool.replay_unanswered)
                .unwrap_or(true),
            turns: asked.turns.or(&self.pool.turns),
            adaptive: asked.adaptive.or(&self.pool.adaptive, size),
        }))
    }
}

fn check_floor(asked: &PoolOverrides, size: PoolSize, violations: &mut Violations) {
    let Some(floor) = asked.fleet_floor else {
        return;
    };
    if asked.scope == PoolScope::PerWorker {
        violations.add(
            "fleet_floor",
            "is for pools of scope FLEET; leave it out, or set `scope` to FLEET",
        );
    } else if floor > size.get() {
        let message =
            format!("{floor} for each worker are more than all may have together; at most {size}");
        violations.add("fleet_floor", message);
    }
}

fn over_budget(size: PoolSize, budget: Budget, settings: &PoolSettings) -> String {
    format!(
        "{size} connections can never fit the worker's budget of {} (max_concurrent {} x \
         max_models_concurrent {}); lower it to {}, raise the budget in the pool settings, or count it over all workers \
         (scope FLEET)",
        budget.get(),
        settings.max_concurrent,
        settings.max_models_concurrent.get(),
        budget.get(),
    )
}

/// Refuses a keepalive that is not the size, and shows what it would cost.
pub fn check_keepalive(field: &str, keepalive: u32, size: u32) -> Result<(), Violation> {
    if keepalive == size {
        return Ok(());
    }
    let message = if keepalive < size {
        let coverage = f64::from(keepalive) / f64::from(size.max(1)) * 100.0;
        let uncovered = size - keepalive;
        format!(
            "keepalive always equals the pool size: {size} connections, {keepalive} keepalive is a \
             coverage of {coverage:.1} %, {uncovered} connections would be closed and reopened under \
             load; leave keepalive out or set it to {size}"
        )
    } else {
        format!(
            "keepalive always equals the pool size: {keepalive} keepalive for {size} connections \
             would leave {} slots that nothing can fill; leave keepalive out or set it to {size}",
            keepalive - size
        )
    };
    Err(Violation {
        field: field.to_owned(),
        message,
    })
}

/// The value if it lies in the range.
pub fn in_range<T>(value: T, range: &RangeInclusive<T>) -> Result<T, InvalidValue>
where
    T: PartialOrd + fmt::Debug + Copy,
{
    if range.contains(&value) {
        return Ok(value);
    }
    Err(InvalidValue::new(format!(
        "{value:?} is outside {:?} to {:?}",
        range.start(),
        range.end()
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_seed_resolves_to_150() {
        let settings = PoolSettings::default();
        assert_eq!(settings.budget().unwrap().get(), 150);
        let params = settings.resolve(&PoolOverrides::default()).unwrap();
        assert_eq!(params.size.get(), 50);
        assert_eq!(params.max_waiting, 100);
        assert_eq!(params.idle_timeout, Duration::from_secs(4));
    }

    #[test]
    fn keepalive_100_of_150_is_refused_with_the_arithmetic() {
        let violation = check_keepalive("pool.keepalive", 100, 150).unwrap_err();
        for part in [
            "150 connections",
            "100 keepalive",
            "66.7 %",
            "50 connections would be closed",
        ] {
            assert!(
                violation.message.contains(part),
                "{part} not in {violation}"
            );
        }
        assert_eq!(check_keepalive("pool.keepalive", 150, 150), Ok(()));
        assert!(check_keepalive("pool.keepalive", 200, 150).is_err());
    }

    #[test]
    fn a_pool_over_the_budget_is_refused_with_the_arithmetic() {
        let asked = PoolOverrides {
            max_concurrent: PoolSize::new(151).ok(),
            ..Default::default()
        };
        let error = PoolSettings::default()
            .resolve(&asked)
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("151") && error.contains("50 x max_models_concurrent 3"),
            "{error}"
        );
    }

    #[test]
    fn turns_and_the_adaptive_limit_are_inherited_and_can_be_switched_off() {
        let header = |name| RequestHeader::parse(name).unwrap();
        let mut settings = PoolSettings::default();
        let nothing = settings.resolve(&PoolOverrides::default()).unwrap();
        assert_eq!(nothing.turns, TurnParams::default());
        assert_eq!(nothing.adaptive, None);
        settings.pool.turns.tenant_header = Some(header("X-Tenant"));
        settings.pool.turns.cost = Some(QueueCost::Tokens);
        settings.pool.adaptive.min = Some(60);
        let inherits = settings.resolve(&PoolOverrides::default()).unwrap();
        let tenant = inherits.turns.tenant_header.unwrap();
        assert_eq!(tenant.as_str(), "x-tenant");
        assert_eq!(inherits.turns.cost, QueueCost::Tokens);
        let adaptive = inherits.adaptive.unwrap();
        assert_eq!((adaptive.min, adaptive.tolerance_percent), (50, 200));
        let mut own = PoolOverrides::default();
        own.turns.tenant_header = Some(header(""));
        own.adaptive.min = Some(0);
        let off = settings.resolve(&own).unwrap();
        assert_eq!((off.turns.tenant_header, off.adaptive), (None, None));
        own.adaptive.min = Some(51);
        let error = settings.resolve(&own).unwrap_err().to_string();
        assert!(error.starts_with("adaptive.min: 51"), "{error}");
        for bad in ["x tenant", "x:y", "é", &"x".repeat(65)] {
            assert!(RequestHeader::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn an_inherited_warm_floor_gives_way_and_an_own_one_is_refused() {
        let mut settings = PoolSettings::default();
        settings.pool.warm = Some(10);
        let small = PoolOverrides {
            max_concurrent: PoolSize::new(4).ok(),
            ..Default::default()
        };
        assert_eq!(settings.resolve(&small).unwrap().warm, 4);
        let own = PoolOverrides {
            warm: Some(5),
            ..small
        };
        assert!(
            settings
                .resolve(&own)
                .unwrap_err()
                .to_string()
                .starts_with("warm: ")
        );
    }
}
