//! Opens the store of a directory and, when it is damaged, builds it again from the newest export in it.
//!
//! What is damaged: anything that sled refuses or gives up on, records that make no sense, a database that
//! is gone, is another one, or ends before its own export. A directory of somebody else, in use, on a full
//! or read-only disk, or of a newer format is none of that: it is refused, and stays as it is.
//!
//! Recovery, each step of which may be the last before a crash and is made good by the next start:
//!
//! 1. sled's snapshots, which only spare it reading its log, are set aside; if it opens then, nothing is lost.
//! 2. A new store is built in `recovering/`, with a new epoch. On a full disk it ends here: nothing was moved.
//! 3. The damaged files go to `damaged-TIME/`, the database first: from here on it counts as gone.
//! 4. The new files take their places, the database last.
//!
//! Nothing is deleted but what was never finished: `recovering/`, snapshots that sled was still writing, and a database
//! that was killed while it was made (`making.rs`).

use std::{
    cell::Cell,
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, Write as _},
    panic::{self, AssertUnwindSafe},
    path::{Path, PathBuf},
    sync::{Arc, Once},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use forebay_proto::{PoolSettings, Revision};

use super::{
    Change, ExportError, ExportHeader, OpenError, SledStore, Store, StoreError, Stored, crash,
    export,
    history::{History, Past},
    keys::KeyChange,
    sled::{MARKER, read_marker, sleep, write_marker},
};

mod build;
mod making;

pub(super) use self::{build::build, making::MAKING};

#[cfg(test)]
#[path = "recover_tests.rs"]
mod tests;

/// Held by whoever works in the directory.
pub(super) const LOCK: &str = "forebay-lock";
const LOCK_TRIES: u32 = 20;
const LOCK_PAUSE: Duration = Duration::from_millis(50);
/// The database's own file.
const DATABASE: &str = "db";
const RECOVERING: &str = "recovering";
const ASIDE: &str = "damaged-";
/// Most sets of damaged files in a directory: more of them is a broken disk, and would fill it.
const MOST_ASIDE: usize = 16;
pub(super) const PROBE: &str = "forebay-probe";
/// What any start needs.
const ROOM: usize = 64 << 10;
/// What sled may ask for at once: a segment, and what it writes beside.
const MUCH_ROOM: usize = 10 << 20;

/// Whether a damaged store may be built again from its export.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Recovery {
    /// It is, and says so.
    #[default]
    Automatic,
    /// It is refused.
    Forbidden,
}

/// What was done to a damaged store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Recovered {
    /// What was wrong.
    pub(crate) cause: String,
    /// Where the damaged files are.
    pub(crate) aside: PathBuf,
    /// The revision of the export; none if nothing was lost.
    pub(crate) export: Option<Revision>,
}

impl std::fmt::Display for Recovered {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (cause, aside) = (&self.cause, self.aside.display());
        match self.export {
            None => write!(
                f,
                "the store was damaged ({cause}) and opened without its snapshots, nothing was lost; they are in {aside}"
            ),
            Some(revision) => write!(
                f,
                "the store was damaged ({cause}) and built again from its export of revision {revision} under a new \
                 epoch; writes after that revision, if any, are lost, and so is the history; the damaged files are in {aside}"
            ),
        }
    }
}

/// A store whose directory is locked for as long as it, or the lock, lives.
#[derive(Debug)]
pub(crate) struct LockedStore {
    pub(super) store: SledStore,
    pub(crate) lock: DirLock,
}

/// The directory is nobody else's.
pub(crate) type DirLock = Arc<File>;

impl Store for LockedStore {
    fn load(&mut self) -> Result<Stored, StoreError> {
        self.store.load()
    }

    fn past(&mut self) -> Result<Past, StoreError> {
        self.store.past()
    }

    fn history(&self) -> Arc<dyn History> {
        self.store.history()
    }

    fn commit(&mut self, changes: &[Change]) -> Result<(), StoreError> {
        self.store.commit(changes)
    }

    fn commit_keys(&mut self, changes: &[KeyChange]) -> Result<(), StoreError> {
        self.store.commit_keys(changes)
    }
}

