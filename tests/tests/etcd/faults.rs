//! A few runs of what `etcd-faults` does a hundred times (docs/bench/etcd.md).

use std::time::Duration;

use forebay_tests::{Fault, Stand};

use crate::turn;

#[tokio::test(flavor = "multi_thread")]
async fn whatever_becomes_of_a_member_nothing_acknowledged_is_lost_and_there_is_one_order() {
    let _turn = turn().await;
    let mut stand = Stand::start(2).await;
    for fault in [
        Fault::KillLeader,
        Fault::CutOffLeader,
        Fault::PauseLeader,
        Fault::Compact,
    ] {
        let seen = stand.run(fault, Duration::from_secs(3)).await;
        let name = fault.name();
        assert_eq!(seen.wrong, [""; 0], "{name}");
        assert_eq!(seen.failed, [""; 0], "{name}");
        // Enough to prove something, on however slow a machine.
        assert!(seen.acknowledged > 5, "{name}: {seen:?}");
        assert!(seen.reads > 1 && seen.requests > 10, "{name}: {seen:?}");
    }
}
