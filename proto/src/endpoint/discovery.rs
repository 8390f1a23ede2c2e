//! Where the servers of an endpoint are told, and where they may be (docs/adr/0031).
//!
//! A list is not the operator's word: it leads only where the operator said it may ([`Bounds`]). What is checked here is an
//! address, at the time it is dialled; names say nothing.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    str::FromStr,
    time::Duration,
};

use super::{EndpointTls, FilePath};
use crate::{
    limits,
    probe::{AddressPolicy, Blocked, Cidr},
    violation::InvalidValue,
};

/// How often a file is looked at.
const FILE_EVERY: Duration = Duration::from_secs(1);
/// How often a url is.
const HTTP_EVERY: Duration = Duration::from_secs(10);
/// How long servers serve on when their source says that there are none.
const KEEP_EMPTY: Duration = Duration::from_secs(300);
/// Longest name of DNS, in characters.
const NAME_CHARS: usize = 253;

/// A source of servers, and what it may do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Discovery {
    /// Who tells.
    pub source: Source,
    /// Servers are reached over TLS.
    pub tls: bool,
    /// Where they may be.
    pub bounds: Bounds,
    /// How often a list is looked at, if that was said.
    pub refresh: Option<Duration>,
    /// How long servers serve on when there are none, if that was said.
    pub keep_empty: Option<Duration>,
    /// Servers get what requests carry to prove themselves.
    pub send_credentials: bool,
    /// How the server of a list proves who it is.
    pub source_tls: EndpointTls,
}

impl Discovery {
    /// This source, nothing else said.
    #[must_use]
    pub fn new(source: Source) -> Self {
        Self {
            source,
            tls: false,
            bounds: Bounds::default(),
            refresh: None,
            keep_empty: None,
            send_credentials: false,
            source_tls: EndpointTls::default(),
        }
    }

    /// How often a list is looked at. Records say it themselves.
    #[must_use]
    pub fn refresh(&self) -> Duration {
        self.refresh.unwrap_or(match self.source {
            Source::Http(_) => HTTP_EVERY,
            Source::File(_) | Source::Dns { .. } | Source::Srv(_) => FILE_EVERY,
        })
    }

    /// How long servers serve on when there are none.
    #[must_use]
    pub fn keep_empty(&self) -> Duration {
        self.keep_empty.unwrap_or(KEEP_EMPTY)
    }

    /// The source and everywhere it may lead, as one line: whoever is given a secret for one is not that for another.
    #[must_use]
    pub fn reach(&self) -> String {
        let allowed = self.bounds.allow.iter().map(ToString::to_string);
        let ports = self.bounds.ports.iter().map(ToString::to_string);
        let (allowed, ports): (Vec<_>, Vec<_>) = (allowed.collect(), ports.collect());
        format!(
            "{} tls={} send={} allow={} ports={}",
            self.source,
            self.tls,
            self.send_credentials,
            allowed.join(","),
            ports.join(",")
        )
    }
}

/// Who tells where servers are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// The addresses of a name.
    Dns {
        /// The name.
        name: DnsName,
        /// Of each of them.
        port: u16,
    },
    /// The SRV records of a name.
    Srv(DnsName),
    /// A file of the worker's machine.
    File(FilePath),
    /// A list at a url.
    Http(ListUrl),
}

impl Source {
    /// Reads `host:port`.
    pub fn dns(text: &str) -> Result<Self, InvalidValue> {
        let example = "write a name and a port such as `vllm.svc:8000`";
        let parts = text.rsplit_once(':');
        let (name, port) =
            parts.ok_or_else(|| InvalidValue::new(format!("{text:?} has no port; {example}")))?;
        if name.parse::<IpAddr>().is_ok() || name.starts_with('[') {
            return Err(InvalidValue::new(format!(
                "{text:?} is an address, and needs no discovery; write it as `url`"
            )));
        }
        Ok(Self::Dns {
            name: DnsName::new(name)?,
            port: read_port(port)?,
        })
    }

