//! Poison in the middle of a storm of pushes: the worker serves on, its process lives, and the siblings of what is bad
//! apply.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use forebay_mock::{MockConfig, MockServer};
use forebay_proto::{Config, Digest, wire};
use forebay_tests::{
    Chat, Client, Ended, FakeControl, FakeStream, Poison, model_at, poison, push_of,
};
use prost::Message as _;
use tokio::{task::JoinSet, time::Instant};
use wire::{from_worker::Message as Heard, to_worker::Message as Say};

use crate::roles::Worker;

/// How many pushes there are at least; all poison is in them.
const PUSHES_VARIABLE: &str = "FOREBAY_TEST_POISON_PUSHES";
const PUSHES: usize = 2_500;
/// The models that must not notice.
const SIBLINGS: [&str; 2] = ["a-sibling", "z-sibling"];
/// The one that is poisoned.
const POISONED: &str = "m-poisoned";
/// How often the siblings are looked at.
const LOOK_EVERY: usize = 50;

/// What configurations are made of.
struct Scene {
    upstream: MockServer,
}

impl Scene {
    async fn set() -> Self {
        let models = SIBLINGS.into_iter().chain([POISONED]);
        let upstream = MockServer::start(MockConfig {
            models: models.map(str::to_owned).collect(),
            interval: Duration::ZERO,
            ..MockConfig::default()
        });
        Self {
            upstream: upstream.await.unwrap(),
        }
    }

    /// The models at this revision; each has something else in them.
    fn models(&self, revision: u64) -> Vec<wire::Model> {
        let url = self.upstream.url();
        let changing = |id: &str| wire::Model {
            timeouts: Some(wire::Timeouts {
                total: Some(seconds(1_000 + revision)),
                ..wire::Timeouts::default()
            }),
            pool: Some(wire::Pool {
                max_concurrent: Some(u32::try_from(20 + revision % 7).unwrap()),
                ..wire::Pool::default()
            }),
            ..model_at(id, &url)
        };
        let tls = wire::Endpoint {
            id: "b".to_owned(),
            url: "https://127.0.0.1:1".to_owned(),
            tls: Some(wire::EndpointTls {
                server_name: "example.org".to_owned(),
                ..wire::EndpointTls::default()
            }),
            weight: Some(3),
            ..wire::Endpoint::default()
        };
        let mut poisoned = changing(POISONED);
        poisoned.aliases = vec!["alias".to_owned()];
        poisoned.endpoints[0].id = "a".to_owned();
        poisoned.endpoints.insert(0, tls);
        vec![changing(SIBLINGS[0]), poisoned, changing(SIBLINGS[1])]
    }

    fn good(&self, revision: u64) -> wire::Push {
        push_of(revision, self.models(revision))
    }

    /// The same, with this in the place of a model.
    fn poisoned(&self, revision: u64, poison: &Poison) -> wire::Push {
        let good = self.good(revision);
        let config = Config::decode(&good.config).unwrap();
        let models = config.models().iter().map(|model| match model.id.as_str() {
            POISONED => poison.bytes.clone().into(),
            _ => wire::Model::from(model).encode_to_vec().into(),
        });
        let envelope = wire::Envelope {
            budget: config.budget().get(),
            models: models.collect(),
        };
        of_bytes(revision, envelope.encode_to_vec())
    }

    /// The model as it is pushed.
    fn model(&self) -> Vec<u8> {
        let config = Config::decode(&self.good(1).config).unwrap();
        wire::Model::from(&config.models()[1]).encode_to_vec()
    }

    /// What is bad in the envelope. The siblings are in it all the same, before what is bad: a configuration without
    /// them is no poison.
    fn envelopes(&self, revision: u64) -> Vec<Poison> {
        let good = self.good(revision).config;
        let without_budget = good.slice(2 + usize::from(good[1] >= 0x80)..);
        let blank = Poison {
            what: "budget: blank".to_owned(),
            bytes: without_budget.to_vec(),
        };
        let all = poison("forebay.v1.Config", &[]).into_iter();
        // The models have their turn on their own.
        let all = all.filter(|poison| !poison.what.contains('.') && !poison.bytes.is_empty());
        let appended = all.map(|poison| Poison {
            bytes: [&good[..], &poison.bytes[..]].concat(),
            ..poison
        });
        appended.chain([blank]).collect()
    }
}

fn seconds(seconds: u64) -> prost_types::Duration {
    prost_types::Duration {
        seconds: i64::try_from(seconds).unwrap(),
        nanos: 0,
    }
}

fn of_bytes(revision: u64, config: Vec<u8>) -> wire::Push {
    wire::Push {
        push_id: revision,
        to: Some(wire::Position {
            epoch: "fa".to_owned(),
            revision,
            digest: Digest::of(&config).as_bytes().to_vec().into(),
        }),
        config: config.into(),
        ..wire::Push::default()
    }
}

/// What the worker made of a push.
async fn answer(
    stream: &mut FakeStream,
    push: wire::Push,
    what: &str,
) -> Result<wire::Ack, wire::Nack> {
    let to = push.to.clone();
    stream.say(Say::Push(push)).await;
    match stream.hear().await {
        Some(Heard::Ack(ack)) if ack.applied == to => Ok(ack),
        Some(Heard::Nack(nack)) if nack.attempted == to => Err(nack),
        other => unreachable!("{what}: {other:?}"),
    }
}

