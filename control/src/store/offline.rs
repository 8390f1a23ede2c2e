//! What an operator does with a data directory that no control plane works in: export it, import into an
//! empty one, check it. Nothing here changes a directory that already holds a registry.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    time::SystemTime,
};

use forebay_proto::PoolSettings;
use tokio::runtime::Handle;

use super::{
    ExportError, ExportHeader, MigrateError, OpenError, Store as _, Stored, export, migrate,
    recover::{self, DirLock, LOCK, MAKING, PROBE},
};

use crate::etcd::{EtcdAccess, EtcdLocation};

/// Why it was not done.
#[derive(Debug, thiserror::Error)]
pub enum OfflineError {
    /// The directory cannot be used.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// There is nothing.
    #[error("{} holds no registry; name the data directory of a control plane with --data-dir", .0.display())]
    Nothing(PathBuf),
    /// There is something.
    #[error("{} is not empty; an import needs an empty directory, name another --data-dir", .0.display())]
    NotEmpty(PathBuf),
    /// The file cannot be used as an export.
    #[error("{}: {error}", .path.display())]
    Export {
        /// The file.
        path: PathBuf,
        /// Why.
        error: ExportError,
    },
    /// The file cannot be written.
    #[error("{} cannot be written: {error}; choose another file with --out", .path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
}

/// What a check found.
#[derive(Debug)]
pub struct CheckReport {
    /// What the database holds; or what is wrong with it.
    pub database: Result<ExportHeader, String>,
    /// What the exports beside it hold, the newest first.
    pub exports: Vec<(PathBuf, ExportHeader)>,
    /// What is wrong with exports.
    pub trouble: Vec<String>,
    /// What is no damage, and good to know.
    pub notes: Vec<String>,
}

impl CheckReport {
    /// Whether all is well.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        self.database.is_ok() && self.trouble.is_empty()
    }
}

/// Writes an export of a directory into a new file. Where a control plane is at work it is a copy of the
/// newest automatic one, which is at most seconds old.
pub fn export_directory(
    dir: &Path,
    out: &Path,
    scratch: &Path,
) -> Result<ExportHeader, OfflineError> {
    if !holds_registry(dir) {
        return Err(OfflineError::Nothing(dir.to_owned()));
    }
    let stored = match recover::lock(dir) {
        Ok(_lock) => read_copy(dir, scratch)?,
        Err(in_use @ OpenError::InUse { .. }) => {
            let newest = export::whole(dir).0.into_iter().next();
            newest.ok_or(in_use)?.2
        }
        Err(error) => return Err(error.into()),
    };
    write_new(out, &stored)
}

/// Writes an export of an etcd into a new file.
pub fn export_etcd(
    at: &EtcdLocation,
    access: &EtcdAccess,
    runtime: &Handle,
    out: &Path,
) -> Result<ExportHeader, MigrateError> {
    let stored = migrate::read_etcd(at, access, runtime)?;
    Ok(write_new(out, &stored)?)
}

/// Reads everything in an etcd; what it holds, if it makes sense.
pub fn check_etcd(
    at: &EtcdLocation,
    access: &EtcdAccess,
    runtime: &Handle,
) -> Result<ExportHeader, MigrateError> {
    migrate::read_etcd(at, access, runtime).map(|stored| header_of(&stored))
}

fn write_new(out: &Path, stored: &Stored) -> Result<ExportHeader, OfflineError> {
    let failed = |error| OfflineError::Write {
        path: out.to_owned(),
        error,
    };
    if out.exists() {
        return Err(failed(io::ErrorKind::AlreadyExists.into()));
    }
    let now = SystemTime::now();
    export::write_file(out, stored, now).map_err(failed)?;
    let written = export::read_file(out);
    written
        .map(|(header, _)| header)
        .map_err(|error| OfflineError::Export {
            path: out.to_owned(),
            error,
        })
}

/// Makes the store of an empty directory from an export, under a new epoch.
pub fn import(file: &Path, dir: &Path) -> Result<ExportHeader, OfflineError> {
    let io_error = |error| OpenError::from_io(dir, error);
    let (_, stored) = export::read_file(file).map_err(|error| OfflineError::Export {
        path: file.to_owned(),
        error,
    })?;
    let _lock = take_empty(dir)?;
    let built = dir.join(IMPORTING);
    if built.exists() {
        fs::remove_dir_all(&built).map_err(io_error)?;
    }
    recover::calmly(dir, || recover::build(&built, &stored))?;
    // First the export: from here on a start makes good what a crash leaves half-done.
    export::save(dir, &stored, SystemTime::now()).map_err(io_error)?;
    recover::place(dir, &built).map_err(io_error)?;
    let mut store = recover::attempt(dir, &stored.settings.settings)?;
    let stored = load(dir, &mut store)?;
    export::save(dir, &stored, SystemTime::now()).map_err(io_error)?;
    Ok(header_of(&stored))
}

