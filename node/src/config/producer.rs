//! Producer bridges (`bridges.kafka.NAME`): MQTT into Kafka.

use std::time::Duration;

use super::connection::{Authentication, ConnectionConfig, not_empty};
use super::kafka_names::{
    advise_topic_template, check_kafka_topic, check_topic_template, template, topic_filter,
};
use super::kind::Kind;
use super::kind_numbers::{bytes, integer, millis, seconds};
use super::kind_values::{boolean, choice, text};
use super::section::{choices, flat, list, nested, section};
use super::tree::{Object, Walk};
use super::units::ByteSize;
use crate::kafka::client;
use crate::template::publish::PublishSlot;
use crate::template::{has_placeholder, is_lone_placeholder};

section! {
    /// A producer bridge.
    pub struct ProducerBridgeConfig {
        /// Whether the bridge runs.
        enable: bool => boolean().or(true);
        /// A note for people.
        description: String => text().or(String::new());
        /// Labels for people.
        tags: Vec<String> => list(text()).or(Vec::new());
        /// Connection to Kafka.
        connection: ConnectionConfig => flat();
        /// Source MQTT topic: publications whose topic matches this filter go to Kafka. Unset, nothing comes
        /// from topics directly.
        local_topic: Option<String> => topic_filter().also(&["mqtt_topic", "producer.mqtt.topic"]).optional();
        /// Whether the acknowledgement of a publication waits for this bridge.
        ack_wait: bool => boolean().or(true);
        /// Whether the bridge may be part of a loop of producer and consumer bridges, which is an error
        /// otherwise. A message then goes round until it has passed Kafka 16 times.
        allow_loop: bool => boolean().or(false);
        /// Connections to each broker for what is written. Bridges with the same hosts, login and TLS share
        /// them; a partition always uses the same one, so that its order holds. More than one helps over a
        /// long or slow network, not with a broker nearby.
        pool_size: u16 => integer(1..=64).or(1);
        /// Form and destination of the records.
        kafka: ProducerKafkaConfig => nested();
    }
    validate check_producer;
}

choices! {
    /// Compression of record batches.
    pub enum Compression {
        /// None.
        None = "no_compression";
        /// gzip.
        Gzip = "gzip";
        /// Snappy.
        Snappy = "snappy";
        /// LZ4.
        Lz4 = "lz4";
        /// Zstandard (Kafka 2.1 and newer).
        Zstd = "zstd";
    }
}

choices! {
    /// How a record gets its partition.
    pub enum PartitionStrategy {
        /// By chance, a batch at a time, over the partitions that have a leader.
        Random = "random";
        /// By the key as Kafka's Java producer does (murmur2): records of one key stay in order.
        KeyDispatch = "key_dispatch";
        /// By the key as EMQX does (phash2), for topics that EMQX wrote before.
        KeyDispatchPhash2 = "key_dispatch_phash2";
    }
}

choices! {
    /// Which replicas confirm a batch before it counts as written.
    pub enum RequiredAcks {
        /// All that are in sync; with it nothing is lost or doubled.
        AllIsr = "all_isr";
        /// The leader alone; a crash of it can lose records.
        LeaderOnly = "leader_only";
        /// None: a batch counts as written once it is sent.
        None = "none";
    }
}

choices! {
    /// When a publication counts as done.
    pub enum QueryMode {
        /// When its record is queued.
        Async = "async";
        /// When Kafka has it.
        Sync = "sync";
    }
}

choices! {
    /// Where records wait for Kafka.
    pub enum BufferMode {
        /// In memory.
        Memory = "memory";
        /// In memory and in files.
        Disk = "disk";
        /// In memory, and in files beyond `segment_bytes`.
        Hybrid = "hybrid";
    }
}

choices! {
    /// How header values are written.
    pub enum HeaderEncoding {
        /// As text; values that are not text are left out.
        None = "none";
        /// As JSON.
        Json = "json";
    }
}

