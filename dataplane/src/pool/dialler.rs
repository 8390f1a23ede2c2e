//! Makes a pool's connections, and drives them to their end. Each connect and each connection is a task of
//! the worker; none belongs to the request that caused it.

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use forebay_proto::ModelId;
use prometheus::Histogram;
use tokio::{sync::oneshot, time::Instant};
use tokio_util::task::TaskTracker;
use tracing::Instrument as _;

use super::{
    conn::{self, Conn, ConnectError, Driver},
    core::{ConnId, Connection as _, OriginId, Pulse, Ticket},
    desk::{Desk, Dial},
    probe::Reconnects,
    target::Target,
};

/// What it takes to dial for one pool.
#[derive(Debug, Clone)]
pub(super) struct Dialler {
    pub(super) model: ModelId,
    pub(super) tasks: TaskTracker,
    pub(super) connect_seconds: Histogram,
    /// Who wants to know that an endpoint can be reached again.
    pub(super) reconnects: Arc<Reconnects>,
}

impl Dial<Conn> for Dialler {
    fn dial(&self, desk: &Arc<Desk<Conn>>, ticket: Ticket, origin: OriginId) {
        let known = desk.with(|inner, _| {
            let target = inner.targets.get(&origin);
            let pulse = inner.core.pulse_of(origin)?;
            target.map(|target| (target.clone(), inner.connect_timeout, pulse))
        });
        let Some((target, within, pulse)) = known else {
            return desk.connect_failed(ticket, "the endpoint was removed");
        };
        let endpoint = &target.endpoint;
        let span = tracing::info_span!(
            "connect", model = %self.model, endpoint = %endpoint.id, url = %endpoint.url
        );
        let connect = self
            .clone()
            .connect(desk.clone(), ticket, (origin, target, pulse), within);
        self.tasks.spawn(connect.instrument(span));
    }
}

impl Dialler {
    async fn connect(
        self,
        desk: Arc<Desk<Conn>>,
        ticket: Ticket,
        (origin, target, pulse): (OriginId, Target, Arc<Pulse>),
        within: Duration,
    ) {
        let began = Instant::now();
        match conn::connect(&target, &self.tasks, within).await {
            Ok((conn, driver)) => {
                conn.watch.note_in(pulse);
                self.connect_seconds.observe(began.elapsed().as_secs_f64());
                if self.connected(&desk, (ticket, origin), conn, driver) {
                    self.reconnects.note(&target);
                }
            }
            Err(error) => self.failed(&desk, ticket, &target, &error),
        }
    }

    /// True if it is a first connection, of which somebody wants to know.
    fn connected(
        &self,
        desk: &Arc<Desk<Conn>>,
        (ticket, origin): (Ticket, OriginId),
        mut conn: Conn,
        driver: Driver,
    ) -> bool {
        let (name, named) = oneshot::channel();
        let known_as: Arc<OnceLock<ConnId>> = Arc::default();
        // The driver first: a waiter that is granted this connection needs it to run.
        let (model, known) = (self.model.clone(), known_as.clone());
        let at = desk.clone();
        let driving = self.tasks.spawn(async move {
            let allowed = |streams| {
                if let Some(id) = known.get() {
                    allow(&at, *id, streams);
                }
            };
            if let Err(error) = driver.run(allowed).await {
                tracing::debug!(%model, %error, "upstream connection ended");
            }
            if let Ok(id) = named.await {
                at.ended(id);
            }
        });
        conn.driver = Some(driving.abort_handle());
        let (streams, handle) = (conn.streams(), conn.another());
        let Some((id, first)) = desk.connected(ticket, origin, conn) else {
            return false;
        };
        let _ = known_as.set(id);
        // A driver that has ended already needs no name.
        let _ = name.send(id);
        // The server may have changed its mind while nobody could be told.
        let now_allowed = handle.map(|handle| handle.streams());
        if let Some(allowed) = now_allowed.filter(|allowed| *allowed != streams) {
            allow(desk, id, allowed);
        }
        first
    }

    fn failed(
        &self,
        desk: &Arc<Desk<Conn>>,
        ticket: Ticket,
        target: &Target,
        error: &ConnectError,
    ) {
        let endpoint = &target.endpoint;
        let text = format!("endpoint `{}` ({}): {error}", endpoint.id, endpoint.url);
        tracing::warn!(model = %self.model, endpoint = %endpoint.id, %error, "connect failed");
        desk.connect_failed(ticket, &text);
    }
}

/// The server allows another number of requests at a time on a connection.
fn allow(desk: &Arc<Desk<Conn>>, id: ConnId, streams: usize) {
    desk.change(|inner, now| inner.core.allow(now, id, streams));
}
