//! For what is about real time and nothing else: limits of some hundred milliseconds, idle connections. A machine that
//! stands still fails such a test without a word about the product; here it plays once more, and only then.
//!
//! A failure on a machine that did not stand still stays one. What can wait for a fact must (`eventually`).

use std::{
    future::Future,
    panic::{AssertUnwindSafe, resume_unwind},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use futures_util::FutureExt as _;
use tokio::time::Instant;

/// How often it is played at most.
const TURNS: u32 = 5;
const TICK: Duration = Duration::from_millis(5);

/// Plays until it passes; at most five times, and a second time only if the machine stood still for more than `most` while
/// it failed.
///
/// # Panics
/// As `play` does.
pub async fn calmly<F>(most: Duration, play: impl Fn() -> F)
where
    F: Future<Output = ()>,
{
    for turn in 1..=TURNS {
        let watch = Watch::start();
        let ended = AssertUnwindSafe(play()).catch_unwind().await;
        let stood = watch.stop();
        let Err(panic) = ended else { return };
        if turn == TURNS || stood <= most {
            resume_unwind(panic);
        }
        #[expect(clippy::print_stdout, reason = "told beside the test's own words")]
        {
            println!("again: the machine stood still for {stood:?} while it failed");
        }
    }
}

/// A thread that sees how late it is woken. It is none of the runtime's, which may have its own reasons to be late.
struct Watch {
    over: Arc<AtomicBool>,
    worst: Arc<AtomicU64>,
    thread: JoinHandle<()>,
}

impl Watch {
    fn start() -> Self {
        let (over, worst) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
        let thread = std::thread::spawn({
            let (over, worst) = (over.clone(), worst.clone());
            move || watch(&over, &worst)
        });
        Self {
            over,
            worst,
            thread,
        }
    }

    /// The longest time for which nothing ran.
    fn stop(self) -> Duration {
        self.over.store(true, Ordering::Relaxed);
        self.thread.join().expect("the watch ends well");
        Duration::from_micros(self.worst.load(Ordering::Relaxed))
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "it blocks a thread of its own, to see when that is woken"
)]
fn watch(over: &AtomicBool, worst: &AtomicU64) {
    while !over.load(Ordering::Relaxed) {
        let began = Instant::now();
        std::thread::sleep(TICK);
        let late = began.elapsed().saturating_sub(TICK);
        worst.fetch_max(
            u64::try_from(late.as_micros()).unwrap_or(u64::MAX),
            Ordering::Relaxed,
        );
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU32;

    use tokio::task::JoinSet;

    use super::*;

    /// Fails the first so many times, and gives how often it was played.
    async fn played(most: Duration, fails: u32) -> (bool, u32) {
        let turns = Arc::new(AtomicU32::new(0));
        let mut all = JoinSet::new();
        let counted = turns.clone();
        all.spawn(async move {
            calmly(most, || {
                let turns = counted.clone();
                async move {
                    tokio::time::sleep(4 * TICK).await;
                    assert!(turns.fetch_add(1, Ordering::Relaxed) >= fails);
                }
            })
            .await;
        });
        let passed = all.join_next().await.unwrap().is_ok();
        (passed, turns.load(Ordering::Relaxed))
    }

    #[tokio::test]
    async fn only_a_failure_while_the_machine_stood_still_is_played_again() {
        // On any machine it is calm with this limit, and on none with the other one: no thread is woken at the very moment.
        let (calm, still) = (Duration::from_secs(3_600), Duration::ZERO);
        assert_eq!(played(calm, 0).await, (true, 1));
        assert_eq!(played(calm, 1).await, (false, 1));
        assert_eq!(played(still, 2).await, (true, 3));
        assert_eq!(played(still, u32::MAX).await, (false, TURNS));
    }
}
