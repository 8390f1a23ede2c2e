//! Follows the names of control planes: asks for their addresses at the start, and again whenever the answer is no longer
//! good. An answer that fails changes nothing. It must not choose.

use std::{net::IpAddr, sync::Arc, time::Duration};

use tokio::{
    sync::mpsc,
    task::JoinSet,
    time::{Instant, sleep_until},
};

use crate::resolve::Resolver;

/// After a failure it is asked again: the servers may be the last to come up.
const RETRY: Duration = Duration::from_secs(5);
/// Answers that wait to be looked at; they come one at a time.
const WAITING: usize = 16;

/// A name has these addresses now; none: it was not told.
#[derive(Debug)]
pub(super) struct Listed {
    pub(super) source: usize,
    pub(super) addresses: Vec<IpAddr>,
}

/// The tasks that follow; they end with it.
#[derive(Debug)]
pub(super) struct Names {
    listed: mpsc::Receiver<Listed>,
    following: JoinSet<()>,
}

impl Names {
    /// Follows these.
    pub(super) fn follow(resolver: &Arc<Resolver>, names: Vec<(usize, String)>) -> Self {
        let (say, listed) = mpsc::channel(WAITING);
        let mut following = JoinSet::new();
        for (source, name) in names {
            following.spawn(follow_one(resolver.clone(), source, name, say.clone()));
        }
        Self { listed, following }
    }

    /// Follows nothing.
    pub(super) fn nobody() -> Self {
        Self {
            listed: mpsc::channel(1).1,
            following: JoinSet::new(),
        }
    }

    /// How many are followed.
    pub(super) fn count(&self) -> usize {
        self.following.len()
    }

    /// The next answer. Never, if nothing is followed.
    pub(super) async fn next(&mut self) -> Listed {
        match self.listed.recv().await {
            Some(listed) => listed,
            None => std::future::pending().await,
        }
    }
}

async fn follow_one(
    resolver: Arc<Resolver>,
    source: usize,
    name: String,
    say: mpsc::Sender<Listed>,
) {
    let mut told = false;
    loop {
        let asked_at = Instant::now();
        let (addresses, hold) = match resolver.lookup(&name).await {
            Ok(found) => {
                told = false;
                (found.some().to_vec(), found.hold)
            }
            Err(error) => {
                if !std::mem::replace(&mut told, true) {
                    tracing::warn!(
                        control = name,
                        %error,
                        "the name of the control plane; going on with what was known of it"
                    );
                }
                (Vec::new(), RETRY)
            }
        };
        if say.send(Listed { source, addresses }).await.is_err() {
            return;
        }
        sleep_until(asked_at + hold).await;
    }
}
