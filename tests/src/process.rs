//! A program as a child process that is killed with its handle, with what it printed.

use std::{
    net::TcpListener, os::fd::OwnedFd, path::Path, process::Stdio, sync::Arc, time::Duration,
};

use parking_lot::Mutex;
use rustix::process::{Pid, Signal, kill_process};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncRead, BufReader},
    process::{Child, Command},
    task::JoinSet,
    time::timeout,
};

use crate::eventually;

const END: Duration = Duration::from_secs(20);

/// A child process.
#[derive(Debug)]
pub struct Process {
    child: Child,
    out: Arc<Mutex<String>>,
    err: Arc<Mutex<String>>,
    readers: JoinSet<()>,
}

impl Process {
    /// Starts a program, with no more of the environment than `PATH`.
    #[must_use]
    pub fn start(program: impl AsRef<Path>, args: &[&str], env: &[(&str, &str)]) -> Self {
        let mut command = Command::new(program.as_ref());
        command.args(args);
        Self::spawn(command, env, Stdio::null())
    }

    /// Starts a program with a listening socket, as systemd's socket activation passes one: as file 3, by this name.
    #[must_use]
    pub fn start_on(
        (name, listener): (&str, &TcpListener),
        program: &str,
        args: &[&str],
        env: &[(&str, &str)],
    ) -> Self {
        let mut command = Command::new("sh");
        // The shell becomes the program, so its id is the program's.
        let script = "exec 3<&0 </dev/null; LISTEN_PID=$$ LISTEN_FDS=1 exec \"$0\" \"$@\"";
        command.arg("-c").arg(script).arg(program).args(args);
        let socket = OwnedFd::from(listener.try_clone().expect("a socket can be duplicated"));
        let env = [env, &[("LISTEN_FDNAMES", name)]].concat();
        Self::spawn(command, &env, socket.into())
    }

    /// Starts a program that may open this many files.
    #[must_use]
    pub fn start_limited(program: &str, args: &[&str], files: u32) -> Self {
        let mut command = Command::new("sh");
        let script = format!("ulimit -n {files}; exec \"$0\" \"$@\"");
        command.arg("-c").arg(script).arg(program).args(args);
        Self::spawn(command, &[], Stdio::null())
    }

    fn spawn(mut command: Command, env: &[(&str, &str)], stdin: Stdio) -> Self {
        let path = std::env::var_os("PATH").unwrap_or_default();
        command
            .env_clear()
            .env("PATH", path)
            .envs(env.iter().copied())
            .stdin(stdin)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        let mut child = command.spawn().expect("the program starts");
        let (out, err) = (Arc::default(), Arc::default());
        let mut readers = JoinSet::new();
        readers.spawn(read(child.stdout.take(), Arc::clone(&out)));
        readers.spawn(read(child.stderr.take(), Arc::clone(&err)));
        Self {
            child,
            out,
            err,
            readers,
        }
    }

    /// What it printed for programs so far.
    #[must_use]
    pub fn out(&self) -> String {
        self.out.lock().clone()
    }

    /// What it printed for people so far.
    #[must_use]
    pub fn err(&self) -> String {
        self.err.lock().clone()
    }

    /// Waits until it has printed this on either stream, and gives the rest of that line.
    pub async fn printed(&mut self, text: &str) -> String {
        match self.printed_or_ended(text).await {
            Ok(rest) => rest,
            Err(ended) => panic!("{text:?} was not printed: {ended}"),
        }
    }

    /// The same of a program that may end before: then what it printed, and how it ended.
    pub async fn printed_or_ended(&mut self, text: &str) -> Result<String, String> {
        let Self {
            child,
            out,
            err,
            readers,
        } = self;
        eventually(&format!("printed {text:?}"), async || {
            // First this: what it printed last may still be on its way when it is gone.
            let ended = child.try_wait().expect("the child can be asked");
            if ended.is_some() {
                while readers.join_next().await.is_some() {}
            }
            let printed = format!("{}\n{}", out.lock(), err.lock());
            if let Some((_, rest)) = printed.split_once(text) {
                return Some(Ok(rest.lines().next().unwrap_or_default().to_owned()));
            }
            ended.map(|ended| Err(format!("ended with {ended}: {printed}")))
        })
        .await
    }

    /// Waits until it ended by itself, at most for so long, and tells whether it did.
    pub async fn ends_within(&mut self, patience: Duration) -> bool {
        timeout(patience, self.child.wait()).await.is_ok()
    }

    /// Waits until it ended, and gives its exit code and all that it printed.
    pub async fn end(mut self) -> (Option<i32>, String, String) {
        let ended = timeout(END, self.child.wait()).await;
        let code = match ended {
            Ok(status) => status.expect("the child can be waited for").code(),
            Err(_) => panic!("still running: {}\n{}", self.out(), self.err()),
        };
        while self.readers.join_next().await.is_some() {}
        (code, self.out(), self.err())
    }

    /// Asks it to end (SIGTERM) and waits until it did.
    pub async fn terminate(self) -> (Option<i32>, String, String) {
        self.signal(Signal::TERM);
        self.end().await
    }

    /// Kills it (SIGKILL) and waits until it is gone.
    pub async fn kill(mut self) {
        self.child.kill().await.expect("the child can be killed");
        while self.readers.join_next().await.is_some() {}
    }

    /// Its process id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id().expect("the child runs")
    }

    /// Asks it to end (SIGTERM).
    pub fn signal_end(&self) {
        self.signal(Signal::TERM);
    }

    /// Stops it where it is (SIGSTOP).
    pub fn pause(&self) {
        self.signal(Signal::STOP);
    }

    /// Lets it go on (SIGCONT).
    pub fn resume(&self) {
        self.signal(Signal::CONT);
    }

    fn signal(&self, signal: Signal) {
        let pid = self.child.id().and_then(|id| i32::try_from(id).ok());
        let pid = pid.and_then(Pid::from_raw).expect("the child runs");
        kill_process(pid, signal).expect("the child can be signalled");
    }
}

async fn read(stream: Option<impl AsyncRead + Unpin>, into: Arc<Mutex<String>>) {
    let Some(stream) = stream else { return };
    let mut lines = BufReader::new(stream).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        let mut into = into.lock();
        into.push_str(&line);
        into.push('\n');
    }
}
