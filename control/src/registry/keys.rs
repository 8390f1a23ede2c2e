//! Clients' keys: the pure transition that plans a change of them, and the set of them as workers get it. No IO, no clock.
//!
//! They are beside the configuration, not in it: a version of their own, which only grows, no history to go back to, no
//! rings. A key that is revoked stays as one, so that what changed since any version can be told; when too many have piled
//! up the oldest go, and who is behind that gets the whole.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use forebay_proto::{Digest, Epoch, KeyId, KeySpec, KeysPosition, Violations, limits, wire};
use prost::Message as _;

use super::{WriteError, mask};
use crate::{
    secrets::Vault,
    store::{
        history::Origin,
        keys::{KeyChange, KeyRecord, Revoked, StoredKeys},
    },
};

/// A change that somebody asks for.
#[derive(Debug, Clone)]
pub(crate) enum KeyCommand {
    Create {
        id: KeyId,
        hash: [u8; 32],
        pepper: u32,
        key: Box<wire::Key>,
    },
    Update {
        key: Box<wire::Key>,
        mask: Option<Vec<String>>,
    },
    Revoke {
        id: String,
        etag: String,
    },
}

impl KeyCommand {
    /// The method's name, for the log.
    pub(crate) fn method(&self) -> &'static str {
        match self {
            Self::Create { .. } => "CreateKey",
            Self::Update { .. } => "UpdateKey",
            Self::Revoke { .. } => "RevokeKey",
        }
    }
}

/// A command and how it is to be carried out.
#[derive(Debug, Clone)]
pub(crate) struct KeyWrite {
    pub(crate) command: KeyCommand,
    pub(crate) validate_only: bool,
    pub(crate) origin: Origin,
}

/// What a change comes to.
#[derive(Debug)]
pub(crate) struct PlannedKey {
    /// Nothing where nothing differs.
    pub(crate) change: Option<KeyChange>,
    /// The key afterwards.
    pub(crate) record: Arc<KeyRecord>,
}

/// All keys, at one version.
#[derive(Debug, Clone)]
pub(crate) struct KeyBook {
    epoch: Epoch,
    version: u64,
    floor: u64,
    records: BTreeMap<KeyId, Arc<KeyRecord>>,
}

impl KeyBook {
    pub(crate) fn new(epoch: Epoch, stored: StoredKeys) -> Self {
        let records = stored.records.into_iter();
        Self {
            epoch,
            version: stored.version,
            floor: stored.floor,
            records: records.map(|r| (r.id, Arc::new(r))).collect(),
        }
    }

    /// What a store that holds this would give back.
    pub(crate) fn stored(&self) -> StoredKeys {
        StoredKeys {
            version: self.version,
            floor: self.floor,
            records: self.records.values().map(|r| (**r).clone()).collect(),
        }
    }

    pub(crate) fn version(&self) -> u64 {
        self.version
    }

    pub(crate) fn epoch(&self) -> &Epoch {
        &self.epoch
    }

    pub(crate) fn get(&self, id: &str) -> Option<&Arc<KeyRecord>> {
        KeyId::new(id).ok().and_then(|id| self.records.get(&id))
    }

    /// Up to `most` keys after this id, in order, and whether there are more.
    pub(crate) fn page(
        &self,
        after: Option<&str>,
        most: usize,
        revoked: bool,
    ) -> (Vec<&Arc<KeyRecord>>, bool) {
        let later = |record: &&Arc<KeyRecord>| {
            after.is_none_or(|after| record.id.as_str() > after)
                && (revoked || record.revoked.is_none())
        };
        let mut rest = self.records.values().filter(later);
        let page = rest.by_ref().take(most).collect();
        (page, rest.next().is_some())
    }

    /// A key as it is told of.
    pub(crate) fn show(&self, record: &KeyRecord, now: SystemTime) -> wire::Key {
        let state = match (&record.revoked, record.spec.is_over(now)) {
            (Some(_), _) => wire::KeyState::Revoked,
            (None, true) => wire::KeyState::Expired,
            (None, false) => wire::KeyState::Active,
        };
        wire::Key {
            state: state.into(),
            etag: self.etag(record),
            ..record.to_wire()
        }
    }

    fn etag(&self, record: &KeyRecord) -> String {
        let epoch: String = self.epoch.as_str().chars().take(8).collect();
        format!("\"{epoch}-k{}\"", record.version)
    }

