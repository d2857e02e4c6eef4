//! The producer of one topic: its partitions, and what they need in common.
//!
//! A [`TopicProducer`] actor supervises one [`PartitionProducer`] a partition. It watches the topic's
//! metadata (a keeper task asks Kafka on demand, at the refresh interval, and as long as something is
//! missing), tells partitions their leader, gets producer ids, follows changes of the number of partitions,
//! and knows the status. The [`TopicProducerHandle`] works from the first moment: while Kafka is out of
//! reach, records gather in staging.
//!
//! Partitions share one producer id; epochs and sequences are each partition's own (Kafka keeps them by
//! partition). A partition that can no longer use the id gets a newer one; an id is never given out again
//! after a newer one.
//!
//! Invariants:
//! * A partition's loss is believed when the topic has another id, or after some minutes: see `incarnation`.
//! * [`TopicProducerHandle::stop`] ends everything it holds; so does the drop of the handle.
//! * What it holds outlives its actor: after a failure a successor serves the same routes, inboxes and
//!   tickets. The successor begins when its predecessor is gone, and with another producer id: no sequence of
//!   the former one is given out again.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::convert::Infallible;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use causeway_protocol::kafka::batch::{BatchBuilder, Compression, Record};
use causeway_protocol::mqtt::ReasonCode;
use parking_lot::Mutex;
use ractor::{
    Actor, ActorCell, ActorId, ActorProcessingErr, ActorRef, ActorRuntime, ActorStatus, SupervisionEvent,
};
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use super::budget::Budget;
use super::core;
use super::dead_letters::{Cause, DeadLetters};
use super::dispatcher::{Dispatchers, RequestOptions};
use super::inbox::{InboxLimits, SpillOptions, Store, Taken};
use super::incarnation::{Incarnation, Look};
use super::latency::LatencyHistogram;
use super::obligations::End;
use super::obstacle::Obstacle;
use super::partition_producer::{
    ActorSlot, Linger, Partition, PartitionMessage, PartitionProducer, PartitionSetup, TOO_OLD,
};
use super::route::{Partitioner, Routes};
use super::share::NodeMemory;
use super::stall_detector::{Sign, StallDetector};
use super::timestamps::TimestampSource;
use crate::flow::ledger::Ledger;
use crate::flow::{Accepted, Ticket, WakeList};
use crate::kafka::buffer::{Buffer, Seal, TopicPartition};
use crate::kafka::client::{Backoff, Client, Error, PartitionView, ProducerIdentity, Purpose, TopicView};
use crate::supervision::Parent;

/// A keyed topic that got more partitions goes on with the old ones if they do not run dry within this time.
const GROWTH_PATIENCE: Duration = Duration::from_secs(30);

/// Until a partition whose actor failed gets another one: later and later, where the reason stays.
const RESPAWN: Backoff = Backoff { first: Duration::from_millis(200), max: Duration::from_secs(30) };

/// A partition whose actor has run for so long counts its failures anew; more than the longest wait between
/// two.
const CALM: Duration = Duration::from_mins(2);

/// Between looks whether the failed actor of a partition has let go of what it held.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// Connections are looked at this often, so that an idle producer's status is not older.
const LINK_CHECK: Duration = Duration::from_secs(15);

/// Between looks whether anything is written, while a partition is held up.
const STANDSTILL_LOOK: Duration = Duration::from_secs(1);

/// After a failed look at a connection; the client's own backoff comes on top.
const RECHECK_AFTER: Duration = Duration::from_millis(500);

/// `UNKNOWN_TOPIC_OR_PARTITION`.
const NO_SUCH_TOPIC: i16 = 3;
/// `INVALID_TOPIC_EXCEPTION`.
const INVALID_TOPIC: i16 = 17;

/// `TOPIC_AUTHORIZATION_FAILED`.
pub(super) const FORBIDDEN_TOPIC: i16 = 29;

/// Why a topic that a message named is of no use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoTopic {
    /// Kafka does not know it: its records fail with [`ReasonCode::TopicNameInvalid`].
    Unknown,
    /// We may not write to it, or it is not there and we may not know: its records fail with
    /// [`ReasonCode::NotAuthorized`].
    Forbidden,
}

impl NoTopic {
    /// Meaning of an error code for a topic.
    fn of(code: i16) -> Option<Self> {
        match code {
            NO_SUCH_TOPIC | INVALID_TOPIC => Some(Self::Unknown),
            FORBIDDEN_TOPIC => Some(Self::Forbidden),
            _ => None,
        }
    }

    /// Reason code for publishers.
    pub fn reason(self) -> ReasonCode {
        match self {
            Self::Unknown => ReasonCode::TopicNameInvalid,
            Self::Forbidden => ReasonCode::NotAuthorized,
        }
    }

    /// In words.
    pub fn words(self) -> &'static str {
        match self {
            Self::Unknown => "Kafka does not know the topic",
            Self::Forbidden => "not authorized to write to the topic, or there is no such topic",
        }
    }
}

/// Between attempts to get metadata or a producer id.
const RETRY: Backoff = Backoff { first: Duration::from_millis(100), max: Duration::from_secs(2) };

/// Whose acknowledgement counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RequiredAcks {
    /// All in-sync replicas; the producer is idempotent.
    AllIsr,
    /// The leader; Kafka may lose or repeat what it accepted.
    LeaderOnly,
    /// No acknowledgement: success is the write to the socket.
    None,
}

impl RequiredAcks {
    fn on_the_wire(self) -> i16 {
        match self {
            Self::AllIsr => -1,
            Self::LeaderOnly => 1,
            Self::None => 0,
        }
    }
}

