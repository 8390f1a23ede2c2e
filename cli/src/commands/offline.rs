//! `forebay control export|import|check`: a data directory in which no control plane is at work.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use forebay_control::{CheckReport, ExportHeader, StoreLocation};

use super::roles::{control_dir, data_dir};
use crate::{
    args::{Offline, StoreArgs},
    ui,
};

/// Runs one, on a thread that may block.
pub(crate) async fn run(command: Offline) -> anyhow::Result<()> {
    tokio::task::spawn_blocking(|| run_blocking(command)).await?
}

fn run_blocking(command: Offline) -> anyhow::Result<()> {
    match command {
        Offline::Export { dir, out } => {
            let header = forebay_control::export_directory(&store(dir)?, &out, scratch()?.path())?;
            ui::say(&format!("{}: {}", out.display(), tell(&header)));
            Ok(())
        }
        Offline::Import { file, dir } => {
            let dir = store(dir)?;
            let header = forebay_control::import(&file, &dir)?;
            ui::say(&format!("{}: {}", dir.display(), tell(&header)));
            Ok(())
        }
        Offline::Check { dir } => {
            let dir = store(dir)?;
            let report = forebay_control::check(&dir, scratch()?.path())?;
            ui::say(&describe(&dir, &report));
            if !report.is_sound() {
                bail!("{} is not sound", dir.display());
            }
            Ok(())
        }
    }
}

fn store(args: StoreArgs) -> anyhow::Result<PathBuf> {
    match args.store {
        Some(StoreLocation::Sled(dir)) => Ok(dir),
        None => Ok(control_dir(&data_dir(args.data_dir.as_deref())?)),
    }
}

/// Where a database is read: to open one is to write to it.
fn scratch() -> anyhow::Result<tempfile::TempDir> {
    let dir = tempfile::Builder::new().prefix("forebay-copy-").tempdir();
    dir.context("no temporary directory can be made; name another place with TMPDIR")
}

fn tell(header: &ExportHeader) -> String {
    let ExportHeader {
        epoch,
        revision,
        models,
        answers,
        ..
    } = header;
    format!("revision {revision} of epoch {epoch}, {models} models, {answers} kept answers")
}

fn describe(dir: &Path, report: &CheckReport) -> String {
    let database = match &report.database {
        Ok(header) => tell(header),
        Err(what) => format!("damaged: {what}"),
    };
    let mut lines = vec![format!("{}: {database}", dir.display())];
    for (path, header) in &report.exports {
        lines.push(format!("{}: {}", path.display(), tell(header)));
    }
    lines.extend(report.trouble.iter().cloned());
    lines.join("\n")
}
