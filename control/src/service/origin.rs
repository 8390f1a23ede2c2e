//! Who writes and why, from the metadata of a call. It is what the caller says of itself, and no proof.

use std::net::SocketAddr;

use forebay_proto::{Violations, limits};
use tonic::metadata::MetadataMap;

use crate::store::history::Origin;

const AUTHOR: &str = "x-forebay-author";
const REASON: &str = "x-forebay-reason";

/// The origin that metadata tells of; the author is otherwise the address of the peer.
pub(super) fn of(metadata: &MetadataMap, peer: Option<SocketAddr>) -> Result<Origin, Violations> {
    let mut violations = Violations::new();
    let author = text(metadata, AUTHOR, limits::AUTHOR_CHARS, &mut violations);
    let reason = text(metadata, REASON, limits::REASON_CHARS, &mut violations);
    let author = author.or_else(|| peer.map(|peer| peer.to_string()));
    violations.finish(Some(Origin {
        author: author.unwrap_or_default(),
        reason: reason.unwrap_or_default(),
    }))
}

/// The value of a key, or of its form for text that is not ASCII.
fn text(
    metadata: &MetadataMap,
    key: &str,
    most: usize,
    violations: &mut Violations,
) -> Option<String> {
    let key_bin = format!("{key}-bin");
    let bytes = match (metadata.get(key), metadata.get_bin(&key_bin)) {
        (Some(value), _) => value.as_bytes().to_vec(),
        (None, Some(value)) => match value.to_bytes() {
            Ok(bytes) => bytes.to_vec(),
            Err(_) => {
                violations.add(key_bin, "is not base64");
                return None;
            }
        },
        (None, None) => return None,
    };
    let text = String::from_utf8(bytes).ok();
    let plain = text.filter(|text| !text.chars().any(char::is_control));
    let Some(plain) = plain else {
        let message = format!("must be text without control characters; use `{key_bin}` for UTF-8");
        violations.add(key, message);
        return None;
    };
    let length = plain.chars().count();
    if length > most {
        let message = format!("has {length} characters, at most {most} are allowed; shorten it");
        violations.add(key, message);
        return None;
    }
    Some(plain.trim().to_owned()).filter(|text| !text.is_empty())
}

#[cfg(test)]
mod tests {
    use tonic::metadata::MetadataValue;

    use super::*;

    #[test]
    fn what_is_said_is_taken_and_the_address_otherwise() {
        let peer = Some(SocketAddr::from(([127, 0, 0, 1], 7)));
        let mut metadata = MetadataMap::new();
        assert_eq!(of(&metadata, peer).unwrap().author, "127.0.0.1:7");
        metadata.insert(AUTHOR, "ada".parse().unwrap());
        let umlaut = MetadataValue::from_bytes("f\u{fc}r".as_bytes());
        metadata.insert_bin("x-forebay-reason-bin", umlaut);
        let origin = of(&metadata, peer).unwrap();
        assert_eq!(
            (origin.author.as_str(), origin.reason.as_str()),
            ("ada", "f\u{fc}r")
        );
    }

    #[test]
    fn what_is_too_long_or_no_text_is_named() {
        let mut metadata = MetadataMap::new();
        metadata.insert(AUTHOR, "a".repeat(129).parse().unwrap());
        metadata.insert_bin("x-forebay-reason-bin", MetadataValue::from_bytes(b"a\nb"));
        let error = of(&metadata, None).unwrap_err().to_string();
        for part in [AUTHOR, "129 characters", REASON, "control characters"] {
            assert!(error.contains(part), "{part}: {error}");
        }
    }
}
