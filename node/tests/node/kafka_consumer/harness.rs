//! A Kafka, a producer without any logic, and sinks that remember.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use causeway::dev_kafka::{DevKafka, Options, TopicSpec};
use causeway::flow::{Outcome, Room, SequenceRange, Ticket, WakeList};
use causeway::kafka::client::{Address, Client, ClientOptions, Purpose, ResponseError};
use causeway::kafka::consumer::{
    ConsumedRecord, ConsumerOptions, Offer, OffsetReset, PartitionSink, RecordSink,
};
use causeway_protocol::kafka::batch::{BatchBuilder, BatchStamp, Compression, Record};
use kafka_protocol::messages::create_partitions_request::CreatePartitionsTopic;
use kafka_protocol::messages::create_topics_request::CreatableTopic;
use kafka_protocol::messages::produce_request::{PartitionProduceData, TopicProduceData};
use kafka_protocol::messages::{
    CreatePartitionsRequest, CreateTopicsRequest, DeleteTopicsRequest, ProduceRequest, TopicName,
};
use kafka_protocol::protocol::{Encodable, StrBytes};
use parking_lot::Mutex;

/// The longest that any step may take.
const PATIENCE: Duration = Duration::from_mins(1);

pub(crate) enum Kafka {
    Dev(DevKafka, Client),
    Real(Address, Client),
}

fn client(address: Address) -> Client {
    Client::new(ClientOptions {
        min_metadata_refresh_interval: Duration::from_millis(200),
        ..ClientOptions::new(vec![address])
    })
}

fn address(of: SocketAddr) -> Address {
    Address::new(of.ip().to_string(), of.port())
}

impl Kafka {
    pub(crate) async fn start(brokers: usize) -> Self {
        init_log();
        if let Ok(bootstrap) = std::env::var("KAFKA_BOOTSTRAP") {
            let (host, port) = bootstrap.rsplit_once(':').expect("KAFKA_BOOTSTRAP is HOST:PORT");
            let address = Address::new(host, port.parse().expect("a port"));
            return Self::Real(address.clone(), client(address));
        }
        let dev = DevKafka::start(Options { auto_create: false, ..Options::brokers(brokers) }).await.unwrap();
        let address = address(dev.addresses()[0]);
        Self::Dev(dev, client(address))
    }

    pub(crate) async fn start_at(bind: SocketAddr) -> Self {
        init_log();
        let options = Options { bind: vec![bind], auto_create: false, ..Options::default() };
        let dev = DevKafka::start(options).await.unwrap();
        Self::Dev(dev, client(address(bind)))
    }

    pub(crate) fn dev(&self) -> Option<&DevKafka> {
        match self {
            Self::Dev(dev, _) => Some(dev),
            Self::Real(..) => None,
        }
    }

    pub(crate) fn client(&self) -> Client {
        match self {
            Self::Dev(_, client) | Self::Real(_, client) => client.clone(),
        }
    }

    /// A client that shares nothing with others, as in another process.
    pub(crate) fn new_client(&self) -> Client {
        client(match self {
            Self::Dev(dev, _) => address(dev.addresses()[0]),
            Self::Real(address, _) => address.clone(),
        })
    }

    /// Makes a topic of a fresh name.
    pub(crate) async fn topic(&self, name: &str, partitions: i32) -> String {
        let unique = format!("{name}-{:08x}", rand::random::<u32>());
        self.create(&unique, partitions).await;
        unique
    }

