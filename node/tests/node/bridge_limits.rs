//! A producer bridge at its limits: batches, buffers, repetitions, and answers that nobody waits for.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

use std::time::Duration;

use crate::bridge_support::*;
use causeway::bridge::service::Status;
use causeway::dev_kafka::{ApiKey, DevKafka, Match, TopicSpec};
use causeway::flow::Outcome;
use causeway_protocol::kafka::batch::batches;
use causeway_protocol::mqtt::ReasonCode;

const RAW: &str = r#"topic = in, message.value = "${payload}""#;

const MESSAGE_TOO_LARGE: i16 = 10;
const RECORD_LIST_TOO_LARGE: i16 = 18;

fn values(kafka: &DevKafka) -> Vec<String> {
    read(kafka, "in", 1).into_iter().map(|read| read.value.unwrap()).collect()
}

/// Records in each batch of the topic.
fn batch_sizes(kafka: &DevKafka) -> Vec<usize> {
    let stored = kafka.batches("in", 0, 0).unwrap();
    stored
        .into_iter()
        .flat_map(|bytes| {
            let sizes = batches(bytes)
                .map(|batch| (&batch.unwrap().records(usize::MAX).unwrap()).into_iter().count());
            sizes.collect::<Vec<_>>()
        })
        .collect()
}

/// Publishes these before there is a topic, so that they gather.
async fn gathered(kafka: &DevKafka, settings: &str, payloads: &[Vec<u8>]) -> (Node, Vec<Outcome>) {
    let node = Node::start(&kafka.bootstrap(), settings).await;
    let mut begun = Vec::new();
    for payload in payloads {
        begun.push(node.begin("t/1", payload).await);
    }
    kafka.create_topic(&TopicSpec::new("in", 1)).unwrap();
    let mut outcomes = Vec::new();
    for publication in begun {
        outcomes.push(node.outcome(publication).await);
    }
    (node, outcomes)
}

fn texts(count: usize) -> Vec<Vec<u8>> {
    (0..count).map(|number| number.to_string().into_bytes()).collect()
}

/// L8. Differs for QoS 1: the message is refused, and its publisher is told so.
#[tokio::test(flavor = "multi_thread")]
async fn a_message_larger_than_the_whole_buffer_is_dropped_or_refused() {
    let kafka = kafka(&[TopicSpec::new("in", 1)]).await;
    for mode in ["", "query_mode = async", "query_mode = sync"] {
        let node =
            Node::start(&kafka.bootstrap(), &format!("{RAW}, buffer.per_partition_limit = 2B\n{mode}")).await;
        node.connected().await;
        node.publish_unacknowledged("t/1", b"fourteen bytes").await;
        let ledger = node.ledger();
        assert_eq!((ledger.matched, ledger.dropped_queue_full, ledger.dropped()), (1, 1, 1), "{mode}");
        assert_eq!((ledger.failed, ledger.success), (0, 0), "{mode}");
        let refused = Outcome::Failed(ReasonCode::QuotaExceeded);
        assert_eq!(node.publish("t/1", b"fourteen bytes").await, refused, "{mode}");
        let ledger = node.ledger();
        assert_eq!((ledger.matched, ledger.failed, ledger.dropped(), ledger.success), (2, 1, 1, 0), "{mode}");
        node.stop().await;
    }
    assert_eq!(values(&kafka), [""; 0]);
    kafka.stop().await;
}

/// W5. Differs for QoS 1: nothing that has a publisher waiting is dropped, the next one has to wait.
#[tokio::test(flavor = "multi_thread")]
async fn an_overflow_drops_what_is_queued_and_never_what_is_on_its_way() {
    let kafka = kafka(&[TopicSpec::new("in", 1)]).await;
    let node = Node::start(&kafka.bootstrap(), &format!("{RAW}, buffer.per_partition_limit = 600B")).await;
    node.connected().await;
    assert_eq!(node.publish("t/1", b"first").await, Outcome::Success);
    // The answer is late: what it is about stays on its way.
    kafka.faults().delay(Match::api(ApiKey::Produce), Duration::from_secs(1), 1);
    node.publish_unacknowledged("t/1", b"on its way").await;
    until("it is on its way", || node.ledger().inflight == 1).await;
    for number in 0..40 {
        node.publish_unacknowledged("t/1", format!("{number:0>100}").as_bytes()).await;
    }
    let ledger = node.ledger();
    assert_eq!((ledger.matched, ledger.inflight), (42, 1), "{ledger:?}");
    assert!(ledger.queuing > 0 && ledger.dropped_queue_full == 40 - ledger.queuing, "{ledger:?}");
    let kept = ledger.queuing as usize;
    until("all that is left is there", || node.ledger().success == 2 + kept as u64).await;
    let wanted: Vec<String> = ["first".to_owned(), "on its way".to_owned()]
        .into_iter()
        .chain((40 - kept..40).map(|number| format!("{number:0>100}")))
        .collect();
    assert_eq!(values(&kafka), wanted);
    node.stop().await;
    kafka.stop().await;
}

