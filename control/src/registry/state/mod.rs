//! The state of the registry, and the pure transition that plans a write: no IO, no clock.
//!
//! [`State::plan`] checks everything and says what would change; [`State::apply`] makes the change.
//! The caller commits in between.

mod check;
mod show;

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::Arc,
    time::{Duration, SystemTime},
};

use forebay_proto::{
    Config, Epoch, ModelId, ModelSpec, PoolSettings, Revision, Violations, limits, wire,
};

use self::{
    check::{bounded, budget, required},
    show::{decode_answer, encode_answer, show_settings},
};
use super::{Answer, Command, Write, WriteError, mask};
use crate::store::{Change, IdemRecord, LogRecord, ModelRecord, Op, SettingsRecord, Stored};

/// How long an answer is kept for a repeated request id.
const IDEM_KEPT: Duration = Duration::from_secs(24 * 3_600);
/// Most answers kept.
const IDEM_MOST: usize = 10_000;
/// Most lines of history kept.
const LOG_MOST: u64 = 10_000;

/// Everything registered, at one revision.
#[derive(Debug, Clone)]
pub(crate) struct State {
    epoch: Epoch,
    revision: Revision,
    settings: SettingsRecord,
    models: BTreeMap<ModelId, Arc<ModelRecord>>,
    /// Each id and alias, and whose it is.
    names: HashMap<ModelId, ModelId>,
    /// Size of the models' encoded configuration, in bytes.
    bytes: usize,
    idem: HashMap<String, Arc<IdemRecord>>,
    idem_order: VecDeque<String>,
}

/// A write, checked.
#[derive(Debug)]
pub(crate) struct Planned {
    /// What is to be committed; nothing for a repeated, an idle or a trial write.
    pub(crate) change: Option<Change>,
    pub(crate) answer: Answer,
}

impl State {
    pub(crate) fn new(stored: Stored) -> Self {
        let mut state = Self {
            epoch: stored.epoch,
            revision: stored.revision,
            settings: stored.settings,
            models: BTreeMap::new(),
            names: HashMap::new(),
            bytes: 0,
            idem: HashMap::new(),
            idem_order: VecDeque::new(),
        };
        stored
            .models
            .into_iter()
            .for_each(|record| state.put_model(record));
        stored
            .idem
            .into_iter()
            .for_each(|record| state.put_idem(record));
        state
    }

    /// What a store that holds this would give back.
    pub(crate) fn stored(&self) -> Stored {
        let answers = self.idem_order.iter().filter_map(|id| self.idem.get(id));
        Stored {
            epoch: self.epoch.clone(),
            revision: self.revision,
            settings: self.settings.clone(),
            models: self.models.values().map(|r| (**r).clone()).collect(),
            idem: answers.map(|record| (**record).clone()).collect(),
        }
    }

    pub(crate) fn epoch(&self) -> &Epoch {
        &self.epoch
    }

    pub(crate) fn revision(&self) -> Revision {
        self.revision
    }

    pub(crate) fn model(&self, id: &str) -> Option<wire::Model> {
        self.models
            .get(id)
            .map(|record| self.show(record, &self.settings.settings))
    }

    /// Up to `most` models after this id, in order, and whether there are more.
    pub(crate) fn page(&self, after: Option<&str>, most: usize) -> (Vec<wire::Model>, bool) {
        let later = |id: &ModelId| after.is_none_or(|after| id.as_str() > after);
        let mut rest = self
            .models
            .iter()
            .filter(|(id, _)| later(id))
            .map(|(_, record)| record);
        let page = rest.by_ref().take(most);
        let page = page
            .map(|record| self.show(record, &self.settings.settings))
            .collect();
        (page, rest.next().is_some())
    }

    pub(crate) fn len(&self) -> usize {
        self.models.len()
    }

    pub(crate) fn settings(&self) -> wire::PoolDefaults {
        show_settings(&self.settings, &self.epoch)
    }

    /// The configuration as workers use it.
    pub(crate) fn config(&self) -> Result<Config, Violations> {
        let settings = &self.settings.settings;
        let models: Result<Vec<_>, _> = self
            .models
            .values()
            .map(|r| r.spec.resolve(settings, r.revision))
            .collect();
        Config::new(budget(settings)?, models?)
    }

    /// Checks a write and says what it would change.
    pub(crate) fn plan(&self, write: &Write, now: SystemTime) -> Result<Planned, WriteError> {
        if let Some(planned) = self.repeated(write, now)? {
            return Ok(planned);
        }
        let (op, answer) = match &write.command {
            Command::Create(model) => self.create(model, now)?,
            Command::Update {
                model,
                mask,
                allow_missing,
            } => self.update(model, mask.as_deref(), *allow_missing, now)?,
            Command::Delete {
                id,
                etag,
                allow_missing,
            } => self.delete(id, etag, *allow_missing)?,
            Command::UpdateSettings { settings, mask } => {
                self.update_settings(settings, mask.as_deref(), now)?
            }
        };
        if write.validate_only {
            return Ok(Planned {
                change: None,
                answer: self.as_trial(answer),
            });
        }
        // What changes nothing is remembered all the same: repeated later, it might.
        let op = op.or_else(|| write.request_id.as_ref().map(|_| Op::Remember));
        let change = op.map(|op| self.change(op, write, &answer, now));
        Ok(Planned { change, answer })
    }

