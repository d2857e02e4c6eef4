//! The `listeners` section: where MQTT clients connect, over TCP, TLS and WebSocket.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value as Json;

use super::connection::{TlsVersion, not_empty, old_tls};
use super::general::bind;
use super::kind::{FieldDoc, Kind, Secrets};
use super::kind_numbers::{integer, millis, seconds};
use super::kind_values::{Parsed, boolean, choice, parsed, text};
use super::section::{Named, Section, choices, flat, list, named, nested, section};
use super::tree::{Node, Object, Walk};
use super::units::{ByteSize, read_rate, show_rate};
use crate::mqtt;

/// Connections that a listener allows where nothing is written: more than any machine holds, so that the
/// limit of open files is what counts.
pub const MAX_CONNECTIONS: u32 = 1_024_000;

section! {
    /// Where MQTT clients connect.
    pub struct ListenersConfig {
        /// A listener for MQTT over TCP.
        tcp: BTreeMap<String, TcpListenerConfig> => DefaultListener(listeners());
        /// A listener for MQTT over TLS.
        ssl: BTreeMap<String, SslListenerConfig> => listeners();
        /// A listener for MQTT over WebSocket.
        ws: BTreeMap<String, WsListenerConfig> => listeners();
        /// A listener for MQTT over WebSocket over TLS.
        wss: BTreeMap<String, WssListenerConfig> => listeners();
    }
}

section! {
    /// Settings of every listener.
    pub struct ListenerConfig {
        /// Whether the listener is opened.
        enable: bool => boolean().or(true);
        /// Port, or address and port. A port alone listens on every IPv4 address, `[::]:1883` on every
        /// IPv6 address and on no IPv4 address (both may be open on one port); port 0 takes any free one.
        bind: SocketAddr => bind();
        /// Connections open at once; further ones are closed. The system's limit of open files bounds it,
        /// too.
        max_connections: u32 => integer(1..=10_000_000).or(MAX_CONNECTIONS);
        /// Connections that are accepted in a time; more wait in the system's backlog.
        max_conn_rate: Option<mqtt::Rate> => count_rate().or_word("infinity");
        /// PUBLISH packets that are read from each client in a time. Who sends more is not read from until
        /// the rate allows it: nothing is dropped.
        messages_rate: Option<mqtt::Rate> => count_rate().or_word("infinity");
        /// Bytes of packets that are read from each client in a time, in the same way.
        bytes_rate: Option<mqtt::Rate> => bytes_rate().or_word("infinity");
        /// Whether a load balancer in front sends a header of the PROXY protocol (version 1 or 2) with the
        /// client's address. A connection without one is then refused.
        proxy_protocol: bool => boolean().or(false);
        /// How long that header may take.
        proxy_protocol_timeout: Duration => seconds()
            .within(Duration::from_millis(100)..=Duration::from_mins(10)).or(Duration::from_secs(3));
        /// Part of a verified client certificate that takes the place of the user name in CONNECT. With
        /// `proxy_protocol`, the common name that the balancer has verified counts as well.
        peer_cert_as_username: PeerCertAsUsername => choice().or(PeerCertAsUsername::Disabled);
        /// Openings under way at once: PROXY headers, TLS handshakes, WebSocket requests that are not
        /// complete. Beyond it the oldest is closed.
        max_handshakes: u32 => integer(1..=1_000_000).or(mqtt::ListenerOptions::MAX_HANDSHAKES as u32);
    }
}

section! {
    /// One listener for MQTT over TCP.
    pub struct TcpListenerConfig {
        /// Settings of every listener.
        common: ListenerConfig => flat();
    }
    ignored { "acceptors" "tcp_options" "zone" }
}

section! {
    /// One listener for MQTT over TLS.
    pub struct SslListenerConfig {
        /// Settings of every listener.
        common: ListenerConfig => flat();
        /// How long a TLS handshake may take.
        handshake_timeout: Duration => handshake_timeout();
        /// TLS.
        ssl_options: SslOptionsConfig => nested();
    }
    ignored { "acceptors" "tcp_options" "zone" }
}

section! {
    /// One listener for MQTT over WebSocket.
    pub struct WsListenerConfig {
        /// Settings of every listener.
        common: ListenerConfig => flat();
        /// How long the request that opens a WebSocket may take.
        handshake_timeout: Duration => handshake_timeout();
        /// WebSocket.
        websocket: WebSocketConfig => nested();
    }
    ignored { "acceptors" "tcp_options" "zone" }
}

