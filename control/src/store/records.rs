//! How records are written: prost messages, of which the registrations are the public wire types.
//! A change that an older binary could not read takes a new format number.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use forebay_proto::{Digest, ModelSpec, PoolSettings, Revision, convert::timestamp_to_wire, wire};
use prost::Message;

use super::{
    IdemRecord, ModelRecord, SettingsRecord,
    history::{Edit, LogRecord, Origin},
};

#[derive(Clone, PartialEq, Message)]
struct IdemMessage {
    #[prost(bytes = "vec", tag = "1")]
    fingerprint: Vec<u8>,
    #[prost(uint64, tag = "2")]
    revision: u64,
    #[prost(message, optional, tag = "3")]
    expires: Option<prost_types::Timestamp>,
    #[prost(bytes = "vec", tag = "4")]
    answer: Vec<u8>,
}

/// Up to `request_id` it is what store format 1 had, with one target.
#[derive(Clone, PartialEq, Message)]
struct LogMessage {
    #[prost(message, optional, tag = "1")]
    time: Option<prost_types::Timestamp>,
    #[prost(string, tag = "2")]
    method: String,
    #[prost(string, repeated, tag = "3")]
    targets: Vec<String>,
    #[prost(string, tag = "4")]
    request_id: String,
    #[prost(string, tag = "5")]
    author: String,
    #[prost(string, tag = "6")]
    reason: String,
    #[prost(bytes = "vec", tag = "7")]
    digest: Vec<u8>,
    #[prost(uint64, tag = "8")]
    rolled_back_to: u64,
    #[prost(uint32, tag = "9")]
    edits: u32,
    #[prost(uint64, tag = "10")]
    bytes: u64,
}

pub(super) fn encode_model(record: &ModelRecord) -> Vec<u8> {
    let wire = wire::Model {
        revision: record.revision.get(),
        create_time: Some(timestamp_to_wire(record.created)),
        update_time: Some(timestamp_to_wire(record.updated)),
        ..wire::Model::from(&record.spec)
    };
    wire.encode_to_vec()
}

pub(super) fn decode_model(bytes: &[u8]) -> Result<ModelRecord, String> {
    let wire = wire::Model::decode(bytes).map_err(|error| error.to_string())?;
    Ok(ModelRecord {
        revision: Revision::new(wire.revision),
        created: time(wire.create_time),
        updated: time(wire.update_time),
        spec: ModelSpec::try_from(wire).map_err(|violations| violations.to_string())?,
    })
}

pub(super) fn encode_settings(record: &SettingsRecord) -> Vec<u8> {
    let wire = wire::PoolDefaults {
        revision: record.revision.get(),
        update_time: Some(timestamp_to_wire(record.updated)),
        ..wire::PoolDefaults::from(&record.settings)
    };
    wire.encode_to_vec()
}

pub(super) fn decode_settings(bytes: &[u8]) -> Result<SettingsRecord, String> {
    let wire = wire::PoolDefaults::decode(bytes).map_err(|error| error.to_string())?;
    Ok(SettingsRecord {
        revision: Revision::new(wire.revision),
        updated: time(wire.update_time),
        settings: PoolSettings::try_from(wire).map_err(|violations| violations.to_string())?,
    })
}

pub(super) fn encode_idem(record: &IdemRecord) -> Vec<u8> {
    let message = IdemMessage {
        fingerprint: record.fingerprint.clone(),
        revision: record.revision.get(),
        expires: Some(timestamp_to_wire(record.expires)),
        answer: record.answer.clone(),
    };
    message.encode_to_vec()
}

pub(super) fn decode_idem(request_id: String, bytes: &[u8]) -> Result<IdemRecord, String> {
    let message = IdemMessage::decode(bytes).map_err(|error| error.to_string())?;
    Ok(IdemRecord {
        request_id,
        fingerprint: message.fingerprint,
        revision: Revision::new(message.revision),
        expires: time(message.expires),
        answer: message.answer,
    })
}

pub(super) fn encode_log(record: &LogRecord) -> Vec<u8> {
    let message = LogMessage {
        time: Some(timestamp_to_wire(record.time)),
        method: record.method.clone(),
        targets: record.targets.clone(),
        request_id: record.request_id.clone(),
        author: record.origin.author.clone(),
        reason: record.origin.reason.clone(),
        digest: record
            .digest
            .map(|digest| digest.as_bytes().to_vec())
            .unwrap_or_default(),
        rolled_back_to: record.rolled_back_to.map_or(0, Revision::get),
        edits: record.edits,
        bytes: record.bytes,
    };
    message.encode_to_vec()
}

pub(super) fn decode_log(revision: Revision, bytes: &[u8]) -> Result<LogRecord, String> {
    let message = LogMessage::decode(bytes).map_err(|error| error.to_string())?;
    let digest = match message.digest.as_slice() {
        [] => None,
        bytes => Some(Digest::from_slice(bytes).map_err(|error| error.to_string())?),
    };
    Ok(LogRecord {
        revision,
        time: time(message.time),
        method: message.method,
        targets: message.targets,
        request_id: message.request_id,
        origin: Origin {
            author: message.author,
            reason: message.reason,
        },
        digest,
        rolled_back_to: Some(message.rolled_back_to)
            .filter(|revision| *revision != 0)
            .map(Revision::new),
        edits: message.edits,
        bytes: message.bytes,
    })
}

/// Bytes that an edit takes in the history.
pub(super) fn edit_len(edit: &Edit) -> u64 {
    let (name, before, after) = edit_parts(edit);
    let length = |part: Option<Vec<u8>>| part.map_or(0, |bytes| bytes.len());
    (name.len() + length(before) + length(after)) as u64
}

/// Name, before and after, as they are written. The settings have no name.
pub(super) fn edit_parts(edit: &Edit) -> (Vec<u8>, Option<Vec<u8>>, Option<Vec<u8>>) {
    match edit {
        Edit::Settings { before, after } => (
            Vec::new(),
            before.as_deref().map(encode_settings),
            Some(encode_settings(after)),
        ),
        Edit::Model { id, before, after } => (
            id.as_str().as_bytes().to_vec(),
            before.as_deref().map(encode_model),
            after.as_deref().map(encode_model),
        ),
    }
}

pub(super) fn time(wire: Option<prost_types::Timestamp>) -> SystemTime {
    let wire = wire.unwrap_or_default();
    let seconds = u64::try_from(wire.seconds).unwrap_or(0);
    UNIX_EPOCH + Duration::new(seconds, u32::try_from(wire.nanos).unwrap_or(0))
}
