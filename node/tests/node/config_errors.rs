//! What is wrong with a configuration is said with line, key path, value and what would be right.

use causeway::config::{load_text, parse_consumer_bridge, parse_producer_bridge};

/// Whole files.
const GENERAL: &[(&str, &str)] = &[
    (
        "lisseners.tcp.x.bind = 1883",
        "1: lisseners: unknown key; did you mean listeners?; allowed here: node, listeners, mqtt, sys_topics, authentication, authorization, sysmon, log, admin, bridges",
    ),
    (
        "dashboard { port = 18083 }",
        "1: dashboard: unknown key; allowed here: node, listeners, mqtt, sys_topics, authentication, authorization, sysmon, log, admin, bridges",
    ),
    (
        "authentication.allow_anonymous = false",
        "1: authentication.allow_anonymous: no client can connect: anonymous ones may not, and no backends know any other; ...",
    ),
    (
        "authentication.backends = [ { path = x } ]",
        "1: authentication.backends[0] = {...}: lacks its type; allowed: built_in_database, password_file, jwt, client_certificate",
    ),
    (
        "authentication.backends = [ { type = builtin_database } ]",
        "1: authentication.backends[0] = {...}: the type \"builtin_database\" is not known; allowed: built_in_database, password_file, jwt, client_certificate; did you mean built_in_database?",
    ),
    (
        "authentication = [ { mechanism = scram, backend = built_in_database } ]",
        "1: authentication[0].mechanism = \"scram\": SCRAM is a part of the user database here; write { type = built_in_database, scram = true }",
    ),
    (
        "authentication.backends = [ { type = jwt } ]",
        "1: authentication.backends[0]: a token is checked with one of secret, public_key and jwks_file; give exactly one of them",
    ),
    (
        "authentication.backends = [ { type = jwt, secret = tiger, jwks_file = x } ]",
        "1: authentication.backends[0]: a token is checked with one of secret, public_key and jwks_file; give exactly one of them",
    ),
    (
        "authentication.backends = [ { type = jwt, secret = tiger, algorithms = [none] } ]",
        "1: authentication.backends[0].algorithms[0] = \"none\": not known; allowed: HS256, ...",
    ),
    (
        "authentication.backends = [ { type = jwt, from = username, secret = tiger, verify_claims { sub = \"${username}\" } } ]",
        "1: authentication.backends[0].verify_claims: with from = username the user name is the token itself; only ${clientid} can be asked for",
    ),
    (
        "authentication.backends = [ { type = built_in_database }, { type = built_in_database } ]",
        "1: authentication.backends: built_in_database is there twice; once is enough",
    ),
    (
        "authorization.no_match = ignore",
        "1: authorization.no_match = \"ignore\": not known; allowed: allow, deny",
    ),
    (
        "authorization.rules = [ { action = publish } ]",
        "1: authorization.rules[0].permission: required and missing; allowed: allow, deny",
    ),
    (
        "authorization.rules = [ { permission = allow, topics = [\"a/#/b\"] } ]",
        "1: authorization.rules[0].topics[0] = \"a/#/b\": `#` must be the whole last level of a topic filter, as in `a/#`",
    ),
    (
        "authorization.rules = [ { permission = allow, topics = \"${client}/x\" } ]",
        "1: authorization.rules[0].topics = \"${client}/x\": the placeholder ${client} is not known here; allowed: ${clientid}, ${username}",
    ),
    (
        "authorization.rules = [ { permission = allow, ipaddr = \"10.0.0.1/8\" } ]",
        "1: authorization.rules[0].ipaddr = \"10.0.0.1/8\": the address has bits beyond the length of the network; did you mean 10.0.0.0/8?",
    ),
    (
        "authorization.rules = [ { permission = allow, qos = [] } ]",
        "1: authorization.rules[0].qos = [...]: no level: the rule would never fit; allowed: 0, 1, 2",
    ),
    (
        "node.nmae = a",
        "1: node.nmae: unknown key; did you mean name?; allowed here: name, data_dir, max_buffer_memory",
    ),
    ("node = 5", "1: node = 5: an object in braces is expected here"),
    (
        r#"node.name = "a b""#,
        r#"1: node.name = "a b": not a node name; write letters, digits, `.`, `_` or `-`, at most 128 of them"#,
    ),
    (r#"node.data_dir = """#, r#"1: node.data_dir = "": empty; write a folder"#),
    (
        "node.max_buffer_memory = 100KB",
        r#"1: node.max_buffer_memory = "100KB": out of range; allowed: 1MB to 1048576GB"#,
    ),
    (
        "sysmon.os.sysmem_high_watermark = 70",
        "1: sysmon.os.sysmem_high_watermark = 70: a percentage from 1% to 100% is expected, such as 70%",
    ),
    (
        "sysmon.os.sysmem_high_watermark = 0%",
        r#"1: sysmon.os.sysmem_high_watermark = "0%": a percentage from 1% to 100% is expected, such as 70%"#,
    ),
    ("listeners.tcp.default {}", "1: listeners.tcp.default.bind: required and missing (address)"),
    (
        r#"listeners.tcp.default.bind = "1883a""#,
        r#"1: listeners.tcp.default.bind = "1883a": not an address to listen on; write a port or address:port, such as 0.0.0.0:1883"#,
    ),
    (
        r#"listeners.tcp.default.bind = "mqtt.example.org:1883""#,
        r#"1: listeners.tcp.default.bind = "mqtt.example.org:1883": `mqtt.example.org` is not an address to listen on; write an IP address (IPv6 in brackets), such as 0.0.0.0:1883"#,
    ),
    (
        "listeners.tcp.default { bind = 70000 }",
        "1: listeners.tcp.default.bind = 70000: `70000` is not a port; a port is a number from 0 (any free one) to 65535",
    ),
    (
        r#"listeners.tcp."a b" { bind = 1883 }"#,
        r#"1: listeners.tcp."a b": not a listener name; it starts with a letter or digit and goes on with letters, digits, `-`, `_` or `.`, at most 254 of them"#,
    ),
    (
        "listeners.tcp.x { bind = 1883, max_connections = 0 }",
        "1: listeners.tcp.x.max_connections = 0: out of range; allowed: 1 to 10000000",
    ),
    ("listeners.quic.x { bind = 14567 }", "1: listeners.quic: unknown key; allowed here: tcp, ssl, ws, wss"),
    (
        "mqtt.max_packet_size = 1TB",
        r#"1: mqtt.max_packet_size = "1TB": not a byte size; write a whole number with B, KB, MB or GB, such as 896KB; allowed: 1KB to 256MB"#,
    ),
    ("mqtt.max_packet_size = 512", "1: mqtt.max_packet_size = 512: out of range; allowed: 1KB to 256MB"),
    ("mqtt.receive_maximum = -1", "1: mqtt.receive_maximum = -1: out of range; allowed: 1 to 65535"),
    ("mqtt.receive_maximum = 65536", "1: mqtt.receive_maximum = 65536: out of range; allowed: 1 to 65535"),
    (
        "mqtt.receive_maximum = 70000000000000000000000",
        "1: mqtt.receive_maximum = 70000000000000000000000: out of range; allowed: 1 to 65535",
    ),
    ("mqtt.max_topic_alias = 65536", "1: mqtt.max_topic_alias = 65536: out of range; allowed: 0 to 65535"),
    (
        r#"mqtt.session_expiry_interval = "1 fortnight""#,
        r#"1: mqtt.session_expiry_interval = "1 fortnight": not a duration; write a whole number with ms, s, m, h, d or w, such as 500ms or 5s (parts may be joined: 1h30m)"#,
    ),
    (
        "mqtt.session_expiry_interval = 100000w",
        r#"1: mqtt.session_expiry_interval = "100000w": out of range; allowed: 0s to 49d"#,
    ),
    ("mqtt.connect_timeout = 1ms", r#"1: mqtt.connect_timeout = "1ms": out of range; allowed: 100ms to 1h"#),
    (
        "listeners { tcp { x { bind = 1, enable = maybe } } }",
        r#"1: listeners.tcp.x.enable = "maybe": not a boolean; write true or false"#,
    ),
    ("log.level = loud", r#"1: log.level = "loud": not known; allowed: error, warn, info, debug, trace"#),
    (
        "log.level = inof",
        r#"1: log.level = "inof": not known; allowed: error, warn, info, debug, trace; did you mean info?"#,
    ),
    ("log.format = [json]", "1: log.format = [...]: one word is expected; allowed: text, json"),
    (
        r#"admin.bind = "0.0.0.0:8081""#,
        r#"1: admin.bind = "0.0.0.0:8081": the admin link trusts who can reach it: only a loopback address is allowed, such as 127.0.0.1:8081"#,
    ),
    (
        r#"bridges.kafka."-x" { bootstrap_hosts = k, kafka.topic = t }"#,
        "1: bridges.kafka.-x: not a bridge name; it starts with a letter or digit and goes on with letters, digits, `-`, `_` or `.`, at most 254 of them",
    ),
    (
        "bridges.kafka.b {}",
        "1: bridges.kafka.b.bootstrap_hosts: required and missing (text)\n1: bridges.kafka.b.kafka.topic: required and missing (template)",
    ),
    (
        "bridges.kafka_producer.b {}",
        "1: bridges.kafka_producer: unknown key; did you mean kafka?; allowed here: kafka, kafka_consumer",
    ),
    (
        r#"bridges.kafka.b { bootstrap_hosts = "", kafka.topic = t }"#,
        r#"1: bridges.kafka.b.bootstrap_hosts = "": empty; write at least one host:port"#,
    ),
    (
        r#"bridges.kafka.b { bootstrap_hosts = "a:1,,b", kafka.topic = t }"#,
        r#"1: bridges.kafka.b.bootstrap_hosts = "a:1,,b": has an empty entry between commas; write host:port,host:port"#,
    ),
    (
        r#"bridges.kafka.b { bootstrap_hosts = "::1", kafka.topic = t }"#,
        r#"1: bridges.kafka.b.bootstrap_hosts = "::1": `::1` is an IPv6 address; write it in brackets, as [::1]:9092"#,
    ),
    (
        r#"bridges.kafka.b { bootstrap_hosts = ["a"], kafka.topic = t }"#,
        "1: bridges.kafka.b.bootstrap_hosts = [...]: a single value is expected here (text)",
    ),
    (
        r#"bridges.kafka.b { bootstrap_hosts = k, kafka.topic = "a b" }"#,
        r#"1: bridges.kafka.b.kafka.topic = "a b": not a Kafka topic name; write letters, digits, `.`, `_` or `-`, at most 249 of them"#,
    ),
    (
        "bridges.kafka_consumer.c { bootstrap_hosts = k }",
        "1: bridges.kafka_consumer.c.topic_mapping: required and missing (list of objects)",
    ),
    ("a = {", "1: syntax error: expected }: the `{` of line 1 is not closed"),
    (
        "bridges.kafka.b.kafka.message.value = ${.payload}",
        r#"1: `${` outside quotes is not possible here; write a template in quotes, as "${.payload}""#,
    ),
    (
        r#"authentication.password = "tiger"#,
        r#"1: the quote that opens here is not closed on its line; a text of several lines takes """ at both ends"#,
    ),
    ("[1, 2]", "1: syntax error: keys and values are expected, not a list"),
    (
        "a = ${nowhere}",
        r#"1: `${` outside quotes is not possible here; write a template in quotes, as "${.payload}""#,
    ),
];

/// Line 4 of a producer bridge; the key paths without `bridges.kafka.b.`.
const PRODUCER: &[(&str, &str)] = &[
    ("topic = t", "4: topic: unknown key; did you mean kafka.topic?; allowed here: ..."),
    (
        "kafka.compresion = gzip",
        "4: kafka.compresion: unknown key; did you mean compression?; allowed here: ...",
    ),
    (
        "kafka.compression = zip",
        r#"4: kafka.compression = "zip": not known; allowed: no_compression, gzip, snappy, lz4, zstd; did you mean gzip?"#,
    ),
    (
        "kafka.compression = brotli",
        r#"4: kafka.compression = "brotli": not known; allowed: no_compression, gzip, snappy, lz4, zstd"#,
    ),
    (
        "kafka.partition_strategy = round_robin",
        r#"4: kafka.partition_strategy = "round_robin": not known; allowed: random, key_dispatch, key_dispatch_phash2"#,
    ),
    (
        "kafka.required_acks = all",
        r#"4: kafka.required_acks = "all": not known; allowed: all_isr, leader_only, none"#,
    ),
    ("kafka.max_inflight = 0", "4: kafka.max_inflight = 0: out of range; allowed: 1 to 65535"),
    (
        "kafka.max_batch_bytes = 896KiB",
        r#"4: kafka.max_batch_bytes = "896KiB": not a byte size; write a whole number with B, KB, MB or GB, such as 896KB; allowed: 1B to 1GB"#,
    ),
    (
        "kafka.max_batch_bytes = { a = 1 }",
        "4: kafka.max_batch_bytes = {...}: a single value is expected here (byte size)",
    ),
    (
        "kafka.partition_count_refresh_interval = 1.5s",
        r#"4: kafka.partition_count_refresh_interval = "1.5s": not a duration; write a whole number with ms, s, m, h, d or w, such as 500ms or 5s (parts may be joined: 1h30m)"#,
    ),
    ("kafka.partitions_limit = 0", "4: kafka.partitions_limit = 0: out of range; allowed: 1 to 4294967295"),
    (
        "kafka.partitions_limit = all",
        r#"4: kafka.partitions_limit = "all": not a whole number; allowed: 1 to 4294967295"#,
    ),
    (
        "kafka.max_batch_age = forever",
        r#"4: kafka.max_batch_age = "forever": not a duration; write a whole number with ms, s, m, h, d or w, such as 500ms or 5s (parts may be joined: 1h30m)"#,
    ),
    ("kafka.max_retries = -1", "4: kafka.max_retries = -1: out of range; allowed: 0 to 4294967295"),
    ("kafka.query_mode = fast", r#"4: kafka.query_mode = "fast": not known; allowed: async, sync"#),
    (
        "kafka.kafka_headers = wrong_header",
        r#"4: kafka.kafka_headers = "wrong_header": exactly one placeholder is expected, such as ${pub_props}"#,
    ),
    (
        r#"kafka.kafka_headers = "a ${pub_props}""#,
        r#"4: kafka.kafka_headers = "a ${pub_props}": exactly one placeholder is expected, such as ${pub_props}"#,
    ),
    (
        r#"kafka.kafka_headers = "${a}${b}""#,
        r#"4: kafka.kafka_headers = "${a}${b}": exactly one placeholder is expected, such as ${pub_props}"#,
    ),
    (
        "kafka.kafka_ext_headers = [{ kafka_ext_header_key = a }]",
        "4: kafka.kafka_ext_headers[0].kafka_ext_header_value: required and missing (template)",
    ),
    (
        r#"kafka.kafka_ext_headers = [{ kafka_ext_header_key = a, kafka_ext_header_value = "x${b}" }]"#,
        r#"4: kafka.kafka_ext_headers[0].kafka_ext_header_value = "x${b}": one placeholder or a text without any is expected, not a mix of both"#,
    ),
    (
        r#"kafka.message.key = """#,
        "4: kafka.message.key: empty, and the partition strategy goes by the key; give a key or use partition_strategy = random",
    ),
    ("kafka.buffer.mode = ram", r#"4: kafka.buffer.mode = "ram": not known; allowed: memory, disk, hybrid"#),
    (
        "kafka.buffer.per_partition_limit = 0",
        "4: kafka.buffer.per_partition_limit = 0: out of range; allowed: 1B to 1048576GB",
    ),
    (
        r#"kafka.dead_letter_topic = "..""#,
        r#"4: kafka.dead_letter_topic = "..": not a Kafka topic name; write letters, digits, `.`, `_` or `-`, at most 249 of them"#,
    ),
    (
        r#"local_topic = "a/#/b""#,
        r#"4: local_topic = "a/#/b": `#` must be the whole last level of a topic filter, as in `a/#`"#,
    ),
    (
        r#"local_topic = "a+""#,
        r#"4: local_topic = "a+": `+` must be a whole level of a topic filter, as in `a/+/b`"#,
    ),
    (
        "local_topic = a, mqtt_topic = b",
        r#"4: mqtt_topic = "b": the same as local_topic; give one of the two"#,
    ),
    (
        "local_topic = a, producer.mqtt.topic = b",
        r#"4: producer.mqtt.topic = "b": the same as local_topic; give one of the two"#,
    ),
    (
        "producer { mqtt { topic = a, qos = 1 }, mode = x }",
        "4: producer.mqtt.qos: unknown key; allowed here: topic\n4: producer.mode: unknown key; allowed here: mqtt, kafka",
    ),
    ("parameters { topic = u }", "4: parameters: the same as kafka; give one of the two"),
    (
        "socket_opts.tcp_keepalive = invalid",
        r#"4: socket_opts.tcp_keepalive = "invalid": write none, or three whole numbers Idle,Interval,Probes, such as 240,30,5"#,
    ),
    (
        r#"socket_opts.tcp_keepalive = "5,6""#,
        r#"4: socket_opts.tcp_keepalive = "5,6": write none, or three whole numbers Idle,Interval,Probes, such as 240,30,5"#,
    ),
    (
        r#"socket_opts.tcp_keepalive = "5,6,1000""#,
        r#"4: socket_opts.tcp_keepalive = "5,6,1000": the number of probes is out of range; allowed: 1 to 127"#,
    ),
    ("socket_opts.sndbuf = 0", "4: socket_opts.sndbuf = 0: out of range; allowed: 1KB to 1GB"),
    ("connect_timeout = 0", "4: connect_timeout = 0: out of range; allowed: 1ms to 49d"),
    (
        "resource_opts.health_check_interval = 500ms",
        r#"4: resource_opts.health_check_interval = "500ms": out of range; allowed: 1s to 1h"#,
    ),
    (
        "ssl { enable = true, ciphers = [AES128-SHA, TLS_AES_128_GCM_SHA256], versions = [tlsv1.2] }",
        "4: ssl.ciphers: none of them is supported with the versions; leave it empty, or write some of TLS_AES_256_GCM_SHA384, TLS_AES_128_GCM_SHA256, TLS_CHACHA20_POLY1305_SHA256, ECDHE-ECDSA-AES256-GCM-SHA384, ECDHE-ECDSA-AES128-GCM-SHA256, ECDHE-ECDSA-CHACHA20-POLY1305, ECDHE-RSA-AES256-GCM-SHA384, ECDHE-RSA-AES128-GCM-SHA256, ECDHE-RSA-CHACHA20-POLY1305",
    ),
    ("ssl.cacertfile = \"\"", "4: ssl.cacertfile: empty; the path of a PEM file, or PEM text, is expected"),
    (
        "ssl { enable = true, versions = [tlsv1.1] }",
        "4: ssl.versions: no version that is supported is left; allowed: tlsv1.3, tlsv1.2",
    ),
    (r#"ssl { certfile = "a.pem" }"#, "4: ssl: certfile and keyfile are given together or not at all"),
    (
        "ssl.versions = [sslv3]",
        r#"4: ssl.versions[0] = "sslv3": not known; allowed: tlsv1.3, tlsv1.2, tlsv1.1, tlsv1"#,
    ),
    ("ssl.depth = 256", "4: ssl.depth = 256: out of range; allowed: 0 to 255"),
    (
        r#"ssl.server_name_indication = "a b""#,
        r#"4: ssl.server_name_indication = "a b": not a host name; write auto, disable or a host name"#,
    ),
    (
        "authentication { mechanism = plain, username = u }",
        "4: authentication.password: required and missing (secret: text, or `file://PATH` to read it from a file)",
    ),
    (
        "authentication { mechanism = scram_sha_1, username = u, password = tiger }",
        r#"4: authentication.mechanism = "scram_sha_1": not known; allowed: plain, scram_sha_256, scram_sha_512; did you mean scram_sha_512?"#,
    ),
    #[cfg(not(feature = "gssapi"))]
    (
        "authentication { kerberos_principal = p, kerberos_keytab_file = k }",
        "4: authentication: no Kerberos: this build lacks the feature gssapi; take the container image, or build with --features gssapi (which needs libkrb5-dev and libclang-dev); or use another mechanism, or disable the bridge",
    ),
    (
        "authentication { mechanism = oauth, endpoint_uri = \"https://h/t\", client_id = i }",
        "4: authentication: client_secret is required with grant_type = client_credentials",
    ),
    (
        "authentication { mechanism = oauth, endpoint_uri = h, client_id = i, client_secret = tiger }",
        r#"4: authentication.endpoint_uri = "h": not a URL; write https://HOST/PATH or http://HOST:PORT/PATH"#,
    ),
    (
        "authentication { mechanism = oauth, grant_type = token_file, client_secret = tiger }",
        "4: authentication.client_secret: has no meaning with grant_type = token_file\n4: authentication: token_file is required with grant_type = token_file",
    ),
    (
        "authentication { mechanism = oauth, grant_type = token_file, token_file = t, extensions { auth = tiger } }",
        "4: authentication.extensions.auth: the name of an extension is of the letters a to z and A to Z, and is not auth",
    ),
    (
        "authentication { username = u, passwort = tiger }",
        "4: authentication: lacks its mechanism; write none, an object with mechanism (plain, scram_sha_256, scram_sha_512), username and password, one with mechanism oauth, or one with kerberos_principal and kerberos_keytab_file",
    ),
    (
        "authentication { mechanism = plain, username = u, passwort = tiger }",
        "4: authentication.passwort: unknown key; did you mean password?; allowed here: mechanism, username, password\n4: authentication.password: required and missing (secret: text, or `file://PATH` to read it from a file)",
    ),
    (
        "authentication { mechanism = plain, username = u, password = { a = tiger } }",
        "4: authentication.password: a text in quotes is expected here",
    ),
    (
        "authentication { kerberos_principal = p }",
        "4: authentication.kerberos_keytab_file: required and missing (text)",
    ),
    (
        "authentication = tiger",
        "4: authentication: not known; write none, an object with mechanism (plain, scram_sha_256, scram_sha_512), username and password, one with mechanism oauth, or one with kerberos_principal and kerberos_keytab_file",
    ),
    (
        "kafka { topic = same, dead_letter_topic = same }",
        "4: kafka.dead_letter_topic: the topic itself; give another one",
    ),
    (
        "kafka.dynamic_topics.max_topics = 0",
        "4: kafka.dynamic_topics.max_topics = 0: out of range; allowed: 1 to 100000",
    ),
    ("tags = a", r#"4: tags = "a": a list in brackets is expected here"#),
];

/// Line 4 of a consumer bridge; the key paths without `bridges.kafka_consumer.c.`.
const CONSUMER: &[(&str, &str)] = &[
    (
        "topic_mapping = []",
        "4: topic_mapping = [...]: empty; at least one entry with kafka_topic and mqtt_topic is required",
    ),
    ("topic_mapping = {}", "4: topic_mapping = {...}: a list in brackets is expected here"),
    (
        "topic_mapping = [{ kafka_topic = a, mqtt_topic = b }, { kafka_topic = a, mqtt_topic = c }]",
        r#"4: topic_mapping = [...]: the Kafka topic "a" is mapped more than once; each one is allowed once"#,
    ),
    (
        r#"topic_mapping = [{ kafka_topic = a, mqtt_topic = "b/+" }]"#,
        r#"4: topic_mapping[0].mqtt_topic = "b/+": topic name contains the wildcard `+`, which only a topic filter may"#,
    ),
    (
        r#"topic_mapping = [{ kafka_topic = a, mqtt_topic = "b/${.x}/#" }]"#,
        r#"4: topic_mapping[0].mqtt_topic = "b/${.x}/#": topic name contains the wildcard `#`, which only a topic filter may"#,
    ),
    (
        r#"topic_mapping = [{ kafka_topic = a, mqtt_topic = "$SYS/${.key}" }]"#,
        r#"4: topic_mapping[0].mqtt_topic = "$SYS/${.key}": topics that begin with $SYS/ are reserved; publish to another topic"#,
    ),
    (
        r#"topic_mapping = [{ kafka_topic = a, mqtt_topic = "$share/g/t" }]"#,
        r#"4: topic_mapping[0].mqtt_topic = "$share/g/t": topics that begin with $share/ are reserved; publish to another topic"#,
    ),
    (
        "topic_mapping = [{ kafka_topic = a, mqtt_topic = b, qos = 3 }]",
        "4: topic_mapping[0].qos = 3: out of range; allowed: 0 to 2",
    ),
    ("topic_mapping = [{ mqtt_topic = b }]", "4: topic_mapping[0].kafka_topic: required and missing (text)"),
    (
        "kafka.offset_reset_policy = newest",
        r#"4: kafka.offset_reset_policy = "newest": not known; allowed: latest, earliest"#,
    ),
    (
        "kafka.offset_commit_interval_seconds = 0",
        "4: kafka.offset_commit_interval_seconds = 0: out of range; allowed: 1ms to 1d",
    ),
    ("key_encoding_mode = hex", r#"4: key_encoding_mode = "hex": not known; allowed: none, base64"#),
    ("local_topic = x", "4: local_topic: unknown key; allowed here: ..."),
];

fn check(text: &str, prefix: &str, expected: &str) {
    let errors = load_text("FILE", text).err().unwrap_or_else(|| panic!("no error in: {text}")).to_string();
    let shown = errors.replace("FILE:", "").replace("FILE: ", "").replace(prefix, "");
    let shown: Vec<&str> = shown.lines().map(str::trim_start).collect();
    let expected: Vec<&str> = expected.lines().collect();
    assert_eq!(shown.len(), expected.len(), "{text}\n{shown:#?}");
    for (shown, expected) in shown.iter().zip(&expected) {
        match expected.strip_suffix("...") {
            Some(start) if shown.len() > expected.len() => {
                assert!(shown.starts_with(start), "{text}\n{shown}");
            }
            _ => assert_eq!(shown, expected, "{text}"),
        }
    }
}

/// P9, P10, P19, L15, L24
#[test]
fn every_wrong_value_is_named_with_what_would_be_right() {
    for (text, expected) in GENERAL {
        check(text, "\0", expected);
    }
    for (line, expected) in PRODUCER {
        let text =
            format!("bridges.kafka.b {{\n  bootstrap_hosts = \"k:9092\"\n  kafka.topic = t\n  {line}\n}}");
        check(&text, "bridges.kafka.b.", expected);
    }
    for (line, expected) in CONSUMER {
        let text = format!(
            "bridges.kafka_consumer.c {{\n  bootstrap_hosts = k\n  \
             topic_mapping = [{{ kafka_topic = a, mqtt_topic = b }}]\n  {line}\n}}"
        );
        check(&text, "bridges.kafka_consumer.c.", expected);
    }
}

#[test]
fn all_errors_are_reported_in_one_run_in_the_order_of_the_text() {
    let errors = load_text(
        "causeway.conf",
        "bridges.kafka.one {
  bootstrap_hosts = \"a:0\"
  kafka {
    compression = zip
    buffer { mode = ram, segment_byts = 1 }
  }
}
log.level = loud
bridges.kafka_consumer.two {
  bootstrap_hosts = \"k\"
  topic_mapping = [
    { kafka_topic = a, mqtt_topic = \"a/#\" }
    { kafka_topic = b, mqtt_topic = b, qos = 7 }
  ]
}
mqtt.max_inflight = 0
",
    )
    .unwrap_err();
    let places: Vec<(u32, &str)> = errors.0.iter().map(|e| (e.line, e.key.as_str())).collect();
    assert_eq!(
        places,
        [
            (2, "bridges.kafka.one.bootstrap_hosts"),
            (3, "bridges.kafka.one.kafka.topic"),
            (4, "bridges.kafka.one.kafka.compression"),
            (5, "bridges.kafka.one.kafka.buffer.segment_byts"),
            (5, "bridges.kafka.one.kafka.buffer.mode"),
            (8, "log.level"),
            (12, "bridges.kafka_consumer.two.topic_mapping[0].mqtt_topic"),
            (13, "bridges.kafka_consumer.two.topic_mapping[1].qos"),
            (16, "mqtt.max_inflight"),
        ]
    );
}

#[test]
fn a_bridge_from_elsewhere_reads_no_files_and_no_environment() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("other.conf");
    std::fs::write(&file, "enable = false").unwrap();
    let include =
        format!("include file({:?})\nbootstrap_hosts = k, kafka.topic = t", file.display().to_string());
    assert!(
        parse_producer_bridge("b", &include)
            .unwrap_err()
            .to_string()
            .contains("include is not possible here")
    );
    let environment = "bootstrap_hosts = ${PATH}, kafka.topic = t";
    assert!(
        parse_producer_bridge("b", environment)
            .unwrap_err()
            .to_string()
            .contains("`${` outside quotes is not possible here")
    );
}

#[test]
fn a_bridge_name_is_checked_where_bridges_come_as_text() {
    let body = "bootstrap_hosts = k, topic_mapping = [{ kafka_topic = a, mqtt_topic = b }]";
    for good in ["a", "0", "A-b_c.d", &"n".repeat(254)] {
        assert!(parse_consumer_bridge(good, body).is_ok(), "{good}");
    }
    for bad in ["", "-a", ".a", "_a", "a b", "a/b", "\u{e4}", &"n".repeat(255)] {
        let error = parse_consumer_bridge(bad, body).unwrap_err().to_string();
        assert!(error.contains("not a bridge name"), "{bad}: {error}");
    }
}
