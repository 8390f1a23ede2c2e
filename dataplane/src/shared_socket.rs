//! A socket that hyper drives and somebody else can look at. It is closed when hyper's half is dropped
//! and nobody else holds it.

use std::{
    io::{self, ErrorKind},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, Interest, ReadBuf},
    net::{TcpStream, UnixStream},
};

/// Whether new bytes are told of even if those before them were not all read: epoll and kqueue.
const EDGE_TRIGGERED: bool = cfg!(any(target_os = "linux", target_os = "macos"));

/// A socket that can be read and written by who merely holds a reference.
pub(crate) trait Socket {
    fn poll_read_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;
    /// Reads what is there. A read that does not fill its buffer has emptied the socket: saying so to tokio
    /// spares the read that would find nothing. It is said from within `try_io`, which knows whether
    /// something came in the meantime.
    fn read_some(&self, buf: &mut ReadBuf<'_>) -> io::Result<()>;
    fn poll_write_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;
    fn try_write_vectored(&self, bufs: &[io::IoSlice<'_>]) -> io::Result<usize>;
}

macro_rules! socket {
    ($stream:ty) => {
        impl Socket for $stream {
            fn poll_read_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
                self.poll_read_ready(cx)
            }

            fn read_some(&self, buf: &mut ReadBuf<'_>) -> io::Result<()> {
                let mut read = false;
                let tried = self.try_io(Interest::READABLE, || {
                    let room = buf.remaining();
                    let n = self.try_read_buf(buf)?;
                    read = true;
                    match EDGE_TRIGGERED && 0 < n && n < room {
                        true => Err(ErrorKind::WouldBlock.into()),
                        false => Ok(()),
                    }
                });
                if read { Ok(()) } else { tried }
            }

            fn poll_write_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
                self.poll_write_ready(cx)
            }

            fn try_write_vectored(&self, bufs: &[io::IoSlice<'_>]) -> io::Result<usize> {
                self.try_write_vectored(bufs)
            }
        }
    };
}

socket!(TcpStream);
socket!(UnixStream);

/// Reads and writes through a shared socket.
#[derive(Debug)]
pub(crate) struct SharedSocket<S>(pub(crate) Arc<S>);

impl<S: Socket> AsyncRead for SharedSocket<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            ready!(self.0.poll_read_ready(cx))?;
            match self.0.read_some(buf) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                result => return Poll::Ready(result),
            }
        }
    }
}

impl<S: Socket> AsyncWrite for SharedSocket<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[io::IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.0.poll_write_ready(cx))?;
            match self.0.try_write_vectored(bufs) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                result => return Poll::Ready(result),
            }
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    /// Nothing: vLLM takes a half-close for a disconnect, and a client is told the end by the framing.
    /// The whole socket is closed when it is dropped.
    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
