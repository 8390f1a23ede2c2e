//! `forebay models apply`: makes the registry hold what a file says, in one revision, after showing what differs.
//!
//! What was looked at is what is changed: each model that exists is written with the etag that it had, and one that did
//! not exist is created. Files of more models than a batch holds are written in several, each of which is all or nothing.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::Read as _,
    path::Path,
};

use anyhow::{Context as _, anyhow, bail};
use forebay_proto::{limits, wire};
use prost_types::FieldMask;
use wire::batch_item::Change;

use super::{
    models::{Registry, all, registry},
    revisions,
};
use crate::{
    args::{ClientArgs, Output, WriteArgs},
    client::{self, request_id},
    document, table, ui,
};

/// Runs it.
pub(super) async fn run(
    file: &Path,
    prune: bool,
    write: &WriteArgs,
    client: &ClientArgs,
) -> anyhow::Result<()> {
    let text = read(file)?;
    let wanted = document::read_models(&text).with_context(|| file.display().to_string())?;
    let mut registry = registry(client).await?;
    let there = all(&mut registry, None).await?.models;
    for told in missing_fallbacks(&wanted, &there, prune) {
        ui::error(&told);
    }
    let items = items(wanted, there, prune)?;
    if items.is_empty() {
        bail!("the file has no models; nothing was changed");
    }
    let batches: Vec<_> = items.chunks(limits::BATCH).map(<[_]>::to_vec).collect();
    let several = batches.len() > 1;
    if several && write.request_id.is_some() {
        bail!(
            "--request-id names one write, and {} changes take {}; leave it out",
            items.len(),
            batches.len()
        );
    }
    for items in batches {
        one(&registry, items, write, client.output).await?;
    }
    Ok(())
}

/// Shows what a batch changes, and makes it.
async fn one(
    registry: &Registry,
    items: Vec<wire::BatchItem>,
    write: &WriteArgs,
    output: Output,
) -> anyhow::Result<()> {
    let batch = |validate_only: bool| wire::BatchUpdateModelsRequest {
        items: items.clone(),
        request_id: request_id(write.request_id.as_ref().filter(|_| !validate_only)),
        validate_only,
        // What was exported is taken, wherever it is applied; what may be misspelt was told of.
        allow_missing_fallbacks: true,
    };
    let send = |request| {
        let mut registry = registry.clone();
        async move { registry.batch_update_models(request).await }
    };
    let trial = client::write(batch(true), write, send).await;
    let trial: wire::BatchUpdateModelsResponse = trial.map_err(|error| named(&error, &items))?;
    if output == Output::Table && !trial.changes.is_empty() {
        ui::say(&table::changes(&trial.changes));
    }
    if output == Output::Table {
        for probed in &trial.probed {
            let found = table::probe_results(&probed.results);
            ui::say(&format!(
                "what the endpoints of {} serve:\n{found}\n",
                probed.model
            ));
        }
    }
    let made = match write.validate_only {
        true => trial,
        false => {
            let made = client::write(batch(false), write, send).await;
            made.map_err(|error| named(&error, &items))?
        }
    };
    match output {
        Output::Table => {
            let counts = counts(&made);
            let end = match (
                write.validate_only,
                made.created + made.updated + made.deleted,
            ) {
                (true, _) => "nothing was written".to_owned(),
                (false, 0) => format!("revision {} is what the file says", made.revision),
                (false, _) => format!("revision {}", made.revision),
            };
            ui::say(&format!("{counts}; {end}"));
            Ok(())
        }
        output => revisions::print("BatchUpdateModelsResponse", &made, output),
    }
}

/// An error that says which model it is about, in place of the number in the batch.
fn named(error: &anyhow::Error, items: &[wire::BatchItem]) -> anyhow::Error {
    let text = format!("{error:#}");
    let mut parts = text.split("items[");
    let mut told = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let number = part.split_once(']');
        let item = number.and_then(|(n, rest)| Some((items.get(n.parse::<usize>().ok()?)?, rest)));
        let of_model = item.and_then(|(item, rest)| Some((id_of(item)?, rest)));
        // What follows is the kind of the change, and the path within it.
        let path = of_model.and_then(|(id, rest)| Some((id, rest.split_once(['.', ':'])?.1)));
        let path = path.and_then(|(id, rest)| Some((id, rest.split_once(['.', ':'])?)));
        match (of_model, path) {
            (Some((_, rest)), Some((id, (_, field)))) if rest.starts_with('.') => {
                told.push_str(&format!("model {id}: {}", field.trim_start()));
            }
            _ => told.push_str(&format!("items[{part}")),
        }
    }
    anyhow!(told)
}

fn id_of(item: &wire::BatchItem) -> Option<&str> {
    match item.change.as_ref()? {
        Change::Create(create) => create.model.as_ref().map(|model| model.id.as_str()),
        Change::Update(update) => update.model.as_ref().map(|model| model.id.as_str()),
        Change::Delete(delete) => Some(delete.id.as_str()),
    }
}

fn counts(made: &wire::BatchUpdateModelsResponse) -> String {
    let counts = [
        (made.created, "created"),
        (made.updated, "updated"),
        (made.deleted, "removed"),
        (made.unchanged, "unchanged"),
    ];
    let told = counts.iter().filter(|(count, _)| *count > 0);
    let told: Vec<_> = told
        .map(|(count, what)| format!("{count} {what}"))
        .collect();
    told.join(", ")
}

