//! The board of several control planes on one etcd (docs/adr/0033): each tells whoever decides of its own workers, and is
//! told what those are lent.
//!
//! ```text
//! PREFIX/leases/call            who decides, and how often that one has asked for everything anew
//! PREFIX/leases/said/INSTANCE   the last letter of a control plane, under its lease in etcd
//! PREFIX/leases/lent/INSTANCE   the last batch of grants for its workers
//! PREFIX/leases/table/N         the table: N is `head`, or a part of it
//! ```
//!
//! Keys are written over and over; what is read are the events, so that nothing is written that is not new. A letter or a
//! batch that is lost is no harm: a worker says all it uses every few seconds, and is answered. Who decides hears the
//! letters from before its call, so that it has all of those that answer it; if it may have missed one, it calls again.
//! What is lent and what is on record is written in the term in which it was decided, or not at all.

pub(crate) mod letters;
pub(crate) mod lines;
pub(crate) mod own;
mod post;
mod table;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use forebay_proto::WorkerId;
use parking_lot::Mutex;
use prost::Message as _;
use tokio::{
    sync::{Notify, oneshot, watch},
    time::timeout,
};

use self::{
    letters::{Call, LETTER_BYTES, Lent, Numbered, StoredLent, StoredLents},
    lines::Lines,
    own::Own,
    table::Kept,
};
use super::{
    board::{Asked, Board, Fenced, TableError},
    words::{Grant, Standing, Table},
};
use crate::{
    cluster::{Shared, leader_name},
    etcd::{
        Budget,
        api::{Compare, TxnRequest},
        ops,
    },
};

/// Most letters in a transaction.
const LETTERS: usize = 100;
/// Bytes of a transaction.
const BYTES: usize = 1 << 20;
/// How long an answer may take.
const ANSWER_WITHIN: Duration = Duration::from_secs(2);
/// Questions that are not answered yet.
const QUESTIONS: usize = 64;

/// The board.
#[derive(Debug)]
pub(crate) struct EtcdBoard {
    shared: Shared,
    inner: Mutex<Inner>,
    /// There is something to tell.
    tell: Notify,
    /// Something was heard.
    news: Notify,
    /// The term, while this control plane decides.
    leads: watch::Sender<Option<u64>>,
    /// Its lease in etcd.
    lease: watch::Sender<Option<i64>>,
    /// One at a time writes the table.
    kept: tokio::sync::Mutex<Kept>,
}

#[derive(Debug, Default)]
struct Inner {
    own: Own,
    grants: BTreeMap<WorkerId, watch::Sender<Option<Arc<Grant>>>>,
    lead: Option<Lead>,
    /// Who waits for an answer, by its number.
    waiting: BTreeMap<u64, oneshot::Sender<Vec<u8>>>,
    asked: u64,
}

/// What whoever decides has heard.
#[derive(Debug)]
struct Lead {
    term: u64,
    lines: Lines,
    news: BTreeMap<WorkerId, Standing>,
    questions: VecDeque<Asked>,
}

impl Inner {
    /// What was heard in this term, if that is the one in which this control plane decides: what a watch of an earlier one
    /// still brings is none of it.
    fn lead_in(&mut self, term: u64) -> Option<&mut Lead> {
        self.lead.as_mut().filter(|lead| lead.term == term)
    }
}

impl Lead {
    fn is_asked(&mut self, from: &str, questions: Vec<(u64, Vec<u8>)>) {
        for (number, question) in questions {
            if self.questions.len() < QUESTIONS {
                let from = from.to_owned();
                self.questions.push_back(Asked {
                    from,
                    number,
                    question,
                });
            }
        }
    }

    fn tell(&mut self, news: Vec<(WorkerId, Standing)>) {
        for (worker, mut standing) in news {
            // A stream that was not fetched yet may have displaced somebody, who is there no less when the next one comes.
            let before = self.news.get(&worker);
            let before = before.filter(|before| before.stream != standing.stream);
            standing.displaces |=
                before.is_some_and(|before| before.displaces || before.takes_over);
            self.news.insert(worker, standing);
        }
    }
}

impl EtcdBoard {
    pub(crate) fn new(shared: Shared) -> Self {
        Self {
            shared,
            inner: Mutex::default(),
            tell: Notify::new(),
            news: Notify::new(),
            leads: watch::Sender::new(None),
            lease: watch::Sender::new(None),
            kept: tokio::sync::Mutex::default(),
        }
    }

    fn key(&self, name: &str) -> Vec<u8> {
        self.shared.layout.key(&format!("leases/{name}"))
    }