    /// Makes a planned change.
    pub(crate) fn apply(&mut self, change: Change) {
        self.revision = change.revision();
        match change.op {
            Op::Remember => {}
            Op::PutModel(record) => self.put_model(record),
            Op::DeleteModel(id) => self.remove_model(&id),
            Op::PutSettings(record) => {
                self.settings = record;
                let bytes = self
                    .models
                    .values()
                    .map(|record| self.encoded_len(&record.spec))
                    .sum();
                self.bytes = bytes;
            }
        }
        for request_id in change.forget_idem {
            self.idem.remove(&request_id);
            self.idem_order.retain(|known| *known != request_id);
        }
        change
            .idem
            .into_iter()
            .for_each(|record| self.put_idem(record));
    }

    /// The answer that the same request got before.
    fn repeated(&self, write: &Write, now: SystemTime) -> Result<Option<Planned>, WriteError> {
        let Some((id, fingerprint)) = &write.request_id else {
            return Ok(None);
        };
        let Some(known) = self.idem.get(id).filter(|known| known.expires > now) else {
            return Ok(None);
        };
        if known.fingerprint != *fingerprint {
            return Err(WriteError::RequestIdReused(id.clone()));
        }
        let answer = decode_answer(&write.command, &known.answer);
        Ok(answer.map(|answer| Planned {
            change: None,
            answer,
        }))
    }

    fn create(
        &self,
        model: &wire::Model,
        now: SystemTime,
    ) -> Result<(Option<Op>, Answer), WriteError> {
        let spec = ModelSpec::try_from(model.clone());
        let claimed = model.pool.as_ref().and_then(|pool| pool.keepalive);
        let spec = self.check_model(spec, claimed, None)?;
        if self.models.len() >= limits::MODELS {
            return Err(WriteError::LimitReached(format!(
                "{} models are registered, which is the most; delete one first",
                limits::MODELS
            )));
        }
        self.check_names(&spec, None)?;
        Ok(self.put(spec, now, now))
    }

    fn update(
        &self,
        model: &wire::Model,
        mask: Option<&[String]>,
        allow_missing: bool,
        now: SystemTime,
    ) -> Result<(Option<Op>, Answer), WriteError> {
        let Some(old) = self.models.get(model.id.as_str()) else {
            // Created anew it is a whole model; the mask must still be one.
            let checked = mask::merge_model(wire::Model::default(), model, mask);
            checked.map_err(WriteError::Invalid)?;
            return match allow_missing {
                true if !model.etag.is_empty() => Err(WriteError::EtagMismatch {
                    given: bounded(&model.etag),
                    current: "of a model that does not exist".to_owned(),
                }),
                true => self.create(model, now),
                false if model.id.is_empty() => Err(required("model.id")),
                false => Err(WriteError::NotFound(bounded(&model.id))),
            };
        };
        self.check_etag(&model.etag, old.revision)?;
        let merged = mask::merge_model(wire::Model::from(&old.spec), model, mask);
        let merged = merged.map_err(WriteError::Invalid)?;
        let claimed = model.pool.as_ref().and_then(|pool| pool.keepalive);
        let claimed = claimed.filter(|_| mask::covers(mask, "pool.keepalive"));
        // Sent back as it was read: the etag says so.
        let current = self
            .resolve(&old.spec)
            .map(|model| model.pool.size.get())
            .ok();
        let echoed = !model.etag.is_empty() && claimed == current;
        let claimed = claimed.filter(|_| !echoed);
        let spec = self.check_model(ModelSpec::try_from(merged), claimed, Some(old))?;
        if spec == old.spec {
            return Ok((
                None,
                Answer::Model(Box::new(self.show(old, &self.settings.settings))),
            ));
        }
        self.check_names(&spec, Some(old))?;
        Ok(self.put(spec, old.created, now))
    }

    fn delete(
        &self,
        id: &str,
        etag: &str,
        allow_missing: bool,
    ) -> Result<(Option<Op>, Answer), WriteError> {
        match self.models.get(id) {
            Some(old) => {
                self.check_etag(etag, old.revision)?;
                let op = Op::DeleteModel(old.spec.id().clone());
                Ok((Some(op), Answer::Deleted(self.revision.next().get())))
            }
            None if allow_missing => Ok((None, Answer::Deleted(self.revision.get()))),
            None if id.is_empty() => Err(required("id")),
            None => Err(WriteError::NotFound(bounded(id))),
        }
    }

