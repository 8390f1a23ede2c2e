//! What is done with secrets on both planes: hashes of clients' keys, sealing of endpoints' credentials. The secrets
//! themselves come from elsewhere; nothing here reads, keeps or prints one, and what holds one has no `Debug` that
//! shows it.
//!
//! A client's key is 256 random bits, so a fast keyed hash protects it as well as any: HMAC-SHA-256 under a key that is
//! derived from the control plane's pepper. A credential is sealed with AES-256-GCM under a nonce that is made of what is
//! sealed (by HMAC, under a key of its own), so that sealing the same twice gives the same bytes, and with the place that
//! it is for as associated data, so that it opens nowhere else.

use std::{fmt, sync::Arc};

use ring::{
    aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey},
    hmac,
};
use zeroize::Zeroizing;

use crate::{EndpointUrl, ids::EndpointId, ids::ModelId, limits, violation::InvalidValue, wire};

/// 32 bytes from which keys are derived: a pepper, or a seal key.
#[derive(Clone)]
pub struct Root(Zeroizing<[u8; 32]>);

impl Root {
    /// Of 32 bytes.
    #[must_use]
    pub fn new(bytes: [u8; 32]) -> Self {
        Self(Zeroizing::new(bytes))
    }

    /// Of 64 hex digits.
    #[must_use]
    pub fn from_hex(text: &str) -> Option<Self> {
        let mut bytes = Zeroizing::new([0; 32]);
        let digits = text.as_bytes();
        if digits.len() != 64 || !digits.iter().all(u8::is_ascii_hexdigit) {
            return None;
        }
        for (byte, pair) in bytes.iter_mut().zip(digits.chunks(2)) {
            *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
        }
        Some(Self(bytes))
    }

    /// As 64 hex digits.
    #[must_use]
    pub fn to_hex(&self) -> Zeroizing<String> {
        Zeroizing::new(self.0.iter().map(|byte| format!("{byte:02x}")).collect())
    }

    /// Its bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0[..]
    }

    /// Its name, which tells nothing of it.
    #[must_use]
    pub fn id(&self) -> u32 {
        let tag = hmac::sign(&self.hmac(), b"forebay id");
        tag.as_ref()
            .first_chunk()
            .map_or(0, |first| u32::from_be_bytes(*first))
    }

    /// Another 32 bytes for this purpose.
    #[must_use]
    pub fn derive(&self, purpose: &str) -> Self {
        let tag = hmac::sign(&self.hmac(), purpose.as_bytes());
        let mut bytes = [0; 32];
        bytes
            .iter_mut()
            .zip(tag.as_ref())
            .for_each(|(to, from)| *to = *from);
        Self::new(bytes)
    }

    fn hmac(&self) -> hmac::Key {
        hmac::Key::new(hmac::HMAC_SHA256, self.as_bytes())
    }
}

impl fmt::Debug for Root {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Root({:08x})", self.id())
    }
}

/// Makes and checks hashes of clients' keys. Workers have it; the pepper that it is made of they have not.
#[derive(Clone)]
pub struct VerifyKey {
    id: u32,
    root: Root,
    key: hmac::Key,
}

impl VerifyKey {
    /// The one of a pepper.
    #[must_use]
    pub fn of_pepper(pepper: &Root) -> Self {
        Self::new(pepper.id(), pepper.derive("forebay client keys 1"))
    }

    fn new(id: u32, root: Root) -> Self {
        let key = root.hmac();
        Self { id, root, key }
    }

    /// Its name: the pepper's.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.id
    }

    /// The hash of a key.
    #[must_use]
    pub fn hash(&self, key: &str) -> [u8; 32] {
        let mut hash = [0; 32];
        let tag = hmac::sign(&self.key, key.as_bytes());
        hash.iter_mut()
            .zip(tag.as_ref())
            .for_each(|(to, from)| *to = *from);
        hash
    }

    /// Whether this is the hash of the key, in a time that does not depend on where they differ.
    #[must_use]
    pub fn is_hash(&self, key: &str, hash: &[u8; 32]) -> bool {
        hmac::verify(&self.key, key.as_bytes(), hash).is_ok()
    }
}

impl fmt::Debug for VerifyKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "VerifyKey({:08x})", self.id)
    }
}

impl From<&VerifyKey> for wire::VerifyKey {
    fn from(key: &VerifyKey) -> Self {
        Self {
            id: key.id,
            key: key.root.as_bytes().to_vec().into(),
        }
    }
}

impl TryFrom<&wire::VerifyKey> for VerifyKey {
    type Error = InvalidValue;

    fn try_from(wire: &wire::VerifyKey) -> Result<Self, InvalidValue> {
        Ok(Self::new(wire.id, root_of(&wire.key)?))
    }
}

fn root_of(bytes: &[u8]) -> Result<Root, InvalidValue> {
    let bytes = <[u8; 32]>::try_from(bytes);
    bytes
        .map(Root::new)
        .map_err(|_| InvalidValue::new("must have 32 bytes"))
}

