//! The actor of one partition: a thin shell around [`PartitionCore`].
//!
//! It takes batches out of its [`PartitionInbox`] when the core has appetite, seals them (compression and
//! CRC, outside the inbox's lock), hands them to the leader's dispatcher and brings the answers back. Its
//! messages are rare: per batch one wake-up and one answer, beside metadata, producer ids and timers, so
//! their mailbox is bounded by the batches under way.
//!
//! When it waits for more (the numbers): with nothing under way it sends whatever there is, so a lone record
//! never waits. With a batch under way, the next one is worth it from [`BULK_BYTES`] on; less gathers in the
//! inbox until the answer comes. Load makes batches grow by itself.
//!
//! Two things make it wait on purpose, where they are wanted: [`Linger`] lets an idle line wait for more, and
//! an age limit wakes it to give up what is too old. What is given up goes to the bridge's dead-letter topic,
//! where there is one.
//!
//! Invariant: what it holds is ended when it goes: by [`Actor::post_stop`] as stopped, or, where it panicked,
//! by the drop of the [`Obligations`] as failed. What waits in the inbox outlives a panic and goes to its
//! successor. With a disk buffer so do the batches under way, with the stamps they have: their publishers
//! were answered, and Kafka may have them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use causeway_protocol::kafka::batch::{BatchBuilder, BatchStamp, Compression, HEADER_LEN, SealedBatch};
use causeway_protocol::mqtt::ReasonCode;
use kafka_protocol::messages::TopicName;
use kafka_protocol::messages::describe_producers_request::{DescribeProducersRequest, TopicRequest};
use parking_lot::Mutex;
use ractor::{Actor, ActorProcessingErr, ActorRef};

use super::core::{self, Answer, Appetite, Batch, Fate, Output, PartitionCore, Remedy, Trouble};
use super::dead_letters::{Cause, DeadLetters};
use super::dispatcher::{AnswerSink, Dispatcher, Dispatchers, ProduceItem, RequestOptions};
use super::inbox::{PartitionInbox, Taken};
use super::obligations::{End, Obligations};
use super::obstacle::is_outage;
use super::route::Routes;
use super::stall_detector::Refusals;
use super::timestamps::{self, TimestampSource, Timestamps};
use super::topic_producer::{FORBIDDEN_TOPIC, TopicMessage};
use super::verdict::{INVALID_TIMESTAMP, describe};
use crate::flow::Wake;
use crate::kafka::buffer::{Buffer, Seal, TopicPartition};
use crate::kafka::client::{Client, Purpose};

/// Why a record is given up for its age.
pub(super) const TOO_OLD: &str = "older than max_batch_age";

/// Why records of a lost partition are given up.
const GONE: &str = "its partition is gone, and its key binds it to that";

/// A batch that leaves while another is under way has at least this many bytes: some 600 records of 100
/// bytes, by which the cost of a batch (three task switches, a system call each way) is below a tenth of that
/// of its records. Less where batches are never that large.
const BULK_BYTES: usize = 64 * 1024;

/// How long, and for how many bytes, an idle line waits for more.
#[derive(Debug, Clone, Copy)]
pub struct Linger {
    /// From the first record that waits.
    pub time: Duration,
    /// So many bytes end the wait.
    pub bytes: usize,
}

