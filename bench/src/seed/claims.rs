//! What the founding document claims, what Forebay promises, and whether either holds: computed from what
//! was seen, never assumed. Pure.

use serde::Serialize;

use super::{
    memory::{Memory, Warm},
    plan::{Contestant, Plan, Shape},
    report::{Run, find},
};

/// How far a share may be from the claimed one.
const SHARE_WITHIN: f64 = 0.05;
/// "~98-100 % reuse rate" after the fix.
const FIXED_REUSE: f64 = 0.98;
/// How far a count or an average may be from the claimed one, as a part of it.
const PART_WITHIN: f64 = 0.25;
/// A connection's memory in the document, in KiB.
const KIB_PER_CONNECTION: f64 = 16.0;
/// Forebay's promise for waves.
const PROMISED_REUSE: f64 = 0.999;

/// Whether a claim holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Verdict {
    /// It does.
    Holds,
    /// It does not.
    DoesNotHold,
    /// It cannot be told from this run.
    NotMeasured,
}

impl Verdict {
    fn of(holds: bool) -> Self {
        match holds {
            true => Self::Holds,
            false => Self::DoesNotHold,
        }
    }

    /// For people.
    #[must_use]
    pub fn title(self) -> &'static str {
        match self {
            Self::Holds => "holds",
            Self::DoesNotHold => "does not hold",
            Self::NotMeasured => "not measured",
        }
    }
}

/// A claim of the document beside what was seen.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Claim {
    /// In which shape of load; none if it is about no load.
    pub shape: Option<Shape>,
    /// What it is about.
    pub about: String,
    /// What the document says.
    pub said: String,
    /// What was seen.
    pub seen: String,
    /// Whether that is the same.
    pub verdict: Verdict,
}

/// A promise of Forebay's beside what was seen.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Met {
    /// What is promised.
    pub promise: String,
    /// What was seen.
    pub seen: String,
    /// Whether it was kept.
    pub kept: bool,
}

/// The runs of one shape that the document speaks of.
#[derive(Debug, Clone, Copy)]
struct Pair<'a> {
    seed: &'a Run,
    fixed: &'a Run,
}

/// All claims.
pub(crate) fn all(plan: &Plan, runs: &[Run], memory: Option<&Memory>) -> Vec<Claim> {
    let mut claims = vec![coverage(plan, runs)];
    for shape in Shape::ALL {
        let Some(pair) = pair(runs, shape) else {
            continue;
        };
        claims.push(reopened(plan, pair.seed, "requests that open a connection"));
        if let Some(httpcore) = find(runs, Contestant::Httpcore, shape) {
            claims.push(reopened(
                plan,
                httpcore,
                "the same, surplus counted as httpcore does",
            ));
        }
        claims.push(fixed_reuse(pair));
        if !plan.handshake.is_zero() {
            claims.push(average(plan, pair));
            claims.push(tail(plan, pair));
            claims.push(peaks(plan, pair));
        }
        if shape == Shape::Document {
            claims.push(per_second(plan, pair));
            claims.push(needed(plan, pair));
        }
    }
    claims.push(memory_of(plan, memory));
    claims
}

/// The shapes in which the setting costs what the document says, and the fix cures it.
pub(crate) fn holds_in(plan: &Plan, runs: &[Run]) -> Vec<Shape> {
    let holds = |shape: &Shape| {
        pair(runs, *shape).is_some_and(|pair| {
            plan.uncovered() > 0.0
                && reopened(plan, pair.seed, "").verdict == Verdict::Holds
                && fixed_reuse(pair).verdict == Verdict::Holds
        })
    };
    Shape::ALL.into_iter().filter(holds).collect()
}

