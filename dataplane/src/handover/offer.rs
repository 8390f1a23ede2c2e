//! The old process: offers its listeners to one that asks, and hands connections over once that one is ready.

use std::{
    io::{self, ErrorKind},
    os::{
        fd::{AsFd as _, OwnedFd},
        unix::fs::MetadataExt as _,
    },
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use tokio::{
    net::{UnixListener, UnixStream},
    sync::{mpsc, oneshot},
    time::{interval, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{
    HandoverError, READY_WITHIN, Resting, SAY_WITHIN, VERSION,
    trial::Trial,
    wire::{Word, hear, say, speaks},
};
use crate::{
    config_client::Order,
    ending::{Ending, Stage},
    leases::Leases,
    live::LiveCell,
};

/// How often it is looked what is needed no more.
const LEAVE_EVERY: Duration = Duration::from_millis(100);

/// Connections at rest that wait to be sent.
const WAITING: usize = 64;

/// What is handed over, and who is told.
#[derive(Debug)]
pub(crate) struct Lines {
    /// The gateway's listener and the admin port's.
    pub(crate) listeners: [OwnedFd; 2],
    /// Ends the configuration client and begins it again.
    pub(crate) orders: mpsc::Sender<Order>,
    pub(crate) ending: Arc<Ending>,
    /// What is lent of fleet-wide limits goes along.
    pub(crate) leases: Arc<Leases>,
    pub(crate) live: Arc<LiveCell>,
}

/// A place where a new process can ask.
#[derive(Debug)]
pub(crate) struct Offer {
    listener: UnixListener,
    path: PathBuf,
    /// Tells whether the name is still this one's.
    inode: u64,
}

impl Offer {
    /// Listens there. Whoever listened there before must be done with it.
    pub(crate) async fn bind(path: &Path) -> io::Result<Self> {
        if UnixStream::connect(path).await.is_ok() {
            return Err(io::Error::new(
                ErrorKind::AddrInUse,
                "another worker runs on this directory; say --take-over to take its place, or choose another --worker-id",
            ));
        }
        Self::replace(path)
    }

    /// Listens there, whoever did before. The name is never gone in between: whoever asks then would take it that there is
    /// nobody to take over from.
    pub(crate) fn replace(path: &Path) -> io::Result<Self> {
        let new = path.with_extension("new");
        match std::fs::remove_file(&new) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(&new)?;
        std::fs::rename(&new, path)?;
        Ok(Self {
            listener,
            path: path.to_owned(),
            inode: std::fs::symlink_metadata(path)?.ino(),
        })
    }

    /// Answers who asks, one at a time, until one has taken over or this process stops.
    pub(crate) async fn run(
        self,
        lines: Lines,
        stopping: CancellationToken,
        over: CancellationToken,
    ) {
        let heir = tokio::select! {
            heir = self.find_heir(&lines, &stopping) => heir,
            () = over.cancelled() => None,
        };
        let Some((heir, resting)) = heir else {
            self.withdraw();
            return;
        };
        // The name is the heir's from now on, and so is the line of those that are not accepted yet: if it ends, that
        // must be seen.
        drop(self.listener);
        let Lines {
            listeners,
            orders,
            ending,
            leases,
            live,
        } = lines;
        drop((listeners, orders, ending));
        give(heir, resting, &leases, &live).await;
    }

    /// What is there no more is not asked.
    fn withdraw(&self) {
        let there = std::fs::symlink_metadata(&self.path);
        if there.is_ok_and(|there| there.ino() == self.inode) {
            drop(std::fs::remove_file(&self.path));
        }
    }

    /// One that has taken over, and what comes to rest for it; none once this process stops. An offer that was begun is
    /// not taken back: the other one may be serving already.
    async fn find_heir(
        &self,
        lines: &Lines,
        stopping: &CancellationToken,
    ) -> Option<(UnixStream, mpsc::Receiver<Resting>)> {
        loop {
            let accepted = tokio::select! {
                biased;
                () = stopping.cancelled() => return None,
                () = lines.ending.reached(Stage::Leaving) => return None,
                accepted = self.listener.accept() => accepted,
            };
            let mut stream = match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::error!(%error, "nobody can take over for a while");
                    tokio::time::sleep(SAY_WITHIN).await;
                    continue;
                }
            };
            match self.offer(&mut stream, lines).await {
                Ok(resting) => return Some((stream, resting)),
                Err(error) => tracing::warn!(%error, "not taken over, serving on"),
            }
        }
    }

    async fn offer(
        &self,
        stream: &mut UnixStream,
        lines: &Lines,
    ) -> Result<mpsc::Receiver<Resting>, HandoverError> {
        let own = rustix::process::geteuid().as_raw();
        if stream.peer_cred()?.uid() != own {
            return Err(HandoverError::Protocol("runs as another user"));
        }
        let heard = timeout(SAY_WITHIN, hear(stream)).await;
        let heard = heard.map_err(|_| HandoverError::Protocol("said nothing"))??;
        let hello = heard.filter(|message| message.word == Word::Hello);
        let hello = hello.ok_or(HandoverError::Protocol("did not say what it wants"))?;
        if hello.content != VERSION {
            let why = b"it speaks another version of the hand-over; stop it and start the new one";
            say(stream, Word::Refused, &[], why).await?;
            return Err(HandoverError::Protocol("speaks another version"));
        }
        tracing::info!("another process is about to take over");
        let (rested, resting) = oneshot::channel();
        let ordered = lines.orders.send(Order::Rest(rested)).await;
        let stopped = || HandoverError::Protocol("came when this one had stopped");
        ordered.map_err(|_| stopped())?;
        let mut trial = None;
        let taken = async {
            // What is in force is on disk once it rests.
            let rested = timeout(READY_WITHIN, resting).await;
            let rested = rested
                .map_err(|_| HandoverError::Protocol("came while this one could not rest"))?;
            rested.map_err(|_| stopped())?;
            trial = Some(Trial::begin(self.path.parent().unwrap_or(&self.path)).await?);
            let [gateway, admin] = &lines.listeners;
            say(
                stream,
                Word::Listeners,
                &[gateway.as_fd(), admin.as_fd()],
                &[],
            )
            .await?;
            let heard = timeout(READY_WITHIN, hear(stream)).await;
            match heard.map_err(|_| HandoverError::Protocol("was not ready in time"))?? {
                Some(message) if message.word == Word::Ready => Ok(()),
                Some(_) => Err(HandoverError::Protocol("said what it may not")),
                None => Err(HandoverError::Protocol("ended before it was ready")),
            }
        };
        let taken = match taken.await {
            Ok(()) => {
                // What comes to rest from here on must find its heir: otherwise it would be closed, and the client's next
                // request may be on its way.
                let (to, resting) = mpsc::channel(WAITING);
                lines.ending.hand_over(to);
                let left = lines.leases.leave(&lines.live);
                // Whoever does not read that is gone.
                drop(say(stream, Word::Gone, &[], &left).await);
                return Ok(resting);
            }
            Err(error) => error,
        };
        let why = taken.to_string();
        drop(say(stream, Word::Refused, &[], why.as_bytes()).await);
        // Before this one begins with what is on disk.
        if let Some(trial) = trial
            && let Err(error) = trial.undo().await
        {
            tracing::warn!(%error, "what the other process tried may be taken for a crash of this one");
        }
        drop(lines.orders.send(Order::GoOn).await);
        Err(taken)
    }
}

/// Hands connections over until there are no more, and what is not needed any more of fleet-wide limits.
async fn give(
    mut heir: UnixStream,
    mut resting: mpsc::Receiver<Resting>,
    leases: &Leases,
    live: &LiveCell,
) {
    let mut count = 0_u64;
    let mut ticks = interval(LEAVE_EVERY);
    let mut answers = true;
    loop {
        let next = tokio::select! {
            next = resting.recv() => next,
            _ = ticks.tick() => {
                let left = leases.leave_more(live).filter(|_| answers);
                if let Some(left) = left
                    && let Err(error) = say(&mut heir, Word::Connection, &[], &left).await
                {
                    tracing::error!(%error, "the new process takes nothing any more");
                    leases.leave_within(live, leases.linger());
                    answers = false;
                }
                continue;
            }
            () = speaks(&heir), if answers => {
                // It answers no more for what is used here: its own time is over, or it is gone.
                let time = match timeout(SAY_WITHIN, hear(&mut heir)).await {
                    Ok(Ok(Some(message))) if message.word == Word::Gone => Duration::ZERO,
                    Ok(Ok(Some(_))) => continue,
                    Ok(Ok(None) | Err(_)) | Err(_) => leases.linger(),
                };
                leases.leave_within(live, time);
                answers = false;
                continue;
            }
        };
        let Some(Resting { socket, read }) = next else {
            break;
        };
        let files = [socket.as_fd()];
        if let Err(error) = say(&mut heir, Word::Connection, &files, &read).await {
            tracing::error!(%error, "the new process takes no more connections");
            return;
        }
        count += 1;
    }
    tracing::info!(connections = count, "handed over");
}

#[cfg(test)]
mod tests {
    use std::{hint::spin_loop, net::TcpListener, thread};

    use tokio::task::JoinSet;

    use super::*;

    /// The other process, up to where it is told that this one accepts no more.
    async fn take_over(path: &Path) -> UnixStream {
        let mut stream = UnixStream::connect(path).await.unwrap();
        say(&mut stream, Word::Hello, &[], VERSION).await.unwrap();
        let listeners = hear(&mut stream).await.unwrap().unwrap();
        assert_eq!(listeners.word, Word::Listeners);
        say(&mut stream, Word::Ready, &[], &[]).await.unwrap();
        let gone = hear(&mut stream).await.unwrap().unwrap();
        assert_eq!(gone.word, Word::Gone);
        stream
    }

    fn lines(orders: mpsc::Sender<Order>, ending: &Arc<Ending>) -> Lines {
        let listener = || OwnedFd::from(TcpListener::bind("127.0.0.1:0").unwrap());
        Lines {
            listeners: [listener(), listener()],
            orders,
            ending: ending.clone(),
            leases: Arc::new(Leases::new(1)),
            live: Arc::default(),
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn the_name_is_never_gone_while_it_changes_hands() {
        let dir = tempfile::tempdir().unwrap();
        let place = dir.path().join("s");
        let mut offer = Offer::bind(&place).await.unwrap();
        let over = CancellationToken::new();
        let asks = thread::spawn({
            let (place, over) = (place.clone(), over.clone());
            move || {
                let mut missing = 0;
                while !over.is_cancelled() {
                    missing += u32::from(!place.exists());
                }
                missing
            }
        });
        for _ in 0..2_000 {
            offer = Offer::replace(&place).unwrap();
        }
        over.cancel();
        assert_eq!(asks.join().unwrap(), 0);
        drop(offer);
    }

    /// It is gone without a word before it is ready, twice; once there were marks before, once there were none.
    #[tokio::test(flavor = "multi_thread")]
    async fn what_one_tried_that_did_not_take_over_is_held_against_nobody() {
        for before in [Some("crashed 0 ab 7"), None] {
            let dir = tempfile::tempdir().unwrap();
            let folder = crate::config_client::lkg_folder(dir.path());
            std::fs::create_dir(&folder).unwrap();
            let marks = folder.join("attempts");
            let there = || std::fs::read_to_string(&marks).ok();
            if let Some(before) = before {
                std::fs::write(&marks, before).unwrap();
            }
            let place = dir.path().join("s");
            let offer = Offer::bind(&place).await.unwrap();
            let (orders, mut ordered) = mpsc::channel(1);
            let (stop, ending) = (CancellationToken::new(), Arc::<Ending>::default());
            let mut tasks = JoinSet::new();
            tasks.spawn(offer.run(lines(orders, &ending), stop.clone(), stop.clone()));
            for _ in 0..2 {
                let mut stream = UnixStream::connect(&place).await.unwrap();
                say(&mut stream, Word::Hello, &[], VERSION).await.unwrap();
                let Some(Order::Rest(rested)) = ordered.recv().await else {
                    panic!("it is to rest");
                };
                rested.send(()).unwrap();
                let listeners = hear(&mut stream).await.unwrap().unwrap();
                assert_eq!(listeners.word, Word::Listeners);
                std::fs::write(&marks, "trying ab 7").unwrap();
                drop(stream);
                let Some(Order::GoOn) = ordered.recv().await else {
                    panic!("it is to go on");
                };
                assert_eq!(there().as_deref(), before);
            }
            stop.cancel();
            tasks.join_all().await;
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_comes_to_rest_as_it_begins_has_its_heir() {
        for _ in 0..20 {
            let dir = tempfile::tempdir().unwrap();
            let place = dir.path().join("s");
            let offer = Offer::bind(&place).await.unwrap();
            let ending = Arc::<Ending>::default();
            let (orders, mut ordered) = mpsc::channel(1);
            let lines = lines(orders, &ending);
            let stop = CancellationToken::new();
            let mut tasks = JoinSet::new();
            tasks.spawn(offer.run(lines, stop.clone(), stop.clone()));
            tasks.spawn(async move {
                if let Some(Order::Rest(rested)) = ordered.recv().await {
                    rested.send(()).unwrap();
                }
            });
            let connection = thread::spawn({
                let ending = ending.clone();
                move || {
                    while !ending.has_reached(Stage::Draining) {
                        spin_loop();
                    }
                    ending.heir().is_some()
                }
            });
            let heir = take_over(&place).await;
            assert!(connection.join().unwrap(), "it would be closed");
            ending.no_more();
            tasks.join_all().await;
            drop(heir);
        }
    }
}
