//! What a producer bridge shows and does while Kafka, or its topic, is not there, and once it is.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

use std::time::Duration;

use crate::bridge_support::*;
use causeway::bridge::service::Status;
use causeway::dev_kafka::{ApiKey, DevKafka, Match, Options, Sasl, TopicSpec};
use causeway::flow::Outcome;

const RAW: &str = r#"topic = in, reconnect_delay = 50ms, message.value = "${payload}""#;

async fn connecting(node: &Node) -> String {
    let mut why = String::new();
    until("the bridge is connecting", || match node.row().status {
        Status::Connecting(reason) => {
            why = reason;
            true
        }
        Status::Disconnected(reason) => panic!("disconnected, and not connecting: {reason}"),
        _ => false,
    })
    .await;
    why
}

async fn disconnected(node: &Node) -> String {
    let mut why = String::new();
    until("the bridge is disconnected", || {
        if let Status::Disconnected(reason) = node.row().status {
            why = reason;
            return true;
        }
        false
    })
    .await;
    why
}

fn values(kafka: &DevKafka) -> Vec<String> {
    read(kafka, "in", 1).into_iter().map(|read| read.value.unwrap()).collect()
}

/// L2
#[tokio::test(flavor = "multi_thread")]
async fn a_host_that_has_no_address_is_named_in_the_status() {
    for topic in ["in", "in-${clientid}"] {
        let node = Node::start("kafka.invalid:9092", &format!("topic = \"{topic}\"")).await;
        let reason = disconnected(&node).await;
        assert!(reason.contains("kafka.invalid:9092: the host name could not be resolved"), "{reason}");
        node.stop().await;
    }
}

/// L4, W16
#[tokio::test(flavor = "multi_thread")]
async fn a_topic_that_is_deleted_and_made_again_is_waited_for() {
    let kafka = kafka(&[TopicSpec::new("in", 1)]).await;
    let node =
        Node::start(&kafka.bootstrap(), &format!("{RAW}, partition_count_refresh_interval = 1s")).await;
    node.connected().await;
    assert_eq!(node.publish("t/1", b"before").await, Outcome::Success);
    // Noticed without a publication, and with one.
    for payload in [None, Some(&b"while"[..])] {
        kafka.delete_topic("in").unwrap();
        let waiting = match payload {
            Some(payload) => Some(node.begin("t/1", payload).await),
            None => None,
        };
        let reason = connecting(&node).await;
        assert!(reason.contains("Kafka does not know the topic"), "{reason}");
        kafka.create_topic(&TopicSpec::new("in", 1)).unwrap();
        node.connected().await;
        if let Some(waiting) = waiting {
            assert_eq!(node.outcome(waiting).await, Outcome::Success);
            assert_eq!(values(&kafka), ["while"]);
        }
    }
    let ledger = node.ledger();
    assert_eq!((ledger.success, ledger.failed, ledger.dropped()), (2, 0, 0));
    node.stop().await;
    kafka.stop().await;
}

/// L6, W4. One broker that cannot be reached any more, while messages are on their way and while none are.
#[tokio::test(flavor = "multi_thread")]
async fn a_link_that_is_cut_shows_as_connecting_and_holds_what_comes() {
    let kafka = kafka(&[TopicSpec::new("in", 1)]).await;
    for busy in [false, true] {
        let node = Node::start(&kafka.bootstrap(), RAW).await;
        node.connected().await;
        assert_eq!(node.publish("t/1", b"before").await, Outcome::Success);
        let early = if busy {
            // Appended, and its answer lost.
            kafka.faults().delay(Match::api(ApiKey::Produce), LONG, 1);
            let early = node.begin("t/1", b"early").await;
            until("it is on its way", || node.ledger().inflight == 1).await;
            kafka.faults().pause_broker(1).await.unwrap();
            early
        } else {
            kafka.faults().pause_broker(1).await.unwrap();
            node.begin("t/1", b"early").await
        };
        let reason = connecting(&node).await;
        assert!(!reason.is_empty());
        assert_eq!(node.told(early), None);
        let late = node.begin("t/1", b"late").await;
        let ledger = node.ledger();
        assert_eq!((ledger.queuing + ledger.inflight, ledger.dropped(), ledger.failed), (2, 0, 0));
        assert!(ledger.queuing_bytes > 0, "{ledger:?}");
        kafka.faults().resume_broker(1).await.unwrap();
        assert_eq!(node.outcome(late).await, Outcome::Success);
        assert_eq!(node.outcome(early).await, Outcome::Success);
        node.connected().await;
        let ledger = node.ledger();
        assert_eq!((ledger.success, ledger.dropped(), ledger.failed), (3, 0, 0));
        node.stop().await;
    }
    assert_eq!(values(&kafka), ["before", "early", "late"].repeat(2));
    kafka.stop().await;
}

