//! A DNS server for tests: it says what it is told to of each name and type, and notes what it is asked.

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc};

use hickory_resolver::{
    config::{ResolverConfig, ResolverOpts},
    proto::{
        op::{Message, ResponseCode},
        rr::{Name, RData, Record, RecordType},
    },
};
use parking_lot::Mutex;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream, UdpSocket},
    task::JoinSet,
};

use super::{Resolver, asker, at};

/// What goes into an answer that is not asked for again over TCP.
const UDP_BYTES: usize = 512;

/// What it says: records, or that it cannot say.
type Said = Result<Vec<RData>, ResponseCode>;

#[derive(Debug, Default)]
struct Zone {
    said: BTreeMap<(String, RecordType), Said>,
    ttl: u32,
    asked: Vec<(String, RecordType)>,
}

/// A running server; of what it was not told of it says that there is no such name.
#[derive(Debug)]
pub(crate) struct Dns {
    addr: SocketAddr,
    zone: Arc<Mutex<Zone>>,
    _task: JoinSet<()>,
}

impl Dns {
    pub(crate) async fn start() -> Self {
        let (udp, tcp) = loop {
            let udp = UdpSocket::bind("127.0.0.1:0").await.unwrap();
            // The port may be somebody else's over TCP.
            if let Ok(tcp) = TcpListener::bind(udp.local_addr().unwrap()).await {
                break (udp, tcp);
            }
        };
        let addr = udp.local_addr().unwrap();
        let zone = Arc::new(Mutex::new(Zone {
            ttl: 1,
            ..Zone::default()
        }));
        let mut task = JoinSet::new();
        let (datagrams, streams) = (zone.clone(), zone.clone());
        task.spawn(async move {
            let mut packet = [0; 1_500];
            while let Ok((length, from)) = udp.recv_from(&mut packet).await {
                let mut said = answer(&packet[..length], &mut datagrams.lock());
                if said.to_vec().unwrap().len() > UDP_BYTES {
                    said.metadata.truncation = true;
                    said.answers.clear();
                }
                drop(udp.send_to(&said.to_vec().unwrap(), from).await);
            }
        });
        task.spawn(async move {
            let mut streaming = JoinSet::new();
            while let Ok((stream, _)) = tcp.accept().await {
                streaming.spawn(serve_stream(stream, streams.clone()));
            }
        });
        Self {
            addr,
            zone,
            _task: task,
        }
    }

    /// Who asks it, within these domains.
    pub(crate) fn resolver(&self, search: &[&str]) -> Resolver {
        let search = search
            .iter()
            .map(|domain| Name::from_ascii(domain).unwrap());
        let config = ResolverConfig::from_parts(None, search.collect(), vec![at(self.addr)]);
        Resolver(asker(config, ResolverOpts::default()).map_err(|error| error.to_string()))
    }

    /// From now on it says this of the whole name, which has a dot at its end.
    pub(crate) fn say(&self, name: &str, of: RecordType, records: Vec<RData>) {
        let mut zone = self.zone.lock();
        zone.said.insert((name.to_owned(), of), Ok(records));
    }

    /// From now on it cannot say anything of this.
    pub(crate) fn fail(&self, name: &str, of: RecordType) {
        let mut zone = self.zone.lock();
        let failed = Err(ResponseCode::ServFail);
        zone.said.insert((name.to_owned(), of), failed);
    }

    /// How long what it says holds, in seconds; at first one.
    pub(crate) fn holds_for(&self, ttl: u32) {
        self.zone.lock().ttl = ttl;
    }

    /// True if it was asked for this.
    pub(crate) fn was_asked(&self, name: &str, of: RecordType) -> bool {
        let zone = self.zone.lock();
        zone.asked.contains(&(name.to_owned(), of))
    }
}

async fn serve_stream(mut stream: TcpStream, zone: Arc<Mutex<Zone>>) {
    while let Ok(length) = stream.read_u16().await {
        let mut packet = vec![0; usize::from(length)];
        if stream.read_exact(&mut packet).await.is_err() {
            return;
        }
        let said = answer(&packet, &mut zone.lock()).to_vec().unwrap();
        let length = u16::try_from(said.len()).unwrap();
        let written = stream.write_u16(length).await;
        if written.is_err() || stream.write_all(&said).await.is_err() {
            return;
        }
    }
}

fn answer(packet: &[u8], zone: &mut Zone) -> Message {
    let asked = Message::from_vec(packet).unwrap();
    let mut answer = Message::response(asked.metadata.id, asked.metadata.op_code);
    answer.metadata.recursion_available = true;
    for query in &asked.queries {
        answer.add_query(query.clone());
        let key = (query.name().to_ascii(), query.query_type());
        zone.asked.push(key.clone());
        match zone.said.get(&key) {
            Some(Ok(records)) => {
                for data in records {
                    let record = Record::from_rdata(query.name().clone(), zone.ttl, data.clone());
                    answer.add_answer(record);
                }
            }
            Some(Err(code)) => answer.metadata.response_code = *code,
            None => answer.metadata.response_code = ResponseCode::NXDomain,
        }
    }
    answer
}