    /// Checks a change and says what it comes to.
    pub(crate) fn plan(&self, write: &KeyWrite, now: SystemTime) -> Result<PlannedKey, WriteError> {
        let record = match &write.command {
            KeyCommand::Create {
                id,
                hash,
                pepper,
                key,
            } => {
                let spec = read(key, now)?;
                self.check_room(*id)?;
                KeyRecord {
                    id: *id,
                    hash: *hash,
                    pepper: *pepper,
                    spec,
                    version: 0,
                    created: now,
                    creator: write.origin.clone(),
                    updated: now,
                    revoked: None,
                }
            }
            KeyCommand::Update { key, mask } => {
                let old = self.known("key.id", &key.id, &key.etag)?;
                if old.revoked.is_some() {
                    return Err(WriteError::KeyRevoked(old.id));
                }
                let merged = mask::merge_key(wire::Key::from(&old.spec), key, mask.as_deref());
                let merged = merged.map_err(WriteError::Invalid)?;
                // One that is over already may be changed in all else.
                let spec = match KeySpec::try_from(&merged) {
                    Ok(spec) if spec.expires == old.spec.expires => spec,
                    _ => read(&merged, now)?,
                };
                if spec == old.spec {
                    return Ok(unchanged(old));
                }
                KeyRecord {
                    spec,
                    updated: now,
                    ..(**old).clone()
                }
            }
            KeyCommand::Revoke { id, etag } => {
                let old = self.known("id", id, etag)?;
                if old.revoked.is_some() {
                    return Ok(unchanged(old));
                }
                KeyRecord {
                    revoked: Some(Revoked {
                        time: now,
                        by: write.origin.clone(),
                    }),
                    updated: now,
                    ..(**old).clone()
                }
            }
        };
        Ok(self.change_to(record))
    }

    fn change_to(&self, mut record: KeyRecord) -> PlannedKey {
        let version = self.version.saturating_add(1);
        record.version = version;
        let ended = record.revoked.is_some();
        let record = Arc::new(record);
        let (forget, floor) = match ended {
            true => self.to_forget(),
            false => (Vec::new(), self.floor),
        };
        PlannedKey {
            change: Some(KeyChange {
                version,
                floor,
                put: record.clone(),
                forget,
            }),
            record,
        }
    }

    /// The oldest of the revoked, if there is one too many with the one to come; and what is known since then.
    fn to_forget(&self) -> (Vec<KeyId>, u64) {
        let revoked = self.records.values().filter(|r| r.revoked.is_some());
        if revoked.clone().count() < limits::REVOKED_KEYS {
            return (Vec::new(), self.floor);
        }
        let oldest = revoked.min_by_key(|record| record.version);
        let floor = oldest.map_or(self.floor, |oldest| self.floor.max(oldest.version));
        (oldest.map(|oldest| oldest.id).into_iter().collect(), floor)
    }

    fn check_room(&self, id: KeyId) -> Result<(), WriteError> {
        let live = self
            .records
            .values()
            .filter(|r| r.revoked.is_none())
            .count();
        if live >= limits::KEYS {
            return Err(WriteError::LimitReached(format!(
                "there are {live} keys, at most {} are allowed; revoke some that are not used",
                limits::KEYS
            )));
        }
        match self.records.contains_key(&id) {
            true => Err(WriteError::Busy),
            false => Ok(()),
        }
    }

    fn known(&self, field: &str, id: &str, etag: &str) -> Result<&Arc<KeyRecord>, WriteError> {
        if id.is_empty() {
            let mut violations = Violations::new();
            violations.add(field, "required");
            return Err(WriteError::Invalid(violations));
        }
        let record = self.get(id).ok_or_else(|| {
            // Somebody may give the whole key; its secret is not repeated.
            let shown = id.strip_prefix("fbk_").unwrap_or(id);
            WriteError::KeyNotFound(shown.chars().filter(|c| !c.is_control()).take(12).collect())
        })?;
        let current = self.etag(record);
        match etag.is_empty() || etag == current {
            true => Ok(record),
            false => Err(WriteError::EtagMismatch {
                given: etag.chars().take(64).collect(),
                current,
            }),
        }
    }

    /// Makes a planned change.
    pub(crate) fn apply(&mut self, change: &KeyChange) {
        (self.version, self.floor) = (change.version, change.floor);
        for id in &change.forget {
            self.records.remove(id);
        }
        self.records.insert(change.put.id, change.put.clone());
    }
}

