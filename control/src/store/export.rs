//! An export: the whole state at one revision in one file, from which a store can be built again.
//!
//! A line of text says what it is (format, epoch, revision, time, counts), records follow, each with its
//! kind and length, and a SHA-256 of all that came before ends it: one that was cut off or changed is
//! never taken for a good one. History is not in it. It owns no schedule and opens no database.
//!
//! Two are kept in a directory. A new one is written beside them and synced; the newest becomes the one
//! before, the new one takes its place. A crash in between leaves at least one of them whole.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, BufRead as _, BufReader, BufWriter, Read, Write},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use forebay_proto::{Epoch, Revision};
use prost::Message;
use sha2::{Digest as _, Sha256};

use super::{
    IdemRecord, ModelRecord, Stored, VALUE_BYTES, crash,
    keys::{self, KeyRecord, StoredKeys},
    records,
};

/// An export that was checked.
pub(crate) type Whole = (PathBuf, ExportHeader, Stored);

/// The newest export of a directory, and the one before it.
pub(crate) const KEPT: [&str; 2] = ["registry.export", "registry.export.1"];
const WRITING: &str = "registry.export.writing";
const MAGIC: &str = "forebay-export";
/// The newest that this version reads and writes: with endpoints whose servers a source names.
const FORMAT: u32 = 3;
/// With clients' keys or credentials of endpoints. What has none of them is written in the first; each is read by the
/// versions that know what is in it.
const SECRETS: u32 = 2;
const PLAIN: u32 = 1;
/// Longest first line.
const LINE_BYTES: u64 = 512;
/// Longest record: a stored value and what names it.
const RECORD_BYTES: u32 = 2 * VALUE_BYTES as u32;

const SETTINGS: u8 = b'S';
const MODEL: u8 = b'M';
const ANSWER: u8 = b'A';
const KEYS: u8 = b'K';
const KEY: u8 = b'k';
const END: u8 = b'E';

/// What an export says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExportHeader {
    /// The lineage that it was taken from.
    pub epoch: String,
    /// The revision that it holds.
    pub revision: u64,
    /// When it was written, in seconds since 1970.
    pub time: u64,
    /// How many models it holds.
    pub models: u64,
    /// How many answers to repeated writes it holds.
    pub answers: u64,
}

/// Why an export cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// It cannot be read.
    #[error("it cannot be read: {0}")]
    Io(#[from] io::Error),
    /// It is something else.
    #[error("it is not an export: its first line does not begin with `forebay-export`")]
    Other,
    /// A newer version wrote it.
    #[error("it has format {found}, this version knows {FORMAT}; use the version that wrote it")]
    NewerFormat {
        /// Its format.
        found: u32,
    },
    /// It was cut off or changed.
    #[error("it is damaged: {0}")]
    Damaged(String),
}

#[derive(Clone, PartialEq, Message)]
struct AnswerMessage {
    #[prost(string, tag = "1")]
    request_id: String,
    #[prost(bytes = "vec", tag = "2")]
    record: Vec<u8>,
}

/// Writes an export.
pub(crate) fn write(out: impl Write, stored: &Stored, time: SystemTime) -> io::Result<()> {
    let mut out = Hashing::new(out);
    let seconds = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let line = format!(
        "{MAGIC} {} epoch={} revision={} time={} models={} answers={}\n",
        format_of(stored),
        stored.epoch,
        stored.revision,
        seconds.as_secs(),
        stored.models.len(),
        stored.idem.len()
    );
    out.write_all(line.as_bytes())?;
    let settings = records::encode_settings(&stored.settings);
    write_record(&mut out, SETTINGS, &settings)?;
    for (n, model) in stored.models.iter().enumerate() {
        write_record(&mut out, MODEL, &records::encode_model(model))?;
        if n == stored.models.len() / 2 {
            crash::at("export-half");
        }
    }
    for answer in &stored.idem {
        let message = AnswerMessage {
            request_id: answer.request_id.clone(),
            record: records::encode_idem(answer),
        };
        write_record(&mut out, ANSWER, &message.encode_to_vec())?;
    }
    if stored.keys.version > 0 {
        let keys = &stored.keys;
        let head = keys::encode_head(keys.version, keys.floor, keys.records.len() as u64);
        write_record(&mut out, KEYS, &head)?;
        for key in &keys.records {
            write_record(&mut out, KEY, &keys::encode(key))?;
        }
    }
    out.write_all(&[END])?;
    let digest = out.hash.finalize();
    out.inner.write_all(&digest)?;
    out.inner.flush()
}