/// Message to a partition producer.
#[derive(Debug)]
pub enum PartitionMessage {
    /// The inbox holds what it was waiting for.
    Wake,
    /// The end of an attempt.
    Answered {
        /// Which.
        attempt: u64,
        /// How.
        answer: Answer,
        /// Why no answer came, or why Kafka refuses the batch, in words.
        reason: Option<Arc<str>>,
    },
    /// Without acks: the connection was closed before this many records were handled.
    ClosedOver(u32, Arc<str>),
    /// Without acks: records were handled, for the first time since some may not have been.
    Handled,
    /// Metadata names this leader.
    Leader(Option<i32>),
    /// The producer id asked for.
    ProducerId {
        /// Producer id.
        id: i64,
        /// Epoch.
        epoch: i16,
    },
    /// Seals of this generation are durable.
    Sealed(u64),
    /// Whether Kafka knows the producer id of before; `None`: it could not be asked.
    ProducerKnown(Option<bool>),
    /// A pause is over.
    Tick,
    /// The topic is of no use: end everything held like this.
    GiveUp(End, &'static str),
    /// The partition is gone: records that no key binds to it go to another one, the rest fails.
    Gone {
        /// Of the topic.
        routes: Arc<Routes>,
        /// The other one.
        to: Arc<Partition>,
        /// Whether a key binds a record.
        keyed: bool,
    },
    /// Its records go to another one.
    MoveTo(Arc<Routes>, Arc<Partition>),
    /// A panic, for tests.
    #[cfg(test)]
    Panic,
}

/// Shared view of a partition.
#[derive(Debug)]
pub struct Partition {
    /// Its number.
    pub index: i32,
    /// Its mailbox.
    pub inbox: Arc<PartitionInbox>,
    /// Its leader is known and no attempt since has failed.
    pub up: AtomicBool,
    /// Broker id of the leader, -1 without.
    pub leader: AtomicI32,
    /// Why it is not moving.
    pub trouble: Mutex<Option<Arc<str>>>,
    /// True if the trouble is an outage, not a refusal by Kafka.
    pub trouble_passes: AtomicBool,
    /// Records that Kafka refused for good.
    pub refusals: Refusals,
    /// An actor holds batches of it.
    pub served: AtomicBool,
    /// Batches that its next actor begins with; complete once no actor serves the partition.
    pub left_behind: Mutex<LeftBehind>,
    /// Its actor; another one after a panic.
    pub actor: Arc<ActorSlot>,
    /// How many of its next actors panic while they start.
    #[cfg(test)]
    pub panics_in_start: std::sync::atomic::AtomicU32,
}

impl Partition {
    /// A partition that no actor serves yet.
    pub fn new(index: i32, inbox: Arc<PartitionInbox>, actor: Arc<ActorSlot>) -> Self {
        Self {
            index,
            inbox,
            up: false.into(),
            leader: (-1).into(),
            trouble: Mutex::default(),
            trouble_passes: false.into(),
            refusals: Refusals::default(),
            served: false.into(),
            left_behind: Mutex::default(),
            actor,
            #[cfg(test)]
            panics_in_start: 0.into(),
        }
    }

    #[cfg(test)]
    fn panic_in_start(&self) {
        let left = self
            .panics_in_start
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1));
        if left.is_ok() {
            std::panic::resume_unwind(Box::new("on purpose, in the start"));
        }
    }
}

/// Batches of a partition that were under way when its actor or the process ended, in order.
///
/// An actor takes them when all of them are sealed: one that panics over them leaves them to the next.
#[derive(Debug, Default)]
pub struct LeftBehind {
    /// The batches with the stamps they were sent with, or would have been.
    pub batches: Vec<(BatchStamp, Taken)>,
    /// Whether some seals may not be durable.
    pub unsealed: bool,
}

/// Wakes whichever actor serves the partition now.
#[derive(Debug, Default)]
pub struct ActorSlot(Mutex<Option<ActorRef<PartitionMessage>>>);

impl ActorSlot {
    /// From now on this one.
    pub fn belongs_to(&self, actor: ActorRef<PartitionMessage>) {
        *self.0.lock() = Some(actor);
    }

    /// Tells the actor; a missing actor is no error, its successor looks for itself.
    pub fn tell(&self, message: PartitionMessage) {
        if let Some(actor) = &*self.0.lock() {
            let _ = actor.send_message(message);
        }
    }

    /// The actor.
    pub fn actor(&self) -> Option<ActorRef<PartitionMessage>> {
        self.0.lock().clone()
    }
}

impl Wake for ActorSlot {
    fn wake(&self) {
        self.tell(PartitionMessage::Wake);
    }
}

/// Startup arguments of the actor.
pub struct PartitionSetup {
    /// Topic name.
    pub topic: Arc<str>,
    /// Its public half.
    pub partition: Arc<Partition>,
    /// Ways to the brokers.
    pub dispatchers: Arc<Dispatchers>,
    /// Of its requests.
    pub request: RequestOptions,
    /// Of its batches.
    pub compression: Compression,
    /// Of its core.
    pub core: core::Options,
    /// Most bytes of a batch; a full one does not linger.
    pub batch_bytes: usize,
    /// Whether and how it waits for more.
    pub linger: Option<Linger>,
    /// How long a record may wait, as its inbox has it.
    pub max_age: Option<Duration>,
    /// Where records go that are given up.
    pub dead_letters: Option<Arc<DeadLetters>>,
    /// Where timestamps come from.
    pub timestamps: TimestampSource,
    /// The parent is told where we may not write to the topic.
    pub forbidden_is_final: bool,
    /// Who asks for metadata and producer ids on its behalf.
    pub parent: ActorRef<TopicMessage>,
    /// Leader known so far.
    pub leader: Option<i32>,
    /// The disk buffer and what records here belong to.
    pub store: Option<(Arc<Buffer>, TopicPartition)>,
}

