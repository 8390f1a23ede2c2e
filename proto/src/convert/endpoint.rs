//! `Endpoint` and its parts.

use super::discovery::{discovery_to_wire, read_discovery};
use crate::{
    endpoint::{
        ClientIdentity, Endpoint, EndpointTls, EndpointUrl, FilePath, Protocol, ServerName,
        TlsRoots, Weight,
    },
    ids::EndpointId,
    secret::SealedCredential,
    violation::Violations,
    wire,
};

/// Stands for an endpoint that cannot be read, until the violation that was noted ends the conversion.
pub(super) fn placeholder(n: usize) -> Option<Endpoint> {
    let name = format!("refused-endpoint-{n}");
    let url = EndpointUrl::parse(&format!("http://{name}")).ok()?;
    Some(Endpoint::new(EndpointId::new(name).ok()?, url))
}

/// Reads the `n`th endpoint of a model.
pub(super) fn read_endpoint(n: usize, wire: wire::Endpoint) -> Result<Endpoint, Violations> {
    let mut violations = Violations::new();
    let id = if wire.id.is_empty() {
        format!("e{}", n + 1)
    } else {
        wire.id
    };
    let id = violations.check("id", EndpointId::new(id));
    let url = read_url(&mut violations, &wire.url, wire.discovery);
    let weight = match wire.weight {
        Some(weight) => violations.check("weight", Weight::new(weight)),
        None => Some(Weight::default()),
    };
    let protocol = read_protocol(&mut violations, wire.protocol, url.as_ref());
    let tls = read_tls(&mut violations, wire.tls, url.as_ref());
    let credential = read_credential(&mut violations, wire.credential);
    let discovery = url.as_ref().and_then(EndpointUrl::discovery);
    if matches!(credential, Some(Some(_))) && discovery.is_some_and(|d| !d.send_credentials) {
        let message = "would go wherever the source says; say `discovery.send_credentials`, and with \
                       `discovery.allow` how far that may be, or clear it";
        violations.add("credential", message);
    }
    let all = id
        .zip(url)
        .zip(weight.zip(protocol))
        .zip(tls.zip(credential));
    violations.finish(all.map(
        |(((id, url), (weight, protocol)), (tls, credential))| Endpoint {
            id,
            url,
            weight,
            protocol,
            tls,
            credential,
        },
    ))
}

/// Where an endpoint listens, if that can be read: to whom a secret is given.
#[must_use]
pub fn endpoint_url(wire: &wire::Endpoint) -> Option<EndpointUrl> {
    let discovery = wire.discovery.clone();
    read_url(&mut Violations::new(), &wire.url, discovery)
}

/// Where it listens; or who says where.
fn read_url(
    violations: &mut Violations,
    url: &str,
    discovery: Option<wire::Discovery>,
) -> Option<EndpointUrl> {
    let Some(discovery) = discovery else {
        return violations.check("url", EndpointUrl::parse(url));
    };
    if !url.is_empty() {
        violations.add(
            "url",
            "contradicts `discovery`; leave one of them out, or make two endpoints",
        );
    }
    let discovery = violations.part("discovery", read_discovery(discovery));
    discovery.map(EndpointUrl::listed)
}

/// Sealed already, or cleared.
fn read_credential(
    violations: &mut Violations,
    wire: Option<wire::Credential>,
) -> Option<Option<SealedCredential>> {
    let Some(wire) = wire.filter(|wire| !wire.clear) else {
        return Some(None);
    };
    if wire.sealed.is_empty() {
        let message = "required: there is no credential for this endpoint at this url that could be \
                       kept; give it, say `credential.clear`, or leave `credential` out";
        violations.add("credential.bearer_token", message);
        return None;
    }
    let sealed = SealedCredential::new(&wire.sealed, &wire.fingerprint);
    violations.check("credential", sealed).map(Some)
}

fn read_protocol(
    violations: &mut Violations,
    wire: i32,
    url: Option<&EndpointUrl>,
) -> Option<Protocol> {
    use wire::EndpointProtocol as Wire;
    match Wire::try_from(wire) {
        Ok(Wire::Unspecified | Wire::Http1) => Some(Protocol::Http1),
        Ok(Wire::Http2) => Some(Protocol::Http2),
        Ok(Wire::Auto) => {
            if let Some(url) = url.filter(|url| !url.is_tls()) {
                let message = format!(
                    "AUTO asks the server during the TLS handshake, and {url} has none; \
                     say HTTP1 or HTTP2, or use https"
                );
                violations.add("protocol", message);
            }
            Some(Protocol::Auto)
        }
        Err(_) => {
            let message = format!("{wire} is not a protocol; use HTTP1, HTTP2 or AUTO");
            violations.add("protocol", message);
            None
        }
    }
}

