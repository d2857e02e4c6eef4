//! What the tests of producer bridges share: a device that publishes through the router, and a reader of what
//! is in the development Kafka.

#![allow(clippy::unwrap_used, clippy::expect_used, dead_code, unreachable_pub, reason = "tests")]

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use causeway::bridge::service::{BridgeContext, BridgeId, Bridges, Definition, Kind, Row, Status};
use causeway::config::parse_producer_bridge;
use causeway::dev_kafka::{DevKafka, Options, TopicSpec};
use causeway::flow::ledger::Ledger;
use causeway::flow::{AckSink, HandOver, Message, Origin, Outcome, SequenceRange, Ticket, WakeList};
use causeway::kafka::producer::NodeMemory;
use causeway::mqtt::{PublishProgress, Published, RetainedLimits, Router};
use causeway_protocol::kafka::batch::batches;
use causeway_protocol::mqtt::{PublishProperties, QoS};
use parking_lot::Mutex;
use tokio::sync::Notify;

/// A patience that only a hang exceeds.
pub const LONG: Duration = Duration::from_mins(1);

pub async fn kafka(topics: &[TopicSpec]) -> DevKafka {
    let options = Options { auto_create: false, ..Options::default() };
    DevKafka::start(topics.iter().fold(options, |options, topic| options.topic(topic.clone()))).await.unwrap()
}

/// A node with one producer bridge, `kafka:out` from `t/#`.
pub struct Node {
    pub router: Arc<Router>,
    pub bridges: Bridges,
    pub memory: Arc<NodeMemory>,
    pub data_dir: tempfile::TempDir,
    /// When messages arrive: milliseconds since 1970.
    pub received_at: AtomicI64,
    told: Arc<Told>,
    next: AtomicU64,
}

#[derive(Default)]
struct Told {
    outcomes: Mutex<HashMap<u64, Outcome>>,
    heard: Notify,
}

impl AckSink for Told {
    fn acknowledge(&self, ranges: &[SequenceRange], outcome: Outcome) {
        for range in ranges {
            assert_eq!(range.count, 1);
            assert!(self.outcomes.lock().insert(range.first, outcome).is_none(), "told twice");
        }
        self.heard.notify_waiters();
    }
}

impl Node {
    /// `kafka` are the settings of the bridge's section of that name.
    pub async fn start(bootstrap: &str, kafka: &str) -> Self {
        Self::start_with(bootstrap, "", kafka).await
    }

    /// Without its bridge.
    pub async fn with(router: Arc<Router>, name: &str) -> Self {
        Self::with_memory(router, name, usize::MAX).await
    }

    /// The same, with so many bytes for all its bridges.
    pub async fn with_memory(router: Arc<Router>, name: &str, limit: usize) -> Self {
        let memory = NodeMemory::new(limit);
        let data_dir = tempfile::tempdir().unwrap();
        let bridges = Bridges::start(BridgeContext {
            router: router.clone(),
            clients: Arc::default(),
            node: name.into(),
            data_dir: data_dir.path().into(),
            lives: causeway::flow::Lives::default(),
            memory: memory.clone(),
            drain: Duration::from_secs(5),
        })
        .await
        .unwrap();
        let received_at = AtomicI64::new(1_700_000_000_000);
        Self { router, bridges, memory, data_dir, received_at, told: Arc::default(), next: AtomicU64::new(0) }
    }

    pub async fn start_with(bootstrap: &str, more: &str, kafka: &str) -> Self {
        Self::start_within(usize::MAX, bootstrap, more, kafka).await
    }

    /// The same, with so many bytes for all its bridges.
    pub async fn start_within(limit: usize, bootstrap: &str, more: &str, kafka: &str) -> Self {
        let node = Self::with_memory(Router::new(RetainedLimits::default()), "n1", limit).await;
        node.put_with(bootstrap, more, kafka).await;
        node
    }

    /// Puts another bridge in the place of the one there is.
    pub async fn put(&self, bootstrap: &str, kafka: &str) {
        self.put_with(bootstrap, "", kafka).await;
    }

    async fn put_with(&self, bootstrap: &str, more: &str, kafka: &str) {
        let text = format!(
            "bootstrap_hosts = \"{bootstrap}\", local_topic = \"t/#\", min_metadata_refresh_interval = 50ms\n{more}\n\
             kafka {{ {kafka} }}"
        );
        let config = parse_producer_bridge("out", &text).unwrap_or_else(|errors| panic!("{errors}")).value;
        self.bridges.put("out", Definition::Producer(Box::new(config))).await.unwrap();
    }

