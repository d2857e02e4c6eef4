//! Bridges that would send one message round and round: refused, or ended by the hop count.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

use std::collections::BTreeMap;

use crate::bridge_support::*;
use causeway::bridge::overlay::{self, Change, Overlay};
use causeway::bridge::service::{Apply, BridgeId, Definition, Error, Kind, Status};
use causeway::config::{load_text, parse_consumer_bridge, parse_producer_bridge};
use causeway::dev_kafka::{DevKafka, TopicSpec};
use causeway::flow::Outcome;
use causeway::mqtt::{RetainedLimits, Router};
use causeway_protocol::mqtt::{PublishProperties, ReasonCode, UserPropertiesBuf};
use rskafka::chrono::{DateTime, Utc};
use rskafka::client::ClientBuilder;
use rskafka::client::partition::{Compression, UnknownTopicHandling};
use rskafka::record::Record;

const HOPS: &str = "causeway-hops";

fn producer(bootstrap: &str, filter: &str, kafka: &str, more: &str) -> Definition {
    let text = format!(
        "bootstrap_hosts = \"{bootstrap}\", local_topic = \"{filter}\", min_metadata_refresh_interval = 50ms\n{more}\n\
         kafka {{ message.value = \"${{payload}}\", {kafka} }}"
    );
    let config = parse_producer_bridge("out", &text).unwrap_or_else(|errors| panic!("{errors}")).value;
    Definition::Producer(Box::new(config))
}

fn consumer(bootstrap: &str, from: &str, to: &str, more: &str) -> Definition {
    let text = format!(
        "bootstrap_hosts = \"{bootstrap}\", kafka.offset_reset_policy = earliest\n{more}\n\
         topic_mapping = [{{ kafka_topic = {from}, mqtt_topic = \"{to}\", qos = 1, payload_template = \"${{.value}}\" }}]"
    );
    let config = parse_consumer_bridge("back", &text).unwrap_or_else(|errors| panic!("{errors}")).value;
    Definition::Consumer(Box::new(config))
}

fn back() -> BridgeId {
    BridgeId { kind: Kind::Consumer, name: "back".to_owned() }
}

/// A node without bridges.
async fn node() -> Node {
    Node::with(Router::new(RetainedLimits::default()), "n1").await
}

async fn apply(node: &Node, how: Apply, definition: Definition) -> Result<(), Error> {
    let name = if definition.kind() == Kind::Producer { "out" } else { "back" };
    node.bridges.apply(how, vec![(name.to_owned(), definition)]).await
}

/// What speaks against it: one loop.
fn refused(result: Result<(), Error>) -> String {
    let Err(Error::Refused(wrong)) = result else { panic!("{result:?}") };
    let [wrong] = wrong.as_slice() else { panic!("{wrong:?}") };
    assert!(
        wrong.starts_with("messages go round in a loop for ever: ") && wrong.contains("allow_loop = true"),
        "{wrong}"
    );
    wrong.clone()
}

