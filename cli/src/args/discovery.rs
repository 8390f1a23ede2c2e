//! The flags of endpoints whose servers a source names.

use std::time::Duration;

use clap::Args;
use forebay_proto::wire::discovery::Source;

/// Who names the servers of a model, and what that may do; holds for all sources that are named. A file (`models apply`) can
/// say it for each, and give each an id.
#[derive(Debug, Default, Args)]
#[command(next_help_heading = "Discovery")]
pub(crate) struct DiscoveryArgs {
    /// Who says where it is served: dns=NAME:PORT, srv=NAME, file=PATH or http=URL; repeat it for several. Workers ask.
    #[arg(long, value_name = "KIND=WHERE", value_parser = source)]
    pub(crate) discover: Vec<Source>,
    /// The servers are reached over TLS.
    #[arg(long, requires = "discover")]
    pub(crate) discover_https: bool,
    /// Block of addresses in which they may be; repeat it for several. [default: the private ones]
    #[arg(long, value_name = "CIDR", requires = "discover")]
    pub(crate) discover_allow: Vec<String>,
    /// Port, or range of ports, that they may have; repeat it for several. [default: any]
    #[arg(long, value_name = "PORTS", requires = "discover")]
    pub(crate) discover_ports: Vec<String>,
    /// How often a file or url is looked at. [default: 1s a file, 10s a url]
    #[arg(long, value_name = "TIME", requires = "discover", value_parser = humantime::parse_duration)]
    pub(crate) discover_refresh: Option<Duration>,
    /// How long they serve on when the source says that there are none. [default: 5m]
    #[arg(long, value_name = "TIME", requires = "discover", value_parser = humantime::parse_duration)]
    pub(crate) discover_keep_empty: Option<Duration>,
    /// They get the token of --credential-file, or the client's key where there is none.
    #[arg(long, requires = "discover_allow")]
    pub(crate) discover_send_credentials: bool,
}

fn source(text: &str) -> Result<Source, String> {
    let way_out = "write dns=NAME:PORT, srv=NAME, file=PATH or http=URL";
    let said = text.split_once('=').map(|(kind, at)| (kind, at.to_owned()));
    match said {
        Some(("dns", at)) => Ok(Source::Dns(at)),
        Some(("srv", at)) => Ok(Source::Srv(at)),
        Some(("file", at)) => Ok(Source::File(at)),
        Some(("http", at)) => Ok(Source::Http(at)),
        Some(_) | None => Err(format!("who names the servers is not clear; {way_out}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_says_what_it_is() {
        let url = "http://sd:9000/t?a=b";
        assert_eq!(
            source(&format!("http={url}")),
            Ok(Source::Http(url.to_owned()))
        );
        assert_eq!(source("file=/a"), Ok(Source::File("/a".to_owned())));
        for bad in ["", "srv", "http://sd:9000/t?a=b", "consul=x"] {
            assert!(source(bad).unwrap_err().contains("srv=NAME"), "{bad}");
        }
    }
}
