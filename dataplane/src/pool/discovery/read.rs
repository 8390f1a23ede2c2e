//! Asks a source once: records of DNS, a file, a list at a url. Each within its time and size, and from anybody: what is
//! said goes through `list.rs` and through the bounds of the operator before anything is made of it.

mod fetch;

use std::{
    collections::HashMap,
    fs::{self, File},
    io::{self, Read as _},
    net::{IpAddr, SocketAddr},
    os::unix::fs::MetadataExt as _,
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime},
};

use forebay_proto::{
    Endpoint, EndpointUrl,
    endpoint::{Address, Discovery, DnsName, OutOfBounds, ServerName, Source},
    limits,
};
use http::HeaderValue;
use tokio::{sync::Semaphore, task::spawn_blocking, time::timeout};

use self::fetch::list_server;
use super::{
    Discovering, Named,
    list::{self, Entry, Form},
    status::{Failure, RefusedServer, Why},
};
use crate::{
    pool::{Common, inner::PARTS, tls::Tls},
    resolve::{LookupError, Service},
};

/// Time for a list, from its server's name to its last byte, and for a file.
const WITHIN: Duration = match cfg!(test) {
    true => Duration::from_millis(500),
    false => Duration::from_secs(5),
};
/// After a failure names are asked for again.
const RETRY: Duration = Duration::from_secs(1);
/// Two writes of a file within this time may look alike: it is read again.
const FRESH: Duration = Duration::from_secs(2);

/// What a source said.
#[derive(Debug, Default)]
pub(super) struct Answer {
    /// The servers; none: the same as before.
    pub(super) servers: Option<Vec<Named>>,
    /// Those that are not used.
    pub(super) refused: Vec<RefusedServer>,
    /// It has something to say beside.
    pub(super) note: Option<String>,
}

/// One look at a source.
#[derive(Debug)]
pub(super) struct Look {
    pub(super) found: Result<Answer, Failure>,
    /// When to look again.
    pub(super) again: Duration,
}

/// By which it is seen that a file is another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    modified: (i64, i64),
    changed: (i64, i64),
    inode: u64,
    device: u64,
    length: u64,
}

/// Asks one source again and again.
#[derive(Debug)]
pub(super) struct Reader {
    source: Arc<Endpoint>,
    discovery: Arc<Discovery>,
    common: Common,
    /// Of the file that was read last, if it was good.
    stamp: Option<Stamp>,
    /// Of the list that was read last, if it was good.
    tag: Option<HeaderValue>,
    /// Where a list is, and its TLS.
    list: Option<(Arc<Endpoint>, Option<Arc<Tls>>)>,
    /// Turns at its server, which other lists may be at, too.
    at_origin: Arc<Semaphore>,
    /// So many of its addresses were tried in vain.
    missed: usize,
}

impl Reader {
    pub(super) fn new(source: Arc<Endpoint>, discovery: Arc<Discovery>, common: Common) -> Self {
        let list = match &discovery.source {
            Source::Http(url) => list_server(&source, &discovery, url),
            Source::Dns { .. } | Source::Srv(_) | Source::File(_) => None,
        };
        let origin = list.as_ref().map(|(list, _)| list.url.to_string());
        let at_origin = common.discovering.at_origin(origin.unwrap_or_default());
        Self {
            source,
            discovery,
            common,
            stamp: None,
            tag: None,
            list,
            at_origin,
            missed: 0,
        }
    }

    /// Asks it.
    pub(super) async fn look(&mut self) -> Look {
        let discovery = self.discovery.clone();
        match &discovery.source {
            Source::Dns { name, port } => self.addresses(name, *port).await,
            Source::Srv(name) => self.services(name).await,
            Source::File(path) => {
                let found = self.file(Path::new(path.as_str())).await;
                self.polled(found)
            }
            Source::Http(url) => {
                let found = self.http(url).await;
                self.polled(found)
            }
        }
    }

    /// A fleet does not ask at once.
    fn polled(&self, found: Result<Answer, Failure>) -> Look {
        let again = self
            .discovery
            .refresh()
            .mul_f64(0.9 + fastrand::f64() * 0.2);
        Look { found, again }
    }

