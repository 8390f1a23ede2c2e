//! How records are written: prost messages, of which the registrations are the public wire types.
//! A change that an older binary could not read takes a new format number.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use forebay_proto::{ModelSpec, PoolSettings, Revision, convert::timestamp_to_wire, wire};
use prost::Message;

use super::{IdemRecord, LogRecord, ModelRecord, SettingsRecord};

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

#[derive(Clone, PartialEq, Message)]
struct LogMessage {
    #[prost(message, optional, tag = "1")]
    time: Option<prost_types::Timestamp>,
    #[prost(string, tag = "2")]
    method: String,
    #[prost(string, tag = "3")]
    target: String,
    #[prost(string, tag = "4")]
    request_id: String,
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
        target: record.target.clone(),
        request_id: record.request_id.clone(),
    };
    message.encode_to_vec()
}

fn time(wire: Option<prost_types::Timestamp>) -> SystemTime {
    let wire = wire.unwrap_or_default();
    let seconds = u64::try_from(wire.seconds).unwrap_or(0);
    UNIX_EPOCH + Duration::new(seconds, u32::try_from(wire.nanos).unwrap_or(0))
}
