//! What is to be run: the sizes, times and rates of the experiment, and whether they fit together.
//! It runs nothing and knows no flag.

use std::time::Duration;

use serde::Serialize;

/// Most connections of a run. Each is two open files here and two in the gateway.
const MOST_CONNECTIONS: usize = 1_000;
/// Most arrivals per second that one process can be trusted to offer and to serve in time.
const MOST_RATE: f64 = 5_000.0;
/// How much of the slots Poisson arrivals keep busy on average.
const BUSY: f64 = 0.65;
/// Least time that a shape other than waves runs before it is counted.
const LEAST_WARM_UP: Duration = Duration::from_millis(500);

/// The sizes and times of a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// How many models, each with an upstream of its own.
    pub models: usize,
    /// Most requests of a model in flight.
    pub max_concurrent: usize,
    /// Most idle connections of the document's pool, all models together.
    pub keepalive: usize,
    /// In which ways requests come.
    pub shapes: Vec<Shape>,
    /// How many waves.
    pub waves: usize,
    /// How long each of the other shapes is counted.
    pub time: Duration,
    /// What a new connection costs.
    pub handshake: Duration,
    /// What a request takes upstream.
    pub service_time: Duration,
    /// Where the random arrivals begin.
    pub seed: u64,
}

/// Sizes and times that do not fit together.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum PlanError {
    /// More connections than can be had.
    #[error(
        "--models {models} times --max-concurrent {max_concurrent} is {size} connections; at most \
         {MOST_CONNECTIONS} can be run on one machine: lower one of the two"
    )]
    TooMany {
        /// The models.
        models: usize,
        /// The connections of each.
        max_concurrent: usize,
        /// The product.
        size: usize,
    },
    /// More kept than there can be.
    #[error(
        "--keepalive {keepalive} is more than the {size} connections of the pool (--models times \
         --max-concurrent): choose 1 to {size}"
    )]
    KeepsMore {
        /// What is to be kept.
        keepalive: usize,
        /// What there is.
        size: usize,
    },
    /// More arrivals than can be offered.
    #[error(
        "--service-time {service_time:?} with {size} connections needs {rate:.0} arrivals per second; \
         at most {MOST_RATE:.0} can be offered: make it longer, or lower --max-concurrent"
    )]
    TooFast {
        /// What a request takes.
        service_time: Duration,
        /// The connections.
        size: usize,
        /// The arrivals per second.
        rate: f64,
    },
}

impl Plan {
    /// What the document's formula keeps alive: twice the connections of one model.
    #[must_use]
    pub fn documents_keepalive(models: usize, max_concurrent: usize) -> usize {
        (2 * max_concurrent).min(models * max_concurrent)
    }

    /// Finds what does not fit together.
    pub fn check(&self) -> Result<(), PlanError> {
        let size = self.size();
        if size > MOST_CONNECTIONS {
            return Err(PlanError::TooMany {
                models: self.models,
                max_concurrent: self.max_concurrent,
                size,
            });
        }
        if self.keepalive > size {
            let keepalive = self.keepalive;
            return Err(PlanError::KeepsMore { keepalive, size });
        }
        let rate = self.busy_rate();
        if rate > MOST_RATE {
            return Err(PlanError::TooFast {
                service_time: self.service_time,
                size,
                rate,
            });
        }
        Ok(())
    }

    /// The connections of the pool.
    #[must_use]
    pub fn size(&self) -> usize {
        self.models * self.max_concurrent
    }

    /// The share of the pool that the document's setting does not keep.
    #[must_use]
    pub fn uncovered(&self) -> f64 {
        1.0 - ratio(self.keepalive, self.size())
    }

    /// Arrivals per second that keep about two thirds of the slots busy.
    #[must_use]
    pub fn busy_rate(&self) -> f64 {
        BUSY * self.size() as f64 / self.service_time.as_secs_f64()
    }

    /// Arrivals per second of the document's comparison: as many per model as it has connections.
    #[must_use]
    pub fn documents_rate(&self) -> f64 {
        self.size() as f64
    }

    /// How long the shapes other than waves run before they are counted.
    #[must_use]
    pub fn warm_up(&self) -> Duration {
        LEAST_WARM_UP.max(3 * (self.handshake + self.service_time))
    }