    /// Reads the path of a file, or `file://` and that.
    pub fn file(text: &str) -> Result<Self, InvalidValue> {
        let path = text.strip_prefix("file://").unwrap_or(text);
        if path.chars().any(char::is_control) {
            let message = format!("{text:?} has a control character; give the file another name");
            return Err(InvalidValue::new(message));
        }
        Ok(Self::File(FilePath::new(path)?))
    }

    /// One word for it.
    #[must_use]
    pub fn word(&self) -> &'static str {
        match self {
            Self::Dns { .. } => "dns",
            Self::Srv(_) => "srv",
            Self::File(_) => "file",
            Self::Http(_) => "http",
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dns { name, port } => write!(f, "dns {name}:{port}"),
            Self::Srv(name) => write!(f, "srv {name}"),
            Self::File(path) => write!(f, "file {}", path.as_str()),
            Self::Http(url) => write!(f, "{url}"),
        }
    }
}

/// A name that DNS is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DnsName(String);

impl DnsName {
    /// Checks the form. A dot at the end says that no search domain is to be tried.
    pub fn new(text: &str) -> Result<Self, InvalidValue> {
        let example = "write a name such as `_http._tcp.vllm.svc.cluster.local`";
        let bad = |what: &str| InvalidValue::new(format!("{text:?} {what}; {example}"));
        let name = text.strip_suffix('.').unwrap_or(text);
        if name.is_empty() || name.len() > NAME_CHARS {
            return Err(bad("is no name of 1 to 253 characters"));
        }
        let label = |label: &str| {
            let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
            (1..=63).contains(&label.len()) && label.chars().all(good)
        };
        match name.split('.').all(label) {
            true => Ok(Self(text.to_ascii_lowercase())),
            false => Err(bad("has a part that is not 1 to 63 of `a-z 0-9 - _`")),
        }
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The same, as certificates have it.
    #[must_use]
    pub fn without_dot(&self) -> &str {
        self.0.strip_suffix('.').unwrap_or(&self.0)
    }
}

impl fmt::Display for DnsName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Where a list is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListUrl {
    /// `http://host:port`, for who dials it.
    origin: String,
    path: String,
}

impl ListUrl {
    /// Reads the url.
    pub fn parse(text: &str) -> Result<Self, InvalidValue> {
        let example = "write one such as `http://10.0.0.9:9000/targets`";
        let bad = |what: &str| InvalidValue::new(format!("{text:?} {what}; {example}"));
        let length = text.chars().count();
        if length > limits::URL_CHARS {
            let most = limits::URL_CHARS;
            let message = format!("{length} characters long, at most {most} are allowed");
            return Err(InvalidValue::new(message));
        }
        let url = url::Url::parse(text).map_err(|error| bad(&format!("is not a url ({error})")))?;
        if !matches!(url.scheme(), "http" | "https") {
            return Err(bad("has a scheme that is not `http` or `https`"));
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(bad("has credentials, which do not belong in a url"));
        }
        if url.fragment().is_some() {
            return Err(bad("has a fragment, which no server sees"));
        }
        let host = url.host_str().filter(|host| host.len() <= NAME_CHARS);
        let host = host.ok_or_else(|| bad("has no host, or one that is too long"))?;
        let port = url.port_or_known_default().unwrap_or(80);
        if port == 0 {
            return Err(bad("has port 0"));
        }
        let path = match url.query() {
            Some(query) => format!("{}?{query}", url.path()),
            None => url.path().to_owned(),
        };
        Ok(Self {
            origin: format!("{}://{host}:{port}", url.scheme()),
            path,
        })
    }

    /// `http://host:port`.
    #[must_use]
    pub fn origin(&self) -> &str {
        &self.origin
    }

    /// Path and query.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }

    /// True for `https`.
    #[must_use]
    pub fn is_tls(&self) -> bool {
        self.origin.starts_with("https:")
    }
}

impl fmt::Display for ListUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.origin, self.path)
    }
}

/// Where servers may be that a source names.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Bounds {
    /// Blocks of addresses; none: the private ones.
    pub allow: Vec<Cidr>,
    /// Ports; none: any.
    pub ports: Vec<Ports>,
}

