//! The files of a database's directory beside its content: the lock, the marker, sled's settings, and what errors of
//! any of them mean.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use sled::Db;

use crate::store::OpenError;

/// The marker's file name.
pub(in crate::store) const MARKER: &str = "forebay-epoch";
/// What sled calls its settings.
const SETTINGS: &str = "conf";
/// How often, and with what pause between, a lock that somebody holds is tried.
const LOCK_TRIES: u32 = 20;
const LOCK_PAUSE: Duration = Duration::from_millis(50);

pub(in crate::store) fn read_marker(dir: &Path) -> io::Result<Option<String>> {
    match fs::read_to_string(dir.join(MARKER)) {
        Ok(text) => Ok(Some(text.trim().to_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Beside its place, synced, renamed: it is there whole or not at all.
pub(in crate::store) fn write_marker(dir: &Path, epoch: &str) -> io::Result<()> {
    let fresh = dir.join(format!("{MARKER}.writing"));
    fs::write(&fresh, format!("{epoch}\n"))?;
    File::open(&fresh)?.sync_all()?;
    fs::rename(&fresh, dir.join(MARKER))?;
    File::open(dir)?.sync_all()
}

/// sled never syncs its settings, and does not open with a part of them, which a power cut may leave.
pub(super) fn sync_settings(dir: &Path) -> io::Result<()> {
    File::open(dir.join(SETTINGS))?.sync_all()?;
    File::open(dir)?.sync_all()
}

/// One who is just about to go holds the lock for a moment longer: a process that ends, or sled's own
/// thread after a close.
pub(super) fn open_patiently(config: &sled::Config) -> sled::Result<Db> {
    for _ in 0..LOCK_TRIES {
        match config.open() {
            Err(sled::Error::Io(error)) if is_lock_conflict(&error) => sleep(LOCK_PAUSE),
            opened => return opened,
        }
    }
    config.open()
}

#[expect(
    clippy::disallowed_methods,
    reason = "the store is opened on a thread that may block"
)]
pub(in crate::store) fn sleep(pause: Duration) {
    std::thread::sleep(pause);
}

pub(super) fn open_error(dir: &Path, error: sled::Error) -> OpenError {
    let dir = PathBuf::from(dir);
    match error {
        sled::Error::Io(error) if is_lock_conflict(&error) => OpenError::InUse { dir },
        sled::Error::Io(error) if is_damage(&error) => OpenError::Damaged {
            dir,
            what: error.to_string(),
        },
        sled::Error::Io(error) => OpenError::from_io(dir, error),
        error => OpenError::Damaged {
            dir,
            what: error.to_string(),
        },
    }
}

/// What a file says that ends too early or makes no sense.
fn is_damage(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::UnexpectedEof | io::ErrorKind::InvalidData | io::ErrorKind::InvalidInput
    )
}

/// sled wraps the refusal of `flock` in an error of its own words.
fn is_lock_conflict(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::WouldBlock || error.to_string().contains("WouldBlock")
}
