//! Clients' keys as this worker knows them, and the seal keys that open credentials of endpoints. One value behind one
//! pointer: a request loads it once; a change is built off to the side.
//!
//! It knows no request and no stream, and never the text of a key but that of the request at hand. Without keys it costs a
//! request one relaxed load.

mod file;
mod limit;

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use arc_swap::ArcSwap;
use bytes::Bytes;
use forebay_proto::{
    Digest, Endpoint, KeyId, KeySpec, KeysPosition, ModelId, key, limits,
    secret::{Place, SealKey, VerifyKey},
    wire,
};
use http::HeaderValue;
use prost::Message as _;
use zeroize::Zeroizing;

use self::limit::Usage;
pub(crate) use self::{
    file::KeysFile,
    limit::{Hold, Quota, Refused},
};

/// Who may use the gateway.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Auth {
    /// Who has a key, from the first key on; before that anybody on this machine, others never.
    #[default]
    Auto,
    /// Who has a key.
    Required,
    /// Anybody; keys are not looked at.
    Open,
}

/// What an unknown key is compared with, so that it costs what a wrong one does.
const NOBODY: [u8; 32] = [0; 32];

/// A key that is good unless its time is over.
#[derive(Debug)]
pub(crate) struct LiveKey {
    pub(crate) id: KeyId,
    pub(crate) spec: KeySpec,
    hash: [u8; 32],
    verify: u32,
    /// Kept when the key is changed.
    usage: Arc<Usage>,
}

/// All of them, at one version.
#[derive(Debug, Default)]
pub(crate) struct KeyRing {
    position: Option<KeysPosition>,
    /// As they were pushed.
    encoded: BTreeMap<KeyId, Bytes>,
    encoded_verify: Vec<Bytes>,
    encoded_seal: Vec<Bytes>,
    verify: Vec<VerifyKey>,
    seal: Vec<SealKey>,
    live: HashMap<KeyId, Arc<LiveKey>>,
    /// There may be keys, and none can be read: nobody is let in until the control plane has told them again. The position
    /// is then that of what cannot be read, if it is known.
    lost: bool,
}

/// A change, whole.
#[derive(Debug, Clone)]
pub(crate) struct KeysChange {
    pub(crate) to: KeysPosition,
    /// It makes of these the newest; 0: it is everything.
    pub(crate) from: u64,
    pub(crate) keys: Vec<Bytes>,
    pub(crate) verify: Vec<Bytes>,
    pub(crate) seal: Vec<Bytes>,
}

/// Why a change cannot be taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum BadKeys {
    #[error("it cannot be decoded")]
    Undecodable,
    #[error("it begins with other keys")]
    OtherBase,
    #[error("its result is not what it says")]
    Digest,
    #[error("it is older than what is in force")]
    Older,
    #[error("it comes from another store that has no keys, and there are some in force")]
    EmptyStore,
    #[error("it has more keys than there may be")]
    TooMany,
}

impl KeyRing {
    /// Which.
    pub(crate) fn position(&self) -> Option<&KeysPosition> {
        self.position.as_ref().filter(|_| !self.lost)
    }

    /// There was a key once: who has none stays out, even if the last one is revoked.
    fn in_use(&self) -> bool {
        self.lost || self.had_keys()
    }

    fn had_keys(&self) -> bool {
        let position = self.position.as_ref();
        position.is_some_and(|position| position.version > 0)
    }

    /// Nobody is let in until the keys are told again, which may be at this position.
    fn lost(at: Option<KeysPosition>, seal: &[Bytes]) -> Self {
        Self {
            position: at,
            encoded_seal: seal.to_vec(),
            // Credentials of endpoints are no keys: they are good as they were.
            seal: seal_keys(seal).unwrap_or_default(),
            lost: true,
            ..Self::default()
        }
    }

    /// No key would be let in.
    pub(crate) fn is_empty(&self) -> bool {
        self.live.is_empty()
    }

    /// Those that are not revoked.
    pub(crate) fn len(&self) -> usize {
        self.live.len()
    }

    /// The key with this text, if there is one. A wrong one takes as long as one that is not known.
    pub(crate) fn find(&self, text: &str) -> Option<&Arc<LiveKey>> {
        let id = key::public_part(text)?;
        let known = self.live.get(&id);
        let under = known.map(|known| known.verify);
        let mut keys = self.verify.iter();
        let verify = keys.find(|key| under.is_none_or(|under| key.id() == under))?;
        let hash = known.map_or(&NOBODY, |known| &known.hash);
        let fits = verify.is_hash(text, hash);
        known.filter(|_| fits)
    }

