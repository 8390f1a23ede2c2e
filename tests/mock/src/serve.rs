//! The server: accepts, routes, answers, and stops without leaving a task behind.

use std::{convert::Infallible, io, net::SocketAddr, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, Version, header};
use http_body_util::{BodyExt as _, Limited};
use hyper::body::Incoming;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::{
    net::{TcpListener, UnixListener},
    sync::Notify,
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_rustls::TlsAcceptor;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    config::{Faults, MockConfig},
    connection::{self, Fate},
    extras,
    form::Form,
    kind::Kind,
    openai::{self, Answer, Asked},
    responses::Responses,
    socket::Listener,
    stats::{Counts, MockStats},
    stream::{InFlight, MockBody, Tokens},
    tls, typed,
};

const RESPONSES: &str = "/v1/responses/";
const MOST_BODY: usize = 64 << 20;
const BODY_WITHIN: Duration = Duration::from_secs(60);

pub(crate) struct Shared {
    pub(crate) config: MockConfig,
    pub(crate) tls: Option<TlsAcceptor>,
    pub(crate) counts: Arc<Counts>,
    pub(crate) faults: Mutex<Faults>,
    /// HTTP/2 connections are told to go.
    pub(crate) going: Notify,
    responses: Mutex<Responses>,
}

impl Shared {
    /// Keeps a response, if it is one that is to be kept.
    pub(crate) fn keep(&self, answer: &Answer, whole: Value, background: Option<Duration>) {
        if answer.kind == Kind::Responses && answer.asked.stores() {
            self.responses.lock().keep(&answer.id, whole, background);
        }
    }
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Shared").field(&self.config).finish()
    }
}

/// A running mock. Dropping it stops it at once.
pub struct MockServer {
    addr: SocketAddr,
    shared: Arc<Shared>,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl MockServer {
    /// Starts to serve.
    pub async fn start(config: MockConfig) -> io::Result<Self> {
        let (listener, addr) = match &config.unix {
            Some(path) => (Listener::Unix(UnixListener::bind(path)?), config.listen),
            None => {
                let listener = TcpListener::bind(config.listen).await?;
                let addr = listener.local_addr()?;
                (Listener::Tcp(listener), addr)
            }
        };
        let tls = config.tls.as_ref();
        let tls = tls
            .map(|tls| tls::acceptor(tls, config.speaks))
            .transpose()?;
        let shared = Arc::new(Shared {
            config,
            tls,
            counts: Arc::default(),
            faults: Mutex::default(),
            going: Notify::new(),
            responses: Mutex::default(),
        });
        let stop = CancellationToken::new();
        let tasks = TaskTracker::new();
        tasks.spawn(accept(listener, shared.clone(), stop.clone()));
        tasks.close();
        Ok(Self {
            addr,
            shared,
            stop,
            tasks,
        })
    }

    /// Where it listens.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Its origin.
    #[must_use]
    pub fn url(&self) -> String {
        match (&self.shared.config.unix, &self.shared.tls) {
            (Some(path), _) => format!("unix://{}", path.display()),
            (None, Some(_)) => format!("https://{}", self.addr),
            (None, None) => format!("http://{}", self.addr),
        }
    }

    /// Counts at this instant.
    #[must_use]
    pub fn stats(&self) -> MockStats {
        self.shared.counts.snapshot()
    }

    /// Begins to count anew; what is open stays counted as open.
    pub fn reset_stats(&self) {
        self.shared.counts.reset();
    }

    /// Changes what goes wrong, from now on.
    pub fn set_faults(&self, faults: Faults) {
        *self.shared.faults.lock() = faults;
    }

    /// Tells every HTTP/2 connection that it takes no more requests (GOAWAY), and answers those that it has.
    pub fn go_away(&self) {
        self.shared.going.notify_waiters();
    }

    /// Closes every connection at once and waits until nothing is left.
    pub async fn stop(self) {
        self.stop.cancel();
        self.tasks.wait().await;
    }
}

impl Drop for MockServer {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl std::fmt::Debug for MockServer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("MockServer").field(&self.url()).finish()
    }
}

async fn accept(listener: Listener, shared: Arc<Shared>, stop: CancellationToken) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok(socket) => drop(connections.spawn(connection::serve(shared.clone(), socket))),
                Err(error) => {
                    tracing::warn!(%error, "accept failed");
                    sleep(Duration::from_millis(50)).await;
                }
            },
            Some(_) = connections.join_next() => {}
            () = stop.cancelled() => break,
        }
    }
    drop(listener);
    connections.shutdown().await;
}

