//! Settings of the MQTT front.

use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use causeway_protocol::mqtt::{QoS, topic};

use super::{memory, rate::Rate, route::RouteCache, share::ShareStrategy, sys::SysEvents};
use crate::{access::Access, flow::mailbox::Capacity};

/// One listener: for MQTT over TCP, and over TLS or WebSocket or both where their options are given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListenerOptions {
    /// Name, for people.
    pub name: String,
    /// Address; port 0 takes a free one.
    pub bind: SocketAddr,
    /// Connections open at once through this listener; more are closed right after they were accepted.
    pub max_connections: usize,
    /// Connections that are accepted in a time; more wait in the system's backlog.
    pub max_conn_rate: Option<Rate>,
    /// PUBLISH packets that are read from one client in a time; more wait unread.
    pub messages_rate: Option<Rate>,
    /// Bytes of packets that are read from one client in a time; more wait unread.
    pub bytes_rate: Option<Rate>,
    /// A header of the PROXY protocol has to come first, within this time.
    pub proxy_protocol: Option<Duration>,
    /// How long a TLS handshake may take, and after it the request that opens a WebSocket.
    pub handshake_timeout: Duration,
    /// Openings (PROXY header, TLS, WebSocket) under way at once; beyond it the oldest is closed.
    pub max_handshakes: usize,
    /// TLS.
    pub tls: Option<TlsOptions>,
    /// WebSocket.
    pub websocket: Option<WebSocketOptions>,
    /// Part of a client's certificate that takes the place of its user name.
    pub certificate_username: CertificateUsername,
}

/// Transport below MQTT on a listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ListenerKind {
    /// TCP.
    Tcp,
    /// TLS.
    Tls,
    /// WebSocket.
    WebSocket,
    /// WebSocket over TLS.
    SecureWebSocket,
}

impl ListenerKind {
    /// The key under `listeners` in the configuration.
    pub fn key(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Tls => "ssl",
            Self::WebSocket => "ws",
            Self::SecureWebSocket => "wss",
        }
    }

    /// The scheme of its address: `mqtt`, `mqtts`, `ws`, `wss`.
    pub fn scheme(self) -> &'static str {
        match self {
            Self::Tcp => "mqtt",
            Self::Tls => "mqtts",
            Self::WebSocket => "ws",
            Self::SecureWebSocket => "wss",
        }
    }
}

/// Part of a client's certificate that takes the place of the user name in its CONNECT.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum CertificateUsername {
    /// Nothing.
    #[default]
    Disabled,
    /// The common name.
    CommonName,
    /// The whole subject.
    Subject,
}

/// A certificate chain and its key, in PEM files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateFiles {
    /// The server's certificate, then those of the authorities between it and the root.
    pub certificate: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

/// Which clients have to show a certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClientCertificates {
    /// None is asked for one.
    NotAsked,
    /// Who has one may show it; it has to be signed by an authority in this file.
    Optional(PathBuf),
    /// Every one, signed by an authority in this file.
    Required(PathBuf),
}

/// TLS of a listener.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsOptions {
    /// For clients that name no host, or one that no certificate covers.
    pub certificate: CertificateFiles,
    /// For clients that name a host which they cover.
    pub further: Vec<CertificateFiles>,
    /// Clients' certificates.
    pub clients: ClientCertificates,
    /// TLS 1.2 is spoken.
    pub tls12: bool,
    /// TLS 1.3 is spoken.
    pub tls13: bool,
    /// Cipher suites by their names in OpenSSL or the standards; empty: all that are safe.
    pub ciphers: Vec<String>,
    /// How long a TLS handshake may take, where it is not the listener's `handshake_timeout`.
    pub handshake_timeout: Option<Duration>,
}

impl TlsOptions {
    /// TLS 1.2 and 1.3 with one certificate for all clients.
    pub fn new(certificate: CertificateFiles) -> Self {
        Self {
            certificate,
            further: Vec::new(),
            clients: ClientCertificates::NotAsked,
            tls12: true,
            tls13: true,
            ciphers: Vec::new(),
            handshake_timeout: None,
        }
    }