/// Why a server is not used that a source names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum OutOfBounds {
    /// No server is there, whatever is allowed.
    #[error("{0}")]
    Never(Blocked),
    /// The operator did not say that it may lead there.
    #[error("an address outside `discovery.allow`")]
    Address,
    /// Nor that.
    #[error("a port outside `discovery.ports`")]
    Port,
}

impl Bounds {
    /// Says why a server must not be there, if that is so.
    pub fn check(&self, at: SocketAddr) -> Result<(), OutOfBounds> {
        self.check_port(at.port())?;
        // Loopback is an address like others here: it is allowed, or it is not.
        let never = AddressPolicy {
            loopback: true,
            ..AddressPolicy::default()
        };
        never.check(at).map_err(OutOfBounds::Never)?;
        let plain = at.ip().to_canonical();
        let allowed = match self.allow.as_slice() {
            [] => is_private(plain),
            blocks => blocks.iter().any(|block| block.contains(plain)),
        };
        match allowed {
            true => Ok(()),
            false => Err(OutOfBounds::Address),
        }
    }

    /// The same of its port alone.
    pub fn check_port(&self, port: u16) -> Result<(), OutOfBounds> {
        let inside = |ports: &Ports| ports.contains(port);
        match self.ports.is_empty() || self.ports.iter().any(inside) {
            true => Ok(()),
            false => Err(OutOfBounds::Port),
        }
    }
}

fn is_private(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => {
            let [first, second, ..] = v4.octets();
            v4.is_private() || (first == 100 && (64..128).contains(&second))
        }
        IpAddr::V6(v6) => v6.is_unique_local(),
    }
}

/// A range of ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ports {
    from: u16,
    to: u16,
}

impl Ports {
    fn contains(self, port: u16) -> bool {
        (self.from..=self.to).contains(&port)
    }
}

impl FromStr for Ports {
    type Err = InvalidValue;

    fn from_str(text: &str) -> Result<Self, InvalidValue> {
        let (from, to) = text.split_once('-').unwrap_or((text, text));
        let (from, to) = (read_port(from)?, read_port(to)?);
        match from <= to {
            true => Ok(Self { from, to }),
            false => Err(InvalidValue::new(format!(
                "{text:?} ends before it begins; write the lower port first"
            ))),
        }
    }
}

impl fmt::Display for Ports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.from == self.to {
            true => write!(f, "{}", self.from),
            false => write!(f, "{}-{}", self.from, self.to),
        }
    }
}

