//! `ModelRegistry`.

use forebay_proto::{
    Revision,
    wire::{self, model_registry_server::ModelRegistry},
};
use tonic::{Code, Request, Response, Status};

use super::{
    Context, batch, mismatched,
    page::{self, Page},
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
        let serve = async |mut request: wire::CreateModelRequest, origin| {
            self.0.seal(request.model.as_mut())?;
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
                .write_model(command, origin, &request_id, &unnamed, validate_only)
                .await
        };
        self.0.call_write("CreateModel", request, serve).await
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
            let state = match request.at_revision {
                0 => self.0.registry.published().state.clone(),
                revision => {
                    let state = self.0.registry.at(Revision::new(revision)).await;
                    state.map_err(status::of_past)?
                }
            };
            let (models, more) = state.page(page.after.as_deref(), page.size);
            let last = models
                .last()
                .filter(|_| more)
                .map(|model| page::token(&model.id));
            let revision = state.revision().get();
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
        let serve = async |mut request: wire::UpdateModelRequest, origin| {
            self.0.seal(request.model.as_mut())?;
            let command = batch::update(&request);
            let (request_id, trial) = (request.request_id.clone(), request.validate_only);
            let unnamed = wire::UpdateModelRequest {
                request_id: String::new(),
                ..request
            };
            self.0
                .write_model(command, origin, &request_id, &unnamed, trial)
                .await
        };
        self.0.call_write("UpdateModel", request, serve).await
    }

    async fn delete_model(
        &self,
        request: Request<wire::DeleteModelRequest>,
    ) -> Result<Response<wire::DeleteModelResponse>, Status> {
        let serve = async |request: wire::DeleteModelRequest, origin| {
            let command = batch::delete(&request);
            let (request_id, trial) = (request.request_id.clone(), request.validate_only);
            let unnamed = wire::DeleteModelRequest {
                request_id: String::new(),
                ..request
            };
            match self
                .0
                .write(command, origin, &request_id, &unnamed, trial)
                .await?
            {
                Answer::Deleted(revision) => Ok(wire::DeleteModelResponse { revision }),
                _ => Err(mismatched()),
            }
        };
        self.0.call_write("DeleteModel", request, serve).await
    }

    async fn batch_update_models(
        &self,
        request: Request<wire::BatchUpdateModelsRequest>,
    ) -> Result<Response<wire::BatchUpdateModelsResponse>, Status> {
        let serve = async |mut request: wire::BatchUpdateModelsRequest, origin| {
            self.0.seal_batch(&mut request.items)?;
            let items = batch::commands(&request.items);
            let items = items.map_err(|violations| status::violated(&violations))?;
            let items = (items, request.allow_missing_fallbacks);
            let (request_id, trial) = (request.request_id.clone(), request.validate_only);
            let unnamed = wire::BatchUpdateModelsRequest {
                request_id: String::new(),
                ..request
            };
            self.0
                .write_batch(items, origin, &request_id, &unnamed, trial)
                .await
        };
        self.0.call_write("BatchUpdateModels", request, serve).await
    }
}
