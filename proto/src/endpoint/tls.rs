//! How an endpoint proves who it is, and how a worker does: checked as far as can be without reading a
//! file. Private keys are named here, never held.

use std::sync::Arc;

use rustls_pki_types::{CertificateDer, pem::PemObject as _};

use crate::{limits, violation::InvalidValue};

/// What is asked of an endpoint's certificate, and what is shown to it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct EndpointTls {
    /// Whom the server's certificate must be signed by.
    pub roots: TlsRoots,
    /// The name asked for and verified, if it is not the url's host.
    pub server_name: Option<ServerName>,
    /// What the worker shows of itself.
    pub identity: Option<ClientIdentity>,
}

/// Whom the server's certificate must be signed by.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum TlsRoots {
    /// One of the roots of the worker's system.
    #[default]
    System,
    /// One of these certificates, in PEM.
    Pem(Arc<str>),
    /// Nobody: any certificate will do.
    Unverified,
}

impl TlsRoots {
    /// Reads a bundle of certificates.
    pub fn pem(text: &str) -> Result<Self, InvalidValue> {
        let way_out = "write the PEM certificates that sign the server's";
        if text.len() > limits::CA_PEM_BYTES {
            return Err(InvalidValue::new(format!(
                "{} bytes long, at most {} are allowed; leave only the certificates that sign the server's",
                text.len(),
                limits::CA_PEM_BYTES
            )));
        }
        let mut certificates = 0;
        for certificate in CertificateDer::pem_slice_iter(text.as_bytes()) {
            certificates += 1;
            let certificate = certificate.map_err(|error| {
                InvalidValue::new(format!(
                    "certificate {certificates} is not PEM ({error}); {way_out}"
                ))
            })?;
            // The same reading as the worker's, so that what is accepted here can be used there.
            webpki::anchor_from_trusted_cert(&certificate).map_err(|error| {
                InvalidValue::new(format!(
                    "certificate {certificates} cannot be used as a root ({error}); {way_out}"
                ))
            })?;
        }
        match certificates {
            0 => Err(InvalidValue::new(format!(
                "holds no certificate; {way_out}"
            ))),
            _ => Ok(Self::Pem(text.into())),
        }
    }
}

/// A DNS name or address that stands in certificates.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerName(Arc<str>);

impl ServerName {
    /// Checks the form.
    pub fn new(text: &str) -> Result<Self, InvalidValue> {
        match rustls_pki_types::ServerName::try_from(text) {
            Ok(_) => Ok(Self(text.into())),
            Err(_) => Err(InvalidValue::new(format!(
                "{text:?} is no name that can stand in a certificate; write a DNS name or an address"
            ))),
        }
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Where a worker finds its certificate chain and key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientIdentity {
    certificate: Arc<str>,
    key: Arc<str>,
}

impl ClientIdentity {
    /// Both, of absolute paths.
    #[must_use]
    pub fn new(certificate: FilePath, key: FilePath) -> Self {
        Self {
            certificate: certificate.0,
            key: key.0,
        }
    }

    /// File of the certificate chain.
    #[must_use]
    pub fn certificate(&self) -> &str {
        &self.certificate
    }

    /// File of the private key.
    #[must_use]
    pub fn key(&self) -> &str {
        &self.key
    }
}

/// The absolute path of a file on a worker's machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FilePath(Arc<str>);

impl FilePath {
    /// Checks the form.
    pub fn new(text: &str) -> Result<Self, InvalidValue> {
        if !text.starts_with('/') || text.contains('\0') {
            return Err(InvalidValue::new(format!(
                "{text:?} is not an absolute path; write one such as `/etc/forebay/client.pem`"
            )));
        }
        if text.len() > limits::FILE_PATH_BYTES {
            return Err(InvalidValue::new(format!(
                "{} bytes long, at most {} are allowed",
                text.len(),
                limits::FILE_PATH_BYTES
            )));
        }
        Ok(Self(text.into()))
    }

    /// The path.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CA: &str = include_str!("test-ca.pem");

    #[test]
    fn roots_are_certificates_that_can_be_used() {
        assert_eq!(TlsRoots::pem(CA).unwrap(), TlsRoots::Pem(CA.into()));
        let cut = CA.replace("MII", "MIJ");
        for (bad, why) in [
            ("", "no certificate"),
            ("-----BEGIN CERTIFICATE-----\nabc", "not PEM"),
            (cut.as_str(), "cannot be used as a root"),
            (&"x".repeat(70_000), "at most 65536"),
        ] {
            let error = TlsRoots::pem(bad).unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
    }

    #[test]
    fn names_and_paths_are_checked() {
        assert!(ServerName::new("vllm.internal").is_ok() && ServerName::new("10.0.0.5").is_ok());
        assert!(ServerName::new("a b").is_err() && ServerName::new("").is_err());
        assert!(FilePath::new("/etc/a.pem").is_ok());
        assert!(FilePath::new("a.pem").is_err() && FilePath::new("/a\0").is_err());
        assert!(FilePath::new(&format!("/{}", "a".repeat(4_096))).is_err());
    }
}
