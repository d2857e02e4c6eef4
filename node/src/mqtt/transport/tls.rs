//! From certificate files to what rustls serves with them.
//!
//! Everything that can be wrong with the files is found here, at `causeway check`, at the start and at each
//! reload: it names the file, what is wrong with it, and what to do. Handshakes read nothing from disk.

use std::{fmt, path::Path, sync::Arc};

use hashbrown::HashMap;
use tokio_rustls::rustls::{
    self, RootCertStore, ServerConfig, SupportedProtocolVersion,
    crypto::{CryptoProvider, ring},
    pki_types::{CertificateDer, PrivateKeyDer},
    server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier},
    sign::CertifiedKey,
    version,
};
use x509_parser::{
    certificate::X509Certificate,
    extensions::{GeneralName, ParsedExtension},
    prelude::FromDer,
};

use super::{
    super::options::{CertificateFiles, ClientCertificates, Options, TlsOptions},
    ClientCertificate,
};
use crate::byte_order_mark;
use crate::tls::{self, PemError, find_suite, suite_names};

/// Fault in the TLS options of a listener.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("listener {listener}: {file}: {problem}")]
pub struct TlsError {
    /// The listener, such as `ssl:default`.
    pub listener: Box<str>,
    /// The file, or the option.
    pub file: Box<str>,
    /// Fault and remedy.
    pub problem: Box<str>,
}

/// A problem with one file or option.
pub(super) struct Problem {
    pub(super) file: Box<str>,
    pub(super) problem: Box<str>,
}

impl Problem {
    fn new(file: impl fmt::Display, problem: impl fmt::Display) -> Self {
        Self { file: file.to_string().into(), problem: problem.to_string().into() }
    }

    pub(super) fn of(self, listener: &str) -> TlsError {
        TlsError { listener: listener.into(), file: self.file, problem: self.problem }
    }
}

/// Looks at the certificate files of every listener that uses TLS. Answers what is wrong, and what works but
/// hardly as meant.
pub fn check(options: &Options) -> (Vec<TlsError>, Vec<TlsError>) {
    let (mut errors, mut warnings) = (Vec::new(), Vec::new());
    for listener in &options.listeners {
        let Some(tls) = &listener.tls else { continue };
        let of = |problem: Problem| problem.of(&listener.id());
        match load(tls) {
            Ok(loaded) => warnings.extend(loaded.warnings.into_iter().map(of)),
            Err(problem) => errors.push(of(problem)),
        }
    }
    (errors, warnings)
}

/// Configuration of a listener's handshakes.
pub(super) struct Loaded {
    pub(super) config: Arc<ServerConfig>,
    pub(super) warnings: Vec<Problem>,
}

/// Reads the files and makes a configuration of them, with new keys for session tickets: what was resumed
/// with older certificates and authorities is proved anew.
pub(super) fn load(options: &TlsOptions) -> Result<Loaded, Problem> {
    let mut warnings = Vec::new();
    let provider = Arc::new(provider(options, &mut warnings)?);
    let mut resolver = Resolver {
        default: certified(&options.certificate, &provider, &mut warnings)?,
        names: HashMap::new(),
    };
    let default = resolver.default.clone();
    // A client that names a host gets the certificate that covers it, the first one listed first.
    resolver.add(&default, &options.certificate.certificate)?;
    for files in &options.further {
        let certified = certified(files, &provider, &mut warnings)?;
        resolver.add(&certified, &files.certificate)?;
    }
    let versions: Vec<&'static SupportedProtocolVersion> =
        [options.tls13.then_some(&version::TLS13), options.tls12.then_some(&version::TLS12)]
            .into_iter()
            .flatten()
            .collect();
    let builder = ServerConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&versions)
        .map_err(|error| Problem::new("versions and ciphers", format!("do not go together: {error}")))?;
    let builder = match &options.clients {
        ClientCertificates::NotAsked => builder.with_no_client_auth(),
        ClientCertificates::Optional(file) | ClientCertificates::Required(file) => {
            let roots = Arc::new(authorities(file, &mut warnings)?);
            let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider);
            let verifier = if matches!(options.clients, ClientCertificates::Optional(_)) {
                verifier.allow_unauthenticated()
            } else {
                verifier
            };
            let verifier = verifier.build().map_err(|error| Problem::new(file.display(), error))?;
            builder.with_client_cert_verifier(verifier)
        }
    };
    let mut config = builder.with_cert_resolver(Arc::new(resolver));
    // Clients resume by tickets; nothing is kept for them here.
    config.ticketer = ring::Ticketer::new()
        .map_err(|error| Problem::new("session tickets", format!("no keys for them: {error}")))?;
    config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
    config.send_tls13_tickets = 1;
    Ok(Loaded { config: Arc::new(config), warnings })
}

