//! `forebay models`.

use std::{io::Read as _, path::Path};

use anyhow::{Context as _, bail};
use forebay_proto::{limits, wire};
use prost_types::FieldMask;
use tonic::transport::Channel;
use wire::model_registry_client::ModelRegistryClient;

use crate::{
    args::{ClientArgs, Models, Output, PoolArgs, WriteArgs},
    client::{self, call, request_id},
    document, table, ui,
};

type Registry = ModelRegistryClient<Channel>;

/// Runs one of them.
pub(crate) async fn run(command: Models) -> anyhow::Result<()> {
    match command {
        Models::Create {
            id,
            endpoints,
            aliases,
            pool,
            write,
            client,
        } => {
            let model = wire::Model {
                id,
                aliases,
                endpoints: as_endpoints(endpoints),
                pool: pool.pool(),
                timeouts: pool.timeouts(),
                ..wire::Model::default()
            };
            let created = create(&mut registry(&client).await?, model, &write).await?;
            show(&created, client.output)
        }
        Models::Get { id, client } => {
            let mut registry = registry(&client).await?;
            let model = call(registry.get_model(wire::GetModelRequest { id })).await?;
            show(&model, client.output)
        }
        Models::List { client } => list(&client).await,
        Models::Update {
            id,
            endpoints,
            aliases,
            clear,
            etag,
            pool,
            write,
            client,
        } => {
            let (mask, model) = update_of(id, endpoints, aliases, clear, etag, &pool);
            if mask.paths.is_empty() {
                bail!("nothing to change; see `forebay models update --help`");
            }
            let request = wire::UpdateModelRequest {
                model: Some(model),
                update_mask: Some(mask),
                allow_missing: false,
                request_id: request_id(write.request_id.as_ref()),
                validate_only: write.validate_only,
            };
            let registry = registry(&client).await?;
            let send = |request| {
                let mut registry = registry.clone();
                async move { registry.update_model(request).await }
            };
            show(&client::write(request, send).await?, client.output)
        }
        Models::Delete {
            id,
            etag,
            allow_missing,
            write,
            client,
        } => delete(id, etag, allow_missing, &write, &client).await,
        Models::Apply { file, client } => apply(&file, &client).await,
        Models::Export { client } => export(&client).await,
    }
}

/// Registers a model; also what the demo does.
pub(crate) async fn create(
    registry: &mut Registry,
    model: wire::Model,
    write: &WriteArgs,
) -> anyhow::Result<wire::Model> {
    let request = wire::CreateModelRequest {
        model: Some(model),
        request_id: request_id(write.request_id.as_ref()),
        validate_only: write.validate_only,
    };
    let send = |request| {
        let mut registry = registry.clone();
        async move { registry.create_model(request).await }
    };
    client::write(request, send).await
}

/// Endpoints at these urls, named by the server.
pub(crate) fn as_endpoints(urls: Vec<String>) -> Vec<wire::Endpoint> {
    let endpoint = |url| wire::Endpoint {
        url,
        ..wire::Endpoint::default()
    };
    urls.into_iter().map(endpoint).collect()
}

async fn registry(client: &ClientArgs) -> anyhow::Result<Registry> {
    let channel = client::connect(client).await?;
    Ok(Registry::new(channel).max_decoding_message_size(limits::MESSAGE_BYTES))
}

fn update_of(
    id: String,
    endpoints: Vec<String>,
    aliases: Vec<String>,
    clear: Vec<String>,
    etag: String,
    pool: &PoolArgs,
) -> (FieldMask, wire::Model) {
    let mut paths = pool.paths("pool.");
    paths.extend(clear);
    if !endpoints.is_empty() {
        paths.push("endpoints".to_owned());
    }
    if !aliases.is_empty() {
        paths.push("aliases".to_owned());
    }
    let model = wire::Model {
        id,
        aliases,
        endpoints: as_endpoints(endpoints),
        pool: pool.pool(),
        timeouts: pool.timeouts(),
        etag,
        ..wire::Model::default()
    };
    (FieldMask { paths }, model)
}

