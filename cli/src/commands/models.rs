//! `forebay models`.

use anyhow::{Context as _, bail};
use forebay_proto::{convert::duration_to_wire, limits, wire};
use prost_types::FieldMask;
use tonic::transport::Channel;
use wire::model_registry_client::ModelRegistryClient;

use super::{apply, credentials};
use crate::{
    Usage,
    args::{
        ClientArgs, DiscoveryArgs, EndpointArgs, EndpointProtocol, ModelArgs, Models, Output,
        ProbeArgs, ProbeMode, StreamUsage, StreamingArgs, WriteArgs,
    },
    client::{self, call, request_id},
    document, table, ui,
};

pub(super) type Registry = ModelRegistryClient<Channel>;

/// Runs one of them.
pub(crate) async fn run(command: Models) -> anyhow::Result<()> {
    match command {
        Models::Create {
            id,
            endpoints,
            aliases,
            flags,
            write,
            client,
        } => {
            let endpoints = as_endpoints(endpoints, &flags)?;
            let model = flags.model(id, aliases, endpoints);
            let created = create(&mut registry(&client).await?, model, &write).await?;
            show(&created, client.output)
        }
        Models::Get { id, client } => {
            let mut registry = registry(&client).await?;
            let model = call(registry.get_model(wire::GetModelRequest { id })).await?;
            show(&model, client.output)
        }
        Models::List { revision, client } => list(revision, &client).await,
        Models::Update {
            id,
            endpoints,
            aliases,
            clear,
            mut etag,
            flags,
            write,
            client,
        } => {
            let mut registry = registry(&client).await?;
            let named = (endpoints, &flags);
            let endpoints = endpoints_of(&mut registry, &id, named, &mut etag).await?;
            let (mask, model) = update_of(id, endpoints, aliases, clear, etag, &flags);
            if mask.paths.is_empty() {
                bail!(Usage(
                    "nothing to change; see `forebay models update --help`".into()
                ));
            }
            let updated = update(&registry, model, mask, &write).await?;
            show(&updated, client.output)
        }
        Models::Delete {
            id,
            etag,
            allow_missing,
            write,
            client,
        } => delete(id, etag, allow_missing, &write, &client).await,
        Models::Apply {
            file,
            prune,
            write,
            client,
        } => apply::run(&file, prune, &write, &client).await,
        Models::Export { revision, client } => export(revision, &client).await,
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
    client::write(request, write, send).await
}

async fn update(
    registry: &Registry,
    model: wire::Model,
    mask: FieldMask,
    write: &WriteArgs,
) -> anyhow::Result<wire::Model> {
    let request = wire::UpdateModelRequest {
        model: Some(model),
        update_mask: Some(mask),
        allow_missing: false,
        request_id: request_id(write.request_id.as_ref()),
        validate_only: write.validate_only,
    };
    let send = |request| {
        let mut registry = registry.clone();
        async move { registry.update_model(request).await }
    };
    client::write(request, write, send).await
}

/// The endpoint at this url, named by the server.
pub(crate) fn endpoint(url: String) -> wire::Endpoint {
    wire::Endpoint {
        url,
        ..wire::Endpoint::default()
    }
}

/// Endpoints at these urls, and those whose servers a source names, all reached in the same way, named by the server.
fn as_endpoints(urls: Vec<String>, given: &ModelArgs) -> anyhow::Result<Vec<wire::Endpoint>> {
    let reached: &EndpointArgs = &given.reached;
    let ca_pem = match &reached.tls_ca {
        Some(file) => std::fs::read_to_string(file)
            .with_context(|| format!("--tls-ca {} cannot be read", file.display()))?,
        None => String::new(),
    };
    let text = |given: &Option<String>| given.clone().unwrap_or_default();
    let tls = wire::EndpointTls {
        ca_pem,
        server_name: text(&reached.tls_server_name),
        client_certificate_file: text(&reached.tls_client_certificate),
        client_key_file: text(&reached.tls_client_key),
        skip_verification: reached.tls_skip_verification,
    };
    let protocol = match reached.protocol {
        None => wire::EndpointProtocol::Unspecified,
        Some(EndpointProtocol::Http1) => wire::EndpointProtocol::Http1,
        Some(EndpointProtocol::Http2) => wire::EndpointProtocol::Http2,
        Some(EndpointProtocol::Auto) => wire::EndpointProtocol::Auto,
    };
    let reached = |place: wire::Endpoint| wire::Endpoint {
        protocol: protocol.into(),
        tls: Some(tls.clone()).filter(|tls| *tls != wire::EndpointTls::default()),
        ..place
    };
    let discovered = given.discovery.endpoints();
    let places = urls.into_iter().map(endpoint).chain(discovered);
    credentials::put(places.map(reached).collect(), &given.reached)
}

/// The endpoints of an update. Where only their credentials are named they stay as they are, if nobody changes them
/// meanwhile: then the etag is theirs.
async fn endpoints_of(
    registry: &mut Registry,
    id: &str,
    (urls, given): (Vec<String>, &ModelArgs),
    etag: &mut String,
) -> anyhow::Result<Vec<wire::Endpoint>> {
    let named = !urls.is_empty() || !given.discovery.discover.is_empty();
    if named || !given.reached.has_credentials() {
        return as_endpoints(urls, given);
    }
    let id = id.to_owned();
    let model = call(registry.get_model(wire::GetModelRequest { id })).await?;
    if etag.is_empty() {
        *etag = model.etag;
    }
    credentials::put(model.endpoints, &given.reached)
}

impl DiscoveryArgs {
    /// An endpoint for each source.
    fn endpoints(&self) -> impl Iterator<Item = wire::Endpoint> {
        self.discover.iter().map(|source| wire::Endpoint {
            discovery: Some(wire::Discovery {
                source: Some(source.clone()),
                https: self.discover_https,
                allow: self.discover_allow.clone(),
                ports: self.discover_ports.clone(),
                refresh: self.discover_refresh.map(duration_to_wire),
                keep_empty: self.discover_keep_empty.map(duration_to_wire),
                send_credentials: self.discover_send_credentials,
                source_tls: None,
            }),
            ..wire::Endpoint::default()
        })
    }
}

impl ProbeArgs {
    fn probe(&self) -> Option<wire::EndpointProbe> {
        let mode = match self.probe {
            None | Some(ProbeMode::Off) => wire::ProbeMode::Unspecified,
            Some(ProbeMode::Report) => wire::ProbeMode::Report,
            Some(ProbeMode::Enforce) => wire::ProbeMode::Enforce,
        };
        let probe = wire::EndpointProbe {
            mode: mode.into(),
            served_name: self.served_name.clone().unwrap_or_default(),
        };
        Some(probe).filter(|probe| *probe != wire::EndpointProbe::default())
    }

    /// The fields that were named; to switch off is to clear.
    fn paths(&self) -> Vec<String> {
        let mode = self.probe.map(|_| "probe.mode");
        let name = self.served_name.as_ref().map(|_| "probe.served_name");
        mode.into_iter().chain(name).map(str::to_owned).collect()
    }
}

impl StreamingArgs {
    fn streaming(&self) -> Option<wire::Streaming> {
        let usage = match self.stream_usage {
            None | Some(StreamUsage::Pass) => wire::StreamUsage::Unspecified,
            Some(StreamUsage::Inject) => wire::StreamUsage::Inject,
        };
        let streaming = wire::Streaming {
            usage: usage.into(),
            keep_alive: self.stream_keep_alive.map(duration_to_wire),
        };
        Some(streaming).filter(|streaming| *streaming != wire::Streaming::default())
    }

    /// The fields that were named; to switch off is to clear.
    fn paths(&self) -> Vec<String> {
        let usage = self.stream_usage.map(|_| "streaming.usage");
        let comments = self.stream_keep_alive.map(|_| "streaming.keep_alive");
        usage
            .into_iter()
            .chain(comments)
            .map(str::to_owned)
            .collect()
    }
}

pub(super) async fn registry(client: &ClientArgs) -> anyhow::Result<Registry> {
    let channel = client::connect(client).await?;
    Ok(Registry::new(channel).max_decoding_message_size(limits::MESSAGE_BYTES))
}

fn update_of(
    id: String,
    endpoints: Vec<wire::Endpoint>,
    aliases: Vec<String>,
    clear: Vec<String>,
    etag: String,
    flags: &ModelArgs,
) -> (FieldMask, wire::Model) {
    let mut paths = flags.pool.paths("pool.");
    paths.extend(flags.scope.paths());
    paths.extend(flags.probe.paths());
    paths.extend(flags.failure.paths());
    paths.extend(flags.streaming.paths());
    paths.extend(clear);
    if !endpoints.is_empty() {
        paths.push("endpoints".to_owned());
    }
    if !aliases.is_empty() {
        paths.push("aliases".to_owned());
    }
    let model = wire::Model {
        etag,
        ..flags.model(id, aliases, endpoints)
    };
    (FieldMask { paths }, model)
}

impl ModelArgs {
    fn model(
        &self,
        id: String,
        aliases: Vec<String>,
        endpoints: Vec<wire::Endpoint>,
    ) -> wire::Model {
        let mut pool = self.pool.pool();
        self.scope.write(&mut pool);
        let mut model = wire::Model {
            id,
            aliases,
            endpoints,
            pool,
            timeouts: self.pool.timeouts(),
            probe: self.probe.probe(),
            streaming: self.streaming.streaming(),
            ..wire::Model::default()
        };
        self.failure.write(&mut model);
        model
    }
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
    let answer: wire::DeleteModelResponse = client::write(request, write, send).await?;
    match client.output {
        Output::Table if write.validate_only => {
            ui::say(&format!("model {id} would be removed"));
        }
        Output::Table => ui::say(&format!("model {id} is gone, revision {}", answer.revision)),
        output => {
            let value = document::to_value("DeleteModelResponse", &answer)?;
            ui::say(&document::print(&value, output)?);
        }
    }
    Ok(())
}

/// Every model, page by page, under the revision of the last page.
pub(super) async fn all(
    registry: &mut Registry,
    revision: Option<u64>,
) -> anyhow::Result<wire::ListModelsResponse> {
    let mut list = wire::ListModelsResponse::default();
    loop {
        let request = wire::ListModelsRequest {
            page_size: 1_000,
            page_token: std::mem::take(&mut list.next_page_token),
            at_revision: revision.unwrap_or_default(),
        };
        let page = call(registry.list_models(request)).await?;
        list.models.extend(page.models);
        list.revision = page.revision;
        list.next_page_token = page.next_page_token;
        if list.next_page_token.is_empty() {
            return Ok(list);
        }
    }
}

async fn list(revision: Option<u64>, client: &ClientArgs) -> anyhow::Result<()> {
    let list = all(&mut registry(client).await?, revision).await?;
    match client.output {
        Output::Table => ui::say(&table::models(&list.models)),
        output => {
            let value = document::to_value("ListModelsResponse", &list)?;
            ui::say(&document::print(&value, output)?);
        }
    }
    Ok(())
}

async fn export(revision: Option<u64>, client: &ClientArgs) -> anyhow::Result<()> {
    let models = all(&mut registry(client).await?, revision).await?;
    let models: Result<Vec<_>, _> = models.models.iter().map(document::exported).collect();
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
