//! A server of lists of targets, as exporters for Prometheus' `http_sd_config` are.

use std::{net::SocketAddr, sync::Arc};

use parking_lot::Mutex;
use serde_json::json;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
    task::JoinSet,
};

/// Most bytes of a request.
const HEAD: usize = 4_096;

/// A running server; dropping it stops it.
#[derive(Debug)]
pub struct ListServer {
    addr: SocketAddr,
    answer: Arc<Mutex<Vec<u8>>>,
    _task: JoinSet<()>,
}

impl ListServer {
    /// Starts one whose list is empty.
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let addr = listener.local_addr().expect("its address");
        let answer: Arc<Mutex<Vec<u8>>> = Arc::default();
        let mut task = JoinSet::new();
        task.spawn(serve(listener, answer.clone()));
        let server = Self {
            addr,
            answer,
            _task: task,
        };
        server.list(&[]);
        server
    }

    /// Where its list is.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}/targets", self.addr)
    }

    /// From now on these are its targets.
    pub fn list(&self, targets: &[String]) {
        let list = json!([{ "targets": targets, "labels": { "job": "vllm" } }]).to_string();
        let length = list.len();
        self.say(format!(
            "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n{list}"
        ));
    }

    /// From now on it answers this, byte for byte, and closes the connection.
    pub fn say(&self, answer: impl Into<Vec<u8>>) {
        *self.answer.lock() = answer.into();
    }
}

async fn serve(listener: TcpListener, answer: Arc<Mutex<Vec<u8>>>) {
    let mut answers = JoinSet::new();
    loop {
        let Ok((mut socket, _)) = listener.accept().await else {
            continue;
        };
        let answer = answer.lock().clone();
        answers.spawn(async move {
            let read = socket.read(&mut [0; HEAD]).await;
            if read.is_ok_and(|read| read > 0) {
                // A client that is gone needs no answer.
                drop(socket.write_all(&answer).await);
                drop(socket.shutdown().await);
            }
        });
        while answers.try_join_next().is_some() {}
    }
}
