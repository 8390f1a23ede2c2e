//! Requests of one model as commands, alone or as items of a batch.

use forebay_proto::{Violations, wire};
use wire::batch_item::Change;

use super::paths;
use crate::registry::Command;

pub(super) fn update(request: &wire::UpdateModelRequest) -> Command {
    Command::Update {
        model: request.model.clone().unwrap_or_default(),
        mask: paths(request.update_mask.as_ref()),
        allow_missing: request.allow_missing,
    }
}

pub(super) fn delete(request: &wire::DeleteModelRequest) -> Command {
    Command::Delete {
        id: request.id.clone(),
        etag: request.etag.clone(),
        allow_missing: request.allow_missing,
    }
}

/// The items of a batch. What counts for the batch alone must not be said by an item.
pub(super) fn commands(items: &[wire::BatchItem]) -> Result<Vec<Command>, Violations> {
    let mut violations = Violations::new();
    let mut commands = Vec::with_capacity(items.len());
    for (n, item) in items.iter().enumerate() {
        let (kind, command, request_id, trial) = match &item.change {
            Some(Change::Create(request)) => {
                let command = Command::Create(request.model.clone().unwrap_or_default());
                (
                    "create",
                    command,
                    &request.request_id,
                    request.validate_only,
                )
            }
            Some(Change::Update(request)) => {
                let command = update(request);
                (
                    "update",
                    command,
                    &request.request_id,
                    request.validate_only,
                )
            }
            Some(Change::Delete(request)) => {
                let command = delete(request);
                (
                    "delete",
                    command,
                    &request.request_id,
                    request.validate_only,
                )
            }
            None => {
                let message = "required: one of `create`, `update`, `delete`";
                violations.add(format!("items[{n}]"), message);
                continue;
            }
        };
        for (field, said) in [
            ("request_id", !request_id.is_empty()),
            ("validate_only", trial),
        ] {
            if said {
                let message = format!("say it once for the batch, as its own `{field}`");
                violations.add(format!("items[{n}].{kind}.{field}"), message);
            }
        }
        commands.push(command);
    }
    violations.finish(Some(commands))
}
