//! A producer bridge: what matches its source topic becomes a Kafka record.
//!
//! The configuration is compiled once into a [`Program`]; a message then costs what the program does and one
//! append into the open batch of a partition. Runs in the publisher's task; nothing here waits.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use causeway_protocol::kafka::batch::Compression;
use parking_lot::Mutex;
use tokio::sync::watch;

use super::disk_buffer;
use super::hops;
use super::hybrid_buffer;
use super::program::{Program, RenderError, Rendered};
use super::service::{BridgeContext, BridgePartition, Status};
use crate::config::{self, BufferMode, PartitionStrategy, ProducerBridgeConfig, QueryMode};
use crate::flow::ledger::Ledger;
use crate::flow::{Accepted, IgnoreAcks, Message, MessageSink, Outcome, Remembers, Ticket, WakeList};
use crate::kafka::buffer::Buffer;
use crate::kafka::buffer::log::Found;
use crate::kafka::client::ClientOptions;
use crate::kafka::producer::{
    self, Cause, DeadLetters, DiskStore, DynamicOptions, DynamicTopics, HandedOver, Latency,
    LatencyHistogram, NoTopic, Partitioner, RequiredAcks, Restored, Routes, TimestampSource, TopicProducer,
    TopicProducerHandle, TopicProducerOptions,
};
use crate::kafka::spill::Spill;
use crate::mqtt::Router;
use crate::supervision::Parent;
use crate::template::{Piece, has_placeholder, pieces};

/// The sink of one producer bridge.
struct ProducerBridge {
    name: Box<str>,
    program: Program,
    node: Arc<str>,
    /// As it is configured.
    topic: Box<str>,
    target: Target,
    dead_letters: Option<Arc<DeadLetters>>,
    refused: Arc<Refused>,
    holds_acknowledgement: bool,
    /// Remembers QoS 2 publications.
    buffer: Option<Arc<Buffer>>,
    /// `query_mode = async`: tickets end with this one, and publications are done when their record is
    /// queued.
    ignored: Option<Arc<IgnoreAcks>>,
}

/// Where records go.
#[derive(Clone)]
enum Target {
    /// One topic.
    Fixed(Arc<TopicProducerHandle>),
    /// The topic that each message names.
    Named(Arc<DynamicTopics>),
}

/// Books of the messages that no partition saw.
#[derive(Default)]
struct Refused(Mutex<Ledger>);

impl ProducerBridge {
    fn append(
        &self,
        made: &Rendered<'_>,
        ticket: Option<&Ticket>,
        wakes: &mut WakeList,
    ) -> Result<Accepted, NoTopic> {
        match (&self.target, made.topic) {
            (Target::Named(topics), Some(topic)) => topics.append(topic, &made.record, ticket, wakes),
            (Target::Named(_), None) => Err(NoTopic::Unknown),
            (Target::Fixed(topic), _) => Ok(topic.append(&made.record, ticket, wakes)),
        }
    }

    /// As [`Self::append`]; with `query_mode = async` the publication is done when that is.
    fn carry(
        &self,
        made: &Rendered<'_>,
        ticket: Option<&Ticket>,
        wakes: &mut WakeList,
    ) -> Result<Accepted, NoTopic> {
        let (Some(deaf), Some(ticket)) = (&self.ignored, ticket) else {
            return self.append(made, ticket, wakes);
        };
        let ticket = Ticket::new(deaf.clone(), ticket.sequence);
        Ok(match self.append(made, Some(&ticket), wakes)? {
            Accepted::Taken => Accepted::Done(Outcome::Success),
            other => other,
        })
    }

