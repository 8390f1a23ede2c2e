//! The socket of an upstream connection: counts bytes where they leave, and looks at the socket
//! once more before the first byte of each request.
//!
//! The counts make "nothing was sent" a fact: a request none of whose bytes left may always be
//! sent again. It must not know about HTTP.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
};

use crate::shared_socket::SharedSocket;
use rustix::{
    event::{PollFd, PollFlags, Timespec},
    net::Shutdown,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};

/// What is known of a socket from outside the task that drives it.
#[derive(Debug)]
pub(super) struct SocketWatch {
    socket: Weak<TcpStream>,
    counts: Arc<Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    written: AtomicU64,
    read: AtomicU64,
    armed: AtomicBool,
}

impl SocketWatch {
    /// True if the peer has closed or sent something unasked: either way no request may go there.
    pub(super) fn is_dead(&self) -> bool {
        self.socket
            .upgrade()
            .is_none_or(|socket| has_events(&socket))
    }

    /// Tells the peer the end, now: the task that holds the socket may take a moment to be gone.
    pub(super) fn shut_down(&self) {
        if let Some(socket) = self.socket.upgrade() {
            // An error says that the peer was faster.
            let _ = rustix::net::shutdown(&socket, Shutdown::Both);
        }
    }

    /// A request begins: look at the socket again before its first byte.
    pub(super) fn arm(&self) {
        self.counts.armed.store(true, Ordering::Release);
    }

    /// Bytes written since the connection was made.
    pub(super) fn written(&self) -> u64 {
        self.counts.written.load(Ordering::Acquire)
    }

    /// Bytes read since the connection was made.
    pub(super) fn read(&self) -> u64 {
        self.counts.read.load(Ordering::Acquire)
    }
}

/// The socket as hyper sees it.
#[derive(Debug)]
pub(super) struct WatchedSocket {
    socket: SharedSocket,
    counts: Arc<Counts>,
}

impl WatchedSocket {
    /// Splits a socket into what hyper drives and what the pool watches. Once hyper's half is
    /// dropped the socket is closed, whoever watches.
    pub(super) fn new(socket: TcpStream) -> (Self, SocketWatch) {
        let socket = Arc::new(socket);
        let counts = Arc::new(Counts::default());
        let watch = SocketWatch {
            socket: Arc::downgrade(&socket),
            counts: counts.clone(),
        };
        let socket = SharedSocket(socket);
        (Self { socket, counts }, watch)
    }

    /// The last look before the first byte. On a hit nothing was written, so the request can be
    /// sent again elsewhere.
    fn check_armed(&self) -> io::Result<()> {
        if self.counts.armed.swap(false, Ordering::AcqRel) && has_events(&self.socket.0) {
            return Err(io::Error::new(
                io::ErrorKind::NotConnected,
                "closed by the peer while idle",
            ));
        }
        Ok(())
    }

    fn count_written(&self, result: io::Result<usize>) -> io::Result<usize> {
        let count = |n: &usize| self.counts.written.fetch_add(*n as u64, Ordering::AcqRel);
        result.inspect(|n| {
            count(n);
        })
    }
}

/// On a plain idle connection any event means it cannot be used: end of stream, an error, or bytes
/// that belong to no request (a 408 from a server that gave up on us).
fn has_events(socket: &TcpStream) -> bool {
    let mut fds = [PollFd::new(socket, PollFlags::IN | PollFlags::RDHUP)];
    match rustix::event::poll(
        &mut fds,
        Some(&Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        }),
    ) {
        Ok(events) => events > 0,
        Err(error) => error != rustix::io::Errno::INTR,
    }
}

impl AsyncRead for WatchedSocket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.socket).poll_read(cx, buf))?;
        let read = buf.filled().len().saturating_sub(before);
        self.counts.read.fetch_add(read as u64, Ordering::AcqRel);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for WatchedSocket {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[io::IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.check_armed()?;
        let result = ready!(Pin::new(&mut self.socket).poll_write_vectored(cx, bufs));
        Poll::Ready(self.count_written(result))
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }
}
