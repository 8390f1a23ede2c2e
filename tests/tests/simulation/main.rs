//! One control plane, a few workers and an operator on a network that is cut, delayed and healed at random, while
//! they crash and come back. Time, network and chance are simulated: one seed, one history. All else is the
//! product's own code over real HTTP/2.
//!
//! `FOREBAY_SIMULATION_SEEDS=10000 cargo test --workspace --test simulation` for the long run; a seed that failed
//! is told, and `FOREBAY_SIMULATION_FROM=SEED FOREBAY_SIMULATION_SEEDS=1` plays it again. Which of several tasks that
//! wait for the same is woken first, tokio draws by itself, unless it is built to draw that from the seed as well:
//! `RUSTFLAGS="--cfg tokio_unstable" cargo test -p forebay-tests --test simulation --target-dir target/simulation`.

#![expect(
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "scenery of a test: what cannot be set up ends it"
)]

mod hosts;
mod trouble;
mod world;

use std::sync::atomic::{AtomicU64, Ordering};

#[cfg(tokio_unstable)]
use self::world::Played;
use self::world::play;

/// Seeds that failed once.
const FAILED_ONCE: [u64; 0] = [];

fn number(name: &str, otherwise: u64) -> u64 {
    let text = std::env::var(name).ok();
    text.map_or(otherwise, |text| text.parse().unwrap())
}

#[test]
fn nothing_is_lost_and_nothing_goes_back_whatever_fails() {
    let from = number("FOREBAY_SIMULATION_FROM", 0);
    let seeds = number("FOREBAY_SIMULATION_SEEDS", 1_000);
    let next = AtomicU64::new(0);
    let (writes, repeated, applied, troubles) = (
        AtomicU64::new(0),
        AtomicU64::new(0),
        AtomicU64::new(0),
        AtomicU64::new(0),
    );
    let work = || {
        loop {
            let n = next.fetch_add(1, Ordering::Relaxed);
            if n >= seeds {
                return;
            }
            let played = play(from + n);
            writes.fetch_add(played.writes, Ordering::Relaxed);
            repeated.fetch_add(played.repeated, Ordering::Relaxed);
            applied.fetch_add(played.trace.len() as u64, Ordering::Relaxed);
            troubles.fetch_add(played.troubles, Ordering::Relaxed);
        }
    };
    std::thread::scope(|scope| {
        let threads = std::thread::available_parallelism().map_or(2, usize::from);
        let all: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        all.into_iter().for_each(|thread| thread.join().unwrap());
    });
    println!(
        "{seeds} seeds: {writes:?} writes acknowledged, {repeated:?} of them after a repetition, \
         {applied:?} revisions applied by workers, {troubles:?} troubles"
    );
    assert!(writes.into_inner() > seeds * 5);
    assert!(troubles.into_inner() > seeds * 5);
}

#[test]
fn seeds_that_failed_once() {
    FAILED_ONCE.into_iter().for_each(|seed| drop(play(seed)));
}

#[cfg(tokio_unstable)]
#[test]
fn the_same_seed_is_the_same_history() {
    for seed in 0..20 {
        let (once, again): (Played, Played) = (play(seed), play(seed));
        assert_eq!(once.trace, again.trace, "seed {seed}");
        assert!(!once.trace.is_empty());
    }
    assert_ne!(play(1).trace, play(2).trace);
}
