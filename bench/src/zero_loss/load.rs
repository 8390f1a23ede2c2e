//! The load: requests at a fixed rate, whatever becomes of those before, and each timed from when it was
//! due. A gateway that stalls is charged for every request that was due meanwhile.

use std::{sync::Arc, time::Duration};

use tokio::{
    task::JoinSet,
    time::{Instant, MissedTickBehavior, interval},
};
use tokio_util::sync::CancellationToken;

use super::{
    client::{Client, Order},
    outcome::{Ended, Failure, Tally},
    settings::Settings,
};

/// How often it is looked what is due; also the finest that timers can do.
const TICK: Duration = Duration::from_millis(1);

/// Requests of one part of a run.
#[derive(Debug)]
pub(crate) struct Load<'a> {
    pub(crate) settings: &'a Settings,
    pub(crate) client: &'a Arc<Client>,
    /// The number of the first request.
    pub(crate) first: u64,
    pub(crate) duration: Duration,
}

impl Load<'_> {
    /// Makes the requests, ends when all of them have ended. `sending_over` is cancelled as soon as the last
    /// one has been sent.
    pub(crate) async fn run(
        self,
        stop: &CancellationToken,
        sending_over: &CancellationToken,
    ) -> Tally {
        let mut random = fastrand::Rng::with_seed(self.settings.seed);
        let all = self.settings.requests_within(self.duration);
        let mut tally = Tally::default();
        let mut in_flight = JoinSet::new();
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        let began = Instant::now();
        let mut sent = 0;
        while sent < all {
            tokio::select! {
                _ = ticks.tick() => {}
                () = stop.cancelled() => break,
            }
            let due = self.settings.requests_within(began.elapsed()).min(all);
            while sent < due {
                let order = self.order(&mut random, began, sent);
                sent += 1;
                if in_flight.len() >= self.settings.most_in_flight as usize {
                    let failed = Ended::Failed(Failure::TooManyInFlight);
                    tally.add(order.stream, failed);
                    continue;
                }
                let client = self.client.clone();
                in_flight.spawn(async move { (order.stream, client.run(&order).await) });
            }
            while let Some(ended) = in_flight.try_join_next() {
                count(&mut tally, ended);
            }
        }
        sending_over.cancel();
        // Bounded: each request has its deadline.
        while let Some(ended) = in_flight.join_next().await {
            count(&mut tally, ended);
        }
        tally
    }

    fn order(&self, random: &mut fastrand::Rng, began: Instant, sent: u64) -> Order {
        let models = &self.settings.models;
        let model = models.get(random.usize(..models.len()));
        Order {
            index: self.first + sent,
            model: model.cloned().unwrap_or_default(),
            stream: random.f64() < self.settings.stream_share,
            due: began + Duration::from_secs_f64(sent as f64 / f64::from(self.settings.rate)),
        }
    }
}

fn count(tally: &mut Tally, ended: Result<(bool, Ended), tokio::task::JoinError>) {
    match ended {
        Ok((stream, ended)) => tally.add(stream, ended),
        // Only a bug ends a task like this; it must not make a loss disappear.
        Err(_) => tally.add(false, Ended::Failed(Failure::Protocol)),
    }
}
