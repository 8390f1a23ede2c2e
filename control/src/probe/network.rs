//! What a probe needs of the network: addresses of a name, and a connection to one address. The two are kept
//! apart, so that between them there is a check and nothing else.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use hickory_resolver::{TokioResolver, config::LookupIpStrategy};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};

/// Time for one answer of a name server; the probe's own limit is beyond two of them.
const ANSWER_WITHIN: Duration = Duration::from_millis(800);
const ATTEMPTS: usize = 2;

/// A connection.
pub(super) trait Io: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

#[tonic::async_trait]
pub(super) trait Network: std::fmt::Debug + Send + Sync {
    /// Every address of a name.
    async fn resolve(&self, name: &str) -> Result<Vec<IpAddr>, String>;

    /// A connection to this very address.
    async fn dial(&self, to: SocketAddr) -> io::Result<Box<dyn Io>>;
}

/// The system's. Its configuration of names is read once, at the start.
#[derive(Debug)]
pub(super) struct SystemNetwork(Result<TokioResolver, String>);

impl SystemNetwork {
    pub(super) fn new() -> Self {
        let build = || {
            let mut builder = TokioResolver::builder_tokio()?;
            let options = builder.options_mut();
            // Both families: each address is checked, whichever is dialled.
            options.ip_strategy = LookupIpStrategy::Ipv4AndIpv6;
            options.timeout = ANSWER_WITHIN;
            options.attempts = ATTEMPTS;
            builder.build()
        };
        Self(build().map_err(|error| format!("no configuration of DNS: {error}")))
    }
}

#[tonic::async_trait]
impl Network for SystemNetwork {
    async fn resolve(&self, name: &str) -> Result<Vec<IpAddr>, String> {
        let resolver = self.0.as_ref().map_err(Clone::clone)?;
        let found = resolver.lookup_ip(name).await;
        let found = found.map_err(|error| error.to_string())?;
        Ok(found.iter().collect())
    }

    async fn dial(&self, to: SocketAddr) -> io::Result<Box<dyn Io>> {
        Ok(Box::new(TcpStream::connect(to).await?))
    }
}
