//! The server side of TLS: one certificate for all brokers, and authorities of clients where clients need
//! one.

use std::fmt;
use std::sync::Arc;

use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::CertificateDer;
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{RootCertStore, ServerConfig, version};

use crate::tls;

/// Certificates as PEM texts.
#[derive(Clone, Default)]
pub struct Tls {
    /// Certificate chain of the brokers.
    pub certificate: String,
    /// Its key.
    pub key: String,
    /// With it a client needs a certificate that one of these signed.
    pub client_authorities: Option<String>,
    /// Speak TLS 1.2 and not 1.3.
    pub only_tls12: bool,
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let wants = self.client_authorities.is_some();
        f.debug_struct("Tls").field("wants_client_certificate", &wants).finish_non_exhaustive()
    }
}

impl Tls {
    /// Acceptor of connections.
    pub(crate) fn acceptor(&self) -> Result<TlsAcceptor, String> {
        let provider = Arc::new(ring::default_provider());
        let versions =
            if self.only_tls12 { vec![&version::TLS12] } else { vec![&version::TLS12, &version::TLS13] };
        let builder = ServerConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&versions)
            .map_err(|error| error.to_string())?;
        let builder = match &self.client_authorities {
            None => builder.with_no_client_auth(),
            Some(pem) => {
                let mut roots = RootCertStore::empty();
                for certificate in certificates(pem)? {
                    roots.add(certificate).map_err(|error| error.to_string())?;
                }
                let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
                builder.with_client_cert_verifier(verifier.map_err(|error| error.to_string())?)
            }
        };
        let key = tls::private_key(self.key.as_bytes(), None).map_err(|error| format!("the key: {error}"))?;
        let config = builder
            .with_single_cert(certificates(&self.certificate)?, key)
            .map_err(|error| error.to_string())?;
        Ok(TlsAcceptor::from(Arc::new(config)))
    }
}

fn certificates(pem: &str) -> Result<Vec<CertificateDer<'static>>, String> {
    tls::certificates(pem.as_bytes()).map_err(|error| format!("a text of certificates: {error}"))
}
