//! Flags into messages. What was not given is not sent.

use std::time::Duration;

use forebay_proto::{convert::duration_to_wire, wire};

use crate::args::{PoolArgs, QueueCostArg};

impl PoolArgs {
    /// As the pool of a model.
    pub(crate) fn pool(&self) -> Option<wire::Pool> {
        let pool = wire::Pool {
            max_concurrent: self.max_concurrent,
            queue: self.queue(),
            warm: self.warm,
            idle_timeout: wire(self.idle_timeout),
            max_connection_age: wire(self.max_connection_age),
            replay_unanswered: self.replay_unanswered,
            adaptive: self.adaptive(),
            keepalive: self.keepalive,
            ..wire::Pool::default()
        };
        Some(pool).filter(|pool| *pool != wire::Pool::default())
    }

    /// As the deadlines of a model.
    pub(crate) fn timeouts(&self) -> Option<wire::Timeouts> {
        let timeouts = wire::Timeouts {
            connect: wire(self.connect_timeout),
            first_byte: wire(self.first_byte_timeout),
            idle: wire(self.stream_idle_timeout),
            total: wire(self.total_timeout),
        };
        Some(timeouts).filter(|timeouts| *timeouts != wire::Timeouts::default())
    }

    /// As the settings.
    pub(crate) fn settings(&self, max_models_concurrent: Option<u32>) -> wire::PoolDefaults {
        wire::PoolDefaults {
            max_concurrent: self.max_concurrent,
            max_models_concurrent,
            queue: self.queue(),
            warm: self.warm,
            idle_timeout: wire(self.idle_timeout),
            max_connection_age: wire(self.max_connection_age),
            replay_unanswered: self.replay_unanswered,
            adaptive: self.adaptive(),
            timeouts: self.timeouts(),
            keepalive: self.keepalive,
            ..wire::PoolDefaults::default()
        }
    }

    /// The paths of what was given, below `prefix` for the pool's own.
    pub(crate) fn paths(&self, prefix: &str) -> Vec<String> {
        let below = |path: &str, given: bool| given.then(|| format!("{prefix}{path}"));
        let timeout = |path: &str, given: bool| given.then(|| format!("timeouts.{path}"));
        let paths = [
            below("max_concurrent", self.max_concurrent.is_some()),
            below("keepalive", self.keepalive.is_some()),
            below("queue.max_waiting", self.max_waiting.is_some()),
            below("queue.max_wait", self.max_wait.is_some()),
            below("queue.tenant_header", self.tenant_header.is_some()),
            below("queue.priority_header", self.priority_header.is_some()),
            below("queue.cost", self.queue_cost.is_some()),
            below("adaptive.min", self.adaptive_min.is_some()),
            below(
                "adaptive.target_first_byte",
                self.adaptive_first_byte.is_some(),
            ),
            below(
                "adaptive.tolerance_percent",
                self.adaptive_tolerance.is_some(),
            ),
            below("warm", self.warm.is_some()),
            below("idle_timeout", self.idle_timeout.is_some()),
            below("max_connection_age", self.max_connection_age.is_some()),
            below("replay_unanswered", self.replay_unanswered.is_some()),
            timeout("connect", self.connect_timeout.is_some()),
            timeout("first_byte", self.first_byte_timeout.is_some()),
            timeout("idle", self.stream_idle_timeout.is_some()),
            timeout("total", self.total_timeout.is_some()),
        ];
        paths.into_iter().flatten().collect()
    }

    fn queue(&self) -> Option<wire::Queue> {
        let queue = wire::Queue {
            max_waiting: self.max_waiting,
            max_wait: wire(self.max_wait),
            tenant_header: self.tenant_header.clone(),
            priority_header: self.priority_header.clone(),
            cost: self.queue_cost.map(|cost| {
                match cost {
                    QueueCostArg::Request => wire::QueueCost::Request,
                    QueueCostArg::Tokens => wire::QueueCost::Tokens,
                }
                .into()
            }),
        };
        Some(queue).filter(|queue| *queue != wire::Queue::default())
    }

    fn adaptive(&self) -> Option<wire::Adaptive> {
        let adaptive = wire::Adaptive {
            min: self.adaptive_min,
            target_first_byte: wire(self.adaptive_first_byte),
            tolerance_percent: self.adaptive_tolerance,
        };
        Some(adaptive).filter(|adaptive| *adaptive != wire::Adaptive::default())
    }
}

fn wire(duration: Option<Duration>) -> Option<prost_types::Duration> {
    duration.map(duration_to_wire)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_given_is_named() {
        let args = PoolArgs {
            max_concurrent: Some(80),
            max_wait: Some(Duration::from_secs(1)),
            total_timeout: Some(Duration::from_secs(9)),
            ..PoolArgs::default()
        };
        assert_eq!(
            args.paths("pool."),
            [
                "pool.max_concurrent",
                "pool.queue.max_wait",
                "timeouts.total"
            ]
        );
        assert_eq!(PoolArgs::default().pool(), None);
        assert_eq!(PoolArgs::default().timeouts(), None);
    }
}
