//! Three real etcd members as child processes, in a directory that goes away with them: to be killed, paused, cut off
//! from one another, compacted. They end with their handle. Only their clients' ports are told; peers speak through
//! relays of this process, so that a partition is one: nothing is closed, nothing arrives.
//!
//! It needs Debian's packages etcd-server and etcd-client, and says so if they are missing.

#![allow(clippy::panic, clippy::expect_used, reason = "it is for tests")]

mod relay;

use std::{
    io,
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::Stdio,
    sync::Arc,
    time::Duration,
};

use parking_lot::Mutex;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tempfile::TempDir;
use tokio::{
    process::{Child, Command},
    time::{Instant, sleep, timeout},
};

use self::relay::{Cuts, Relay};

/// How many members there are.
pub const MEMBERS: usize = 3;
/// A member that cannot bind a port was given one that somebody took meanwhile.
const STARTS: u32 = 3;
const HEALTHY: Duration = Duration::from_secs(30);
const COMMAND: Duration = Duration::from_secs(15);
/// Of three members, each with 64 MB set aside twice and a database, for several tests at a time.
const ROOM: u64 = 4 << 30;
/// Below the range from which the kernel draws ports by itself.
const PORTS: std::ops::Range<u16> = 10_000..32_000;

/// The members.
#[derive(Debug)]
pub struct Etcd {
    dir: TempDir,
    members: Vec<Member>,
    cuts: Arc<Cuts>,
    _relays: Vec<Relay>,
}

#[derive(Debug)]
struct Member {
    client: SocketAddr,
    peer: SocketAddr,
    relay: SocketAddr,
    child: Option<Child>,
}

/// In memory if there is room: members are killed and never lose power, so that it proves as much, and a disk that is slow for
/// a moment is no fault that a test did not ask for.
fn directory() -> io::Result<TempDir> {
    let memory = Path::new("/dev/shm");
    let room = rustix::fs::statvfs(memory).map(|fs| fs.f_bavail.saturating_mul(fs.f_frsize));
    match room {
        Ok(bytes) if bytes >= ROOM => tempfile::tempdir_in(memory),
        _ => tempfile::tempdir(),
    }
}

impl Etcd {
    /// Starts them and waits until they take writes.
    pub async fn start() -> Self {
        for (program, asked) in [("etcd", "--version"), ("etcdctl", "version")] {
            let mut command = Command::new(program);
            command
                .arg(asked)
                .stdout(Stdio::null())
                .stderr(Stdio::null());
            let found = command.status().await;
            assert!(
                found.is_ok_and(|status| status.success()),
                "`{program}` is missing: apt-get install etcd-server etcd-client"
            );
        }
        for _ in 0..STARTS {
            let mut etcd = Self::prepare().await;
            for n in 0..MEMBERS {
                etcd.restart(n);
            }
            if etcd.healthy(HEALTHY).await {
                return etcd;
            }
        }
        panic!("three members of etcd did not become healthy in {STARTS} tries");
    }

    async fn prepare() -> Self {
        let dir = directory().expect("a temporary directory");
        let (cuts, mut members, mut relays) =
            (Arc::new(Cuts::new(MEMBERS)), Vec::new(), Vec::new());
        for n in 0..MEMBERS {
            let [client, peer, relay] = [free_addr(), free_addr(), free_addr()];
            relays.push(Relay::start(relay, peer, n, cuts.clone()).await);
            members.push(Member {
                client,
                peer,
                relay,
                child: None,
            });
        }
        Self {
            dir,
            members,
            cuts,
            _relays: relays,
        }
    }

    /// The store on them, under this prefix.
    #[must_use]
    pub fn store(&self, prefix: &str) -> String {
        let members: Vec<_> = self
            .members
            .iter()
            .map(|member| member.client.to_string())
            .collect();
        format!("etcd://{}/{prefix}", members.join(","))
    }

    /// Where a member listens for clients.
    #[must_use]
    pub fn client(&self, n: usize) -> SocketAddr {
        self.member(n).client
    }

