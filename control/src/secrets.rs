//! The control plane's own secrets: peppers, under which clients' keys are hashed, and seal keys, under which
//! credentials of endpoints are. Each kind has a file of its own with mode 0600, one secret per line in 64 hex digits:
//! the first is used for what is new, the others for what was made with them (rotation). The two are never the same
//! secret, so that one can be changed without the other.
//!
//! A file that is missing is made at the start, unless something in the store was made with what it had: then to go on
//! would be to lose it. Nothing of the files is ever logged.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Write as _},
    os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use forebay_proto::{
    EndpointId, ModelId, Violations,
    convert::endpoint_url,
    key, limits,
    secret::{Place, Root, SealKey, VerifyKey, check_token},
    wire,
};
use ring::rand::{SecureRandom as _, SystemRandom};
use zeroize::Zeroizing;

use crate::store::Stored;

/// Most bytes of a file that are read.
const MOST_BYTES: u64 = 4_096;

/// Where they are.
#[derive(Debug, Clone)]
pub(crate) struct SecretFiles {
    pub(crate) pepper: PathBuf,
    pub(crate) seal_key: PathBuf,
}

/// Which of them a store cannot do without.
#[derive(Debug, Default)]
pub(crate) struct Needs {
    peppers: BTreeSet<u32>,
    seal_keys: BTreeSet<u32>,
}

impl Needs {
    pub(crate) fn of(stored: &Stored) -> Self {
        let live = stored
            .keys
            .records
            .iter()
            .filter(|key| key.revoked.is_none());
        let endpoints = stored
            .models
            .iter()
            .flat_map(|model| model.spec.endpoints());
        let sealed = endpoints.filter_map(|endpoint| endpoint.credential.as_ref());
        Self {
            peppers: live.map(|key| key.pepper).collect(),
            seal_keys: sealed.map(|sealed| sealed.key_id()).collect(),
        }
    }
}

/// Why they cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum SecretsError {
    /// The file cannot be used.
    #[error("{what} {} cannot be used: {error}; check its owner and mode, or name another file with {flag}", .path.display())]
    Io {
        /// Pepper or seal key.
        what: &'static str,
        /// The flag that names it.
        flag: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// It is not such a file.
    #[error("{what} {} must have 1 to {most} lines of 64 hex digits, such as `openssl rand -hex 32` prints", .path.display(), most = limits::SECRETS)]
    Malformed {
        /// Pepper or seal key.
        what: &'static str,
        /// The file.
        path: PathBuf,
    },
    /// It is not there, and it is needed.
    #[error("{what} {} is missing, and {needed} in the store cannot be used without it; put it back, or name it with {flag}. If it is lost for good, put a new one there (`openssl rand -hex 32`): then these must be made anew", .path.display())]
    Lost {
        /// Pepper or seal key.
        what: &'static str,
        /// The flag that names it.
        flag: &'static str,
        /// The file.
        path: PathBuf,
        /// What was made with it.
        needed: &'static str,
    },
}

/// One of the two kinds.
struct Kind {
    what: &'static str,
    flag: &'static str,
    needed: &'static str,
}

const PEPPER: Kind = Kind {
    what: "pepper file",
    flag: "--pepper-file",
    needed: "clients' keys",
};
const SEAL_KEY: Kind = Kind {
    what: "seal key file",
    flag: "--seal-key-file",
    needed: "credentials of endpoints",
};

/// The secrets, in use.
#[derive(Debug)]
pub(crate) struct Vault {
    verify: Vec<VerifyKey>,
    seal: Vec<SealKey>,
    /// What tells one secret from another, and nothing of it.
    checks: [Vec<String>; 2],
    random: SystemRandom,
}

/// What becomes of a file that is missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Missing {
    /// It is made, unless something needs what it had.
    Made,
    /// It is refused: others have it, and one made here would be another.
    Refused,
}

/// A key that was just made.
pub(crate) struct NewKey {
    pub(crate) id: key::KeyId,
    pub(crate) text: Zeroizing<String>,
    pub(crate) hash: [u8; 32],
    pub(crate) pepper: u32,
}

impl Vault {
    /// Reads the files, and makes those that are missing and not needed.
    pub(crate) fn open(
        files: &SecretFiles,
        needs: &Needs,
        missing: Missing,
    ) -> Result<Self, SecretsError> {
        let random = SystemRandom::new();
        let peppers = read_or_make(&files.pepper, &PEPPER, &needs.peppers, &random, missing)?;
        let seal = read_or_make(
            &files.seal_key,
            &SEAL_KEY,
            &needs.seal_keys,
            &random,
            missing,
        )?;
        Ok(Self {
            checks: [&peppers, &seal].map(|roots| roots.iter().map(check_value).collect()),
            verify: peppers.iter().map(VerifyKey::of_pepper).collect(),
            seal: seal.into_iter().map(SealKey::new).collect(),
            random,
        })
    }

    /// A value for each pepper, which others compare with theirs.
    pub(crate) fn pepper_checks(&self) -> &[String] {
        let [peppers, _] = &self.checks;
        peppers
    }

