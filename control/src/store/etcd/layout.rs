//! Where the registry is in etcd, and how a commit becomes operations on keys. Pure.
//!
//! ```text
//! PREFIX/head/config     format, epoch, revision, earliest, number of models, the commit that wrote it
//! PREFIX/head/keys       version of the clients' keys
//! PREFIX/settings        the pool settings
//! PREFIX/model/ID        a model
//! PREFIX/log/REV         an entry of the history          (numbers in 16 hex digits, so that they are in order)
//! PREFIX/edit/REV/N      a resource before and after it
//! PREFIX/answer/ID       the answer that a request id got
//! PREFIX/answered/N       the request id of the Nth answer, of the newest ones: who follows reads no others
//! PREFIX/key/ID          a client's key
//! PREFIX/staged/C/N      a part of commit C, which is too large for one transaction
//! ```
//!
//! Records are the same bytes as in sled.

use std::collections::{BTreeMap, BTreeSet};

use forebay_proto::Revision;
use prost::Message;

use crate::{
    etcd::{api::RequestOp, ops},
    store::{
        Change,
        history::{Edit, Entry, EntryKind},
        keys::{self, KeyChange},
        records,
    },
};

/// etcd's own limit is 128 operations in a transaction.
pub(super) const MOST_OPS: usize = 120;
/// And 1.5 MiB for a request.
pub(super) const MOST_BYTES: usize = 1 << 20;
/// So many of the newest answers are found by their number.
pub(super) const ANSWERED: u64 = 1_000;
/// Bytes of a staged part.
const PART_BYTES: usize = 600 << 10;
/// Most parts of a commit: each is compared in its transaction. With [`PART_BYTES`] each it is more than a registry of the
/// largest size takes before and after a change of all of it.
pub(super) const MOST_PARTS: usize = 120;

/// What the whole registry hangs on: every commit compares it and writes it anew.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Head {
    #[prost(uint32, tag = "1")]
    pub(super) format: u32,
    #[prost(string, tag = "2")]
    pub(super) epoch: String,
    #[prost(uint64, tag = "3")]
    pub(super) revision: u64,
    /// The earliest revision whose state can be had.
    #[prost(uint64, tag = "4")]
    pub(super) earliest: u64,
    #[prost(uint64, tag = "5")]
    pub(super) models: u64,
    /// The commit that wrote it.
    #[prost(string, tag = "6")]
    pub(super) commit: String,
    /// So many parts of that commit are staged, and not all in their places yet.
    #[prost(uint32, tag = "7")]
    pub(super) staged: u32,
    /// What is moved here is not all here yet.
    #[prost(bool, tag = "8")]
    pub(super) unfinished: bool,
    /// The number of the newest answer. 0: the commit is of a build that does not count them.
    #[prost(uint64, tag = "9")]
    pub(super) answered: u64,
}

/// The same of the clients' keys.
#[derive(Clone, PartialEq, Message)]
pub(super) struct KeysHead {
    #[prost(bytes = "vec", tag = "1")]
    pub(super) head: Vec<u8>,
    #[prost(string, tag = "2")]
    pub(super) commit: String,
}

/// An entry of the history, and the commit that made it.
#[derive(Clone, PartialEq, Message)]
pub(super) struct LogValue {
    #[prost(bytes = "vec", tag = "1")]
    pub(super) record: Vec<u8>,
    #[prost(string, tag = "2")]
    pub(super) commit: String,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct EditValue {
    #[prost(bytes = "vec", tag = "1")]
    pub(super) name: Vec<u8>,
    #[prost(bytes = "vec", optional, tag = "2")]
    pub(super) before: Option<Vec<u8>>,
    #[prost(bytes = "vec", optional, tag = "3")]
    pub(super) after: Option<Vec<u8>>,
}

/// What is to be done to a key, or to a range of them.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Op {
    #[prost(bytes = "vec", tag = "1")]
    key: Vec<u8>,
    /// Absent: deleted.
    #[prost(bytes = "vec", optional, tag = "2")]
    value: Option<Vec<u8>>,
    #[prost(bytes = "vec", tag = "3")]
    range_end: Vec<u8>,
}

