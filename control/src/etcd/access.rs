//! How one gets in: certificates, name and password, each from a file. Nothing of them is ever logged.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use tonic::transport::{Certificate, ClientTlsConfig, Identity};
use zeroize::Zeroizing;

use super::EtcdLocation;

/// Most bytes of a file that are read.
const MOST_BYTES: u64 = 1 << 20;

/// What is shown to an etcd, and what it is known by.
#[derive(Debug, Clone, Default)]
pub struct EtcdAccess {
    /// Who signs the servers' certificates; the system's roots, if absent.
    pub ca_file: Option<PathBuf>,
    /// The certificate that is shown, and its key.
    pub cert_file: Option<PathBuf>,
    /// Its key.
    pub key_file: Option<PathBuf>,
    /// The user's name.
    pub user: Option<String>,
    /// Where the user's password is.
    pub password_file: Option<PathBuf>,
    /// Plaintext is allowed to other machines.
    pub insecure: bool,
}

/// Why etcd cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum EtcdError {
    /// It must not be spoken to in clear.
    #[error(
        "--store {0} is on other machines and neither encrypted nor authenticated; write etcds:// and give \
         --etcd-ca-file if need be, or say --insecure if that is what you want"
    )]
    Exposed(String),
    /// A file of TLS for an etcd without.
    #[error("{0} is given, but --store begins with etcd:// (plaintext); write etcds://")]
    NotTls(&'static str),
    /// One of a pair is missing.
    #[error("{0} and {1} are given together or not at all")]
    HalfGiven(&'static str, &'static str),
    /// A file cannot be read.
    #[error("{flag} {}: {error}", .path.display())]
    File {
        /// The flag.
        flag: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// What was given makes no sense to the transport.
    #[error("{member}: {error}; check --etcd-ca-file, --etcd-cert-file and --etcd-key-file")]
    Transport {
        /// The member.
        member: String,
        /// Why.
        error: tonic::transport::Error,
    },
    /// Nobody answers.
    #[error(
        "etcd at {at} does not answer: {error}; check that it runs, its addresses in --store, and the way there"
    )]
    Away {
        /// Where.
        at: String,
        /// What the last one said.
        error: String,
    },
    /// It answers, and refuses.
    #[error("etcd at {at} refuses: {error}")]
    Refused {
        /// Where.
        at: String,
        /// Its words.
        error: String,
    },
    /// A newer version wrote it.
    #[error(
        "the registry in {at} has format {found}, this version knows {known}; it was left untouched; use the version that \
         wrote it"
    )]
    NewerFormat {
        /// Where.
        at: String,
        /// Its format.
        found: u32,
        /// Ours.
        known: u32,
    },
    /// A migration into it was not finished.
    #[error("a migration into {0} was not finished; run `forebay control migrate` again")]
    Unfinished(String),
    /// What is there makes no sense.
    #[error(
        "the registry in {at} is damaged: {what}; it was left as it is; restore a snapshot of etcd, or start on another \
         prefix"
    )]
    Damaged {
        /// Where.
        at: String,
        /// What is wrong.
        what: String,
    },
    /// The files of its own secrets must be named.
    #[error(
        "with etcd {0} must name a file that every replica has with the same content, 64 hex digits such as \
         `openssl rand -hex 32` prints; it is not made by itself"
    )]
    NoSecret(&'static str),
    /// This replica has other secrets than those before it.
    #[error(
        "{flag} {}: {why}; every replica needs the same file. To change a secret: first put the new one as a further \
         line into the file of every replica and restart each, then put it first and do so again",
        .path.display()
    )]
    OtherSecret {
        /// The flag.
        flag: &'static str,
        /// The file.
        path: PathBuf,
        /// What differs.
        why: &'static str,
    },
}

/// Name and password.
pub(super) struct Credentials {
    pub(super) name: String,
    pub(super) password: Zeroizing<String>,
}