    /// Who decides is still who did in this term.
    fn in_term(&self, term: u64) -> Compare {
        let term = i64::try_from(term).unwrap_or(i64::MAX);
        ops::made_at(self.shared.layout.leader(), term)
    }

    /// What was heard, if there is anything to do.
    fn heard(&self) -> Option<BTreeMap<WorkerId, Standing>> {
        let mut inner = self.inner.lock();
        let lead = inner.lead.as_mut()?;
        let any = !lead.news.is_empty() || !lead.questions.is_empty();
        any.then(|| std::mem::take(&mut lead.news))
    }

    /// Writes what is for others, if this control plane still decides. False if that is not known.
    async fn write(&self, term: u64, letters: Vec<(String, Vec<u8>)>) -> Result<bool, Fenced> {
        // With this lease goes who decides, and with it what it wrote.
        let lease = (*self.lease.borrow()).ok_or(Fenced)?;
        let letters = letters.into_iter();
        let puts = letters
            .map(|(peer, letter)| ops::put(self.key(&format!("lent/{peer}")), letter, lease));
        let txn = TxnRequest {
            compare: vec![self.in_term(term)],
            success: puts.collect(),
            failure: Vec::new(),
        };
        match self.shared.etcd.txn(txn, Budget::SHORT).await {
            Ok(answer) if answer.succeeded => Ok(true),
            Ok(_) => Err(Fenced),
            Err(error) => {
                tracing::debug!(%error, "what is lent was not written");
                Ok(false)
            }
        }
    }

    /// Why nobody answered.
    async fn unanswered(&self) -> String {
        let txn = TxnRequest {
            success: vec![ops::get(self.shared.layout.leader())],
            ..TxnRequest::default()
        };
        let found = match self.shared.etcd.txn(txn, Budget::SHORT).await {
            Ok(found) => found,
            Err(error) => return format!("etcd does not answer ({error}); try again when it does"),
        };
        let leader = ops::found(found.responses.first()).and_then(|kv| leader_name(&kv.value));
        match leader {
            Some(name) => {
                format!("control plane `{name}` decides on leases and did not answer; ask that one")
            }
            None => "no control plane decides on leases at the moment; try again".to_owned(),
        }
    }

    /// What is lent, per control plane.
    fn sort(
        &self,
        term: u64,
        grants: Vec<(WorkerId, Arc<Grant>)>,
    ) -> Result<BTreeMap<String, VecDeque<StoredLent>>, Fenced> {
        let inner = self.inner.lock();
        let lead = inner.lead.as_ref().filter(|lead| lead.term == term);
        let lead = lead.ok_or(Fenced)?;
        let mut sorted: BTreeMap<String, VecDeque<StoredLent>> = BTreeMap::new();
        for (worker, grant) in grants {
            // Its line is over: it gets nothing, and has to report on another one first.
            let Some((peer, line)) = lead.lines.line_of(&worker, grant.stream) else {
                continue;
            };
            let lent = Lent {
                worker,
                grant: Arc::new(Grant {
                    stream: line,
                    ..(*grant).clone()
                }),
            };
            let to = sorted.entry(peer.to_owned()).or_default();
            to.push_back(lent.stored());
        }
        Ok(sorted)
    }
}

/// The next letter of each, as many as one transaction takes.
fn batch(sorted: &mut BTreeMap<String, VecDeque<StoredLent>>) -> Vec<(String, Vec<u8>)> {
    let (mut batch, mut bytes) = (Vec::new(), 0);
    for (peer, waiting) in sorted.iter_mut() {
        if batch.len() >= LETTERS || bytes + LETTER_BYTES > BYTES {
            break;
        }
        let (mut lents, mut size) = (Vec::new(), 0);
        while let Some(next) = waiting.front() {
            size += next.encoded_len() + 8;
            if size > LETTER_BYTES && !lents.is_empty() {
                break;
            }
            lents.extend(waiting.pop_front());
        }
        let answers = Vec::new();
        let letter = StoredLents { lents, answers }.encode_to_vec();
        bytes += letter.len();
        batch.push((peer.clone(), letter));
    }
    sorted.retain(|_, waiting| !waiting.is_empty());
    batch
}

#[tonic::async_trait]
impl Board for EtcdBoard {
    fn report(&self, worker: &WorkerId, standing: Standing) {
        self.inner.lock().own.report(worker, standing);
        self.tell.notify_one();
    }

    async fn demands(&self) -> Vec<(WorkerId, Standing)> {
        loop {
            if let Some(news) = self.heard() {
                return news.into_iter().collect();
            }
            self.news.notified().await;
        }
    }

