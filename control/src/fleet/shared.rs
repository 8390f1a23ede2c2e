//! Workers of other control planes on the same store, as those tell of them: encoded, taken over, and seen together with
//! one's own. It knows no etcd.
//!
//! A worker that moved from one to another is told of by both: the one it is connected to counts, and of two of those
//! the later. What was told by one that is gone is forgotten with it.

use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime},
};

use forebay_proto::{
    Health, InstanceId, Position, WorkerId, convert::timestamp_to_wire, health::ModelHealth, wire,
};
use prost::Message;

use super::{
    Applied, CannotDrain, Fleet, Inner, Introduction, Known, Refused, across::Comer, bounded,
};

/// Most refusals of one worker that others are told of.
const REFUSALS: usize = 4;
/// Most workers that are taken from one other control plane.
const MOST: usize = 10_000;

/// Another control plane's workers.
#[derive(Debug)]
pub(super) struct Other {
    name: String,
    /// In the parts in which it tells of them.
    parts: BTreeMap<u32, BTreeMap<WorkerId, Known>>,
}

/// Some workers of a control plane.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Part {
    #[prost(string, tag = "1")]
    replica: String,
    #[prost(message, repeated, tag = "2")]
    workers: Vec<WorkerMessage>,
}

#[derive(Clone, PartialEq, Message)]
struct WorkerMessage {
    #[prost(string, tag = "1")]
    id: String,
    #[prost(string, tag = "2")]
    instance: String,
    #[prost(string, tag = "3")]
    build: String,
    #[prost(string, tag = "4")]
    peer: String,
    #[prost(string, tag = "5")]
    gateway: String,
    #[prost(message, repeated, tag = "6")]
    quarantined: Vec<wire::Position>,
    #[prost(message, optional, tag = "7")]
    applied: Option<wire::Position>,
    #[prost(message, optional, tag = "8")]
    applied_time: Option<prost_types::Timestamp>,
    #[prost(uint32, tag = "9")]
    apply_millis: u32,
    #[prost(message, repeated, tag = "10")]
    applied_refusals: Vec<wire::Refusal>,
    #[prost(message, optional, tag = "11")]
    refused: Option<wire::Position>,
    #[prost(message, repeated, tag = "12")]
    refusals: Vec<wire::Refusal>,
    #[prost(uint32, tag = "13")]
    draining: u32,
    #[prost(uint64, tag = "14")]
    keys_version: u64,
    #[prost(bool, tag = "15")]
    ends: bool,
    #[prost(message, optional, tag = "16")]
    connected: Option<prost_types::Timestamp>,
    #[prost(message, optional, tag = "17")]
    gone: Option<prost_types::Timestamp>,
    #[prost(message, optional, tag = "18")]
    health: Option<wire::Health>,
    #[prost(message, repeated, tag = "19")]
    changed: Vec<wire::ModelHealth>,
    #[prost(message, optional, tag = "20")]
    since: Option<prost_types::Timestamp>,
    #[prost(string, tag = "21")]
    turns_away: String,
    #[prost(string, tag = "22")]
    control: String,
    #[prost(uint32, tag = "23")]
    moves: u32,
    #[prost(string, tag = "24")]
    moved_because: String,
    #[prost(bool, tag = "25")]
    succeeds: bool,
    /// 0 of a build that does not say it, or a worker that does not count.
    #[prost(uint32, tag = "26")]
    streams: u32,
    /// When the stream that it turns away came, by the word of the replica that has it; nothing of a build that means any.
    #[prost(message, optional, tag = "27")]
    turns_away_since: Option<prost_types::Timestamp>,
}

