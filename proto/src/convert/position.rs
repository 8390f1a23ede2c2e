//! `Position`.

use bytes::Bytes;

use crate::{
    revision::{Digest, Epoch, Position, Revision},
    violation::Violations,
    wire,
};

impl From<&Position> for wire::Position {
    fn from(position: &Position) -> Self {
        Self {
            epoch: position.epoch.to_string(),
            revision: position.revision.get(),
            digest: Bytes::copy_from_slice(position.digest.as_bytes()),
        }
    }
}

impl TryFrom<wire::Position> for Position {
    type Error = Violations;

    fn try_from(wire: wire::Position) -> Result<Self, Violations> {
        let mut violations = Violations::new();
        let epoch = violations.check("epoch", Epoch::new(wire.epoch));
        let digest = violations.check("digest", Digest::from_slice(&wire.digest));
        let revision = Revision::new(wire.revision);
        let both = epoch.zip(digest);
        violations.finish(both.map(|(epoch, digest)| Self {
            epoch,
            revision,
            digest,
        }))
    }
}