/// Actor of one partition producer; its state is [`Held`].
pub struct PartitionProducer;

/// State of the actor.
pub struct Held {
    setup: PartitionSetup,
    core: PartitionCore<Outgoing>,
    sink: Arc<dyn AnswerSink>,
    dispatcher: Option<(i32, Arc<Dispatcher>)>,
    bulk: usize,
    /// When an idle line no longer waits for more.
    linger_until: Option<Instant>,
    timer: Option<(Instant, tokio::task::JoinHandle<()>)>,
    lost_because: Option<Arc<str>>,
    told_trouble: Option<Arc<str>>,
    /// Trouble that `told_trouble` is the text of.
    told: Option<Trouble>,
    timestamps: Arc<Timestamps>,
    /// Kafka has refused records for good since it took one.
    refuses: bool,
    /// How often in a row all that was under way was refused because we may not write to the topic.
    forbidden: u32,
    /// Records over which a connection may have been closed.
    unheard: u64,
}

/// A sealed batch with what is owed for it.
pub struct Outgoing {
    sealed: SealedBatch,
    compression: Compression,
    weight: usize,
    expires_at: Option<Instant>,
    obligations: Obligations,
    timestamps: Arc<Timestamps>,
    /// How often its records were given another timestamp.
    restamps: u8,
}

impl Outgoing {
    /// Its records, not sealed.
    fn records(&self) -> Option<BatchBuilder> {
        self.sealed.split(usize::MAX, self.weight).ok()?.pop()
    }

    /// Replaces its timestamps: by none, then by the latest that the broker is known to take.
    fn replace_timestamps(&mut self) -> Option<()> {
        let timestamp = match self.restamps {
            0 => timestamps::NONE,
            1 => self.timestamps.acceptable()?,
            _ => return None,
        };
        self.restamps += 1;
        let records = timestamps::restamped(&self.records()?, timestamp)?;
        self.weight = records.len();
        self.sealed = records.seal(self.compression, self.sealed.identity()).ok()?;
        Some(())
    }
}

impl Batch for Outgoing {
    type Wire = Bytes;

    fn records(&self) -> u32 {
        self.sealed.count() as u32
    }

    fn weight(&self) -> usize {
        self.weight
    }

    fn expires_at(&self) -> Option<Instant> {
        self.expires_at
    }

    fn restamp(&mut self, stamp: BatchStamp) {
        self.sealed.restamp(stamp);
    }

    fn split(mut self) -> Result<(Self, Self), Self> {
        let Ok(halves) = self.sealed.split(self.sealed.count().div_ceil(2), self.weight) else {
            return Err(self);
        };
        let Ok([first, second]) = <[BatchBuilder; 2]>::try_from(halves) else { return Err(self) };
        let (records, bytes) = (first.count() as u64, first.len() - HEADER_LEN);
        let weights = (first.len(), second.len());
        let (compression, expires_at, restamps) = (self.compression, self.expires_at, self.restamps);
        let timestamps = self.timestamps.clone();
        let seal = |builder: BatchBuilder| builder.seal(compression, BatchStamp::NONE);
        let (Ok(first), Ok(second)) = (seal(first), seal(second)) else { return Err(self) };
        let owed = self.obligations.split_off_first(records, bytes);
        Ok((
            Self {
                sealed: first,
                compression,
                weight: weights.0,
                expires_at,
                obligations: owed,
                timestamps,
                restamps,
            },
            Self { sealed: second, weight: weights.1, ..self },
        ))
    }

    fn mend_timestamps(&mut self) -> Remedy {
        if self.timestamps.are_replaceable() {
            return self.replace_timestamps().map_or(Remedy::None, |()| Remedy::Restamped);
        }
        let since = self.obligations.since();
        let waits = self.records().is_some_and(|records| self.timestamps.will_pass(&records, since));
        if waits { Remedy::Wait } else { Remedy::None }
    }

    fn wire(&self) -> Bytes {
        self.sealed.bytes().clone()
    }
}

struct AnswerTo(ActorRef<PartitionMessage>, Arc<Partition>);