/// Where a credential may be sent.
#[derive(Debug, Clone, Copy)]
pub struct Place<'a> {
    /// The model.
    pub model: &'a ModelId,
    /// Its endpoint.
    pub endpoint: &'a EndpointId,
    /// Where that is.
    pub url: &'a EndpointUrl,
}

impl Place<'_> {
    fn bytes(&self) -> Vec<u8> {
        // None of the three has a line break.
        format!("{}\n{}\n{}", self.model, self.endpoint, self.url.reach()).into_bytes()
    }
}

/// Seals and opens credentials.
#[derive(Clone)]
pub struct SealKey {
    root: Root,
    id: u32,
}

/// How a sealed credential begins.
const FORM: u8 = 1;
const HEAD: usize = 1 + 4 + NONCE_LEN;

impl SealKey {
    /// Of its 32 bytes.
    #[must_use]
    pub fn new(root: Root) -> Self {
        Self {
            id: root.id(),
            root,
        }
    }

    /// Its name.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.id
    }

    fn aead(&self) -> Option<LessSafeKey> {
        let root = self.root.derive("forebay credentials 1");
        let key = UnboundKey::new(&AES_256_GCM, root.as_bytes()).ok()?;
        Some(LessSafeKey::new(key))
    }

    /// Seals a token for a place.
    #[must_use]
    pub fn seal(&self, token: &str, place: Place<'_>) -> Option<SealedCredential> {
        let aad = place.bytes();
        let nonce = self.root.derive("forebay nonces 1").hmac();
        let mut context = hmac::Context::with_key(&nonce);
        context.update(&(aad.len() as u64).to_be_bytes());
        context.update(&aad);
        context.update(token.as_bytes());
        let tag = context.sign();
        let nonce: [u8; NONCE_LEN] = *tag.as_ref().first_chunk()?;
        let mut sealed = token.as_bytes().to_vec();
        let key = self.aead()?;
        let used = Nonce::assume_unique_for_key(nonce);
        key.seal_in_place_append_tag(used, Aad::from(&aad), &mut sealed)
            .ok()?;
        let mut bytes = vec![FORM];
        bytes.extend_from_slice(&self.id.to_be_bytes());
        bytes.extend_from_slice(&nonce);
        bytes.append(&mut sealed);
        let fingerprint = self.root.derive("forebay fingerprints 1").hmac();
        let fingerprint = hmac::sign(&fingerprint, token.as_bytes());
        let short = fingerprint.as_ref().iter().take(8);
        Some(SealedCredential {
            bytes: bytes.into(),
            fingerprint: short.map(|byte| format!("{byte:02x}")).collect(),
        })
    }

    /// The token, if it was sealed with this key and for this place.
    #[must_use]
    pub fn open(&self, sealed: &SealedCredential, place: Place<'_>) -> Option<Zeroizing<String>> {
        let (head, body) = sealed.bytes.split_at_checked(HEAD)?;
        let nonce: [u8; NONCE_LEN] = *head.last_chunk()?;
        let mut body = Zeroizing::new(body.to_vec());
        let aad = place.bytes();
        let key = self.aead()?;
        let nonce = Nonce::assume_unique_for_key(nonce);
        let plain = key.open_in_place(nonce, Aad::from(&aad), &mut body).ok()?;
        Some(Zeroizing::new(std::str::from_utf8(plain).ok()?.to_owned()))
    }
}

impl fmt::Debug for SealKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SealKey({:08x})", self.id)
    }
}

impl From<&SealKey> for wire::SealKey {
    fn from(key: &SealKey) -> Self {
        Self {
            id: key.id,
            key: key.root.as_bytes().to_vec().into(),
        }
    }
}

impl TryFrom<&wire::SealKey> for SealKey {
    type Error = InvalidValue;

    fn try_from(wire: &wire::SealKey) -> Result<Self, InvalidValue> {
        root_of(&wire.key).map(Self::new)
    }
}

/// A credential that only the seal key opens, and only for its place.
#[derive(Clone, PartialEq, Eq)]
pub struct SealedCredential {
    bytes: Arc<[u8]>,
    fingerprint: String,
}

impl SealedCredential {
    /// As it was kept.
    pub fn new(bytes: &[u8], fingerprint: &str) -> Result<Self, InvalidValue> {
        let longest = HEAD + limits::CREDENTIAL_CHARS + AES_256_GCM.tag_len();
        let sound = (HEAD + AES_256_GCM.tag_len()..=longest).contains(&bytes.len())
            && bytes.first() == Some(&FORM)
            && fingerprint.len() == 16
            && fingerprint.bytes().all(|byte| byte.is_ascii_hexdigit());
        match sound {
            true => Ok(Self {
                bytes: bytes.into(),
                fingerprint: fingerprint.to_owned(),
            }),
            false => Err(InvalidValue::new("is not a sealed credential")),
        }
    }

    /// Which seal key opens it.
    #[must_use]
    pub fn key_id(&self) -> u32 {
        let id = self.bytes.get(1..5).and_then(|id| id.try_into().ok());
        id.map_or(0, u32::from_be_bytes)
    }

    /// Its bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Tells whether two are the same.
    #[must_use]
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }
}

impl fmt::Debug for SealedCredential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SealedCredential({})", self.fingerprint)
    }
}

