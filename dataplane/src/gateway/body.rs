//! The bodies of answers: our own, and an upstream's passed on frame by frame with back-pressure.
//!
//! A passed-on body owns the connection it comes from. Read to its end it gives the connection back;
//! dropped before (the client went away) it closes it, which cancels the generation; failed, it tells
//! the client and never ends cleanly. Frames are neither buffered nor changed.

use std::{
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::time::{Instant, Sleep, sleep, sleep_until};
use tracing::Span;

use super::record::RequestRecord;
use crate::pool::{CloseReason, Lease};

/// Gives the error event time to leave before the connection is torn down.
const LAST_WORDS: Duration = Duration::from_millis(20);

/// A body that ended in failure.
#[derive(Debug, Clone, thiserror::Error)]
pub(super) enum StreamFailed {
    #[error("the upstream closed the connection in the middle of its answer: {0}")]
    Reset(String),
    #[error("the upstream was silent for {0:?} in the middle of its answer")]
    Silent(Duration),
    #[error("the answer took longer than the {0:?} that a request may take")]
    TotalTime(Duration),
}

impl StreamFailed {
    fn code(&self) -> &'static str {
        match self {
            Self::Reset(_) => "upstream_reset",
            Self::Silent(_) | Self::TotalTime(_) => "upstream_timeout",
        }
    }

    /// The status that it would have had before the head was sent, for metrics.
    pub(super) fn status(&self) -> u16 {
        match self {
            Self::Reset(_) => 502,
            Self::Silent(_) | Self::TotalTime(_) => 504,
        }
    }

    /// As the last event of a stream.
    fn event(&self) -> Bytes {
        let error = serde_json::json!({ "error": {
            "message": self.to_string(), "type": "server_error", "param": null, "code": self.code(),
        }});
        Bytes::from(format!("data: {error}\n\n"))
    }
}

/// What the gateway answers with.
#[derive(Debug)]
pub(super) enum ResponseBody {
    /// Our own words.
    Full(Option<Bytes>),
    /// An upstream's.
    Stream(Box<UpstreamBody>),
}

impl ResponseBody {
    pub(super) fn full(bytes: Bytes) -> Self {
        Self::Full(Some(bytes))
    }
}

/// The limits of a passed-on body.
#[derive(Debug, Clone, Copy)]
pub(super) struct StreamLimits {
    /// Longest silence.
    pub(super) idle: Duration,
    /// When the request must be over.
    pub(super) deadline: Instant,
    /// What the deadline came from, for the message.
    pub(super) total: Duration,
    /// Server-sent events: a failure can be told in band.
    pub(super) events: bool,
}

/// An upstream's body on its way to the client.
#[derive(Debug)]
pub(super) struct UpstreamBody {
    body: Incoming,
    lease: Option<Lease>,
    record: RequestRecord,
    limits: StreamLimits,
    silence: Pin<Box<Sleep>>,
    state: State,
    _span: Span,
}

#[derive(Debug)]
enum State {
    Streaming,
    /// The error event was given; the body is torn down when the timer ends.
    LastWords(Pin<Box<Sleep>>, StreamFailed),
    Done,
}

impl UpstreamBody {
    pub(super) fn new(
        body: Incoming,
        lease: Lease,
        record: RequestRecord,
        limits: StreamLimits,
        span: Span,
    ) -> Self {
        let silence = Box::pin(sleep_until(
            limits.deadline.min(Instant::now() + limits.idle),
        ));
        let mut this = Self {
            body,
            lease: Some(lease),
            record,
            limits,
            silence,
            state: State::Streaming,
            _span: span,
        };
        // A body known to be empty is never polled.
        this.finish_if_complete();
        this
    }

    fn finish_if_complete(&mut self) {
        if self.body.is_end_stream() {
            self.finish();
        }
    }

    fn finish(&mut self) {
        self.state = State::Done;
        self.record.complete();
        if let Some(lease) = self.lease.take() {
            lease.finish();
        }
    }

    fn fail(&mut self, failed: StreamFailed) -> Poll<Option<Result<Frame<Bytes>, StreamFailed>>> {
        if let Some(lease) = self.lease.take() {
            lease.discard(CloseReason::Error);
        }
        self.record.upstream_failed(&failed);
        if self.limits.events {
            let event = failed.event();
            self.state = State::LastWords(Box::pin(sleep(LAST_WORDS)), failed);
            return Poll::Ready(Some(Ok(Frame::data(event))));
        }
        self.state = State::Done;
        Poll::Ready(Some(Err(failed)))
    }

    fn poll_upstream(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, StreamFailed>>> {
        match Pin::new(&mut self.body).poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => {
                let now = Instant::now();
                self.silence
                    .as_mut()
                    .reset(self.limits.deadline.min(now + self.limits.idle));
                self.finish_if_complete();
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Err(error))) => self.fail(StreamFailed::Reset(error.to_string())),
            Poll::Ready(None) => {
                self.finish();
                Poll::Ready(None)
            }
            Poll::Pending => {
                std::task::ready!(self.silence.as_mut().poll(cx));
                let late = Instant::now() >= self.limits.deadline;
                self.fail(match late {
                    true => StreamFailed::TotalTime(self.limits.total),
                    false => StreamFailed::Silent(self.limits.idle),
                })
            }
        }
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = StreamFailed;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, StreamFailed>>> {
        match self.get_mut() {
            Self::Full(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Self::Stream(stream) => match &mut stream.state {
                State::Streaming => stream.poll_upstream(cx),
                State::LastWords(timer, failed) => {
                    std::task::ready!(timer.as_mut().poll(cx));
                    let failed = failed.clone();
                    stream.state = State::Done;
                    Poll::Ready(Some(Err(failed)))
                }
                State::Done => Poll::Ready(None),
            },
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Full(bytes) => bytes.is_none(),
            Self::Stream(stream) => matches!(stream.state, State::Done),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Full(bytes) => {
                SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64))
            }
            Self::Stream(stream) => stream.body.size_hint(),
        }
    }
}
