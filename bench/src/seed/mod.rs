//! The founding experiment: a pool whose keepalive is smaller than its size, against one where they are
//! equal, against Forebay, on real sockets and in four shapes of load.
//!
//! It runs and measures ([`run()`]), compares with what the document claims (`claims.rs`), and puts both into
//! a [`Report`] with tables and pictures. It knows Forebay only as a program that it starts.

mod claims;
mod gateway;
mod load;
mod memory;
mod picture;
mod plan;
mod pool;
mod report;
mod run;
mod stats;
mod tables;
mod upstreams;

use std::{io, path::PathBuf};

pub use self::{
    claims::{Claim, Met, Verdict},
    memory::{Memory, Reading, Warm},
    plan::{Contestant, Plan, PlanError, Shape},
    report::{Report, Run, make_directory},
    run::{Progress, run},
    stats::{Bins, Latency},
    tables::Table,
};

/// Why there is no report.
#[derive(Debug, thiserror::Error)]
pub enum SeedError {
    /// The sizes and times do not fit together.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// An upstream cannot listen.
    #[error("a mock upstream cannot listen on a free port of 127.0.0.1")]
    Upstream(#[source] io::Error),
    /// No place for the gateway's data.
    #[error("no temporary directory can be made; set TMPDIR to a directory that can be written to")]
    Scratch(#[source] io::Error),
    /// The program under test cannot be started.
    #[error("{} cannot be started as the gateway under test", program.display())]
    Start {
        /// What was to be started.
        program: PathBuf,
        /// Why it could not be.
        source: io::Error,
    },
    /// It started and did not say where it listens.
    #[error("the gateway under test did not say where it listens; the end of its log:\n{log}")]
    Silent {
        /// What it said instead.
        log: String,
    },
    /// A command to it failed.
    #[error(
        "`forebay {command}` failed against the gateway under test: {why}\nthe end of its log:\n{log}"
    )]
    Command {
        /// The command.
        command: String,
        /// What it said.
        why: String,
        /// What the gateway said.
        log: String,
    },
    /// The first request to a warm model failed.
    #[error("the first request to a warm model failed: {0}")]
    First(String),
    /// Latencies cannot be counted.
    #[error("latencies cannot be counted on this machine")]
    Latencies,
    /// A file cannot be written.
    #[error("{} cannot be written; name another directory with --out", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A picture cannot be drawn.
    #[error("a picture cannot be drawn: {0}")]
    Draw(String),
    /// Told to stop.
    #[error("interrupted; nothing was written")]
    Interrupted,
}
