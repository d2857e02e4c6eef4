//! Spellings, defaults, canonical JSON, what is only warned about, and the pages made from the declarations.

use std::time::Duration;

use causeway::config::{
    BufferMode, ByteSize, Loaded, PartitionStrategy, ProducerBridgeConfig, Secrets, example, load_text,
    parse_consumer_bridge, parse_producer_bridge, reference,
};

const MINIMAL: &str = "bootstrap_hosts = \"k:9092\", kafka.topic = t";

fn producer(text: &str) -> Loaded<ProducerBridgeConfig> {
    parse_producer_bridge("b", text).unwrap_or_else(|errors| panic!("{text}\n{errors}"))
}

/// Every field with a value that is not its default.
const FULL_PRODUCER: &str = r#"
enable = false
description = "a \"note\""
tags = [one, two]
bootstrap_hosts = "k1:1, [::1]:2"
connect_timeout = 1s
min_metadata_refresh_interval = 2s
metadata_request_timeout = 3s
request_timeout = 4s
authentication { mechanism = scram_sha_512, username = u, password = tiger }
socket_opts { sndbuf = 2MB, recbuf = 3MB, nodelay = false, tcp_keepalive = "5,6,7" }
ssl {
  enable = true, verify = verify_peer, cacertfile = ca, certfile = cert, keyfile = key, password = lion
  depth = 3, versions = [tlsv1.2], ciphers = ["ECDHE-RSA-AES128-GCM-SHA256"], server_name_indication = broker.example
}
health_check_topic = probe
allow_auto_topic_creation = true
resource_opts { health_check_interval = 1m, health_check_timeout = infinity, start_after_created = false, start_timeout = 1s }
local_topic = "t/#"
ack_wait = false, allow_loop = true, pool_size = 4
kafka {
  topic = "t-${topic}"
  message { key = "${username}", value = "${payload}", timestamp = "${publish_received_at}", empty_key_is_null = true, empty_value_is_null = true }
  max_batch_bytes = 1MB
  max_linger_time = 5ms
  max_linger_bytes = 1KB
  compression = zstd
  partition_strategy = random
  required_acks = leader_only
  kafka_headers = "${pub_props}"
  kafka_ext_headers = [{ kafka_ext_header_key = "a", kafka_ext_header_value = "${topic}" }]
  kafka_header_value_encode_mode = json
  partition_count_refresh_interval = 0
  partitions_limit = 3
  max_inflight = 1
  max_batch_age = 1h
  max_retries = 0
  reconnect_delay = 1ms
  query_mode = sync
  sync_query_timeout = 1s
  dynamic_topics { max_topics = 7, idle_timeout = 1s, memory_limit = 1MB }
  buffer { mode = hybrid, per_partition_limit = 1GB, segment_bytes = 1MB, memory_overload_protection = false }
  dead_letter_topic = dead
}
"#;

const FULL_CONSUMER: &str = r#"
enable = false, description = d, tags = [x], bootstrap_hosts = k
authentication { kerberos_principal = p, kerberos_keytab_file = /k }
topic_mapping = [
  { kafka_topic = a, mqtt_topic = "x/${.key}", qos = 2, payload_template = "${.value}" }
  { kafka_topic = b, mqtt_topic = y }
]
key_encoding_mode = base64, value_encoding_mode = base64, group_id = g, when_no_subscriber = hold, allow_loop = true
kafka {
  max_batch_bytes = 1, max_wait_time = 2s, max_rejoin_attempts = 1, offset_reset_policy = earliest
  offset_commit_interval_seconds = 1
}
"#;

const WITH_TOKENS: &str = r#"
bootstrap_hosts = k, kafka.topic = t
authentication {
  mechanism = oauth, endpoint_uri = "https://h/t", client_id = i, client_secret = tiger, scope = "a b"
  endpoint_cacertfile = "/ca.pem", extensions { logicalCluster = c }
}
"#;

