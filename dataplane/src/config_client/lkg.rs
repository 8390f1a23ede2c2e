//! The last known good configuration, on disk: what lets a worker start without a control plane.
//!
//! Three generations are kept (`current`, `previous`, `oldest`), each one file: a magic line, then
//! an encoded `Push` whose digest covers the configuration (format 1), or that and the models that are as they were in
//! an earlier one, with a digest of their own (format 2, only if there are any, so that an older build reads what it
//! can). A file is written beside its place, synced, and renamed, so that a crash leaves either the old or the new; what
//! is damaged all the same is told of and passed over for the next older one. Mode 0600. `attempts` beside them says what
//! was tried; it is renamed into place and not synced, because it is about the end of a process, not of a machine.
//!
//! It must not decide whether a configuration is good; it keeps what it is given.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use bytes::Bytes;
use forebay_proto::{Digest, Position, ResolvedModel, limits, wire};
use prost::Message as _;

use super::attempts::Attempts;
use crate::keys::KeysFile;

const MAGIC: &[u8] = b"forebay last-known-good 1\n";
/// With retained models.
const MAGIC_RETAINED: &[u8] = b"forebay last-known-good 2\n";
/// Largest file: the pushed configuration, and as much again of retained models.
const MOST_BYTES: u64 = 2 * limits::MESSAGE_BYTES as u64;
const ATTEMPTS: &str = "attempts";
/// Largest file of attempts that is read.
const MOST_ATTEMPTS: u64 = 16 << 10;
const GENERATIONS: [&str; 3] = ["current", "previous", "oldest"];

/// A configuration as it was pushed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept {
    /// Its name.
    pub position: Position,
    /// Its bytes.
    pub config: Bytes,
    /// Models that are in force with it as they were before, because it had none that could be taken.
    pub retained: Vec<ResolvedModel>,
}

impl Kept {
    /// There is something in it to serve.
    pub(super) fn has_models(&self) -> bool {
        let envelope = wire::Envelope::decode(self.config.clone());
        envelope.is_ok_and(|envelope| !envelope.models.is_empty()) || !self.retained.is_empty()
    }
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

    /// Where clients' keys are kept, beside them.
    pub(crate) fn keys_file(&self) -> KeysFile {
        KeysFile::within(&self.folder)
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

    /// Makes this the current one. What was current becomes previous, unless it is the same.
    pub fn save(&self, kept: &Kept) -> io::Result<()> {
        let [current, previous, oldest] = GENERATIONS.map(|name| self.folder.join(name));
        let now = read(&current).ok();
        if now.as_ref() == Some(kept) {
            return Ok(());
        }
        let fresh = self.folder.join("writing");
        write(&fresh, kept)?;
        if now.is_none_or(|now| now.position != kept.position) {
            rename_if_there(&previous, &oldest)?;
            rename_if_there(&current, &previous)?;
        }
        fs::rename(&fresh, &current)?;
        File::open(&self.folder)?.sync_all()
    }

    /// What was tried.
    pub(super) fn attempts(&self) -> Attempts {
        let path = self.folder.join(ATTEMPTS);
        let mut text = String::new();
        let read =
            File::open(&path).and_then(|file| file.take(MOST_ATTEMPTS).read_to_string(&mut text));
        match read {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                let path = path.display();
                tracing::error!(%path, %error, "what was tried cannot be read, and is forgotten");
                Attempts::default()
            }
            _ => Attempts::parse(&text),
        }
    }

    /// Keeps what was tried; no file if there is nothing.
    pub(super) fn save_attempts(&self, attempts: &Attempts) -> io::Result<()> {
        let path = self.folder.join(ATTEMPTS);
        if *attempts == Attempts::default() {
            return match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
                _ => Ok(()),
            };
        }
        let fresh = self.folder.join("attempts.writing");
        create(&fresh)?.write_all(attempts.text().as_bytes())?;
        fs::rename(&fresh, &path)
    }
}

fn write(path: &Path, kept: &Kept) -> io::Result<()> {
    let push = wire::Push {
        to: Some((&kept.position).into()),
        config: kept.config.clone(),
        ..wire::Push::default()
    };
    let mut file = create(path)?;
    if kept.retained.is_empty() {
        file.write_all(MAGIC)?;
        file.write_all(&push.encode_to_vec())?;
        return file.sync_all();
    }
    let retained = kept.retained.iter().map(wire::Model::from);
    let retained: Vec<Bytes> = retained.map(|model| model.encode_to_vec().into()).collect();
    let whole = wire::LastKnownGood {
        push: Some(push),
        retained_digest: digest_of(&retained).as_bytes().to_vec().into(),
        retained,
    };
    file.write_all(MAGIC_RETAINED)?;
    file.write_all(&whole.encode_to_vec())?;
    file.sync_all()
}

