//! A worker's first word: who is let in as whom. Another process with the id that is there already is asked whether it is
//! alive, and this one waits for the answer (`fleet/contest.rs`).

use forebay_proto::{KeysPosition, wire};
use tokio_util::sync::CancellationToken;
use tonic::Status;
use wire::to_worker::Message as Say;

use super::{
    DRAINS, End, PROTOCOLS, Session, end,
    leases::LeaseLine,
    machine::{Event, Why},
    words::introduce,
};
use crate::{
    fleet::{Challenge, Fleet, Introduction, Joined, Joining, Ousted, Verdict},
    metrics::Metrics,
};

/// How often one that waited finds yet another process there. More is a crowd.
const ROUNDS: usize = 3;

impl Session {
    pub(super) async fn hello(&mut self, hello: wire::Hello) -> Result<Event, Status> {
        if self.joined.is_some() {
            return Err(Why::OutOfTurn.status());
        }
        self.protocol = hello.protocol_max.min(*PROTOCOLS.end());
        if self.protocol < hello.protocol_min || !PROTOCOLS.contains(&self.protocol) {
            return Err(Status::failed_precondition(format!(
                "the worker speaks protocol {} to {}, this control plane speaks {} to {}",
                hello.protocol_min,
                hello.protocol_max,
                PROTOCOLS.start(),
                PROTOCOLS.end()
            )));
        }
        let keys = hello.keys.clone().map(KeysPosition::try_from).transpose();
        let keys = keys.map_err(|violations| {
            Status::invalid_argument(violations.under("hello.keys").to_string())
        })?;
        let lineage = (hello.takes_over, hello.streams);
        let introduction = introduce(hello, &self.peer)
            .map_err(|violations| Status::invalid_argument(violations.to_string()))?;
        let worker = introduction.worker.clone();
        let instance = introduction.instance.clone();
        let applied = introduction.applied.clone();
        let quarantined = introduction.quarantined.iter().map(|q| q.digest).collect();
        let joined = admit((&self.fleet, &self.metrics), &introduction, &self.end).await?;
        self.proves = introduction.proves;
        if let Some(older) = &joined.replaces {
            tracing::warn!(
                %worker, peer = self.peer, older,
                "worker id connected again, the older stream is ended"
            );
        }
        let applied_revision = applied.as_ref().map_or(0, |applied| applied.revision.get());
        tracing::info!(%worker, peer = self.peer, applied_revision, "worker connected");
        if self.protocol >= DRAINS {
            self.fleet.drains(&worker, joined.session);
            self.drain = Some(joined.drain.clone());
        }
        let line = (joined.session.number(), instance);
        self.leases = Some(LeaseLine::open(
            &self.board,
            worker.clone(),
            line,
            lineage,
            self.protocol,
        ));
        let refused = joined.refused.clone();
        let version = keys.as_ref().map_or(0, |held| held.version);
        self.fleet.holds_keys(&worker, joined.session, version);
        self.key_pushes.hello(keys);
        self.joined = Some((worker, joined));
        Ok(Event::Hello {
            applied,
            refused,
            quarantined,
        })
    }

    pub(super) fn ended(&self) -> End {
        let joined = self.joined.as_ref();
        match joined.and_then(|(worker, joined)| Some((worker, joined.ousted.get()?))) {
            Some((worker, Ousted::Twin(replica))) => {
                self.metrics.turned_away.inc();
                End::Told(twin(worker.as_str(), Some(replica)))
            }
            Some((_, Ousted::Newer)) if !self.stopping.is_cancelled() => {
                End::Told(Status::aborted("a newer stream of this worker id has come"))
            }
            _ => end::stopping(),
        }
    }

    /// The worker is to prove that it is alive. A build that does not know the question is heard of sooner or later.
    pub(super) fn ask(&mut self, challenge: Challenge) {
        if !self.proves {
            return;
        }
        self.outbox.say(Say::Prove(wire::Prove {
            number: challenge.number,
            instance_id: challenge.instance.to_string(),
            peer: challenge.peer,
        }));
    }
}

/// Lets a worker in, or says why not.
async fn admit(
    (fleet, metrics): (&Fleet, &Metrics),
    introduction: &Introduction,
    end: &CancellationToken,
) -> Result<Joined, Status> {
    let mut over = None;
    for _ in 0..ROUNDS {
        let mut rival = match fleet.join(introduction.clone(), end.clone(), over) {
            Joining::In(joined) => return Ok(joined),
            Joining::Full => {
                return Err(Status::resource_exhausted(
                    "this control plane knows as many workers as it can",
                ));
            }
            Joining::Contested(rival) => rival,
        };
        let verdict = tokio::select! {
            verdict = rival.judge() => verdict,
            () = end.cancelled() => return Err(Status::unavailable("the control plane is stopping")),
        };
        match verdict {
            Verdict::Gone => over = None,
            Verdict::Silent => over = Some(rival.session),
            Verdict::Alive => {
                let (worker, peer) = (&introduction.worker, &introduction.peer);
                let who = (introduction.instance.clone(), peer.clone());
                fleet.turned_away(worker, rival.session, who);
                metrics.turned_away.inc();
                tracing::error!(
                    %worker, peer, instance = %introduction.instance,
                    "another process has this worker id and is alive; the one that came is turned away"
                );
                return Err(twin(introduction.worker.as_str(), None));
            }
        }
    }
    Err(twin(introduction.worker.as_str(), None))
}

/// What a process is told that has the id of another one.
fn twin(worker: &str, replica: Option<&str>) -> Status {
    let at = replica.filter(|replica| !replica.is_empty());
    let at = at.map_or_else(String::new, |replica| format!(" at replica `{replica}`"));
    Status::already_exists(format!(
        "worker id `{worker}` is that of another process, which is alive{at}; give each process its own --worker-id, \
         or end the other one"
    ))
}
