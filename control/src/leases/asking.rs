//! What operators ask of the leases, at whichever control plane: the one that decides answers from what it knows, the
//! others ask it over the board. Answers are messages of the API, encoded.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use forebay_proto::wire;
use parking_lot::Mutex;
use prost::Message;
use tokio::time::{Instant, timeout};

use super::{Forgot, Leases, board::Fenced};

/// Largest answer that goes from one control plane to another.
const ANSWER_BYTES: usize = 1 << 20;
/// Bytes of answers between two decisions; who asks for more is told so.
const PASS_BYTES: usize = 4 << 20;
/// How long an answer of another control plane is good for whoever asks the same.
const FRESH: Duration = Duration::from_secs(1);
/// Most questions of which the answer is known, or waited for.
const REMEMBERED: usize = 16;
/// How long answers may take before leases are decided again.
const REPLY_WITHIN: Duration = Duration::from_millis(500);
/// Most workers that are asked for at once.
const WORKERS: usize = 1_000;

/// What others answered a moment ago, or are asked right now: what many want to know is asked once.
#[derive(Debug, Default)]
pub(super) struct Answers(Mutex<BTreeMap<Vec<u8>, Arc<Slot>>>);

/// One question. Who holds it asks; the others wait, and have the same answer.
type Slot = tokio::sync::Mutex<Option<(Instant, Result<Vec<u8>, String>)>>;

impl Answers {
    /// The place of a question, if there is room for one.
    fn slot(&self, question: &[u8]) -> Option<Arc<Slot>> {
        let mut slots = self.0.lock();
        if let Some(slot) = slots.get(question) {
            return Some(slot.clone());
        }
        if slots.len() >= REMEMBERED {
            slots.retain(|_, slot| match slot.try_lock() {
                Ok(known) => known.as_ref().is_some_and(|(at, _)| at.elapsed() < FRESH),
                Err(_) => true,
            });
        }
        let room = slots.len() < REMEMBERED;
        room.then(|| slots.entry(question.to_vec()).or_default().clone())
    }

    /// The answer, of now or of a moment ago: then nobody is asked.
    async fn of(
        &self,
        question: &[u8],
        asked: impl Future<Output = Result<Vec<u8>, String>>,
    ) -> Result<Vec<u8>, String> {
        let Some(slot) = self.slot(question) else {
            return Err("too much is asked of whoever decides on leases; try again".to_owned());
        };
        let mut known = slot.lock().await;
        if let Some((at, answer)) = &*known
            && at.elapsed() < FRESH
        {
            return answer.clone();
        }
        let answer = asked.await;
        *known = Some((Instant::now(), answer.clone()));
        answer
    }

    /// Something was changed.
    fn forget(&self) {
        self.0.lock().clear();
    }
}

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
    /// The worker is not forgotten because it is there.
    #[prost(bool, tag = "5")]
    connected: bool,
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

    /// Forgets a worker; or why it is not known whether it was done.
    pub(crate) async fn forget(&self, worker: &str) -> Result<Forgot, String> {
        let answer = self.ask(Kind::Forget, vec![worker.to_owned()]).await?;
        Ok(match (answer.done, answer.connected) {
            (true, _) => Forgot::Done,
            (false, true) => Forgot::Connected,
            (false, false) => Forgot::Unknown,
        })
    }

    async fn ask(&self, kind: Kind, of: Vec<String>) -> Result<Answer, String> {
        let question = Question {
            kind: kind.into(),
            of,
        };
        if let Some(answer) = self.reply(&question) {
            return Ok(answer);
        }
        let question = question.encode_to_vec();
        let asked = self.board.ask(question.clone());
        // Answers cost a write in etcd each. What is to be done is done for each who asks for it.
        let answer = match kind {
            Kind::Forget => {
                let answer = asked.await;
                self.answers.forget();
                answer?
            }
            Kind::Unspecified | Kind::Pools | Kind::Workers => {
                self.answers.of(&question, asked).await?
            }
        };
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
            Kind::Forget => {
                let forgot = first.map(|worker| machine.forget(worker));
                answer.done = forgot == Some(Forgot::Done);
                answer.connected = forgot == Some(Forgot::Connected);
            }
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
        let mut known: BTreeMap<Vec<u8>, Vec<u8>> = BTreeMap::new();
        let mut batches: BTreeMap<String, Vec<(u64, Vec<u8>)>> = BTreeMap::new();
        let mut all = 0;
        for asked in self.board.questions() {
            let answer = match known.get(&asked.question) {
                Some(answer) => answer.clone(),
                None => self.answer_to(&asked.question),
            };
            all += answer.len();
            let answer = match all <= PASS_BYTES {
                true => answer,
                false => too_large(),
            };
            known.insert(asked.question, answer.clone());
            let batch = batches.entry(asked.from.clone()).or_default();
            let bytes: usize = batch.iter().map(|(_, answer)| answer.len()).sum();
            let full = match bytes + answer.len() > ANSWER_BYTES {
                true => std::mem::take(batch),
                false => Vec::new(),
            };
            batch.push((asked.number, answer));
            if !full.is_empty() {
                self.board.answer(term, &asked.from, full).await?;
            }
        }
        for (from, batch) in batches {
            self.board.answer(term, &from, batch).await?;
        }
        Ok(())
    }

    fn answer_to(&self, question: &[u8]) -> Vec<u8> {
        let question = Question::decode(question).unwrap_or_default();
        let answer = self.reply(&question).unwrap_or_default().encode_to_vec();
        match answer.len() <= ANSWER_BYTES {
            true => answer,
            false => too_large(),
        }
    }
}