    async fn allot(&self, term: u64, grants: Vec<(WorkerId, Arc<Grant>)>) -> Result<(), Fenced> {
        let mut sorted = self.sort(term, grants)?;
        while !sorted.is_empty() {
            // If it is not known whether it was written, it counts as sent, and the next reports are answered.
            if !self.write(term, batch(&mut sorted)).await? {
                break;
            }
        }
        Ok(())
    }

    fn allotted(&self, worker: &WorkerId) -> watch::Receiver<Option<Arc<Grant>>> {
        let mut inner = self.inner.lock();
        // Of those who left, nobody waits for anything.
        inner.grants.retain(|_, to| to.receiver_count() > 0);
        let to = inner.grants.entry(worker.clone());
        to.or_insert_with(|| watch::channel(None).0).subscribe()
    }

    async fn begin(&self, term: u64) -> Result<Option<Table>, TableError> {
        let table = self.read_table().await?;
        self.inner.lock().lead = Some(Lead {
            term,
            lines: Lines::default(),
            news: BTreeMap::new(),
            questions: VecDeque::new(),
        });
        self.leads.send_replace(Some(term));
        Ok(table)
    }

    fn end(&self) {
        self.leads.send_replace(None);
        self.inner.lock().lead = None;
    }

    async fn keep(&self, term: u64, table: Table) -> Result<(), TableError> {
        self.write_table(term, &table).await
    }

    async fn ask(&self, question: Vec<u8>) -> Result<Vec<u8>, String> {
        let (answer, answered) = oneshot::channel();
        let number = {
            let mut inner = self.inner.lock();
            inner.asked += 1;
            let number = inner.asked;
            inner.waiting.retain(|_, waits| !waits.is_closed());
            if !inner.own.ask(number, question) {
                return Err("too much is asked of whoever decides on leases; try again".to_owned());
            }
            inner.waiting.insert(number, answer);
            number
        };
        self.tell.notify_one();
        match timeout(ANSWER_WITHIN, answered).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(_)) | Err(_) => {
                self.inner.lock().waiting.remove(&number);
                Err(self.unanswered().await)
            }
        }
    }

    fn questions(&self) -> Vec<Asked> {
        let mut inner = self.inner.lock();
        let lead = inner.lead.as_mut();
        let questions = lead.map(|lead| std::mem::take(&mut lead.questions));
        questions.unwrap_or_default().into()
    }

    async fn answer(
        &self,
        term: u64,
        to: &str,
        answers: Vec<(u64, Vec<u8>)>,
    ) -> Result<(), Fenced> {
        let answers = answers.into_iter();
        let answers = answers.map(|(number, content)| Numbered { number, content });
        let letter = StoredLents {
            lents: Vec::new(),
            answers: answers.collect(),
        };
        let letters = vec![(to.to_owned(), letter.encode_to_vec())];
        self.write(term, letters).await.map(drop)
    }
}

/// Names after a prefix.
fn names<'a>(prefix: &[u8], keys: impl Iterator<Item = &'a [u8]>) -> BTreeSet<String> {
    let names = keys.filter_map(|key| name(prefix, key));
    names.collect()
}

/// The name after a prefix.
fn name(prefix: &[u8], key: &[u8]) -> Option<String> {
    let rest = std::str::from_utf8(key.strip_prefix(prefix)?).ok()?;
    Some(rest.to_owned())
}

impl EtcdBoard {
    /// Somebody decides, as the key says.
    fn called(&self, call: Option<&[u8]>) {
        let Some(call) = call.and_then(Call::decode) else {
            return;
        };
        if self.inner.lock().own.call(call) {
            tracing::debug!(
                term = call.term,
                round = call.round,
                "leases are decided anew"
            );
            self.tell.notify_one();
        }
    }

    /// What is lent to workers of this control plane goes to their streams, answers go to who asked.
    fn hand_on(&self, batch: &[u8]) {
        let batch = StoredLents::decode(batch).unwrap_or_default();
        let mut inner = self.inner.lock();
        for lent in batch.lents.into_iter().filter_map(Lent::read) {
            let Some(grant) = inner.own.hand_on(&lent) else {
                continue;
            };
            if let Some(to) = inner.grants.get(&lent.worker) {
                to.send_replace(Some(Arc::new(grant)));
            }
        }
        for answer in batch.answers {
            if let Some(waits) = inner.waiting.remove(&answer.number) {
                drop(waits.send(answer.content));
            }
        }
    }
}

#[cfg(test)]
mod tests;
