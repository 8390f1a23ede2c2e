//! The health gate: do the workers that took a revision do worse than those that did not? Pure.
//!
//! Too few requests say nothing, neither good nor bad.

use std::collections::BTreeMap;

use forebay_proto::{Health, ModelId, health::Tally};

use super::settings::RolloutSettings;

/// Fewest requests from which a share of errors is read, on either side.
const FOR_ERRORS: u64 = 20;
/// Fewest requests from which a p99 is read, on either side.
const FOR_P99: u64 = 100;
/// Slower by less than this is nobody's harm, in milliseconds.
const NOT_SLOWER: u64 = 50;

/// What is compared.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Compared {
    /// Workers that took the revision, since they did.
    pub(super) ring: Health,
    /// The same workers before, from the start of their processes.
    pub(super) before: Health,
    /// The other workers, since the ring has it.
    pub(super) others: Health,
    /// Each model that was changed since stable, on the ring's workers.
    pub(super) changed: BTreeMap<ModelId, Changed>,
}

/// One model on the workers of the ring.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Changed {
    /// Before it was changed, from the start of their processes.
    pub(super) before: Tally,
    /// Since it was.
    pub(super) since: Tally,
}

impl Compared {
    /// Who the ring is compared with: the others, or itself before, if either had enough requests.
    fn baseline(&self, enough: u64) -> Option<(&Health, &'static str)> {
        if self.ring.requests < enough {
            return None;
        }
        let others = (&self.others, "on the others");
        let before = (&self.before, "on the same before");
        [others, before]
            .into_iter()
            .find(|(health, _)| health.requests >= enough)
    }

    /// What speaks against the revision as soon as it is seen: in all requests, or in those for what it changed, which
    /// may be few among many.
    pub(super) fn errors(&self, settings: &RolloutSettings) -> Option<String> {
        let all = self.baseline(FOR_ERRORS);
        let all = all.map(|(health, whose)| (health.tally(), whose));
        let of_all = all.and_then(|usual| more_errors("", self.ring.tally(), usual, settings));
        let of_one = || {
            let enough = |changed: &Changed| changed.since.requests >= FOR_ERRORS;
            let mut judged = self.changed.iter().filter(|(_, changed)| enough(changed));
            judged.find_map(|(model, changed)| {
                let before = (changed.before, "for it before");
                // What is new has no before.
                let known = changed.before.requests >= FOR_ERRORS;
                let usual = known.then_some(before).or(all)?;
                more_errors(
                    &format!(" for model {model}"),
                    changed.since,
                    usual,
                    settings,
                )
            })
        };
        of_all.or_else(of_one)
    }

    /// What speaks against it at the end of a soak: a slow moment is none.
    pub(super) fn slowness(&self, settings: &RolloutSettings) -> Option<String> {
        let (baseline, whose) = self.baseline(FOR_P99)?;
        let (p99, usual) = (self.ring.p99_millis(), baseline.p99_millis());
        let slower = p99 > usual.saturating_add(NOT_SLOWER)
            && p99 as f64 > usual as f64 * settings.max_slowdown;
        slower.then(|| {
            format!(
                "p99 to an answer's head: {p99} ms in {} requests on the workers that took it, {usual} ms in {} {whose}; \
                 at most {} times as much is allowed",
                self.ring.requests, baseline.requests, settings.max_slowdown
            )
        })
    }
}

