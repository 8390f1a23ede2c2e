//! What TCP makes of a network that loses and delays packets, as far as its users notice: what is lost is sent again,
//! after twice as long each time, and all that is behind it waits. turmoil's own connections know nothing of that: over a
//! link that is cut for a while they stay dead for ever.
//!
//! Losses of acknowledgements are left out: they cost bytes and no time.

use std::{io, sync::Arc, time::Duration};

use fastrand::Rng;
use parking_lot::Mutex;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, ReadHalf, WriteHalf, duplex},
    sync::mpsc,
    time::{Instant, sleep, sleep_until},
};
use turmoil::net::TcpStream;

/// What is sent again first after this.
const AGAIN_FIRST: Duration = Duration::from_millis(200);
const AGAIN_MOST: Duration = Duration::from_secs(120);
/// A connection that nobody answered is asked for again first after this.
const CONNECT_AGAIN: Duration = Duration::from_secs(1);
const SEGMENT: usize = 1_400;
const WINDOW: usize = 64 << 10;
const UNDER_WAY: usize = 256;

/// A direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    ToControl,
    ToWorkers,
}

/// What a direction is like.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Shape {
    pub(super) cut: bool,
    /// Connections are made all the same.
    pub(super) handshakes_pass: bool,
    /// The share of packets that are lost.
    pub(super) loss: f64,
    pub(super) delay: Duration,
}

/// The network between workers and control plane.
#[derive(Clone)]
pub(super) struct Network(Arc<Mutex<State>>);

struct State {
    dice: Rng,
    shapes: [Shape; 2],
}

impl Network {
    pub(super) fn new(seed: u64) -> Self {
        Self(Arc::new(Mutex::new(State {
            dice: Rng::with_seed(seed),
            shapes: [Shape::default(); 2],
        })))
    }

    pub(super) fn shape(&self, way: Way, shape: Shape) {
        self.0.lock().shapes[way as usize] = shape;
    }

    pub(super) fn heal(&self) {
        self.shape(Way::ToControl, Shape::default());
        self.shape(Way::ToWorkers, Shape::default());
    }

    fn delay(&self, way: Way) -> Duration {
        self.0.lock().shapes[way as usize].delay
    }

    /// A packet is put on it now: does it arrive?
    fn passes(&self, way: Way, is_handshake: bool) -> bool {
        let mut state = self.0.lock();
        let shape = state.shapes[way as usize];
        let cut = shape.cut && !(is_handshake && shape.handshakes_pass);
        !cut && state.dice.f64() >= shape.loss
    }

    /// When a packet has arrived that is sent again until it does.
    async fn arrives(&self, way: Way) {
        let mut again = AGAIN_FIRST;
        while !self.passes(way, false) {
            sleep(again).await;
            again = (again * 2).min(AGAIN_MOST);
        }
    }

    /// A connection from a worker; who waits for it gives up by itself.
    pub(super) async fn connect(&self, to: (&str, u16)) -> io::Result<DuplexStream> {
        let mut again = CONNECT_AGAIN;
        while !(self.passes(Way::ToControl, true) && self.passes(Way::ToWorkers, true)) {
            sleep(again).await;
            again = (again * 2).min(AGAIN_MOST);
        }
        sleep(self.delay(Way::ToControl) + self.delay(Way::ToWorkers)).await;
        Ok(self.over(Way::ToControl, TcpStream::connect(to).await?))
    }

    /// An end of a connection that sends in this direction. What carries it outlives it, as a kernel does: what was
    /// written is sent, and so is the end.
    pub(super) fn over(&self, way: Way, socket: TcpStream) -> DuplexStream {
        let (end, inner) = duplex(WINDOW);
        let (from_end, to_end) = tokio::io::split(inner);
        let (from_net, to_net) = socket.into_split();
        let (send, sent) = mpsc::channel(UNDER_WAY);
        tokio::task::spawn_local(put_on(self.clone(), way, from_end, send));
        tokio::task::spawn_local(take_off(sent, to_net));
        tokio::task::spawn_local(hand_in(from_net, to_end));
        end
    }
}

/// Reads what is written at the end and puts it on the network; nothing is its end.
async fn put_on(
    network: Network,
    way: Way,
    mut from: ReadHalf<DuplexStream>,
    to: mpsc::Sender<(Instant, Vec<u8>)>,
) {
    loop {
        let mut segment = vec![0; SEGMENT];
        let read = from.read(&mut segment).await.unwrap_or_default();
        segment.truncate(read);
        network.arrives(way).await;
        let due = Instant::now() + network.delay(way);
        if to.send((due, segment)).await.is_err() || read == 0 {
            return;
        }
    }
}

async fn take_off(
    mut from: mpsc::Receiver<(Instant, Vec<u8>)>,
    mut to: turmoil::net::tcp::OwnedWriteHalf,
) {
    while let Some((due, segment)) = from.recv().await {
        sleep_until(due).await;
        let written = match segment.is_empty() {
            true => to.shutdown().await,
            false => to.write_all(&segment).await,
        };
        if written.is_err() {
            return;
        }
    }
}

async fn hand_in(mut from: turmoil::net::tcp::OwnedReadHalf, mut to: WriteHalf<DuplexStream>) {
    let mut bytes = vec![0; SEGMENT];
    loop {
        match from.read(&mut bytes).await {
            Ok(read) if read > 0 => {
                if to.write_all(&bytes[..read]).await.is_err() {
                    return;
                }
            }
            // Closed, or reset: there is no difference to who reads here.
            _ => {
                drop(to.shutdown().await);
                return;
            }
        }
    }
}
