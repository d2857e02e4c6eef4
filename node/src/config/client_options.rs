//! From a bridge's connection settings to what the Kafka client takes.

use std::time::Duration;

use super::connection::{Authentication, ConnectionConfig, SaslMechanism};
use crate::kafka::client::{self, Address, Backoff, ClientOptions, Keepalive};

/// Why a connection cannot be made as it is configured.
#[derive(Debug, thiserror::Error)]
pub enum ClientOptionsError {
    /// The file with the password cannot be read.
    #[error("{0}")]
    Secret(#[from] std::io::Error),
    /// The password is the mask that is shown in place of one.
    #[error(
        "the password is `******`, which is what is shown in place of a password; the real one is needed"
    )]
    MaskedSecret,
    /// Configured, understood, and not there in this version.
    #[error("{0} is not supported in this version")]
    NotSupported(&'static str),
}

/// The first wait before a broken connection is made again; the wait doubles up to `reconnect_delay`.
const FIRST_RECONNECT: Duration = Duration::from_millis(100);

impl ConnectionConfig {
    /// Settings for a Kafka client called `client_id`. `reconnect_delay` is the longest pause between
    /// attempts to connect, where the bridge says one. Reads the password file, if there is one, so it may
    /// block for as long as that takes.
    ///
    /// Refuses TLS and mechanisms that this version lacks: never speaks with less protection than asked for.
    pub fn client_options(
        &self,
        client_id: &str,
        reconnect_delay: Option<Duration>,
    ) -> Result<ClientOptions, ClientOptionsError> {
        if self.ssl.enable {
            return Err(ClientOptionsError::NotSupported("TLS"));
        }
        let authentication = match &self.authentication {
            Authentication::None => client::Authentication::None,
            Authentication::Password(login) if login.mechanism == SaslMechanism::Plain => {
                if login.password.is_mask() {
                    return Err(ClientOptionsError::MaskedSecret);
                }
                client::Authentication::Plain {
                    username: login.username.as_str().into(),
                    password: client::Secret::new(&*login.password.reveal()?),
                }
            }
            Authentication::Password(_) => return Err(ClientOptionsError::NotSupported("SCRAM")),
            Authentication::Kerberos(_) => return Err(ClientOptionsError::NotSupported("Kerberos")),
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
            authentication,
            allow_auto_topic_creation: self.allow_auto_topic_creation,
            reconnect_backoff: reconnect_delay
                .map_or(defaults.reconnect_backoff, |max| Backoff { first: FIRST_RECONNECT.min(max), max }),
            ..defaults
        })
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
    fn less_protection_than_asked_for_is_refused() {
        for (text, expected) in [
            ("ssl.enable = true", "TLS is not supported in this version"),
            (
                "authentication { mechanism = scram_sha_256, username = u, password = p }",
                "SCRAM is not supported in this version",
            ),
            (
                "authentication { kerberos_principal = p, kerberos_keytab_file = k }",
                "Kerberos is not supported in this version",
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
