//! One upstream server: its name, origin and weight.

use std::fmt;

use crate::{ids::EndpointId, limits, violation::InvalidValue};

/// An upstream server of a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// Name within the model.
    pub id: EndpointId,
    /// Where it listens.
    pub url: EndpointUrl,
    /// Its share of connections.
    pub weight: Weight,
}

/// An `http` origin: host and port, nothing more.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct EndpointUrl {
    host: String,
    port: u16,
}

impl EndpointUrl {
    /// Reads an origin such as `http://10.0.0.5:8000`.
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
        let example = "write an origin such as `http://10.0.0.5:8000`";
        let url = url::Url::parse(text).map_err(|error| {
            InvalidValue::new(format!("{text:?} is not a url ({error}); {example}"))
        })?;
        if url.scheme() != "http" {
            return Err(InvalidValue::new(format!(
                "scheme `{}` is not supported, only `http` is; {example}",
                url.scheme()
            )));
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(InvalidValue::new(format!(
                "credentials do not belong in a url; {example}"
            )));
        }
        if !matches!(url.path(), "" | "/") || url.query().is_some() || url.fragment().is_some() {
            return Err(InvalidValue::new(format!(
                "{text:?} has a path, query or fragment; the gateway adds the request's own path; \
                 {example}"
            )));
        }
        let host = url.host_str().filter(|host| !host.is_empty());
        let host =
            host.ok_or_else(|| InvalidValue::new(format!("{text:?} has no host; {example}")))?;
        // In ASCII, as it is resolved: what is printed must be readable again.
        let length = host.chars().count();
        if length > limits::HOST_CHARS {
            return Err(InvalidValue::new(format!(
                "the host is {length} characters long, at most {} are allowed",
                limits::HOST_CHARS
            )));
        }
        let port = url.port().unwrap_or(80);
        if port == 0 {
            return Err(InvalidValue::new(format!(
                "{text:?} has port 0; name a port from 1 to 65535"
            )));
        }
        Ok(Self {
            host: host.to_owned(),
            port,
        })
    }

    /// Host name or address; IPv6 addresses in brackets.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Port.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// `host:port`, as it is dialled and as it stands in the `host` header.
    #[must_use]
    pub fn authority(&self) -> String {
        format!("{}:{}", self.host, self.port)
    }
}

impl fmt::Display for EndpointUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "http://{}:{}", self.host, self.port)
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn origins_read_and_print() {
        for (text, printed) in [
            ("http://10.0.0.5:8000", "http://10.0.0.5:8000"),
            ("http://vllm", "http://vllm:80"),
            ("http://[::1]:8000/", "http://[::1]:8000"),
        ] {
            assert_eq!(EndpointUrl::parse(text).unwrap().to_string(), printed);
        }
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
        fn what_is_printed_can_be_read(host in "[a-z0-9.\u{e4}\u{df}-]{1,300}", port in 1_u16..) {
            for text in [format!("http://{host}"), format!("http://{host}:{port}")] {
                if let Ok(url) = EndpointUrl::parse(&text) {
                    prop_assert_eq!(EndpointUrl::parse(&url.to_string()), Ok(url));
                }
            }
        }
    }

    #[test]
    fn anything_but_an_origin_is_refused_with_the_reason() {
        for (text, why) in [
            ("", "required"),
            ("10.0.0.5:8000", "not a url"),
            ("https://a", "scheme `https`"),
            ("ftp://a", "scheme `ftp`"),
            ("http://user:pw@a", "credentials"),
            ("http://a/v1", "has a path"),
            ("http://a?x", "query"),
            ("http://a:0", "port 0"),
            ("http://", "not a url"),
        ] {
            let error = EndpointUrl::parse(text).unwrap_err().to_string();
            assert!(error.contains(why), "{text:?} gave {error}");
        }
    }
}
