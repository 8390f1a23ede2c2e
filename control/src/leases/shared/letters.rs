//! What control planes write to one another about leases, and how it is in etcd. Pure. What cannot be read is as if it
//! had not come: words may be lost, and come again.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use forebay_proto::{Digest, InstanceId, ModelId, WorkerId, wire};
use prost::Message;

use crate::leases::words::{Grant, Report, Share, Standing, StoredTable, Table};

/// Largest letter, about: etcd takes 1.5 MiB in a request.
pub(super) const LETTER_BYTES: usize = 256 << 10;
/// In so many parts the table is written: of those in which nothing changed, none.
pub(super) const PARTS: u32 = 64;

/// Who decides, and how often that one has asked all anew: what was said under another call says nothing under this.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Call {
    /// Of the leadership.
    pub term: u64,
    /// Within it.
    pub round: u64,
}

/// What one control plane tells of its workers: those of which something is new.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Letter {
    /// It answers this.
    pub call: Call,
    /// Grows with each letter of a process.
    pub number: u64,
    /// Whoever is not in this one or a later one is not there.
    pub afresh: bool,
    /// The workers. Their streams have numbers of the lines that the control plane gave them.
    pub words: Vec<(WorkerId, Standing)>,
    /// What it wants to know, by number.
    pub questions: Vec<(u64, Vec<u8>)>,
}

/// What is lent to one worker of another control plane.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lent {
    /// The worker.
    pub worker: WorkerId,
    /// Its stream is a line of that control plane.
    pub grant: Arc<Grant>,
}

#[derive(Clone, PartialEq, Message)]
struct StoredCall {
    #[prost(uint64, tag = "1")]
    term: u64,
    #[prost(uint64, tag = "2")]
    round: u64,
}

#[derive(Clone, PartialEq, Message)]
struct StoredLetter {
    #[prost(message, optional, tag = "1")]
    call: Option<StoredCall>,
    #[prost(uint64, tag = "2")]
    number: u64,
    #[prost(bool, tag = "3")]
    afresh: bool,
    #[prost(message, repeated, tag = "4")]
    words: Vec<StoredWord>,
    #[prost(message, repeated, tag = "5")]
    questions: Vec<Numbered>,
}

/// A question, or the answer to it.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Numbered {
    #[prost(uint64, tag = "1")]
    pub(super) number: u64,
    #[prost(bytes = "vec", tag = "2")]
    pub(super) content: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
struct StoredWord {
    #[prost(string, tag = "1")]
    worker: String,
    #[prost(uint64, tag = "2")]
    line: u64,
    #[prost(string, tag = "3")]
    instance: String,
    #[prost(bool, tag = "4")]
    takes_over: bool,
    #[prost(uint32, tag = "5")]
    count: u32,
    #[prost(bool, tag = "6")]
    knows: bool,
    #[prost(bool, tag = "7")]
    connected: bool,
    #[prost(message, optional, tag = "8")]
    report: Option<wire::LeaseReport>,
    #[prost(bool, tag = "9")]
    repeated: bool,
}

/// A batch of what is lent.
#[derive(Clone, PartialEq, Message)]
pub(super) struct StoredLents {
    #[prost(message, repeated, tag = "1")]
    pub(super) lents: Vec<StoredLent>,
    #[prost(message, repeated, tag = "2")]
    pub(super) answers: Vec<Numbered>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct StoredLent {
    #[prost(string, tag = "1")]
    worker: String,
    #[prost(uint64, tag = "2")]
    line: u64,
    #[prost(message, optional, tag = "3")]
    grant: Option<wire::LeaseGrant>,
}

impl Call {
    pub(super) fn encode(self) -> Vec<u8> {
        StoredCall::from(self).encode_to_vec()
    }

    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        StoredCall::decode(bytes).ok().map(Self::from)
    }
}

impl From<Call> for StoredCall {
    fn from(Call { term, round }: Call) -> Self {
        Self { term, round }
    }
}

impl From<StoredCall> for Call {
    fn from(StoredCall { term, round }: StoredCall) -> Self {
        Self { term, round }
    }
}

impl Letter {
    pub(super) fn encode(&self) -> Vec<u8> {
        let word = |(worker, standing): &(WorkerId, Standing)| StoredWord {
            worker: worker.to_string(),
            line: standing.stream,
            instance: standing.instance.to_string(),
            takes_over: standing.takes_over,
            count: standing.count,
            knows: standing.knows,
            connected: standing.connected,
            report: standing.report.as_ref().map(Into::into),
            repeated: standing.repeated,
        };
        let question = |(number, content): &(u64, Vec<u8>)| Numbered {
            number: *number,
            content: content.clone(),
        };
        StoredLetter {
            call: Some(self.call.into()),
            number: self.number,
            afresh: self.afresh,
            words: self.words.iter().map(word).collect(),
            questions: self.questions.iter().map(question).collect(),
        }
        .encode_to_vec()
    }

    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let stored = StoredLetter::decode(bytes).ok()?;
        let words = stored.words.into_iter().filter_map(|word| {
            let standing = Standing {
                stream: word.line,
                instance: InstanceId::new(word.instance).ok()?,
                takes_over: word.takes_over,
                count: word.count,
                displaces: false,
                repeated: word.repeated,
                knows: word.knows,
                connected: word.connected,
                report: word.report.map(Report::read),
            };
            Some((WorkerId::new(word.worker).ok()?, standing))
        });
        Some(Self {
            call: stored.call.map(Call::from)?,
            number: stored.number,
            afresh: stored.afresh,
            words: words.collect(),
            questions: stored
                .questions
                .into_iter()
                .map(|asked| (asked.number, asked.content))
                .collect(),
        })
    }
}

