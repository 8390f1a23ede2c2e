//! How the state is shown to clients: resolved, with its output-only fields.

use forebay_proto::{Epoch, PoolSettings, Revision, convert::timestamp_to_wire, wire};
use prost::Message as _;

use super::State;
use crate::{
    registry::{Answer, Command},
    store::{ModelRecord, SettingsRecord},
};

impl State {
    pub(super) fn show(&self, record: &ModelRecord, settings: &PoolSettings) -> wire::Model {
        let mut model = wire::Model::from(&record.spec);
        let credentials = model.endpoints.iter_mut();
        let credentials = credentials.filter_map(|endpoint| endpoint.credential.as_mut());
        credentials.for_each(|credential| credential.sealed.clear());
        if let Ok(resolved) = record.spec.resolve(settings, record.revision) {
            let pool = wire::Pool::from(&resolved.pool);
            let own = model.pool.get_or_insert_default();
            (own.keepalive, own.coverage) = (pool.keepalive, pool.coverage);
            model.resolved_pool = Some(pool);
            model.resolved_timeouts = Some(wire::Timeouts::from(&resolved.timeouts));
        }
        model.etag = etag(&self.epoch, record.revision);
        model.revision = record.revision.get();
        model.create_time = Some(timestamp_to_wire(record.created));
        model.update_time = Some(timestamp_to_wire(record.updated));
        model
    }
}

pub(super) fn show_settings(record: &SettingsRecord, epoch: &Epoch) -> wire::PoolDefaults {
    wire::PoolDefaults {
        etag: etag(epoch, record.revision),
        revision: record.revision.get(),
        update_time: Some(timestamp_to_wire(record.updated)),
        ..wire::PoolDefaults::from(&record.settings)
    }
}

/// Opaque to clients: it changes when the resource or the lineage does.
pub(super) fn etag(epoch: &Epoch, revision: Revision) -> String {
    let epoch: String = epoch.as_str().chars().take(8).collect();
    format!("\"{epoch}-{revision}\"")
}

pub(super) fn encode_answer(answer: &Answer) -> Vec<u8> {
    match answer {
        Answer::Model(model) => model.encode_to_vec(),
        Answer::Settings(settings) => settings.encode_to_vec(),
        Answer::Deleted(revision) => wire::DeleteModelResponse {
            revision: *revision,
        }
        .encode_to_vec(),
        Answer::Batch(batch, _) => batch.encode_to_vec(),
        Answer::RolledBack(back, _) => back.encode_to_vec(),
    }
}

/// The fingerprint covers the method, so the command tells the kind of the answer.
pub(super) fn decode_answer(command: &Command, bytes: &[u8]) -> Option<Answer> {
    match command {
        Command::Create(_) | Command::Update { .. } => wire::Model::decode(bytes)
            .ok()
            .map(|model| Answer::Model(Box::new(model))),
        Command::UpdateSettings { .. } => wire::PoolDefaults::decode(bytes)
            .ok()
            .map(|settings| Answer::Settings(Box::new(settings))),
        Command::Delete { .. } => wire::DeleteModelResponse::decode(bytes)
            .ok()
            .map(|answer| Answer::Deleted(answer.revision)),
        Command::Batch { .. } => wire::BatchUpdateModelsResponse::decode(bytes)
            .ok()
            .map(|batch| Answer::Batch(Box::new(batch), Vec::new())),
        Command::Rollback { .. } => wire::RollbackRevisionResponse::decode(bytes)
            .ok()
            .map(|back| Answer::RolledBack(Box::new(back), Vec::new())),
    }
}
