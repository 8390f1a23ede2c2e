//! The commands.

mod apply;
mod bench;
pub(crate) mod credentials;
mod demo;
mod failure_args;
mod fleet;
mod health;
mod keys;
mod models;
mod offline;
mod pool;
mod pool_args;
mod revisions;
mod roles;
mod rollout;
mod standalone;

use clap::CommandFactory as _;

pub(crate) use self::rollout::NotEverywhere;
use crate::{
    args::{Cli, Command},
    supervisor::Sockets,
};

/// Runs one.
pub(crate) async fn run(cli: Cli, sockets: Sockets) -> anyhow::Result<()> {
    match cli.command {
        Command::Standalone(args) => standalone::run(&cli.log, args).await,
        Command::Control(args) => roles::control(&cli.log, args).await,
        Command::Worker(args) => roles::worker(&cli.log, args, sockets).await,
        Command::Models(command) => models::run(command).await,
        Command::Keys(command) => keys::run(command).await,
        Command::Pool(command) => pool::run(command).await,
        Command::Fleet(command) => fleet::run(command).await,
        Command::Bench(command) => bench::run(&cli.log, command).await,
        Command::Health { url } => health::run(&url).await,
        Command::Completions { shell } => {
            clap_complete::generate(
                shell,
                &mut Cli::command(),
                "forebay",
                &mut std::io::stdout(),
            );
            Ok(())
        }
    }
}
