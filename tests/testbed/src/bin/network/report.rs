//! What was seen of one way in which the network is bad, and whether that is as it must be.

use std::time::Duration;

use forebay_tests::{Served, quantile};

use crate::case::Case;

/// From the network's return until a worker is current: 99 of 100 within this.
const CURRENT_WITHIN: Duration = Duration::from_secs(5);
/// From the beginning until the control plane knows that workers are gone.
const NOTICED_WITHIN: Duration = Duration::from_secs(30);

/// What was seen.
#[derive(Debug)]
pub(crate) struct Report {
    case: Case,
    /// From the network's return until a worker was current; one for each worker and run.
    pub(crate) current: Vec<Duration>,
    pub(crate) never_current: usize,
    /// How long writes took.
    pub(crate) writes: Vec<Duration>,
    pub(crate) failed_writes: usize,
    /// From the beginning until the control plane knew that all workers were gone.
    pub(crate) noticed: Vec<Duration>,
    /// Runs in which it never did.
    pub(crate) unnoticed: usize,
    /// Streams that were opened anew.
    pub(crate) streams: usize,
    pub(crate) served: Served,
    /// Packets that the kernel lost before they came to a wire.
    pub(crate) dropped: u64,
}

impl Report {
    pub(crate) const HEAD: &str = "| | requests | failed | writes | failed | slowest write | noticed | streams anew | \
        current after, p50 | p99 | most |\n|---|---|---|---|---|---|---|---|---|---|---|";

    pub(crate) fn new(case: Case) -> Self {
        Self {
            case,
            current: Vec::new(),
            never_current: 0,
            writes: Vec::new(),
            failed_writes: 0,
            noticed: Vec::new(),
            unnoticed: 0,
            streams: 0,
            served: Served::default(),
            dropped: 0,
        }
    }

    pub(crate) fn row(&self) -> String {
        let seconds = |took: Option<Duration>| {
            took.map_or("–".to_owned(), |took| {
                format!("{:.2} s", took.as_secs_f64())
            })
        };
        let mut current = self.current.clone();
        current.sort();
        let most = |times: &[Duration]| seconds(times.iter().max().copied());
        format!(
            "| {} | {} | {} | {} | {} | {} | {} | {} | {} | {} | {} |",
            self.case.name(),
            self.served.requests,
            self.served.failed,
            self.writes.len(),
            self.failed_writes,
            most(&self.writes),
            most(&self.noticed),
            self.streams,
            seconds(Some(quantile(&current, 0.5))),
            seconds(Some(quantile(&current, 0.99))),
            most(&current),
        )
    }

    /// What is not as it must be.
    pub(crate) fn wrong(&self) -> Vec<String> {
        let mut wrong = Vec::new();
        let name = self.case.name();
        let mut must = |holds: bool, what: String| {
            if !holds {
                wrong.push(format!("{name}: {what}"));
            }
        };
        let (failed, told) = (self.served.failed, &self.served.told);
        must(failed == 0, format!("{failed} requests failed: {told:?}"));
        must(self.served.requests > 0, "nothing was asked for".to_owned());
        must(
            self.failed_writes == 0,
            format!("{} writes failed", self.failed_writes),
        );
        must(
            self.never_current == 0,
            format!(
                "{} times a worker did not become current",
                self.never_current
            ),
        );
        let mut current = self.current.clone();
        current.sort();
        let late = quantile(&current, 0.99);
        must(
            late <= CURRENT_WITHIN,
            format!("current after {late:?} (p99), the limit is {CURRENT_WITHIN:?}"),
        );
        let noticed = self.noticed.iter().max().copied().unwrap_or_default();
        must(
            noticed <= NOTICED_WITHIN,
            format!("noticed after {noticed:?}, the limit is {NOTICED_WITHIN:?}"),
        );
        must(
            self.dropped == 0,
            format!("{} packets never came to a wire", self.dropped),
        );
        wrong
    }
}