fn format_of(stored: &Stored) -> u32 {
    let models = || stored.models.iter();
    let endpoints = || models().flat_map(|model| model.spec.endpoints());
    let sealed = endpoints().any(|endpoint| endpoint.credential.is_some());
    let listed = endpoints().any(|endpoint| endpoint.url.discovery().is_some());
    match (listed, sealed || stored.keys.version > 0) {
        (true, _) => FORMAT,
        (false, true) => SECRETS,
        (false, false) => PLAIN,
    }
}

fn write_record(out: &mut impl Write, kind: u8, bytes: &[u8]) -> io::Result<()> {
    let length = u32::try_from(bytes.len()).ok();
    let length = length.filter(|length| *length <= RECORD_BYTES);
    let length = length.ok_or_else(|| {
        io::Error::other(format!(
            "a record takes {} bytes, at most {RECORD_BYTES} are allowed",
            bytes.len()
        ))
    })?;
    out.write_all(&[kind])?;
    out.write_all(&length.to_be_bytes())?;
    out.write_all(bytes)
}

/// Reads an export and checks all of it.
pub(crate) fn read(file: impl Read) -> Result<(ExportHeader, Stored), ExportError> {
    let mut input = Hashing::new(BufReader::new(file));
    let header = read_header(&mut input)?;
    let damaged = |what: &str| ExportError::Damaged(what.to_owned());
    let (mut settings, mut models, mut idem) = (None, Vec::new(), Vec::new());
    let mut stored_keys = (StoredKeys::default(), 0);
    loop {
        let mut kind = [0];
        exactly(&mut input, &mut kind)?;
        if kind == [END] {
            break;
        }
        let bytes = read_record(&mut input)?;
        match kind {
            [SETTINGS] => {
                settings = Some(records::decode_settings(&bytes).map_err(ExportError::Damaged)?);
            }
            [MODEL] => models.push(decode_model(&bytes)?),
            [ANSWER] => idem.push(decode_answer(&bytes)?),
            [KEYS] => stored_keys = keys::decode_head(&bytes).map_err(ExportError::Damaged)?,
            [KEY] => stored_keys.0.records.push(decode_key(&bytes)?),
            _ => return Err(damaged("it has a record of an unknown kind")),
        }
        let more_keys = stored_keys.0.records.len() as u64 > stored_keys.1;
        if models.len() as u64 > header.models || idem.len() as u64 > header.answers || more_keys {
            return Err(damaged("it has more records than it says"));
        }
    }
    let computed = input.hash.finalize();
    let mut said = [0; 32];
    exactly(&mut input.inner, &mut said)?;
    if computed.as_slice() != said {
        return Err(damaged("its SHA-256 does not fit its content"));
    }
    if input.inner.read(&mut [0])? != 0 {
        return Err(damaged("something follows its end"));
    }
    if (models.len() as u64, idem.len() as u64) != (header.models, header.answers) {
        return Err(damaged("it has fewer records than it says"));
    }
    if stored_keys.0.records.len() as u64 != stored_keys.1 {
        return Err(damaged("it has fewer keys than it says"));
    }
    let stored = Stored {
        epoch: Epoch::new(header.epoch.clone())
            .map_err(|error| ExportError::Damaged(format!("its epoch: {error}")))?,
        revision: Revision::new(header.revision),
        settings: settings.ok_or_else(|| damaged("it has no pool settings"))?,
        models,
        idem,
        keys: stored_keys.0,
    };
    Ok((header, stored))
}

fn read_header(input: &mut Hashing<BufReader<impl Read>>) -> Result<ExportHeader, ExportError> {
    let mut line = Vec::new();
    (&mut input.inner)
        .take(LINE_BYTES)
        .read_until(b'\n', &mut line)?;
    input.hash.update(&line);
    let line = String::from_utf8_lossy(&line);
    let mut words = line.trim_end().split(' ');
    if words.next() != Some(MAGIC) {
        return Err(ExportError::Other);
    }
    let damaged = || ExportError::Damaged("its first line makes no sense".to_owned());
    let format: u32 = words
        .next()
        .and_then(|word| word.parse().ok())
        .ok_or_else(damaged)?;
    if !(PLAIN..=FORMAT).contains(&format) {
        return Err(ExportError::NewerFormat { found: format });
    }
    let mut field = |name: &str| {
        let value = words.next()?.strip_prefix(name)?;
        value.strip_prefix('=').map(str::to_owned)
    };
    let header = (|| {
        Some(ExportHeader {
            epoch: field("epoch")?,
            revision: field("revision")?.parse().ok()?,
            time: field("time")?.parse().ok()?,
            models: field("models")?.parse().ok()?,
            answers: field("answers")?.parse().ok()?,
        })
    })();
    header.ok_or_else(damaged)
}