    /// The name of a model.
    #[must_use]
    pub fn model(&self, n: usize) -> String {
        let letter = u8::try_from(n).ok().and_then(|n| b'a'.checked_add(n));
        format!("model-{}", char::from(letter.unwrap_or(b'?')))
    }
}

/// A part of a whole, 0 of nothing.
pub(crate) fn ratio(part: usize, whole: usize) -> f64 {
    match whole {
        0 => 0.0,
        whole => part as f64 / whole as f64,
    }
}

/// In which way requests come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Shape {
    /// As many as there are slots at once, then nothing until all are answered and a pause is over.
    Waves,
    /// As many clients as slots, each with the next request as soon as it has its answer.
    Closed,
    /// Random arrivals that keep two thirds of the slots busy.
    Poisson,
    /// Random arrivals at the rate of the document's comparison.
    Document,
}

impl Shape {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Waves, Self::Closed, Self::Poisson, Self::Document];

    /// For people.
    #[must_use]
    pub fn title(self) -> &'static str {
        match self {
            Self::Waves => "synchronized waves",
            Self::Closed => "steady closed loop",
            Self::Poisson => "Poisson arrivals, slots 65 % busy",
            Self::Document => "Poisson arrivals at the document's rate",
        }
    }

    /// For names of files.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Waves => "waves",
            Self::Closed => "closed",
            Self::Poisson => "poisson",
            Self::Document => "document",
        }
    }
}

/// Who is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Contestant {
    /// The document's pool: keeps fewer idle connections than it may have, counted as documented.
    Seed,
    /// The same settings, with the surplus counted as httpcore 1.0.9 counts it.
    Httpcore,
    /// The document's fix: keeps as many as it may have.
    Fixed,
    /// Forebay, as a process, with a gateway in front of its pools.
    Forebay,
}

impl Contestant {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Seed, Self::Httpcore, Self::Fixed, Self::Forebay];

    /// For people.
    #[must_use]
    pub fn title(self, plan: &Plan) -> String {
        let (keepalive, size) = (plan.keepalive, plan.size());
        match self {
            Self::Seed => format!("keepalive {keepalive} of {size}"),
            Self::Httpcore => format!("keepalive {keepalive}, as httpcore counts"),
            Self::Fixed => format!("keepalive {size} of {size}"),
            Self::Forebay => "Forebay".to_owned(),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// The document's numbers.
    pub(crate) fn plan() -> Plan {
        Plan {
            models: 3,
            max_concurrent: 50,
            keepalive: 100,
            shapes: Shape::ALL.to_vec(),
            waves: 10,
            time: Duration::from_secs(6),
            handshake: Duration::from_millis(115),
            service_time: Duration::from_millis(200),
            seed: 1,
        }
    }

    #[test]
    fn the_documents_numbers_come_out() {
        let plan = plan();
        assert_eq!(plan.check(), Ok(()));
        assert_eq!(plan.size(), 150);
        assert_eq!(Plan::documents_keepalive(3, 50), 100);
        assert_eq!(Plan::documents_keepalive(1, 50), 50);
        assert!((plan.uncovered() - 1.0 / 3.0).abs() < 1e-9);
        assert!((plan.busy_rate() - 487.5).abs() < 1e-9);
        assert_eq!(plan.model(2), "model-c");
    }

    #[test]
    fn what_does_not_fit_is_refused_with_the_way_out() {
        let refused = |plan: Plan| plan.check().unwrap_err().to_string();
        let many = refused(Plan {
            models: 16,
            max_concurrent: 100,
            ..plan()
        });
        assert!(
            many.contains("1600") && many.contains("at most 1000"),
            "{many}"
        );
        let keeps = refused(Plan {
            keepalive: 151,
            ..plan()
        });
        assert!(
            keeps.contains("--keepalive 151") && keeps.contains("1 to 150"),
            "{keeps}"
        );
        let fast = refused(Plan {
            service_time: Duration::from_millis(10),
            ..plan()
        });
        assert!(
            fast.contains("9750") && fast.contains("make it longer"),
            "{fast}"
        );
    }
}
