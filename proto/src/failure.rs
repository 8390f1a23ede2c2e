//! What becomes of a model's requests when its endpoints fail: how endpoints are checked, when they are left out,
//! what is sent again, and which models stand in. What was not said has a default, and stays unsaid on the wire.

use std::{collections::BTreeSet, fmt, sync::Arc, time::Duration};

use crate::{
    ids::ModelId,
    limits,
    violation::{InvalidValue, Violations},
};

/// All of it, as it was registered.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct FailureSpec {
    /// How endpoints are checked.
    pub health: HealthSpec,
    /// When they are left out.
    pub ejection: EjectionSpec,
    /// What is sent again.
    pub retry: RetrySpec,
    /// Which models stand in, in order.
    pub fallbacks: Vec<ModelId>,
}

impl FailureSpec {
    /// Checks what can be checked of a model alone.
    pub fn check(&self, id: &ModelId, violations: &mut Violations) {
        let (n, most) = (self.fallbacks.len(), limits::FALLBACKS);
        if n > most {
            let message = format!("{n} models, at most {most} are allowed");
            violations.add("fallbacks", message);
        }
        let mut seen = BTreeSet::from([id]);
        for (n, fallback) in self.fallbacks.iter().enumerate() {
            if !seen.insert(fallback) {
                let message = match fallback == id {
                    true => format!("`{fallback}` is this model itself; leave it out"),
                    false => format!("`{fallback}` stands twice; leave one"),
                };
                violations.add(format!("fallbacks[{n}]"), message);
            }
        }
    }
}

/// How endpoints are checked. Without a path they are not.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct HealthSpec {
    /// What is asked for.
    pub path: Option<CheckPath>,
    /// How often.
    pub interval: Option<Duration>,
    /// How long an answer may take.
    pub timeout: Option<Duration>,
    /// So many failed checks in a row eject an endpoint.
    pub unhealthy_after: Option<u32>,
    /// So many good ones in a row give it its trial.
    pub healthy_after: Option<u32>,
}

impl HealthSpec {
    /// How often.
    #[must_use]
    pub fn interval(&self) -> Duration {
        self.interval.unwrap_or(Duration::from_secs(5))
    }

    /// How long an answer may take: no longer than until the next check.
    #[must_use]
    pub fn timeout(&self) -> Duration {
        let timeout = self.timeout.unwrap_or(Duration::from_secs(2));
        timeout.min(self.interval())
    }

    /// Failed checks in a row that eject, and good ones that give a trial.
    #[must_use]
    pub fn after(&self) -> (u32, u32) {
        let unhealthy = self.unhealthy_after.unwrap_or(3);
        (unhealthy, self.healthy_after.unwrap_or(1))
    }
}

/// The path of a health check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckPath(Arc<str>);

impl CheckPath {
    /// Checks and keeps the path.
    pub fn new(text: &str) -> Result<Self, InvalidValue> {
        let (length, most) = (text.chars().count(), limits::CHECK_PATH_CHARS);
        if length > most {
            return Err(InvalidValue::new(format!(
                "{length} characters long, at most {most} are allowed"
            )));
        }
        if !text.starts_with('/') {
            return Err(InvalidValue::new(format!(
                "`{text}` is not a path; it must begin with `/`, such as `/health`"
            )));
        }
        let allowed = |c: char| c.is_ascii_alphanumeric() || "/._~-%?=&+:@,".contains(c);
        if let Some(other) = text.chars().find(|c| !allowed(*c)) {
            return Err(InvalidValue::new(format!(
                "{other:?} is not allowed; use `A-Z a-z 0-9 / . _ ~ - % ? = & + : @ ,`"
            )));
        }
        Ok(Self(text.into()))
    }

    /// As it is asked for.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for CheckPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// When endpoints that break more than the others are left out.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct EjectionSpec {
    /// Broken answers in a row; 0: none is ejected by its answers.
    pub failures: Option<u32>,
    /// The first time out.
    pub base_time: Option<Duration>,
    /// The longest.
    pub max_time: Option<Duration>,
    /// If more than this share of the weight would be out, all serve.
    pub panic_percent: Option<u32>,
}

impl EjectionSpec {
    /// Broken answers in a row.
    #[must_use]
    pub fn failures(&self) -> u32 {
        self.failures.unwrap_or(5)
    }

    /// The first time out.
    #[must_use]
    pub fn base_time(&self) -> Duration {
        self.base_time.unwrap_or(Duration::from_secs(2))
    }

    /// The longest.
    #[must_use]
    pub fn max_time(&self) -> Duration {
        let most = self.max_time.unwrap_or(Duration::from_secs(30));
        most.max(self.base_time())
    }

    /// The share of the weight.
    #[must_use]
    pub fn panic_percent(&self) -> u32 {
        self.panic_percent.unwrap_or(50)
    }
}

/// What is sent again to another endpoint.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RetrySpec {
    /// Most endpoints that one request is sent to.
    pub max_attempts: Option<u32>,
    /// After what. Nothing said: after [`RetryOn::Busy`].
    pub on: Vec<RetryOn>,
}

impl RetrySpec {
    /// Most endpoints that one request is sent to.
    #[must_use]
    pub fn max_attempts(&self) -> u32 {
        self.max_attempts.unwrap_or(2)
    }

    /// True if it is sent again after this.
    #[must_use]
    pub fn is_on(&self, cause: RetryOn) -> bool {
        match self.on.as_slice() {
            [] => cause == RetryOn::Busy,
            on => on.contains(&cause),
        }
    }
}

/// After what a request is sent again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum RetryOn {
    /// 429 or 503: the endpoint did not take it.
    Busy,
    /// 502.
    BadGateway,
    /// 500.
    ServerError,
    /// No answer, or none that can be read.
    Reset,
}

impl RetryOn {
    /// The word for it in metrics and on the command line.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Busy => "busy",
            Self::BadGateway => "bad_gateway",
            Self::ServerError => "server_error",
            Self::Reset => "reset",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_said_has_a_default() {
        let spec = FailureSpec::default();
        assert_eq!(spec.health.after(), (3, 1));
        assert_eq!(spec.health.timeout(), Duration::from_secs(2));
        assert_eq!(
            (spec.ejection.failures(), spec.retry.max_attempts()),
            (5, 2)
        );
        assert!(spec.retry.is_on(RetryOn::Busy) && !spec.retry.is_on(RetryOn::Reset));
        let long = EjectionSpec {
            base_time: Some(Duration::from_secs(60)),
            ..EjectionSpec::default()
        };
        assert_eq!(long.max_time(), Duration::from_secs(60));
    }

    #[test]
    fn paths_of_checks() {
        for good in ["/health", "/", "/v1/models?x=1&y=%20"] {
            assert!(CheckPath::new(good).is_ok(), "{good}");
        }
        let long = format!("/{}", "a".repeat(limits::CHECK_PATH_CHARS));
        for bad in ["", "health", "/a b", "/a\r\nX: y", "/a#b", "//ä", &long] {
            assert!(CheckPath::new(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn fallbacks_are_others_and_each_once() {
        let id = |id: &str| ModelId::new(id).unwrap();
        let spec = FailureSpec {
            fallbacks: vec![id("b"), id("a"), id("b")],
            ..FailureSpec::default()
        };
        let mut violations = Violations::new();
        spec.check(&id("a"), &mut violations);
        let fields: Vec<_> = violations.as_slice().iter().map(|v| &*v.field).collect();
        assert_eq!(fields, ["fallbacks[1]", "fallbacks[2]"]);
    }
}
