//! The binary: parses the command line, starts telemetry, runs one command, and turns its end into an
//! exit code (64 for usage, 1 for failure, 0 only for success; a rollout that was waited for has its own).

mod args;
mod client;
mod commands;
mod document;
mod keys_table;
mod leases_table;
mod open_files;
mod signals;
mod supervisor;
mod table;
mod telemetry;
mod ui;

use std::{borrow::Cow, num::NonZero, process::ExitCode, thread::available_parallelism};

use clap::Parser as _;
use mimalloc::MiMalloc;
use tokio::{
    runtime::{Builder, Runtime},
    task::JoinSet,
};

use self::{args::Cli, commands::NotEverywhere, supervisor::Sockets};

/// docs/adr/0012: what it saves per request and per idle connection.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

/// The exit code of a command line that makes no sense (sysexits' EX_USAGE).
const USAGE: u8 = 64;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // A broken pipe is nobody's failure.
            drop(error.print());
            return if error.use_stderr() {
                USAGE.into()
            } else {
                ExitCode::SUCCESS
            };
        }
    };
    let sockets = Sockets::from_env();
    let runtime = match runtime() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&anyhow::Error::new(error).context("cannot start the runtime")),
    };
    let result = runtime.block_on(on_a_worker(cli, sockets));
    runtime.shutdown_timeout(std::time::Duration::from_secs(1));
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error),
    }
}

/// As many threads as there are cores for this process, by its affinity and its quota. On one core everything
/// runs on one thread, in the order in which it became ready: then a batch of requests leaves for the
/// upstreams together, and wakes them once.
fn runtime() -> std::io::Result<Runtime> {
    let cores = available_parallelism().map_or(1, NonZero::get);
    let mut builder = match cores {
        1 => Builder::new_current_thread(),
        _ => Builder::new_multi_thread(),
    };
    builder.enable_all().build()
}

/// Not on the main thread, if there are others: whatever is awaited there is woken by way of another thread, each accept too.
async fn on_a_worker(cli: Cli, sockets: Sockets) -> anyhow::Result<()> {
    let mut running = JoinSet::new();
    running.spawn(commands::run(cli, sockets));
    match running.join_next().await {
        Some(ended) => ended?,
        None => Ok(()),
    }
}

fn fail(error: &anyhow::Error) -> ExitCode {
    ui::error(&format!("error: {error:#}"));
    if let Some(error) = error.downcast_ref::<NotEverywhere>() {
        return error.code();
    }
    match error.is::<Usage>() {
        true => USAGE.into(),
        false => ExitCode::FAILURE,
    }
}

/// A command line that parses but asks for nothing that could be done.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Usage(Cow<'static, str>);
