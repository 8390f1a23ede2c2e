//! One way in which the network is bad, again and again: bad, written to meanwhile, well again, current.

use std::time::Duration;

use forebay_proto::wire::WorkerState;
use tokio::{
    task::LocalSet,
    time::{Instant, sleep, sleep_until},
};

use crate::{bed::Bed, case::Case, report::Report};

/// From one write to the next while the network is bad.
const WRITES: Duration = Duration::from_millis(500);
/// The moments at which it becomes bad and well again are drawn within this: what pings, pauses and timers are at
/// must not be the same each time.
const DRAWN: Duration = Duration::from_secs(3);
/// Nobody waits longer than this for a worker to be current.
const GIVE_UP: Duration = Duration::from_secs(60);
const LOOK: Duration = Duration::from_millis(10);
/// What was said into a network that was down arrives late, and may do harm then.
const LATER: Duration = Duration::from_secs(2);

/// What to do.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    pub(crate) runs: usize,
    pub(crate) lasts: Duration,
    pub(crate) workers: usize,
    pub(crate) rate: u32,
    pub(crate) binary: String,
}

/// All ways at the same time, each on hosts of its own. True if everything was as it must be.
pub(crate) async fn all(plan: Plan, mut cases: Vec<Case>) -> bool {
    if cases.is_empty() {
        cases = <Case as clap::ValueEnum>::value_variants().to_vec();
    }
    let local = LocalSet::new();
    let running: Vec<_> = cases
        .into_iter()
        .map(|case| local.spawn_local(one(plan.clone(), case)))
        .collect();
    let reports = local.run_until(futures_util::future::join_all(running));
    let mut good = true;
    println!("{}", Report::HEAD);
    for report in reports.await {
        let report = report.expect("a case runs to its end");
        println!("{}", report.row());
        for wrong in report.wrong() {
            good = false;
            println!("wrong: {wrong}");
        }
    }
    good
}

async fn one(plan: Plan, case: Case) -> Report {
    let mut bed = Bed::set_up(&plan.binary, plan.workers, plan.rate).await;
    let mut report = Report::new(case);
    let streams = bed.streams();
    for run in 0..plan.runs {
        sleep(drawn()).await;
        let revision = bad(&mut bed, &mut report, case, plan.lasts).await;
        well(&mut bed, &mut report, revision).await;
        if plan.runs > 1 {
            println!("{}: {} of {}", case.name(), run + 1, plan.runs);
        }
    }
    report.streams = bed.streams() - streams;
    (report.served, report.dropped) = bed.end().await;
    report
}

fn drawn() -> Duration {
    DRAWN.mul_f64(fastrand::f64())
}

/// The network is bad, and the control plane is written to. Gives the last revision.
async fn bad(bed: &mut Bed, report: &mut Report, case: Case, lasts: Duration) -> u64 {
    let began = Instant::now();
    let until = began + lasts + drawn();
    bed.workers
        .iter()
        .for_each(|worker| case.befall(&worker.wire));
    let (mut noticed, mut newest) = (None, 0);
    for number in 0_u64.. {
        match bed.write(number).await {
            Some((revision, took)) => {
                newest = revision;
                report.writes.push(took);
            }
            None => report.failed_writes += 1,
        }
        if noticed.is_none() && case.breaks_streams() {
            let known = bed.known().await;
            let gone = |state: i32| state == WorkerState::Gone as i32;
            let all = known.iter().all(|worker| gone(worker.state));
            noticed = all.then(|| began.elapsed());
        }
        // The last write is as late as can be.
        if Instant::now() >= until {
            break;
        }
        sleep_until((Instant::now() + WRITES).min(until)).await;
    }
    report.noticed.extend(noticed);
    report.unnoticed += usize::from(noticed.is_none() && case.breaks_streams());
    newest
}

/// It is well again: when is everybody current? And are the streams there to stay: when is everybody current after
/// another write, some seconds later?
async fn well(bed: &mut Bed, report: &mut Report, revision: u64) {
    let healed = Instant::now();
    bed.workers.iter().for_each(|worker| worker.wire.heal());
    current(bed, report, (revision, healed)).await;
    sleep(LATER).await;
    let written = Instant::now();
    match bed.write(u64::from(fastrand::u8(..))).await {
        Some((revision, _)) => {
            current(bed, report, (revision, written)).await;
            bed.is_complete(revision).await;
        }
        None => report.failed_writes += 1,
    }
}

async fn current(bed: &Bed, report: &mut Report, (revision, from): (u64, Instant)) {
    for worker in &bed.workers {
        let current = loop {
            if let Some(since) = worker.runs(revision) {
                break Some(since.saturating_duration_since(from));
            }
            if from.elapsed() > GIVE_UP {
                break None;
            }
            sleep(LOOK).await;
        };
        match current {
            Some(took) => report.current.push(took),
            None => report.never_current += 1,
        }
    }
}
