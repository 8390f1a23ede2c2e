//! The balancer of the drivers: `balancer LISTEN GATEWAY=ADMIN…`. It takes turns over the workers that are ready, until it
//! is ended.

#![expect(clippy::print_stdout, reason = "a program for the terminal")]

use std::{net::SocketAddr, process::ExitCode};

use forebay_tests::{Balancer, Behind};

fn read() -> Option<(SocketAddr, Vec<Behind>)> {
    let mut args = std::env::args().skip(1);
    let listen = args.next()?.parse().ok()?;
    let workers = args.map(|arg| {
        let (gateway, admin) = arg.split_once('=')?;
        Some(Behind {
            gateway: gateway.parse().ok()?,
            admin: admin.parse().ok()?,
        })
    });
    Some((listen, workers.collect::<Option<_>>()?))
}

#[tokio::main]
async fn main() -> ExitCode {
    let Some((listen, workers)) = read() else {
        println!("usage: balancer LISTEN GATEWAY=ADMIN…");
        return ExitCode::from(64);
    };
    let balancer = Balancer::start(listen, workers).await;
    println!("balancing on {}", balancer.addr());
    std::future::pending().await
}
