//! How long ago this replica knew that it had everything that was written. No more than that: it decides nothing.

use std::{fmt, time::Duration};

use parking_lot::Mutex;
use tokio::{sync::watch, time::Instant};

/// Below this it is in touch: so often it asks.
const USUAL: Duration = Duration::from_secs(3);

/// Since when, and why not since.
#[derive(Debug)]
pub(crate) struct Lag {
    inner: Mutex<(Instant, Option<String>)>,
    /// Whether it was in step when that was looked at last.
    hears: watch::Sender<bool>,
}

impl Default for Lag {
    fn default() -> Self {
        Self {
            inner: Mutex::new((Instant::now(), None)),
            hears: watch::Sender::new(true),
        }
    }
}

impl Lag {
    /// At this moment it has everything.
    pub(crate) fn in_step(&self) {
        self.hears(true);
        let was = std::mem::replace(&mut *self.inner.lock(), (Instant::now(), None));
        if was.1.is_some() {
            tracing::info!(seconds = was.0.elapsed().as_secs(), "etcd answers again");
        }
    }

    /// It cannot know.
    pub(crate) fn away(&self, why: String) {
        self.hears(false);
        let mut inner = self.inner.lock();
        // Once per absence: it is asked every second.
        if inner.1.replace(why.clone()).is_none() {
            drop(inner);
            tracing::warn!(
                why,
                "etcd does not answer; reads and streams go on, writes are refused"
            );
        }
    }

    fn hears(&self, now: bool) {
        self.hears
            .send_if_modified(|hears| std::mem::replace(hears, now) != now);
    }

    /// Tells whether it is in step, as that changes.
    pub(crate) fn watch(&self) -> watch::Receiver<bool> {
        self.hears.subscribe()
    }

    /// How long ago.
    pub(crate) fn elapsed(&self) -> Duration {
        self.inner.lock().0.elapsed()
    }
}

impl fmt::Display for Lag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (since, why) = self.inner.lock().clone();
        match (since.elapsed(), why) {
            (elapsed, Some(why)) if elapsed > USUAL => writeln!(
                f,
                "etcd has not answered for {} s ({why}); reads and streams go on, writes are refused until it does",
                elapsed.as_secs()
            ),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn it_says_what_is_wrong_when_it_lasts() {
        let lag = Lag::default();
        lag.away("no route".to_owned());
        assert_eq!(lag.to_string(), "");
        tokio::time::advance(Duration::from_secs(9)).await;
        lag.away("no route".to_owned());
        let text = lag.to_string();
        assert!(
            text.contains("for 9 s (no route)") && text.contains("writes are refused"),
            "{text}"
        );
        lag.in_step();
        assert_eq!(
            (lag.to_string().as_str(), lag.elapsed()),
            ("", Duration::ZERO)
        );
    }
}
