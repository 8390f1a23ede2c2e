//! Which revision is stable, over restarts: one line in a small file beside the database. Losing it is no harm: then
//! the newest counts as proven.

use std::{
    fs::{self, File},
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use forebay_proto::{Digest, Epoch, Position, Revision};

const FILE: &str = "rollout.stable";
const NEW: &str = "rollout.stable.new";
const FORMAT: &str = "forebay-rollout-1";
/// Nothing of ours is longer.
const LONGEST: u64 = 1_024;

fn path(dir: &Path) -> PathBuf {
    dir.join(FILE)
}

/// What was kept, if there is any and it can be read.
pub(super) fn load(dir: &Path) -> Option<Position> {
    let path = path(dir);
    let read = fs::metadata(&path).and_then(|known| match known.len() > LONGEST {
        true => Err(io::Error::other("longer than anything of ours")),
        false => fs::read_to_string(&path),
    });
    match read {
        Ok(text) => {
            let position = parse(&text);
            if position.is_none() {
                tracing::warn!(path = %path.display(), "not a stable revision; the newest counts as proven");
            }
            position
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => {
            tracing::warn!(path = %path.display(), %error, "the newest revision counts as proven");
            None
        }
    }
}

/// Keeps it. The file is whole at any time.
pub(super) fn save(dir: &Path, stable: &Position) -> io::Result<()> {
    let new = dir.join(NEW);
    let mut file = File::create(&new)?;
    let Position {
        epoch,
        revision,
        digest,
    } = stable;
    writeln!(file, "{FORMAT} {epoch} {revision} {digest}")?;
    file.sync_all()?;
    fs::rename(new, path(dir))
}

/// Forgets it.
pub(crate) fn remove(dir: &Path) -> io::Result<()> {
    match fs::remove_file(path(dir)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn parse(text: &str) -> Option<Position> {
    let mut words = text.split_whitespace();
    if words.next() != Some(FORMAT) {
        return None;
    }
    let epoch = Epoch::new(words.next()?).ok()?;
    let revision = Revision::new(words.next()?.parse().ok()?);
    let hex = words
        .next()
        .filter(|hex| hex.len() == 64 && hex.is_ascii())?;
    let bytes: Result<Vec<u8>, _> = (0..64)
        .step_by(2)
        .map(|at| u8::from_str_radix(hex.get(at..at + 2).unwrap_or_default(), 16))
        .collect();
    let digest = Digest::from_slice(&bytes.ok()?).ok()?;
    Some(Position {
        epoch,
        revision,
        digest,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_read_back_and_what_is_damaged_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        assert_eq!(load(dir), None);
        let stable = Position {
            epoch: Epoch::new("aa").unwrap(),
            revision: Revision::new(7),
            digest: Digest::of(b"seven"),
        };
        save(dir, &stable).unwrap();
        assert_eq!(load(dir), Some(stable));
        let text = fs::read_to_string(path(dir)).unwrap();
        let long = "x".repeat(5_000);
        for bad in [
            "",
            "forebay-rollout-2 aa 7",
            &text[..40],
            &text.replace(' ', ""),
            &long,
        ] {
            fs::write(path(dir), bad).unwrap();
            assert_eq!(load(dir), None, "{bad}");
        }
        remove(dir).unwrap();
        remove(dir).unwrap();
        assert!(!path(dir).exists());
    }
}
