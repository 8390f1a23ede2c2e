//! One upstream server: its name, where it listens, what is spoken there, and its weight.

mod discovery;
mod tls;
mod url;

use crate::{ids::EndpointId, limits, secret::SealedCredential, violation::InvalidValue};

pub use self::{
    discovery::{Bounds, Discovery, DnsName, ListUrl, OutOfBounds, Ports, Source},
    tls::{ClientIdentity, EndpointTls, FilePath, ServerName, TlsRoots},
    url::{Address, EndpointUrl},
};

/// An upstream server of a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// Name within the model.
    pub id: EndpointId,
    /// Where it listens.
    pub url: EndpointUrl,
    /// Its share of connections.
    pub weight: Weight,
    /// What is spoken on its connections.
    pub protocol: Protocol,
    /// How it proves who it is; looked at with an `https` url only.
    pub tls: EndpointTls,
    /// What requests to it carry, sealed.
    pub credential: Option<SealedCredential>,
}

impl Endpoint {
    /// One that speaks HTTP/1.1, with a weight of 1; over `https`, the system's roots vouch for it.
    #[must_use]
    pub fn new(id: EndpointId, url: EndpointUrl) -> Self {
        Self {
            id,
            url,
            weight: Weight::default(),
            protocol: Protocol::default(),
            tls: EndpointTls::default(),
            credential: None,
        }
    }

    /// True if a connection made for one is one that the other could have made: all but the weight
    /// and the credential, which goes with each request.
    #[must_use]
    pub fn same_connections(&self, other: &Self) -> bool {
        self.id == other.id && self.same_server(other)
    }

    /// True if it is the same server that is spoken to in the same way, under whatever name.
    #[must_use]
    pub fn same_server(&self, other: &Self) -> bool {
        self.url == other.url && self.protocol == other.protocol && self.tls == other.tls
    }
}

/// What is spoken on the connections to an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Protocol {
    /// HTTP/1.1: one request at a time.
    #[default]
    Http1,
    /// HTTP/2: several.
    Http2,
    /// What the server prefers of the two (ALPN).
    Auto,
}

impl Protocol {
    /// The word for it in documents.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Http1 => "http1",
            Self::Http2 => "http2",
            Self::Auto => "auto",
        }
    }
}

/// An endpoint's share of connections relative to the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Weight(u32);

impl Weight {
    /// Checks the range.
    pub fn new(weight: u32) -> Result<Self, InvalidValue> {
        if limits::WEIGHT.contains(&weight) {
            return Ok(Self(weight));
        }
        Err(InvalidValue::new(format!(
            "{weight} is outside {} to {}",
            limits::WEIGHT.start(),
            limits::WEIGHT.end()
        )))
    }

    /// The number.
    #[must_use]
    pub fn get(self) -> u32 {
        self.0
    }
}

impl Default for Weight {
    fn default() -> Self {
        Self(1)
    }
}