    /// The same of the seal keys.
    pub(crate) fn seal_checks(&self) -> &[String] {
        let [_, seal] = &self.checks;
        seal
    }

    /// One that nobody needs later: for tests and simulations.
    #[cfg(any(test, feature = "simulation"))]
    pub(crate) fn throwaway() -> Self {
        Self {
            verify: vec![VerifyKey::of_pepper(&Root::new([1; 32]))],
            seal: vec![SealKey::new(Root::new([2; 32]))],
            checks: Default::default(),
            random: SystemRandom::new(),
        }
    }

    /// All that hashes are checked with.
    pub(crate) fn verify_keys(&self) -> &[VerifyKey] {
        &self.verify
    }

    /// All that credentials are opened with.
    pub(crate) fn seal_keys(&self) -> &[SealKey] {
        &self.seal
    }

    /// Of these the ones that are not there any more.
    pub(crate) fn lost_seal_keys(&self, needed: &BTreeSet<u32>) -> Vec<u32> {
        let there = |id: &u32| self.seal.iter().any(|key| key.id() == *id);
        needed.iter().filter(|id| !there(id)).copied().collect()
    }

    /// Makes a key.
    pub(crate) fn new_key(&self) -> Option<NewKey> {
        let verify = self.verify.first()?;
        let (mut id, mut secret) = ([0; 9], Zeroizing::new([0; 32]));
        self.random.fill(&mut id).ok()?;
        self.random.fill(&mut *secret).ok()?;
        let id = key::KeyId::of_random(&id);
        let text = Zeroizing::new(key::compose(&id, &secret));
        Some(NewKey {
            id,
            hash: verify.hash(&text),
            text,
            pepper: verify.id(),
        })
    }

    /// Puts what is sealed in the place of each token of a model, which is what goes on from here. What a client says to be
    /// sealed already is not believed.
    pub(crate) fn seal_tokens(&self, model: &mut wire::Model) -> Result<(), Violations> {
        let mut violations = Violations::new();
        let id = ModelId::new(&model.id).ok();
        for (n, endpoint) in model.endpoints.iter_mut().enumerate() {
            let url = endpoint.credential.as_ref().and(endpoint_url(endpoint));
            let Some(credential) = &mut endpoint.credential else {
                continue;
            };
            credential.sealed.clear();
            let token = Zeroizing::new(std::mem::take(&mut credential.bearer_token));
            let field = format!("model.endpoints[{n}].credential.bearer_token");
            match (token.is_empty(), credential.clear) {
                (true, _) => continue,
                (false, true) => {
                    violations.add(field, "contradicts `clear`; leave one of them out")
                }
                (false, false) => {
                    violations.check(&field, check_token(&token));
                    let name = match endpoint.id.is_empty() {
                        true => format!("e{}", n + 1),
                        false => endpoint.id.clone(),
                    };
                    let place = EndpointId::new(name).ok().zip(url);
                    // What is wrong with a name or url is told of when the model is read.
                    let sealed = id.as_ref().zip(place).and_then(|(model, (endpoint, url))| {
                        let place = Place {
                            model,
                            endpoint: &endpoint,
                            url: &url,
                        };
                        self.seal.first()?.seal(&token, place)
                    });
                    match sealed {
                        Some(sealed) => {
                            credential.fingerprint = sealed.fingerprint().to_owned();
                            credential.sealed = sealed.as_bytes().to_vec().into();
                        }
                        None => endpoint.credential = None,
                    }
                }
            }
        }
        violations.finish(Some(()))
    }
}

fn read_or_make(
    path: &Path,
    kind: &Kind,
    needed: &BTreeSet<u32>,
    random: &SystemRandom,
    missing: Missing,
) -> Result<Vec<Root>, SecretsError> {
    let io_error = |error| SecretsError::Io {
        what: kind.what,
        flag: kind.flag,
        path: path.to_owned(),
        error,
    };
    let text = match read(path) {
        Ok(text) => text,
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(io_error(error)),
        Err(error) if missing == Missing::Refused => return Err(io_error(error)),
        Err(_) if needed.is_empty() => {
            return make(path, random).map_err(io_error).map(|root| vec![root]);
        }
        Err(_) => {
            return Err(SecretsError::Lost {
                what: kind.what,
                flag: kind.flag,
                path: path.to_owned(),
                needed: kind.needed,
            });
        }
    };
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let roots: Option<Vec<Root>> = lines.map(Root::from_hex).collect();
    let roots = roots.filter(|roots| (1..=limits::SECRETS).contains(&roots.len()));
    let roots = roots.ok_or_else(|| SecretsError::Malformed {
        what: kind.what,
        path: path.to_owned(),
    })?;
    let known: BTreeMap<u32, ()> = roots.iter().map(|root| (root.id(), ())).collect();
    for id in needed.iter().filter(|id| !known.contains_key(id)) {
        tracing::error!(
            file = %path.display(), secret = format!("{id:08x}"),
            "{} were made with a secret that is not in the file: they are of no use", kind.needed
        );
    }
    Ok(roots)
}

/// Half of a keyed hash: the secret is random, so nothing of it can be told from this.
fn check_value(root: &Root) -> String {
    let mut text = root.derive("forebay replicas 1").to_hex().to_string();
    text.truncate(32);
    text
}