section! {
    /// One listener for MQTT over WebSocket over TLS.
    pub struct WssListenerConfig {
        /// Settings of every listener.
        common: ListenerConfig => flat();
        /// How long a TLS handshake may take, and after it the request that opens a WebSocket.
        handshake_timeout: Duration => handshake_timeout();
        /// TLS.
        ssl_options: SslOptionsConfig => nested();
        /// WebSocket.
        websocket: WebSocketConfig => nested();
    }
    ignored { "acceptors" "tcp_options" "zone" }
}

choices! {
    /// Part of a client's certificate that takes the place of its user name.
    pub enum PeerCertAsUsername {
        /// Nothing.
        Disabled = "disabled";
        /// The common name.
        Cn = "cn";
        /// The whole subject, such as `O=Example, CN=meter-17`.
        Dn = "dn";
    }
}

choices! {
    /// Whether clients are asked for a certificate.
    pub enum VerifyClient {
        /// They are not.
        None = "verify_none";
        /// They are; it has to be signed by an authority in `cacertfile`. With `fail_if_no_peer_cert` they
        /// have to have one.
        Peer = "verify_peer";
    }
}

section! {
    /// TLS of a listener.
    pub struct SslOptionsConfig {
        /// File with the server's certificate, followed by those of the authorities below the root (PEM). It
        /// is read again when it changes, and on SIGHUP.
        certfile: String => text().check(|text| not_empty(text));
        /// File with the key of that certificate (PEM, without a password): RSA, EC or Ed25519.
        keyfile: String => text().check(|text| not_empty(text));
        /// Further certificates. A client that names a host (SNI) gets the one that covers it, others get
        /// `certfile`.
        certificates: Vec<CertificateConfig> => list(nested()).or(Vec::new());
        /// Whether clients are asked for a certificate.
        verify: VerifyClient => choice().or(VerifyClient::None);
        /// Whether a client without a certificate is refused (with `verify_peer`).
        fail_if_no_peer_cert: bool => boolean().or(false);
        /// File with the certificates of the authorities that sign clients' certificates (PEM).
        cacertfile: Option<String> => text().check(|text| not_empty(text)).optional();
        /// Versions of TLS that are spoken; those below 1.2 are left out with a warning.
        versions: Vec<TlsVersion> => list(choice().advise(|version| old_tls(*version))).or(vec![TlsVersion::V1_3, TlsVersion::V1_2]);
        /// Cipher suites that may be used, by their names in OpenSSL or in the standards; empty: all that are
        /// safe.
        ciphers: Vec<String> => list(text()).or(Vec::new());
        /// How long a TLS handshake may take, where it is not the listener's `handshake_timeout`.
        handshake_timeout: Option<Duration> => millis()
            .within(Duration::from_millis(100)..=Duration::from_mins(10)).optional();
    }
    ignored {
        "client_renegotiation" "depth" "dhfile" "enable_crl_check" "gc_after_handshake" "hibernate_after"
        "honor_cipher_order" "log_level" "ocsp" "partial_chain" "password" "reuse_sessions" "secure_renegotiate"
        "user_lookup_fun" "verify_peer_ext_key_usage"
    }
    validate check_ssl;
}

section! {
    /// A further certificate of a listener.
    pub struct CertificateConfig {
        /// File with the certificate and those of the authorities below the root (PEM). Its names say which
        /// hosts it is for.
        certfile: String => text().check(|text| not_empty(text));
        /// File with its key (PEM).
        keyfile: String => text().check(|text| not_empty(text));
    }
}

section! {
    /// WebSocket of a listener.
    pub struct WebSocketConfig {
        /// Path of the request.
        mqtt_path: String => text().check(|path| is_path(path)).or("/mqtt".to_owned());
        /// Whether a request has to offer the subprotocol `mqtt` (or `mqttv3.1`), as the standard asks
        /// (MQTT-6.0.0-3).
        fail_if_no_subprotocol: bool => boolean().or(true);
        /// Origins of web pages that may connect, such as `https://app.example.org`; empty: any, and clients
        /// that are no browsers.
        check_origins: Vec<String> => list(text()).or(Vec::new());
        /// Header in which a trusted proxy tells the client's address, such as `x-forwarded-for`; the last
        /// address in it counts. Without it no such header is believed.
        proxy_address_header: Option<String> => text().check(|name| is_header(name)).optional();
    }
    ignored {
        "allow_origin_absence" "check_origin_enable" "compress" "deflate_opts" "idle_timeout" "max_frame_size"
        "mqtt_piggyback" "proxy_port_header" "supported_subprotocols" "validate_utf8"
    }
}