    async fn addresses(&self, name: &DnsName, port: u16) -> Look {
        let found = self.common.resolver.lookup(name.as_str()).await;
        let server_name = ServerName::new(name.without_dot()).ok();
        let named = |ip: &IpAddr| {
            let at = SocketAddr::new(*ip, port);
            Some(Named {
                url: self.url(&at.to_string())?,
                parts: self.weight(),
                priority: 0,
                server_name: server_name.clone().filter(|_| self.discovery.tls),
            })
        };
        let found = found.map(|found| {
            // How many of them are used is for the state to decide, which knows those that are.
            let addresses = found.addresses.iter().take(limits::LISTED);
            let servers = addresses.filter_map(named).collect();
            (servers, found.hold)
        });
        self.of_records(found, Vec::new())
    }

    async fn services(&self, name: &DnsName) -> Look {
        let found = self.common.resolver.services(name.as_str()).await;
        let (mut places, mut refused) = (Vec::new(), Vec::new());
        let found = found.map(|found| {
            for service in found.servers {
                let at = format!("{}:{}", service.host, service.port);
                match self.url(&at) {
                    Some(url) => places.push((service, url)),
                    None => refused.push(RefusedServer {
                        url: at,
                        why: "not where a server is".to_owned(),
                    }),
                }
            }
            (self.weighed(places), found.hold)
        });
        self.of_records(found, refused)
    }

    /// Weights are shares within a priority; together its servers weigh as much as others would.
    fn weighed(&self, servers: Vec<(Service, EndpointUrl)>) -> Vec<Named> {
        let mut priorities: HashMap<u16, (u64, u64)> = HashMap::new();
        for (service, _) in &servers {
            let (count, all) = priorities.entry(service.priority).or_default();
            *count += 1;
            *all += u64::from(service.weight);
        }
        let named = |(service, url): (Service, EndpointUrl)| {
            let parts = match priorities.get(&service.priority) {
                Some((count, all)) if *all > 0 => {
                    share(self.weight(), u64::from(service.weight) * count, *all)
                }
                _ => self.weight(),
            };
            Named {
                url,
                parts,
                priority: service.priority,
                server_name: None,
            }
        };
        servers.into_iter().map(named).collect()
    }

    fn of_records(
        &self,
        found: Result<(Vec<Named>, Duration), LookupError>,
        refused: Vec<RefusedServer>,
    ) -> Look {
        match found {
            Ok((servers, again)) => Look {
                found: self.admit(servers, refused),
                again,
            },
            // So says the server. What follows is for the state to decide.
            Err(LookupError::Nothing(text)) => Look {
                found: Ok(Answer {
                    servers: Some(Vec::new()),
                    note: Some(text),
                    ..Answer::default()
                }),
                again: RETRY,
            },
            Err(LookupError::Failed(text)) => Look {
                found: Err(Failure::new(Why::Resolve, text)),
                again: RETRY,
            },
        }
    }

    fn weight(&self) -> u32 {
        self.source.weight.get() * PARTS
    }

    /// Where a source says that a server is. What is no place is none.
    fn url(&self, authority: &str) -> Option<EndpointUrl> {
        let scheme = if self.discovery.tls { "https" } else { "http" };
        EndpointUrl::parse(&format!("{scheme}://{authority}")).ok()
    }

    /// Only those that may be used, beside those that are refused already. If there are some, but none of these, the source
    /// says nothing that could be followed.
    fn admit(&self, servers: Vec<Named>, refused: Vec<RefusedServer>) -> Result<Answer, Failure> {
        let given = servers.len() + refused.len();
        let mut answer = Answer {
            refused,
            ..Answer::default()
        };
        let mut admitted = Vec::new();
        for named in servers {
            match within_bounds(&self.discovery, &named.url) {
                Ok(()) => admitted.push(named),
                Err(why) => answer.refused.push(RefusedServer {
                    url: named.url.to_string(),
                    why,
                }),
            }
        }
        if admitted.is_empty() && given > 0 {
            let first = answer.refused.first();
            let first = first.map_or_else(String::new, |r| format!(": {} is {}", r.url, r.why));
            let text = format!("none of its {given} servers may be used{first}");
            return Err(Failure::new(Why::Refused, text));
        }
        answer.servers = Some(admitted);
        Ok(answer)
    }

    fn read_list(&self, bytes: &[u8], form: Form) -> Result<Answer, Failure> {
        let entries = list::read(bytes, form, self.discovery.tls);
        let entries = entries.map_err(|why| Failure::new(Why::Malformed, why.to_string()))?;
        let named = |entry: Entry| Named {
            parts: entry.weight.map_or(self.weight(), |w| w.get() * PARTS),
            url: entry.url,
            priority: 0,
            server_name: None,
        };
        self.admit(entries.into_iter().map(named).collect(), Vec::new())
    }

