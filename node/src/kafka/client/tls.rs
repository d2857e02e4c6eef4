//! TLS towards Kafka: from PEM texts to a connector, and the handshake.
//!
//! Everything that can be wrong with certificates and keys of ours is found by [`Tls::new`], before anything
//! is connected. What is wrong with the broker's, or with ours in the broker's eyes, is told in words that
//! name the fix: see [`words`].
//!
//! Invariants:
//! * With [`TlsSettings::verify`] a connection is usable only after the broker's certificate led to a trusted
//!   one, within its dates, and named the host (unless [`ServerName::Unchecked`] says otherwise).
//! * The broker always proves that it holds the key of the certificate that it shows, whether that one is
//!   checked or not.
//! * Nothing below TLS 1.2 is spoken.

mod material;
pub(super) mod messages;
mod verifier;

use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::crypto::{CryptoProvider, ring};
use tokio_rustls::rustls::pki_types;
use tokio_rustls::rustls::{ClientConfig, SupportedProtocolVersion, version};

use super::{Address, Error, Secret};
use crate::tls::{find_suite, suite_names};

/// A PEM text and where it came from, for messages.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Pem {
    /// Such as `cacertfile /etc/ca.pem`.
    pub origin: Box<str>,
    /// The text. Not necessarily UTF-8: comments between the blocks are anybody's.
    pub text: Box<[u8]>,
}

impl fmt::Debug for Pem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // It may hold a key.
        f.debug_struct("Pem").field("origin", &self.origin).finish_non_exhaustive()
    }
}

/// The name that the broker's certificate has to have, and that is sent as server name indication (RFC 6066).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum ServerName {
    /// The host of each connection.
    Host,
    /// None is sent, and the certificate may name anybody.
    Unchecked,
    /// This one.
    Fixed(Box<str>),
}

/// Settings of TLS.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct TlsSettings {
    /// Whether the broker's certificate is checked.
    pub verify: bool,
    /// Certificates of authorities; `None` takes those that the system trusts.
    pub authorities: Option<Pem>,
    /// Our certificate (with its chain) and its key.
    pub identity: Option<(Pem, Pem)>,
    /// Password of the key.
    pub key_password: Option<Secret>,
    /// Most intermediate certificates between the broker's and an authority's.
    pub depth: u8,
    /// Whether TLS 1.3 may be spoken.
    pub tls13: bool,
    /// Whether TLS 1.2 may be spoken.
    pub tls12: bool,
    /// Names of cipher suites, OpenSSL's or IANA's; those that are not known count for nothing. Empty: all.
    pub ciphers: Vec<Box<str>>,
    /// The broker's name.
    pub server_name: ServerName,
}

impl Default for TlsSettings {
    fn default() -> Self {
        Self {
            verify: true,
            authorities: None,
            identity: None,
            key_password: None,
            depth: 10,
            tls13: true,
            tls12: true,
            ciphers: Vec::new(),
            server_name: ServerName::Host,
        }
    }
}

/// Fault of [`TlsSettings`] and its remedy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct TlsError(pub(super) Box<str>);

impl TlsError {
    fn new(text: impl Into<Box<str>>) -> Self {
        Self(text.into())
    }
}

/// TLS ready for use. Two of them are equal where their settings are; clones share sessions that can be
/// resumed.
#[derive(Clone)]
pub struct Tls {
    settings: Arc<TlsSettings>,
    config: Arc<ClientConfig>,
}

impl PartialEq for Tls {
    fn eq(&self, other: &Self) -> bool {
        self.settings == other.settings
    }
}

impl Eq for Tls {}

impl Hash for Tls {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.settings.hash(state);
    }
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.settings.fmt(f)
    }
}

/// The version of TLS that a cipher suite belongs to; `None` where the suite is not supported. The name is
/// OpenSSL's or IANA's.
pub fn cipher_version(name: &str) -> Option<CipherVersion> {
    let suite = find_suite(name)?;
    Some(if suite.tls13().is_some() { CipherVersion::Tls13 } else { CipherVersion::Tls12 })
}

/// Which version of TLS a cipher suite is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CipherVersion {
    /// TLS 1.2.
    Tls12,
    /// TLS 1.3.
    Tls13,
}

/// The supported cipher suites by the names that OpenSSL gives them.
pub fn cipher_names() -> impl Iterator<Item = &'static str> {
    suite_names()
}

impl Tls {
    /// Reads certificates and keys and makes what connections are opened with. May read the system's
    /// authorities from disk.
    pub fn new(settings: TlsSettings) -> Result<Self, TlsError> {
        let mut provider: CryptoProvider = ring::default_provider();
        if !settings.ciphers.is_empty() {
            provider.cipher_suites = settings.ciphers.iter().filter_map(|name| find_suite(name)).collect();
        }
        let versions: Vec<&SupportedProtocolVersion> =
            [(settings.tls13, &version::TLS13), (settings.tls12, &version::TLS12)]
                .into_iter()
                .filter_map(|(wanted, version)| wanted.then_some(version))
                .collect();
        let provider = Arc::new(provider);
        let verifier = verifier::BrokerVerifier::new(&settings, provider.signature_verification_algorithms)?;
        let builder = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&versions)
            .map_err(|_| TlsError::new("no cipher suite in `ciphers` fits the TLS versions in `versions`"))?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier));
        let mut config = match &settings.identity {
            None => builder.with_no_client_auth(),
            Some((certificate, key)) => {
                let chain = material::certificates(certificate)?;
                let private = material::private_key(key, settings.key_password.as_ref())?;
                builder.with_client_auth_cert(chain, private).map_err(|error| {
                    TlsError::new(messages::own_identity(&error, &certificate.origin, &key.origin))
                })?
            }
        };
        config.enable_sni = settings.server_name != ServerName::Unchecked;
        Ok(Self { settings: Arc::new(settings), config: Arc::new(config) })
    }

    /// Shakes hands over `stream`. The caller bounds the time.
    pub(super) async fn connect(
        &self,
        stream: TcpStream,
        address: &Address,
    ) -> Result<TlsStream<TcpStream>, Error> {
        let failed = |reason: String| Error::Tls { address: address.clone(), reason: reason.into() };
        let name = match &self.settings.server_name {
            ServerName::Fixed(name) => name,
            ServerName::Host | ServerName::Unchecked => &address.host,
        };
        let server_name = match pki_types::ServerName::try_from(name.trim_end_matches('.')) {
            Ok(name) => name.to_owned(),
            // It is not looked at.
            Err(_) if self.settings.server_name == ServerName::Unchecked => {
                pki_types::ServerName::IpAddress(std::net::Ipv4Addr::UNSPECIFIED.into())
            }
            Err(_) => {
                return Err(failed(format!(
                    "{name:?} cannot stand in a certificate; set ssl.server_name_indication to the name that does"
                )));
            }
        };
        TlsConnector::from(self.config.clone())
            .connect(server_name, stream)
            .await
            .map_err(|error| failed(messages::handshake(&error, self.settings.identity.is_some())))
    }

    /// Whether we have a certificate to show.
    pub(super) fn has_identity(&self) -> bool {
        self.settings.identity.is_some()
    }
}

#[cfg(test)]
mod tests;