/// Settings of a topic producer.
#[derive(Debug, Clone)]
pub struct TopicProducerOptions {
    /// Topic name.
    pub topic: Arc<str>,
    /// How a record finds its partition.
    pub partitioner: Partitioner,
    /// Whose acknowledgement counts.
    pub required_acks: RequiredAcks,
    /// Compression of batches.
    pub compression: Compression,
    /// A batch is closed before it grows beyond this, bytes before compression.
    pub max_batch_bytes: usize,
    /// Unacknowledged batches a partition; at most 5 count with [`RequiredAcks::AllIsr`].
    pub max_inflight: usize,
    /// Most bytes held a partition; the same for all that waits while the partitions are unknown.
    pub per_partition_limit: usize,
    /// How often the number of partitions is looked at; `None`: only after errors.
    pub partition_count_refresh_interval: Option<Duration>,
    /// How long a broker may wait for its replicas.
    pub ack_timeout: Duration,
    /// How long an answer may take before the connection counts as dead; longer than `ack_timeout`.
    pub request_timeout: Duration,
    /// How long an idle line waits for more.
    pub max_linger_time: Duration,
    /// So many bytes end such a wait.
    pub max_linger_bytes: usize,
    /// A batch that Kafka refused for the time being more often than this is given up.
    pub max_retries: Option<u32>,
    /// A batch whose records are all older than this is given up, unless it may be in the log already.
    pub max_batch_age: Option<Duration>,
    /// A success that took longer than this counts as a late reply.
    pub late_after: Option<Duration>,
    /// Number of leading partitions that are used; `None`: all.
    pub partitions_limit: Option<usize>,
    /// Destination of records that are given up.
    pub dead_letters: Option<Arc<DeadLetters>>,
    /// Where the records' timestamps come from.
    pub timestamps: TimestampSource,
    /// Connections to each broker among which partitions are spread, at least 1.
    pub connections: u32,
    /// Bytes shared with other topics.
    pub budget: Option<Arc<Budget>>,
    /// Memory shared with everything on the node.
    pub memory: Option<Arc<NodeMemory>>,
    /// Records make room for others while memory is short, except those of the batches that may be under way.
    pub overload_protection: bool,
    /// Records go to this disk buffer first; with it publishers are answered when their record is durable
    /// there, unless they want to wait for Kafka.
    pub store: Option<DiskStore>,
    /// Files for records that do not fit into memory.
    pub spill: Option<SpillOptions>,
    /// A topic that Kafka does not know, or that we may not write to, in two answers in a row, the second one
    /// fresh, ends its producer: see [`TopicProducerHandle::unusable`]. Otherwise records wait until there is
    /// such a topic.
    pub unusable_is_final: bool,
    /// Nothing is sent before this says so; records wait in order meanwhile. `None`: from the first moment
    /// on.
    pub begin: Option<watch::Receiver<bool>>,
    /// Takes down how long batches took.
    pub latency: Option<Arc<LatencyHistogram>>,
    /// Hears of a failure of the actor: see [`TopicProducerHandle::note_failure`].
    pub parent: Option<Parent>,
}

impl TopicProducerOptions {
    /// The defaults of the user guide, with keyed partitions.
    pub fn new(topic: impl Into<Arc<str>>) -> Self {
        Self {
            topic: topic.into(),
            partitioner: Partitioner::Murmur2,
            required_acks: RequiredAcks::AllIsr,
            compression: Compression::None,
            max_batch_bytes: 896 * 1024,
            max_inflight: 10,
            per_partition_limit: 256 * 1024 * 1024,
            partition_count_refresh_interval: Some(Duration::from_mins(1)),
            ack_timeout: Duration::from_secs(10),
            request_timeout: Duration::from_secs(30),
            max_linger_time: Duration::ZERO,
            max_linger_bytes: 10 * 1024 * 1024,
            max_retries: None,
            max_batch_age: None,
            late_after: None,
            partitions_limit: None,
            dead_letters: None,
            timestamps: TimestampSource::default(),
            connections: 1,
            budget: None,
            memory: None,
            overload_protection: false,
            store: None,
            spill: None,
            unusable_is_final: false,
            begin: None,
            latency: None,
            parent: None,
        }
    }
}

/// The disk buffer of a topic.
#[derive(Debug, Clone)]
pub struct DiskStore {
    /// Shared by all partitions.
    pub buffer: Arc<Buffer>,
    /// Publishers are answered when their record is durable.
    pub answers: bool,
}

/// Contents of a disk buffer at the start.
#[derive(Debug, Default)]
pub struct Restored {
    /// Batches that may have been sent, by partition.
    pub sealed: HashMap<i32, Vec<(Seal, BatchBuilder)>>,
}

/// How a topic producer is doing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Status {
    /// Not yet, or not for the moment: Kafka is away after it was there.
    Connecting {
        /// In plain words.
        reason: String,
    },
    /// At least one partition takes records, or would if there were any for it.
    Connected,
    /// It cannot send, and never could or may not.
    Disconnected {
        /// In plain words.
        reason: String,
    },
}

/// One partition, for a table.
#[derive(Debug, Clone)]
pub struct PartitionRow {
    /// Its number.
    pub partition: i32,
    /// Broker id of its leader.
    pub leader: Option<i32>,
    /// Its books.
    pub ledger: Ledger,
    /// How long its oldest record has been waiting for its turn to be sent.
    pub oldest: Option<Duration>,
    /// Why it is not moving.
    pub trouble: Option<Arc<str>>,
}

/// Remains after a stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StopReport {
    /// Records that were given up: with ticket as failed, without as dropped.
    pub given_up: u64,
}

/// Message to a topic producer.
#[derive(Debug)]
pub enum TopicMessage {
    /// An answer of the keeper.
    Metadata(Result<Arc<TopicView>, Error>),
    /// A partition wants fresh metadata.
    NeedMetadata,
    /// A partition wants a producer id.
    NeedProducerId {
        /// Which.
        partition: i32,
        /// Not this one.
        instead_of: Option<i64>,
    },
    /// A producer id, or why there is none yet.
    ProducerId(Result<ProducerIdentity, Error>),
    /// A partition is in trouble or out of it.
    TroubleChanged,
    /// Look whether anything is written at all.
    Look,
    /// Kafka has told a partition twice that we may not write to the topic.
    Forbidden,
    /// A connection to a leader, or why there is none.
    Link(i32, Option<Obstacle>),
    /// Look at the connections.
    CheckLinks,
    /// The old partitions have run dry (or not) before a change of their number.
    RanDry(bool),
    /// A partition needs a new actor.
    Respawn(i32),
    /// Give up what is too old and waits for no partition yet.
    CheckAge,
    /// A panic, for tests.
    #[cfg(test)]
    Panic,
}

/// Starts topic producers.
pub struct TopicProducer;

/// The public half of a topic producer. Dropping it stops the producer without draining.
pub struct TopicProducerHandle {
    pub(super) routes: Arc<Routes>,
    status: watch::Receiver<Status>,
    setup: Arc<Setup>,
}