/// Takes a directory that holds nothing, or makes it.
pub(super) fn take_empty(dir: &Path) -> Result<DirLock, OfflineError> {
    let io_error = |error| OpenError::from_io(dir, error);
    fs::create_dir_all(dir).map_err(io_error)?;
    let lock = recover::lock(dir)?;
    // What an import that was cut short leaves behind.
    let unfinished = |name: &str| [LOCK, PROBE, MAKING, IMPORTING].contains(&name);
    for entry in fs::read_dir(dir).map_err(io_error)? {
        let name = entry.map_err(io_error)?.file_name();
        if !unfinished(&name.to_string_lossy()) {
            return Err(OfflineError::NotEmpty(dir.to_owned()));
        }
    }
    Ok(lock)
}

/// Where an import is built.
pub(super) const IMPORTING: &str = "importing";

/// Reads everything in a directory and says what is wrong. It works on a copy in `scratch`.
pub fn check(dir: &Path, scratch: &Path) -> Result<CheckReport, OfflineError> {
    if !holds_registry(dir) {
        return Err(OfflineError::Nothing(dir.to_owned()));
    }
    let _lock = recover::lock(dir)?;
    let database = match read_copy(dir, scratch) {
        Ok(stored) => Ok(header_of(&stored)),
        Err(OfflineError::Open(OpenError::Damaged { what, .. })) => Err(what),
        Err(error) => return Err(error),
    };
    let (whole, others) = export::whole(dir);
    let why = |(path, error): (PathBuf, ExportError)| format!("{}: {error}", path.display());
    let trouble: Vec<_> = others.into_iter().map(why).collect();
    let mut notes = Vec::new();
    if let (Ok(database), Some((path, newest, _))) = (&database, whole.first())
        && newest.epoch == database.epoch
        && newest.revision < database.revision
    {
        notes.push(format!(
            "{}: it holds revision {}, the database {}; the control plane makes a new one at its next start",
            path.display(),
            newest.revision,
            database.revision
        ));
    }
    if whole.is_empty() && trouble.is_empty() {
        notes.push("there is no export; the control plane makes one at its next start".to_owned());
    }
    let exports = whole.into_iter().map(|(path, header, _)| (path, header));
    Ok(CheckReport {
        database,
        exports: exports.collect(),
        trouble,
        notes,
    })
}

pub(super) fn holds_registry(dir: &Path) -> bool {
    dir.join("db").exists() || export::any(dir)
}

/// Reads a database by way of a copy: to open one is to write to it.
fn read_copy(dir: &Path, scratch: &Path) -> Result<Stored, OfflineError> {
    copy(dir, scratch)?;
    let opened = recover::attempt(scratch, &PoolSettings::default());
    let mut store = opened.map_err(|error| match error {
        OpenError::Damaged { what, .. } => OpenError::Damaged {
            dir: dir.to_owned(),
            what,
        },
        error => error,
    })?;
    load(dir, &mut store)
}

/// The files of a directory, in another one.
pub(super) fn copy(dir: &Path, scratch: &Path) -> Result<(), OfflineError> {
    let io_error = |error| OpenError::from_io(dir, error);
    for entry in fs::read_dir(dir).map_err(io_error)? {
        let entry = entry.map_err(io_error)?;
        if entry.file_type().map_err(io_error)?.is_file() {
            let from = &mut File::open(entry.path()).map_err(io_error)?;
            let scratch_error = |error| OpenError::from_io(scratch, error);
            let to = &mut File::create(scratch.join(entry.file_name())).map_err(scratch_error)?;
            io::copy(from, to).map_err(scratch_error)?;
        }
    }
    Ok(())
}

fn load(dir: &Path, store: &mut super::SledStore) -> Result<Stored, OfflineError> {
    let loaded = store.load().map_err(|error| OpenError::Damaged {
        dir: dir.to_owned(),
        what: error.to_string(),
    });
    Ok(loaded?)
}

fn header_of(stored: &Stored) -> ExportHeader {
    ExportHeader {
        epoch: stored.epoch.to_string(),
        revision: stored.revision.get(),
        time: 0,
        models: stored.models.len() as u64,
        answers: stored.idem.len() as u64,
    }
}
