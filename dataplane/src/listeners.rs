//! Where a worker listens, and whose sockets these are: taken over from the process before, passed by whoever started
//! this one (systemd's socket activation), or bound here. It decides who may reach them, and must not accept.
//!
//! A socket that was taken over or passed stays where it is: its line of connections that are not accepted yet is what
//! nobody may lose. Of two sources that differ none is believed.

use std::{net::SocketAddr, path::Path};

use rustix::net::sockopt::socket_acceptconn;
use tokio::net::{TcpListener, UnixStream};

use crate::{
    app::{Exposure, HandOver, WorkerError, WorkerSettings},
    handover::{HandoverError, Taken, take_over},
    keys::Auth,
};

const GATEWAY: &str = "--listen";
const ADMIN: &str = "--admin-listen";

/// Listening sockets that were opened for this process; what is absent is bound here.
#[derive(Debug, Default)]
pub struct Passed {
    /// The gateway's.
    pub gateway: Option<std::net::TcpListener>,
    /// The admin port's.
    pub admin: Option<std::net::TcpListener>,
}

/// A listener and where it listens.
type Open = (TcpListener, SocketAddr);

/// A port as it is asked for.
#[derive(Debug, Clone, Copy)]
struct Port {
    flag: &'static str,
    addr: SocketAddr,
    exposure: Exposure,
}

/// Opens both ports. With the stream of the process whose they were, if they were taken over.
pub(crate) async fn open(
    settings: &WorkerSettings,
    passed: Passed,
    place: Option<&Path>,
) -> Result<(Open, Open, Option<UnixStream>), WorkerError> {
    // The gateway may be reached from elsewhere, if whoever comes has a key.
    let keys = settings.auth != Auth::Open;
    let gateway = Port {
        flag: GATEWAY,
        addr: settings.listen,
        exposure: if keys {
            Exposure::Insecure
        } else {
            settings.exposure
        },
    };
    let admin = Port {
        flag: ADMIN,
        addr: settings.admin_listen,
        exposure: settings.exposure,
    };
    let taken = take(settings.hand_over, place).await?;
    let Some(taken) = taken else {
        let gateway = gateway.open(passed.gateway).await?;
        return Ok((gateway, admin.open(passed.admin).await?, None));
    };
    let anywhere = settings.hand_over == HandOver::Succeed;
    let gateway = gateway.taken(taken.gateway, passed.gateway, anywhere)?;
    let admin = admin.taken(taken.admin, passed.admin, anywhere)?;
    Ok((gateway, admin, Some(taken.stream)))
}

/// Asks the process that runs for its place, if this one is to take it.
async fn take(how: HandOver, place: Option<&Path>) -> Result<Option<Taken>, WorkerError> {
    let must = match how {
        HandOver::Never | HandOver::Offer => return Ok(None),
        HandOver::TakeOver => false,
        HandOver::Succeed => true,
    };
    let taken = match place {
        Some(place) => take_over(place).await,
        None => Ok(None),
    };
    let taken = taken.map_err(|error: HandoverError| WorkerError::TakeOver(error.to_string()))?;
    match (taken, must) {
        (None, true) => Err(WorkerError::TakeOver(
            "nobody answers where the process before this one should".to_owned(),
        )),
        (taken, _) => Ok(taken),
    }
}

impl Port {
    /// What was passed, or a port that is bound now.
    async fn open(self, passed: Option<std::net::TcpListener>) -> Result<Open, WorkerError> {
        let Self { flag, addr, .. } = self;
        if let Some(passed) = passed {
            let unusable = |error| WorkerError::Passed { flag, error };
            listening(&passed).map_err(unusable)?;
            let listener = TcpListener::from_std(passed).map_err(unusable)?;
            return self.allowed(listener);
        }
        self.may_be(addr)?;
        let failed = |error| WorkerError::Bind { flag, addr, error };
        self.allowed(TcpListener::bind(addr).await.map_err(failed)?)
    }

    /// A listener of the process before. It stays where it is, which is where it is wanted.
    fn taken(
        self,
        listener: TcpListener,
        passed: Option<std::net::TcpListener>,
        anywhere: bool,
    ) -> Result<Open, WorkerError> {
        let Self { flag, addr, .. } = self;
        let (listener, bound) = self.allowed(listener)?;
        // Another one than the one that was passed: nobody would ever accept there.
        let passed = passed.map(|passed| passed.local_addr()).transpose();
        let wanted = match passed.map_err(|error| WorkerError::Passed { flag, error })? {
            Some(passed) => Some(passed),
            None => Some(addr).filter(|addr| addr.port() != 0 && !anywhere),
        };
        match wanted {
            Some(wanted) if wanted != bound => Err(WorkerError::TakeOver(format!(
                "{flag} {wanted} is not where that process listens ({bound}); take over with the same addresses, and \
                 move with a restart"
            ))),
            _ => Ok((listener, bound)),
        }
    }

