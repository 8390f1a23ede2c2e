//! Around the streams: which control plane is followed, and when the worker goes to another one.
//!
//! It goes when its stream ends, whatever the reason; when the address that it is connected to is no longer one of its
//! name's, some time after that was told; and, now and then, when it looked at another one and that has fewer workers.
//! A changed list moves nobody who is well. Who chooses is pure (`chooser.rs`); here are the clocks, the names and the
//! looks. The lock of the chooser is never held over an await.

use std::{convert::Infallible, sync::Arc, time::Duration};

use forebay_proto::Position;
use parking_lot::Mutex;
use tokio::{
    sync::watch,
    task::JoinSet,
    time::{Instant, sleep, sleep_until, timeout_at},
};
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;

use super::{
    ConfigClient, ConfigStatus, Controls,
    chooser::{Chooser, Left, Replica},
    ended::Ended,
    line::Line,
    look::look,
    names::{Listed, Names},
    session::Session,
};
use crate::{config_client::backoff::Class, live::LiveCell, resolve::Resolver};

/// How long the first connect waits for the addresses of names: after that the names themselves are connected to.
const FIRST_ANSWERS: Duration = Duration::from_secs(2);
/// Within this after its address was taken from the list a worker goes; drawn, so that not all go at once.
const AWAY_WITHIN: Duration = Duration::from_secs(20);

/// What streams share with what goes on around them.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) chooser: Mutex<Chooser>,
    pub(super) line: Line,
    /// The connection to the control plane that is followed.
    pub(super) channel: Mutex<Option<Channel>>,
    resolver: Option<Arc<Resolver>>,
    look_every: Option<Duration>,
}

impl Shared {
    pub(super) fn new(controls: Controls) -> Self {
        Self {
            chooser: Mutex::new(Chooser::new(controls.urls, fastrand::Rng::new())),
            line: Line::default(),
            channel: Mutex::default(),
            resolver: controls.resolver,
            look_every: controls.look_every,
        }
    }

    fn names(&self) -> Names {
        match &self.resolver {
            Some(resolver) => Names::follow(resolver, self.chooser.lock().names()),
            None => Names::nobody(),
        }
    }

    fn list(&self, listed: &Listed) {
        let mut chooser = self.chooser.lock();
        chooser.list(Instant::now(), listed.source, &listed.addresses);
    }

    /// When to look next: anywhere between half of the time and one and a half of it.
    fn look_at(&self) -> Option<Instant> {
        let every = self.look_every?;
        Some(Instant::now() + every.mul_f64(0.5 + fastrand::f64()))
    }

    /// Whether another one has so much less to do that this worker is one of those that go there.
    async fn goes(&self, own: &Replica, held: Option<Position>) -> bool {
        let Some(channel) = self.channel.lock().clone() else {
            return false;
        };
        let other = self.chooser.lock().another(Instant::now(), own);
        let Some(other) = other else { return false };
        let seen = look(&self.line, channel, &other, held.as_ref()).await;
        let mut chooser = self.chooser.lock();
        match seen {
            Ok(seen) => {
                chooser.sees(seen.is_some());
                seen.is_some_and(|seen| chooser.goes(seen.own, seen.other, &other))
            }
            Err(()) => {
                tracing::debug!(control = %other, "cannot be looked at");
                chooser.unseen(Instant::now(), &other);
                false
            }
        }
    }
}

impl ConfigClient {
    /// Follows until told to stop.
    pub async fn run(mut self, shutdown: CancellationToken) {
        let mut keeper = JoinSet::new();
        if let Some(keep) = self.keeper.take() {
            keeper.spawn(keep.run());
        }
        self.roam(&shutdown).await;
        // Who comes next begins with what is on disk.
        self.keys.save().await;
        // Its end is the keeper's.
        drop(self.marks.take());
        while let Some(ended) = keeper.join_next().await {
            if let Err(error) = ended {
                tracing::error!(%error, "the last-known-good keeper failed");
            }
        }
    }