    /// A message that cannot become the record that the bridge wants.
    fn refuse(
        &self,
        message: &Message<'_>,
        made: &Rendered<'_>,
        unfit: RenderError,
        ticket: Option<&Ticket>,
        wakes: &mut WakeList,
    ) -> Accepted {
        let failed = {
            let mut ledger = self.refused.0.lock();
            ledger.matched += 1;
            ledger.failed += 1;
            ledger.failed
        };
        // Not each of a flood: the first, then with every doubling.
        if failed.is_power_of_two() {
            tracing::warn!(
                bridge = &*self.name,
                failed,
                topic = message.topic,
                client_id = &*message.origin.client_id,
                why = unfit.words(),
                "a message cannot become a record"
            );
        }
        let reason = unfit.reason();
        // The dead letter of a message that passed Kafka too often may come back: it gets none of its own.
        let is_letter = message.hops > hops::LIMIT;
        match &self.dead_letters {
            Some(letters) if !is_letter => {
                let topic = made.topic.unwrap_or(&self.topic);
                let cause = Cause { topic, partition: None, reason: unfit.words(), code: None };
                letters.bury_message(cause, &made.record, reason, ticket, wakes)
            }
            _ => Accepted::Done(Outcome::Failed(reason)),
        }
    }
}

impl MessageSink for ProducerBridge {
    fn accept(&self, message: &Message<'_>, ticket: Option<&Ticket>, wakes: &mut WakeList) -> Accepted {
        if let Some(buffer) = &self.buffer
            && ticket.and_then(Ticket::mark).is_some_and(|mark| buffer.recalls(mark))
        {
            // Its record is there from before the restart.
            return Accepted::Done(Outcome::Success);
        }
        self.program.with_record(message, &self.node, |made| {
            if let Some(unfit) = made.unfit {
                return self.refuse(message, made, unfit, ticket, wakes);
            }
            match self.carry(made, ticket, wakes) {
                Ok(accepted) => accepted,
                Err(why) => self.refuse(message, made, RenderError::NoTopic(why), ticket, wakes),
            }
        })
    }

    fn holds_acknowledgement(&self) -> bool {
        self.holds_acknowledgement
    }
}

/// A producer bridge at work.
pub(super) struct RunningProducer {
    sink: Arc<dyn MessageSink>,
    topic_name: String,
    client: ClientOptions,
    /// Whether it sends; shut while a predecessor has something left.
    begin: watch::Sender<bool>,
    latency: Arc<LatencyHistogram>,
    target: Target,
    dead_letters: Option<Arc<DeadLetters>>,
    refused: Arc<Refused>,
    buffer: Option<Arc<Buffer>>,
    spill: Option<Arc<Spill>>,
    router: Arc<Router>,
    /// It stops, and the node does not.
    deaf_from_now: AtomicBool,
    /// [`Self::stop`] was called.
    stopped: AtomicBool,
}

