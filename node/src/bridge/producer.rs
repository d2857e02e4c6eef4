//! A producer bridge: what matches its source topic becomes a Kafka record.
//!
//! The configuration is compiled once into a [`Program`]; a message then costs the rendering of three
//! templates (a template that is one text of the message is borrowed, not copied) and one append into
//! the open batch of a partition. Runs in the publisher's task; nothing here waits.

use std::cell::RefCell;
use std::sync::Arc;

use std::time::Duration;

use causeway_protocol::kafka::batch::{Compression, Record};

use super::ledger::Ledger;
use super::publish_scope::{PublishScope, PublishSlot};
use super::service::{Place, Status, Surroundings};
use super::template::Template;
use crate::config::{self, MessageConfig, PartitionStrategy, ProducerBridgeConfig};
use crate::flow::{Accepted, Message, MessageSink, Ticket, WakeList};
use crate::kafka::producer::{
    self, Partitioner, RequiredAcks, TopicProducer, TopicProducerHandle, TopicProducerOptions,
};
use crate::mqtt::SinkId;

/// Scratch buffers that grew beyond this many bytes are given back after the message: one large message
/// must not pin its size on every thread.
const SCRATCH_KEPT: usize = 64 * 1024;

/// A bridge's templates, compiled.
#[derive(Debug)]
pub(super) struct Program {
    /// Record key.
    pub(super) key: Template<PublishSlot>,
    /// Record value.
    pub(super) value: Template<PublishSlot>,
    /// Record timestamp: where it does not render to an integer, the time of arrival is taken.
    pub(super) timestamp: Template<PublishSlot>,
}

#[derive(Default)]
struct Scratch {
    key: Vec<u8>,
    value: Vec<u8>,
    timestamp: Vec<u8>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

impl Program {
    /// Compiles the templates of a bridge; warns of names that no message has.
    fn compile(bridge: &str, message: &MessageConfig) -> Self {
        let compile = |field: &str, text: &str| {
            for name in Template::<PublishSlot>::unknown_names(text) {
                tracing::warn!(bridge, field, name, "no message has this name, it renders as nothing");
            }
            Template::compile(text)
        };
        Self {
            key: compile("key", &message.key),
            value: compile("value", &message.value),
            timestamp: compile("timestamp", &message.timestamp),
        }
    }

    /// Renders one message and hands the record to `take`.
    pub(super) fn with_record<T>(
        &self,
        message: &Message<'_>,
        node: &str,
        take: impl FnOnce(&Record<'_>) -> T,
    ) -> T {
        SCRATCH.with_borrow_mut(|scratch| {
            let scope = PublishScope::new(message, node);
            let timestamp = self
                .timestamp
                .integer(&scope, &mut scratch.timestamp)
                .filter(|timestamp| *timestamp >= 0)
                .unwrap_or(message.received_at);
            let key = self.key.render_or_borrow(&scope, &mut scratch.key);
            let value = self.value.render_or_borrow(&scope, &mut scratch.value);
            let taken = take(&Record { timestamp, key: Some(key), value: Some(value), headers: &[] });
            for buffer in [&mut scratch.key, &mut scratch.value, &mut scratch.timestamp] {
                if buffer.capacity() > SCRATCH_KEPT {
                    *buffer = Vec::new();
                }
            }
            taken
        })
    }
}

/// The sink of one producer bridge.
struct ProducerBridge {
    program: Program,
    node: Arc<str>,
    topic: Arc<TopicProducerHandle>,
    holds_acknowledgement: bool,
}

impl MessageSink for ProducerBridge {
    fn accept(&self, message: &Message<'_>, ticket: Option<&Ticket>, wakes: &mut WakeList) -> Accepted {
        self.program.with_record(message, &self.node, |record| self.topic.append(record, ticket, wakes))
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
        let program = Program::compile(name, &config.kafka.message);
        let dispatchers = surroundings.clients.dispatchers(&client);
        let topic = Arc::new(TopicProducer::start_shared(dispatchers, producer_options(config)));
        let sink = config.local_topic.as_ref().map(|filter| {
            let bridge = ProducerBridge {
                program,
                node: surroundings.node.clone(),
                topic: topic.clone(),
                holds_acknowledgement: config.ack_wait,
            };
            surroundings.router.add_sink(filter, Arc::new(bridge))
        });
        if sink.is_none() {
            tracing::warn!(bridge = name, "the bridge has no source topic (local_topic): nothing reaches it");
        }
        Ok(Self { sink, topic_name: config.kafka.topic.clone(), topic })
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
        self.topic.ledger()
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
