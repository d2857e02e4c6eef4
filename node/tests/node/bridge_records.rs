//! What a producer bridge writes, and what becomes of what it cannot write.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

use std::time::{Duration, Instant};

use crate::bridge_support::*;
use causeway::bridge::service::Status;
use causeway::dev_kafka::{ApiKey, Match, TopicSpec};
use causeway::flow::Outcome;
use causeway::kafka::buffer::disk::Directory;
use causeway::kafka::buffer::log::survey;
use causeway_protocol::mqtt::{PublishProperties, ReasonCode, UserPropertiesBuf};

fn pairs(read: &Read) -> Vec<(&str, &str)> {
    read.headers.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect()
}

/// P1, P4, P6
#[tokio::test(flavor = "multi_thread")]
async fn key_value_and_timestamp_are_what_their_templates_say() {
    let kafka = kafka(&[TopicSpec::new("in", 1)]).await;
    let node = Node::start(
        &kafka.bootstrap(),
        "topic = in, message { key = \"${clientid}\", value = \"${.payload}\", timestamp = 123 }",
    )
    .await;
    assert_eq!(node.publish("t/1", b"hello").await, Outcome::Success);
    let wanted = Read {
        partition: 0,
        timestamp: 123,
        key: Some("c1".into()),
        value: Some("hello".into()),
        headers: vec![],
    };
    assert_eq!(read(&kafka, "in", 1), [wanted]);
    node.stop().await;

    let node = Node::start(&kafka.bootstrap(), "topic = in").await;
    node.publish("t/2", b"\xFF").await;
    let all = read(&kafka, "in", 1);
    let whole: serde_json::Value = serde_json::from_str(all[1].value.as_deref().unwrap()).unwrap();
    assert_eq!((&whole["topic"], &whole["username"]), (&"t/2".into(), &serde_json::Value::Null));
    assert_eq!((all[1].timestamp, &whole["payload"]), (1_700_000_000_000, &"\u{FFFD}".into()));
    assert!(!all[1].value.as_deref().unwrap().contains("undefined"));
    node.stop().await;
    kafka.stop().await;
}

/// P7, P8, P12
#[tokio::test(flavor = "multi_thread")]
async fn user_properties_are_headers_in_order_with_duplicates_and_an_empty_value_is_a_tombstone() {
    let kafka = kafka(&[TopicSpec::new("in", 1)]).await;
    let node = Node::start(
        &kafka.bootstrap(),
        r#"topic = in, message { value = "${payload}", empty_value_is_null = true }
           kafka_headers = "${pub_props.User-Property-Pairs}"
           kafka_ext_headers = [{ kafka_ext_header_key = from, kafka_ext_header_value = "${topic}" },
                                { kafka_ext_header_key = user, kafka_ext_header_value = "${username}" }]"#,
    )
    .await;
    let mut users = UserPropertiesBuf::new();
    for (key, value) in [("b", "1"), ("a", "2"), ("b", "3")] {
        users.push(key, value).unwrap();
    }
    let properties = PublishProperties { user_properties: users.borrow(), ..PublishProperties::default() };
    let publication = node.begin_with("t/1", b"", &properties).await;
    assert_eq!(node.outcome(publication).await, Outcome::Success);
    let all = read(&kafka, "in", 1);
    assert_eq!(pairs(&all[0]), [("b", "1"), ("a", "2"), ("b", "3"), ("from", "t/1")]);
    assert_eq!(all[0].value, None);
    node.stop().await;
    kafka.stop().await;
}