impl RunningProducer {
    /// Compiles the configuration and starts the partition producers, which needs no Kafka yet. Nothing is
    /// sent before [`Self::begin`].
    pub(super) fn start(
        name: &str,
        config: &ProducerBridgeConfig,
        surroundings: &BridgeContext,
        parent: &Parent,
    ) -> Result<Self, String> {
        let client_id = format!("causeway:{}", surroundings.node);
        let client = config
            .connection
            .client_options(&client_id, Some(config.kafka.reconnect_delay))
            .map_err(|error| error.to_string())?;
        let program = Program::compile(name, &config.kafka);
        let dispatchers = surroundings.clients.dispatchers(&client);
        let (begin, begun) = watch::channel(false);
        let latency = Arc::<LatencyHistogram>::default();
        let mut options = TopicProducerOptions {
            begin: Some(begun),
            latency: Some(latency.clone()),
            memory: Some(surroundings.memory.clone()),
            parent: Some(parent.clone()),
            ..producer_options(config)
        };
        let stored = if config.kafka.buffer.mode == BufferMode::Disk {
            Some(disk_buffer::open(surroundings, name, config)?)
        } else {
            disk_buffer::warn_of_leftovers(&surroundings.data_dir, name);
            None
        };
        let dead_letters = config.kafka.dead_letter_topic.as_ref().map(|topic| {
            // For ever, at once, and into any partition.
            let options = TopicProducerOptions {
                topic: topic.as_str().into(),
                partitioner: Partitioner::Murmur2,
                max_retries: None,
                max_batch_age: None,
                late_after: None,
                max_linger_time: Duration::ZERO,
                partitions_limit: None,
                begin: None,
                latency: None,
                ..options.clone()
            };
            DeadLetters::start(name, dispatchers.clone(), options)
        });
        options.dead_letters.clone_from(&dead_letters);
        let store = stored.as_ref().map(|(buffer, _)| DiskStore {
            buffer: buffer.clone(),
            answers: config.kafka.query_mode != Some(QueryMode::Sync),
        });
        let (buffer, found) = stored.unzip();
        options.store = store;
        if config.kafka.buffer.mode == BufferMode::Hybrid {
            options.spill = Some(hybrid_buffer::open(&surroundings.data_dir, name, config));
        }
        let spill = options.spill.as_ref().map(|way| way.spill.clone());
        let path = disk_buffer::directory(&surroundings.data_dir, name);
        let restore = |found: &Found, routes: &Routes| disk_buffer::restore(found, &path, routes);
        // Found records stay where they were found until they have been read.
        let pause = buffer.as_ref().map(|buffer| buffer.pause());
        let target = if has_placeholder(&config.kafka.topic) {
            let limits = &config.kafka.dynamic_topics;
            let options = DynamicOptions {
                producer: options,
                max_topics: limits.max_topics as usize,
                idle_timeout: limits.idle_timeout,
                memory_limit: size(limits.memory_limit),
            };
            let topics = DynamicTopics::start(dispatchers, options);
            let mut parts = found.map(Found::by_topic).unwrap_or_default().into_iter();
            parts
                .try_for_each(|(topic, found)| topics.restore(&topic, |routes| restore(&found, routes)))
                .map(|()| Target::Named(topics))
        } else {
            TopicProducer::start_restored(dispatchers, options, |routes| {
                found.map_or_else(|| Ok(Restored::default()), |found| restore(&found, routes))
            })
            .map(|producer| Target::Fixed(Arc::new(producer)))
        };
        drop(pause);
        let target = target.map_err(|error| {
            if let Some(buffer) = &buffer {
                buffer.close_unused();
            }
            format!("its disk buffer {} cannot be read: {error}; nothing of it has been sent", path.display())
        })?;
        let refused = Arc::<Refused>::default();
        let sink = Arc::new(ProducerBridge {
            name: name.into(),
            program,
            node: surroundings.node.clone(),
            topic: config.kafka.topic.as_str().into(),
            target: target.clone(),
            dead_letters: dead_letters.clone(),
            ignored: (config.kafka.query_mode == Some(QueryMode::Async)).then(|| Arc::new(IgnoreAcks)),
            refused: refused.clone(),
            buffer: buffer.clone(),
            holds_acknowledgement: config.ack_wait,
        });
        if let Some(buffer) = &buffer {
            surroundings.router.add_remembering(buffer.clone(), surroundings.lives);
        }
        if config.local_topic.is_none() {
            tracing::warn!(bridge = name, "the bridge has no source topic (local_topic): nothing reaches it");
        }
        Ok(Self {
            sink,
            topic_name: config.kafka.topic.clone(),
            client,
            begin,
            latency,
            target,
            dead_letters,
            refused,
            buffer,
            spill,
            router: surroundings.router.clone(),
            deaf_from_now: AtomicBool::new(false),
            stopped: AtomicBool::new(false),
        })
    }

    /// Where its messages are to go.
    pub(super) fn sink(&self) -> Arc<dyn MessageSink> {
        self.sink.clone()
    }

    /// Sends from now on; until then messages wait in order. An actor that failed gets its successor now.
    pub(super) fn begin(&self) {
        self.begin.send_replace(true);
        self.revive();
    }

    /// Takes note that an actor failed; true where it is one of this bridge.
    pub(super) fn note_failure(&self, actor: ractor::ActorId, reason: &str) -> bool {
        let ours = match &self.target {
            Target::Fixed(topic) => topic.note_failure(actor, reason),
            Target::Named(topics) => topics.note_failure(actor, reason),
        };
        ours || self
            .dead_letters
            .as_ref()
            .is_some_and(|letters| letters.producer().note_failure(actor, reason))
    }

