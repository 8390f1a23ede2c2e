//! Clients' keys as they are pushed: parts put together, put in force, kept on disk, answered. What does not fit is
//! answered with what is held, and the whole comes.
//!
//! In force first, then on disk, then answered: a disk that hangs does not hold up a revocation, and is tried again with
//! each sign of life.

use std::{sync::Arc, time::Duration};

use forebay_proto::{Digest, KeysPosition, limits, wire};
use tokio::{task::spawn_blocking, time::timeout};

use crate::keys::{KeyCell, KeysChange, KeysFile};

/// How long the answer waits for the disk.
const SAVE_WITHIN: Duration = Duration::from_secs(2);

/// The peer does not keep to the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct OutOfOrder;

/// What follows the keys.
#[derive(Debug)]
pub(super) struct KeysFollower {
    cell: Arc<KeyCell>,
    file: Option<KeysFile>,
    coming: Option<Coming>,
    /// What is in force is not on disk.
    unsaved: bool,
}

/// Parts so far.
#[derive(Debug)]
struct Coming {
    change: KeysChange,
    next: u32,
    bytes: usize,
}

impl KeysFollower {
    pub(super) fn new(cell: Arc<KeyCell>, file: Option<KeysFile>) -> Self {
        Self {
            cell,
            file,
            coming: None,
            unsaved: false,
        }
    }

    /// Puts in force what is on disk. It blocks.
    pub(super) fn start(&mut self) {
        let Some(file) = &self.file else { return };
        // Who followed before may not have come to save it.
        self.unsaved = self.cell.load().position().is_some();
        let kept = file.load();
        let path = file.path().display();
        if let Err(error) = &kept {
            tracing::error!(%path, %error, "the keys of clients cannot be read");
        }
        self.cell.start(kept);
        if self.cell.is_lost() {
            tracing::error!(
                %path,
                "nobody is let in until the control plane has told the keys; or that there are none; without one, and if there never were any, remove the file"
            );
        }
    }

    /// What is held. Who has lost it asks for the whole, also if that is nothing: it holds what no store ever had.
    pub(super) fn held(&self) -> Option<wire::KeysPosition> {
        let ring = self.cell.load();
        let lost = || wire::KeysPosition {
            epoch: "0".to_owned(),
            version: 0,
            digest: Digest::of(b"").as_bytes().to_vec().into(),
        };
        let held = ring.position().map(Into::into);
        held.or_else(|| self.cell.is_lost().then(lost))
    }

    /// A stream begins: what was left of the one before is of no use.
    pub(super) fn begin(&mut self) {
        self.coming = None;
    }

    /// Takes a part. With the last one the keys are in force, or not; true when that is to be answered.
    pub(super) async fn take(&mut self, push: wire::KeysPush) -> Result<bool, OutOfOrder> {
        let (part, last) = (push.part, push.last);
        let coming = match self.coming.take() {
            None if part == 0 => {
                let to = push.to.clone().ok_or(OutOfOrder)?;
                let to = KeysPosition::try_from(to).map_err(|_| OutOfOrder)?;
                let change = KeysChange {
                    to,
                    from: push.from_version,
                    keys: Vec::new(),
                    verify: Vec::new(),
                    seal: Vec::new(),
                };
                Coming {
                    change,
                    next: 0,
                    bytes: 0,
                }
            }
            Some(coming) if coming.next == part => coming,
            _ => return Err(OutOfOrder),
        };
        let coming = coming.with(push)?;
        if !last {
            self.coming = Some(coming);
            return Ok(false);
        }
        let change = coming.change;
        match self.cell.change(&change) {
            Ok(()) => {
                let ring = self.cell.load();
                tracing::info!(
                    version = change.to.version,
                    keys = ring.len(),
                    "keys in force"
                );
                self.unsaved = true;
                self.save().await;
            }
            Err(why) if self.cell.is_lost() => {
                tracing::error!(position = %change.to, %why, "keys not taken, and none known: nobody is let in");
                self.unsaved = true;
                self.save().await;
            }
            Err(why) => tracing::warn!(position = %change.to, %why, "keys not taken"),
        }
        Ok(true)
    }

    /// Keeps on disk what is not.
    pub(super) async fn save(&mut self) {
        let Some(file) = self.file.clone().filter(|_| self.unsaved) else {
            return;
        };
        let cell = self.cell.clone();
        let saving = spawn_blocking(move || file.save(&cell));
        match timeout(SAVE_WITHIN, saving).await {
            Ok(Ok(Ok(()))) => self.unsaved = false,
            Ok(Ok(Err(error))) => tracing::error!(%error, "keys not saved"),
            Ok(Err(error)) => tracing::error!(%error, "keys not saved"),
            Err(_) => tracing::error!("keys not saved in time"),
        }
    }
}

impl Coming {
    fn with(mut self, push: wire::KeysPush) -> Result<Self, OutOfOrder> {
        let bytes: usize = push.keys.iter().map(|key| key.len()).sum();
        self.bytes = self.bytes.saturating_add(bytes);
        // Besides the keys there may be as many that are gone, each of a few bytes.
        let most = limits::KEYS + limits::REVOKED_KEYS;
        if self.bytes > 2 * limits::KEYS_BYTES || self.change.keys.len() + push.keys.len() > most {
            return Err(OutOfOrder);
        }
        self.change.keys.extend(push.keys);
        self.change.verify.extend(push.verify_keys);
        self.change.seal.extend(push.seal_keys);
        self.next = self.next.saturating_add(1);
        Ok(self)
    }
}