/// L18. Differs: there is no health check that could be slow. Answers that do not come in their time are what
/// is seen: by a bridge that never had one as a reason to be disconnected, by one that works not at all.
#[tokio::test(flavor = "multi_thread")]
async fn answers_that_take_too_long_are_the_reason_of_the_status() {
    let kafka = kafka(&[TopicSpec::new("in", 1)]).await;
    kafka.faults().delay(Match::api(ApiKey::Metadata), LONG, 1000);
    let timeout = "metadata_request_timeout = 200ms";
    let node = Node::start_with(&kafka.bootstrap(), timeout, RAW).await;
    let reason = disconnected(&node).await;
    assert!(reason.contains("no answer to") && reason.contains("within 200ms"), "{reason}");
    kafka.faults().clear();
    node.connected().await;
    kafka.faults().delay(Match::api(ApiKey::Metadata), LONG, 1000);
    assert_eq!(node.publish("t/1", b"v").await, Outcome::Success);
    assert_eq!(node.row().status, Status::Connected);
    node.stop().await;
    kafka.stop().await;
}

/// L19. Differs: what a bridge needs is its own topic, so one to be asked for beside it makes no difference.
#[tokio::test(flavor = "multi_thread")]
async fn a_health_check_topic_that_is_not_there_disturbs_nobody() {
    let kafka = kafka(&[TopicSpec::new("in", 1)]).await;
    let node = Node::start_with(&kafka.bootstrap(), "health_check_topic = nowhere", RAW).await;
    node.connected().await;
    assert_eq!(node.publish("t/1", b"v").await, Outcome::Success);
    assert_eq!(node.row().status, Status::Connected);
    node.stop().await;
    kafka.stop().await;
}

/// L20
#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_wants_a_login_is_recognised_where_there_is_none() {
    let sasl = Some(Sasl::user("u", "p"));
    let kafka = DevKafka::start(Options { sasl, ..Options::default() }.topic(TopicSpec::new("in", 1)));
    let kafka = kafka.await.unwrap();
    let node = Node::start(&kafka.bootstrap(), RAW).await;
    let reason = disconnected(&node).await;
    assert!(reason.contains("does it want a login? If so, set authentication"), "{reason}");
    node.stop().await;
    kafka.stop().await;
}

/// W17
#[tokio::test(flavor = "multi_thread")]
async fn a_first_answer_that_fails_is_asked_for_again() {
    let kafka = kafka(&[TopicSpec::new("in", 1)]).await;
    kafka.faults().drop_before(Match::api(ApiKey::Metadata), 3);
    // LEADER_NOT_AVAILABLE, for the topic.
    kafka.faults().error(Match::api(ApiKey::Metadata).topic("in"), 5, 3);
    let node = Node::start(&kafka.bootstrap(), RAW).await;
    assert_eq!(node.publish("t/1", b"v").await, Outcome::Success);
    assert_eq!(kafka.faults().pending(), 0);
    node.connected().await;
    assert_eq!(values(&kafka), ["v"]);
    node.stop().await;
    kafka.stop().await;
}

/// W8. A batch whose time comes while Kafka is away leaves when it is back.
#[tokio::test(flavor = "multi_thread")]
async fn a_batch_that_has_lingered_through_an_outage_leaves_when_kafka_is_back() {
    let kafka = kafka(&[TopicSpec::new("in", 1)]).await;
    let node = Node::start(&kafka.bootstrap(), &format!("{RAW}, max_linger_time = 300ms")).await;
    node.connected().await;
    kafka.faults().pause_broker(1).await.unwrap();
    let waiting = node.begin("t/1", b"v").await;
    tokio::time::sleep(Duration::from_millis(600)).await;
    assert_eq!(node.told(waiting), None);
    kafka.faults().resume_broker(1).await.unwrap();
    assert_eq!(node.outcome(waiting).await, Outcome::Success);
    assert_eq!(values(&kafka), ["v"]);
    node.stop().await;
    kafka.stop().await;
}