    pub(crate) async fn create(&self, name: &str, partitions: i32) {
        match self {
            Self::Dev(dev, _) => dev.create_topic(&TopicSpec::new(name, partitions)).unwrap(),
            Self::Real(..) => {
                let topic = CreatableTopic::default()
                    .with_name(TopicName(StrBytes::from_string(name.to_owned())))
                    .with_num_partitions(partitions)
                    .with_replication_factor(1);
                let request = CreateTopicsRequest::default().with_topics(vec![topic]).with_timeout_ms(10_000);
                self.administer(19, 5, &request).await;
            }
        }
        let client = self.client();
        for _ in 0..100 {
            let view = client.refresh(name, false).await.unwrap();
            let ready = view.partitions.len() == partitions as usize
                && view.partitions.iter().all(|partition| partition.leader >= 0);
            if view.error.is_none() && ready {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("topic {name} did not come up");
    }

    /// Raises a topic's number of partitions to `count`.
    pub(crate) async fn add_partitions(&self, topic: &str, count: i32) {
        let topic = TopicName(StrBytes::from_string(topic.to_owned()));
        let more = CreatePartitionsTopic::default().with_name(topic).with_count(count).with_assignments(None);
        let request = CreatePartitionsRequest::default().with_topics(vec![more]).with_timeout_ms(10_000);
        self.administer(37, 1, &request).await;
    }

    /// Deletes a topic.
    pub(crate) async fn delete(&self, topic: &str) {
        let topic = TopicName(StrBytes::from_string(topic.to_owned()));
        let request = DeleteTopicsRequest::default().with_topic_names(vec![topic]).with_timeout_ms(10_000);
        self.administer(20, 3, &request).await;
    }

    async fn administer(&self, api_key: i16, version: i16, request: &impl Encodable) {
        let mut body = bytes::BytesMut::new();
        request.encode(&mut body, version).unwrap();
        let raw = causeway::kafka::client::RawRequest {
            api_key,
            version,
            body: vec![body.freeze()],
            timeout: None,
        };
        let connection = self.client().any_broker().await.unwrap();
        connection.submit(raw).await.unwrap().await.unwrap();
    }

    /// Appends one batch, waiting out whatever is in the way; only faults of other APIs are in our tests,
    /// so an answer means that it is there once.
    pub(crate) async fn produce(&self, topic: &str, partition: i32, texts: &[String], codec: Compression) {
        let mut builder = BatchBuilder::new();
        for text in texts {
            let value = Some(text.as_bytes());
            builder.append(&Record { timestamp: 1_700_000_000_000, key: None, value, headers: &[] });
        }
        let sealed = builder.seal(codec, BatchStamp::NONE).unwrap_or_else(|_| panic!("a batch"));
        let data =
            PartitionProduceData::default().with_index(partition).with_records(Some(sealed.bytes().clone()));
        let topic_data = TopicProduceData::default()
            .with_name(TopicName(StrBytes::from_string(topic.to_owned())))
            .with_partition_data(vec![data]);
        let request =
            ProduceRequest::default().with_acks(-1).with_timeout_ms(10_000).with_topic_data(vec![topic_data]);
        let client = self.client();
        for _ in 0..200 {
            let view = client.cached(topic).expect("the topic was created");
            let leader = view.partitions[partition as usize].leader;
            if let Ok(connection) = client.broker(leader, Purpose::Produce(0)).await
                && let Ok(answer) = connection.call(&request).await
            {
                let code = answer.responses[0].partition_responses[0].error_code;
                match ResponseError::try_from_code(code) {
                    None => return,
                    Some(ResponseError::NotLeaderOrFollower) => {}
                    Some(other) => panic!("produce: {other}"),
                }
            }
            let _ = client.refresh(topic, false).await;
        }
        panic!("could not produce to {topic}-{partition}");
    }
}

fn init_log() {
    let _ = tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .with_test_writer()
        .try_init();
}

/// A fast consumer of a group named like its topic.
pub(crate) fn options(topic: &str) -> ConsumerOptions {
    ConsumerOptions {
        offset_reset: OffsetReset::Earliest,
        commit_interval: Duration::from_millis(100),
        max_wait: Duration::from_millis(200),
        session_timeout: Duration::from_secs(6),
        rebalance_timeout: Duration::from_secs(10),
        heartbeat_interval: Duration::from_millis(300),
        ..ConsumerOptions::new(format!("group-of-{topic}"), [Arc::from(topic)])
    }
}

pub(crate) fn values(prefix: &str, count: usize) -> Vec<String> {
    (0..count).map(|index| format!("{prefix}{index}")).collect()
}

pub(crate) async fn eventually(mut condition: impl FnMut() -> bool, explain: impl Fn() -> String) {
    let end = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < end, "not within {PATIENCE:?}: {}", explain());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

pub(crate) async fn at_last(condition: impl FnMut() -> bool) {
    eventually(condition, String::new).await;
}

struct Taken {
    offset: i64,
    value: String,
    ticket: Option<Ticket>,
}

/// Remembers what it was given; finishes it at once or when told.
pub(crate) struct Sink {
    finish_at_once: bool,
    taken: Mutex<BTreeMap<i32, Vec<Taken>>>,
    places: Mutex<usize>,
    room: Room,
}

impl Sink {
    fn new(finish_at_once: bool, places: usize) -> Arc<Self> {
        Arc::new(Self {
            finish_at_once,
            taken: Mutex::default(),
            places: Mutex::new(places),
            room: Room::default(),
        })
    }

    pub(crate) fn finishing() -> Arc<Self> {
        Self::new(true, usize::MAX)
    }

    pub(crate) fn holding() -> Arc<Self> {
        Self::new(false, usize::MAX)
    }

    pub(crate) fn with_room(places: usize) -> Arc<Self> {
        Self::new(true, places)
    }

    pub(crate) fn make_room(&self, places: usize) {
        *self.places.lock() += places;
        self.room.notify_waiters();
    }

    pub(crate) fn count(&self) -> usize {
        self.taken.lock().values().map(Vec::len).sum()
    }

    pub(crate) fn values(&self, partition: i32) -> Vec<String> {
        let taken = self.taken.lock();
        taken.get(&partition).into_iter().flatten().map(|taken| taken.value.clone()).collect()
    }

    pub(crate) fn all_values(&self) -> Vec<String> {
        self.taken.lock().values().flatten().map(|taken| taken.value.clone()).collect()
    }

    pub(crate) fn finish(&self, which: impl Fn(i64) -> bool) {
        let mut finished = Vec::new();
        for taken in self.taken.lock().values_mut().flatten() {
            if which(taken.offset) {
                finished.extend(taken.ticket.take());
            }
        }
        finished.iter().for_each(finish);
    }
}

fn finish(ticket: &Ticket) {
    ticket.sink.acknowledge(&[SequenceRange { first: ticket.sequence, count: 1 }], Outcome::Success);
}

/// The part of a [`Sink`] for one partition.
struct PartSink(Arc<Sink>);

impl RecordSink for Sink {
    fn open(self: Arc<Self>, _topic: &Arc<str>, _partition: i32) -> Box<dyn PartitionSink> {
        Box::new(PartSink(self))
    }
}

impl PartitionSink for PartSink {
    fn offer(&mut self, record: &ConsumedRecord<'_>, ticket: &Ticket, _wakes: &mut WakeList) -> Offer {
        let sink = &self.0;
        {
            let mut places = sink.places.lock();
            let Some(left) = places.checked_sub(1) else { return Offer::Full(sink.room.clone()) };
            *places = left;
        }
        let value = String::from_utf8(record.value.unwrap_or_default().to_vec()).unwrap();
        let held = (!sink.finish_at_once).then(|| ticket.clone());
        sink.taken.lock().entry(record.partition).or_default().push(Taken {
            offset: record.offset,
            value,
            ticket: held,
        });
        if sink.finish_at_once {
            finish(ticket);
        }
        Offer::Taken
    }
}
