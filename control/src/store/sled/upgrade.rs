//! From older formats of the directory to this one, in one transaction each. Before it an export is put beside the
//! database, which the version that wrote it can import: the way back.
//!
//! Format 1 had one line of history per revision and not what it changed. Those lines stay, and the history that can be
//! gone back to begins with the newest of them. Format 2 had no keys of clients and no credentials of endpoints, format 3 no
//! endpoints without a url (docs/adr/0031); they only get the new number, so that a version that does not know these does
//! not start on a directory that has some, and take it for a damaged one.

use std::{fs::File, path::Path};

use super::{FORMAT, KEY_EARLIEST, KEY_FORMAT, KEY_REVISION, SledStore, open_error};
use crate::store::{OpenError, StoreError, export};

/// The oldest format that is read.
pub(super) const OLDEST: u32 = 1;

impl SledStore {
    /// Brings an older directory to this format. Of one of this format nothing is touched.
    pub(super) fn upgrade(&mut self, dir: &Path) -> Result<(), OpenError> {
        let found = self
            .meta
            .get(KEY_FORMAT)
            .map_err(|error| open_error(dir, error))?;
        let found = found.as_deref().and_then(|bytes| bytes.try_into().ok());
        let found = found.map_or(FORMAT, u32::from_be_bytes);
        if found == FORMAT {
            return Ok(());
        }
        let damaged = |what: String| OpenError::Damaged {
            dir: dir.to_owned(),
            what,
        };
        let stored = self.read().map_err(damaged)?;
        let way_back = dir.join(way_back(found));
        let now = std::time::SystemTime::now();
        // Its name, too, before the version that can read the database no more writes to it.
        export::write_file(&way_back, &stored, now)
            .and_then(|()| File::open(dir)?.sync_all())
            .map_err(|error| OpenError::from_io(dir, error))?;
        let revision = stored.revision.get().to_be_bytes();
        let upgraded = self.transaction(|trees| {
            trees.meta.insert(KEY_FORMAT, &FORMAT.to_be_bytes())?;
            if found == OLDEST {
                trees.meta.insert(KEY_EARLIEST, &revision)?;
                trees.meta.insert(KEY_REVISION, &revision)?;
            }
            Ok(())
        });
        let durable = upgraded
            .map_err(|error| self.fail(&error))
            .and_then(|()| self.sync());
        durable.map_err(|error: StoreError| damaged(error.to_string()))?;
        let export = way_back.display();
        tracing::info!(dir = %dir.display(), %export, "store upgraded from format {found} to {FORMAT}");
        Ok(())
    }
}

/// The export that the older version can import.
fn way_back(found: u32) -> String {
    format!("registry.format-{found}.export")
}
