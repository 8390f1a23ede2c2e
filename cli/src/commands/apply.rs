//! `forebay models apply`: makes the registry hold what a file says. It removes nothing.
//!
//! Each model is a write of its own. One that is refused because another still has its name is tried
//! again after the others, for as long as that helps.

use std::{io::Read as _, path::Path};

use anyhow::{Context as _, anyhow, bail};
use forebay_proto::wire;
use prost_types::FieldMask;
use serde_json::{Value, json};
use tonic::Code;

use super::models::{Registry, registry};
use crate::{
    args::{ClientArgs, Output},
    client::{self, request_id},
    document, ui,
};

/// What became of one model.
struct Applied {
    model: wire::Model,
    what: &'static str,
}

/// Runs it.
pub(super) async fn run(file: &Path, client: &ClientArgs) -> anyhow::Result<()> {
    let text = read(file)?;
    let mut waiting = document::read_models(&text).with_context(|| file.display().to_string())?;
    let mut registry = registry(client).await?;
    let mut applied = Vec::new();
    let mut refused = Vec::new();
    loop {
        let before = waiting.len();
        for model in std::mem::take(&mut waiting) {
            match put(&mut registry, model.clone()).await {
                Ok(done) => {
                    report(&done, client.output);
                    applied.push(done);
                }
                Err(error) => {
                    refused.push(error.context(format!("model {}", model.id)));
                    waiting.push(model);
                }
            }
        }
        if waiting.is_empty() || waiting.len() == before {
            break;
        }
        refused.clear();
    }
    if client.output != Output::Table {
        let models: Result<Vec<Value>, _> = applied.iter().map(as_value).collect();
        let value = json!({ "models": models? });
        ui::say(&document::print(&value, client.output)?);
    }
    let Some(first) = refused.pop() else {
        return Ok(());
    };
    if refused.is_empty() {
        return Err(first);
    }
    let all = refused.into_iter().chain([first]);
    let all: Vec<_> = all.map(|error| format!("{error:#}")).collect();
    bail!("{} models were refused\n  {}", all.len(), all.join("\n  "))
}

async fn put(registry: &mut Registry, model: wire::Model) -> anyhow::Result<Applied> {
    let get = wire::GetModelRequest {
        id: model.id.clone(),
    };
    let before = match registry.get_model(get).await {
        Ok(found) => Some(found.into_inner().revision),
        Err(status) if status.code() == Code::NotFound => None,
        Err(status) => return Err(client::explain(&status)),
    };
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
    let model: wire::Model = client::write(request, send).await?;
    let what = match before {
        None => "created",
        Some(revision) if revision == model.revision => "unchanged",
        Some(_) => "updated",
    };
    Ok(Applied { model, what })
}

fn report(Applied { model, what }: &Applied, output: Output) {
    if output == Output::Table {
        ui::say(&format!(
            "model {} {what}, revision {}",
            model.id, model.revision
        ));
    }
}

fn as_value(Applied { model, what }: &Applied) -> anyhow::Result<Value> {
    let mut value = document::to_value("Model", model)?;
    let fields = value
        .as_object_mut()
        .ok_or_else(|| anyhow!("a model is an object"))?;
    fields.insert("applied".to_owned(), json!(what));
    Ok(value)
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
