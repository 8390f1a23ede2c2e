//! A worker that runs: in which order its parts begin, and in which they end (`ending.rs` has the stages).

use std::{
    os::fd::{AsFd as _, OwnedFd},
    sync::Arc,
    time::Duration,
};

use forebay_proto::ModelId;
use tokio::{
    net::TcpListener,
    sync::mpsc,
    task::JoinSet,
    time::{Instant, interval, sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    app::{BoundWorker, Parts, Place, WorkerError},
    config_client::{ConfigStatus, follow},
    ending::{Ending, Stage},
    handover::{CONFIGURED_WITHIN, HandoverError, Lines, Offer, Resting, adopt, ready},
    leases::Leases,
    live::LiveCell,
    metrics::Metrics,
    pool::SWEEP,
};

/// How long the connections' tasks may take to end after the last request did.
const LAST_TASKS: Duration = Duration::from_secs(2);
/// How long a process that takes over waits for its pools to be warm.
const WARM_WITHIN: Duration = Duration::from_secs(5);
/// How often it looks whether a configuration is in force.
const LOOK_EVERY: Duration = Duration::from_millis(10);
/// Connections that were taken over and not looked at yet.
const ADOPTED: usize = 64;

impl BoundWorker {
    /// Serves until told to stop, by the token or by the control plane, or until another process has taken over; then
    /// lets requests in flight finish and closes everything.
    pub async fn run(self, shutdown: CancellationToken) -> Result<(), WorkerError> {
        let Parts {
            live,
            client,
            remake,
            serving,
            admin,
            tasks,
            metrics,
            budget,
            leases,
            ending,
        } = self.parts;
        let over = CancellationToken::new();
        let mut loops = JoinSet::new();
        loops.spawn(sweep(live.clone(), metrics, over.clone()));
        loops.spawn(budget.run(live.clone(), over.clone()));
        let (orders, ordered) = mpsc::channel(1);
        loops.spawn(follow(client, remake, ordered, over.clone()));
        let (adopt_to, adopted) = mpsc::channel(ADOPTED);
        let parts = (live.clone(), leases.clone());
        let mut place = self.place;
        let taken = tokio::select! {
            taken = take_place(&mut place, parts, adopt_to, (&mut loops, &over)) => taken,
            // The one before serves on.
            () = shutdown.cancelled() => Err(WorkerError::TakeOver("told to stop".to_owned())),
        };
        let offer = match taken {
            Ok(offer) => offer,
            Err(error) => {
                // In good order: that a configuration was tried here says nothing against it.
                over.cancel();
                joined(loops).await?;
                // The one before writes to the same files as soon as this is gone.
                drop(place);
                return Err(error);
            }
        };
        if let Some(offer) = offer {
            let lines = Lines {
                listeners: [duplicate(&self.gateway.0)?, duplicate(&self.admin.0)?],
                orders,
                ending: ending.clone(),
                leases: leases.clone(),
                live: live.clone(),
            };
            loops.spawn(offer.run(lines, shutdown.child_token(), over.clone()));
        }
        self.serving.cancel();
        let (status, stop) = (admin.status.clone(), over.clone());
        let told = (ending.clone(), shutdown.clone());
        loops.spawn(leave(status, told, self.drain_delay, stop));
        let admin_stop = CancellationToken::new();
        loops.spawn(leave_admin_to_heir(
            ending.clone(),
            admin_stop.clone(),
            over.clone(),
        ));
        let mut admin_task = JoinSet::new();
        admin_task.spawn(admin.run(self.admin.0, admin_stop.clone()));

        serving.run(self.gateway.0, adopted).await;
        ending.no_more();
        settle(&live, &leases).await;
        over.cancel();
        admin_stop.cancel();
        tasks.close();
        last_tasks(&tasks).await;
        joined(loops).await?;
        admin_task.shutdown().await;
        Ok(())
    }
}

/// Nothing is used any more. Before the stream to the control plane ends: it has a last word.
async fn settle(live: &LiveCell, leases: &Leases) {
    live.shutdown();
    leases.settled(live, LAST_TASKS).await;
    leases.end(live);
}

/// Waits a little for what connections have to say at their end.
async fn last_tasks(tasks: &TaskTracker) {
    if timeout(LAST_TASKS, tasks.wait()).await.is_err() {
        tracing::warn!(
            left = tasks.len(),
            "upstream connections did not end in time"
        );
    }
}

async fn joined(mut loops: JoinSet<()>) -> Result<(), WorkerError> {
    while let Some(ended) = loops.join_next().await {
        ended.map_err(|error| WorkerError::Internal(error.to_string()))?;
    }
    Ok(())
}

/// Waits until there is something to serve with.
async fn configured(live: &LiveCell) -> Result<(), WorkerError> {
    let waiting = async {
        while live.load().position.is_none() {
            sleep(LOOK_EVERY).await;
        }
    };
    if timeout(CONFIGURED_WITHIN, waiting).await.is_err() {
        return Err(WorkerError::TakeOver(format!(
            "no configuration within {CONFIGURED_WITHIN:?}"
        )));
    }
    let models: Vec<ModelId> = live.load().models.keys().cloned().collect();
    live.warmed(&models, WARM_WITHIN).await;
    Ok(())
}

/// Serves in the place of the process before this one from here on, if there is one. Gives where the next one can ask. If
/// nothing comes of it the place still has the line to that process, which takes its end for this one's.
async fn take_place(
    place: &mut Place,
    (live, leases): (Arc<LiveCell>, Arc<Leases>),
    adopted: mpsc::Sender<Resting>,
    (loops, over): (&mut JoinSet<()>, &CancellationToken),
) -> Result<Option<Offer>, WorkerError> {
    let mut asked = Instant::now();
    let mut left = Vec::new();
    if let Place::Taken(_, stream) = place {
        configured(&live).await?;
        let failed = |error: HandoverError| WorkerError::TakeOver(error.to_string());
        asked = Instant::now();
        left = ready(stream).await.map_err(failed)?;
    }
    let (place, stream) = match std::mem::replace(place, Place::None) {
        Place::None => return Ok(None),
        Place::Offered(offer) => return Ok(Some(offer)),
        Place::Taken(place, stream) => (place, stream),
    };
    leases.take_over(&left, asked, &live);
    let parts = (leases, live);
    loops.spawn(adopt(stream, adopted, over.clone(), parts));
    let offer = Offer::replace(&place);
    let offer = offer.inspect_err(
        |error| tracing::warn!(%error, "no other process can take over from this one"),
    );
    Ok(offer.ok())
}

fn duplicate(listener: &TcpListener) -> Result<OwnedFd, WorkerError> {
    let duplicate = listener.as_fd().try_clone_to_owned();
    duplicate.map_err(|error| WorkerError::Internal(error.to_string()))
}

/// Takes leave once the worker is to stop: not ready, then no new connections.
async fn leave(
    status: Arc<ConfigStatus>,
    (ending, shutdown): (Arc<Ending>, CancellationToken),
    delay: Duration,
    over: CancellationToken,
) {
    tokio::select! {
        () = shutdown.cancelled() => {}
        () = status.asked_to_end() => {}
        () = over.cancelled() => return,
    }
    status.stop();
    ending.advance(Stage::Leaving);
    if !delay.is_zero() {
        tracing::info!(?delay, "not ready any more, accepting for a while");
    }
    tokio::select! {
        () = sleep(delay) => {}
        () = over.cancelled() => return,
    }
    ending.advance(Stage::Draining);
}

/// The admin port is the heir's as well.
async fn leave_admin_to_heir(
    ending: Arc<Ending>,
    admin: CancellationToken,
    over: CancellationToken,
) {
    tokio::select! {
        () = ending.reached(Stage::Draining) => {}
        () = over.cancelled() => return,
    }
    if ending.heir().is_some() {
        admin.cancel();
    }
}

async fn sweep(live: Arc<LiveCell>, metrics: Arc<Metrics>, stop: CancellationToken) {
    let mut ticks = interval(SWEEP);
    loop {
        tokio::select! {
            _ = ticks.tick() => {
                let gone = live.sweep();
                // Not one that is back already.
                let live = live.load();
                let gone = gone.iter().filter(|model| !live.models.contains_key(*model));
                gone.for_each(|model| metrics.forget(model));
            }
            () = stop.cancelled() => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{ErrorKind, Read as _},
        path::PathBuf,
    };

    use tokio::net::UnixStream;

    use super::*;

    /// What this one has yet to write would be written beside the one before.
    #[tokio::test(start_paused = true)]
    async fn one_that_gives_up_is_gone_for_the_one_before_only_when_it_has_ended() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        // Asked itself each time, and not what is known of it.
        let mut theirs = theirs.into_std().unwrap();
        let mut place = Place::Taken(PathBuf::from("unused"), ours);
        let (mut loops, over) = (JoinSet::new(), CancellationToken::new());
        let parts = (Arc::default(), Arc::default());
        let lines = (&mut loops, &over);
        // There is never a configuration.
        let taken = take_place(&mut place, parts, mpsc::channel(1).0, lines).await;
        assert!(matches!(taken, Err(WorkerError::TakeOver(_))));
        let mut read = [0];
        let nothing = theirs.read(&mut read).unwrap_err();
        assert_eq!(nothing.kind(), ErrorKind::WouldBlock, "it is still there");
        drop(place);
        assert_eq!(theirs.read(&mut read).unwrap(), 0);
    }
}
