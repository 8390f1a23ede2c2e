//! Drives one connection of a client through hyper to its end, and through the stages of the worker's own end.
//!
//! HTTP/1.1: a connection at rest is given up as it is, for an heir to go on with; what answers still is told when the
//! grace is over. HTTP/2 has words of its own for the end. It knows nothing of requests.

use std::{
    future::poll_fn,
    pin::pin,
    sync::atomic::{AtomicBool, Ordering},
};

use bytes::Bytes;
use http::{HeaderMap, Request, Version, header};
use hyper::{
    body::{Body, Incoming},
    server::conn::{http1, http2},
    service::HttpService,
};
use hyper_util::rt::TokioIo;

use super::{connection::ClientSocket, hangup::Hangups};
use crate::ending::{Ending, Stage};

/// How a connection ended.
#[derive(Debug)]
pub(super) enum Ended {
    /// There is nothing more to say.
    Over,
    /// The client broke the rules, or the connection.
    Broken,
    /// An answer broke off whose end is that of the connection: a clean one would make it look whole.
    Cut,
    /// The worker ends; the client has a right to its next request, of which it has sent this much.
    AtRest(Bytes),
}

/// Whether a connection outlives the answers that are given on it.
#[derive(Debug, Default)]
pub(super) struct Lasting {
    /// A request came.
    asked: AtomicBool,
    /// The client, or we, said that it ends.
    closes: AtomicBool,
    /// hyper says from now on that it ends.
    draining: AtomicBool,
    /// The last request came over HTTP/1.0, which knows no chunks.
    unchunked: AtomicBool,
    /// The answer to it has no length: it ends with the connection.
    until_close: AtomicBool,
}

impl Lasting {
    /// A request came.
    pub(super) fn asked(&self, request: &Request<Incoming>) {
        self.asked.store(true, Ordering::Relaxed);
        let unchunked = request.version() <= Version::HTTP_10;
        self.unchunked.store(unchunked, Ordering::Relaxed);
        let closes = request.version() != Version::HTTP_11 || says_close(request.headers());
        self.closes.fetch_or(closes, Ordering::Relaxed);
    }

    /// It is about to be answered with these.
    pub(super) fn answers(&self, headers: &HeaderMap) {
        let closes = self.draining.load(Ordering::Relaxed) || says_close(headers);
        self.closes.fetch_or(closes, Ordering::Relaxed);
        let lengthed = headers.contains_key(header::CONTENT_LENGTH);
        let until_close = self.unchunked.load(Ordering::Relaxed) && !lengthed;
        self.until_close.store(until_close, Ordering::Relaxed);
    }
}

fn says_close(headers: &HeaderMap) -> bool {
    let values = headers.get_all(header::CONNECTION).iter();
    let mut words = values.flat_map(|value| value.as_bytes().split(|byte| *byte == b','));
    words.any(|word| word.trim_ascii().eq_ignore_ascii_case(b"close"))
}

/// HTTP/1.1.
pub(super) async fn http1<S>(
    mut connection: http1::Connection<TokioIo<ClientSocket>, S>,
    lasting: &Lasting,
    ending: &Ending,
) -> Ended
where
    S: HttpService<Incoming> + Unpin,
    S::Future: Unpin,
    S::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    S::ResBody: Body + Unpin + 'static,
    <S::ResBody as Body>::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let mut stages = ending.watch();
    // It may have begun when the connection did.
    stages.mark_changed();
    let ended = loop {
        tokio::select! {
            biased;
            ended = poll_fn(|cx| connection.poll_without_shutdown(cx)) => break ended,
            _ = stages.changed() => {
                // At the cut it is only polled: who answers finds out.
                if !lasting.draining.load(Ordering::Relaxed) && ending.has_reached(Stage::Draining) {
                    lasting.draining.store(true, Ordering::Relaxed);
                    // hyper waits for the rest of the first head: without an heir that is right, and the answer is the last.
                    if !lasting.asked.load(Ordering::Relaxed) && ending.heir().is_some() {
                        break Ok(());
                    }
                    std::pin::Pin::new(&mut connection).graceful_shutdown();
                }
            }
        }
    };
    let at_rest =
        lasting.draining.load(Ordering::Relaxed) && !lasting.closes.load(Ordering::Relaxed);
    match ended {
        // Ours is the error of an answer's body.
        Err(error) if error.is_user() && lasting.until_close.load(Ordering::Relaxed) => {
            tracing::debug!(%error, "client connection reset: its answer is not whole");
            Ended::Cut
        }
        Err(error) => {
            tracing::debug!(%error, "client connection ended");
            Ended::Broken
        }
        Ok(()) if at_rest => {
            let parts = connection.into_parts();
            let unread = parts.io.into_inner().ahead;
            Ended::AtRest([parts.read_buf, unread].concat().into())
        }
        Ok(()) => Ended::Over,
    }
}

/// HTTP/2.
pub(super) async fn http2<I, S>(
    connection: http2::Connection<I, S, Hangups>,
    ending: &Ending,
) -> Ended
where
    I: hyper::rt::Read + hyper::rt::Write + Unpin,
    S: HttpService<Incoming>,
    S::Future: Send + 'static,
    S::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    S::ResBody: Body + Send + 'static,
    <S::ResBody as Body>::Data: Send,
    <S::ResBody as Body>::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    Hangups: hyper::rt::bounds::Http2ServerConnExec<S::Future, S::ResBody>,
{
    let mut stages = ending.watch();
    // It may have begun when the connection did.
    stages.mark_changed();
    let mut connection = pin!(connection);
    let mut draining = false;
    loop {
        tokio::select! {
            biased;
            ended = &mut connection => return match ended {
                Ok(()) => Ended::Over,
                Err(error) => {
                    tracing::debug!(%error, "client connection ended");
                    Ended::Broken
                }
            },
            _ = stages.changed() => if !draining && ending.has_reached(Stage::Draining) {
                draining = true;
                connection.as_mut().graceful_shutdown();
            }
        }
    }
}