/// More requests failed than usual, by more than is allowed.
fn more_errors(
    models: &str,
    seen: Tally,
    (baseline, whose): (Tally, &str),
    settings: &RolloutSettings,
) -> Option<String> {
    let (share, usual) = (seen.error_share(), baseline.error_share());
    (share > usual + settings.max_errors).then(|| {
        format!(
            "errors: {:.1} % of {} requests{models} on the workers that took it, {:.1} % of {} {whose}; at most {:.1} \
             points more are allowed",
            share * 100.0,
            seen.requests,
            usual * 100.0,
            baseline.requests,
            settings.max_errors * 100.0
        )
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn settings() -> RolloutSettings {
        RolloutSettings {
            rings: "1".parse().unwrap(),
            soak: Duration::from_secs(10),
            max_errors: 0.1,
            max_slowdown: 3.0,
        }
    }

    fn health(requests: u64, errors: u64, millis: u64) -> Health {
        let mut health = Health {
            requests,
            errors,
            ..Health::default()
        };
        health.latency[Health::bucket(millis)] = requests;
        health
    }

    fn compared(ring: Health, before: Health, others: Health) -> Compared {
        Compared {
            ring,
            before,
            others,
            ..Compared::default()
        }
    }

    #[test]
    fn more_errors_than_the_others_have_are_told_with_figures() {
        let bad = compared(health(40, 35, 5), Health::default(), health(800, 8, 5));
        let told = bad.errors(&settings()).unwrap();
        for part in ["87.5 % of 40", "1.0 % of 800 on the others", "10.0 points"] {
            assert!(told.contains(part), "{part}: {told}");
        }
        let fine = compared(health(40, 4, 5), Health::default(), health(800, 8, 5));
        assert_eq!(fine.errors(&settings()), None, "9 points more");
        let all = compared(health(40, 35, 5), Health::default(), health(800, 700, 5));
        assert_eq!(all.errors(&settings()), None, "as bad everywhere");
    }

    #[test]
    fn few_requests_say_nothing() {
        let all = health(800, 0, 5);
        let few = compared(health(19, 19, 5), all, all);
        assert_eq!(few.errors(&settings()), None);
        let nobody = compared(health(800, 800, 5), health(19, 0, 5), health(19, 0, 5));
        assert_eq!(nobody.errors(&settings()), None, "nothing to compare with");
        let slow = compared(health(99, 0, 9_000), all, all);
        assert_eq!(slow.slowness(&settings()), None);
    }

    #[test]
    fn without_others_the_ring_is_compared_with_itself_before() {
        let bad = compared(health(40, 35, 5), health(50, 0, 5), health(3, 0, 5));
        let told = bad.errors(&settings()).unwrap();
        assert!(told.contains("of 50 on the same before"), "{told}");
    }

    #[test]
    fn harm_to_one_model_does_not_drown_in_the_traffic_of_the_others() {
        let fine = compared(
            health(4_000, 40, 5),
            health(9_000, 0, 5),
            health(9_000, 0, 5),
        );
        assert_eq!(fine.errors(&settings()), None, "1 % of all");
        let tally = |requests, errors| Tally { requests, errors };
        let with = |before, since| Compared {
            changed: BTreeMap::from([(ModelId::new("m").unwrap(), Changed { before, since })]),
            ..fine.clone()
        };
        let harm = with(tally(300, 0), tally(40, 40));
        let told = harm.errors(&settings()).unwrap();
        for part in [
            "100.0 % of 40 requests for model m",
            "0.0 % of 300 for it before",
        ] {
            assert!(told.contains(part), "{part}: {told}");
        }
        let new = with(Tally::default(), tally(40, 40)).errors(&settings());
        assert!(new.unwrap().contains("of 9000 on the others"));
        let always = with(tally(300, 295), tally(40, 40));
        assert_eq!(always.errors(&settings()), None, "it was as bad before");
        let few = with(tally(300, 0), tally(19, 19));
        assert_eq!(few.errors(&settings()), None, "too few to say");
    }

    #[test]
    fn slower_by_far_is_told_and_slower_by_little_is_not() {
        let usual = health(500, 0, 100);
        let slow = compared(health(200, 0, 900), Health::default(), usual);
        assert!(
            slow.slowness(&settings())
                .unwrap()
                .contains("1153 ms in 200")
        );
        let little = compared(health(200, 0, 200), Health::default(), usual);
        assert_eq!(little.slowness(&settings()), None);
        let tiny = compared(health(200, 0, 30), Health::default(), health(500, 0, 1));
        assert_eq!(tiny.slowness(&settings()), None, "42 ms more is no harm");
    }
}
