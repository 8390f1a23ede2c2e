//! Where an origin is, and how it is dialled: the socket, and TLS over it.

use std::{
    fmt, io,
    net::{IpAddr, SocketAddr},
    path::Path,
    sync::Arc,
    time::Duration,
};

use forebay_proto::{Endpoint, EndpointId, Protocol, endpoint::Address};
use http::HeaderValue;
use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::client::TlsStream;

use super::{
    core::MOST_STREAMS,
    io::{SocketWatch, Transport, UpstreamSocket, WatchedSocket},
    tls::{Tls, TlsError},
};

/// A peer that is gone without a word is noticed by the kernel: after this long without traffic it is asked,
/// every few seconds, a few times.
const ASK_AFTER: Duration = Duration::from_secs(15);
const ASK_EVERY: Duration = Duration::from_secs(5);
const ASK_TIMES: u32 = 3;
/// And so long may what was written stay unacknowledged.
const UNACKNOWLEDGED: Duration = Duration::from_secs(30);

/// An endpoint, or one address of it.
#[derive(Debug, Clone)]
pub(super) struct Target {
    pub(super) endpoint: Arc<Endpoint>,
    /// `host:port`, as it stands in the configuration.
    pub(super) host: HeaderValue,
    pub(super) place: Place,
    /// The endpoint whose source named this one, if one did.
    pub(super) source: Option<Arc<Endpoint>>,
    tls: Option<Arc<Tls>>,
}

/// What is dialled.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Place {
    Tcp(SocketAddr),
    Unix(Arc<Path>),
    /// The address of this name is not known yet.
    Name(Arc<str>),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => path.display().fmt(f),
            Self::Name(name) => name.fmt(f),
        }
    }
}

/// What dialling gave.
pub(super) struct Dialled {
    pub(super) transport: Transport,
    pub(super) watch: SocketWatch,
    /// Whether HTTP/2 is spoken.
    pub(super) http2: bool,
}

/// Why dialling failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum DialError {
    #[error("{0}")]
    Socket(io::Error),
    #[error("TLS: {0}")]
    Tls(#[from] TlsError),
    #[error("TLS: {0}")]
    Handshake(io::Error),
    #[error("the server does not offer HTTP/2 (ALPN)")]
    NoHttp2,
    #[error("the name is not resolved yet")]
    Unresolved,
}

impl Target {
    /// All of them for an endpoint, in the order of its addresses.
    pub(super) fn all(
        endpoint: &Arc<Endpoint>,
        tls: Option<Arc<Tls>>,
        known: &[IpAddr],
    ) -> Vec<Self> {
        let places = match endpoint.url.address() {
            Address::Unix(path) => vec![Place::Unix(Path::new(path).into())],
            Address::Listed(discovery) => vec![Place::Name(discovery.source.to_string().into())],
            Address::Host(host, port) => match (host.parse::<IpAddr>(), known) {
                (Ok(address), _) => vec![Place::Tcp((address, port).into())],
                (Err(_), []) => vec![Place::Name(host.into())],
                (Err(_), known) => {
                    let place = |address: &IpAddr| Place::Tcp((*address, port).into());
                    known.iter().map(place).collect()
                }
            },
        };
        let host = HeaderValue::try_from(endpoint.url.authority());
        // A url's host is ASCII without blanks.
        let host = host.unwrap_or(HeaderValue::from_static("upstream"));
        let target = |place| Self {
            endpoint: endpoint.clone(),
            host: host.clone(),
            place,
            source: None,
            tls: tls.clone(),
        };
        places.into_iter().map(target).collect()
    }

    /// The endpoint that an operator named, by its id.
    pub(super) fn belongs_to(&self) -> EndpointId {
        let named = self.source.as_ref().unwrap_or(&self.endpoint);
        named.id.clone()
    }

    /// The endpoint whose credential goes there, if any may.
    pub(super) fn whose_credential(&self) -> Option<&Endpoint> {
        let Some(source) = &self.source else {
            return Some(&self.endpoint);
        };
        let discovery = source.url.discovery();
        let sends = discovery.is_some_and(|discovery| discovery.send_credentials);
        sends.then_some(&**source)
    }

    /// The address that is dialled.
    pub(super) fn address(&self) -> Option<SocketAddr> {
        match &self.place {
            Place::Tcp(address) => Some(*address),
            Place::Unix(_) | Place::Name(_) => None,
        }
    }

    pub(super) fn is_tls(&self) -> bool {
        self.tls.is_some()
    }

    /// Its TLS, with what that remembers of the server.
    pub(super) fn tls(&self) -> Option<&Arc<Tls>> {
        self.tls.as_ref()
    }

    /// Requests that one connection will carry at a time, as far as is known before there is one.
    pub(super) fn streams(&self) -> Option<usize> {
        match self.endpoint.protocol {
            Protocol::Http1 => Some(1),
            Protocol::Http2 => Some(MOST_STREAMS),
            Protocol::Auto => None,
        }
    }

    /// Makes a connection.
    pub(super) async fn dial(&self) -> Result<Dialled, DialError> {
        let socket = self.socket().await?;
        let (socket, watch) = WatchedSocket::new(socket);
        let Some(tls) = &self.tls else {
            let http2 = self.endpoint.protocol == Protocol::Http2;
            let transport = Transport::Plain(socket);
            return Ok(Dialled {
                transport,
                watch,
                http2,
            });
        };
        // Boxed: the future of a connect without TLS would be as large as this one.
        let stream = Box::pin(handshake(tls, socket)).await?;
        let http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
        if !http2 && self.endpoint.protocol == Protocol::Http2 {
            return Err(DialError::NoHttp2);
        }
        let transport = Transport::Tls(stream);
        Ok(Dialled {
            transport,
            watch,
            http2,
        })
    }

    async fn socket(&self) -> Result<UpstreamSocket, DialError> {
        match &self.place {
            Place::Tcp(address) => {
                let socket = TcpStream::connect(address).await;
                let socket = socket.map_err(DialError::Socket)?;
                prepare(&socket).map_err(DialError::Socket)?;
                Ok(UpstreamSocket::Tcp(socket))
            }
            Place::Unix(path) => {
                let socket = UnixStream::connect(path).await;
                Ok(UpstreamSocket::Unix(socket.map_err(DialError::Socket)?))
            }
            Place::Name(_) => Err(DialError::Unresolved),
        }
    }
}

async fn handshake(
    tls: &Tls,
    socket: WatchedSocket,
) -> Result<Box<TlsStream<WatchedSocket>>, DialError> {
    let connector = tls.connector().await?;
    let stream = connector.connect(tls.server_name()?, socket).await;
    Ok(Box::new(stream.map_err(DialError::Handshake)?))
}

fn prepare(socket: &TcpStream) -> io::Result<()> {
    socket.set_nodelay(true)?;
    let socket = SockRef::from(socket);
    let keepalive = TcpKeepalive::new()
        .with_time(ASK_AFTER)
        .with_interval(ASK_EVERY)
        .with_retries(ASK_TIMES);
    socket.set_tcp_keepalive(&keepalive)?;
    #[cfg(target_os = "linux")]
    socket.set_tcp_user_timeout(Some(UNACKNOWLEDGED))?;
    Ok(())
}
