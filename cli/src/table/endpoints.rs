//! Endpoints as people read them: where they are, and what was found there.

use forebay_proto::wire;

use super::{table, text};

/// Where it is, or who says where.
pub(super) fn place_of(endpoint: &wire::Endpoint) -> String {
    use wire::discovery::Source;
    let source = endpoint.discovery.as_ref().and_then(|d| d.source.as_ref());
    match source {
        Some(Source::Dns(at)) => format!("dns {at}"),
        Some(Source::Srv(at)) => format!("srv {at}"),
        Some(Source::File(at)) => format!("file {at}"),
        Some(Source::Http(at)) => format!("list {at}"),
        None => endpoint.url.clone(),
    }
}

pub(super) fn endpoint_of(endpoint: &wire::Endpoint) -> String {
    let (id, url, weight) = (
        &endpoint.id,
        place_of(endpoint),
        endpoint.weight.unwrap_or(1),
    );
    let credential = endpoint.credential.as_ref();
    let credential = credential.map(|sealed| format!("  credential {}", sealed.fingerprint));
    format!(
        "{id}  {url}  weight {weight}{}",
        credential.unwrap_or_default()
    )
}

pub(super) fn probe_of(probe: &wire::EndpointProbe) -> String {
    let mode = match probe.mode() {
        wire::ProbeMode::Unspecified => "off",
        wire::ProbeMode::Report => "report",
        wire::ProbeMode::Enforce => "enforce",
    };
    match probe.served_name.as_str() {
        "" => mode.to_owned(),
        name => format!("{mode}, as {name}"),
    }
}

/// What was found at the endpoints of a model.
pub(crate) fn probe_results(results: &[wire::ProbeResult]) -> String {
    let mut table = table(&["ENDPOINT", "FOUND", "WHAT"]);
    for result in results {
        let found = match result.verdict() {
            wire::ProbeVerdict::Unspecified => "-",
            wire::ProbeVerdict::Ok => "ok",
            wire::ProbeVerdict::Unreachable => "unreachable",
            wire::ProbeVerdict::Mismatch => "mismatch",
            wire::ProbeVerdict::Blocked => "blocked",
            wire::ProbeVerdict::Unknown => "unknown",
            wire::ProbeVerdict::NotProbed => "not probed",
        };
        let (id, what) = (result.endpoint_id.clone(), result.message.clone());
        table.add_row([id, found.to_owned(), what]);
    }
    text(&table)
}