pub(crate) async fn answer(
    shared: Arc<Shared>,
    fate: Arc<Fate>,
    request: Request<Incoming>,
) -> Result<Response<MockBody>, Infallible> {
    let (path, version) = (request.uri().path().to_owned(), request.version());
    let mut response = match (request.method(), path.as_str()) {
        (&Method::GET, "/health") => health(&shared).await,
        (&Method::GET, "/version") => plain(&json!({"version": "0.0.0-mock"})),
        (&Method::GET, "/v1/models") => plain(&openai::models(&shared.config.models)),
        (&Method::GET, "/__stats") => plain(&json!(shared.counts.snapshot())),
        (&Method::POST, "/__reset") => {
            shared.counts.reset();
            plain(&json!({}))
        }
        (&Method::PUT, "/__faults") => set_faults(&shared, request).await,
        (&Method::POST, path) if Kind::of(path).is_some() => {
            let busy = fate.busy();
            let response = infer(&shared, &fate, request).await;
            response.map(|body| body.holding(busy))
        }
        (_, path) if path.starts_with(RESPONSES) => {
            let busy = fate.busy();
            kept(&shared, &request).map(|body| body.holding(busy))
        }
        _ => failed(404, "NotFoundError", "Not Found"),
    };
    let headers = response.headers_mut();
    headers.insert(header::SERVER, HeaderValue::from_static("uvicorn"));
    if let Ok(name) = HeaderValue::from_str(&shared.config.name) {
        headers.insert("x-mock-name", name);
    }
    // HTTP/2 has no such header.
    if version < Version::HTTP_2 && shared.faults.lock().close_after_response {
        headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    Ok(response)
}

async fn health(shared: &Shared) -> Response<MockBody> {
    let (stalls, status) = {
        let faults = shared.faults.lock();
        (faults.health_stalls, faults.health)
    };
    if stalls {
        std::future::pending::<()>().await;
    }
    match status {
        Some(status) => failed(status, "EngineDeadError", "as asked"),
        None => plain(&json!({})),
    }
}

async fn set_faults(shared: &Shared, request: Request<Incoming>) -> Response<MockBody> {
    let faults = match read(request.into_body()).await {
        Ok(body) => serde_json::from_slice(&body).map_err(|error| error.to_string()),
        Err(error) => Err(error),
    };
    match faults {
        Ok(faults) => {
            *shared.faults.lock() = faults;
            plain(&json!({}))
        }
        Err(error) => failed(400, "BadRequestError", &error),
    }
}

/// What is to be done with a response that is kept.
fn kept(shared: &Shared, request: &Request<Incoming>) -> Response<MockBody> {
    let traceparent = text(request, "traceparent");
    shared.counts.begin(None, traceparent.as_deref());
    let in_flight = InFlight::new(shared.counts.clone());
    let rest = request.uri().path().strip_prefix(RESPONSES);
    let rest = rest.unwrap_or_default();
    let unknown = |id: &str| {
        let message = format!("Response with id '{id}' not found.");
        openai::error(404, "NotFoundError", &message)
    };
    let (status, answer) = match (request.method(), rest.strip_suffix("/cancel")) {
        (&Method::POST, Some(id)) => match shared.responses.lock().cancel(id) {
            Some(Ok(response)) => (200, response),
            Some(Err(message)) => (400, openai::error(400, "BadRequestError", message)),
            None => (404, unknown(id)),
        },
        (&Method::GET, None) => match shared.responses.lock().get(rest) {
            Some(response) => (200, response),
            None => (404, unknown(rest)),
        },
        _ => (405, json!({"detail": "Method Not Allowed"})),
    };
    whole(status, &answer, in_flight)
}

async fn infer(
    shared: &Arc<Shared>,
    fate: &Arc<Fate>,
    request: Request<Incoming>,
) -> Response<MockBody> {
    let traceparent = text(&request, "traceparent");
    let fits = shared
        .counts
        .begin(shared.config.max_in_flight, traceparent.as_deref());
    let in_flight = InFlight::new(shared.counts.clone());
    let refused = |status: u16, kind: &str, message: &str, in_flight| {
        whole(status, &openai::error(status, kind, message), in_flight)
    };
    if !fits {
        return refused(503, "ServiceUnavailableError", "over limit", in_flight);
    }
    let wanted = shared
        .config
        .api_key
        .as_ref()
        .map(|key| format!("Bearer {key}"));
    if wanted.is_some() && text(&request, "authorization") != wanted {
        return whole(401, &json!({"error": "Unauthorized"}), in_flight);
    }
    let agent = text(&request, "user-agent");
    let request_id = text(&request, "x-request-id").unwrap_or_else(Responses::new_number);
    let kind = Kind::of(request.uri().path()).unwrap_or(Kind::Chat);
    let asked = match asked(shared, kind, request).await {
        Ok(asked) => asked,
        Err(error) => return refused(400, "BadRequestError", &error, in_flight),
    };
    let models = &shared.config.models;
    if !models.is_empty() && !models.contains(&asked.model) {
        let message = format!("The model `{}` does not exist.", asked.model);
        let error = match kind {
            Kind::Messages | Kind::CountTokens => typed::error("NotFoundError", &message),
            _ => openai::error_of(404, "NotFoundError", &message, Some("model")),
        };
        return whole(404, &error, in_flight);
    }
    if let Some((message, field)) = extras::refusal(kind, &asked) {
        let error = openai::error_of(400, "BadRequestError", &message, Some(field));
        return whole(400, &error, in_flight);
    }
    let previous = asked.previous_response_id.as_deref();
    if let Some(id) = previous.filter(|id| shared.responses.lock().get(id).is_none()) {
        let message = format!("Response with id '{id}' not found.");
        return refused(404, "NotFoundError", &message, in_flight);
    }
    shared.counts.model(&asked.model);
    let id = match kind {
        Kind::Responses => Responses::new_id(),
        kind => format!("{}-{request_id}", kind.prefix()),
    };
    let script = shared.config.script.as_deref();
    let answer = Answer::new(kind, asked, id, shared.config.tokens, script);
    generate(shared, fate, (answer, agent), in_flight).await
}

/// What a request asks for. Without a model it is the one that is served, as vLLM has it.
async fn asked(shared: &Shared, kind: Kind, request: Request<Incoming>) -> Result<Asked, String> {
    let content_type = text(&request, "content-type").unwrap_or_default();
    let body = read(request.into_body()).await?;
    let mut asked = match kind.is_form() {
        true => Asked::form(&Form::read(&content_type, &body)?)?,
        false => serde_json::from_slice(&body).map_err(|error| error.to_string())?,
    };
    if asked.model.is_empty() {
        asked.model = shared.config.models.first().cloned().unwrap_or_default();
    }
    Ok(asked)
}

async fn generate(
    shared: &Arc<Shared>,
    fate: &Arc<Fate>,
    (mut answer, agent): (Answer, Option<String>),
    in_flight: InFlight,
) -> Response<MockBody> {
    let (reset, stall, status, faults) = {
        let mut faults = shared.faults.lock();
        let reset = Faults::take(&mut faults.reset_before_response);
        let stall = Faults::take(&mut faults.stall_before_response);
        let meant = faults.status_to.is_none() || faults.status_to == agent;
        let status = faults
            .status
            .filter(|_| meant && Faults::take(&mut faults.status_for));
        (reset, stall, status, faults.clone())
    };
    if reset {
        fate.reset();
        std::future::pending::<()>().await;
    }
    if stall {
        std::future::pending::<()>().await;
    }
    sleep(shared.config.latency).await;
    if let Some(status) = status {
        let error = openai::error(status, "MockedError", "as asked");
        let mut response = whole(status, &error, in_flight);
        if let Some(seconds) = faults.retry_after {
            let seconds = HeaderValue::from(seconds);
            response.headers_mut().insert(header::RETRY_AFTER, seconds);
        }
        return response;
    }
    if answer.wants_stream() {
        let tokens = Tokens::new(shared.clone(), answer, faults, fate.clone(), in_flight);
        let events = "text/event-stream; charset=utf-8";
        return response(200, MockBody::tokens(tokens), events);
    }
    let takes = shared.config.interval.saturating_mul(answer.tokens);
    if answer.kind == Kind::Responses && answer.asked.background {
        let done = answer.whole();
        shared.keep(&answer, done.clone(), Some(takes));
        let (id, model) = (&answer.id, &answer.asked.model);
        let queued = typed::response(id, model, "queued", "", answer.tokens);
        return whole(200, &queued, in_flight);
    }
    // A whole answer takes as long as its tokens would.
    if answer.kind.generates() || answer.kind == Kind::Embedding {
        sleep(takes).await;
    }
    if answer.kind == Kind::Speech {
        // The head of a WAV file, and silence.
        let sound = Bytes::from([b"RIFF\0\0\0\0WAVE".as_slice(), &[0; 4096]].concat());
        return response(200, MockBody::bytes(sound, Some(in_flight)), "audio/wav");
    }
    let answered = answer.whole();
    shared.keep(&answer, answered.clone(), None);
    whole(200, &answered, in_flight)
}

async fn read(body: Incoming) -> Result<Bytes, String> {
    match timeout(BODY_WITHIN, Limited::new(body, MOST_BODY).collect()).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err("the body did not arrive in time".to_owned()),
    }
}

fn text(request: &Request<Incoming>, name: &str) -> Option<String> {
    Some(request.headers().get(name)?.to_str().ok()?.to_owned())
}

fn plain(value: &Value) -> Response<MockBody> {
    json_response(200, MockBody::whole(value, None))
}

fn failed(status: u16, kind: &str, message: &str) -> Response<MockBody> {
    json_response(
        status,
        MockBody::whole(&openai::error(status, kind, message), None),
    )
}

fn whole(status: u16, value: &Value, in_flight: InFlight) -> Response<MockBody> {
    json_response(status, MockBody::whole(value, Some(in_flight)))
}

fn json_response(status: u16, body: MockBody) -> Response<MockBody> {
    response(status, body, "application/json")
}

fn response(status: u16, body: MockBody, content_type: &'static str) -> Response<MockBody> {
    let mut response = Response::new(body);
    *response.status_mut() =
        StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let content_type = HeaderValue::from_static(content_type);
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, content_type);
    response
}