/// What Forebay promises.
pub(crate) fn promises(runs: &[Run], warm: &Warm) -> Vec<Met> {
    let mut promises = Vec::new();
    if let Some(waves) = find(runs, Contestant::Forebay, Shape::Waves) {
        promises.push(Met {
            promise: "waves: at least 99.9 % reuse after the first".to_owned(),
            seen: share_of(waves),
            kept: waves.requests > 0 && waves.reuse >= PROMISED_REUSE,
        });
    }
    if let Some(closed) = find(runs, Contestant::Forebay, Shape::Closed) {
        promises.push(Met {
            promise: "steady closed loop: opens nothing".to_owned(),
            seen: format!("{} opened for {} requests", closed.opened, closed.requests),
            kept: closed.requests > 0 && closed.opened == 0,
        });
    }
    promises.push(Met {
        promise: "registered warm: the first request opens nothing".to_owned(),
        seen: format!(
            "{} of {} open before, {} opened by the first requests",
            warm.opened_before, warm.warm, warm.opened_by_first_requests
        ),
        kept: warm.opened_before == warm.warm && warm.opened_by_first_requests == 0,
    });
    let of_forebay = runs
        .iter()
        .filter(|run| run.contestant == Contestant::Forebay);
    let failures: usize = of_forebay.map(|run| run.failures).sum();
    promises.push(Met {
        promise: "no request fails in any shape".to_owned(),
        seen: format!("{failures} failed"),
        kept: failures == 0,
    });
    promises
}

fn pair(runs: &[Run], shape: Shape) -> Option<Pair<'_>> {
    let seed = find(runs, Contestant::Seed, shape)?;
    let fixed = find(runs, Contestant::Fixed, shape)?;
    Some(Pair { seed, fixed })
}

fn coverage(plan: &Plan, runs: &[Run]) -> Claim {
    let said = 1.0 - plan.uncovered();
    let waves = find(runs, Contestant::Seed, Shape::Waves);
    let kept = waves.map(|run| run.kept.iter().sum::<u64>());
    let seen = kept.unwrap_or_default() as f64 / plan.size() as f64;
    Claim {
        shape: None,
        about: "connections kept of a full pool at rest".to_owned(),
        said: percent(said),
        seen: format!(
            "{} ({} of {})",
            percent(seen),
            kept.unwrap_or_default(),
            plan.size()
        ),
        verdict: match kept {
            Some(_) => Verdict::of((seen - said).abs() < 0.005),
            None => Verdict::NotMeasured,
        },
    }
}

fn reopened(plan: &Plan, run: &Run, about: &str) -> Claim {
    let said = plan.uncovered();
    Claim {
        shape: Some(run.shape),
        about: about.to_owned(),
        said: percent(said),
        seen: format!(
            "{} ({} of {})",
            percent(run.opening()),
            run.opened,
            run.requests
        ),
        verdict: when(run, (run.opening() - said).abs() <= SHARE_WITHIN),
    }
}

fn fixed_reuse(pair: Pair<'_>) -> Claim {
    Claim {
        shape: Some(pair.fixed.shape),
        about: "reuse after the fix".to_owned(),
        said: "98 to 100 %".to_owned(),
        seen: share_of(pair.fixed),
        verdict: when(pair.fixed, pair.fixed.reuse >= FIXED_REUSE),
    }
}

fn average(plan: &Plan, pair: Pair<'_>) -> Claim {
    let said = plan.uncovered() * plan.handshake.as_secs_f64() * 1_000.0;
    let seen = pair.seed.latency.mean - pair.fixed.latency.mean;
    Claim {
        shape: Some(pair.seed.shape),
        about: "what it adds to the average latency".to_owned(),
        said: format!("+{said:.0} ms"),
        seen: format!("{seen:+.1} ms"),
        verdict: both(pair, (seen - said).abs() <= PART_WITHIN * said),
    }
}

fn tail(plan: &Plan, pair: Pair<'_>) -> Claim {
    let handshake = plan.handshake.as_secs_f64() * 1_000.0;
    let (seed, fixed) = (&pair.seed.latency, &pair.fixed.latency);
    let added = [
        seed.p50 - fixed.p50,
        seed.p95 - fixed.p95,
        seed.p99 - fixed.p99,
    ];
    let [p50, p95, p99] = added;
    let whole = |added: f64| (0.5 * handshake..1.5 * handshake).contains(&added);
    Claim {
        shape: Some(pair.seed.shape),
        about: "what it adds to p50, p95, p99".to_owned(),
        said: format!("+0, +{handshake:.0}, +{handshake:.0} ms"),
        seen: format!("{p50:+.0}, {p95:+.0}, {p99:+.0} ms"),
        verdict: both(
            pair,
            p50.abs() < 0.5 * handshake && whole(p95) && whole(p99),
        ),
    }
}

