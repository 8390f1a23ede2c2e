//! `forebay health`: for container health checks, in images that have no curl.

use std::time::Duration;

use anyhow::{Context as _, bail};
use bytes::Bytes;
use http::{Request, StatusCode, Uri, header};
use http_body_util::Empty;
use hyper_util::rt::TokioIo;
use tokio::{net::TcpStream, task::JoinSet, time::timeout};

const WITHIN: Duration = Duration::from_secs(3);

/// Succeeds when the URL answers 200.
pub(crate) async fn run(url: &Uri) -> anyhow::Result<()> {
    let answered = timeout(WITHIN, get(url)).await;
    let status = answered.with_context(|| format!("{url} did not answer within {WITHIN:?}"))??;
    if status != StatusCode::OK {
        bail!("{url} answered {status}");
    }
    Ok(())
}

async fn get(url: &Uri) -> anyhow::Result<StatusCode> {
    let authority = url
        .authority()
        .with_context(|| format!("{url} names no host"))?;
    // An IPv6 address stands in brackets here, and nowhere else.
    let host = authority.host().trim_matches(['[', ']']);
    let address = (host, authority.port_u16().unwrap_or(80));
    let socket = TcpStream::connect(address).await;
    let socket = socket.with_context(|| format!("{url} cannot be reached"))?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(socket)).await?;
    let mut driver = JoinSet::new();
    driver.spawn(connection);
    let path = url.path_and_query().map_or("/", |path| path.as_str());
    let request = Request::get(path).header(header::HOST, authority.as_str());
    Ok(sender
        .send_request(request.body(Empty::<Bytes>::new())?)
        .await?
        .status())
}
