//! `forebay fleet`.

use std::time::Duration;

use anyhow::bail;
use forebay_proto::{limits, wire};
use tokio::time::{Instant, sleep};
use tonic::transport::Channel;
use wire::fleet_client::FleetClient;

use super::{revisions, rollout};
use crate::{
    args::{ClientArgs, Fleet, Output},
    client::{self, call},
    document, leases_table, table, ui,
};

/// How often it is looked whether a worker is gone.
const LOOK_EVERY: Duration = Duration::from_millis(200);

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
        Fleet::Leases { model, client } => leases(model.unwrap_or_default(), &client).await,
        Fleet::Forget { worker, client } => forget(worker, &client).await,
        Fleet::Drain {
            worker,
            wait,
            within,
            client,
        } => drain(worker, wait.then_some(within), &client).await,
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

/// Has a worker end, and waits for that if it is to.
async fn drain(id: String, wait: Option<Duration>, client: &ClientArgs) -> anyhow::Result<()> {
    let mut fleet = fleet(client).await?;
    let request = wire::DrainWorkerRequest { id: id.clone() };
    let mut worker = call(fleet.drain_worker(request)).await?;
    let instance = worker.instance_id.clone();
    let deadline = wait.map(|within| Instant::now() + within);
    // Another process of that id is another worker: it is what came after.
    while deadline.is_some() && worker.gone_time.is_none() && worker.instance_id == instance {
        if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            bail!(
                "worker `{id}` still has {} requests on what was before, or others in flight; wait on with --within",
                worker.draining_requests
            );
        }
        sleep(LOOK_EVERY).await;
        let request = wire::GetWorkerRequest { id: id.clone() };
        worker = call(fleet.get_worker(request)).await?;
    }
    match client.output {
        Output::Table => ui::say(&table::workers(&[worker])),
        output => {
            let value = document::to_value("Worker", &worker)?;
            ui::say(&document::print(&value, output)?);
        }
    }
    Ok(())
}

async fn leases(model: String, client: &ClientArgs) -> anyhow::Result<()> {
    let request = wire::ListLeasesRequest { model };
    let list = call(fleet(client).await?.list_leases(request)).await?;
    match client.output {
        Output::Table => ui::say(&leases_table::pools(&list.pools)),
        output => {
            let value = document::to_value("ListLeasesResponse", &list)?;
            ui::say(&document::print(&value, output)?);
        }
    }
    Ok(())
}

async fn forget(id: String, client: &ClientArgs) -> anyhow::Result<()> {
    let request = wire::ForgetWorkerRequest { id: id.clone() };
    call(fleet(client).await?.forget_worker(request)).await?;
    match client.output {
        Output::Table => ui::say(&format!("worker `{id}` is forgotten")),
        output => ui::say(&document::print(&serde_json::json!({}), output)?),
    }
    Ok(())
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
