//! Where an endpoint listens: an `http` or `https` origin, a Unix socket, or wherever a source says.

use std::{fmt, sync::Arc};

use super::Discovery;
use crate::{limits, violation::InvalidValue};

const EXAMPLE: &str = "write an origin such as `http://10.0.0.5:8000`";

/// Where an endpoint listens, nothing more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndpointUrl(Place);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Place {
    Host { tls: bool, host: String, port: u16 },
    Unix(String),
    Listed(Arc<Discovery>),
}

/// What is dialled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Address<'a> {
    /// A name or address, without brackets, and a port.
    Host(&'a str, u16),
    /// The path of a Unix socket.
    Unix(&'a str),
    /// Nothing by itself: a source names servers.
    Listed(&'a Discovery),
}

impl EndpointUrl {
    /// Reads an origin such as `http://10.0.0.5:8000`, or `unix:///run/vllm.sock`.
    pub fn parse(text: &str) -> Result<Self, InvalidValue> {
        if text.is_empty() {
            return Err(InvalidValue::new(
                "required, such as `http://10.0.0.5:8000`",
            ));
        }
        let length = text.chars().count();
        if length > limits::URL_CHARS {
            return Err(InvalidValue::new(format!(
                "{length} characters long, at most {} are allowed",
                limits::URL_CHARS
            )));
        }
        match text.strip_prefix("unix:") {
            Some(path) => unix(text, path),
            None => origin(text),
        }
    }

    /// What is dialled.
    #[must_use]
    pub fn address(&self) -> Address<'_> {
        match &self.0 {
            Place::Host { host, port, .. } => Address::Host(host.trim_matches(['[', ']']), *port),
            Place::Unix(path) => Address::Unix(path),
            Place::Listed(discovery) => Address::Listed(discovery),
        }
    }

    /// Wherever this says.
    #[must_use]
    pub fn listed(discovery: Discovery) -> Self {
        Self(Place::Listed(Arc::new(discovery)))
    }

    /// Who says where servers are, if it is so.
    #[must_use]
    pub fn discovery(&self) -> Option<&Arc<Discovery>> {
        match &self.0 {
            Place::Listed(discovery) => Some(discovery),
            Place::Host { .. } | Place::Unix(_) => None,
        }
    }

    /// True for `https`.
    #[must_use]
    pub fn is_tls(&self) -> bool {
        match &self.0 {
            Place::Host { tls, .. } => *tls,
            Place::Listed(discovery) => discovery.tls,
            Place::Unix(_) => false,
        }
    }

    /// Everywhere that it leads, in one line. A secret that is given for one is for no other.
    #[must_use]
    pub fn reach(&self) -> String {
        match &self.0 {
            Place::Listed(discovery) => discovery.reach(),
            Place::Host { .. } | Place::Unix(_) => self.to_string(),
        }
    }

    /// `host:port`, as it stands in the `host` header. Who listens on a Unix socket is `localhost`.
    #[must_use]
    pub fn authority(&self) -> String {
        match &self.0 {
            Place::Host { host, port, .. } => format!("{host}:{port}"),
            Place::Unix(_) | Place::Listed(_) => "localhost".to_owned(),
        }
    }
}

fn unix(text: &str, path: &str) -> Result<EndpointUrl, InvalidValue> {
    let example = "write an absolute path such as `unix:///run/vllm.sock`";
    let path = path.strip_prefix("//").filter(|path| {
        path.starts_with('/') && path.len() > 1 && !path.chars().any(char::is_control)
    });
    let path = path.ok_or_else(|| {
        InvalidValue::new(format!("{text:?} is no path of a Unix socket; {example}"))
    })?;
    if path.len() > limits::SOCKET_PATH_BYTES {
        return Err(InvalidValue::new(format!(
            "the socket's path is {} bytes long, at most {} are allowed",
            path.len(),
            limits::SOCKET_PATH_BYTES
        )));
    }
    Ok(EndpointUrl(Place::Unix(path.to_owned())))
}

fn origin(text: &str) -> Result<EndpointUrl, InvalidValue> {
    let url = url::Url::parse(text).map_err(|error| {
        InvalidValue::new(format!("{text:?} is not a url ({error}); {EXAMPLE}"))
    })?;
    let tls = match url.scheme() {
        "http" => false,
        "https" => true,
        other => {
            return Err(InvalidValue::new(format!(
                "scheme `{other}` is not supported, `http`, `https` and `unix` are; {EXAMPLE}"
            )));
        }
    };
    if !url.username().is_empty() || url.password().is_some() {
        return Err(InvalidValue::new(format!(
            "credentials do not belong in a url; {EXAMPLE}"
        )));
    }
    if !matches!(url.path(), "" | "/") || url.query().is_some() || url.fragment().is_some() {
        return Err(InvalidValue::new(format!(
            "{text:?} has a path, query or fragment; the gateway adds the request's own path; \
             {EXAMPLE}"
        )));
    }
    let host = url.host_str().filter(|host| !host.is_empty());
    let host = host.ok_or_else(|| InvalidValue::new(format!("{text:?} has no host; {EXAMPLE}")))?;
    // In ASCII, as it is resolved: what is printed must be readable again.
    let length = host.chars().count();
    if length > limits::HOST_CHARS {
        return Err(InvalidValue::new(format!(
            "the host is {length} characters long, at most {} are allowed",
            limits::HOST_CHARS
        )));
    }
    let port = url.port_or_known_default().unwrap_or(80);
    if port == 0 {
        return Err(InvalidValue::new(format!(
            "{text:?} has port 0; name a port from 1 to 65535"
        )));
    }
    let host = host.to_owned();
    Ok(EndpointUrl(Place::Host { tls, host, port }))
}

impl fmt::Display for EndpointUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Place::Host { tls, host, port } => {
                let scheme = if *tls { "https" } else { "http" };
                write!(f, "{scheme}://{host}:{port}")
            }
            Place::Unix(path) => write!(f, "unix://{path}"),
            Place::Listed(discovery) => discovery.source.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn origins_read_and_print() {
        for (text, printed) in [
            ("http://10.0.0.5:8000", "http://10.0.0.5:8000"),
            ("http://vllm", "http://vllm:80"),
            ("https://vllm", "https://vllm:443"),
            ("http://[::1]:8000/", "http://[::1]:8000"),
            ("unix:///run/a b.sock", "unix:///run/a b.sock"),
        ] {
            assert_eq!(EndpointUrl::parse(text).unwrap().to_string(), printed);
        }
        let address = |text| EndpointUrl::parse(text).unwrap();
        assert_eq!(
            address("http://[::1]:8000").address(),
            Address::Host("::1", 8000)
        );
        assert_eq!(address("unix:///a").address(), Address::Unix("/a"));
        assert_eq!(address("unix:///a").authority(), "localhost");
    }

    #[test]
    fn a_host_longer_than_dns_knows_is_refused_however_it_is_written() {
        let longest = format!("http://{}", "a".repeat(253));
        let printed = EndpointUrl::parse(&longest).unwrap().to_string();
        assert_eq!(EndpointUrl::parse(&printed).unwrap().to_string(), printed);
        for host in ["a".repeat(254), "a".repeat(505), "\u{fc}".repeat(250)] {
            let error = EndpointUrl::parse(&format!("http://{host}")).unwrap_err();
            assert!(error.to_string().contains("at most 253"), "{error}");
        }
    }

    proptest! {
        /// What is stored is what was printed: it must be readable, or a restart is lost.
        #[test]
        fn what_is_printed_can_be_read(
            host in "[a-z0-9.\u{e4}\u{df}-]{1,300}",
            port in 1_u16..,
            path in "[ -~\u{e4}]{0,120}",
        ) {
            let texts = [
                format!("http://{host}"),
                format!("http://{host}:{port}"),
                format!("https://{host}:{port}"),
                format!("https://{host}"),
                format!("unix:///{path}"),
            ];
            for text in texts {
                if let Ok(url) = EndpointUrl::parse(&text) {
                    prop_assert_eq!(EndpointUrl::parse(&url.to_string()), Ok(url));
                }
            }
        }
    }

    #[test]
    fn anything_but_an_origin_is_refused_with_the_reason() {
        let long = format!("unix:///{}", "a".repeat(107));
        for (text, why) in [
            ("", "required"),
            ("10.0.0.5:8000", "not a url"),
            ("ftp://a", "scheme `ftp`"),
            ("http://user:pw@a", "credentials"),
            ("http://a/v1", "has a path"),
            ("http://a?x", "query"),
            ("http://a:0", "port 0"),
            ("http://", "not a url"),
            ("unix:run/a.sock", "no path of a Unix socket"),
            ("unix://run/a.sock", "no path of a Unix socket"),
            ("unix:///", "no path of a Unix socket"),
            ("unix:///a\0b", "no path of a Unix socket"),
            (long.as_str(), "at most 107"),
        ] {
            let error = EndpointUrl::parse(text).unwrap_err().to_string();
            assert!(error.contains(why), "{text:?} gave {error}");
        }
    }
}