impl WorkerMessage {
    /// How requests go is told while a rollout needs it: it changes all the time.
    fn of(known: &Known, with_health: bool) -> Self {
        let who = &known.introduction;
        let few = |refusals: &[wire::Refusal]| refusals.iter().take(REFUSALS).cloned().collect();
        let applied = known.applied.as_ref();
        let refused = known.refused.as_ref();
        let health = with_health.then(|| (&known.health).into());
        let changed = known.changed.iter().filter(|_| with_health);
        let turned = known.turns_away.as_ref();
        Self {
            id: who.worker.to_string(),
            instance: who.instance.to_string(),
            build: who.build.clone(),
            peer: who.peer.clone(),
            gateway: who.gateway.clone(),
            quarantined: who.quarantined.iter().map(Into::into).collect(),
            applied: applied.map(|a| (&a.position).into()),
            applied_time: applied.map(|a| timestamp_to_wire(a.at)),
            apply_millis: applied.map_or(0, |a| a.millis),
            applied_refusals: applied.map_or_else(Vec::new, |a| few(&a.refusals)),
            refused: refused.map(|r| (&r.position).into()),
            refusals: refused.map_or_else(Vec::new, |r| few(&r.refusals)),
            draining: known.draining,
            keys_version: known.keys_version,
            ends: known.ends,
            connected: Some(timestamp_to_wire(known.connected)),
            gone: known.gone.map(timestamp_to_wire),
            health,
            changed: changed.map(Into::into).collect(),
            since: Some(timestamp_to_wire(known.since)),
            turns_away: turned.map_or_else(String::new, |comer| comer.instance.to_string()),
            turns_away_since: turned.and_then(|comer| comer.connected.map(timestamp_to_wire)),
            control: who.control.clone(),
            moves: who.moves.0,
            moved_because: who.moves.1.clone(),
            succeeds: known.succeeds,
            streams: who.streams,
        }
    }

    fn known(self, now: SystemTime) -> Option<Known> {
        let position = |wire: Option<wire::Position>| wire.map(Position::try_from).transpose().ok();
        let applied = position(self.applied)?;
        let refused = position(self.refused)?;
        let quarantined = self.quarantined.into_iter();
        let changed = self.changed.into_iter();
        let changed = changed.filter_map(|told| ModelHealth::try_from(told).ok());
        let gone = self.gone.map(time);
        let connected = self.connected.map_or(now, time);
        let turned = InstanceId::new(self.turns_away);
        Some(Known {
            introduction: Introduction {
                worker: WorkerId::new(self.id).ok()?,
                instance: InstanceId::new(self.instance).ok()?,
                build: self.build,
                peer: self.peer,
                gateway: self.gateway,
                applied: applied.clone(),
                refusals: Vec::new(),
                quarantined: quarantined.filter_map(|q| q.try_into().ok()).collect(),
                refused: None,
                control: self.control,
                moves: (self.moves, self.moved_because),
                proves: false,
                let_in: Duration::ZERO,
                takes_over: false,
                streams: self.streams,
            },
            session: None,
            drains: false,
            ends: self.ends,
            succeeds: self.succeeds,
            applied: applied.map(|position| Applied {
                position,
                at: self.applied_time.map_or(now, time),
                millis: self.apply_millis,
                refusals: bounded(self.applied_refusals),
            }),
            refused: refused.map(|position| Refused {
                position,
                refusals: bounded(self.refusals),
            }),
            draining: self.draining,
            keys_version: self.keys_version,
            health: self.health.map_or_else(Health::default, Health::from),
            changed: changed.collect::<Vec<_>>().into(),
            twin: None,
            across: None,
            turns_away: turned.ok().map(|instance| Comer {
                instance,
                connected: self.turns_away_since.map(time),
            }),
            connected,
            since: self.since.map_or(connected, time),
            seen: gone.unwrap_or(now),
            gone,
        })
    }
}

fn time(wire: prost_types::Timestamp) -> SystemTime {
    SystemTime::try_from(wire).unwrap_or(SystemTime::UNIX_EPOCH)
}

/// A part in which nobody is any more.
pub(crate) fn nobody(replica: &str) -> Vec<u8> {
    let replica = replica.to_owned();
    let workers = Vec::new();
    Part { replica, workers }.encode_to_vec()
}

impl Fleet {
    /// Its own workers for others, in so many parts; each worker is always in the same.
    pub(crate) fn export(&self, replica: &str, parts: u32) -> Vec<(u32, Vec<u8>)> {
        let with_health = self.staging().is_some_and(|staging| staging.is_under_way());
        let mut messages: BTreeMap<u32, Part> = BTreeMap::new();
        for (id, known) in &self.inner.lock().workers {
            let part = messages.entry(part_of(id, parts)).or_insert_with(|| Part {
                replica: replica.to_owned(),
                workers: Vec::new(),
            });
            part.workers.push(WorkerMessage::of(known, with_health));
        }
        let encoded = messages
            .into_iter()
            .map(|(n, part)| (n, part.encode_to_vec()));
        encoded.collect()
    }

