//! That a wire does what it says, seen from the hosts at its ends; and that nothing is left of a bed whose process was
//! killed. Lower bounds are strict; upper ones leave room for a busy machine.

use std::{
    fs, io,
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};

use forebay_testbed::{Counts, Cut, End, MOST_PACKETS, Namespace, Shape, Way, Wire};
use forebay_tests::{Process, eventually};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream, UdpSocket},
    task::JoinSet,
    time::{Instant, sleep, timeout},
};

const HERE: Ipv4Addr = Ipv4Addr::new(10, 78, 0, 1);
const THERE: Ipv4Addr = Ipv4Addr::new(10, 78, 0, 2);
/// Repeats every datagram.
const ECHO: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(THERE), 7);
/// Repeats what comes over a connection.
const SPEAK: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(THERE), 8);
/// Nothing comes in this long: then nothing comes.
const SILENCE: Duration = Duration::from_millis(1_500);

struct Scene {
    wire: Wire,
    here: Namespace,
    _there: Namespace,
}

/// How an attempt to connect ended.
#[derive(Debug, PartialEq, Eq)]
enum Connect {
    Made,
    Refused(io::ErrorKind),
    Silence,
}

impl Scene {
    async fn set() -> Self {
        let here = Namespace::make("here").await;
        let there = Namespace::make("there").await;
        let end = |host, address| End { host, address };
        let wire = Wire::between(end(&here, HERE), end(&there, THERE)).await;
        drop(there.start(echo).await);
        drop(there.start(speak).await);
        let scene = Self {
            wire,
            here,
            _there: there,
        };
        eventually("the far end answers", async || {
            let connected = scene.connect().await == Connect::Made;
            (connected && scene.ping().await.is_some()).then_some(())
        })
        .await;
        scene
    }

    /// The shortest way there and back of a few datagrams, if any came back.
    async fn ping(&self) -> Option<Duration> {
        let times = self.here.run(|| async {
            let socket = UdpSocket::bind((HERE, 0)).await.expect("a socket");
            let mut best = None;
            for number in 0..3_u8 {
                let sent = Instant::now();
                socket.send_to(&[number], ECHO).await.expect("it is sent");
                let mut back = [0];
                let came = timeout(SILENCE, socket.recv(&mut back)).await;
                if came.is_ok_and(|read| read.is_ok()) && back == [number] {
                    best = best.min(Some(sent.elapsed())).or(Some(sent.elapsed()));
                }
            }
            best
        });
        times.await
    }

    async fn connect(&self) -> Connect {
        let connected = self
            .here
            .run(|| async { timeout(SILENCE, TcpStream::connect(SPEAK)).await });
        match connected.await {
            Ok(Ok(_)) => Connect::Made,
            Ok(Err(error)) => Connect::Refused(error.kind()),
            Err(_) => Connect::Silence,
        }
    }

    /// What became of all that was ever sent, when nothing is under way.
    async fn settled(&self) -> Counts {
        eventually("nothing is under way", async || {
            let seen = self.wire.counts(Way::There);
            let known = seen.passed + seen.lost + seen.cut + seen.overflowed;
            (seen.taken == known).then_some(seen)
        })
        .await
    }

    /// Sends so many datagrams, not faster than they are taken, and waits until the wire has seen them.
    async fn send(&self, datagrams: u64, bytes: usize) -> Counts {
        let before = self.wire.counts(Way::There);
        self.here
            .run(move || async move {
                let socket = UdpSocket::bind((HERE, 0)).await.expect("a socket");
                for number in 0..datagrams {
                    let sent = socket.send_to(&vec![0; bytes], (THERE, 9)).await;
                    sent.expect("it is sent");
                    if number % 50 == 49 {
                        sleep(Duration::from_millis(2)).await;
                    }
                }
            })
            .await;
        eventually("the wire has seen them", async || {
            let taken = self.wire.counts(Way::There).taken - before.taken;
            (taken >= datagrams).then_some(())
        })
        .await;
        let after = self.wire.counts(Way::There);
        Counts {
            taken: after.taken - before.taken,
            passed: after.passed - before.passed,
            passed_bytes: after.passed_bytes - before.passed_bytes,
            delayed: after.delayed - before.delayed,
            lost: after.lost - before.lost,
            cut: after.cut - before.cut,
            overflowed: after.overflowed - before.overflowed,
        }
    }
}

