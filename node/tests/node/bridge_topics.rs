//! Bridges whose Kafka topic is a template.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

use std::time::{Duration, Instant};

use crate::bridge_support::*;
use causeway::bridge::service::Status;
use causeway::dev_kafka::{ApiKey, Match, TopicSpec};
use causeway::flow::Outcome;
use causeway_protocol::mqtt::ReasonCode;

const SETTINGS: &str =
    r#"topic = "pct${.payload.n}", message.value = "${payload.v}", message.key = "${payload.k}""#;

fn message(topic: u32, key: u32, value: u32) -> Vec<u8> {
    serde_json::json!({ "n": topic, "k": key, "v": value }).to_string().into_bytes()
}

fn refused() -> Outcome {
    Outcome::Failed(ReasonCode::TopicNameInvalid)
}

/// P15
#[tokio::test(flavor = "multi_thread")]
async fn each_message_lands_in_the_topic_that_it_names() {
    let kafka = kafka(&[TopicSpec::new("pct1", 1), TopicSpec::new("pct2", 3)]).await;
    let node = Node::start(&kafka.bootstrap(), SETTINGS).await;
    node.connected().await;
    assert_eq!(node.publish("t/1", &message(1, 1, 10)).await, Outcome::Success);
    assert_eq!(node.publish("t/1", &message(2, 1, 20)).await, Outcome::Success);
    assert_eq!(read(&kafka, "pct1", 1)[0].value.as_deref(), Some("10"));
    assert_eq!(read(&kafka, "pct2", 3)[0].value.as_deref(), Some("20"));
    let ledger = node.ledger();
    assert_eq!((ledger.matched, ledger.success, ledger.queuing, ledger.inflight), (2, 2, 0, 0));
    let topics: Vec<_> = node.row().places.iter().map(|place| place.topic.clone()).collect();
    assert_eq!(topics, ["pct1", "pct2", "pct2", "pct2"]);
    node.stop().await;
    kafka.stop().await;
}

/// P16
#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_names_no_topic_fails_and_is_a_dead_letter() {
    let kafka = kafka(&[TopicSpec::new("pct1", 1), TopicSpec::new("dead", 1)]).await;
    let node = Node::start(&kafka.bootstrap(), &format!("{SETTINGS}, dead_letter_topic = dead")).await;
    for payload in [&b"{}"[..], b"no json", br#"{"n": "a/b", "v": "x"}"#] {
        assert_eq!(node.publish("t/1", payload).await, refused());
    }
    let dead = read(&kafka, "dead", 1);
    assert_eq!(dead.len(), 3);
    assert_eq!(dead[2].header("dead_letter.topic"), Some("pcta/b"));
    assert_eq!(dead[2].value.as_deref(), Some("x"));
    let ledger = node.ledger();
    assert_eq!((ledger.matched, ledger.failed, ledger.retried, ledger.dead_lettered), (3, 3, 0, 3));
    node.stop().await;
    kafka.stop().await;
}

/// P17, W15
#[tokio::test(flavor = "multi_thread")]
async fn a_topic_that_kafka_does_not_know_is_looked_for_twice_and_then_not_for_a_while() {
    let kafka = kafka(&[TopicSpec::new("pct1", 1), TopicSpec::new("dead", 1)]).await;
    let node = Node::start(&kafka.bootstrap(), &format!("{SETTINGS}, dead_letter_topic = dead")).await;
    node.connected().await;
    // One answer alone is not believed.
    kafka.faults().error(Match::api(ApiKey::Metadata).topic("pct1"), 3, 1);
    assert_eq!(node.publish("t/1", &message(1, 1, 1)).await, Outcome::Success);
    assert_eq!(kafka.faults().pending(), 0);

    let waiting = [node.begin("t/1", &message(9, 1, 1)).await, node.begin("t/1", &message(9, 2, 2)).await];
    node.publish_unacknowledged("t/1", &message(9, 3, 3)).await;
    for publication in waiting {
        assert_eq!(node.outcome(publication).await, refused());
    }
    // It is not asked for again, and the others go on.
    kafka.faults().delay(Match::api(ApiKey::Metadata).topic("pct9"), LONG, 1);
    assert_eq!(node.publish("t/1", &message(9, 1, 4)).await, refused());
    assert_eq!(kafka.faults().pending(), 1);
    assert_eq!(node.publish("t/1", &message(1, 1, 5)).await, Outcome::Success);
    until("all are dead letters", || node.ledger().dead_lettered == 4).await;
    let dead = read(&kafka, "dead", 1);
    assert!(dead.iter().all(|read| read.header("dead_letter.topic") == Some("pct9")), "{dead:?}");
    let ledger = node.ledger();
    assert_eq!((ledger.matched, ledger.success, ledger.failed), (6, 2, 4));
    assert_eq!(node.row().status, Status::Connected);
    node.stop().await;
    kafka.stop().await;
}