fn read_tls(
    violations: &mut Violations,
    wire: Option<wire::EndpointTls>,
    url: Option<&EndpointUrl>,
) -> Option<EndpointTls> {
    let Some(wire) = wire else {
        return Some(EndpointTls::default());
    };
    if let Some(url) = url.filter(|url| !url.is_tls()) {
        let message = format!("{url} does not speak TLS; leave `tls` out, or use https");
        violations.add("tls", message);
    }
    read_tls_parts(violations, wire, "tls")
}

/// What TLS asks for; `at` is where that stands.
pub(super) fn read_tls_parts(
    violations: &mut Violations,
    wire: wire::EndpointTls,
    at: &str,
) -> Option<EndpointTls> {
    let field = |name: &str| format!("{at}.{name}");
    let roots = match (wire.ca_pem.as_str(), wire.skip_verification) {
        ("", false) => Some(TlsRoots::System),
        ("", true) => Some(TlsRoots::Unverified),
        (pem, false) => violations.check(&field("ca_pem"), TlsRoots::pem(pem)),
        (_, true) => {
            let message = format!("contradicts `{at}.ca_pem`; leave one of them out");
            violations.add(field("skip_verification"), message);
            None
        }
    };
    let server_name = match wire.server_name.as_str() {
        "" => Some(None),
        name => violations
            .check(&field("server_name"), ServerName::new(name))
            .map(Some),
    };
    let (certificate, key) = (wire.client_certificate_file, wire.client_key_file);
    let identity = match (certificate.as_str(), key.as_str()) {
        ("", "") => Some(None),
        ("", _) => {
            let message = format!("required beside `{at}.client_key_file`");
            violations.add(field("client_certificate_file"), message);
            None
        }
        (_, "") => {
            let message = format!("required beside `{at}.client_certificate_file`");
            violations.add(field("client_key_file"), message);
            None
        }
        (certificate, key) => {
            let at = field("client_certificate_file");
            let certificate = violations.check(&at, FilePath::new(certificate));
            let key = violations.check(&field("client_key_file"), FilePath::new(key));
            let both = certificate.zip(key);
            both.map(|(certificate, key)| Some(ClientIdentity::new(certificate, key)))
        }
    };
    let all = roots.zip(server_name).zip(identity);
    all.map(|((roots, server_name), identity)| EndpointTls {
        roots,
        server_name,
        identity,
    })
}

impl From<&Endpoint> for wire::Endpoint {
    fn from(endpoint: &Endpoint) -> Self {
        use wire::EndpointProtocol as Wire;
        let protocol = match endpoint.protocol {
            // What is not said stays unsaid, so that older revisions keep their digest.
            Protocol::Http1 => Wire::Unspecified,
            Protocol::Http2 => Wire::Http2,
            Protocol::Auto => Wire::Auto,
        };
        Self {
            id: endpoint.id.to_string(),
            // An older build must not take it for one that it knows.
            url: match endpoint.url.discovery() {
                Some(_) => String::new(),
                None => endpoint.url.to_string(),
            },
            discovery: endpoint.url.discovery().map(|own| discovery_to_wire(own)),
            weight: Some(endpoint.weight.get()),
            protocol: protocol.into(),
            tls: Some((&endpoint.tls).into()).filter(|tls| *tls != wire::EndpointTls::default()),
            credential: endpoint.credential.as_ref().map(|sealed| wire::Credential {
                fingerprint: sealed.fingerprint().to_owned(),
                sealed: sealed.as_bytes().to_vec().into(),
                ..wire::Credential::default()
            }),
        }
    }
}

impl From<&EndpointTls> for wire::EndpointTls {
    fn from(tls: &EndpointTls) -> Self {
        let (ca_pem, skip_verification) = match &tls.roots {
            TlsRoots::System => (String::new(), false),
            TlsRoots::Pem(pem) => (pem.to_string(), false),
            TlsRoots::Unverified => (String::new(), true),
        };
        let name = tls.server_name.as_ref();
        let identity = tls.identity.as_ref();
        Self {
            ca_pem,
            server_name: name.map_or_else(String::new, |name| name.as_str().to_owned()),
            client_certificate_file: identity
                .map_or_else(String::new, |identity| identity.certificate().to_owned()),
            client_key_file: identity
                .map_or_else(String::new, |identity| identity.key().to_owned()),
            skip_verification,
        }
    }
}
