//! The small files beside the database: the marker that names its epoch, and sled's own settings. Both are durable
//! before anything relies on them. What is in the database is not its concern.

use std::{
    fs::{self, File},
    io,
    path::Path,
};

/// The marker's file name.
pub(super) const MARKER: &str = "forebay-epoch";
/// What sled calls its settings.
const SETTINGS: &str = "conf";

pub(super) fn read_marker(dir: &Path) -> io::Result<Option<String>> {
    match fs::read_to_string(dir.join(MARKER)) {
        Ok(text) => Ok(Some(text.trim().to_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Beside its place, synced, renamed: it is there whole or not at all.
pub(super) fn write_marker(dir: &Path, epoch: &str) -> io::Result<()> {
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