fn peaks(plan: &Plan, pair: Pair<'_>) -> Claim {
    let apart = plan.handshake.as_secs_f64() * 1_000.0 / 2.0;
    let (seed, fixed) = (pair.seed.bins.peaks(apart), pair.fixed.bins.peaks(apart));
    Claim {
        shape: Some(pair.seed.shape),
        about: "peaks of the latencies, before and after the fix".to_owned(),
        said: "2, then 1".to_owned(),
        seen: format!("{seed}, then {fixed}"),
        verdict: both(pair, (seed, fixed) == (2, 1)),
    }
}

fn per_second(plan: &Plan, pair: Pair<'_>) -> Claim {
    let said = plan.uncovered() * plan.documents_rate();
    let seen = pair.seed.opened_per_second();
    Claim {
        shape: Some(pair.seed.shape),
        about: "connections opened per second".to_owned(),
        said: format!("{said:.0}"),
        seen: format!("{seen:.1}"),
        verdict: when(pair.seed, (seen - said).abs() <= PART_WITHIN * said),
    }
}

fn needed(plan: &Plan, pair: Pair<'_>) -> Claim {
    let (said, seen) = (plan.size(), pair.seed.most_in_flight);
    Claim {
        shape: Some(pair.seed.shape),
        about: "most requests in flight at once".to_owned(),
        said: said.to_string(),
        seen: seen.to_string(),
        verdict: when(
            pair.seed,
            (seen as f64 - said as f64).abs() <= PART_WITHIN * said as f64,
        ),
    }
}

fn memory_of(plan: &Plan, memory: Option<&Memory>) -> Claim {
    let more = plan.size() - plan.keepalive;
    // A pool that is as good as empty when it is full says nothing.
    let grew = memory.filter(|memory| memory.full.connections > memory.few.connections);
    let seen = grew.map(|memory| memory.kib_per_connection);
    Claim {
        shape: None,
        about: format!("memory of {more} more idle connections (Forebay's)"),
        said: format!(
            "{:.1} MB (16 KB each)",
            more as f64 * KIB_PER_CONNECTION / 1_000.0
        ),
        seen: seen.map_or("-".to_owned(), |kib| {
            format!("{:.1} MB ({kib:.1} KiB each)", more as f64 * kib / 1_000.0)
        }),
        verdict: seen.map_or(Verdict::NotMeasured, |kib| {
            Verdict::of(kib > 0.0 && kib <= KIB_PER_CONNECTION * (1.0 + PART_WITHIN))
        }),
    }
}

fn when(run: &Run, holds: bool) -> Verdict {
    match run.requests {
        0 => Verdict::NotMeasured,
        _ => Verdict::of(holds),
    }
}

fn both(pair: Pair<'_>, holds: bool) -> Verdict {
    match when(pair.fixed, holds) {
        Verdict::NotMeasured => Verdict::NotMeasured,
        _ => when(pair.seed, holds),
    }
}

fn share_of(run: &Run) -> String {
    format!(
        "{} ({} opened for {})",
        percent(run.reuse),
        run.opened,
        run.requests
    )
}

