//! A network namespace: a host of its own, on a thread of its own. What is run on that thread, and the programs that it
//! starts, have this host's network.
//!
//! It has a name for as long as it takes to enter it. From then on it lives as long as somebody is in it: when this
//! process ends, by whatever, the thread ends, and the programs that were started with [`Namespace::program`] are killed
//! by the kernel with it.

use std::{
    fs::{self, File},
    os::fd::AsFd as _,
    path::{Path, PathBuf},
    pin::Pin,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread::JoinHandle,
};

use rustix::thread::{LinkNameSpaceType, gettid, move_into_link_name_space};
use tokio::{
    runtime,
    sync::{mpsc, oneshot},
    task::{JoinSet, LocalSet},
};

const NAMES: &str = "/run/netns";
const PREFIX: &str = "forebay-";
/// Jobs that have been asked for and not begun.
const MOST_JOBS: usize = 64;

type Job = Box<dyn FnOnce() -> Pin<Box<dyn Future<Output = ()>>> + Send>;

/// A host.
#[derive(Debug)]
pub struct Namespace {
    label: String,
    door: Arc<File>,
    entry: PathBuf,
    jobs: Option<mpsc::Sender<Job>>,
    thread: Option<JoinHandle<()>>,
}

impl Namespace {
    /// Makes one, with a loopback device and nothing else.
    pub async fn make(label: &str) -> Self {
        let door = Arc::new(door(label));
        let (jobs, waiting) = mpsc::channel(MOST_JOBS);
        let (entered, entry) = oneshot::channel();
        let thread = std::thread::Builder::new()
            .name(format!("on {label}"))
            .spawn({
                let door = door.clone();
                move || live(&door, entered, waiting)
            });
        Self {
            label: label.to_owned(),
            door,
            jobs: Some(jobs),
            thread: Some(thread.expect("a thread")),
            entry: entry.await.expect("the namespace can be entered"),
        }
    }

    /// What it was called.
    #[must_use]
    pub fn label(&self) -> &str {
        &self.label
    }

    /// What `nsenter --net=` takes.
    #[must_use]
    pub fn entry(&self) -> &Path {
        &self.entry
    }

    /// Starts this on it. The answer comes when it is done; a job that panics gives none.
    pub async fn start<T, F>(
        &self,
        job: impl FnOnce() -> F + Send + 'static,
    ) -> oneshot::Receiver<T>
    where
        T: Send + 'static,
        F: Future<Output = T> + 'static,
    {
        let (done, answer) = oneshot::channel();
        let job: Job = Box::new(move || {
            Box::pin(async move {
                // Who asked may have gone.
                let _ = done.send(job().await);
            })
        });
        let jobs = self.jobs.as_ref().expect("the host is there");
        let asked = jobs.send(job).await;
        assert!(asked.is_ok(), "{} is gone", self.label);
        answer
    }

    /// Runs this on it to its end.
    pub async fn run<T, F>(&self, job: impl FnOnce() -> F + Send + 'static) -> T
    where
        T: Send + 'static,
        F: Future<Output = T> + 'static,
    {
        let answer = self.start(job).await;
        answer.await.expect("what ran on the host ended well")
    }

    /// How a program is started that ends with the thread which starts it: the program, and what comes before its own
    /// arguments.
    #[must_use]
    pub fn program(program: &str) -> (&'static str, Vec<String>) {
        let before = ["--pdeathsig", "KILL", "--", program];
        ("setpriv", before.map(str::to_owned).to_vec())
    }

    pub(crate) fn door(&self) -> Arc<File> {
        self.door.clone()
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        drop(self.jobs.take());
        if let Some(thread) = self.thread.take() {
            // What it panicked of was told where it happened.
            let _ = thread.join();
        }
    }
}

/// A new namespace, by a descriptor alone.
fn door(label: &str) -> File {
    static MADE: AtomicU64 = AtomicU64::new(0);
    sweep();
    let number = MADE.fetch_add(1, Ordering::Relaxed);
    let name = format!("{PREFIX}{}-{number}-{label}", std::process::id());
    ip(&["netns", "add", &name]);
    let door = File::open(Path::new(NAMES).join(&name)).expect("the namespace that was made");
    ip(&["netns", "delete", &name]);
    door
}

/// Those of processes that were killed between the two lines above.
fn sweep() {
    let Ok(names) = fs::read_dir(NAMES) else {
        return;
    };
    for name in names.flatten() {
        let name = name.file_name().to_string_lossy().into_owned();
        let rest = name.strip_prefix(PREFIX);
        let owner = rest.and_then(|rest| rest.split('-').next()?.parse::<u32>().ok());
        if owner.is_some_and(|owner| !Path::new(&format!("/proc/{owner}")).exists()) {
            ip(&["netns", "delete", &name]);
        }
    }
}

/// The calling thread is on this host from now on.
pub(crate) fn enter(door: &File) {
    let network = Some(LinkNameSpaceType::Network);
    move_into_link_name_space(door.as_fd(), network).expect("the namespace can be entered");
}

/// Runs `ip` where the calling thread is.
pub(crate) fn ip(args: &[&str]) {
    let ran = Command::new("ip").args(args).output();
    let ran = ran.expect("`ip` runs");
    let why = String::from_utf8_lossy(&ran.stderr);
    assert!(ran.status.success(), "ip {}: {why}", args.join(" "));
}

fn live(door: &File, entered: oneshot::Sender<PathBuf>, mut jobs: mpsc::Receiver<Job>) {
    enter(door);
    // Otherwise the kernel looks for neighbours and routers on each new wire.
    for which in ["all", "default"] {
        let switch = format!("/proc/sys/net/ipv6/conf/{which}/disable_ipv6");
        if Path::new(&switch).exists() {
            fs::write(switch, "1").expect("IPv6 can be turned off");
        }
    }
    ip(&["link", "set", "lo", "up"]);
    let thread = gettid().as_raw_nonzero();
    let entry = format!("/proc/{}/task/{thread}/ns/net", std::process::id());
    let runtime = runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.expect("a runtime");
    if entered.send(entry.into()).is_err() {
        return;
    }
    LocalSet::new().block_on(&runtime, async {
        let mut running = JoinSet::new();
        loop {
            tokio::select! {
                job = jobs.recv() => match job {
                    Some(job) => {
                        running.spawn_local(job());
                    }
                    None => break,
                },
                Some(_) = running.join_next() => {}
            }
        }
        running.shutdown().await;
    });
}
