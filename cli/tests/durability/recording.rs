//! A control plane whose every write to its files is recorded: recorder.c, preloaded, and what it wrote.

use std::{
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// One thing that was done to the files of a directory. Paths are below it; its own is empty.
#[derive(Debug)]
pub(crate) struct Record {
    pub(crate) act: Act,
    pub(crate) path: String,
    /// Where the record ends: it was done before whatever was seen of a longer recording.
    pub(crate) end: u64,
}

#[derive(Debug)]
pub(crate) enum Act {
    Created,
    MadeDirectory,
    Wrote(u64, Vec<u8>),
    Length(u64),
    Synced,
    RenamedTo(String),
    Removed,
}

/// Compiled, and told what to record.
pub(crate) struct Recorder {
    shim: PathBuf,
    of: PathBuf,
    pub(crate) into: PathBuf,
}

impl Recorder {
    /// Records what is done below `of`; `dir` is its own and outside of it.
    pub(crate) fn new(of: &Path, dir: &Path) -> Self {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/durability/recorder.c");
        let shim = dir.join("recorder.so");
        let mut cc = Command::new("cc");
        cc.args(["-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror"]);
        cc.args([OsStr::new("-o"), shim.as_ref(), source.as_ref()]);
        let built = cc.status().expect("`cc`, which linking needs as well");
        assert!(built.success(), "recorder.c cannot be built");
        Self {
            shim,
            of: of.canonicalize().unwrap(),
            into: dir.join("recording"),
        }
    }

    /// What a process is to have in its environment.
    pub(crate) fn env(&self) -> [(&'static str, &str); 3] {
        [
            ("LD_PRELOAD", self.shim.to_str().unwrap()),
            ("FOREBAY_TEST_RECORD_DIR", self.of.to_str().unwrap()),
            ("FOREBAY_TEST_RECORD_INTO", self.into.to_str().unwrap()),
        ]
    }

    /// Everything that was recorded, in order.
    pub(crate) fn records(&self) -> Vec<Record> {
        let bytes = fs::read(&self.into).unwrap();
        let mut rest = &bytes[..];
        let mut records = Vec::new();
        while !rest.is_empty() {
            let kind = take(&mut rest, 1)[0];
            let [path, second, data, number] = [(); 4].map(|()| number(take(&mut rest, 8)));
            let path = text(take(&mut rest, path));
            let second = text(take(&mut rest, second));
            let data = take(&mut rest, data);
            let act = match kind {
                b'C' => Act::Created,
                b'D' => Act::MadeDirectory,
                b'W' => Act::Wrote(number, data.to_vec()),
                b'T' => Act::Length(number),
                b'S' => Act::Synced,
                b'R' => Act::RenamedTo(second),
                b'U' => Act::Removed,
                other => panic!("a record of kind {other}"),
            };
            let end = (bytes.len() - rest.len()) as u64;
            records.push(Record { act, path, end });
        }
        records
    }
}

fn take<'a>(rest: &mut &'a [u8], bytes: u64) -> &'a [u8] {
    let (taken, left) = rest.split_at(usize::try_from(bytes).unwrap());
    *rest = left;
    taken
}

fn number(bytes: &[u8]) -> u64 {
    u64::from_le_bytes(bytes.try_into().unwrap())
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}
