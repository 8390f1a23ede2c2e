//! `forebay fleet`.

use std::time::Duration;

use anyhow::bail;
use forebay_proto::{limits, wire};
use tokio::time::{Instant, sleep};
use tonic::transport::Channel;
use wire::fleet_client::FleetClient;

use super::revisions;
use crate::{
    args::{ClientArgs, Fleet, Output},
    client::{self, call},
    document, table, ui,
};

const ASK_EVERY: Duration = Duration::from_millis(100);

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
        } => rollout(revision, wait.then_some(within), &client).await,
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

async fn rollout(
    revision: Option<u64>,
    wait: Option<Duration>,
    client: &ClientArgs,
) -> anyhow::Result<()> {
    let mut fleet = fleet(client).await?;
    let first = call(fleet.get_rollout(wire::GetRolloutRequest { revision })).await?;
    // What is waited for does not move when somebody else writes meanwhile.
    let revision = Some(first.revision);
    let began = Instant::now();
    let mut rollout = first;
    while wait.is_some_and(|within| began.elapsed() < within)
        && !rollout.complete
        && rollout.refused == 0
        && rollout.partial == 0
    {
        sleep(ASK_EVERY).await;
        rollout = call(fleet.get_rollout(wire::GetRolloutRequest { revision })).await?;
    }
    match client.output {
        Output::Table => ui::say(&table::rollout(&rollout)),
        output => {
            let value = document::to_value("Rollout", &rollout)?;
            ui::say(&document::print(&value, output)?);
        }
    }
    match wait {
        Some(_) if rollout.refused > 0 => {
            bail!(
                "{} workers refused revision {}",
                rollout.refused,
                rollout.revision
            )
        }
        Some(_) if rollout.partial > 0 => {
            bail!(
                "{} workers could not take all models of revision {}",
                rollout.partial,
                rollout.revision
            )
        }
        Some(within) if !rollout.complete => bail!(
            "revision {} is not everywhere after {}",
            rollout.revision,
            humantime::format_duration(within)
        ),
        _ => Ok(()),
    }
}