async fn delete(
    id: String,
    etag: String,
    allow_missing: bool,
    write: &WriteArgs,
    client: &ClientArgs,
) -> anyhow::Result<()> {
    let request = wire::DeleteModelRequest {
        id: id.clone(),
        etag,
        allow_missing,
        request_id: request_id(write.request_id.as_ref()),
        validate_only: write.validate_only,
    };
    let registry = registry(client).await?;
    let send = |request| {
        let mut registry = registry.clone();
        async move { registry.delete_model(request).await }
    };
    let answer: wire::DeleteModelResponse = client::write(request, send).await?;
    match client.output {
        Output::Table => ui::say(&format!("model {id} is gone, revision {}", answer.revision)),
        output => {
            let value = document::to_value("DeleteModelResponse", &answer)?;
            ui::say(&document::print(&value, output)?);
        }
    }
    Ok(())
}

/// Every model, page by page.
async fn all(registry: &mut Registry) -> anyhow::Result<Vec<wire::Model>> {
    let mut models = Vec::new();
    let mut page_token = String::new();
    loop {
        let request = wire::ListModelsRequest {
            page_size: 1_000,
            page_token,
        };
        let page = call(registry.list_models(request)).await?;
        models.extend(page.models);
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return Ok(models);
        }
    }
}

async fn list(client: &ClientArgs) -> anyhow::Result<()> {
    let models = all(&mut registry(client).await?).await?;
    match client.output {
        Output::Table => ui::say(&table::models(&models)),
        output => {
            let list = wire::ListModelsResponse {
                models,
                ..Default::default()
            };
            let value = document::to_value("ListModelsResponse", &list)?;
            ui::say(&document::print(&value, output)?);
        }
    }
    Ok(())
}

async fn export(client: &ClientArgs) -> anyhow::Result<()> {
    let models = all(&mut registry(client).await?).await?;
    let models: Result<Vec<_>, _> = models.iter().map(document::exported).collect();
    let output = match client.output {
        Output::Json => Output::Json,
        Output::Table | Output::Yaml => Output::Yaml,
    };
    ui::say(&document::print(
        &serde_json::json!({ "models": models? }),
        output,
    )?);
    Ok(())
}

async fn apply(file: &Path, client: &ClientArgs) -> anyhow::Result<()> {
    let text = read(file)?;
    let models = document::read_models(&text).with_context(|| file.display().to_string())?;
    let mut registry = registry(client).await?;
    for model in models {
        let id = model.id.clone();
        let before = registry
            .get_model(wire::GetModelRequest { id: id.clone() })
            .await
            .ok();
        let before = before.map(|response| response.into_inner().revision);
        let request = wire::UpdateModelRequest {
            model: Some(model),
            update_mask: Some(FieldMask {
                paths: vec!["*".to_owned()],
            }),
            allow_missing: true,
            request_id: request_id(None),
            validate_only: false,
        };
        let send = |request| {
            let mut registry = registry.clone();
            async move { registry.update_model(request).await }
        };
        let after: wire::Model = client::write(request, send)
            .await
            .with_context(|| format!("model {id}"))?;
        let what = match before {
            None => "created",
            Some(revision) if revision == after.revision => "unchanged",
            Some(_) => "updated",
        };
        ui::say(&format!("model {id} {what}, revision {}", after.revision));
    }
    Ok(())
}

fn read(file: &Path) -> anyhow::Result<String> {
    if file == Path::new("-") {
        let mut text = String::new();
        std::io::stdin()
            .read_to_string(&mut text)
            .context("standard input cannot be read")?;
        return Ok(text);
    }
    std::fs::read_to_string(file).with_context(|| format!("{} cannot be read", file.display()))
}

fn show(model: &wire::Model, output: Output) -> anyhow::Result<()> {
    match output {
        Output::Table => ui::say(&table::model(model)),
        output => ui::say(&document::print(
            &document::to_value("Model", model)?,
            output,
        )?),
    }
    Ok(())
}