fn read_record(input: &mut impl Read) -> Result<Vec<u8>, ExportError> {
    let mut length = [0; 4];
    exactly(input, &mut length)?;
    let length = u32::from_be_bytes(length);
    if length > RECORD_BYTES {
        return Err(ExportError::Damaged(format!(
            "a record takes {length} bytes, at most {RECORD_BYTES} are allowed"
        )));
    }
    let mut bytes = vec![0; length as usize];
    exactly(input, &mut bytes)?;
    Ok(bytes)
}

fn exactly(input: &mut impl Read, bytes: &mut [u8]) -> Result<(), ExportError> {
    input.read_exact(bytes).map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof => ExportError::Damaged("it ends too early".to_owned()),
        _ => error.into(),
    })
}

fn decode_model(bytes: &[u8]) -> Result<ModelRecord, ExportError> {
    records::decode_model(bytes).map_err(|error| ExportError::Damaged(format!("a model: {error}")))
}

fn decode_key(bytes: &[u8]) -> Result<KeyRecord, ExportError> {
    keys::decode(bytes).map_err(|error| ExportError::Damaged(format!("a key: {error}")))
}

fn decode_answer(bytes: &[u8]) -> Result<IdemRecord, ExportError> {
    let damaged = |error: String| ExportError::Damaged(format!("an answer: {error}"));
    let message = AnswerMessage::decode(bytes).map_err(|error| damaged(error.to_string()))?;
    records::decode_idem(message.request_id, &message.record).map_err(damaged)
}

/// Reads an export from a file.
pub(crate) fn read_file(path: &Path) -> Result<(ExportHeader, Stored), ExportError> {
    read(File::open(path)?)
}

/// Writes an export into a directory as its newest.
pub(crate) fn save(dir: &Path, stored: &Stored, time: SystemTime) -> io::Result<()> {
    let fresh = dir.join(WRITING);
    write_file(&fresh, stored, time)?;
    crash::at("export-synced");
    let [newest, before] = KEPT.map(|name| dir.join(name));
    match fs::rename(&newest, before) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    crash::at("export-rotated");
    fs::rename(&fresh, newest)?;
    crash::at("export-placed");
    File::open(dir)?.sync_all()
}

/// Writes an export into a file that only its owner can read, and syncs it.
pub(crate) fn write_file(path: &Path, stored: &Stored, time: SystemTime) -> io::Result<()> {
    // What a crash left here may have another mode.
    remove(path)?;
    let mut options = OpenOptions::new();
    let file = options
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    let written = write(BufWriter::new(&file), stored, time).and_then(|()| file.sync_all());
    if written.is_err() {
        // On a full disk it would only be in the way.
        remove(path)?;
    }
    written
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// The exports of a directory that are whole, the newest first; and the others, with why they are not.
pub(crate) fn whole(dir: &Path) -> (Vec<Whole>, Vec<(PathBuf, ExportError)>) {
    let (mut whole, mut others) = (Vec::new(), Vec::new());
    for path in KEPT.map(|name| dir.join(name)) {
        match read_file(&path) {
            Ok((header, stored)) => whole.push((path, header, stored)),
            Err(ExportError::Io(error)) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => others.push((path, error)),
        }
    }
    (whole, others)
}

/// Whether there is anything that looks like an export.
pub(crate) fn any(dir: &Path) -> bool {
    KEPT.iter().any(|name| dir.join(name).exists())
}

/// Hashes what passes.
struct Hashing<T> {
    inner: T,
    hash: Sha256,
}

impl<T> Hashing<T> {
    fn new(inner: T) -> Self {
        Self {
            inner,
            hash: Sha256::new(),
        }
    }
}

impl<T: Write> Write for Hashing<T> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.hash.update(bytes.get(..written).unwrap_or_default());
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

impl<T: Read> Read for Hashing<T> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(bytes)?;
        self.hash.update(bytes.get(..read).unwrap_or_default());
        Ok(read)
    }
}
