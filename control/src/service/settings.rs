//! `PoolSettings`.

use forebay_proto::wire::{self, pool_settings_server::PoolSettings};
use tonic::{Request, Response, Status};

use super::{Context, mismatched, paths};
use crate::registry::{Answer, Command};

/// The service.
#[derive(Debug, Clone)]
pub(crate) struct SettingsService(pub(crate) Context);

#[tonic::async_trait]
impl PoolSettings for SettingsService {
    async fn get_pool_settings(
        &self,
        request: Request<wire::GetPoolSettingsRequest>,
    ) -> Result<Response<wire::PoolDefaults>, Status> {
        let serve = async |_| Ok(self.0.registry.published().state.settings());
        self.0.call("GetPoolSettings", request, serve).await
    }

    async fn update_pool_settings(
        &self,
        request: Request<wire::UpdatePoolSettingsRequest>,
    ) -> Result<Response<wire::PoolDefaults>, Status> {
        let serve = async |request: wire::UpdatePoolSettingsRequest, origin| {
            let command = Command::UpdateSettings {
                settings: request.settings.clone().unwrap_or_default(),
                mask: paths(request.update_mask.as_ref()),
            };
            let (request_id, trial) = (request.request_id.clone(), request.validate_only);
            let unnamed = wire::UpdatePoolSettingsRequest {
                request_id: String::new(),
                ..request
            };
            let answer = self
                .0
                .write(command, origin, &request_id, &unnamed, trial)
                .await?;
            match answer {
                Answer::Settings(settings) => Ok(*settings),
                _ => Err(mismatched()),
            }
        };
        self.0
            .call_write("UpdatePoolSettings", request, serve)
            .await
    }
}
