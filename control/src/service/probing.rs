//! Writes of models whose endpoints are asked what they serve. The write is tried first, so that what is asked
//! is what would be written; it is handed to the writer only when the answers are in, so nothing waits for an
//! endpoint but the one who asked.

use forebay_proto::{
    ModelSpec, ProbeMode, Violations,
    convert::probe_result_to_wire,
    probe::{Outcome, Verdict},
    wire,
};
use futures_util::future::join_all;
use prost::Message;
use tonic::{Code, Status};

use super::{
    Context, mismatched,
    status::{self, Reason},
};
use crate::{
    registry::{Answer, Command, difference},
    store::history::{Edit, Origin},
};

impl Context {
    /// Makes a write of a model, and says what is found at its endpoints if they are asked.
    pub(super) async fn write_model(
        &self,
        command: Command,
        origin: Origin,
        request_id: &str,
        fingerprint: &impl Message,
        validate_only: bool,
    ) -> Result<wire::Model, Status> {
        let write =
            |command, trial| self.write(command, origin.clone(), request_id, fingerprint, trial);
        if !self.may_ask(&command) {
            return model_of(write(command, validate_only).await?);
        }
        let before = self.registry.published().position.revision.get();
        let trial = model_of(write(command.clone(), true).await?)?;
        let mut asked = trial.clone();
        // They are not shown, and the control plane's probes carry none.
        asked.endpoints.iter_mut().for_each(|e| e.credential = None);
        let spec = ModelSpec::try_from(asked).map_err(|_| mismatched())?;
        let found = match spec.probe.is_on() {
            true => self.prober.probe(&spec).await,
            false => Vec::new(),
        };
        found.iter().for_each(|o| self.metrics.probed(o.verdict));
        // What changes nothing, as a write that was made before and is repeated, is not refused.
        if spec.probe.mode == ProbeMode::Enforce && trial.revision > before {
            let mut violations = Violations::new();
            check("", &spec, &found, &mut violations);
            refuse(&violations)?;
        }
        let mut model = match validate_only {
            true => trial,
            false => model_of(write(command, false).await?)?,
        };
        model.probe_results = results(&spec, &found);
        Ok(model)
    }

    /// Makes a batch, and says what is found at the endpoints of those of its models whose endpoints are asked.
    pub(super) async fn write_batch(
        &self,
        (items, allow_missing_fallbacks): (Vec<Command>, bool),
        origin: Origin,
        request_id: &str,
        fingerprint: &impl Message,
        validate_only: bool,
    ) -> Result<wire::BatchUpdateModelsResponse, Status> {
        let write = |items, trial| {
            let command = Command::Batch {
                items,
                allow_missing_fallbacks,
            };
            self.write(command, origin.clone(), request_id, fingerprint, trial)
        };
        if !items.iter().any(|item| self.may_ask(item)) {
            return batch_of(write(items, validate_only).await?);
        }
        let trial = write(items.clone(), true).await?;
        let Answer::Batch(_, edits) = &trial else {
            return Err(mismatched());
        };
        let changed = edits.iter().filter_map(|edit| match edit {
            Edit::Model { after, .. } => after.as_ref(),
            Edit::Settings { .. } => None,
        });
        let asked: Vec<_> = changed.filter(|record| record.spec.probe.is_on()).collect();
        let found = join_all(asked.iter().map(|record| self.prober.probe(&record.spec))).await;
        let mut violations = Violations::new();
        let (mut probed, mut bytes) = (Vec::new(), 0);
        for (record, found) in asked.iter().zip(&found) {
            let spec = &record.spec;
            found.iter().for_each(|o| self.metrics.probed(o.verdict));
            let place = items
                .iter()
                .enumerate()
                .find(|(_, item)| item.model() == spec.id().as_str());
            if spec.probe.mode == ProbeMode::Enforce {
                let place = place.map(|(n, item)| format!("{}.", item.place(n)));
                check(&place.unwrap_or_default(), spec, found, &mut violations);
            }
            let told = wire::ModelProbe {
                model: spec.id().to_string(),
                results: results(spec, found),
            };
            bytes += told.encoded_len();
            if bytes <= difference::TOLD_BYTES {
                probed.push(told);
            }
        }
        refuse(&violations)?;
        let answer = match validate_only {
            true => trial,
            false => write(items, false).await?,
        };
        let mut answer = batch_of(answer)?;
        answer.probed = probed;
        Ok(answer)
    }

    /// False for a write that certainly leaves a model whose endpoints are not asked.
    fn may_ask(&self, command: &Command) -> bool {
        let on = |model: &wire::Model| model.probe.as_ref().is_some_and(|probe| probe.mode != 0);
        match command {
            Command::Create(model) => on(model),
            Command::Update { model, .. } => {
                let registered = || self.registry.published().state.model(&model.id);
                on(model) || registered().is_some_and(|model| on(&model))
            }
            Command::Batch { items, .. } => items.iter().any(|item| self.may_ask(item)),
            // Of a rollback the endpoints were asked when they were registered; it must not wait for them.
            Command::Delete { .. } | Command::UpdateSettings { .. } | Command::Rollback { .. } => {
                false
            }
        }
    }
}

fn results(model: &ModelSpec, found: &[Outcome]) -> Vec<wire::ProbeResult> {
    let results = model.endpoints().iter().zip(found);
    results
        .map(|(endpoint, found)| probe_result_to_wire(endpoint, found))
        .collect()
}

/// Says which endpoints must not be used, and what to do about each. `place` is the path of the model's request.
fn check(place: &str, model: &ModelSpec, found: &[Outcome], violations: &mut Violations) {
    let wrong = model.endpoints().iter().zip(found).enumerate();
    for (n, (endpoint, found)) in wrong.filter(|(_, (_, found))| found.verdict.condemns()) {
        let way_out = match found.verdict {
            Verdict::Blocked => {
                "name another address, or start the control plane with `--probe-allow` for this one"
            }
            _ => "name the endpoint of this model, or say `probe.served_name`",
        };
        let message = format!(
            "{}: {}; {way_out}, or set `probe.mode` to PROBE_MODE_REPORT",
            endpoint.url, found.message
        );
        violations.add(format!("{place}model.endpoints[{n}].url"), message);
    }
}

fn refuse(violations: &Violations) -> Result<(), Status> {
    match violations.is_empty() {
        true => Ok(()),
        false => Err(status::violated_as(
            Code::FailedPrecondition,
            Reason::ProbeFailed,
            violations,
        )),
    }
}

fn model_of(answer: Answer) -> Result<wire::Model, Status> {
    match answer {
        Answer::Model(model) => Ok(*model),
        _ => Err(mismatched()),
    }
}

fn batch_of(answer: Answer) -> Result<wire::BatchUpdateModelsResponse, Status> {
    match answer {
        Answer::Batch(answer, edits) => Ok(wire::BatchUpdateModelsResponse {
            changes: difference::told(&edits),
            ..*answer
        }),
        _ => Err(mismatched()),
    }
}
