//! What is kept of clients' keys: beside the models, under a version of their own, outside the history. Nothing that goes
//! back in the history goes back here.

use std::{sync::Arc, time::SystemTime};

use forebay_proto::{KeyId, KeySpec, convert::timestamp_to_wire, wire};
use prost::Message;

use super::{history::Origin, records::time};

/// A key, without its secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct KeyRecord {
    pub(crate) id: KeyId,
    pub(crate) hash: [u8; 32],
    /// Under which pepper.
    pub(crate) pepper: u32,
    pub(crate) spec: KeySpec,
    /// The version that changed it last.
    pub(crate) version: u64,
    pub(crate) created: SystemTime,
    pub(crate) creator: Origin,
    pub(crate) updated: SystemTime,
    pub(crate) revoked: Option<Revoked>,
}

/// The end of a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Revoked {
    pub(crate) time: SystemTime,
    pub(crate) by: Origin,
}

/// All of them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct StoredKeys {
    /// Number of the last change.
    pub(crate) version: u64,
    /// Changes up to this one are not all known any more: revoked keys were forgotten.
    pub(crate) floor: u64,
    /// In order of id.
    pub(crate) records: Vec<KeyRecord>,
}

/// One write of one key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct KeyChange {
    pub(crate) version: u64,
    pub(crate) floor: u64,
    pub(crate) put: Arc<KeyRecord>,
    /// Revoked keys that make room.
    pub(crate) forget: Vec<KeyId>,
}

#[derive(Clone, PartialEq, Message)]
struct KeyMessage {
    #[prost(message, optional, tag = "1")]
    key: Option<wire::Key>,
    #[prost(bytes = "vec", tag = "2")]
    hash: Vec<u8>,
    #[prost(uint32, tag = "3")]
    pepper: u32,
}

/// What an export says of them all.
#[derive(Clone, PartialEq, Message)]
struct HeadMessage {
    #[prost(uint64, tag = "1")]
    version: u64,
    #[prost(uint64, tag = "2")]
    floor: u64,
    #[prost(uint64, tag = "3")]
    count: u64,
}

impl KeyRecord {
    /// As it is told, but for what depends on the time and the lineage.
    pub(crate) fn to_wire(&self) -> wire::Key {
        let revoked = self.revoked.as_ref();
        wire::Key {
            id: self.id.to_string(),
            version: self.version,
            create_time: Some(timestamp_to_wire(self.created)),
            create_author: self.creator.author.clone(),
            create_reason: self.creator.reason.clone(),
            update_time: Some(timestamp_to_wire(self.updated)),
            revoke_time: revoked.map(|revoked| timestamp_to_wire(revoked.time)),
            revoke_author: revoked.map_or_else(String::new, |r| r.by.author.clone()),
            revoke_reason: revoked.map_or_else(String::new, |r| r.by.reason.clone()),
            ..wire::Key::from(&self.spec)
        }
    }
}

pub(super) fn encode(record: &KeyRecord) -> Vec<u8> {
    let message = KeyMessage {
        key: Some(record.to_wire()),
        hash: record.hash.to_vec(),
        pepper: record.pepper,
    };
    message.encode_to_vec()
}

pub(super) fn decode(bytes: &[u8]) -> Result<KeyRecord, String> {
    let message = KeyMessage::decode(bytes).map_err(|error| error.to_string())?;
    let wire = message.key.ok_or("it has no content")?;
    let hash = message.hash.as_slice().try_into();
    let origin = |author, reason| Origin { author, reason };
    Ok(KeyRecord {
        id: KeyId::new(&wire.id).map_err(|error| format!("its id {error}"))?,
        hash: hash.map_err(|_| "its hash has not 32 bytes")?,
        pepper: message.pepper,
        spec: KeySpec::try_from(&wire).map_err(|violations| violations.to_string())?,
        version: wire.version,
        created: time(wire.create_time),
        creator: origin(wire.create_author, wire.create_reason),
        updated: time(wire.update_time),
        revoked: wire.revoke_time.map(|at| Revoked {
            time: time(Some(at)),
            by: origin(wire.revoke_author, wire.revoke_reason),
        }),
    })
}

pub(super) fn encode_head(version: u64, floor: u64, count: u64) -> Vec<u8> {
    let head = HeadMessage {
        version,
        floor,
        count,
    };
    head.encode_to_vec()
}

/// The head of all, and how many are to follow.
pub(super) fn decode_head(bytes: &[u8]) -> Result<(StoredKeys, u64), String> {
    let head = HeadMessage::decode(bytes).map_err(|error| error.to_string())?;
    let keys = StoredKeys {
        version: head.version,
        floor: head.floor,
        records: Vec::new(),
    };
    Ok((keys, head.count))
}