    /// Starts successors of the actors that failed: they go on with what is held.
    pub(super) fn revive(&self) {
        match &self.target {
            Target::Fixed(topic) => topic.revive(),
            Target::Named(topics) => topics.revive(),
        }
        if let Some(letters) = &self.dead_letters {
            letters.producer().revive();
        }
    }

    /// As [`Self::revive`], after the failure of the supervisor of all its actors.
    pub(super) fn revive_orphans(&self) {
        match &self.target {
            Target::Fixed(topic) => topic.revive_orphan(),
            Target::Named(topics) => topics.revive_orphans(),
        }
        if let Some(letters) = &self.dead_letters {
            letters.producer().revive_orphan();
        }
    }

    /// Whether a stop has begun.
    pub(super) fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Relaxed)
    }

    /// The producer of its topic, where it has one topic.
    #[cfg(test)]
    pub(super) fn topic_producer(&self) -> &TopicProducerHandle {
        match &self.target {
            Target::Fixed(topic) => topic,
            Target::Named(_) => panic!("a bridge with one topic"),
        }
    }

    /// Resolves when nothing waits and nothing is in flight.
    pub(super) async fn idle(&self) {
        match &self.target {
            Target::Fixed(topic) => topic.idle().await,
            Target::Named(topics) => topics.idle().await,
        }
    }

    /// Whether it leads where the other one does, by the same way.
    pub(super) fn leads_where(&self, other: &Self) -> bool {
        let (ours, theirs) = (&self.client, &other.client);
        self.topic_name == other.topic_name
            && ours.bootstrap == theirs.bootstrap
            && ours.tls == theirs.tls
            && ours.authentication == theirs.authentication
    }

    /// True where its records are on the disk as well. They stay there when it stops.
    pub(super) fn is_stored(&self) -> bool {
        self.buffer.is_some()
    }

    /// Why nothing becomes durable.
    pub(super) fn buffer_trouble(&self) -> Option<Arc<str>> {
        self.buffer.as_ref().and_then(|buffer| buffer.state().trouble)
    }

    /// Bytes of the files of its disk buffer.
    pub(super) fn disk_bytes(&self) -> u64 {
        self.buffer.as_ref().map_or(0, |buffer| buffer.state().bytes)
    }

    /// Whether this is its topic, as it is configured.
    pub(super) fn is_for(&self, topic: &str) -> bool {
        self.topic_name == topic
    }

    /// True where something waits or is in flight.
    pub(super) fn is_busy(&self) -> bool {
        let ledger = self.ledger();
        ledger.queuing + ledger.inflight > 0
    }

    /// Gives everything it holds to a successor that has not begun. Nothing leads here any more.
    pub(super) async fn hand_over(&self, to: &Self) -> HandedOver {
        match (&self.target, &to.target) {
            (Target::Fixed(from), Target::Fixed(to)) => from.hand_over(to).await,
            (Target::Fixed(from), Target::Named(to)) => from.hand_over_as(&self.topic_name, to).await,
            (Target::Named(from), Target::Named(to)) => from.hand_over(to).await,
            (Target::Named(from), Target::Fixed(to)) => from.hand_over_to_one(to).await,
        }
    }

    /// How it is doing.
    pub(super) fn status(&self) -> Status {
        if let Some(reason) = self.buffer_trouble() {
            return Status::Disconnected(reason.to_string());
        }
        let status = match &self.target {
            Target::Fixed(topic) => topic.status().borrow().clone(),
            Target::Named(topics) => topics.status(),
        };
        if let Some(trouble) = self.spill.as_ref().and_then(|spill| spill.trouble()) {
            return Status::Disconnected(match status {
                producer::Status::Connected => trouble.to_string(),
                producer::Status::Connecting { reason } | producer::Status::Disconnected { reason } => {
                    format!("{trouble}; {reason}")
                }
            });
        }
        match status {
            producer::Status::Connected => Status::Connected,
            producer::Status::Connecting { reason } => Status::Connecting(reason),
            producer::Status::Disconnected { reason } => Status::Disconnected(reason),
        }
    }

    /// Its books.
    pub(super) fn ledger(&self) -> Ledger {
        let mut ledger = match &self.target {
            Target::Fixed(topic) => topic.ledger(),
            Target::Named(topics) => topics.ledger(),
        };
        ledger += *self.refused.0.lock();
        if let Some(letters) = &self.dead_letters {
            ledger.dead_lettered = letters.written();
            ledger.dead_letters_lost = letters.lost();
        }
        ledger
    }

    /// How long its batches took.
    pub(super) fn latency(&self) -> Latency {
        self.latency.snapshot()
    }

    /// Its books by partition.
    pub(super) fn places(&self) -> Vec<BridgePartition> {
        let place = |(topic, row): (String, producer::PartitionRow)| BridgePartition {
            topic,
            partition: row.partition,
            ledger: row.ledger,
            oldest: row.oldest,
        };
        match &self.target {
            Target::Fixed(topic) => {
                let rows = topic.partitions().into_iter();
                rows.map(|row| place((self.topic_name.clone(), row))).collect()
            }
            Target::Named(topics) => topics.partitions().into_iter().map(place).collect(),
        }
    }

    /// Takes no more messages, and sends what it holds for a bounded time. Nothing leads here any more.
    pub(super) async fn stop(&self, drain: Duration) {
        self.stopped.store(true, Ordering::Relaxed);
        let report = match &self.target {
            Target::Fixed(topic) => topic.stop(drain).await,
            Target::Named(topics) => topics.stop(drain).await,
        };
        if report.given_up > 0 {
            tracing::warn!(
                topic = self.topic_name,
                records = report.given_up,
                "records were given up at the stop: their publishers are told, QoS 0 is lost"
            );
        }
        if let Some(letters) = &self.dead_letters {
            letters.stop(drain).await;
        }
        if let Some(buffer) = &self.buffer {
            buffer.close().await;
            if self.deaf_from_now.load(Ordering::Relaxed) && buffer.must_hear() {
                tracing::error!(
                    topic = self.topic_name,
                    "the disk buffer could not be told to forget its QoS 2 publications: clients cannot release them before \
                     the node is started again"
                );
                return;
            }
            let remembering: Arc<dyn Remembers> = buffer.clone();
            self.router.remove_remembering(&remembering);
        }
    }

    /// Forgets which QoS 2 publications it has: it is about to stop, and will not hear any more when they are
    /// released.
    pub(super) fn forget_publications(&self) {
        if let Some(buffer) = &self.buffer {
            self.deaf_from_now.store(true, Ordering::Relaxed);
            buffer.forget_all();
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
        max_linger_time: kafka.max_linger_time,
        max_linger_bytes: size(kafka.max_linger_bytes),
        max_retries: kafka.max_retries,
        max_batch_age: kafka.max_batch_age,
        late_after: (kafka.query_mode == Some(QueryMode::Sync)).then_some(kafka.sync_query_timeout),
        overload_protection: kafka.buffer.memory_overload_protection,
        timestamps: timestamp_source(&kafka.message.timestamp),
        connections: config.pool_size.into(),
        partitions_limit: kafka.partitions_limit.and_then(|limit| usize::try_from(limit).ok()),
        ..TopicProducerOptions::new(kafka.topic.as_str())
    }
}

/// Where a template's timestamps come from.
fn timestamp_source(template: &str) -> TimestampSource {
    let names_arrival =
        |name: &str| matches!(name.trim().trim_start_matches('.'), "timestamp" | "publish_received_at");
    match pieces(template).as_slice() {
        [] => TimestampSource::Arrival,
        [Piece::Placeholder(name)] if names_arrival(name) => TimestampSource::Arrival,
        _ => TimestampSource::Messages,
    }
}

fn size(bytes: config::ByteSize) -> usize {
    usize::try_from(bytes.bytes()).unwrap_or(usize::MAX)
}
