//! A worker's stream, spoken by hand: what the control plane makes of words that have no place.

use std::time::Duration;

use forebay_proto::wire;
use forebay_tests::{Cluster, eventually, model_at};
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
            apply_millis: 0,
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
