//! Ends one client's request from outside: its connection over HTTP/1.1, its stream over HTTP/2.
//!
//! hyper runs each HTTP/2 request as a task of its own, and does not poll a body for which the client has no room, so
//! that nothing said to the body reaches it. The tasks are ours to run: one that is told to hang up is dropped, which
//! resets its stream, and all of them go with their connection. When the worker's grace is over they are woken.

use std::{future::poll_fn, pin::pin, sync::Arc};

use http::Version;
use hyper::rt::Executor;
use parking_lot::Mutex;
use tokio_util::{
    sync::{CancellationToken, DropGuard},
    task::TaskTracker,
};

use crate::ending::{Ending, Stage};

/// How to end what a connection carries.
#[derive(Debug, Clone)]
pub(super) struct Hangups {
    connection: CancellationToken,
    /// Of the HTTP/2 request that was handed to its service last: hyper starts its task right after.
    newest: Arc<Mutex<Option<CancellationToken>>>,
    tasks: TaskTracker,
    ending: Arc<Ending>,
}

impl Hangups {
    /// Of a new connection. Everything ends when the guard is dropped.
    pub(super) fn new(ending: Arc<Ending>) -> (Self, DropGuard) {
        let hangups = Self {
            connection: CancellationToken::new(),
            newest: Arc::default(),
            tasks: TaskTracker::new(),
            ending,
        };
        let guard = hangups.connection.clone().drop_guard();
        (hangups, guard)
    }

    /// For the request that begins.
    pub(super) fn of_request(&self, version: Version) -> CancellationToken {
        if version < Version::HTTP_2 {
            return self.connection.clone();
        }
        let request = self.connection.child_token();
        *self.newest.lock() = Some(request.clone());
        request
    }

    /// Waits until the connection is to end.
    pub(super) async fn told(&self) {
        self.connection.cancelled().await;
    }
}

impl<F> Executor<F> for Hangups
where
    F: Future<Output: Send> + Send + 'static,
{
    fn execute(&self, task: F) {
        let newest = self.newest.lock().take();
        let ends = newest.unwrap_or_else(|| self.connection.clone());
        let ending = self.ending.clone();
        self.tasks.spawn(async move {
            let mut cut = pin!(ending.reached(Stage::Cut));
            let mut told = false;
            let mut task = pin!(task);
            // At the cut it is only polled: who answers finds out.
            let task = poll_fn(|cx| {
                told = told || cut.as_mut().poll(cx).is_ready();
                task.as_mut().poll(cx)
            });
            tokio::select! {
                _ = task => {}
                () = ends.cancelled() => {}
            }
        });
    }
}