    /// Every file it is made of.
    pub(crate) fn files(&self) -> impl Iterator<Item = &PathBuf> {
        let certificates = std::iter::once(&self.certificate).chain(&self.further);
        let authorities = match &self.clients {
            ClientCertificates::NotAsked => None,
            ClientCertificates::Optional(file) | ClientCertificates::Required(file) => Some(file),
        };
        certificates.flat_map(|files| [&files.certificate, &files.key]).chain(authorities)
    }
}

/// WebSocket of a listener.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WebSocketOptions {
    /// Path of the request, such as `/mqtt`.
    pub path: String,
    /// The request has to offer a subprotocol that means MQTT.
    pub needs_subprotocol: bool,
    /// Origins of pages that may connect; empty: any, and clients that are no browsers.
    pub origins: Vec<String>,
    /// Header in which a trusted proxy tells the client's address.
    pub address_header: Option<String>,
}

impl Default for WebSocketOptions {
    fn default() -> Self {
        Self { path: "/mqtt".to_owned(), needs_subprotocol: true, origins: Vec::new(), address_header: None }
    }
}

impl ListenerOptions {
    /// How long a TLS handshake, and a WebSocket's request after it, may take if nothing is said.
    pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(15);

    /// Openings under way at once if nothing is said. A TLS handshake holds some 10 KB.
    pub const MAX_HANDSHAKES: usize = 10_000;

    /// A listener for MQTT over TCP on `bind` for up to a million connections.
    pub fn new(name: &str, bind: SocketAddr) -> Self {
        Self {
            name: name.to_owned(),
            bind,
            max_connections: 1_000_000,
            max_conn_rate: None,
            messages_rate: None,
            bytes_rate: None,
            proxy_protocol: None,
            handshake_timeout: Self::HANDSHAKE_TIMEOUT,
            max_handshakes: Self::MAX_HANDSHAKES,
            tls: None,
            websocket: None,
            certificate_username: CertificateUsername::Disabled,
        }
    }

    /// Transport below MQTT.
    pub fn kind(&self) -> ListenerKind {
        match (&self.tls, &self.websocket) {
            (None, None) => ListenerKind::Tcp,
            (Some(_), None) => ListenerKind::Tls,
            (None, Some(_)) => ListenerKind::WebSocket,
            (Some(_), Some(_)) => ListenerKind::SecureWebSocket,
        }
    }

    /// Kind and name, such as `ssl:default`: unique in a node.
    pub fn id(&self) -> String {
        format!("{}:{}", self.kind().key(), self.name)
    }
}

/// Fate of a QoS 1 or 2 message for a session whose queue is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QueueFull {
    /// The message is dropped; what waits is kept.
    DropNewest,
    /// The messages that have waited longest are dropped.
    DropOldest,
    /// The message is dropped and the client is disconnected with 0x97, so that it notices. For one that is
    /// away the message is dropped.
    Disconnect,
}