/// Opens the store of a directory, makes it, or recovers it.
pub(crate) fn open(
    dir: &Path,
    fresh: &PoolSettings,
    recovery: Recovery,
) -> Result<(LockedStore, Option<Recovered>), OpenError> {
    let io_error = |error| OpenError::from_io(dir, error);
    fs::create_dir_all(dir).map_err(io_error)?;
    let lock = lock(dir)?;
    // First what was never finished goes: on a full disk it may be what is in the way.
    sweep(dir).map_err(io_error)?;
    room(dir, ROOM).map_err(io_error)?;
    let cause = match attempt(dir, fresh) {
        Ok(store) => return Ok((LockedStore { store, lock }, None)),
        Err(OpenError::Damaged { what, .. }) if making::is_half_made(dir).map_err(io_error)? => {
            tracing::warn!(dir = %dir.display(), cause = what, "the store was killed while it was made, it is made anew");
            making::undo(dir).map_err(io_error)?;
            let store = attempt(dir, fresh)?;
            return Ok((LockedStore { store, lock }, None));
        }
        Err(OpenError::Damaged { what, .. }) if recovery == Recovery::Automatic => what,
        Err(error) => return Err(error),
    };
    tracing::error!(dir = %dir.display(), cause, "the store is damaged, recovering it");
    let (store, recovered) = recover(dir, fresh, cause)?;
    tracing::error!(dir = %dir.display(), "{recovered}");
    Ok((LockedStore { store, lock }, Some(recovered)))
}

/// Takes the directory, if need be after a moment: a process that ends holds it a little longer.
pub(super) fn lock(dir: &Path) -> Result<DirLock, OpenError> {
    let path = dir.join(LOCK);
    let mut options = OpenOptions::new();
    let file = options.create(true).truncate(false).write(true).open(path);
    let file = file.map_err(|error| OpenError::from_io(dir, error))?;
    for _ in 0..LOCK_TRIES {
        match file.try_lock() {
            Ok(()) => return Ok(Arc::new(file)),
            Err(TryLockError::WouldBlock) => sleep(LOCK_PAUSE),
            Err(TryLockError::Error(error)) => return Err(OpenError::from_io(dir, error)),
        }
    }
    Err(OpenError::InUse {
        dir: dir.to_owned(),
    })
}

/// Whether so much can be written. sled panics where it runs out of room as it opens.
fn room(dir: &Path, bytes: usize) -> io::Result<()> {
    let path = dir.join(PROBE);
    let block = [1; 64 << 10];
    let mut file = File::create(&path)?;
    let written = (0..bytes.div_ceil(block.len())).try_for_each(|_| file.write_all(&block));
    drop(file);
    fs::remove_file(&path)?;
    written
}

/// Removes what was never finished.
fn sweep(dir: &Path) -> io::Result<()> {
    match fs::remove_dir_all(dir.join(RECOVERING)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    for path in files(dir, |name| {
        name.starts_with("snap.") && name.ends_with(".generating")
    })? {
        fs::remove_file(path)?;
    }
    for path in files(dir, |name| name.starts_with(ASIDE))? {
        // One that nothing was moved to. Of the others nothing is removed.
        drop(fs::remove_dir(path));
    }
    Ok(())
}

fn files(dir: &Path, wanted: impl Fn(&str) -> bool) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if wanted(&entry.file_name().to_string_lossy()) {
            found.push(entry.path());
        }
    }
    Ok(found)
}

/// Opens the store and reads all of it. A store that gives up tells of damage, or of a full disk.
pub(super) fn attempt(dir: &Path, fresh: &PoolSettings) -> Result<SledStore, OpenError> {
    calmly(dir, || checked(dir, fresh)).map_err(|error| match error {
        OpenError::Damaged { .. } => match room(dir, MUCH_ROOM) {
            Err(full) if matches!(OpenError::from_io(dir, copy(&full)), OpenError::Full { .. }) => {
                OpenError::from_io(dir, full)
            }
            _ => error,
        },
        error => error,
    })
}

fn copy(error: &io::Error) -> io::Error {
    io::Error::from(error.kind())
}

