//! `Fleet`.

use forebay_proto::{
    PoolScope, Position, Revision, limits,
    wire::{self, fleet_server::Fleet},
};
use futures_util::{StreamExt as _, stream::BoxStream};
use tokio::time::{Duration, Instant, sleep};
use tonic::{Code, Request, Response, Status};

use super::{
    Context,
    page::{self, Page},
    status::{self, Reason},
    watch::{Watchers, watch},
};
use crate::{
    cluster::Uncarried,
    fleet::{CannotDrain, StillThere},
    leases::Forgot,
};

/// How long the end of a stream may take to who decides on leases, and how often that one is asked.
const HEARD_WITHIN: Duration = Duration::from_secs(2);
const HEAR_AGAIN: Duration = Duration::from_millis(100);

/// The service.
#[derive(Debug, Clone)]
pub(crate) struct FleetService {
    pub(crate) context: Context,
    pub(crate) watchers: Watchers,
}

impl FleetService {
    /// Who decides on leases hears of a stream's end a moment later than others.
    async fn forget_leases(&self, id: &str) -> Result<Forgot, Status> {
        let until = Instant::now() + HEARD_WITHIN;
        loop {
            let forgot = self.context.leases.forget(id).await;
            let forgot = forgot.map_err(|why| {
                status::with_reason(Code::Unavailable, Reason::LeasesElsewhere, why)
            })?;
            if forgot != Forgot::Connected || Instant::now() >= until {
                return Ok(forgot);
            }
            sleep(HEAR_AGAIN).await;
        }
    }

    /// The newest configuration, and the revision asked for, which must exist.
    fn asked(&self, revision: Option<u64>) -> Result<(Position, Option<Revision>), Status> {
        let newest = self.context.registry.published().position.clone();
        let revision = revision.map(Revision::new);
        if let Some(revision) = revision.filter(|asked| *asked > newest.revision) {
            let newest = newest.revision;
            return Err(status::with_reason(
                Code::FailedPrecondition,
                Reason::RevisionNotReached,
                format!("revision {revision} does not exist yet; the newest is {newest}"),
            ));
        }
        Ok((newest, revision))
    }
}

impl FleetService {
    /// Only where there are fleet-wide limits anybody is asked about them.
    async fn with_leases(&self, workers: &mut [wire::Worker]) {
        let published = self.context.registry.published();
        let pools = published.state.pools();
        let any = pools
            .iter()
            .any(|model| model.pool.scope == PoolScope::Fleet);
        if any && !workers.is_empty() {
            self.context.leases.add_leases(workers).await;
        }
    }
}

impl FleetService {
    /// Has a worker told to end, wherever it is connected.
    async fn drain(&self, worker: &str) -> Result<(), Status> {
        let id: String = worker.chars().take(63).collect();
        let elsewhere = match self.context.fleet.drain(worker) {
            Ok(()) => {
                tracing::info!(worker = id, "worker is told to end");
                return Ok(());
            }
            Err(why) => why,
        };
        let (
            Some(drains),
            CannotDrain::Elsewhere {
                replica,
                instance,
                process,
            },
        ) = (&self.context.drains, &elsewhere)
        else {
            return Err(not_drained(&id, &elsewhere));
        };
        match drains.carry(instance, (worker, process)).await {
            Ok(()) => Ok(()),
            Err(Uncarried::Refused(why)) => Err(not_drained(&id, &why)),
            Err(Uncarried::Unanswered(why)) => {
                let message = format!(
                    "worker `{id}` is connected to control plane `{replica}`, and it is not known whether that one heard \
                     this ({why}); try again, or ask that one"
                );
                let reason = Reason::WorkerElsewhere;
                Err(status::with_reason(Code::Unavailable, reason, message))
            }
        }
    }
}

/// Why a worker is not told to end, and the way out.
fn not_drained(id: &str, why: &CannotDrain) -> Status {
    let refused = |reason, why: &str| {
        let message = format!("worker `{id}` {why}");
        status::with_reason(Code::FailedPrecondition, reason, message)
    };
    match why {
        CannotDrain::Unknown => unknown(id),
        CannotDrain::Gone => {
            let why = "is not connected; end its process (SIGTERM) on its own machine";
            refused(Reason::WorkerGone, why)
        }
        CannotDrain::Elsewhere { replica, .. } => {
            let why = format!("is connected to control plane `{replica}`; ask that one");
            refused(Reason::WorkerElsewhere, &why)
        }
        CannotDrain::TooOld => {
            let why = "runs a build that cannot be told from here; end its process (SIGTERM)";
            refused(Reason::WorkerTooOld, why)
        }
    }
}

fn unknown(id: &str) -> Status {
    let id: String = id.chars().take(63).collect();
    let message = format!("worker `{id}` is not known; ListWorkers shows those that are");
    status::with_reason(Code::NotFound, Reason::WorkerNotFound, message)
}

fn still_connected(id: &str) -> Status {
    let message = format!(
        "worker `{id}` is connected; `forebay fleet drain {id}` has it end and be forgotten"
    );
    status::with_reason(Code::FailedPrecondition, Reason::WorkerConnected, message)
}

