//! `forebay keys`.

use std::time::SystemTime;

use anyhow::{Context as _, bail};
use forebay_proto::{convert::timestamp_to_wire, limits, wire};
use prost_types::FieldMask;
use tonic::transport::Channel;
use wire::keys_client::KeysClient;

use crate::{
    Usage,
    args::{ClientArgs, KeyArgs, KeyPriority, Keys, Output, SignArgs},
    client::{self, call, signed_by},
    document, keys_table, ui,
};

/// Runs one of them.
pub(crate) async fn run(command: Keys) -> anyhow::Result<()> {
    match command {
        Keys::Create {
            name,
            may,
            validate_only,
            signed,
            client,
        } => create(name, &may, validate_only, &signed, &client).await,
        Keys::List { revoked, client } => list(revoked, &client).await,
        Keys::Get { id, client } => {
            let id = public(&id)?;
            let key = call(keys(&client).await?.get_key(wire::GetKeyRequest { id })).await?;
            show(&key, client.output)
        }
        Keys::Update {
            id,
            name,
            may,
            clear,
            etag,
            validate_only,
            signed,
            client,
        } => {
            let (mut key, mut paths) = may.key()?;
            (key.id, key.etag) = (public(&id)?, etag);
            if let Some(name) = name {
                key.display_name = name;
                paths.push("display_name".to_owned());
            }
            paths.extend(clear);
            if paths.is_empty() {
                let text = "nothing to change; see `forebay keys update --help`";
                bail!(Usage(text.into()));
            }
            let request = wire::UpdateKeyRequest {
                key: Some(key),
                update_mask: Some(FieldMask { paths }),
                validate_only,
            };
            let request = sign(request, &signed);
            let key = call(keys(&client).await?.update_key(request)).await?;
            show(&key, client.output)
        }
        Keys::Revoke {
            id,
            etag,
            signed,
            client,
        } => {
            let id = public(&id)?;
            let request = sign(wire::RevokeKeyRequest { id, etag }, &signed);
            let key = call(keys(&client).await?.revoke_key(request)).await?;
            match client.output {
                Output::Table => ui::say(&format!(
                    "key {} is revoked, version {}; `forebay fleet workers -o json` shows who has it",
                    key.id, key.version
                )),
                output => show(&key, output)?,
            }
            Ok(())
        }
    }
}

async fn create(
    name: String,
    may: &KeyArgs,
    validate_only: bool,
    signed: &SignArgs,
    client: &ClientArgs,
) -> anyhow::Result<()> {
    let (key, _) = may.key()?;
    let key = wire::Key {
        display_name: name,
        ..key
    };
    let request = wire::CreateKeyRequest {
        key: Some(key),
        validate_only,
    };
    let request = sign(request, signed);
    let made = call(keys(client).await?.create_key(request)).await;
    let made = made.context(
        "if the answer was lost there may be a key all the same: see `forebay keys list`",
    )?;
    let key = made.key.clone().unwrap_or_default();
    match client.output {
        Output::Table if validate_only => ui::say("the key would be made"),
        Output::Table => ui::say(&format!(
            "{}\n\n{}\n\nThis is the key. It is shown now and never again; put it where its client finds it.",
            keys_table::one(&key),
            made.secret
        )),
        output => {
            let value = document::to_value("CreateKeyResponse", &made)?;
            ui::say(&document::print(&value, output)?);
        }
    }
    Ok(())
}

async fn list(show_revoked: bool, client: &ClientArgs) -> anyhow::Result<()> {
    let mut keys = keys(client).await?;
    let mut all = wire::ListKeysResponse::default();
    loop {
        let request = wire::ListKeysRequest {
            page_size: 1_000,
            page_token: std::mem::take(&mut all.next_page_token),
            show_revoked,
        };
        let page = call(keys.list_keys(request)).await?;
        all.keys.extend(page.keys);
        (all.version, all.next_page_token) = (page.version, page.next_page_token);
        if all.next_page_token.is_empty() {
            break;
        }
    }
    match client.output {
        Output::Table => ui::say(&keys_table::all(&all.keys)),
        output => {
            let value = document::to_value("ListKeysResponse", &all)?;
            ui::say(&document::print(&value, output)?);
        }
    }
    Ok(())
}

impl KeyArgs {
    /// What is named, and its fields.
    fn key(&self) -> anyhow::Result<(wire::Key, Vec<String>)> {
        let expires = self.expires.map(|time| SystemTime::now().checked_add(time));
        let expires = expires
            .map(|at| at.context("--expires is too far away"))
            .transpose()?;
        let priority = match self.priority {
            None => wire::KeyPriority::Unspecified,
            Some(KeyPriority::Low) => wire::KeyPriority::Low,
            Some(KeyPriority::Normal) => wire::KeyPriority::Normal,
            Some(KeyPriority::High) => wire::KeyPriority::High,
        };
        let named = [
            ("models", !self.models.is_empty()),
            ("expire_time", expires.is_some()),
            ("requests_per_minute", self.rpm.is_some()),
            ("tokens_per_minute", self.tpm.is_some()),
            ("max_concurrent", self.max_concurrent.is_some()),
            ("priority", self.priority.is_some()),
            ("weight", self.weight.is_some()),
        ];
        let paths = named.iter().filter(|(_, named)| *named);
        let key = wire::Key {
            models: self.models.clone(),
            expire_time: expires.map(timestamp_to_wire),
            requests_per_minute: self.rpm,
            tokens_per_minute: self.tpm,
            max_concurrent: self.max_concurrent,
            priority: priority.into(),
            weight: self.weight,
            ..wire::Key::default()
        };
        Ok((key, paths.map(|(path, _)| (*path).to_owned()).collect()))
    }
}

/// The id, also of one who gives all of a key: the secret goes no further than here.
fn public(text: &str) -> anyhow::Result<String> {
    let id = text.strip_prefix("fbk_").unwrap_or(text);
    let id = id.split('_').next().unwrap_or_default();
    match forebay_proto::KeyId::new(id) {
        Ok(id) => Ok(id.to_string()),
        Err(error) => bail!(Usage(format!("the id of a key {error}").into())),
    }
}

fn sign<M>(message: M, signed: &SignArgs) -> tonic::Request<M> {
    signed_by(message, signed.author.as_ref(), signed.reason.as_ref())
}

async fn keys(client: &ClientArgs) -> anyhow::Result<KeysClient<Channel>> {
    let keys = KeysClient::new(client::connect(client).await?);
    Ok(keys.max_decoding_message_size(limits::MESSAGE_BYTES))
}

fn show(key: &wire::Key, output: Output) -> anyhow::Result<()> {
    match output {
        Output::Table => ui::say(&keys_table::one(key)),
        output => ui::say(&document::print(&document::to_value("Key", key)?, output)?),
    }
    Ok(())
}
