//! `forebay fleet rollout`: shows how far a revision has come, or waits until it is everywhere, with an exit code that
//! says how that ended.

use std::{fmt::Write as _, process::ExitCode, time::Duration};

use forebay_proto::wire;
use tokio::time::{Instant, sleep, timeout_at};
use tonic::{Code, Status, transport::Channel};
use wire::fleet_client::FleetClient;

use crate::{
    args::{ClientArgs, Output},
    client::{call, explain},
    document, table, ui,
};

/// Pause before a control plane that went away is asked again.
const AGAIN: Duration = Duration::from_millis(500);
/// Most refusals that the error names; the document has them all.
const NAMED: usize = 3;

/// A rollout that was waited for and is not everywhere.
#[derive(Debug, thiserror::Error)]
#[error("{text}")]
pub(crate) struct NotEverywhere {
    how: How,
    text: String,
}

/// How the wait ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum How {
    Refused,
    TooLate,
    Returned,
}

impl NotEverywhere {
    /// Its exit code: docs/operating.md tells of them.
    pub(crate) fn code(&self) -> ExitCode {
        ExitCode::from(match self.how {
            How::Refused => 3,
            How::TooLate => 4,
            How::Returned => 5,
        })
    }
}

/// Shows it, or waits for it as long as is said.
pub(super) async fn run(
    mut fleet: FleetClient<Channel>,
    revision: Option<u64>,
    wait: Option<Duration>,
    client: &ClientArgs,
) -> anyhow::Result<()> {
    let mut rollout = call(fleet.get_rollout(wire::GetRolloutRequest { revision })).await?;
    let mut ended = Ok(());
    if let Some(within) = wait {
        let deadline = Instant::now() + within;
        let mut waiting = Waiting::new(rollout);
        let in_time = timeout_at(deadline, waiting.wait(&mut fleet)).await;
        waiting.progress.end();
        if let Ok(result) = in_time {
            result?;
        }
        rollout = waiting.rollout;
        ended = verdict(&rollout, waiting.workers, within);
    }
    match client.output {
        Output::Table => ui::say(&table::rollout(&rollout)),
        output => {
            let value = document::to_value("Rollout", &rollout)?;
            ui::say(&document::print(&value, output)?);
        }
    }
    Ok(ended?)
}

/// A wait that is under way.
struct Waiting {
    rollout: wire::Rollout,
    /// There were workers at some time: then none is not all.
    workers: bool,
    progress: ui::Progress,
}

impl Waiting {
    fn new(rollout: wire::Rollout) -> Self {
        let mut waiting = Self {
            rollout: wire::Rollout::default(),
            workers: false,
            progress: ui::Progress::default(),
        };
        waiting.note(rollout);
        waiting
    }

    fn note(&mut self, rollout: wire::Rollout) {
        self.progress.show(&progress(&rollout));
        self.workers |= !rollout.workers.is_empty();
        self.rollout = rollout;
    }

    /// Until there is no more to wait for. A control plane that goes away meanwhile is asked again.
    async fn wait(&mut self, fleet: &mut FleetClient<Channel>) -> anyhow::Result<()> {
        // What is waited for does not move when somebody else writes meanwhile.
        let revision = Some(self.rollout.revision);
        while !self.is_over() {
            let follow = true;
            let request = wire::WatchRolloutRequest { revision, follow };
            match self.watch(fleet, request).await {
                Ok(()) => {}
                Err(status) if is_lost(&status) => sleep(AGAIN).await,
                Err(status) => return Err(explain(&status)),
            }
        }
        Ok(())
    }

    async fn watch(
        &mut self,
        fleet: &mut FleetClient<Channel>,
        request: wire::WatchRolloutRequest,
    ) -> Result<(), Status> {
        let mut rollouts = fleet.watch_rollout(request).await?.into_inner();
        while !self.is_over() {
            let next = rollouts.message().await?;
            self.note(next.ok_or_else(|| Status::unavailable("the stream ended"))?);
        }
        Ok(())
    }

    fn is_over(&self) -> bool {
        is_refused(&self.rollout)
            || is_returned(&self.rollout)
            || is_everywhere(&self.rollout, self.workers)
    }
}

/// It was taken back. While that is being written the wait goes on.
fn is_returned(rollout: &wire::Rollout) -> bool {
    rollout.stage() == wire::RolloutStage::Returned
}

/// A worker refused it, and nobody takes it back: in a ring the control plane does.
fn is_refused(rollout: &wire::Rollout) -> bool {
    use wire::RolloutStage::{Everywhere, Unspecified};
    rollout.refused + rollout.partial > 0 && matches!(rollout.stage(), Unspecified | Everywhere)
}

/// Every worker runs it. Where there were workers and none is left, nothing is said for it.
fn is_everywhere(rollout: &wire::Rollout, workers: bool) -> bool {
    rollout.complete && (rollout.applied > 0 || !workers)
}

/// The control plane went away, or has too many who watch.
fn is_lost(status: &Status) -> bool {
    matches!(
        status.code(),
        Code::Unavailable | Code::ResourceExhausted | Code::Unknown | Code::Cancelled
    )
}

