//! `forebay fleet`.

use forebay_proto::{limits, wire};
use tonic::transport::Channel;
use wire::fleet_client::FleetClient;

use super::{revisions, rollout};
use crate::{
    args::{ClientArgs, Fleet, Output},
    client::{self, call},
    document, table, ui,
};

/// Runs one of them.
pub(crate) async fn run(command: Fleet) -> anyhow::Result<()> {
    match command {
        Fleet::Workers { client } => workers(&client).await,
        Fleet::Revisions { limit, client } => revisions::list(limit, &client).await,
        Fleet::Diff { from, to, client } => revisions::diff(from, to, &client).await,
        Fleet::Rollback {
            revision,
            write,
            client,
        } => revisions::rollback(revision, write, &client).await,
        Fleet::Rollout {
            revision,
            wait,
            within,
            client,
        } => {
            let wait = wait.then_some(within);
            rollout::run(fleet(&client).await?, revision, wait, &client).await
        }
    }
}

async fn fleet(client: &ClientArgs) -> anyhow::Result<FleetClient<Channel>> {
    let fleet = FleetClient::new(client::connect(client).await?);
    Ok(fleet.max_decoding_message_size(4 * limits::MESSAGE_BYTES))
}

async fn workers(client: &ClientArgs) -> anyhow::Result<()> {
    let mut fleet = fleet(client).await?;
    let mut workers = Vec::new();
    let mut page_token = String::new();
    loop {
        let request = wire::ListWorkersRequest {
            page_size: 1_000,
            page_token,
        };
        let page = call(fleet.list_workers(request)).await?;
        workers.extend(page.workers);
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    match client.output {
        Output::Table => ui::say(&table::workers(&workers)),
        output => {
            let list = wire::ListWorkersResponse {
                workers,
                ..Default::default()
            };
            let value = document::to_value("ListWorkersResponse", &list)?;
            ui::say(&document::print(&value, output)?);
        }
    }
    Ok(())
}