    /// The ring after a change.
    fn changed(&self, change: &KeysChange) -> Result<Self, BadKeys> {
        let same = self.position().filter(|held| held.epoch == change.to.epoch);
        if same.is_some_and(|held| held.version > change.to.version) {
            return Err(BadKeys::Older);
        }
        if same.is_none() && self.had_keys() && change.to.version == 0 {
            return Err(BadKeys::EmptyStore);
        }
        let (mut encoded, mut live) = match change.from {
            0 => (BTreeMap::new(), HashMap::new()),
            from if same.is_some_and(|held| held.version == from) => {
                (self.encoded.clone(), self.live.clone())
            }
            _ => return Err(BadKeys::OtherBase),
        };
        let mut unreadable = None;
        for bytes in &change.keys {
            let wire = wire::WorkerKey::decode(bytes.clone()).map_err(|_| BadKeys::Undecodable)?;
            let id = KeyId::new(&wire.id).map_err(|_| BadKeys::Undecodable)?;
            if wire.revoked {
                encoded.remove(&id);
                live.remove(&id);
                continue;
            }
            let usage = self.live.get(&id).map(|known| known.usage.clone());
            encoded.insert(id, bytes.clone());
            // One that this build cannot read lets nobody in; the others are as good as they were.
            match read_key(id, &wire, usage.unwrap_or_default()) {
                Ok(key) => drop(live.insert(id, Arc::new(key))),
                Err(_) => {
                    live.remove(&id);
                    unreadable = Some(id);
                }
            }
        }
        if encoded.len() > limits::KEYS {
            return Err(BadKeys::TooMany);
        }
        let parts = change.verify.iter().chain(&change.seal);
        let parts: Vec<&[u8]> = parts.chain(encoded.values()).map(|part| &**part).collect();
        if Digest::of(&Zeroizing::new(parts.concat())) != change.to.digest {
            return Err(BadKeys::Digest);
        }
        if let Some(id) = unreadable {
            tracing::error!(key = %id, "a key, perhaps not the only one, cannot be read and is not let in; is this worker older than the control plane?");
        }
        Ok(Self {
            position: Some(change.to.clone()),
            verify: decode_all(&change.verify, |key: wire::VerifyKey| {
                VerifyKey::try_from(&key).ok()
            })?,
            seal: seal_keys(&change.seal)?,
            encoded_verify: change.verify.clone(),
            encoded_seal: change.seal.clone(),
            encoded,
            live,
            lost: false,
        })
    }

    /// As it is kept on disk.
    fn kept(&self) -> wire::KeptKeys {
        wire::KeptKeys {
            position: self.position.as_ref().map(Into::into),
            keys: self.encoded.values().cloned().collect(),
            verify_keys: self.encoded_verify.clone(),
            seal_keys: self.encoded_seal.clone(),
        }
    }
}

impl KeysChange {
    /// What was kept on disk, as a whole.
    fn of_kept(kept: wire::KeptKeys) -> Option<Self> {
        Some(Self {
            to: KeysPosition::try_from(kept.position?).ok()?,
            from: 0,
            keys: kept.keys,
            verify: kept.verify_keys,
            seal: kept.seal_keys,
        })
    }
}

fn seal_keys(parts: &[Bytes]) -> Result<Vec<SealKey>, BadKeys> {
    decode_all(parts, |key: wire::SealKey| SealKey::try_from(&key).ok())
}

fn read_key(id: KeyId, wire: &wire::WorkerKey, usage: Arc<Usage>) -> Result<LiveKey, BadKeys> {
    let spec = wire.key.as_ref().map(KeySpec::try_from);
    let spec = spec.and_then(Result::ok).ok_or(BadKeys::Undecodable)?;
    let hash = wire.hash[..].try_into().map_err(|_| BadKeys::Undecodable)?;
    Ok(LiveKey {
        id,
        spec,
        hash,
        verify: wire.verify_key,
        usage,
    })
}

fn decode_all<W: prost::Message + Default, T>(
    parts: &[Bytes],
    read: impl Fn(W) -> Option<T>,
) -> Result<Vec<T>, BadKeys> {
    if parts.len() > limits::SECRETS {
        return Err(BadKeys::TooMany);
    }
    let one = |part: &Bytes| W::decode(part.clone()).ok().and_then(&read);
    let all: Option<Vec<T>> = parts.iter().map(one).collect();
    all.ok_or(BadKeys::Undecodable)
}