#[tonic::async_trait]
impl Fleet for FleetService {
    async fn list_workers(
        &self,
        request: Request<wire::ListWorkersRequest>,
    ) -> Result<Response<wire::ListWorkersResponse>, Status> {
        let serve = async |request: wire::ListWorkersRequest| {
            let page = Page::read(request.page_size, &request.page_token);
            let page = page.map_err(|violations| status::violated(&violations))?;
            let published = self.context.registry.published();
            let (workers, more) =
                self.context
                    .fleet
                    .page(page.after.as_deref(), page.size, &published.position);
            let mut workers = workers;
            self.with_leases(&mut workers).await;
            let last = workers
                .last()
                .filter(|_| more)
                .map(|worker| page::token(&worker.id));
            Ok(wire::ListWorkersResponse {
                workers,
                next_page_token: last.unwrap_or_default(),
            })
        };
        self.context.call("ListWorkers", request, serve).await
    }

    async fn get_worker(
        &self,
        request: Request<wire::GetWorkerRequest>,
    ) -> Result<Response<wire::Worker>, Status> {
        let serve = async |request: wire::GetWorkerRequest| {
            let published = self.context.registry.published();
            let worker = self.context.fleet.worker(&request.id, &published.position);
            let mut worker = worker.ok_or_else(|| unknown(&request.id))?;
            self.with_leases(std::slice::from_mut(&mut worker)).await;
            Ok(worker)
        };
        self.context.call("GetWorker", request, serve).await
    }

    async fn get_rollout(
        &self,
        request: Request<wire::GetRolloutRequest>,
    ) -> Result<Response<wire::Rollout>, Status> {
        let serve = async |request: wire::GetRolloutRequest| {
            let (newest, revision) = self.asked(request.revision)?;
            let revision = revision.unwrap_or(newest.revision);
            Ok(self.context.fleet.rollout(revision, &newest))
        };
        self.context.call("GetRollout", request, serve).await
    }

    async fn drain_worker(
        &self,
        request: Request<wire::DrainWorkerRequest>,
    ) -> Result<Response<wire::Worker>, Status> {
        let serve = async |request: wire::DrainWorkerRequest| {
            self.drain(&request.id).await?;
            let published = self.context.registry.published();
            let worker = self.context.fleet.worker(&request.id, &published.position);
            worker.ok_or_else(|| unknown(&request.id))
        };
        self.context.call("DrainWorker", request, serve).await
    }

    async fn list_leases(
        &self,
        request: Request<wire::ListLeasesRequest>,
    ) -> Result<Response<wire::ListLeasesResponse>, Status> {
        let serve = async |request: wire::ListLeasesRequest| {
            let only = Some(request.model.as_str()).filter(|model| !model.is_empty());
            let pools = self.context.leases.pools(only).await;
            let pools = pools.map_err(|why| {
                status::with_reason(Code::Unavailable, Reason::LeasesElsewhere, why)
            })?;
            match only {
                Some(only) if pools.is_empty() => {
                    let only: String = only.chars().take(limits::MODEL_ID_CHARS).collect();
                    let message = format!(
                        "model `{only}` has no fleet-wide limit; `pool.scope: POOL_SCOPE_FLEET` gives it one"
                    );
                    Err(status::with_reason(
                        Code::NotFound,
                        Reason::NotFleetWide,
                        message,
                    ))
                }
                _ => Ok(wire::ListLeasesResponse { pools }),
            }
        };
        self.context.call("ListLeases", request, serve).await
    }

    async fn forget_worker(
        &self,
        request: Request<wire::ForgetWorkerRequest>,
    ) -> Result<Response<wire::ForgetWorkerResponse>, Status> {
        let serve = async |request: wire::ForgetWorkerRequest| {
            let id: String = request.id.chars().take(63).collect();
            if self.context.fleet.is_connected(&id) {
                return Err(still_connected(&id));
            }
            let leased = match self.forget_leases(&id).await? {
                Forgot::Connected => return Err(still_connected(&id)),
                forgot => forgot == Forgot::Done,
            };
            match self.context.fleet.forget(&id) {
                Ok(()) => {}
                // On record since before this control plane started, or of another one.
                Err(StillThere::Unknown) if leased => {}
                Err(StillThere::Unknown) => return Err(unknown(&id)),
                Err(StillThere::Connected) => return Err(still_connected(&id)),
            }
            tracing::info!(worker = id, "worker is forgotten");
            Ok(wire::ForgetWorkerResponse {})
        };
        self.context.call("ForgetWorker", request, serve).await
    }

    type WatchRolloutStream = BoxStream<'static, Result<wire::Rollout, Status>>;

    async fn watch_rollout(
        &self,
        request: Request<wire::WatchRolloutRequest>,
    ) -> Result<Response<Self::WatchRolloutStream>, Status> {
        let serve = async |request: wire::WatchRolloutRequest| {
            let (_, revision) = self.asked(request.revision)?;
            let rollouts = watch(&self.context, &self.watchers, revision, request.follow)?;
            Ok(rollouts.boxed())
        };
        self.context.call("WatchRollout", request, serve).await
    }
}