fn verdict(rollout: &wire::Rollout, workers: bool, within: Duration) -> Result<(), NotEverywhere> {
    let (how, text) = if is_returned(rollout) {
        let (by, reason) = (rollout.return_revision, &rollout.return_reason);
        (
            How::Returned,
            format!("taken back by revision {by}: {reason}"),
        )
    } else if is_refused(rollout) {
        (How::Refused, refused(rollout))
    } else if is_everywhere(rollout, workers) {
        return Ok(());
    } else {
        let wire::Rollout {
            revision,
            pending,
            gone,
            ..
        } = rollout;
        let within = humantime::format_duration(within);
        let text = format!(
            "revision {revision} is not everywhere after {within}: {pending} workers have yet to answer, {gone} are \
             not connected"
        );
        (How::TooLate, text)
    };
    Err(NotEverywhere { how, text })
}

fn refused(rollout: &wire::Rollout) -> String {
    let revision = rollout.revision;
    let mut text = match (rollout.refused, rollout.partial) {
        (0, partial) => {
            format!("{partial} workers could not take all models of revision {revision}")
        }
        (refused, 0) => format!("{refused} workers refused revision {revision}"),
        (refused, partial) => format!(
            "{refused} workers refused revision {revision}, {partial} could not take all of its models"
        ),
    };
    let refusing = |worker: &&wire::Worker| {
        matches!(
            worker.state(),
            wire::WorkerState::Refused | wire::WorkerState::Partial
        )
    };
    let refusals = rollout.workers.iter().filter(refusing).flat_map(|worker| {
        let refusals = worker.refusals.iter();
        refusals.map(move |refusal| (&worker.id, refusal))
    });
    for (worker, refusal) in refusals.take(NAMED) {
        let wire::Refusal {
            field,
            reason,
            message,
            ..
        } = refusal;
        // Writing to a string cannot fail.
        let _ = write!(text, "\n  {worker}: {field}: {message} ({reason})");
    }
    text
}

/// The counts in a line.
fn progress(rollout: &wire::Rollout) -> String {
    let connected = rollout.applied + rollout.partial + rollout.pending + rollout.refused;
    let draining = rollout
        .workers
        .iter()
        .map(|w| u64::from(w.draining_requests));
    let mut text = format!(
        "revision {}: {} of {connected} applied, {} partial, {} pending, {} refused, {} gone",
        rollout.revision,
        rollout.applied,
        rollout.partial,
        rollout.pending,
        rollout.refused,
        rollout.gone
    );
    if rollout.rings > 0 {
        let _ = write!(text, "; {}", table::stage(rollout));
    }
    let draining: u64 = draining.sum();
    if draining > 0 {
        let _ = write!(text, "; {draining} requests on what was before");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rollout(applied: u32, pending: u32, refused: u32, gone: u32) -> wire::Rollout {
        wire::Rollout {
            revision: 7,
            newest_revision: 7,
            applied,
            pending,
            refused,
            gone,
            complete: pending == 0 && refused == 0,
            ..Default::default()
        }
    }

    fn ended(rollout: &wire::Rollout, workers: bool) -> Option<How> {
        let verdict = verdict(rollout, workers, Duration::from_secs(60));
        verdict.err().map(|error| error.how)
    }

    #[test]
    fn each_end_has_its_own_code() {
        assert_eq!(ended(&rollout(2, 0, 0, 1), true), None);
        assert_eq!(
            ended(&rollout(0, 0, 0, 0), false),
            None,
            "no workers at all"
        );
        assert_eq!(ended(&rollout(2, 3, 1, 0), true), Some(How::Refused));
        assert_eq!(ended(&rollout(2, 1, 0, 0), true), Some(How::TooLate));
        assert_eq!(
            ended(&rollout(0, 0, 0, 2), true),
            Some(How::TooLate),
            "all are gone"
        );
        assert_eq!(
            ended(&rollout(0, 0, 0, 0), true),
            Some(How::TooLate),
            "all are forgotten"
        );
    }

    #[test]
    fn what_was_taken_back_is_not_everywhere_though_all_run_something_newer() {
        let mut rollout = rollout(3, 0, 0, 0);
        (rollout.rings, rollout.return_revision) = (3, 9);
        rollout.return_reason = "errors".to_owned();
        rollout.set_stage(wire::RolloutStage::Returned);
        let error = verdict(&rollout, true, Duration::ZERO).unwrap_err();
        assert_eq!(error.how, How::Returned);
        assert_eq!(error.to_string(), "taken back by revision 9: errors");
        // A refusal in a ring is not the end: it is taken back.
        let mut refused = super::tests::rollout(1, 0, 1, 0);
        assert!(is_refused(&refused));
        refused.set_stage(wire::RolloutStage::Ring);
        assert!(!is_refused(&refused));
        refused.set_stage(wire::RolloutStage::Everywhere);
        assert!(is_refused(&refused));
    }

    #[test]
    fn a_refusal_is_told_with_worker_field_and_reason() {
        let refusal = wire::Refusal {
            model: "m".into(),
            field: "models[0].pool.warm".into(),
            reason: "INVALID_FIELD".into(),
            message: "must be at most 5".into(),
        };
        let worker = wire::Worker {
            id: "w1".into(),
            state: wire::WorkerState::Refused.into(),
            refusals: vec![refusal; 5],
            ..Default::default()
        };
        let mut rollout = rollout(0, 0, 1, 0);
        rollout.workers = vec![worker];
        let text = refused(&rollout);
        assert_eq!(text.lines().count(), 1 + NAMED, "{text}");
        let line = "\n  w1: models[0].pool.warm: must be at most 5 (INVALID_FIELD)";
        assert!(
            text.starts_with("1 workers refused revision 7") && text.contains(line),
            "{text}"
        );
    }
}
