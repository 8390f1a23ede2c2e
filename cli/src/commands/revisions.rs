//! `forebay fleet revisions`, `diff` and `rollback`: the history of the configuration.

use forebay_proto::{limits, wire};
use prost::Message;
use tonic::transport::Channel;
use wire::revisions_client::RevisionsClient;

use crate::{
    args::{ClientArgs, Output, WriteArgs},
    client::{self, call, request_id},
    document, table, ui,
};

const PAGE: i32 = 1_000;

async fn revisions(client: &ClientArgs) -> anyhow::Result<RevisionsClient<Channel>> {
    let revisions = RevisionsClient::new(client::connect(client).await?);
    Ok(revisions.max_decoding_message_size(limits::MESSAGE_BYTES))
}

/// The newest of them.
pub(super) async fn list(limit: usize, client: &ClientArgs) -> anyhow::Result<()> {
    let mut service = revisions(client).await?;
    let mut list = wire::ListRevisionsResponse::default();
    while list.revisions.len() < limit {
        let missing = limit - list.revisions.len();
        let request = wire::ListRevisionsRequest {
            page_size: i32::try_from(missing).unwrap_or(PAGE).min(PAGE),
            page_token: std::mem::take(&mut list.next_page_token),
        };
        let page = call(service.list_revisions(request)).await?;
        list.revisions.extend(page.revisions);
        list.next_page_token = page.next_page_token;
        list.earliest_revision = page.earliest_revision;
        if list.next_page_token.is_empty() {
            break;
        }
    }
    match client.output {
        Output::Table => {
            ui::say(&table::revisions(&list));
            Ok(())
        }
        output => print("ListRevisionsResponse", &list, output),
    }
}

/// What differs between two of them.
pub(super) async fn diff(
    from: Option<u64>,
    to: Option<u64>,
    client: &ClientArgs,
) -> anyhow::Result<()> {
    let mut service = revisions(client).await?;
    let mut diff = wire::DiffRevisionsResponse::default();
    let (mut from, mut to) = (from, to);
    loop {
        let request = wire::DiffRevisionsRequest {
            from,
            to,
            page_size: PAGE,
            page_token: std::mem::take(&mut diff.next_page_token),
        };
        let page = call(service.diff_revisions(request)).await?;
        // What is newest must not move from page to page.
        (from, to) = (Some(page.from), Some(page.to));
        diff.changes.extend(page.changes);
        (diff.from, diff.to) = (page.from, page.to);
        diff.next_page_token = page.next_page_token;
        if diff.next_page_token.is_empty() {
            break;
        }
    }
    match client.output {
        Output::Table => {
            let text = match diff.changes.is_empty() {
                true => format!(
                    "nothing differs between revisions {} and {}",
                    diff.from, diff.to
                ),
                false => table::changes(&diff.changes),
            };
            ui::say(&text);
            Ok(())
        }
        output => print("DiffRevisionsResponse", &diff, output),
    }
}

/// Back to one of them, by way of a new one.
pub(super) async fn rollback(
    revision: u64,
    write: WriteArgs,
    client: &ClientArgs,
) -> anyhow::Result<()> {
    let service = revisions(client).await?;
    let send = |request| {
        let mut service = service.clone();
        async move { service.rollback_revision(request).await }
    };
    let trial = wire::RollbackRevisionRequest {
        revision,
        expected_revision: None,
        request_id: request_id(None),
        validate_only: true,
    };
    let trial: wire::RollbackRevisionResponse = client::write(trial, &write, send).await?;
    if client.output == Output::Table && !trial.changes.is_empty() {
        ui::say(&table::changes(&trial.changes));
    }
    let made = match write.validate_only {
        true => trial,
        false => {
            let request = wire::RollbackRevisionRequest {
                revision,
                // What was shown is what is undone.
                expected_revision: Some(trial.revision),
                request_id: request_id(write.request_id.as_ref()),
                validate_only: false,
            };
            client::write(request, &write, send).await?
        }
    };
    match client.output {
        Output::Table => {
            let text = match (write.validate_only, made.changed) {
                (_, 0) => format!("revision {} has that content already", made.revision),
                (true, changed) => format!("{changed} would change; nothing was written"),
                (false, _) => format!(
                    "revision {} has the content of revision {revision}",
                    made.revision
                ),
            };
            ui::say(&text);
            Ok(())
        }
        output => print("RollbackRevisionResponse", &made, output),
    }
}

/// A message for programs.
pub(super) fn print(name: &str, message: &impl Message, output: Output) -> anyhow::Result<()> {
    ui::say(&document::print(
        &document::to_value(name, message)?,
        output,
    )?);
    Ok(())
}
