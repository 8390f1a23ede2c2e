//! The tasks of the board: what is told, what is lent, and, while this control plane decides, what others tell.

use std::{collections::BTreeSet, future::pending, sync::Arc, time::Duration};

use tokio::{
    sync::watch,
    time::{Instant, sleep, sleep_until},
};
use tokio_util::sync::CancellationToken;

use super::{
    EtcdBoard,
    letters::{Call, Letter},
    lines::Heard,
    name, names,
};
use crate::etcd::{
    Budget, CallError,
    api::{KeyValue, RangeRequest, TxnRequest, WatchResponse, event::EventType},
    ops,
};

/// Between two letters, at the least. As etcd becomes slow, more.
const APART: Duration = Duration::from_millis(50);
const APART_AT_MOST: Duration = Duration::from_millis(500);
/// What was not told is told again after this.
const AGAIN: Duration = Duration::from_millis(500);
/// Before a watch is opened anew.
const PAUSE: Duration = Duration::from_millis(200);
/// How often it is looked whether a watch is on a member that answers.
const LOOK: Duration = Duration::from_millis(250);
/// Who did not hear a call is called again, at most this often.
const CALL_AGAIN: Duration = Duration::from_secs(1);

impl EtcdBoard {
    /// Keeps the board until told to stop.
    pub(crate) async fn run(
        self: Arc<Self>,
        mut lease: watch::Receiver<Option<i64>>,
        stopping: CancellationToken,
    ) {
        let follow = async {
            loop {
                let now = *lease.borrow_and_update();
                self.lease.send_replace(now);
                if lease.changed().await.is_err() {
                    pending::<()>().await;
                }
            }
        };
        tokio::select! {
            () = follow => {}
            () = self.tell_all() => {}
            () = self.hear_lent() => {}
            () = self.lead_all() => {}
            () = stopping.cancelled() => {}
        }
    }

    /// Tells of this control plane's workers.
    async fn tell_all(&self) {
        let mut lease = self.lease.subscribe();
        let mut under = None;
        loop {
            let now = *lease.borrow_and_update();
            if under != now {
                // What was told under the lease before went with it.
                under = now;
                self.inner.lock().own.again();
            }
            let began = Instant::now();
            let told = match under {
                Some(lease) => self.tell_under(lease).await,
                None => Ok(()),
            };
            let pause = match told {
                Ok(()) => (began.elapsed() * 2).clamp(APART, APART_AT_MOST),
                Err(error) => {
                    tracing::debug!(%error, "leases were not asked for");
                    AGAIN
                }
            };
            sleep(pause).await;
            if under.is_none() || self.inner.lock().own.is_quiet() {
                tokio::select! {
                    () = self.tell.notified() => {}
                    changed = lease.changed() => if changed.is_err() { return },
                }
            }
        }
    }

    async fn tell_under(&self, lease: i64) -> Result<(), CallError> {
        let instance = &self.shared.replica.instance;
        let key = self.key(&format!("said/{instance}"));
        loop {
            let (letter, more) = {
                let mut inner = self.inner.lock();
                let letter = inner.own.letter();
                (letter, inner.own.is_cut_short())
            };
            let Some(letter) = letter else {
                return Ok(());
            };
            let txn = TxnRequest {
                compare: Vec::new(),
                success: vec![ops::put(key.clone(), letter.encode(), lease)],
                failure: Vec::new(),
            };
            let told = self.shared.etcd.txn(txn, Budget::SHORT).await;
            let mut inner = self.inner.lock();
            match told {
                Ok(_) => inner.own.sent(&letter),
                Err(error) => {
                    inner.own.unsent(letter);
                    return Err(error);
                }
            }
            // What has come meanwhile goes with the next letter, at its time.
            if !more {
                return Ok(());
            }
        }
    }

    /// Hears who decides, and what is lent to this control plane's workers.
    async fn hear_lent(&self) {
        loop {
            if let Err(error) = self.hear_lent_once().await {
                tracing::debug!(%error, "what is lent is not heard");
            }
            sleep(jittered(PAUSE)).await;
        }
    }

    async fn hear_lent_once(&self) -> Result<(), CallError> {
        let etcd = &self.shared.etcd;
        let lent = self.key(&format!("lent/{}", self.shared.replica.instance));
        let call = self.key("call");
        let mut lents = etcd.watch(&lent).await?;
        let mut calls = etcd.watch(&call).await?;
        // What came before the watches did, or was missed.
        let txn = TxnRequest {
            compare: Vec::new(),
            success: vec![ops::get(call), ops::get(lent)],
            failure: Vec::new(),
        };
        let there = etcd.txn(txn, Budget::SHORT).await?;
        let found = |n: usize| ops::found(there.responses.get(n)).map(|kv| kv.value.as_slice());
        self.called(found(0));
        self.hand_on(found(1).unwrap_or_default());
        loop {
            tokio::select! {
                word = lents.next() => {
                    let Some(word) = word else { return Ok(()) };
                    for kv in puts(word) {
                        self.hand_on(&kv.value);
                    }
                }
                word = calls.next() => {
                    let Some(word) = word else { return Ok(()) };
                    for kv in puts(word) {
                        self.called(Some(&kv.value));
                    }
                }
                () = sleep(LOOK) => {
                    if !etcd.is_current(&lents) || !etcd.is_current(&calls) {
                        return Ok(());
                    }
                }
            }
        }
    }