    /// Starts a member that does not run, with the data that it has.
    pub fn restart(&mut self, n: usize) {
        let name = |n: usize| format!("m{n}");
        let peers: Vec<_> = (0..MEMBERS)
            .map(|n| format!("{}=http://{}", name(n), self.member(n).relay))
            .collect();
        let data: PathBuf = self.dir.path().join(name(n));
        let log = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.dir.path().join(format!("{}.log", name(n))))
            .expect("a log");
        let member = self.member(n);
        let (client, peer, relay) = (member.client, member.peer, member.relay);
        let mut command = Command::new("etcd");
        command
            .args(["--name", &name(n), "--data-dir"])
            .arg(&data)
            .args(["--listen-client-urls", &format!("http://{client}")])
            .args(["--advertise-client-urls", &format!("http://{client}")])
            .args(["--listen-peer-urls", &format!("http://{peer}")])
            .args(["--initial-advertise-peer-urls", &format!("http://{relay}")])
            .args(["--initial-cluster", &peers.join(",")])
            .args(["--initial-cluster-token", "forebay-tests"])
            .args(["--initial-cluster-state", "new"])
            // As the docs tell everybody to: who hears nothing does not unseat a leader that the others hear.
            .arg("--pre-vote")
            .args(["--logger", "zap", "--log-level", "warn"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .kill_on_drop(true);
        let child = command.spawn().expect("etcd starts");
        if let Some(pid) = child.id() {
            self.cuts.is(n, pid);
        }
        self.member_mut(n).child = Some(child);
    }

    /// Kills a member (SIGKILL) and waits until it is gone.
    pub async fn kill(&mut self, n: usize) {
        if let Some(mut child) = self.member_mut(n).child.take() {
            child.kill().await.expect("etcd can be killed");
        }
    }

    /// Stops a member where it is (SIGSTOP).
    pub fn pause(&self, n: usize) {
        self.signal(n, Signal::STOP);
    }

    /// Lets it go on.
    pub fn resume(&self, n: usize) {
        self.signal(n, Signal::CONT);
    }

    /// Cuts a member off from the others; clients reach it all the same.
    pub fn isolate(&self, n: usize) {
        (0..MEMBERS).filter(|other| *other != n).for_each(|other| {
            self.cuts.set(n, other, true);
            self.cuts.set(other, n, true);
        });
    }

    /// What one member says does not reach the other; the other way it does.
    pub fn cut_one_way(&self, from: usize, to: usize) {
        self.cuts.set(from, to, true);
    }

    /// All reach one another again.
    pub fn heal(&self) {
        (0..MEMBERS).for_each(|from| (0..MEMBERS).for_each(|to| self.cuts.set(from, to, false)));
    }

    /// Everything works again: no cut, nobody paused, all running and healthy.
    pub async fn mend(&mut self) {
        self.heal();
        for n in 0..MEMBERS {
            match self.member(n).child {
                Some(_) => self.resume(n),
                None => self.restart(n),
            }
        }
        assert!(self.healthy(HEALTHY).await, "the members did not recover");
    }

    /// Who leads, as a member of a majority sees it.
    pub async fn leader(&self) -> usize {
        let give_up = Instant::now() + HEALTHY;
        loop {
            for n in 0..MEMBERS {
                if let Some(status) = self.status(n).await
                    && status.pointer("/header/member_id") == status.pointer("/leader")
                    && status
                        .pointer("/leader")
                        .is_some_and(|leader| leader.as_u64() != Some(0))
                {
                    return n;
                }
            }
            assert!(Instant::now() < give_up, "there is no leader");
            sleep(Duration::from_millis(50)).await;
        }
    }

    /// Forgets all but the newest of each key.
    pub async fn compact(&self) {
        let give_up = Instant::now() + HEALTHY;
        for n in (0..MEMBERS).cycle() {
            if self.compact_at(n).await.is_some() {
                return;
            }
            assert!(Instant::now() < give_up, "no member could be compacted");
            sleep(Duration::from_millis(50)).await;
        }
    }

    async fn compact_at(&self, n: usize) -> Option<()> {
        let status = self.status(n).await?;
        let revision = status.pointer("/header/revision")?.as_u64()?;
        let revision = revision.to_string();
        self.etcdctl(n, &["compact", &revision]).await.map(drop)
    }

    /// Runs `etcdctl` on a member; what it printed, if all went well.
    pub async fn etcdctl(&self, n: usize, args: &[&str]) -> Option<String> {
        let mut command = Command::new("etcdctl");
        command
            .env("ETCDCTL_API", "3")
            .args(["--endpoints", &self.member(n).client.to_string()])
            .args(["--dial-timeout", "5s", "--command-timeout", "10s"])
            .args(args)
            .stdin(Stdio::null())
            .kill_on_drop(true);
        let output = timeout(COMMAND, command.output()).await.ok()?.ok()?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        output.status.success().then_some(text)
    }

    async fn status(&self, n: usize) -> Option<Value> {
        self.member(n).child.as_ref()?;
        let text = self
            .etcdctl(n, &["endpoint", "status", "-w", "json"])
            .await?;
        let all: Value = serde_json::from_str(&text).ok()?;
        all.pointer("/0/Status").cloned()
    }

    /// Every member answers, within this time.
    async fn healthy(&self, patience: Duration) -> bool {
        let give_up = Instant::now() + patience;
        let mut well = [false; MEMBERS];
        loop {
            for (n, well) in well.iter_mut().enumerate().filter(|(_, well)| !**well) {
                *well = self.etcdctl(n, &["endpoint", "health"]).await.is_some();
            }
            if well.iter().all(|well| *well) {
                return true;
            }
            if Instant::now() >= give_up {
                return false;
            }
            sleep(Duration::from_millis(100)).await;
        }
    }

    fn signal(&self, n: usize, signal: Signal) {
        let child = self.member(n).child.as_ref();
        let pid = child
            .and_then(Child::id)
            .and_then(|id| i32::try_from(id).ok());
        if let Some(pid) = pid.and_then(Pid::from_raw) {
            kill_process(pid, signal).expect("etcd can be signalled");
        }
    }

    fn member(&self, n: usize) -> &Member {
        self.members.get(n).expect("there is such a member")
    }

    fn member_mut(&mut self, n: usize) -> &mut Member {
        self.members.get_mut(n).expect("there is such a member")
    }
}

/// Given to nobody twice in this process.
fn free_addr() -> SocketAddr {
    static GIVEN: Mutex<Vec<u16>> = Mutex::new(Vec::new());
    std::iter::repeat_with(|| fastrand::u16(PORTS))
        .take(10_000)
        .map(|port| SocketAddr::from(([127, 0, 0, 1], port)))
        .find(|addr| {
            let mut given = GIVEN.lock();
            let free = !given.contains(&addr.port()) && TcpListener::bind(addr).is_ok();
            if free {
                given.push(addr.port());
            }
            free
        })
        .expect("a free port")
}
