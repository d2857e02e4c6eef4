//! Where a client connects, over what, and as whom.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use tokio_rustls::rustls::client::Resumption;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

/// The name that a server's certificate has to carry, whatever address it is reached at.
const SERVER_NAME: &str = "localhost";

/// A server as a client sees it.
#[derive(Debug, Clone)]
pub struct Endpoint {
    /// `HOST:PORT`.
    pub address: String,
    /// TLS, where it is spoken.
    pub tls: Option<Arc<ClientConfig>>,
    /// Whether MQTT travels in a WebSocket, opened at `/mqtt`.
    pub websocket: bool,
    /// User name and password. `{n}` in either becomes [`Endpoint::login_of`]'s number.
    pub login: Option<(String, String)>,
}

impl<T: Into<String>> From<T> for Endpoint {
    /// Plain TCP, without a user name.
    fn from(address: T) -> Self {
        Self { address: address.into(), tls: None, websocket: false, login: None }
    }
}

impl Endpoint {
    /// Reads `[SCHEME://]HOST:PORT`, where SCHEME is `tcp` (as without one), `tls`, `ws` or `wss`. TLS trusts
    /// the certificates in the file `ca` (PEM), asks for the name `localhost`, and resumes nothing.
    pub fn parse(text: &str, ca: Option<&Path>) -> Result<Self> {
        let (scheme, address) = text.split_once("://").unwrap_or(("tcp", text));
        let (tls, websocket) = match scheme {
            "tcp" => (false, false),
            "tls" => (true, false),
            "ws" => (false, true),
            "wss" => (true, true),
            other => bail!("{other}:// is not known; tcp, tls, ws and wss are"),
        };
        let tls = match (tls, ca) {
            (true, None) => bail!("{scheme}:// needs a file with the certificates to trust (--ca)"),
            (true, Some(ca)) => Some(Arc::new(client_config(ca)?)),
            (false, _) => None,
        };
        Ok(Self { tls, websocket, ..Self::from(address) })
    }

    /// The user name and password of the client with this number.
    pub fn login_of(&self, number: u64) -> Option<(String, String)> {
        let fill = |text: &str| text.replace("{n}", &number.to_string());
        self.login.as_ref().map(|(user, password)| (fill(user), fill(password)))
    }
}

/// The name that the certificate of every server has to carry.
pub(super) fn server_name() -> Result<ServerName<'static>> {
    Ok(ServerName::try_from(SERVER_NAME)?)
}

fn client_config(ca: &Path) -> Result<ClientConfig> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(ca)
        .with_context(|| format!("cannot read certificates from {}", ca.display()))?
    {
        roots.add(certificate.with_context(|| format!("{} is damaged", ca.display()))?)?;
    }
    if roots.is_empty() {
        bail!("there is no certificate in {}", ca.display());
    }
    let mut config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.resumption = Resumption::disabled();
    Ok(config)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scheme_chooses_the_transport_and_plain_tcp_needs_none() {
        let plain = Endpoint::parse("localhost:1883", None).unwrap();
        assert_eq!(
            (plain.address.as_str(), plain.websocket, plain.tls.is_some()),
            ("localhost:1883", false, false)
        );
        let websocket = Endpoint::parse("ws://[::1]:8083", None).unwrap();
        assert_eq!((websocket.address.as_str(), websocket.websocket), ("[::1]:8083", true));
        assert!(Endpoint::parse("tls://localhost:8883", None).unwrap_err().to_string().contains("--ca"));
        assert!(Endpoint::parse("http://localhost:80", None).unwrap_err().to_string().contains("wss"));
    }

    #[test]
    fn every_client_may_have_a_user_name_of_its_own() {
        let mut endpoint = Endpoint::from("localhost:1883");
        assert_eq!(endpoint.login_of(7), None);
        endpoint.login = Some(("user-{n}".into(), "same".into()));
        assert_eq!(endpoint.login_of(7), Some(("user-7".into(), "same".into())));
    }
}