/// P11
#[tokio::test(flavor = "multi_thread")]
async fn a_message_whose_headers_cannot_be_made_fails_and_is_a_dead_letter() {
    let kafka = kafka(&[TopicSpec::new("in", 1), TopicSpec::new("dead", 1)]).await;
    let settings = r#"topic = in, kafka_headers = "${payload}", message.value = "${payload}", "#;
    for mode in ["", "query_mode = sync", "query_mode = async"] {
        let node = Node::start(&kafka.bootstrap(), &format!("{settings} {mode}")).await;
        for payload in [&b"plain"[..], br#"[{"foo":"bar"}]"#, br#"[{"key":"a"},{"value":"b"}]"#] {
            let refused = Outcome::Failed(ReasonCode::PayloadFormatInvalid);
            assert_eq!(node.publish("t/1", payload).await, refused, "{mode}");
        }
        let ledger = node.ledger();
        assert_eq!((ledger.matched, ledger.failed, ledger.dead_lettered), (3, 3, 0));
        node.stop().await;
    }
    let node = Node::start(&kafka.bootstrap(), &format!("{settings} dead_letter_topic = dead")).await;
    assert_eq!(node.publish("t/1", b"plain").await, Outcome::Failed(ReasonCode::PayloadFormatInvalid));
    assert_eq!(read(&kafka, "in", 1), []);
    let dead = read(&kafka, "dead", 1);
    assert_eq!(
        (dead.len(), dead[0].value.as_deref(), dead[0].key.as_deref()),
        (1, Some("plain"), Some("c1"))
    );
    assert_eq!(dead[0].header("dead_letter.topic"), Some("in"));
    assert_eq!(dead[0].header("dead_letter.bridge"), Some("out"));
    assert!(dead[0].header("dead_letter.reason").unwrap().contains("kafka_headers"));
    assert_eq!(dead[0].header("dead_letter.partition"), None);
    let ledger = node.ledger();
    assert_eq!((ledger.matched, ledger.failed, ledger.dead_lettered), (1, 1, 1));
    node.stop().await;
    kafka.stop().await;
}

/// P13
#[tokio::test(flavor = "multi_thread")]
async fn a_record_that_is_too_large_is_a_dead_letter_and_its_neighbours_pass() {
    let small = TopicSpec::new("in", 1).config("max.message.bytes", "1000");
    let kafka = kafka(&[small, TopicSpec::new("dead", 1)]).await;
    let node = Node::start(
        &kafka.bootstrap(),
        r#"topic = in, dead_letter_topic = dead, message.value = "${payload}", compression = lz4
           kafka_ext_headers = [{ kafka_ext_header_key = from, kafka_ext_header_value = "${topic}" }]"#,
    )
    .await;
    // Gathered into one batch, before the first answer.
    kafka.faults().delay(Match::api(ApiKey::Metadata), Duration::from_millis(300), 1);
    // Not compressible.
    let large =
        (0..600_u64).fold(String::new(), |text, n| text + &n.wrapping_mul(0x9E37_79B9_7F4A_7C15).to_string());
    let before = node.begin("t/1", b"before").await;
    let too_large = node.begin("t/2", large.as_bytes()).await;
    let after = node.begin("t/3", b"after").await;
    assert_eq!(node.outcome(before).await, Outcome::Success);
    assert_eq!(node.outcome(too_large).await, Outcome::Failed(ReasonCode::QuotaExceeded));
    assert_eq!(node.outcome(after).await, Outcome::Success);
    let values: Vec<_> = read(&kafka, "in", 1).into_iter().map(|read| read.value.unwrap()).collect();
    assert_eq!(values, ["before", "after"]);
    let dead = read(&kafka, "dead", 1);
    assert_eq!((dead.len(), dead[0].value.as_deref()), (1, Some(large.as_str())));
    assert_eq!(dead[0].headers[0], ("from".to_owned(), "t/2".to_owned()));
    assert_eq!(dead[0].header("dead_letter.error_code"), Some("10"));
    assert_eq!(dead[0].header("dead_letter.partition"), Some("0"));
    let ledger = node.ledger();
    assert_eq!((ledger.matched, ledger.success, ledger.failed), (3, 2, 1));
    assert_eq!((ledger.dead_lettered, ledger.dead_letters_lost), (1, 0));
    node.stop().await;
    kafka.stop().await;
}

const INVALID_TIMESTAMP: i16 = 32;

