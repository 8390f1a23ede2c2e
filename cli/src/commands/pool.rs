//! `forebay pool`.

use forebay_proto::wire;
use prost_types::FieldMask;
use tonic::transport::Channel;
use wire::pool_settings_client::PoolSettingsClient;

use crate::{
    Usage,
    args::{Output, Pool},
    client::{self, call, request_id},
    document, table, ui,
};

/// Runs one of them.
pub(crate) async fn run(command: Pool) -> anyhow::Result<()> {
    match command {
        Pool::Get { client } => {
            let mut settings = PoolSettingsClient::new(client::connect(&client).await?);
            let got = call(settings.get_pool_settings(wire::GetPoolSettingsRequest {})).await?;
            show(&got, client.output)
        }
        Pool::Set {
            max_models_concurrent,
            clear,
            pool,
            write,
            client,
        } => {
            let mut paths = pool.paths("");
            paths.extend(max_models_concurrent.map(|_| "max_models_concurrent".to_owned()));
            paths.extend(clear);
            if paths.is_empty() {
                anyhow::bail!(Usage(
                    "nothing to change; see `forebay pool set --help`".into()
                ));
            }
            let request = wire::UpdatePoolSettingsRequest {
                settings: Some(pool.settings(max_models_concurrent)),
                update_mask: Some(FieldMask { paths }),
                request_id: request_id(write.request_id.as_ref()),
                validate_only: write.validate_only,
            };
            let settings: PoolSettingsClient<Channel> =
                PoolSettingsClient::new(client::connect(&client).await?);
            let send = |request| {
                let mut settings = settings.clone();
                async move { settings.update_pool_settings(request).await }
            };
            show(&client::write(request, &write, send).await?, client.output)
        }
    }
}

fn show(settings: &wire::PoolDefaults, output: Output) -> anyhow::Result<()> {
    match output {
        Output::Table => ui::say(&table::settings(settings)),
        output => {
            let value = document::to_value("PoolDefaults", settings)?;
            ui::say(&document::print(&value, output)?);
        }
    }
    Ok(())
}
