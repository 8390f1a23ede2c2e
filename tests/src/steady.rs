//! A steady load that does not wait for answers, on the workers that are in rotation at the moment, in turn; every answer
//! is looked at whole.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::{
    task::JoinSet,
    time::{MissedTickBehavior, interval},
};
use tokio_util::sync::CancellationToken;

use crate::{Chat, Client, Ended};

/// Of ten requests so many are streams.
const STREAMS: u64 = 3;
const TOKENS: u32 = 5;
/// Failures that are told in full.
const MOST_TOLD: usize = 3;

/// Who gets requests: what a balancer knows.
#[derive(Debug, Clone, Default)]
pub struct Rotation(Arc<Mutex<Vec<(SocketAddr, Client)>>>);

impl Rotation {
    /// This one alone.
    #[must_use]
    pub fn of(gateway: SocketAddr) -> Self {
        let rotation = Self::default();
        rotation.put(gateway);
        rotation
    }

    /// It gets requests from now on.
    pub fn put(&self, gateway: SocketAddr) {
        self.0.lock().push((gateway, Client::new(gateway)));
    }

    /// It gets no more. What it has, it finishes.
    pub fn take(&self, gateway: SocketAddr) {
        self.0.lock().retain(|(addr, _)| *addr != gateway);
    }

    /// Nobody is in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.lock().is_empty()
    }

    fn pick(&self, turn: u64) -> Option<Client> {
        let all = self.0.lock();
        let turn = usize::try_from(turn).ok()?.checked_rem(all.len())?;
        all.get(turn).map(|(_, client)| client.clone())
    }
}

/// What came of it.
#[derive(Debug, Default)]
pub struct Served {
    /// Requests that were made.
    pub requests: u64,
    /// Of these, those that were not answered well and whole.
    pub failed: u64,
    /// How the first of those failed.
    pub told: Vec<String>,
}

impl Served {
    /// Both together.
    pub fn and(&mut self, other: Self) {
        self.requests += other.requests;
        self.failed += other.failed;
        self.told.extend(other.told);
        self.told.truncate(MOST_TOLD);
    }

    fn note(&mut self, ended: &Ended) {
        self.requests += 1;
        if *ended == Ended::Well {
            return;
        }
        self.failed += 1;
        if self.told.len() < MOST_TOLD {
            self.told.push(format!("{ended:?}"));
        }
    }
}

/// Asks for this model so many times a second until told to stop, and waits for all answers.
pub async fn steady_load(
    rotation: Rotation,
    model: &str,
    rate: u32,
    stop: CancellationToken,
) -> Served {
    let mut ticks = interval(Duration::from_secs(1) / rate.max(1));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let (mut served, mut requests) = (Served::default(), JoinSet::new());
    for number in 0_u64.. {
        tokio::select! {
            _ = ticks.tick() => {}
            () = stop.cancelled() => break,
        }
        let chat = match number % 10 < STREAMS {
            true => Chat::Stream,
            false => Chat::Whole,
        };
        let (client, model) = (rotation.pick(number), model.to_owned());
        requests.spawn(async move {
            match client {
                Some(client) => client.finish(&model, chat, TOKENS).await,
                None => Ended::NoAnswer("nobody is in rotation".to_owned()),
            }
        });
        while let Some(ended) = requests.try_join_next() {
            served.note(&ended.expect("a request ends"));
        }
    }
    for ended in requests.join_all().await {
        served.note(&ended);
    }
    served
}
