//! Errors of TLS, in words that name the fix.

use std::io;

use tokio_rustls::rustls::pki_types::{CertificateDer, UnixTime};
use tokio_rustls::rustls::{AlertDescription, CertificateError, Error, InconsistentKeys};
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;
use x509_parser::time::ASN1Time;

use super::verifier::Unacceptable;

/// At most this many of a certificate's names are listed.
const NAMES_SHOWN: usize = 10;

/// The cause that rustls put into an error of the stream.
fn cause(error: &io::Error) -> Option<&Error> {
    error.get_ref()?.downcast_ref()
}

/// Why a handshake failed. `has_identity`: whether we had a certificate to show.
pub(super) fn handshake(error: &io::Error, has_identity: bool) -> String {
    match cause(error) {
        Some(cause) => of_rustls(cause, has_identity),
        None if is_end(error) => {
            "the other side closed the connection instead of answering in TLS; does this port speak TLS? If \
             not, set ssl.enable = false or take the port that does"
                .to_owned()
        }
        None => error.to_string(),
    }
}

/// Why an established connection broke, where TLS knows. In TLS 1.3 a broker looks at our certificate after
/// our side of the handshake is over: its refusal comes with the first read.
pub(in crate::kafka::client) fn broken(error: &io::Error, has_identity: bool) -> Option<String> {
    cause(error).map(|cause| of_rustls(cause, has_identity))
}

fn is_end(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
    matches!(error.kind(), UnexpectedEof | ConnectionReset | ConnectionAborted | BrokenPipe)
}

fn of_rustls(error: &Error, has_identity: bool) -> String {
    match error {
        Error::InvalidCertificate(CertificateError::Other(other)) => {
            match other.0.downcast_ref::<Unacceptable>() {
                Some(Unacceptable(reason)) => reason.clone(),
                None => format!("the broker's certificate is not good: {other}"),
            }
        }
        Error::InvalidCertificate(other) => format!("the broker's certificate is not good: {other}"),
        Error::AlertReceived(alert) => of_alert(*alert, has_identity),
        Error::InvalidMessage(_) | Error::PeerSentOversizedRecord => {
            "the answer is not TLS; does this port speak TLS? If not, set ssl.enable = false or take the port that does".to_owned()
        }
        Error::PeerIncompatible(what) => {
            format!("no common version or cipher suite ({what:?}); see ssl.versions and ssl.ciphers, and ssl.enabled.protocols of the broker")
        }
        other => other.to_string(),
    }
}

fn of_alert(alert: AlertDescription, has_identity: bool) -> String {
    use AlertDescription as A;
    let name = alert.as_str().map_or_else(|| format!("{alert:?}"), ToOwned::to_owned);
    match alert {
        A::CertificateRequired | A::NoCertificate => {
            format!("the broker wants a certificate of ours ({name}): set ssl.certfile and ssl.keyfile")
        }
        A::BadCertificate
        | A::UnsupportedCertificate
        | A::CertificateRevoked
        | A::CertificateExpired
        | A::CertificateUnknown
        | A::UnknownCA
        | A::AccessDenied
        | A::DecryptError => {
            if has_identity {
                format!(
                    "the broker refused our certificate ({name}): its truststore has to know who signed ssl.certfile, which \
                     has to be valid now and for client authentication"
                )
            } else {
                format!("the broker wants a certificate of ours ({name}): set ssl.certfile and ssl.keyfile")
            }
        }
        A::HandshakeFailure | A::ProtocolVersion | A::InsufficientSecurity => {
            let identity = if has_identity {
                ""
            } else {
                "; or it wants a certificate of ours (ssl.certfile, ssl.keyfile)"
            };
            format!(
                "no common version or cipher suite (the broker says {name}); see ssl.versions and ssl.ciphers, and \
                 ssl.enabled.protocols of the broker{identity}"
            )
        }
        A::UnrecognisedName => {
            format!(
                "the broker does not know the name that we call it by ({name}): see ssl.server_name_indication"
            )
        }
        _ => format!("the broker ended TLS with {name}"),
    }
}