/// A staged part.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Part {
    #[prost(message, repeated, tag = "1")]
    pub(super) ops: Vec<Op>,
}

impl Op {
    fn len(&self) -> usize {
        self.key.len() + self.value.as_ref().map_or(0, Vec::len) + self.range_end.len() + 16
    }

    pub(super) fn request(self) -> RequestOp {
        match self.value {
            Some(value) => ops::put(self.key, value, 0),
            None => ops::delete_range(self.key, self.range_end),
        }
    }
}

/// Names of keys.
#[derive(Debug, Clone)]
pub(crate) struct Layout(String);

impl Layout {
    pub(crate) fn new(prefix: &str) -> Self {
        Self(prefix.to_owned())
    }

    pub(crate) fn key(&self, name: &str) -> Vec<u8> {
        format!("{}/{name}", self.0).into_bytes()
    }

    /// What is watched: each head changes with what it is the head of.
    pub(crate) fn heads(&self) -> Vec<u8> {
        self.key("head/")
    }

    pub(super) fn head(&self) -> Vec<u8> {
        self.key("head/config")
    }

    pub(super) fn keys_head(&self) -> Vec<u8> {
        self.key("head/keys")
    }

    pub(super) fn log(&self, revision: Revision) -> Vec<u8> {
        self.key(&format!("log/{:016x}", revision.get()))
    }

    /// All edits of a revision begin so.
    pub(super) fn edits(&self, revision: Revision) -> Vec<u8> {
        self.key(&format!("edit/{:016x}/", revision.get()))
    }

    fn edit(&self, revision: Revision, n: usize) -> Vec<u8> {
        self.key(&format!("edit/{:016x}/{n:08x}", revision.get()))
    }

    pub(super) fn answer(&self, id: &str) -> Vec<u8> {
        self.key(&format!("answer/{id}"))
    }

    pub(super) fn answered(&self, n: u64) -> Vec<u8> {
        self.key(&format!("answered/{n:016x}"))
    }

    /// The range of those that are of no use any more: after a build that did not count, all of them.
    pub(super) fn answered_stale(&self, head: &Head) -> (Vec<u8>, Vec<u8>) {
        let first = self.key("answered/");
        let kept = match head.answered {
            0 => ops::after_prefix(&first),
            newest => self.answered((newest + 1).saturating_sub(ANSWERED)),
        };
        (first, kept)
    }

    pub(super) fn client_key(&self, id: &str) -> Vec<u8> {
        self.key(&format!("key/{id}"))
    }

    pub(super) fn staged(&self, commit: &str) -> Vec<u8> {
        self.key(&format!("staged/{commit}/"))
    }

    pub(super) fn part(&self, commit: &str, n: usize) -> Vec<u8> {
        self.key(&format!("staged/{commit}/{n:08x}"))
    }

    /// Who is in charge; the store compares it when a decision is written.
    pub(crate) fn leader(&self) -> Vec<u8> {
        self.key("leader")
    }
}

/// Of which revision an entry or an edit is, by its key.
pub(super) fn revision_of(layout: &Layout, kind: &str, key: &[u8]) -> Option<Revision> {
    let rest = key.strip_prefix(layout.key(kind).as_slice())?;
    let digits = std::str::from_utf8(rest.get(..16)?).ok()?;
    u64::from_str_radix(digits, 16).ok().map(Revision::new)
}

