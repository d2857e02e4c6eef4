//! Parts that both sides of TLS share, listeners and clients of Kafka: the names of cipher suites, and PEM.

use tokio_rustls::rustls::SupportedCipherSuite;
use tokio_rustls::rustls::crypto::ring::cipher_suite as suite;
use tokio_rustls::rustls::pki_types::pem::{PemObject, SectionKind};
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

use crate::secret::Secret;

/// Every suite that is spoken, by the name that OpenSSL gives it, which is how `ciphers` are mostly written.
const SUITES: &[(&str, SupportedCipherSuite)] = &[
    ("TLS_AES_256_GCM_SHA384", suite::TLS13_AES_256_GCM_SHA384),
    ("TLS_AES_128_GCM_SHA256", suite::TLS13_AES_128_GCM_SHA256),
    ("TLS_CHACHA20_POLY1305_SHA256", suite::TLS13_CHACHA20_POLY1305_SHA256),
    ("ECDHE-ECDSA-AES256-GCM-SHA384", suite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384),
    ("ECDHE-ECDSA-AES128-GCM-SHA256", suite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256),
    ("ECDHE-ECDSA-CHACHA20-POLY1305", suite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256),
    ("ECDHE-RSA-AES256-GCM-SHA384", suite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384),
    ("ECDHE-RSA-AES128-GCM-SHA256", suite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256),
    ("ECDHE-RSA-CHACHA20-POLY1305", suite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256),
];

/// The suite of this name, which is OpenSSL's or IANA's.
pub(crate) fn find_suite(name: &str) -> Option<SupportedCipherSuite> {
    let iana = |suite: &SupportedCipherSuite| {
        suite.suite().as_str().map(|known| known.replacen("TLS13_", "TLS_", 1))
    };
    SUITES
        .iter()
        .find(|(openssl, suite)| {
            openssl.eq_ignore_ascii_case(name)
                || iana(suite).is_some_and(|iana| iana.eq_ignore_ascii_case(name))
        })
        .map(|(_, suite)| *suite)
}

/// The names of all of them, OpenSSL's.
pub(crate) fn suite_names() -> impl Iterator<Item = &'static str> {
    SUITES.iter().map(|(name, _)| *name)
}

/// Fault of a PEM text. The words hold nothing of a key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum PemError {
    #[error("it is not PEM as it should be: {0}")]
    Malformed(String),
    #[error("there is no certificate in it")]
    NoCertificate,
    #[error("there is no private key in it")]
    NoKey {
        /// Only a certificate is.
        has_certificate: bool,
    },
    /// PKCS#8 under a password that was not given.
    #[error("the key is protected by a password")]
    Protected,
    /// In the old format of OpenSSL.
    #[error("the key is protected in the old format of OpenSSL")]
    OldProtection,
    #[error("the password is wrong, or the key is protected in another way than PBES2 with AES")]
    WrongPassword,
}

fn malformed(error: impl std::fmt::Display) -> PemError {
    PemError::Malformed(error.to_string())
}

/// The certificates in a text; at least one.
pub(crate) fn certificates(text: &[u8]) -> Result<Vec<CertificateDer<'static>>, PemError> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(text).collect();
    let found = found.map_err(malformed)?;
    if found.is_empty() { Err(PemError::NoCertificate) } else { Ok(found) }
}

/// Begins a key that a password protects (RFC 7468).
const PROTECTED: &str = "-----BEGIN ENCRYPTED PRIVATE KEY-----";

/// Ends it.
const PROTECTED_END: &str = "-----END ENCRYPTED PRIVATE KEY-----";

/// The first private key in a text: PKCS#8, PKCS#1 or SEC1, or PKCS#8 under `password`.
pub(crate) fn private_key(
    text: &[u8],
    password: Option<&Secret>,
) -> Result<PrivateKeyDer<'static>, PemError> {
    let words = String::from_utf8_lossy(text);
    if let Some(start) = words.find(PROTECTED) {
        let password = password.ok_or(PemError::Protected)?;
        return unlocked(words.get(start..).unwrap_or_default(), password);
    }
    if words.contains("Proc-Type: 4,ENCRYPTED") {
        return Err(PemError::OldProtection);
    }
    let mut has_certificate = false;
    for section in <(SectionKind, Vec<u8>)>::pem_slice_iter(text) {
        let (kind, der) = section.map_err(malformed)?;
        match kind {
            SectionKind::PrivateKey => return Ok(PrivateKeyDer::Pkcs8(der.into())),
            SectionKind::RsaPrivateKey => return Ok(PrivateKeyDer::Pkcs1(der.into())),
            SectionKind::EcPrivateKey => return Ok(PrivateKeyDer::Sec1(der.into())),
            SectionKind::Certificate => has_certificate = true,
            _ => {}
        }
    }
    Err(PemError::NoKey { has_certificate })
}

fn unlocked(text: &str, password: &Secret) -> Result<PrivateKeyDer<'static>, PemError> {
    let end = text.find(PROTECTED_END);
    let block = end.and_then(|end| text.get(..end)).unwrap_or_default();
    let block = format!("{}{PROTECTED_END}\n", block.replace('\r', ""));
    let (_, document) = pkcs8::SecretDocument::from_pem(&block).map_err(malformed)?;
    let protected = pkcs8::EncryptedPrivateKeyInfo::try_from(document.as_bytes()).map_err(malformed)?;
    let opened = protected.decrypt(password.reveal()).map_err(|_| PemError::WrongPassword)?;
    Ok(PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(opened.as_bytes().to_vec())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suites_are_known_by_both_names() {
        for name in suite_names() {
            let suite = find_suite(name).unwrap();
            let iana = suite.suite().as_str().unwrap().replacen("TLS13_", "TLS_", 1);
            assert_eq!(find_suite(&iana.to_lowercase()).unwrap().suite(), suite.suite(), "{name} {iana}");
        }
        assert!(find_suite("RC4-MD5").is_none());
    }

    #[test]
    fn a_text_says_what_is_missing_in_it() {
        let pair = rcgen::KeyPair::generate().unwrap();
        let key = pair.serialize_pem();
        assert!(private_key(key.as_bytes(), None).is_ok());
        assert_eq!(certificates(key.as_bytes()).unwrap_err(), PemError::NoCertificate);
        let certificate = rcgen::CertificateParams::default().self_signed(&pair).unwrap().pem();
        assert_eq!(certificates(format!("{certificate}{certificate}").as_bytes()).unwrap().len(), 2);
        let without = private_key(certificate.as_bytes(), None).unwrap_err();
        assert_eq!(without, PemError::NoKey { has_certificate: true });
        assert_eq!(private_key(b"", None).unwrap_err(), PemError::NoKey { has_certificate: false });
        assert_eq!(private_key(PROTECTED.as_bytes(), None).unwrap_err(), PemError::Protected);
        let cut = key.get(..key.len() / 2).unwrap();
        assert!(matches!(private_key(cut.as_bytes(), None), Err(PemError::Malformed(_))));
    }
}