    fn update_settings(
        &self,
        settings: &wire::PoolDefaults,
        mask: Option<&[String]>,
        now: SystemTime,
    ) -> Result<(Option<Op>, Answer), WriteError> {
        let old = &self.settings;
        self.check_etag(&settings.etag, old.revision)?;
        let before = wire::PoolDefaults::from(&old.settings);
        let merged = mask::merge_settings(before.clone(), settings, mask);
        let merged = merged.map_err(WriteError::Invalid)?;
        let new =
            PoolSettings::try_from(merged).map_err(|v| WriteError::Invalid(v.under("settings")))?;
        let claimed = settings
            .keepalive
            .filter(|_| mask::covers(mask, "keepalive"));
        let echoed = !settings.etag.is_empty() && claimed == before.keepalive;
        self.check_settings(&new, claimed.filter(|_| !echoed))?;
        if new == old.settings {
            return Ok((None, Answer::Settings(Box::new(self.settings()))));
        }
        let revision = self.revision.next();
        let record = SettingsRecord {
            settings: new,
            revision,
            updated: now,
        };
        let answer = Answer::Settings(Box::new(show_settings(&record, &self.epoch)));
        Ok((Some(Op::PutSettings(record)), answer))
    }

    fn put(&self, spec: ModelSpec, created: SystemTime, now: SystemTime) -> (Option<Op>, Answer) {
        let revision = self.revision.next();
        let record = ModelRecord {
            spec,
            revision,
            created,
            updated: now,
        };
        let answer = Answer::Model(Box::new(self.show(&record, &self.settings.settings)));
        (Some(Op::PutModel(record)), answer)
    }

    fn change(&self, op: Op, write: &Write, answer: &Answer, now: SystemTime) -> Change {
        let revision = match &op {
            Op::Remember => self.revision,
            Op::PutModel(_) | Op::DeleteModel(_) | Op::PutSettings(_) => self.revision.next(),
        };
        let target = match &op {
            Op::Remember => String::new(),
            Op::PutModel(record) => record.spec.id().to_string(),
            Op::DeleteModel(id) => id.to_string(),
            Op::PutSettings(_) => "pool settings".to_owned(),
        };
        let request_id = write
            .request_id
            .as_ref()
            .map(|(id, _)| id.clone())
            .unwrap_or_default();
        let idem = write
            .request_id
            .as_ref()
            .map(|(id, fingerprint)| IdemRecord {
                request_id: id.clone(),
                fingerprint: fingerprint.clone(),
                revision,
                expires: now + IDEM_KEPT,
                answer: encode_answer(answer),
            });
        let method = write.command.method().to_owned();
        let log = LogRecord {
            revision,
            time: now,
            method,
            target,
            request_id,
        };
        let forget_log = revision.get().checked_sub(LOG_MOST).map(Revision::new);
        let forget_idem = idem
            .as_ref()
            .map(|_| self.idem_to_forget(now))
            .unwrap_or_default();
        Change {
            op,
            log,
            idem,
            forget_idem,
            forget_log,
        }
    }

    /// The answer to a trial: a delete has made no revision.
    fn as_trial(&self, answer: Answer) -> Answer {
        match answer {
            Answer::Deleted(_) => Answer::Deleted(self.revision.get()),
            Answer::Model(_) | Answer::Settings(_) => answer,
        }
    }

    /// The oldest answers, if they are out of date or too many.
    fn idem_to_forget(&self, now: SystemTime) -> Vec<String> {
        let surplus = (self.idem_order.len() + 1).saturating_sub(IDEM_MOST);
        let expired = |id: &String| self.idem.get(id).is_none_or(|known| known.expires <= now);
        let oldest = self.idem_order.iter().enumerate().take(64);
        let forget = oldest.take_while(|(n, id)| *n < surplus || expired(id));
        forget.map(|(_, id)| id.clone()).collect()
    }

    fn put_model(&mut self, record: ModelRecord) {
        self.remove_model(record.spec.id());
        self.bytes += self.encoded_len(&record.spec);
        for name in record.spec.names() {
            self.names.insert(name.clone(), record.spec.id().clone());
        }
        self.models
            .insert(record.spec.id().clone(), Arc::new(record));
    }

    fn remove_model(&mut self, id: &ModelId) {
        let Some(old) = self.models.remove(id) else {
            return;
        };
        self.bytes = self.bytes.saturating_sub(self.encoded_len(&old.spec));
        for name in old.spec.names() {
            self.names.remove(name);
        }
    }

    fn put_idem(&mut self, record: IdemRecord) {
        let id = record.request_id.clone();
        if self.idem.insert(id.clone(), Arc::new(record)).is_none() {
            self.idem_order.push_back(id);
        }
    }
}
