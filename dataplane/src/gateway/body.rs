//! The bodies of answers: our own, and an upstream's passed on frame by frame with back-pressure.
//!
//! A passed-on body owns the connection it comes from. Read to its end it gives the connection back;
//! dropped before (the client went away) it closes it, which cancels the generation; failed, it tells
//! the client and never ends cleanly. Frames are read in passing, and neither buffered nor changed, unless the
//! model's configuration asks for it.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use tokio::time::{Instant, Sleep, sleep};
use tokio_util::sync::WaitForCancellationFutureOwned;
use tracing::Span;

use super::{
    alarm::Alarm,
    keep_alive::{COMMENT, Waiting},
    passing::{Content, Passing},
    record::{CLIENT_CLOSED, RequestRecord, StreamEnd},
    responses::ResponseTap,
    sse::TooLong,
    stream_style::StreamStyle,
    strip::Strip,
    watchdog::Loan,
};
use crate::{
    ending::{Ending, Stage},
    metrics::Source,
    pool::{CloseReason, Fault, Verdict},
};

/// Gives the error event, and what came before it, time to leave before the connection is torn down.
pub(super) const LAST_WORDS: Duration = Duration::from_millis(20);

/// A body that ended in failure.
#[derive(Debug, Clone, thiserror::Error)]
pub(super) enum StreamFailed {
    #[error("the upstream closed the connection in the middle of its answer: {0}")]
    Reset(String),
    #[error("the upstream was silent for {0:?} in the middle of its answer")]
    Silent(Duration),
    #[error("the answer took longer than the {0:?} that a request may take")]
    TotalTime(Duration),
    #[error("the upstream's answer ended without an end")]
    Unfinished,
    #[error("the upstream's stream has {0}")]
    TooLong(TooLong),
    #[error("the client did not read its answer within {0:?}")]
    NotRead(Duration),
    #[error("the worker stops, and the answer was not finished within its grace")]
    Draining,
    #[error(
        "the worker is cut off from the control plane, and what it was lent of the model's limit has run out before the \
         answer was finished"
    )]
    LeaseLost,
    /// Before its head, after the client got ours.
    #[error("{message}")]
    Refused {
        message: String,
        code: &'static str,
        status: u16,
        by: Source,
    },
}

impl StreamFailed {
    fn code(&self) -> &'static str {
        match self {
            Self::Reset(_) | Self::Unfinished | Self::TooLong(_) => "upstream_reset",
            Self::Silent(_) | Self::TotalTime(_) => "upstream_timeout",
            Self::NotRead(_) => "client_stalled",
            Self::Draining => "draining",
            Self::LeaseLost => "lease_lost",
            Self::Refused { code, .. } => code,
        }
    }

    /// By whom it came about.
    pub(super) fn source(&self) -> Source {
        match self {
            Self::Reset(_)
            | Self::Unfinished
            | Self::TooLong(_)
            | Self::Silent(_)
            | Self::TotalTime(_) => Source::Upstream,
            Self::NotRead(_) => Source::Client,
            Self::Draining | Self::LeaseLost => Source::Gateway,
            Self::Refused { by, .. } => *by,
        }
    }

    /// The status that it would have had before the head was sent, for metrics.
    pub(super) fn status(&self) -> u16 {
        match self {
            Self::Reset(_) | Self::Unfinished | Self::TooLong(_) => 502,
            Self::Silent(_) | Self::TotalTime(_) => 504,
            Self::NotRead(_) => CLIENT_CLOSED,
            Self::Draining | Self::LeaseLost => 503,
            Self::Refused { status, .. } => *status,
        }
    }

    /// As the last event of a stream.
    pub(super) fn event(&self, style: StreamStyle) -> Bytes {
        style.error_event(&self.to_string(), self.code())
    }
}

/// What the gateway answers with.
#[derive(Debug)]
pub(super) enum ResponseBody {
    /// Our own words.
    Full(Option<Bytes>),
    /// An upstream's.
    Stream(Box<UpstreamBody>),
    /// Comments, until there is an answer to pass on.
    Waiting(Box<Waiting>),
}

impl ResponseBody {
    pub(super) fn full(bytes: Bytes) -> Self {
        Self::Full(Some(bytes))
    }
}

/// What a body gives.
pub(super) type Polled = Result<Frame<Bytes>, StreamFailed>;

/// The limits of a passed-on body, and what is known of it beforehand.
#[derive(Debug, Clone, Copy)]
pub(super) struct StreamLimits {
    /// Longest silence.
    pub(super) idle: Duration,
    /// When the request must be over.
    pub(super) deadline: Instant,
    /// What the deadline came from, for the message.
    pub(super) total: Duration,
    /// What comes.
    pub(super) content: Content,
    /// Its length was told: nothing can be said in it that the upstream did not say.
    pub(super) lengthed: bool,
    /// Its end is told by its framing. Otherwise the end of the connection is all there is, and may be anything.
    pub(super) framed: bool,
    /// The usage was asked for by us, and is not for the client.
    pub(super) strip: bool,
    /// Comments in a stream that is silent for this long.
    pub(super) keep_alive: Option<Duration>,
}

