//! Forebay itself as a child process on free ports, with data that are thrown away: started, told of
//! models through its own command line, killed by its id and waited for.

use std::{
    fs::File,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::{Child, Command},
    time::{Instant, sleep, timeout},
};

use super::{SeedError, plan::Plan};

const ANY: &str = "127.0.0.1:0";
const STARTS_WITHIN: Duration = Duration::from_secs(20);
const COMMAND_WITHIN: Duration = Duration::from_secs(30);
const ASK_EVERY: Duration = Duration::from_millis(50);
/// How much of its log is repeated when it fails.
const LOG_LINES: usize = 5;

/// A running Forebay.
#[derive(Debug)]
pub(crate) struct Gateway {
    child: Child,
    program: PathBuf,
    listens: Listens,
    data: TempDir,
}

#[derive(Debug, Clone)]
struct Listens {
    gateway: SocketAddr,
    admin: SocketAddr,
    control: SocketAddr,
}

impl Gateway {
    /// Starts it, and waits until its worker has a configuration.
    pub(crate) async fn start(program: &Path, plan: &Plan) -> Result<Self, SeedError> {
        let data = tempfile::Builder::new().prefix("forebay-bench-").tempdir();
        let data = data.map_err(SeedError::Scratch)?;
        let log = File::create(data.path().join("log")).map_err(SeedError::Scratch)?;
        let mut command = command(program);
        command
            .args(["standalone", "--log-level", "warn"])
            .args([
                "--listen",
                ANY,
                "--admin-listen",
                ANY,
                "--control-listen",
                ANY,
            ])
            .arg("--data-dir")
            .arg(data.path())
            .args(["--gateway-max-concurrent", &plan.max_concurrent.to_string()])
            .args(["--gateway-max-models-concurrent", &plan.models.to_string()])
            .stdout(Stdio::piped())
            .stderr(log);
        let mut child = command.spawn().map_err(|source| SeedError::Start {
            program: program.to_owned(),
            source,
        })?;
        let Some(listens) = listens(&mut child).await else {
            stop(child).await;
            return Err(SeedError::Silent {
                log: end_of_log(data.path()),
            });
        };
        let gateway = Self {
            child,
            program: program.to_owned(),
            listens,
            data,
        };
        match gateway.ready().await {
            Ok(()) => Ok(gateway),
            Err(error) => {
                gateway.stop().await;
                Err(error)
            }
        }
    }

    /// Where clients ask.
    pub(crate) fn addr(&self) -> SocketAddr {
        self.listens.gateway
    }

    /// Its process id while it runs.
    pub(crate) fn id(&self) -> Option<u32> {
        self.child.id()
    }

    /// Registers all models of a plan with so many connections ahead of need, and waits until they are served.
    pub(crate) async fn register(
        &self,
        plan: &Plan,
        urls: &[String],
        warm: usize,
    ) -> Result<(), SeedError> {
        let (size, warm) = (plan.max_concurrent.to_string(), warm.to_string());
        for (n, url) in urls.iter().enumerate() {
            let id = plan.model(n);
            let create = ["models", "create", &id, "--endpoint", url];
            let pool = ["--max-concurrent", &size, "--warm", &warm];
            self.told(&[&create[..], &pool[..]].concat()).await?;
        }
        self.told(&["fleet", "rollout", "--wait", "--within", "20s"])
            .await
    }

    /// Kills it and waits until it is gone.
    pub(crate) async fn stop(self) {
        stop(self.child).await;
    }

    async fn ready(&self) -> Result<(), SeedError> {
        let url = format!("http://{}/readyz", self.listens.admin);
        let give_up = Instant::now() + STARTS_WITHIN;
        loop {
            match self.run(&["health", "--url", &url]).await {
                Err(error) if Instant::now() > give_up => return Err(error),
                Err(_) => sleep(ASK_EVERY).await,
                Ok(()) => return Ok(()),
            }
        }
    }

    async fn told(&self, args: &[&str]) -> Result<(), SeedError> {
        let control = format!("http://{}", self.listens.control);
        self.run(&[args, &["--control", &control]].concat()).await
    }

    async fn run(&self, args: &[&str]) -> Result<(), SeedError> {
        let failed = |why: String| SeedError::Command {
            command: args.join(" "),
            why,
            log: end_of_log(self.data.path()),
        };
        let mut command = command(&self.program);
        let output = command.args(args).stderr(Stdio::piped()).output();
        match timeout(COMMAND_WITHIN, output).await {
            Ok(Ok(output)) if output.status.success() => Ok(()),
            Ok(Ok(output)) => {
                let said = String::from_utf8_lossy(&output.stderr);
                Err(failed(format!("{}: {}", output.status, said.trim())))
            }
            Ok(Err(error)) => Err(failed(error.to_string())),
            Err(_) => Err(failed(format!("still running after {COMMAND_WITHIN:?}"))),
        }
    }
}

/// The program without the environment that this one has: what is set there for an operator's own
/// Forebay must not reach the one under test.
fn command(program: &Path) -> Command {
    let mut command = Command::new(program);
    command
        .env_clear()
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .kill_on_drop(true);
    command
}

async fn stop(mut child: Child) {
    // Fails only for a child that is gone already.
    drop(child.kill().await);
}

/// Reads where it listens from what it prints at its start.
async fn listens(child: &mut Child) -> Option<Listens> {
    let mut lines = BufReader::new(child.stdout.take()?).lines();
    let (mut gateway, mut admin, mut control) = (None, None, None);
    let found = timeout(STARTS_WITHIN, async {
        while let Ok(Some(line)) = lines.next_line().await {
            let mut words = line.split_whitespace();
            match words.next() {
                Some("gateway") => gateway = words.next().and_then(address),
                Some("admin") => admin = words.next().and_then(address),
                Some("control") => control = words.next().and_then(address),
                _ => {}
            }
            if let (Some(gateway), Some(admin), Some(control)) = (gateway, admin, control) {
                return Some(Listens {
                    gateway,
                    admin,
                    control,
                });
            }
        }
        None
    });
    found.await.ok()?
}

fn address(url: &str) -> Option<SocketAddr> {
    let rest = url.trim_start_matches("http://");
    rest.split('/').next()?.parse().ok()
}

fn end_of_log(data: &Path) -> String {
    let log = std::fs::read_to_string(data.join("log")).unwrap_or_default();
    let lines: Vec<_> = log.lines().rev().take(LOG_LINES).collect();
    match lines.is_empty() {
        true => "its log is empty".to_owned(),
        false => lines.into_iter().rev().collect::<Vec<_>>().join("\n"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_as_they_are_printed() {
        let wanted = Some(SocketAddr::from(([127, 0, 0, 1], 8080)));
        for text in [
            "http://127.0.0.1:8080/v1",
            "http://127.0.0.1:8080",
            "127.0.0.1:8080",
        ] {
            assert_eq!(address(text), wanted, "{text}");
        }
        assert_eq!(address("nowhere"), None);
    }

    #[tokio::test]
    async fn a_program_that_says_nothing_is_not_waited_for_in_vain() {
        let plan = super::super::plan::tests::plan();
        let error = Gateway::start(Path::new("/bin/true"), &plan)
            .await
            .unwrap_err();
        assert!(error.to_string().contains("its log is empty"), "{error}");
        let missing = Gateway::start(Path::new("/nowhere/forebay"), &plan).await;
        assert!(
            missing
                .unwrap_err()
                .to_string()
                .contains("/nowhere/forebay")
        );
    }
}