/// Why a certificate of a broker is not taken. `origin` is where our authorities come from.
pub(super) fn certificate(error: &Error, shown: &CertificateDer<'_>, origin: &str) -> String {
    let Error::InvalidCertificate(problem) = error else { return error.to_string() };
    let parsed = X509Certificate::from_der(shown).ok().map(|(_, parsed)| parsed);
    let subject = parsed.as_ref().map_or_else(String::new, |parsed| parsed.subject().to_string());
    match problem {
        CertificateError::ExpiredContext { not_after, .. } => match date(*not_after) {
            Some(date) => expired(&date),
            None => "the broker's certificate, or one of its chain, has expired: renew it".to_owned(),
        },
        CertificateError::Expired => {
            "the broker's certificate, or one of its chain, has expired: renew it".to_owned()
        }
        CertificateError::NotValidYetContext { not_before, .. } => match date(*not_before) {
            Some(date) => not_valid_yet(&date),
            None => "the broker's certificate is not valid yet: is the clock right?".to_owned(),
        },
        CertificateError::UnknownIssuer => {
            let issuer = parsed.as_ref().map_or_else(String::new, |parsed| parsed.issuer().to_string());
            if issuer == subject {
                format!(
                    "the broker's certificate ({subject}) is self-signed and not in {origin}: set ssl.cacertfile to the \
                     certificate itself or, better, have an authority sign it"
                )
            } else {
                format!(
                    "the broker's certificate ({subject}) was signed by {issuer}, and nothing leads from there to an \
                     authority in {origin}: set ssl.cacertfile to that authority, and have the broker send the certificates \
                     in between"
                )
            }
        }
        CertificateError::BadSignature => format!(
            "the broker's certificate ({subject}) carries the name of an authority in {origin}, but not its signature: \
             was the authority made anew? Then set ssl.cacertfile to the new one"
        ),
        CertificateError::NotValidForNameContext { expected, .. } => {
            let expected = expected.to_str();
            let names = parsed.as_ref().map(names).unwrap_or_default();
            if names.is_empty() {
                format!(
                    "the broker's certificate ({subject}) names no host in its subjectAltName, where {expected} should be"
                )
            } else {
                let list = names.iter().take(NAMES_SHOWN).map(String::as_str).collect::<Vec<_>>().join(", ");
                let more = if names.len() > NAMES_SHOWN { ", ..." } else { "" };
                format!(
                    "the broker's certificate is for {list}{more}, not for {expected}: call it by one of these names (in \
                     bootstrap_hosts and in the broker's advertised.listeners), or set ssl.server_name_indication"
                )
            }
        }
        CertificateError::InvalidPurposeContext { .. } | CertificateError::InvalidPurpose => {
            format!(
                "the broker's certificate ({subject}) is not for servers: it lacks the extended key usage serverAuth"
            )
        }
        other if other.to_string().contains("CaUsedAsEndEntity") => format!(
            "the broker's certificate ({subject}) is that of an authority: put it into ssl.cacertfile itself, or give the \
             broker one that is no authority's"
        ),
        other => format!("the broker's certificate ({subject}) is not good: {other}"),
    }
}

/// The names of hosts in a certificate.
fn names(parsed: &X509Certificate<'_>) -> Vec<String> {
    use x509_parser::extensions::GeneralName;
    let Ok(Some(extension)) = parsed.subject_alternative_name() else { return Vec::new() };
    let name = |name: &GeneralName<'_>| match name {
        GeneralName::DNSName(name) => Some((*name).to_owned()),
        GeneralName::IPAddress(bytes) => {
            if let Ok(v4) = <[u8; 4]>::try_from(*bytes) {
                return Some(std::net::Ipv4Addr::from(v4).to_string());
            }
            <[u8; 16]>::try_from(*bytes).ok().map(|v6| std::net::Ipv6Addr::from(v6).to_string())
        }
        _ => None,
    };
    extension.value.general_names.iter().filter_map(name).collect()
}

pub(super) fn expired(at: &ASN1Time) -> String {
    format!("the broker's certificate, or one of its chain, expired at {at}: renew it")
}

pub(super) fn not_valid_yet(from: &ASN1Time) -> String {
    format!("the broker's certificate is valid from {from} on only: is the clock of this machine right?")
}

fn date(time: UnixTime) -> Option<ASN1Time> {
    ASN1Time::from_timestamp(i64::try_from(time.as_secs()).ok()?).ok()
}

/// Fault of the client's own certificate and key.
pub(super) fn own_identity(error: &Error, certificate: &str, key: &str) -> String {
    match error {
        Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => {
            format!("the key in {key} is not that of the certificate in {certificate}")
        }
        Error::InvalidCertificate(problem) => format!("{certificate} has no good certificate: {problem}"),
        other => format!("{key} has no key that can be used: {other}"),
    }
}
