//! How a control plane is connected to: by the address that was chosen, under the name that was written.

use std::time::Duration;

use http::{Uri, uri::PathAndQuery};
use tonic::transport::{Channel, Endpoint, Error};

use super::{chooser::Replica, connector::connector};

const CONNECT: Duration = Duration::from_secs(3);
/// How much may be on its way to a worker: what does not fit waits at the control plane, in memory that is shared.
const WINDOW: u32 = 64 << 10;
/// A connection that has gone is noticed within the sum of both. Not later: TCP, which waits twice as long after each try,
/// would find out by itself that the network is back only after as long again as that was away.
const PING: Duration = Duration::from_secs(5);
const PING_ANSWER: Duration = Duration::from_secs(5);

/// The most that a connect takes.
pub(super) const WITHIN: Duration = Duration::from_secs(6);

/// What makes connections.
#[derive(Debug, Clone, Default)]
pub(super) struct Line {
    #[cfg(feature = "simulation")]
    pub(super) network: Option<crate::simulation::Connect>,
}

impl Line {
    /// Connects. Who awaits it bounds the wait.
    pub(super) async fn connect(&self, replica: &Replica) -> Result<Channel, Error> {
        let endpoint = endpoint(replica)
            .connect_timeout(CONNECT)
            .initial_stream_window_size(WINDOW)
            .initial_connection_window_size(WINDOW)
            .http2_keep_alive_interval(PING)
            .keep_alive_timeout(PING_ANSWER)
            .keep_alive_while_idle(true);
        #[cfg(feature = "simulation")]
        if let Some(network) = &self.network {
            return network.open(&endpoint).await;
        }
        let connector = connector(CONNECT);
        endpoint.connect_with_connector(connector).await
    }
}

fn endpoint(replica: &Replica) -> Endpoint {
    let named = replica.url.clone();
    let at = replica.at.and_then(|at| {
        let mut parts = named.clone().into_parts();
        parts.authority = at.to_string().parse().ok();
        parts.path_and_query = Some(PathAndQuery::from_static("/"));
        Uri::from_parts(parts).ok()
    });
    match at {
        Some(at) => Endpoint::from(at).origin(named),
        None => Endpoint::from(named),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_address_is_dialled_and_the_name_is_asked_for() {
        let named: Uri = "http://control:50051".parse().unwrap();
        let replica = |at: Option<&str>| Replica {
            url: named.clone(),
            at: at.map(|at| at.parse().unwrap()),
        };
        for (at, dialled) in [
            (Some("10.0.0.1:50051"), "http://10.0.0.1:50051/"),
            (Some("[::1]:50051"), "http://[::1]:50051/"),
            (None, "http://control:50051/"),
        ] {
            assert_eq!(endpoint(&replica(at)).uri().to_string(), dialled);
        }
    }
}
