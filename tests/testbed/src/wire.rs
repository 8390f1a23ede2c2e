//! A wire between two hosts: a TUN device on each, and a thread that carries packets from one to the other, as two
//! [`Lane`]s say.

use std::{
    fs::{self, File},
    net::Ipv4Addr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{
    runtime,
    sync::oneshot,
    time::{Instant, sleep_until},
};
use tokio_tun::Tun;
use tokio_util::sync::CancellationToken;

use crate::{
    Counts, Lane, Namespace, Shape,
    namespace::{enter, ip},
};

/// As on Ethernet.
const MTU: &str = "1500";
/// Packets that wait in the kernel until they are fetched.
const DEVICE_QUEUE: &str = "10000";
const LARGEST: usize = 65_536;

/// Where one end is.
#[derive(Debug, Clone, Copy)]
pub struct End<'a> {
    /// The host.
    pub host: &'a Namespace,
    /// Its address on this wire.
    pub address: Ipv4Addr,
}

/// A direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// From the first end to the second.
    There,
    /// From the second end to the first.
    Back,
}

/// A wire.
#[derive(Debug)]
pub struct Wire {
    lanes: Arc<Mutex<Lanes>>,
    stop: CancellationToken,
    thread: Option<JoinHandle<u64>>,
}

#[derive(Debug)]
struct Lanes {
    there: Lane,
    back: Lane,
    /// Why it carries nothing any more.
    broken: Option<String>,
}

impl Lanes {
    fn lane(&mut self, way: Way) -> &mut Lane {
        match way {
            Way::There => &mut self.there,
            Way::Back => &mut self.back,
        }
    }
}

struct Device {
    name: String,
    door: Arc<File>,
    address: Ipv4Addr,
    peer: Ipv4Addr,
}

impl Device {
    /// Makes it on its host, where the calling thread is from now on.
    fn make(&self) -> Tun {
        enter(&self.door);
        let made = Tun::builder().name(&self.name).build();
        let made = made.expect("a TUN device can be made");
        let tun = made.into_iter().next().expect("a device of one queue");
        let (address, peer) = (self.address.to_string(), self.peer.to_string());
        ip(&["addr", "add", &address, "peer", &peer, "dev", &self.name]);
        let queue = ["txqueuelen", DEVICE_QUEUE, "up"];
        ip(&[&["link", "set", &self.name, "mtu", MTU], &queue[..]].concat());
        tun
    }

    /// Packets that were lost before they came to the wire, because it was too slow to fetch them.
    fn dropped(&self) -> u64 {
        enter(&self.door);
        let page = fs::read_to_string("/proc/thread-self/net/dev").expect("the host's devices");
        let mine = page.lines().find_map(|line| {
            let (name, numbers) = line.split_once(':')?;
            (name.trim() == self.name).then_some(numbers)
        });
        let dropped = mine.and_then(|numbers| numbers.split_whitespace().nth(11)?.parse().ok());
        dropped.expect("the device's counters")
    }
}

impl Wire {
    /// Lays one. It does nothing to packets at first.
    pub async fn between(first: End<'_>, second: End<'_>) -> Self {
        static LAID: AtomicU64 = AtomicU64::new(0);
        let name = format!("wire{}", LAID.fetch_add(1, Ordering::Relaxed));
        let device = |end: End<'_>, peer: End<'_>| Device {
            name: name.clone(),
            door: end.host.door(),
            address: end.address,
            peer: peer.address,
        };
        let devices = [device(first, second), device(second, first)];
        let lanes = Arc::new(Mutex::new(Lanes {
            there: Lane::new(fastrand::u64(..)),
            back: Lane::new(fastrand::u64(..)),
            broken: None,
        }));
        let stop = CancellationToken::new();
        let (laid, is_laid) = oneshot::channel();
        let thread = std::thread::Builder::new().name(name).spawn({
            let (lanes, stop) = (lanes.clone(), stop.clone());
            move || live(&devices, &lanes, &stop, laid)
        });
        is_laid.await.expect("the wire can be laid");
        let thread = Some(thread.expect("a thread"));
        Self {
            lanes,
            stop,
            thread,
        }
    }

    /// From now on this direction is like this.
    pub fn shape(&self, way: Way, shape: Shape) {
        let mut lanes = self.lanes.lock();
        assert_eq!(lanes.broken, None, "the wire carries");
        lanes.lane(way).shape(shape);
    }

    /// Both are.
    pub fn shape_both(&self, shape: Shape) {
        self.shape(Way::There, shape);
        self.shape(Way::Back, shape);
    }

    /// It does nothing to packets from now on.
    pub fn heal(&self) {
        self.shape_both(Shape::default());
    }

    /// What became of packets in this direction.
    #[must_use]
    pub fn counts(&self, way: Way) -> Counts {
        let mut lanes = self.lanes.lock();
        assert_eq!(lanes.broken, None, "the wire carries");
        lanes.lane(way).counts()
    }

    /// How many are under way in this direction.
    #[must_use]
    pub fn under_way(&self, way: Way) -> usize {
        self.lanes.lock().lane(way).under_way()
    }

    /// Takes it away, and tells how many packets the kernel lost before they came to it.
    #[must_use]
    pub fn end(mut self) -> u64 {
        self.stop.cancel();
        let thread = self.thread.take().expect("it ends once");
        thread.join().expect("the wire ended well")
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.stop.cancel();
        if let Some(thread) = self.thread.take() {
            // What it panicked of was told where it happened.
            let _ = thread.join();
        }
    }
}

fn live(
    devices: &[Device; 2],
    lanes: &Mutex<Lanes>,
    stop: &CancellationToken,
    laid: oneshot::Sender<()>,
) -> u64 {
    let runtime = runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.expect("a runtime");
    runtime.block_on(async {
        let ends = devices.each_ref().map(Device::make);
        if laid.send(()).is_err() {
            return 0;
        }
        let stopped = tokio::select! {
            broken = carry(&ends, lanes) => Some(broken),
            () = stop.cancelled() => None,
        };
        if let Some(why) = stopped {
            lanes.lock().broken = Some(why);
        }
        devices.iter().map(Device::dropped).sum()
    })
}

/// Carries until an end fails, and tells why.
async fn carry([first, second]: &[Tun; 2], lanes: &Mutex<Lanes>) -> String {
    let began = Instant::now();
    let mut from_first = vec![0; LARGEST];
    let mut from_second = vec![0; LARGEST];
    loop {
        let due = {
            let lanes = lanes.lock();
            let due = [lanes.there.next_due(), lanes.back.next_due()];
            due.into_iter().flatten().min()
        };
        let wait = sleep_until(began + due.unwrap_or(Duration::ZERO));
        let came = tokio::select! {
            read = first.recv(&mut from_first) => Some((Way::There, read, &from_first)),
            read = second.recv(&mut from_second) => Some((Way::Back, read, &from_second)),
            () = wait, if due.is_some() => None,
        };
        let now = began.elapsed();
        if let Some((way, read, bytes)) = came {
            match read {
                Ok(read) => {
                    let packet = bytes.get(..read).unwrap_or_default();
                    lanes.lock().lane(way).put(now, packet);
                }
                Err(error) => return format!("an end gives nothing: {error}"),
            }
        }
        for (way, to) in [(Way::There, second), (Way::Back, first)] {
            loop {
                let packet = lanes.lock().lane(way).take(now);
                let Some(packet) = packet else { break };
                if let Err(error) = to.send(&packet).await {
                    return format!("an end takes nothing: {error}");
                }
            }
        }
    }
}