#[test]
fn canonical_json_reads_back_as_the_same_bridge() {
    for text in [FULL_PRODUCER, MINIMAL, WITH_TOKENS] {
        let bridge = producer(text).value;
        let json = bridge.canonical_json(Secrets::Revealed);
        assert_eq!(producer(&json.to_string()).value, bridge);
        assert_eq!(producer(&serde_json::to_string_pretty(&json).unwrap()).value, bridge);
    }
    let bridge = parse_consumer_bridge("c", FULL_CONSUMER).unwrap().value;
    let json = bridge.canonical_json(Secrets::Revealed).to_string();
    assert_eq!(parse_consumer_bridge("c", &json).unwrap().value, bridge);
}

/// So that the round trip above covers each field: a field left at its default proves nothing.
#[test]
fn the_full_bridges_above_leave_no_field_at_its_default() {
    fn same_leaves(path: &str, a: &serde_json::Value, b: &serde_json::Value, same: &mut Vec<String>) {
        if let (Some(a), Some(b)) = (a.as_object(), b.as_object()) {
            for (key, a) in a {
                same_leaves(
                    &format!("{path}.{key}"),
                    a,
                    b.get(key).unwrap_or(&serde_json::Value::Null),
                    same,
                );
            }
        } else if a == b {
            same.push(path.to_owned());
        }
    }
    let mut same = Vec::new();
    let json = |text| producer(text).value.canonical_json(Secrets::Revealed);
    same_leaves("", &json(FULL_PRODUCER), &json(MINIMAL), &mut same);
    let keys = json(FULL_PRODUCER)["kafka"].as_object().unwrap().len();
    assert_eq!((same, keys), (vec![], 22));
}

#[test]
fn secrets_are_masked_everywhere_but_where_they_are_asked_for() {
    let bridge = producer(FULL_PRODUCER).value;
    for shown in [
        format!("{bridge:?}"),
        serde_json::to_string(&bridge).unwrap(),
        bridge.canonical_json(Secrets::Masked).to_string(),
    ] {
        assert!(!shown.contains("tiger") && !shown.contains("lion") && shown.contains("******"), "{shown}");
    }
    let revealed = bridge.canonical_json(Secrets::Revealed).to_string();
    assert!(revealed.contains("tiger") && revealed.contains("lion"));

    // What was shown comes back changed elsewhere: the stored secrets stay.
    let mut sent = producer(&serde_json::to_string(&bridge).unwrap().replace("leader_only", "all_isr")).value;
    sent.keep_secrets_of(&bridge);
    let revealed = sent.canonical_json(Secrets::Revealed).to_string();
    assert!(revealed.contains("tiger") && revealed.contains("lion") && revealed.contains("all_isr"));
}

/// L23
#[test]
fn a_minimal_producer_has_the_documented_defaults() {
    let bridge = producer(MINIMAL).value;
    assert!(bridge.enable && bridge.ack_wait);
    assert_eq!(bridge.kafka.buffer.per_partition_limit, ByteSize::mb(256));
    assert_eq!(bridge.kafka.buffer.segment_bytes, ByteSize::mb(10));
    assert!(bridge.kafka.buffer.memory_overload_protection);
    assert_eq!(bridge.kafka.partition_strategy, PartitionStrategy::KeyDispatch);
    assert_eq!(bridge.kafka.query_mode, None);
    assert_eq!(bridge.kafka.sync_query_timeout, Duration::from_secs(5));
    assert_eq!(bridge.kafka.max_linger_time, Duration::ZERO);
    assert_eq!(bridge.kafka.max_linger_bytes, ByteSize::mb(10));
    assert_eq!((bridge.kafka.max_batch_age, bridge.kafka.max_retries), (None, None));
    assert_eq!(bridge.connection.resource_opts.health_check_interval, Duration::from_secs(15));
    assert_eq!(bridge.connection.resource_opts.health_check_timeout, Some(Duration::from_mins(1)));
}

#[test]
fn older_spellings_of_a_producer_mean_the_same() {
    let expected = producer("bootstrap_hosts = k, local_topic = \"t/#\", kafka.topic = t").value;
    for text in [
        "bootstrap_hosts = k, mqtt_topic = \"t/#\", kafka.topic = t",
        "bootstrap_hosts = k, producer.mqtt.topic = \"t/#\", kafka.topic = t",
        "bootstrap_hosts = k, producer { mqtt { topic = \"t/#\" }, kafka { topic = t } }",
        "bootstrap_hosts = k, local_topic = \"t/#\", parameters { topic = t }",
        r#"{"bootstrap_hosts": "k", "local_topic": "t/#", "kafka": {"topic": "t"}}"#,
    ] {
        assert_eq!(producer(text).value, expected, "{text}");
    }
}