    /// Hears what others tell, while this control plane decides.
    async fn lead_all(&self) {
        let mut leads = self.leads.subscribe();
        loop {
            let term = *leads.borrow_and_update();
            let leading = async {
                match term {
                    Some(term) => self.lead(term).await,
                    None => pending().await,
                }
            };
            tokio::select! {
                () = leading => {}
                changed = leads.changed() => if changed.is_err() { return },
            }
        }
    }

    async fn lead(&self, term: u64) {
        for round in 1.. {
            if let Err(error) = self.hear_said(Call { term, round }).await {
                tracing::debug!(%error, "who has which workers is not heard");
            }
            sleep(jittered(PAUSE)).await;
        }
    }

    /// Calls, and hears the answers and all that comes then, until something may have been missed.
    async fn hear_said(&self, call: Call) -> Result<(), CallError> {
        let prefix = self.key("said/");
        let mut said = self.shared.etcd.watch(&prefix).await?;
        let all = RangeRequest {
            range_end: ops::after_prefix(&prefix),
            key: prefix.clone(),
            keys_only: true,
            ..RangeRequest::default()
        };
        let there = self.shared.etcd.range(all, Budget::SHORT).await?;
        let there = names(&prefix, there.kvs.iter().map(|kv| kv.key.as_slice()));
        if !self.begins(call, &there) {
            return Ok(());
        }
        self.news.notify_one();
        self.call_all(call).await?;
        let (mut called, mut uncalled) = (Instant::now(), false);
        loop {
            let due = called + CALL_AGAIN;
            tokio::select! {
                word = said.next() => {
                    let Some(word) = word else { return Ok(()) };
                    let (missed, gone) = self.hear_letters(call, &prefix, word);
                    uncalled |= missed;
                    self.clear(call.term, gone).await?;
                }
                () = sleep_until(due), if uncalled => {
                    self.call_all(call).await?;
                    (called, uncalled) = (Instant::now(), false);
                }
                () = sleep(LOOK) => {
                    if !self.shared.etcd.is_current(&said) {
                        return Ok(());
                    }
                }
            }
        }
    }

    /// From now on answers to this call are heard, and these are there. False if its term is over here.
    pub(super) fn begins(&self, call: Call, there: &BTreeSet<String>) -> bool {
        let mut inner = self.inner.lock();
        let Some(lead) = inner.lead_in(call.term) else {
            return false;
        };
        lead.lines.call(call);
        let gone = lead.lines.stay(there);
        lead.tell(gone);
        true
    }

    async fn call_all(&self, call: Call) -> Result<(), CallError> {
        let txn = TxnRequest {
            compare: vec![self.in_term(call.term)],
            success: vec![ops::put(self.key("call"), call.encode(), 0)],
            failure: Vec::new(),
        };
        // In a term that is over nobody answers; that it is is heard elsewhere.
        self.shared.etcd.txn(txn, Budget::SHORT).await.map(drop)
    }

    /// What was lent to those that are no more is of no use.
    async fn clear(&self, term: u64, gone: Vec<String>) -> Result<(), CallError> {
        if gone.is_empty() {
            return Ok(());
        }
        let lent = gone.iter().map(|peer| self.key(&format!("lent/{peer}")));
        let txn = TxnRequest {
            compare: vec![self.in_term(term)],
            success: lent.map(ops::delete).collect(),
            failure: Vec::new(),
        };
        self.shared.etcd.txn(txn, Budget::SHORT).await.map(drop)
    }

    /// True if somebody has not heard the call yet; and those that are no more.
    pub(super) fn hear_letters(
        &self,
        call: Call,
        prefix: &[u8],
        word: WatchResponse,
    ) -> (bool, Vec<String>) {
        let (mut uncalled, mut left) = (false, Vec::new());
        let mut inner = self.inner.lock();
        let Some(lead) = inner.lead_in(call.term) else {
            return (false, left);
        };
        for event in word.events {
            let deleted = event.r#type() == EventType::Delete;
            let Some(kv) = event.kv else { continue };
            let Some(peer) = name(prefix, &kv.key) else {
                continue;
            };
            if deleted {
                let gone = lead.lines.gone(&peer);
                lead.tell(gone);
                left.push(peer);
                continue;
            }
            let Some(mut letter) = Letter::decode(&kv.value) else {
                continue;
            };
            let questions = std::mem::take(&mut letter.questions);
            match lead.lines.hear(&peer, letter) {
                Heard::News(news) => {
                    lead.tell(news);
                    lead.is_asked(&peer, questions);
                }
                Heard::Uncalled => uncalled = true,
            }
        }
        drop(inner);
        self.news.notify_one();
        (uncalled, left)
    }
}

fn puts(word: WatchResponse) -> impl Iterator<Item = KeyValue> {
    let puts = word.events.into_iter();
    let puts = puts.filter(|event| event.r#type() == EventType::Put);
    puts.filter_map(|event| event.kv)
}

fn jittered(time: Duration) -> Duration {
    time.mul_f64(0.8 + 0.4 * fastrand::f64())
}