/// Limits and addresses of the MQTT front.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where it listens.
    pub listeners: Vec<ListenerOptions>,
    /// Name of this node, for logs.
    pub node: String,
    /// Sockets a listener is opened with, each with its own accept loop and supervisor; 0 is one a core.
    pub acceptors: usize,
    /// Largest packet in bytes a client may send.
    pub max_packet_size: u32,
    /// Most levels of a topic name or filter.
    pub max_topic_levels: u16,
    /// QoS 1 and 2 publications a client may have unacknowledged (MQTT-5.0 3.2.2.3.3). Acks wait for Kafka:
    /// 1024 in flight are 100,000 messages a second at 10 ms, for 16 bytes each.
    pub receive_maximum: u16,
    /// Publications that are read from a client while an earlier one of it waits for room.
    pub read_ahead: Capacity,
    /// QoS 1 and 2 deliveries sent to a client and not yet acknowledged, where the client does not ask for
    /// fewer.
    pub max_inflight: u16,
    /// Deliveries that wait for one session, connected or not.
    pub session_queue: Capacity,
    /// The file that sessions which outlive their connection, and retained messages, are stored in; without
    /// it they end with the process.
    pub session_store: Option<PathBuf>,
    /// Policy when that is full.
    pub queue_full: QueueFull,
    /// How long a connected client may take nothing while others wait for it before its queue counts as full;
    /// none: it is waited for without a limit.
    pub slow_subscriber_timeout: Option<Duration>,
    /// Bytes that sessions, their queues, retained messages, wills and connection buffers may have together.
    pub max_memory: u64,
    /// Subscriptions of one session.
    pub max_subscriptions: usize,
    /// Who of a shared subscription gets a message.
    pub shared_subscription_strategy: ShareStrategy,
    /// Sessions, connected or not. A new client beyond it is refused with 0x97.
    pub max_sessions: usize,
    /// Highest topic alias a client may use (MQTT-5.0 3.2.2.3.8).
    pub topic_alias_maximum: u16,
    /// Most topics that are named by an alias towards one client that takes aliases.
    pub topic_alias_maximum_out: u16,
    /// Highest QoS of publications and subscriptions (MQTT-5.0 3.2.2.3.4).
    pub max_qos: QoS,
    /// Whether messages are retained (MQTT-5.0 3.2.2.3.5).
    pub retain_available: bool,
    /// Whether filters may have wildcards (MQTT-5.0 3.2.2.3.11).
    pub wildcard_subscription: bool,
    /// Whether there are shared subscriptions (MQTT-5.0 3.2.2.3.13).
    pub shared_subscription: bool,
    /// The longest keep-alive in seconds that an MQTT 5 client gets (MQTT-5.0 3.2.2.3.14); 0: any, and none.
    pub max_keep_alive: u16,
    /// Response information for clients that ask for it (MQTT-5.0 3.2.2.3.15); empty: none.
    pub response_information: String,
    /// Whether payloads that are declared as UTF-8 are checked (MQTT-5.0 3.3.2.3.2).
    pub payload_format_validation: bool,
    /// How often the `$SYS` topics are published; zero: never.
    pub sys_interval: Duration,
    /// Events of clients that are published there.
    pub sys_events: SysEvents,
    /// How long an MQTT 3 session with clean session 0 outlives its connection.
    pub session_expiry: Duration,
    /// The longest expiry an MQTT 5 client gets; a longer wish is cut down to it, and told so.
    pub max_session_expiry: Duration,
    /// How long a connection may take to send its CONNECT.
    pub connect_timeout: Duration,
    /// How long a server-side close waits for the client to read the reason and close.
    pub linger: Duration,
    /// How long a stop waits for acknowledgements that sinks still owe.
    pub shutdown_drain: Duration,
    /// Topics in the route cache of one connection.
    pub route_cache: usize,
    /// Who may connect and do what.
    pub access: Arc<Access>,
    /// How often certificate files are looked at. A change is served when they were at rest for as long.
    pub certificate_poll: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            listeners: Vec::new(),
            node: String::from("causeway"),
            acceptors: 0,
            max_packet_size: 1 << 20,
            max_topic_levels: topic::DEFAULT_MAX_LEVELS,
            receive_maximum: 1024,
            read_ahead: Capacity { bytes: 1 << 20, items: 4096 },
            max_inflight: 128,
            session_queue: Capacity { bytes: 8 << 20, items: 50_000 },
            session_store: None,
            queue_full: QueueFull::DropNewest,
            slow_subscriber_timeout: Some(Duration::from_secs(30)),
            max_memory: memory::half_of_memory(),
            max_subscriptions: 10_000,
            shared_subscription_strategy: ShareStrategy::RoundRobin,
            max_sessions: 2_000_000,
            topic_alias_maximum: 16,
            topic_alias_maximum_out: 16,
            max_qos: QoS::ExactlyOnce,
            retain_available: true,
            wildcard_subscription: true,
            shared_subscription: true,
            max_keep_alive: 0,
            response_information: String::new(),
            payload_format_validation: false,
            sys_interval: Duration::from_mins(1),
            sys_events: SysEvents::default(),
            session_expiry: Duration::from_hours(2),
            max_session_expiry: Duration::from_hours(168),
            connect_timeout: Duration::from_secs(10),
            linger: Duration::from_secs(1),
            shutdown_drain: Duration::from_secs(5),
            route_cache: RouteCache::DEFAULT_CAPACITY,
            access: Access::open(),
            certificate_poll: Duration::from_secs(5),
        }
    }
}