/// A commit, folded: of several changes of one key the last stands, because etcd takes a key once in a transaction.
#[derive(Debug, Default)]
pub(super) struct Folded {
    puts: BTreeMap<Vec<u8>, Option<Vec<u8>>>,
    /// Everything of the history up to here goes.
    forget: Option<Revision>,
    /// The newest revision, if a new one is made.
    pub(super) revision: Option<Revision>,
    pub(super) earliest: Option<Revision>,
    /// Models that are there afterwards, and that are not.
    pub(super) models: BTreeMap<String, bool>,
    /// Request ids that are answered.
    answered: Vec<String>,
    /// By what its writer knows it again: a key, and what it then holds.
    pub(super) witness: Option<Witness>,
}

/// What tells that a commit was made.
#[derive(Debug, Clone)]
pub(super) enum Witness {
    /// An entry of the history that has its id.
    Entry(Vec<u8>),
    /// This very value.
    Value(Vec<u8>, Vec<u8>),
}

impl Folded {
    pub(super) fn of(layout: &Layout, changes: &[Change], commit: &str) -> Self {
        let mut folded = Self::default();
        for change in changes {
            if let Some(entry) = &change.entry {
                folded.entry(layout, entry, commit);
                folded.revision = Some(change.revision);
            }
            for id in &change.forget_idem {
                folded.puts.insert(layout.answer(id), None);
            }
            if let Some(record) = &change.idem {
                let (key, value) = (
                    layout.answer(&record.request_id),
                    records::encode_idem(record),
                );
                folded.puts.insert(key.clone(), Some(value.clone()));
                folded.answered.push(record.request_id.clone());
                if !matches!(folded.witness, Some(Witness::Entry(_))) {
                    folded.witness = Some(Witness::Value(key, value));
                }
            }
        }
        folded.drop_forgotten(layout);
        folded
    }

    fn entry(&mut self, layout: &Layout, entry: &Entry, commit: &str) {
        let revision = entry.log.revision;
        for (n, edit) in entry.edits.iter().enumerate() {
            self.current(layout, edit);
            if entry.kind == EntryKind::Undoable {
                let (name, before, after) = records::edit_parts(edit);
                let value = EditValue {
                    name,
                    before,
                    after,
                };
                let key = layout.edit(revision, n);
                self.puts.insert(key, Some(value.encode_to_vec()));
            }
        }
        let value = LogValue {
            record: records::encode_log(&entry.log),
            commit: commit.to_owned(),
        };
        let key = layout.log(revision);
        self.puts.insert(key.clone(), Some(value.encode_to_vec()));
        if !matches!(self.witness, Some(Witness::Entry(_))) {
            self.witness = Some(Witness::Entry(key));
        }
        if entry.kind == EntryKind::Beginning {
            self.earliest = Some(revision);
        }
        for old in &entry.forget {
            self.forget = self.forget.max(Some(old.revision));
            self.earliest = self.earliest.max(Some(old.revision));
        }
    }

    fn current(&mut self, layout: &Layout, edit: &Edit) {
        match edit {
            Edit::Settings { after, .. } => {
                let value = records::encode_settings(after);
                self.puts.insert(layout.key("settings"), Some(value));
            }
            Edit::Model { id, after, .. } => {
                let value = after.as_deref().map(records::encode_model);
                self.models.insert(id.to_string(), value.is_some());
                self.puts.insert(layout.key(&format!("model/{id}")), value);
            }
        }
    }

    /// etcd takes no key that is in a range to be deleted.
    fn drop_forgotten(&mut self, layout: &Layout) {
        let Some(upto) = self.forget else { return };
        let goes = |key: &[u8]| {
            let revision = revision_of(layout, "log/", key).or(revision_of(layout, "edit/", key));
            revision.is_some_and(|revision| revision <= upto)
        };
        self.puts.retain(|key, _| !goes(key));
    }