impl AnswerSink for AnswerTo {
    fn answered(&self, attempt: u64, answer: Answer, reason: Option<Arc<str>>) {
        // Where the actor is gone its obligations have ended with it.
        let _ = self.0.send_message(PartitionMessage::Answered { attempt, answer, reason });
    }

    fn handled(&self, records: u32) {
        if self.1.refusals.note_handled(u64::from(records)) {
            let _ = self.0.send_message(PartitionMessage::Handled);
        }
    }

    fn closed_over(&self, records: u32, reason: Arc<str>) {
        let _ = self.0.send_message(PartitionMessage::ClosedOver(records, reason));
    }
}

impl Actor for PartitionProducer {
    type Msg = PartitionMessage;
    type State = Held;
    type Arguments = PartitionSetup;

    async fn pre_start(
        &self,
        myself: ActorRef<PartitionMessage>,
        setup: PartitionSetup,
    ) -> Result<Held, ActorProcessingErr> {
        let timestamps = Arc::new(Timestamps::new(setup.timestamps));
        let core = resume(&setup, &timestamps);
        setup.partition.actor.belongs_to(myself.clone());
        setup.partition.served.store(true, Ordering::Release);
        Ok(Held {
            core,
            sink: Arc::new(AnswerTo(myself, setup.partition.clone())),
            dispatcher: None,
            bulk: BULK_BYTES.min(setup.batch_bytes),
            linger_until: None,
            timer: None,
            lost_because: None,
            told_trouble: None,
            told: None,
            timestamps,
            refuses: false,
            forbidden: 0,
            unheard: 0,
            setup,
        })
    }

    async fn post_start(
        &self,
        myself: ActorRef<PartitionMessage>,
        held: &mut Held,
    ) -> Result<(), ActorProcessingErr> {
        held.core.leader_is(Instant::now(), held.setup.leader);
        held.turn(&myself);
        Ok(())
    }

    async fn handle(
        &self,
        myself: ActorRef<PartitionMessage>,
        message: PartitionMessage,
        held: &mut Held,
    ) -> Result<(), ActorProcessingErr> {
        let now = Instant::now();
        match message {
            PartitionMessage::Wake => {}
            PartitionMessage::Answered { attempt, answer, reason } => {
                match answer {
                    Answer::Code(INVALID_TIMESTAMP) => held.timestamps.note_refusal(reason.as_deref()),
                    Answer::Code(_) => {}
                    Answer::Lost | Answer::NotSent => held.lost_because = reason.or(held.lost_because.take()),
                }
                held.core.answered(now, attempt, answer);
                held.note_permission(answer);
            }
            PartitionMessage::ClosedOver(records, reason) => held.closed_over(records, &reason),
            PartitionMessage::Handled => {
                let _ = held.setup.parent.send_message(TopicMessage::TroubleChanged);
            }
            PartitionMessage::Leader(leader) => held.core.leader_is(now, leader),
            PartitionMessage::ProducerId { id, epoch } => held.core.producer_id_is(now, id, epoch),
            PartitionMessage::Sealed(generation) => held.core.seals_durable(now, generation),
            PartitionMessage::ProducerKnown(known) => held.core.producer_is_known(now, known),
            PartitionMessage::Tick => {
                held.timer = None;
                held.core.tick(now);
            }
            PartitionMessage::GiveUp(end, why) => held.give_up(end, why),
            PartitionMessage::Gone { routes, to, keyed } => held.gone(&routes, &to, keyed),
            PartitionMessage::MoveTo(routes, to) => held.move_to(&routes, &to),
            #[cfg(test)]
            PartitionMessage::Panic => std::panic::resume_unwind(Box::new("on purpose")),
        }
        held.turn(&myself);
        Ok(())
    }

    async fn post_stop(
        &self,
        _myself: ActorRef<PartitionMessage>,
        held: &mut Held,
    ) -> Result<(), ActorProcessingErr> {
        held.give_up(End::Stopped(ReasonCode::UnspecifiedError), "stopped");
        Ok(())
    }
}

