//! Looks for requests that a gateway loses while it is reconfigured; works against any
//! OpenAI-compatible one.
//!
//! Every request carries a name; the upstreams, which it starts itself, answer it with a text that
//! follows from that name, word by word with a running checksum, and count each execution. So the client can
//! tell a whole answer from one that was cut, altered, mixed up or given to somebody else, and the
//! upstreams can tell a request that was executed twice. A command reconfigures the gateway meanwhile.

mod answer;
mod client;
mod histogram;
mod hook;
mod load;
mod outcome;
mod report;
mod sequence;
mod settings;
mod upstream;

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use self::{
    client::{Client, Order},
    hook::Surroundings,
    load::Load,
    outcome::Ended,
    upstream::Upstreams,
};
pub use self::{
    histogram::Quantiles,
    hook::Hooks,
    outcome::{Outcomes, Resets},
    report::{Added, Phase, Report, WarmUp},
    settings::{Hook, Invalid, MOST_REQUESTS, Settings},
    upstream::Seen,
};

/// Why a run could not be made.
#[derive(Debug, thiserror::Error)]
pub enum ZeroLossError {
    /// Something is out of bounds.
    #[error("{}", listed(.0))]
    Invalid(Vec<Invalid>),
    /// The url leads nowhere.
    #[error("--url names no host; write it as http://HOST:PORT/v1")]
    NoHost,
    /// An upstream cannot be started.
    #[error(
        "an upstream cannot listen on {listen}: {source}; name another address with --upstream-listen"
    )]
    Listen {
        /// Where it was to listen.
        listen: SocketAddr,
        /// Why not.
        source: io::Error,
    },
    /// The gateway does not answer a request as it should before anything is reconfigured.
    #[error(
        "before anything was reconfigured, a {kind} request to {url} with the model `{model}` did not end well: {how}; \
         check --url, --model and --header, and that the gateway's upstreams are those of --upstream-listen"
    )]
    NotServing {
        /// The gateway.
        url: String,
        /// The model.
        model: String,
        /// A stream or not.
        kind: &'static str,
        /// What happened.
        how: String,
    },
}

fn listed(all: &[Invalid]) -> String {
    let lines: Vec<_> = all.iter().map(Invalid::to_string).collect();
    lines.join("\n")
}

/// How long the first try of each model may be repeated: a gateway may still be starting.
const SERVING_WITHIN: Duration = Duration::from_secs(5);
const TRY_EVERY: Duration = Duration::from_millis(100);

/// A seed that nobody chose, so that a run is not taken for an earlier one.
#[must_use]
pub fn any_seed() -> u64 {
    u64::from(fastrand::u32(..))
}

/// Makes a run. When `stop` is cancelled it ends early, with what it found until then.
pub async fn run(settings: Settings, stop: CancellationToken) -> Result<Report, ZeroLossError> {
    let bad = settings.violations();
    if !bad.is_empty() {
        return Err(ZeroLossError::Invalid(bad));
    }
    let upstreams = Upstreams::start(&settings).await?;
    let run = Run {
        client: Arc::new(Client::new(settings.clone())?),
        settings,
        upstreams,
        next: 0,
        stop,
    };
    run.make().await
}

struct Run {
    settings: Settings,
    client: Arc<Client>,
    upstreams: Upstreams,
    /// The number of the next request.
    next: u64,
    stop: CancellationToken,
}

impl Run {
    async fn make(mut self) -> Result<Report, ZeroLossError> {
        self.try_each_model().await?;
        let warm_up = self.warm_up().await;
        let baseline = match self.settings.baseline {
            true => Some(self.phase("baseline").await),
            false => None,
        };
        let measured = self.phase("measured").await;
        self.client.close().await;
        self.upstreams.stop().await;
        let report = Report {
            url: self.settings.url.to_string(),
            seed: self.settings.seed,
            interrupted: self.stop.is_cancelled(),
            warm_up,
            baseline,
            measured,
            added_ms: None,
            lost_per_reconfiguration: None,
        };
        Ok(report.finish())
    }

    /// One stream and one plain request for each model: what does not work now is not a loss.
    async fn try_each_model(&mut self) -> Result<(), ZeroLossError> {
        let give_up = Instant::now() + SERVING_WITHIN;
        for model in self.settings.models.clone() {
            for stream in [true, false] {
                let mut order = Order {
                    index: self.next,
                    model: model.clone(),
                    stream,
                    due: Instant::now(),
                };
                self.next += 1;
                loop {
                    order.due = Instant::now();
                    let ended = self.client.run(&order).await;
                    if matches!(ended, Ended::Well(_)) {
                        break;
                    }
                    if Instant::now() >= give_up || self.stop.is_cancelled() {
                        return Err(self.not_serving(&order, ended));
                    }
                    tokio::time::sleep(TRY_EVERY).await;
                }
            }
        }
        Ok(())
    }

    fn not_serving(&self, order: &Order, ended: Ended) -> ZeroLossError {
        ZeroLossError::NotServing {
            url: self.settings.url.to_string(),
            model: order.model.clone(),
            kind: if order.stream { "streamed" } else { "plain" },
            how: ended.to_string(),
        }
    }

    async fn warm_up(&mut self) -> WarmUp {
        let load = self.load(self.settings.warm_up);
        let tally = load.run(&self.stop, &CancellationToken::new()).await;
        let outcomes = tally.outcomes();
        self.next += self.settings.requests_within(self.settings.warm_up);
        WarmUp {
            requests: outcomes.requests,
            lost: outcomes.lost(),
        }
    }

    fn load(&self, duration: Duration) -> Load<'_> {
        Load {
            settings: &self.settings,
            client: &self.client,
            first: self.next,
            duration,
        }
    }

    /// The load, and beside it the hooks.
    async fn phase(&mut self, name: &'static str) -> Phase {
        let (opened, seen) = (self.client.opened(), self.upstreams.seen());
        let first = self.next;
        let sending_over = CancellationToken::new();
        let began = Instant::now();
        let timed = async {
            sending_over.cancelled().await;
            began.elapsed()
        };
        let load = self.load(self.settings.duration);
        let (tally, hooks, sent_for) = tokio::join!(
            load.run(&self.stop, &sending_over),
            self.hooks(name, &sending_over),
            timed,
        );
        self.next += self.settings.requests_within(self.settings.duration);
        let ours = !self.settings.upstreams.is_empty();
        Phase {
            seconds: sent_for.as_secs_f64(),
            outcomes: tally.outcomes(),
            duplicated: ours.then(|| self.upstreams.executions().duplicated(first..self.next)),
            client_connections_opened: self.client.opened() - opened,
            upstream: ours.then(|| self.upstreams.seen().since(seen)),
            hooks,
        }
    }

    async fn hooks(&self, phase: &'static str, over: &CancellationToken) -> Hooks {
        let Some(hook) = &self.settings.hook else {
            return Hooks::default();
        };
        let command = match phase {
            "baseline" => hook.baseline_command.as_ref(),
            _ => Some(&hook.command),
        };
        let Some(command) = command else {
            return Hooks::default();
        };
        let surroundings = Surroundings {
            phase,
            url: self.settings.url.to_string(),
            upstreams: self.upstreams.addresses(),
            seed: self.settings.seed,
        };
        hook::run(hook, command, &surroundings, over).await
    }
}
