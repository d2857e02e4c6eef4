//! From PEM to certificates and keys.

use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

use super::{Pem, TlsError};
use crate::{
    secret::Secret,
    tls::{self, PemError},
};

/// Where systems keep the certificates of the authorities that they trust, all in one file.
const SYSTEM_AUTHORITIES: &[&str] = &[
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// The certificates in a text; at least one.
pub(super) fn certificates(pem: &Pem) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    tls::certificates(&pem.text).map_err(|error| words_for(&error, &pem.origin))
}

/// The first private key in a text, under `password` or not.
pub(super) fn private_key(pem: &Pem, password: Option<&Secret>) -> Result<PrivateKeyDer<'static>, TlsError> {
    tls::private_key(&pem.text, password).map_err(|error| words_for(&error, &pem.origin))
}

fn words_for(error: &PemError, origin: &str) -> TlsError {
    TlsError::new(match error {
        PemError::Malformed(reason) => format!("{origin} is not PEM as it should be: {reason}"),
        PemError::NoCertificate => {
            format!("{origin} has no certificate: PEM with -----BEGIN CERTIFICATE----- is expected")
        }
        PemError::NoKey { has_certificate } => {
            let but = if *has_certificate { ", only a certificate" } else { "" };
            format!("{origin} has no private key{but}: PEM with -----BEGIN PRIVATE KEY----- is expected")
        }
        PemError::Protected => format!("{origin} is protected by a password: set ssl.password"),
        PemError::OldProtection => format!(
            "{origin} is protected in the old format of OpenSSL, which is not supported; convert it with: openssl pkcs8 -topk8"
        ),
        PemError::WrongPassword => format!(
            "{origin} cannot be opened with ssl.password: the password is wrong, or the key is protected in another way \
             than PBES2 with AES"
        ),
    })
}

/// The authorities that the system trusts: the file in `SSL_CERT_FILE`, or where distributions keep it.
pub(super) fn system_authorities() -> Result<Pem, TlsError> {
    let named = std::env::var("SSL_CERT_FILE").ok().filter(|path| !path.is_empty());
    let candidates = named.as_deref().map_or(SYSTEM_AUTHORITIES.to_vec(), |path| vec![path]);
    for path in &candidates {
        if let Ok(text) = std::fs::read(path) {
            let origin = format!("the system's list of authorities {path}");
            return Ok(Pem { origin: origin.into(), text: text.into() });
        }
    }
    Err(TlsError::new(format!(
        "this system has no list of authorities (looked for {}); set ssl.cacertfile",
        candidates.join(", ")
    )))
}
