//! One open upstream connection: hyper's handle to send on, and the watch on its socket.

use std::{io, sync::Arc, time::Duration};

use bytes::Bytes;
use forebay_proto::{Endpoint, EndpointId};
use http_body_util::Full;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::{net::TcpStream, task::AbortHandle, time::timeout};

use super::io::{SocketWatch, WatchedSocket};

/// Most bytes of a response head, and of what hyper buffers of a response.
const BUFFER: usize = 64 * 1024;

/// The task that drives a connection until it is closed.
pub(super) type Driver = http1::Connection<TokioIo<WatchedSocket>, Full<Bytes>>;

/// An open connection.
#[derive(Debug)]
pub(super) struct Conn {
    pub(super) sender: SendRequest<Full<Bytes>>,
    pub(super) watch: SocketWatch,
    pub(super) endpoint: EndpointId,
    /// `host:port`, as it was dialled.
    pub(super) authority: Arc<str>,
    /// Ends the driver, and with it the socket; set once the driver runs.
    pub(super) driver: Option<AbortHandle>,
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub(super) enum ConnectError {
    #[error("no connection within {0:?}")]
    Timeout(Duration),
    #[error("{0}")]
    Socket(#[from] io::Error),
    #[error("{0}")]
    Handshake(#[from] hyper::Error),
}

/// Dials an endpoint. The driver must be polled for anything to happen on the connection.
pub(super) async fn connect(
    endpoint: &Endpoint,
    within: Duration,
) -> Result<(Conn, Driver), ConnectError> {
    let authority: Arc<str> = endpoint.url.authority().into();
    let dial = async {
        let socket = TcpStream::connect(&*authority).await?;
        socket.set_nodelay(true)?;
        let (socket, watch) = WatchedSocket::new(socket);
        let (sender, driver) = http1::Builder::new()
            .max_buf_size(BUFFER)
            .handshake(TokioIo::new(socket))
            .await?;
        let (endpoint, authority) = (endpoint.id.clone(), authority.clone());
        Ok((
            Conn {
                sender,
                watch,
                endpoint,
                authority,
                driver: None,
            },
            driver,
        ))
    };
    timeout(within, dial)
        .await
        .unwrap_or(Err(ConnectError::Timeout(within)))
}

impl Conn {
    /// Closes the socket now. Dropping hyper's handle would leave it open for as long as a body is held
    /// or a write is stuck.
    pub(super) fn close(self) {
        // In this order: a driver that still ran would take our own end for the upstream's.
        if let Some(driver) = self.driver {
            driver.abort();
        }
        self.watch.shut_down();
    }

    /// True if a request could be sent now, as far as can be seen. A driver that has not run yet
    /// is no reason to give up a new connection, so this does not ask whether hyper is ready.
    pub(super) fn is_live(&self) -> bool {
        !self.sender.is_closed() && !self.watch.is_dead()
    }
}
