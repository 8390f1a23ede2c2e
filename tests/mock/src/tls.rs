//! The mock's side of TLS.

use std::{io, sync::Arc};

use rustls::{
    RootCertStore, ServerConfig,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    server::WebPkiClientVerifier,
};
use tokio_rustls::TlsAcceptor;

use crate::config::{MockTls, Speaks};

pub(crate) fn acceptor(tls: &MockTls, speaks: Speaks) -> io::Result<TlsAcceptor> {
    build(tls, speaks).map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))
}

type AnyError = Box<dyn std::error::Error + Send + Sync>;

fn build(tls: &MockTls, speaks: Speaks) -> Result<TlsAcceptor, AnyError> {
    let provider = Arc::new(ring::default_provider());
    let builder = ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()?;
    let builder = match &tls.clients {
        Some(roots) => {
            let mut store = RootCertStore::empty();
            for root in CertificateDer::pem_slice_iter(roots.as_bytes()) {
                store.add(root?)?;
            }
            let verifier = WebPkiClientVerifier::builder_with_provider(store.into(), provider);
            builder.with_client_cert_verifier(verifier.build()?)
        }
        None => builder.with_no_client_auth(),
    };
    let chain: Result<Vec<_>, _> =
        CertificateDer::pem_slice_iter(tls.certificate.as_bytes()).collect();
    let key = PrivateKeyDer::from_pem_slice(tls.key.as_bytes())?;
    let mut config = builder.with_single_cert(chain?, key)?;
    let (http1, http2) = (b"http/1.1".to_vec(), b"h2".to_vec());
    config.alpn_protocols = match speaks {
        Speaks::Http1 => vec![http1],
        Speaks::Http2 => vec![http2],
        Speaks::Both => vec![http2, http1],
    };
    Ok(TlsAcceptor::from(Arc::new(config)))
}