fn unchanged(record: &Arc<KeyRecord>) -> PlannedKey {
    PlannedKey {
        change: None,
        record: record.clone(),
    }
}

/// One that is to be good must be so for a while.
fn read(key: &wire::Key, now: SystemTime) -> Result<KeySpec, WriteError> {
    let of_key = |violations: Violations| WriteError::Invalid(violations.under("key"));
    let spec = KeySpec::try_from(key).map_err(of_key)?;
    if let Some(expires) = spec.expires.filter(|_| spec.is_over(now)) {
        let ago = now
            .duration_since(expires)
            .unwrap_or(Duration::ZERO)
            .as_secs();
        let mut violations = Violations::new();
        let message = format!("is {ago} s ago; name a time to come, or leave it out");
        violations.add("expire_time", message);
        return Err(of_key(violations));
    }
    Ok(spec)
}

/// All keys as workers get them.
#[derive(Debug)]
pub(crate) struct PublishedKeys {
    pub(crate) position: KeysPosition,
    pub(crate) book: Arc<KeyBook>,
    pub(crate) verify: Vec<Bytes>,
    pub(crate) seal: Vec<Bytes>,
    /// Those that are not revoked, in order of id, encoded.
    live: BTreeMap<KeyId, Bytes>,
}

impl PublishedKeys {
    /// Seal keys go to workers only when there is something to open.
    pub(crate) fn new(book: Arc<KeyBook>, vault: &Vault, sealed: bool) -> Result<Self, String> {
        let verify = vault.verify_keys().iter().filter(|_| book.version > 0);
        let verify: Vec<Bytes> = verify
            .map(|key| wire::VerifyKey::from(key).encode_to_vec().into())
            .collect();
        let seal = vault.seal_keys().iter().filter(|_| sealed);
        let seal: Vec<Bytes> = seal
            .map(|key| wire::SealKey::from(key).encode_to_vec().into())
            .collect();
        let live = book.records.values().filter(|r| r.revoked.is_none());
        let live: BTreeMap<KeyId, Bytes> = live.map(|r| (r.id, encode(r))).collect();
        let bytes: usize = live.values().map(Bytes::len).sum();
        if bytes > limits::KEYS_BYTES {
            return Err(format!(
                "all keys together take {bytes} bytes, at most {} are allowed; name fewer models in them",
                limits::KEYS_BYTES
            ));
        }
        let parts = verify.iter().chain(&seal).chain(live.values());
        let mut all = Vec::with_capacity(bytes + 1_024);
        parts.for_each(|part| all.extend_from_slice(part));
        Ok(Self {
            position: KeysPosition {
                epoch: book.epoch.clone(),
                version: book.version,
                digest: Digest::of(&all),
            },
            book,
            verify,
            seal,
            live,
        })
    }

    /// There never was a key, nor is there a credential.
    pub(crate) fn is_nothing(&self) -> bool {
        self.position.version == 0 && self.seal.is_empty()
    }

    /// What makes of keys at that position the newest, and the version that it begins with; 0: the whole.
    pub(crate) fn since(&self, held: Option<&KeysPosition>) -> (u64, Vec<Bytes>) {
        let same = held.filter(|held| held.epoch == self.position.epoch);
        let from = same.map_or(0, |held| held.version);
        if from == 0 || from < self.book.floor || from > self.position.version {
            return (0, self.live.values().cloned().collect());
        }
        let changed = self.book.records.values().filter(|r| r.version > from);
        let part = |record: &Arc<KeyRecord>| match self.live.get(&record.id) {
            Some(bytes) => bytes.clone(),
            None => gone(record.id),
        };
        (from, changed.map(part).collect())
    }
}

fn encode(record: &KeyRecord) -> Bytes {
    let key = wire::WorkerKey {
        id: record.id.to_string(),
        hash: record.hash.to_vec().into(),
        verify_key: record.pepper,
        key: Some(wire::Key::from(&record.spec)),
        revoked: false,
    };
    key.encode_to_vec().into()
}

