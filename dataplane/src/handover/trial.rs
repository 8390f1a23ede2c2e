//! What the new process tries is held against nobody while the old one serves on.
//!
//! Until it says that it is ready, the new one is no process of the worker's yet: that it is killed, runs out of memory or
//! crashes is told to whoever started it. But it marks what it tries, as every process does (`attempts`), and whoever begins
//! next would take the mark for a crash of the worker. So the old one remembers the marks as they were when it came to
//! rest, and puts them back before it goes on. It must not know what they say.

use std::{
    fs,
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use tokio::task::spawn_blocking;

use crate::config_client::lkg_folder;

/// The marks of what is tried.
const MARKS: &str = "attempts";
/// Where they are written before they are put in their place.
const FRESH: &str = "attempts.undone";

/// The marks as they were when the old process came to rest.
#[derive(Debug)]
pub(super) struct Trial {
    folder: PathBuf,
    /// Nothing if there were none.
    marks: Option<Vec<u8>>,
}

impl Trial {
    /// The new process is about to begin, in the worker's data directory.
    pub(super) async fn begin(data_dir: &Path) -> io::Result<Self> {
        let folder = lkg_folder(data_dir);
        let read = move || {
            let marks = match fs::read(folder.join(MARKS)) {
                Ok(marks) => Some(marks),
                Err(error) if error.kind() == io::ErrorKind::NotFound => None,
                Err(error) => return Err(error),
            };
            Ok(Self { folder, marks })
        };
        spawn_blocking(read).await.map_err(io::Error::other)?
    }

    /// Nothing came of it.
    pub(super) async fn undo(self) -> io::Result<()> {
        let undo = move || {
            let place = self.folder.join(MARKS);
            let Some(marks) = self.marks else {
                return match fs::remove_file(place) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
                    _ => Ok(()),
                };
            };
            let fresh = self.folder.join(FRESH);
            let mut options = fs::OpenOptions::new();
            let options = options.write(true).create(true).truncate(true).mode(0o600);
            options.open(&fresh)?.write_all(&marks)?;
            fs::rename(fresh, place)
        };
        spawn_blocking(undo).await.map_err(io::Error::other)?
    }
}
