//! What sessions send: the newest configuration, and for workers that hold one of those before it, what changed
//! since. Made once, shared by all sessions.
//!
//! One task follows the registry and publishes a [`Target`] for each configuration that it sees; those that come
//! faster are skipped. Of older configurations only the ids of what changed are kept, step by step: the newest has
//! the content. So the trail costs at most [`IDS`] ids, about 1 MB with ids of 30 characters, whatever the size of
//! the configurations; a worker that is further behind gets the whole. The encoded deltas of a target are kept as
//! long as it is, up to the size of one configuration.

use std::{
    collections::{BTreeSet, VecDeque},
    sync::Arc,
};

use bytes::Bytes;
use forebay_proto::{Parts, Position, Revision, limits};
use parking_lot::Mutex;
use prost::Message as _;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{offer::Offer, usage::Alarms};
use crate::{metrics::Metrics, registry::Published};

/// Most steps back that a delta can bridge.
const STEPS: usize = 512;
/// Most ids in all steps together.
const IDS: usize = 2 * limits::MODELS;
/// Most deltas kept of one target: workers hold few different ones.
const DELTAS: usize = 64;

/// From one configuration to the next.
#[derive(Debug)]
struct Step {
    before: Position,
    changed: Vec<String>,
}

/// What is to be sent, and what it takes to send less.
#[derive(Debug)]
pub(crate) struct Target {
    pub(crate) published: Arc<Published>,
    /// Nothing if the configuration cannot be taken apart.
    parts: Option<Parts>,
    /// The steps that lead here, the oldest first.
    trail: Vec<Arc<Step>>,
    deltas: Mutex<Vec<(Position, Option<Bytes>)>>,
}

impl Target {
    /// One that nothing is known to lead to.
    pub(crate) fn alone(published: Arc<Published>) -> Arc<Self> {
        Feed::new(published).newest
    }

    /// Which revision it is.
    pub(crate) fn revision(&self) -> Revision {
        self.published.position.revision
    }

    /// An encoded `Change` that brings a worker from there to here, if that is known and less than the whole. Each
    /// is made once and shared; beyond the room for them the whole is sent, which is shared as well.
    pub(super) fn delta(&self, from: &Position) -> Option<Bytes> {
        if !self.trail.iter().any(|step| step.before == *from) {
            return None;
        }
        let mut deltas = self.deltas.lock();
        if let Some((_, known)) = deltas.iter().find(|(known, _)| known == from) {
            return known.clone();
        }
        if deltas.len() >= DELTAS {
            return None;
        }
        let kept = deltas.iter().flat_map(|(_, delta)| delta).map(Bytes::len);
        let room = self.published.config.len().saturating_sub(kept.sum());
        let delta = self.make(from).filter(|delta| delta.len() <= room);
        deltas.push((from.clone(), delta.clone()));
        delta
    }

    fn make(&self, from: &Position) -> Option<Bytes> {
        let first = self.trail.iter().position(|step| step.before == *from)?;
        let steps = self.trail.get(first..)?;
        let ids: BTreeSet<&str> = steps
            .iter()
            .flat_map(|step| &step.changed)
            .map(String::as_str)
            .collect();
        let change = self.parts.as_ref()?.change(ids);
        (change.encoded_len() < self.published.config.len()).then(|| change.encode_to_vec().into())
    }
}

/// Makes targets of what is published.
#[derive(Debug)]
struct Feed {
    newest: Arc<Target>,
    trail: VecDeque<Arc<Step>>,
    ids: usize,
}

impl Feed {
    fn new(published: Arc<Published>) -> Self {
        let parts = split(&published);
        let newest = Arc::new(Target {
            published,
            parts,
            trail: Vec::new(),
            deltas: Mutex::default(),
        });
        let (trail, ids) = (VecDeque::new(), 0);
        Self { newest, trail, ids }
    }

    fn next(&mut self, published: Arc<Published>) -> Arc<Target> {
        let parts = split(&published);
        let old = &self.newest;
        let before = old.published.position.clone();
        let one_store = before.epoch == published.position.epoch;
        match old.parts.as_ref().zip(parts.as_ref()) {
            Some((older, newer)) if one_store => {
                let changed = older.differences(newer);
                self.extend(Step { before, changed });
            }
            _ => (self.trail, self.ids) = (VecDeque::new(), 0),
        }
        self.newest = Arc::new(Target {
            published,
            parts,
            trail: self.trail.iter().cloned().collect(),
            deltas: Mutex::default(),
        });
        self.newest.clone()
    }

    fn extend(&mut self, step: Step) {
        self.ids += step.changed.len();
        self.trail.push_back(Arc::new(step));
        while self.trail.len() > STEPS || self.ids > IDS {
            let Some(oldest) = self.trail.pop_front() else {
                break;
            };
            self.ids = self.ids.saturating_sub(oldest.changed.len());
        }
    }
}

fn split(published: &Published) -> Option<Parts> {
    let parts = Parts::split(&published.config);
    let position = &published.position;
    parts
        .inspect_err(|error| tracing::error!(%position, %error, "no deltas from this revision"))
        .ok()
}

/// What [`follow`] will publish, to all workers alike; the first of it already.
pub(crate) fn targets(
    source: &watch::Receiver<Arc<Published>>,
) -> (watch::Sender<Offer>, watch::Receiver<Offer>) {
    let first = source.borrow().clone();
    watch::channel(Offer::to_all(Target::alone(first)))
}

