//! The long run of the disconnects: 10,000 clients that leave (or as many as the first argument says; the second is the
//! seed, the third how many at a time). Ends with 1 if one was heard of late, or left something behind.

#![expect(clippy::print_stdout, reason = "a program for the terminal")]

use std::{process::ExitCode, time::Duration};

use forebay_tests::{Cluster, Disconnects, quantile};

const ROUNDS: usize = 10_000;
/// Fewer a second would be a machine too busy to measure on.
const FLOOR: f64 = 20.0;

#[tokio::main]
async fn main() -> ExitCode {
    let mut asked = std::env::args().skip(1).map(|text| text.parse().ok());
    let mut next = || asked.next().flatten();
    let run = Disconnects {
        rounds: next().unwrap_or(ROUNDS),
        seed: next().unwrap_or(1) as u64,
        lanes: next().unwrap_or(8),
    };
    let (cluster, worker) = Cluster::with_worker().await;
    let seen = run.run(&cluster, &worker).await;
    println!("| leaves | how | clients | p50 | p99 | longest |\n|---|---|---|---|---|---|");
    let millis = |time: Duration| format!("{:.1} ms", time.as_secs_f64() * 1e3);
    let row = |moment: String, way: String, all: &[Duration]| {
        let [p50, p99, longest] = [0.5, 0.99, 1.0].map(|share| millis(quantile(all, share)));
        let clients = all.len();
        println!("| {moment} | {way} | {clients} | {p50} | {p99} | {longest} |");
    };
    for ((moment, way), delays) in &seen.delays {
        row(format!("{moment:?}"), format!("{way:?}"), delays);
    }
    let all = seen.all();
    row("all".to_owned(), String::new(), &all);
    let rate = all.len() as f64 / seen.took.as_secs_f64();
    println!(
        "\nseed {}, {} at a time, {rate:.0} a second; counted as 499: {} (of them {} streams, with {} events); \
         gone upstream although they had left the line: {}; left over: {} tasks, {} slots, {} connections; failed: {}",
        run.seed,
        run.lanes,
        seen.counted,
        seen.streams_left,
        seen.events,
        seen.strays,
        seen.leaked_tasks,
        seen.leaked_slots,
        seen.leaked_connections,
        seen.failures.len()
    );
    seen.failures
        .iter()
        .take(20)
        .for_each(|text| println!("{text}"));
    let late = quantile(&all, 0.99) > Duration::from_millis(200)
        || quantile(&all, 1.0) > Duration::from_secs(1);
    let left = seen.leaked_tasks as u64 + seen.leaked_slots + seen.leaked_connections;
    // The holders of the lines leave, too.
    let miscounted = seen.counted != (all.len() + run.lanes) as u64;
    let bad = late || left > 0 || miscounted || seen.strays > 0 || !seen.failures.is_empty();
    match (bad, rate < FLOOR) {
        (false, false) => ExitCode::SUCCESS,
        (false, true) => {
            println!("too slow to say anything");
            ExitCode::FAILURE
        }
        (true, _) => ExitCode::FAILURE,
    }
}
