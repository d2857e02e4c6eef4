//! Whether the certificate that a broker shows is good enough.

use std::fmt;
use std::sync::Arc;

use tokio_rustls::rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use tokio_rustls::rustls::client::{verify_server_cert_signed_by_trust_anchor, verify_server_name};
use tokio_rustls::rustls::crypto::{
    WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature,
};
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName as CheckedName, UnixTime};
use tokio_rustls::rustls::server::ParsedCertificate;
use tokio_rustls::rustls::{
    CertificateError, DigitallySignedStruct, Error, OtherError, RootCertStore, SignatureScheme,
};
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;
use x509_parser::time::ASN1Time;

use super::{ServerName, TlsError, TlsSettings, material, messages};

/// Why a broker's certificate was not taken, in words for people.
#[derive(Debug)]
pub(super) struct Unacceptable(pub(super) String);

impl fmt::Display for Unacceptable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Unacceptable {}

/// The check of [`TlsSettings`].
#[derive(Debug)]
pub(super) struct BrokerVerifier {
    algorithms: WebPkiSupportedAlgorithms,
    /// `None`: any certificate is taken.
    trusted: Option<Trusted>,
}

#[derive(Debug)]
struct Trusted {
    authorities: RootCertStore,
    /// The same certificates as they were written: a broker's own may be among them.
    listed: Vec<CertificateDer<'static>>,
    origin: Box<str>,
    depth: usize,
    check_name: bool,
}

impl BrokerVerifier {
    pub(super) fn new(
        settings: &TlsSettings,
        algorithms: WebPkiSupportedAlgorithms,
    ) -> Result<Self, TlsError> {
        if !settings.verify {
            // A file that is given is read all the same: a wrong one is found now, not when checking is
            // turned on.
            if let Some(authorities) = &settings.authorities {
                material::certificates(authorities)?;
            }
            return Ok(Self { algorithms, trusted: None });
        }
        let from_system;
        let pem = if let Some(pem) = &settings.authorities {
            pem
        } else {
            from_system = material::system_authorities()?;
            &from_system
        };
        let listed = material::certificates(pem)?;
        let mut authorities = RootCertStore::empty();
        let (_, unreadable) = authorities.add_parsable_certificates(listed.iter().cloned());
        if unreadable > 0 && settings.authorities.is_some() {
            let problem = format!("{} has {unreadable} certificates that cannot be read", pem.origin);
            return Err(TlsError::new(problem));
        }
        let trusted = Trusted {
            authorities,
            listed: if settings.authorities.is_some() { listed } else { Vec::new() },
            origin: pem.origin.clone(),
            depth: settings.depth.into(),
            check_name: settings.server_name != ServerName::Unchecked,
        };
        Ok(Self { algorithms, trusted: Some(trusted) })
    }
}

impl Trusted {
    fn check(
        &self,
        shown: &CertificateDer<'_>,
        between: &[CertificateDer<'_>],
        name: &CheckedName<'_>,
        now: UnixTime,
        algorithms: &WebPkiSupportedAlgorithms,
    ) -> Result<(), String> {
        let parsed = ParsedCertificate::try_from(shown)
            .map_err(|error| messages::certificate(&error, shown, &self.origin))?;
        if self.listed.iter().any(|listed| listed == shown) {
            // Trusted by itself, as a self-signed one is that an operator copied from the broker.
            within_dates(shown, now)?;
        } else {
            self.lead_to_authority(&parsed, shown, between, now, algorithms)?;
        }
        if self.check_name {
            verify_server_name(&parsed, name)
                .map_err(|error| messages::certificate(&error, shown, &self.origin))?;
        }
        Ok(())
    }

    fn lead_to_authority(
        &self,
        parsed: &ParsedCertificate<'_>,
        shown: &CertificateDer<'_>,
        between: &[CertificateDer<'_>],
        now: UnixTime,
        algorithms: &WebPkiSupportedAlgorithms,
    ) -> Result<(), String> {
        let verify = |between: &[CertificateDer<'_>]| {
            verify_server_cert_signed_by_trust_anchor(parsed, &self.authorities, between, now, algorithms.all)
        };
        // A path through the first n certificates has at most n between its ends.
        let allowed = between.get(..self.depth).unwrap_or(between);
        let Err(error) = verify(allowed) else { return Ok(()) };
        if allowed.len() < between.len() && verify(between).is_ok() {
            return Err(format!(
                "the broker's chain has {} certificates besides its own, more than ssl.depth = {}",
                between.len(),
                self.depth
            ));
        }
        Err(messages::certificate(&error, shown, &self.origin))
    }
}

fn within_dates(shown: &CertificateDer<'_>, now: UnixTime) -> Result<(), String> {
    let (_, parsed) =
        X509Certificate::from_der(shown).map_err(|_| "the broker's certificate cannot be read".to_owned())?;
    let validity = parsed.validity();
    let now = ASN1Time::from_timestamp(now.as_secs() as i64)
        .map_err(|_| "the clock of this machine is wrong".to_owned())?;
    if now < validity.not_before {
        return Err(messages::not_valid_yet(&validity.not_before));
    }
    if now > validity.not_after {
        return Err(messages::expired(&validity.not_after));
    }
    Ok(())
}

impl ServerCertVerifier for BrokerVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &CheckedName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if let Some(trusted) = &self.trusted {
            trusted.check(end_entity, intermediates, server_name, now, &self.algorithms).map_err(
                |reason| {
                    Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(Unacceptable(
                        reason,
                    )))))
                },
            )?;
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
