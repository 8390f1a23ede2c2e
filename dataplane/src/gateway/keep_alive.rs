//! Comments to a client whose stream has not begun: a long prefill, a long line. For clients that asked for a stream,
//! of models that are configured so.
//!
//! The first comment commits the answer to status 200. From then on what goes wrong is told by an error event, and
//! whatever is tried again before the upstream's first byte happens behind the comments.

use std::{
    fmt,
    future::Future,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderValue, Response, header};
use http_body::Frame;
use http_body_util::{BodyExt as _, Limited};
use tokio::time::{Instant, Sleep, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::Span;

use super::{
    body::{LAST_WORDS, Polled, ResponseBody, StreamFailed},
    error::GatewayError,
    headers,
    passing::Told,
    proxy::{Answer, Proxy},
    record::{RequestRecord, StreamEnd},
    stream_style::StreamStyle,
    watchdog::Watch,
};
use crate::{ending::Stage, metrics::Source, pool::CloseReason, trace_context::within};

/// What every reader of a stream skips.
pub(super) const COMMENT: Bytes = Bytes::from_static(b": keep-alive\n\n");
/// How much of an upstream's error is read, and for how long.
const MOST_ERROR: usize = 64 * 1024;
const ERROR_WITHIN: Duration = Duration::from_secs(5);

/// A request on its way.
pub(super) type Sending = Pin<Box<dyn Future<Output = Result<Answer, GatewayError>> + Send>>;
type Begun = Pin<Box<dyn Future<Output = Result<Answer, Failure>> + Send>>;

/// How a client is given comments, and for how long.
#[derive(Debug, Clone, Copy)]
pub(super) struct Comments {
    pub(super) every: Duration,
    pub(super) style: StreamStyle,
    /// Longest silence of an answer.
    pub(super) idle: Duration,
    /// When the request must be over.
    pub(super) deadline: Instant,
}

/// A request whose client is given comments from now on.
pub(super) struct Late {
    sending: Sending,
    comments: Comments,
    span: Span,
}

/// Why there is no stream, and what is said of it.
struct Failure {
    failed: StreamFailed,
    event: Bytes,
}

impl Late {
    /// The answer, if it is there in time.
    pub(super) async fn or_in_time(
        mut sending: Sending,
        comments: Comments,
    ) -> Result<Result<Answer, GatewayError>, Self> {
        let within = timeout(comments.every, &mut sending);
        within.await.map_err(|_| Self {
            sending,
            comments,
            span: Span::current(),
        })
    }

    /// The answer that begins with comments.
    pub(super) fn response(
        self,
        proxy: Arc<Proxy>,
        record: RequestRecord,
        hangup: CancellationToken,
    ) -> Response<ResponseBody> {
        // Comments are no answer: the record is told when one begins.
        let Comments {
            every,
            style,
            idle,
            deadline,
        } = self.comments;
        // An upstream's error may be read for some time after the deadline.
        let (deadline, watchdog) = (deadline + ERROR_WITHIN, &proxy.watchdog);
        let waiting = Waiting {
            begun: Box::pin(self.begun()),
            comments: Box::pin(sleep(Duration::ZERO)),
            every,
            style,
            watch: watchdog.watch(every, idle, deadline, hangup.clone()),
            over: None,
            left: Some((proxy, record, hangup)),
        };
        let mut response = Response::new(ResponseBody::Waiting(Box::new(waiting)));
        let headers = response.headers_mut();
        let events = HeaderValue::from_static("text/event-stream; charset=utf-8");
        headers.insert(header::CONTENT_TYPE, events);
        headers::for_stream(headers);
        response
    }

    /// The stream, or else what is said in its place.
    async fn begun(self) -> Result<Answer, Failure> {
        let style = self.comments.style;
        let answer = within(&self.span, pin!(self.sending)).await;
        let answer = answer.map_err(|error| {
            let failed = error.in_stream();
            let event = failed.event(style);
            Failure { failed, event }
        })?;
        match answer.is_stream() {
            true => Ok(answer),
            false => Err(refused(answer, style).await),
        }
    }
}

/// An answer that is no stream: its error is told as one.
async fn refused(answer: Answer, style: StreamStyle) -> Failure {
    let (response, lease) = answer.into_parts();
    let status = response.status();
    let body = Limited::new(response.into_body(), MOST_ERROR).collect();
    let body = timeout(ERROR_WITHIN, body).await;
    let body = body.ok().and_then(Result::ok);
    match &body {
        Some(_) => lease.finish(),
        None => lease.discard(CloseReason::Error),
    }
    let message = format!("the upstream answered with status {status}, and no stream");
    let told = body.filter(|_| !status.is_success()).and_then(|body| {
        let value: serde_json::Value = serde_json::from_slice(&body.to_bytes()).ok()?;
        value
            .get("error")
            .filter(|error| error.is_object())
            .cloned()
    });
    let code = if status.is_success() {
        502
    } else {
        status.as_u16()
    };
    let failed = StreamFailed::Refused {
        message,
        code: "upstream_error",
        status: code,
        by: Source::Upstream,
    };
    let event = match told {
        Some(error) => style.passed_error(error),
        None => failed.event(style),
    };
    Failure { failed, event }
}

/// A body of comments, until there is an answer.
pub(super) struct Waiting {
    begun: Begun,
    comments: Pin<Box<Sleep>>,
    every: Duration,
    style: StreamStyle,
    watch: Watch,
    /// The error event was given; the body is torn down when the timer ends.
    over: Option<(Pin<Box<Sleep>>, StreamFailed)>,
    left: Option<(Arc<Proxy>, RequestRecord, CancellationToken)>,
}

impl Waiting {
    /// The body that takes its place, or what is given meanwhile.
    pub(super) fn poll(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<ResponseBody, Option<Polled>>> {
        if let Some((timer, failed)) = &mut self.over {
            std::task::ready!(timer.as_mut().poll(cx));
            return Poll::Ready(Err(Some(Err(failed.clone()))));
        }
        self.watch.asked();
        let cut = |(proxy, ..): &(Arc<Proxy>, _, _)| proxy.ending.has_reached(Stage::Cut);
        if self.left.as_ref().is_some_and(cut) {
            let failed = StreamFailed::Draining;
            let event = failed.event(self.style);
            return self.fail(Failure { failed, event });
        }
        match self.begun.as_mut().poll(cx) {
            Poll::Ready(Ok(answer)) => {
                let Some((proxy, record, hangup)) = self.left.take() else {
                    return Poll::Ready(Err(None));
                };
                let response = proxy.pass_on(answer, record, hangup);
                Poll::Ready(Ok(response.into_body()))
            }
            Poll::Ready(Err(failure)) => self.fail(failure),
            Poll::Pending => {
                std::task::ready!(self.comments.as_mut().poll(cx));
                self.comments.as_mut().reset(Instant::now() + self.every);
                Poll::Ready(Err(Some(Ok(Frame::data(COMMENT)))))
            }
        }
    }
}

impl Waiting {
    /// The last event, and then the end.
    fn fail(
        &mut self,
        Failure { failed, event }: Failure,
    ) -> Poll<Result<ResponseBody, Option<Polled>>> {
        if let Some((_, mut record, _)) = self.left.take() {
            record.told(Told::default(), Some(StreamEnd::Cut));
            record.failed(&failed);
        }
        self.over = Some((Box::pin(sleep(LAST_WORDS)), failed));
        Poll::Ready(Err(Some(Ok(Frame::data(event)))))
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        if let Some(stall) = self.watch.was_cut()
            && let Some((_, record, _)) = &mut self.left
        {
            record.told(Told::default(), Some(StreamEnd::NotRead));
            record.failed(&StreamFailed::NotRead(stall));
        }
    }
}

impl fmt::Debug for Waiting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Waiting").finish_non_exhaustive()
    }
}
