//! The `mqtt` section: limits of the device side.

use std::time::Duration;

use causeway_protocol::mqtt::{QoS, topic::DEFAULT_MAX_LEVELS};

use super::Config;
use super::kind::Kind;
use super::kind_numbers::{bytes, integer, millis, seconds};
use super::kind_values::{boolean, choice, text};
use super::section::{choices, nested, section};
use super::units::ByteSize;
use crate::flow::mailbox::Capacity;
use crate::mqtt;

section! {
    /// Limits and timers of MQTT connections and sessions.
    pub struct MqttConfig {
        /// Largest MQTT packet that is read, and announced to MQTT 5 clients (MQTT-5.0 3.2.2.3.6).
        max_packet_size: ByteSize => bytes().within(ByteSize(1024)..=ByteSize::mb(256)).or(ByteSize::mb(1));
        /// QoS 1 and 2 publications of one client that may await their acknowledgement (MQTT-5.0 3.2.2.3.3).
        /// While Kafka is away this many are held, then the client has to wait.
        receive_maximum: u16 => integer(1..=65_535).or(1024);
        /// Levels that a topic name or filter may have.
        max_topic_levels: u16 => integer(1..=65_535).or(DEFAULT_MAX_LEVELS);
        /// Topic aliases that a client may use on one connection (MQTT-5.0 3.2.2.3.8).
        max_topic_alias: u16 => integer(0..=65_535).or(16);
        /// Topics that are named by an alias towards one client that takes aliases; those in use keep theirs.
        max_topic_alias_out: u16 => integer(0..=256).or(16);
        /// Highest QoS of publications and wills (above it: 0x9B) and of subscriptions (granted less).
        max_qos_allowed: u8 => integer(0..=2).or(2);
        /// Whether messages can be retained; if not, publications and wills with the flag are refused (0x9A).
        retain_available: bool => boolean().or(true);
        /// Whether filters may have wildcards; if not, such subscriptions are refused (0xA2).
        wildcard_subscription: bool => boolean().or(true);
        /// Whether there are shared subscriptions; if not, they are refused (0x9E).
        shared_subscription: bool => boolean().or(true);
        /// The longest keep-alive, in seconds, that an MQTT 5 client gets, and is told where it asks for more
        /// or for none (MQTT-5.0 3.2.2.3.14). 0: whatever the client asks for.
        max_keep_alive: u16 => integer(0..=65_535).or(0);
        /// Response information for MQTT 5 clients that ask for it, such as the first levels of its
        /// response topics (MQTT-5.0 3.2.2.3.15). Empty: nothing.
        response_information: String => text().or(String::new());
        /// Whether payloads and wills that are declared as UTF-8 text are checked, and refused where they are
        /// not (0x99; with QoS 0 dropped and counted).
        payload_format_validation: bool => boolean().or(false);
        /// Subscriptions of one session.
        max_subscriptions: u32 => integer(1..=1_000_000).or(10_000);
        /// How long a new connection may take to send its CONNECT packet.
        connect_timeout: Duration => seconds()
            .within(Duration::from_millis(100)..=Duration::from_hours(1)).or(Duration::from_secs(10));
        /// How long the session of an MQTT 3 client without clean session outlives its connection.
        session_expiry_interval: Duration => seconds().or(Duration::from_hours(2));
        /// The longest session expiry that an MQTT 5 client gets (MQTT-5.0 3.2.2.3.2).
        max_session_expiry_interval: Duration => seconds().or(Duration::from_hours(168));
        /// Which member of a shared subscription (`$share/NAME/FILTER`) gets a message. Connected members
        /// come first; without any the session that is there longest gets everything.
        shared_subscription_strategy: ShareStrategy => choice().or(ShareStrategy::RoundRobin);
        /// Sessions in all, connected or not.
        max_sessions: u32 => integer(1..=100_000_000).or(2_000_000);
        /// QoS 1 and 2 messages sent to one client and not yet acknowledged by it; its own receive maximum
        /// bounds it, too.
        max_inflight: u16 => integer(1..=65_535).or(128);
        /// Messages that wait for one client, connected or not.
        max_mqueue: u32 => integer(1..=100_000_000).or(50_000);
        /// Bytes of messages that wait for one client, connected or not.
        max_mqueue_bytes: ByteSize => bytes().at_least(ByteSize(1024)).or(ByteSize::mb(8));
        /// Treatment of a QoS 1 or 2 message for a client whose queue is full, counted for the session and in
        /// all. QoS 0 is dropped then. A message from Kafka for a connected client waits instead, as long as
        /// `slow_subscriber_timeout` says.
        queue_full: QueueFull => choice().or(QueueFull::DropNewest);
        /// How long a connected client may take nothing (no byte of a message, no acknowledgement) while a
        /// bridge from Kafka or a will waits for it. Then its queue counts as full, `queue_full` applies, and
        /// it is not waited for until it goes on. `infinity`: it is waited for without a limit, and others
        /// wait with it.
        slow_subscriber_timeout: Option<Duration> => millis()
            .at_least(Duration::from_millis(100)).or_word("infinity").or(Some(Duration::from_secs(30)));
        /// Bytes that sessions, their queues, retained messages, wills and connection buffers may have in
        /// all. From 7/8 of it new sessions (0x97), subscriptions (0x97) and retained messages are refused,
        /// and for a client with a backlog of 16 KB its queue counts as full; when it is reached, so it does
        /// for every client that has a message waiting. Clients that keep up are served. The buffers of
        /// bridges are not in it.
        max_memory: ByteSize => bytes().at_least(ByteSize::mb(16))
            .or_else(|| ByteSize(mqtt::half_of_memory()), "half of the machine's memory, or the container's");
        /// Where sessions that outlive their connection (session expiry above 0, for MQTT 3 clean session 0),
        /// what waits for them, and retained messages are kept. See docs/sessions.md.
        session_store: SessionStore => choice().or(SessionStore::Disk);
        /// Retained messages.
        retain: RetainConfig => nested();
    }
}

