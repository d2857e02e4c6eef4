//! Consumer bridges (`bridges.kafka_consumer.NAME`): Kafka into MQTT.

use std::time::Duration;

use super::connection::ConnectionConfig;
use super::kafka_names::{check_kafka_topic, check_mqtt_topic_template, template};
use super::kind::Kind;
use super::kind_numbers::{bytes, integer, millis, seconds};
use super::kind_values::{boolean, choice, text};
use super::producer::check_connection;
use super::section::{choices, flat, list, nested, section};
use super::tree::{Object, Walk};
use super::units::ByteSize;
use crate::template::record::RecordSlot;

section! {
    /// A consumer bridge.
    pub struct ConsumerBridgeConfig {
        /// Whether the bridge runs.
        enable: bool => boolean().or(true);
        /// A note for people.
        description: String => text().or(String::new());
        /// Labels for people.
        tags: Vec<String> => list(text()).or(Vec::new());
        /// Connection to Kafka.
        connection: ConnectionConfig => flat();
        /// Which Kafka topic goes to which MQTT topic; at least one entry, each Kafka topic once.
        topic_mapping: Vec<TopicMapping> => list(nested()).check(|mapping| check_mapping(mapping));
        /// How the key is written into the payload.
        key_encoding_mode: Encoding => choice().or(Encoding::None);
        /// How the value is written into the payload.
        value_encoding_mode: Encoding => choice().or(Encoding::None);
        /// Consumer group. Unset or empty: `causeway-kafka-consumer-` and the name of the bridge.
        group_id: String => text().or(String::new());
        /// Treatment of a message while no session and no bridge takes its MQTT topic, after a restart for
        /// example, until the subscribers are back.
        when_no_subscriber: WhenNoSubscriber => choice().or(WhenNoSubscriber::Publish);
        /// Whether the bridge may be part of a loop of producer and consumer bridges, which is an error
        /// otherwise. A message then goes round until it has passed Kafka 16 times.
        allow_loop: bool => boolean().or(false);
        /// How messages are fetched and offsets are kept.
        kafka: ConsumerKafkaConfig => nested();
    }
    validate check_consumer;
}

impl ConsumerBridgeConfig {
    /// The consumer group of the bridge called `name`.
    pub fn group_id(&self, name: &str) -> String {
        if self.group_id.is_empty() {
            format!("causeway-kafka-consumer-{name}")
        } else {
            self.group_id.clone()
        }
    }
}

choices! {
    /// How bytes become text.
    pub enum Encoding {
        /// As they are; what is not UTF-8 is replaced where JSON needs text.
        None = "none";
        /// In Base64 with padding (RFC 4648).
        Base64 = "base64";
    }
}

choices! {
    /// Treatment of a message that has no receiver.
    pub enum WhenNoSubscriber {
        /// Publish it all the same: it reaches nobody, and its offset is committed.
        Publish = "publish";
        /// Hold it, and with it its partition, until somebody subscribes.
        Hold = "hold";
    }
}

choices! {
    /// Where to begin in a partition without a committed offset, or whose offset is gone.
    pub enum OffsetReset {
        /// At its end: what is written from now on.
        Latest = "latest" | "reset_to_latest" | "reset_by_subscriber";
        /// At its beginning: all that Kafka still has.
        Earliest = "earliest" | "reset_to_earliest";
    }
}

section! {
    /// One Kafka topic and where its messages go.
    pub struct TopicMapping {
        /// Kafka topic.
        kafka_topic: String => text().check(|topic| check_kafka_topic(topic));
        /// MQTT topic to publish to; may have placeholders.
        mqtt_topic: String => template::<RecordSlot>().check(|text| check_mqtt_topic_template(text));
        /// QoS to publish with.
        qos: u8 => integer(0..=2).or(0);
        /// Payload to publish; `${.}` is the whole Kafka message as JSON.
        payload_template: String => template::<RecordSlot>().or("${.}".into());
    }
}

section! {
    /// How messages are fetched and offsets are kept.
    pub struct ConsumerKafkaConfig {
        /// Bytes that one fetch asks for; a record batch that is larger is fetched all the same.
        max_batch_bytes: ByteSize => bytes().within(ByteSize(1)..=ByteSize::gb(1)).or(ByteSize::kb(896));
        /// How long a fetch waits at the broker for messages.
        max_wait_time: Duration => millis().within(Duration::ZERO..=Duration::from_mins(5)).or(Duration::from_secs(1));
        /// Failed attempts to join the consumer group in a row after which the bridge shows as disconnected;
        /// the attempts go on.
        max_rejoin_attempts: u32 => integer(0..=u32::MAX).or(5);
        /// Where to begin in a partition without a committed offset, or whose offset is gone. A partition or
        /// topic that appears while the bridge is there begins at its beginning.
        offset_reset_policy: OffsetReset => choice().or(OffsetReset::Latest);
        /// How often offsets are committed.
        offset_commit_interval_seconds: Duration => seconds()
            .within(Duration::from_millis(1)..=Duration::from_hours(24)).or(Duration::from_secs(5));
    }
}

fn check_mapping(mapping: &[TopicMapping]) -> Result<(), String> {
    if mapping.is_empty() {
        return Err("empty; at least one entry with kafka_topic and mqtt_topic is required".into());
    }
    for (at, entry) in mapping.iter().enumerate() {
        if mapping.iter().take(at).any(|other| other.kafka_topic == entry.kafka_topic) {
            return Err(format!(
                "the Kafka topic {:?} is mapped more than once; each one is allowed once",
                entry.kafka_topic
            ));
        }
    }
    Ok(())
}

fn check_consumer(bridge: &ConsumerBridgeConfig, object: &Object<'_>, walk: &mut Walk) {
    check_connection(bridge.enable, &bridge.connection, object, walk);
}