/// Holds what is in force.
#[derive(Debug)]
pub struct KeyCell {
    ring: ArcSwap<KeyRing>,
    /// A key is asked for.
    required: AtomicBool,
    auth: Auth,
    /// Others than this machine can reach the gateway, and nobody said that they all may use it.
    exposed: bool,
}

impl Default for KeyCell {
    fn default() -> Self {
        Self::new(Auth::default(), false)
    }
}

impl KeyCell {
    /// None yet.
    #[must_use]
    pub fn new(auth: Auth, exposed: bool) -> Self {
        let cell = Self {
            ring: ArcSwap::default(),
            required: AtomicBool::new(false),
            auth,
            exposed,
        };
        cell.publish(KeyRing::default());
        cell
    }

    /// Whether who has no key stays out.
    pub(crate) fn is_required(&self) -> bool {
        self.required.load(Ordering::Relaxed)
    }

    /// What is in force now.
    pub(crate) fn load(&self) -> Arc<KeyRing> {
        self.ring.load_full()
    }

    /// Puts a change in force. One that says that there are keys, and cannot be taken, keeps everybody out where none were
    /// known.
    pub(crate) fn change(&self, change: &KeysChange) -> Result<(), BadKeys> {
        let ring = self.load();
        let changed = ring.changed(change);
        if changed.is_err() && change.to.version > 0 && !ring.in_use() {
            self.publish(KeyRing::lost(Some(change.to.clone()), &ring.encoded_seal));
        }
        self.publish(changed?);
        Ok(())
    }

    /// Puts in force what was kept; nothing kept is no key, and what cannot be read keeps everybody out. Where something is
    /// in force already, only what came of it since: another process of this worker may have had its turn.
    pub(crate) fn start(&self, kept: Result<Option<wire::KeptKeys>, std::io::Error>) {
        let ring = self.load();
        let kept = match kept {
            Ok(None) => return,
            Ok(Some(kept)) => KeysChange::of_kept(kept),
            Err(_) => None,
        };
        let is_newer = |change: &KeysChange, held: &KeysPosition| {
            held.epoch == change.to.epoch && held.version < change.to.version
        };
        match (kept, ring.position()) {
            (Some(change), Some(held)) if is_newer(&change, held) => {
                // What is in force stays if it cannot be read.
                if let Ok(newer) = ring.changed(&change) {
                    self.publish(newer);
                }
            }
            (_, Some(_)) => {}
            (_, None) if ring.lost => {}
            (kept, None) => {
                let read = kept.as_ref().and_then(|kept| ring.changed(kept).ok());
                self.publish(read.unwrap_or_else(|| KeyRing::lost(kept.map(|kept| kept.to), &[])));
            }
        }
    }

    /// The ring first: who sees that a key is needed sees the keys.
    fn publish(&self, ring: KeyRing) {
        let required = match self.auth {
            Auth::Auto => self.exposed || ring.in_use(),
            Auth::Required => true,
            Auth::Open => false,
        };
        self.ring.store(Arc::new(ring));
        self.required.store(required, Ordering::Release);
    }

    /// True if what was kept could not be read and nothing came since.
    pub(crate) fn is_lost(&self) -> bool {
        self.load().lost
    }

    /// What is kept on disk.
    pub(crate) fn kept(&self) -> wire::KeptKeys {
        self.load().kept()
    }

    /// What requests to this endpoint carry. Nothing if it has no credential, or none that opens here; that is logged.
    pub(crate) fn credential(&self, model: &ModelId, endpoint: &Endpoint) -> Option<HeaderValue> {
        let sealed = endpoint.credential.as_ref()?;
        let opened = self.open(model, endpoint);
        if opened.is_none() {
            tracing::error!(
                %model, endpoint = %endpoint.id, seal_key = format!("{:08x}", sealed.key_id()),
                "the credential of an endpoint cannot be opened; requests go there without one until its seal key comes"
            );
        }
        opened
    }

    /// The same without a word: for each request.
    pub(crate) fn open(&self, model: &ModelId, endpoint: &Endpoint) -> Option<HeaderValue> {
        let sealed = endpoint.credential.as_ref()?;
        let ring = self.load();
        let place = Place {
            model,
            endpoint: &endpoint.id,
            url: &endpoint.url,
        };
        let mut keys = ring.seal.iter().filter(|key| key.id() == sealed.key_id());
        let token = keys.find_map(|key| key.open(sealed, place))?;
        let text = Zeroizing::new(format!("Bearer {}", token.as_str()));
        let mut value = HeaderValue::from_str(&text).ok()?;
        value.set_sensitive(true);
        Some(value)
    }
}

#[cfg(test)]
mod tests;
