//! All clients at once: lets them in, takes them over from another process, and sees them out.
//!
//! Whose connection has to go is for `clients.rs` to say, and what is said on one for `connection.rs`.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use tokio::{
    net::{TcpListener, TcpStream},
    sync::mpsc,
    task::{Id, JoinError, JoinSet},
    time::{Instant, Interval, interval, sleep, sleep_until},
};

use super::{
    clients::{Clients, Peer, Presence, Speaks},
    connection,
    proxy::Proxy,
    watchdog,
};
use crate::{ending::Stage, handover::Resting};

/// Pause after a failed accept: out of files, most likely.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// The connections of all clients.
pub(super) struct Crowd {
    proxy: Arc<Proxy>,
    clients: Clients,
    connections: JoinSet<()>,
    ticks: Interval,
}

impl Crowd {
    /// Nobody yet, and never more than this.
    pub(super) fn new(proxy: Arc<Proxy>, most: usize) -> Self {
        let clients = Clients::new(proxy.limits.clone(), most, proxy.metrics.clone());
        Self {
            proxy,
            clients,
            connections: JoinSet::new(),
            ticks: interval(watchdog::EVERY),
        }
    }

    /// Serves who connects and who is taken over, until the worker drains.
    pub(super) async fn serve(
        &mut self,
        listener: TcpListener,
        adopted: &mut mpsc::Receiver<Resting>,
    ) {
        let ending = self.proxy.ending.clone();
        loop {
            let room = self.clients.has_room();
            tokio::select! {
                accepted = accept(&listener), if room => self.let_in(accepted).await,
                Some(resting) = adopted.recv() => self.take_over(resting),
                Some(ended) = self.connections.join_next_with_id() => self.gone(ended),
                _ = self.ticks.tick() => self.sweep(),
                () = ending.reached(Stage::Draining) => break,
            }
        }
        drop(listener);
        // What was on its way from the process before this one has no other place.
        while let Ok(resting) = adopted.try_recv() {
            self.take_over(resting);
        }
    }

    /// Lets everybody finish, for so long; who still comes from another process goes on to the next one, or is closed.
    /// False if somebody did not.
    ///
    /// With an heir, the process before this one may still have streams whose connections have no other way to it: they
    /// are waited for, too.
    pub(super) async fn finish(
        &mut self,
        within: Duration,
        adopted: &mut mpsc::Receiver<Resting>,
    ) -> bool {
        let deadline = Instant::now() + within;
        let has_heir = self.proxy.ending.heir().is_some();
        let mut more_come = true;
        loop {
            if self.connections.is_empty() && !(has_heir && more_come) {
                return true;
            }
            tokio::select! {
                Some(ended) = self.connections.join_next_with_id() => self.gone(ended),
                resting = adopted.recv(), if more_come => match resting {
                    Some(resting) => self.take_over(resting),
                    None => more_come = false,
                },
                _ = self.ticks.tick() => self.sweep(),
                () = sleep_until(deadline) => return self.connections.is_empty(),
            }
        }
    }

    /// Closes what is left.
    pub(super) async fn close(mut self) {
        self.connections.shutdown().await;
    }

    async fn let_in(&mut self, accepted: std::io::Result<(TcpStream, SocketAddr)>) {
        let (socket, from) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::error!(%error, "accept failed");
                sleep(ACCEPT_PAUSE).await;
                return;
            }
        };
        let peer = Peer::of(from.ip());
        if self.clients.admits(peer) {
            let presence = self.clients.presence();
            self.spawn(peer, presence, socket, Vec::new());
        } else {
            tracing::debug!(%from, "refused: this peer has as many connections as it may");
        }
    }

    /// It was let in once.
    fn take_over(&mut self, Resting { socket, read }: Resting) {
        match socket.peer_addr() {
            Ok(from) => {
                // It rests, as it did there.
                let presence = self.clients.presence();
                presence.speaks(Speaks::Http1);
                self.spawn(Peer::of(from.ip()), presence, socket, read);
            }
            Err(error) => tracing::debug!(%error, "gone while it was taken over"),
        }
    }

    fn spawn(&mut self, peer: Peer, presence: Arc<Presence>, socket: TcpStream, read: Vec<u8>) {
        let serving = connection::serve(self.proxy.clone(), socket, read, presence.clone());
        let task = self.connections.spawn(serving);
        self.clients.add(peer, presence, task);
    }

    fn gone(&mut self, ended: Result<(Id, ()), JoinError>) {
        self.clients
            .remove(ended.map_or_else(|error| error.id(), |(id, ())| id));
    }

    fn sweep(&mut self) {
        self.proxy.watchdog.sweep();
        self.clients.sweep();
    }
}

async fn accept(listener: &TcpListener) -> std::io::Result<(TcpStream, SocketAddr)> {
    let (socket, from) = listener.accept().await?;
    connection::tune(&socket)?;
    Ok((socket, from))
}