/// A core with the batches that were left behind. A panic on the way leaves them all where they are.
fn resume(setup: &PartitionSetup, timestamps: &Arc<Timestamps>) -> PartitionCore<Outgoing> {
    let mut left = setup.partition.left_behind.lock();
    let Some((first, _)) = left.batches.first() else { return PartitionCore::new(setup.core.clone()) };
    let first = *first;
    #[cfg(test)]
    setup.partition.panic_in_start();
    let sealed: Vec<_> =
        left.batches.iter().map(|(stamp, taken)| seal(setup, taken.builder.clone(), *stamp)).collect();
    let LeftBehind { batches, unsealed } = std::mem::take(&mut *left);
    let batches: Vec<Outgoing> = batches
        .into_iter()
        .zip(sealed)
        .filter_map(|((_, taken), sealed)| {
            let Taken { builder, obligations, expires_at } = taken;
            outgoing(sealed, builder.len(), obligations, expires_at, timestamps)
        })
        .collect();
    tracing::info!(
        topic = %setup.topic,
        partition = setup.partition.index,
        batches = batches.len(),
        "batches from before a restart are sent again"
    );
    if unsealed {
        PartitionCore::resume_unsealed(setup.core.clone(), first, batches)
    } else {
        PartitionCore::resume(setup.core.clone(), first, batches)
    }
}

/// A sealed batch and its compression; `None`, with a log line, where the batch cannot be sealed.
fn seal(
    setup: &PartitionSetup,
    builder: BatchBuilder,
    stamp: BatchStamp,
) -> Option<(SealedBatch, Compression)> {
    let compression = setup.compression;
    let sealed = builder.seal(compression, stamp).map(|sealed| (sealed, compression)).or_else(|failed| {
        tracing::warn!(topic = %setup.topic, error = %failed.error, "a batch is sent uncompressed");
        failed.builder.seal(Compression::None, stamp).map(|sealed| (sealed, Compression::None))
    });
    sealed
        .inspect_err(|failed| {
            tracing::error!(topic = %setup.topic, error = %failed.error, "a batch cannot be sealed");
        })
        .ok()
}

/// A sealed batch with its obligations, which fail where there is none.
fn outgoing(
    sealed: Option<(SealedBatch, Compression)>,
    weight: usize,
    obligations: Obligations,
    expires_at: Option<Instant>,
    timestamps: &Arc<Timestamps>,
) -> Option<Outgoing> {
    let Some((sealed, compression)) = sealed else {
        obligations.end(End::Failed(ReasonCode::ImplementationSpecificError));
        return None;
    };
    Some(Outgoing {
        sealed,
        compression,
        weight,
        expires_at,
        obligations,
        timestamps: timestamps.clone(),
        restamps: 0,
    })
}

/// Whether the partition's leader has state of this producer id (KIP-664). A Kafka before 2.8 cannot be
/// asked: then its answers to what is sent have to tell.
async fn knows_producer(client: &Client, leader: i32, topic: &str, partition: i32, id: i64) -> Option<bool> {
    let connection = client.broker(leader, Purpose::Metadata).await.ok()?;
    if connection.version::<DescribeProducersRequest>().is_err() {
        return Some(true);
    }
    let wanted = TopicRequest::default()
        .with_name(TopicName(topic.to_owned().into()))
        .with_partition_indexes(vec![partition]);
    let request = DescribeProducersRequest::default().with_topics(vec![wanted]);
    let answer = connection.call(&request).await.ok()?;
    let partition = answer.topics.first()?.partitions.first()?;
    (partition.error_code == 0)
        .then(|| partition.active_producers.iter().any(|producer| producer.producer_id.0 == id))
}

impl Drop for Held {
    fn drop(&mut self) {
        if let Some((_, timer)) = &self.timer {
            timer.abort();
        }
        // Nothing is left after a stop.
        self.leave_behind();
        self.setup.partition.served.store(false, Ordering::Release);
    }
}

impl Held {
    /// After every event: carries out what the core wants and feeds it as long as it is hungry.
    fn turn(&mut self, myself: &ActorRef<PartitionMessage>) {
        let mut seals = None;
        loop {
            for output in self.core.take_outputs() {
                match output {
                    // Once for all, and behind the ends of batches, which must not be missing in both.
                    Output::WriteSeals { generation } => seals = Some(generation),
                    output => self.carry_out(output),
                }
            }
            let now = Instant::now();
            if self.setup.max_age.is_some() {
                while let Some(taken) = self.setup.partition.inbox.take_expired(now) {
                    let end = End::Expired(ReasonCode::UnspecifiedError);
                    self.dead_letter(&taken.builder, taken.obligations, end, TOO_OLD, None);
                }
            }
            let least = match self.core.appetite(now) {
                Appetite::Nothing => None,
                Appetite::Bulk => Some(self.bulk as u64),
                Appetite::Anything => Some(self.least_to_start_with(now)),
            };
            let inbox = &self.setup.partition.inbox;
            if !inbox.sleep_until(least) {
                break;
            }
            let Some(stamp) = self.core.next_stamp() else { break };
            let Some(taken) = inbox.take() else { break };
            self.linger_until = None;
            let Taken { builder, obligations, expires_at } = taken;
            let weight = builder.len();
            let sealed = seal(&self.setup, builder, stamp);
            if let Some(batch) = outgoing(sealed, weight, obligations, expires_at, &self.timestamps) {
                self.core.push(now, batch);
            }
        }
        if let Some(generation) = seals {
            self.write_seals(generation);
        }
        self.set_timer(myself);
        self.show_trouble();
    }

