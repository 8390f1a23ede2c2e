//! Ctrl-C and SIGTERM: the first asks for an orderly end, the second ends at once.

use anyhow::bail;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::supervisor;

/// Does the work until it is done; cancels the token at the first signal and gives up at the second.
pub(crate) async fn until_signalled(
    work: impl Future<Output = anyhow::Result<()>>,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut work = std::pin::pin!(work);
    // To the very end: who ends in good order is not to be taken for dead.
    let mut heartbeat = std::pin::pin!(supervisor::heartbeat());
    tokio::select! {
        result = &mut work => return result,
        never = &mut heartbeat => match never {},
        signal = next(&mut terminate, &mut interrupt) => tracing::info!(signal, "stopping"),
    }
    supervisor::stopping();
    shutdown.cancel();
    tokio::select! {
        result = work => result,
        never = &mut heartbeat => match never {},
        signal = next(&mut terminate, &mut interrupt) => {
            bail!("stopped by a second {signal}; what was in flight is cut")
        }
    }
}

async fn next(terminate: &mut Signal, interrupt: &mut Signal) -> &'static str {
    tokio::select! {
        _ = terminate.recv() => "SIGTERM",
        _ = interrupt.recv() => "SIGINT",
    }
}
