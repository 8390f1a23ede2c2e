//! Two control planes on three members of a real etcd, which get one fault after the other: as many runs as the first
//! argument says (100), each with a fault of as many seconds as the second says (3). What clients saw is judged after
//! each run. Ends with 1 if a write that was acknowledged is lost, the history explains an answer badly, no write was
//! acknowledged for more than 5 s, or the worker failed a request.

#![expect(clippy::print_stdout, reason = "a program for the terminal")]

use std::{collections::BTreeMap, process::ExitCode, time::Duration};

use forebay_tests::{Fault, Stand, Weather};

/// Longest time without an acknowledged write.
const GAP: Duration = Duration::from_secs(5);
/// A run in which less was written proves nothing.
const LEAST: usize = 50;

#[tokio::main]
async fn main() -> ExitCode {
    let mut args = std::env::args().skip(1);
    let mut number = |usual| {
        args.next()
            .and_then(|text| text.parse().ok())
            .unwrap_or(usual)
    };
    let (runs, lasts) = (number(100), Duration::from_secs(number(3)));
    let mut stand = Stand::start(2).await;
    let (mut good, mut all) = (true, BTreeMap::<&str, Vec<Weather>>::new());
    for n in 0..runs {
        let index = usize::try_from(n).unwrap_or(0) % Fault::ALL.len();
        let Some(fault) = Fault::ALL.get(index).copied() else {
            continue;
        };
        let seen = stand.run(fault, lasts).await;
        println!(
            "{n:3} {:18} {:5} acknowledged, {} unknown, gap {:.2} s, longest {:.2} s, {:4} reads, {:5} requests, {} failed",
            fault.name(),
            seen.acknowledged,
            seen.unknown,
            seen.gap.as_secs_f64(),
            seen.longest.as_secs_f64(),
            seen.reads,
            seen.requests,
            seen.failed.len()
        );
        for what in seen.wrong.iter().chain(&seen.failed).take(10) {
            println!("    {what}");
        }
        good &= seen.wrong.is_empty() && seen.failed.is_empty();
        good &= seen.gap <= GAP && seen.acknowledged >= LEAST;
        all.entry(fault.name()).or_default().push(seen);
    }
    println!(
        "\n| fault | runs | writes acknowledged | without an answer | lost, doubled or out of order | gap p50 | gap max | longest write | reads | requests served | failed |"
    );
    println!("|---|---|---|---|---|---|---|---|---|---|---|");
    for (name, seen) in &all {
        row(name, seen);
    }
    let every: Vec<_> = all.into_values().flatten().collect();
    row("all", &every);
    match good {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    }
}

fn row(name: &str, seen: &[Weather]) {
    let sum = |of: fn(&Weather) -> usize| seen.iter().map(of).sum::<usize>();
    let mut gaps: Vec<_> = seen
        .iter()
        .map(|weather| weather.gap.as_secs_f64())
        .collect();
    gaps.sort_by(f64::total_cmp);
    let middle = gaps.get(gaps.len() / 2).copied().unwrap_or_default();
    let most = gaps.last().copied().unwrap_or_default();
    let longest = seen
        .iter()
        .map(|weather| weather.longest)
        .max()
        .unwrap_or_default();
    println!(
        "| {name} | {} | {} | {} | {} | {middle:.2} s | {most:.2} s | {:.2} s | {} | {} | {} |",
        seen.len(),
        sum(|weather| weather.acknowledged),
        sum(|weather| weather.unknown),
        sum(|weather| weather.wrong.len()),
        longest.as_secs_f64(),
        sum(|weather| weather.reads),
        seen.iter().map(|weather| weather.requests).sum::<u64>(),
        sum(|weather| weather.failed.len())
    );
}