fn checked(dir: &Path, fresh: &PoolSettings) -> Result<SledStore, OpenError> {
    let io_error = |error| OpenError::from_io(dir, error);
    let damaged = |what: String| OpenError::Damaged {
        dir: dir.to_owned(),
        what,
    };
    let marker = read_marker(dir).map_err(io_error)?;
    let aside = files(dir, |name| name.starts_with(ASIDE)).map_err(io_error)?;
    let exported = export::any(dir);
    let gone = match fs::metadata(dir.join(DATABASE)) {
        Ok(file) => file.len() == 0,
        Err(error) if error.kind() == io::ErrorKind::NotFound => true,
        Err(error) => return Err(io_error(error)),
    };
    if gone && (marker.is_some() || exported || !aside.is_empty()) {
        return Err(damaged("its database is gone".to_owned()));
    }
    let exports = export::whole(dir).0;
    if marker.is_none()
        && let Some((_, newest, _)) = exports.first()
    {
        // Without the marker a database that lost everything would pass for a fresh one.
        write_marker(dir, &newest.epoch).map_err(io_error)?;
    }
    if gone {
        making::begins(dir).map_err(io_error)?;
    }
    let mut store = SledStore::open(dir, fresh)?;
    making::ended(dir).map_err(io_error)?;
    let stored = store.load().map_err(|error| match error {
        StoreError::NotCommitted(what) | StoreError::Unknown(what) => damaged(what),
        StoreError::Conflict => damaged(error.to_string()),
    })?;
    store.verify().map_err(damaged)?;
    let own = exports.iter().map(|(_, header, _)| header);
    let own = own.filter(|header| header.epoch == stored.epoch.as_str());
    let keys = exports.iter();
    let keys = keys.filter(|(_, header, _)| header.epoch == stored.epoch.as_str());
    let keys = keys.map(|(_, _, exported)| exported.keys.version).max();
    if let Some(exported) = keys.filter(|exported| *exported > stored.keys.version) {
        // What was revoked since must not come back unnoticed.
        return Err(damaged(format!(
            "its clients' keys end at version {}, its own export holds {exported}",
            stored.keys.version
        )));
    }
    match own.map(|header| header.revision).max() {
        Some(exported) if exported > stored.revision.get() => Err(damaged(format!(
            "it ends at revision {}, its own export holds {exported}",
            stored.revision
        ))),
        _ => Ok(store),
    }
}