async fn echo() {
    let socket = UdpSocket::bind(ECHO).await.expect("a socket");
    let mut bytes = [0; 2_048];
    while let Ok((read, from)) = socket.recv_from(&mut bytes).await {
        // Nobody may be there any more.
        let _ = socket
            .send_to(bytes.get(..read).unwrap_or_default(), from)
            .await;
    }
}

async fn speak() {
    let listener = TcpListener::bind(SPEAK).await.expect("a socket");
    let mut open = JoinSet::new();
    while let Ok((mut socket, _)) = listener.accept().await {
        open.spawn_local(async move {
            let (mut read, mut write) = socket.split();
            tokio::io::copy(&mut read, &mut write).await
        });
    }
}

/// All of them. Panics where one does not hold.
pub(crate) async fn all() -> bool {
    plain().await;
    println!("a plain wire passes everything");
    delay().await;
    println!("a delay of 250 ms each way is a round trip of 500 ms");
    loss().await;
    println!("of 4,000 packets 30 % are lost");
    rate().await;
    println!("a rate is kept, and the queue is bounded");
    one_way().await;
    println!("cut one way: what is sent arrives, and nothing comes back");
    partition().await;
    println!("a partition is silence, not an error, and what was open goes on after it");
    handshakes().await;
    println!("cut but for handshakes: connections are made, and carry nothing");
    killed().await;
    println!("nothing is left of a bed that was killed");
    println!("8 passed, 0 failed");
    true
}

async fn plain() {
    let scene = Scene::set().await;
    scene.send(1_000, 100).await;
    let seen = scene.settled().await;
    assert!(seen.passed >= 1_000);
    assert_eq!((seen.passed, seen.lost, seen.cut), (seen.taken, 0, 0));
    assert_eq!(
        scene.wire.end(),
        0,
        "the kernel lost packets before the wire"
    );
}

async fn delay() {
    let scene = Scene::set().await;
    scene
        .wire
        .shape_both(Shape::delayed(Duration::from_millis(250)));
    let took = scene.ping().await.expect("it comes back");
    let (least, most) = (Duration::from_millis(500), Duration::from_millis(700));
    assert!((least..most).contains(&took), "{took:?}");
}

async fn loss() {
    let scene = Scene::set().await;
    scene.wire.shape_both(Shape::lossy(0.3));
    let seen = scene.send(4_000, 100).await;
    // Seven standard deviations of 29 to each side.
    assert!((1_000..=1_400).contains(&seen.lost), "{seen:?}");
    let seen = scene.settled().await;
    assert_eq!(seen.passed + seen.lost, seen.taken);
}

async fn rate() {
    let scene = Scene::set().await;
    scene.wire.shape(
        Way::There,
        Shape {
            rate: 100_000,
            ..Shape::default()
        },
    );
    let more = MOST_PACKETS as u64 + 1_000;
    let began = Instant::now();
    let seen = scene.send(more, 1_000).await;
    assert!(seen.overflowed > 0, "{seen:?}");
    assert!(scene.wire.under_way(Way::There) <= MOST_PACKETS);
    let carried = Duration::from_secs_f64(seen.passed_bytes as f64 / 100_000.0);
    assert!(
        carried <= began.elapsed(),
        "{seen:?} in {:?}",
        began.elapsed()
    );
}

