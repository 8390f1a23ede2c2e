//! A DNS server that knows a few names and services, and changes its mind when it is told to.

use std::{collections::BTreeMap, net::IpAddr, net::SocketAddr, sync::Arc};

use hickory_proto::{
    op::{Message, MessageType, ResponseCode},
    rr::{Name, RData, Record, RecordType, rdata::SRV},
};
use parking_lot::Mutex;
use tokio::{net::UdpSocket, task::JoinSet};

/// How a name begins of which it says nothing at all.
const SILENT: &str = "silent.";

/// What it knows.
#[derive(Debug, Default)]
struct Zone {
    names: BTreeMap<String, Vec<IpAddr>>,
    services: BTreeMap<String, Vec<SRV>>,
    /// It answers that it cannot.
    broken: bool,
    asked: u64,
}

/// A running server; dropping it stops it.
#[derive(Debug)]
pub struct DnsServer {
    addr: SocketAddr,
    zone: Arc<Mutex<Zone>>,
    _task: JoinSet<()>,
}

impl DnsServer {
    /// Starts one that knows nothing.
    pub async fn start() -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").await.expect("a port");
        let addr = socket.local_addr().expect("its address");
        let zone: Arc<Mutex<Zone>> = Arc::default();
        let mut task = JoinSet::new();
        task.spawn(serve(socket, zone.clone()));
        Self {
            addr,
            zone,
            _task: task,
        }
    }

    /// Where it answers.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// From now on the name has these addresses, for a second at a time; none: there is no such name.
    pub fn set(&self, name: &str, addresses: &[&str]) {
        let addresses = addresses.iter().map(|a| a.parse().expect("an address"));
        let mut zone = self.zone.lock();
        zone.names.insert(format!("{name}."), addresses.collect());
    }

    /// From now on the service has these servers (priority, weight, port, host), for a second at a time; none: there is no
    /// such name.
    pub fn set_service(&self, name: &str, servers: &[(u16, u16, u16, &str)]) {
        let server = |(priority, weight, port, host): &(u16, u16, u16, &str)| {
            let host = Name::from_ascii(format!("{host}.")).expect("a name");
            SRV::new(*priority, *weight, *port, host)
        };
        let mut zone = self.zone.lock();
        let servers = servers.iter().map(server).collect();
        zone.services.insert(format!("{name}."), servers);
    }

    /// From now on it answers that it cannot (SERVFAIL), or as ever.
    pub fn break_down(&self, broken: bool) {
        self.zone.lock().broken = broken;
    }

    /// How often it was asked.
    #[must_use]
    pub fn asked(&self) -> u64 {
        self.zone.lock().asked
    }
}

async fn serve(socket: UdpSocket, zone: Arc<Mutex<Zone>>) {
    let mut packet = [0; 1_500];
    loop {
        let Ok((length, from)) = socket.recv_from(&mut packet).await else {
            continue;
        };
        let asked = packet.get(..length).map(Message::from_vec);
        let Some(Ok(asked)) = asked else { continue };
        if asked
            .queries
            .iter()
            .any(|query| query.name().to_ascii().starts_with(SILENT))
        {
            continue;
        }
        let answer = answer(&asked, &mut zone.lock()).to_vec();
        if let Ok(answer) = answer {
            // A client that is gone needs no answer.
            drop(socket.send_to(&answer, from).await);
        }
    }
}

fn answer(asked: &Message, zone: &mut Zone) -> Message {
    zone.asked += 1;
    let mut answer = Message::response(asked.metadata.id, asked.metadata.op_code);
    answer.metadata.message_type = MessageType::Response;
    answer.metadata.recursion_available = true;
    for query in &asked.queries {
        answer.add_query(query.clone());
        if zone.broken {
            answer.metadata.response_code = ResponseCode::ServFail;
            continue;
        }
        let name = query.name().to_ascii();
        let (known, services) = (zone.names.get(&name), zone.services.get(&name));
        if known.is_none_or(Vec::is_empty) && services.is_none_or(Vec::is_empty) {
            answer.metadata.response_code = ResponseCode::NXDomain;
        }
        for server in services.into_iter().flatten() {
            if query.query_type() == RecordType::SRV {
                answer.add_answer(record(query.name(), RData::SRV(server.clone())));
            }
        }
        for address in known.into_iter().flatten() {
            let data = RData::from(*address);
            if query.query_type() == RecordType::A && address.is_ipv4() {
                answer.add_answer(record(query.name(), data));
            }
        }
    }
    answer
}

fn record(name: &Name, data: RData) -> Record {
    Record::from_rdata(name.clone(), 1, data)
}
