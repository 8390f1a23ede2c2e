//! The socket of an upstream connection: counts bytes where they leave, and looks at the socket
//! once more before the first byte of each request.
//!
//! The counts make "nothing was sent" a fact: a request none of whose bytes left may always be
//! sent again. It must not know about HTTP or TLS; [`Transport`] is what HTTP is spoken on.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd},
    pin::Pin,
    sync::{
        Arc, OnceLock, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
};

use super::core::Pulse;
use crate::shared_socket::{SharedSocket, Socket};
use rustix::{
    event::{PollFd, PollFlags, Timespec},
    net::Shutdown,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpStream, UnixStream},
};
use tokio_rustls::client::TlsStream;

/// A socket to an upstream.
#[derive(Debug)]
pub(super) enum UpstreamSocket {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// What bytes that come unasked mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unasked {
    /// The end: on an idle HTTP/1.1 connection in plain text nothing else is sent unasked (a 408 from a
    /// server that gave up on us).
    Death,
    /// Nothing: session tickets of TLS, settings and pings of HTTP/2.
    Talk,
}

/// What is known of a socket from outside the task that drives it.
#[derive(Debug, Clone)]
pub(super) struct SocketWatch {
    socket: Weak<UpstreamSocket>,
    counts: Arc<Counts>,
}

#[derive(Debug)]
struct Counts {
    written: AtomicU64,
    read: AtomicU64,
    armed: AtomicBool,
    /// See [`Unasked`]; known for certain when the handshakes are done.
    talkative: AtomicBool,
    /// Where it is noted that something came; known when the connection belongs to a pool.
    pulse: OnceLock<Arc<Pulse>>,
}

impl SocketWatch {
    /// True if the peer has closed, or sent something that only one who closes sends: either way no
    /// request may go there.
    pub(super) fn is_dead(&self) -> bool {
        self.socket
            .upgrade()
            .is_none_or(|socket| self.counts.see_death(&socket))
    }

    /// What bytes that come unasked mean from now on.
    pub(super) fn expect(&self, unasked: Unasked) {
        let talkative = unasked == Unasked::Talk;
        self.counts.talkative.store(talkative, Ordering::Release);
    }

    /// Whatever comes is noted there, too.
    pub(super) fn note_in(&self, pulse: Arc<Pulse>) {
        let _ = self.counts.pulse.set(pulse);
    }

    /// A request was answered as it should be, as far as its head tells.
    pub(super) fn answered(&self) {
        if let Some(pulse) = self.counts.pulse.get() {
            pulse.answered();
        }
    }

    /// Tells the peer the end, now: the task that holds the socket may take a moment to be gone.
    pub(super) fn shut_down(&self) {
        if let Some(socket) = self.socket.upgrade() {
            // An error says that the peer was faster.
            let _ = rustix::net::shutdown(&*socket, Shutdown::Both);
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

    /// Bytes read since the connection was made, those of TLS itself excluded.
    pub(super) fn read(&self) -> u64 {
        self.counts.read.load(Ordering::Acquire)
    }
}

impl Counts {
    fn see_death(&self, socket: &UpstreamSocket) -> bool {
        let flags = match self.talkative.load(Ordering::Acquire) {
            true => PollFlags::RDHUP,
            false => PollFlags::IN | PollFlags::RDHUP,
        };
        let mut fds = [PollFd::new(socket, flags)];
        let at_once = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        match rustix::event::poll(&mut fds, Some(&at_once)) {
            Ok(events) => events > 0,
            Err(error) => error != rustix::io::Errno::INTR,
        }
    }
}

/// The socket as TLS, or HTTP itself, sees it.
#[derive(Debug)]
pub(super) struct WatchedSocket {
    socket: SharedSocket<UpstreamSocket>,
    counts: Arc<Counts>,
}

impl WatchedSocket {
    /// Splits a socket into what is driven and what the pool watches. Once the driven half is
    /// dropped the socket is closed, whoever watches.
    pub(super) fn new(socket: UpstreamSocket) -> (Self, SocketWatch) {
        let socket = Arc::new(socket);
        let counts = Arc::new(Counts {
            written: AtomicU64::new(0),
            read: AtomicU64::new(0),
            armed: AtomicBool::new(false),
            talkative: AtomicBool::new(true),
            pulse: OnceLock::new(),
        });
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
        let armed = self.counts.armed.swap(false, Ordering::AcqRel);
        if armed && self.counts.see_death(&self.socket.0) {
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

impl AsyncRead for WatchedSocket {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_read(cx, buf)
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

/// What HTTP is spoken on. It counts what is read, because bytes of TLS itself are no answer.
#[derive(Debug)]
pub(super) enum Transport {
    Plain(WatchedSocket),
    Tls(Box<TlsStream<WatchedSocket>>),
}

impl Transport {
    fn counts(&self) -> &Counts {
        match self {
            Self::Plain(socket) => &socket.counts,
            Self::Tls(stream) => &stream.get_ref().0.counts,
        }
    }
}

impl AsyncRead for Transport {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(match &mut *self {
            Self::Plain(socket) => Pin::new(socket).poll_read(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
        })?;
        let read = buf.filled().len().saturating_sub(before);
        let counts = self.counts();
        counts.read.fetch_add(read as u64, Ordering::AcqRel);
        if let Some(pulse) = counts.pulse.get() {
            pulse.moved();
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Transport {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        match &mut *self {
            Self::Plain(socket) => Pin::new(socket).poll_write(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut *self {
            Self::Plain(socket) => Pin::new(socket).poll_write_vectored(cx, bufs),
            Self::Tls(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Plain(socket) => socket.is_write_vectored(),
            Self::Tls(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut *self {
            Self::Plain(socket) => Pin::new(socket).poll_flush(cx),
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut *self {
            Self::Plain(socket) => Pin::new(socket).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

impl AsFd for UpstreamSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(socket) => socket.as_fd(),
            Self::Unix(socket) => socket.as_fd(),
        }
    }
}

impl Socket for UpstreamSocket {
    fn poll_read_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Tcp(socket) => socket.poll_read_ready(cx),
            Self::Unix(socket) => socket.poll_read_ready(cx),
        }
    }

    fn read_some(&self, buf: &mut ReadBuf<'_>) -> io::Result<()> {
        match self {
            Self::Tcp(socket) => socket.read_some(buf),
            Self::Unix(socket) => socket.read_some(buf),
        }
    }

    fn poll_write_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Tcp(socket) => socket.poll_write_ready(cx),
            Self::Unix(socket) => socket.poll_write_ready(cx),
        }
    }

    fn try_write_vectored(&self, bufs: &[io::IoSlice<'_>]) -> io::Result<usize> {
        match self {
            Self::Tcp(socket) => socket.try_write_vectored(bufs),
            Self::Unix(socket) => socket.try_write_vectored(bufs),
        }
    }
}