    pub fn id() -> BridgeId {
        BridgeId { kind: Kind::Producer, name: "out".to_owned() }
    }

    pub fn row(&self) -> Row {
        self.bridges.row(&Self::id()).unwrap()
    }

    /// The books, which must balance.
    pub fn ledger(&self) -> Ledger {
        let ledger = self.row().ledger;
        assert_eq!(ledger.imbalance(), 0, "{ledger:?}");
        ledger
    }

    pub async fn connected(&self) {
        until("the bridge is connected", || self.row().status == Status::Connected).await;
    }

    pub async fn stop(&self) {
        self.bridges.stop_all(Kind::Producer).await.unwrap();
    }

    /// Publishes with QoS 1; the number of the publication.
    pub async fn begin(&self, topic: &str, payload: &[u8]) -> u64 {
        self.begin_with(topic, payload, &PublishProperties::default()).await
    }

    pub async fn begin_with(&self, topic: &str, payload: &[u8], properties: &PublishProperties<'_>) -> u64 {
        let sequence = self.next.fetch_add(1, Ordering::Relaxed);
        let hand_over = HandOver::new(Ticket::new(self.told.clone(), sequence));
        self.offer(topic, payload, properties, Some(&hand_over)).await;
        sequence
    }

    /// Publishes with QoS 0.
    pub async fn publish_unacknowledged(&self, topic: &str, payload: &[u8]) {
        self.offer(topic, payload, &PublishProperties::default(), None).await;
    }

    async fn offer(
        &self,
        topic: &str,
        payload: &[u8],
        properties: &PublishProperties<'_>,
        hand_over: Option<&Arc<HandOver>>,
    ) {
        let origin = Arc::new(Origin { client_id: "c1".into(), username: None, peer: None });
        let message = Message {
            origin: &origin,
            topic,
            payload,
            qos: if hand_over.is_some() { QoS::AtLeastOnce } else { QoS::AtMostOnce },
            retain: false,
            dup: false,
            properties,
            received_at: self.received_at.load(Ordering::Relaxed),
            hops: 0,
        };
        let mut progress = PublishProgress::default();
        loop {
            let mut wakes = WakeList::default();
            match self.router.publish(&message, hand_over, &mut progress, &mut wakes) {
                Published::Done { matched } => {
                    assert_eq!(matched, 1, "{topic}");
                    return;
                }
                Published::Full(room) => {
                    drop(wakes);
                    let _ = tokio::time::timeout(Duration::from_millis(50), room.notified()).await;
                }
            }
        }
    }

    pub fn told(&self, publication: u64) -> Option<Outcome> {
        self.told.outcomes.lock().get(&publication).copied()
    }

    pub async fn outcome(&self, publication: u64) -> Outcome {
        let told = async {
            loop {
                let heard = self.told.heard.notified();
                if let Some(outcome) = self.told(publication) {
                    return outcome;
                }
                heard.await;
            }
        };
        let waited = tokio::time::timeout(LONG, told).await;
        waited.unwrap_or_else(|_| panic!("no outcome: {:?}", self.row()))
    }

    /// Publishes with QoS 1 and waits for what becomes of it.
    pub async fn publish(&self, topic: &str, payload: &[u8]) -> Outcome {
        let publication = self.begin(topic, payload).await;
        self.outcome(publication).await
    }
}

/// Milliseconds since 1970.
pub fn now_ms() -> i64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_millis() as i64
}

pub async fn until(what: &str, mut met: impl FnMut() -> bool) {
    let waiting = async {
        while !met() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(LONG, waiting).await.unwrap_or_else(|_| panic!("never: {what}"));
}

/// A record as it is in the development Kafka.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Read {
    pub partition: i32,
    pub timestamp: i64,
    pub key: Option<String>,
    pub value: Option<String>,
    pub headers: Vec<(String, String)>,
}

impl Read {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }
}

/// All records of a topic, by partition, and in order.
pub fn read(kafka: &DevKafka, topic: &str, partitions: i32) -> Vec<Read> {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    let mut all = Vec::new();
    for partition in 0..partitions {
        for bytes in kafka.batches(topic, partition, 0).unwrap_or_default() {
            for batch in batches(bytes) {
                let records = batch.unwrap().records(usize::MAX).unwrap();
                for record in &records {
                    let record = record.unwrap();
                    let header =
                        |(key, value): (&[u8], Option<&[u8]>)| (text(key), text(value.unwrap_or_default()));
                    all.push(Read {
                        partition,
                        timestamp: record.timestamp,
                        key: record.key.map(text),
                        value: record.value.map(text),
                        headers: record.headers().map(header).collect(),
                    });
                }
            }
        }
    }
    all
}