section! {
    /// Form and destination of the records of a producer bridge.
    pub struct ProducerKafkaConfig {
        /// Kafka topic, or a template of one: then each message goes to the topic that it names. One without
        /// a value for a placeholder, or whose topic Kafka does not know, fails.
        topic: String => template::<PublishSlot>().check(|text| check_topic_template(text)).advise(|topic| advise_topic_template(topic)).allowing("a Kafka topic name, or a template of one");
        /// Key, value and timestamp of a record.
        message: MessageConfig => nested();
        /// Largest record batch, before compression. One record that is larger is sent alone.
        max_batch_bytes: ByteSize => bytes().within(ByteSize(1)..=ByteSize::gb(1)).or(ByteSize::kb(896));
        /// How long the first record waits for more before a batch leaves, while nothing is under way to its
        /// partition.
        max_linger_time: Duration => millis().or(Duration::ZERO);
        /// Bytes that end such a wait early; max_batch_bytes does so, too.
        max_linger_bytes: ByteSize => bytes().or(ByteSize::mb(10));
        /// Compression of record batches.
        compression: Compression => choice().or(Compression::None);
        /// How a record gets its partition.
        partition_strategy: PartitionStrategy => choice().or(PartitionStrategy::KeyDispatch);
        /// Which replicas confirm a batch before it counts as written.
        required_acks: RequiredAcks => choice().or(RequiredAcks::AllIsr);
        /// Template that gives record headers: exactly one placeholder, whose value is an object, a list of
        /// `{key, value}`, or the JSON text of one. `${pub_props.User-Property-Pairs}` is every MQTT 5 user
        /// property.
        kafka_headers: Option<String> => template::<PublishSlot>().check(|text| check_headers(text)).optional();
        /// Further headers, behind those.
        kafka_ext_headers: Vec<ExtHeaderConfig> => list(nested()).or(Vec::new());
        /// How header values are written.
        kafka_header_value_encode_mode: HeaderEncoding => choice().or(HeaderEncoding::None);
        /// How often Kafka is asked for new partitions; 0 turns it off.
        partition_count_refresh_interval: Duration => seconds().or(Duration::from_mins(1));
        /// Use only this many partitions, the first ones.
        partitions_limit: Option<u32> => integer(1..=u32::MAX).or_word("all_partitions");
        /// Batches of one partition that may await their acknowledgement; 5 at most are used, because Kafka
        /// recognises a resend among its last 5 only, and 1 without `required_acks = all_isr`, to keep order
        /// when Kafka refuses one.
        max_inflight: u16 => integer(1..=65_535).or(10);
        /// Age at which a batch is given up: when all of its records are older (an eighth more at most), and
        /// it is certain that Kafka does not have it.
        max_batch_age: Option<Duration> => millis().at_least(Duration::from_millis(1)).or_word("infinity");
        /// How often a batch is sent again after Kafka answered with an error that may pass; beyond it the
        /// batch is given up. A lost connection does not count.
        max_retries: Option<u32> => integer(0..=u32::MAX).or_word("infinity");
        /// Pause before a connection that broke again is made again; the first time there is none.
        reconnect_delay: Duration => millis().or(Duration::from_secs(2));
        /// When a publication counts as done. Unset: when its record is safe in the buffer mode that is used.
        query_mode: Option<QueryMode> => choice().optional();
        /// In the query mode `sync`, the time after which an answer of Kafka counts as late. The publication
        /// is not done before it, all the same.
        sync_query_timeout: Duration => millis().at_least(Duration::from_millis(1)).or(Duration::from_secs(5));
        /// Limits of a bridge whose topic is a template.
        dynamic_topics: DynamicTopicsConfig => nested();
        /// Where records wait for Kafka.
        buffer: BufferConfig => nested();
        /// Kafka topic for records that were given up, with the reason in their headers. Unset, they are
        /// counted and logged.
        dead_letter_topic: Option<String> => text().check(|topic| check_kafka_topic(topic)).optional();
    }
    validate check_kafka;
}

