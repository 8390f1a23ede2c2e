//! A client that asks and leaves.

use std::{net::SocketAddr, time::Duration};

use bytes::Bytes;
use h2::{Reason, RecvStream, SendStream, client::ResponseFuture};
use http::Request;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    sync::oneshot,
    task::JoinSet,
    time::{Instant, timeout},
};

use super::{
    Moment, PATIENCE, Way,
    upstream::{Expected, Upstream},
};

pub(super) struct Leaver<'a> {
    gateway: SocketAddr,
    upstream: &'a Upstream,
    model: String,
    asked: Option<Asked>,
    gone: Option<oneshot::Receiver<Instant>>,
}

enum Asked {
    Plain(TcpStream),
    Framed(Framed),
}

struct Framed {
    stream: SendStream<Bytes>,
    answer: Option<ResponseFuture>,
    body: Option<RecvStream>,
    driver: JoinSet<()>,
}

fn told(error: impl std::fmt::Display) -> String {
    error.to_string()
}

impl<'a> Leaver<'a> {
    pub(super) fn new(gateway: SocketAddr, upstream: &'a Upstream, model: &str) -> Self {
        Self {
            gateway,
            upstream,
            model: model.to_owned(),
            asked: None,
            gone: None,
        }
    }

    /// Asks, and waits until the moment has come (but for that of waiting in line).
    pub(super) async fn ask(&mut self, moment: Moment, way: Way, name: &str) -> Result<(), String> {
        let (arrived, has_arrived) = oneshot::channel();
        if moment != Moment::Queued {
            let (gone, is_gone) = oneshot::channel();
            self.gone = Some(is_gone);
            self.upstream.expect(name, Expected { arrived, gone });
        }
        let asking = async {
            let socket = TcpStream::connect(self.gateway).await.map_err(told)?;
            let body = body(&self.model, moment);
            let mut asked = match way {
                Way::ResetStream | Way::DropConnection => framed(socket, name, body).await?,
                Way::Fin | Way::Rst | Way::FinAfterByte => plain(socket, name, &body).await?,
            };
            if moment != Moment::Queued {
                has_arrived.await.map_err(told)?;
            }
            if moment == Moment::MidStream {
                asked.first_byte().await?;
            }
            Ok::<Asked, String>(asked)
        };
        let asked = timeout(PATIENCE, asking).await;
        self.asked = Some(asked.map_err(|_| "it was not served".to_owned())??);
        Ok(())
    }

    /// Leaves, and gives how long it took the upstream to hear of it.
    pub(super) async fn leave(&mut self, way: Way) -> Result<Duration, String> {
        let gone = self.gone.take().ok_or("it did not ask")?;
        let left = self.go(way).await;
        let gone = timeout(PATIENCE, gone).await;
        let gone = gone.map_err(|_| "the upstream does not hear of it".to_owned())?;
        Ok(gone.map_err(told)?.saturating_duration_since(left))
    }

    /// Leaves, and tells when.
    pub(super) async fn go(&mut self, way: Way) -> Instant {
        let left = Instant::now();
        match (&mut self.asked, way) {
            (Some(Asked::Plain(socket)), Way::Rst) => {
                let linger =
                    rustix::net::sockopt::set_socket_linger(&*socket, Some(Duration::ZERO));
                linger.expect("the socket is ours");
                self.asked = None;
            }
            // Closed with bytes unread it would send a RST.
            (Some(Asked::Plain(socket)), Way::FinAfterByte) => {
                drop(socket.write_all(b"G").await);
                drop(socket.shutdown().await);
            }
            (Some(Asked::Plain(socket)), _) => drop(socket.shutdown().await),
            (Some(Asked::Framed(framed)), Way::ResetStream) => {
                framed.stream.send_reset(Reason::CANCEL);
            }
            (Some(Asked::Framed(framed)), _) => framed.driver.abort_all(),
            (None, _) => {}
        }
        left
    }
}

impl Asked {
    async fn first_byte(&mut self) -> Result<(), String> {
        match self {
            Self::Plain(socket) => {
                let mut bytes = Vec::new();
                while !String::from_utf8_lossy(&bytes).contains("data: ") {
                    let read = socket.read_buf(&mut bytes).await.map_err(told)?;
                    (read > 0).then_some(()).ok_or("closed before")?;
                }
            }
            Self::Framed(framed) => {
                let answer = framed.answer.take().ok_or("asked twice")?;
                let mut body = answer.await.map_err(told)?.into_body();
                let first = body.data().await.ok_or("no data")?;
                first.map_err(told)?;
                framed.body = Some(body);
            }
        }
        Ok(())
    }
}

/// The word after which the upstream begins to answer stands in it.
fn body(model: &str, moment: Moment) -> String {
    let (stream, say) = match moment {
        Moment::MidStream => (true, "begin"),
        Moment::Whole => (false, "wait"),
        Moment::Queued | Moment::BeforeFirstByte => (true, "wait"),
    };
    format!(
        r#"{{"messages":[{{"role":"user","content":"{say}"}}],"model":"{model}","stream":{stream}}}"#
    )
}

async fn plain(mut socket: TcpStream, name: &str, body: &str) -> Result<Asked, String> {
    let head = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nx-request-id: {name}\r\n\
         content-type: application/json\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    let request = head + body;
    socket.write_all(request.as_bytes()).await.map_err(told)?;
    Ok(Asked::Plain(socket))
}

async fn framed(socket: TcpStream, name: &str, body: String) -> Result<Asked, String> {
    let (mut sender, connection) = h2::client::handshake(socket).await.map_err(told)?;
    let mut driver = JoinSet::new();
    driver.spawn(async move { drop(connection.await) });
    let request = Request::post("http://x/v1/chat/completions")
        .header("x-request-id", name)
        .header("content-type", "application/json")
        .body(())
        .map_err(told)?;
    let (answer, mut stream) = sender.send_request(request, false).map_err(told)?;
    stream.send_data(Bytes::from(body), true).map_err(told)?;
    Ok(Asked::Framed(Framed {
        stream,
        answer: Some(answer),
        body: None,
        driver,
    }))
}
