//! `forebay control export|import|check|migrate|new-epoch`: a store on which no control plane is at work.

use std::path::Path;

use anyhow::{Context as _, bail};
use forebay_control::{CheckReport, ExportHeader, Migrated, StoreLocation};
use tokio::runtime::Handle;

use super::roles::{control_dir, data_dir};
use crate::{
    args::{Offline, StoreArgs},
    ui,
};

/// Runs one, on a thread that may block.
pub(crate) async fn run(command: Offline) -> anyhow::Result<()> {
    let runtime = Handle::current();
    tokio::task::spawn_blocking(move || run_blocking(command, &runtime)).await?
}

fn run_blocking(command: Offline, runtime: &Handle) -> anyhow::Result<()> {
    match command {
        Offline::Export { dir, out } => {
            let header = match store(&dir)? {
                StoreLocation::Sled(dir) => {
                    forebay_control::export_directory(&dir, &out, scratch()?.path())?
                }
                StoreLocation::Etcd(at) => {
                    let access = dir.etcd.access(dir.insecure);
                    forebay_control::export_etcd(&at, &access, runtime, &out)?
                }
            };
            ui::say(&format!("{}: {}", out.display(), tell(&header)));
            Ok(())
        }
        Offline::Import { file, dir } => match store(&dir)? {
            StoreLocation::Sled(dir) => {
                let header = forebay_control::import(&file, &dir)?;
                ui::say(&format!("{}: {}", dir.display(), tell(&header)));
                Ok(())
            }
            StoreLocation::Etcd(at) => bail!(
                "an export is imported into a directory, and moved from there: `forebay control import {} --store sled:DIR`, \
                 then `forebay control migrate --from sled:DIR --to {at}`",
                file.display()
            ),
        },
        Offline::Check { dir } => match store(&dir)? {
            StoreLocation::Sled(dir) => {
                let report = forebay_control::check(&dir, scratch()?.path())?;
                ui::say(&describe(&dir, &report));
                if !report.is_sound() {
                    bail!("{} is not sound", dir.display());
                }
                Ok(())
            }
            StoreLocation::Etcd(at) => {
                let access = dir.etcd.access(dir.insecure);
                let header = forebay_control::check_etcd(&at, &access, runtime)?;
                ui::say(&format!("{at}: {}", tell(&header)));
                Ok(())
            }
        },
        Offline::Migrate {
            from,
            to,
            etcd,
            insecure,
        } => {
            let (access, scratch) = (etcd.access(insecure), scratch()?);
            let moved = forebay_control::migrate(&from, &to, &access, runtime, scratch.path())?;
            ui::say(&describe_move(&from, &to, &moved));
            Ok(())
        }
        Offline::NewEpoch {
            store,
            etcd,
            insecure,
        } => {
            let access = etcd.access(insecure);
            let (old, new) = forebay_control::new_epoch(&store, &access, runtime)?;
            ui::say(&format!("{store}: epoch {new}, before {old}"));
            Ok(())
        }
    }
}

fn store(args: &StoreArgs) -> anyhow::Result<StoreLocation> {
    Ok(match &args.store {
        Some(store) => store.clone(),
        None => StoreLocation::Sled(control_dir(&data_dir(args.data_dir.as_deref())?)),
    })
}

fn describe_move(from: &StoreLocation, to: &StoreLocation, moved: &Migrated) -> String {
    let Migrated {
        from_epoch,
        epoch,
        revision,
        earliest,
        models,
        answers,
        keys,
        dropped,
        needs_secrets,
    } = moved;
    let mut lines = vec![
        format!(
            "{to}: revision {revision}, {models} models, {answers} kept answers, {keys} clients' keys"
        ),
        format!("history: revisions {earliest} to {revision} can be gone back to, as before"),
        format!(
            "epoch: {epoch}, before {from_epoch}; workers take the whole over once and change nothing"
        ),
        format!("{from} is as it was; do not start a control plane on it again"),
    ];
    if *dropped > 0 {
        lines.push(format!(
            "not moved: {dropped} lines of history of before revision {earliest}, which could not be gone back to"
        ));
    }
    if *needs_secrets {
        lines.push(
            "clients' keys and credentials need the same pepper and seal key as before: give their files with \
             --pepper-file and --seal-key-file"
                .to_owned(),
        );
    }
    lines.join("\n")
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
