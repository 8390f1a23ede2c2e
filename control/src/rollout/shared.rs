//! Rollouts of several control planes on one store. The one in charge conducts, and writes down how it stands (what is
//! stable, what is tried and on which workers), in a transaction that its term must still hold in. The others offer what
//! is written down, and nothing newer. Who takes over begins with what was stable: a ring that was under way is soaked
//! anew, and no worker gets anything older than it holds.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use forebay_proto::{Position, Revision, WorkerId, wire};
use prost::Message;
use tokio::{sync::watch, time::sleep};
use tokio_util::sync::CancellationToken;

use super::{Conductor, Line, Parts, Past, Staging, machine::Return, not_in};
use crate::{
    cluster::{Looks, Shared},
    etcd::{Budget, CallError, api::TxnRequest, ops},
    session::{Offer, Target},
};

/// How often what is written down is looked at without having been told.
const EVERY: Duration = Duration::from_secs(2);
/// Before it is read again by one who is to take over.
const AGAIN: Duration = Duration::from_millis(250);

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

/// Writes down how it stands, if who is in charge in this term still is.
pub(super) async fn write(
    shared: &Shared,
    term: u64,
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
    let term = i64::try_from(term).unwrap_or(i64::MAX);
    let txn = TxnRequest {
        compare: vec![ops::made_at(shared.layout.leader(), term)],
        success: vec![ops::put(key(shared), record.encode_to_vec(), 0)],
        failure: Vec::new(),
    };
    // The same again is the same: it may be sent twice.
    let answer = shared.etcd.txn(txn, Budget::SHORT).await;
    match answer.map_err(|error| error.to_string())?.succeeded {
        true => Ok(()),
        false => Err("another control plane is in charge".to_owned()),
    }
}

async fn read(shared: &Shared) -> Result<Option<Standing>, CallError> {
    let txn = TxnRequest {
        compare: Vec::new(),
        success: vec![ops::get(key(shared))],
        failure: Vec::new(),
    };
    let answer = shared.etcd.txn(txn, Budget::SHORT).await?;
    let found = ops::found(answer.responses.first());
    Ok(found.and_then(|kv| Standing::read(&kv.value)))
}

/// What was stable before all went at once is not any more.
pub(crate) async fn forget(shared: &Shared) {
    let txn = TxnRequest {
        compare: Vec::new(),
        success: vec![ops::delete(key(shared))],
        failure: Vec::new(),
    };
    if let Err(error) = shared.etcd.txn(txn, Budget::WRITE).await {
        tracing::warn!(%error, "the stable revision of earlier rollouts is still kept");
    }
}

/// What a replica offers before it knows whether it is in charge.
pub(super) async fn first_offer<P: Past>(
    shared: &Shared,
    parts: &Parts<P>,
    newest: &Arc<Target>,
) -> Offer {
    let standing = read(shared).await.ok().flatten();
    let offer = match &standing {
        Some(standing) => offer(&parts.past, standing, newest, None).await,
        None => None,
    };
    if let (Some(standing), Some(_)) = (standing, &offer) {
        parts.fleet.stage(standing.staging);
    }
    let offer = offer.unwrap_or_else(|| Offer::to_all(newest.clone()));
    offer.before(newest.revision())
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
    let (saved, returns) = match standing {
        Some(standing) => (Some(standing.stable), standing.staging.returns.clone()),
        None => (None, Vec::new()),
    };
    let conductor = Conductor::begin(line, term, saved, returns).await;
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
            if let Ok(Some(now)) = read(shared).await {
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
    let is = |target: &&Arc<Target>| target.published.position == *position;
    let known = before.into_iter().flat_map(Offer::targets);
    if let Some(known) = std::iter::once(newest).chain(known).find(is) {
        return Some(known.clone());
    }
    if position.epoch != newest.published.position.epoch || position.revision > newest.revision() {
        return None;
    }
    let published = past.at(position.revision).await.ok()?;
    // A number stands for one content.
    (published.position == *position).then(|| Target::alone(published))
}

#[cfg(test)]
mod tests {
    use forebay_proto::{Digest, Epoch};

    use super::*;

    #[test]
    fn what_is_written_down_is_read_back() {
        let position = |revision: u64| Position {
            epoch: Epoch::new("aa").unwrap(),
            revision: Revision::new(revision),
            digest: Digest::of(&revision.to_be_bytes()),
        };
        let record = Record {
            stable: Some((&position(3)).into()),
            candidate: Some((&position(5)).into()),
            members: vec!["w1".into(), "w2".into()],
            ring: 1,
            rings: 3,
            returning: Some("slow".into()),
            returns: vec![ReturnMessage {
                first: 2,
                by: 3,
                reason: "errors".into(),
            }],
            report_millis: 1_250,
        };
        let read = Standing::read(&record.encode_to_vec()).unwrap();
        assert_eq!(
            (&read.stable, read.candidate.as_ref()),
            (&position(3), Some(&position(5)))
        );
        assert!(read.staging.has(&WorkerId::new("w2").unwrap()));
        assert_eq!(read.staging.report_every, Duration::from_millis(1_250));
        assert_eq!(read.staging.returns[0].by, Revision::new(3));
        assert!(Standing::read(b"x").is_none());
        assert!(Standing::read(&Record::default().encode_to_vec()).is_none());
    }
}
