//! What operators ask of the leases, at whichever control plane: the one that decides answers from what it knows, the
//! others ask it over the board. Answers are messages of the API, encoded.

use std::time::Duration;

use forebay_proto::wire;
use prost::Message;
use tokio::time::timeout;

use super::{Leases, board::Fenced};

/// Largest answer that goes from one control plane to another.
const ANSWER_BYTES: usize = 1 << 20;
/// How long answers may take before leases are decided again.
const REPLY_WITHIN: Duration = Duration::from_millis(500);
/// Most workers that are asked for at once.
const WORKERS: usize = 1_000;

/// A question.
#[derive(Clone, PartialEq, Message)]
struct Question {
    #[prost(enumeration = "Kind", tag = "1")]
    kind: i32,
    /// Of what: a model, or none; workers; a worker.
    #[prost(string, repeated, tag = "2")]
    of: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, prost::Enumeration)]
#[repr(i32)]
enum Kind {
    Unspecified = 0,
    /// The limits.
    Pools = 1,
    /// What some workers have of them.
    Workers = 2,
    /// A worker is to be forgotten.
    Forget = 3,
}

/// An answer. Empty, it is that there is none.
#[derive(Clone, PartialEq, Message)]
struct Answer {
    #[prost(message, repeated, tag = "1")]
    pools: Vec<wire::FleetPool>,
    /// With their ids and leases.
    #[prost(message, repeated, tag = "2")]
    workers: Vec<wire::Worker>,
    #[prost(bool, tag = "3")]
    done: bool,
    /// It is too large to be told elsewhere.
    #[prost(bool, tag = "4")]
    too_large: bool,
}

impl Leases {
    /// All limits, or one, with who has what of it; or why that is not known.
    pub(crate) async fn pools(&self, only: Option<&str>) -> Result<Vec<wire::FleetPool>, String> {
        let of = only.map(str::to_owned).into_iter().collect();
        let answer = self.ask(Kind::Pools, of).await?;
        Ok(answer.pools)
    }

    /// Adds what they have of all limits to these workers. Where that is not known, nothing.
    pub(crate) async fn add_leases(&self, workers: &mut [wire::Worker]) {
        let of = workers.iter().map(|worker| worker.id.clone());
        let answer = self.ask(Kind::Workers, of.collect()).await;
        let answer = answer.unwrap_or_else(|why| {
            tracing::debug!(why, "what workers have of fleet-wide limits is not known");
            Answer::default()
        });
        for told in answer.workers {
            let mut all = workers.iter_mut();
            if let Some(worker) = all.find(|worker| worker.id == told.id) {
                worker.leases = told.leases;
            }
        }
    }

    /// Forgets a worker. False if it is connected, or nobody knows it; or why it is not known whether it was done.
    pub(crate) async fn forget(&self, worker: &str) -> Result<bool, String> {
        let answer = self.ask(Kind::Forget, vec![worker.to_owned()]).await?;
        Ok(answer.done)
    }

    async fn ask(&self, kind: Kind, of: Vec<String>) -> Result<Answer, String> {
        let question = Question {
            kind: kind.into(),
            of,
        };
        if let Some(answer) = self.reply(&question) {
            return Ok(answer);
        }
        let answer = self.board.ask(question.encode_to_vec()).await?;
        let answer = Answer::decode(answer.as_slice()).map_err(|error| error.to_string())?;
        match answer.too_large {
            true => Err(
                "it is too much to be told from one control plane to another: ask for one model, or ask the one that \
                 decides (`forebay_control_leader` is 1 there)"
                    .to_owned(),
            ),
            false => Ok(answer),
        }
    }

    /// What is asked, if this control plane decides.
    fn reply(&self, question: &Question) -> Option<Answer> {
        let first = question.of.first();
        let mut answer = Answer::default();
        self.with(|machine, now| match question.kind() {
            Kind::Unspecified => {}
            Kind::Pools => answer.pools = machine.pools(now, first.map(String::as_str)),
            Kind::Workers => {
                let asked = question.of.iter().take(WORKERS);
                let workers = asked.map(|id| wire::Worker {
                    id: id.clone(),
                    leases: machine.leases_of(now, id),
                    ..wire::Worker::default()
                });
                answer.workers = workers.collect();
            }
            Kind::Forget => answer.done = first.is_some_and(|worker| machine.forget(worker)),
        })
        .map(|()| answer)
    }

    /// Answers what others asked.
    /// Whoever asked waits for two seconds, and leases do not wait for answers.
    pub(super) async fn reply_all(&self, term: u64) -> Result<(), Fenced> {
        match timeout(REPLY_WITHIN, self.reply_each(term)).await {
            Ok(replied) => replied,
            Err(_) => {
                tracing::warn!("answers on leases take too long: some are left out");
                Ok(())
            }
        }
    }

    async fn reply_each(&self, term: u64) -> Result<(), Fenced> {
        for asked in self.board.questions() {
            let question = Question::decode(asked.question.as_slice()).unwrap_or_default();
            let mut answer = self.reply(&question).unwrap_or_default().encode_to_vec();
            if answer.len() > ANSWER_BYTES {
                let too_large = true;
                answer = Answer {
                    too_large,
                    ..Answer::default()
                }
                .encode_to_vec();
            }
            self.board.answer(term, asked, answer).await?;
        }
        Ok(())
    }
}