fn read(path: &Path) -> io::Result<Zeroizing<String>> {
    let file = File::open(path)?;
    let mode = file.metadata()?.permissions().mode();
    if mode & 0o077 != 0 {
        let (file, mode) = (path.display(), format!("{:o}", mode & 0o777));
        tracing::warn!(%file, mode, "others than its owner may read a secret; set its mode to 600");
    }
    let mut text = Zeroizing::new(String::new());
    file.take(MOST_BYTES).read_to_string(&mut text)?;
    Ok(text)
}

/// Beside its place, synced, renamed: it is there whole or not at all.
fn make(path: &Path, random: &SystemRandom) -> io::Result<Root> {
    let mut bytes = [0; 32];
    random
        .fill(&mut bytes)
        .map_err(|_| io::Error::other("the system gives no random bytes"))?;
    let root = Root::new(bytes);
    let mut fresh = path.to_owned().into_os_string();
    fresh.push(".writing");
    let fresh = PathBuf::from(fresh);
    match fs::remove_file(&fresh) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut options = OpenOptions::new();
    let mut file = options
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&fresh)?;
    file.write_all(root.to_hex().as_bytes())?;
    file.write_all(b"\n")?;
    file.sync_all()?;
    fs::rename(&fresh, path)?;
    let folder = path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty());
    File::open(folder.unwrap_or(Path::new(".")))?.sync_all()?;
    Ok(root)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(dir: &Path) -> SecretFiles {
        SecretFiles {
            pepper: dir.join("pepper"),
            seal_key: dir.join("seal.key"),
        }
    }

    #[test]
    fn they_are_made_once_and_kept_for_their_owner() {
        let dir = tempfile::tempdir().unwrap();
        let files = files(dir.path());
        let first = Vault::open(&files, &Needs::default(), Missing::Made).unwrap();
        let mode = fs::metadata(&files.pepper).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let again = Vault::open(&files, &Needs::default(), Missing::Made).unwrap();
        assert_eq!(first.verify[0].id(), again.verify[0].id());
        assert_ne!(first.verify[0].id(), first.seal[0].id());
        let new = again.new_key().unwrap();
        assert!(first.verify[0].is_hash(&new.text, &new.hash));
        assert!(key::is_well_formed(&new.text));
    }

    #[test]
    fn what_is_needed_is_not_made_anew() {
        let dir = tempfile::tempdir().unwrap();
        let needs = Needs {
            peppers: BTreeSet::from([7]),
            ..Needs::default()
        };
        let error = Vault::open(&files(dir.path()), &needs, Missing::Made)
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("--pepper-file") && error.contains("missing"),
            "{error}"
        );
        assert!(!dir.path().join("pepper").exists());
    }

    #[test]
    fn the_first_line_is_used_and_the_others_are_known() {
        let dir = tempfile::tempdir().unwrap();
        let files = files(dir.path());
        let old = Vault::open(&files, &Needs::default(), Missing::Made).unwrap();
        let text = fs::read_to_string(&files.pepper).unwrap();
        fs::write(&files.pepper, format!("{}\n{text}", "ab".repeat(32))).unwrap();
        let new = Vault::open(&files, &Needs::default(), Missing::Made).unwrap();
        assert_eq!(new.verify.len(), 2);
        assert_eq!(new.verify[1].id(), old.verify[0].id());
        assert_eq!(new.new_key().unwrap().pepper, new.verify[0].id());
        for bad in ["", "xyz", &"a".repeat(63)] {
            fs::write(&files.pepper, bad).unwrap();
            let error = Vault::open(&files, &Needs::default(), Missing::Made).unwrap_err();
            assert!(matches!(error, SecretsError::Malformed { .. }), "{bad:?}");
        }
    }

    #[test]
    fn tokens_are_sealed_and_what_claims_to_be_is_not_believed() {
        let vault = Vault::throwaway();
        let credential = |token: &str, sealed: &'static [u8]| wire::Credential {
            bearer_token: token.to_owned(),
            sealed: sealed.into(),
            ..wire::Credential::default()
        };
        let endpoint = |url: &str, credential| wire::Endpoint {
            url: url.to_owned(),
            credential: Some(credential),
            ..wire::Endpoint::default()
        };
        let mut model = wire::Model {
            id: "m".into(),
            endpoints: vec![
                endpoint("http://a", credential("canary", b"")),
                endpoint("http://b", credential("", b"forged")),
            ],
            ..wire::Model::default()
        };
        vault.seal_tokens(&mut model).unwrap();
        let of = |n: usize| model.endpoints[n].credential.clone().unwrap();
        assert!(of(0).bearer_token.is_empty() && !of(0).sealed.is_empty());
        assert!(of(1).sealed.is_empty());
        model.endpoints[0].credential = Some(credential("two words", b""));
        let error = vault.seal_tokens(&mut model).unwrap_err().to_string();
        assert!(
            error.contains("endpoints[0].credential.bearer_token"),
            "{error}"
        );
        assert!(!error.contains("words"), "{error}");
    }
}