impl std::fmt::Debug for TopicProducerHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TopicProducerHandle").field("status", &*self.status.borrow()).finish_non_exhaustive()
    }
}

impl TopicProducer {
    /// Starts the producer of a topic with dispatchers of its own; returns at once. Must be called within a
    /// tokio runtime.
    pub fn start(client: Client, options: TopicProducerOptions) -> TopicProducerHandle {
        Self::start_shared(Dispatchers::new(client), options)
    }

    /// As [`Self::start`]; producers that share dispatchers share produce requests.
    pub fn start_shared(dispatchers: Arc<Dispatchers>, options: TopicProducerOptions) -> TopicProducerHandle {
        let Ok(started) =
            Self::start_restored(dispatchers, options, |_| Ok::<_, Infallible>(Restored::default()));
        started
    }

    /// As [`Self::start_shared`], with what `restore` finds in the disk buffer: it hands records that were
    /// never in a batch to [`Routes::restore`], in order.
    ///
    /// # Errors
    /// That of `restore`: then nothing is started.
    pub fn start_restored<E>(
        dispatchers: Arc<Dispatchers>,
        options: TopicProducerOptions,
        restore: impl FnOnce(&Routes) -> Result<Restored, E>,
    ) -> Result<TopicProducerHandle, E> {
        let limits = InboxLimits {
            bytes: options.per_partition_limit.max(1),
            batch_bytes: options.max_batch_bytes.max(1),
            max_age: options.max_batch_age,
            late_after: options.late_after,
            budget: options.budget.clone(),
            node: options.memory.clone(),
            when_short: (options.overload_protection && options.store.is_none() && options.spill.is_none())
                .then(|| options.max_inflight.saturating_mul(options.max_batch_bytes)),
            latency: options.latency.clone(),
            store: options.store.as_ref().map(|store| Store {
                buffer: store.buffer.clone(),
                place: TopicPartition { topic: options.topic.clone(), partition: -1 },
                answers: store.answers,
            }),
            spill: options.spill.clone(),
        };
        let routes = Arc::new(Routes::new(options.partitioner, limits));
        let restored = restore(&routes)?;
        for batches in restored.sealed.values() {
            routes.wait_for_partition(batches.iter().map(|(seal, _)| seal.records()).sum());
        }
        let reason = "asking Kafka for the topic's partitions".to_owned();
        let (sender, status) = watch::channel(Status::Connecting { reason });
        let setup = Arc::new(Setup {
            dispatchers,
            options,
            routes: routes.clone(),
            status: sender,
            unusable: OnceLock::new(),
            restored: Mutex::new(restored),
            actor: Mutex::default(),
            ended: false.into(),
        });
        setup.start();
        Ok(TopicProducerHandle { routes, status, setup })
    }
}

impl TopicProducerHandle {
    /// Offers a record: see [`PartitionInbox::append`](super::inbox::PartitionInbox::append).
    pub fn append(&self, record: &Record<'_>, ticket: Option<&Ticket>, wakes: &mut WakeList) -> Accepted {
        self.routes.append(record, ticket, wakes)
    }

    /// The books of all partitions and of what waits for them to be known.
    pub fn ledger(&self) -> Ledger {
        self.routes.ledger()
    }

    /// The partitions known.
    pub fn partitions(&self) -> Vec<PartitionRow> {
        let partitions = self.routes.partitions();
        partitions
            .iter()
            .map(|partition| PartitionRow {
                partition: partition.index,
                leader: Some(partition.leader.load(Ordering::Relaxed)).filter(|leader| *leader >= 0),
                ledger: partition.inbox.ledger(),
                oldest: partition.inbox.oldest(),
                trouble: partition.trouble.lock().clone(),
            })
            .collect()
    }

    /// Since when and why it refuses everything for want of a topic; only with
    /// [`TopicProducerOptions::unusable_is_final`]. What it held has failed with [`NoTopic::reason`].
    pub fn unusable(&self) -> Option<(Instant, NoTopic)> {
        self.setup.unusable.get().copied()
    }

    /// How it is doing; changes can be awaited.
    pub fn status(&self) -> watch::Receiver<Status> {
        self.status.clone()
    }

    /// Takes note that an actor failed: true where it is this producer's, whose status says so until it is
    /// [revived](Self::revive).
    pub fn note_failure(&self, actor: ActorId, reason: &str) -> bool {
        let is_ours = self.setup.actor.lock().as_ref().is_some_and(|ours| ours.get_id() == actor);
        if is_ours {
            let reason = format!("failed and is started again: {reason}");
            self.setup.status.send_replace(Status::Disconnected { reason });
        }
        is_ours
    }

    /// Starts another actor where this one's has failed, which goes on with all that is held. Not after a
    /// stop.
    pub fn revive(&self) {
        self.setup.revive();
    }

    /// As [`Self::revive`], where the supervisor of the actor has failed, which is its end, even if it does
    /// not know yet.
    pub fn revive_orphan(&self) {
        self.setup.start();
    }

    /// Makes the actor panic.
    #[cfg(test)]
    pub(crate) fn panic(&self) {
        self.setup.tell(TopicMessage::Panic);
    }

    /// Makes the actor of the first partition panic, and this many of those that come after it while they
    /// start.
    #[cfg(test)]
    pub(crate) fn panic_partition(&self, starts: u32) {
        let partition = self.routes.partitions().swap_remove(0);
        partition.panics_in_start.store(starts, Ordering::Relaxed);
        partition.actor.tell(PartitionMessage::Panic);
    }

    /// Refuses new records, sends what is held for at most `drain`, then gives up the rest: tickets fail with
    /// [`ReasonCode::UnspecifiedError`], records without are counted as dropped. With a disk buffer the rest
    /// stays there, and is waited for only while Kafka takes it.
    pub async fn stop(&self, drain: Duration) -> StopReport {
        self.routes.close(ReasonCode::UnspecifiedError);
        let buffer = self.setup.buffer();
        let safe = buffer.is_some() && *self.status.borrow() != Status::Connected;
        let drain = if safe { Duration::ZERO } else { drain };
        if !drain.is_zero() {
            self.revive();
        }
        let drained = tokio::time::timeout(drain, self.routes.idle()).await;
        if let Some(buffer) = buffer {
            buffer.flush().await;
        }
        let left = self.routes.ledger();
        if drained.is_err() {
            tracing::warn!(
                waiting = left.queuing,
                in_flight = left.inflight,
                "not everything was sent before the stop"
            );
        }
        // The actors' last act is to end what they hold.
        if let Some(actor) = self.setup.end() {
            let _ = actor.stop_and_wait(None, Some(Duration::from_secs(10))).await;
        }
        // Where they could not.
        self.setup.end_held();
        let after = self.routes.ledger();
        let given_up = (after.failed + after.dropped()) - (left.failed + left.dropped());
        StopReport { given_up }
    }
}

