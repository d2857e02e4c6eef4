//! A hybrid buffer: beyond `segment_bytes` records wait in files.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::bridge_support::*;
use causeway::bridge::hybrid_buffer;
use causeway::bridge::service::{Definition, Status};
use causeway::config::parse_producer_bridge;
use causeway::dev_kafka::{DevKafka, TopicSpec};
use causeway::flow::Outcome;
use causeway::flow::ledger::Ledger;

/// A batch is 2 KB, and beyond 8 KB in memory the others are in files of 16 KB.
const KEYED: &str = r#"topic = in, partition_strategy = key_dispatch, reconnect_delay = 50ms
    message.key = "${topic}", message.value = "${payload}", max_batch_bytes = 2KB"#;
const HYBRID: &str = "buffer { mode = hybrid, segment_bytes = 8KB }";

fn payload(number: u32) -> Vec<u8> {
    format!("{number:0>100}").into_bytes()
}

fn files(node: &Node) -> usize {
    std::fs::read_dir(hybrid_buffer::directory(node.data_dir.path(), "out")).map_or(0, Iterator::count)
}

/// Values by key, in the order of the log.
fn by_key(kafka: &DevKafka, topic: &str) -> BTreeMap<String, Vec<u32>> {
    let mut keys = BTreeMap::<String, Vec<u32>>::new();
    for record in read(kafka, topic, 3) {
        keys.entry(record.key.unwrap()).or_default().push(record.value.unwrap().parse().unwrap());
    }
    keys
}

/// Without acknowledgements nobody is kept from being faster than the disk.
async fn room_in_memory(node: &Node) {
    until("there is room in memory", || {
        let row = node.row();
        let in_memory = |ledger: &Ledger| ledger.queuing_bytes - ledger.queuing_in_files;
        let places: Vec<u64> = row.places.iter().map(|place| in_memory(&place.ledger)).collect();
        // The rest waits for no partition yet: another queue.
        let staged = in_memory(&row.ledger).saturating_sub(places.iter().sum());
        places.iter().chain([&staged]).all(|bytes| *bytes < 12 * 1024)
    })
    .await;
}

async fn change(node: &Node, bootstrap: &str, kafka: &str) {
    let text = format!(
        "bootstrap_hosts = \"{bootstrap}\", local_topic = \"t/#\", min_metadata_refresh_interval = 50ms, kafka {{ {kafka} }}"
    );
    let config = parse_producer_bridge("out", &text).unwrap_or_else(|errors| panic!("{errors}")).value;
    node.bridges.put("out", Definition::Producer(Box::new(config))).await.unwrap();
}

/// An address where nobody answers.
fn nowhere() -> String {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string()
}

