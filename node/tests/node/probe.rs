//! The walk from a bridge to Kafka: each fault is named by its step, and the walk ends in time.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

use std::time::{Duration, Instant};

use crate::bridge_support::kafka;
use causeway::bridge::service::Definition;
use causeway::config::{parse_consumer_bridge, parse_producer_bridge};
use causeway::dev_kafka::{ApiKey, TopicSpec};
use causeway::probe::{Step, Verdict, has_failed, walk, walk_within};

fn producer(bootstrap: &str, more: &str) -> Definition {
    let text = format!("bootstrap_hosts = \"{bootstrap}\", local_topic = \"t/#\", kafka.topic = in\n{more}");
    Definition::Producer(Box::new(
        parse_producer_bridge("out", &text).unwrap_or_else(|e| panic!("{e}")).value,
    ))
}

fn step<'s>(steps: &'s [Step], name: &str) -> &'s Step {
    steps.iter().rfind(|step| step.step == name).unwrap_or_else(|| panic!("no step {name}: {steps:#?}"))
}

#[track_caller]
fn fails_at<'s>(steps: &'s [Step], name: &str, words: &str) -> &'s Step {
    let step = step(steps, name);
    assert_eq!(step.verdict, Verdict::Fail, "{steps:#?}");
    assert!(step.found.contains(words) && step.fix.is_some(), "{step:?}");
    assert!(has_failed(steps));
    step
}

fn nowhere() -> String {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_stands_in_the_way_of_a_bridge_that_is_right() {
    let kafka = kafka(&[TopicSpec::new("in", 2)]).await;
    let steps = walk("out", &producer(&kafka.bootstrap(), "")).await;
    assert!(!has_failed(&steps), "{steps:#?}");
    let all = ["settings", "dns", "tcp", "brokers", "topic", "max.message.bytes", "producer id"];
    for name in all {
        assert_eq!(step(&steps, name).verdict, Verdict::Ok, "{steps:#?}");
    }
    assert!(step(&steps, "topic").found.contains("2 partitions"));
    // One replica is no place for what must not be lost.
    assert_eq!(step(&steps, "min.insync.replicas").verdict, Verdict::Warn);

    let text = format!(
        "bootstrap_hosts = \"{}\", topic_mapping = [{{ kafka_topic = in, mqtt_topic = x, payload_template = \"${{.value}}\" }}]",
        kafka.bootstrap()
    );
    let consumer = parse_consumer_bridge("back", &text).unwrap().value;
    let steps = walk("back", &Definition::Consumer(Box::new(consumer))).await;
    assert!(!has_failed(&steps), "{steps:#?}");
    assert!(step(&steps, "group").about.contains("causeway-kafka-consumer-back"), "{steps:#?}");
    kafka.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_fault_is_named_by_its_step_and_ends_what_is_pointless_after_it() {
    let kafka = kafka(&[TopicSpec::new("in", 1)]).await;
    let bootstrap = kafka.bootstrap();
    let steps = walk("out", &producer("no-such-host.invalid:9092", "")).await;
    fails_at(&steps, "dns", "no address");
    assert_eq!(steps.len(), 2, "{steps:#?}");
    let steps = walk("out", &producer(&nowhere(), "")).await;
    fails_at(&steps, "tcp", "refused");
    assert_eq!(steps.len(), 3, "{steps:#?}");
    // One host that works is enough.
    let steps = walk("out", &producer(&format!("{}, {bootstrap}", nowhere()), "")).await;
    assert!(!has_failed(&steps), "{steps:#?}");
    assert!(steps.iter().any(|step| step.step == "tcp" && step.verdict == Verdict::Warn));
    let steps = walk("out", &producer(&bootstrap, "ssl.enable = true")).await;
    assert!(has_failed(&steps) && steps.last().unwrap().step == "tls", "{steps:#?}");
    let steps =
        walk("out", &producer(&bootstrap, "ssl { enable = true, cacertfile = \"/nowhere/ca.pem\" }")).await;
    fails_at(&steps, "settings", "/nowhere/ca.pem");
    assert_eq!(steps.len(), 1);
    let steps = walk("out", &producer(&bootstrap, "kafka.topic = other")).await;
    assert!(fails_at(&steps, "topic", "not there").fix.as_ref().unwrap().contains("--create --topic other"));
    let steps =
        walk("out", &producer(&bootstrap, "kafka.topic = other, allow_auto_topic_creation = true")).await;
    assert_eq!(step(&steps, "topic").verdict, Verdict::Warn);
    let steps = walk("out", &producer(&bootstrap, "kafka.max_batch_bytes = 64MB")).await;
    let largest = step(&steps, "max.message.bytes");
    assert!(
        largest.verdict == Verdict::Warn && largest.found.contains("max_batch_bytes is 67108864"),
        "{largest:?}"
    );
    // CLUSTER_AUTHORIZATION_FAILED
    kafka.faults().error(ApiKey::InitProducerId, 31, 1);
    fails_at(&walk("out", &producer(&bootstrap, "")).await, "producer id", "");
    kafka.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_is_not_where_it_says_is_named() {
    let options = causeway::dev_kafka::Options::brokers(2).topic(TopicSpec::new("in", 1));
    let kafka = causeway::dev_kafka::DevKafka::start(options).await.unwrap();
    let first = kafka.bootstrap().split(',').next().unwrap().to_owned();
    kafka.faults().pause_broker(2).await.unwrap();
    let steps = walk("out", &producer(&first, "connect_timeout = 500ms")).await;
    assert!(
        fails_at(&steps, "brokers", "not all can be reached")
            .fix
            .as_ref()
            .unwrap()
            .contains("advertised.listeners")
    );
    kafka.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_walk_ends_in_time_and_says_so() {
    let kafka = kafka(&[TopicSpec::new("in", 1)]).await;
    kafka.faults().delay(ApiKey::Metadata, Duration::from_secs(30), 10);
    let begun = Instant::now();
    let steps = walk_within("out", &producer(&kafka.bootstrap(), ""), Duration::from_secs(1)).await;
    assert!(begun.elapsed() < Duration::from_secs(10));
    fails_at(&steps, "time", "not at the end");
    assert_eq!(step(&steps, "tcp").verdict, Verdict::Ok, "what was found before is told");
    kafka.stop().await;
}
