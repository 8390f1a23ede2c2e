//! `Keys`.

use std::time::SystemTime;

use forebay_proto::wire::{self, keys_server::Keys};
use tonic::{Code, Request, Response, Status};

use super::{
    Context,
    page::{self, Page},
    paths,
    status::{self, Reason},
};
use crate::registry::keys::{KeyCommand, KeyWrite};

/// The service.
#[derive(Debug, Clone)]
pub(crate) struct KeysService(pub(crate) Context);

#[tonic::async_trait]
impl Keys for KeysService {
    async fn create_key(
        &self,
        request: Request<wire::CreateKeyRequest>,
    ) -> Result<Response<wire::CreateKeyResponse>, Status> {
        let serve = async |request: wire::CreateKeyRequest, origin| {
            let new = self.0.registry.vault().new_key();
            let new = new.ok_or_else(|| Status::internal("the system gives no random bytes"))?;
            let command = KeyCommand::Create {
                id: new.id,
                hash: new.hash,
                pepper: new.pepper,
                key: Box::new(request.key.unwrap_or_default()),
            };
            let write = KeyWrite {
                command,
                validate_only: request.validate_only,
                origin,
            };
            let mut key = self.write(write).await?;
            let mut secret = String::new();
            match request.validate_only {
                true => key.id.clear(),
                false => secret.clone_from(&new.text),
            }
            let key = Some(key);
            Ok(wire::CreateKeyResponse { key, secret })
        };
        self.0.call_write("CreateKey", request, serve).await
    }

    async fn get_key(
        &self,
        request: Request<wire::GetKeyRequest>,
    ) -> Result<Response<wire::Key>, Status> {
        let serve = async |request: wire::GetKeyRequest| {
            let keys = self.0.registry.keys();
            let record = keys.book.get(&request.id).ok_or_else(|| {
                let message = "no such key; ListKeys shows those that there are, and a key's id is the 12 \
                               characters after `fbk_`";
                status::with_reason(Code::NotFound, Reason::KeyNotFound, message)
            })?;
            Ok(keys.book.show(record, SystemTime::now()))
        };
        self.0.call("GetKey", request, serve).await
    }

    async fn list_keys(
        &self,
        request: Request<wire::ListKeysRequest>,
    ) -> Result<Response<wire::ListKeysResponse>, Status> {
        let serve = async |request: wire::ListKeysRequest| {
            let page = Page::read(request.page_size, &request.page_token);
            let page = page.map_err(|violations| status::violated(&violations))?;
            let (keys, now) = (self.0.registry.keys(), SystemTime::now());
            let after = page.after.as_deref();
            let (records, more) = keys.book.page(after, page.size, request.show_revoked);
            let last = records.last().filter(|_| more);
            Ok(wire::ListKeysResponse {
                next_page_token: last
                    .map(|key| page::token(key.id.as_str()))
                    .unwrap_or_default(),
                keys: records
                    .iter()
                    .map(|record| keys.book.show(record, now))
                    .collect(),
                version: keys.book.version(),
            })
        };
        self.0.call("ListKeys", request, serve).await
    }

    async fn update_key(
        &self,
        request: Request<wire::UpdateKeyRequest>,
    ) -> Result<Response<wire::Key>, Status> {
        let serve = async |request: wire::UpdateKeyRequest, origin| {
            let command = KeyCommand::Update {
                mask: paths(request.update_mask.as_ref()),
                key: Box::new(request.key.unwrap_or_default()),
            };
            let validate_only = request.validate_only;
            self.write(KeyWrite {
                command,
                validate_only,
                origin,
            })
            .await
        };
        self.0.call_write("UpdateKey", request, serve).await
    }

    async fn revoke_key(
        &self,
        request: Request<wire::RevokeKeyRequest>,
    ) -> Result<Response<wire::Key>, Status> {
        let serve = async |request: wire::RevokeKeyRequest, origin| {
            let command = KeyCommand::Revoke {
                id: request.id,
                etag: request.etag,
            };
            self.write(KeyWrite {
                command,
                validate_only: false,
                origin,
            })
            .await
        };
        self.0.call_write("RevokeKey", request, serve).await
    }
}

impl KeysService {
    async fn write(&self, write: KeyWrite) -> Result<wire::Key, Status> {
        let written = self.0.registry.write_key(write).await;
        written.map_err(status::of)
    }
}
