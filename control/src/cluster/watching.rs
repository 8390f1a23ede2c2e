//! Says when it is time to look at something in etcd: when it changed, and every now and then anyway.
//!
//! Events only say that; what is there is read, at the newest. So nothing depends on having seen every event, and a
//! watch that was compacted, broken, frozen or never opened costs at most the time between two looks.

use std::{sync::Arc, time::Duration};

use futures_util::FutureExt as _;
use tokio::time::{Instant, sleep_until};

use crate::etcd::{Etcd, Watching};

/// Before a watch is opened anew, with jitter.
const PAUSE: Duration = Duration::from_millis(200);

/// When to look at all keys below a prefix.
#[derive(Debug)]
pub(crate) struct Looks {
    etcd: Arc<Etcd>,
    prefix: Vec<u8>,
    every: Duration,
    watch: Option<Watching>,
    /// When to look whether or not anything changed.
    due: Instant,
    /// When to open a watch, if there is none.
    open: Instant,
}

impl Looks {
    /// At changes, and this often.
    pub(crate) fn new(etcd: Arc<Etcd>, prefix: Vec<u8>, every: Duration) -> Self {
        let now = Instant::now();
        Self {
            etcd,
            prefix,
            every,
            watch: None,
            due: now,
            open: now,
        }
    }

    /// Waits until it is time to look: at once when a watch was just opened, then after each change.
    pub(crate) async fn next(&mut self) {
        loop {
            // What calls go to answers; what the watch is on may be frozen.
            let stale = self
                .watch
                .as_ref()
                .is_some_and(|watch| !self.etcd.is_current(watch));
            if stale {
                self.watch = None;
            }
            match &mut self.watch {
                None if self.open <= Instant::now() => {
                    self.open = Instant::now() + jittered(PAUSE);
                    match self.etcd.watch(&self.prefix).await {
                        Ok(watch) => {
                            self.watch = Some(watch);
                            break;
                        }
                        Err(error) => tracing::debug!(%error, "no watch, looking at intervals"),
                    }
                    if self.due <= Instant::now() {
                        break;
                    }
                }
                None => {
                    let until = self.open.min(self.due);
                    sleep_until(until).await;
                    if self.due <= Instant::now() {
                        break;
                    }
                }
                Some(watch) => tokio::select! {
                    goes_on = changed(watch) => match goes_on {
                        true => break,
                        false => self.watch = None,
                    },
                    () = sleep_until(self.due) => break,
                },
            }
        }
        self.due = Instant::now() + jittered(self.every);
    }
}

fn jittered(time: Duration) -> Duration {
    time.mul_f64(0.8 + 0.4 * fastrand::f64())
}

/// Waits for a change, and takes those that came with it; false if the watch is over.
async fn changed(watch: &mut Watching) -> bool {
    if watch.next().await.is_none() {
        return false;
    }
    while let Some(more) = watch.next().now_or_never() {
        if more.is_none() {
            return false;
        }
    }
    true
}