    /// Tells the parent of a topic that we may not write to, when Kafka has said so of a resend, too.
    fn note_permission(&mut self, answer: Answer) {
        match answer {
            Answer::Code(FORBIDDEN_TOPIC) if self.core.in_flight() == 0 => self.forbidden += 1,
            Answer::Code(0) => self.forbidden = 0,
            _ => {}
        }
        if self.forbidden == 2 && self.setup.forbidden_is_final {
            let _ = self.setup.parent.send_message(TopicMessage::Forbidden);
        }
    }

    /// Without acks nothing else tells that Kafka refuses a batch. It counts as written, as is promised then.
    fn closed_over(&mut self, records: u32, reason: &str) {
        let setup = &self.setup;
        let before = self.unheard;
        self.unheard += u64::from(records);
        // Not each of a flood: the first, then with every doubling.
        if before == 0 || self.unheard.ilog2() != before.ilog2() {
            tracing::warn!(
                topic = %setup.topic,
                partition = setup.partition.index,
                records,
                in_all = self.unheard,
                reason,
                "the connection was closed over batches that were written with required_acks = none: they may be lost"
            );
        }
        let why = format!(
            "with required_acks = none it closes the connection over a batch that it refuses, for instance one that is too large or not \
             authorized ({reason})"
        );
        setup.partition.refusals.add_unheard(&why);
        let _ = setup.parent.send_message(TopicMessage::TroubleChanged);
    }

    /// Bytes that must wait for an idle line to take them: any, unless it is to wait for more.
    fn least_to_start_with(&mut self, now: Instant) -> u64 {
        let inbox = &self.setup.partition.inbox;
        // Nothing more will come to one that is closed.
        let Some(linger) = self.setup.linger.filter(|_| !inbox.is_closed()) else { return 1 };
        if self.linger_until.is_none() && inbox.ledger().queuing > 0 {
            self.linger_until = Some(now + linger.time);
        }
        match self.linger_until {
            Some(until) if until > now => linger.bytes.max(1) as u64,
            _ => 1,
        }
    }

    /// Leaves to a successor what it held when it panicked.
    fn leave_behind(&mut self) {
        if !self.setup.core.stored {
            return;
        }
        let mut left = self.setup.partition.left_behind.lock();
        for (batch, _) in self.core.abandon() {
            let stamp = batch.sealed.identity();
            if let Some(builder) = batch.records() {
                let Outgoing { obligations, expires_at, .. } = batch;
                left.batches.push((stamp, Taken { builder, obligations, expires_at }));
                left.unsealed = true;
            }
        }
    }

    /// Orders the stamps of all batches held to be made durable.
    fn write_seals(&self, generation: u64) {
        let Some((buffer, place)) = &self.setup.store else { return };
        let seal = |batch: &Outgoing| Seal {
            stamp: batch.sealed.identity(),
            numbers: batch.obligations.numbers().to_vec(),
        };
        let seals = self.core.batches().map(seal).collect();
        // This actor and no successor of it, which counts anew.
        let actor = self.setup.partition.actor.actor();
        let then = move || {
            if let Some(actor) = actor {
                let _ = actor.send_message(PartitionMessage::Sealed(generation));
            }
        };
        buffer.seal(place.clone(), seals, Box::new(then));
    }

    fn ask_for_producer(&self, leader: i32, id: i64) {
        let (client, topic) = (self.setup.dispatchers.client().clone(), self.setup.topic.clone());
        let partition = self.setup.partition.clone();
        tokio::spawn(async move {
            let known = knows_producer(&client, leader, &topic, partition.index, id).await;
            partition.actor.tell(PartitionMessage::ProducerKnown(known));
        });
    }

