//! From a write to what it changes: everything that is wrong is told here, and nothing is changed.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use forebay_proto::{ModelSpec, PoolSettings, Violations, convert::endpoint_url, wire};

use super::{
    Planned, State, Undo,
    check::{bounded, required},
    show::{decode_answer, encode_answer, show_settings},
};
use crate::{
    registry::{Answer, Command, Write, WriteError, mask},
    store::{
        Change, IdemRecord, ModelRecord, SettingsRecord,
        history::{Edit, Entry, EntryKind, History, LogRecord},
    },
};

/// How long an answer is kept for a repeated request id.
const IDEM_KEPT: Duration = Duration::from_secs(24 * 3_600);
/// Most answers kept.
const IDEM_MOST: usize = 10_000;

/// A credential that an update leaves out stays, unless the endpoint is elsewhere now: it was given for that place.
fn keep_credentials(model: &mut wire::Model, old: &ModelSpec) -> Result<(), Violations> {
    let mut violations = Violations::new();
    for (n, endpoint) in model.endpoints.iter_mut().enumerate() {
        let given = endpoint.credential.as_ref();
        if given.is_some_and(|given| given.clear || !given.sealed.is_empty()) {
            continue;
        }
        let id = match endpoint.id.is_empty() {
            true => format!("e{}", n + 1),
            false => endpoint.id.clone(),
        };
        let mut known = old.endpoints().iter();
        let known = known.find(|known| known.id.as_str() == id);
        let Some((known, sealed)) = known.and_then(|k| k.credential.as_ref().map(|c| (k, c)))
        else {
            continue;
        };
        if endpoint_url(endpoint).is_some_and(|url| url.reach() == known.url.reach()) {
            endpoint.credential = Some(wire::Credential {
                fingerprint: sealed.fingerprint().to_owned(),
                sealed: sealed.as_bytes().to_vec().into(),
                ..wire::Credential::default()
            });
        } else {
            let message = format!(
                "the one of `{id}` was given for {}, and goes nowhere else; give `bearer_token` again for the new \
                 {}, or say `clear`",
                known.url,
                match known.url.discovery() {
                    Some(_) => "source and its bounds",
                    None => "url",
                }
            );
            violations.add(format!("model.endpoints[{n}].credential"), message);
        }
    }
    violations.finish(Some(()))
}

impl State {
    /// Checks a write and says what it would change.
    pub(crate) fn plan(
        &self,
        write: &Write,
        now: SystemTime,
        past: &dyn History,
    ) -> Result<Planned, WriteError> {
        if let Some(planned) = self.repeated(write, now)? {
            return Ok(planned);
        }
        let (edits, answer) = match &write.command {
            Command::Batch {
                items,
                allow_missing_fallbacks,
            } => self.batch(items, *allow_missing_fallbacks, now)?,
            Command::Rollback {
                to,
                expected,
                content,
            } => {
                let undo = match content {
                    Some(content) => self.back_to(content),
                    None => Undo::read(past, *to, self.revision)?,
                };
                self.rollback(&undo, *expected, now)?
            }
            Command::UpdateSettings { settings, mask } => {
                self.update_settings(settings, mask.as_deref(), now)?
            }
            Command::Create(_) | Command::Update { .. } | Command::Delete { .. } => {
                self.one(&write.command, now)?
            }
        };
        if write.validate_only {
            return Ok(Planned {
                change: None,
                answer: self.as_trial(answer),
            });
        }
        // What changes nothing is remembered all the same: repeated later, it might.
        let wanted = !edits.is_empty() || write.request_id.is_some();
        let change = wanted.then(|| self.change(edits, write, &answer, now));
        Ok(Planned { change, answer })
    }

    /// A write of one model.
    fn one(&self, command: &Command, now: SystemTime) -> Result<(Vec<Edit>, Answer), WriteError> {
        let edit = self.edit(command, now)?;
        let edits = Vec::from_iter(edit);
        let prefix = |_| String::new();
        self.check_together(&edits, &prefix)?;
        self.check_fallbacks(&edits, &prefix)?;
        let record = match (edits.first(), command) {
            (Some(Edit::Model { after, .. }), _) => after.as_ref(),
            (_, Command::Update { model, .. }) => self.models.get(model.id.as_str()),
            _ => None,
        };
        let answer = match record {
            Some(record) => Answer::Model(Box::new(self.show(record, &self.settings.settings))),
            None if edits.is_empty() => Answer::Deleted(self.revision.get()),
            None => Answer::Deleted(self.revision.next().get()),
        };
        Ok((edits, answer))
    }

