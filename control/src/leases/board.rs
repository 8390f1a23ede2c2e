//! Where replicas meet: what each one's workers hold and ask for, what the one that decides lends them, and who may hold
//! something after a restart. A replica that does not decide only passes on: how long a grant holds is a matter between
//! the worker, which counts from its report, and who decides, who counts from the grant; no clock in between matters.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Read as _, Write as _},
    path::{Path, PathBuf},
    sync::Arc,
};

use forebay_proto::{Digest, WorkerId};
use parking_lot::Mutex;
use prost::Message as _;
use tokio::sync::{Notify, watch};

use super::words::{Grant, Standing, StoredTable, Table};

/// What was decided under an older term.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("another control plane decides by now")]
pub(crate) struct Fenced;

/// Why the table cannot be had or kept.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TableError {
    /// The disk.
    #[error("{}: {error}", .path.display())]
    Io { path: PathBuf, error: io::Error },
    /// Its content.
    #[error(
        "{}: {what}; who may hold a lease is known from it alone: move it away once all workers are connected, or have been \
         gone for as long as a lease holds (--lease-ttl and --lease-linger)",
        .path.display()
    )]
    Damaged { path: PathBuf, what: String },
    /// The store that several share.
    #[error("etcd does not answer: {0}")]
    Away(String),
    /// What is in it.
    #[error(
        "the keys {at}* in etcd: {what}; who may hold a lease is known from them alone: delete them once all workers are \
         connected, or have been gone for as long as a lease holds (--lease-ttl and --lease-linger)"
    )]
    Unreadable { at: String, what: String },
    /// etcd does not take it.
    #[error(
        "who may hold a lease takes {bytes} bytes in a part of the table, and etcd is given at most {most}: have fewer \
         workers, or fewer models with a limit of all workers together"
    )]
    TooLarge { bytes: usize, most: usize },
    /// Another one decides.
    #[error(transparent)]
    Fenced(#[from] Fenced),
}

/// What another replica wants to know of the leases, and has to be told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Asked {
    pub(crate) from: String,
    pub(crate) number: u64,
    pub(crate) question: Vec<u8>,
}

/// Where replicas meet.
#[tonic::async_trait]
pub(crate) trait Board: std::fmt::Debug + Send + Sync + 'static {
    /// How a worker of this replica stands.
    fn report(&self, worker: &WorkerId, standing: Standing);

    /// How workers of all replicas stand: those of which something is new. Waits until there are any, or somebody asks
    /// something.
    async fn demands(&self) -> Vec<(WorkerId, Standing)>;

    /// Lends, under this term.
    async fn allot(&self, term: u64, grants: Vec<(WorkerId, Arc<Grant>)>) -> Result<(), Fenced>;

    /// What is lent to a worker of this replica, from now on.
    fn allotted(&self, worker: &WorkerId) -> watch::Receiver<Option<Arc<Grant>>>;

    /// This control plane decides from now on, under this term. Gives what is on record; nothing if nothing ever was.
    async fn begin(&self, term: u64) -> Result<Option<Table>, TableError>;

    /// It does not any more.
    fn end(&self);

    /// Puts on record, durably, under this term.
    async fn keep(&self, term: u64, table: Table) -> Result<(), TableError>;

    /// Asks the one that decides, elsewhere. Otherwise says why there is no answer.
    async fn ask(&self, _: Vec<u8>) -> Result<Vec<u8>, String> {
        Err("the leases are not decided here at the moment; try again".to_owned())
    }

    /// What others asked since.
    fn questions(&self) -> Vec<Asked> {
        Vec::new()
    }

    /// Answers some of them, all of one replica, under this term.
    async fn answer(&self, _: u64, _: &str, _: Vec<(u64, Vec<u8>)>) -> Result<(), Fenced> {
        Ok(())
    }
}

/// The board of one process: in memory, with the table in a file beside the store.
#[derive(Debug, Default)]
pub(crate) struct LocalBoard {
    /// Nothing is kept without one.
    dir: Option<PathBuf>,
    /// The disk has not answered yet: one is enough to wait for it.
    saving: Arc<Mutex<()>>,
    inner: Mutex<Inner>,
    news: Notify,
}