fn listeners<S: Section>() -> Named<super::section::SectionKind<S>> {
    named(nested(), |name| super::check_name(name).map_err(|message| message.replace("bridge", "listener")))
}

/// Kind of the listeners for MQTT over TCP. Where the section names no listener of any kind, `default` takes
/// port 1883; beside any other listener nothing is opened that is not written.
struct DefaultListener<K>(K);

impl<K: Kind<Out = BTreeMap<String, TcpListenerConfig>>> Kind for DefaultListener<K> {
    type Out = K::Out;

    fn read(&self, node: &Node<'_>, walk: &mut Walk) -> Option<Self::Out> {
        self.0.read(node, walk)
    }

    fn missing(&self, object: &Object<'_>, _: &str, _: &mut Walk) -> Option<Self::Out> {
        let names_some = |kind: &str| {
            let named = object.get(kind).and_then(|node| node.value.as_object());
            named.is_some_and(|named| named.values().any(|listener| !listener.is_null()))
        };
        let others = ["ssl", "ws", "wss"].into_iter().any(names_some);
        Some(if others { BTreeMap::new() } else { default_listeners() })
    }

    fn json(&self, value: &Self::Out, secrets: Secrets) -> Json {
        self.0.json(value, secrets)
    }

    fn name(&self) -> String {
        self.0.name()
    }

    fn docs(&self, key: &'static str, meaning: &str) -> Vec<FieldDoc> {
        self.0.docs(key, meaning)
    }
}

fn default_listeners() -> BTreeMap<String, TcpListenerConfig> {
    let bind = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), 1883);
    let common = ListenerConfig {
        enable: true,
        bind,
        max_connections: MAX_CONNECTIONS,
        max_conn_rate: None,
        messages_rate: None,
        bytes_rate: None,
        proxy_protocol: false,
        proxy_protocol_timeout: Duration::from_secs(3),
        peer_cert_as_username: PeerCertAsUsername::Disabled,
        max_handshakes: mqtt::ListenerOptions::MAX_HANDSHAKES as u32,
    };
    BTreeMap::from([("default".to_owned(), TcpListenerConfig { common })])
}

fn handshake_timeout() -> impl Kind<Out = Duration> {
    millis()
        .within(Duration::from_millis(100)..=Duration::from_mins(10))
        .or(mqtt::ListenerOptions::HANDSHAKE_TIMEOUT)
}

fn count_rate() -> super::kind::Allowing<Parsed<mqtt::Rate>> {
    parsed(
        "rate",
        |text| {
            let number = |text: &str| text.parse::<u64>().map_err(|_| String::new());
            read_rate(text, number).ok_or_else(|| {
                "not a rate; write a number per time, such as 1000/s or 500/10s, or infinity".into()
            })
        },
        |rate| show_rate(*rate, &rate.count).into(),
    )
    .allowing("a number per time, such as `1000/s` or `500/10s`; without a time: per second")
}

fn bytes_rate() -> super::kind::Allowing<Parsed<mqtt::Rate>> {
    parsed(
        "rate",
        |text| {
            read_rate(text, |text| ByteSize::read(text).map(ByteSize::bytes)).ok_or_else(|| {
                "not a rate; write a byte size per time, such as 100KB/s or 5MB/10s, or infinity".into()
            })
        },
        |rate| show_rate(*rate, &ByteSize(rate.count)).into(),
    )
    .allowing("a byte size per time, such as `100KB/s` or `5MB/10s`; without a time: per second")
}

fn is_path(path: &str) -> Result<(), String> {
    let legal = path.starts_with('/') && path.bytes().all(|b| b.is_ascii_graphic() && !b"?#".contains(&b));
    if legal { Ok(()) } else { Err("not a path; write one that begins with /, such as /mqtt".into()) }
}

fn is_header(name: &str) -> Result<(), String> {
    let legal = !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
    if legal { Ok(()) } else { Err("not the name of a header; write one such as x-forwarded-for".into()) }
}

