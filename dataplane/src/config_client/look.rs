//! Looks at control planes from outside of any stream: how many workers each has, and whether it has what we have. One
//! that cannot tell, because it is down or of an older build, is not gone to.

use std::time::Duration;

use forebay_proto::{Position, wire};
use tokio::time::timeout;
use tonic::transport::Channel;

use super::{
    chooser::{Load, Replica},
    line::Line,
};

/// How long a look at one may take, from the connect to the answer.
const WITHIN: Duration = Duration::from_secs(5);

/// What was seen of both.
#[derive(Debug)]
pub(super) struct Seen {
    pub(super) own: Load,
    pub(super) other: Load,
}

/// Looks at the one that is followed, over its connection, and at another one. `Err`: the other one cannot be looked at.
/// Nothing: our own one cannot.
pub(super) async fn look(
    line: &Line,
    own: Channel,
    other: &Replica,
    held: Option<&Position>,
) -> Result<Option<Seen>, ()> {
    let other = timeout(WITHIN, async {
        let channel = line.connect(other).await.map_err(drop)?;
        load(channel, held).await.ok_or(())
    });
    let other = other.await.map_err(drop).flatten()?;
    // That it does not answer says nothing of the other one.
    let own = timeout(WITHIN, load(own, held)).await.ok().flatten();
    Ok(own.map(|own| Seen { own, other }))
}

async fn load(channel: Channel, held: Option<&Position>) -> Option<Load> {
    let mut stub = wire::worker_sync_client::WorkerSyncClient::new(channel);
    let answer = stub.get_standing(wire::GetStandingRequest {}).await.ok()?;
    let standing = answer.into_inner();
    let newest = standing.newest.map(Position::try_from)?.ok()?;
    Some(Load {
        open: standing.open,
        abreast: held.is_none_or(|held| is_abreast(held, &newest)),
        workers: standing.workers,
        hears: standing.hears,
    })
}

/// It is of the same store, and has no less.
fn is_abreast(held: &Position, newest: &Position) -> bool {
    held.epoch == newest.epoch && newest.revision >= held.revision
}

#[cfg(test)]
mod tests {
    use forebay_proto::{Digest, Epoch, Revision};

    use super::*;

    #[test]
    fn abreast_is_who_has_no_less_of_the_same_store() {
        let position = |epoch, revision| Position {
            epoch: Epoch::new(epoch).unwrap(),
            revision: Revision::new(revision),
            digest: Digest::of(b""),
        };
        let held = position("aa", 5);
        for (epoch, revision, abreast) in [
            ("aa", 5, true),
            ("aa", 6, true),
            ("aa", 4, false),
            ("bb", 9, false),
        ] {
            assert_eq!(is_abreast(&held, &position(epoch, revision)), abreast);
        }
    }
}