    fn carry_out(&mut self, output: Output<Outgoing, Bytes>) {
        let setup = &self.setup;
        let (topic, partition) = (&setup.topic, &setup.partition);
        match output {
            Output::Send { attempt, leader, wire, records, again } => {
                if again {
                    partition.inbox.note_retried(u64::from(records));
                }
                let dispatcher = match &self.dispatcher {
                    Some((broker, dispatcher)) if *broker == leader => dispatcher.clone(),
                    _ => {
                        let dispatcher = setup.dispatchers.get(leader, setup.request);
                        self.dispatcher = Some((leader, dispatcher.clone()));
                        dispatcher
                    }
                };
                let sink = self.sink.clone();
                dispatcher.send(ProduceItem::new(topic.clone(), partition.index, wire, attempt, sink));
            }
            Output::Complete { batch, fate } => self.complete(batch, fate),
            Output::NeedMetadata => {
                let _ = setup.parent.send_message(TopicMessage::NeedMetadata);
            }
            Output::NeedProducerId { instead_of } => {
                let partition = partition.index;
                let _ = setup.parent.send_message(TopicMessage::NeedProducerId { partition, instead_of });
            }
            Output::WriteSeals { generation } => self.write_seals(generation),
            Output::AskForProducer { leader, id } => self.ask_for_producer(leader, id),
            Output::LimitBatchBytes(bytes) => {
                tracing::info!(%topic, partition = partition.index, bytes, "batches are made smaller");
                partition.inbox.limit_batch_bytes(bytes);
                self.bulk = self.bulk.min(bytes);
            }
            Output::PossibleDuplicates(records) => {
                tracing::warn!(
                    %topic,
                    partition = partition.index,
                    records,
                    "kafka no longer knows our producer id: records may be there twice"
                );
                partition.inbox.note_possible_duplicates(u64::from(records));
            }
        }
    }

    fn complete(&mut self, batch: Outgoing, fate: Fate) {
        let (end, why, code) = match fate {
            Fate::Success => {
                batch.obligations.end(End::Success);
                if std::mem::take(&mut self.refuses) {
                    let _ = self.setup.parent.send_message(TopicMessage::TroubleChanged);
                }
                return;
            }
            Fate::Refused { reason, code } => (End::Failed(reason), describe(code), Some(code)),
            Fate::RetriesUsedUp { code } => {
                let why = format!("max_retries: {}", describe(code));
                (End::Failed(ReasonCode::UnspecifiedError), why, Some(code))
            }
            Fate::Expired => (End::Expired(ReasonCode::UnspecifiedError), TOO_OLD.to_owned(), None),
        };
        let (topic, partition) = (&self.setup.topic, self.setup.partition.index);
        let records = Batch::records(&batch);
        tracing::warn!(%topic, partition, records, why, "giving up on records");
        self.bury_batch(batch, end, &why, code);
        if code.is_some() {
            self.refuses = true;
            self.setup.partition.refusals.add(u64::from(records), &why);
            let _ = self.setup.parent.send_message(TopicMessage::TroubleChanged);
        }
    }

    fn bury_batch(&self, batch: Outgoing, end: End, why: &str, code: Option<i16>) {
        let buried = self.setup.dead_letters.is_some() && !matches!(end, End::Stopped(_));
        match buried.then(|| batch.records()).flatten() {
            Some(records) => self.dead_letter(&records, batch.obligations, end, why, code),
            None => batch.obligations.end(end),
        }
    }

    /// Ends what is owed, after the records have gone to the dead-letter topic where there is one.
    fn dead_letter(
        &self,
        records: &BatchBuilder,
        obligations: Obligations,
        end: End,
        why: &str,
        code: Option<i16>,
    ) {
        let setup = &self.setup;
        match &setup.dead_letters {
            // Without records, they could not be read.
            Some(letters) if !matches!(end, End::Stopped(_)) && !records.is_empty() => {
                let partition = Some(setup.partition.index);
                let cause = Cause { topic: &setup.topic, partition, reason: why, code };
                letters.dead_letter(cause, records, obligations, end);
            }
            _ => obligations.end(end),
        }
    }

    fn give_up(&mut self, end: End, why: &str) {
        for (batch, _) in self.core.abandon() {
            self.bury_batch(batch, end, why, None);
        }
        let buried = self.setup.dead_letters.is_some() && !matches!(end, End::Stopped(_));
        while let Some(taken) = self.setup.partition.inbox.take_in_any_case(buried) {
            self.dead_letter(&taken.builder, taken.obligations, end, why, None);
        }
    }

