//! Waiting for a fact instead of for a time.

use std::time::Duration;

use tokio::time::{Instant, sleep};

const PATIENCE: Duration = Duration::from_secs(20);
const EVERY: Duration = Duration::from_millis(10);

/// Waits until there is an answer; panics, naming what it waited for, after 20 s and at least ten looks.
pub async fn eventually<T>(what: &str, ask: impl AsyncFnMut() -> Option<T>) -> T {
    eventually_within(PATIENCE, what, ask).await
}

/// The same with another patience.
pub async fn eventually_within<T>(
    patience: Duration,
    what: &str,
    mut ask: impl AsyncFnMut() -> Option<T>,
) -> T {
    // A machine that stands still for a while uses up no more than a part of the patience.
    let most = (patience / 10).max(2 * EVERY);
    let mut spent = Duration::ZERO;
    loop {
        let round = Instant::now();
        if let Some(answer) = ask().await {
            return answer;
        }
        assert!(spent < patience, "not within {patience:?}: {what}");
        sleep(EVERY).await;
        spent += round.elapsed().min(most);
    }
}