/// W11. Kafka goes, more comes than fits into the memory, and Kafka comes back. In `staged`, it was never
/// there.
#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_fit_into_the_memory_waits_in_files_and_is_sent_in_order() {
    const KEYS: u32 = 5;
    const ALL: u32 = 3000;
    for staged in [false, true] {
        let kafka = kafka(&[TopicSpec::new("in", 3)]).await;
        if staged {
            kafka.faults().pause_broker(1).await.unwrap();
        }
        let node = Node::start(&kafka.bootstrap(), &format!("{KEYED}\n{HYBRID}")).await;
        if !staged {
            node.connected().await;
            assert_eq!(node.publish("t/0", &payload(0)).await, Outcome::Success);
            assert_eq!(files(&node), 0, "nothing needs a file");
            kafka.faults().pause_broker(1).await.unwrap();
        }
        let mut held = Vec::new();
        for number in u32::from(!staged)..ALL {
            let topic = format!("t/{}", number % KEYS);
            // Every seventh without somebody who waits for it.
            if number % 7 == 0 {
                room_in_memory(&node).await;
                node.publish_unacknowledged(&topic, &payload(number)).await;
            } else {
                held.push(node.begin(&topic, &payload(number)).await);
            }
        }
        let ledger = node.ledger();
        assert_eq!((ledger.matched, ledger.dropped()), (u64::from(ALL), 0));
        until("most of it is in files", || node.ledger().queuing_in_files > 250_000).await;
        // What is in memory: for each of at most three queues 8 KB, and a batch or two.
        until("the memory has its bound", || {
            let ledger = node.ledger();
            ledger.queuing_bytes - ledger.queuing_in_files <= 3 * (8 + 4) * 1024
        })
        .await;
        assert!(files(&node) > 10 && held.iter().all(|publication| node.told(*publication).is_none()));
        kafka.faults().resume_broker(1).await.unwrap();
        for publication in held {
            assert_eq!(node.outcome(publication).await, Outcome::Success);
        }
        until("all is sent", || node.ledger().success == u64::from(ALL)).await;
        let ledger = node.ledger();
        assert_eq!(
            (ledger.queuing_bytes, ledger.queuing_in_files, ledger.failed, ledger.dropped()),
            (0, 0, 0, 0)
        );
        let mut numbers: Vec<u32> = Vec::new();
        for (key, values) in by_key(&kafka, "in") {
            assert!(values.is_sorted(), "{key}: {values:?}");
            numbers.extend(values);
        }
        numbers.sort_unstable();
        assert_eq!(numbers, (0..ALL).collect::<Vec<_>>(), "each once");
        until("files go when they are empty", || files(&node) == 0).await;
        node.stop().await;
        kafka.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn topics_that_messages_name_wait_in_files_as_well() {
    let kafka = kafka(&[TopicSpec::new("to-0", 3), TopicSpec::new("to-1", 3)]).await;
    let settings = r#"topic = "to-${.payload.n}", message.key = "${topic}", message.value = "${.payload.v}"
        reconnect_delay = 50ms, max_batch_bytes = 2KB"#;
    let message = |number: u32| format!(r#"{{"n": {}, "v": "{number:0>100}"}}"#, number % 2).into_bytes();
    // By the bound of each partition, and by that of the memory of all topics, of which what is under way has
    // some: five batches a topic.
    for (buffer, memory) in [("8KB", "256MB"), ("1MB", "64KB")] {
        let buffer = format!("buffer {{ mode = hybrid, segment_bytes = {buffer} }}");
        let topics = format!("dynamic_topics {{ memory_limit = {memory} }}");
        let node = Node::start(&kafka.bootstrap(), &format!("{settings}\n{buffer}\n{topics}")).await;
        node.connected().await;
        for number in 0..2 {
            assert_eq!(node.publish("t/1", &message(number)).await, Outcome::Success);
        }
        kafka.faults().pause_broker(1).await.unwrap();
        let mut held = Vec::new();
        for number in 2..2000 {
            held.push(node.begin("t/1", &message(number)).await);
        }
        until("most of it is in files", || node.ledger().queuing_in_files > 150_000).await;
        kafka.faults().resume_broker(1).await.unwrap();
        for publication in held {
            assert_eq!(node.outcome(publication).await, Outcome::Success);
        }
        until("files go", || files(&node) == 0).await;
        assert_eq!((node.ledger().success, node.ledger().queuing_in_files), (2000, 0));
        node.stop().await;
    }
    for topic in 0..2 {
        let values = by_key(&kafka, &format!("to-{topic}")).remove("t/1").unwrap();
        let once = (0..1000).map(|number| 2 * number + topic);
        assert_eq!(values, once.clone().chain(once).collect::<Vec<_>>());
    }
    kafka.stop().await;
}

/// The limit is that of memory and files together: beyond it the oldest without a publisher who waits are
/// dropped, and the others wait.
#[tokio::test(flavor = "multi_thread")]
async fn the_limit_counts_memory_and_files_together() {
    let kafka = kafka(&[TopicSpec::new("in", 1)]).await;
    let limit = HYBRID.replace('}', ", per_partition_limit = 100KB }");
    let node = Arc::new(Node::start(&kafka.bootstrap(), &format!("{KEYED}\n{limit}")).await);
    node.connected().await;
    kafka.faults().pause_broker(1).await.unwrap();
    for number in 0..3000 {
        room_in_memory(&node).await;
        node.publish_unacknowledged("t/1", &payload(number)).await;
    }
    until("most is in files", || node.ledger().queuing_in_files > 50 * 1024).await;
    let ledger = node.ledger();
    assert_eq!(ledger.matched, 3000);
    assert!(ledger.queuing_bytes <= 100 * 1024 && ledger.dropped_queue_full > 2000, "{ledger:?}");
    let waiting = tokio::spawn({
        let node = node.clone();
        async move { node.publish("t/1", &payload(3000)).await }
    });
    kafka.faults().resume_broker(1).await.unwrap();
    assert_eq!(waiting.await.unwrap(), Outcome::Success);
    until("all is sent", || node.ledger().queuing + node.ledger().inflight == 0).await;
    let ledger = node.ledger();
    let values = by_key(&kafka, "in").remove("t/1").unwrap();
    assert!(values.is_sorted(), "{values:?}");
    assert_eq!(values.len() as u64, ledger.success);
    assert_eq!((ledger.success + ledger.dropped_queue_full, ledger.failed), (3001, 0));
    // The newest of those without, and the one that was waited for.
    assert_eq!(values[values.len() - 2..], [2999, 3000]);
    node.stop().await;
    kafka.stop().await;
}

/// What waits in files goes to whatever the changed bridge is: another hybrid one, one in memory, one on
/// disk.
#[tokio::test(flavor = "multi_thread")]
async fn a_changed_bridge_takes_over_what_is_in_files() {
    for to in [HYBRID, "buffer.mode = memory", "buffer.mode = disk"] {
        let kafka = kafka(&[TopicSpec::new("in", 3)]).await;
        let node = Node::start(&nowhere(), &format!("{KEYED}\n{HYBRID}")).await;
        let mut held = Vec::new();
        for number in 0..1500 {
            held.push(node.begin(&format!("t/{}", number % 5), &payload(number)).await);
        }
        until("most is in files", || node.ledger().queuing_in_files > 100_000).await;
        change(&node, &kafka.bootstrap(), &format!("{KEYED}\n{to}")).await;
        for number in 1500..1600 {
            held.push(node.begin(&format!("t/{}", number % 5), &payload(number)).await);
        }
        for publication in held {
            assert_eq!(node.outcome(publication).await, Outcome::Success, "{to}");
        }
        until("all is sent", || node.ledger().success == 1600).await;
        for (key, values) in by_key(&kafka, "in") {
            assert!(values.is_sorted() && values.len() == 320, "{to}, {key}: {values:?}");
        }
        until("files go", || files(&node) == 0).await;
        node.stop().await;
        kafka.stop().await;
    }
}

/// W11. An orderly stop sends what it can in its time; what is left is given up, and everybody is told.
#[tokio::test(flavor = "multi_thread")]
async fn a_stop_sends_what_is_in_files_and_without_kafka_gives_it_up_truthfully() {
    for there in [true, false] {
        let kafka = kafka(&[TopicSpec::new("in", 3)]).await;
        let node = Node::start(&kafka.bootstrap(), &format!("{KEYED}\n{HYBRID}")).await;
        node.connected().await;
        kafka.faults().pause_broker(1).await.unwrap();
        let mut held = Vec::new();
        for number in 0..1000 {
            held.push(node.begin(&format!("t/{}", number % 5), &payload(number)).await);
        }
        until("most is in files", || node.ledger().queuing_in_files > 50_000).await;
        if there {
            kafka.faults().resume_broker(1).await.unwrap();
            // So much is left as can be sent in the time that a stop has.
            until("it is being sent", || node.ledger().queuing_in_files < 20_000).await;
        }
        node.bridges.enable(Node::id(), false).await.unwrap();
        let (_, books) = node.bridges.retired()[0];
        assert_eq!((books.matched, books.imbalance()), (1000, 0));
        assert_eq!((books.success, books.failed), if there { (1000, 0) } else { (0, 1000) });
        assert_eq!(read(&kafka, "in", 3).len() as u64, books.success);
        for publication in held {
            assert_eq!(node.outcome(publication).await == Outcome::Success, there);
        }
        until("files go", || files(&node) == 0).await;
        node.stop().await;
        kafka.stop().await;
    }
}

/// A disk that takes nothing: said in the status, nothing lost, and over when it is over.
#[tokio::test(flavor = "multi_thread")]
async fn files_that_cannot_be_written_are_said_and_nothing_is_lost() {
    let kafka = kafka(&[TopicSpec::new("in", 1)]).await;
    let node = Arc::new(Node::start(&kafka.bootstrap(), &format!("{KEYED}\n{HYBRID}")).await);
    node.connected().await;
    // A file where the folder should be.
    let folder = node.data_dir.path().join(hybrid_buffer::FOLDER);
    std::fs::write(&folder, "").unwrap();
    kafka.faults().pause_broker(1).await.unwrap();
    let publishing = tokio::spawn({
        let node = node.clone();
        async move {
            let mut held = Vec::new();
            for number in 0..1000 {
                held.push(node.begin("t/1", &payload(number)).await);
            }
            held
        }
    });
    let mut why = String::new();
    until("it is said", || match node.row().status {
        Status::Disconnected(reason) if reason.starts_with("hybrid buffer: ") => {
            why = reason;
            true
        }
        _ => false,
    })
    .await;
    assert!(why.contains("records cannot be written to files: "), "{why}");
    until("publishers wait", || node.ledger().queuing_bytes > 8 * 1024).await;
    let ledger = node.ledger();
    assert!(ledger.queuing_bytes <= 17 * 1024 && ledger.queuing_in_files == 0, "{ledger:?}");
    std::fs::remove_file(&folder).unwrap();
    let held = tokio::time::timeout(LONG, publishing).await.expect("it goes on").unwrap();
    assert!(node.ledger().queuing_in_files > 0);
    kafka.faults().resume_broker(1).await.unwrap();
    for publication in held {
        assert_eq!(node.outcome(publication).await, Outcome::Success);
    }
    let values = by_key(&kafka, "in").remove("t/1").unwrap();
    assert_eq!(values, (0..1000).collect::<Vec<_>>());
    node.connected().await;
    node.stop().await;
    kafka.stop().await;
}
