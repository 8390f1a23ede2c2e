//! A disk as a power cut leaves it: what was synced is there, and of the rest nothing, or any part.
//!
//! What is assumed of it is little. A write or a length is durable once the file was synced after it, and until
//! then each may be there without the others, or in some of its sectors. That a name came, went or changed is
//! durable once its directory was synced after it, and until then the changes of names are there up to any of
//! them: a journal keeps their order. To sync a file does not make its name durable.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    os::unix::fs::FileExt as _,
    path::Path,
};

use fastrand::Rng;

use crate::recording::{Act, Record};

const SECTOR: usize = 512;

/// The content of each path; nothing for a directory.
pub(crate) type Image = BTreeMap<String, Option<Vec<u8>>>;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Loss {
    Nothing,
    /// All that was not synced.
    Everything,
    /// Some of it.
    Some,
}

#[derive(Debug, Default)]
pub(crate) struct Disk {
    files: Vec<Content>,
    now: Names,
    durable: Names,
    /// Changes of names that may be lost, in order.
    renamings: Vec<(String, Renaming)>,
}

type Names = BTreeMap<String, Entry>;

#[derive(Debug, Clone, Copy)]
enum Entry {
    Directory,
    File(usize),
}

#[derive(Debug, Default)]
struct Content {
    durable: Vec<u8>,
    /// Edits that may be lost, in order.
    edits: Vec<Edit>,
}

#[derive(Debug)]
enum Edit {
    Write(u64, Vec<u8>),
    Length(u64),
}

#[derive(Debug)]
enum Renaming {
    Put(Entry),
    Remove,
    /// From there.
    From(String),
}

impl Disk {
    /// A directory as it is, all of it durable.
    pub(crate) fn of(dir: &Path) -> Self {
        let mut disk = Self::default();
        for (path, content) in read(dir) {
            let entry = content.map_or(Entry::Directory, |durable| {
                let edits = Vec::new();
                disk.files.push(Content { durable, edits });
                Entry::File(disk.files.len() - 1)
            });
            disk.durable.insert(path, entry);
        }
        disk.now.clone_from(&disk.durable);
        disk
    }

    pub(crate) fn apply(&mut self, record: &Record) {
        let path = record.path.clone();
        match &record.act {
            Act::Created => {
                self.files.push(Content::default());
                let entry = Entry::File(self.files.len() - 1);
                self.rename(path, Renaming::Put(entry));
            }
            Act::MadeDirectory => self.rename(path, Renaming::Put(Entry::Directory)),
            Act::RenamedTo(to) => self.rename(to.clone(), Renaming::From(path)),
            Act::Removed => self.rename(path, Renaming::Remove),
            Act::Wrote(at, bytes) => self.edit(&path, Edit::Write(*at, bytes.clone())),
            Act::Length(length) => self.edit(&path, Edit::Length(*length)),
            Act::Synced => self.sync(&path),
        }
    }

    fn rename(&mut self, path: String, renaming: Renaming) {
        renaming.apply(&path, &mut self.now);
        self.renamings.push((path, renaming));
    }

    fn edit(&mut self, path: &str, edit: Edit) {
        // A file without a name will not be missed.
        if let Some(Entry::File(file)) = self.now.get(path) {
            self.files[*file].edits.push(edit);
        }
    }

    fn sync(&mut self, path: &str) {
        if let Some(Entry::File(file)) = self.now.get(path) {
            let Content { durable, edits } = &mut self.files[*file];
            edits.drain(..).for_each(|edit| edit.apply(durable));
            return;
        }
        let inside = |(name, _): &mut (String, Renaming)| parent(name) == path;
        for (name, renaming) in self.renamings.extract_if(.., inside) {
            renaming.apply(&name, &mut self.durable);
        }
    }