#[test]
fn consumer_spellings_and_units_of_the_guide_are_read() {
    let body = "bootstrap_hosts = k, topic_mapping = [{ kafka_topic = a, mqtt_topic = b }]";
    for (text, seconds) in [("3", 3), ("\"3\"", 3), ("3s", 3), ("1m", 60)] {
        let text = format!("{body}\nkafka.offset_commit_interval_seconds = {text}");
        let bridge = parse_consumer_bridge("c", &text).unwrap().value;
        assert_eq!(bridge.kafka.offset_commit_interval_seconds, Duration::from_secs(seconds), "{text}");
    }
    for (word, canonical) in [
        ("latest", "latest"),
        ("reset_to_latest", "latest"),
        ("reset_by_subscriber", "latest"),
        ("earliest", "earliest"),
        ("reset_to_earliest", "earliest"),
    ] {
        let text = format!("{body}\nkafka.offset_reset_policy = {word}");
        let json = parse_consumer_bridge("c", &text).unwrap().value.canonical_json(Secrets::Masked);
        assert_eq!(json["kafka"]["offset_reset_policy"], canonical);
    }
    let bridge = parse_consumer_bridge("c", &format!("{body}\ngroup_id = \"\"")).unwrap().value;
    assert_eq!(bridge.group_id("c"), "causeway-kafka-consumer-c");
}

#[test]
fn what_hocon_takes_for_a_comment_is_pointed_out() {
    let loaded = producer("bootstrap_hosts = k, kafka.topic = t\nlocal_topic = t/#\n");
    assert_eq!(loaded.value.local_topic.as_deref(), Some("t/"));
    let [warning] = loaded.warnings.as_slice() else { panic!("{:?}", loaded.warnings) };
    assert!(
        warning.to_string().starts_with("bridge \"b\":2: local_topic = \"t/\": the filter ends in `/`"),
        "{warning}"
    );
    assert_eq!(producer("bootstrap_hosts = k, kafka.topic = t\nlocal_topic = \"t/#\"\n").warnings, []);
}

#[test]
fn a_name_that_messages_never_have_is_pointed_out() {
    let loaded =
        producer("bootstrap_hosts = k, kafka.topic = t, kafka.message.key = \"${.clientId}/${topic}\"");
    let [warning] = loaded.warnings.as_slice() else { panic!("{:?}", loaded.warnings) };
    assert!(warning.message.contains("never have `clientId`"), "{warning}");
}

#[test]
fn a_topic_by_message_on_the_disk_without_dead_letters_is_pointed_out() {
    let named = "bootstrap_hosts = k, kafka { topic = \"t-${clientid}\", buffer.mode = disk";
    let loaded = producer(&format!("{named} }}"));
    let [warning] = loaded.warnings.as_slice() else { panic!("{:?}", loaded.warnings) };
    assert!(warning.message.contains("set dead_letter_topic to keep it"), "{warning}");
    assert_eq!(warning.key, "kafka.topic");
    for fine in [", dead_letter_topic = d }", ", query_mode = sync }"] {
        assert_eq!(producer(&format!("{named}{fine}")).warnings, [], "{fine}");
    }
    let fixed = named.replace("t-${clientid}", "t");
    assert_eq!(producer(&format!("{fixed} }}")).warnings, []);
}

#[test]
fn a_header_that_its_encoding_will_always_leave_out_is_pointed_out() {
    let text = |value: &str, mode: &str| {
        format!(
            "{MINIMAL}, kafka {{ kafka_header_value_encode_mode = {mode}, kafka_ext_headers = \
             [{{ kafka_ext_header_key = k, kafka_ext_header_value = \"{value}\" }}] }}"
        )
    };
    let loaded = producer(&text("${.qos}", "none"));
    let [warning] = loaded.warnings.as_slice() else { panic!("{:?}", loaded.warnings) };
    assert!(warning.message.contains("`qos` is not text"), "{warning}");
    for fine in [text("${.qos}", "json"), text("${topic}", "none"), text("qos", "none")] {
        assert_eq!(producer(&fine).warnings, [], "{fine}");
    }
}

