//! `Fleet`.

use forebay_proto::{
    Revision,
    wire::{self, fleet_server::Fleet},
};
use tonic::{Code, Request, Response, Status};

use super::{
    Context,
    page::{self, Page},
    status::{self, Reason},
};

/// The service.
#[derive(Debug, Clone)]
pub(crate) struct FleetService(pub(crate) Context);

#[tonic::async_trait]
impl Fleet for FleetService {
    async fn list_workers(
        &self,
        request: Request<wire::ListWorkersRequest>,
    ) -> Result<Response<wire::ListWorkersResponse>, Status> {
        let serve = async |request: wire::ListWorkersRequest| {
            let page = Page::read(request.page_size, &request.page_token);
            let page = page.map_err(|violations| status::violated(&violations))?;
            let published = self.0.registry.published();
            let (workers, more) =
                self.0
                    .fleet
                    .page(page.after.as_deref(), page.size, &published.position);
            let last = workers
                .last()
                .filter(|_| more)
                .map(|worker| page::token(&worker.id));
            Ok(wire::ListWorkersResponse {
                workers,
                next_page_token: last.unwrap_or_default(),
            })
        };
        self.0.call("ListWorkers", request, serve).await
    }

    async fn get_worker(
        &self,
        request: Request<wire::GetWorkerRequest>,
    ) -> Result<Response<wire::Worker>, Status> {
        let serve = async |request: wire::GetWorkerRequest| {
            let published = self.0.registry.published();
            self.0
                .fleet
                .worker(&request.id, &published.position)
                .ok_or_else(|| {
                    let id: String = request.id.chars().take(63).collect();
                    let message =
                        format!("worker `{id}` is not known; ListWorkers shows those that are");
                    status::with_reason(Code::NotFound, Reason::WorkerNotFound, message)
                })
        };
        self.0.call("GetWorker", request, serve).await
    }

    async fn get_rollout(
        &self,
        request: Request<wire::GetRolloutRequest>,
    ) -> Result<Response<wire::Rollout>, Status> {
        let serve = async |request: wire::GetRolloutRequest| {
            let newest = self.0.registry.published().position.clone();
            let revision = request.revision.map_or(newest.revision, Revision::new);
            if revision > newest.revision {
                return Err(status::with_reason(
                    Code::FailedPrecondition,
                    Reason::RevisionNotReached,
                    format!(
                        "revision {revision} does not exist yet; the newest is {}",
                        newest.revision
                    ),
                ));
            }
            Ok(self.0.fleet.rollout(revision, &newest))
        };
        self.0.call("GetRollout", request, serve).await
    }
}