fn recover(
    dir: &Path,
    fresh: &PoolSettings,
    cause: String,
) -> Result<(SledStore, Recovered), OpenError> {
    let io_error = |error| OpenError::from_io(dir, error);
    let refused = |why: String| OpenError::Damaged {
        dir: dir.to_owned(),
        what: format!("{cause}; {why}"),
    };
    let earlier = files(dir, |name| name.starts_with(ASIDE)).map_err(io_error)?;
    if earlier.len() >= MOST_ASIDE {
        return Err(refused(format!(
            "it was recovered {MOST_ASIDE} times before, look at its disk and remove its {ASIDE}* directories"
        )));
    }
    let (header, stored) = newest_export(dir).map_err(refused)?;
    let aside = new_aside(dir).map_err(io_error)?;
    let snapshots = files(dir, |name| name.starts_with("snap.")).map_err(io_error)?;
    if !snapshots.is_empty()
        && header.epoch == read_marker(dir).map_err(io_error)?.unwrap_or_default()
    {
        move_to(snapshots, &aside).map_err(io_error)?;
        match attempt(dir, fresh) {
            Ok(store) => {
                let export = None;
                return Ok((
                    store,
                    Recovered {
                        cause,
                        aside,
                        export,
                    },
                ));
            }
            Err(OpenError::Damaged { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    let built = dir.join(RECOVERING);
    calmly(dir, || build(&built, &stored)).map_err(|error| {
        match room(dir, MUCH_ROOM).map_err(io_error) {
            Err(full @ OpenError::Full { .. }) => full,
            _ => error,
        }
    })?;
    crash::at("recovery-built");
    move_aside(dir, &aside).map_err(io_error)?;
    place(dir, &built).map_err(io_error)?;
    let export = Some(stored.revision);
    let store = attempt(dir, fresh)?;
    Ok((
        store,
        Recovered {
            cause,
            aside,
            export,
        },
    ))
}

/// The export to recover from; or why there is none.
fn newest_export(dir: &Path) -> Result<(ExportHeader, Stored), String> {
    let (exports, others) = export::whole(dir);
    for (path, error) in &others {
        let path = path.display();
        tracing::error!(%path, %error, "an export cannot be used");
        // It is newer than the other one, which would lose what this version cannot read.
        if let ExportError::NewerFormat { .. } = error {
            return Err(format!("its export {path} cannot be used: {error}"));
        }
    }
    let Some((_, header, stored)) = exports.into_iter().next() else {
        let why = |(path, error): &(PathBuf, ExportError)| format!("{}: {error}", path.display());
        let others = others.iter().map(why).collect::<Vec<_>>().join("; ");
        return Err(match others.is_empty() {
            true => "there is no export to recover it from".to_owned(),
            false => format!("no export can be used: {others}"),
        });
    };
    Ok((header, stored))
}

fn new_aside(dir: &Path) -> io::Result<PathBuf> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let now = now.unwrap_or_default().as_secs();
    for n in 0..=MOST_ASIDE {
        let path = match n {
            0 => dir.join(format!("{ASIDE}{now}")),
            n => dir.join(format!("{ASIDE}{now}-{n}")),
        };
        match fs::create_dir(&path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            made => return made.map(|()| path),
        }
    }
    Err(io::ErrorKind::AlreadyExists.into())
}

/// The files of a database, but for the database itself.
fn others(dir: &Path) -> io::Result<Vec<PathBuf>> {
    files(dir, |name| {
        name == "conf" || name == "blobs" || name == MARKER || name.starts_with("snap.")
    })
}

fn move_aside(dir: &Path, aside: &Path) -> io::Result<()> {
    let database = dir.join(DATABASE);
    if database.exists() {
        move_to(vec![database], aside)?;
        File::open(dir)?.sync_all()?;
    }
    crash::at("recovery-database-aside");
    move_to(others(dir)?, aside)?;
    File::open(aside)?.sync_all()?;
    File::open(dir)?.sync_all()?;
    crash::at("recovery-aside");
    Ok(())
}

pub(super) fn place(dir: &Path, built: &Path) -> io::Result<()> {
    move_to(others(built)?, dir)?;
    File::open(dir)?.sync_all()?;
    crash::at("recovery-half-placed");
    move_to(vec![built.join(DATABASE)], dir)?;
    File::open(dir)?.sync_all()?;
    crash::at("recovery-placed");
    fs::remove_dir_all(built)
}

fn move_to(paths: Vec<PathBuf>, dir: &Path) -> io::Result<()> {
    for path in paths {
        if let Some(name) = path.file_name() {
            fs::rename(&path, dir.join(name))?;
        }
    }
    Ok(())
}

thread_local! {
    static CALM: Cell<bool> = const { Cell::new(false) };
}

/// Runs what may panic inside sled; that is damage, told of in words and without a trace.
pub(super) fn calmly<T>(
    dir: &Path,
    work: impl FnOnce() -> Result<T, OpenError>,
) -> Result<T, OpenError> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let before = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            let thread = std::thread::current();
            let of_sled = thread
                .name()
                .is_some_and(|name| name.starts_with("sled-io-"));
            match (of_sled, CALM.get()) {
                (_, true) => {}
                (true, false) => tracing::error!("a thread of the store ended: {info}"),
                (false, false) => before(info),
            }
        }));
    });
    CALM.set(true);
    let result = panic::catch_unwind(AssertUnwindSafe(work));
    CALM.set(false);
    result.unwrap_or_else(|payload| {
        let text = payload.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| payload.downcast_ref::<&str>().copied());
        let what = format!("sled gave up: {}", text.unwrap_or("without a word"));
        Err(OpenError::Damaged {
            dir: dir.to_owned(),
            what,
        })
    })
}
