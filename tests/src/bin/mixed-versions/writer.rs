//! An operator that goes on writing while control planes come and go: each write again until it is answered, under one
//! request id. What was answered must be there in the end.

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use forebay_proto::wire;
use forebay_tests::model_at;
use tokio::{
    task::JoinHandle,
    time::{sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::{
    Code,
    transport::{Channel, Endpoint},
};
use wire::model_registry_client::ModelRegistryClient;

const EVERY: Duration = Duration::from_millis(200);
const AGAIN: Duration = Duration::from_millis(100);
const WITHIN: Duration = Duration::from_secs(5);

/// One that writes.
pub(crate) struct Writer {
    stop: CancellationToken,
    task: JoinHandle<Written>,
}

/// What was answered.
#[derive(Debug, Default)]
pub(crate) struct Written {
    pub(crate) writes: u64,
    /// The models that are there, and the size of each.
    pub(crate) models: BTreeMap<String, u32>,
}

impl Writer {
    /// Begins to write to what is at this address; its models begin with this.
    pub(crate) fn start(control: SocketAddr, prefix: &'static str, upstream: String) -> Self {
        let stop = CancellationToken::new();
        let tracker = TaskTracker::new();
        let task = tracker.spawn(write(control, prefix, upstream, stop.clone()));
        Self { stop, task }
    }

    /// Ends after the write that is under way.
    pub(crate) async fn end(self) -> Written {
        self.stop.cancel();
        self.task.await.expect("the writer ends well")
    }
}

async fn write(
    control: SocketAddr,
    prefix: &'static str,
    upstream: String,
    stop: CancellationToken,
) -> Written {
    let endpoint = Endpoint::from_shared(format!("http://{control}")).expect("our own url");
    let mut registry = ModelRegistryClient::new(endpoint.connect_lazy());
    let mut written = Written::default();
    for number in 1_u32.. {
        // Of ten writes, one makes a model, the others change its size.
        let (id, size) = (format!("{prefix}{}", number / 10), 10 + number % 20);
        let request_id = format!("{prefix}-{number}");
        loop {
            let model = wire::Model {
                pool: Some(wire::Pool {
                    max_concurrent: Some(size),
                    ..wire::Pool::default()
                }),
                ..model_at(&id, &upstream)
            };
            let made = send(
                &mut registry,
                model,
                written.models.contains_key(&id),
                &request_id,
            );
            match timeout(WITHIN, made).await {
                Ok(Ok(())) => break,
                Ok(Err(status)) if is_away(&status) => sleep(AGAIN).await,
                Ok(Err(status)) => panic!("write {number} was refused: {status}"),
                Err(_) => {}
            }
        }
        written.writes += 1;
        written.models.insert(id, size);
        tokio::select! {
            () = sleep(EVERY) => {}
            () = stop.cancelled() => break,
        }
    }
    written
}

/// Nobody is there to answer.
fn is_away(status: &tonic::Status) -> bool {
    matches!(
        status.code(),
        Code::Unavailable | Code::Cancelled | Code::Unknown | Code::DeadlineExceeded
    )
}

async fn send(
    registry: &mut ModelRegistryClient<Channel>,
    model: wire::Model,
    is_there: bool,
    request_id: &str,
) -> Result<(), tonic::Status> {
    let request_id = request_id.to_owned();
    let model = Some(model);
    match is_there {
        true => {
            let update_mask = Some(prost_types::FieldMask {
                paths: vec!["pool.max_concurrent".to_owned()],
            });
            let request = wire::UpdateModelRequest {
                model,
                update_mask,
                request_id,
                ..wire::UpdateModelRequest::default()
            };
            registry.update_model(request).await?;
        }
        false => {
            let request = wire::CreateModelRequest {
                model,
                request_id,
                ..wire::CreateModelRequest::default()
            };
            registry.create_model(request).await?;
        }
    }
    Ok(())
}
