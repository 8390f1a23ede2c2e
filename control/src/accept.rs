//! Accepts connections on the control port. Out of files it pauses; a peer that has gone without a word is found by the
//! kernel, and one that never says a word is hung up on: a worker behind a network that was cut in the middle of a
//! handshake leaves such a connection at each attempt. What is said is none of its business.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use socket2::{SockRef, TcpKeepalive};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    time::{Sleep, sleep},
};
use tokio_stream::Stream;
use tonic::transport::server::Connected;

/// Pause after a failed accept: out of files, most likely.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// From the connection to its first byte. Clients of gRPC speak at once.
const FIRST_WORD: Duration = Duration::from_secs(10);
/// After this long without a word the kernel asks whether there is somebody, so often, and so many times.
const ASKED_AFTER: Duration = Duration::from_secs(15);
const ASKED_EVERY: Duration = Duration::from_secs(5);
const ASKED: u32 = 3;

/// Connections as they come. Out of files, accepting pauses and says so, instead of spinning.
pub(crate) fn incoming(listener: TcpListener) -> impl Stream<Item = io::Result<Prompt<TcpStream>>> {
    futures_util::stream::unfold(listener, |listener| async {
        loop {
            let accepted = listener.accept().await;
            match accepted.and_then(|(socket, _)| prepare(&socket).map(|()| socket)) {
                Ok(socket) => return Some((Ok(Prompt::new(socket)), listener)),
                Err(error) => {
                    tracing::error!(%error, "accept failed");
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    })
}

fn prepare(socket: &TcpStream) -> io::Result<()> {
    socket.set_nodelay(true)?;
    let asked = TcpKeepalive::new()
        .with_time(ASKED_AFTER)
        .with_interval(ASKED_EVERY)
        .with_retries(ASKED);
    SockRef::from(socket).set_tcp_keepalive(&asked)
}

/// A connection whose peer has to speak soon.
#[derive(Debug)]
pub(crate) struct Prompt<Io> {
    io: Io,
    /// Until it has spoken.
    first_word: Option<Pin<Box<Sleep>>>,
}

impl<Io> Prompt<Io> {
    fn new(io: Io) -> Self {
        let first_word = Some(Box::pin(sleep(FIRST_WORD)));
        Self { io, first_word }
    }
}

impl<Io: AsyncRead + Unpin> AsyncRead for Prompt<Io> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        if let Poll::Ready(read) = Pin::new(&mut self.io).poll_read(cx, buf) {
            if buf.filled().len() > before {
                self.first_word = None;
            }
            return Poll::Ready(read);
        }
        let Some(late) = &mut self.first_word else {
            return Poll::Pending;
        };
        ready!(late.as_mut().poll(cx));
        let what = format!("the peer said nothing within {FIRST_WORD:?}");
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, what)))
    }
}

impl<Io: AsyncWrite + Unpin> AsyncWrite for Prompt<Io> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}

impl<Io: Connected> Connected for Prompt<Io> {
    type ConnectInfo = Io::ConnectInfo;

    fn connect_info(&self) -> Self::ConnectInfo {
        self.io.connect_info()
    }
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        time::{Instant, timeout},
    };

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn who_never_says_a_word_is_hung_up_on() {
        let (_silent, io) = tokio::io::duplex(64);
        let began = Instant::now();
        let read = Prompt::new(io).read_u8().await;
        assert_eq!(read.unwrap_err().kind(), io::ErrorKind::TimedOut);
        assert_eq!(began.elapsed(), FIRST_WORD);
    }

    #[tokio::test(start_paused = true)]
    async fn who_has_spoken_may_be_silent_for_as_long_as_it_likes() {
        let (mut peer, io) = tokio::io::duplex(64);
        let mut io = Prompt::new(io);
        peer.write_u8(7).await.unwrap();
        assert_eq!(io.read_u8().await.unwrap(), 7);
        assert!(timeout(FIRST_WORD * 100, io.read_u8()).await.is_err());
        drop(peer);
        let gone = io.read_u8().await.unwrap_err();
        assert_eq!(gone.kind(), io::ErrorKind::UnexpectedEof);
    }

    #[tokio::test]
    async fn the_kernel_is_told_to_look_for_peers_that_have_gone() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let mut connections = std::pin::pin!(incoming(listener));
        let _peer = TcpStream::connect(addr).await.unwrap();
        let accepted = futures_util::StreamExt::next(&mut connections).await;
        let accepted = accepted.unwrap().unwrap();
        let socket = SockRef::from(&accepted.io);
        assert!(socket.keepalive().unwrap() && accepted.io.nodelay().unwrap());
        assert_eq!(socket.tcp_keepalive_time().unwrap(), ASKED_AFTER);
        assert_eq!(socket.tcp_keepalive_interval().unwrap(), ASKED_EVERY);
        assert_eq!(socket.tcp_keepalive_retries().unwrap(), ASKED);
    }
}
