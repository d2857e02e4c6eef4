//! What was answered from the disk comes to Kafka, once: with a disk without room, and after a panic.

use std::sync::Arc;
use std::time::Duration;

use causeway_protocol::kafka::batch::{Record, batches};
use parking_lot::Mutex;
use tokio::sync::watch;

use super::partition_producer::PartitionMessage;
use super::{DiskStore, TopicProducer, TopicProducerHandle, TopicProducerOptions};
use crate::dev_kafka::{ApiKey, DevKafka, Match, Options, TopicSpec};
use crate::flow::{Accepted, AckSink, Outcome, SequenceRange, Ticket, WakeList};
use crate::kafka::buffer::Buffer;
use crate::kafka::buffer::disk_double::Double;
use crate::kafka::client::{Address, Client, ClientOptions};

/// A patience that only a hang exceeds.
const LONG: Duration = Duration::from_mins(1);

#[derive(Default)]
struct Publisher(Mutex<Vec<u64>>);

impl AckSink for Publisher {
    fn acknowledge(&self, ranges: &[SequenceRange], outcome: Outcome) {
        assert_eq!(outcome, Outcome::Success);
        for range in ranges {
            self.0.lock().extend(range.first..range.first + u64::from(range.count));
        }
    }
}

async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let until = tokio::time::Instant::now() + LONG;
    while !holds() {
        assert!(tokio::time::Instant::now() < until, "{what} did not happen");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn publish(producer: &TopicProducerHandle, publisher: &Arc<Publisher>, sequences: std::ops::Range<u64>) {
    let mut wakes = WakeList::default();
    for sequence in sequences {
        let value = sequence.to_string();
        let record = Record {
            timestamp: 1_700_000_000_000 + sequence as i64,
            key: Some(b"k"),
            value: Some(value.as_bytes()),
            headers: &[],
        };
        let ticket = Ticket::new(publisher.clone(), sequence);
        assert!(matches!(producer.append(&record, Some(&ticket), &mut wakes), Accepted::Taken));
    }
}

fn written(kafka: &DevKafka) -> Vec<u64> {
    let stored = kafka.batches("t", 0, 0).unwrap_or_default();
    let mut values = Vec::new();
    for batch in stored.into_iter().flat_map(batches) {
        for record in &batch.unwrap().records(1 << 20).unwrap() {
            let value = record.unwrap().value.unwrap();
            values.push(std::str::from_utf8(value).unwrap().parse().unwrap());
        }
    }
    values
}

#[tokio::test]
async fn what_was_answered_goes_to_kafka_while_the_disk_has_no_room_for_the_rest_of_its_batch() {
    let options = Options { auto_create: false, ..Options::brokers(1) };
    let kafka = DevKafka::start(options.topic(TopicSpec::new("t", 1))).await.unwrap();
    let bootstrap = kafka.bootstrap();
    let (host, port) = bootstrap.rsplit_once(':').unwrap();
    let client = Client::new(ClientOptions::new(vec![Address::new(host, port.parse().unwrap())]));
    let disk = Double::default();
    let buffer = Buffer::open_on(disk.clone(), 1 << 20).unwrap();
    let (begin, begun) = watch::channel(false);
    let producer = TopicProducer::start(
        client,
        TopicProducerOptions {
            store: Some(DiskStore { buffer: buffer.clone(), answers: true }),
            begin: Some(begun),
            ..TopicProducerOptions::new("t")
        },
    );
    // All of it in one open batch, of which the first part is on the disk.
    let publisher = Arc::new(Publisher::default());
    publish(&producer, &publisher, 0..10);
    eventually("the first answers", || publisher.0.lock().len() == 10).await;
    disk.set_room(Some(0));
    publish(&producer, &publisher, 10..15);
    eventually("a full disk", || buffer.is_full()).await;
    // Kafka is there: nobody who was answered waits for room.
    begin.send_replace(true);
    eventually("ten records in Kafka", || written(&kafka).len() == 10).await;
    eventually("their end", || producer.ledger().success == 10).await;
    let ledger = producer.ledger();
    assert_eq!((ledger.matched, ledger.queuing, ledger.imbalance()), (15, 5, 0), "{ledger:?}");
    assert!(buffer.is_full() && publisher.0.lock().len() == 10, "nothing more was answered");
    disk.set_room(None);
    eventually("all records in Kafka", || producer.ledger().success == 15).await;
    let all: Vec<u64> = (0..15).collect();
    assert_eq!((written(&kafka), &*publisher.0.lock()), (all.clone(), &all));
    producer.stop(LONG).await;
    buffer.close().await;
}

#[tokio::test]
async fn a_stop_on_a_full_disk_fails_only_what_was_not_answered() {
    let client = Client::new(ClientOptions::new(vec![Address::new("127.0.0.1", 9)]));
    let disk = Double::default();
    let buffer = Buffer::open_on(disk.clone(), 1 << 20).unwrap();
    let (_begin, begun) = watch::channel(false);
    let producer = TopicProducer::start(
        client,
        TopicProducerOptions {
            store: Some(DiskStore { buffer: buffer.clone(), answers: true }),
            begin: Some(begun),
            ..TopicProducerOptions::new("t")
        },
    );
    let (answered, failed) = (Arc::new(Publisher::default()), Arc::new(Failures::default()));
    publish(&producer, &answered, 0..10);
    eventually("the first answers", || answered.0.lock().len() == 10).await;
    disk.set_room(Some(0));
    for sequence in 0..5 {
        let record = Record { timestamp: 1, key: None, value: Some(b"v"), headers: &[] };
        let ticket = Ticket::new(failed.clone(), sequence);
        let mut wakes = WakeList::default();
        assert!(matches!(producer.append(&record, Some(&ticket), &mut wakes), Accepted::Taken));
    }
    eventually("a full disk", || buffer.is_full()).await;
    let report = producer.stop(Duration::ZERO).await;
    assert_eq!((report.given_up, *failed.0.lock()), (5, 5));
    let ledger = producer.ledger();
    assert_eq!((ledger.matched, ledger.failed, ledger.imbalance()), (5, 5, 0), "{ledger:?}");
    buffer.close().await;
}

#[tokio::test]
async fn a_partition_producer_that_panics_loses_and_doubles_nothing_that_was_answered() {
    for appended in [false, true] {
        let options = Options { auto_create: false, ..Options::brokers(1) };
        let kafka = DevKafka::start(options.topic(TopicSpec::new("t", 1))).await.unwrap();
        let bootstrap = kafka.bootstrap();
        let (host, port) = bootstrap.rsplit_once(':').unwrap();
        let address = Address::new(host, port.parse().unwrap());
        let disk = Double::default();
        let buffer = Buffer::open_on(disk.clone(), 1 << 20).unwrap();
        let options = TopicProducerOptions {
            store: Some(DiskStore { buffer: buffer.clone(), answers: true }),
            ..TopicProducerOptions::new("t")
        };
        let producer = TopicProducer::start(Client::new(ClientOptions::new(vec![address])), options);
        let publisher = Arc::new(Publisher::default());
        publish(&producer, &publisher, 0..5);
        eventually("the first in Kafka", || producer.ledger().success == 5).await;
        // On its way, and perhaps there, when the panic comes; others wait behind it.
        let faults = kafka.faults();
        if appended {
            faults.delay(Match::api(ApiKey::Produce), Duration::from_secs(2), 1);
        } else {
            faults.pause_broker(1).await.unwrap();
        }
        publish(&producer, &publisher, 5..10);
        eventually("their answers", || publisher.0.lock().len() == 10).await;
        let sent = |ledger: crate::flow::ledger::Ledger| ledger.inflight + ledger.success >= 10;
        eventually("a batch under way", || sent(producer.ledger())).await;
        if appended {
            eventually("it is in Kafka", || written(&kafka).len() == 10).await;
        }
        publish(&producer, &publisher, 10..15);
        eventually("all answers", || publisher.0.lock().len() == 15).await;
        producer.routes.partitions()[0].actor.tell(PartitionMessage::Panic);
        if !appended {
            faults.resume_broker(1).await.unwrap();
        }
        eventually("all records in Kafka", || producer.ledger().success == 15).await;
        let all: Vec<u64> = (0..15).collect();
        assert_eq!(written(&kafka), all);
        let ledger = producer.ledger();
        assert_eq!((ledger.matched, ledger.failed, ledger.imbalance()), (15, 0, 0), "{ledger:?}");
        producer.stop(LONG).await;
        buffer.close().await;
        assert_eq!(buffer.state().records, 0, "nothing is left on the disk");
    }
}

#[derive(Default)]
struct Failures(Mutex<u32>);

impl AckSink for Failures {
    fn acknowledge(&self, ranges: &[SequenceRange], outcome: Outcome) {
        assert_ne!(outcome, Outcome::Success);
        *self.0.lock() += ranges.iter().map(|range| range.count).sum::<u32>();
    }
}