/// P4, P13
#[tokio::test(flavor = "multi_thread")]
async fn a_record_that_is_refused_for_its_timestamp_reaches_the_dead_letter_topic() {
    let kafka = kafka(&[TopicSpec::new("in", 1), TopicSpec::new("dead", 1)]).await;
    let settings = r#"topic = in, dead_letter_topic = dead, message { value = "${payload}", timestamp = "${payload.at}" }"#;
    let node = Node::start(&kafka.bootstrap(), settings).await;
    let now = now_ms();
    let at = |at: i64| format!(r#"{{"at": {at}}}"#).into_bytes();
    let refused = Outcome::Failed(ReasonCode::PayloadFormatInvalid);
    // In microseconds; by a clock that is two hours ahead.
    let far = [now * 1000, now + 2 * 3_600_000];
    assert_eq!(node.publish("t/1", &at(now)).await, Outcome::Success);
    for far in far {
        assert_eq!(node.publish("t/1", &at(far)).await, refused);
    }
    // Kafka does not take the time of this node, either.
    kafka.faults().error(Match::api(ApiKey::Produce).topic("dead"), INVALID_TIMESTAMP, 1);
    assert_eq!(node.publish("t/1", &at(far[0])).await, refused);
    let dead = read(&kafka, "dead", 1);
    assert_eq!((read(&kafka, "in", 1).len(), dead.len()), (1, 3));
    for (dead, wanted) in dead.iter().zip([far[0], far[1], far[0]]) {
        assert_eq!(dead.header("dead_letter.timestamp"), Some(wanted.to_string().as_str()));
        assert_eq!(dead.header("dead_letter.error_code"), Some("32"));
        assert_eq!(dead.value.as_deref().unwrap().as_bytes(), at(wanted));
    }
    assert!(dead[..2].iter().all(|dead| (now..now + 600_000).contains(&dead.timestamp)), "{dead:?}");
    assert_eq!(dead[2].timestamp, -1);
    let ledger = node.ledger();
    assert_eq!((ledger.matched, ledger.success, ledger.failed), (4, 1, 3));
    assert_eq!((ledger.dead_lettered, ledger.dead_letters_lost), (3, 0));
    node.stop().await;
    kafka.stop().await;
}

/// P13. Whatever Kafka refuses a record for, the dead letter may meet the same fate: it is counted, and the
/// publisher hears of it.
#[tokio::test(flavor = "multi_thread")]
async fn a_dead_letter_that_is_refused_as_its_record_was_is_counted_as_lost() {
    let kafka = kafka(&[TopicSpec::new("in", 1), TopicSpec::new("dead", 1)]).await;
    let settings = "topic = in, dead_letter_topic = dead, message.timestamp = 123";
    let node = Node::start(&kafka.bootstrap(), settings).await;
    node.connected().await;
    let mut lost = 0;
    // Every code by which a record is given up for good.
    for code in [2, 10, 17, 18, 21, 32, 42, 43, 44, 76, 87] {
        kafka.faults().error(Match::api(ApiKey::Produce), code, 1000);
        let outcome = node.publish("t/1", b"v").await;
        kafka.faults().clear();
        assert!(matches!(outcome, Outcome::Failed(_)), "code {code}");
        lost += 1;
        let ledger = node.ledger();
        assert_eq!(
            (ledger.failed, ledger.dead_letters_lost, ledger.dead_lettered),
            (lost, lost, 0),
            "code {code}"
        );
    }
    assert_eq!((read(&kafka, "in", 1).len(), read(&kafka, "dead", 1).len()), (0, 0));
    node.stop().await;
    kafka.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_time_of_arrival_that_kafka_does_not_take_is_held_and_the_status_speaks_of_clocks() {
    let kafka = kafka(&[TopicSpec::new("in", 1), TopicSpec::new("dead", 1)]).await;
    for timestamp in ["", "message.timestamp = \"${payload.at}\""] {
        let node =
            Node::start(&kafka.bootstrap(), &format!("topic = in, dead_letter_topic = dead\n{timestamp}"))
                .await;
        node.connected().await;
        kafka.faults().error(Match::api(ApiKey::Produce).topic("in"), INVALID_TIMESTAMP, 1000);
        node.received_at.store(now_ms(), std::sync::atomic::Ordering::Relaxed);
        let held = [node.begin("t/1", b"a").await, node.begin("t/1", b"b").await];
        until("the clock is named", || {
            matches!(node.row().status, Status::Disconnected(reason) if reason.contains("clock of this node"))
        })
        .await;
        assert_eq!(held.map(|publication| node.told(publication)), [None; 2]);
        let ledger = node.ledger();
        assert_eq!((ledger.failed, ledger.dead_lettered, ledger.queuing + ledger.inflight), (0, 0, 2));
        // The clocks agree again.
        kafka.faults().clear();
        for publication in held {
            assert_eq!(node.outcome(publication).await, Outcome::Success);
        }
        node.connected().await;
        node.stop().await;
    }
    assert_eq!((read(&kafka, "in", 1).len(), read(&kafka, "dead", 1).len()), (4, 0));
    kafka.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bridge_whose_records_are_all_refused_is_not_connected() {
    let small = TopicSpec::new("in", 1).config("max.message.bytes", "300");
    let kafka = kafka(&[small]).await;
    let node = Node::start(&kafka.bootstrap(), r#"topic = in, message.value = "${payload}""#).await;
    node.connected().await;
    for _ in 0..3 {
        assert_eq!(node.publish("t/1", &[b'x'; 400]).await, Outcome::Failed(ReasonCode::QuotaExceeded));
    }
    until(
        "all are refused",
        || matches!(node.row().status, Status::Disconnected(reason) if reason.contains("refused")),
    )
    .await;
    assert_eq!(node.publish("t/1", b"small").await, Outcome::Success);
    node.connected().await;
    node.stop().await;
    kafka.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_letter_topic_that_does_not_work_holds_its_publisher_up_for_a_while_and_nobody_else() {
    let small = TopicSpec::new("in", 1).config("max.message.bytes", "300");
    let kafka = kafka(&[small]).await;
    let node = Node::start(
        &kafka.bootstrap(),
        r#"topic = in, dead_letter_topic = nowhere, message.value = "${payload}""#,
    )
    .await;
    let started = Instant::now();
    let too_large = node.begin("t/1", &[b'x'; 400]).await;
    assert_eq!(node.publish("t/2", b"small").await, Outcome::Success);
    assert_eq!(node.told(too_large), None);
    assert_eq!(node.outcome(too_large).await, Outcome::Failed(ReasonCode::QuotaExceeded));
    let patience = causeway::kafka::producer::dead_letters::PATIENCE;
    assert!(started.elapsed() >= patience);
    assert_eq!((node.ledger().failed, node.ledger().dead_lettered), (1, 0));
    node.stop().await;
    kafka.stop().await;
}

/// L11
#[tokio::test(flavor = "multi_thread")]
async fn a_batch_that_is_refused_too_often_fails() {
    const NOT_ENOUGH_REPLICAS: i16 = 19;
    let kafka = kafka(&[TopicSpec::new("in", 1), TopicSpec::new("dead", 1)]).await;
    let node = Node::start(&kafka.bootstrap(), "topic = in, max_retries = 1, dead_letter_topic = dead").await;
    node.connected().await;
    kafka.faults().error(Match::api(ApiKey::Produce).topic("in"), NOT_ENOUGH_REPLICAS, 2);
    assert_eq!(node.publish("t/1", b"a").await, Outcome::Failed(ReasonCode::UnspecifiedError));
    assert_eq!(kafka.faults().pending(), 0, "it was sent once more, and no more");
    assert_eq!(node.publish("t/1", b"b").await, Outcome::Success);
    let ledger = node.ledger();
    assert_eq!((ledger.failed, ledger.dropped(), ledger.success, ledger.retried), (1, 0, 1, 1));
    let dead = read(&kafka, "dead", 1);
    assert_eq!(dead[0].header("dead_letter.error_code"), Some("19"));
    assert!(dead[0].header("dead_letter.reason").unwrap().contains("max_retries"), "{dead:?}");
    node.stop().await;
    kafka.stop().await;
}

/// L10
#[tokio::test(flavor = "multi_thread")]
async fn what_is_too_old_while_kafka_is_away_is_dropped_and_what_comes_later_is_delivered() {
    let kafka = kafka(&[TopicSpec::new("in", 1)]).await;
    let node = Node::start(&kafka.bootstrap(), "topic = in, max_batch_age = 700ms").await;
    node.connected().await;
    assert_eq!(node.publish("t/1", b"first").await, Outcome::Success);
    kafka.faults().pause_broker(1).await.unwrap();
    until("the broker is missed", || node.row().status != causeway::bridge::service::Status::Connected).await;
    let mut old = Vec::new();
    for _ in 0..3 {
        old.push(node.begin("t/1", b"old").await);
    }
    for publication in old {
        assert_eq!(node.outcome(publication).await, Outcome::Failed(ReasonCode::UnspecifiedError));
    }
    let ledger = node.ledger();
    assert_eq!((ledger.dropped_expired, ledger.dropped(), ledger.failed, ledger.success), (3, 3, 0, 1));
    kafka.faults().resume_broker(1).await.unwrap();
    node.connected().await;
    assert_eq!(node.publish("t/1", b"new").await, Outcome::Success);
    assert_eq!(read(&kafka, "in", 1).len(), 2);
    node.stop().await;
    kafka.stop().await;
}

/// L3
#[tokio::test(flavor = "multi_thread")]
async fn what_waits_for_a_topic_that_does_not_come_expires_too() {
    let kafka = kafka(&[]).await;
    let node = Node::start(&kafka.bootstrap(), "topic = nowhere, max_batch_age = 200ms").await;
    assert_eq!(node.publish("t/1", b"old").await, Outcome::Failed(ReasonCode::UnspecifiedError));
    node.publish_unacknowledged("t/1", b"old").await;
    until("both are dropped", || node.ledger().dropped_expired == 2).await;
    node.stop().await;
    kafka.stop().await;
}

/// W8
#[tokio::test(flavor = "multi_thread")]
async fn a_lone_record_lingers_and_enough_of_them_do_not() {
    let kafka = kafka(&[TopicSpec::new("in", 1)]).await;
    let linger = Duration::from_millis(400);
    let node =
        Node::start(&kafka.bootstrap(), "topic = in, max_linger_time = 400ms, max_linger_bytes = 2KB").await;
    node.connected().await;
    let started = Instant::now();
    assert_eq!(node.publish("t/1", b"lone").await, Outcome::Success);
    assert!(started.elapsed() >= linger, "{:?}", started.elapsed());
    node.stop().await;

    // An hour would not be over: it is their bytes that send them, of which the fourth brings enough.
    let node =
        Node::start(&kafka.bootstrap(), "topic = in, max_linger_time = 1h, max_linger_bytes = 3KB").await;
    node.connected().await;
    let mut many = Vec::new();
    for _ in 0..4 {
        many.push(node.begin("t/1", &[b'x'; 600]).await);
    }
    for publication in many {
        assert_eq!(node.outcome(publication).await, Outcome::Success);
    }
    assert_eq!(kafka.batches("in", 0, 0).unwrap().len(), 2, "all four in one batch");
    node.stop().await;

    // A stop does not wait for more.
    let node = Node::start(&kafka.bootstrap(), "topic = in, max_linger_time = 1h").await;
    node.connected().await;
    let last = node.begin("t/1", b"last").await;
    node.stop().await;
    assert_eq!(node.outcome(last).await, Outcome::Success);
    kafka.stop().await;
}

/// W14
#[tokio::test(flavor = "multi_thread")]
async fn asynchronous_publications_are_done_when_queued_and_synchronous_ones_are_late_but_true() {
    let kafka = kafka(&[TopicSpec::new("in", 1)]).await;
    let away = Duration::from_secs(2);
    for (mode, at_once, late) in
        [("async", true, 0), ("sync, sync_query_timeout = 100ms", false, 1), ("sync", false, 0)]
    {
        let node = Node::start(&kafka.bootstrap(), &format!("topic = in, query_mode = {mode}")).await;
        node.connected().await;
        kafka.faults().delay(Match::api(ApiKey::Produce), away, 1);
        let started = Instant::now();
        assert_eq!(node.publish("t/1", b"v").await, Outcome::Success);
        assert_eq!(node.ledger().success == 0, at_once, "{mode}");
        assert!(at_once || started.elapsed() >= away, "{mode}");
        until("kafka has it", || node.ledger().success == 1).await;
        assert_eq!(node.ledger().late_reply, late, "{mode}");
        node.stop().await;
    }
    kafka.stop().await;
}

/// W14
#[tokio::test(flavor = "multi_thread")]
async fn a_synchronous_publication_waits_for_kafka_although_it_is_on_the_disk() {
    let kafka = kafka(&[TopicSpec::new("in", 1)]).await;
    let modes = ["query_mode = sync, sync_query_timeout = 100ms", "query_mode = sync", ""];
    for (count, mode) in (1..).zip(modes) {
        let settings = format!("topic = in, reconnect_delay = 50ms, buffer.mode = disk\n{mode}");
        let node = Node::start(&kafka.bootstrap(), &settings).await;
        node.connected().await;
        kafka.faults().pause_broker(1).await.unwrap();
        let publication = node.begin("t/1", b"v").await;
        let folder = node.data_dir.path().join("buffers").join("out");
        until("the record on the disk", || {
            let mut directory = Directory::look(&folder).unwrap();
            survey(&mut directory).unwrap().1.records() == 1
        })
        .await;
        if mode.is_empty() {
            assert_eq!(node.outcome(publication).await, Outcome::Success);
        }
        // Longer than the timeout, so that the answer is late.
        tokio::time::sleep(Duration::from_millis(200)).await;
        assert_eq!(node.told(publication).is_some(), mode.is_empty(), "{mode:?}");
        assert_eq!(node.ledger().success, 0);
        kafka.faults().resume_broker(1).await.unwrap();
        assert_eq!(node.outcome(publication).await, Outcome::Success);
        until("kafka has it", || node.ledger().success == 1).await;
        assert_eq!(node.ledger().late_reply, u64::from(mode.contains("timeout")), "{mode:?}");
        assert_eq!(read(&kafka, "in", 1).len(), count);
        node.stop().await;
    }
    kafka.stop().await;
}

/// W5. What was acknowledged when it was queued makes nobody lose it: the next one has to wait.
#[tokio::test(flavor = "multi_thread")]
async fn a_queue_of_asynchronous_publications_that_is_full_drops_none_of_them() {
    let kafka = kafka(&[]).await;
    let node = Node::start(
        &kafka.bootstrap(),
        "topic = in, query_mode = async, message.value = \"${payload}\", buffer.per_partition_limit = 400",
    )
    .await;
    let mut sent = 0;
    loop {
        let publishing = node.publish("t/1", &[b'x'; 100]);
        let Ok(outcome) = tokio::time::timeout(Duration::from_millis(300), publishing).await else { break };
        assert_eq!(outcome, Outcome::Success);
        sent += 1;
        assert!(sent < 10, "the queue never fills");
    }
    node.publish_unacknowledged("t/1", &[b'x'; 100]).await;
    assert_eq!((node.ledger().queuing, node.ledger().dropped_queue_full), (sent, 1));
    kafka.create_topic(&TopicSpec::new("in", 1)).unwrap();
    until("all are there", || node.ledger().success == sent).await;
    assert_eq!(read(&kafka, "in", 1).len() as u64, sent);
    node.stop().await;
    kafka.stop().await;
}

/// P22
#[tokio::test(flavor = "multi_thread")]
async fn only_the_first_partitions_are_used_where_there_is_a_limit() {
    let kafka = kafka(&[TopicSpec::new("in", 5)]).await;
    for (limit, most) in [(1, 1), (2, 2), (9, 5)] {
        let settings = format!("topic = in, partitions_limit = {limit}, message.key = \"${{payload}}\"");
        let node = Node::start(&kafka.bootstrap(), &settings).await;
        for number in 0..40 {
            assert_eq!(node.publish("t/1", number.to_string().as_bytes()).await, Outcome::Success);
        }
        assert_eq!(node.row().places.len(), most);
        assert_eq!(node.row().places.iter().filter(|place| place.ledger.success > 0).count(), most);
        node.stop().await;
    }
    kafka.stop().await;
}
