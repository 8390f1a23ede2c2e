//! A store while it is made for the first time. sled killed in its first moments may leave what it does not open again, and
//! there is no export yet: a file says so from before its first byte until its marker is there. What is under it holds
//! nothing that was ever acknowledged, and is the only database that is ever thrown away.

use std::{
    fs::{self, File},
    io,
    path::Path,
};

use super::{ASIDE, DATABASE, files, others};
use crate::store::{export, sled::read_marker};

/// There from before a database is made until it has its marker.
pub(in crate::store) const MAKING: &str = "forebay-making";

/// A database is about to be made where none ever was.
pub(super) fn begins(dir: &Path) -> io::Result<()> {
    File::create(dir.join(MAKING))?.sync_all()?;
    File::open(dir)?.sync_all()
}

/// It has its marker.
pub(super) fn ended(dir: &Path) -> io::Result<()> {
    let path = dir.join(MAKING);
    // What is not there is not removed from a disk that cannot be written to, either.
    match path.exists() {
        true => fs::remove_file(path),
        false => Ok(()),
    }
}

/// True if what is there was never made to its end.
pub(super) fn is_half_made(dir: &Path) -> io::Result<bool> {
    let aside = files(dir, |name| name.starts_with(ASIDE))?;
    let before = read_marker(dir)?.is_some() || export::any(dir) || !aside.is_empty();
    Ok(!before && dir.join(MAKING).exists())
}

/// Removes it, the database last: until then it counts as half made.
pub(super) fn undo(dir: &Path) -> io::Result<()> {
    for path in others(dir)? {
        match path.is_dir() {
            true => fs::remove_dir_all(path)?,
            false => fs::remove_file(path)?,
        }
    }
    match fs::remove_file(dir.join(DATABASE)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => File::open(dir)?.sync_all(),
    }
}
