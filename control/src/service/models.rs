//! `ModelRegistry`.

use forebay_proto::wire::{self, model_registry_server::ModelRegistry};
use tonic::{Code, Request, Response, Status};

use super::{
    Context, mismatched,
    page::{self, Page},
    paths,
    status::{self, Reason},
};
use crate::registry::{Answer, Command};

/// The service.
#[derive(Debug, Clone)]
pub(crate) struct ModelsService(pub(crate) Context);

#[tonic::async_trait]
impl ModelRegistry for ModelsService {
    async fn create_model(
        &self,
        request: Request<wire::CreateModelRequest>,
    ) -> Result<Response<wire::Model>, Status> {
        let serve = async |request: wire::CreateModelRequest| {
            let wire::CreateModelRequest {
                model,
                request_id,
                validate_only,
            } = request.clone();
            let command = Command::Create(model.unwrap_or_default());
            let unnamed = wire::CreateModelRequest {
                request_id: String::new(),
                ..request
            };
            self.0
                .write_model(command, &request_id, &unnamed, validate_only)
                .await
        };
        self.0.call("CreateModel", request, serve).await
    }

    async fn get_model(
        &self,
        request: Request<wire::GetModelRequest>,
    ) -> Result<Response<wire::Model>, Status> {
        let serve = async |request: wire::GetModelRequest| {
            let model = self.0.registry.published().state.model(&request.id);
            model.ok_or_else(|| {
                let id: String = request.id.chars().take(128).collect();
                let message =
                    format!("model `{id}` does not exist; ListModels shows those that do");
                status::with_reason(Code::NotFound, Reason::ModelNotFound, message)
            })
        };
        self.0.call("GetModel", request, serve).await
    }

    async fn list_models(
        &self,
        request: Request<wire::ListModelsRequest>,
    ) -> Result<Response<wire::ListModelsResponse>, Status> {
        let serve = async |request: wire::ListModelsRequest| {
            let page = Page::read(request.page_size, &request.page_token);
            let page = page.map_err(|violations| status::violated(&violations))?;
            let published = self.0.registry.published();
            let (models, more) = published.state.page(page.after.as_deref(), page.size);
            let last = models
                .last()
                .filter(|_| more)
                .map(|model| page::token(&model.id));
            let revision = published.position.revision.get();
            let next_page_token = last.unwrap_or_default();
            Ok(wire::ListModelsResponse {
                models,
                next_page_token,
                revision,
            })
        };
        self.0.call("ListModels", request, serve).await
    }

    async fn update_model(
        &self,
        request: Request<wire::UpdateModelRequest>,
    ) -> Result<Response<wire::Model>, Status> {
        let serve = async |request: wire::UpdateModelRequest| {
            let command = Command::Update {
                model: request.model.clone().unwrap_or_default(),
                mask: paths(request.update_mask.as_ref()),
                allow_missing: request.allow_missing,
            };
            let (request_id, trial) = (request.request_id.clone(), request.validate_only);
            let unnamed = wire::UpdateModelRequest {
                request_id: String::new(),
                ..request
            };
            self.0
                .write_model(command, &request_id, &unnamed, trial)
                .await
        };
        self.0.call("UpdateModel", request, serve).await
    }

    async fn delete_model(
        &self,
        request: Request<wire::DeleteModelRequest>,
    ) -> Result<Response<wire::DeleteModelResponse>, Status> {
        let serve = async |request: wire::DeleteModelRequest| {
            let command = Command::Delete {
                id: request.id.clone(),
                etag: request.etag.clone(),
                allow_missing: request.allow_missing,
            };
            let (request_id, trial) = (request.request_id.clone(), request.validate_only);
            let unnamed = wire::DeleteModelRequest {
                request_id: String::new(),
                ..request
            };
            match self.0.write(command, &request_id, &unnamed, trial).await? {
                Answer::Deleted(revision) => Ok(wire::DeleteModelResponse { revision }),
                Answer::Model(_) | Answer::Settings(_) => Err(mismatched()),
            }
        };
        self.0.call("DeleteModel", request, serve).await
    }
}