impl Drop for TopicProducerHandle {
    fn drop(&mut self) {
        self.routes.close(ReasonCode::UnspecifiedError);
        match self.setup.end() {
            Some(actor) if actor.get_status() < ActorStatus::Stopping => actor.stop(None),
            _ => self.setup.end_held(),
        }
    }
}

/// The half that the handle shares with the actors that serve the topic, one after the other.
pub struct Setup {
    dispatchers: Arc<Dispatchers>,
    options: TopicProducerOptions,
    routes: Arc<Routes>,
    status: watch::Sender<Status>,
    unusable: OnceLock<(Instant, NoTopic)>,
    restored: Mutex<Restored>,
    /// The actor, or the one that failed last.
    actor: Mutex<Option<ActorRef<TopicMessage>>>,
    /// No further actor is started.
    ended: AtomicBool,
}

impl Setup {
    fn buffer(&self) -> Option<&Arc<Buffer>> {
        self.options.store.as_ref().map(|store| &store.buffer)
    }

    /// Starts an actor, which begins when the one before is gone.
    ///
    /// An actor without a name cannot fail to be spawned: the only error is a name that is taken.
    #[allow(clippy::expect_used)]
    fn start(self: &Arc<Self>) {
        let mut current = self.actor.lock();
        if self.ended.load(Ordering::Relaxed) {
            return;
        }
        let arguments = (self.clone(), current.take());
        let spawned = match self.options.parent.as_ref().and_then(Parent::get) {
            Some(parent) => ActorRuntime::spawn_linked_instant(None, TopicProducer, arguments, parent),
            None => ActorRuntime::spawn_instant(None, TopicProducer, arguments),
        };
        let (actor, starting) = spawned.expect("an actor without a name");
        let id = actor.get_id();
        *current = Some(actor);
        drop(current);
        let setup = Arc::downgrade(self);
        tokio::spawn(async move {
            // Its supervisor does not hear of an actor that could not be started, or has ended before it.
            if let Ok(Err(error)) = starting.await {
                tracing::error!(%error, "a topic producer could not be started");
                tokio::time::sleep(RESPAWN.first).await;
                if let Some(setup) = setup.upgrade()
                    && setup.actor.lock().as_ref().is_some_and(|actor| actor.get_id() == id)
                {
                    setup.revive();
                }
            }
        });
    }

    fn revive(self: &Arc<Self>) {
        let is_gone = |actor: &ActorRef<TopicMessage>| actor.get_status() >= ActorStatus::Stopping;
        if self.actor.lock().as_ref().is_none_or(is_gone) {
            self.start();
        }
    }

    /// Starts no further actor; answers the last one.
    fn end(&self) -> Option<ActorRef<TopicMessage>> {
        let actor = self.actor.lock();
        self.ended.store(true, Ordering::Relaxed);
        actor.clone()
    }

    /// Ends what no actor has, as stopped.
    fn end_held(&self) {
        let end = End::Stopped(ReasonCode::UnspecifiedError);
        while let Some(taken) = self.routes.take_staged(false) {
            taken.obligations.end(end);
        }
        for partition in self.routes.partitions() {
            for (_, taken) in std::mem::take(&mut *partition.left_behind.lock()).batches {
                taken.obligations.end(end);
            }
            while let Some(taken) = partition.inbox.take_in_any_case(false) {
                taken.obligations.end(end);
            }
        }
    }

    #[cfg(test)]
    fn tell(&self, message: TopicMessage) {
        if let Some(actor) = &*self.actor.lock() {
            let _ = actor.send_message(message);
        }
    }
}

/// Index below `connections` of the connection of a partition: always the same one, so that its batches stay
/// in order.
fn lane(topic: &str, partition: i32, connections: u32) -> u32 {
    // Topics with one partition each must not all meet in the first.
    let topic = topic.bytes().fold(0_u32, |sum, byte| sum.wrapping_mul(31).wrapping_add(byte.into()));
    topic.wrapping_add(partition.unsigned_abs()) % connections.max(1)
}

/// Aborts a task with its owner.
struct Guarded(tokio::task::JoinHandle<()>);

impl Drop for Guarded {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// State of the actor.
pub struct Held {
    setup: Arc<Setup>,
    want_metadata: Arc<Notify>,
    tasks: Vec<Guarded>,
    /// Ran dry or not: only while the number of partitions of a keyed topic is changing.
    growth: Option<Guarded>,
    /// Leaders by partition.
    leaders: Vec<Option<i32>>,
    /// Why a leader cannot be reached; only for leaders.
    links: BTreeMap<i32, Result<(), Obstacle>>,
    checking: HashSet<i32>,
    producer_id: Option<ProducerIdentity>,
    asking_for_id: Option<Guarded>,
    /// Partitions that wait for a producer id.
    waiting_for_id: Vec<i32>,
    /// How often in a row the actors of partitions failed, and when they did last.
    failures: HashMap<i32, (u32, Instant)>,
    /// When Kafka first said that it does not know the topic, or that we may not write to it.
    unusable_since: Option<Instant>,
    /// Whether the topic still is what it was.
    incarnation: Incarnation,
    /// Why there is no metadata, or what is wrong with the topic.
    topic_trouble: Option<Obstacle>,
    /// Answers in a row by which Kafka does not know the topic.
    missing: u32,
    /// Whether it has been connected.
    worked: bool,
    /// Why there is no producer id, and whether that passes by itself.
    id_trouble: Option<(String, bool)>,
    standstill: StallDetector,
    /// A look is on its way.
    looking: bool,
}

impl Actor for TopicProducer {
    type Msg = TopicMessage;
    type State = Held;
    type Arguments = (Arc<Setup>, Option<ActorRef<TopicMessage>>);