section! {
    /// Key, value and timestamp of a record.
    pub struct MessageConfig {
        /// Key of the record; records of one key stay in order.
        key: String => template::<PublishSlot>().or("${.clientid}".into());
        /// Value of the record; `${.}` is everything that is known about the message, as JSON.
        value: String => template::<PublishSlot>().or("${.}".into());
        /// Timestamp of the record in milliseconds since 1970; what is not a number becomes the current time.
        timestamp: String => template::<PublishSlot>().or("${.timestamp}".into());
        /// Whether a key that renders to nothing is written as null, and not as an empty text. A record
        /// without key goes to any partition.
        empty_key_is_null: bool => boolean().or(false);
        /// Whether a value that renders to nothing is written as null: a tombstone, which deletes the key
        /// from a compacted topic.
        empty_value_is_null: bool => boolean().or(false);
    }
}

section! {
    /// Limits of a bridge whose topic is a template.
    pub struct DynamicTopicsConfig {
        /// Topics that the bridge writes to at a time. Beyond it, a topic that has nothing to do gives way;
        /// where there is none, publishers of QoS 1 and 2 have to wait, and QoS 0 is dropped.
        max_topics: u32 => integer(1..=100_000).or(1000);
        /// A topic with nothing to do for so long is given up, until its next message.
        idle_timeout: Duration => seconds().at_least(Duration::from_secs(1)).or(Duration::from_mins(10));
        /// Bytes that may wait for all topics together, beside `buffer.per_partition_limit` for each
        /// partition.
        memory_limit: ByteSize => bytes().at_least(ByteSize(1)).or(ByteSize::mb(256));
    }
}

section! {
    /// One header of every record.
    pub struct ExtHeaderConfig {
        /// Key of the header.
        kafka_ext_header_key: String => template::<PublishSlot>().check(|text| not_empty(text));
        /// Value of the header: one placeholder, or a text without any. A header without its value is left
        /// out.
        kafka_ext_header_value: String => template::<PublishSlot>().check(|text| check_ext_value(text));
    }
}

section! {
    /// Where records wait for Kafka, one queue a partition.
    pub struct BufferConfig {
        /// Where records wait for Kafka.
        mode: BufferMode => choice().or(BufferMode::Memory);
        /// Bytes that may wait for one partition, in memory and in files together. Beyond it the oldest QoS 0
        /// messages are dropped, and publishers of QoS 1 and 2 have to wait.
        per_partition_limit: ByteSize => bytes().at_least(ByteSize(1)).or(ByteSize::mb(256));
        /// A file that has reached this size is followed by the next. In the mode `hybrid` also the bytes
        /// that wait in memory, for each partition, before any wait in files.
        segment_bytes: ByteSize => bytes().at_least(ByteSize(1)).or(ByteSize::mb(10));
        /// While memory is short (`sysmon.os.sysmem_high_watermark`), drop the oldest QoS 0 messages for new
        /// ones, and let publishers of QoS 1 and 2 wait, in partitions that hold more than `max_inflight`
        /// batches of `max_batch_bytes`. Linux, mode `memory`.
        memory_overload_protection: bool => boolean().or(true);
    }
}

fn check_headers(headers: &str) -> Result<(), String> {
    if is_lone_placeholder(headers) {
        return Ok(());
    }
    Err("exactly one placeholder is expected, such as ${pub_props}".into())
}

fn check_ext_value(value: &str) -> Result<(), String> {
    if is_lone_placeholder(value) || !has_placeholder(value) {
        return Ok(());
    }
    Err("one placeholder or a text without any is expected, not a mix of both".into())
}

/// Values that are never text.
const NOT_TEXT: [&str; 6] = ["qos", "timestamp", "publish_received_at", "flags", "pub_props", "client_attrs"];