    /// What is found when the power is back.
    pub(crate) fn after(&self, loss: Loss, random: &mut Rng) -> Image {
        let mut names = self.durable.clone();
        let kept = match loss {
            Loss::Nothing => self.renamings.len(),
            Loss::Everything => 0,
            Loss::Some => random.usize(..=self.renamings.len()),
        };
        for (name, renaming) in &self.renamings[..kept] {
            renaming.apply(name, &mut names);
        }
        let mut image = Image::new();
        // In order, so that a directory comes before what is in it.
        for (path, entry) in names {
            if !parent(&path).is_empty() && !image.contains_key(parent(&path)) {
                continue;
            }
            let content = match entry {
                Entry::Directory => None,
                Entry::File(file) => Some(self.files[file].after(loss, random)),
            };
            image.insert(path, content);
        }
        image
    }
}

impl Content {
    fn after(&self, loss: Loss, random: &mut Rng) -> Vec<u8> {
        let mut bytes = self.durable.clone();
        let share = [0.1, 0.5, 0.9][random.usize(..3)];
        for edit in &self.edits {
            match loss {
                Loss::Nothing => edit.apply(&mut bytes),
                Loss::Everything => {}
                Loss::Some if random.f64() >= share => {}
                Loss::Some if random.u8(..4) == 0 => edit.tear(&mut bytes, random),
                Loss::Some => edit.apply(&mut bytes),
            }
        }
        bytes
    }
}

impl Edit {
    fn apply(&self, bytes: &mut Vec<u8>) {
        match self {
            Self::Write(at, data) => put(bytes, usize::try_from(*at).unwrap(), data),
            Self::Length(length) => bytes.resize(usize::try_from(*length).unwrap(), 0),
        }
    }

    /// Some sectors of it.
    fn tear(&self, bytes: &mut Vec<u8>, random: &mut Rng) {
        let Self::Write(at, data) = self else {
            return;
        };
        let (mut at, mut rest) = (usize::try_from(*at).unwrap(), &data[..]);
        while !rest.is_empty() {
            let (sector, left) = rest.split_at(rest.len().min(SECTOR - at % SECTOR));
            if random.bool() {
                put(bytes, at, sector);
            }
            at += sector.len();
            rest = left;
        }
    }
}

impl Renaming {
    fn apply(&self, path: &str, names: &mut Names) {
        let entry = match self {
            Self::Put(entry) => Some(*entry),
            Self::Remove => {
                names.remove(path);
                None
            }
            Self::From(from) => names.remove(from),
        };
        if let Some(entry) = entry {
            names.insert(path.to_owned(), entry);
        }
    }
}

fn put(bytes: &mut Vec<u8>, at: usize, data: &[u8]) {
    let end = at + data.len();
    if bytes.len() < end {
        bytes.resize(end, 0);
    }
    bytes[at..end].copy_from_slice(data);
}

fn parent(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(parent, _)| parent)
}

/// Makes an image's files. What is zero is not written: a store's files are mostly that.
pub(crate) fn place(image: &Image, dir: &Path) {
    for (path, content) in image {
        let path = dir.join(path);
        let Some(bytes) = content else {
            fs::create_dir(path).unwrap();
            continue;
        };
        let file = File::create(path).unwrap();
        file.set_len(bytes.len() as u64).unwrap();
        for (n, block) in bytes.chunks(4_096).enumerate() {
            if block.iter().any(|byte| *byte != 0) {
                file.write_all_at(block, n as u64 * 4_096).unwrap();
            }
        }
    }
}

/// The files and directories of a directory.
pub(crate) fn read(dir: &Path) -> Image {
    fn walk(dir: &Path, prefix: &str, image: &mut Image) {
        for entry in fs::read_dir(dir).unwrap() {
            let entry = entry.unwrap();
            let path = format!("{prefix}{}", entry.file_name().to_str().unwrap());
            if entry.file_type().unwrap().is_dir() {
                walk(&entry.path(), &format!("{path}/"), image);
                image.insert(path, None);
            } else {
                image.insert(path, Some(fs::read(entry.path()).unwrap()));
            }
        }
    }
    let mut image = Image::new();
    walk(dir, "", &mut image);
    image
}
