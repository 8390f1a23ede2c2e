//! Clients' keys on one stream: what the worker holds, what is on its way, what is to go next. It is state, not a queue,
//! as configurations are; but neither rings nor refusals nor pauses hold it up. `KeyPushes` is pure; what the session does with
//! it is below.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use forebay_proto::{KeysPosition, limits, wire};
use prost::Message as _;
use tonic::Status;
use wire::to_worker::Message as Say;

use super::{KEYS, Session};
use crate::{metrics::PushKind, registry::keys::PublishedKeys};

/// From a push to its answer: the worker writes to its disk in between.
const ANSWER_WITHIN: Duration = Duration::from_secs(30);

/// The keys of one stream. Times are since it opened.
#[derive(Debug, Default)]
pub(super) struct KeyPushes {
    held: Option<KeysPosition>,
    sent: Option<Sent>,
    /// The worker did not take this, sent as a whole: it is not sent again.
    shunned: Option<KeysPosition>,
    /// What the worker has is no beginning of ours: the whole is to go.
    whole: bool,
    told_ahead: bool,
}

#[derive(Debug)]
struct Sent {
    to: KeysPosition,
    whole: bool,
    at: Duration,
}

impl KeyPushes {
    /// The worker's first word.
    pub(super) fn hello(&mut self, held: Option<KeysPosition>) {
        self.held = held;
    }

    /// The worker's answer. True if it holds what was sent.
    pub(super) fn answered(&mut self, held: Option<KeysPosition>) -> bool {
        self.held = held;
        let Some(sent) = self.sent.take() else {
            return false;
        };
        let took = self.held.as_ref() == Some(&sent.to);
        match (took, sent.whole) {
            (true, _) => {}
            (false, true) => self.shunned = Some(sent.to),
            // Once more, the whole.
            (false, false) => self.whole = true,
        }
        took
    }

    /// When the answer is too late.
    pub(super) fn due(&self) -> Option<Duration> {
        self.sent.as_ref().map(|sent| sent.at + ANSWER_WITHIN)
    }

    /// What is to be sent now, in parts.
    pub(super) fn next(&mut self, now: Duration, keys: &Arc<PublishedKeys>) -> Vec<wire::KeysPush> {
        let to = &keys.position;
        let settled = [&self.held, &self.shunned];
        let settled = settled.iter().any(|known| known.as_ref() == Some(to));
        let nothing = self.held.is_none() && keys.is_nothing();
        let ahead = self.ahead_of(to).is_some();
        if self.sent.is_some() || settled || nothing || ahead {
            return Vec::new();
        }
        let whole = std::mem::take(&mut self.whole);
        let (from, parts) = keys.since(self.held.as_ref().filter(|_| !whole));
        self.sent = Some(Sent {
            to: to.clone(),
            whole: from == 0,
            at: now,
        });
        in_parts(keys, from, parts)
    }

    /// The version of the worker's keys, if it is a later one of the same store: the store is an old copy. What was revoked
    /// since must stay so.
    fn ahead_of(&self, to: &KeysPosition) -> Option<u64> {
        let held = self.held.as_ref()?;
        (held.epoch == to.epoch && held.version > to.version).then_some(held.version)
    }

    /// The same, once.
    fn newly_ahead_of(&mut self, to: &KeysPosition) -> Option<u64> {
        let ahead = self.ahead_of(to).filter(|_| !self.told_ahead);
        self.told_ahead |= ahead.is_some();
        ahead
    }
}

impl Session {
    /// Clients' keys, if the worker has not the newest and knows what that is.
    pub(super) fn push_keys(&mut self) {
        if self.joined.is_none() {
            return;
        }
        let keys = self.keys.borrow_and_update().clone();
        if self.protocol < KEYS {
            if !keys.is_nothing() && !std::mem::replace(&mut self.warned, true) {
                let worker = self.joined.as_ref().map(|(worker, _)| worker.to_string());
                tracing::warn!(
                    worker,
                    "the worker is of a version that knows no keys: it serves everybody; replace it"
                );
            }
            return;
        }
        if let Some(version) = self.key_pushes.newly_ahead_of(&keys.position) {
            let worker = self.joined.as_ref().map(|(worker, _)| worker.to_string());
            tracing::error!(
                worker,
                version,
                ours = keys.position.version,
                "the worker has keys of a later version than this control plane, and is told of no change: this store is \
                 an old copy. Bring the newer one back, or `forebay control import` an export into an empty directory \
                 and revoke again what was revoked since"
            );
        }
        let parts = self.key_pushes.next(self.opened.elapsed(), &keys);
        let bytes: usize = parts.iter().map(wire::KeysPush::encoded_len).sum();
        if !parts.is_empty() {
            self.metrics.pushed(PushKind::Keys, bytes);
        }
        for part in parts {
            self.outbox.say(Say::Keys(part));
        }
    }

    pub(super) fn hear_keys(&mut self, held: Option<wire::KeysPosition>) -> Result<(), Status> {
        let held = held.map(KeysPosition::try_from).transpose();
        let held = held.map_err(|violations| {
            Status::invalid_argument(violations.under("keys_held.held").to_string())
        })?;
        if let Some((worker, joined)) = &self.joined {
            let version = held.as_ref().map_or(0, |held| held.version);
            self.fleet.holds_keys(worker, joined.session, version);
            if !self.key_pushes.answered(held) {
                tracing::warn!(%worker, version, "worker did not take the keys that were pushed");
            }
            self.push_keys();
        }
        Ok(())
    }
}