/// About how much room a word takes in a letter.
pub(super) fn size_of(worker: &WorkerId, standing: &Standing) -> usize {
    let names = |report: &Report| {
        let uses = report.uses.keys().map(|model| model.as_str().len() + 32);
        let own = report.own.keys().map(|model| model.as_str().len() + 16);
        uses.chain(own).sum::<usize>() + 120
    };
    let report = standing.report.as_ref().map_or(0, names);
    worker.as_str().len() + standing.instance.as_str().len() + 32 + report
}

impl Lent {
    pub(super) fn stored(&self) -> StoredLent {
        StoredLent {
            worker: self.worker.to_string(),
            line: self.grant.stream,
            grant: Some((&*self.grant).into()),
        }
    }

    pub(super) fn read(stored: StoredLent) -> Option<Self> {
        let grant = stored.grant?;
        let time = |wire: Option<prost_types::Duration>| Duration::try_from(wire?).ok();
        let share = |share: wire::LeaseShare| {
            let (size, floor) = (share.size, share.floor);
            Some((ModelId::new(share.model).ok()?, Share { size, floor }))
        };
        let grant = Grant {
            stream: stored.line,
            number: grant.number,
            answers: grant.answers,
            ttl: time(grant.ttl)?,
            linger: time(grant.linger)?,
            shares: grant.shares.into_iter().map(share).collect::<Option<_>>()?,
        };
        Some(Self {
            worker: WorkerId::new(stored.worker).ok()?,
            grant: Arc::new(grant),
        })
    }
}

/// The table in parts, each with a digest before it. The first has what is not of any worker. A worker is always in the
/// same one, and each of them can be read without the others: a table of which some parts are older has for each worker
/// what was on record once, and what is on record is put there before it is lent.
pub(super) fn parts_of(table: &Table) -> BTreeMap<u32, Vec<u8>> {
    let mut tables: BTreeMap<u32, Table> = BTreeMap::new();
    let general = tables.entry(0).or_default();
    (general.ttl, general.linger) = (table.ttl, table.linger);
    general.lineage.clone_from(&table.lineage);
    general.models.clone_from(&table.models);
    for (worker, floors) in &table.workers {
        let part = tables.entry(1 + hash(worker) % (PARTS - 1)).or_default();
        part.workers.insert(worker.clone(), floors.clone());
    }
    let encoded = tables.into_iter().map(|(n, part)| {
        let content = StoredTable::from(&part).encode_to_vec();
        let mut bytes = Digest::of(&content).as_bytes().to_vec();
        bytes.extend(content);
        (n, bytes)
    });
    encoded.collect()
}

/// Parts as one.
pub(super) fn table_of<'a>(parts: impl Iterator<Item = &'a [u8]>) -> Result<Table, String> {
    let mut whole = Table::default();
    for bytes in parts {
        let (digest, content) = bytes.split_at_checked(32).ok_or("a part is cut short")?;
        if Digest::of(content).as_bytes() != digest {
            return Err("the digest of a part is another".to_owned());
        }
        let stored = StoredTable::decode(content).map_err(|error| error.to_string())?;
        let part = Table::try_from(stored).map_err(|error| error.to_string())?;
        whole.lineage = whole.lineage.or(part.lineage);
        whole.ttl = whole.ttl.max(part.ttl);
        whole.linger = whole.linger.max(part.linger);
        whole.workers.extend(part.workers);
        whole.models.extend(part.models);
    }
    Ok(whole)
}

/// The same for the same worker, on every machine.
fn hash(worker: &WorkerId) -> u32 {
    let bytes = worker.as_str().bytes();
    bytes.fold(0x811c_9dc5_u32, |hash, byte| {
        (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)
    })
}

#[cfg(test)]
mod tests {
    use forebay_proto::ModelId;

    use super::*;
    use crate::leases::words::Use;

    fn worker(n: usize) -> WorkerId {
        WorkerId::new(format!("w{n}")).unwrap()
    }

    fn model() -> ModelId {
        ModelId::new("m").unwrap()
    }