    /// The partition is gone.
    fn gone(&mut self, routes: &Routes, to: &Partition, keyed: bool) {
        let inbox = self.setup.partition.inbox.clone();
        let held = |inbox: &PartitionInbox| {
            let ledger = inbox.ledger();
            ledger.queuing + ledger.inflight
        };
        let before = held(&inbox);
        if keyed {
            let batches = self.core.abandon().into_iter().filter_map(|(batch, _)| {
                let records = batch.records();
                if records.is_none() {
                    tracing::error!(topic = %self.setup.topic, "a batch cannot be read again: its records fail");
                }
                // Dropped, its obligations end as failed.
                Some((records?, batch.obligations))
            });
            routes.rehome_keyless(batches.collect(), &inbox, to);
            to.actor.wake();
        } else {
            self.move_to(routes, to);
        }
        let given_up = held(&inbox);
        if before > 0 {
            tracing::warn!(
                topic = %self.setup.topic,
                partition = self.setup.partition.index,
                moved = before - given_up,
                given_up,
                dead_letters = self.setup.dead_letters.is_some(),
                "records of a partition that is gone"
            );
        }
        self.give_up(End::Failed(ReasonCode::ImplementationSpecificError), GONE);
    }

    /// In order; what cannot be taken apart again is given up.
    fn move_to(&mut self, routes: &Routes, to: &Partition) {
        for (batch, _) in self.core.abandon() {
            match batch.records() {
                Some(builder) => routes.rehome(builder, batch.obligations, to),
                None => batch.obligations.end(End::Failed(ReasonCode::ImplementationSpecificError)),
            }
        }
        routes.rehome_waiting(&self.setup.partition.inbox, to);
        to.actor.wake();
    }

    fn next_deadline(&self) -> Option<Instant> {
        let now = Instant::now();
        // A batch that the line cannot take now waits for an event, not for the end of a wait that is over.
        let linger = self.linger_until.filter(|until| *until > now);
        // There is no event for the first record while the line is not hungry: it is looked for in time.
        let expiry = self
            .setup
            .max_age
            .map(|max_age| self.setup.partition.inbox.next_expiry().unwrap_or(now + max_age));
        [self.core.deadline(), linger, expiry].into_iter().flatten().min()
    }

    fn set_timer(&mut self, myself: &ActorRef<PartitionMessage>) {
        let wanted = self.next_deadline();
        // One that fires early does no harm, and is not worth a new task.
        let enough = match (&self.timer, wanted) {
            (Some((at, _)), Some(wanted)) => *at <= wanted,
            (None, None) => true,
            _ => false,
        };
        if enough {
            return;
        }
        if let Some((_, timer)) = self.timer.take() {
            timer.abort();
        }
        if let Some(at) = wanted {
            let myself = myself.clone();
            let timer = tokio::spawn(async move {
                tokio::time::sleep_until(at.into()).await;
                let _ = myself.send_message(PartitionMessage::Tick);
            });
            self.timer = Some((at, timer));
        }
    }

    /// Publishes why it is not moving, when that changes.
    fn show_trouble(&mut self) {
        let partition = &self.setup.partition;
        let leader = self.core.leader();
        partition.leader.store(leader.unwrap_or(-1), Ordering::Relaxed);
        let trouble: Option<Arc<str>> = match self.core.trouble() {
            None => None,
            // How far off a clock is changes from one refusal to the next.
            Some(trouble @ Trouble::Code(INVALID_TIMESTAMP)) => match &self.told_trouble {
                Some(told) if self.told == Some(trouble) => Some(told.clone()),
                _ => Some(self.timestamps.describe().into()),
            },
            Some(Trouble::Code(code)) => Some(describe(code).into()),
            Some(Trouble::Lost) => {
                Some(self.lost_because.clone().unwrap_or_else(|| "the connection was lost".into()))
            }
        };
        partition.up.store(trouble.is_none() && leader.is_some(), Ordering::Relaxed);
        if trouble != self.told_trouble {
            if let Some(reason) = &trouble {
                tracing::warn!(topic = %self.setup.topic, partition = partition.index, %reason, "sending is held up");
            }
            let passes = match self.core.trouble() {
                Some(Trouble::Code(code)) => is_outage(code),
                Some(Trouble::Lost) => true,
                None => false,
            };
            partition.trouble_passes.store(passes, Ordering::Relaxed);
            partition.trouble.lock().clone_from(&trouble);
            self.told_trouble = trouble;
            self.told = self.core.trouble();
            let _ = self.setup.parent.send_message(TopicMessage::TroubleChanged);
        }
    }
}