async fn end(node: Node, kafka: DevKafka) {
    node.bridges.stop_all(Kind::Consumer).await.unwrap();
    node.stop().await;
    kafka.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bridge_that_would_close_a_loop_is_neither_created_nor_changed_nor_enabled() {
    let kafka = kafka(&[TopicSpec::new("x", 1), TopicSpec::new("y", 1)]).await;
    let bootstrap = kafka.bootstrap();
    let node = node().await;
    apply(&node, Apply::Create, producer(&bootstrap, "t/#", "topic = x", "")).await.unwrap();
    let looping = || consumer(&bootstrap, "x", "t/back", "");

    let wrong = refused(apply(&node, Apply::Create, looping()).await);
    let way = "bridges.kafka_consumer.back -> MQTT topic \"t/back\" -> bridges.kafka.out (local_topic \"t/#\") -> Kafka topic \
               \"x\" -> bridges.kafka_consumer.back;";
    assert!(wrong.contains(way), "{wrong}");
    assert_eq!(node.bridges.rows().len(), 1);

    let harmless = consumer(&bootstrap, "x", "elsewhere", "");
    apply(&node, Apply::Create, harmless.clone()).await.unwrap();
    refused(apply(&node, Apply::Change, looping()).await);
    refused(apply(&node, Apply::Change, producer(&bootstrap, "#", "topic = x", "")).await);
    assert_eq!(node.bridges.definition(&back()).unwrap(), harmless);

    // Disabled it may be there; it cannot be enabled before the loop is allowed.
    apply(&node, Apply::Change, consumer(&bootstrap, "x", "t/back", "enable = false")).await.unwrap();
    refused(node.bridges.enable(back(), true).await);
    let row = node.bridges.row(&back()).unwrap();
    assert_eq!((row.enabled, row.status), (false, Status::Stopped));
    apply(&node, Apply::Change, producer(&bootstrap, "t/#", "topic = x", "allow_loop = true")).await.unwrap();
    node.bridges.enable(back(), true).await.unwrap();
    // And from then on it must stay allowed.
    refused(apply(&node, Apply::Change, producer(&bootstrap, "t/#", "topic = x", "")).await);
    apply(&node, Apply::Change, producer(&bootstrap, "t/#", "topic = y", "")).await.unwrap();
    end(node, kafka).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_loop_that_is_only_possible_is_told_and_not_refused() {
    let kafka = kafka(&[TopicSpec::new("x", 1)]).await;
    let bootstrap = kafka.bootstrap();
    let node = node().await;
    apply(&node, Apply::Create, producer(&bootstrap, "t/#", "topic = x", "")).await.unwrap();
    apply(&node, Apply::Create, consumer(&bootstrap, "x", "${.key}", "")).await.unwrap();
    let possible = node.bridges.possible_loops(&[back()]);
    let [possible] = possible.as_slice() else { panic!("{possible:?}") };
    assert!(
        possible.starts_with("messages may go round in a loop, ") && possible.contains("${.key}"),
        "{possible}"
    );
    node.bridges.enable(back(), false).await.unwrap();
    assert_eq!(node.bridges.possible_loops(&[back()]), [""; 0]);
    node.bridges.enable(back(), true).await.unwrap();
    end(node, kafka).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_loop_with_a_bridge_that_was_made_at_run_time_keeps_the_node_from_starting() {
    let data = tempfile::tempdir().unwrap();
    let config = |bridges: &str| {
        let text = format!(
            "node {{ name = n1, data_dir = \"{}\" }}, listeners.tcp.default.bind = \"127.0.0.1:0\", admin.enable = false, mqtt.session_store = memory\n{bridges}",
            data.path().display()
        );
        load_text("causeway.conf", &text).unwrap_or_else(|errors| panic!("{errors}")).value
    };
    let out = |more: &str| {
        format!(
            "bridges.kafka.out {{ bootstrap_hosts = \"127.0.0.1:1\", local_topic = \"t/#\", kafka.topic = x\n{more} }}"
        )
    };
    let (mut overlay, _) = Overlay::open(data.path(), config("").bridges).unwrap();
    let made = consumer("127.0.0.1:1", "x", "t/back", "");
    overlay.store(&[(back(), Change::Defined(Box::new(made)))]).unwrap();
    drop(overlay);
    let error = match causeway::node::Node::start(config(&out(""))).await {
        Ok(_) => panic!("it started"),
        Err(error) => error.to_string(),
    };
    assert!(
        error.starts_with("messages go round in a loop for ever: bridges.kafka_consumer.back -> "),
        "{error}"
    );
    assert!(error.contains(overlay::FILE), "{error}");
    for allowed in ["allow_loop = true", "enable = false"] {
        causeway::node::Node::start(config(&out(allowed))).await.unwrap().stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_allowed_loop_ends_after_sixteen_passages_and_holds_nothing_up() {
    let kafka = kafka(&[TopicSpec::new("x", 1), TopicSpec::new("dead", 1)]).await;
    let bootstrap = kafka.bootstrap();
    let node = node().await;
    let out = producer(&bootstrap, "t/#", "topic = x, dead_letter_topic = dead", "allow_loop = true");
    apply(&node, Apply::Create, out).await.unwrap();
    apply(&node, Apply::Create, consumer(&bootstrap, "x", "t/back", "")).await.unwrap();
    let received = || node.bridges.row(&back()).unwrap().ledger;
    for round in 1..=2_usize {
        assert_eq!(node.publish("t/1", round.to_string().as_bytes()).await, Outcome::Success);
        until("it comes to its end", || node.ledger().failed == round as u64).await;
        until("its dead letter is written", || node.ledger().dead_lettered == round as u64).await;
        until("the consumer is done with it", || received().success + received().failed == 16 * round as u64)
            .await;
        let records = read(&kafka, "x", 1);
        assert_eq!(records.len(), 16 * round);
        for (passed, record) in records.iter().skip(16 * (round - 1)).enumerate() {
            let expected: Vec<(String, String)> =
                if passed == 0 { Vec::new() } else { vec![(HOPS.to_owned(), passed.to_string())] };
            assert_eq!((&record.headers, record.value.as_deref()), (&expected, Some(&*round.to_string())));
        }
        let letters = read(&kafka, "dead", 1);
        assert_eq!(letters.len(), round);
        let letter = letters.last().unwrap();
        assert_eq!((letter.header(HOPS), letter.header("dead_letter.topic")), (Some("16"), Some("x")));
        assert!(letter.header("dead_letter.reason").unwrap().contains("passed Kafka 16 times"), "{letter:?}");
    }
    let books = received();
    assert_eq!((books.received, books.success, books.failed, books.imbalance()), (32, 30, 2, 0));
    end(node, kafka).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn dead_letters_that_come_back_come_to_an_end() {
    let kafka = kafka(&[TopicSpec::new("x", 1), TopicSpec::new("dead", 1)]).await;
    let bootstrap = kafka.bootstrap();
    let node = node().await;
    // The payload is no header list: each message fails.
    let out = "topic = x, dead_letter_topic = dead, kafka_headers = \"${payload}\"";
    apply(&node, Apply::Create, producer(&bootstrap, "t/#", out, "")).await.unwrap();
    apply(&node, Apply::Create, consumer(&bootstrap, "dead", "t/again", "")).await.unwrap();
    assert_eq!(node.publish("t/1", b"1").await, Outcome::Failed(ReasonCode::PayloadFormatInvalid));
    until("the last one is refused", || node.ledger().failed == 18).await;
    until("the consumer is done", || node.bridges.row(&back()).unwrap().ledger.failed == 17).await;
    let letters = read(&kafka, "dead", 1);
    let hops: Vec<_> =
        letters.iter().map(|letter| letter.header(HOPS).map_or(0, |hops| hops.parse().unwrap())).collect();
    assert_eq!(hops, (0..=16).collect::<Vec<u32>>());
    assert_eq!((node.ledger().dead_lettered, read(&kafka, "x", 1).len()), (17, 0));
    end(node, kafka).await;
}

async fn produce(kafka: &DevKafka, headers: Vec<(&str, &[u8])>) {
    let client = ClientBuilder::new(vec![kafka.bootstrap()]).build().await.unwrap();
    let partition = client.partition_client("x", 0, UnknownTopicHandling::Error).await.unwrap();
    let headers: BTreeMap<_, _> =
        headers.into_iter().map(|(key, value)| (key.to_owned(), value.to_vec())).collect();
    let timestamp = DateTime::<Utc>::from_timestamp_millis(1_700_000_000_000).unwrap();
    let record = Record { key: None, value: Some(b"v".to_vec()), headers, timestamp };
    partition.produce(vec![record], Compression::NoCompression).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn records_of_others_with_any_header_of_that_name_are_carried() {
    let kafka = kafka(&[TopicSpec::new("x", 1), TopicSpec::new("y", 1)]).await;
    let bootstrap = kafka.bootstrap();
    let node = node().await;
    let out = "topic = y, kafka_headers = \"${payload.headers}\", kafka_ext_headers = \
               [{ kafka_ext_header_key = causeway-hops, kafka_ext_header_value = \"200\" }]";
    apply(&node, Apply::Create, producer(&bootstrap, "t/#", out, "")).await.unwrap();
    let whole = format!(
        "bootstrap_hosts = \"{bootstrap}\", kafka.offset_reset_policy = earliest\n\
         topic_mapping = [{{ kafka_topic = x, mqtt_topic = \"t/back\", qos = 1 }}]"
    );
    let whole = parse_consumer_bridge("back", &whole).unwrap().value;
    apply(&node, Apply::Create, Definition::Consumer(Box::new(whole))).await.unwrap();
    let values: [&[u8]; 6] = [b"", b"many", b"-1", b"256", b"\xFF", b"3"];
    for value in values {
        produce(&kafka, vec![("a", b"kept"), (HOPS, value)]).await;
    }
    until("all are there", || node.ledger().success == 6).await;
    for (record, expected) in read(&kafka, "y", 1).iter().zip(["1", "1", "1", "1", "1", "4"]) {
        let headers: Vec<_> =
            record.headers.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
        assert_eq!(headers, [("a", "kept"), (HOPS, expected)]);
        let payload = record.value.as_deref().unwrap();
        assert!(payload.contains(r#""headers":{"a":"kept"}"#), "{payload}");
    }
    produce(&kafka, vec![(HOPS, b"16")]).await;
    until("the worn one is refused", || node.ledger().failed == 1).await;
    end(node, kafka).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn records_of_devices_have_the_headers_that_the_bridge_gives_and_no_other() {
    let kafka = kafka(&[TopicSpec::new("x", 1)]).await;
    let node = node().await;
    let plain = producer(&kafka.bootstrap(), "t/#", "topic = x", "");
    apply(&node, Apply::Create, plain).await.unwrap();
    let mut users = UserPropertiesBuf::new();
    users.push(HOPS, "99").unwrap();
    users.push("a", "1").unwrap();
    let properties = PublishProperties { user_properties: users.borrow(), ..PublishProperties::default() };
    let sent = node.begin_with("t/1", b"1", &properties).await;
    assert_eq!(node.outcome(sent).await, Outcome::Success);
    let with_properties = "topic = x, kafka_headers = \"${pub_props.User-Property-Pairs}\"";
    apply(&node, Apply::Change, producer(&kafka.bootstrap(), "t/#", with_properties, "")).await.unwrap();
    let sent = node.begin_with("t/1", b"2", &properties).await;
    assert_eq!(node.outcome(sent).await, Outcome::Success);
    let headers: Vec<_> = read(&kafka, "x", 1).into_iter().map(|record| record.headers).collect();
    let pair = |key: &str, value: &str| (key.to_owned(), value.to_owned());
    assert_eq!(headers, [vec![], vec![pair(HOPS, "99"), pair("a", "1")]]);
    end(node, kafka).await;
}