    async fn pre_start(
        &self,
        _: ActorRef<TopicMessage>,
        (setup, predecessor): Self::Arguments,
    ) -> Result<Held, ActorProcessingErr> {
        if let Some(predecessor) = predecessor {
            predecessor.kill();
            let _ = predecessor.wait(None).await;
        }
        Ok(Held::new(setup))
    }

    async fn post_start(
        &self,
        myself: ActorRef<TopicMessage>,
        held: &mut Held,
    ) -> Result<(), ActorProcessingErr> {
        held.begin(&myself);
        Ok(())
    }

    async fn handle(
        &self,
        myself: ActorRef<TopicMessage>,
        message: TopicMessage,
        held: &mut Held,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            TopicMessage::Metadata(Ok(view)) => held.metadata(&myself, &view).await,
            TopicMessage::Metadata(Err(error)) => held.topic_trouble = Some(Obstacle::failure(&error)),
            TopicMessage::NeedMetadata => held.want_metadata.notify_one(),
            TopicMessage::NeedProducerId { partition, instead_of } => {
                held.need_producer_id(&myself, partition, instead_of);
            }
            TopicMessage::ProducerId(Ok(identity)) => held.producer_id_is(identity),
            TopicMessage::ProducerId(Err(error)) => {
                let passes = error.code().is_some_and(|code| code.is_retriable());
                held.id_trouble = Some((error.to_string(), passes));
            }
            TopicMessage::TroubleChanged if held.looking => {}
            TopicMessage::TroubleChanged | TopicMessage::Look => held.look(&myself),
            TopicMessage::Forbidden => held.give_up_topic(NoTopic::Forbidden),
            TopicMessage::Link(broker, trouble) => held.link(&myself, broker, trouble),
            TopicMessage::CheckLinks => held.check_links(&myself),
            TopicMessage::RanDry(dry) => held.ran_dry(&myself, dry).await,
            TopicMessage::Respawn(index) => {
                if let Some(partition) = held.partition(index) {
                    if partition.served.load(Ordering::Acquire) {
                        // The one that failed has not let go yet.
                        myself.send_after(LOOK_AGAIN, move || TopicMessage::Respawn(index));
                    } else {
                        held.spawn_partition(&myself, partition).await;
                    }
                }
            }
            #[cfg(test)]
            TopicMessage::Panic => std::panic::resume_unwind(Box::new("on purpose")),
            TopicMessage::CheckAge => {
                let now = std::time::Instant::now();
                while let Some(taken) = held.setup.routes.take_expired(now) {
                    held.dead_letter(taken, End::Expired(ReasonCode::UnspecifiedError), TOO_OLD);
                }
            }
        }
        held.show_status();
        Ok(())
    }

    async fn handle_supervisor_evt(
        &self,
        myself: ActorRef<TopicMessage>,
        event: SupervisionEvent,
        held: &mut Held,
    ) -> Result<(), ActorProcessingErr> {
        if let SupervisionEvent::ActorFailed(who, error) = event {
            held.partition_failed(&myself, &who, &error.to_string());
            held.show_status();
        }
        Ok(())
    }

    async fn post_stop(
        &self,
        myself: ActorRef<TopicMessage>,
        held: &mut Held,
    ) -> Result<(), ActorProcessingErr> {
        myself.get_cell().stop_children_and_wait(None, Some(Duration::from_secs(5))).await;
        // Where an actor was not there to do it.
        held.setup.end_held();
        // The state goes to the supervisor, which may be busy for a while.
        held.tasks.clear();
        (held.growth, held.asking_for_id) = (None, None);
        let reason = "stopped".to_owned();
        held.setup.status.send_replace(Status::Disconnected { reason });
        Ok(())
    }
}

impl Held {
    fn new(setup: Arc<Setup>) -> Self {
        Self {
            setup,
            want_metadata: Arc::new(Notify::new()),
            tasks: Vec::new(),
            growth: None,
            leaders: Vec::new(),
            links: BTreeMap::new(),
            checking: HashSet::new(),
            producer_id: None,
            asking_for_id: None,
            waiting_for_id: Vec::new(),
            failures: HashMap::new(),
            unusable_since: None,
            incarnation: Incarnation::default(),
            topic_trouble: None,
            missing: 0,
            worked: false,
            id_trouble: None,
            standstill: StallDetector::default(),
            looking: false,
        }
    }

    /// Begins to ask for metadata, and goes on with the partitions that a predecessor left.
    fn begin(&mut self, myself: &ActorRef<TopicMessage>) {
        if let Some((_, why)) = self.setup.unusable.get().copied() {
            return self.end_unusable(why);
        }
        let setup = &self.setup;
        let keeper = keep_metadata(
            setup.dispatchers.client().clone(),
            setup.options.topic.clone(),
            setup.options.partition_count_refresh_interval,
            self.want_metadata.clone(),
            myself.clone(),
        );
        let begin = setup.options.begin.clone();
        let keeper = async move {
            if let Some(mut begin) = begin {
                // Where the other end is gone there is nothing to wait for.
                let _ = begin.wait_for(|begun| *begun).await;
            }
            keeper.await;
        };
        let checked = myself.clone();
        let checks = async move {
            let mut interval = tokio::time::interval(LINK_CHECK);
            loop {
                interval.tick().await;
                let _ = checked.send_message(TopicMessage::CheckLinks);
            }
        };
        self.tasks = vec![Guarded(tokio::spawn(keeper)), Guarded(tokio::spawn(checks))];
        if let Some(max_age) = setup.options.max_batch_age {
            self.tasks.push(Guarded(tokio::spawn(check_age(max_age, myself.clone()))));
        }
        for partition in setup.routes.partitions() {
            let _ = myself.send_message(TopicMessage::Respawn(partition.index));
        }
        if setup.routes.is_interrupted() {
            // The number of partitions was about to change: it will be seen again.
            let _ = myself.send_message(TopicMessage::RanDry(false));
        }
    }

    fn partition(&self, index: i32) -> Option<Arc<Partition>> {
        self.setup.routes.partitions().into_iter().find(|partition| partition.index == index)
    }

