//! The client: HTTP/1.1 over its own keep-alive connections, the newest idle one first. It never sends
//! a request twice. An idle connection that is seen to be closed before anything of a request was given to it
//! is passed over, as any client does; from then on, what becomes of the request is the gateway's doing.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Request, StatusCode, Uri, header, uri::PathAndQuery};
use http_body_util::{BodyExt as _, Full};
use hyper::{
    body::Incoming,
    client::conn::http1::{self, SendRequest},
};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use serde_json::json;
use tokio::{
    net::TcpStream,
    time::{Instant, timeout, timeout_at},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    ZeroLossError,
    answer::{Check, Cut, Reader},
    outcome::{Connection, Ended, Failure, Times, before_the_head},
    sequence::Checker,
    settings::Settings,
    upstream::name,
};

/// How long a connection may take to be ready again after a whole answer.
const READY_WITHIN: Duration = Duration::from_secs(1);
/// How long connections may take to close at the end.
const CLOSE_WITHIN: Duration = Duration::from_secs(2);

type Sender = SendRequest<Full<Bytes>>;

/// A request that is to be made.
#[derive(Debug, Clone)]
pub(crate) struct Order {
    pub(crate) index: u64,
    pub(crate) model: String,
    pub(crate) stream: bool,
    /// When it is due; times count from here, however late it is sent.
    pub(crate) due: Instant,
}

/// Makes requests.
#[derive(Debug)]
pub(crate) struct Client {
    settings: Settings,
    address: String,
    uri: Uri,
    idle: Mutex<Vec<Sender>>,
    opened: Mutex<u64>,
    connections: TaskTracker,
    stop: CancellationToken,
}

impl Client {
    pub(crate) fn new(settings: Settings) -> Result<Self, ZeroLossError> {
        let authority = settings.url.authority().ok_or(ZeroLossError::NoHost)?;
        let address = match authority.port_u16() {
            Some(_) => authority.to_string(),
            None => format!("{authority}:80"),
        };
        let path = settings.url.path().trim_end_matches('/');
        let path = PathAndQuery::try_from(format!("{path}/chat/completions"));
        Ok(Self {
            uri: Uri::from(path.map_err(|_| ZeroLossError::NoHost)?),
            address,
            settings,
            idle: Mutex::default(),
            opened: Mutex::default(),
            connections: TaskTracker::new(),
            stop: CancellationToken::new(),
        })
    }

    /// Connections opened so far.
    pub(crate) fn opened(&self) -> u64 {
        *self.opened.lock()
    }

    /// Closes every connection.
    pub(crate) async fn close(&self) {
        self.idle.lock().clear();
        self.stop.cancel();
        self.connections.close();
        // What does not close by then goes with the process.
        drop(timeout(CLOSE_WITHIN, self.connections.wait()).await);
    }

    /// Makes a request and tells how it ended.
    pub(crate) async fn run(&self, order: &Order) -> Ended {
        let deadline = Instant::now() + self.settings.timeout;
        let (mut sender, connection, head) = match timeout_at(deadline, self.send(order)).await {
            Ok(Ok(sent)) => sent,
            Ok(Err(ended)) => return ended,
            Err(_) => return Ended::Failed(Failure::Timeout),
        };
        let (head, body) = match head {
            Ok(response) => response.into_parts(),
            Err(error) => return before_the_head(&error, connection),
        };
        if head.status != StatusCode::OK {
            return Ended::Failed(Failure::Status(head.status.as_u16()));
        }
        let ended = match timeout_at(deadline, self.read(order, body)).await {
            Ok(Ok(times)) => Ended::Well(times),
            Ok(Err(cut)) => return Ended::Cut(cut),
            Err(_) => return Ended::Cut(Cut::Timeout),
        };
        if let Ok(Ok(())) = timeout(READY_WITHIN, sender.ready()).await {
            self.idle.lock().push(sender);
        }
        ended
    }

    /// Sends a request on the newest idle connection that is not seen to be closed, or on a new one.
    async fn send(
        &self,
        order: &Order,
    ) -> Result<(Sender, Connection, hyper::Result<http::Response<Incoming>>), Ended> {
        let mut request = self.request(order);
        loop {
            let idle = self.idle.lock().pop();
            let (mut sender, connection) = match idle {
                Some(sender) if sender.is_closed() => continue,
                Some(sender) => (sender, Connection::Reused),
                None => (self.connect().await?, Connection::New),
            };
            let mut failed = match sender.try_send_request(request).await {
                Ok(response) => return Ok((sender, connection, Ok(response))),
                Err(failed) => failed,
            };
            match (failed.take_message(), connection) {
                (Some(unsent), Connection::Reused) => request = unsent,
                _ => return Ok((sender, connection, Err(failed.into_error()))),
            }
        }
    }

    async fn connect(&self) -> Result<Sender, Ended> {
        let failed = Ended::Failed(Failure::Connect);
        let socket = TcpStream::connect(&self.address).await;
        let socket = socket.map_err(|_| failed)?;
        // Without it every request would be slower, but none would be lost.
        drop(socket.set_nodelay(true));
        let (sender, driver) = http1::handshake(TokioIo::new(socket))
            .await
            .map_err(|_| failed)?;
        *self.opened.lock() += 1;
        let stop = self.stop.clone();
        self.connections.spawn(async move {
            tokio::select! {
                // A connection that fails is told by the request that it carried.
                _ = driver => {}
                () = stop.cancelled() => {}
            }
        });
        Ok(sender)
    }

    fn request(&self, order: &Order) -> Request<Full<Bytes>> {
        let body = json!({
            "model": order.model,
            "stream": order.stream,
            "max_tokens": self.tokens(order),
            "messages": [{"role": "user", "content": self.name(order)}],
        });
        let mut request = Request::new(Full::new(Bytes::from(body.to_string())));
        *request.method_mut() = http::Method::POST;
        *request.uri_mut() = self.uri.clone();
        let mut add = |name: HeaderName, value: HeaderValue| {
            request.headers_mut().append(name, value);
        };
        if let Ok(host) = HeaderValue::from_str(&self.address) {
            add(header::HOST, host);
        }
        let json = HeaderValue::from_static("application/json");
        add(header::CONTENT_TYPE, json);
        for (name, value) in &self.settings.headers {
            add(name.clone(), value.clone());
        }
        request
    }

    fn name(&self, order: &Order) -> String {
        name(self.settings.seed, order.index)
    }

    fn tokens(&self, order: &Order) -> u32 {
        match order.stream {
            true => self.settings.stream_tokens,
            false => self.settings.plain_tokens,
        }
    }

    async fn read(&self, order: &Order, mut body: Incoming) -> Result<Times, Cut> {
        let check = match self.settings.upstreams.is_empty() {
            true => Check::Form { any: false },
            false => Check::Words(Checker::of(&self.name(order), self.tokens(order))),
        };
        let mut reader = Reader::new(order.stream, check);
        let mut first = None;
        let mut last = Instant::now();
        let mut silence = Duration::ZERO;
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|_| Cut::Aborted)?;
            let now = Instant::now();
            if first.is_some() {
                silence = silence.max(now - last);
            }
            first.get_or_insert(now);
            last = now;
            if let Some(data) = frame.data_ref() {
                reader.push(data);
            }
        }
        reader.end()?;
        let answered = match (order.stream, first) {
            (true, Some(first)) => first,
            _ => last,
        };
        Ok(Times {
            answer: answered - order.due,
            silence: order.stream.then_some(silence),
        })
    }
}