fn provider(options: &TlsOptions, warnings: &mut Vec<Problem>) -> Result<CryptoProvider, Problem> {
    let mut provider = ring::default_provider();
    if options.ciphers.is_empty() {
        return Ok(provider);
    }
    let mut suites = Vec::new();
    for name in &options.ciphers {
        match find_suite(name) {
            Some(suite) => suites.push(suite),
            None => {
                warnings.push(Problem::new("ciphers", format!("{name} is not supported, it is left out")));
            }
        }
    }
    if suites.is_empty() {
        let known: Vec<&str> = suite_names().collect();
        return Err(Problem::new(
            "ciphers",
            format!("none of them is supported; allowed: {}", known.join(", ")),
        ));
    }
    provider.cipher_suites = suites;
    Ok(provider)
}

/// A certificate chain with its key.
fn certified(
    files: &CertificateFiles,
    provider: &CryptoProvider,
    warnings: &mut Vec<Problem>,
) -> Result<Arc<CertifiedKey>, Problem> {
    let CertificateFiles { certificate, key } = files;
    let chain = certificates(certificate)?;
    for (at, der) in chain.iter().enumerate() {
        validity(certificate, at, der, warnings)?;
    }
    let key_der = private_key(key)?;
    match CertifiedKey::from_der(chain, key_der, provider) {
        Ok(certified) => Ok(Arc::new(certified)),
        Err(rustls::Error::InconsistentKeys(_)) => Err(Problem::new(
            key.display(),
            format!(
                "this key does not belong to the first certificate in {}; give the two that were made together",
                certificate.display()
            ),
        )),
        Err(error) => Err(Problem::new(
            key.display(),
            format!(
                "this key cannot be used ({error}); RSA of 2048 to 8192 bits, EC P-256, P-384 and Ed25519 can"
            ),
        )),
    }
}

fn read(path: &Path) -> Result<Vec<u8>, Problem> {
    std::fs::read(path).map(byte_order_mark::skip_bytes).map_err(|error| {
        let words = match error.kind() {
            std::io::ErrorKind::NotFound => "there is no such file".to_owned(),
            std::io::ErrorKind::PermissionDenied => {
                "this user may not read it; give it the right to, for instance with chgrp and chmod g+r"
                    .to_owned()
            }
            _ => format!("cannot be read: {error}"),
        };
        Problem::new(path.display(), words)
    })
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, Problem> {
    tls::certificates(&read(path)?).map_err(|error| words_for(&error, path))
}

fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, Problem> {
    tls::private_key(&read(path)?, None).map_err(|error| words_for(&error, path))
}

fn words_for(error: &PemError, path: &Path) -> Problem {
    let words = match error {
        PemError::Malformed(reason) => format!("not a PEM file: {reason}"),
        PemError::NoCertificate => {
            "no certificate in it; a PEM file with -----BEGIN CERTIFICATE----- is expected".to_owned()
        }
        PemError::NoKey { .. } => {
            "no private key in it; a PEM file with -----BEGIN PRIVATE KEY-----, RSA PRIVATE KEY or EC PRIVATE KEY is expected".to_owned()
        }
        PemError::Protected | PemError::OldProtection | PemError::WrongPassword => {
            "the key is encrypted, which is not supported; write it without a password (openssl pkey -in FILE -out PLAIN) and \
             protect the file by its permissions".to_owned()
        }
    };
    Problem::new(path.display(), words)
}

fn authorities(path: &Path, warnings: &mut Vec<Problem>) -> Result<RootCertStore, Problem> {
    let mut roots = RootCertStore::empty();
    for (at, der) in certificates(path)?.into_iter().enumerate() {
        validity(path, at, &der, warnings)?;
        roots.add(der).map_err(|error| {
            Problem::new(path.display(), format!("certificate {} is no authority: {error}", at + 1))
        })?;
    }
    Ok(roots)
}

/// Warns of a certificate that is expired or not valid yet.
fn validity(path: &Path, at: usize, der: &[u8], warnings: &mut Vec<Problem>) -> Result<(), Problem> {
    let certificate = parse(path, at, der)?;
    let (validity, number) = (certificate.validity(), at + 1);
    let now = x509_parser::time::ASN1Time::now();
    if now > validity.not_after {
        let words = format!(
            "certificate {number} ({}) expired on {}; clients will refuse it, replace it",
            certificate.subject(),
            validity.not_after
        );
        warnings.push(Problem::new(path.display(), words));
    } else if now < validity.not_before {
        let words = format!(
            "certificate {number} ({}) is not valid before {}; clients will refuse it until then, check the clock",
            certificate.subject(),
            validity.not_before
        );
        warnings.push(Problem::new(path.display(), words));
    }
    Ok(())
}

fn parse<'d>(path: &Path, at: usize, der: &'d [u8]) -> Result<X509Certificate<'d>, Problem> {
    match X509Certificate::from_der(der) {
        Ok((_, certificate)) => Ok(certificate),
        Err(error) => {
            Err(Problem::new(path.display(), format!("certificate {} is damaged: {error}", at + 1)))
        }
    }
}

