//! `forebay standalone`: both planes in one process, speaking gRPC over loopback like any others.

use std::net::SocketAddr;

use anyhow::Context as _;
use forebay_control::{BoundControl, StoreLocation};
use forebay_dataplane::BoundWorker;
use forebay_proto::WorkerId;
use http::Uri;
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

use super::{
    demo::Demo,
    roles::{control_dir, control_settings, data_dir, worker_settings},
};
use crate::{
    args::{DEFAULT_CONTROL, LogArgs, Standalone},
    open_files,
    signals::until_signalled,
    supervisor,
    telemetry::Telemetry,
    ui,
};

const WORKER: &str = "standalone";

/// Where everything listens.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Addresses {
    pub(crate) control: SocketAddr,
    pub(crate) gateway: SocketAddr,
    pub(crate) admin: SocketAddr,
}

/// Runs both planes until a signal.
pub(crate) async fn run(log: &LogArgs, mut args: Standalone) -> anyhow::Result<()> {
    let telemetry = Telemetry::start(log, "forebay", WORKER)?;
    open_files::raise_limit();
    // Removed when it goes out of scope, at the very end.
    let scratch = scratch(&mut args)?;
    let store = StoreLocation::Sled(control_dir(&data_dir(args.role.data_dir.as_deref())?));
    let settings = control_settings(&args.control, &args.role, &args.fresh, store)?;
    let control = BoundControl::bind(settings).await?;
    let uri: Uri = format!("http://{}", reachable(control.addr())).parse()?;
    let settings = worker_settings(WorkerId::new(WORKER)?, vec![uri], &args.worker, &args.role)?;
    let worker = BoundWorker::bind(settings).await?;
    let addresses = Addresses {
        control: control.addr(),
        gateway: worker.gateway_addr(),
        admin: worker.admin_addr(),
    };
    supervisor::ready(&format!("serving on {}", addresses.gateway));
    let shutdown = CancellationToken::new();
    let worker_stopped = CancellationToken::new();
    let work = async {
        tokio::try_join!(
            async {
                // The worker first, so that the control plane sees it leave in good order.
                let result = worker.run(shutdown.clone()).await;
                worker_stopped.cancel();
                result.map_err(anyhow::Error::from)
            },
            async { Ok(control.run(worker_stopped.clone()).await?) },
            async {
                if args.demo {
                    return Demo::run(addresses, shutdown.clone()).await;
                }
                ui::say(&banner(addresses));
                Ok(())
            },
        )
        .map(|_| ())
    };
    let result = until_signalled(work, shutdown.clone()).await;
    telemetry.stop().await;
    drop(scratch);
    result
}

/// A directory that is thrown away, for a demo that names none.
fn scratch(args: &mut Standalone) -> anyhow::Result<Option<TempDir>> {
    if !args.demo || args.role.data_dir.is_some() {
        return Ok(None);
    }
    let dir = tempfile::Builder::new().prefix("forebay-demo-").tempdir();
    let dir = dir.context("no temporary directory can be made; name one with --data-dir")?;
    args.role.data_dir = Some(dir.path().to_owned());
    Ok(Some(dir))
}

/// An address that listens everywhere is reached on loopback.
fn reachable(addr: SocketAddr) -> SocketAddr {
    match addr {
        SocketAddr::V4(v4) if v4.ip().is_unspecified() => ([127, 0, 0, 1], v4.port()).into(),
        SocketAddr::V6(v6) if v6.ip().is_unspecified() => {
            (std::net::Ipv6Addr::LOCALHOST, v6.port()).into()
        }
        addr => addr,
    }
}

/// What listens where.
pub(crate) fn listening(addresses: Addresses) -> String {
    let gateway = format!("http://{}/v1", addresses.gateway);
    let admin = format!("http://{}", addresses.admin);
    let control = addresses.control.to_string();
    let width = gateway.len().max(admin.len()).max(control.len());
    format!(
        "Forebay is running.\n\n  \
         gateway   {gateway:width$}   OpenAI-compatible\n  \
         admin     {admin:width$}   /pools /metrics /readyz /config\n  \
         control   {control:width$}   gRPC with reflection; /metrics /readyz\n"
    )
}

/// The flag that leads a client command to this control plane; none where it is the default.
pub(crate) fn control_flag(control: SocketAddr) -> String {
    let url = format!("http://{control}");
    match url == DEFAULT_CONTROL {
        true => String::new(),
        false => format!(" --control {url}"),
    }
}

fn banner(addresses: Addresses) -> String {
    let Addresses {
        control, gateway, ..
    } = addresses;
    let (program, flag) = (ui::program(), control_flag(control));
    format!(
        "{}\nTry next:\n  \
         {program} models create my-model --endpoint http://HOST:8000{flag}\n  \
         curl http://{gateway}/v1/models\n  \
         grpcurl -plaintext {control} list\n\n\
         Ctrl-C stops it.",
        listening(addresses)
    )
}
