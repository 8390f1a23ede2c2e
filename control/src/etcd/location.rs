//! Where an etcd is: `etcd://h1:2379,h2:2379[/prefix]`, or `etcds://` for TLS. It only reads and checks text.

use std::{fmt, net::IpAddr, str::FromStr};

/// Most members that are named.
const MOST: usize = 16;
/// Longest prefix.
const PREFIX_CHARS: usize = 128;
const PLAIN: &str = "etcd://";
const TLS: &str = "etcds://";
const DEFAULT_PREFIX: &str = "/forebay";

/// The members of an etcd, and what all keys begin with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EtcdLocation {
    tls: bool,
    members: Vec<String>,
    prefix: String,
}

/// Text that names none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{part:?}: {why}; write `etcd://HOST:PORT[,HOST:PORT…][/PREFIX]`, or `etcds://…` for TLS, with up to {MOST} members"
)]
pub struct BadEtcd {
    part: String,
    why: &'static str,
}

impl EtcdLocation {
    /// With TLS.
    #[must_use]
    pub fn is_tls(&self) -> bool {
        self.tls
    }

    /// The members, as host and port.
    #[must_use]
    pub fn members(&self) -> &[String] {
        &self.members
    }

    /// What all keys begin with, without a slash at its end.
    #[must_use]
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// Every member is on this machine.
    #[must_use]
    pub fn is_loopback(&self) -> bool {
        self.members.iter().all(|member| {
            let host = member.rsplit_once(':').map_or("", |(host, _)| host);
            let host = host.trim_start_matches('[').trim_end_matches(']');
            host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
        })
    }

    /// Whether the text means an etcd at all.
    pub(crate) fn is_meant(text: &str) -> bool {
        text.starts_with(PLAIN) || text.starts_with(TLS)
    }
}

impl fmt::Display for EtcdLocation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls { TLS } else { PLAIN };
        write!(f, "{scheme}{}{}", self.members.join(","), self.prefix)
    }
}

impl FromStr for EtcdLocation {
    type Err = BadEtcd;

    fn from_str(text: &str) -> Result<Self, BadEtcd> {
        let bad = |part: &str, why| BadEtcd {
            part: part.chars().take(64).collect(),
            why,
        };
        let (tls, rest) = match (text.strip_prefix(PLAIN), text.strip_prefix(TLS)) {
            (Some(rest), _) => (false, rest),
            (None, Some(rest)) => (true, rest),
            (None, None) => return Err(bad(text, "is not an etcd")),
        };
        let (hosts, path) = match rest.split_once('/') {
            Some((hosts, path)) => (hosts, path.trim_matches('/')),
            None => (rest, ""),
        };
        let prefix = match path {
            "" => DEFAULT_PREFIX.to_owned(),
            path => format!("/{path}"),
        };
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_./".contains(c);
        if prefix.len() > PREFIX_CHARS || !prefix.chars().all(plain) || prefix.contains("//") {
            return Err(bad(
                path,
                "a prefix has up to 128 letters, digits and -_./ and no empty part",
            ));
        }
        let mut members = Vec::new();
        for member in hosts.split(',') {
            let (host, port) = member
                .rsplit_once(':')
                .ok_or_else(|| bad(member, "the port is missing"))?;
            if !port.parse::<u16>().is_ok_and(|port| port > 0) {
                return Err(bad(member, "the port is not a number from 1 to 65535"));
            }
            let uri = format!("http://{member}").parse::<http::Uri>();
            let whole = uri.is_ok_and(|uri| uri.host().is_some_and(|host| !host.is_empty()));
            if host.is_empty() || host.contains('@') || !whole {
                return Err(bad(member, "the host is not a name or address"));
            }
            if members.iter().any(|known| known == member) {
                return Err(bad(member, "is named twice"));
            }
            members.push(member.to_owned());
        }
        if members.len() > MOST {
            return Err(bad(hosts, "has too many members"));
        }
        Ok(Self {
            tls,
            members,
            prefix,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> EtcdLocation {
        text.parse().unwrap()
    }

    #[test]
    fn members_prefix_and_scheme_are_read_and_written_back() {
        let plain = read("etcd://a:2379,b.example:2380");
        assert_eq!(plain.members(), ["a:2379", "b.example:2380"]);
        assert_eq!((plain.prefix(), plain.is_tls()), ("/forebay", false));
        assert_eq!(plain.to_string(), "etcd://a:2379,b.example:2380/forebay");
        let tls = read("etcds://[::1]:2379/teams/blue/");
        assert_eq!((tls.prefix(), tls.is_tls()), ("/teams/blue", true));
        assert_eq!(read(&tls.to_string()), tls);
        assert!(tls.is_loopback() && read("etcd://localhost:1,127.0.0.1:2").is_loopback());
        assert!(!plain.is_loopback());
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, part) in [
            ("etcd://", "port"),
            ("etcd://a", "port"),
            ("etcd://a:0", "port"),
            ("etcd://a:70000", "port"),
            ("etcd://:2379", "host"),
            ("etcd://u@a:2379", "host"),
            ("etcd://a b:2379", "host"),
            ("etcd://a:1,a:1", "twice"),
            ("etcd://a:1/x y", "prefix"),
            ("etcd://a:1/x//y", "prefix"),
        ] {
            let error = text.parse::<EtcdLocation>().unwrap_err().to_string();
            assert!(
                error.contains(part) && error.contains("etcd://HOST"),
                "{text}: {error}"
            );
        }
    }
}