    async fn file(&mut self, path: &Path) -> Result<Answer, Failure> {
        let failed = |text: String| Failure::new(Why::File, text);
        let Discovering { files, .. } = &*self.common.discovering;
        // One that hangs (a network's file system) holds its turn until the system lets go of it.
        let turn = timeout(WITHIN, files.clone().acquire_owned()).await;
        let Ok(Ok(turn)) = turn else {
            return Err(failed(
                "other files hang, and this one had no turn".to_owned(),
            ));
        };
        let (from, known) = (path.to_owned(), self.stamp.take());
        let reading = spawn_blocking(move || {
            let _turn = turn;
            read_file(&from, known)
        });
        let read = timeout(WITHIN, reading).await;
        let Ok(Ok(read)) = read else {
            let text = format!("the file cannot be read within {WITHIN:?}");
            return Err(Failure::new(Why::Timeout, text));
        };
        let (bytes, stamp) = match read {
            Ok(FileRead::Same(stamp)) => {
                self.stamp = Some(stamp);
                return Ok(Answer::default());
            }
            Ok(FileRead::New(bytes, stamp)) => (bytes, stamp),
            Ok(FileRead::TooLarge) => return Err(too_large()),
            Err(error) => return Err(failed(format!("the file cannot be read: {error}"))),
        };
        let json = path.extension().is_some_and(|end| end == "json");
        // Of a file that was written a moment ago more may come.
        let whole = stamp.is_some();
        let form = if json {
            Form::Json
        } else {
            Form::Lines { whole }
        };
        let answer = self.read_list(&bytes, form)?;
        self.stamp = stamp;
        Ok(answer)
    }
}

/// `part` of `whole`, of this weight; at least something.
fn share(weight: u32, part: u64, whole: u64) -> u32 {
    let share = u64::from(weight).saturating_mul(part) / whole.max(1);
    u32::try_from(share).unwrap_or(u32::MAX).max(1)
}

/// What can be said of a place before its name is resolved.
pub(super) fn within_bounds(discovery: &Discovery, url: &EndpointUrl) -> Result<(), String> {
    let Address::Host(host, port) = url.address() else {
        return Err("not where a server is".to_owned());
    };
    let checked: Result<(), OutOfBounds> = match host.parse::<IpAddr>() {
        Ok(ip) => discovery.bounds.check(SocketAddr::new(ip, port)),
        Err(_) => {
            let policy = forebay_proto::probe::AddressPolicy::default();
            let named = policy.check_name(host).map_err(OutOfBounds::Never);
            named.and_then(|()| discovery.bounds.check_port(port))
        }
    };
    checked.map_err(|why| why.to_string())
}

fn too_large() -> Failure {
    let text = format!("it is larger than {} bytes", limits::LIST_BYTES);
    Failure::new(Why::TooLarge, text)
}

enum FileRead {
    Same(Stamp),
    /// Its bytes; and by what it is known, unless it was written a moment ago.
    New(Vec<u8>, Option<Stamp>),
    TooLarge,
}

/// Blocks. What is no file (a pipe, a device) is not opened.
fn read_file(path: &Path, known: Option<Stamp>) -> io::Result<FileRead> {
    let about = fs::metadata(path)?;
    if !about.is_file() {
        return Err(io::Error::other("it is no regular file"));
    }
    if known.is_some_and(|known| known == stamp(&about)) {
        return Ok(FileRead::Same(stamp(&about)));
    }
    let file = File::open(path)?;
    let before = file.metadata()?;
    let most = limits::LIST_BYTES as u64;
    let mut bytes = Vec::new();
    (&file).take(most + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > most {
        return Ok(FileRead::TooLarge);
    }
    let (before, after) = (stamp(&before), file.metadata()?);
    // A rename over it changes neither of these.
    let written = |stamp: Stamp| (stamp.modified, stamp.length);
    if written(before) != written(stamp(&after)) || bytes.len() as u64 != after.len() {
        return Err(io::Error::other("it is being written"));
    }
    let old = after
        .modified()
        .ok()
        .and_then(|at| SystemTime::now().duration_since(at).ok());
    let settled = before == stamp(&after) && old.is_some_and(|old| old >= FRESH);
    Ok(FileRead::New(bytes, settled.then_some(before)))
}

fn stamp(about: &fs::Metadata) -> Stamp {
    Stamp {
        modified: (about.mtime(), about.mtime_nsec()),
        changed: (about.ctime(), about.ctime_nsec()),
        inode: about.ino(),
        device: about.dev(),
        length: about.len(),
    }
}
