//! The bodies of answers: whole, or token by token with the faults of a stream. Dropped before its
//! end, a body counts as cancelled.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use serde_json::Value;
use tokio::time::{Instant, Sleep, sleep};

use crate::{
    config::Faults,
    connection::{Busy, Fate},
    openai::Answer,
    serve::Shared,
    stats::Counts,
};

/// Counts the end of a request, however it comes.
#[derive(Debug)]
pub(crate) struct InFlight {
    counts: Arc<Counts>,
    completed: bool,
}

impl InFlight {
    pub(crate) fn new(counts: Arc<Counts>) -> Self {
        Self {
            counts,
            completed: false,
        }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.counts.end(self.completed);
    }
}

/// What the mock answers with.
#[derive(Debug)]
pub(crate) struct MockBody {
    content: Content,
    /// Keeps the connection from counting as idle while the body is on its way.
    _busy: Option<Busy>,
}

#[derive(Debug)]
enum Content {
    Whole(Option<Bytes>, Option<InFlight>),
    Tokens(Box<Tokens>),
}

impl MockBody {
    pub(crate) fn whole(value: &Value, in_flight: Option<InFlight>) -> Self {
        Self::bytes(Bytes::from(value.to_string()), in_flight)
    }

    pub(crate) fn bytes(bytes: Bytes, in_flight: Option<InFlight>) -> Self {
        let content = Content::Whole(Some(bytes), in_flight);
        Self {
            content,
            _busy: None,
        }
    }

    pub(crate) fn tokens(tokens: Tokens) -> Self {
        Self {
            content: Content::Tokens(Box::new(tokens)),
            _busy: None,
        }
    }

    pub(crate) fn holding(self, busy: Busy) -> Self {
        Self {
            _busy: Some(busy),
            ..self
        }
    }
}

/// A stream of tokens.
#[derive(Debug)]
pub(crate) struct Tokens {
    shared: Arc<Shared>,
    answer: Answer,
    faults: Faults,
    fate: Arc<Fate>,
    in_flight: InFlight,
    interval: Duration,
    timer: Pin<Box<Sleep>>,
    step: Step,
}

#[derive(Debug, Clone, Copy)]
enum Step {
    Opening,
    Token(u32),
    Closing,
    Done,
    Over,
}

impl Tokens {
    pub(crate) fn new(
        shared: Arc<Shared>,
        answer: Answer,
        faults: Faults,
        fate: Arc<Fate>,
        in_flight: InFlight,
    ) -> Self {
        let interval = shared.config.interval;
        in_flight.counts.stream();
        let timer = Box::pin(sleep(Duration::ZERO));
        Self {
            shared,
            answer,
            faults,
            fate,
            in_flight,
            interval,
            timer,
            step: Step::Opening,
        }
    }

    fn poll_event(&mut self, cx: &mut Context<'_>) -> Poll<Option<io::Result<Bytes>>> {
        loop {
            match self.step {
                Step::Opening => {
                    self.step = Step::Token(0);
                    if let Some(event) = self.answer.opening() {
                        return Poll::Ready(Some(Ok(event)));
                    }
                }
                Step::Token(n) if n >= self.answer.tokens => self.step = Step::Closing,
                Step::Token(n) => return self.poll_token(n, cx),
                Step::Closing => {
                    self.step = Step::Done;
                    if let Some(event) = self.answer.closing() {
                        return Poll::Ready(Some(Ok(event)));
                    }
                }
                Step::Done => {
                    self.step = Step::Over;
                    self.in_flight.completed = true;
                    self.shared.keep(&self.answer, self.answer.response(), None);
                    if !self.faults.no_done {
                        return Poll::Ready(Some(Ok(self.answer.end())));
                    }
                }
                Step::Over => return Poll::Ready(None),
            }
        }
    }

    fn poll_token(&mut self, n: u32, cx: &mut Context<'_>) -> Poll<Option<io::Result<Bytes>>> {
        ready!(self.timer.as_mut().poll(cx));
        if self.faults.stall_mid_stream_after == Some(n) {
            return Poll::Pending;
        }
        if self.faults.reset_mid_stream_after == Some(n) {
            self.fate.reset();
            self.step = Step::Over;
            return Poll::Ready(Some(Err(io::ErrorKind::ConnectionReset.into())));
        }
        if self.faults.error_event_after == Some(n) {
            self.step = Step::Done;
            return Poll::Ready(Some(Ok(self.answer.death())));
        }
        self.in_flight.counts.token();
        // A timer of zero would still take a millisecond.
        if !self.interval.is_zero() {
            self.timer.as_mut().reset(Instant::now() + self.interval);
        }
        self.step = Step::Token(n + 1);
        Poll::Ready(Some(Ok(self.answer.event(n))))
    }
}

impl Body for MockBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        match &mut self.get_mut().content {
            Content::Whole(bytes, in_flight) => {
                if let Some(in_flight) = in_flight {
                    in_flight.completed = true;
                }
                Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes))))
            }
            Content::Tokens(tokens) => tokens.poll_event(cx).map_ok(Frame::data),
        }
    }

    fn is_end_stream(&self) -> bool {
        matches!(self.content, Content::Whole(None, _))
    }

    fn size_hint(&self) -> SizeHint {
        match &self.content {
            Content::Whole(bytes, _) => {
                SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64))
            }
            Content::Tokens(_) => SizeHint::default(),
        }
    }
}
