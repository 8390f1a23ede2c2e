//! One control plane, a few workers and two operators on a network that is cut, delayed and healed at random, while
//! they crash and come back. Time, network and chance are simulated: one seed, one history. All else is the
//! product's own code over real HTTP/2.
//!
//! In other histories ([`partitions`]) only the network between control plane and workers fails, in one way, and it is
//! timed how long workers take to be current after it is well again.
//!
//! `FOREBAY_SIMULATION_SEEDS` is how many seeds are played, `FOREBAY_SIMULATION_FROM` the first of them, and
//! `FOREBAY_SIMULATION_PARTITIONS` how many of the other histories. Which of
//! several tasks that wait for the same is woken first, tokio draws by itself, unless it is built to draw that from
//! the seed as well. So for a history that comes again:
//! `RUSTFLAGS="--cfg tokio_unstable" cargo test -p forebay-tests --test simulation --target-dir target/simulation`.
//!
//! Histories are played in processes of their own, one after the other: tokio numbers tasks over a whole process, and
//! ends those of a crashed host in an order that comes from their numbers.

#![expect(
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "scenery of a test: what cannot be set up ends it"
)]

mod hosts;
mod partitions;
mod replicas;
mod tcp;
mod trouble;
mod world;

use std::process::{Child, Command, Stdio};

use self::world::play;

/// Seeds that failed once.
const FAILED_ONCE: [u64; 0] = [];
/// First seed, number of seeds, and the distance between them.
const PART: &str = "FOREBAY_SIMULATION_PART";
/// Workers are current within this after the network is well again, 99 of 100 of them.
const CURRENT_WITHIN_MILLIS: u64 = 5_000;

fn number(name: &str, otherwise: u64) -> u64 {
    let text = std::env::var(name).ok();
    text.map_or(otherwise, |text| text.parse().unwrap())
}

/// The seeds that this process plays, if it is one that does.
fn seeds() -> impl Iterator<Item = u64> {
    let text = std::env::var(PART).unwrap_or("0:0:0".to_owned());
    let numbers: Vec<u64> = text.split(':').map(|n| n.parse().unwrap()).collect();
    (0..numbers[1]).map(move |n| numbers[0] + n * numbers[2])
}

/// The process that plays partitions; a test of its own only when it is one.
#[test]
fn part_of_partitions() {
    for seed in seeds() {
        let played = partitions::play(seed);
        let [a, b, c] = played.current;
        println!(
            "PLAYED {seed} {} {} {a} {b} {c}",
            played.case, played.writes
        );
    }
}

/// The process that plays; a test of its own only when it is one.
#[test]
fn part() {
    for seed in seeds() {
        let played = play(seed);
        println!(
            "PLAYED {seed} {} {} {} {} {}",
            played.writes,
            played.repeated,
            played.troubles,
            played.trace.len(),
            played.fingerprint()
        );
    }
}

fn start(part: &str, first: u64, seeds: u64, apart: u64) -> Child {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", part, "--nocapture"]);
    command.env(PART, format!("{first}:{seeds}:{apart}"));
    command.stdout(Stdio::piped()).spawn().unwrap()
}

/// What it played: a line for each seed.
fn end(child: Child, seeds: u64) -> Vec<Vec<u64>> {
    let output = child.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}");
    let lines = text.lines().filter_map(|line| {
        let (_, numbers) = line.split_once("PLAYED ")?;
        numbers.split(' ').map(|n| n.parse().ok()).collect()
    });
    let played: Vec<_> = lines.collect();
    assert_eq!(played.len() as u64, seeds, "{text}");
    played
}

#[test]
fn nothing_is_lost_and_nothing_goes_back_whatever_fails() {
    let from = number("FOREBAY_SIMULATION_FROM", 0);
    let seeds = number("FOREBAY_SIMULATION_SEEDS", 100);
    let played = play_all("part", from, seeds);
    let sum = |column: usize| played.iter().map(|seed| seed[column]).sum::<u64>();
    let (writes, repeated, troubles, applied) = (sum(1), sum(2), sum(3), sum(4));
    println!(
        "{seeds} seeds: {writes} writes acknowledged, {repeated} of them after a repetition, \
         {applied} revisions applied by workers, {troubles} troubles"
    );
    assert!(writes > seeds * 5);
    assert!(repeated > seeds);
    assert!(troubles > seeds * 5);
}

/// On all processors.
fn play_all(part: &str, from: u64, seeds: u64) -> Vec<Vec<u64>> {
    let processes = std::thread::available_parallelism().map_or(2, |n| n.get() as u64);
    let share = |process| (seeds + processes - 1 - process) / processes;
    let children: Vec<_> = (0..processes)
        .map(|process| start(part, from + process, share(process), processes))
        .collect();
    let children = children.into_iter().zip(0..);
    children
        .flat_map(|(child, process)| end(child, share(process)))
        .collect()
}

#[test]
fn workers_are_current_soon_after_the_network_is_well_again() {
    let seeds = number("FOREBAY_SIMULATION_PARTITIONS", 30);
    let played = play_all("part_of_partitions", 0, seeds);
    let mut late = Vec::new();
    for (case, name) in (0_u64..).zip(partitions::CASES) {
        let of_case = played.iter().filter(|seed| seed[1] == case);
        let mut current: Vec<u64> = of_case.flat_map(|seed| seed[3..].to_vec()).collect();
        current.sort_unstable();
        let at = |percent: usize| current[(current.len() * percent).div_ceil(100).max(1) - 1];
        println!(
            "{name}: {} workers current after {} ms (p50), {} ms (p99), {} ms at most",
            current.len(),
            at(50),
            at(99),
            at(100)
        );
        if at(99) > CURRENT_WITHIN_MILLIS {
            late.push((name, at(99)));
        }
    }
    assert!(late.is_empty(), "{late:?}");
    assert!(played.iter().map(|seed| seed[2]).sum::<u64>() > seeds * 10);
}

#[test]
fn seeds_that_failed_once() {
    let children: Vec<_> = FAILED_ONCE
        .into_iter()
        .map(|seed| start("part", seed, 1, 1))
        .collect();
    children.into_iter().for_each(|child| drop(end(child, 1)));
}

/// Alone, or after others.
#[cfg(tokio_unstable)]
#[test]
fn the_same_seed_is_the_same_history() {
    let start = |first, seeds| start("part", first, seeds, 1);
    let (once, again) = (start(0, 30), start(0, 30));
    let (once, again) = (end(once, 30), end(again, 30));
    assert_eq!(once, again);
    for seed in [7, 29] {
        assert_eq!(end(start(seed, 1), 1)[0], once[seed as usize]);
    }
    assert_ne!(once[1][5], once[2][5], "another seed is another history");
}

#[cfg(tokio_unstable)]
#[test]
fn the_same_seed_is_the_same_partition() {
    let start = || start("part_of_partitions", 0, 6, 1);
    let (once, again) = (start(), start());
    assert_eq!(end(once, 6), end(again, 6));
}
