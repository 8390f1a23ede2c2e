//! What a control plane says is the newest configuration, epoch and revision, as it tells a worker.

use forebay_proto::wire;
use wire::to_worker::Message as Heard;

use crate::played_fleet::open;

/// Says hello as a worker and goes away after the welcome; nothing if there is none.
pub async fn newest_position(control: &str) -> Option<wire::Position> {
    let (_say, mut heard) = open(control, "asks-for-the-position", None).await.ok()?;
    match heard.message().await.ok()??.message {
        Some(Heard::Welcome(welcome)) => welcome.target,
        _ => None,
    }
}
