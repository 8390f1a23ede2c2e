//! One process of a worker takes over from another, and nobody notices.
//!
//! The old one listens on a Unix socket in its data directory; the new one, told to take over, asks there.
//!
//! ```text
//!   new                                            old
//!   Hello ────────────────────────────────────────▶ ends its configuration client in good order, so that what is in
//!                                                   force is on disk and nobody else writes there
//!         ◀──────────────────────────────── Listeners   still accepts and serves
//!   puts in force what is on disk, follows the
//!   control plane, warms its pools
//!   Ready ────────────────────────────────────────▶ accepts no more; requests and streams come to their end there
//!         ◀───────────────────────────────────── Gone
//!   serves   ◀────────────────────────── Connection …   each client's connection as it comes to rest
//!         ◀──────────────────────────────────── closes   at its end, or at the end of its grace
//! ```
//!
//! The listening sockets stay the same, and with them the line of those that are not accepted yet: nobody is refused.
//! Until `Ready` the old one goes back to what it was when the new one closes, says nothing for too long, or breaks the
//! protocol: then it says so (`Refused`), forgets what the new one tried (`trial.rs`), and begins to follow the control plane again. If the old one dies meanwhile, the
//! new one has its listeners, and serves. It must not know of HTTP; what rests is for the gateway
//! to say.

mod offer;
mod take;
mod trial;
mod wire;

use std::{
    io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::net::{TcpListener, TcpStream};

pub(crate) use self::{
    offer::{Lines, Offer},
    take::{Taken, adopt, ready, take_over},
};

/// The protocol spoken.
const VERSION: &[u8] = b"1";
/// How long the new one may take to be ready, and how long it gives itself.
const READY_WITHIN: Duration = Duration::from_secs(60);
pub(crate) const CONFIGURED_WITHIN: Duration = Duration::from_secs(40);
/// How long either may take for one message.
const SAY_WITHIN: Duration = Duration::from_secs(10);
/// The socket's name, in the worker's data directory.
const NAME: &str = "handover.sock";

/// A client's connection that is at rest: HTTP/1.1, between two requests.
#[derive(Debug)]
pub(crate) struct Resting {
    /// The connection.
    pub(crate) socket: TcpStream,
    /// What the client sent of its next request.
    pub(crate) read: Vec<u8>,
}

/// Why a hand-over did not come about.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HandoverError {
    /// The socket failed.
    #[error("the other process: {0}")]
    Io(#[from] io::Error),
    /// It said no.
    #[error("the other process refused: {0}")]
    Refused(String),
    /// It did not keep to the protocol.
    #[error("the other process {0}")]
    Protocol(&'static str),
}

impl HandoverError {
    /// The other process hung up without a word.
    fn is_hung_up(&self) -> bool {
        use io::ErrorKind::{BrokenPipe, ConnectionReset, UnexpectedEof};
        matches!(self, Self::Io(error) if matches!(error.kind(), BrokenPipe | ConnectionReset | UnexpectedEof))
    }
}

/// Where a worker with this data directory is asked.
pub(crate) fn place(data_dir: &Path) -> PathBuf {
    data_dir.join(NAME)
}

fn listener(file: OwnedFd) -> io::Result<TcpListener> {
    let listener = std::net::TcpListener::from(file);
    listener.set_nonblocking(true)?;
    TcpListener::from_std(listener)
}

fn connection(file: OwnedFd) -> io::Result<TcpStream> {
    let socket = std::net::TcpStream::from(file);
    socket.set_nonblocking(true)?;
    TcpStream::from_std(socket)
}