impl EtcdAccess {
    /// Refuses what contradicts itself.
    pub(super) fn check(&self, at: &EtcdLocation) -> Result<(), EtcdError> {
        if !at.is_tls() {
            let files = [
                ("--etcd-ca-file", &self.ca_file),
                ("--etcd-cert-file", &self.cert_file),
                ("--etcd-key-file", &self.key_file),
            ];
            if let Some((flag, _)) = files.iter().find(|(_, file)| file.is_some()) {
                return Err(EtcdError::NotTls(flag));
            }
            if !at.is_loopback() && !self.insecure {
                return Err(EtcdError::Exposed(at.to_string()));
            }
        }
        if self.cert_file.is_some() != self.key_file.is_some() {
            return Err(EtcdError::HalfGiven("--etcd-cert-file", "--etcd-key-file"));
        }
        if self.user.is_some() != self.password_file.is_some() {
            return Err(EtcdError::HalfGiven("--etcd-user", "--etcd-password-file"));
        }
        Ok(())
    }

    /// TLS as these files have it.
    pub(super) fn tls(&self) -> Result<ClientTlsConfig, EtcdError> {
        let mut tls = ClientTlsConfig::new();
        tls = match &self.ca_file {
            Some(path) => tls.ca_certificate(Certificate::from_pem(
                read("--etcd-ca-file", path)?.as_bytes(),
            )),
            None => tls.with_native_roots(),
        };
        if let (Some(cert), Some(key)) = (&self.cert_file, &self.key_file) {
            let cert = read("--etcd-cert-file", cert)?;
            let key = read("--etcd-key-file", key)?;
            tls = tls.identity(Identity::from_pem(cert.as_bytes(), key.as_bytes()));
        }
        Ok(tls)
    }

    pub(super) fn credentials(&self) -> Result<Option<Credentials>, EtcdError> {
        let (Some(name), Some(path)) = (&self.user, &self.password_file) else {
            return Ok(None);
        };
        let text = read("--etcd-password-file", path)?;
        let password = Zeroizing::new(text.trim_end_matches(['\r', '\n']).to_owned());
        let name = name.clone();
        Ok(Some(Credentials { name, password }))
    }
}

fn read(flag: &'static str, path: &Path) -> Result<Zeroizing<String>, EtcdError> {
    let failed = |error| EtcdError::File {
        flag,
        path: path.to_owned(),
        error,
    };
    if fs::metadata(path).map_err(failed)?.len() > MOST_BYTES {
        return Err(failed(io::Error::other("is larger than any such file")));
    }
    fs::read_to_string(path).map(Zeroizing::new).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_contradicts_itself_is_refused_with_the_flag() {
        let check = |text: &str, access: EtcdAccess| {
            let at: EtcdLocation = text.parse().unwrap();
            access.check(&at).map_err(|error| error.to_string())
        };
        let access = EtcdAccess::default;
        assert_eq!(check("etcd://127.0.0.1:1", access()), Ok(()));
        assert_eq!(check("etcds://far:1", access()), Ok(()));
        let cases = [
            (check("etcd://far:1", access()), "--insecure"),
            (
                check(
                    "etcd://127.0.0.1:1",
                    EtcdAccess {
                        ca_file: Some("x".into()),
                        ..access()
                    },
                ),
                "--etcd-ca-file",
            ),
            (
                check(
                    "etcds://far:1",
                    EtcdAccess {
                        cert_file: Some("x".into()),
                        ..access()
                    },
                ),
                "--etcd-key-file",
            ),
            (
                check(
                    "etcds://far:1",
                    EtcdAccess {
                        user: Some("x".into()),
                        ..access()
                    },
                ),
                "--etcd-password-file",
            ),
        ];
        for (result, flag) in cases {
            let error = result.unwrap_err();
            assert!(error.contains(flag), "{error}");
        }
        let insecure = EtcdAccess {
            insecure: true,
            ..access()
        };
        assert_eq!(check("etcd://far:1", insecure), Ok(()));
    }

    #[test]
    fn a_password_is_read_without_its_line_end_and_never_shown() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("password");
        fs::write(&file, "se cret\n").unwrap();
        let access = EtcdAccess {
            user: Some("ada".into()),
            password_file: Some(file),
            ..EtcdAccess::default()
        };
        assert!(!format!("{access:?}").contains("se cret"));
        let found = access.credentials().unwrap().unwrap();
        assert_eq!(
            (found.name.as_str(), found.password.as_str()),
            ("ada", "se cret")
        );
    }
}