fn read_port(text: &str) -> Result<u16, InvalidValue> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let port = text.parse().ok().filter(|port| digits && *port > 0);
    port.ok_or_else(|| {
        let text: String = text.chars().take(32).collect();
        InvalidValue::new(format!(
            "{text:?} is no port; write a number from 1 to 65535, or a range such as `8000-8099`"
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bounds(allow: &[&str], ports: &[&str]) -> Bounds {
        Bounds {
            allow: allow.iter().map(|block| block.parse().unwrap()).collect(),
            ports: ports.iter().map(|ports| ports.parse().unwrap()).collect(),
        }
    }

    fn check(bounds: &Bounds, at: &str) -> Result<(), String> {
        let checked = bounds.check(at.parse().unwrap());
        checked.map_err(|why| why.to_string())
    }

    #[test]
    fn unless_told_otherwise_a_list_leads_into_private_networks_alone() {
        let plain = Bounds::default();
        for at in [
            "10.1.2.3:8000",
            "172.16.0.1:1",
            "192.168.1.1:65535",
            "100.64.0.9:80",
            "[fd12:3456::1]:80",
            "[::ffff:10.0.0.5]:80",
        ] {
            assert_eq!(check(&plain, at), Ok(()), "{at}");
        }
        for at in [
            "8.8.8.8:80",
            "127.0.0.1:8081",
            "[::1]:8081",
            "172.32.0.1:80",
            "100.63.0.1:80",
            "100.128.0.1:80",
            "[2606:4700::1]:80",
        ] {
            assert!(check(&plain, at).unwrap_err().contains("allow"), "{at}");
        }
    }

    #[test]
    fn where_no_server_is_nothing_that_is_allowed_leads() {
        let all = bounds(&["0.0.0.0/0", "::/0"], &[]);
        for (at, why) in [
            ("169.254.169.254:80", "link-local"),
            ("[fe80::1]:80", "link-local"),
            ("[::ffff:169.254.169.254]:80", "link-local"),
            ("[64:ff9b::169.254.169.254]:80", "link-local"),
            ("[2002:a9fe:a9fe::1]:80", "link-local"),
            ("100.100.100.200:80", "metadata"),
            ("[fd00:ec2::254]:80", "metadata"),
            ("224.0.0.1:80", "multicast"),
            ("0.0.0.0:80", "no address of a host"),
            ("255.255.255.255:80", "reserved"),
        ] {
            assert!(check(&all, at).unwrap_err().contains(why), "{at}");
            // Also where that very address was named.
            let own = bounds(&["169.254.169.254/32", "fe80::/10", "100.100.100.200"], &[]);
            assert!(check(&own, at).is_err(), "{at}");
        }
        assert_eq!(check(&all, "127.0.0.1:80"), Ok(()));
        assert_eq!(check(&all, "8.8.8.8:80"), Ok(()));
    }

    #[test]
    fn what_is_allowed_is_what_was_said() {
        let some = bounds(&["203.0.113.0/24", "127.0.0.0/8"], &["8000-8002", "9000"]);
        assert_eq!(check(&some, "203.0.113.9:8001"), Ok(()));
        assert_eq!(check(&some, "127.0.0.1:9000"), Ok(()));
        assert_eq!(check(&some, "[::ffff:127.0.0.1]:9000"), Ok(()));
        assert!(
            check(&some, "10.0.0.1:8000")
                .unwrap_err()
                .contains("discovery.allow")
        );
        for port in [7999, 8003, 9001, 80] {
            let error = check(&some, &format!("203.0.113.9:{port}")).unwrap_err();
            assert!(error.contains("discovery.ports"), "{error}");
        }
    }

    #[test]
    fn sources_read_and_bad_ones_are_named() {
        assert_eq!(
            Source::dns("VLLM.svc:8000").unwrap().to_string(),
            "dns vllm.svc:8000"
        );
        for (bad, why) in [
            ("vllm.svc", "no port"),
            ("10.0.0.5:80", "as `url`"),
            ("[::1]:80", "as `url`"),
            (":80", "1 to 253"),
            ("a:0", "no port"),
            ("a:65536", "no port"),
            ("a:+80", "no port"),
            ("a b:80", "1 to 63"),
        ] {
            let error = Source::dns(bad).unwrap_err().to_string();
            assert!(error.contains(why), "{bad}: {error}");
        }
        assert!(DnsName::new("_http._tcp.vllm.svc.").is_ok());
        assert!(DnsName::new(&"a.".repeat(127)).is_ok());
        for bad in [
            "",
            ".",
            "a..b",
            "a/b",
            &"a".repeat(64),
            &"a.".repeat(128),
            "ä",
        ] {
            assert!(DnsName::new(bad).is_err(), "{bad}");
        }
        let file = Source::file("file:///etc/targets.json").unwrap();
        assert_eq!(file, Source::file("/etc/targets.json").unwrap());
        for bad in ["", "targets", "file://targets", "/a\nb", "/a\0"] {
            assert!(Source::file(bad).is_err(), "{bad:?}");
        }
        let url = ListUrl::parse("https://sd.internal/targets?job=vllm").unwrap();
        assert_eq!(url.origin(), "https://sd.internal:443");
        assert_eq!(url.path(), "/targets?job=vllm");
        assert!(url.is_tls());
        assert_eq!(ListUrl::parse(&url.to_string()).unwrap(), url);
        for (bad, why) in [
            ("", "not a url"),
            ("file:///etc/x", "scheme"),
            ("http://user:pw@a/x", "credentials"),
            ("http://a/x#y", "fragment"),
            ("http://a:0/x", "port 0"),
        ] {
            let error = ListUrl::parse(bad).unwrap_err().to_string();
            assert!(error.contains(why), "{bad}: {error}");
        }
        for bad in ["", "0", "x", "8000-", "9-8", "1-2-3", "-1", "70000"] {
            assert!(bad.parse::<Ports>().is_err(), "{bad}");
        }
    }
}
