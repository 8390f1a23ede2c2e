//! Runs the configuration client, except while another process of the same worker is about to take over: two that
//! follow would end each other's streams and write over each other's files.

use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::ConfigClient;

/// What who hands over asks of it.
#[derive(Debug)]
pub(crate) enum Order {
    /// Follow no more. Told when what is in force is on disk.
    Rest(oneshot::Sender<()>),
    /// Follow again: nobody took over.
    GoOn,
}

/// Follows until told to stop. After a rest a new client is made, which begins with what is on disk: what is in force.
pub(crate) async fn follow(
    mut client: ConfigClient,
    remake: impl Fn() -> ConfigClient,
    mut orders: mpsc::Receiver<Order>,
    shutdown: CancellationToken,
) {
    loop {
        let stop = shutdown.child_token();
        let mut following = std::pin::pin!(client.run(stop.clone()));
        let rested = loop {
            tokio::select! {
                () = &mut following => return,
                order = orders.recv(), if !orders.is_closed() || !orders.is_empty() => {
                    if let Some(Order::Rest(rested)) = order {
                        break rested;
                    }
                }
            }
        };
        stop.cancel();
        following.await;
        tracing::info!("the control plane is not followed for now");
        // Who asked may have gone: then it says so next.
        let _ = rested.send(());
        loop {
            let order = tokio::select! {
                order = orders.recv() => order,
                () = shutdown.cancelled() => return,
            };
            match order {
                Some(Order::GoOn) => break,
                Some(Order::Rest(rested)) => {
                    let _ = rested.send(());
                }
                // Taken over.
                None => return,
            }
        }
        client = remake();
        client.start_from_disk();
    }
}
