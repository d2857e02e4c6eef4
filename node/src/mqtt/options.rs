//! What the MQTT front can be told.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use causeway_protocol::mqtt::topic;

use super::{memory, route::RouteCache};
use crate::{access::Access, mailbox::Capacity};

/// One TCP listener.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListenerOptions {
    /// Name, for people.
    pub name: String,
    /// Address; port 0 takes a free one.
    pub bind: SocketAddr,
    /// Connections open at once through this listener; more are closed right after they were accepted.
    pub max_connections: usize,
}

impl ListenerOptions {
    /// A listener on `bind` for up to a million connections.
    pub fn new(name: &str, bind: SocketAddr) -> Self {
        Self { name: name.to_owned(), bind, max_connections: 1_000_000 }
    }
}

/// What happens to a QoS 1 or 2 message for a session whose queue is full.
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
    /// QoS 1 and 2 deliveries sent to a client and not yet acknowledged, where the client does not ask for
    /// fewer.
    pub max_inflight: u16,
    /// Deliveries that wait for one session, connected or not.
    pub session_queue: Capacity,
    /// What happens when that is full.
    pub queue_full: QueueFull,
    /// Bytes that sessions, their queues, retained messages, wills and connection buffers may have together.
    pub max_memory: u64,
    /// Subscriptions of one session.
    pub max_subscriptions: usize,
    /// Sessions, connected or not. A new client beyond it is refused with 0x97.
    pub max_sessions: usize,
    /// Highest topic alias a client may use (MQTT-5.0 3.2.2.3.8).
    pub topic_alias_maximum: u16,
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
            max_inflight: 128,
            session_queue: Capacity { bytes: 8 << 20, items: 50_000 },
            queue_full: QueueFull::DropNewest,
            max_memory: memory::half_of_memory(),
            max_subscriptions: 10_000,
            max_sessions: 2_000_000,
            topic_alias_maximum: 16,
            session_expiry: Duration::from_hours(2),
            max_session_expiry: Duration::from_hours(168),
            connect_timeout: Duration::from_secs(10),
            linger: Duration::from_secs(1),
            shutdown_drain: Duration::from_secs(5),
            route_cache: RouteCache::DEFAULT_CAPACITY,
            access: Access::open(),
        }
    }
}
