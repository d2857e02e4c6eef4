//! From PEM to certificates and keys.

use tokio_rustls::rustls::pki_types::pem::{PemObject, SectionKind};
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

use super::{Pem, TlsError};
use crate::kafka::client::Secret;

/// Begins a key that a password protects (RFC 7468).
const ENCRYPTED: &str = "-----BEGIN ENCRYPTED PRIVATE KEY-----";

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
    let origin = &pem.origin;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem.text).collect();
    match found {
        Ok(found) if !found.is_empty() => Ok(found),
        Ok(_) => Err(TlsError::new(format!(
            "{origin} has no certificate: PEM with -----BEGIN CERTIFICATE----- is expected"
        ))),
        Err(error) => Err(TlsError::new(format!("{origin} is not PEM as it should be: {error}"))),
    }
}

/// The first private key in a text: PKCS#8, PKCS#1 or SEC1, or PKCS#8 under `password`.
pub(super) fn private_key(pem: &Pem, password: Option<&Secret>) -> Result<PrivateKeyDer<'static>, TlsError> {
    let origin = &pem.origin;
    let text = String::from_utf8_lossy(&pem.text);
    if let Some(start) = text.find(ENCRYPTED) {
        return decrypted(text.get(start..).unwrap_or_default(), origin, password);
    }
    if text.contains("Proc-Type: 4,ENCRYPTED") {
        return Err(TlsError::new(format!(
            "{origin} is protected in the old format of OpenSSL, which is not supported; convert it with: openssl pkcs8 -topk8"
        )));
    }
    let mut has_certificate = false;
    for section in <(SectionKind, Vec<u8>)>::pem_slice_iter(&pem.text) {
        let (kind, der) = section
            .map_err(|error| TlsError::new(format!("{origin} is not PEM as it should be: {error}")))?;
        match kind {
            SectionKind::PrivateKey => return Ok(PrivateKeyDer::Pkcs8(der.into())),
            SectionKind::RsaPrivateKey => return Ok(PrivateKeyDer::Pkcs1(der.into())),
            SectionKind::EcPrivateKey => return Ok(PrivateKeyDer::Sec1(der.into())),
            SectionKind::Certificate => has_certificate = true,
            _ => {}
        }
    }
    let but = if has_certificate { ", only a certificate" } else { "" };
    Err(TlsError::new(format!(
        "{origin} has no private key{but}: PEM with -----BEGIN PRIVATE KEY----- is expected"
    )))
}

fn decrypted(
    text: &str,
    origin: &str,
    password: Option<&Secret>,
) -> Result<PrivateKeyDer<'static>, TlsError> {
    let Some(password) = password else {
        return Err(TlsError::new(format!("{origin} is protected by a password: set ssl.password")));
    };
    let end = text.find("-----END ENCRYPTED PRIVATE KEY-----");
    let block = end.and_then(|end| text.get(..end)).unwrap_or_default();
    let block = format!("{}-----END ENCRYPTED PRIVATE KEY-----\n", block.replace('\r', ""));
    let malformed =
        |reason: String| TlsError::new(format!("{origin} is not a protected key as it should be: {reason}"));
    let (_, document) =
        pkcs8::SecretDocument::from_pem(&block).map_err(|error| malformed(error.to_string()))?;
    let protected = pkcs8::EncryptedPrivateKeyInfo::try_from(document.as_bytes())
        .map_err(|error| malformed(error.to_string()))?;
    let opened = protected.decrypt(password.reveal()).map_err(|_| {
        TlsError::new(format!(
            "{origin} cannot be opened with ssl.password: the password is wrong, or the key is protected in another way \
             than PBES2 with AES"
        ))
    })?;
    Ok(PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(opened.as_bytes().to_vec())))
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
