//! The command that reconfigures the gateway: run again and again while the load goes on, never two
//! bursts at a time. A burst that is late begins as soon as the one before has ended.

use std::{net::SocketAddr, process::Stdio, time::Duration};

use serde::Serialize;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _},
    process::Command,
    task::JoinSet,
    time::{Instant, MissedTickBehavior, interval_at, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{
    histogram::{Histogram, Quantiles},
    settings::Hook,
};

/// How much of what a failed hook printed is told, and of how many.
const MOST_TOLD: u64 = 2_000;
const MOST_FAILURES: usize = 5;
/// How long what it printed is waited for after its end; a process that it left behind may hold on to it.
const LAST_WORDS: Duration = Duration::from_millis(200);

/// What became of the hooks.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Hooks {
    /// Run to an end.
    pub run: u64,
    /// Of these, with another exit code than 0, or not in time.
    pub failed: u64,
    /// What the first failures said.
    pub failures: Vec<String>,
    /// How long they took, in milliseconds.
    pub took_ms: Quantiles,
}

/// What a hook is told in its environment.
#[derive(Debug, Clone)]
pub(crate) struct Surroundings {
    pub(crate) phase: &'static str,
    pub(crate) url: String,
    pub(crate) upstreams: Vec<SocketAddr>,
    pub(crate) seed: u64,
}

/// Runs hooks until `over`. Those that run then are waited for.
pub(crate) async fn run(
    hook: &Hook,
    command: &str,
    surroundings: &Surroundings,
    over: &CancellationToken,
) -> Hooks {
    let mut hooks = Hooks::default();
    let mut took = Histogram::default();
    let mut times = interval_at(Instant::now() + hook.every, hook.every);
    times.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let mut step = 0_u64;
    loop {
        tokio::select! {
            biased;
            () = over.cancelled() => break,
            _ = times.tick() => {}
        }
        let mut burst = JoinSet::new();
        for _ in 0..hook.burst {
            let command = surroundings.command(command, step);
            burst.spawn(one(command, step, hook.timeout));
            step += 1;
        }
        while let Some(ended) = burst.join_next().await {
            // Only a bug ends a task without a result.
            let (time, ended) = ended
                .unwrap_or_else(|error| (Duration::ZERO, Err(format!("the task ended: {error}"))));
            took.record(time);
            hooks.run += 1;
            if let Err(failure) = ended {
                hooks.failed += 1;
                if hooks.failures.len() < MOST_FAILURES {
                    hooks.failures.push(failure);
                }
            }
        }
    }
    hooks.took_ms = took.quantiles();
    hooks
}

impl Surroundings {
    fn command(&self, command: &str, step: u64) -> Command {
        let upstreams: Vec<_> = self.upstreams.iter().map(SocketAddr::to_string).collect();
        let mut process = Command::new("sh");
        process
            .arg("-c")
            .arg(command)
            .env("FOREBAY_BENCH_STEP", step.to_string())
            .env("FOREBAY_BENCH_PHASE", self.phase)
            .env("FOREBAY_BENCH_SEED", self.seed.to_string())
            .env("FOREBAY_BENCH_URL", &self.url)
            .env("FOREBAY_BENCH_UPSTREAMS", upstreams.join(","))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        process
    }
}

async fn one(mut command: Command, step: u64, within: Duration) -> (Duration, Result<(), String>) {
    let began = Instant::now();
    let ended = timeout(within, end(&mut command)).await;
    let ended = match ended {
        Ok(ended) => ended,
        Err(_) => Err(format!("still running after {within:?}; it was killed")),
    };
    let ended = ended.map_err(|failure| format!("step {step}: {failure}"));
    (began.elapsed(), ended)
}

async fn end(command: &mut Command) -> Result<(), String> {
    let mut child = command
        .spawn()
        .map_err(|error| format!("sh cannot be started: {error}"))?;
    let mut said = JoinSet::new();
    if let Some(stderr) = child.stderr.take() {
        said.spawn(words(stderr));
    }
    let status = child.wait().await;
    let status = status.map_err(|error| format!("cannot be waited for: {error}"))?;
    if status.success() {
        return Ok(());
    }
    let said = timeout(LAST_WORDS, said.join_next()).await;
    let said = match said {
        Ok(Some(Ok(said))) => said,
        _ => String::new(),
    };
    Err(format!("{status}: {}", said.trim())
        .trim_end_matches(": ")
        .to_owned())
}

/// The beginning of what it prints; the rest is read, so that it does not stall, and forgotten.
async fn words(mut stderr: impl AsyncRead + Unpin) -> String {
    let mut begin = Vec::new();
    // What cannot be read is not told.
    let _ = (&mut stderr).take(MOST_TOLD).read_to_end(&mut begin).await;
    let _ = tokio::io::copy(&mut stderr, &mut tokio::io::sink()).await;
    String::from_utf8_lossy(&begin).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hook(every: u64, burst: u32) -> Hook {
        Hook {
            command: String::new(),
            baseline_command: None,
            every: Duration::from_millis(every),
            burst,
            timeout: Duration::from_millis(500),
        }
    }

    async fn ran(command: &str, hook: &Hook, time: u64) -> Hooks {
        let surroundings = Surroundings {
            phase: "measured",
            url: "http://x/v1".to_owned(),
            upstreams: vec![([127, 0, 0, 1], 9).into(), ([127, 0, 0, 1], 10).into()],
            seed: 7,
        };
        let over = CancellationToken::new();
        let ending = async {
            tokio::time::sleep(Duration::from_millis(time)).await;
            over.cancel();
        };
        tokio::join!(run(hook, command, &surroundings, &over), ending).0
    }

    #[tokio::test]
    async fn each_step_is_told_its_number_and_where_everything_is() {
        let dir = std::env::temp_dir().join(format!("forebay-hook-{}", fastrand::u64(..)));
        let file = dir.display();
        let line = "$FOREBAY_BENCH_STEP $FOREBAY_BENCH_UPSTREAMS $FOREBAY_BENCH_PHASE";
        let command = format!("echo {line} >> {file}");
        let hooks = ran(&command, &hook(20, 2), 200).await;
        assert_eq!(hooks.failed, 0, "{hooks:?}");
        assert!(hooks.run >= 4 && hooks.run % 2 == 0, "{hooks:?}");
        let told = std::fs::read_to_string(&dir).unwrap();
        std::fs::remove_file(&dir).unwrap();
        assert_eq!(told.lines().count() as u64, hooks.run);
        for step in 0..hooks.run {
            let line = format!("{step} 127.0.0.1:9,127.0.0.1:10 measured\n");
            assert!(told.contains(&line), "{line} in {told}");
        }
    }

    #[tokio::test]
    async fn a_failure_is_counted_and_says_why() {
        let hooks = ran("echo no such model >&2; exit 3", &hook(20, 1), 100).await;
        assert_eq!(hooks.failed, hooks.run);
        assert!(hooks.failures[0].contains("no such model"), "{hooks:?}");
        assert!(hooks.failures[0].contains("step 0"), "{hooks:?}");
        let hooks = ran("sleep 30", &hook(20, 1), 50).await;
        assert_eq!((hooks.run, hooks.failed), (1, 1));
        assert!(hooks.failures[0].contains("still running"), "{hooks:?}");
    }
}