    /// A part of another one's workers, as it tells of it now; nothing: it does not any more.
    pub(crate) fn import(&self, instance: &str, n: u32, part: Option<&[u8]>) {
        let now = SystemTime::now();
        let mut inner = self.inner.lock();
        let part = part.and_then(|bytes| Part::decode(bytes).ok());
        let Some(part) = part else {
            if let Some(other) = inner.others.get_mut(instance) {
                other.parts.remove(&n);
                if other.parts.is_empty() {
                    inner.others.remove(instance);
                }
            }
            drop(inner);
            self.changed.send_replace(());
            return;
        };
        let other = inner
            .others
            .entry(instance.to_owned())
            .or_insert_with(|| Other {
                name: String::new(),
                parts: BTreeMap::new(),
            });
        other.name = part.replica;
        let workers = part.workers.into_iter().take(MOST);
        let workers = workers.filter_map(|told| {
            let known = told.known(now)?;
            Some((known.introduction.worker.clone(), known))
        });
        other.parts.insert(n, workers.collect());
        inner.meet();
        drop(inner);
        self.changed.send_replace(());
    }
}

impl Inner {
    /// All workers, wherever they are connected, in order.
    pub(super) fn all(&self) -> BTreeMap<&WorkerId, &Known> {
        let mut all: BTreeMap<&WorkerId, &Known> = self.workers.iter().collect();
        let others = self
            .others
            .values()
            .flat_map(|other| other.parts.values().flatten());
        for (id, told) in others {
            all.entry(id)
                .and_modify(|known| {
                    if told.outranks(known) {
                        *known = told;
                    }
                })
                .or_insert(told);
        }
        all
    }

    /// One of them.
    pub(super) fn any(&self, id: &str) -> Option<&Known> {
        match self.others.is_empty() {
            true => self.workers.get(id),
            false => self.all().remove(&WorkerId::new(id).ok()?),
        }
    }

    /// Where else this worker is connected to, if it is: which control plane, and which process of the worker.
    pub(super) fn elsewhere(&self, id: &str) -> Option<CannotDrain> {
        self.others.iter().find_map(|(instance, other)| {
            let mut told = other.parts.values().filter_map(|part| part.get(id));
            let known = told.find(|known| known.gone.is_none())?;
            Some(CannotDrain::Elsewhere {
                replica: other.name.clone(),
                instance: instance.clone(),
                process: known.introduction.instance.clone(),
            })
        })
    }

    /// What a worker refused at another control plane, in this very process.
    pub(super) fn refused_elsewhere(
        &self,
        id: &WorkerId,
        instance: &InstanceId,
    ) -> Option<Refused> {
        let parts = self.others.values().flat_map(|other| other.parts.values());
        let told = parts.filter_map(|part| part.get(id));
        let mut same = told.filter(|known| known.introduction.instance == *instance);
        same.find_map(|known| known.refused.clone())
    }
}

/// The workers that are connected to others, each with the name of that one.
pub(super) fn connected(others: &Others) -> impl Iterator<Item = (&WorkerId, &str, &Known)> {
    let each = others.values().flat_map(|other| {
        let parts = other.parts.values().flatten();
        parts.map(|(id, known)| (id, other.name.as_str(), known))
    });
    each.filter(|(.., known)| known.gone.is_none())
}

/// The streams of this worker that others have.
pub(super) fn streams_of<'a>(
    others: &'a Others,
    id: &'a WorkerId,
) -> impl Iterator<Item = &'a Known> {
    let parts = others.values().flat_map(|other| other.parts.values());
    let told = parts.filter_map(|part| part.get(id));
    told.filter(|known| known.gone.is_none())
}

/// The same for the same id, on every machine.
fn part_of(id: &WorkerId, parts: u32) -> u32 {
    let hash = id.as_str().bytes().fold(0x811c_9dc5_u32, |hash, byte| {
        (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)
    });
    hash % parts.max(1)
}

/// Of all replicas that tell of workers, for those that are read.
pub(super) type Others = BTreeMap<String, Other>;

