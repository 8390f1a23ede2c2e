//! `Discovery` of an endpoint.

use super::{
    endpoint::read_tls_parts,
    units::{duration_in, duration_to_wire},
};
use crate::{
    endpoint::{Bounds, Discovery, DnsName, EndpointTls, ListUrl, Ports, Source},
    limits,
    probe::Cidr,
    violation::{InvalidValue, Violations},
    wire,
};

/// Who names servers, and what it may do.
pub(super) fn read_discovery(wire: wire::Discovery) -> Result<Discovery, Violations> {
    use wire::discovery::Source as Wire;
    let mut violations = Violations::new();
    let v = &mut violations;
    let source = match &wire.source {
        Some(Wire::Dns(text)) => v.check("dns", Source::dns(text)),
        Some(Wire::Srv(text)) => v.check("srv", DnsName::new(text)).map(Source::Srv),
        Some(Wire::File(text)) => v.check("file", Source::file(text)),
        Some(Wire::Http(text)) => v.check("http", ListUrl::parse(text)).map(Source::Http),
        None => {
            let message =
                "required: who names the servers; say one of `dns`, `srv`, `file` and `http`";
            v.add("source", message);
            None
        }
    };
    let polled = matches!(source, Some(Source::File(_) | Source::Http(_)));
    if wire.refresh.is_some() && source.is_some() && !polled {
        let message = "records say themselves how long they hold; leave it out";
        v.add("refresh", message);
    }
    let refresh = duration_in(v, "refresh", wire.refresh, &limits::REFRESH);
    let keep_empty = duration_in(v, "keep_empty", wire.keep_empty, &limits::KEEP_EMPTY);
    let bounds = Bounds {
        allow: all::<Cidr>(v, "allow", &wire.allow, limits::ALLOWED_BLOCKS),
        ports: all::<Ports>(v, "ports", &wire.ports, limits::ALLOWED_PORTS),
    };
    if wire.send_credentials && bounds.allow.is_empty() {
        let message = "sends what proves who somebody is wherever the source says; say with `allow` how far that may be";
        v.add("send_credentials", message);
    }
    let source_tls = match wire.source_tls {
        None => Some(EndpointTls::default()),
        Some(tls) => {
            if !matches!(&source, None | Some(Source::Http(_))) || is_plain(source.as_ref()) {
                let message = "the source does not speak TLS; leave it out, or use an `https` list";
                v.add("source_tls", message);
            }
            read_tls_parts(v, tls, "source_tls")
        }
    };
    let all = source.zip(source_tls);
    violations.finish(all.map(|(source, source_tls)| Discovery {
        source,
        tls: wire.https,
        bounds,
        refresh,
        keep_empty,
        send_credentials: wire.send_credentials,
        source_tls,
    }))
}

fn is_plain(source: Option<&Source>) -> bool {
    matches!(source, Some(Source::Http(url)) if !url.is_tls())
}

fn all<T: std::str::FromStr<Err = InvalidValue>>(
    violations: &mut Violations,
    field: &str,
    given: &[String],
    most: usize,
) -> Vec<T> {
    if given.len() > most {
        let n = given.len();
        violations.add(field, format!("{n} of them, at most {most} are allowed"));
        return Vec::new();
    }
    let read = given.iter().enumerate();
    let read =
        read.filter_map(|(n, text)| violations.check(&format!("{field}[{n}]"), text.parse()));
    read.collect()
}

/// As it was said.
pub(super) fn discovery_to_wire(discovery: &Discovery) -> wire::Discovery {
    use wire::discovery::Source as Wire;
    let source = match &discovery.source {
        Source::Dns { name, port } => Wire::Dns(format!("{name}:{port}")),
        Source::Srv(name) => Wire::Srv(name.to_string()),
        Source::File(path) => Wire::File(path.as_str().to_owned()),
        Source::Http(url) => Wire::Http(url.to_string()),
    };
    let tls = wire::EndpointTls::from(&discovery.source_tls);
    wire::Discovery {
        source: Some(source),
        https: discovery.tls,
        allow: discovery
            .bounds
            .allow
            .iter()
            .map(ToString::to_string)
            .collect(),
        ports: discovery
            .bounds
            .ports
            .iter()
            .map(ToString::to_string)
            .collect(),
        refresh: discovery.refresh.map(duration_to_wire),
        keep_empty: discovery.keep_empty.map(duration_to_wire),
        send_credentials: discovery.send_credentials,
        source_tls: Some(tls).filter(|tls| *tls != wire::EndpointTls::default()),
    }
}