fn gone(id: KeyId) -> Bytes {
    let key = wire::WorkerKey {
        id: id.to_string(),
        revoked: true,
        ..wire::WorkerKey::default()
    };
    key.encode_to_vec().into()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn book() -> KeyBook {
        KeyBook::new(Epoch::new("ab").unwrap(), StoredKeys::default())
    }

    fn id(n: u8) -> KeyId {
        KeyId::of_random(&[n; 9])
    }

    fn create(n: u8, key: wire::Key) -> KeyCommand {
        KeyCommand::Create {
            id: id(n),
            hash: [n; 32],
            pepper: 1,
            key: Box::new(key),
        }
    }

    fn revoke(n: u8) -> KeyCommand {
        KeyCommand::Revoke {
            id: id(n).to_string(),
            etag: String::new(),
        }
    }

    fn update(n: u8, key: wire::Key, mask: &[&str]) -> KeyCommand {
        KeyCommand::Update {
            key: Box::new(wire::Key {
                id: id(n).to_string(),
                ..key
            }),
            mask: (!mask.is_empty()).then(|| mask.iter().map(ToString::to_string).collect()),
        }
    }

    fn write(book: &mut KeyBook, command: KeyCommand) -> Result<Arc<KeyRecord>, WriteError> {
        let write = KeyWrite {
            command,
            validate_only: false,
            origin: Origin::default(),
        };
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000);
        let planned = book.plan(&write, now)?;
        if let Some(change) = &planned.change {
            book.apply(change);
        }
        Ok(planned.record)
    }

    #[test]
    fn a_revoked_key_stays_revoked_and_is_told_as_gone() {
        let mut book = book();
        write(&mut book, create(1, wire::Key::default())).unwrap();
        write(&mut book, create(2, wire::Key::default())).unwrap();
        let vault = Vault::throwaway();
        let before = PublishedKeys::new(Arc::new(book.clone()), &vault, false).unwrap();
        write(&mut book, revoke(1)).unwrap();
        let version = book.version();
        write(&mut book, revoke(1)).unwrap();
        assert_eq!(book.version(), version, "twice changes nothing");
        let error = write(&mut book, update(1, wire::Key::default(), &["models"])).unwrap_err();
        assert!(matches!(error, WriteError::KeyRevoked(_)), "{error}");
        let after = PublishedKeys::new(Arc::new(book), &vault, false).unwrap();
        let (from, parts) = after.since(Some(&before.position));
        let told: Vec<_> = parts
            .iter()
            .map(|part| wire::WorkerKey::decode(part.clone()).unwrap())
            .collect();
        assert_eq!((from, told.len()), (2, 1));
        assert!(told[0].revoked && told[0].hash.is_empty());
        let (from, whole) = after.since(None);
        assert_eq!((from, whole.len()), (0, 1));
    }

    #[test]
    fn what_is_wrong_with_a_key_is_told_by_field() {
        let mut book = book();
        let bad = wire::Key {
            display_name: "a\nb".into(),
            models: vec!["x y".into()],
            expire_time: Some(prost_types::Timestamp {
                seconds: -1,
                nanos: 0,
            }),
            requests_per_minute: Some(0),
            tokens_per_minute: Some(u32::MAX),
            max_concurrent: Some(0),
            weight: Some(101),
            priority: 9,
            ..wire::Key::default()
        };
        let error = write(&mut book, create(1, bad)).unwrap_err().to_string();
        for field in [
            "key.display_name",
            "key.models[0]",
            "key.expire_time",
            "key.requests_per_minute",
            "key.tokens_per_minute",
            "key.max_concurrent",
            "key.weight",
            "key.priority",
        ] {
            assert!(error.contains(field), "{field}: {error}");
        }
        let over = wire::Key {
            expire_time: Some(prost_types::Timestamp {
                seconds: 999,
                nanos: 0,
            }),
            ..wire::Key::default()
        };
        let error = write(&mut book, create(1, over)).unwrap_err().to_string();
        assert!(error.contains("1 s ago"), "{error}");
        let whole = format!("fbk_{}_secretsecret", id(3));
        let command = KeyCommand::Revoke {
            id: whole,
            etag: String::new(),
        };
        let error = write(&mut book, command).unwrap_err().to_string();
        assert!(!error.contains("secret"), "{error}");
    }

    #[test]
    fn a_mask_changes_what_it_names() {
        let mut book = book();
        let key = wire::Key {
            models: vec!["a".into()],
            requests_per_minute: Some(10),
            ..wire::Key::default()
        };
        write(&mut book, create(1, key)).unwrap();
        let given = wire::Key {
            weight: Some(7),
            ..wire::Key::default()
        };
        let after = write(
            &mut book,
            update(1, given, &["weight", "requests_per_minute"]),
        )
        .unwrap();
        assert_eq!(after.spec.weight.get(), 7);
        assert_eq!(after.spec.requests_per_minute, None);
        assert!(after.spec.models.contains("a"));
        let stale = wire::Key {
            etag: "\"ab-k1\"".into(),
            weight: Some(9),
            ..wire::Key::default()
        };
        let error = write(&mut book, update(1, stale, &[])).unwrap_err();
        assert!(matches!(error, WriteError::EtagMismatch { .. }));
        let odd = write(&mut book, update(1, wire::Key::default(), &["secret"])).unwrap_err();
        assert!(odd.to_string().contains("`secret` is not a field"), "{odd}");
    }

    #[test]
    fn the_oldest_revoked_key_makes_room_and_who_is_behind_gets_the_whole() {
        let mut book = book();
        for n in 0..limits::REVOKED_KEYS {
            let mut bytes = [0; 9];
            bytes[..8].copy_from_slice(&(n as u64).to_be_bytes());
            let id = KeyId::of_random(&bytes);
            let mut planned = book.plan(
                &KeyWrite {
                    command: create(1, wire::Key::default()),
                    validate_only: false,
                    origin: Origin::default(),
                },
                SystemTime::UNIX_EPOCH,
            );
            let change = planned.as_mut().unwrap().change.as_mut().unwrap();
            let record = Arc::make_mut(&mut change.put);
            record.id = id;
            record.revoked = Some(Revoked {
                time: SystemTime::UNIX_EPOCH,
                by: Origin::default(),
            });
            book.apply(change);
        }
        assert_eq!(book.floor, 0);
        write(&mut book, create(255, wire::Key::default())).unwrap();
        write(&mut book, revoke(255)).unwrap();
        assert_eq!((book.records.len(), book.floor), (limits::REVOKED_KEYS, 1));
        let keys = PublishedKeys::new(Arc::new(book), &Vault::throwaway(), false).unwrap();
        let at = |version| KeysPosition {
            version,
            ..keys.position.clone()
        };
        assert_eq!(keys.since(Some(&at(1))).0, 1);
        let behind = KeysPosition {
            epoch: Epoch::new("cd").unwrap(),
            ..at(5)
        };
        assert_eq!(keys.since(Some(&behind)).0, 0, "of another store");
    }

    #[derive(Debug, Clone)]
    enum Step {
        Create(u8),
        Weight(u8, u32),
        Revoke(u8),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (0..12_u8).prop_map(Step::Create),
            (0..12_u8, 1..5_u32).prop_map(|(n, weight)| Step::Weight(n, weight)),
            (0..12_u8).prop_map(Step::Revoke),
        ]
    }

    proptest! {
        /// A worker at any version, given what changed since, holds what one has that got the whole; and no key ever comes
        /// back.
        #[test]
        fn changes_from_any_version_come_to_the_whole(steps in prop::collection::vec(step(), 1..60)) {
            let vault = Vault::throwaway();
            let mut book = book();
            let mut seen = vec![];
            let mut revoked = std::collections::BTreeSet::new();
            for step in steps {
                let command = match step {
                    Step::Create(n) => create(n, wire::Key::default()),
                    Step::Weight(n, weight) => update(n, wire::Key {
                        weight: Some(weight), ..wire::Key::default()
                    }, &[]),
                    Step::Revoke(n) => revoke(n),
                };
                let ended = matches!(step, Step::Revoke(_));
                if let Ok(record) = write(&mut book, command)
                    && ended
                {
                    revoked.insert(record.id);
                }
                let keys = PublishedKeys::new(Arc::new(book.clone()), &vault, false).unwrap();
                seen.push((keys.position.clone(), keys.live.clone()));
                prop_assert!(revoked.iter().all(|id| !keys.live.contains_key(id)));
                for (position, live) in &seen {
                    let (from, parts) = keys.since(Some(position));
                    let mut held = if from == 0 { BTreeMap::new() } else { live.clone() };
                    for part in parts {
                        let key = wire::WorkerKey::decode(part.clone()).unwrap();
                        let id = KeyId::new(&key.id).unwrap();
                        match key.revoked {
                            true => drop(held.remove(&id)),
                            false => drop(held.insert(id, part)),
                        }
                    }
                    prop_assert_eq!(&held, &keys.live);
                }
            }
        }
    }
}