/// A share for people. 100 % is said of nothing less.
pub(crate) fn percent(share: f64) -> String {
    let percent = 100.0 * share;
    match (99.95..100.0).contains(&percent) {
        true => format!("{percent:.3} %"),
        false => format!("{percent:.1} %"),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::{collections::BTreeMap, time::Duration};

    use super::{super::plan::tests::plan, *};
    use crate::seed::{memory::Reading, report::reuse, stats};

    /// A run in which so many of a hundred requests paid the handshake.
    pub(crate) fn a_run(contestant: Contestant, shape: Shape, slow: u64) -> Run {
        let mut latencies = stats::Latencies::new().unwrap();
        for n in 0..100 {
            let handshake = if n < slow { 115 } else { 0 };
            latencies.record(Duration::from_millis(202 + handshake));
        }
        Run {
            shape,
            contestant,
            requests: 100,
            failures: 0,
            failed: BTreeMap::new(),
            opened_in_warm_up: 150,
            opened: slow,
            reuse: reuse(100, slow),
            seconds: 2.0,
            latency: latencies.figures(),
            bins: latencies.bins(stats::bin_width(&plan())),
            most_in_flight: 150,
            most_idle: Some(100),
            kept: vec![33, 33, 34],
        }
    }

    /// The document's pool with so many of a hundred opening one, against its fix.
    fn runs(shape: Shape, slow: u64) -> Vec<Run> {
        vec![
            a_run(Contestant::Seed, shape, slow),
            a_run(Contestant::Fixed, shape, 0),
        ]
    }

    fn verdicts(runs: &[Run]) -> Vec<(String, Verdict)> {
        let claims = all(&plan(), runs, None);
        claims
            .into_iter()
            .map(|claim| (claim.about, claim.verdict))
            .collect()
    }

    #[test]
    fn what_the_document_describes_holds() {
        let runs = runs(Shape::Waves, 33);
        for (about, verdict) in verdicts(&runs) {
            let wanted = match about.contains("memory") {
                true => Verdict::NotMeasured,
                false => Verdict::Holds,
            };
            assert_eq!(verdict, wanted, "{about}");
        }
        assert_eq!(holds_in(&plan(), &runs), [Shape::Waves]);
    }

    #[test]
    fn a_shape_in_which_nothing_is_reopened_refutes_it() {
        let runs = runs(Shape::Closed, 0);
        let refuted = verdicts(&runs);
        let refuted = refuted
            .iter()
            .filter(|(_, verdict)| *verdict == Verdict::DoesNotHold);
        // Reopened, average, tail, peaks.
        assert_eq!(refuted.count(), 4);
        assert!(holds_in(&plan(), &runs).is_empty());
    }

    #[test]
    fn more_than_was_said_is_not_what_was_said() {
        assert!(holds_in(&plan(), &runs(Shape::Closed, 100)).is_empty());
        let mut fix_fails = runs(Shape::Waves, 33);
        fix_fails.pop();
        fix_fails.push(a_run(Contestant::Fixed, Shape::Waves, 3));
        assert!(holds_in(&plan(), &fix_fails).is_empty());
    }

    #[test]
    fn nothing_is_concluded_from_no_requests() {
        let mut empty = runs(Shape::Document, 0);
        empty.iter_mut().for_each(|run| run.requests = 0);
        for (about, verdict) in verdicts(&empty).into_iter().skip(1) {
            assert_eq!(verdict, Verdict::NotMeasured, "{about}");
        }
    }

    #[test]
    fn the_documents_rate_is_compared_too() {
        let mut runs = runs(Shape::Document, 100);
        runs[0].most_in_flight = 40;
        let claims = all(&plan(), &runs, None);
        let find = |about: &str| {
            claims
                .iter()
                .find(|claim| claim.about.contains(about))
                .unwrap()
        };
        let opened = find("per second");
        assert_eq!((opened.said.as_str(), opened.seen.as_str()), ("50", "50.0"));
        assert_eq!(opened.verdict, Verdict::Holds);
        let needed = find("in flight");
        assert_eq!(
            (needed.seen.as_str(), needed.verdict),
            ("40", Verdict::DoesNotHold)
        );
    }

    #[test]
    fn memory_is_compared_per_connection() {
        for (kib, verdict) in [(9.0, Verdict::Holds), (37.0, Verdict::DoesNotHold)] {
            let memory = Memory {
                few: Default::default(),
                full: Reading {
                    connections: 150,
                    ..Reading::default()
                },
                kib_per_connection: kib,
            };
            let claim = memory_of(&plan(), Some(&memory));
            assert_eq!(
                (claim.said.as_str(), claim.verdict),
                ("0.8 MB (16 KB each)", verdict)
            );
        }
    }

    #[test]
    fn promises_are_kept_or_not_by_what_was_seen() {
        let warm = Warm {
            warm: 150,
            opened_before: 150,
            opened_by_first_requests: 0,
            slowest_first_request: 203.0,
        };
        let good = [
            a_run(Contestant::Forebay, Shape::Waves, 0),
            a_run(Contestant::Forebay, Shape::Closed, 0),
        ];
        assert!(promises(&good, &warm).iter().all(|met| met.kept));
        let mut bad = [
            a_run(Contestant::Forebay, Shape::Waves, 1),
            a_run(Contestant::Forebay, Shape::Closed, 1),
        ];
        bad[0].failures = 1;
        let cold = Warm {
            opened_by_first_requests: 1,
            ..warm
        };
        assert!(promises(&bad, &cold).iter().all(|met| !met.kept));
    }

    #[test]
    fn a_hundred_percent_is_said_of_nothing_less() {
        assert_eq!(percent(1.0), "100.0 %");
        assert_eq!(percent(0.99963), "99.963 %");
        assert_eq!(percent(2.0 / 3.0), "66.7 %");
    }
}