choices! {
    /// Policy when a client's queue is full.
    pub enum QueueFull {
        /// The new message is dropped.
        DropNewest = "drop_newest";
        /// Those that have waited longest are dropped.
        DropOldest = "drop_oldest";
        /// The new message is dropped and the client disconnected with 0x97, so that it notices.
        Disconnect = "disconnect";
    }
}

choices! {
    /// Who of a shared subscription gets a message.
    pub enum ShareStrategy {
        /// One after the other.
        RoundRobin = "round_robin";
        /// Anyone.
        Random = "random";
        /// One, as long as it is connected.
        Sticky = "sticky";
        /// The same one for all messages of a publisher.
        HashClientId = "hash_clientid";
        /// The same one for all messages of a topic.
        HashTopic = "hash_topic";
    }
}

choices! {
    /// Where sessions are kept.
    pub enum SessionStore {
        /// In `sessions.redb` in the data directory: they survive the end of the process, however it ends.
        Disk = "disk";
        /// In memory: they end with the process.
        Memory = "memory";
    }
}

section! {
    /// Retained messages (MQTT-5.0 3.3.1.3).
    pub struct RetainConfig {
        /// Retained messages in all; beyond it only topics that have one already can be retained.
        max_messages: u32 => integer(0..=100_000_000).or(500_000);
        /// Bytes of retained messages in all.
        max_bytes: ByteSize => bytes().or(ByteSize::mb(256));
    }
}