fn check_ssl(ssl: &SslOptionsConfig, object: &Object<'_>, walk: &mut Walk) {
    if ssl.verify == VerifyClient::Peer && ssl.cacertfile.is_none() {
        walk.wrong_under(
            object,
            &["verify"],
            "verify_peer needs cacertfile: the authorities that sign clients' certificates",
        );
    }
    if ssl.fail_if_no_peer_cert && ssl.verify == VerifyClient::None {
        walk.wrong_under(
            object,
            &["fail_if_no_peer_cert"],
            "with verify_none no client is asked for a certificate; write verify = verify_peer, too",
        );
    }
    if !ssl.versions.iter().any(|version| matches!(version, TlsVersion::V1_3 | TlsVersion::V1_2)) {
        walk.wrong_under(
            object,
            &["versions"],
            "no version that is supported is left; allowed: tlsv1.3, tlsv1.2",
        );
    }
}

impl SslOptionsConfig {
    fn options(&self) -> mqtt::TlsOptions {
        // Taken apart, so that a field that reaches nothing does not compile.
        let Self {
            certfile,
            keyfile,
            certificates,
            verify,
            fail_if_no_peer_cert,
            cacertfile,
            versions,
            ciphers,
            handshake_timeout,
        } = self;
        let files = |certificate: &str, key: &str| mqtt::CertificateFiles {
            certificate: PathBuf::from(certificate),
            key: PathBuf::from(key),
        };
        let clients = match (verify, cacertfile) {
            (VerifyClient::None, _) | (VerifyClient::Peer, None) => mqtt::ClientCertificates::NotAsked,
            (VerifyClient::Peer, Some(file)) if *fail_if_no_peer_cert => {
                mqtt::ClientCertificates::Required(PathBuf::from(file))
            }
            (VerifyClient::Peer, Some(file)) => mqtt::ClientCertificates::Optional(PathBuf::from(file)),
        };
        mqtt::TlsOptions {
            further: certificates.iter().map(|further| files(&further.certfile, &further.keyfile)).collect(),
            clients,
            tls12: versions.contains(&TlsVersion::V1_2),
            tls13: versions.contains(&TlsVersion::V1_3),
            ciphers: ciphers.clone(),
            handshake_timeout: *handshake_timeout,
            ..mqtt::TlsOptions::new(files(certfile, keyfile))
        }
    }
}

impl WebSocketConfig {
    fn options(&self) -> mqtt::WebSocketOptions {
        let Self { mqtt_path, fail_if_no_subprotocol, check_origins, proxy_address_header } = self;
        mqtt::WebSocketOptions {
            path: mqtt_path.clone(),
            needs_subprotocol: *fail_if_no_subprotocol,
            origins: check_origins.clone(),
            address_header: proxy_address_header.clone(),
        }
    }
}

impl ListenerConfig {
    fn options(&self, name: &str) -> mqtt::ListenerOptions {
        let Self {
            enable: _,
            bind,
            max_connections,
            max_conn_rate,
            messages_rate,
            bytes_rate,
            proxy_protocol,
            proxy_protocol_timeout,
            peer_cert_as_username,
            max_handshakes,
        } = *self;
        mqtt::ListenerOptions {
            max_connections: max_connections as usize,
            max_conn_rate,
            messages_rate,
            bytes_rate,
            proxy_protocol: proxy_protocol.then_some(proxy_protocol_timeout),
            certificate_username: match peer_cert_as_username {
                PeerCertAsUsername::Disabled => mqtt::CertificateUsername::Disabled,
                PeerCertAsUsername::Cn => mqtt::CertificateUsername::CommonName,
                PeerCertAsUsername::Dn => mqtt::CertificateUsername::Subject,
            },
            max_handshakes: max_handshakes as usize,
            ..mqtt::ListenerOptions::new(name, bind)
        }
    }
}

/// A listener as far as they are all alike.
pub struct AnyListener<'c> {
    /// Key of its kind: `tcp`, `ssl`, `ws`, `wss`.
    pub kind: &'static str,
    /// Its name.
    pub name: &'c str,
    /// Settings of every listener.
    pub common: &'c ListenerConfig,
}

impl fmt::Display for AnyListener<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.kind, self.name)
    }
}

