//! Words of a stream, read and written: the greeting, who a worker is, and why a stream is ended. It must not know the
//! stream.

use std::time::Duration;

use forebay_proto::{
    InstanceId, Position, Violations, WorkerId, convert::duration_to_wire, limits, wire,
};
use tonic::Status;

use super::machine::{SILENCE, Why};
use crate::fleet::{self, Introduction, Refused};

pub(super) fn welcome(
    (protocol, replica): (u32, &str),
    target: &Position,
    often: Duration,
) -> wire::Welcome {
    // Jitter, so that a fleet that reconnected together does not beat together.
    let tick = often.mul_f64(0.8 + 0.4 * fastrand::f64());
    wire::Welcome {
        protocol,
        target: Some(target.into()),
        tick_interval: Some(duration_to_wire(tick)),
        silence_limit: Some(duration_to_wire(SILENCE)),
        replica: replica.to_owned(),
    }
}

pub(super) fn introduce(hello: wire::Hello, peer: &str) -> Result<Introduction, Violations> {
    let mut violations = Violations::new();
    let worker = violations.check("hello.worker_id", WorkerId::new(&hello.worker_id));
    let instance = violations.check("hello.instance_id", InstanceId::new(&hello.instance_id));
    let applied = match hello.applied {
        Some(applied) => violations
            .part("hello.applied", Position::try_from(applied))
            .map(Some),
        None => Some(None),
    };
    let quarantined = hello.quarantined.into_iter().take(limits::QUARANTINED);
    let quarantined: Vec<Position> = quarantined
        .filter_map(|q| violations.part("hello.quarantined", Position::try_from(q)))
        .collect();
    let refused = match hello.refused {
        Some(refused) => violations.part("hello.refused", refusal(refused)).map(Some),
        None => Some(None),
    };
    let all = worker.zip(instance).zip(applied).zip(refused);
    violations.finish(
        all.map(|(((worker, instance), applied), refused)| Introduction {
            worker,
            instance,
            build: plain(&hello.build, 64),
            peer: peer.to_owned(),
            gateway: plain(&hello.gateway_address, 256),
            applied,
            refusals: fleet::bounded(hello.refusals),
            quarantined,
            refused,
            control: plain(&hello.control, 256),
            moves: (hello.moves, plain(&hello.moved_because, 32)),
            proves: hello.proves,
            let_in: Duration::from_millis(hello.let_in_millis),
            takes_over: hello.takes_over,
            streams: hello.streams,
        }),
    )
}

fn refusal(nack: wire::Nack) -> Result<Refused, Violations> {
    Ok(Refused {
        position: Position::try_from(nack.attempted.unwrap_or_default())?,
        refusals: fleet::bounded(nack.refusals),
    })
}

/// Text that will stand on an operator's terminal.
fn plain(text: &str, most: usize) -> String {
    text.chars()
        .filter(|c| !c.is_control())
        .take(most)
        .collect()
}

pub(super) fn position(field: &str, wire: Option<wire::Position>) -> Result<Position, Status> {
    let wire = wire.ok_or_else(|| Status::invalid_argument(format!("{field}: required")))?;
    Position::try_from(wire)
        .map_err(|violations| Status::invalid_argument(violations.under(field).to_string()))
}

impl Why {
    pub(super) fn status(self) -> Status {
        match self {
            Self::NoHello => Status::deadline_exceeded("no hello in time"),
            Self::NoAnswer => Status::deadline_exceeded("no answer to the push in time"),
            Self::Silent => Status::deadline_exceeded("the worker was silent for too long"),
            Self::OutOfTurn => Status::invalid_argument("a message that has no place here"),
            Self::WorkerAhead => Status::failed_precondition(
                "the worker runs a newer revision than this control plane has; is it on an old store?",
            ),
            Self::CutOff => Status::unavailable("this control plane does not hear from its store"),
            Self::Age => Status::unavailable("the stream is old enough; a new one is welcome"),
        }
    }
}