    #[test]
    fn letters_and_what_is_lent_are_read_back() {
        let used = Use {
            size: 5,
            floor: 1,
            in_flight: 4,
            waiting: 3,
        };
        let standing = Standing {
            stream: 7,
            instance: InstanceId::new("i").unwrap(),
            takes_over: true,
            count: 3,
            displaces: false,
            repeated: false,
            knows: true,
            connected: true,
            report: Some(Report {
                number: 9,
                grant: 2,
                uses: BTreeMap::from([(model(), used)]),
                own: BTreeMap::from([(model(), 50)]),
                alone: true,
                weight: 2,
                ..Report::default()
            }),
        };
        let letter = Letter {
            call: Call { term: 3, round: 1 },
            number: 8,
            afresh: true,
            words: vec![(worker(1), standing.clone())],
            questions: vec![(4, b"?".to_vec())],
        };
        let bytes = letter.encode();
        assert!(bytes.len() <= size_of(&worker(1), &standing) + 40);
        assert_eq!(Letter::decode(&bytes), Some(letter));
        assert_eq!(Letter::decode(b"nonsense"), None);
        let grant = Grant {
            stream: 7,
            number: 4,
            answers: 9,
            ttl: Duration::from_secs(10),
            linger: Duration::from_millis(1_500),
            shares: BTreeMap::from([(model(), Share { size: 4, floor: 1 })]),
        };
        let lent = Lent {
            worker: worker(1),
            grant: Arc::new(grant),
        };
        assert_eq!(Lent::read(lent.stored()), Some(lent));
        assert_eq!(Lent::read(StoredLent::default()), None);
        let call = Call { term: 3, round: 9 };
        assert_eq!(Call::decode(&call.encode()), Some(call));
        assert!(Call { term: 4, round: 0 } > call);
    }

    /// docs/operating.md says how much etcd has to write.
    #[test]
    fn a_worker_costs_no_more_than_is_said() {
        use forebay_proto::{Epoch, Position, Revision};
        let applied = Position {
            epoch: Epoch::new("0123456789abcdef0123456789abcdef").unwrap(),
            revision: Revision::new(4_321),
            digest: Digest::of(b""),
        };
        let (said, lent) = (1..=10_u32).fold((0, 0), |_, limits| {
            let models = (0..limits).map(|n| ModelId::new(format!("llama-3.1-8b-{n}")).unwrap());
            let used = Use {
                size: 150,
                floor: 1,
                in_flight: 140,
                waiting: 130,
            };
            let share = Share {
                size: 150,
                floor: 1,
            };
            let standing = Standing {
                stream: 12_345,
                instance: InstanceId::new("0123456789abcdef0123456789abcdef").unwrap(),
                takes_over: false,
                count: 3,
                displaces: false,
                repeated: false,
                knows: true,
                connected: true,
                report: Some(Report {
                    number: 123_456,
                    grant: 123_456,
                    applied: Some(applied.clone()),
                    uses: models.clone().map(|model| (model, used)).collect(),
                    alone: true,
                    weight: 1,
                    ..Report::default()
                }),
            };
            let letter = |words| Letter {
                call: Call { term: 9, round: 1 },
                number: 9,
                afresh: false,
                words,
                questions: Vec::new(),
            };
            let worker = WorkerId::new("worker-0123456789").unwrap();
            let word = vec![(worker.clone(), standing)];
            let bytes = letter(word).encode().len() - letter(Vec::new()).encode().len();
            let grant = Grant {
                stream: 12_345,
                number: 123_456,
                answers: 123_456,
                ttl: Duration::from_secs(10),
                linger: Duration::from_secs(60),
                shares: models.map(|model| (model, share)).collect(),
            };
            let grant = Arc::new(grant);
            let granted = Lent { worker, grant }.stored().encoded_len();
            assert!(bytes <= 160 + 35 * limits as usize, "{limits}: {bytes}");
            assert!(granted <= 55 + 25 * limits as usize, "{limits}: {granted}");
            (bytes, granted)
        });
        println!("ten limits: {said} bytes said, {lent} lent");
    }

    #[test]
    fn a_table_is_read_back_from_its_parts_and_a_worker_changes_one_of_them() {
        let mut table = Table {
            lineage: Some(forebay_proto::Epoch::new("aa").unwrap()),
            ttl: Duration::from_secs(10),
            linger: Duration::from_secs(60),
            workers: (0..300)
                .map(|n| (worker(n), BTreeMap::from([(model(), 1)])))
                .collect(),
            models: BTreeMap::from([(model(), Some(9))]),
        };
        let parts = parts_of(&table);
        assert_eq!(parts.len(), PARTS as usize);
        let read = |parts: &BTreeMap<u32, Vec<u8>>| table_of(parts.values().map(Vec::as_slice));
        assert_eq!(read(&parts), Ok(table.clone()));
        table.workers.insert(worker(301), BTreeMap::new());
        let after = parts_of(&table);
        let moved = after.iter().filter(|(n, part)| parts.get(n) != Some(part));
        assert_eq!(moved.count(), 1);
        let mut damaged = parts;
        *damaged.get_mut(&3).unwrap().last_mut().unwrap() ^= 1;
        assert!(read(&damaged).is_err());
        assert_eq!(table_of(std::iter::empty()), Ok(Table::default()));
    }
}
