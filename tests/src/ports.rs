//! Ports of servers that are stopped and started again where they were.

use std::net::{SocketAddr, TcpListener};

/// Below the range from which the kernel draws ports by itself: otherwise, while the server is down,
/// a client that tries to reach it could be given that very port and connect to itself.
const RANGE: std::ops::Range<u16> = 10_000..32_000;

/// An address on loopback that is free now and that nobody is given unasked.
#[must_use]
pub fn lasting_addr() -> SocketAddr {
    std::iter::repeat_with(|| SocketAddr::from(([127, 0, 0, 1], fastrand::u16(RANGE))))
        .take(1_000)
        .find(|addr| TcpListener::bind(addr).is_ok())
        .expect("a free port")
}