impl Config {
    /// Settings of the MQTT front from the configuration: enabled listeners, limits, timers.
    pub fn mqtt_options(&self) -> mqtt::Options {
        // Taken apart, so that a field that reaches nothing does not compile.
        let MqttConfig {
            max_packet_size,
            receive_maximum,
            max_topic_levels,
            max_topic_alias,
            max_topic_alias_out,
            max_qos_allowed,
            retain_available,
            wildcard_subscription,
            shared_subscription,
            max_keep_alive,
            ref response_information,
            payload_format_validation,
            max_subscriptions,
            connect_timeout,
            session_expiry_interval,
            max_session_expiry_interval,
            max_sessions,
            max_inflight,
            max_mqueue,
            max_mqueue_bytes,
            queue_full,
            slow_subscriber_timeout,
            max_memory,
            shared_subscription_strategy,
            session_store,
            // Reaches the router: `retained_limits`.
            retain: _,
        } = self.mqtt;
        mqtt::Options {
            listeners: self.listeners.options(),
            node: self.node.name.clone(),
            // At most 256 MB by its range.
            max_packet_size: max_packet_size.bytes() as u32,
            max_topic_levels,
            receive_maximum,
            max_inflight,
            session_queue: Capacity { bytes: max_mqueue_bytes.as_usize(), items: max_mqueue as usize },
            session_store: match session_store {
                SessionStore::Disk => Some(self.node.data_dir.join(mqtt::SESSION_FILE)),
                SessionStore::Memory => None,
            },
            queue_full: match queue_full {
                QueueFull::DropNewest => mqtt::QueueFull::DropNewest,
                QueueFull::DropOldest => mqtt::QueueFull::DropOldest,
                QueueFull::Disconnect => mqtt::QueueFull::Disconnect,
            },
            slow_subscriber_timeout,
            max_memory: max_memory.bytes(),
            shared_subscription_strategy: match shared_subscription_strategy {
                ShareStrategy::RoundRobin => mqtt::ShareStrategy::RoundRobin,
                ShareStrategy::Random => mqtt::ShareStrategy::Random,
                ShareStrategy::Sticky => mqtt::ShareStrategy::Sticky,
                ShareStrategy::HashClientId => mqtt::ShareStrategy::HashClientId,
                ShareStrategy::HashTopic => mqtt::ShareStrategy::HashTopic,
            },
            max_subscriptions: max_subscriptions as usize,
            max_sessions: max_sessions as usize,
            topic_alias_maximum: max_topic_alias,
            topic_alias_maximum_out: max_topic_alias_out,
            max_qos: match max_qos_allowed {
                0 => QoS::AtMostOnce,
                1 => QoS::AtLeastOnce,
                _ => QoS::ExactlyOnce,
            },
            retain_available,
            wildcard_subscription,
            shared_subscription,
            max_keep_alive,
            response_information: response_information.clone(),
            sys_interval: self.sys_topics.interval,
            sys_events: mqtt::SysEvents {
                client_connected: self.sys_topics.sys_event_messages.client_connected,
                client_disconnected: self.sys_topics.sys_event_messages.client_disconnected,
            },
            payload_format_validation,
            session_expiry: session_expiry_interval,
            max_session_expiry: max_session_expiry_interval,
            connect_timeout,
            ..mqtt::Options::default()
        }
    }

    /// Bounds of the retained messages, for the router.
    pub fn retained_limits(&self) -> mqtt::RetainedLimits {
        let RetainConfig { max_messages, max_bytes } = self.mqtt.retain;
        mqtt::RetainedLimits { messages: max_messages as usize, bytes: max_bytes.as_usize() }
    }
}

#[cfg(test)]
mod tests {
    use super::super::load_text;
    use super::*;

    #[test]
    fn the_defaults_are_those_of_the_front() {
        let config = load_text("empty", "node.name = causeway").unwrap().value;
        let listeners = config.mqtt_options().listeners;
        assert_eq!(listeners.len(), 1);
        let session_store = Some("data/sessions.redb".into());
        let front = mqtt::Options { listeners, session_store, ..mqtt::Options::default() };
        assert_eq!(format!("{:?}", config.mqtt_options()), format!("{front:?}"));
        assert_eq!(
            format!("{:?}", config.retained_limits()),
            format!("{:?}", mqtt::RetainedLimits::default())
        );
    }

    #[test]
    fn a_listener_that_is_disabled_is_not_opened() {
        let text = "listeners.tcp { a { bind = 1, enable = false }, b { bind = 2, max_connections = 3 } }";
        let listeners = load_text("text", text).unwrap().value.mqtt_options().listeners;
        let bind = "0.0.0.0:2".parse().unwrap();
        let listener = mqtt::ListenerOptions { max_connections: 3, ..mqtt::ListenerOptions::new("b", bind) };
        assert_eq!(listeners, [listener]);
    }
}
