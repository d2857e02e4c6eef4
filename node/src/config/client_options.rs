//! From a bridge's connection settings to what the Kafka client takes.

use std::time::Duration;

use super::connection::{
    Authentication, ConnectionConfig, GrantType, OauthAuthentication, SaslMechanism, ServerName, SslConfig,
    TlsVersion, Verify,
};
use super::pem_text::PemText;
use crate::kafka::client::{
    self, Address, Backoff, ClientOptions, Keepalive, OauthSettings, OauthSource, OauthTokens, Pem, Tls,
    TlsError, TlsSettings,
};
use crate::secret::Secret;

/// Why a connection cannot be made as it is configured.
#[derive(Debug, thiserror::Error)]
pub enum ClientOptionsError {
    /// A file with a password, certificate or key cannot be read.
    #[error("{0}")]
    File(#[from] std::io::Error),
    /// A password or key is the mask that is shown in place of one.
    #[error("the {0} is `******`, which is what is shown in place of a {0}; the real one is needed")]
    Masked(&'static str),
    /// Certificates, keys or the token endpoint are not right.
    #[error(transparent)]
    Tls(#[from] TlsError),
}

/// The first wait before a broken connection is made again; the wait doubles up to `reconnect_delay`.
const FIRST_RECONNECT: Duration = Duration::from_millis(100);

impl ConnectionConfig {
    /// Settings for a Kafka client called `client_id`. `reconnect_delay` is the longest pause between
    /// attempts to connect, where the bridge says one. Reads the files of passwords, certificates and keys,
    /// if there are some, so it may block for as long as that takes.
    ///
    /// Never speaks with less protection than asked for.
    pub fn client_options(
        &self,
        client_id: &str,
        reconnect_delay: Option<Duration>,
    ) -> Result<ClientOptions, ClientOptionsError> {
        let tls = if self.ssl.enable { Some(Tls::new(self.ssl.settings()?)?) } else { None };
        let authentication = match &self.authentication {
            Authentication::None => client::Authentication::None,
            Authentication::Password(login) => {
                let username = login.username.as_str().into();
                let password = revealed(&login.password, "password")?;
                let scram = |hash| client::Authentication::Scram { hash, username, password };
                match login.mechanism {
                    SaslMechanism::ScramSha256 => scram(client::ScramHash::Sha256),
                    SaslMechanism::ScramSha512 => scram(client::ScramHash::Sha512),
                    SaslMechanism::Plain => client::Authentication::Plain {
                        username: login.username.as_str().into(),
                        password: revealed(&login.password, "password")?,
                    },
                }
            }
            Authentication::Oauth(oauth) => {
                client::Authentication::OauthBearer(OauthTokens::new(oauth.settings()?)?)
            }
            Authentication::Kerberos(kerberos) => client::Authentication::Kerberos(client::KerberosLogin {
                principal: kerberos.kerberos_principal.as_str().into(),
                keytab: kerberos.kerberos_keytab_file.as_str().into(),
            }),
        };
        let hosts = self.bootstrap_hosts.iter().map(|host| Address::new(host.host.as_str(), host.port));
        let defaults = ClientOptions::new(hosts.collect());
        let buffer = |size: super::ByteSize| Some(u32::try_from(size.bytes()).unwrap_or(u32::MAX));
        Ok(ClientOptions {
            client_id: client_id.into(),
            connect_timeout: self.connect_timeout,
            request_timeout: self.request_timeout,
            metadata_request_timeout: self.metadata_request_timeout,
            min_metadata_refresh_interval: self.min_metadata_refresh_interval,
            socket: client::SocketOptions {
                nodelay: self.socket_opts.nodelay,
                send_buffer: buffer(self.socket_opts.sndbuf),
                receive_buffer: buffer(self.socket_opts.recbuf),
                keepalive: self.socket_opts.tcp_keepalive.map(|probes| Keepalive {
                    idle: probes.idle,
                    interval: probes.interval,
                    probes: probes.probes,
                }),
            },
            tls,
            authentication,
            allow_auto_topic_creation: self.allow_auto_topic_creation,
            reconnect_backoff: reconnect_delay
                .map_or(defaults.reconnect_backoff, |max| Backoff { first: FIRST_RECONNECT.min(max), max }),
            ..defaults
        })
    }
}

/// The secret itself, read from its file if it is in one.
fn revealed(secret: &Secret, what: &'static str) -> Result<client::Secret, ClientOptionsError> {
    if secret.is_mask() {
        return Err(ClientOptionsError::Masked(what));
    }
    Ok(secret.resolve()?)
}

fn loaded(pem: &PemText, key: &str) -> Result<Pem, ClientOptionsError> {
    if pem.is_mask() {
        return Err(ClientOptionsError::Masked("key"));
    }
    let (origin, text) = pem.load(key)?;
    Ok(Pem { origin: origin.into(), text: text.into() })
}

impl SslConfig {
    fn settings(&self) -> Result<TlsSettings, ClientOptionsError> {
        let authorities = self.cacertfile.as_ref().map(|pem| loaded(pem, "cacertfile")).transpose()?;
        let identity = match (&self.certfile, &self.keyfile) {
            (Some(certificate), Some(key)) => {
                Some((loaded(certificate, "certfile")?, loaded(key, "keyfile")?))
            }
            _ => None,
        };
        let password = self.password.as_ref();
        Ok(TlsSettings {
            verify: self.verify == Verify::Peer,
            authorities,
            identity,
            key_password: password.map(|password| revealed(password, "password of the key")).transpose()?,
            depth: self.depth,
            tls13: self.versions.contains(&TlsVersion::V1_3),
            tls12: self.versions.contains(&TlsVersion::V1_2),
            ciphers: self.ciphers.iter().map(|name| name.as_str().into()).collect(),
            server_name: match &self.server_name_indication {
                ServerName::Auto => client::ServerName::Host,
                ServerName::Disable => client::ServerName::Unchecked,
                ServerName::Name(name) => client::ServerName::Fixed(name.as_str().into()),
            },
        })
    }
}

impl OauthAuthentication {
    fn settings(&self) -> Result<OauthSettings, ClientOptionsError> {
        let text = |text: &Option<String>| -> Box<str> { text.as_deref().unwrap_or_default().into() };
        let source = match self.grant_type {
            GrantType::TokenFile => OauthSource::File(self.token_file.as_deref().unwrap_or_default().into()),
            GrantType::ClientCredentials => {
                let secret = self.client_secret.as_ref();
                let authorities = self.endpoint_cacertfile.as_ref();
                OauthSource::ClientCredentials {
                    endpoint: text(&self.endpoint_uri),
                    client_id: text(&self.client_id),
                    client_secret: secret
                        .map(|secret| revealed(secret, "client_secret"))
                        .transpose()?
                        .unwrap_or_default(),
                    scope: self.scope.as_deref().map(Into::into),
                    tls: Box::new(TlsSettings {
                        authorities: authorities.map(|pem| loaded(pem, "endpoint_cacertfile")).transpose()?,
                        ..TlsSettings::default()
                    }),
                }
            }
        };
        let extensions = self.extensions.iter();
        let extensions = extensions.map(|(name, value)| (name.as_str().into(), value.as_str().into()));
        Ok(OauthSettings { source, extensions: extensions.collect() })
    }
}

#[cfg(test)]
mod tests {
    use super::super::parse_producer_bridge;
    use super::*;

    fn connection(text: &str) -> ConnectionConfig {
        let text = format!("enable = false, kafka.topic = t, bootstrap_hosts = \"a:1,[::1]:2\"\n{text}");
        parse_producer_bridge("b", &text).unwrap().value.connection
    }

    /// L24
    #[test]
    fn every_setting_of_a_connection_reaches_the_client() {
        let connection = connection(
            "connect_timeout = 1s, request_timeout = 2s, metadata_request_timeout = 3s, min_metadata_refresh_interval = 4s
             authentication { mechanism = plain, username = u, password = p }
             socket_opts { sndbuf = 2KB, recbuf = 3KB, nodelay = false, tcp_keepalive = \"5,6,7\" }",
        );
        let options = connection.client_options("id", Some(Duration::from_millis(50))).unwrap();
        let defaults = ClientOptions::new(Vec::new());
        let expected = ClientOptions {
            bootstrap: vec![Address::new("a", 1), Address::new("::1", 2)],
            client_id: "id".into(),
            connect_timeout: Duration::from_secs(1),
            request_timeout: Duration::from_secs(2),
            metadata_request_timeout: Duration::from_secs(3),
            min_metadata_refresh_interval: Duration::from_secs(4),
            socket: client::SocketOptions {
                nodelay: false,
                send_buffer: Some(2048),
                receive_buffer: Some(3072),
                keepalive: Some(Keepalive {
                    idle: Duration::from_secs(5),
                    interval: Duration::from_secs(6),
                    probes: 7,
                }),
            },
            authentication: client::Authentication::Plain {
                username: "u".into(),
                password: client::Secret::new("p"),
            },
            reconnect_backoff: Backoff { first: Duration::from_millis(50), max: Duration::from_millis(50) },
            ..defaults
        };
        assert_eq!(options, expected);
    }

    #[test]
    fn every_setting_of_tls_reaches_the_client() {
        let rcgen::CertifiedKey { cert, signing_key } =
            rcgen::generate_simple_self_signed(["a".into()]).unwrap();
        let (certificate, key) = (&cert.pem(), &signing_key.serialize_pem());
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("cert.pem");
        std::fs::write(&file, certificate).unwrap();
        let text = format!(
            "ssl {{ enable = true, verify = verify_peer, cacertfile = \"{0}\", certfile = \"{0}\", keyfile = {1:?}
               depth = 3, versions = [tlsv1.2, tlsv1.1], ciphers = [ECDHE-ECDSA-AES128-GCM-SHA256, AES128-SHA]
               server_name_indication = broker.example, password = lion, reuse_sessions = true }}",
            file.display(),
            key
        );
        let pem = |key: &str, text: &str| Pem { origin: key.into(), text: text.as_bytes().into() };
        let in_file = |key: &str| pem(&format!("{key} {}", file.display()), certificate);
        let expected = Tls::new(TlsSettings {
            verify: true,
            authorities: Some(in_file("cacertfile")),
            identity: Some((in_file("certfile"), pem("keyfile (inline)", key))),
            key_password: Some(client::Secret::new("lion")),
            depth: 3,
            tls13: false,
            tls12: true,
            ciphers: vec!["ECDHE-ECDSA-AES128-GCM-SHA256".into(), "AES128-SHA".into()],
            server_name: client::ServerName::Fixed("broker.example".into()),
        })
        .unwrap();
        assert_eq!(connection(&text).client_options("id", None).unwrap().tls, Some(expected));

        let written =
            connection("ssl { enable = true, cacertfile = x, server_name_indication = disable, depth = 2 }");
        let error = written.client_options("id", None).unwrap_err().to_string();
        assert!(error.starts_with("cannot read cacertfile x: "), "{error}");
        assert!(
            connection("ssl { enable = false, cacertfile = x }")
                .client_options("id", None)
                .unwrap()
                .tls
                .is_none()
        );
    }

    #[test]
    fn every_mechanism_reaches_the_client() {
        let certificate = &rcgen::generate_simple_self_signed(["a".into()]).unwrap().cert.pem();
        let login = |text: &str| connection(text).client_options("id", None).unwrap().authentication;
        for (word, hash) in
            [("scram_sha_256", client::ScramHash::Sha256), ("scram_sha_512", client::ScramHash::Sha512)]
        {
            assert_eq!(
                login(&format!("authentication {{ mechanism = {word}, username = u, password = p }}")),
                client::Authentication::Scram {
                    hash,
                    username: "u".into(),
                    password: client::Secret::new("p")
                }
            );
        }
        let expected = OauthSettings {
            source: OauthSource::ClientCredentials {
                endpoint: "http://h/t".into(),
                client_id: "i".into(),
                client_secret: client::Secret::new("s"),
                scope: Some("a b".into()),
                tls: Box::new(TlsSettings {
                    authorities: Some(Pem {
                        origin: "endpoint_cacertfile (inline)".into(),
                        text: certificate.as_bytes().into(),
                    }),
                    ..TlsSettings::default()
                }),
            },
            extensions: [("logicalCluster".into(), "c".into())].into(),
        };
        assert_eq!(
            login(&format!(
                "authentication {{ mechanism = oauth, grant_type = client_credentials, endpoint_uri = \"http://h/t\", client_id = i
                   client_secret = s, scope = \"a b\", extensions {{ logicalCluster = c }}, endpoint_cacertfile = {certificate:?} }}"
            )),
            client::Authentication::OauthBearer(OauthTokens::new(expected).unwrap())
        );
        let file = OauthSettings { source: OauthSource::File("/t".into()), extensions: [].into() };
        assert_eq!(
            login("authentication { mechanism = oauth, grant_type = token_file, token_file = \"/t\" }"),
            client::Authentication::OauthBearer(OauthTokens::new(file).unwrap())
        );
    }

    #[test]
    fn less_protection_than_asked_for_is_refused() {
        for (text, expected) in [
            (
                "ssl { enable = true, verify = verify_peer, certfile = \"-----BEGIN X\", keyfile = \"******\" }",
                "the key is `******`, which is what is shown in place of a key; the real one is needed",
            ),
            (
                "ssl { enable = true, verify = verify_peer, cacertfile = \"-----BEGIN X-----\\nAAAA\\n-----END X-----\\n\" }",
                "cacertfile (inline) has no certificate: PEM with -----BEGIN CERTIFICATE----- is expected",
            ),
            (
                "authentication { mechanism = oauth, endpoint_uri = \"http://h\", client_id = i, client_secret = \"******\" }",
                "the client_secret is `******`, which is what is shown in place of a client_secret; the real one is needed",
            ),
            (
                "authentication { mechanism = plain, username = u, password = \"******\" }",
                "the password is `******`, which is what is shown in place of a password; the real one is needed",
            ),
        ] {
            assert_eq!(connection(text).client_options("id", None).unwrap_err().to_string(), expected);
        }
        let missing = connection(
            "authentication { mechanism = plain, username = u, password = \"file:///none/secret\" }",
        );
        let error = missing.client_options("id", None).unwrap_err().to_string();
        assert!(error.starts_with("cannot read the secret in /none/secret: "), "{error}");
    }
}