/// W7. Differs for QoS 1: its publisher waits, and goes on when memory is no longer short.
#[tokio::test(flavor = "multi_thread")]
async fn while_memory_is_short_new_messages_come_in_place_of_the_oldest() {
    for is_protected in [true, false] {
        let kafka = kafka(&[TopicSpec::new("in", 1)]).await;
        let buffer = format!("buffer.memory_overload_protection = {is_protected}");
        let settings = format!("{RAW}, max_batch_bytes = 250B, max_inflight = 1, {buffer}");
        let node = Node::start(&kafka.bootstrap(), &settings).await;
        node.connected().await;
        assert_eq!(node.publish("t/1", b"first").await, Outcome::Success);
        kafka.faults().delay(Match::api(ApiKey::Produce), Duration::from_secs(3), 1);
        node.publish_unacknowledged("t/1", b"on its way").await;
        until("it is on its way", || node.ledger().inflight == 1).await;
        node.memory.set_short(true);
        for number in 0..40 {
            node.publish_unacknowledged("t/1", format!("{number:0>100}").as_bytes()).await;
        }
        let ledger = node.ledger();
        assert_eq!((ledger.matched, ledger.inflight), (42, 1), "{ledger:?}");
        if is_protected {
            // What may be under way stays: one batch of 250 bytes.
            assert!((1..=3).contains(&ledger.queuing), "{ledger:?}");
        } else {
            assert_eq!(ledger.queuing, 40, "{ledger:?}");
        }
        assert_eq!(ledger.dropped_queue_full, 40 - ledger.queuing, "{ledger:?}");
        let kept = ledger.queuing;
        let (outcome, ()) = tokio::join!(node.publish("t/1", b"last"), async {
            let others_have_gone = || {
                let ledger = node.ledger();
                let is_waiting = is_protected && ledger.success == 1;
                assert!(!is_waiting || ledger.matched == 42, "it did not wait: {ledger:?}");
                ledger.success >= 2 + kept
            };
            until("the others have gone", others_have_gone).await;
            node.memory.set_short(false);
        });
        assert_eq!(outcome, Outcome::Success);
        let wanted: Vec<String> = ["first".to_owned(), "on its way".to_owned()]
            .into_iter()
            .chain((40 - kept..40).map(|number| format!("{number:0>100}")))
            .chain(["last".to_owned()])
            .collect();
        assert_eq!(values(&kafka), wanted);
        assert_eq!(node.memory.used(), 0);
        node.stop().await;
        kafka.stop().await;
    }
}

/// All bridges of a node together have so much memory and no more, whatever each may have by itself.
#[tokio::test(flavor = "multi_thread")]
async fn the_memory_of_the_node_bounds_what_bridges_hold() {
    const LIMIT: usize = 512 * 1024;
    let kafka = kafka(&[TopicSpec::new("in", 1)]).await;
    let node = Node::start_within(LIMIT, &kafka.bootstrap(), "", &format!("{RAW}, max_inflight = 1")).await;
    node.connected().await;
    kafka.faults().delay(Match::api(ApiKey::Produce), Duration::from_secs(3), 1);
    let first = node.begin("t/1", b"first").await;
    until("it is on its way", || node.ledger().inflight == 1).await;
    for number in 0..4000 {
        node.publish_unacknowledged("t/1", format!("{number:0>300}").as_bytes()).await;
        assert!(node.memory.used() <= LIMIT, "{} bytes", node.memory.used());
    }
    let ledger = node.ledger();
    assert_eq!((ledger.matched, ledger.inflight), (4001, 1), "{ledger:?}");
    assert!(ledger.queuing > 1000, "all there is must be of use: {ledger:?}");
    assert_eq!(ledger.dropped_queue_full, 4000 - ledger.queuing, "{ledger:?}");
    let kept = ledger.queuing;
    // A publisher that has to wait for room gets it.
    assert_eq!(node.publish("t/1", &[b'x'; 1000]).await, Outcome::Success);
    assert_eq!(node.outcome(first).await, Outcome::Success);
    let values = values(&kafka);
    assert_eq!(values.len() as u64, node.ledger().success);
    assert!(values.len() as u64 >= kept / 2, "{} of {kept}", values.len());
    until("nothing is held", || node.memory.used() == 0).await;
    node.stop().await;
    kafka.stop().await;
}

