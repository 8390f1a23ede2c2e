//! Writes of models whose endpoints are asked what they serve. The write is tried first, so that what is asked
//! is what would be written; it is handed to the writer only when the answers are in, so nothing waits for an
//! endpoint but the one who asked.

use forebay_proto::{
    ModelSpec, ProbeMode, Violations,
    convert::probe_result_to_wire,
    probe::{Outcome, Verdict},
    wire,
};
use prost::Message;
use tonic::{Code, Status};

use super::{
    Context, mismatched,
    status::{self, Reason},
};
use crate::registry::{Answer, Command};

impl Context {
    /// Makes a write of a model, and says what is found at its endpoints if they are asked.
    pub(super) async fn write_model(
        &self,
        command: Command,
        request_id: &str,
        fingerprint: &impl Message,
        validate_only: bool,
    ) -> Result<wire::Model, Status> {
        let write = |command, trial| self.write(command, request_id, fingerprint, trial);
        if !self.may_ask(&command) {
            return model_of(write(command, validate_only).await?);
        }
        let before = self.registry.published().position.revision.get();
        let trial = model_of(write(command.clone(), true).await?)?;
        let spec = ModelSpec::try_from(trial.clone()).map_err(|_| mismatched())?;
        let found = match spec.probe.is_on() {
            true => self.prober.probe(&spec).await,
            false => Vec::new(),
        };
        found.iter().for_each(|o| self.metrics.probed(o.verdict));
        // What changes nothing, as a write that was made before and is repeated, is not refused.
        if spec.probe.mode == ProbeMode::Enforce && trial.revision > before {
            check(&spec, &found)?;
        }
        let mut model = match validate_only {
            true => trial,
            false => model_of(write(command, false).await?)?,
        };
        let results = spec.endpoints().iter().zip(&found);
        model.probe_results = results
            .map(|(endpoint, found)| probe_result_to_wire(endpoint, found))
            .collect();
        Ok(model)
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
            Command::Delete { .. } | Command::UpdateSettings { .. } => false,
        }
    }
}

/// Says which endpoints must not be used, and what to do about each.
fn check(model: &ModelSpec, found: &[Outcome]) -> Result<(), Status> {
    let mut violations = Violations::new();
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
        violations.add(format!("model.endpoints[{n}].url"), message);
    }
    match violations.is_empty() {
        true => Ok(()),
        false => Err(status::violated_as(
            Code::FailedPrecondition,
            Reason::ProbeFailed,
            &violations,
        )),
    }
}

fn model_of(answer: Answer) -> Result<wire::Model, Status> {
    match answer {
        Answer::Model(model) => Ok(*model),
        Answer::Settings(_) | Answer::Deleted(_) => Err(mismatched()),
    }
}
