//! What workers that read nothing cost: writes at a steady rate without them and with them, in pairs, the order of
//! which alternates. Looked at are the pushes to the healthy workers, and the control plane's memory.

use std::{collections::HashMap, time::Duration};

use forebay_proto::wire;
use forebay_tests::{Stalled, eventually};
use tokio::{
    task::JoinSet,
    time::{Instant, MissedTickBehavior, interval, sleep},
};

use super::{Args, Bench, SETTLE, memory_kib, update};

/// Writers, and how long each takes for a write at least: 1,000 writes in a second.
const WRITERS: usize = 8;
const EVERY: Duration = Duration::from_millis(8);

struct Storm {
    /// From the sending of a write to the arrival of the push that made it known to a worker.
    p50: Duration,
    p99: Duration,
    pushes: usize,
    rate: f64,
    kib: u64,
}

impl Bench {
    /// As many pairs as are asked for, and their medians.
    pub(super) async fn stall_pairs(&mut self, args: &Args, url: &str) {
        // The first one grows what all need.
        self.storm_of_writes(args).await;
        let (mut ratios, mut costs) = (Vec::new(), Vec::new());
        for pair in 0..args.stall_pairs {
            let (without, with) = if pair % 2 == 0 {
                let without = self.storm_of_writes(args).await;
                (without, self.stalled_storm(args, url).await)
            } else {
                let with = self.stalled_storm(args, url).await;
                (self.storm_of_writes(args).await, with)
            };
            let ratio = with.p99.as_secs_f64() / without.p99.as_secs_f64();
            let cost = (with.kib as f64 - without.kib as f64) / args.stalled as f64;
            for (name, storm) in [("without", &without), ("with", &with)] {
                println!(
                    "{name}: {} pushes, p50 {:.1?}, p99 {:.1?}; {:.0} writes in a second; {} KiB",
                    storm.pushes, storm.p50, storm.p99, storm.rate, storm.kib
                );
            }
            println!(
                "pair {pair}: p99 with / without {ratio:.2}; {cost:.1} KiB for each stalled worker"
            );
            ratios.push(ratio);
            costs.push(cost);
        }
        println!(
            "{} workers, {} stalled beside them, {} writes: p99 with / without {:.2}, {:.1} KiB for each stalled \
             worker (medians of {} pairs)",
            args.workers,
            args.stalled,
            args.writes,
            median(&mut ratios),
            median(&mut costs),
            args.stall_pairs
        );
    }

    async fn stalled_storm(&mut self, args: &Args, url: &str) -> Storm {
        let stalled = Stalled::open(url, args.stalled).await;
        sleep(SETTLE).await;
        let storm = self.storm_of_writes(args).await;
        let rollout = self.rollout().await;
        println!(
            "{} workers read nothing and opened {} streams; {} workers have answered the newest push, {} have not",
            stalled.len(),
            stalled.opened(),
            rollout.applied,
            rollout.pending
        );
        assert_eq!(
            rollout.applied as usize, args.workers,
            "none of them answers"
        );
        // A frozen one may just be cut off, and not back yet; a deaf one is there all the time.
        assert!(
            rollout.pending as usize >= args.stalled / 2,
            "they are connected"
        );
        drop(stalled);
        sleep(SETTLE).await;
        storm
    }

    async fn rollout(&self) -> wire::Rollout {
        let mut fleet = self.fleet_client.clone();
        let rollout = fleet.get_rollout(wire::GetRolloutRequest::default()).await;
        rollout.expect("a rollout").into_inner()
    }

    async fn storm_of_writes(&mut self, args: &Args) -> Storm {
        self.fleet.note_arrivals();
        let began = Instant::now();
        let mut writing = JoinSet::new();
        // A write of what is there already would be none.
        self.written += args.writes;
        let first = self.written;
        for writer in 0..WRITERS {
            let (mut registry, models) = (self.registry.clone(), args.models.max(1));
            let writes = (writer..args.writes).step_by(WRITERS);
            writing.spawn(async move {
                let mut turn = interval(EVERY);
                turn.set_missed_tick_behavior(MissedTickBehavior::Delay);
                let mut sent = Vec::new();
                for write in writes {
                    turn.tick().await;
                    let at = Instant::now();
                    let model = registry
                        .update_model(update(write % models, first + write))
                        .await;
                    sent.push((model.expect("the write is made").into_inner().revision, at));
                }
                sent
            });
        }
        let sent: HashMap<_, _> = writing.join_all().await.into_iter().flatten().collect();
        let rate = args.writes as f64 / began.elapsed().as_secs_f64();
        self.revision = sent.keys().copied().max().unwrap_or(self.revision);
        eventually("all healthy workers hold the newest", async || {
            self.fleet.holds(self.revision).then_some(())
        })
        .await;
        let arrivals = self.fleet.arrivals();
        let took = arrivals.iter().filter_map(|(revision, at)| {
            let sent = sent.get(revision)?;
            Some(*at - *sent)
        });
        let mut took: Vec<_> = took.collect();
        assert!(!took.is_empty(), "writes are pushed");
        took.sort();
        let at = |share: f64| {
            let place = took.len().saturating_sub(1) as f64 * share;
            took.get(place.round() as usize)
                .copied()
                .unwrap_or_default()
        };
        Storm {
            p50: at(0.5),
            p99: at(0.99),
            pushes: took.len(),
            rate,
            kib: memory_kib(self.pid),
        }
    }
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}
