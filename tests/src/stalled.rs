//! Workers that open their stream, give signs of life, and read nothing of what they are sent. Half of them are
//! *deaf*: their connection answers pings, and the stream's window is full. The others are *frozen*: after the
//! welcome nothing is read off the socket, and TCP's window is what is full. Who is cut off comes back at once.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use forebay_proto::wire;
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpSocket, TcpStream},
    task::JoinSet,
    time::{sleep, timeout},
};
use tonic::transport::Endpoint;
use wire::from_worker::Message as Say;

use crate::{
    eventually,
    played_fleet::{OpenError, Stream, open, open_on, tell},
};

const BEAT: Duration = Duration::from_secs(1);
const PATIENCE: Duration = Duration::from_secs(10);
/// Of a frozen worker's socket: the least that the kernel takes.
const RECEIVE_BYTES: u32 = 2_048;
/// So that it is never the stream's window that a frozen worker fills.
const WIDE: u32 = 16 << 20;

/// Workers that read nothing.
#[derive(Debug)]
pub struct Stalled {
    workers: usize,
    opened: Arc<AtomicU64>,
    _stalling: JoinSet<()>,
}

impl Stalled {
    /// So many of them, each with its stream open.
    pub async fn open(control: &str, workers: usize) -> Self {
        let opened = Arc::new(AtomicU64::new(0));
        let stalling = (0..workers).map(|number| stall(control.to_owned(), number, opened.clone()));
        let stalling = stalling.collect();
        eventually("all who will stall have their streams", async || {
            (opened.load(Ordering::Relaxed) >= workers as u64).then_some(())
        })
        .await;
        Self {
            workers,
            opened,
            _stalling: stalling,
        }
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.workers
    }

    /// True if there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.workers == 0
    }

    /// Streams that they opened: more than there are of them when some were cut off.
    #[must_use]
    pub fn opened(&self) -> u64 {
        self.opened.load(Ordering::Relaxed)
    }
}

async fn stall(control: String, number: usize, opened: Arc<AtomicU64>) {
    let worker = format!("stalled-{number}");
    loop {
        let stream = match number.is_multiple_of(2) {
            true => open(&control, &worker, None).await,
            false => open_frozen(&control, &worker).await,
        };
        if let Ok((say, unread)) = stream {
            opened.fetch_add(1, Ordering::Relaxed);
            let beat = || Say::Heartbeat(wire::Heartbeat::default());
            while let Ok(true) = timeout(PATIENCE, tell(&say, beat())).await {
                sleep(BEAT).await;
            }
            drop(unread);
        }
        sleep(Duration::from_millis(fastrand::u64(10..250))).await;
    }
}

/// A stream whose socket is read up to the welcome.
async fn open_frozen(control: &str, worker: &str) -> Result<Stream, OpenError> {
    let endpoint = Endpoint::from_shared(control.to_owned())?
        .initial_stream_window_size(WIDE)
        .initial_connection_window_size(WIDE);
    let frozen = Arc::new(AtomicBool::new(false));
    let connector = tower::service_fn({
        let frozen = frozen.clone();
        move |uri: tonic::transport::Uri| connect(uri, frozen.clone())
    });
    let channel = endpoint.connect_with_connector(connector).await?;
    let (say, mut heard) = open_on(channel, worker, None).await?;
    heard.message().await?;
    frozen.store(true, Ordering::Relaxed);
    Ok((say, heard))
}

async fn connect(
    uri: tonic::transport::Uri,
    frozen: Arc<AtomicBool>,
) -> io::Result<TokioIo<Freezing>> {
    let addr = uri.authority().and_then(|at| at.as_str().parse().ok());
    let addr = addr.ok_or_else(|| io::Error::other("an address and a port"))?;
    let socket = TcpSocket::new_v4()?;
    socket.set_recv_buffer_size(RECEIVE_BYTES)?;
    let inner = socket.connect(addr).await?;
    inner.set_nodelay(true)?;
    Ok(TokioIo::new(Freezing { inner, frozen }))
}

/// A connection off which nothing more is read one day.
struct Freezing {
    inner: TcpStream,
    frozen: Arc<AtomicBool>,
}

impl AsyncRead for Freezing {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.frozen.load(Ordering::Relaxed) {
            // For good: nobody wakes it for reading.
            true => Poll::Pending,
            false => Pin::new(&mut self.inner).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Freezing {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}
