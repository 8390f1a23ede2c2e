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

/// A whole configuration.
struct Scene {
    upstream: MockServer,
}

impl Scene {
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

#[tokio::test(flavor = "multi_thread")]
async fn poison_in_a_storm_of_pushes_costs_nobody_else_anything() {
    let pushes = std::env::var(PUSHES_VARIABLE).map_or(PUSHES, |pushes| pushes.parse().unwrap());
    let upstream = MockConfig {
        models: SIBLINGS
            .into_iter()
            .chain([POISONED])
            .map(str::to_owned)
            .collect(),
        interval: Duration::ZERO,
        ..MockConfig::default()
    };
    let scene = Scene {
        upstream: MockServer::start(upstream).await.unwrap(),
    };
    let dir = tempfile::tempdir().unwrap();
    let mut control = FakeControl::start().await;
    let worker = Worker::start(&control.url(), "w", dir.path(), &[]).await;
    let process = worker.process.id();
    let (mut stream, _) = control.accept().await;
    answer(&mut stream, scene.good(1), "the first")
        .await
        .unwrap();
    let load = Load::start(&worker.client());

    let models = poison("forebay.v1.Model", &scene.model());
    let (began, mut seen) = (Instant::now(), Seen::default());
    let mut revision = 1;
    for (n, poison) in models.iter().enumerate() {
        // Good ones in between, so that there is something that is retained.
        for _ in 0..(pushes * (n + 1) / models.len()).saturating_sub(seen.pushes + 1) {
            revision += 1;
            let ack = answer(&mut stream, scene.good(revision), "a good one")
                .await
                .unwrap();
            assert_eq!(ack.refusals, [], "after what precedes {}", poison.what);
            seen.pushes += 1;
        }
        revision += 1;
        let push = scene.poisoned(revision, poison);
        let ack = answer(&mut stream, push, &poison.what).await;
        seen.note(
            &ack.unwrap_or_else(|nack| panic!("{}: {nack:?}", poison.what)),
            poison,
        );
        if n % LOOK_EVERY == 0 {
            look(&worker, revision).await;
        }
    }
    let mut refused = 0;
    let envelopes = scene.envelopes(revision);
    for poison in &envelopes {
        revision += 1;
        let push = of_bytes(revision, poison.bytes.clone());
        refused += u32::from(answer(&mut stream, push, &poison.what).await.is_err());
        revision += 1;
        answer(&mut stream, scene.good(revision), &poison.what)
            .await
            .unwrap();
        seen.pushes += 2;
    }
    look(&worker, revision).await;
    let (served, failed) = load.stop().await;
    println!(
        "{} poison models ({} refused, the rest harmless) and {} poison envelopes ({refused} refused) in {} pushes, \
         {:?}: {served} requests served, {} failed",
        models.len(),
        seen.refused,
        envelopes.len(),
        seen.pushes,
        began.elapsed(),
        failed.len()
    );
    assert_eq!(failed, [], "the siblings are served on");
    assert_eq!(worker.process.id(), process);
    assert!(
        models.len() >= 1_000 && seen.refused >= 600 && refused >= 10,
        "{seen:?} {refused}"
    );
    assert!(served > 500, "{served}");
    assert!(
        !worker.process.err().contains("panicked"),
        "{}",
        worker.process.err()
    );
    // An end in good order, too.
    let (code, _, err) = worker.process.terminate().await;
    assert_eq!(code, Some(0), "{err}");
}

#[derive(Debug, Default)]
struct Seen {
    pushes: usize,
    refused: usize,
}

impl Seen {
    fn note(&mut self, ack: &wire::Ack, poison: &Poison) {
        self.pushes += 1;
        self.refused += usize::from(!ack.refusals.is_empty());
        for refusal in &ack.refusals {
            let named = refusal.model == POISONED || refusal.model.is_empty();
            let told = refusal.field.starts_with("models[1]") && !refusal.message.is_empty();
            assert!(named && told, "{}: {refusal:?}", poison.what);
        }
    }
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