/// Chooses a certificate by the host that a client names (RFC 6066 section 3).
#[derive(Debug)]
struct Resolver {
    default: Arc<CertifiedKey>,
    /// By host name in lower case; `*.example.org` for every name with one more label.
    names: HashMap<Box<str>, Vec<Arc<CertifiedKey>>>,
}

impl Resolver {
    fn add(&mut self, certified: &Arc<CertifiedKey>, path: &Path) -> Result<(), Problem> {
        let Some(der) = certified.cert.first() else { return Ok(()) };
        let certificate = parse(path, 0, der)?;
        let alternative =
            certificate.extensions().iter().find_map(|extension| match extension.parsed_extension() {
                ParsedExtension::SubjectAlternativeName(names) => Some(&names.general_names),
                _ => None,
            });
        let names: Vec<&str> = match alternative {
            Some(names) => names
                .iter()
                .filter_map(|name| if let GeneralName::DNSName(name) = name { Some(*name) } else { None })
                .collect(),
            // Old certificates have their host name here.
            None => certificate.subject().iter_common_name().filter_map(|name| name.as_str().ok()).collect(),
        };
        for name in names {
            self.names.entry(name.to_ascii_lowercase().into()).or_default().push(certified.clone());
        }
        Ok(())
    }

    fn choose(&self, host: Option<&str>, usable: impl Fn(&CertifiedKey) -> bool) -> Arc<CertifiedKey> {
        let by_name = host.and_then(|host| {
            let host = host.to_ascii_lowercase();
            let exact = self.names.get(host.as_str());
            let wildcard = || self.names.get(format!("*.{}", host.split_once('.')?.1).as_str());
            let candidates = exact.or_else(wildcard)?;
            // An RSA and an EC certificate may have the same name.
            candidates.iter().find(|certified| usable(certified)).or_else(|| candidates.first())
        });
        by_name.unwrap_or(&self.default).clone()
    }
}

impl ResolvesServerCert for Resolver {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let usable =
            |certified: &CertifiedKey| certified.key.choose_scheme(hello.signature_schemes()).is_some();
        Some(self.choose(hello.server_name(), usable))
    }
}

/// Identity in a client's certificate.
pub(super) fn client_certificate(der: &[u8]) -> Option<ClientCertificate> {
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    let subject = certificate.subject();
    let common_name = subject.iter_common_name().next().and_then(|name| name.as_str().ok());
    Some(ClientCertificate { common_name: common_name.map(Box::from), subject: subject.to_string().into() })
}
