//! A worker's stream, spoken by hand: what the control plane makes of words that have no place.

use std::time::Duration;

use forebay_proto::wire;
use forebay_tests::{Cluster, eventually, eventually_within, model_at};
use tokio::{sync::mpsc, time::timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};
use wire::{from_worker::Message as Say, to_worker::Message as Heard};

const SOON: Duration = Duration::from_secs(5);

struct Stream {
    say: mpsc::Sender<wire::FromWorker>,
    heard: Streaming<wire::ToWorker>,
}

impl Stream {
    async fn open(cluster: &Cluster) -> Self {
        let (say, said) = mpsc::channel(8);
        let mut sync = wire::worker_sync_client::WorkerSyncClient::new(cluster.channel());
        let heard = sync.sync(ReceiverStream::new(said)).await.unwrap();
        Self {
            say,
            heard: heard.into_inner(),
        }
    }

    async fn greeted(cluster: &Cluster, worker: &str) -> (Self, wire::Push) {
        let mut stream = Self::open(cluster).await;
        stream.say(hello(worker)).await;
        assert!(matches!(stream.hear().await, Ok(Heard::Welcome(_))));
        match stream.hear().await {
            Ok(Heard::Push(push)) => (stream, push),
            other => unreachable!("not a push: {other:?}"),
        }
    }

    async fn say(&self, message: Say) {
        let message = Some(message);
        self.say.send(wire::FromWorker { message }).await.unwrap();
    }

    async fn hear(&mut self) -> Result<Heard, Status> {
        let heard = timeout(SOON, self.heard.message()).await.unwrap()?;
        Ok(heard.unwrap().message.unwrap())
    }
}

fn hello(worker: &str) -> Say {
    Say::Hello(wire::Hello {
        worker_id: worker.to_owned(),
        instance_id: "i".to_owned(),
        protocol_min: 1,
        protocol_max: 1,
        ..Default::default()
    })
}

async fn workers(cluster: &Cluster) -> Vec<wire::Worker> {
    let request = wire::ListWorkersRequest::default();
    let list = cluster.fleet().list_workers(request).await.unwrap();
    list.into_inner().workers
}

/// Otherwise the first worker would count as connected for ever.
#[tokio::test(flavor = "multi_thread")]
async fn a_stream_is_of_one_worker() {
    let cluster = Cluster::start().await;
    let (mut stream, _) = Stream::greeted(&cluster, "w1").await;
    stream.say(hello("w2")).await;
    assert_eq!(
        stream.hear().await.unwrap_err().code(),
        Code::InvalidArgument
    );
    eventually("the first is gone, the second never was", async || {
        let workers = workers(&cluster).await;
        let gone = workers[0].state() == wire::WorkerState::Gone;
        (workers.len() == 1 && gone).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_an_answer_to_the_push_counts() {
    let cluster = Cluster::start().await;
    let created = cluster.create(model_at("m", "http://10.0.0.1:80")).await;
    let (mut stream, push) = Stream::greeted(&cluster, "w1").await;
    let ack = |push_id, applied| {
        Say::Ack(wire::Ack {
            push_id,
            applied,
            ..wire::Ack::default()
        })
    };
    // Of a push that was never made.
    stream.say(ack(push.push_id + 7, push.to.clone())).await;
    let newest = wire::GetRolloutRequest::default();
    let rollout = cluster.fleet().get_rollout(newest).await;
    let rollout = rollout.unwrap().into_inner();
    assert_eq!((rollout.pending, rollout.applied), (1, 0));
    // Of this push, but with another content.
    let other = push.to.clone().map(|to| wire::Position {
        revision: created.revision + 1_000,
        ..to
    });
    stream.say(ack(push.push_id, other)).await;
    assert_eq!(
        stream.hear().await.unwrap_err().code(),
        Code::InvalidArgument
    );
    assert_eq!(workers(&cluster).await[0].applied_revision, 0);
}

fn refused(model: &str) -> wire::Refusal {
    wire::Refusal {
        model: model.to_owned(),
        field: "models[0].endpoints[0].url".to_owned(),
        reason: "INVALID_FIELD".to_owned(),
        message: "why it is bad".to_owned(),
    }
}

/// Who asks sees which model is not everywhere, and why, within a second of the worker's word.
#[tokio::test(flavor = "multi_thread")]
async fn a_model_that_a_worker_could_not_take_is_shown_with_its_reason() {
    let cluster = Cluster::start().await;
    let created = cluster.create(model_at("m", "http://10.0.0.1:80")).await;
    let (stream, push) = Stream::greeted(&cluster, "w1").await;
    let ack = wire::Ack {
        push_id: push.push_id,
        applied: push.to.clone(),
        refusals: vec![refused("m"); 300],
        ..wire::Ack::default()
    };
    stream.say(Say::Ack(ack)).await;
    let shown = async || {
        let newest = wire::GetRolloutRequest::default();
        let rollout = cluster.fleet().get_rollout(newest).await.ok()?.into_inner();
        (rollout.partial == 1).then_some(rollout)
    };
    let rollout = eventually_within(Duration::from_secs(1), "it is shown", shown).await;
    assert_eq!((rollout.applied, rollout.complete), (0, false));
    let worker = &rollout.workers[0];
    assert_eq!(worker.state(), wire::WorkerState::Partial);
    assert_eq!(worker.applied_revision, created.revision);
    assert_eq!((worker.refused_revision, worker.refusals.len()), (0, 100));
    assert_eq!(worker.refusals[0], refused("m"));
    let page = cluster.metrics().await;
    let partial = page.sum("forebay_rollout_workers", &["state=\"partial\""]);
    assert_eq!(partial, 1.0);

    // A control plane that was not there when it happened learns of it from the first word.
    let Say::Hello(hello) = hello("w2") else {
        unreachable!()
    };
    let other = Stream::open(&cluster).await;
    let hello = wire::Hello {
        applied: push.to,
        refusals: vec![refused("m")],
        ..hello
    };
    other.say(Say::Hello(hello)).await;
    eventually("both are partial", async || {
        let newest = wire::GetRolloutRequest::default();
        let rollout = cluster.fleet().get_rollout(newest).await.ok()?.into_inner();
        (rollout.partial == 2).then_some(())
    })
    .await;
}

/// What a worker will not try again is not pushed to it, and counts as refused; the next revision is.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_worker_has_in_quarantine_is_not_pushed() {
    let cluster = Cluster::start().await;
    cluster.create(model_at("m", "http://10.0.0.1:80")).await;
    let (stream, push) = Stream::greeted(&cluster, "w1").await;
    drop(stream);
    let Say::Hello(hello) = hello("w1") else {
        unreachable!()
    };
    let mut stream = Stream::open(&cluster).await;
    let hello = wire::Hello {
        quarantined: push.to.clone().into_iter().collect(),
        ..hello
    };
    stream.say(Say::Hello(hello)).await;
    assert!(matches!(stream.hear().await, Ok(Heard::Welcome(_))));
    let rollout = eventually("it counts as refused", async || {
        let newest = wire::GetRolloutRequest::default();
        let rollout = cluster.fleet().get_rollout(newest).await.ok()?.into_inner();
        (rollout.refused == 1).then_some(rollout)
    })
    .await;
    assert_eq!(rollout.workers[0].refusals[0].reason, "QUARANTINED");
    cluster.create(model_at("n", "http://10.0.0.1:81")).await;
    match stream.hear().await {
        Ok(Heard::Push(next)) => assert_ne!(next.to, push.to, "only the next one"),
        other => unreachable!("{other:?}"),
    }
}