    /// What a write of one model changes, looked at by itself: names, numbers and sizes are looked at when all
    /// changes are known.
    pub(super) fn edit(
        &self,
        command: &Command,
        now: SystemTime,
    ) -> Result<Option<Edit>, WriteError> {
        match command {
            Command::Create(model) => self.create(model, now).map(Some),
            Command::Update {
                model,
                mask,
                allow_missing,
            } => self.update(model, mask.as_deref(), *allow_missing, now),
            Command::Delete {
                id,
                etag,
                allow_missing,
            } => self.delete(id, etag, *allow_missing),
            Command::UpdateSettings { .. } | Command::Batch { .. } | Command::Rollback { .. } => {
                Err(required("change"))
            }
        }
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

    fn create(&self, model: &wire::Model, now: SystemTime) -> Result<Edit, WriteError> {
        let spec = ModelSpec::try_from(model.clone());
        let claimed = model.pool.as_ref().and_then(|pool| pool.keepalive);
        let spec = self.check_model(spec, claimed)?;
        if let Some(owner) = self.models.get(spec.id()) {
            let name = spec.id().to_string();
            return Err(WriteError::AlreadyExists {
                field: "model.id".to_owned(),
                owner: owner.spec.id().to_string(),
                name,
            });
        }
        Ok(self.put(spec, None, now))
    }

    fn update(
        &self,
        model: &wire::Model,
        mask: Option<&[String]>,
        allow_missing: bool,
        now: SystemTime,
    ) -> Result<Option<Edit>, WriteError> {
        let Some(old) = self.models.get(model.id.as_str()) else {
            // Created anew it is a whole model; the mask must still be one.
            let checked = mask::merge_model(wire::Model::default(), model, mask);
            checked.map_err(WriteError::Invalid)?;
            return match allow_missing {
                true if !model.etag.is_empty() => Err(WriteError::EtagMismatch {
                    given: bounded(&model.etag),
                    current: "of a model that does not exist".to_owned(),
                }),
                true => self.create(model, now).map(Some),
                false if model.id.is_empty() => Err(required("model.id")),
                false => Err(WriteError::NotFound(bounded(&model.id))),
            };
        };
        self.check_etag(&model.etag, old.revision)?;
        let merged = mask::merge_model(wire::Model::from(&old.spec), model, mask);
        let mut merged = merged.map_err(WriteError::Invalid)?;
        keep_credentials(&mut merged, &old.spec).map_err(WriteError::Invalid)?;
        let claimed = model.pool.as_ref().and_then(|pool| pool.keepalive);
        let claimed = claimed.filter(|_| mask::covers(mask, "pool.keepalive"));
        // Sent back as it was read: the etag says so.
        let current = self
            .resolve(&old.spec)
            .map(|model| model.pool.size.get())
            .ok();
        let echoed = !model.etag.is_empty() && claimed == current;
        let claimed = claimed.filter(|_| !echoed);
        let spec = self.check_model(ModelSpec::try_from(merged), claimed)?;
        Ok((spec != old.spec).then(|| self.put(spec, Some(old), now)))
    }

    fn delete(
        &self,
        id: &str,
        etag: &str,
        allow_missing: bool,
    ) -> Result<Option<Edit>, WriteError> {
        match self.models.get(id) {
            Some(old) => {
                self.check_etag(etag, old.revision)?;
                Ok(Some(Edit::Model {
                    id: old.spec.id().clone(),
                    before: Some(old.clone()),
                    after: None,
                }))
            }
            None if allow_missing => Ok(None),
            None if id.is_empty() => Err(required("id")),
            None => Err(WriteError::NotFound(bounded(id))),
        }
    }

    fn update_settings(
        &self,
        settings: &wire::PoolDefaults,
        mask: Option<&[String]>,
        now: SystemTime,
    ) -> Result<(Vec<Edit>, Answer), WriteError> {
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
            return Ok((Vec::new(), Answer::Settings(Box::new(self.settings()))));
        }
        let revision = self.revision.next();
        let record = SettingsRecord {
            settings: new,
            revision,
            updated: now,
        };
        let answer = Answer::Settings(Box::new(show_settings(&record, &self.epoch)));
        let edit = Edit::Settings {
            before: Some(Arc::new(old.clone())),
            after: Arc::new(record),
        };
        Ok((vec![edit], answer))
    }

    fn put(&self, spec: ModelSpec, old: Option<&Arc<ModelRecord>>, now: SystemTime) -> Edit {
        let id = spec.id().clone();
        let after = ModelRecord {
            spec,
            revision: self.revision.next(),
            created: old.map_or(now, |old| old.created),
            updated: now,
        };
        Edit::Model {
            id,
            before: old.cloned(),
            after: Some(Arc::new(after)),
        }
    }

    fn change(&self, edits: Vec<Edit>, write: &Write, answer: &Answer, now: SystemTime) -> Change {
        let revision = match edits.is_empty() {
            true => self.revision,
            false => self.revision.next(),
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
        let entry = (!edits.is_empty()).then(|| {
            let mut log = LogRecord::of(&edits, revision, now);
            log.method = write.command.method().to_owned();
            log.request_id = request_id;
            log.origin = write.origin.clone();
            if let Command::Rollback { to, .. } = &write.command {
                log.rolled_back_to = Some(*to);
            }
            Entry {
                log,
                edits,
                kind: EntryKind::Undoable,
                forget: Vec::new(),
            }
        });
        let forget_idem = idem
            .as_ref()
            .map(|_| self.idem_to_forget(now))
            .unwrap_or_default();
        Change {
            revision,
            entry,
            idem,
            forget_idem,
        }
    }

    /// The answer to a trial: it has made no revision.
    fn as_trial(&self, answer: Answer) -> Answer {
        match answer {
            Answer::Deleted(_) => Answer::Deleted(self.revision.get()),
            Answer::Batch(mut batch, edits) => {
                batch.revision = self.revision.get();
                Answer::Batch(batch, edits)
            }
            Answer::RolledBack(mut back, edits) => {
                back.revision = self.revision.get();
                Answer::RolledBack(back, edits)
            }
            Answer::Model(_) | Answer::Settings(_) => answer,
        }
    }

    /// Forgets what whoever wrote since has forgotten: answers that others keep are kept here, but no more of them.
    pub(crate) fn forget_answers(&mut self, now: SystemTime) {
        loop {
            let forget = self.idem_to_forget(now);
            if forget.is_empty() {
                return;
            }
            for id in forget {
                self.idem.remove(&id);
                self.idem_order.retain(|known| *known != id);
            }
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
}