fn create(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    let options = options.write(true).create(true).truncate(true);
    options.mode(0o600).open(path)
}

fn digest_of(models: &[Bytes]) -> Digest {
    Digest::of(&models.concat())
}

fn read(path: &Path) -> Result<Kept, Damaged> {
    let mut bytes = Vec::new();
    File::open(path)?.take(MOST_BYTES).read_to_end(&mut bytes)?;
    let (push, retained) = match bytes.strip_prefix(MAGIC) {
        Some(push) => (wire::Push::decode(push).ok(), Vec::new()),
        None => {
            let whole = bytes.strip_prefix(MAGIC_RETAINED).ok_or(Damaged::Format)?;
            let whole = wire::LastKnownGood::decode(whole).map_err(|_| Damaged::Format)?;
            if digest_of(&whole.retained).as_bytes() != &whole.retained_digest[..] {
                return Err(Damaged::Digest);
            }
            (whole.push, whole.retained)
        }
    };
    let push = push.ok_or(Damaged::Format)?;
    let position = push
        .to
        .and_then(|to| Position::try_from(to).ok())
        .ok_or(Damaged::Format)?;
    if Digest::of(&push.config) != position.digest {
        return Err(Damaged::Digest);
    }
    // One that this build cannot use any more costs itself alone.
    let retained = retained.into_iter().filter_map(|model| {
        let model = wire::Model::decode(model).ok()?;
        ResolvedModel::try_from(model).ok()
    });
    Ok(Kept {
        position,
        config: push.config,
        retained: retained.collect(),
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
        Kept {
            position,
            config,
            retained: Vec::new(),
        }
    }

    #[test]
    fn retained_models_are_kept_beside_it_and_what_has_none_is_as_ever() {
        let folder = tempfile::tempdir().unwrap();
        let lkg = LastKnownGood::open(folder.path()).unwrap();
        let (plain, current) = (kept(1), folder.path().join("current"));
        lkg.save(&plain).unwrap();
        assert!(fs::read(&current).unwrap().starts_with(MAGIC));

        let endpoint = forebay_proto::Endpoint::new(
            forebay_proto::EndpointId::new("a").unwrap(),
            forebay_proto::EndpointUrl::parse("http://10.0.0.1:80").unwrap(),
        );
        let id = forebay_proto::ModelId::new("m").unwrap();
        let spec = forebay_proto::ModelSpec::new(id, vec![], vec![endpoint]).unwrap();
        let settings = forebay_proto::PoolSettings::default();
        let with = Kept {
            retained: vec![spec.resolve(&settings, Revision::new(1)).unwrap()],
            ..kept(1)
        };
        lkg.save(&with).unwrap();
        let in_its_place: Vec<_> = lkg.load().collect();
        assert_eq!(in_its_place, std::slice::from_ref(&with));
        lkg.save(&kept(2)).unwrap();
        lkg.save(&kept(2)).unwrap();
        assert_eq!(lkg.load().collect::<Vec<_>>(), [kept(2), with], "once");

        let previous = folder.path().join("previous");
        let mut bytes = fs::read(&previous).unwrap();
        let at = bytes.windows(8).position(|w| w == b"10.0.0.1").unwrap();
        bytes[at] ^= 1;
        fs::write(&previous, bytes).unwrap();
        assert_eq!(lkg.load().count(), 1, "a flipped bit of a retained model");
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

    /// What workers of older builds kept; see the README beside it.
    #[test]
    fn what_older_builds_kept_is_read_to_the_last_model() {
        for (build, revisions, has_keys) in [
            ("protocol-2", [7, 6, 5], false),
            ("protocol-3", [8, 7, 6], true),
        ] {
            let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
                .join("tests/fixtures")
                .join(build);
            let lkg = LastKnownGood { folder };
            let kept: Vec<_> = lkg.load().collect();
            let found: Vec<_> = kept
                .iter()
                .map(|kept| kept.position.revision.get())
                .collect();
            assert_eq!(found, revisions, "{build}");
            for kept in kept {
                let envelope = wire::Envelope::decode(kept.config).unwrap();
                let models = envelope.models.into_iter().map(|bytes| {
                    let model = wire::Model::decode(bytes).unwrap();
                    ResolvedModel::try_from(model).unwrap().id.to_string()
                });
                let models: Vec<_> = models.filter(|id| id != "gone").collect();
                assert_eq!(models, ["alpha", "beta"], "{build}");
            }
            let keys = lkg.keys_file().load().unwrap();
            assert_eq!(
                keys.is_some_and(|keys| keys.keys.len() == 1),
                has_keys,
                "{build}"
            );
        }
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
