//! How new an answer must be. Of several control planes on one store each answers from its memory, which may be a moment
//! behind; who must not be, says so with the call.

use forebay_proto::{Revision, Violations};
use tonic::{Code, Status, metadata::MetadataMap};

use super::status::{self, Reason};
use crate::registry::RegistryHandle;

/// `strong`: nothing that was acknowledged before the call, by whichever control plane, is missing from the answer.
const CONSISTENCY: &str = "forebay-consistency";
/// At least this revision, such as the one that a write was answered with.
const MIN_REVISION: &str = "forebay-min-revision";

/// Takes over what others wrote, if the call asks for it.
pub(super) async fn enough(
    registry: &RegistryHandle,
    metadata: &MetadataMap,
) -> Result<(), Status> {
    let Some(least) = asked(metadata).map_err(|violations| status::violated(&violations))? else {
        return Ok(());
    };
    if least > Revision::ZERO && registry.published().position.revision >= least {
        return Ok(());
    }
    registry.follow().await.map_err(status::of)?;
    let newest = registry.published().position.revision;
    if newest < least {
        return Err(status::with_reason(
            Code::FailedPrecondition,
            Reason::RevisionNotReached,
            format!("{MIN_REVISION}: revision {least} does not exist yet; the newest is {newest}"),
        ));
    }
    Ok(())
}

/// The least revision that will do; 0: the newest there is. Nothing: what is in memory.
fn asked(metadata: &MetadataMap) -> Result<Option<Revision>, Violations> {
    let mut violations = Violations::new();
    let text = |key: &str| metadata.get(key).map(|value| value.to_str().unwrap_or("?"));
    let strong = match text(CONSISTENCY) {
        None | Some("memory") => false,
        Some("strong") => true,
        Some(_) => {
            violations.add(CONSISTENCY, "must be `strong` or `memory`");
            false
        }
    };
    let least = text(MIN_REVISION).map(str::parse);
    let least = match least {
        None => None,
        Some(Ok(least)) => Some(Revision::new(least)),
        Some(Err(_)) => {
            violations.add(MIN_REVISION, "must be the number of a revision");
            None
        }
    };
    // The stronger of the two.
    let least = match strong {
        true => Some(Revision::ZERO),
        false => least,
    };
    violations.finish(Some(least))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(pairs: &[(&'static str, &str)]) -> Result<Option<u64>, String> {
        let mut metadata = MetadataMap::new();
        for (key, value) in pairs {
            metadata.insert(*key, value.parse().unwrap());
        }
        let asked = asked(&metadata).map_err(|violations| violations.to_string());
        asked.map(|least| least.map(Revision::get))
    }

    #[test]
    fn what_a_call_asks_for_is_read() {
        assert_eq!(of(&[]), Ok(None));
        assert_eq!(of(&[(CONSISTENCY, "memory")]), Ok(None));
        assert_eq!(of(&[(CONSISTENCY, "strong")]), Ok(Some(0)));
        assert_eq!(of(&[(MIN_REVISION, "7")]), Ok(Some(7)));
        assert_eq!(
            of(&[(MIN_REVISION, "7"), (CONSISTENCY, "strong")]),
            Ok(Some(0))
        );
        let both = of(&[(MIN_REVISION, "x"), (CONSISTENCY, "y")]).unwrap_err();
        assert!(
            both.contains(MIN_REVISION) && both.contains(CONSISTENCY),
            "{both}"
        );
    }
}