fn warn_of_lost_headers(kafka: &ProducerKafkaConfig, object: &Object<'_>, walk: &mut Walk) {
    if kafka.kafka_header_value_encode_mode != HeaderEncoding::None {
        return;
    }
    for header in &kafka.kafka_ext_headers {
        let name = header.kafka_ext_header_value.trim_matches(['$', '{', '}', '.', ' ']);
        let lost = is_lone_placeholder(&header.kafka_ext_header_value) && NOT_TEXT.contains(&name);
        if let Some(node) = object.get("kafka_ext_headers").filter(|_| lost) {
            let message = format!(
                "`{name}` is not text, and the header {:?} will be left out; kafka_header_value_encode_mode = json writes it",
                header.kafka_ext_header_key
            );
            walk.warn_at(&node.path, node.place, message);
        }
    }
}

fn check_kafka(kafka: &ProducerKafkaConfig, object: &Object<'_>, walk: &mut Walk) {
    warn_of_lost_headers(kafka, object, walk);
    if kafka.dead_letter_topic.as_ref() == Some(&kafka.topic) {
        walk.wrong_under(object, &["dead_letter_topic"], "the topic itself; give another one");
    }
    let is_answered_early =
        kafka.buffer.mode == BufferMode::Disk && kafka.query_mode != Some(QueryMode::Sync);
    if is_answered_early && has_placeholder(&kafka.topic) && kafka.dead_letter_topic.is_none() {
        walk.warn_under(
            object,
            &["topic"],
            "publishers are answered before Kafka is asked for the topic that a message names: where there is no such topic the \
             message is counted as failed and lost; set dead_letter_topic to keep it",
        );
    }
    if kafka.message.key.is_empty() && kafka.partition_strategy != PartitionStrategy::Random {
        walk.wrong_under(
            object,
            &["message", "key"],
            "empty, and the partition strategy goes by the key; give a key or use partition_strategy = random",
        );
    }
}

/// Checks of a bridge that must not be ignored when it runs.
fn check_producer(bridge: &ProducerBridgeConfig, object: &Object<'_>, walk: &mut Walk) {
    check_connection(bridge.enable, &bridge.connection, object, walk);
}

/// A bridge that runs never speaks with less protection than its configuration says.
pub(super) fn check_connection(
    enable: bool,
    connection: &ConnectionConfig,
    object: &Object<'_>,
    walk: &mut Walk,
) {
    if enable && !client::KERBEROS && matches!(connection.authentication, Authentication::Kerberos(_)) {
        walk.wrong_under(
            object,
            &["authentication"],
            format!("no Kerberos: {}; or use another mechanism, or disable the bridge", client::NO_KERBEROS),
        );
    }
}

/// Brings the older spellings of a producer bridge into the current shape, key paths unchanged:
/// `producer { mqtt { topic }, kafka { .. } }`, and `parameters` for `kafka`.
pub(super) fn modernise<'a>(mut object: Object<'a>, walk: &mut Walk) -> Option<Object<'a>> {
    let before = walk.errors.len();
    let mut kafka: Vec<super::tree::Node<'a>> = object.take("kafka").into_iter().collect();
    kafka.extend(object.take("parameters"));
    if let Some(node) = object.take("producer") {
        let mut producer = walk.object(&node)?;
        kafka.extend(producer.take("kafka"));
        if let Some(node) = producer.take("mqtt") {
            let mut mqtt = walk.object(&node)?;
            if let Some(topic) = mqtt.take("topic") {
                object.entries.push(("producer.mqtt.topic".into(), topic));
            }
            refuse_rest(&mqtt, "topic", walk);
        }
        refuse_rest(&producer, "mqtt, kafka", walk);
    }
    let mut kafka = kafka.into_iter();
    if let Some(first) = kafka.next() {
        for second in kafka {
            walk.wrong_at::<()>(
                &second.path,
                second.place,
                format!("the same as {}; give one of the two", first.path),
            );
        }
        object.entries.push(("kafka".into(), first));
    }
    (walk.errors.len() == before).then_some(object)
}

fn refuse_rest(object: &Object<'_>, allowed: &str, walk: &mut Walk) {
    for (_, node) in &object.entries {
        walk.wrong_at::<()>(&node.path, node.place, format!("unknown key; allowed here: {allowed}"));
    }
}