impl ListenersConfig {
    /// All listeners, enabled or not.
    pub fn all(&self) -> Vec<AnyListener<'_>> {
        let mut all = Vec::new();
        let mut add = |kind, name, common| all.push(AnyListener { kind, name, common });
        self.tcp.iter().for_each(|(name, listener)| add("tcp", name, &listener.common));
        self.ssl.iter().for_each(|(name, listener)| add("ssl", name, &listener.common));
        self.ws.iter().for_each(|(name, listener)| add("ws", name, &listener.common));
        self.wss.iter().for_each(|(name, listener)| add("wss", name, &listener.common));
        all
    }

    /// Listeners that the MQTT front opens: those that are enabled.
    pub(super) fn options(&self) -> Vec<mqtt::ListenerOptions> {
        let mut options = Vec::new();
        for (name, TcpListenerConfig { common }) in &self.tcp {
            options.push((common.enable, common.options(name)));
        }
        for (name, SslListenerConfig { common, handshake_timeout, ssl_options }) in &self.ssl {
            let listener = mqtt::ListenerOptions {
                handshake_timeout: *handshake_timeout,
                tls: Some(ssl_options.options()),
                ..common.options(name)
            };
            options.push((common.enable, listener));
        }
        for (name, WsListenerConfig { common, handshake_timeout, websocket }) in &self.ws {
            let listener = mqtt::ListenerOptions {
                handshake_timeout: *handshake_timeout,
                websocket: Some(websocket.options()),
                ..common.options(name)
            };
            options.push((common.enable, listener));
        }
        for (name, WssListenerConfig { common, handshake_timeout, ssl_options, websocket }) in &self.wss {
            let listener = mqtt::ListenerOptions {
                handshake_timeout: *handshake_timeout,
                tls: Some(ssl_options.options()),
                websocket: Some(websocket.options()),
                ..common.options(name)
            };
            options.push((common.enable, listener));
        }
        options.into_iter().filter_map(|(enabled, listener)| enabled.then_some(listener)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Config, Errors, Loaded, load_text};
    use super::*;

    fn load(text: &str) -> Result<Loaded<Config>, Errors> {
        load_text("test", text)
    }

    fn options(text: &str) -> Vec<mqtt::ListenerOptions> {
        load(text).unwrap().value.mqtt_options().listeners
    }

    #[test]
    fn each_key_of_a_listener_reaches_the_front() {
        let listeners = options(
            r#"
            listeners.tcp.a { bind = "127.0.0.1:1", max_connections = 7, max_conn_rate = "1000/s", messages_rate = 500,
              bytes_rate = "1MB/10s", proxy_protocol = true, proxy_protocol_timeout = 5s, peer_cert_as_username = cn,
              max_handshakes = 9 }
            listeners.ssl.b { bind = 2, handshake_timeout = 4s, ssl_options { certfile = c, keyfile = k, verify = verify_peer,
              cacertfile = ca, fail_if_no_peer_cert = true, versions = ["tlsv1.3"], ciphers = ["TLS_AES_128_GCM_SHA256"],
              handshake_timeout = 6s, certificates = [{ certfile = c2, keyfile = k2 }] } }
            listeners.ws.c { bind = 3, websocket { mqtt_path = "/x", fail_if_no_subprotocol = false,
              check_origins = ["https://a"], proxy_address_header = "x-real-ip" }, peer_cert_as_username = dn }
            listeners.wss.d { bind = 4, ssl_options { certfile = c, keyfile = k, verify = verify_peer, cacertfile = ca } }
            listeners.ws.off { bind = 5, enable = false }
            "#,
        );
        let [tcp, ssl, ws, wss] = &listeners[..] else { panic!("{listeners:?}") };
        let files = |c: &str, k: &str| mqtt::CertificateFiles { certificate: c.into(), key: k.into() };
        assert_eq!(
            *tcp,
            mqtt::ListenerOptions {
                max_connections: 7,
                max_conn_rate: Some(mqtt::Rate::per_second(1000)),
                messages_rate: Some(mqtt::Rate::per_second(500)),
                bytes_rate: Some(mqtt::Rate { count: 1 << 20, per: Duration::from_secs(10) }),
                proxy_protocol: Some(Duration::from_secs(5)),
                certificate_username: mqtt::CertificateUsername::CommonName,
                max_handshakes: 9,
                ..mqtt::ListenerOptions::new("a", "127.0.0.1:1".parse().unwrap())
            }
        );
        assert_eq!(ssl.handshake_timeout, Duration::from_secs(4));
        assert_eq!(
            ssl.tls,
            Some(mqtt::TlsOptions {
                further: vec![files("c2", "k2")],
                clients: mqtt::ClientCertificates::Required("ca".into()),
                tls12: false,
                ciphers: vec!["TLS_AES_128_GCM_SHA256".into()],
                handshake_timeout: Some(Duration::from_secs(6)),
                ..mqtt::TlsOptions::new(files("c", "k"))
            })
        );
        assert_eq!(
            ws.websocket,
            Some(mqtt::WebSocketOptions {
                path: "/x".into(),
                needs_subprotocol: false,
                origins: vec!["https://a".into()],
                address_header: Some("x-real-ip".into()),
            })
        );
        assert_eq!(ws.certificate_username, mqtt::CertificateUsername::Subject);
        assert_eq!(wss.websocket, Some(mqtt::WebSocketOptions::default()));
        let clients = wss.tls.as_ref().map(|tls| tls.clients.clone());
        assert_eq!(clients, Some(mqtt::ClientCertificates::Optional("ca".into())));
        let ids: Vec<String> = listeners.iter().map(mqtt::ListenerOptions::id).collect();
        assert_eq!(ids, ["tcp:a", "ssl:b", "ws:c", "wss:d"]);
    }

    #[test]
    fn the_default_listener_is_opened_only_where_no_listener_is_named() {
        let files = "ssl_options { certfile = c, keyfile = k }";
        for (text, expected) in [
            (String::new(), "tcp:default"),
            ("listeners {}".into(), "tcp:default"),
            ("listeners { ssl = {}, ws = null }".into(), "tcp:default"),
            ("listeners.ssl.a = null".into(), "tcp:default"),
            (format!("listeners.ssl.a {{ bind = 1, {files} }}"), "ssl:a"),
            ("listeners.ws.a { bind = 1 }".into(), "ws:a"),
            (format!("listeners.wss.a {{ bind = 1, {files} }}"), "wss:a"),
            ("listeners { tcp.b { bind = 2 }, ws.a { bind = 1 } }".into(), "tcp:b ws:a"),
            ("listeners.ws.a { bind = 1, enable = false }".into(), ""),
            ("listeners.tcp = {}".into(), ""),
        ] {
            let ids: Vec<String> = options(&text).iter().map(mqtt::ListenerOptions::id).collect();
            assert_eq!(ids.join(" "), expected, "{text}");
            // The canonical form names the same listeners.
            let canonical = load(&text).unwrap().value.listeners.to_json(Secrets::Revealed);
            let again = format!("listeners = {canonical}");
            let ids: Vec<String> = options(&again).iter().map(mqtt::ListenerOptions::id).collect();
            assert_eq!(ids.join(" "), expected, "{again}");
        }
    }

    #[test]
    fn a_wrong_listener_is_explained() {
        let ssl = |options: &str| format!("listeners.ssl.a {{ bind = 1, ssl_options {{ {options} }} }}");
        let files = "certfile = c, keyfile = k";
        let cases = [
            (ssl(""), "certfile: required"),
            (ssl(&format!("{files}, verify = verify_peer")), "needs cacertfile"),
            (ssl(&format!("{files}, fail_if_no_peer_cert = true")), "write verify = verify_peer"),
            (ssl(&format!("{files}, versions = [\"tlsv1.1\"]")), "no version that is supported"),
            (ssl(&format!("{files}, cerfile = x")), "did you mean certfile"),
            ("listeners.tcp.a { bind = 1, max_conn_rate = fast }".into(), "such as 1000/s"),
            ("listeners.tcp.a { bind = 1, messages_rate = 0 }".into(), "such as 1000/s"),
            ("listeners.tcp.a { bind = 1, messages_rate = \"1/0s\" }".into(), "such as 1000/s"),
            ("listeners.tcp.a { bind = 1, bytes_rate = \"1XB/s\" }".into(), "such as 100KB/s"),
            ("listeners.ws.a { bind = 1, websocket.mqtt_path = mqtt }".into(), "begins with /"),
            (
                "listeners.ws.a { bind = 1, websocket.proxy_address_header = \"a b\" }".into(),
                "name of a header",
            ),
            ("listeners.ws.a { bind = 1, ssl_options {} }".into(), "unknown key"),
            ("listeners.quic.a { bind = 1 }".into(), "unknown key"),
        ];
        for (text, expected) in cases {
            let error = load(&text).unwrap_err().to_string();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }

    #[test]
    fn what_is_old_or_means_nothing_here_is_said() {
        let text = "listeners.ssl.a { bind = 1, acceptors = 8, ssl_options { certfile = c, keyfile = k, depth = 3, \
                    versions = [\"tlsv1.3\", \"tlsv1\"] } }";
        let loaded = load(text).unwrap();
        let warnings: Vec<String> = loaded.warnings.iter().map(ToString::to_string).collect();
        for expected in ["acceptors", "depth", "TLS below 1.2"] {
            assert!(warnings.iter().any(|warning| warning.contains(expected)), "{expected}: {warnings:?}");
        }
    }
}
