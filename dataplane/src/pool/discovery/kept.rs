//! What sources named last, on disk, so that a worker that starts while they are silent serves all the same. A file for each
//! source of each model, written beside its place and renamed; JSON, mode 0600. It is a help and no more: what cannot be read
//! or written is told of, and the source is waited for.

use std::{
    fs::{self, OpenOptions},
    io::{self, Read as _, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use forebay_proto::{Digest, EndpointUrl, endpoint::ServerName, limits};
use serde::{Deserialize, Serialize};

use super::Named;

/// Most files, or nearly so. What is kept of a source goes with it; of those that went while no worker ran, when there are as
/// many. A worker has no more sources than this.
const MOST_FILES: usize = 100_000;
const _: () = assert!(MOST_FILES > limits::MODELS * limits::SOURCES);
/// They are counted each time so many were made.
const COUNTED_EACH: u64 = 1_000;
/// Largest file that is read.
const MOST_BYTES: u64 = 4 * limits::LIST_BYTES as u64;

/// The folder of the files.
#[derive(Debug, Clone)]
pub(crate) struct KeptLists {
    folder: PathBuf,
    /// How many files were made: counts, and tells those of two sources apart that write at a time.
    made: Arc<AtomicU64>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Document {
    /// Of which list it is: the file's name is only a digest of this.
    of: String,
    servers: Vec<Server>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Server {
    url: String,
    parts: u32,
    #[serde(default)]
    priority: u16,
    #[serde(default)]
    server_name: Option<String>,
}

impl KeptLists {
    /// Within the worker's data directory.
    pub(crate) fn within(data_dir: &Path) -> Self {
        Self {
            folder: data_dir.join("discovery"),
            made: Arc::default(),
        }
    }

    fn path(&self, of: &str) -> PathBuf {
        self.folder
            .join(format!("{}.json", Digest::of(of.as_bytes())))
    }

    /// What was kept of this list. Blocks.
    pub(super) fn load(&self, of: &str) -> io::Result<Vec<Named>> {
        let file = match fs::File::open(self.path(of)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            file => file?,
        };
        let mut bytes = Vec::new();
        file.take(MOST_BYTES).read_to_end(&mut bytes)?;
        let document: Document = serde_json::from_slice(&bytes).map_err(io::Error::other)?;
        if document.of != of {
            return Err(io::Error::other("it is of another list"));
        }
        // One that cannot be read costs itself alone.
        let named = document.servers.into_iter().filter_map(|server| {
            let name = server.server_name.as_deref().map(ServerName::new);
            Some(Named {
                url: EndpointUrl::parse(&server.url).ok()?,
                parts: server.parts.max(1),
                priority: server.priority,
                server_name: name.transpose().ok()?,
            })
        });
        Ok(named.take(limits::TARGETS).collect())
    }

    /// Keeps this. Blocks.
    pub(super) fn save(&self, of: &str, servers: &[Named]) -> io::Result<()> {
        let path = self.path(of);
        if servers.is_empty() {
            return self.remove(of);
        }
        fs::create_dir_all(&self.folder)?;
        let server = |named: &Named| Server {
            url: named.url.to_string(),
            parts: named.parts,
            priority: named.priority,
            server_name: named
                .server_name
                .as_ref()
                .map(|name| name.as_str().to_owned()),
        };
        let document = Document {
            of: of.to_owned(),
            servers: servers.iter().map(server).collect(),
        };
        let made = self.made.fetch_add(1, Ordering::Relaxed);
        if made.is_multiple_of(COUNTED_EACH) {
            self.make_room(MOST_FILES);
        }
        // Another process of this worker may be at it, too (docs/adr/0026).
        let fresh = path.with_extension(format!("writing-{}-{made}", std::process::id()));
        let mut options = OpenOptions::new();
        let options = options.write(true).create(true).truncate(true).mode(0o600);
        let mut file = options.open(&fresh)?;
        file.write_all(&serde_json::to_vec(&document).map_err(io::Error::other)?)?;
        // Not synced: after the end of a machine the source is asked anew.
        fs::rename(&fresh, &path)
    }

    /// Keeps nothing of it any more. Blocks.
    pub(super) fn remove(&self, of: &str) -> io::Result<()> {
        match fs::remove_file(self.path(of)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Removes what was kept longest ago, if there is too much.
    fn make_room(&self, most: usize) {
        let files = fs::read_dir(&self.folder).into_iter().flatten();
        let aged = files.filter_map(|file| {
            let file = file.ok()?;
            Some((file.metadata().ok()?.modified().ok()?, file.path()))
        });
        let mut aged: Vec<_> = aged.collect();
        let surplus = (aged.len() + 1).saturating_sub(most);
        aged.sort();
        for (_, path) in aged.into_iter().take(surplus) {
            // One that cannot be removed is met again.
            drop(fs::remove_file(path));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn named(url: &str) -> Named {
        Named {
            url: EndpointUrl::parse(url).unwrap(),
            parts: 5_040,
            priority: 3,
            server_name: ServerName::new("vllm.svc").ok(),
        }
    }

    #[test]
    fn what_was_named_is_read_again_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let lists = KeptLists::within(dir.path());
        assert!(lists.load("m\np\nx").unwrap().is_empty());
        let servers = [named("https://10.0.0.1:80"), named("https://b:1")];
        lists.save("m\np\nx", &servers).unwrap();
        assert_eq!(lists.load("m\np\nx").unwrap(), servers);
        assert!(lists.load("m\np\ny").unwrap().is_empty());
        let path = lists.path("m\np\nx");
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        // A file of another list, or of nobody's, is no list.
        fs::copy(&path, lists.path("m\np\ny")).unwrap();
        assert!(lists.load("m\np\ny").is_err());
        fs::write(&path, "{").unwrap();
        assert!(lists.load("m\np\nx").is_err());
        lists.save("m\np\nx", &[]).unwrap();
        assert!(!path.exists());
        lists.save("m\np\nx", &[]).unwrap();
    }

    #[test]
    fn as_many_lists_are_kept_as_there_are_and_the_oldest_go_when_there_are_too_many() {
        let dir = tempfile::tempdir().unwrap();
        let lists = KeptLists::within(dir.path());
        let count = || fs::read_dir(&lists.folder).unwrap().count();
        for n in 0..5_000 {
            lists.save(&n.to_string(), &[named("http://a:1")]).unwrap();
        }
        assert_eq!(count(), 5_000);
        lists.make_room(10);
        assert_eq!(count(), 9);
    }
}
