//! How much history is kept: a count of what there is, and what must go to make room. Pure.

use std::collections::VecDeque;

use forebay_proto::{Digest, Revision};

use super::{EntryKind, LogRecord};

/// Most entries kept.
const ENTRIES: usize = 10_000;
/// Most edits kept.
const EDITS: u64 = 200_000;
/// Most bytes of edits kept.
const BYTES: u64 = 64 << 20;

/// An entry that is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Kept {
    pub(crate) revision: Revision,
    pub(crate) edits: u32,
    pub(crate) bytes: u64,
}

/// An entry that goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Forgotten {
    pub(crate) revision: Revision,
    pub(crate) edits: u32,
}

/// The entries that are kept, in order, and what they come to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Past {
    /// The earliest revision whose state can be had.
    earliest: Revision,
    kept: VecDeque<Kept>,
    edits: u64,
    bytes: u64,
    /// Of the newest entry's configuration, if it is known.
    digest: Option<Digest>,
}

impl Past {
    /// From what a store holds, in order of revision.
    pub(crate) fn new(
        earliest: Revision,
        kept: impl IntoIterator<Item = Kept>,
        digest: Option<Digest>,
    ) -> Self {
        let kept: VecDeque<_> = kept.into_iter().collect();
        Self {
            earliest,
            edits: kept.iter().map(|entry| u64::from(entry.edits)).sum(),
            bytes: kept.iter().map(|entry| entry.bytes).sum(),
            kept,
            digest,
        }
    }

    /// Of the newest configuration, as it was committed.
    pub(crate) fn digest(&self) -> Option<Digest> {
        self.digest
    }

    /// How many entries are kept, and the bytes of their edits.
    pub(crate) fn size(&self) -> (usize, u64) {
        (self.kept.len(), self.bytes)
    }

    /// Takes a new entry in and says which ones go. The new one itself is never among them.
    pub(crate) fn add(&mut self, log: &LogRecord, kind: EntryKind) -> Vec<Forgotten> {
        if kind == EntryKind::Beginning {
            self.earliest = log.revision;
        }
        self.kept.push_back(Kept {
            revision: log.revision,
            edits: log.edits,
            bytes: log.bytes,
        });
        self.edits += u64::from(log.edits);
        self.bytes += log.bytes;
        self.digest = log.digest;
        let mut forgotten = Vec::new();
        while self.kept.len() > 1
            && (self.kept.len() > ENTRIES || self.edits > EDITS || self.bytes > BYTES)
        {
            let Some(oldest) = self.kept.pop_front() else {
                break;
            };
            self.edits -= u64::from(oldest.edits);
            self.bytes -= oldest.bytes;
            self.earliest = self.earliest.max(oldest.revision);
            forgotten.push(Forgotten {
                revision: oldest.revision,
                edits: oldest.edits,
            });
        }
        forgotten
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::store::suite::log;

    proptest! {
        #[test]
        fn what_is_kept_is_bounded_and_reaches_back_to_what_went(sizes in proptest::collection::vec((0_u32..1_000, 0_u64..9 << 20), 1..400)) {
            let mut past = Past::new(Revision::new(1), [], None);
            let mut all = Vec::new();
            let mut gone = 0;
            for (n, (edits, bytes)) in sizes.into_iter().enumerate() {
                let mut log = log(Revision::new(n as u64 + 2));
                (log.edits, log.bytes) = (edits, bytes);
                all.push((edits, bytes));
                let forgotten = past.add(&log, EntryKind::Undoable);
                gone += forgotten.len();
                let kept = &all[gone..];
                prop_assert_eq!(past.kept.len(), kept.len());
                prop_assert!(!kept.is_empty(), "the newest stays");
                prop_assert_eq!(past.bytes, kept.iter().map(|(_, bytes)| bytes).sum::<u64>());
                prop_assert!(kept.len() == 1 || past.bytes <= BYTES && past.edits <= EDITS);
                prop_assert_eq!(past.earliest, Revision::new(gone as u64 + 1));
            }
        }
    }

    #[test]
    fn no_more_entries_than_that() {
        let mut past = Past::new(Revision::new(1), [], None);
        for n in 0..ENTRIES as u64 {
            assert_eq!(
                past.add(&log(Revision::new(n + 2)), EntryKind::Undoable),
                []
            );
        }
        let next = log(Revision::new(ENTRIES as u64 + 2));
        let forgotten = past.add(&next, EntryKind::Undoable);
        assert_eq!(
            forgotten,
            [Forgotten {
                revision: Revision::new(2),
                edits: 0
            }]
        );
        assert_eq!(
            past.earliest,
            Revision::new(2),
            "which was undone by nobody and stands"
        );
    }
}