#[test]
fn keys_of_others_that_never_have_an_effect_are_warned_about() {
    let loaded = producer(
        "bootstrap_hosts = k, kafka.topic = t\nhealth_check_topic = probe\nresource_opts { health_check_interval = 1m\n\
         health_check_timeout = 1m\nstart_after_created = true\nstart_timeout = 1s }",
    );
    let warned: Vec<(&str, u32)> = loaded.warnings.iter().map(|w| (w.key.as_str(), w.line)).collect();
    let mut expected = [
        ("health_check_topic", 2),
        ("resource_opts.health_check_interval", 3),
        ("resource_opts.health_check_timeout", 4),
        ("resource_opts.start_after_created", 5),
        ("resource_opts.start_timeout", 6),
    ];
    expected.sort_unstable();
    let mut sorted = warned.clone();
    sorted.sort_unstable();
    assert_eq!(sorted, expected, "{warned:?}");
    assert!(loaded.warnings.iter().all(|warning| warning.message.starts_with("has no effect: ")));
}

#[test]
fn every_buffer_mode_is_read_without_a_remark() {
    for (word, mode) in
        [("memory", BufferMode::Memory), ("disk", BufferMode::Disk), ("hybrid", BufferMode::Hybrid)]
    {
        let loaded = producer(&format!("bootstrap_hosts = k, kafka {{ topic = t, buffer.mode = {word} }}"));
        assert_eq!((loaded.value.kafka.buffer.mode, loaded.warnings), (mode, vec![]));
    }
    // Only the disk buffer needs to know the topic beforehand.
    let named = "bootstrap_hosts = k, kafka { topic = \"t-${clientid}\", buffer.mode = hybrid }";
    assert_eq!(producer(named).warnings, []);
}

#[cfg(not(feature = "gssapi"))]
#[test]
fn a_disabled_bridge_may_ask_for_what_this_build_cannot_do() {
    let text = "enable = false, bootstrap_hosts = k, kafka.topic = \"${topic}\"\n\
                authentication { kerberos_principal = p, kerberos_keytab_file = k }";
    assert!(parse_producer_bridge("b", text).is_ok());
    let enabled = parse_producer_bridge("b", &text.replace("false", "true")).unwrap_err();
    let keys: Vec<&str> = enabled.0.iter().map(|problem| problem.key.as_str()).collect();
    assert_eq!(keys, ["authentication"]);
}

#[test]
fn an_empty_file_is_a_node_with_one_listener() {
    let config = load_text("empty", "").unwrap().value;
    assert_eq!(config.listeners.tcp["default"].common.bind.to_string(), "0.0.0.0:1883");
    assert_eq!(config.admin.bind.to_string(), "127.0.0.1:8081");
    assert_eq!(config.mqtt.max_packet_size, ByteSize::mb(1));
    assert!(config.bridges.kafka.is_empty() && config.bridges.kafka_consumer.is_empty());
}

#[test]
fn the_example_loads_without_a_word() {
    let loaded = load_text("example", &example()).unwrap();
    assert_eq!(loaded.warnings, []);
    assert_eq!(loaded.value.bridges.kafka["to_kafka"].local_topic.as_deref(), Some("t/#"));
}

#[test]
fn the_defaults_that_the_example_shows_are_the_defaults() {
    // `#key = value` is a setting that is off, `# text` is a comment.
    let example = example();
    let switched_on: Vec<&str> = example
        .lines()
        .map(|line| {
            let setting = line.trim_start().strip_prefix('#').filter(|rest| !rest.starts_with(' '));
            setting.unwrap_or(line)
        })
        .collect();
    let switched_on = switched_on.join("\n");
    assert!(switched_on.contains("\nmax_inflight = 128\n"), "{switched_on}");
    let on = load_text("example", &switched_on).unwrap_or_else(|errors| panic!("{errors}"));
    let off = load_text("example", &example).unwrap();
    assert_eq!(on.value, off.value);
}

#[test]
fn the_committed_reference_is_what_the_declarations_say() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/configuration.md");
    let committed = std::fs::read_to_string(path).unwrap();
    assert!(
        committed == reference(),
        "docs/configuration.md is out of date: cargo run -- config reference > docs/configuration.md"
    );
}
