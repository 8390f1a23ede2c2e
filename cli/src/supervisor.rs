//! What a service manager (systemd) passes to this process and is told by it: listening sockets, how far it is, that it
//! lives, and which process comes after it. Without a manager nothing of this does anything. It never decides when to
//! stop; `signals.rs` does.

use std::{convert::Infallible, future::pending, net::TcpListener, process::Stdio, time::Duration};

use anyhow::{Context as _, bail, ensure};
use forebay_dataplane::Passed;
use listenfd::ListenFd;
use rustix::process::{Pid, test_kill_process};
use sd_notify::NotifyState;
use tokio::{
    process::Command,
    signal::unix::{Signal, SignalKind, signal},
    time::{interval, sleep, timeout},
};

/// The names of the sockets that a worker can be passed (`FileDescriptorName=`).
const GATEWAY: &str = "gateway";
const ADMIN: &str = "admin";
/// How they are passed on; a child gets none of it.
const OF_SOCKETS: [&str; 3] = ["LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"];
/// How long the shell may take that starts a successor.
const STARTED_WITHIN: Duration = Duration::from_secs(10);
/// How often it is looked whether the successor is there.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// Tells a process that the one before started it.
const SUCCESSOR: &str = "FOREBAY_SUCCESSOR";

/// The sockets that were passed, before anybody knows what for.
pub(crate) struct Sockets {
    sockets: ListenFd,
    names: Option<String>,
}

impl Sockets {
    /// Takes them out of the environment, so that no child believes that they are its own. To be called before there
    /// are other threads.
    pub(crate) fn from_env() -> Self {
        Self {
            sockets: ListenFd::from_env(),
            names: std::env::var("LISTEN_FDNAMES").ok(),
        }
    }

    /// What they are to a worker.
    pub(crate) fn of_worker(mut self) -> anyhow::Result<Passed> {
        let mut passed = Passed::default();
        let count = self.sockets.len();
        if count == 0 {
            return Ok(passed);
        }
        let names = self.names.as_deref().unwrap_or_default();
        for (index, place) in places(names, count)?.into_iter().enumerate() {
            let (name, slot): (_, &mut Option<TcpListener>) = match place {
                Place::Gateway => (GATEWAY, &mut passed.gateway),
                Place::Admin => (ADMIN, &mut passed.admin),
            };
            let taken = self.sockets.take_tcp_listener(index);
            *slot = taken.with_context(|| format!("the socket `{name}` that was passed"))?;
        }
        Ok(passed)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Gateway,
    Admin,
}

/// What the sockets are, by their names. One that nobody would accept on is refused.
fn places(names: &str, count: usize) -> anyhow::Result<Vec<Place>> {
    let names: Vec<&str> = names.split(':').filter(|name| !name.is_empty()).collect();
    ensure!(
        names.len() == count,
        "{count} sockets were passed with {} names; name each `{GATEWAY}` or `{ADMIN}` (FileDescriptorName=)",
        names.len(),
    );
    let mut places = Vec::new();
    for name in names {
        let place = match name {
            GATEWAY => Place::Gateway,
            ADMIN => Place::Admin,
            name => bail!(
                "a socket called `{name}` was passed; `{GATEWAY}` and `{ADMIN}` are known (FileDescriptorName=)"
            ),
        };
        ensure!(
            !places.contains(&place),
            "two sockets called `{name}` were passed; one address each, `[::]:PORT` for IPv4 and IPv6"
        );
        places.push(place);
    }
    Ok(places)
}

/// This process does what it was started for.
pub(crate) fn ready(status: &str) {
    tell(&[
        NotifyState::MainPid(std::process::id()),
        NotifyState::Ready,
        NotifyState::Status(status),
    ]);
}

/// It is about to end.
pub(crate) fn stopping() {
    tell(&[
        NotifyState::Stopping,
        NotifyState::Status("stopping: requests in flight finish"),
    ]);
}

/// Lives as long as the runtime does, and says so if the manager wants to know.
pub(crate) async fn heartbeat() -> Infallible {
    let Some(within) = sd_notify::watchdog_enabled().filter(|within| !within.is_zero()) else {
        return pending().await;
    };
    let mut beats = interval((within / 2).max(Duration::from_millis(1)));
    loop {
        beats.tick().await;
        tell(&[NotifyState::Watchdog]);
    }
}

/// A manager that does not listen is no reason to stop.
fn tell(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!(%error, "the service manager cannot be told");
    }
}

