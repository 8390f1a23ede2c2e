//! `kill -9` of a control plane under load, at random and at each crash point of a commit and of an export:
//! nothing acknowledged is lost, nothing is there that was not asked for, a repeated request gets its first
//! answer, the revision never goes back, the epoch stays.

use std::{
    path::Path,
    sync::{Arc, atomic::AtomicU64},
    time::Duration,
};

use tokio::time::sleep;

use crate::{
    alone, count,
    ledger::Ledger,
    plane::{Plane, spawn},
    writers::Writers,
};

const KILLS: u64 = 24;
const KILLS_VARIABLE: &str = "FOREBAY_TEST_REGISTRY_KILLS";
/// Fewer acknowledged writes in a second are no load. A run of few kills is one among other tests, on a machine and a disk
/// that may be busy with them; there only their number counts, for each kill.
const LEAST_RATE: f64 = 200.0;
const LEAST_WRITES: u64 = 10;
const FEW_KILLS: u64 = 100;
/// How long a crash point is waited for.
const PATIENCE: Duration = Duration::from_secs(120);
/// The points of a commit, and those of an export, which is made at most twice a second.
const OF_COMMIT: [&str; 4] = ["planned", "written", "flushed", "synced"];
const OF_EXPORT: [&str; 4] = [
    "export-half",
    "export-synced",
    "export-rotated",
    "export-placed",
];

/// How a control plane ends.
#[derive(Debug, Clone, Copy)]
enum End {
    After(Duration),
    At(&'static str, u64),
}

impl End {
    /// Every second one at random; the others at each point in turn.
    fn of(kill: u64) -> Self {
        let turn = usize::try_from(kill / 2 % 8).unwrap();
        match (kill % 2, OF_COMMIT.get(turn)) {
            (0, _) => Self::After(Duration::from_millis(fastrand::u64(20..900))),
            (_, Some(point)) => Self::At(point, fastrand::u64(1..=100)),
            (_, None) => Self::At(OF_EXPORT[turn - OF_COMMIT.len()], fastrand::u64(1..=3)),
        }
    }
}

#[derive(Default)]
struct Seen {
    writing: Duration,
    restarts: Vec<Duration>,
    at_points: u64,
    at_starts: u64,
}

/// A control plane that is killed again and again, and those who write to it.
struct Killed<'a> {
    data: &'a Path,
    omitted: Option<&'a str>,
    ledger: Ledger,
    numbers: Arc<AtomicU64>,
    seen: Seen,
}

impl Killed<'_> {
    /// Starts it, looks at what is there, writes, and kills it. Gives what is wrong.
    async fn round(&mut self, end: End) -> Vec<String> {
        let asked = match end {
            End::At(point, pass) => format!("{point}:{pass}"),
            End::After(_) => String::new(),
        };
        let mut env = vec![("FOREBAY_TEST_CRASH", asked.as_str())];
        env.extend(self.omitted.map(|step| ("FOREBAY_TEST_OMIT", step)));
        // Looking writes as well, and may reach the point: that is the kill then.
        let looked = Plane::start(self.data, &env[1..]).await;
        self.seen.restarts.push(looked.took);
        let wrong = self.ledger.check(&looked).await;
        if !wrong.is_empty() {
            return wrong;
        }
        let mut plane = match end {
            End::After(_) => looked,
            End::At(..) => {
                looked.process.kill().await;
                Plane::start(self.data, &env).await
            }
        };
        let writers = Writers::start(&plane, self.ledger.models(), &self.numbers, None);
        match end {
            End::After(time) => {
                sleep(time).await;
                plane.process.kill().await;
            }
            End::At(point, _) => {
                let reached = plane.process.ends_within(PATIENCE).await;
                let writes = writers.acknowledged();
                assert!(reached, "{point} is never reached, after {writes} writes");
                self.seen.at_points += 1;
            }
        }
        let written = writers.end().await;
        let longest = written.iter().map(|one| one.took).max();
        self.seen.writing += longest.unwrap_or_default();
        self.ledger.take(written);
        Vec::new()
    }

    /// Kills it while it starts.
    async fn kill_a_start(&mut self) {
        let starting = spawn(self.data, &[]);
        sleep(Duration::from_millis(fastrand::u64(1..80))).await;
        starting.kill().await;
        self.seen.at_starts += 1;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_to_a_kill_under_load() {
    let _alone = alone().await;
    let kills = count(KILLS_VARIABLE, KILLS);
    let dir = tempfile::tempdir().unwrap();
    let mut killed = Killed {
        data: dir.path(),
        omitted: None,
        ledger: Ledger::default(),
        numbers: Arc::default(),
        seen: Seen::default(),
    };
    for kill in 0..kills {
        let wrong = killed.round(End::of(kill)).await;
        assert!(wrong.is_empty(), "before kill {kill}: {wrong:#?}");
        if kill % 8 == 0 {
            killed.kill_a_start().await;
        }
        if kill % 100 == 99 {
            println!("{} kills, {} writes", kill + 1, killed.ledger.acknowledged);
        }
    }
    let last = Plane::start(dir.path(), &[]).await;
    let wrong = killed.ledger.check(&last).await;
    assert!(wrong.is_empty(), "after the last kill: {wrong:#?}");
    let Seen {
        writing,
        mut restarts,
        at_points,
        at_starts,
    } = killed.seen;
    restarts.sort();
    let Ledger {
        acknowledged,
        made,
        not_made,
        ..
    } = killed.ledger;
    let rate = acknowledged as f64 / writing.as_secs_f64();
    println!(
        "{kills} kills under load, {at_points} of them at crash points, and {at_starts} at the start: {acknowledged} \
         writes acknowledged, {rate:.0} in a second; 0 lost, 0 that were not asked for; of those whose answer was \
         lost {made} were made, {not_made} were not; ready again after {:.0?} (median), {:.0?} at most",
        restarts[restarts.len() / 2],
        restarts[restarts.len() - 1],
    );
    assert_eq!(at_points, kills / 2);
    let few = kills < FEW_KILLS;
    assert!(few || rate >= LEAST_RATE, "{rate:.0} writes in a second");
    assert!(
        acknowledged >= LEAST_WRITES * kills,
        "{acknowledged} writes"
    );
    assert!(few || made.min(not_made) > 0, "{made}, {not_made}");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_flush_a_kill_is_noticed() {
    let _alone = alone().await;
    let dir = tempfile::tempdir().unwrap();
    let mut killed = Killed {
        data: dir.path(),
        omitted: Some("flush"),
        ledger: Ledger::default(),
        numbers: Arc::default(),
        seen: Seen::default(),
    };
    for kill in 0..40 {
        let wrong = killed.round(End::After(Duration::from_millis(300))).await;
        if wrong
            .iter()
            .any(|what| what.contains("lost") || what.contains("became"))
        {
            println!("noticed after {kill} kills: {}", wrong[0]);
            return;
        }
        assert_eq!(wrong, [""; 0]);
    }
    panic!("40 kills without the flush, and nothing was missing");
}