/// What is told of fallbacks that are not registered when all is written: deleted some day, or misspelt.
fn missing_fallbacks(wanted: &[wire::Model], there: &[wire::Model], prune: bool) -> Vec<String> {
    let kept = there.iter().filter(|_| !prune);
    let registered: BTreeSet<&str> = wanted.iter().chain(kept).map(|m| m.id.as_str()).collect();
    let mut told = Vec::new();
    for model in wanted {
        for (n, name) in model.fallbacks.iter().enumerate() {
            if !registered.contains(name.as_str()) {
                let id = &model.id;
                told.push(format!(
                    "warning: model {id}: fallbacks[{n}]: `{name}` is not registered; it is passed over until it is"
                ));
            }
        }
    }
    told
}

/// What makes the models that are there the ones that are wanted.
fn items(
    wanted: Vec<wire::Model>,
    there: Vec<wire::Model>,
    prune: bool,
) -> anyhow::Result<Vec<wire::BatchItem>> {
    let mut etags: BTreeMap<String, String> = there
        .into_iter()
        .map(|model| (model.id, model.etag))
        .collect();
    let mut seen = BTreeMap::new();
    let mut items = Vec::new();
    for (n, mut model) in wanted.into_iter().enumerate() {
        if let Some(first) = seen.insert(model.id.clone(), n) {
            let (id, first, second) = (&model.id, first + 1, n + 1);
            bail!("model `{id}` is in the file twice, as number {first} and {second}; remove one");
        }
        let change = match etags.remove(&model.id) {
            None => Change::Create(wire::CreateModelRequest {
                model: Some(model),
                ..wire::CreateModelRequest::default()
            }),
            Some(etag) => {
                if model.etag.is_empty() {
                    model.etag = etag;
                }
                Change::Update(wire::UpdateModelRequest {
                    model: Some(model),
                    update_mask: Some(FieldMask {
                        paths: vec!["*".to_owned()],
                    }),
                    ..wire::UpdateModelRequest::default()
                })
            }
        };
        items.push(change);
    }
    let surplus = etags.into_iter().filter(|_| prune);
    items.extend(surplus.map(|(id, etag)| {
        Change::Delete(wire::DeleteModelRequest {
            id,
            etag,
            ..wire::DeleteModelRequest::default()
        })
    }));
    let items = items.into_iter().map(|change| wire::BatchItem {
        change: Some(change),
    });
    Ok(items.collect())
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

#[cfg(test)]
mod tests {
    use super::*;

    fn model(id: &str, etag: &str) -> wire::Model {
        wire::Model {
            id: id.into(),
            etag: etag.into(),
            ..wire::Model::default()
        }
    }

    fn lines(items: &[wire::BatchItem]) -> Vec<String> {
        let line = |item: &wire::BatchItem| match item.change.clone() {
            Some(Change::Create(create)) => format!("create {}", create.model.unwrap().id),
            Some(Change::Update(update)) => {
                let model = update.model.unwrap();
                format!("update {} {}", model.id, model.etag)
            }
            Some(Change::Delete(delete)) => format!("delete {} {}", delete.id, delete.etag),
            None => "nothing".to_owned(),
        };
        items.iter().map(line).collect()
    }

    #[test]
    fn what_was_looked_at_is_what_is_changed() {
        let wanted = vec![model("new", ""), model("old", ""), model("own", "3")];
        let there = vec![model("old", "1"), model("own", "2"), model("rest", "4")];
        let kept = items(wanted.clone(), there.clone(), false).unwrap();
        assert_eq!(lines(&kept), ["create new", "update old 1", "update own 3"]);
        let pruned = items(wanted, there, true).unwrap();
        assert_eq!(lines(&pruned)[3], "delete rest 4");
    }

    #[test]
    fn a_fallback_that_is_not_there_in_the_end_is_told_of() {
        let falls_back = |id: &str, to: &[&str]| wire::Model {
            fallbacks: to.iter().map(ToString::to_string).collect(),
            ..model(id, "")
        };
        let wanted = [
            falls_back("a", &["b", "rest", "gone"]),
            falls_back("b", &["a"]),
        ];
        let there = [model("rest", "1")];
        let kept = missing_fallbacks(&wanted, &there, false);
        assert_eq!(kept.len(), 1, "{kept:?}");
        assert!(
            kept[0].contains("model a: fallbacks[2]: `gone`"),
            "{kept:?}"
        );
        let pruned = missing_fallbacks(&wanted, &there, true);
        assert_eq!(pruned.len(), 2, "{pruned:?}");
        assert!(pruned[0].contains("fallbacks[1]: `rest`"), "{pruned:?}");
    }

    #[test]
    fn an_error_names_the_model_and_not_its_number() {
        let items = items(vec![model("a", ""), model("b", "")], Vec::new(), false).unwrap();
        let told = |text: &'static str| named(&anyhow!(text), &items).to_string();
        assert_eq!(
            told(
                "2 fields are not valid\n  items[0].create.model.id: bad\n  items[1].create.model.pool: odd (X)"
            ),
            "2 fields are not valid\n  model a: model.id: bad\n  model b: model.pool: odd (X)"
        );
        assert_eq!(
            told("items[1].delete: model `b` does not exist"),
            "model b: model `b` does not exist"
        );
        for other in ["items: 7 changes", "items[9].create.x: y", "items[x"] {
            assert_eq!(told(other), other);
        }
    }

    #[test]
    fn a_model_that_is_there_twice_is_refused() {
        let twice = vec![model("a", ""), model("b", ""), model("a", "")];
        let error = items(twice, Vec::new(), false).unwrap_err().to_string();
        assert!(
            error.contains("`a` is in the file twice, as number 1 and 3"),
            "{error}"
        );
    }
}
