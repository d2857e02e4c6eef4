//! What the tests of the producer share: a development Kafka, a publisher that keeps its tickets, and the
//! judge who reads everything back.

#![allow(clippy::unwrap_used, clippy::expect_used, dead_code, unreachable_pub, reason = "tests")]

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use causeway::dev_kafka::{DevKafka, Options, TopicSpec};
use causeway::flow::{Accepted, AckSink, Outcome, SequenceRange, Ticket, WakeList};
use causeway::kafka::client::{Address, Backoff, Client, ClientOptions};
use causeway::kafka::producer::{Status, TopicProducer, TopicProducerHandle, TopicProducerOptions};
use causeway_protocol::kafka::batch::{Record, batches};
use parking_lot::Mutex;
use tokio::sync::Notify;

pub const TOPIC: &str = "t";

/// A patience that only a hang exceeds.
pub const LONG: Duration = Duration::from_mins(1);

pub async fn kafka(brokers: usize, partitions: i32) -> DevKafka {
    let options = Options { auto_create: false, ..Options::brokers(brokers) };
    DevKafka::start(options.topic(TopicSpec::new(TOPIC, partitions))).await.unwrap()
}

pub fn client_to(bootstrap: &str) -> Client {
    let addresses = bootstrap.split(',').map(|address| {
        let (host, port) = address.rsplit_once(':').unwrap();
        Address::new(host, port.parse().unwrap())
    });
    Client::new(ClientOptions {
        min_metadata_refresh_interval: Duration::from_millis(50),
        reconnect_backoff: Backoff { first: Duration::from_millis(20), max: Duration::from_millis(200) },
        ..ClientOptions::new(addresses.collect())
    })
}

pub fn options() -> TopicProducerOptions {
    TopicProducerOptions { request_timeout: Duration::from_secs(15), ..TopicProducerOptions::new(TOPIC) }
}

pub fn start(kafka: &DevKafka, options: TopicProducerOptions) -> TopicProducerHandle {
    TopicProducer::start(client_to(&kafka.bootstrap()), options)
}

/// Gives tickets out and hears their outcomes, each exactly once.
#[derive(Default)]
pub struct Publisher {
    outcomes: Mutex<HashMap<u64, Outcome>>,
    published: AtomicUsize,
    heard: Notify,
}

impl AckSink for Publisher {
    fn acknowledge(&self, ranges: &[SequenceRange], outcome: Outcome) {
        let mut outcomes = self.outcomes.lock();
        for range in ranges {
            for sequence in range.first..range.first + u64::from(range.count) {
                assert!(outcomes.insert(sequence, outcome).is_none(), "{sequence} is told twice");
            }
        }
        drop(outcomes);
        self.heard.notify_one();
    }
}

pub fn record<'a>(key: &'a str, value: &'a str) -> Record<'a> {
    Record {
        timestamp: 1_700_000_000_000,
        key: Some(key.as_bytes()),
        value: Some(value.as_bytes()),
        headers: &[],
    }
}

impl Publisher {
    /// Publishes and waits for room where there is none.
    pub async fn publish(self: &Arc<Self>, producer: &TopicProducerHandle, key: &str, value: &str) {
        self.publish_record(producer, &record(key, value)).await;
    }

    /// The same, with any record.
    pub async fn publish_record(self: &Arc<Self>, producer: &TopicProducerHandle, record: &Record<'_>) {
        let sequence = self.published.fetch_add(1, Ordering::Relaxed) as u64;
        let ticket = Ticket::new(self.clone(), sequence);
        loop {
            let mut wakes = WakeList::default();
            match producer.append(record, Some(&ticket), &mut wakes) {
                Accepted::Taken => return,
                Accepted::Done(outcome) => {
                    self.outcomes.lock().insert(sequence, outcome);
                    return;
                }
                Accepted::Full(room) => {
                    drop(wakes);
                    let _ = tokio::time::timeout(Duration::from_millis(100), room.notified()).await;
                }
            }
        }
    }

    /// Waits until every ticket is back; the outcomes by sequence.
    pub async fn outcomes(&self) -> BTreeMap<u64, Outcome> {
        let all = async {
            while self.outcomes.lock().len() < self.published.load(Ordering::Relaxed) {
                self.heard.notified().await;
            }
        };
        let waited = tokio::time::timeout(LONG, all).await;
        let (told, published) = (self.outcomes.lock().len(), self.published.load(Ordering::Relaxed));
        assert!(waited.is_ok(), "{told} of {published} tickets came back");
        self.outcomes.lock().iter().map(|(sequence, outcome)| (*sequence, *outcome)).collect()
    }

    pub async fn all_succeed(&self) {
        let outcomes = self.outcomes().await;
        let failed: Vec<_> = outcomes.iter().filter(|(_, outcome)| **outcome != Outcome::Success).collect();
        assert!(failed.is_empty(), "{failed:?}");
    }

    pub fn told(&self) -> usize {
        self.outcomes.lock().len()
    }
}

/// All (key, value) of a partition, in order.
pub fn read(kafka: &DevKafka, partition: i32) -> Vec<(String, String)> {
    read_topic(kafka, TOPIC, partition)
}

pub fn read_topic(kafka: &DevKafka, topic: &str, partition: i32) -> Vec<(String, String)> {
    let mut read = Vec::new();
    let stored = kafka.batches(topic, partition, 0).unwrap_or_default();
    for bytes in stored {
        for batch in batches(bytes) {
            let records = batch.unwrap().records(64 * 1024 * 1024).unwrap();
            for record in &records {
                let record = record.unwrap();
                let text =
                    |bytes: Option<&[u8]>| String::from_utf8(bytes.unwrap_or_default().to_vec()).unwrap();
                read.push((text(record.key), text(record.value)));
            }
        }
    }
    read
}

/// Values are numbers that rise by one per key, from 0; every key has `each` of them.
pub fn judge(kafka: &DevKafka, partitions: i32, keys: usize, each: usize) {
    let mut next: HashMap<String, usize> = HashMap::new();
    for partition in 0..partitions {
        for (key, value) in read(kafka, partition) {
            let next = next.entry(key.clone()).or_default();
            assert_eq!(value, next.to_string(), "partition {partition}, key {key}");
            *next += 1;
        }
    }
    assert_eq!(next.len(), keys);
    assert!(next.values().all(|count| *count == each), "{next:?}");
}

pub fn assert_books(producer: &TopicProducerHandle, matched: u64, success: u64) {
    let ledger = producer.ledger();
    assert_eq!(ledger.imbalance(), 0, "{ledger:?}");
    assert_eq!((ledger.matched, ledger.success), (matched, success), "{ledger:?}");
}

pub async fn wait_for(producer: &TopicProducerHandle, what: impl FnMut(&Status) -> bool) -> Status {
    let mut status = producer.status();
    tokio::time::timeout(LONG, status.wait_for(what)).await.expect("the status comes").unwrap().clone()
}
