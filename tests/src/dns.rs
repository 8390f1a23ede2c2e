//! A DNS server that knows a few names, and changes its mind when it is told to.

use std::{collections::BTreeMap, net::IpAddr, net::SocketAddr, sync::Arc};

use hickory_proto::{
    op::{Message, MessageType, ResponseCode},
    rr::{Name, RData, Record, RecordType},
};
use parking_lot::Mutex;
use tokio::{net::UdpSocket, task::JoinSet};

/// How a name begins of which it says nothing at all.
const SILENT: &str = "silent.";

/// A running server; dropping it stops it.
#[derive(Debug)]
pub struct DnsServer {
    addr: SocketAddr,
    names: Arc<Mutex<BTreeMap<String, Vec<IpAddr>>>>,
    _task: JoinSet<()>,
}

impl DnsServer {
    /// Starts one that knows nothing.
    pub async fn start() -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").await.expect("a port");
        let addr = socket.local_addr().expect("its address");
        let names: Arc<Mutex<BTreeMap<String, Vec<IpAddr>>>> = Arc::default();
        let mut task = JoinSet::new();
        task.spawn(serve(socket, names.clone()));
        Self {
            addr,
            names,
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
        self.names
            .lock()
            .insert(format!("{name}."), addresses.collect());
    }
}

async fn serve(socket: UdpSocket, names: Arc<Mutex<BTreeMap<String, Vec<IpAddr>>>>) {
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
        let answer = answer(&asked, &names.lock()).to_vec();
        if let Ok(answer) = answer {
            // A client that is gone needs no answer.
            drop(socket.send_to(&answer, from).await);
        }
    }
}

fn answer(asked: &Message, names: &BTreeMap<String, Vec<IpAddr>>) -> Message {
    let mut answer = Message::response(asked.metadata.id, asked.metadata.op_code);
    answer.metadata.message_type = MessageType::Response;
    answer.metadata.recursion_available = true;
    for query in &asked.queries {
        answer.add_query(query.clone());
        let known = names.get(&query.name().to_ascii());
        if known.is_none_or(Vec::is_empty) {
            answer.metadata.response_code = ResponseCode::NXDomain;
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