/// Kafka works on one request of a connection at a time, so a partition that is slow holds up those behind
/// it.
#[tokio::test(flavor = "multi_thread")]
async fn partitions_are_spread_over_the_connections_of_the_pool() {
    for (connections, is_held_up) in [(1, true), (2, false)] {
        let kafka = kafka(&[TopicSpec::new("in", 2)]).await;
        let settings = r#"topic = in, message.key = "${topic}", message.value = "${payload}""#;
        let pool = format!("pool_size = {connections}");
        let node = Node::start_with(&kafka.bootstrap(), &pool, settings).await;
        node.connected().await;
        for number in 0..16 {
            assert_eq!(node.publish(&format!("t/{number}"), b"first").await, Outcome::Success);
        }
        let written = read(&kafka, "in", 2);
        let [slow, other] =
            [0, 1].map(|partition| written.iter().find(|read| read.partition == partition).unwrap());
        kafka.faults().delay(Match::api(ApiKey::Produce).partition(0), Duration::from_secs(6), 1);
        let slow = node.begin(slow.key.as_ref().unwrap(), b"second").await;
        until("its request is there", || kafka.faults().pending() == 0).await;
        assert_eq!(node.publish(other.key.as_ref().unwrap(), b"third").await, Outcome::Success);
        if is_held_up {
            assert_eq!(node.outcome(slow).await, Outcome::Success);
        } else {
            assert_eq!(node.told(slow), None, "they are on one connection");
        }
        let third = node.ledger().success;
        assert_eq!(third, if is_held_up { 18 } else { 17 });
        assert_eq!(node.outcome(slow).await, Outcome::Success);
        node.stop().await;
        kafka.stop().await;
    }
}

/// W2, W3
#[tokio::test(flavor = "multi_thread")]
async fn a_batch_limit_below_every_record_sends_each_of_them_alone() {
    for (limit, sizes) in [("1B", vec![1; 10]), ("896KB", vec![10])] {
        let kafka = kafka(&[]).await;
        let settings = format!("{RAW}, max_batch_bytes = {limit}");
        let (node, outcomes) = gathered(&kafka, &settings, &texts(10)).await;
        assert_eq!(outcomes, [Outcome::Success; 10]);
        assert_eq!(values(&kafka), (0..10).map(|number| number.to_string()).collect::<Vec<_>>());
        assert_eq!(batch_sizes(&kafka), sizes, "{limit}");
        node.stop().await;
        kafka.stop().await;
    }
}

/// P14, W18
#[tokio::test(flavor = "multi_thread")]
async fn a_batch_that_is_too_large_comes_in_halves_and_the_next_ones_are_smaller() {
    for code in [MESSAGE_TOO_LARGE, RECORD_LIST_TOO_LARGE] {
        let kafka = kafka(&[]).await;
        kafka.faults().error(Match::api(ApiKey::Produce), code, 1);
        let (node, outcomes) = gathered(&kafka, RAW, &texts(100)).await;
        assert_eq!(outcomes, [Outcome::Success; 100], "code {code}");
        assert_eq!(batch_sizes(&kafka), [50, 50], "code {code}");
        let in_order: Vec<String> = (0..100).map(|number| number.to_string()).collect();
        assert_eq!(values(&kafka), in_order);
        // While one is under way, a hundred more gather.
        kafka.faults().delay(Match::api(ApiKey::Produce), Duration::from_secs(1), 1);
        let mut begun = vec![node.begin("t/1", b"100").await];
        until("it is under way", || node.ledger().inflight == 1).await;
        for number in 101..201 {
            begun.push(node.begin("t/1", number.to_string().as_bytes()).await);
        }
        for publication in begun {
            assert_eq!(node.outcome(publication).await, Outcome::Success);
        }
        let sizes = batch_sizes(&kafka);
        assert!(sizes[2..].iter().all(|size| *size <= 60), "code {code}: {sizes:?}");
        assert_eq!((sizes.iter().sum::<usize>(), node.ledger().failed), (201, 0));
        // A single one cannot be made smaller.
        kafka.faults().error(Match::api(ApiKey::Produce), code, 1);
        assert_eq!(node.publish("t/1", b"large").await, Outcome::Failed(ReasonCode::QuotaExceeded));
        assert_eq!(node.publish("t/1", b"next").await, Outcome::Success);
        let ledger = node.ledger();
        assert_eq!((ledger.matched, ledger.success, ledger.failed), (203, 202, 1), "code {code}");
        node.stop().await;
        kafka.stop().await;
    }
}