/// Publishes targets until there is nothing more to publish, or until told to stop. Then sessions learn that the
/// control plane stops.
pub(crate) async fn follow(
    mut source: watch::Receiver<Arc<Published>>,
    targets: watch::Sender<Offer>,
    metrics: Arc<Metrics>,
    stopping: CancellationToken,
) {
    let (newest, trail, ids) = (targets.borrow().stable().clone(), VecDeque::new(), 0);
    let mut feed = Feed { newest, trail, ids };
    let mut alarms = Alarms::default();
    loop {
        let published = source.borrow_and_update().clone();
        alarms.look(&published, &metrics);
        if published.position != feed.newest.published.position {
            targets.send_replace(Offer::to_all(feed.next(published)));
        }
        let changed = tokio::select! {
            changed = source.changed() => changed.is_ok(),
            () = stopping.cancelled() => false,
        };
        if !changed {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use forebay_proto::{Digest, Epoch, wire};

    use super::*;
    use crate::{
        registry::State,
        store::{Store as _, memory::MemoryStore},
    };

    /// A configuration in which these models have this content.
    fn published(revision: u64, models: &[(usize, u64)]) -> Arc<Published> {
        let mut models = models.to_vec();
        models.sort_unstable();
        let models = models.iter().map(|(id, content)| wire::Model {
            id: format!("m{id:05}"),
            revision: *content,
            aliases: vec!["some-alias-that-takes-room".to_owned()],
            ..wire::Model::default()
        });
        let config = wire::Config {
            budget: 1,
            models: models.collect(),
        };
        let config = Bytes::from(config.encode_to_vec());
        let epoch = Epoch::new("aa").unwrap();
        let (state, traceparent) = (empty_state(), String::new());
        Arc::new(Published {
            position: Position {
                epoch,
                revision: Revision::new(revision),
                digest: Digest::of(&config),
            },
            config,
            traceparent,
            state,
        })
    }

    fn empty_state() -> Arc<State> {
        Arc::new(State::new(MemoryStore::fresh().load().unwrap()))
    }

    fn models(n: usize) -> Vec<(usize, u64)> {
        (0..n).map(|id| (id, 1)).collect()
    }

    fn splice(from: &Published, change: &Bytes) -> Bytes {
        let change = wire::Change::decode(&change[..]).unwrap();
        let parts = Parts::split(&from.config).unwrap();
        parts.changed(change).unwrap().join()
    }

    #[test]
    fn a_delta_bridges_steps_and_is_made_once() {
        let first = published(1, &models(100));
        let mut feed = Feed::new(first.clone());
        let mut content = models(100);
        content[3].1 = 7;
        feed.next(published(2, &content));
        content.remove(50);
        content.push((500, 1));
        let target = feed.next(published(3, &content));
        let delta = target.delta(&first.position).unwrap();
        assert_eq!(splice(&first, &delta), target.published.config);
        assert!(delta.len() < 200, "{}", delta.len());
        let again = target.delta(&first.position).unwrap();
        assert_eq!(again.as_ptr(), delta.as_ptr(), "shared, not made again");
    }

    #[test]
    fn what_has_no_room_is_no_delta_and_strangers_take_none() {
        let first = published(1, &models(100));
        let mut feed = Feed::new(first.clone());
        let mut befores = vec![first];
        for revision in 2..DELTAS as u64 + 4 {
            let mut content = models(100);
            content[0].1 = revision;
            befores.push(published(revision, &content));
            feed.next(befores[befores.len() - 1].clone());
        }
        let target = feed.newest.clone();
        for strange in 0..DELTAS + 1 {
            let stranger = published(1, &models(strange + 200));
            assert_eq!(target.delta(&stranger.position), None);
        }
        let known = befores[..befores.len() - 1].iter();
        let given = known.filter(|before| {
            let delta = target.delta(&before.position);
            let again = target.delta(&before.position);
            let same = |a: &Bytes, b: &Bytes| a.as_ptr() == b.as_ptr();
            assert!(delta.iter().zip(&again).all(|(a, b)| same(a, b)), "shared");
            delta.is_some()
        });
        assert_eq!(given.count(), DELTAS, "so many are kept, and no more");
    }

    #[test]
    fn what_is_not_known_or_not_less_is_no_delta() {
        let first = published(1, &models(10));
        let mut feed = Feed::new(first.clone());
        let other: Vec<_> = (0..10).map(|id| (id, 2)).collect();
        let target = feed.next(published(2, &other));
        assert_eq!(target.delta(&first.position), None, "all is different");
        let stranger = published(1, &models(9));
        assert_eq!(target.delta(&stranger.position), None, "never published");
        assert_eq!(target.delta(&target.published.position), None);
    }

    #[test]
    fn the_trail_is_bounded_in_steps_and_in_ids() {
        let first = published(1, &models(20));
        let mut feed = Feed::new(first.clone());
        for revision in 2..STEPS as u64 + 2 {
            let mut content = models(20);
            content[0].1 = revision;
            feed.next(published(revision, &content));
        }
        assert!(feed.newest.delta(&first.position).is_some());
        let target = feed.next(published(9_999, &models(20)));
        assert_eq!(target.delta(&first.position), None, "a step too many");
        assert_eq!(feed.trail.len(), STEPS);

        let mut feed = Feed::new(first);
        for revision in 2..8 {
            let all: Vec<_> = (0..limits::MODELS).map(|id| (id, revision)).collect();
            feed.next(published(revision, &all));
            assert!(feed.ids <= IDS);
        }
        assert!(!feed.trail.is_empty());
    }
}
