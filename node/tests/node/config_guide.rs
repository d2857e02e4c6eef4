//! The user guide's two configuration samples load as they are printed, into the values they mean.

use std::path::Path;
use std::time::Duration;

use causeway::config::{
    Authentication, BufferConfig, BufferMode, ByteSize, Compression, Config, ConsumerKafkaConfig, Encoding,
    Loaded, MASK, MessageConfig, OffsetReset, PartitionStrategy, RequiredAcks, SaslMechanism, ServerName,
    SocketOptions, TlsVersion, TopicMapping, Verify, load_file,
};

fn load(file: &str) -> Loaded<Config> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/node/config").join(file);
    load_file(&path).unwrap_or_else(|errors| panic!("{errors}"))
}

#[test]
fn the_guides_producer_sample_loads_verbatim() {
    let loaded = load("guide_producer.conf");
    let bridge = &loaded.value.bridges.kafka["kproducer"];
    let connection = &bridge.connection;

    let Authentication::Password(password) = &connection.authentication else { panic!("{connection:?}") };
    assert_eq!(password.mechanism, SaslMechanism::Plain);
    assert_eq!(password.password.reveal(), MASK);
    assert_eq!(password.username, "emqxuser");
    let hosts: Vec<String> = connection.bootstrap_hosts.iter().map(ToString::to_string).collect();
    assert_eq!(hosts, ["kafka-1.emqx.net:9093"]);
    assert_eq!(connection.connect_timeout, Duration::from_secs(5));
    assert!(!bridge.enable);
    assert_eq!(
        bridge.kafka.buffer,
        BufferConfig {
            memory_overload_protection: true,
            mode: BufferMode::Hybrid,
            per_partition_limit: ByteSize::gb(2),
            segment_bytes: ByteSize::mb(100),
        }
    );
    assert_eq!(bridge.kafka.compression, Compression::None);
    assert_eq!(bridge.kafka.max_batch_bytes, ByteSize::kb(896));
    assert_eq!(bridge.kafka.max_inflight, 10);
    assert_eq!(
        bridge.kafka.message,
        MessageConfig {
            key: "${.clientid}".into(),
            timestamp: "${.timestamp}".into(),
            value: "${.}".into(),
            empty_key_is_null: false,
            empty_value_is_null: false,
        }
    );
    assert_eq!(bridge.kafka.partition_count_refresh_interval, Duration::from_mins(1));
    assert_eq!(bridge.kafka.partition_strategy, PartitionStrategy::Random);
    assert_eq!(bridge.kafka.required_acks, RequiredAcks::AllIsr);
    assert_eq!(bridge.kafka.topic, "test-topic-two-partitions");
    assert_eq!(connection.metadata_request_timeout, Duration::from_secs(5));
    assert_eq!(connection.min_metadata_refresh_interval, Duration::from_secs(3));
    assert_eq!(
        connection.socket_opts,
        SocketOptions {
            nodelay: true,
            recbuf: ByteSize::mb(1),
            sndbuf: ByteSize::mb(1),
            tcp_keepalive: None,
        }
    );
    let ssl = &connection.ssl;
    assert_eq!((ssl.ciphers.len(), ssl.depth, ssl.enable, ssl.verify), (0, 10, false, Verify::Peer));
    assert_eq!(ssl.versions, [TlsVersion::V1_3, TlsVersion::V1_2, TlsVersion::V1_1, TlsVersion::V1_0]);

    // Not in the sample: defaults.
    assert_eq!(bridge.local_topic, None);
    assert_eq!(ssl.server_name_indication, ServerName::Auto);
    assert_eq!(connection.request_timeout, Duration::from_secs(30));

    let warned: Vec<(&str, u32)> = loaded.warnings.iter().map(|w| (w.key.as_str(), w.line)).collect();
    assert_eq!(
        warned,
        [
            ("bridges.kafka.kproducer.authentication.password", 4),
            ("bridges.kafka.kproducer.ssl.hibernate_after", 41),
            ("bridges.kafka.kproducer.ssl.reuse_sessions", 42),
            ("bridges.kafka.kproducer.ssl.secure_renegotiate", 43),
            ("bridges.kafka.kproducer.ssl.user_lookup_fun", 44),
            ("bridges.kafka.kproducer.ssl.versions[2]", 46),
            ("bridges.kafka.kproducer.ssl.versions[3]", 46),
            // Nothing of the sample keeps anybody out.
            ("authentication", 0),
        ]
    );
}

#[test]
fn the_guides_consumer_sample_loads_verbatim() {
    let loaded = load("guide_consumer.conf");
    let bridge = &loaded.value.bridges.kafka_consumer["my_consumer"];
    let connection = &bridge.connection;

    assert!(bridge.enable);
    let hosts: Vec<String> = connection.bootstrap_hosts.iter().map(ToString::to_string).collect();
    assert_eq!(hosts, ["kafka-1.emqx.net:9092"]);
    assert_eq!(connection.connect_timeout, Duration::from_secs(5));
    assert_eq!(connection.min_metadata_refresh_interval, Duration::from_secs(3));
    assert_eq!(connection.metadata_request_timeout, Duration::from_secs(5));
    let Authentication::Password(password) = &connection.authentication else { panic!("{connection:?}") };
    assert_eq!(password.mechanism, SaslMechanism::Plain);
    assert_eq!(password.username, "emqxuser");
    assert_eq!(password.password.reveal(), "password");
    assert_eq!(
        bridge.kafka,
        ConsumerKafkaConfig {
            max_batch_bytes: ByteSize::kb(896),
            max_wait_time: Duration::from_secs(1),
            max_rejoin_attempts: 5,
            offset_commit_interval_seconds: Duration::from_secs(3),
            offset_reset_policy: OffsetReset::Latest,
        }
    );
    assert_eq!(
        bridge.topic_mapping,
        [
            TopicMapping {
                kafka_topic: "kafka-topic-1".into(),
                mqtt_topic: "mqtt/topic/1".into(),
                qos: 1,
                payload_template: "${.}".into(),
            },
            TopicMapping {
                kafka_topic: "kafka-topic-2".into(),
                mqtt_topic: "mqtt/topic/2".into(),
                qos: 2,
                payload_template: "v = ${.value}".into(),
            },
        ]
    );
    assert_eq!(bridge.key_encoding_mode, Encoding::None);
    assert_eq!(bridge.value_encoding_mode, Encoding::None);
    let ssl = &connection.ssl;
    assert_eq!(
        (ssl.enable, ssl.verify, &ssl.server_name_indication),
        (false, Verify::None, &ServerName::Auto)
    );
    assert_eq!(bridge.group_id("my_consumer"), "causeway-kafka-consumer-my_consumer");
    let warned: Vec<&str> = loaded.warnings.iter().map(|warning| warning.key.as_str()).collect();
    assert_eq!(warned, ["authentication"], "nothing of the sample keeps anybody out");
}