    async fn roam(&mut self, shutdown: &CancellationToken) {
        let shared = self.shared.clone();
        let mut names = shared.names();
        tokio::select! {
            () = first_answers(&shared, &mut names) => {}
            () = shutdown.cancelled() => return,
        }
        loop {
            let next = shared.chooser.lock().next(Instant::now());
            let Some(replica) = next else { return };
            let began = Instant::now();
            let ended = self.follow_one(&replica, &mut names, shutdown).await;
            drop(shared.channel.lock().take());
            self.status.disconnected();
            if shutdown.is_cancelled() {
                return;
            }
            let (now, left) = (Instant::now(), ended.left());
            let lived = now - began;
            let pause = shared.chooser.lock().left(now, &replica, (lived, left));
            self.status
                .left((left, ended.loses_place()), &ended.to_string());
            self.metrics.control.ended(left);
            tell(&replica, left, &ended, pause);
            tokio::select! {
                () = sleep(pause) => {}
                () = shutdown.cancelled() => return,
            }
        }
    }

    /// Follows one of them to the end of the stream.
    async fn follow_one(
        &mut self,
        replica: &Replica,
        names: &mut Names,
        shutdown: &CancellationToken,
    ) -> Ended {
        let (shared, live, status) = (self.shared.clone(), self.live.clone(), self.status.clone());
        let (leave, leaving) = watch::channel(None);
        tokio::select! {
            ended = Session::follow(self, replica, leaving, shutdown) => ended,
            never = watch_others((&shared, &live, &status), replica, names, &leave) => match never {},
        }
    }
}

/// Looks around while a stream lives, and has it end when it is time to go elsewhere.
async fn watch_others(
    (shared, live, status): (&Shared, &LiveCell, &ConfigStatus),
    replica: &Replica,
    names: &mut Names,
    leave: &watch::Sender<Option<Left>>,
) -> Infallible {
    let (mut away, mut look_at) = (None, shared.look_at());
    loop {
        tokio::select! {
            listed = names.next() => {
                shared.list(&listed);
                away = match (shared.chooser.lock().has(replica), away) {
                    (true, _) => None,
                    (false, Some(at)) => Some(at),
                    (false, None) => Some(Instant::now() + AWAY_WITHIN.mul_f64(fastrand::f64())),
                };
            }
            () = at(away) => {
                away = None;
                leave.send_replace(Some(Left::Unlisted));
            }
            () = at(look_at) => {
                look_at = shared.look_at();
                let held = live.load().position.clone();
                // One that ends stays to its end.
                if !status.is_stopping() && shared.goes(replica, held).await {
                    leave.send_replace(Some(Left::Balance));
                }
            }
        }
    }
}

/// Waits a little for the addresses of all names.
async fn first_answers(shared: &Shared, names: &mut Names) {
    let deadline = Instant::now() + FIRST_ANSWERS;
    for _ in 0..names.count() {
        match timeout_at(deadline, names.next()).await {
            Ok(listed) => shared.list(&listed),
            Err(_) => return,
        }
    }
}

async fn at(when: Option<Instant>) {
    match when {
        Some(when) => sleep_until(when).await,
        None => std::future::pending().await,
    }
}

fn tell(replica: &Replica, left: Left, ended: &Ended, pause: Duration) {
    let because = left.word();
    match (left, left.class()) {
        (_, Class::Told) => tracing::info!(
            control = %replica, because, reason = %ended, ?pause, "stream ended in good order, serving on"
        ),
        (Left::Twin | Left::Foreign, _) => tracing::error!(
            control = %replica, because, reason = %ended, ?pause, "not let in, or not to be followed, serving on"
        ),
        _ => tracing::warn!(
            control = %replica, because, reason = %ended, ?pause, "control plane lost, serving on"
        ),
    }
}