/// Checks a token before it is sealed.
pub fn check_token(token: &str) -> Result<(), InvalidValue> {
    let length = token.chars().count();
    if length > limits::CREDENTIAL_CHARS {
        return Err(InvalidValue::new(format!(
            "{length} characters long, at most {} are allowed",
            limits::CREDENTIAL_CHARS
        )));
    }
    match token.bytes().all(|byte| byte.is_ascii_graphic()) {
        true => Ok(()),
        false => Err(InvalidValue::new(
            "must be visible ASCII characters, without blanks and line breaks",
        )),
    }
}

macro_rules! hidden {
    ($($message:ident)+) => {
        $(impl fmt::Debug for wire::$message {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(concat!(stringify!($message), "(…)"))
            }
        })+
    };
}

hidden!(Credential CreateKeyResponse SealKey VerifyKey);

#[cfg(test)]
mod tests {
    use super::*;

    fn place(model: &str, endpoint: &str, url: &str) -> (ModelId, EndpointId, EndpointUrl) {
        (
            ModelId::new(model).unwrap(),
            EndpointId::new(endpoint).unwrap(),
            EndpointUrl::parse(url).unwrap(),
        )
    }

    fn at((model, endpoint, url): &(ModelId, EndpointId, EndpointUrl)) -> Place<'_> {
        Place {
            model,
            endpoint,
            url,
        }
    }

    #[test]
    fn a_credential_opens_at_its_place_and_nowhere_else() {
        let key = SealKey::new(Root::new([1; 32]));
        let here = place("m", "e1", "https://a.example");
        let sealed = key.seal("canary-token", at(&here)).unwrap();
        assert_eq!(sealed.key_id(), key.id());
        assert_eq!(&**key.open(&sealed, at(&here)).unwrap(), "canary-token");
        for other in [
            place("n", "e1", "https://a.example"),
            place("m", "e2", "https://a.example"),
            place("m", "e1", "http://a.example"),
            place("m", "e1", "https://a.example:8443"),
            place("m", "e1", "https://b.example"),
        ] {
            assert!(key.open(&sealed, at(&other)).is_none(), "{other:?}");
        }
        let stranger = SealKey::new(Root::new([2; 32]));
        assert!(stranger.open(&sealed, at(&here)).is_none());
        let mut bytes = sealed.as_bytes().to_vec();
        for n in 5..bytes.len() {
            bytes[n] ^= 1;
            let bent = SealedCredential::new(&bytes, sealed.fingerprint()).unwrap();
            assert!(key.open(&bent, at(&here)).is_none(), "byte {n}");
            bytes[n] ^= 1;
        }
    }

    #[test]
    fn the_same_is_sealed_to_the_same_and_what_differs_shares_no_nonce() {
        let key = SealKey::new(Root::new([1; 32]));
        let here = place("m", "e1", "https://a.example");
        let there = place("m", "e2", "https://a.example");
        let sealed = |token, at_place| key.seal(token, at(at_place)).unwrap();
        assert_eq!(sealed("t", &here), sealed("t", &here));
        let nonce = |sealed: &SealedCredential| sealed.as_bytes()[5..HEAD].to_vec();
        assert_ne!(nonce(&sealed("t", &here)), nonce(&sealed("u", &here)));
        assert_ne!(nonce(&sealed("t", &here)), nonce(&sealed("t", &there)));
        let (one, other) = (sealed("t", &here), sealed("t", &there));
        assert_eq!(one.fingerprint(), other.fingerprint());
    }

    #[test]
    fn a_hash_is_of_one_key_and_under_one_pepper() {
        let verify = VerifyKey::of_pepper(&Root::new([1; 32]));
        let hash = verify.hash("fbk_x");
        assert!(verify.is_hash("fbk_x", &hash));
        assert!(!verify.is_hash("fbk_y", &hash));
        let other = VerifyKey::of_pepper(&Root::new([2; 32]));
        assert!(!other.is_hash("fbk_x", &hash));
        let wire = wire::VerifyKey::from(&verify);
        assert!(VerifyKey::try_from(&wire).unwrap().is_hash("fbk_x", &hash));
        assert_ne!(&wire.key[..], [1; 32], "not the pepper");
    }

    #[test]
    fn nothing_prints_a_secret() {
        let root = Root::new([0xAB; 32]);
        let here = place("m", "e1", "https://a.example");
        let key = SealKey::new(root.clone());
        let shown = format!(
            "{root:?} {key:?} {:?} {:?} {:?} {:?}",
            VerifyKey::of_pepper(&root),
            key.seal("canary", at(&here)).unwrap(),
            wire::Credential {
                bearer_token: "canary".into(),
                ..Default::default()
            },
            wire::CreateKeyResponse {
                secret: "canary".into(),
                ..Default::default()
            },
        );
        assert!(
            !shown.contains("canary") && !shown.contains("abab"),
            "{shown}"
        );
        assert_eq!(
            Root::from_hex(&root.to_hex()).unwrap().as_bytes(),
            [0xAB; 32]
        );
        assert!(Root::from_hex("xy").is_none());
    }
}
