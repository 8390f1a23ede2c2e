//! The last known good configuration, on disk: what lets a worker start without a control plane.
//!
//! Three generations are kept (`current`, `previous`, `oldest`), each one file: a magic line, then
//! an encoded `Push` whose digest covers the configuration. A file is written beside its place,
//! synced, and renamed, so that a crash leaves either the old or the new; what is damaged all the
//! same is told of and passed over for the next older one. Mode 0600.
//!
//! It must not decide whether a configuration is good; it keeps what it is given.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use bytes::Bytes;
use forebay_proto::{Digest, Position, limits, wire};
use prost::Message as _;

const MAGIC: &[u8] = b"forebay last-known-good 1\n";
const GENERATIONS: [&str; 3] = ["current", "previous", "oldest"];

/// A configuration as it was pushed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept {
    /// Its name.
    pub position: Position,
    /// Its bytes.
    pub config: Bytes,
}

/// The folder that holds the files.
#[derive(Debug, Clone)]
pub struct LastKnownGood {
    folder: PathBuf,
}

/// Why a file was passed over.
#[derive(Debug, thiserror::Error)]
pub(super) enum Damaged {
    /// It cannot be read.
    #[error("cannot be read: {0}")]
    Io(#[from] io::Error),
    /// It is not one of ours.
    #[error("is not a last-known-good file of this format")]
    Format,
    /// Its content is not what its digest says.
    #[error("has content that does not match its digest")]
    Digest,
}

impl LastKnownGood {
    /// Keeps files in this folder, which is made if need be.
    pub fn open(folder: &Path) -> io::Result<Self> {
        fs::create_dir_all(folder)?;
        Ok(Self {
            folder: folder.to_owned(),
        })
    }

    /// Those that are whole, the newest first. What is damaged is logged and left where it is.
    pub fn load(&self) -> impl Iterator<Item = Kept> {
        GENERATIONS.iter().filter_map(|generation| {
            let path = self.folder.join(generation);
            match read(&path) {
                Ok(kept) => Some(kept),
                Err(Damaged::Io(error)) if error.kind() == io::ErrorKind::NotFound => None,
                Err(error) => {
                    let path = path.display();
                    tracing::error!(%path, %error, "last-known-good file passed over");
                    None
                }
            }
        })
    }

    /// Makes this the current one. What was current becomes previous.
    pub fn save(&self, kept: &Kept) -> io::Result<()> {
        let [current, previous, oldest] = GENERATIONS.map(|name| self.folder.join(name));
        let fresh = self.folder.join("writing");
        write(&fresh, kept)?;
        rename_if_there(&previous, &oldest)?;
        rename_if_there(&current, &previous)?;
        fs::rename(&fresh, &current)?;
        File::open(&self.folder)?.sync_all()
    }
}

fn write(path: &Path, kept: &Kept) -> io::Result<()> {
    let push = wire::Push {
        to: Some((&kept.position).into()),
        config: kept.config.clone(),
        ..wire::Push::default()
    };
    let mut options = OpenOptions::new();
    let mut file = options
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(MAGIC)?;
    file.write_all(&push.encode_to_vec())?;
    file.sync_all()
}

fn read(path: &Path) -> Result<Kept, Damaged> {
    let mut bytes = Vec::new();
    let most = limits::MESSAGE_BYTES as u64;
    File::open(path)?.take(most).read_to_end(&mut bytes)?;
    let push = bytes.strip_prefix(MAGIC).ok_or(Damaged::Format)?;
    let push = wire::Push::decode(push).map_err(|_| Damaged::Format)?;
    let position = push
        .to
        .and_then(|to| Position::try_from(to).ok())
        .ok_or(Damaged::Format)?;
    if Digest::of(&push.config) != position.digest {
        return Err(Damaged::Digest);
    }
    Ok(Kept {
        position,
        config: push.config,
    })
}

fn rename_if_there(from: &Path, to: &Path) -> io::Result<()> {
    match fs::rename(from, to) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use forebay_proto::{Epoch, Revision};

    use super::*;

    fn kept(revision: u64) -> Kept {
        let config = Bytes::from(vec![revision as u8; 100]);
        let position = Position {
            epoch: Epoch::new("ab").unwrap(),
            revision: Revision::new(revision),
            digest: Digest::of(&config),
        };
        Kept { position, config }
    }

    #[test]
    fn the_newest_whole_one_is_loaded() {
        let folder = tempfile::tempdir().unwrap();
        let lkg = LastKnownGood::open(folder.path()).unwrap();
        assert_eq!(lkg.load().next(), None);
        for revision in 1..=4 {
            lkg.save(&kept(revision)).unwrap();
        }
        let all: Vec<_> = lkg.load().collect();
        assert_eq!(all, [kept(4), kept(3), kept(2)]);

        let current = folder.path().join("current");
        let mode = fs::metadata(&current).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);

        let mut bytes = fs::read(&current).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        fs::write(&current, bytes).unwrap();
        assert_eq!(lkg.load().next(), Some(kept(3)), "a flipped bit");

        fs::write(folder.path().join("previous"), "").unwrap();
        assert_eq!(lkg.load().next(), Some(kept(2)), "an empty file");
        fs::write(folder.path().join("oldest"), "not ours").unwrap();
        assert_eq!(lkg.load().next(), None);
    }

    #[test]
    fn a_crash_before_the_rename_leaves_the_old_one() {
        let folder = tempfile::tempdir().unwrap();
        let lkg = LastKnownGood::open(folder.path()).unwrap();
        lkg.save(&kept(1)).unwrap();
        fs::write(folder.path().join("writing"), "half").unwrap();
        assert_eq!(lkg.load().next(), Some(kept(1)));
        lkg.save(&kept(2)).unwrap();
        assert_eq!(lkg.load().next(), Some(kept(2)));
    }
}