#[cfg(test)]
mod tests {
    use forebay_proto::{Digest, Epoch, Revision};
    use tokio_util::sync::CancellationToken;

    use super::*;

    fn position(revision: u64) -> Position {
        Position {
            epoch: Epoch::new("aa").unwrap(),
            revision: Revision::new(revision),
            digest: Digest::of(&revision.to_be_bytes()),
        }
    }

    fn join(fleet: &Fleet, id: &str) -> crate::fleet::Joined {
        let introduction = Introduction {
            build: "1".into(),
            peer: "p".into(),
            gateway: "g".into(),
            quarantined: vec![position(2)],
            ..Introduction::plain(id, "i", Some(position(3)))
        };
        fleet.joined(introduction, CancellationToken::new())
    }

    fn tell(from: &Fleet, name: &str, to: &Fleet) {
        for (n, part) in from.export(name, 4) {
            to.import(name, n, Some(&part));
        }
    }

    fn ids(fleet: &Fleet) -> Vec<String> {
        let (page, _) = fleet.page(None, 99, &position(3));
        page.into_iter()
            .map(|worker| format!("{}:{:?}", worker.id, worker.state()))
            .collect()
    }

    #[test]
    fn all_see_all_and_what_a_worker_is_comes_over_whole() {
        let (a, b) = (Fleet::default(), Fleet::default());
        join(&a, "w1");
        let two = join(&b, "w2");
        let refused = Refused {
            position: position(4),
            refusals: vec![wire::Refusal::default()],
        };
        b.refused(&WorkerId::new("w2").unwrap(), two.session, refused.clone());
        tell(&b, "b", &a);
        assert_eq!(ids(&a), ["w1:Applied", "w2:Applied"]);
        let seen = a.look();
        assert_eq!(seen.len(), 2);
        assert_eq!(seen[1].refused, Some(position(4)));
        let shown = a.worker("w2", &position(4)).unwrap();
        assert_eq!(shown.state(), wire::WorkerState::Refused);
        assert_eq!(
            (shown.build.as_str(), shown.gateway_address.as_str()),
            ("1", "g")
        );
        let elsewhere = CannotDrain::Elsewhere {
            replica: "b".to_owned(),
            instance: "b".to_owned(),
            process: InstanceId::new("i").unwrap(),
        };
        assert_eq!(a.drain("w2"), Err(elsewhere));
        assert_eq!(a.counts(&position(3)).applied, 2);
        // It comes over, and what it refused is not sent to it again.
        assert_eq!(join(&a, "w2").refused, Some(position(4)));
        // One that says nothing any more is forgotten with its workers.
        for n in 0..4 {
            b.import("a", n, None);
            a.import("b", n, None);
        }
        assert_eq!(ids(&a).len(), 2, "its own stay");
    }

    #[test]
    fn a_word_that_means_one_process_does_not_end_the_next_one() {
        let fleet = Fleet::default();
        let joined = join(&fleet, "w");
        fleet.drains(&WorkerId::new("w").unwrap(), joined.session);
        let gone = Err(CannotDrain::Gone);
        assert_eq!(fleet.drain_process("w", "the one before"), gone);
        assert!(!joined.drain.is_cancelled());
        assert_eq!(fleet.drain_process("w", "i"), Ok(()));
        assert!(joined.drain.is_cancelled());
    }

    #[test]
    fn who_moved_is_where_it_is_connected() {
        let (a, b) = (Fleet::default(), Fleet::default());
        let there = join(&a, "w");
        a.leave(&WorkerId::new("w").unwrap(), there.session);
        join(&b, "w");
        tell(&b, "b", &a);
        tell(&a, "a", &b);
        assert_eq!(ids(&a), ["w:Applied"]);
        assert_eq!(ids(&b), ["w:Applied"]);
        for n in 0..4 {
            a.import("b", n, None);
        }
        assert_eq!(ids(&a), ["w:Gone"]);
    }

    #[test]
    fn parts_of_nonsense_are_no_workers() {
        let fleet = Fleet::default();
        fleet.import("x", 0, Some(b"nonsense"));
        let part = Part {
            replica: "x".into(),
            workers: vec![WorkerMessage::default()],
        };
        fleet.import("x", 1, Some(&part.encode_to_vec()));
        assert_eq!(ids(&fleet).len(), 0);
    }
}