    async fn metadata(&mut self, myself: &ActorRef<TopicMessage>, view: &TopicView) {
        let topic = &self.setup.options.topic;
        let limit = self.setup.options.partitions_limit.unwrap_or(usize::MAX);
        let count = view.partitions.len().min(limit);
        if let Some(error) = view.error {
            let reason = format!("topic {topic:?}: {}", super::verdict::describe(error.code()));
            let passes = super::obstacle::is_outage(error.code());
            self.topic_trouble =
                Some(if passes { Obstacle::outage(reason) } else { Obstacle::refusal(reason) });
            self.missing = if error.code() == NO_SUCH_TOPIC { self.missing.saturating_add(1) } else { 0 };
            if let Some(why) = NoTopic::of(error.code()).filter(|_| self.setup.options.unusable_is_final) {
                self.maybe_unusable(view.as_of, why);
            }
            return;
        }
        self.unusable_since = None;
        self.missing = 0;
        if count == 0 {
            self.topic_trouble = Some(Obstacle::refusal(format!("topic {topic:?} has no partitions")));
            return;
        }
        let known = self.setup.routes.partitions();
        // While the number of partitions is changing all of them are to be there.
        let look = match &self.growth {
            None => self.incarnation.look(view.topic_id, count, known.len(), view.as_of),
            Some(_) => Look::Whole,
        };
        if look == Look::Stale {
            self.want_metadata.notify_one();
            return;
        }
        self.topic_trouble = None;
        let leader = |p: &PartitionView| Some(p.leader).filter(|leader| *leader >= 0);
        self.leaders = view.partitions.iter().take(count).map(leader).collect();
        match look {
            Look::Doubtful => self.want_metadata.notify_one(),
            Look::Cut { anew } => self.cut_to(count, anew),
            Look::Whole if count > known.len() && self.growth.is_none() => {
                if known.is_empty() || !self.setup.options.partitioner.is_keyed() {
                    self.grow(myself).await;
                } else {
                    self.begin_growth(myself);
                }
            }
            Look::Whole | Look::Stale => {}
        }
        for partition in self.setup.routes.partitions() {
            let leader = self.leader_of(partition.index);
            partition.actor.tell(PartitionMessage::Leader(leader));
        }
        self.check_links(myself);
    }

    /// A topic that is of no use. Believed when a later view says so too.
    fn maybe_unusable(&mut self, as_of: Instant, why: NoTopic) {
        match self.unusable_since {
            Some(first) if first < as_of => self.give_up_topic(why),
            Some(_) => self.want_metadata.notify_one(),
            None => {
                self.unusable_since = Some(as_of);
                self.want_metadata.notify_one();
            }
        }
    }

    /// Everything held has failed for good.
    fn give_up_topic(&mut self, why: NoTopic) {
        if !self.setup.options.unusable_is_final || self.setup.unusable.set((Instant::now(), why)).is_err() {
            return;
        }
        tracing::warn!(topic = %self.setup.options.topic, why = why.words(), "giving up on the records of a topic");
        self.end_unusable(why);
    }

    fn end_unusable(&mut self, why: NoTopic) {
        let (reason, words) = (why.reason(), why.words());
        // It is not asked for any more.
        self.tasks.clear();
        self.growth = None;
        self.setup.routes.close(reason);
        let buried = self.setup.options.dead_letters.is_some();
        while let Some(taken) = self.setup.routes.take_staged(buried) {
            self.dead_letter(taken, End::Failed(reason), words);
        }
        for (seal, builder) in std::mem::take(&mut self.setup.restored.lock().sealed).into_values().flatten()
        {
            let taken = self.setup.routes.take_waiting(&seal, builder);
            self.dead_letter(taken, End::Failed(reason), words);
        }
        for partition in self.setup.routes.partitions() {
            if partition.served.load(Ordering::Acquire) {
                partition.actor.tell(PartitionMessage::GiveUp(End::Failed(reason), words));
                continue;
            }
            for (_, taken) in std::mem::take(&mut *partition.left_behind.lock()).batches {
                self.dead_letter(taken, End::Failed(reason), words);
            }
            while let Some(taken) = partition.inbox.take_in_any_case(buried) {
                self.dead_letter(taken, End::Failed(reason), words);
            }
        }
    }

    /// Ends what waited for no partition yet, after it has gone to the dead-letter topic where there is one.
    fn dead_letter(&self, taken: Taken, end: End, reason: &str) {
        match &self.setup.options.dead_letters {
            // Without records, they could not be read.
            Some(letters) if !taken.builder.is_empty() => {
                let cause = Cause { topic: &self.setup.options.topic, partition: None, reason, code: None };
                letters.dead_letter(cause, &taken.builder, taken.obligations, end);
            }
            _ => taken.obligations.end(end),
        }
    }

    fn leader_of(&self, partition: i32) -> Option<i32> {
        let index = usize::try_from(partition).ok()?;
        self.leaders.get(index).copied().flatten()
    }

    /// Starts the partitions that are missing and leads everything to all of them.
    async fn grow(&mut self, myself: &ActorRef<TopicMessage>) {
        let routes = self.setup.routes.clone();
        let known = routes.partitions().len();
        for index in (known..self.leaders.len()).map_while(|index| i32::try_from(index).ok()) {
            let actor = Arc::new(ActorSlot::default());
            let inbox = routes.new_inbox(index, actor.clone());
            let partition = Arc::new(Partition::new(index, inbox, actor));
            routes.add([partition.clone()]);
            self.spawn_partition(myself, partition).await;
        }
        let partitions = routes.partitions();
        tracing::info!(topic = %self.setup.options.topic, from = known, to = partitions.len(), "partitions");
        if routes.bring_in(&partitions).await {
            routes.lead_to(&partitions);
        }
    }

    /// Gives a partition its batches from before a restart of the node, as far as they can still be sent as
    /// they were.
    fn give_restored(&self, partition: &Partition) {
        let batches = self.setup.restored.lock().sealed.remove(&partition.index).unwrap_or_default();
        let records = batches.iter().map(|(seal, _)| seal.records()).sum();
        let mut left = partition.left_behind.lock();
        self.setup.routes.found_partition(records, || {
            for (seal, builder) in batches {
                let obligations = partition.inbox.resume(&builder, seal.numbers);
                left.batches.push((seal.stamp, Taken { builder, obligations, expires_at: None }));
            }
        });
    }

