//! Clients leave, in every way and at every moment: the upstream hears of it, and nothing is left behind. At length:
//! `cargo run -p forebay-tests --bin disconnects`.

use std::time::Duration;

use forebay_tests::{Cluster, Disconnects, quantile, variants};

#[tokio::test(flavor = "multi_thread")]
async fn whoever_leaves_is_heard_of_and_leaves_nothing() {
    let (cluster, worker) = Cluster::with_worker().await;
    let run = Disconnects {
        rounds: 200,
        lanes: 4,
        seed: 7,
    };
    let seen = run.run(&cluster, &worker).await;
    assert_eq!(seen.failures, Vec::<String>::new());
    assert_eq!(seen.delays.len(), variants().len(), "all of them");
    let all = seen.all();
    assert_eq!(all.len(), run.rounds);
    assert_eq!(seen.strays, 0, "who left the line never went upstream");
    assert_eq!(seen.counted, (run.rounds + run.lanes) as u64, "each once");
    let streams = seen
        .delays
        .iter()
        .filter(|((moment, _), _)| *moment == forebay_tests::Moment::MidStream);
    let streams: usize = streams.map(|(_, delays)| delays.len()).sum();
    assert_eq!(seen.streams_left, (streams + run.lanes) as u64);
    assert!(
        seen.events >= streams as u64,
        "events seen: {}",
        seen.events
    );
    assert_eq!(
        (
            seen.leaked_tasks,
            seen.leaked_slots,
            seen.leaked_connections
        ),
        (0, 0, 0)
    );
    // The machine that tests run on is busy: figures are the long run's to give.
    let late = quantile(&all, 0.9);
    assert!(late < Duration::from_millis(500), "{late:?}");
}