    /// Numbers its answers, after those that there were with a head of this revision of etcd's. Gives the newest number.
    /// They begin anew after a build that does not count, with numbers that were never given: one commit has fewer than
    /// the distance between two revisions.
    pub(super) fn number_answers(&mut self, layout: &Layout, head: &Head, head_mod: i64) -> u64 {
        let before = match head.answered {
            0 => u64::try_from(head_mod).unwrap_or(0).max(1) << 20,
            before => before,
        };
        let ids = std::mem::take(&mut self.answered);
        let mut newest = before;
        for id in ids {
            newest += 1;
            let key = layout.answered(newest);
            self.puts.insert(key, Some(id.into_bytes()));
            if let Some(old) = newest.checked_sub(ANSWERED).filter(|_| head.answered > 0) {
                self.puts.insert(layout.answered(old), None);
            }
        }
        newest
    }

    /// How many models there are then, of these.
    pub(super) fn count_models(&self, known: &BTreeSet<String>) -> u64 {
        let mut count = known.len();
        for (id, there) in &self.models {
            match (known.contains(id), there) {
                (false, true) => count += 1,
                (true, false) => count = count.saturating_sub(1),
                _ => {}
            }
        }
        count as u64
    }

    pub(super) fn into_ops(self, layout: &Layout) -> Vec<Op> {
        let mut ops: Vec<Op> = Vec::with_capacity(self.puts.len() + 2);
        if let Some(upto) = self.forget {
            let first = Revision::ZERO;
            for (from, to) in [
                (layout.log(first), layout.log(upto.next())),
                (layout.edits(first), layout.edits(upto.next())),
            ] {
                ops.push(Op {
                    key: from,
                    value: None,
                    range_end: to,
                });
            }
        }
        ops.extend(self.puts.into_iter().map(|(key, value)| Op {
            key,
            value,
            range_end: Vec::new(),
        }));
        ops
    }
}

/// Whether one transaction takes all of them.
pub(super) fn fits(ops: &[Op]) -> bool {
    ops.len() <= MOST_OPS && ops.iter().map(Op::len).sum::<usize>() <= MOST_BYTES
}

/// Operations in parts, by their bytes alone: a part is one value, and goes to its place in as many transactions as it
/// takes ([`MOST_OPS`] in each).
pub(super) fn parts(ops: Vec<Op>) -> Vec<Part> {
    let mut parts = vec![Part::default()];
    let mut bytes = 0;
    for op in ops {
        let len = op.len();
        let full = parts
            .last()
            .is_none_or(|part| !part.ops.is_empty() && bytes + len > PART_BYTES);
        if full {
            parts.push(Part::default());
            bytes = 0;
        }
        bytes += len;
        if let Some(part) = parts.last_mut() {
            part.ops.push(op);
        }
    }
    parts
}