/// Small ones: a connection keeps buffers of the size of its largest message.
fn in_parts(keys: &PublishedKeys, from_version: u64, all: Vec<Bytes>) -> Vec<wire::KeysPush> {
    let to = Some((&keys.position).into());
    let part = |keys| wire::KeysPush {
        from_version,
        keys,
        ..wire::KeysPush::default()
    };
    let (mut parts, mut bytes) = (vec![part(Vec::new())], 0);
    for key in all {
        bytes += key.len();
        if bytes > limits::CHUNK_BYTES {
            parts.push(part(Vec::new()));
            bytes = key.len();
        }
        if let Some(last) = parts.last_mut() {
            last.keys.push(key);
        }
    }
    for (n, part) in (0..).zip(&mut parts) {
        part.part = n;
        part.to.clone_from(&to);
    }
    if let Some(last) = parts.last_mut() {
        last.last = true;
        last.verify_keys.clone_from(&keys.verify);
        last.seal_keys.clone_from(&keys.seal);
    }
    parts
}

#[cfg(test)]
mod tests {
    use forebay_proto::Epoch;

    use super::*;
    use crate::{
        registry::keys::{KeyBook, KeyCommand, KeyWrite},
        secrets::Vault,
        store::{history::Origin, keys::StoredKeys},
    };

    fn published(keys: usize) -> Arc<PublishedKeys> {
        let mut book = KeyBook::new(Epoch::new("ab").unwrap(), StoredKeys::default());
        for n in 0..keys {
            let mut bytes = [0; 9];
            bytes[..8].copy_from_slice(&(n as u64).to_be_bytes());
            let write = KeyWrite {
                command: KeyCommand::Create {
                    id: forebay_proto::KeyId::of_random(&bytes),
                    hash: [1; 32],
                    pepper: 1,
                    key: Box::default(),
                },
                validate_only: false,
                origin: Origin::default(),
            };
            let planned = book
                .plan(&write, std::time::SystemTime::UNIX_EPOCH)
                .unwrap();
            book.apply(&planned.change.unwrap());
        }
        Arc::new(PublishedKeys::new(Arc::new(book), &Vault::throwaway(), false).unwrap())
    }

    #[test]
    fn one_is_under_way_and_then_the_newest_goes() {
        let mut pushes = KeyPushes::default();
        pushes.hello(None);
        let nothing = published(0);
        assert!(pushes.next(Duration::ZERO, &nothing).is_empty());
        let one = published(1);
        assert_eq!(pushes.next(Duration::ZERO, &one).len(), 1);
        let three = published(3);
        assert!(pushes.next(Duration::ZERO, &three).is_empty());
        assert_eq!(pushes.due(), Some(ANSWER_WITHIN));
        assert!(pushes.answered(Some(one.position.clone())));
        let next = pushes.next(Duration::ZERO, &three);
        assert_eq!((next[0].from_version, next[0].keys.len()), (1, 2));
        assert!(pushes.answered(Some(three.position.clone())));
        assert!(pushes.next(Duration::ZERO, &three).is_empty());
    }

    #[test]
    fn what_is_not_taken_goes_as_a_whole_once() {
        let (one, three) = (published(1), published(3));
        let mut pushes = KeyPushes::default();
        pushes.hello(Some(one.position.clone()));
        assert_eq!(pushes.next(Duration::ZERO, &three)[0].from_version, 1);
        assert!(!pushes.answered(Some(one.position.clone())));
        let whole = pushes.next(Duration::ZERO, &three);
        assert_eq!((whole[0].from_version, whole[0].keys.len()), (0, 3));
        assert!(!pushes.answered(Some(one.position.clone())));
        assert!(pushes.next(Duration::ZERO, &three).is_empty());
        assert_eq!(pushes.next(Duration::ZERO, &published(4)).len(), 1);
    }

    #[test]
    fn a_worker_that_is_ahead_is_left_alone() {
        let mut pushes = KeyPushes::default();
        pushes.hello(Some(published(3).position.clone()));
        let old = published(1);
        assert!(pushes.next(Duration::ZERO, &old).is_empty());
        assert_eq!(pushes.newly_ahead_of(&old.position), Some(3));
        assert_eq!(pushes.newly_ahead_of(&old.position), None, "said once");
    }

    #[test]
    fn no_whole_goes_to_one_that_turns_out_to_be_ahead() {
        let mut pushes = KeyPushes::default();
        pushes.hello(Some(published(1).position.clone()));
        assert_eq!(pushes.next(Duration::ZERO, &published(2)).len(), 1);
        assert!(!pushes.answered(Some(published(3).position.clone())));
        assert!(pushes.next(Duration::ZERO, &published(2)).is_empty());
    }

    #[test]
    fn one_that_lost_its_keys_is_told_that_there_are_none() {
        let mut pushes = KeyPushes::default();
        pushes.hello(Some(KeysPosition {
            epoch: Epoch::new("0").unwrap(),
            version: 0,
            digest: forebay_proto::Digest::of(b""),
        }));
        let nothing = published(0);
        assert_eq!(pushes.next(Duration::ZERO, &nothing).len(), 1);
        assert!(pushes.answered(Some(nothing.position.clone())));
        assert!(pushes.next(Duration::ZERO, &nothing).is_empty());
    }

    #[test]
    fn many_go_in_small_parts() {
        let many = published(2_000);
        let mut pushes = KeyPushes::default();
        let parts = pushes.next(Duration::ZERO, &many);
        assert!(parts.len() > 10);
        assert_eq!(
            parts.iter().map(|part| part.keys.len()).sum::<usize>(),
            2_000
        );
        for (n, part) in parts.iter().enumerate() {
            assert_eq!((part.part as usize, part.last), (n, n + 1 == parts.len()));
            assert_eq!(part.verify_keys.len(), usize::from(part.last));
            assert!(prost::Message::encoded_len(part) < 2 * limits::CHUNK_BYTES);
        }
    }
}
