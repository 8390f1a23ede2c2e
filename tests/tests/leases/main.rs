//! Fleet-wide limits under everything that can go wrong, played on a clock that is a number: the control plane's own
//! decider, what control planes tell one another, and the workers' own book, with the world between and around them made
//! up. Histories of kills,
//! restarts, partitions, pauses, drains, lost and late words, full disks and clocks that differ; after each step, what
//! the engine sees is no more than the limit. Planted faults must be found.
//!
//! `FOREBAY_LEASE_SEED` plays one history again, `FOREBAY_LEASE_RUNS` says how many.

#![expect(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::too_many_lines,
    reason = "in a test, a wrong assumption is to fail at once; what may happen is one long list"
)]

mod world;

use forebay_control::simulation::leases::{MachineFaults, OwnFaults};
use forebay_dataplane::leases::BookFaults;

use self::world::{Faults, Seen, World};

const RUNS: u64 = 300;
/// Within so many histories a planted fault must show.
const FOUND_WITHIN: u64 = 2_000;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

fn play(seed: u64, faults: Faults) -> Seen {
    World::new(seed, faults).play()
}

#[test]
fn the_engine_never_sees_more_than_the_limit() {
    if let Some(seed) = number("FOREBAY_LEASE_SEED") {
        let seen = play(seed, Faults::default());
        assert_eq!((seen.broken, seen.unused), (None, None), "seed {seed}");
        return;
    }
    let mut all = Seen::default();
    for seed in 0..number("FOREBAY_LEASE_RUNS").unwrap_or(RUNS) {
        let seen = play(seed, Faults::default());
        let wrong = (&seen.broken, &seen.unused);
        assert_eq!(
            wrong,
            (&None, &None),
            "play it again with FOREBAY_LEASE_SEED={seed}"
        );
        all.add(&seen);
    }
    // What did not happen was not tested.
    let happened = [
        ("kills", all.kills),
        ("restarts of workers", all.restarts),
        ("drains", all.drains),
        ("partitions", all.partitions),
        ("restarts of a control plane", all.control_restarts),
        ("changes of the one that decides", all.terms),
        ("workers that went to another control plane", all.moves),
        ("pauses", all.pauses),
        ("leases that ran out", all.lapses),
        ("requests that were ended", all.revoked),
        ("limits that were changed", all.changes),
        ("restored stores", all.restores),
        ("moves of workers that do not count streams", all.uncounted),
    ];
    for (what, count) in happened {
        assert!(count > 20, "{what}: {count}");
    }
    println!("{all:?}");
}

#[test]
fn planted_faults_are_found() {
    let machine = |faults| Faults {
        machine: faults,
        ..Faults::default()
    };
    let book = |faults| Faults {
        book: faults,
        ..Faults::default()
    };
    let own = |faults| Faults {
        own: faults,
        ..Faults::default()
    };
    let planted = [
        (
            "one that goes on deciding beside the next",
            Faults {
                unfenced: true,
                ..Faults::default()
            },
        ),
        (
            "one that decides without what is on record",
            Faults {
                reads_no_table: true,
                ..Faults::default()
            },
        ),
        (
            "what was handed on and is not confirmed left out of what is told",
            own(OwnFaults {
                forgets_handed: true,
                ..OwnFaults::default()
            }),
        ),
        (
            "grants of whoever decided before handed on",
            own(OwnFaults {
                hands_on_all: true,
                ..OwnFaults::default()
            }),
        ),
        (
            "growth before it is confirmed that others shrank",
            machine(MachineFaults {
                grows_at_once: true,
                ..MachineFaults::default()
            }),
        ),
        (
            "a start that does not wait",
            machine(MachineFaults {
                forgets_at_start: true,
                ..MachineFaults::default()
            }),
        ),
        (
            "a table from another time taken for a whole one",
            machine(MachineFaults {
                takes_any_table: true,
                ..MachineFaults::default()
            }),
        ),
        (
            "what still runs when time is over taken for free",
            machine(MachineFaults {
                forgets_linger: true,
                ..MachineFaults::default()
            }),
        ),
        (
            "time counted from when a grant came",
            book(BookFaults {
                counts_from_receipt: true,
                ..BookFaults::default()
            }),
        ),
        (
            "grants taken in whatever order they come",
            book(BookFaults {
                takes_old_grants: true,
                ..BookFaults::default()
            }),
        ),
    ];
    for (what, faults) in planted {
        let found = (0..FOUND_WITHIN).find(|seed| play(*seed, faults).broken.is_some());
        assert!(found.is_some(), "{what} goes unnoticed");
        println!("{what}: history {found:?}");
    }
}