/// An upstream's body on its way to the client.
#[derive(Debug)]
pub(super) struct UpstreamBody {
    loan: Loan,
    record: RequestRecord,
    limits: StreamLimits,
    silence: Alarm,
    state: State,
    ending: Arc<Ending>,
    reading: Passing,
    /// Looks for the id of a response.
    tap: Option<Box<ResponseTap>>,
    strip: Option<Strip>,
    /// Rings when it is time for a comment.
    comments: Option<Pin<Box<Sleep>>>,
    /// Told when what it uses of a fleet-wide limit is lost.
    revoked: Option<Pin<Box<WaitForCancellationFutureOwned>>>,
    end: StreamEnd,
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
        (span, ending): (Span, Arc<Ending>),
    ) -> Self {
        silence.set(limits.deadline.min(Instant::now() + limits.idle));
        let comments = limits.keep_alive.filter(|_| limits.tells_events());
        let revocation = loan.revocation();
        let mut this = Self {
            loan,
            record,
            limits,
            silence,
            state: State::Streaming,
            ending,
            reading: Passing::of(limits.content),
            tap,
            strip: limits.strip.then(Strip::default),
            comments: comments.map(|every| Box::pin(sleep(every))),
            revoked: revocation.map(|revocation| Box::pin(revocation.told())),
            end: StreamEnd::ClientGone,
            _span: span,
        };
        // A body known to be empty is never polled.
        if this.loan.is_at_end() {
            this.finish();
        }
        this
    }

    fn finish(&mut self) {
        self.state = State::Done;
        let error = self.reading.stream().is_some_and(|seen| seen.error);
        self.end = match (error, self.reading.is_complete()) {
            (true, _) => StreamEnd::ErrorEvent,
            (false, Some(false)) => StreamEnd::Unterminated,
            (false, _) => StreamEnd::Complete,
        };
        match error {
            true => self.record.told_of_error(),
            false => self.record.complete(),
        }
        if let Some(lease) = self.loan.take() {
            lease.finish();
        }
    }

    /// Gives the event that tells of it, if there can be one. The body ends with an error, a little later.
    fn fail(&mut self, failed: StreamFailed) -> Option<Bytes> {
        let failed = match self.loan.was_cut() {
            true => StreamFailed::NotRead(self.loan.stall()),
            false => failed,
        };
        if let Some(lease) = self.loan.take() {
            if matches!(failed, StreamFailed::Reset(_)) {
                lease.judge(Verdict::Broken(Fault::Cut));
            }
            lease.discard(CloseReason::Error);
        }
        self.end = match failed {
            StreamFailed::NotRead(_) => StreamEnd::NotRead,
            _ => StreamEnd::Cut,
        };
        self.record.failed(&failed);
        // In the middle of an event it would only make that one worse.
        let style = self.limits.style().filter(|_| self.is_between_events());
        let event = style.map(|style| failed.event(style));
        self.state = State::LastWords(Box::pin(sleep(LAST_WORDS)), failed);
        event
    }

    /// As the client sees it: what is held back is not there.
    fn is_between_events(&self) -> bool {
        self.limits.tells_events()
            && match &self.strip {
                Some(strip) if strip.is_holding() => true,
                _ => self.reading.is_between_events(),
            }
    }

    fn poll_upstream(&mut self, cx: &mut Context<'_>) -> Poll<Option<Polled>> {
        loop {
            let now = Instant::now();
            if now >= self.limits.deadline {
                return self.fail_now(cx, StreamFailed::TotalTime(self.limits.total));
            }
            if self.ending.has_reached(Stage::Cut) {
                return self.fail_now(cx, StreamFailed::Draining);
            }
            if self.poll_revoked(cx).is_ready() {
                return self.fail_now(cx, StreamFailed::LeaseLost);
            }
            let Some(polled) = self.loan.poll_frame(cx) else {
                // It was cut: the client may begin to read again.
                return self.fail_now(cx, StreamFailed::NotRead(self.loan.stall()));
            };
            match polled {
                Poll::Ready(Some(Ok(frame))) => match self.pass(frame, now) {
                    Ok(Some(frame)) => return Poll::Ready(Some(Ok(frame))),
                    Ok(None) if matches!(self.state, State::Streaming) => {}
                    Ok(None) => return Poll::Ready(None),
                    Err(failed) => return self.fail_now(cx, failed),
                },
                Poll::Ready(Some(Err(error))) => {
                    return self.fail_now(cx, StreamFailed::Reset(error.to_string()));
                }
                Poll::Ready(None) => return self.ended(cx),
                Poll::Pending => return self.poll_silence(cx),
            }
        }
    }

    fn poll_revoked(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let revoked = self.revoked.as_mut();
        revoked.map_or(Poll::Pending, |revoked| revoked.as_mut().poll(cx))
    }

    /// The upstream's body is over.
    fn ended(&mut self, cx: &mut Context<'_>) -> Poll<Option<Polled>> {
        if !self.limits.framed && self.reading.is_complete() == Some(false) {
            return self.fail_now(cx, StreamFailed::Unfinished);
        }
        self.finish();
        let rest = self.strip.as_mut().map(Strip::rest);
        let rest = rest.filter(|rest| !rest.is_empty());
        Poll::Ready(rest.map(|rest| Ok(Frame::data(rest))))
    }

    fn poll_silence(&mut self, cx: &mut Context<'_>) -> Poll<Option<Polled>> {
        if self.silence.poll_passed(cx).is_ready() {
            let late = Instant::now() >= self.limits.deadline;
            let failed = match late {
                true => StreamFailed::TotalTime(self.limits.total),
                false => StreamFailed::Silent(self.limits.idle),
            };
            return self.fail_now(cx, failed);
        }
        if self.comments.is_some() && self.is_between_events() {
            return self.poll_comment(cx);
        }
        Poll::Pending
    }

    fn poll_comment(&mut self, cx: &mut Context<'_>) -> Poll<Option<Polled>> {
        let (Some(comments), Some(every)) = (&mut self.comments, self.limits.keep_alive) else {
            return Poll::Pending;
        };
        std::task::ready!(comments.as_mut().poll(cx));
        let now = Instant::now();
        comments.as_mut().reset(now + every);
        self.loan.gave(now);
        Poll::Ready(Some(Ok(Frame::data(COMMENT))))
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

    /// What the client gets of a frame.
    fn pass(
        &mut self,
        frame: Frame<Bytes>,
        now: Instant,
    ) -> Result<Option<Frame<Bytes>>, StreamFailed> {
        let silent_until = self.limits.deadline.min(now + self.limits.idle);
        self.silence.set(silent_until);
        self.loan.moved(now);
        if let (Some(comments), Some(every)) = (&mut self.comments, self.limits.keep_alive) {
            comments.as_mut().reset(now + every);
        }
        let data = match frame.into_data() {
            Ok(data) => data,
            Err(_) => {
                // Trailers are the end, and not passed on: they are headers that nobody looked through.
                self.finish();
                let held = self.strip.as_mut().map(Strip::rest);
                let held = held.filter(|held| !held.is_empty());
                return Ok(held.map(Frame::data));
            }
        };
        if let Some(tap) = &mut self.tap
            && tap.pass(&data)
        {
            self.tap = None;
        }
        let data = match &mut self.strip {
            None => {
                let read = self.reading.push(&data, |_| {});
                read.map_err(StreamFailed::TooLong)?;
                data
            }
            Some(strip) => {
                let mut ends = Vec::new();
                let read = self.reading.push(&data, |end| ends.push(end));
                read.map_err(StreamFailed::TooLong)?;
                strip.pass(data, &ends)
            }
        };
        if !self.loan.is_at_end() {
            return Ok((!data.is_empty()).then(|| Frame::data(data)));
        }
        self.finish();
        let rest = self.strip.as_mut().map(Strip::rest).unwrap_or_default();
        let data = match rest.is_empty() {
            true => data,
            false => Bytes::from([data, rest].concat()),
        };
        Ok((!data.is_empty()).then(|| Frame::data(data)))
    }
}