    /// Starts an actor for a partition; where that fails it is tried again later, and the partition says why.
    async fn spawn_partition(&mut self, myself: &ActorRef<TopicMessage>, partition: Arc<Partition>) {
        self.give_restored(&partition);
        *partition.trouble.lock() = None;
        let index = partition.index;
        let setup = self.partition_setup(myself, partition);
        if let Err(error) = Actor::spawn_linked(None, PartitionProducer, setup, myself.get_cell()).await {
            self.respawn_later(myself, index, &error.to_string());
        }
    }

    fn partition_setup(&self, myself: &ActorRef<TopicMessage>, partition: Arc<Partition>) -> PartitionSetup {
        let options = &self.setup.options;
        let lane = lane(&options.topic, partition.index, options.connections);
        let idempotent = options.required_acks == RequiredAcks::AllIsr;
        let store = options.store.as_ref().map(|store| {
            let place = TopicPartition { topic: options.topic.clone(), partition: partition.index };
            (store.buffer.clone(), place)
        });
        PartitionSetup {
            topic: options.topic.clone(),
            leader: self.leader_of(partition.index),
            partition,
            dispatchers: self.setup.dispatchers.clone(),
            request: RequestOptions {
                acks: options.required_acks.on_the_wire(),
                ack_timeout: options.ack_timeout,
                request_timeout: options.request_timeout,
                lane,
            },
            compression: options.compression,
            core: core::Options {
                idempotent,
                max_in_flight: options.max_inflight.max(1),
                max_retries: options.max_retries,
                stored: idempotent && store.is_some(),
                seed: rand::random(),
            },
            batch_bytes: options.max_batch_bytes,
            linger: (options.max_linger_time > Duration::ZERO).then(|| Linger {
                time: options.max_linger_time,
                bytes: options.max_linger_bytes.min(options.max_batch_bytes),
            }),
            max_age: options.max_batch_age,
            dead_letters: options.dead_letters.clone(),
            timestamps: options.timestamps,
            forbidden_is_final: options.unusable_is_final,
            parent: myself.clone(),
            store,
        }
    }

    /// The old partitions must run dry before keys move: see [`Routes`].
    fn begin_growth(&mut self, myself: &ActorRef<TopicMessage>) {
        let routes = self.setup.routes.clone();
        routes.lead_to_staging();
        let myself = myself.clone();
        self.growth = Some(Guarded(tokio::spawn(async move {
            let dry = tokio::time::timeout(GROWTH_PATIENCE, async {
                for partition in routes.partitions() {
                    partition.inbox.idle().await;
                }
            });
            let dry = dry.await.is_ok();
            let _ = myself.send_message(TopicMessage::RanDry(dry));
        })));
    }

    async fn ran_dry(&mut self, myself: &ActorRef<TopicMessage>, dry: bool) {
        self.growth = None;
        if dry {
            return self.grow(myself).await;
        }
        tracing::warn!(
            topic = %self.setup.options.topic,
            "new partitions are not used yet: what is held for the old ones cannot be sent"
        );
        let routes = self.setup.routes.clone();
        let partitions = routes.partitions();
        if routes.bring_in(&partitions).await {
            routes.lead_to(&partitions);
        }
    }

    /// The partitions from `count` on are gone. What may go to another one does, the rest is given up.
    fn cut_to(&mut self, count: usize, anew: bool) {
        let lost = self.setup.routes.cut_to(count);
        let kept = self.setup.routes.partitions();
        let held = |partition: &Arc<Partition>| {
            let ledger = partition.inbox.ledger();
            ledger.queuing + ledger.inflight
        };
        let records: u64 = lost.iter().map(held).sum();
        tracing::warn!(
            topic = %self.setup.options.topic,
            lost = lost.len(),
            left = count,
            records,
            anew,
            "partitions are gone; their records without a key that binds them go to others, the rest fails"
        );
        let keyed = self.setup.options.partitioner.is_keyed();
        for (index, partition) in lost.iter().enumerate() {
            if let Some(heir) = kept.get(index % count.max(1)) {
                let (routes, to) = (self.setup.routes.clone(), heir.clone());
                partition.actor.tell(PartitionMessage::Gone { routes, to, keyed });
            }
            if let Some(actor) = partition.actor.actor() {
                // Its messages before the stop are lost with a stop: drain.
                let _ = actor.drain();
            }
        }
        let routes = self.setup.routes.clone();
        tokio::spawn(async move {
            for partition in &lost {
                partition.inbox.idle().await;
            }
            routes.forget(&lost);
        });
    }

    fn need_producer_id(&mut self, myself: &ActorRef<TopicMessage>, partition: i32, instead_of: Option<i64>) {
        if let Some(identity) = self.producer_id.filter(|identity| Some(identity.id) != instead_of) {
            self.give_producer_id(partition, identity);
            return;
        }
        self.producer_id = None;
        self.waiting_for_id.push(partition);
        if self.asking_for_id.is_none() {
            let (client, myself) = (self.setup.dispatchers.client().clone(), myself.clone());
            self.asking_for_id = Some(Guarded(tokio::spawn(async move {
                for failures in 1.. {
                    let answer = client.init_producer_id().await;
                    let done = answer.is_ok();
                    let _ = myself.send_message(TopicMessage::ProducerId(answer));
                    if done {
                        break;
                    }
                    tokio::time::sleep(RETRY.jittered(failures)).await;
                }
            })));
        }
    }

    fn producer_id_is(&mut self, identity: ProducerIdentity) {
        self.asking_for_id = None;
        self.id_trouble = None;
        self.producer_id = Some(identity);
        for partition in std::mem::take(&mut self.waiting_for_id) {
            self.give_producer_id(partition, identity);
        }
    }

    fn give_producer_id(&self, partition: i32, ProducerIdentity { id, epoch }: ProducerIdentity) {
        if let Some(partition) = self.partition(partition) {
            partition.actor.tell(PartitionMessage::ProducerId { id, epoch });
        }
    }

    fn partition_failed(&mut self, myself: &ActorRef<TopicMessage>, who: &ActorCell, reason: &str) {
        let failed =
            self.setup.routes.partitions().into_iter().find(|partition| {
                partition.actor.actor().is_some_and(|actor| actor.get_id() == who.get_id())
            });
        if let Some(partition) = failed {
            self.respawn_later(myself, partition.index, reason);
        }
    }