#[derive(Debug, Default)]
struct Inner {
    term: u64,
    news: BTreeMap<WorkerId, Standing>,
    grants: BTreeMap<WorkerId, watch::Sender<Option<Arc<Grant>>>>,
}

impl LocalBoard {
    /// With its table in this directory.
    pub(crate) fn new(dir: Option<PathBuf>) -> Self {
        Self {
            dir,
            ..Self::default()
        }
    }
}

#[tonic::async_trait]
impl Board for LocalBoard {
    fn report(&self, worker: &WorkerId, standing: Standing) {
        let mut inner = self.inner.lock();
        let newer = inner.news.get(worker);
        // The end of an older stream is no news of a newer one.
        if newer.is_none_or(|known| known.stream <= standing.stream) {
            inner.news.insert(worker.clone(), standing);
        }
        drop(inner);
        self.news.notify_one();
    }

    async fn demands(&self) -> Vec<(WorkerId, Standing)> {
        loop {
            let news = std::mem::take(&mut self.inner.lock().news);
            if !news.is_empty() {
                return news.into_iter().collect();
            }
            self.news.notified().await;
        }
    }

    async fn allot(&self, term: u64, grants: Vec<(WorkerId, Arc<Grant>)>) -> Result<(), Fenced> {
        let mut inner = self.inner.lock();
        if term < inner.term {
            return Err(Fenced);
        }
        inner.term = term;
        for (worker, grant) in grants {
            if let Some(to) = inner.grants.get(&worker) {
                to.send_replace(Some(grant));
            }
        }
        // Of those who left, nobody waits for anything.
        inner.grants.retain(|_, to| to.receiver_count() > 0);
        Ok(())
    }

    fn allotted(&self, worker: &WorkerId) -> watch::Receiver<Option<Arc<Grant>>> {
        let mut inner = self.inner.lock();
        let to = inner.grants.entry(worker.clone());
        to.or_insert_with(|| watch::channel(None).0).subscribe()
    }

    fn end(&self) {}

    async fn begin(&self, _: u64) -> Result<Option<Table>, TableError> {
        let Some(dir) = self.dir.clone() else {
            return Ok(None);
        };
        blocking(move || load(&dir)).await
    }

    async fn keep(&self, term: u64, table: Table) -> Result<(), TableError> {
        if term < self.inner.lock().term {
            return Err(Fenced.into());
        }
        let Some(dir) = self.dir.clone() else {
            return Ok(());
        };
        let saving = self.saving.clone();
        blocking(move || match saving.try_lock() {
            Some(_one) => save(&dir, &table),
            None => Err(TableError::Io {
                path: dir.join(FILE),
                error: io::Error::other("the disk has not answered yet"),
            }),
        })
        .await
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, TableError> + Send + 'static,
) -> Result<T, TableError> {
    let worked = tokio::task::spawn_blocking(work).await;
    worked.unwrap_or_else(|error| {
        let error = io::Error::other(error);
        let path = PathBuf::from(FILE);
        Err(TableError::Io { path, error })
    })
}

const FILE: &str = "leases.table";
const NEW: &str = "leases.table.new";
/// Tells the file from any other, and its format from later ones.
const MAGIC: &[u8; 8] = b"FBLEASE1";
const DIGEST: usize = 32;
/// Nothing of ours is larger: workers times limits, each with its name.
const LARGEST: u64 = 1 << 30;

fn load(dir: &Path) -> Result<Option<Table>, TableError> {
    let path = dir.join(FILE);
    let io = |error| TableError::Io {
        path: path.clone(),
        error,
    };
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(io(error)),
    };
    let mut bytes = Vec::new();
    file.take(LARGEST).read_to_end(&mut bytes).map_err(io)?;
    let damaged = |what: String| TableError::Damaged {
        path: path.clone(),
        what,
    };
    let rest = bytes.strip_prefix(MAGIC);
    let rest =
        rest.ok_or_else(|| damaged("not a table of leases that this version reads".into()))?;
    let (digest, content) = rest
        .split_at_checked(DIGEST)
        .ok_or_else(|| damaged("cut short".into()))?;
    if Digest::of(content).as_bytes() != digest {
        return Err(damaged("its digest is another".into()));
    }
    let stored = StoredTable::decode(content).map_err(|error| damaged(error.to_string()))?;
    let table = Table::try_from(stored).map_err(|error| damaged(error.to_string()))?;
    Ok(Some(table))
}