/// Starts this program anew at each SIGUSR2, told to take over from this process. Whether it does is between the two
/// (docs/adr/0026): if it does not, this one serves on.
pub(crate) async fn successors() -> Infallible {
    let mut asked = match signal(SignalKind::user_defined2()) {
        Ok(asked) => asked,
        Err(error) => {
            tracing::warn!(%error, "SIGUSR2 cannot be heard");
            return pending().await;
        }
    };
    loop {
        next(&mut asked).await;
        tracing::info!("starting a process to take over");
        // Newer managers want to know when, to tell this reload from one before.
        let when = NotifyState::monotonic_usec_now();
        tell(&[vec![NotifyState::Reloading], when.into_iter().collect()].concat());
        match successor().await {
            // This process ends before its heir does, unless nothing comes of it.
            Ok(heir) => {
                while test_kill_process(heir).is_ok() {
                    sleep(LOOK_EVERY).await;
                }
                tracing::error!("the new process is gone; this one goes on");
            }
            Err(error) => tracing::error!(%error, "no new process; this one goes on"),
        }
        ready("the process that was to take over is gone, see the log");
    }
}

/// One whose sender is gone never comes.
async fn next(asked: &mut Signal) {
    if asked.recv().await.is_none() {
        pending::<()>().await;
    }
}

/// Starts one, and gives its id.
async fn successor() -> anyhow::Result<Pid> {
    let shell = starter()?.spawn()?;
    let said = timeout(STARTED_WITHIN, shell.wait_with_output()).await;
    let said = said.with_context(|| format!("not started within {STARTED_WITHIN:?}"))??;
    let id = String::from_utf8_lossy(&said.stdout).trim().parse().ok();
    id.and_then(Pid::from_raw)
        .context("the shell did not say which process it started")
}

/// The program as it is on disk now, with the same arguments. Not a child of this process but, as the shell in between
/// is gone at once, of the manager, which would not hear of its end otherwise.
fn starter() -> anyhow::Result<Command> {
    let mut called = std::env::args_os();
    let program = called.next();
    let program = program.context("this process does not know its own name")?;
    let mut shell = Command::new("sh");
    // What it says goes where this process' log goes; the shell's own output is the id.
    let script = "\"$0\" \"$@\" >&2 & echo $!";
    shell.arg("-c").arg(script).arg(program).args(called);
    shell.env(SUCCESSOR, "true").env_remove("WATCHDOG_PID");
    for name in OF_SOCKETS {
        shell.env_remove(name);
    }
    shell.stdin(Stdio::null()).stdout(Stdio::piped());
    shell.kill_on_drop(true);
    Ok(shell)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_go_by_their_names() {
        assert_eq!(
            places("admin:gateway", 2).unwrap(),
            [Place::Admin, Place::Gateway]
        );
        assert_eq!(places("gateway", 1).unwrap(), [Place::Gateway]);
    }

    #[test]
    fn a_socket_that_nobody_would_accept_on_is_refused() {
        for (names, count, says) in [
            ("", 1, "1 sockets were passed with 0 names"),
            ("gateway", 2, "2 sockets were passed with 1 names"),
            ("gateway:metrics", 2, "`metrics` was passed"),
            ("gateway:gateway", 2, "two sockets called `gateway`"),
            ("unknown", 1, "`unknown` was passed"),
        ] {
            let error = places(names, count).unwrap_err().to_string();
            assert!(error.contains(says), "{error}");
        }
    }
}