async fn one_way() {
    let scene = Scene::set().await;
    let before = [Way::There, Way::Back].map(|way| scene.wire.counts(way));
    scene.wire.shape(Way::Back, Shape::cut());
    assert_eq!(scene.connect().await, Connect::Silence);
    assert_eq!(scene.ping().await, None);
    let [there, back] = [Way::There, Way::Back].map(|way| scene.wire.counts(way));
    assert!(
        there.passed >= before[0].passed + 4,
        "a SYN and three datagrams arrive"
    );
    assert_eq!(there.cut, 0);
    assert!(back.cut >= 4, "the far end answered: {back:?}");
    assert_eq!(back.passed, before[1].passed, "and nothing of it came back");
    scene.wire.heal();
    assert_eq!(scene.connect().await, Connect::Made);
}

async fn partition() {
    let scene = Scene::set().await;
    let mut open = scene.open().await;
    scene.wire.shape_both(Shape::cut());
    assert_eq!(scene.connect().await, Connect::Silence);
    open.write_all(b"hello").await.expect("it is taken");
    let mut back = [0; 5];
    let read = timeout(SILENCE, open.read_exact(&mut back)).await;
    assert!(read.is_err(), "silence, and no error: {read:?}");
    scene.wire.heal();
    // TCP waits twice as long after each try: as long again as it was away, at most.
    let read = timeout(SILENCE * 10, open.read_exact(&mut back)).await;
    read.expect("it goes on").expect("without an error");
    assert_eq!(&back, b"hello");
}

async fn handshakes() {
    let scene = Scene::set().await;
    scene.wire.shape_both(Shape {
        cut: Cut::AllButHandshakes,
        ..Shape::default()
    });
    let mut open = scene.open().await;
    open.write_all(b"hello").await.expect("it is taken");
    let mut back = [0; 5];
    let read = timeout(SILENCE, open.read_exact(&mut back)).await;
    assert!(read.is_err(), "silence: {read:?}");
    scene.wire.heal();
    let read = timeout(SILENCE * 10, open.read_exact(&mut back)).await;
    read.expect("it goes on").expect("without an error");
}

impl Scene {
    /// An open connection.
    async fn open(&self) -> TcpStream {
        let connected = self.here.run(|| async {
            TcpStream::connect(SPEAK)
                .await
                .and_then(TcpStream::into_std)
        });
        let connected = connected.await.expect("it can be opened");
        TcpStream::from_std(connected).expect("it can be used here")
    }
}

/// A bed in a process of its own, with a program on a host of it, is killed.
async fn killed() {
    let own = std::env::current_exe().expect("this program");
    let mut bed = Process::start(
        own,
        &["stand", "killed-a", "killed-b", "--program", "sleep 1000"],
        &[],
    );
    let entry = bed.printed("killed-a: nsenter --net=").await;
    bed.printed("delay MS").await;
    let host = fs::read_link(&entry).expect("the host's namespace");
    assert!(
        who_is_on(&host).len() > 1,
        "its thread and a program are on it"
    );
    bed.kill().await;
    eventually("nobody is on it", async || {
        who_is_on(&host).is_empty().then_some(())
    })
    .await;
    let named = fs::read_dir("/run/netns").into_iter().flatten().flatten();
    let left: Vec<_> = named
        .map(|entry| entry.file_name())
        .filter(|name| name.to_string_lossy().contains("-killed-"))
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

/// Threads whose network is this.
fn who_is_on(host: &std::path::Path) -> Vec<String> {
    let tasks = |process: fs::DirEntry| fs::read_dir(process.path().join("task"));
    let processes = fs::read_dir("/proc").expect("the processes").flatten();
    let tasks = processes.flat_map(tasks).flatten().flatten();
    let on_it = tasks.filter(|task| {
        let network = fs::read_link(task.path().join("ns/net"));
        network.is_ok_and(|network| network == host)
    });
    on_it
        .map(|task| task.path().to_string_lossy().into_owned())
        .collect()
}
