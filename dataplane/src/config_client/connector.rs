//! How sockets to control planes are opened.

use std::time::Duration;

use hyper_util::client::legacy::connect::HttpConnector;

/// What the peer's kernel has not acknowledged for this long is given up by ours, and with it the connection. Otherwise
/// an attempt that was given up would be said to its end when the network is back: a hello from nobody, which would put
/// an end to the stream that has come in its place.
const UNACKNOWLEDGED: Duration = Duration::from_secs(5);

/// With at most this long to connect.
pub(super) fn connector(connect: Duration) -> HttpConnector {
    let mut connector = HttpConnector::new();
    connector.set_nodelay(true);
    connector.set_connect_timeout(Some(connect));
    connector.set_tcp_user_timeout(Some(UNACKNOWLEDGED));
    connector
}

#[cfg(test)]
mod tests {
    use hyper_util::rt::TokioIo;
    use socket2::SockRef;
    use tokio::net::{TcpListener, TcpStream};
    use tower::Service as _;

    use super::*;

    #[tokio::test]
    async fn the_kernel_gives_up_what_is_not_acknowledged() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let uri = format!("http://{}", listener.local_addr().unwrap());
        let opened = connector(Duration::from_secs(3)).call(uri.parse().unwrap());
        let opened: TokioIo<TcpStream> = opened.await.unwrap();
        let socket = SockRef::from(opened.inner());
        assert_eq!(socket.tcp_user_timeout().unwrap(), Some(UNACKNOWLEDGED));
        assert!(opened.inner().nodelay().unwrap());
    }
}