/// Keeps it. The file is whole at any time, and this one is on disk when this returns.
fn save(dir: &Path, table: &Table) -> Result<(), TableError> {
    let path = dir.join(FILE);
    let write = || -> io::Result<()> {
        let new = dir.join(NEW);
        let content = StoredTable::from(table).encode_to_vec();
        let mut file = File::create(&new)?;
        file.write_all(MAGIC)?;
        file.write_all(Digest::of(&content).as_bytes())?;
        file.write_all(&content)?;
        file.sync_all()?;
        fs::rename(&new, &path)?;
        File::open(dir)?.sync_all()
    };
    write().map_err(|error| TableError::Io {
        path: path.clone(),
        error,
    })
}

#[cfg(test)]
mod tests {
    use forebay_proto::{InstanceId, ModelId};

    use super::*;

    fn worker(id: &str) -> WorkerId {
        WorkerId::new(id).unwrap()
    }

    fn standing(stream: u64, connected: bool) -> Standing {
        Standing {
            stream,
            instance: InstanceId::new("i").unwrap(),
            takes_over: false,
            count: 0,
            displaces: false,
            repeated: false,
            knows: true,
            connected,
            report: None,
        }
    }

    fn grant(number: u64) -> Arc<Grant> {
        Arc::new(Grant {
            stream: 1,
            number,
            answers: 1,
            ttl: std::time::Duration::from_secs(1),
            linger: std::time::Duration::from_secs(1),
            shares: BTreeMap::new(),
        })
    }

    #[tokio::test]
    async fn the_newest_of_each_worker_is_told_and_an_older_stream_tells_nothing() {
        let board = LocalBoard::default();
        board.report(&worker("a"), standing(1, true));
        board.report(&worker("b"), standing(2, true));
        board.report(&worker("a"), standing(3, true));
        board.report(&worker("a"), standing(1, false));
        let news = board.demands().await;
        assert_eq!(
            news,
            [
                (worker("a"), standing(3, true)),
                (worker("b"), standing(2, true))
            ]
        );
    }

    #[tokio::test]
    async fn what_is_decided_under_an_older_term_is_refused() {
        let board = LocalBoard::default();
        let mut allotted = board.allotted(&worker("a"));
        board.allot(2, vec![(worker("a"), grant(1))]).await.unwrap();
        assert_eq!(allotted.borrow_and_update().as_ref(), Some(&grant(1)));
        assert_eq!(
            board.allot(1, vec![(worker("a"), grant(2))]).await,
            Err(Fenced)
        );
        assert!(board.keep(1, Table::default()).await.is_err());
        assert_eq!(allotted.borrow().as_ref(), Some(&grant(1)));
        drop(allotted);
        board.allot(2, vec![(worker("a"), grant(3))]).await.unwrap();
        assert!(
            board.inner.lock().grants.is_empty(),
            "who left is forgotten"
        );
    }

    #[tokio::test]
    async fn the_table_is_read_back_and_what_is_damaged_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let board = LocalBoard::new(Some(dir.path().to_owned()));
        assert_eq!(board.begin(1).await.unwrap(), None);
        let table = Table {
            workers: BTreeMap::from([(
                worker("a"),
                BTreeMap::from([(ModelId::new("m").unwrap(), 1)]),
            )]),
            ..Table::default()
        };
        board.keep(1, table.clone()).await.unwrap();
        assert_eq!(board.begin(1).await.unwrap(), Some(table));
        let path = dir.path().join(FILE);
        let good = fs::read(&path).unwrap();
        let mut flipped = good.clone();
        *flipped.last_mut().unwrap() ^= 1;
        for bad in [&b""[..], b"FBLEASE2", &good[..20], &flipped] {
            fs::write(&path, bad).unwrap();
            let error = board.begin(1).await.unwrap_err();
            assert!(matches!(error, TableError::Damaged { .. }), "{error}");
        }
    }
}