/// L12. One count of what was sent again; how it ended is in `success` and `failed`, once.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_sent_again_is_counted_as_retried_and_its_end_once() {
    let kafka = kafka(&[TopicSpec::new("in", 1)]).await;
    let node = Node::start(&kafka.bootstrap(), &format!("{RAW}, reconnect_delay = 50ms")).await;
    node.connected().await;
    assert_eq!(node.publish("t/1", b"smooth").await, Outcome::Success);
    assert_eq!(node.ledger().retried, 0);
    // Appended, and its answer lost.
    kafka.faults().drop_after(ApiKey::Produce, 1);
    assert_eq!(node.publish("t/1", b"answer lost").await, Outcome::Success);
    // Not appended.
    kafka.faults().drop_before(ApiKey::Produce, 1);
    assert_eq!(node.publish("t/1", b"request lost").await, Outcome::Success);
    let ledger = node.ledger();
    assert_eq!((ledger.matched, ledger.success, ledger.failed, ledger.retried), (3, 3, 0, 2));
    assert_eq!(values(&kafka), ["smooth", "answer lost", "request lost"]);
    node.stop().await;
    kafka.stop().await;
}

/// P25. What Kafka makes of it is not heard: what it refuses counts as success, too, as does what is sent
/// into the connection that Kafka closes upon that.
#[tokio::test(flavor = "multi_thread")]
async fn without_acks_a_batch_is_a_success_once_it_is_sent() {
    let kafka = kafka(&[TopicSpec::new("in", 1)]).await;
    let node =
        Node::start(&kafka.bootstrap(), &format!("{RAW}, required_acks = none, reconnect_delay = 50ms"))
            .await;
    node.connected().await;
    // A connection that Kafka closes before the bridge has seen its bytes leave is not a success yet, and the
    // batch is sent again: once in a while that is how it goes.
    let (mut sent, mut lost) = (0, false);
    for attempt in 0..20 {
        kafka.faults().error(Match::api(ApiKey::Produce), 19, 1);
        let refused = format!("refused {attempt}");
        assert_eq!(node.publish("t/1", refused.as_bytes()).await, Outcome::Success);
        until("kafka has refused it", || kafka.faults().pending() == 0).await;
        sent += 1;
        let taken = format!("taken {attempt}");
        while !values(&kafka).contains(&taken) {
            assert_eq!(node.publish("t/1", taken.as_bytes()).await, Outcome::Success);
            sent += 1;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        lost = !values(&kafka).contains(&refused);
        if lost {
            break;
        }
    }
    assert!(lost, "what was refused is in Kafka each time: somebody has waited for the answer");
    let ledger = node.ledger();
    assert_eq!((ledger.matched, ledger.success, ledger.failed), (sent, sent, 0));
    node.stop().await;
    kafka.stop().await;
}

/// P25. That Kafka refuses everything shows all the same.
#[tokio::test(flavor = "multi_thread")]
async fn without_acks_connections_that_kafka_closes_over_batches_show() {
    let kafka = kafka(&[TopicSpec::new("in", 1)]).await;
    let node =
        Node::start(&kafka.bootstrap(), &format!("{RAW}, required_acks = none, reconnect_delay = 50ms"))
            .await;
    node.connected().await;
    kafka.faults().error(Match::api(ApiKey::Produce), 29, 1000);
    let closing = |reason: &str| reason.contains("closes the connection over a batch");
    until_async(async || {
        assert_eq!(node.publish("t/1", b"refused").await, Outcome::Success);
        matches!(node.row().status, Status::Disconnected(reason) if closing(&reason))
    })
    .await;
    kafka.faults().clear();
    until_async(async || {
        assert_eq!(node.publish("t/1", b"taken").await, Outcome::Success);
        node.row().status == Status::Connected
    })
    .await;
    assert!(values(&kafka).contains(&"taken".to_owned()));
    node.stop().await;
    kafka.stop().await;
}

/// Does it again and again, until it is met.
async fn until_async(mut met: impl AsyncFnMut() -> bool) {
    let waiting = async {
        while !met().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(LONG, waiting).await.expect("it comes");
}
