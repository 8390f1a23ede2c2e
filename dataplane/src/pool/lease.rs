//! A connection on loan to one request. Whatever happens to the request, dropping the lease gives
//! the slot back exactly once.

use std::{io, time::Duration};

use forebay_proto::{Endpoint, EndpointId};
use http::{HeaderMap, Request, Response, uri::PathAndQuery};
use hyper::{body::Incoming, client::conn::TrySendError};
use tokio::time::timeout;
use tokio_util::task::TaskTracker;

use super::{
    conn::Conn,
    core::{OriginId, Outcome},
    counters::{CloseReason, Verdict},
    desk::{Loan, Upstream as _},
    request_body::RequestBody,
    revocation::Revocation,
};

/// How long a connection may take to come to rest after a response before it is given up.
const SETTLE: Duration = Duration::from_secs(1);

/// A connection that rested for less than this is not looked at when it is handed out.
const A_MOMENT: Duration = Duration::from_millis(5);

/// Whether the connection had carried a request before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// It is on its first request.
    New,
    /// It was kept warm.
    Reused,
}

/// Where a request stands when it failed, as counted at the socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// No byte of it left: it can be sent again.
    NothingSent,
    /// It left, in part or whole, and nothing came back.
    Sent,
    /// Part of an answer came.
    Answered,
}

/// A failed send.
#[derive(Debug)]
pub struct SendFailed {
    /// How far it came.
    pub progress: Progress,
    /// What went wrong.
    pub error: SendError,
}

impl SendFailed {
    /// The connection was closed or reset while the request was on its way, and nothing came back.
    #[must_use]
    pub fn is_unanswered_close(&self) -> bool {
        let SendError::Connection(error) = &self.error else {
            return false;
        };
        let closed = |error: &io::Error| {
            use io::ErrorKind as Kind;
            matches!(
                error.kind(),
                Kind::ConnectionReset
                    | Kind::ConnectionAborted
                    | Kind::BrokenPipe
                    | Kind::NotConnected
                    | Kind::UnexpectedEof
            )
        };
        let source = std::error::Error::source(error);
        let plain = source.and_then(|source| source.downcast_ref::<io::Error>());
        let framed = source.and_then(|source| source.downcast_ref::<h2::Error>());
        let io = plain.or(framed.and_then(h2::Error::get_io));
        self.progress == Progress::Sent
            && (error.is_incomplete_message() || error.is_canceled() || io.is_some_and(closed))
    }
}

/// The server says that it did not look at the request: it may be sent again (RFC 9113 §8.7).
fn is_refused(error: &hyper::Error) -> bool {
    let source = std::error::Error::source(error);
    let framed = source.and_then(|source| source.downcast_ref::<h2::Error>());
    framed.is_some_and(|error| {
        let reason = error.reason();
        let refused = error.is_reset() && reason == Some(h2::Reason::REFUSED_STREAM);
        let going = error.is_go_away() && error.is_remote();
        refused || (going && reason == Some(h2::Reason::NO_ERROR))
    })
}

/// What went wrong with a send.
#[derive(Debug, thiserror::Error)]
pub enum SendError {
    /// The connection failed.
    #[error("{}", with_cause(.0))]
    Connection(hyper::Error),
    /// The lease had been returned before.
    #[error("the connection was returned before the request was sent")]
    Returned,
}

/// hyper tells what it was doing; why that failed is in the error's source.
fn with_cause(error: &hyper::Error) -> String {
    match std::error::Error::source(error) {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    }
}

/// The `timeout` parameter of a `Keep-Alive` header (RFC 2068 §19.7.1.1, and what servers make of it).
fn announced(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get("keep-alive")?.to_str().ok()?;
    let timeout = text.split(',').find_map(|parameter| {
        let (name, value) = parameter.split_once('=')?;
        name.trim().eq_ignore_ascii_case("timeout").then_some(value)
    })?;
    let seconds: u32 = timeout.trim().parse().ok()?;
    Some(Duration::from_secs(seconds.into()))
}

/// A connection on loan.
#[derive(Debug)]
pub struct Lease {
    loan: Loan<Conn>,
    /// Where it waits for the connection to come to rest.
    tasks: TaskTracker,
    endpoint: EndpointId,
    kind: Kind,
    written: u64,
    read: u64,
    /// The server declined the request, and only that.
    declined: bool,
}

impl Lease {
    /// `None` if the loan is over.
    pub(super) fn new(loan: Loan<Conn>, tasks: TaskTracker) -> Option<Self> {
        let held = loan.held()?;
        Some(Self {
            endpoint: held.conn.endpoint.clone(),
            kind: match held.uses > 1 {
                true => Kind::Reused,
                false => Kind::New,
            },
            written: held.conn.watch.written(),
            read: held.conn.watch.read(),
            declined: false,
            loan,
            tasks,
        })
    }

    /// The endpoint at the other end.
    #[must_use]
    pub fn endpoint(&self) -> &EndpointId {
        &self.endpoint
    }

