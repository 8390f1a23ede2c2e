//! TLS to an endpoint: whose certificate is believed, and what the worker shows of itself.
//!
//! A configuration is built once and kept with its session tickets; files are looked at before each
//! handshake, and read again when they have changed.

use std::{
    io,
    path::Path,
    sync::{Arc, OnceLock},
    time::SystemTime,
};

use forebay_proto::{
    Endpoint, Protocol,
    endpoint::{Address, ClientIdentity, TlsRoots},
};
use rustls::{
    ClientConfig, RootCertStore,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature},
    pki_types::{
        CertificateDer, PrivateKeyDer, ServerName, UnixTime,
        pem::{self, PemObject as _},
    },
};
use tokio::{sync::Mutex, task::spawn_blocking};
use tokio_rustls::TlsConnector;

/// One endpoint's TLS.
#[derive(Debug)]
pub(super) struct Tls {
    endpoint: Arc<Endpoint>,
    built: Mutex<Option<Built>>,
}

#[derive(Debug)]
struct Built {
    read: Vec<Stamp>,
    config: Arc<ClientConfig>,
}

/// By which it is seen that a file has changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    modified: SystemTime,
    length: u64,
}

/// Why there can be no handshake.
#[derive(Debug, thiserror::Error)]
pub(super) enum TlsError {
    #[error("{0:?} is no name that can stand in a certificate")]
    Name(String),
    #[error("{0} cannot be read: {1}")]
    File(String, io::Error),
    #[error("{0} is not PEM of the right kind: {1}")]
    Pem(String, pem::Error),
    #[error("the system has no root certificates; set `tls.ca_pem` of the endpoint ({0})")]
    NoRoots(String),
    #[error("{0}")]
    Rustls(#[from] rustls::Error),
    #[error("a task ended: {0}")]
    Task(#[from] tokio::task::JoinError),
}

impl Tls {
    /// For an endpoint with an `https` url; `None` for others.
    pub(super) fn of(endpoint: &Arc<Endpoint>) -> Option<Arc<Self>> {
        let tls = || Self {
            endpoint: endpoint.clone(),
            built: Mutex::new(None),
        };
        endpoint.url.is_tls().then(|| Arc::new(tls()))
    }

    /// The name that is asked for and verified.
    pub(super) fn server_name(&self) -> Result<ServerName<'static>, TlsError> {
        let name = match (&self.endpoint.tls.server_name, self.endpoint.url.address()) {
            (Some(name), _) => name.as_str(),
            (None, Address::Host(host, _)) => host,
            (None, Address::Unix(_) | Address::Listed(_)) => "localhost",
        };
        let known = ServerName::try_from(name.to_owned());
        known.map_err(|_| TlsError::Name(name.to_owned()))
    }

    /// What makes a handshake, with what the files say now.
    pub(super) async fn connector(&self) -> Result<TlsConnector, TlsError> {
        let mut built = self.built.lock().await;
        let read = self.stamps().await?;
        if let Some(known) = built.as_ref().filter(|known| known.read == read) {
            return Ok(known.config.clone().into());
        }
        let endpoint = self.endpoint.clone();
        let config = Arc::new(spawn_blocking(move || build(&endpoint)).await??);
        *built = Some(Built {
            read,
            config: config.clone(),
        });
        Ok(config.into())
    }

    async fn stamps(&self) -> Result<Vec<Stamp>, TlsError> {
        let Some(identity) = &self.endpoint.tls.identity else {
            return Ok(Vec::new());
        };
        let mut stamps = Vec::new();
        for file in [identity.certificate(), identity.key()] {
            let failed = |error| TlsError::File(file.to_owned(), error);
            let about = tokio::fs::metadata(file).await.map_err(failed)?;
            stamps.push(Stamp {
                modified: about.modified().map_err(failed)?,
                length: about.len(),
            });
        }
        Ok(stamps)
    }
}

fn build(endpoint: &Endpoint) -> Result<ClientConfig, TlsError> {
    let provider = Arc::new(ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()?;
    let builder = match &endpoint.tls.roots {
        TlsRoots::System => builder.with_root_certificates(system_roots()?),
        TlsRoots::Pem(text) => builder.with_root_certificates(roots_of(text)?),
        TlsRoots::Unverified => builder
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(AnyCertificate(provider))),
    };
    let mut config = match &endpoint.tls.identity {
        Some(identity) => {
            let (chain, key) = read(identity)?;
            builder.with_client_auth_cert(chain, key)?
        }
        None => builder.with_no_client_auth(),
    };
    let (http1, http2) = (b"http/1.1".to_vec(), b"h2".to_vec());
    config.alpn_protocols = match endpoint.protocol {
        Protocol::Http1 => vec![http1],
        Protocol::Http2 => vec![http2],
        Protocol::Auto => vec![http2, http1],
    };
    Ok(config)
}

/// The roots of the system, read once: they change with the system's packages.
fn system_roots() -> Result<Arc<RootCertStore>, TlsError> {
    static ROOTS: OnceLock<Arc<RootCertStore>> = OnceLock::new();
    if let Some(roots) = ROOTS.get() {
        return Ok(roots.clone());
    }
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(found.certs);
    if roots.is_empty() {
        let errors: Vec<String> = found.errors.iter().map(ToString::to_string).collect();
        return Err(TlsError::NoRoots(match errors.is_empty() {
            true => "none were found".to_owned(),
            false => errors.join("; "),
        }));
    }
    Ok(ROOTS.get_or_init(|| Arc::new(roots)).clone())
}

fn roots_of(text: &str) -> Result<Arc<RootCertStore>, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(text.as_bytes()) {
        let certificate =
            certificate.map_err(|error| TlsError::Pem("`ca_pem`".to_owned(), error))?;
        roots.add(certificate)?;
    }
    Ok(Arc::new(roots))
}

fn read(
    identity: &ClientIdentity,
) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), TlsError> {
    let bytes = |file: &str| {
        std::fs::read(Path::new(file)).map_err(|error| TlsError::File(file.to_owned(), error))
    };
    let chain = bytes(identity.certificate())?;
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&chain).collect();
    let chain = chain.map_err(|error| TlsError::Pem(identity.certificate().to_owned(), error))?;
    let key = PrivateKeyDer::from_pem_slice(&bytes(identity.key())?);
    let key = key.map_err(|error| TlsError::Pem(identity.key().to_owned(), error))?;
    Ok((chain, key))
}

/// Believes any certificate. That the server has its key is still checked.
#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let known = &self.0.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signature, known)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let known = &self.0.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, known)
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
