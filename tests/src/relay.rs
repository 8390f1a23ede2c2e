//! A way between two that can be cut: while it is, nothing passes and nothing is closed, as when a cable is pulled. What
//! was on its way passes when it is whole again, if the ends still want it.

use std::net::SocketAddr;

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::watch,
    task::JoinSet,
};

/// A listener behind which another one is.
#[derive(Debug)]
pub struct Relay {
    addr: SocketAddr,
    cut: watch::Sender<bool>,
    _tasks: JoinSet<()>,
}

impl Relay {
    /// A way to this address.
    pub async fn to(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let addr = listener.local_addr().expect("a bound port");
        let (cut, is_cut) = watch::channel(false);
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut ways = JoinSet::new();
            while let Ok((near, _)) = listener.accept().await {
                ways.spawn(pass(near, target, is_cut.clone()));
                while ways.try_join_next().is_some() {}
            }
        });
        Self {
            addr,
            cut,
            _tasks: tasks,
        }
    }

    /// Where it begins.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Its beginning, as a URL.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// Nothing passes from now on.
    pub fn cut(&self) {
        self.cut.send_replace(true);
    }

    /// All passes again.
    pub fn heal(&self) {
        self.cut.send_replace(false);
    }
}

async fn pass(near: TcpStream, target: SocketAddr, mut cut: watch::Receiver<bool>) {
    whole(&mut cut).await;
    let Ok(far) = TcpStream::connect(target).await else {
        return;
    };
    let ((near_in, near_out), (far_in, far_out)) = (near.into_split(), far.into_split());
    tokio::join!(
        one_way(near_in, far_out, cut.clone()),
        one_way(far_in, near_out, cut)
    );
}

async fn one_way(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, mut cut: watch::Receiver<bool>) {
    let mut buffer = vec![0; 16 << 10];
    loop {
        let read = from.read(&mut buffer).await;
        // What was read before it was cut is on its way, and so is the end.
        whole(&mut cut).await;
        match read {
            Ok(0) | Err(_) => break,
            Ok(n) => {
                let Some(piece) = buffer.get(..n) else { break };
                if to.write_all(piece).await.is_err() {
                    break;
                }
            }
        }
    }
    drop(to.shutdown().await);
}

async fn whole(cut: &mut watch::Receiver<bool>) {
    // Without a relay nothing passes any more.
    if cut.wait_for(|cut| !cut).await.is_err() {
        std::future::pending::<()>().await;
    }
}