/// P17, with access control: Kafka tells that we may not write to a topic with the metadata, or, where we may
/// see it, with the answer to a batch.
#[tokio::test(flavor = "multi_thread")]
async fn a_topic_that_we_may_not_write_to_is_asked_for_twice_and_then_not_for_a_while() {
    const FORBIDDEN: i16 = 29;
    let kafka =
        kafka(&[TopicSpec::new("pct1", 1), TopicSpec::new("pct2", 1), TopicSpec::new("dead", 1)]).await;
    let node = Node::start(&kafka.bootstrap(), &format!("{SETTINGS}, dead_letter_topic = dead")).await;
    node.connected().await;
    let forbidden = Outcome::Failed(ReasonCode::NotAuthorized);
    for (api, topic) in [(ApiKey::Metadata, 9), (ApiKey::Produce, 2)] {
        // One answer alone is not believed.
        kafka.faults().error(Match::api(api).topic("pct1"), FORBIDDEN, 1);
        assert_eq!(node.publish("t/1", &message(1, 1, 1)).await, Outcome::Success);
        let name = format!("pct{topic}");
        kafka.faults().error(Match::api(api).topic(&name), FORBIDDEN, 1000);
        let waiting =
            [node.begin("t/1", &message(topic, 1, 1)).await, node.begin("t/1", &message(topic, 2, 2)).await];
        for publication in waiting {
            assert_eq!(node.outcome(publication).await, forbidden, "{name}");
        }
        // It is not asked for again, and the others go on.
        kafka.faults().clear();
        assert_eq!(node.publish("t/1", &message(topic, 1, 3)).await, forbidden, "{name}");
        assert_eq!(node.publish("t/1", &message(1, 1, 4)).await, Outcome::Success);
    }
    let all = |ledger: causeway::flow::ledger::Ledger| ledger.dead_lettered + ledger.dead_letters_lost >= 6;
    tokio::time::timeout(LONG, async {
        while !all(node.ledger()) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .unwrap_or_else(|_| panic!("{:?} {:?}", node.ledger(), read(&kafka, "dead", 1)));
    assert_eq!(node.ledger().dead_lettered, 6, "{:?} {:?}", node.ledger(), read(&kafka, "dead", 1));
    let dead = read(&kafka, "dead", 1);
    let reasons = dead.iter().map(|dead| dead.header("dead_letter.reason").unwrap());
    assert!(reasons.into_iter().all(|reason| reason.contains("not authorized")), "{dead:?}");
    let ledger = node.ledger();
    assert_eq!((ledger.matched, ledger.success, ledger.failed), (10, 4, 6));
    assert_eq!(node.row().status, Status::Connected);
    node.stop().await;
    kafka.stop().await;
}

/// W15
#[tokio::test(flavor = "multi_thread")]
async fn topics_that_are_of_no_use_or_wait_take_no_place_of_others() {
    const LEADER_NOT_AVAILABLE: i16 = 5;
    let specs: Vec<_> = (1..=4).map(|topic| TopicSpec::new(format!("pct{topic}"), 1)).collect();
    let kafka = kafka(&specs).await;
    let settings = format!("{SETTINGS}, dynamic_topics {{ max_topics = 2 }}");
    let node = Node::start(&kafka.bootstrap(), &settings).await;
    node.connected().await;
    // Names that nobody waits for.
    for topic in [8, 9] {
        kafka.faults().error(Match::api(ApiKey::Metadata).topic(format!("pct{topic}")), 29, 1000);
        node.publish_unacknowledged("t/1", &message(topic, 1, 1)).await;
    }
    assert_eq!(node.publish("t/1", &message(1, 1, 1)).await, Outcome::Success);
    until("both names fail", || node.ledger().failed == 2).await;
    // As many as there are places, each with a record that waits.
    for topic in [2, 3] {
        kafka.faults().error(
            Match::api(ApiKey::Metadata).topic(format!("pct{topic}")),
            LEADER_NOT_AVAILABLE,
            1000,
        );
    }
    let waiting = [node.begin("t/1", &message(2, 1, 1)).await, node.begin("t/1", &message(3, 1, 1)).await];
    assert_eq!(node.publish("t/1", &message(4, 1, 1)).await, Outcome::Success);
    assert_eq!(node.publish("t/1", &message(1, 1, 2)).await, Outcome::Success);
    assert_eq!(waiting.map(|publication| node.told(publication)), [None; 2]);
    kafka.faults().clear();
    for publication in waiting {
        assert_eq!(node.outcome(publication).await, Outcome::Success);
    }
    let ledger = node.ledger();
    assert_eq!((ledger.matched, ledger.success, ledger.failed), (7, 5, 2));
    node.stop().await;
    kafka.stop().await;
}

/// W16
#[tokio::test(flavor = "multi_thread")]
async fn a_topic_that_is_deleted_fails_what_it_holds() {
    let kafka = kafka(&[TopicSpec::new("pct1", 1)]).await;
    let node = Node::start(&kafka.bootstrap(), SETTINGS).await;
    assert_eq!(node.publish("t/1", &message(1, 1, 1)).await, Outcome::Success);
    // As a deleted topic answers.
    kafka.faults().error(Match::api(ApiKey::Metadata).topic("pct1"), 3, 1000);
    kafka.faults().error(Match::api(ApiKey::Produce).topic("pct1"), 3, 1000);
    assert_eq!(node.publish("t/1", &message(1, 1, 2)).await, refused());
    assert_eq!((node.ledger().success, node.ledger().failed), (1, 1));
    node.stop().await;
    kafka.stop().await;
}

/// P18. Differs: it is allowed. What was answered without Kafka comes to its topic, and to the dead letters
/// where Kafka has no such topic.
#[tokio::test(flavor = "multi_thread")]
async fn topics_on_the_disk_come_back_and_what_has_no_topic_is_a_dead_letter() {
    let kafka =
        kafka(&[TopicSpec::new("pct1", 1), TopicSpec::new("pct2", 3), TopicSpec::new("dead", 1)]).await;
    let settings = format!("{SETTINGS}, dead_letter_topic = dead, buffer.mode = disk");
    let node = Node::start("127.0.0.1:1", &settings).await;
    for value in 0..50 {
        for topic in [1, 2, 9] {
            let told = node.publish("t/1", &message(topic, value % 5, value)).await;
            assert_eq!(told, Outcome::Success, "without Kafka");
        }
    }
    assert_eq!((node.ledger().matched, node.ledger().queuing), (150, 150));
    node.put(&kafka.bootstrap(), &settings).await;
    until("all has an end", || node.ledger().queuing + node.ledger().inflight == 0).await;
    let ledger = node.ledger();
    assert_eq!((ledger.matched, ledger.success, ledger.failed, ledger.dead_lettered), (150, 100, 50, 50));
    let in_order = |read: Vec<Read>| {
        let mut by_key: std::collections::BTreeMap<String, Vec<u32>> = std::collections::BTreeMap::new();
        for read in read {
            let value = read.value.unwrap().parse().unwrap();
            by_key.entry(read.key.unwrap()).or_default().push(value);
        }
        let wanted = |key: u32| (0..10).map(|round| round * 5 + key).collect::<Vec<_>>();
        let wanted: std::collections::BTreeMap<_, _> =
            (0..5).map(|key| (key.to_string(), wanted(key))).collect();
        assert_eq!(by_key, wanted);
    };
    in_order(read(&kafka, "pct1", 1));
    in_order(read(&kafka, "pct2", 3));
    let dead = read(&kafka, "dead", 1);
    assert!(dead.iter().all(|read| read.header("dead_letter.topic") == Some("pct9")), "{dead:?}");
    in_order(dead);
    // Nothing of it comes again.
    node.put(&kafka.bootstrap(), &settings).await;
    assert_eq!(node.publish("t/1", &message(1, 0, 50)).await, Outcome::Success);
    until("it is sent", || node.ledger().success == 101).await;
    assert_eq!((read(&kafka, "pct1", 1).len(), read(&kafka, "dead", 1).len()), (51, 50));
    node.stop().await;
    kafka.stop().await;
}

/// W16, for a batch that was sent before a restart.
#[tokio::test(flavor = "multi_thread")]
async fn a_topic_that_is_deleted_during_a_restart_fails_what_was_under_way() {
    let kafka = kafka(&[TopicSpec::new("pct1", 1), TopicSpec::new("dead", 1)]).await;
    let settings = format!("{SETTINGS}, dead_letter_topic = dead, buffer.mode = disk");
    let node = Node::start(&kafka.bootstrap(), &settings).await;
    // Nothing comes of the first attempts, nor an answer.
    kafka.faults().drop_before(Match::api(ApiKey::Produce).topic("pct1"), 1000);
    assert_eq!(node.publish("t/1", &message(1, 1, 1)).await, Outcome::Success);
    until("it is on its way", || node.ledger().inflight == 1).await;
    node.bridges.enable(Node::id(), false).await.unwrap();
    kafka.faults().error(Match::api(ApiKey::Metadata).topic("pct1"), 3, 1000);
    node.bridges.enable(Node::id(), true).await.unwrap();
    until("it is a dead letter", || node.ledger().dead_lettered == 1).await;
    until("it has an end", || node.ledger().failed == 1).await;
    let ledger = node.ledger();
    assert_eq!((ledger.matched, ledger.queuing, ledger.inflight), (1, 0, 0), "{ledger:?}");
    assert_eq!(read(&kafka, "dead", 1)[0].header("dead_letter.topic"), Some("pct1"));
    node.stop().await;
    kafka.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn order_per_key_outlasts_the_closing_and_opening_of_topics() {
    const TOPICS: u32 = 4;
    let specs: Vec<_> = (0..TOPICS).map(|topic| TopicSpec::new(format!("pct{topic}"), 2)).collect();
    let kafka = kafka(&specs).await;
    let settings = format!("{SETTINGS}, dynamic_topics {{ max_topics = 2 }}");
    let node = Node::start(&kafka.bootstrap(), &settings).await;
    let mut all = Vec::new();
    let mut most = 0;
    for round in 0..2 {
        for topic in 0..TOPICS {
            for number in 0..5 {
                for key in 0..4 {
                    all.push(node.begin("t/1", &message(topic, key, round * 5 + number)).await);
                }
            }
            let topics: std::collections::HashSet<_> =
                node.row().places.into_iter().map(|place| place.topic).collect();
            most = most.max(topics.len());
        }
    }
    for publication in all {
        assert_eq!(node.outcome(publication).await, Outcome::Success);
    }
    assert!((1..=2).contains(&most), "{most} topics at a time");
    for topic in 0..TOPICS {
        let read = read(&kafka, &format!("pct{topic}"), 2);
        for key in 0..4 {
            let key = key.to_string();
            let values: Vec<String> = read
                .iter()
                .filter(|read| read.key.as_deref() == Some(&key))
                .map(|read| read.value.clone().unwrap())
                .collect();
            let wanted: Vec<String> = (0..10).map(|number| number.to_string()).collect();
            assert_eq!(values, wanted, "topic {topic}, key {key}");
        }
    }
    let ledger = node.ledger();
    assert_eq!((ledger.matched, ledger.success), (160, 160), "the books of closed topics stay");
    node.stop().await;
    kafka.stop().await;
}

/// W16
#[tokio::test(flavor = "multi_thread")]
async fn an_idle_topic_is_closed_and_opened_again() {
    let kafka = kafka(&[TopicSpec::new("pct1", 1)]).await;
    let settings = format!("{SETTINGS}, dynamic_topics {{ idle_timeout = 1s }}");
    let node = Node::start(&kafka.bootstrap(), &settings).await;
    assert_eq!(node.publish("t/1", &message(1, 1, 1)).await, Outcome::Success);
    assert_eq!(node.row().places.len(), 1);
    until("it is closed", || node.row().places.is_empty()).await;
    assert_eq!(node.ledger().success, 1);
    assert_eq!(node.publish("t/1", &message(1, 1, 2)).await, Outcome::Success);
    assert_eq!((node.ledger().success, read(&kafka, "pct1", 1).len()), (2, 2));
    node.stop().await;
    kafka.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn all_topics_together_hold_no_more_than_their_memory() {
    let kafka = kafka(&[TopicSpec::new("pct1", 1), TopicSpec::new("pct2", 1)]).await;
    let settings = format!("{SETTINGS}, dynamic_topics {{ memory_limit = 200 }}");
    let node = Node::start(&kafka.bootstrap(), &settings).await;
    node.connected().await;
    kafka.faults().delay(Match::api(ApiKey::Produce).topic("pct1"), Duration::from_millis(700), 1);
    let value = "x".repeat(120);
    let large = |topic: u32| format!(r#"{{"n": {topic}, "k": "k", "v": "{value}"}}"#).into_bytes();
    let started = Instant::now();
    let first = node.begin("t/1", &large(1)).await;
    // The other topic waits for the first one's bytes.
    assert_eq!(node.publish("t/1", &large(2)).await, Outcome::Success);
    assert!(started.elapsed() >= Duration::from_millis(500), "{:?}", started.elapsed());
    assert_eq!(node.outcome(first).await, Outcome::Success);
    node.stop().await;
    kafka.stop().await;
}