/// Pushes without end to one worker.
struct Storm {
    scene: Scene,
    worker: Worker,
    stream: FakeStream,
    revision: u64,
    pushes: usize,
    /// Pushes with a model that was not taken.
    partial: usize,
}

impl Storm {
    async fn good(&mut self, after: &str) {
        self.revision += 1;
        self.pushes += 1;
        let push = self.scene.good(self.revision);
        let ack = answer(&mut self.stream, push, after).await.unwrap();
        assert_eq!(ack.refusals, [], "after {after}");
    }

    /// Poison in the place of a model: the configuration is taken, that model is not, or is harmless.
    async fn model(&mut self, poison: &Poison) {
        self.revision += 1;
        self.pushes += 1;
        let push = self.scene.poisoned(self.revision, poison);
        let ack = answer(&mut self.stream, push, &poison.what).await;
        let ack = ack.unwrap_or_else(|nack| unreachable!("{}: {nack:?}", poison.what));
        self.partial += usize::from(!ack.refusals.is_empty());
        for refusal in &ack.refusals {
            let named = refusal.model == POISONED || refusal.model.is_empty();
            let told = refusal.field.starts_with("models[1]") && !refusal.message.is_empty();
            assert!(named && told, "{}: {refusal:?}", poison.what);
        }
    }

    /// Poison in the envelope. True if the whole was refused.
    async fn envelope(&mut self, poison: &Poison) -> bool {
        self.revision += 1;
        self.pushes += 1;
        let push = of_bytes(self.revision, poison.bytes.clone());
        let refused = answer(&mut self.stream, push, &poison.what).await.is_err();
        self.good(&poison.what).await;
        refused
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn poison_in_a_storm_of_pushes_costs_nobody_else_anything() {
    let pushes = std::env::var(PUSHES_VARIABLE).map_or(PUSHES, |pushes| pushes.parse().unwrap());
    let dir = tempfile::tempdir().unwrap();
    let mut control = FakeControl::start().await;
    let worker = Worker::start(&control.url(), "w", dir.path(), &[]).await;
    let (process, (stream, _)) = (worker.process.id(), control.accept().await);
    let mut storm = Storm {
        scene: Scene::set().await,
        worker,
        stream,
        revision: 0,
        pushes: 0,
        partial: 0,
    };
    storm.good("the start").await;
    let (load, began) = (Load::start(&storm.worker.client()), Instant::now());

    let models = poison("forebay.v1.Model", &storm.scene.model());
    for (n, poison) in models.iter().enumerate() {
        // Good ones in between, so that there is something that is retained.
        while storm.pushes + 1 < pushes * (n + 1) / models.len() {
            storm.good(&poison.what).await;
        }
        storm.model(poison).await;
        if n % LOOK_EVERY == 0 {
            look(&storm.worker, storm.revision).await;
        }
    }
    let (envelopes, mut refused) = (storm.scene.envelopes(storm.revision), 0);
    for poison in &envelopes {
        refused += u32::from(storm.envelope(poison).await);
    }
    look(&storm.worker, storm.revision).await;
    let (served, failed) = load.stop().await;
    println!(
        "{} poison models ({} not taken, the rest harmless) and {} poison envelopes ({refused} refused) in {} \
         pushes, {:?}: {served} requests served, {} failed",
        models.len(),
        storm.partial,
        envelopes.len(),
        storm.pushes,
        began.elapsed(),
        failed.len()
    );
    assert_eq!(failed, [], "the siblings are served on");
    assert!(models.len() >= 1_000 && storm.partial >= 600 && refused >= 10);
    assert!(served > 500, "{served}");
    assert_eq!(storm.worker.process.id(), process);
    // An end in good order, too.
    let (code, _, err) = storm.worker.process.terminate().await;
    assert_eq!(code, Some(0), "{err}");
    assert!(!err.contains("panicked"), "{err}");
}

/// The siblings are those of this revision.
async fn look(worker: &Worker, revision: u64) {
    let config: serde_json::Value = serde_json::from_str(&worker.page("/config").await).unwrap();
    assert_eq!(config["revision"], revision);
    for id in SIBLINGS {
        let models = config["models"].as_array().unwrap();
        let model = models.iter().find(|model| model["id"] == id).unwrap();
        let total = (1_000 + revision) as f64;
        assert_eq!(model["timeouts"]["total_seconds"], total, "{id}");
        assert_eq!(model["retained"], false);
    }
}

/// Requests that never stop.
struct Load {
    stop: Arc<AtomicBool>,
    served: Arc<AtomicU64>,
    clients: JoinSet<Vec<Ended>>,
}

impl Load {
    fn start(client: &Client) -> Self {
        let (stop, served) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(AtomicU64::new(0)),
        );
        let mut clients = JoinSet::new();
        for n in 0..4_usize {
            let (stop, served, client) = (stop.clone(), served.clone(), client.clone());
            let chat = if n < 2 { Chat::Whole } else { Chat::Stream };
            clients.spawn(async move {
                let mut failed = Vec::new();
                while !stop.load(Ordering::Relaxed) {
                    match client.finish(SIBLINGS[n % 2], chat, 3).await {
                        Ended::Well => drop(served.fetch_add(1, Ordering::Relaxed)),
                        ended => failed.push(ended),
                    }
                }
                failed
            });
        }
        Self {
            stop,
            served,
            clients,
        }
    }

    async fn stop(self) -> (u64, Vec<Ended>) {
        self.stop.store(true, Ordering::Relaxed);
        let failed = self.clients.join_all().await.concat();
        (self.served.load(Ordering::Relaxed), failed)
    }
}