    fn respawn_later(&mut self, myself: &ActorRef<TopicMessage>, index: i32, reason: &str) {
        tracing::error!(
            topic = %self.setup.options.topic,
            partition = index,
            reason,
            "a partition producer failed; what it was sending counts as failed, or is sent again from a disk buffer"
        );
        if let Some(partition) = self.partition(index) {
            let trouble = format!("partition {index} failed and is started again: {reason}");
            *partition.trouble.lock() = Some(trouble.into());
            partition.trouble_passes.store(false, Ordering::Relaxed);
            partition.up.store(false, Ordering::Relaxed);
        }
        // The sequences of the id are not known any more.
        self.producer_id = None;
        let now = Instant::now();
        let (times, last) = self.failures.entry(index).or_insert((0, now));
        *times = if now.duration_since(*last) < CALM { times.saturating_add(1) } else { 1 };
        *last = now;
        myself.send_after(RESPAWN.jittered(*times), move || TopicMessage::Respawn(index));
    }

    /// Makes sure that there is a connection to every leader.
    fn check_links(&mut self, myself: &ActorRef<TopicMessage>) {
        let leaders: HashSet<i32> = self.leaders.iter().flatten().copied().collect();
        self.links.retain(|broker, _| leaders.contains(broker));
        for broker in leaders {
            if self.checking.insert(broker) {
                let (client, myself) = (self.setup.dispatchers.client().clone(), myself.clone());
                tokio::spawn(async move {
                    let link = client.broker(broker, Purpose::Produce(0)).await;
                    let trouble = link.err().map(|error| Obstacle::failure(&error));
                    let _ = myself.send_message(TopicMessage::Link(broker, trouble));
                });
            }
        }
    }

    fn link(&mut self, myself: &ActorRef<TopicMessage>, broker: i32, trouble: Option<Obstacle>) {
        self.checking.remove(&broker);
        if !self.leaders.contains(&Some(broker)) {
            return;
        }
        let failed = trouble.is_some();
        self.links.insert(broker, trouble.map_or(Ok(()), Err));
        if failed {
            // The leader may be another one by then.
            self.want_metadata.notify_one();
            myself.send_after(RECHECK_AFTER, || TopicMessage::CheckLinks);
        }
    }

    fn look(&mut self, myself: &ActorRef<TopicMessage>) {
        self.looking = self.standstill.look(self.setup.routes.partitions().iter().map(Sign::from));
        if self.looking {
            myself.send_after(STANDSTILL_LOOK, || TopicMessage::Look);
        }
    }

    fn show_status(&mut self) {
        let status = self.status();
        self.worked |= status == Status::Connected;
        self.setup.status.send_if_modified(|shown| {
            let changed = *shown != status;
            if changed {
                tracing::info!(topic = %self.setup.options.topic, ?status, "kafka producer");
                *shown = status;
            }
            changed
        });
    }

    fn status(&self) -> Status {
        let partitions = self.setup.routes.partitions();
        if partitions.is_empty() {
            return match &self.topic_trouble {
                Some(obstacle) => obstacle.status(self.worked),
                None => Status::Connecting { reason: "asking Kafka for the topic's partitions".to_owned() },
            };
        }
        let mut signs = partitions.iter().map(|partition| {
            let Some(leader) = self.leader_of(partition.index) else {
                return Err(Some(Obstacle::outage(format!("partition {} has no leader", partition.index))));
            };
            match self.links.get(&leader) {
                Some(Err(obstacle)) => return Err(Some(obstacle.clone())),
                Some(Ok(())) => {}
                None => return Err(None),
            }
            let passes = partition.trouble_passes.load(Ordering::Relaxed);
            let obstacle = if passes { Obstacle::outage } else { Obstacle::refusal };
            partition.trouble.lock().clone().map_or(Ok(()), |reason| Err(Some(obstacle(reason))))
        });
        let id_trouble = self.id_trouble.as_ref().filter(|_| self.producer_id.is_none());
        let first = signs.next().unwrap_or(Ok(()));
        let healthy = first.is_ok() || signs.any(|sign| sign.is_ok());
        match (healthy, id_trouble, &self.topic_trouble) {
            (_, Some((reason, true)), _) => Status::Connecting { reason: reason.clone() },
            // One answer alone may come from a broker that lags behind.
            (true, None, Some(obstacle)) if self.missing > 1 => obstacle.status(self.worked),
            (true, None, _) => match self.standstill.reason().or(self.standstill.refusing()) {
                Some(reason) => Status::Disconnected { reason: reason.to_string() },
                None => Status::Connected,
            },
            (_, Some((reason, false)), _) => Status::Disconnected { reason: reason.clone() },
            (false, None, Some(obstacle)) => obstacle.status(self.worked),
            (false, None, None) => match first {
                Err(Some(obstacle)) => obstacle.status(self.worked),
                _ => Status::Connecting { reason: "connecting to the partitions' leaders".to_owned() },
            },
        }
    }
}

/// Asks for the topic's metadata: at once, when wanted, at the interval, and as long as something is missing.
async fn keep_metadata(
    client: Client,
    topic: Arc<str>,
    interval: Option<Duration>,
    wanted: Arc<Notify>,
    parent: ActorRef<TopicMessage>,
) {
    let mut failures = 0;
    loop {
        let answer = client.refresh(&topic, client.options().allow_auto_topic_creation).await;
        let complete = answer.as_ref().is_ok_and(|view| {
            view.error.is_none()
                && !view.partitions.is_empty()
                && view.partitions.iter().all(|p| p.leader >= 0)
        });
        if parent.send_message(TopicMessage::Metadata(answer)).is_err() {
            return;
        }
        if complete {
            failures = 0;
            match interval {
                Some(interval) => {
                    let _ = tokio::time::timeout(interval, wanted.notified()).await;
                }
                None => wanted.notified().await,
            }
        } else {
            failures += 1;
            // Even where it is wanted: what is missing will not be there sooner.
            tokio::time::sleep(RETRY.jittered(failures)).await;
        }
    }
}

/// Asks every eighth of `max_age` to give up what is older.
async fn check_age(max_age: Duration, parent: ActorRef<TopicMessage>) {
    let mut interval = tokio::time::interval((max_age / 8).max(Duration::from_millis(10)));
    loop {
        interval.tick().await;
        if parent.send_message(TopicMessage::CheckAge).is_err() {
            return;
        }
    }
}