/// A commit of clients' keys: what is done, how many there are then, and by what it is known again.
pub(super) fn fold_keys(
    layout: &Layout,
    changes: &[KeyChange],
    known: &BTreeSet<String>,
) -> (Vec<Op>, BTreeSet<String>, Option<Witness>) {
    let (mut puts, mut after, mut witness) = (BTreeMap::new(), known.clone(), None);
    for change in changes {
        let id = change.put.id.to_string();
        let (key, value) = (layout.client_key(&id), keys::encode(&change.put));
        witness = Some(Witness::Value(key.clone(), value.clone()));
        puts.insert(key, Some(value));
        after.insert(id);
        for id in &change.forget {
            puts.insert(layout.client_key(id.as_str()), None);
            after.remove(id.as_str());
        }
    }
    let ops = puts.into_iter().map(|(key, value)| Op {
        key,
        value,
        range_end: Vec::new(),
    });
    (ops.collect(), after, witness)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::suite::put;

    fn layout() -> Layout {
        Layout::new("/x")
    }

    #[test]
    fn answers_are_numbered_and_only_the_newest_are_found_by_that() {
        let answered = |id: &str| Change {
            idem: Some(super::super::tests::answer(id, 2)),
            ..put("a", 1, 2)
        };
        let mut head = Head::default();
        let mut folded = Folded::of(&layout(), &[answered("x"), answered("y")], "c");
        head.answered = folded.number_answers(&layout(), &head, 5);
        assert_eq!(head.answered, (5 << 20) + 2);
        assert!(!folded.puts.values().any(Option::is_none));
        let key = layout().answered(head.answered);
        assert_eq!(folded.puts[&key].as_deref(), Some(&b"y"[..]));
        let mut folded = Folded::of(&layout(), &[answered("z")], "d");
        head.answered = folded.number_answers(&layout(), &head, 9);
        assert_eq!(head.answered, (5 << 20) + 3);
        let old = layout().answered(head.answered - ANSWERED);
        assert_eq!(folded.puts.get(&old), Some(&None));
        let (first, kept) = layout().answered_stale(&head);
        let oldest = layout().answered(head.answered - ANSWERED + 1);
        assert!(first < old && old < kept && kept == oldest, "{kept:?}");
        // After a build that does not count.
        head.answered = 0;
        let (first, kept) = layout().answered_stale(&head);
        assert!(first < old && layout().answered(u64::MAX) < kept);
        let mut folded = Folded::of(&layout(), &[], "e");
        assert_eq!(folded.number_answers(&layout(), &head, 11), 11 << 20);
    }

    #[test]
    fn a_key_is_written_once_and_the_last_stands() {
        let changes = [put("a", 1, 2), put("b", 1, 3), put("a", 2, 4)];
        let folded = Folded::of(&layout(), &changes, "c");
        assert_eq!(folded.revision, Some(Revision::new(4)));
        assert_eq!(folded.count_models(&BTreeSet::from(["a".to_owned()])), 2);
        let Some(Witness::Entry(key)) = &folded.witness else {
            panic!("{folded:?}");
        };
        assert_eq!(*key, layout().log(Revision::new(2)));
        let ops = folded.into_ops(&layout());
        let keys: BTreeSet<_> = ops.iter().map(|op| op.key.clone()).collect();
        assert_eq!(keys.len(), ops.len());
        assert_eq!(
            ops.len(),
            2 + 3 + 3,
            "two models, three entries, three edits"
        );
        assert!(fits(&ops));
    }

    #[test]
    fn keys_of_revisions_are_in_order_and_read_back() {
        let numbers = [1_u64, 9, 10, 255, 256, u64::MAX];
        let keys: Vec<_> = numbers.map(|n| layout().log(Revision::new(n))).to_vec();
        assert!(keys.is_sorted());
        for (n, key) in numbers.into_iter().zip(&keys) {
            assert_eq!(revision_of(&layout(), "log/", key), Some(Revision::new(n)));
            assert_eq!(revision_of(&layout(), "edit/", key), None);
        }
        let edit = layout().edit(Revision::new(7), 3);
        assert_eq!(
            revision_of(&layout(), "edit/", &edit),
            Some(Revision::new(7))
        );
        assert!(edit.starts_with(&layout().edits(Revision::new(7))));
    }

    #[test]
    fn parts_keep_the_limits_the_order_and_everything() {
        let ops: Vec<Op> = (0..1_000_usize)
            .map(|n| Op {
                key: n.to_be_bytes().to_vec(),
                value: Some(vec![7; (n % 7) * 18_000]),
                range_end: Vec::new(),
            })
            .collect();
        assert!(!fits(&ops));
        let parts = parts(ops.clone());
        for part in &parts {
            assert!(!part.ops.is_empty());
            assert!(part.encoded_len() < 1_500_000, "fits a request itself");
            assert!(part.ops.chunks(MOST_OPS).all(fits), "and what it becomes");
        }
        let all: Vec<_> = parts.into_iter().flat_map(|part| part.ops).collect();
        assert_eq!(all, ops);
        // Of small ones there may be as many as there are.
        let small = ops.iter().cycle().take(20_000).map(|op| Op {
            value: Some(vec![7; 300]),
            ..op.clone()
        });
        assert!(super::parts(small.collect()).len() <= 12);
    }
}