    /// True if the connection was made to this endpoint, at this url; or to a server that its source named, where that may
    /// lead now, with the same trust.
    #[must_use]
    pub fn leads_to(&self, endpoint: &Endpoint) -> bool {
        let Some(held) = self.loan.held() else {
            return false;
        };
        let conn = &held.conn;
        match (&conn.source, endpoint.url.discovery()) {
            (None, None) => conn.endpoint == endpoint.id && conn.at.url == endpoint.url,
            (Some((source, at)), Some(discovery)) => {
                let tls = |endpoint: &Endpoint| (endpoint.url.is_tls(), endpoint.tls.clone());
                source.id == endpoint.id
                    && discovery.bounds.check(*at).is_ok()
                    && tls(source) == tls(endpoint)
            }
            (Some(_), None) | (None, Some(_)) => false,
        }
    }

    /// The endpoint of the operator's, as it was when the connection was made.
    pub(crate) fn made_for(&self) -> Option<&Endpoint> {
        let conn = &self.loan.held()?.conn;
        let source = conn.source.as_ref().map(|(source, _)| source);
        Some(source.unwrap_or(&conn.at))
    }

    /// Told when the share of a fleet-wide limit that it uses is lost.
    pub(crate) fn revocation(&self) -> Option<Revocation> {
        self.loan.held()?.revocation().cloned()
    }

    /// Writes on the request where it goes, in the way of the connection's protocol.
    pub fn address(&self, path: PathAndQuery, request: &mut Request<RequestBody>) {
        if let Some(held) = self.loan.held() {
            held.conn.address(path, request);
        }
    }

    /// The address at the other end.
    pub(super) fn origin(&self) -> Option<OriginId> {
        self.loan.held().map(|held| held.origin)
    }

    /// Notes what its answer says of the endpoint. Of a good one from a sound endpoint nothing more is noted than that
    /// it came.
    pub fn judge(&self, verdict: Verdict) {
        let Some(held) = self.loan.held() else { return };
        if verdict == Verdict::Answered {
            held.conn.watch.answered();
            if !held.in_question {
                return;
            }
        }
        self.loan.desk().judge(held.origin, verdict);
    }

    /// Whether the connection is new.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// True if it can carry a request, as far as can be seen.
    pub(super) fn is_live(&self) -> bool {
        self.loan.held().is_some_and(|held| held.conn.is_live())
    }

    /// True if it can carry a request, as far as can be seen without a needless look: one that was in use a
    /// moment ago is looked at before its first byte, as all are, and is as likely to be closed between two looks.
    pub(super) fn seems_live(&self) -> bool {
        self.loan
            .held()
            .is_some_and(|held| match held.rested() < A_MOMENT {
                true => !held.conn.is_closed(),
                false => held.conn.is_live(),
            })
    }

    /// Sends a request and waits for the response head. The body is the caller's to read; the lease
    /// must outlive it.
    pub async fn send(
        &mut self,
        request: Request<RequestBody>,
    ) -> Result<Response<Incoming>, SendFailed> {
        let returned = || SendFailed {
            progress: Progress::NothingSent,
            error: SendError::Returned,
        };
        let held = self.loan.start().ok_or_else(returned)?;
        let (result, origin) = (held.conn.send(request).await, held.origin);
        let response = match result.ok_or_else(returned)? {
            Ok(response) => response,
            Err(error) => return Err(self.failed(error)),
        };
        if let Some(timeout) = announced(response.headers()) {
            let desk = self.loan.desk();
            desk.with(|inner, _| inner.core.announce(origin, timeout));
        }
        Ok(response)
    }

    fn failed(&mut self, mut error: TrySendError<Request<RequestBody>>) -> SendFailed {
        let returned = error.take_message().is_some();
        let error = error.into_error();
        self.declined = is_refused(&error);
        let progress = match self.loan.held() {
            // What its socket carries is not this request's alone.
            Some(held) if held.shared => match returned || self.declined {
                true => Progress::NothingSent,
                false => Progress::Sent,
            },
            Some(held) => {
                let written = held.conn.watch.written() - self.written;
                let read = held.conn.watch.read() - self.read;
                match (returned || written == 0, read) {
                    (true, _) => Progress::NothingSent,
                    (false, 0) => Progress::Sent,
                    (false, _) => Progress::Answered,
                }
            }
            None => Progress::NothingSent,
        };
        SendFailed {
            progress,
            error: SendError::Connection(error),
        }
    }

    /// Its answer is a stream, and that took so long to begin.
    pub fn answered_after(&mut self, took: Duration) {
        self.loan.answered_after(took);
    }

    /// The response was read to its end: the connection goes back to be used again.
    pub fn finish(self) {
        match self.loan.held().is_none_or(|held| held.conn.is_ready()) {
            true => self.loan.give_back(Outcome::Reusable),
            false => drop(self.tasks.spawn(settle(self.loan))),
        }
    }

    /// The connection cannot be used again.
    pub fn discard(self, reason: CloseReason) {
        self.loan.give_back(match self.declined {
            true => Outcome::Declined,
            false => Outcome::Broken(reason),
        });
    }
}

/// Waits for hyper to bring the connection to rest. If the upstream asked for it to be closed, it
/// never does.
async fn settle(mut loan: Loan<Conn>) {
    let Some(conn) = loan.conn_mut() else { return };
    let outcome = match timeout(SETTLE, conn.ready()).await {
        Ok(true) => Outcome::Reusable,
        Ok(false) | Err(_) => Outcome::Finished,
    };
    loan.give_back(outcome);
}
