//! What was acknowledged survives `kill -9`, fifty times over; the worker serves on throughout, and
//! starts without the control plane.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use forebay_mock::{MockConfig, MockServer};
use forebay_proto::wire;
use forebay_tests::{Chat, Client, Ended, lasting_addr, model_at};
use tokio::{task::JoinSet, time::sleep};
use tonic::transport::Channel;
use wire::model_registry_client::ModelRegistryClient;

use crate::roles::{Control, Worker, channel};

const KILLS: u64 = 50;
/// Registrations asked for per kill; the kill comes somewhere in the middle of them.
const WRITES: u64 = 500;
const WRITERS: u64 = 8;
/// A model that is there all the time.
const STEADY: &str = "steady";

/// What was acknowledged: the registered models with their revisions, and what was removed.
#[derive(Default)]
struct Acknowledged {
    created: BTreeMap<String, u64>,
    deleted: Vec<String>,
}

#[tokio::test(flavor = "multi_thread")]
async fn kill_9_loses_nothing_that_was_acknowledged() {
    let dir = tempfile::tempdir().unwrap();
    let (store, data) = (dir.path().join("control"), dir.path().join("w"));
    let listen = lasting_addr().to_string();
    let mut control = Control::start(&listen, &store, &[]).await;
    let url = control.url();
    let upstream = MockServer::start(MockConfig::serving(STEADY))
        .await
        .unwrap();
    control.create(model_at(STEADY, &upstream.url())).await;
    let worker = Worker::start(&url, "w", &data, &[]).await;
    worker.ready().await;
    let load = Load::start(worker.client());

    let (mut last, mut all) = (0, 0);
    let mut present = Vec::new();
    for round in 0..KILLS {
        let acknowledged = Arc::new(AtomicU64::new(0));
        let writing = write(
            &url,
            round,
            std::mem::take(&mut present),
            acknowledged.clone(),
        );
        // Somewhere in the middle, which is counted and not timed.
        let kill_at = fastrand::u64(WRITES / 10..WRITES * 9 / 10);
        while acknowledged.load(Ordering::Relaxed) < kill_at {
            sleep(Duration::from_millis(1)).await;
        }
        control.process.kill().await;
        let acknowledged = writing.await;
        assert!(acknowledged.created.len() as u64 >= kill_at);
        all += acknowledged.created.len() + acknowledged.deleted.len();

        control = Control::start(&listen, &store, &[]).await;
        let kept = list(&control).await;
        for (id, revision) in &acknowledged.created {
            assert_eq!(
                kept.get(id),
                Some(revision),
                "{id} of round {round} is lost"
            );
        }
        for id in &acknowledged.deleted {
            assert!(!kept.contains_key(id), "{id} is back in round {round}");
        }
        let newest = kept.values().copied().max().unwrap();
        assert!(newest > last, "revisions only grow");
        last = newest;
        present = kept.into_keys().filter(|id| id != STEADY).collect();
    }
    let (served, failed) = load.stop().await;
    println!(
        "{KILLS} kills, {all} acknowledged writes, 0 lost; the worker served {served} requests"
    );
    assert_eq!(failed, [], "the worker served on");
    assert!(served > KILLS);

    control.process.kill().await;
    worker.process.kill().await;
    let worker = Worker::start(&url, "w", &data, &[]).await;
    worker.ready().await;
    assert_eq!(
        worker.client().finish(STEADY, Chat::Whole, 1).await,
        Ended::Well
    );
    assert!(worker.page("/readyz").await.contains("last known good"));
}

/// Registers this round's models and removes those of the round before, until the control plane is
/// gone or all is done.
fn write(
    url: &str,
    round: u64,
    mut remove: Vec<String>,
    count: Arc<AtomicU64>,
) -> impl Future<Output = Acknowledged> + use<> {
    let mut writers = JoinSet::new();
    let share = remove.len().div_ceil(usize::try_from(WRITERS).unwrap());
    for writer in 0..WRITERS {
        let registry = ModelRegistryClient::new(channel(url));
        let count = count.clone();
        let remove = remove.split_off(remove.len().saturating_sub(share));
        writers.spawn(async move {
            let mut acknowledged = Acknowledged::default();
            let ids = (writer..WRITES)
                .step_by(usize::try_from(WRITERS).unwrap())
                .map(|n| format!("r{round}-{n}"));
            let mut remove = remove.into_iter();
            for id in ids {
                let Some(revision) = create(registry.clone(), &id).await else {
                    break;
                };
                acknowledged.created.insert(id, revision);
                count.fetch_add(1, Ordering::Relaxed);
                if let Some(id) = remove.next() {
                    match delete(registry.clone(), &id).await {
                        true => acknowledged.deleted.push(id),
                        false => break,
                    }
                }
            }
            acknowledged
        });
    }
    async {
        let mut all = Acknowledged::default();
        for one in writers.join_all().await {
            all.created.extend(one.created);
            all.deleted.extend(one.deleted);
        }
        all
    }
}

/// Registers a small model; its revision, if that was acknowledged.
async fn create(mut registry: ModelRegistryClient<Channel>, id: &str) -> Option<u64> {
    let model = wire::Model {
        pool: Some(wire::Pool {
            max_concurrent: Some(1),
            ..wire::Pool::default()
        }),
        ..model_at(id, "http://127.0.0.1:1")
    };
    let request = wire::CreateModelRequest {
        model: Some(model),
        ..Default::default()
    };
    let created = registry.create_model(request).await.ok()?;
    Some(created.into_inner().revision)
}

async fn delete(mut registry: ModelRegistryClient<Channel>, id: &str) -> bool {
    let request = wire::DeleteModelRequest {
        id: id.to_owned(),
        ..Default::default()
    };
    registry.delete_model(request).await.is_ok()
}

/// Every model and its revision.
async fn list(control: &Control) -> BTreeMap<String, u64> {
    let (mut models, mut page_token) = (BTreeMap::new(), String::new());
    loop {
        let request = wire::ListModelsRequest {
            page_size: 1_000,
            page_token,
            ..wire::ListModelsRequest::default()
        };
        let page = control.registry().list_models(request).await;
        let page = page.unwrap().into_inner();
        models.extend(
            page.models
                .into_iter()
                .map(|model| (model.id, model.revision)),
        );
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return models;
        }
    }
}

/// Requests to the steady model, one after the other.
struct Load {
    stop: Arc<AtomicBool>,
    task: JoinSet<(u64, Vec<Ended>)>,
}

impl Load {
    fn start(client: Client) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let mut task = JoinSet::new();
        task.spawn({
            let stop = stop.clone();
            async move {
                let (mut served, mut failed) = (0, Vec::new());
                while !stop.load(Ordering::Relaxed) {
                    match client.finish(STEADY, Chat::Whole, 1).await {
                        Ended::Well => served += 1,
                        ended => failed.push(ended),
                    }
                    sleep(Duration::from_millis(10)).await;
                }
                (served, failed)
            }
        });
        Self { stop, task }
    }

    async fn stop(mut self) -> (u64, Vec<Ended>) {
        self.stop.store(true, Ordering::Relaxed);
        self.task.join_next().await.unwrap().unwrap()
    }
}
