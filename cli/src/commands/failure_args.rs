//! Flags of checks, ejection, retries and fallbacks into messages. What was not given is not sent.

use std::time::Duration;

use forebay_proto::{convert::duration_to_wire, wire};

use crate::args::{FailureArgs, RetryCause};

impl FailureArgs {
    /// Writes what was given on a model.
    pub(crate) fn write(&self, model: &mut wire::Model) {
        let wire = |time: Option<Duration>| time.map(duration_to_wire);
        let health = wire::HealthCheck {
            path: self.health_path.clone().unwrap_or_default(),
            interval: wire(self.health_interval),
            timeout: wire(self.health_timeout),
            unhealthy_after: self.unhealthy_after,
            healthy_after: self.healthy_after,
        };
        let ejection = wire::Ejection {
            failures: self.eject_after,
            base_time: wire(self.eject_time),
            max_time: wire(self.eject_max_time),
            panic_percent: self.panic_percent,
        };
        let retry = wire::Retry {
            max_attempts: self.max_attempts,
            on: self.retry_on.iter().map(|cause| cause.to_wire()).collect(),
        };
        model.health = Some(health).filter(|health| *health != wire::HealthCheck::default());
        model.ejection = Some(ejection).filter(|ejection| *ejection != wire::Ejection::default());
        model.retry = Some(retry).filter(|retry| *retry != wire::Retry::default());
        model.fallbacks.clone_from(&self.fallbacks);
    }

    /// The fields that were named.
    pub(crate) fn paths(&self) -> Vec<String> {
        let given = [
            ("health.path", self.health_path.is_some()),
            ("health.interval", self.health_interval.is_some()),
            ("health.timeout", self.health_timeout.is_some()),
            ("health.unhealthy_after", self.unhealthy_after.is_some()),
            ("health.healthy_after", self.healthy_after.is_some()),
            ("ejection.failures", self.eject_after.is_some()),
            ("ejection.base_time", self.eject_time.is_some()),
            ("ejection.max_time", self.eject_max_time.is_some()),
            ("ejection.panic_percent", self.panic_percent.is_some()),
            ("retry.max_attempts", self.max_attempts.is_some()),
            ("retry.on", !self.retry_on.is_empty()),
            ("fallbacks", !self.fallbacks.is_empty()),
        ];
        let given = given.into_iter().filter(|(_, given)| *given);
        given.map(|(path, _)| path.to_owned()).collect()
    }
}

impl RetryCause {
    fn to_wire(self) -> i32 {
        let cause = match self {
            Self::Busy => wire::RetryOn::Busy,
            Self::BadGateway => wire::RetryOn::BadGateway,
            Self::ServerError => wire::RetryOn::ServerError,
            Self::Reset => wire::RetryOn::Reset,
        };
        cause.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_given_is_written_and_named() {
        let args = FailureArgs {
            health_path: Some("/health".into()),
            eject_after: Some(0),
            retry_on: vec![RetryCause::Busy, RetryCause::Reset],
            fallbacks: vec!["b".into()],
            ..FailureArgs::default()
        };
        let mut model = wire::Model::default();
        args.write(&mut model);
        assert_eq!(model.health.unwrap().path, "/health");
        assert_eq!(model.ejection.unwrap().failures, Some(0));
        assert_eq!(model.retry.unwrap().on, [1, 4]);
        assert_eq!(model.fallbacks, ["b"]);
        assert_eq!(
            args.paths(),
            ["health.path", "ejection.failures", "retry.on", "fallbacks"]
        );
        let mut nothing = wire::Model::default();
        FailureArgs::default().write(&mut nothing);
        assert_eq!(nothing, wire::Model::default());
        assert!(FailureArgs::default().paths().is_empty());
    }
}
