//! Leases on one stream: the worker's reports go to the board, what is lent to it goes to the worker. Nothing is decided
//! here. At most one grant is on its way: of several, the newest says all.

use std::sync::Arc;

use forebay_proto::{InstanceId, WorkerId, wire};
use tokio::sync::watch;
use wire::to_worker::Message as Say;

use super::outbox::Outbox;
use crate::leases::{Board, Grant, Report, Standing};

/// Since this version of the protocol there are leases.
pub(super) const LEASES: u32 = 4;

/// The leases of one stream, which ends when it is dropped.
#[derive(Debug)]
pub(super) struct LeaseLine {
    board: Arc<dyn Board>,
    worker: WorkerId,
    standing: Standing,
    allotted: watch::Receiver<Option<Arc<Grant>>>,
    sent: u64,
}

impl LeaseLine {
    /// A worker came.
    pub(super) fn open(
        board: &Arc<dyn Board>,
        worker: WorkerId,
        (stream, instance): (u64, InstanceId),
        (takes_over, count): (bool, u32),
        protocol: u32,
    ) -> Self {
        let line = Self {
            allotted: board.allotted(&worker),
            board: board.clone(),
            worker,
            standing: Standing {
                stream,
                instance,
                takes_over,
                count,
                displaces: false,
                repeated: false,
                knows: protocol >= LEASES,
                connected: true,
                report: None,
            },
            sent: 0,
        };
        line.tell();
        line
    }

    fn tell(&self) {
        self.board.report(&self.worker, self.standing.clone());
    }

    /// The worker said what it uses.
    pub(super) fn hear(&mut self, report: wire::LeaseReport) {
        self.standing.report = Some(Report::read(report));
        self.tell();
    }

    /// Says what is lent, if that is news.
    pub(super) fn say(&mut self, outbox: &mut Outbox) {
        let grant = self.allotted.borrow_and_update().clone();
        let stream = self.standing.stream;
        let news = grant.filter(|grant| grant.stream == stream && grant.number > self.sent);
        if let Some(grant) = news {
            self.sent = grant.number;
            outbox.say(Say::Leases((&*grant).into()));
        }
    }
}

/// Waits until there may be something to say.
pub(super) async fn allotted(line: Option<&mut LeaseLine>) {
    if let Some(line) = line
        && line.allotted.changed().await.is_ok()
    {
        return;
    }
    // The board outlives its lines: there is none.
    std::future::pending().await
}

impl Drop for LeaseLine {
    fn drop(&mut self) {
        self.standing.connected = false;
        self.tell();
    }
}
