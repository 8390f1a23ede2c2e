//! Clients' keys on disk: what keeps a revoked key revoked when the worker starts without a control plane. Hashes, the key
//! that they are checked with, and the seal keys; mode 0600.
//!
//! One file: a magic line, then encoded `KeptKeys`, whose position has a digest of the rest. It is written at once and
//! without a trial: a revocation must not wait. Written beside its place, synced, renamed: a crash leaves the old or the
//! new. What is damaged is an error, and not the same as none.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use forebay_proto::{limits, wire};
use parking_lot::Mutex;
use prost::Message as _;
use zeroize::Zeroizing;

use super::KeyCell;

const MAGIC: &[u8] = b"forebay keys 1\n";
/// Largest file.
const MOST_BYTES: u64 = 2 * limits::KEYS_BYTES as u64;

/// Where they are kept.
#[derive(Debug, Clone)]
pub(crate) struct KeysFile {
    path: PathBuf,
    /// One writes at a time.
    turn: Arc<Mutex<()>>,
}

impl KeysFile {
    /// In this folder.
    pub(crate) fn within(folder: &Path) -> Self {
        Self {
            path: folder.join("keys"),
            turn: Arc::default(),
        }
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// What is kept; nothing if nothing ever was. It blocks.
    pub(crate) fn load(&self) -> io::Result<Option<wire::KeptKeys>> {
        let file = match File::open(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            opened => opened?,
        };
        let mut bytes = Zeroizing::new(Vec::new());
        file.take(MOST_BYTES).read_to_end(&mut bytes)?;
        let kept = bytes.strip_prefix(MAGIC);
        let kept = kept.and_then(|kept| wire::KeptKeys::decode(kept).ok());
        kept.map(Some)
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "it is not a file of keys"))
    }

    /// Keeps what is in force. It blocks.
    pub(crate) fn save(&self, cell: &KeyCell) -> io::Result<()> {
        let _turn = self.turn.lock();
        // Read behind the lock: the last to write has the newest.
        let kept = Zeroizing::new(cell.kept().encode_to_vec());
        let fresh = self.path.with_extension("writing");
        match fs::remove_file(&fresh) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut options = OpenOptions::new();
        let mut file = options
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&fresh)?;
        file.write_all(MAGIC)?;
        file.write_all(&kept)?;
        file.sync_all()?;
        fs::rename(&fresh, &self.path)?;
        let folder = self.path.parent().unwrap_or(Path::new("."));
        File::open(folder)?.sync_all()
    }
}
