//! The `mqtt` section: limits of the device side.

use std::time::Duration;

use super::kind::{Kind, boolean};
use super::kind_numbers::{bytes, factor, integer, seconds};
use causeway_protocol::mqtt::topic::DEFAULT_MAX_LEVELS;

use super::section::{nested, section};
use super::units::ByteSize;

section! {
    /// Limits and timers of MQTT connections and sessions.
    pub struct MqttConfig {
        /// Largest MQTT packet that is read, and announced to MQTT 5 clients (MQTT-5.0 3.2.2.3.6).
        max_packet_size: ByteSize => bytes().within(ByteSize(1024)..=ByteSize(268_435_460)).or(ByteSize::mb(1));
        /// QoS 1 and 2 publications of one client that may await their acknowledgement (MQTT-5.0 3.2.2.3.3).
        /// While Kafka is away this many are held, then the client has to wait.
        receive_maximum: u16 => integer(1..=65_535).or(1024);
        /// Highest QoS that clients may use (MQTT-5.0 3.2.2.3.4).
        max_qos: u8 => integer(0..=2).or(2);
        /// Levels that a topic name or filter may have.
        max_topic_levels: u16 => integer(1..=65_535).or(DEFAULT_MAX_LEVELS);
        /// Topic aliases that a client may use on one connection (MQTT-5.0 3.2.2.3.8).
        max_topic_alias: u16 => integer(0..=65_535).or(64);
        /// Longest client identifier in bytes.
        max_client_id_length: u16 => integer(23..=65_535).or(1024);
        /// Subscriptions of one session.
        max_subscriptions: u32 => integer(1..=1_000_000).or(10_000);
        /// How long a new connection may take to send its CONNECT packet.
        connect_timeout: Duration => seconds().within(Duration::from_millis(100)..=Duration::from_hours(1)).or(Duration::from_secs(10));
        /// How long a client may leave everything that is written to it unread before it is disconnected.
        write_timeout: Duration => seconds().within(Duration::from_secs(1)..=Duration::from_hours(1)).or(Duration::from_secs(30));
        /// A client that is silent for its keep-alive times this factor is disconnected (MQTT-5.0 3.1.2.10).
        keepalive_multiplier: f64 => factor(1.0..=10.0).or(1.5);
        /// Keep-alive that MQTT 5 clients are told to use in place of a longer one or none (MQTT-5.0 3.2.2.3.14).
        server_keepalive: Option<Duration> => seconds().within(Duration::from_secs(1)..=Duration::from_secs(65_535)).optional();
        /// How long a session lives on without a connection: the longest that MQTT 5 clients may ask for, and
        /// what 3.1.1 clients without clean session get.
        session_expiry_interval: Duration => seconds().or(Duration::from_hours(2));
        /// Sessions in all, connected or not.
        max_sessions: u32 => integer(1..=100_000_000).or(2_000_000);
        /// QoS 1 and 2 messages sent to one client and not yet acknowledged by it; its own receive maximum
        /// bounds it, too.
        max_inflight: u16 => integer(1..=65_535).or(64);
        /// Messages that wait for one client, connected or not.
        max_mqueue: u32 => integer(0..=100_000_000).or(1000);
        /// Bytes of messages that wait for one client, connected or not.
        max_mqueue_bytes: ByteSize => bytes().or(ByteSize::mb(4));
        /// Whether QoS 0 messages wait for a client that is not connected.
        mqueue_store_qos0: bool => boolean().or(false);
        /// Retained messages.
        retain: RetainConfig => nested();
    }
}

section! {
    /// Retained messages (MQTT-5.0 3.3.1.3).
    pub struct RetainConfig {
        /// Whether messages can be retained (MQTT-5.0 3.2.2.3.5).
        enable: bool => boolean().or(true);
        /// Retained messages in all; beyond it only topics that have one already can be retained.
        max_messages: u32 => integer(0..=100_000_000).or(500_000);
        /// Bytes of retained messages in all.
        max_bytes: ByteSize => bytes().or(ByteSize::mb(256));
    }
}