    fn allowed(self, listener: TcpListener) -> Result<Open, WorkerError> {
        let Self { flag, addr, .. } = self;
        let bound = listener.local_addr();
        let bound = bound.map_err(|error| WorkerError::Bind { flag, addr, error })?;
        self.may_be(bound)?;
        Ok((listener, bound))
    }

    fn may_be(self, addr: SocketAddr) -> Result<(), WorkerError> {
        match self.exposure {
            Exposure::LoopbackOnly if !addr.ip().is_loopback() => Err(WorkerError::Exposed {
                flag: self.flag,
                addr,
            }),
            Exposure::LoopbackOnly | Exposure::Insecure => Ok(()),
        }
    }
}

/// That it is one, before a loop fails to accept on it for ever.
fn listening(socket: &std::net::TcpListener) -> std::io::Result<()> {
    if !socket_acceptconn(socket)? {
        return Err(std::io::Error::other("it does not listen"));
    }
    socket.set_nonblocking(true)
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, TcpStream};

    use super::*;

    const LOOPBACK: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

    fn port(addr: SocketAddr, exposure: Exposure) -> Port {
        Port {
            flag: GATEWAY,
            addr,
            exposure,
        }
    }

    fn opened(addr: &str) -> std::net::TcpListener {
        std::net::TcpListener::bind(addr).unwrap()
    }

    #[tokio::test]
    async fn what_is_passed_stays_where_it_is_whatever_the_flag_says() {
        let passed = opened("127.0.0.1:0");
        let there = passed.local_addr().unwrap();
        let asked = port("127.0.0.1:1".parse().unwrap(), Exposure::LoopbackOnly);
        let (listener, bound) = asked.open(Some(passed)).await.unwrap();
        assert_eq!(bound, there);
        let _client = TcpStream::connect(there).unwrap();
        listener.accept().await.unwrap();
    }

    #[tokio::test]
    async fn what_is_passed_may_be_reached_by_no_more_than_what_is_bound() {
        let asked = port(LOOPBACK, Exposure::LoopbackOnly);
        let error = asked.open(Some(opened("0.0.0.0:0"))).await.unwrap_err();
        assert!(matches!(error, WorkerError::Exposed { .. }), "{error}");
        let asked = port(LOOPBACK, Exposure::Insecure);
        asked.open(Some(opened("0.0.0.0:0"))).await.unwrap();
    }

    #[tokio::test]
    async fn what_does_not_listen_is_refused() {
        let listener = opened("127.0.0.1:0");
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let passed = std::net::TcpListener::from(std::os::fd::OwnedFd::from(client));
        let asked = port(LOOPBACK, Exposure::LoopbackOnly);
        let error = asked.open(Some(passed)).await.unwrap_err();
        assert!(error.to_string().contains("does not listen"), "{error}");
    }

    #[tokio::test]
    async fn what_is_taken_over_must_be_what_was_passed() {
        let listener = || {
            TcpListener::from_std({
                let listener = opened("127.0.0.1:0");
                listener.set_nonblocking(true).unwrap();
                listener
            })
        };
        let asked = port(LOOPBACK, Exposure::LoopbackOnly);
        let running = listener().unwrap();
        let elsewhere = Some(opened("127.0.0.1:0"));
        let error = asked.taken(running, elsewhere, true).unwrap_err();
        assert!(
            error.to_string().contains("not where that process listens"),
            "{error}"
        );
        let running = listener().unwrap();
        let same = std::os::fd::AsFd::as_fd(&running)
            .try_clone_to_owned()
            .unwrap();
        asked.taken(running, Some(same.into()), false).unwrap();
    }

    #[tokio::test]
    async fn a_successor_takes_what_there_is() {
        let flag = port("127.0.0.1:1".parse().unwrap(), Exposure::LoopbackOnly);
        let running = || TcpListener::bind(LOOPBACK);
        let error = flag
            .taken(running().await.unwrap(), None, false)
            .unwrap_err();
        assert!(error.to_string().contains("move with a restart"), "{error}");
        flag.taken(running().await.unwrap(), None, true).unwrap();
    }

    #[tokio::test]
    async fn a_successor_does_not_start_alone() {
        let dir = tempfile::tempdir().unwrap();
        let place = dir.path().join("nobody");
        assert!(
            take(HandOver::TakeOver, Some(&place))
                .await
                .unwrap()
                .is_none()
        );
        let error = take(HandOver::Succeed, Some(&place)).await.unwrap_err();
        assert!(error.to_string().contains("nobody answers"), "{error}");
    }
}
