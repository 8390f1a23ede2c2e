//! Rollouts of several control planes on one store. The one in charge conducts, and writes down how it stands (what is
//! stable, what is tried and on which workers), in a transaction that its term must still hold in. The others offer what
//! is written down, and nothing newer. Who takes over begins with what was stable: a ring that was under way is soaked
//! anew, and no worker gets anything older than it holds.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use forebay_proto::{Position, Revision, WorkerId, wire};
use prost::Message;
use tokio::{
    sync::watch,
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;

use super::{Conductor, Line, Parts, Past, Staging, machine::Return, not_in, stands_for};
use crate::{
    cluster::{Looks, Shared},
    etcd::{
        Budget, CallError,
        api::{Compare, TxnRequest},
        ops,
    },
    session::{Offer, Target},
};

/// How often what is written down is looked at without having been told.
const EVERY: Duration = Duration::from_secs(2);
/// Before it is read again by one who is to take over.
const AGAIN: Duration = Duration::from_millis(250);
/// How long one that starts waits for revisions that others have already.
const BEHIND: Duration = Duration::from_secs(10);
/// How often it is tried to write when what is there is not what was known.
const TRIES: usize = 3;

#[derive(Clone, PartialEq, Message)]
struct Record {
    #[prost(message, optional, tag = "1")]
    stable: Option<wire::Position>,
    #[prost(message, optional, tag = "2")]
    candidate: Option<wire::Position>,
    #[prost(string, repeated, tag = "3")]
    members: Vec<String>,
    #[prost(uint64, tag = "4")]
    ring: u64,
    #[prost(uint64, tag = "5")]
    rings: u64,
    #[prost(string, optional, tag = "6")]
    returning: Option<String>,
    #[prost(message, repeated, tag = "7")]
    returns: Vec<ReturnMessage>,
    #[prost(uint64, tag = "8")]
    report_millis: u64,
}

#[derive(Clone, PartialEq, Message)]
struct ReturnMessage {
    #[prost(uint64, tag = "1")]
    first: u64,
    #[prost(uint64, tag = "2")]
    by: u64,
    #[prost(string, tag = "3")]
    reason: String,
}

/// How a rollout stands, as it is written down.
#[derive(Debug, Clone, PartialEq)]
struct Standing {
    stable: Position,
    candidate: Option<Position>,
    staging: Arc<Staging>,
}

impl Standing {
    fn read(bytes: &[u8]) -> Option<Self> {
        let record = Record::decode(bytes).ok()?;
        let stable = Position::try_from(record.stable?).ok()?;
        let candidate = record.candidate.map(Position::try_from).transpose().ok()?;
        let members: BTreeSet<_> = record
            .members
            .iter()
            .filter_map(|id| WorkerId::new(id).ok())
            .collect();
        let returns = record.returns.into_iter().map(|made| Return {
            first: Revision::new(made.first),
            by: Revision::new(made.by),
            reason: made.reason,
        });
        let number = |n: u64| usize::try_from(n).unwrap_or(usize::MAX);
        let staging = Staging {
            report_every: Duration::from_millis(record.report_millis.max(1_000)),
            stable: stable.revision,
            candidate: candidate.as_ref().map(|candidate| candidate.revision),
            members: Arc::new(members),
            ring: number(record.ring),
            rings: number(record.rings),
            returning: record.returning,
            returns: returns.collect(),
        };
        Some(Self {
            stable,
            candidate,
            staging: Arc::new(staging),
        })
    }
}

fn key(shared: &Shared) -> Vec<u8> {
    shared.layout.key("head/rollout")
}

/// Writes down how it stands, if who is in charge in this term still is, over what was written at this revision of
/// etcd's: what was sent before, and comes late, does not undo what was written since.
pub(super) async fn write(
    shared: &Shared,
    (term, over): (u64, &mut i64),
    (stable, candidate): (&Position, Option<&Position>),
    staging: &Staging,
) -> Result<(), String> {
    let returns = staging.returns.iter().map(|made| ReturnMessage {
        first: made.first.get(),
        by: made.by.get(),
        reason: made.reason.clone(),
    });
    let record = Record {
        stable: Some(stable.into()),
        candidate: candidate.map(Into::into),
        members: staging.members.iter().map(ToString::to_string).collect(),
        ring: staging.ring as u64,
        rings: staging.rings as u64,
        returning: staging.returning.clone(),
        returns: returns.collect(),
        report_millis: u64::try_from(staging.report_every.as_millis()).unwrap_or(u64::MAX),
    };
    put(shared, term, over, record.encode_to_vec()).await
}

async fn put(shared: &Shared, term: u64, over: &mut i64, record: Vec<u8>) -> Result<(), String> {
    for _ in 0..TRIES {
        let txn = put_over(shared, term, *over, record.clone());
        let answer = shared.etcd.txn(txn, Budget::SHORT).await;
        let answer = answer.map_err(|error| error.to_string())?;
        if answer.succeeded {
            *over = answer.header.map_or(0, |header| header.revision);
            return Ok(());
        }
        let leader = ops::found(answer.responses.first()).map(|kv| kv.create_revision);
        if leader != i64::try_from(term).ok() {
            return Err("another control plane is in charge".to_owned());
        }
        let there = ops::found(answer.responses.get(1));
        *over = there.map_or(0, |kv| kv.mod_revision);
        // It was done, and the answer was lost.
        if there.is_some_and(|kv| kv.value == record) {
            return Ok(());
        }
    }
    Err("it changes all the time".to_owned())
}

fn put_over(shared: &Shared, term: u64, over: i64, record: Vec<u8>) -> TxnRequest {
    let (key, leader) = (key(shared), shared.layout.leader());
    TxnRequest {
        compare: vec![
            in_term(shared, term),
            ops::unchanged_since(key.clone(), over),
        ],
        success: vec![ops::put(key.clone(), record, 0)],
        failure: vec![ops::get(leader), ops::get(key)],
    }
}

fn in_term(shared: &Shared, term: u64) -> Compare {
    let term = i64::try_from(term).unwrap_or(i64::MAX);
    ops::made_at(shared.layout.leader(), term)
}

/// How it stands, if that is written down, and the revision of etcd's at which it was.
async fn read(shared: &Shared) -> Result<(Option<Standing>, i64), CallError> {
    let txn = TxnRequest {
        compare: Vec::new(),
        success: vec![ops::get(key(shared))],
        failure: Vec::new(),
    };
    let answer = shared.etcd.txn(txn, Budget::SHORT).await?;
    let found = ops::found(answer.responses.first());
    let written = found.map_or(0, |kv| kv.mod_revision);
    Ok((found.and_then(|kv| Standing::read(&kv.value)), written))
}

/// Where all go at once, what was stable in earlier rollouts is not any more: who is in charge takes it away.
pub(crate) async fn forget(shared: Shared, stopping: CancellationToken) {
    let mut leadership = shared.leadership.clone();
    loop {
        let term = leadership.borrow_and_update().term();
        let forgotten = match term {
            Some(term) => forget_in(&shared, term).await,
            None => true,
        };
        tokio::select! {
            changed = leadership.changed() => if changed.is_err() { return },
            () = sleep(EVERY), if !forgotten => {}
            () = stopping.cancelled() => return,
        }
    }
}

/// False if it is not known to be gone.
async fn forget_in(shared: &Shared, term: u64) -> bool {
    let txn = TxnRequest {
        compare: vec![in_term(shared, term)],
        success: vec![ops::delete(key(shared))],
        failure: Vec::new(),
    };
    let gone = shared.etcd.txn(txn, Budget::WRITE).await;
    gone.inspect_err(|error| {
        tracing::warn!(%error, "the stable revision of earlier rollouts is still kept");
    })
    .is_ok()
}

/// What a replica offers before it knows whether it is in charge: nothing that is proven nowhere. While it cannot be
/// read how a rollout stands, nothing is offered at all.
pub(super) async fn first_offer<P: Past>(
    shared: &Shared,
    parts: &Parts<P>,
    published: &mut watch::Receiver<Offer>,
    stopping: &CancellationToken,
) -> Offer {
    let began = Instant::now();
    let mut told = false;
    loop {
        let newest = published.borrow_and_update().stable().clone();
        match read(shared).await {
            Ok((None, _)) => return Offer::to_all(newest),
            Ok((Some(standing), _)) => {
                let late = began.elapsed() >= BEHIND;
                if let Some(offer) = first_of(parts, &standing, &newest, late).await {
                    return offer.before(newest.revision());
                }
            }
            Err(error) if !told => {
                told = true;
                tracing::warn!(%error, "nothing is offered before it is known how the rollout stands");
            }
            Err(_) => {}
        }
        tokio::select! {
            () = sleep(AGAIN) => {}
            () = stopping.cancelled() => return Offer::to_all(newest),
        }
    }
}

/// The same, where it stands so; nothing while what is stable is newer than all that is here.
async fn first_of<P: Past>(
    parts: &Parts<P>,
    standing: &Standing,
    newest: &Arc<Target>,
    late: bool,
) -> Option<Offer> {
    if let Some(offer) = offer(&parts.past, standing, newest, None).await {
        parts.fleet.stage(standing.staging.clone());
        return Some(offer);
    }
    // The candidate is not here yet, or is to be had no more: it is offered by who is in charge.
    if let Some(stable) = target(&parts.past, &standing.stable, newest, None).await {
        return Some(Offer::to_all(stable));
    }
    if standing.stable.revision > newest.revision() && !late {
        return None;
    }
    tracing::warn!(
        revision = %standing.stable.revision,
        "stable revision not to be had, the newest counts as proven"
    );
    Some(Offer::to_all(newest.clone()))
}

/// Conducts while in charge, and offers what is written down while not.
pub(super) async fn run<P: Past>(shared: Shared, mut line: Line<P>, stopping: CancellationToken) {
    loop {
        let term = line.parts.leadership.borrow_and_update().term();
        let next = match term {
            Some(term) => lead(&shared, line, term, &stopping).await,
            None => follow(&shared, line, &stopping).await,
        };
        match next {
            Some(given_back) => line = given_back,
            None => return,
        }
    }
}

async fn lead<P: Past>(
    shared: &Shared,
    line: Line<P>,
    term: u64,
    stopping: &CancellationToken,
) -> Option<Line<P>> {
    let mut leadership = line.parts.leadership.clone();
    let standing = loop {
        let found = tokio::select! {
            found = read(shared) => found,
            () = not_in(term, &mut leadership) => return Some(line),
            () = stopping.cancelled() => return None,
        };
        match found {
            Ok(standing) => break standing,
            Err(_) => sleep(AGAIN).await,
        }
    };
    let (standing, written) = standing;
    let (saved, returns) = match standing {
        Some(standing) => (Some(standing.stable), standing.staging.returns.clone()),
        None => (None, Vec::new()),
    };
    let conductor = Conductor::begin(line, (term, written), saved, returns).await;
    conductor.run(stopping.clone()).await
}

async fn follow<P: Past>(
    shared: &Shared,
    mut line: Line<P>,
    stopping: &CancellationToken,
) -> Option<Line<P>> {
    let (told, standing) = watch::channel(None);
    let prefix = key(shared);
    let mut looks = Looks::new(shared.etcd.clone(), prefix, EVERY);
    let reading = async {
        loop {
            looks.next().await;
            // What cannot be read stays what it was.
            if let Ok((Some(now), _)) = read(shared).await {
                told.send_if_modified(|known: &mut Option<Standing>| {
                    let changed = known.as_ref() != Some(&now);
                    *known = Some(now);
                    changed
                });
            }
        }
    };
    let goes_on = tokio::select! {
        () = reading => false,
        () = stopping.cancelled() => false,
        goes_on = mirror(&mut line, standing) => goes_on,
    };
    goes_on.then_some(line)
}

/// Offers what is written down. True when this one is in charge, false at the end.
async fn mirror<P: Past>(
    line: &mut Line<P>,
    mut standing: watch::Receiver<Option<Standing>>,
) -> bool {
    let mut leadership = line.parts.leadership.clone();
    loop {
        let newest = line.published.borrow_and_update().stable().clone();
        let now = standing.borrow_and_update().clone();
        let before = line.offers.borrow().clone();
        let offered = match &now {
            Some(now) => offer(&line.parts.past, now, &newest, Some(&before)).await,
            None => None,
        };
        let told = now.filter(|_| offered.is_some());
        // What is written down and not here yet comes with what is published next.
        let next = offered.unwrap_or(before);
        line.offers.send_replace(next.before(newest.revision()));
        if let Some(told) = told {
            let (ring, stable) = told.staging.figures();
            line.parts.metrics.rings.stands(ring, stable);
            line.parts.fleet.stage(told.staging);
        }
        tokio::select! {
            changed = line.published.changed() => if changed.is_err() { return false; },
            changed = standing.changed() => if changed.is_err() { return false; },
            leads = leadership.wait_for(|now| now.term().is_some()) => return leads.is_ok(),
        }
    }
}

/// What is to be offered where it stands so; nothing while a part of it is not to be had.
async fn offer<P: Past>(
    past: &P,
    standing: &Standing,
    newest: &Arc<Target>,
    before: Option<&Offer>,
) -> Option<Offer> {
    let stable = target(past, &standing.stable, newest, before).await?;
    let Some(candidate) = &standing.candidate else {
        return Some(Offer::to_all(stable));
    };
    let candidate = target(past, candidate, newest, before).await?;
    let members = standing.staging.members.clone();
    Some(Offer::in_ring(stable, candidate, members))
}

async fn target<P: Past>(
    past: &P,
    position: &Position,
    newest: &Arc<Target>,
    before: Option<&Offer>,
) -> Option<Arc<Target>> {
    let is = |target: &&Arc<Target>| stands_for(position, &target.published.position);
    let known = before.into_iter().flat_map(Offer::targets);
    if let Some(known) = std::iter::once(newest).chain(known).find(is) {
        return Some(known.clone());
    }
    if position.revision > newest.revision() {
        return None;
    }
    let published = past.at(position.revision).await.ok()?;
    stands_for(position, &published.position).then(|| Target::alone(published))
}

#[cfg(test)]
mod tests;
