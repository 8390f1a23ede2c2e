//! A crowd that always wants more: clients that ask again as soon as they are answered, at one of the gateways that there
//! are; and what became of their requests.

use std::{collections::BTreeMap, net::SocketAddr, ops::RangeInclusive, sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::{task::JoinSet, time::sleep};

use crate::{Chat, Client, Ended, eventually};

/// After a failure.
const PAUSE: Duration = Duration::from_millis(100);

/// What became of requests, by word.
pub type Fates = BTreeMap<String, u64>;

/// At which of the gateways a client asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Spread {
    /// At another one each time, drawn at random. What the gateways have to do drifts apart with this, far and for long: one
    /// that answers fewer is asked no less often.
    Random,
    /// Each at one of its own, so that all gateways have as many clients.
    Even,
}

/// Who is asked, and which clients know.
#[derive(Debug, Default)]
struct Asked {
    gateways: Vec<SocketAddr>,
    /// How often the former changed, and how often it had when a client chose last.
    changes: u64,
    known: Vec<u64>,
}

/// Clients that ask until they are dropped.
#[derive(Debug)]
pub struct Crowd {
    asked: Arc<Mutex<Asked>>,
    fates: Arc<Mutex<Fates>>,
    clients: JoinSet<()>,
}

impl Crowd {
    /// So many that ask at random, each answer of so many tokens; half of them are streams.
    #[must_use]
    pub fn new(model: &str, clients: usize, tokens: RangeInclusive<u32>) -> Self {
        Self::spread(Spread::Random, model, clients, tokens)
    }

    /// The same, and how they choose.
    #[must_use]
    pub fn spread(
        spread: Spread,
        model: &str,
        clients: usize,
        tokens: RangeInclusive<u32>,
    ) -> Self {
        let mut crowd = Self {
            asked: Arc::new(Mutex::new(Asked {
                known: vec![0; clients],
                ..Asked::default()
            })),
            fates: Arc::default(),
            clients: JoinSet::new(),
        };
        for n in 0..clients {
            let (asked, fates) = (crowd.asked.clone(), crowd.fates.clone());
            let (model, tokens) = (model.to_owned(), tokens.clone());
            crowd.clients.spawn(async move {
                let mut dice = fastrand::Rng::with_seed(n as u64);
                let mut known: BTreeMap<SocketAddr, Client> = BTreeMap::new();
                loop {
                    let there = asked.lock().chosen_by(n);
                    let at = match spread {
                        Spread::Random => dice.usize(..there.len().max(1)),
                        // Pairs, so that each gateway has as many streams.
                        Spread::Even => n / 2 % there.len().max(1),
                    };
                    let Some(&gateway) = there.get(at) else {
                        sleep(PAUSE).await;
                        continue;
                    };
                    let client = known.entry(gateway);
                    let client = client.or_insert_with(|| Client::new(gateway));
                    let chat = match n % 2 {
                        0 => Chat::Whole,
                        _ => Chat::Stream,
                    };
                    let ended = client.finish(&model, chat, dice.u32(tokens.clone())).await;
                    let (word, failed) = word(&ended);
                    *fates.lock().entry(word).or_default() += 1;
                    if failed {
                        sleep(PAUSE).await;
                    }
                }
            });
        }
        crowd
    }

    /// From now on they ask these. A client that has chosen one already may yet ask that.
    pub fn ask(&self, gateways: Vec<SocketAddr>) {
        let mut asked = self.asked.lock();
        asked.gateways = gateways;
        asked.changes += 1;
    }

    /// The same, and waits until nobody asks another one any more.
    pub async fn ask_only(&self, gateways: Vec<SocketAddr>) {
        self.ask(gateways);
        eventually("all clients have chosen anew", async || {
            let asked = self.asked.lock();
            let all = asked.known.iter().all(|known| *known == asked.changes);
            all.then_some(())
        })
        .await;
    }

    /// What became of requests since this was asked last.
    #[must_use]
    pub fn fates(&self) -> Fates {
        std::mem::take(&mut self.fates.lock())
    }
}

impl Asked {
    fn chosen_by(&mut self, client: usize) -> Vec<SocketAddr> {
        if let Some(known) = self.known.get_mut(client) {
            *known = self.changes;
        }
        self.gateways.clone()
    }
}

/// Enough to see why.
fn end_of(text: &str) -> String {
    let last = text.chars().rev().take(80).collect::<Vec<_>>();
    last.into_iter().rev().collect()
}

fn word(ended: &Ended) -> (String, bool) {
    match ended {
        Ended::Well => ("served".to_owned(), false),
        Ended::Status(status, text) => {
            let code = serde_json::from_str::<serde_json::Value>(text).ok();
            let code = code.and_then(|v| Some(v.pointer("/error/code")?.as_str()?.to_owned()));
            (format!("{status} {}", code.unwrap_or_default()), true)
        }
        Ended::Cut(text) if text.contains("lease_lost") => ("cut: lease_lost".to_owned(), true),
        Ended::Cut(text) => (format!("cut: {}", end_of(text)), true),
        Ended::NoAnswer(_) => ("no answer".to_owned(), true),
    }
}
