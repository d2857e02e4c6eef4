//! A producer bridge: what matches its source topic becomes a Kafka record.
//!
//! The configuration is compiled once into a [`Program`]; a message then costs what the program does and one append
//! into the open batch of a partition. Runs in the publisher's task; nothing here waits.

use std::sync::Arc;
use std::time::Duration;

use causeway_protocol::kafka::batch::Compression;
use parking_lot::Mutex;

use super::ledger::Ledger;
use super::program::{Program, Unfit};
use super::service::{Place, Status, Surroundings};
use crate::config::{self, PartitionStrategy, ProducerBridgeConfig};
use crate::flow::{Accepted, Message, MessageSink, Outcome, Ticket, WakeList};
use crate::kafka::producer::{
    self, Partitioner, RequiredAcks, TopicProducer, TopicProducerHandle, TopicProducerOptions,
};
use crate::mqtt::SinkId;

/// The sink of one producer bridge.
struct ProducerBridge {
    name: Box<str>,
    program: Program,
    node: Arc<str>,
    topic: Arc<TopicProducerHandle>,
    refused: Arc<Refused>,
    holds_acknowledgement: bool,
}

/// Books of the messages that no partition saw.
#[derive(Default)]
struct Refused(Mutex<Ledger>);

impl Refused {
    /// A message that cannot become a record.
    fn unfit(&self, bridge: &str, message: &Message<'_>, unfit: Unfit) -> Accepted {
        let mut ledger = self.0.lock();
        ledger.matched += 1;
        ledger.failed += 1;
        let failed = ledger.failed;
        drop(ledger);
        // Not each of a flood: the first, then with every doubling.
        if failed.is_power_of_two() {
            tracing::warn!(
                bridge,
                failed,
                topic = message.topic,
                client_id = &*message.origin.client_id,
                "a message cannot become a record: {unfit}"
            );
        }
        Accepted::Done(Outcome::Failed(unfit.reason()))
    }
}

impl MessageSink for ProducerBridge {
    fn accept(&self, message: &Message<'_>, ticket: Option<&Ticket>, wakes: &mut WakeList) -> Accepted {
        self.program.with_record(message, &self.node, |record, unfit| match unfit {
            None => self.topic.append(record, ticket, wakes),
            Some(unfit) => self.refused.unfit(&self.name, message, unfit),
        })
    }

    fn holds_acknowledgement(&self) -> bool {
        self.holds_acknowledgement
    }
}

/// A producer bridge at work.
pub(super) struct RunningProducer {
    sink: Option<SinkId>,
    topic_name: String,
    topic: Arc<TopicProducerHandle>,
    refused: Arc<Refused>,
}

impl RunningProducer {
    /// Compiles the configuration, starts the partition producers (which needs no Kafka yet) and registers
    /// with the router.
    pub(super) fn start(
        name: &str,
        config: &ProducerBridgeConfig,
        surroundings: &Surroundings,
    ) -> Result<Self, String> {
        let client_id = format!("causeway:{}", surroundings.node);
        let client = config
            .connection
            .client_options(&client_id, Some(config.kafka.reconnect_delay))
            .map_err(|error| error.to_string())?;
        let program = Program::compile(name, &config.kafka);
        let dispatchers = surroundings.clients.dispatchers(&client);
        let topic = Arc::new(TopicProducer::start_shared(dispatchers, producer_options(config)));
        let refused = Arc::<Refused>::default();
        let sink = config.local_topic.as_ref().map(|filter| {
            let bridge = ProducerBridge {
                name: name.into(),
                program,
                node: surroundings.node.clone(),
                topic: topic.clone(),
                refused: refused.clone(),
                holds_acknowledgement: config.ack_wait,
            };
            surroundings.router.add_sink(filter, Arc::new(bridge))
        });
        if sink.is_none() {
            tracing::warn!(bridge = name, "the bridge has no source topic (local_topic): nothing reaches it");
        }
        Ok(Self { sink, topic_name: config.kafka.topic.clone(), topic, refused })
    }

    /// How it is doing.
    pub(super) fn status(&self) -> Status {
        match &*self.topic.status().borrow() {
            producer::Status::Connected => Status::Connected,
            producer::Status::Connecting { reason } => Status::Connecting(reason.clone()),
            producer::Status::Disconnected { reason } => Status::Disconnected(reason.clone()),
        }
    }

    /// Its books.
    pub(super) fn ledger(&self) -> Ledger {
        let mut ledger = self.topic.ledger();
        ledger += *self.refused.0.lock();
        ledger
    }

    /// Its books by partition.
    pub(super) fn places(&self) -> Vec<Place> {
        let place = |row: producer::PartitionRow| Place {
            topic: self.topic_name.clone(),
            partition: row.partition,
            ledger: row.ledger,
        };
        self.topic.partitions().into_iter().map(place).collect()
    }

    /// Takes no more messages, and sends what it holds for a bounded time.
    pub(super) async fn stop(self, surroundings: &Surroundings) {
        if let Some(sink) = self.sink {
            surroundings.router.remove_sink(sink);
        }
        let report = self.topic.stop(surroundings.drain).await;
        if report.given_up > 0 {
            tracing::warn!(
                topic = self.topic_name,
                records = report.given_up,
                "records were given up at the stop: their publishers are told, QoS 0 is lost"
            );
        }
    }
}

fn producer_options(config: &ProducerBridgeConfig) -> TopicProducerOptions {
    let kafka = &config.kafka;
    let refresh = kafka.partition_count_refresh_interval;
    TopicProducerOptions {
        partitioner: match kafka.partition_strategy {
            PartitionStrategy::Random => Partitioner::Random,
            PartitionStrategy::KeyDispatch => Partitioner::Murmur2,
            PartitionStrategy::KeyDispatchPhash2 => Partitioner::Phash2,
        },
        required_acks: match kafka.required_acks {
            config::RequiredAcks::AllIsr => RequiredAcks::AllIsr,
            config::RequiredAcks::LeaderOnly => RequiredAcks::LeaderOnly,
            config::RequiredAcks::None => RequiredAcks::None,
        },
        compression: match kafka.compression {
            config::Compression::None => Compression::None,
            config::Compression::Gzip => Compression::Gzip,
            config::Compression::Snappy => Compression::Snappy,
            config::Compression::Lz4 => Compression::Lz4,
            config::Compression::Zstd => Compression::Zstd,
        },
        max_batch_bytes: size(kafka.max_batch_bytes),
        max_inflight: usize::from(kafka.max_inflight),
        per_partition_limit: size(kafka.buffer.per_partition_limit),
        partition_count_refresh_interval: (refresh > Duration::ZERO).then_some(refresh),
        request_timeout: config.connection.request_timeout,
        ..TopicProducerOptions::new(kafka.topic.as_str())
    }
}

fn size(bytes: config::ByteSize) -> usize {
    usize::try_from(bytes.bytes()).unwrap_or(usize::MAX)
}
