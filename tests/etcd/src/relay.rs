//! Between members: each is reached by a relay in front of it, which knows by the socket which member calls, and which
//! passes nothing on while the two are cut off from each other. Connections stay open meanwhile: silence, not an end.

use std::{fs, net::SocketAddr, sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::watch,
    task::JoinSet,
    time::sleep,
};

const BUFFER: usize = 16 << 10;
/// A socket is in the list of all a moment after it is there.
const LOOKS: u32 = 20;
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// Who is cut off from whom, and which process is which member.
#[derive(Debug)]
pub(crate) struct Cuts {
    matrix: watch::Sender<Vec<Vec<bool>>>,
    pids: Mutex<Vec<u32>>,
}

impl Cuts {
    pub(crate) fn new(members: usize) -> Self {
        let (matrix, _) = watch::channel(vec![vec![false; members]; members]);
        Self {
            matrix,
            pids: Mutex::new(vec![0; members]),
        }
    }

    /// This process is that member.
    pub(crate) fn is(&self, member: usize, pid: u32) {
        if let Some(known) = self.pids.lock().get_mut(member) {
            *known = pid;
        }
    }

    pub(crate) fn set(&self, from: usize, to: usize, cut: bool) {
        self.matrix.send_modify(|matrix| {
            if let Some(cell) = matrix.get_mut(from).and_then(|row| row.get_mut(to)) {
                *cell = cut;
            }
        });
    }

    /// Waits until what one says reaches the other.
    async fn passes(&self, from: usize, to: usize) {
        let mut matrix = self.matrix.subscribe();
        let open = |matrix: &Vec<Vec<bool>>| {
            !matrix
                .get(from)
                .and_then(|row| row.get(to))
                .copied()
                .unwrap_or(false)
        };
        drop(matrix.wait_for(open).await);
    }

    /// Which member has the other end of this connection.
    async fn who(&self, peer: SocketAddr, own: SocketAddr) -> Option<usize> {
        for _ in 0..LOOKS {
            let pids = self.pids.lock().clone();
            if let Some(inode) = inode(peer, own)
                && let Some(found) = pids.iter().position(|pid| owns(*pid, &inode))
            {
                return Some(found);
            }
            sleep(LOOK_AGAIN).await;
        }
        None
    }
}

/// The number of the socket with these ends.
fn inode(local: SocketAddr, remote: SocketAddr) -> Option<String> {
    let hex = |addr: SocketAddr| match addr {
        SocketAddr::V4(addr) => {
            format!(
                "{:08X}:{:04X}",
                u32::from(*addr.ip()).swap_bytes(),
                addr.port()
            )
        }
        SocketAddr::V6(_) => String::new(),
    };
    let (local, remote) = (hex(local), hex(remote));
    let table = fs::read_to_string("/proc/net/tcp").ok()?;
    table.lines().find_map(|line| {
        let mut words = line.split_whitespace().skip(1);
        let ends = (words.next()?, words.next()?);
        (ends == (local.as_str(), remote.as_str())).then(|| words.nth(6).map(str::to_owned))?
    })
}

fn owns(pid: u32, inode: &str) -> bool {
    let wanted = format!("socket:[{inode}]");
    let Ok(files) = fs::read_dir(format!("/proc/{pid}/fd")) else {
        return false;
    };
    files
        .flatten()
        .any(|file| fs::read_link(file.path()).is_ok_and(|link| link.to_string_lossy() == wanted))
}

/// In front of one member.
#[derive(Debug)]
pub(crate) struct Relay {
    _tasks: JoinSet<()>,
}

impl Relay {
    pub(crate) async fn start(
        at: SocketAddr,
        member: SocketAddr,
        n: usize,
        cuts: Arc<Cuts>,
    ) -> Self {
        let listener = TcpListener::bind(at).await.expect("a free port");
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            loop {
                let Ok((caller, peer)) = listener.accept().await else {
                    continue;
                };
                connections.spawn(pass(caller, peer, at, member, n, cuts.clone()));
                while connections.try_join_next().is_some() {}
            }
        });
        Self { _tasks: tasks }
    }
}

async fn pass(
    caller: TcpStream,
    peer: SocketAddr,
    at: SocketAddr,
    member: SocketAddr,
    n: usize,
    cuts: Arc<Cuts>,
) {
    let Some(from) = cuts.who(peer, at).await else {
        return;
    };
    cuts.passes(from, n).await;
    let Ok(called) = TcpStream::connect(member).await else {
        return;
    };
    drop((caller.set_nodelay(true), called.set_nodelay(true)));
    let (from_caller, to_caller) = caller.into_split();
    let (from_member, to_member) = called.into_split();
    tokio::select! {
        () = copy(from_caller, to_member, from, n, &cuts) => {}
        () = copy(from_member, to_caller, n, from, &cuts) => {}
    }
}

async fn copy(
    mut read: OwnedReadHalf,
    mut write: OwnedWriteHalf,
    from: usize,
    to: usize,
    cuts: &Cuts,
) {
    let mut buffer = vec![0; BUFFER];
    loop {
        let Ok(read) = read.read(&mut buffer).await else {
            return;
        };
        cuts.passes(from, to).await;
        let Some(bytes) = buffer.get(..read).filter(|bytes| !bytes.is_empty()) else {
            return;
        };
        if write.write_all(bytes).await.is_err() {
            return;
        }
    }
}
