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
use tokio::time::{Instant, Sleep, sleep};
use tracing::Span;

use super::{
    alarm::Alarm,
    record::{CLIENT_CLOSED, RequestRecord},
    responses::ResponseTap,
    watchdog::Loan,
};
use crate::{metrics::Source, pool::CloseReason};

/// Gives the error event, and what came before it, time to leave before the connection is torn down.
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
    #[error("the client did not read its answer within {0:?}")]
    NotRead(Duration),
}

impl StreamFailed {
    fn code(&self) -> &'static str {
        match self {
            Self::Reset(_) => "upstream_reset",
            Self::Silent(_) | Self::TotalTime(_) => "upstream_timeout",
            Self::NotRead(_) => "client_stalled",
        }
    }

    /// By whom it came about.
    pub(super) fn source(&self) -> Source {
        match self {
            Self::Reset(_) | Self::Silent(_) | Self::TotalTime(_) => Source::Upstream,
            Self::NotRead(_) => Source::Client,
        }
    }

    /// The status that it would have had before the head was sent, for metrics.
    pub(super) fn status(&self) -> u16 {
        match self {
            Self::Reset(_) => 502,
            Self::Silent(_) | Self::TotalTime(_) => 504,
            Self::NotRead(_) => CLIENT_CLOSED,
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
    /// Server-sent events without a length: a failure can be told in band.
    pub(super) events: bool,
}

/// The last bytes that were passed on: whether the next ones begin an event.
#[derive(Debug, Default)]
struct Tail([u8; 4]);

impl Tail {
    fn push(&mut self, bytes: &[u8]) {
        let last = bytes
            .get(bytes.len().saturating_sub(4)..)
            .unwrap_or_default();
        self.0.rotate_left(last.len());
        let kept = self.0.len() - last.len();
        if let Some(end) = self.0.get_mut(kept..) {
            end.copy_from_slice(last);
        }
    }

    /// An event ends with an empty line; before the first byte one may begin as well.
    fn is_between_events(&self) -> bool {
        self.0.ends_with(b"\n\n") || self.0.ends_with(b"\r\n\r\n") || self.0 == [0; 4]
    }
}

type Polled = Result<Frame<Bytes>, StreamFailed>;

/// An upstream's body on its way to the client.
#[derive(Debug)]
pub(super) struct UpstreamBody {
    loan: Loan,
    record: RequestRecord,
    limits: StreamLimits,
    silence: Alarm,
    state: State,
    tail: Tail,
    /// Looks for the id of a response.
    tap: Option<Box<ResponseTap>>,
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
        loan: Loan,
        record: RequestRecord,
        limits: StreamLimits,
        mut silence: Alarm,
        tap: Option<Box<ResponseTap>>,
        span: Span,
    ) -> Self {
        silence.set(limits.deadline.min(Instant::now() + limits.idle));
        let mut this = Self {
            loan,
            record,
            limits,
            silence,
            state: State::Streaming,
            tail: Tail::default(),
            tap,
            _span: span,
        };
        // A body known to be empty is never polled.
        this.finish_if_complete();
        this
    }

    fn finish_if_complete(&mut self) {
        if self.loan.is_at_end() {
            self.finish();
        }
    }

    fn finish(&mut self) {
        self.state = State::Done;
        self.record.complete();
        if let Some(lease) = self.loan.take() {
            lease.finish();
        }
    }

    /// Gives the event that tells of it, if there can be one. The body ends with an error, a little later.
    fn fail(&mut self, failed: StreamFailed) -> Option<Bytes> {
        let failed = match self.loan.was_cut() {
            true => StreamFailed::NotRead(self.limits.idle),
            false => failed,
        };
        if let Some(lease) = self.loan.take() {
            lease.discard(CloseReason::Error);
        }
        self.record.failed(&failed);
        // In the middle of an event it would only make that one worse.
        let event = (self.limits.events && self.tail.is_between_events()).then(|| failed.event());
        self.state = State::LastWords(Box::pin(sleep(LAST_WORDS)), failed);
        event
    }

    fn poll_upstream(&mut self, cx: &mut Context<'_>) -> Poll<Option<Polled>> {
        let now = Instant::now();
        if now >= self.limits.deadline {
            return self.fail_now(cx, StreamFailed::TotalTime(self.limits.total));
        }
        let Some(polled) = self.loan.poll_frame(cx) else {
            // It was cut: the client may begin to read again.
            return self.fail_now(cx, StreamFailed::NotRead(self.limits.idle));
        };
        match polled {
            Poll::Ready(Some(Ok(frame))) => {
                self.passed_on(&frame, now);
                Poll::Ready(Some(Ok(frame)))
            }
            Poll::Ready(Some(Err(error))) => {
                self.fail_now(cx, StreamFailed::Reset(error.to_string()))
            }
            Poll::Ready(None) => {
                self.finish();
                Poll::Ready(None)
            }
            Poll::Pending => {
                std::task::ready!(self.silence.poll_passed(cx));
                let late = Instant::now() >= self.limits.deadline;
                let failed = match late {
                    true => StreamFailed::TotalTime(self.limits.total),
                    false => StreamFailed::Silent(self.limits.idle),
                };
                self.fail_now(cx, failed)
            }
        }
    }

    fn fail_now(&mut self, cx: &mut Context<'_>, failed: StreamFailed) -> Poll<Option<Polled>> {
        match self.fail(failed) {
            Some(event) => Poll::Ready(Some(Ok(Frame::data(event)))),
            None => self.poll_last_words(cx),
        }
    }

    fn poll_last_words(&mut self, cx: &mut Context<'_>) -> Poll<Option<Polled>> {
        let State::LastWords(timer, failed) = &mut self.state else {
            return Poll::Ready(None);
        };
        std::task::ready!(timer.as_mut().poll(cx));
        let failed = failed.clone();
        self.state = State::Done;
        Poll::Ready(Some(Err(failed)))
    }

    fn passed_on(&mut self, frame: &Frame<Bytes>, now: Instant) {
        let silent_until = self.limits.deadline.min(now + self.limits.idle);
        self.silence.set(silent_until);
        self.loan.moved(now);
        match frame.data_ref() {
            Some(data) => {
                self.tail.push(data);
                if let Some(tap) = &mut self.tap
                    && tap.pass(data)
                {
                    self.tap = None;
                }
                self.finish_if_complete();
            }
            // Trailers are the end: nobody asks for what comes after them.
            None => self.finish(),
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
                State::LastWords(..) => stream.poll_last_words(cx),
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
            Self::Stream(stream) => stream.loan.size_hint(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_an_event_is_seen_however_it_is_cut() {
        for (pieces, between) in [
            (&[][..], true),
            (&["data: x\n\n"][..], true),
            (&["data: x\n", "\n"], true),
            (&["data: x\r\n\r", "\n"], true),
            (&["data: x\n\n", "data: {\"choi"], false),
            (&["data: x\n"], false),
            (&["\n"], false),
        ] {
            let mut tail = Tail::default();
            pieces.iter().for_each(|piece| tail.push(piece.as_bytes()));
            assert_eq!(tail.is_between_events(), between, "{pieces:?}");
        }
    }
}