impl Drop for UpstreamBody {
    fn drop(&mut self) {
        // Dropped with its connection, because nobody read it: it was not asked again.
        if matches!(self.state, State::Streaming) && self.loan.was_cut() {
            self.end = StreamEnd::NotRead;
            self.record
                .failed(&StreamFailed::NotRead(self.loan.stall()));
        }
        let end = self.reading.stream().map(|_| self.end);
        self.record.told(self.reading.told(), end);
    }
}

impl StreamLimits {
    fn style(&self) -> Option<StreamStyle> {
        match self.content {
            Content::Events(style) => Some(style),
            Content::Json | Content::Other => None,
        }
    }

    /// Something of ours can be told in it.
    fn tells_events(&self) -> bool {
        self.style().is_some() && !self.lengthed
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = StreamFailed;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, StreamFailed>>> {
        let this = self.get_mut();
        if let Self::Waiting(waiting) = this {
            match std::task::ready!(waiting.poll(cx)) {
                Ok(begun) => *this = begun,
                Err(event) => return Poll::Ready(event),
            }
        }
        match this {
            Self::Waiting(_) => Poll::Pending,
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
            Self::Waiting(_) => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Full(bytes) => {
                SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64))
            }
            Self::Stream(stream) if stream.strip.is_none() => stream.loan.size_hint(),
            Self::Stream(_) | Self::Waiting(_) => SizeHint::default(),
        }
    }
}