fn too_large() -> Vec<u8> {
    let too_large = true;
    Answer {
        too_large,
        ..Answer::default()
    }
    .encode_to_vec()
}

#[cfg(test)]
mod tests {
    use forebay_proto::{Digest, Epoch, Position, Revision};
    use tokio::{sync::watch, time::sleep};

    use super::*;
    use crate::leases::{
        Grant, LeaseSettings, Machine, MachineFaults, Origin, Standing, Table,
        board::{Asked, Board, TableError},
    };

    /// One of many control planes, which counts what is asked and answered.
    #[derive(Debug, Default)]
    struct Counting {
        asked: Mutex<usize>,
        questions: Mutex<Vec<Asked>>,
        answered: Mutex<Vec<(String, Vec<u64>)>>,
    }

    #[tonic::async_trait]
    impl Board for Counting {
        fn report(&self, _: &forebay_proto::WorkerId, _: Standing) {}
        async fn demands(&self) -> Vec<(forebay_proto::WorkerId, Standing)> {
            std::future::pending().await
        }
        async fn allot(
            &self,
            _: u64,
            _: Vec<(forebay_proto::WorkerId, Arc<Grant>)>,
        ) -> Result<(), Fenced> {
            Ok(())
        }
        fn allotted(&self, _: &forebay_proto::WorkerId) -> watch::Receiver<Option<Arc<Grant>>> {
            watch::channel(None).1
        }
        async fn begin(&self, _: u64) -> Result<Option<Table>, TableError> {
            Ok(None)
        }
        fn end(&self) {}
        async fn keep(&self, _: u64, _: Table) -> Result<(), TableError> {
            Ok(())
        }
        async fn ask(&self, _: Vec<u8>) -> Result<Vec<u8>, String> {
            *self.asked.lock() += 1;
            sleep(Duration::from_millis(100)).await;
            Ok(Answer::default().encode_to_vec())
        }
        fn questions(&self) -> Vec<Asked> {
            std::mem::take(&mut self.questions.lock())
        }
        async fn answer(
            &self,
            _: u64,
            to: &str,
            answers: Vec<(u64, Vec<u8>)>,
        ) -> Result<(), Fenced> {
            let numbers = answers.iter().map(|(number, _)| *number).collect();
            self.answered.lock().push((to.to_owned(), numbers));
            Ok(())
        }
    }

    fn leases() -> (Leases, Arc<Counting>) {
        let board = Arc::new(Counting::default());
        let found = Position {
            epoch: Epoch::new("aa").unwrap(),
            revision: Revision::new(1),
            digest: Digest::of(b""),
        };
        let leases = Leases::new(board.clone(), LeaseSettings::default(), found);
        (leases, board)
    }

    #[tokio::test(start_paused = true)]
    async fn what_many_ask_at_once_or_within_a_second_is_asked_once() {
        let (leases, board) = leases();
        let all = (0..50).map(|_| leases.pools(None));
        let all = futures_util::future::join_all(all).await;
        assert!(all.iter().all(Result::is_ok));
        assert_eq!(*board.asked.lock(), 1);
        leases.pools(None).await.unwrap();
        assert_eq!(*board.asked.lock(), 1);
        leases.pools(Some("m")).await.unwrap();
        assert_eq!(*board.asked.lock(), 2, "that is another question");
        tokio::time::advance(FRESH).await;
        leases.pools(None).await.unwrap();
        assert_eq!(*board.asked.lock(), 3);
        // What is to be done is done, and what was known is not known any more.
        leases.forget("w").await.unwrap();
        leases.forget("w").await.unwrap();
        leases.pools(None).await.unwrap();
        assert_eq!(*board.asked.lock(), 6);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_asked_is_bounded() {
        let (leases, board) = leases();
        let names: Vec<String> = (0..100).map(|n| format!("m{n}")).collect();
        let all = names.iter().map(|name| leases.pools(Some(name)));
        let all = futures_util::future::join_all(all).await;
        let answered = all.iter().filter(|answer| answer.is_ok()).count();
        assert_eq!((answered, *board.asked.lock()), (REMEMBERED, REMEMBERED));
        tokio::time::advance(FRESH).await;
        leases.pools(Some("another")).await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn one_control_plane_is_answered_at_once_whatever_it_asks() {
        let (leases, board) = leases();
        let origin = Origin {
            epoch: Epoch::new("aa").unwrap(),
            fresh: true,
        };
        let on_record = (Table::default(), origin);
        let machine = Machine::new(
            Duration::ZERO,
            LeaseSettings::default(),
            on_record,
            MachineFaults::default(),
        );
        *leases.machine.lock() = Some(machine);
        let asked = |from: &str, number| Asked {
            from: from.to_owned(),
            number,
            question: Vec::new(),
        };
        *board.questions.lock() = vec![asked("a", 1), asked("b", 7), asked("a", 2), asked("a", 3)];
        leases.reply_all(1).await.unwrap();
        let answered = std::mem::take(&mut *board.answered.lock());
        let expected = [("a".to_owned(), vec![1, 2, 3]), ("b".to_owned(), vec![7])];
        assert_eq!(answered, expected);
    }
}
