//! A consumer bridge: Kafka records are rendered and published to MQTT.
//!
//! Per record: render topic and payload by the mapping of its Kafka topic, publish through the router, and
//! let a [`HandOver`] follow it. Its ticket, and with it the record's offset, is complete when every session
//! and sink that it matched has it. A record that cannot be published (its MQTT topic renders to something
//! that is no topic name, or is reserved) is counted as failed and let go: it never blocks its partition.
//!
//! Books, per partition: `received` and `matched` count records that were published, `inflight` those whose
//! hand-over is not complete, `success` and `failed` how they ended.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::{Arc, Weak};
use std::time::{SystemTime, UNIX_EPOCH};

use causeway_protocol::mqtt::{PublishProperties, QoS, ReasonCode, topic};
use parking_lot::Mutex;
use smallvec::SmallVec;

use super::hops;
use super::member_id::{former_member_id, member_id};
use super::service::{BridgeContext, BridgePartition, Status};
use crate::config::{self, ConsumerBridgeConfig, TopicMapping, WhenNoSubscriber};
use crate::flow::ledger::Ledger;
use crate::flow::{
    AckSink, HandOver, Message, Origin, Outcome, Room, SequenceRange, Standstill, Ticket, WakeList,
};
use crate::kafka::consumer::{
    ConsumedRecord, ConsumerHandle, ConsumerOptions, ConsumerStatus, GroupConsumer, Leave, Offer,
    OffsetReset, PartitionSink, RecordSink, TimestampType,
};
use crate::mqtt::{PublishProgress, Published, Router, reserved_prefix};
use crate::template::Template;
use crate::template::record::{Encoding, HeaderPair, RecordFacts, RecordScope, RecordSlot};
use crate::throttle::Doublings;

type Books = Arc<Mutex<Ledger>>;
/// The client that the bridge waits for, as long as that is so.
type Waits = Arc<Mutex<Weak<Standstill>>>;
type Places = Arc<Mutex<BTreeMap<(Arc<str>, i32), Books>>>;

/// How the records of one Kafka topic become messages.
#[derive(Debug)]
struct Mapping {
    topic: Template<RecordSlot>,
    payload: Template<RecordSlot>,
    qos: QoS,
}

/// State that all partitions of a bridge share.
struct Program {
    mappings: BTreeMap<String, Mapping>,
    key_encoding: Encoding,
    value_encoding: Encoding,
    origin: Arc<Origin>,
    router: Arc<Router>,
    places: Places,
    waits: Waits,
    /// A record waits as long as its topic has no receiver.
    hold: bool,
    bridge: Box<str>,
    /// Records of which a template wanted a member and which are not JSON.
    not_json: Doublings,
    /// Records whose MQTT topic cannot be published to.
    unpublishable: Doublings,
}

impl Mapping {
    fn compile(config: &TopicMapping) -> Self {
        Self {
            topic: Template::compile(&config.mqtt_topic),
            payload: Template::compile(&config.payload_template),
            qos: match config.qos {
                0 => QoS::AtMostOnce,
                1 => QoS::AtLeastOnce,
                _ => QoS::ExactlyOnce,
            },
        }
    }
}

fn encoding(config: config::Encoding) -> Encoding {
    match config {
        config::Encoding::None => Encoding::None,
        config::Encoding::Base64 => Encoding::Base64,
    }
}

/// A consumer bridge at work.
pub(super) struct RunningConsumer {
    handle: ConsumerHandle,
    places: Places,
    waits: Waits,
}

impl RunningConsumer {
    /// Joins the bridge's group and begins to publish what it reads.
    pub(super) async fn start(
        name: &str,
        config: &ConsumerBridgeConfig,
        surroundings: &BridgeContext,
        supervisor: ractor::ActorCell,
    ) -> Result<Self, String> {
        let node = &surroundings.node;
        let client = config
            .connection
            .client_options(&format!("kafka_consumer:{name}:{node}"), None)
            .map_err(|error| error.to_string())?;
        let (places, waits) = (Places::default(), Waits::default());
        let program = Program {
            mappings: config
                .topic_mapping
                .iter()
                .map(|mapping| (mapping.kafka_topic.clone(), Mapping::compile(mapping)))
                .collect(),
            key_encoding: encoding(config.key_encoding_mode),
            value_encoding: encoding(config.value_encoding_mode),
            origin: Arc::new(Origin {
                client_id: format!("kafka_consumer:{name}").into(),
                username: None,
                peer: None,
            }),
            router: surroundings.router.clone(),
            places: places.clone(),
            waits: waits.clone(),
            hold: config.when_no_subscriber == WhenNoSubscriber::Hold,
            bridge: name.into(),
            not_json: Doublings::default(),
            unpublishable: Doublings::default(),
        };
        let topics = config.topic_mapping.iter().map(|mapping| Arc::from(mapping.kafka_topic.as_str()));
        let options = ConsumerOptions {
            group_instance_id: Some(member_id(None, node, name).into()),
            former_instance_id: Some(former_member_id(node).into()),
            offset_reset: match config.kafka.offset_reset_policy {
                config::OffsetReset::Latest => OffsetReset::Latest,
                config::OffsetReset::Earliest => OffsetReset::Earliest,
            },
            commit_interval: config.kafka.offset_commit_interval_seconds,
            max_batch_bytes: usize::try_from(config.kafka.max_batch_bytes.bytes()).unwrap_or(usize::MAX),
            max_wait: config.kafka.max_wait_time,
            max_rejoin_attempts: config.kafka.max_rejoin_attempts,
            ..ConsumerOptions::new(config.group_id(name), topics)
        };
        let sink = Arc::new(ConsumerBridge(Arc::new(program)));
        let handle =
            GroupConsumer::start(surroundings.clients.client(&client), options, sink, Some(supervisor))
                .await
                .map_err(|error| error.to_string())?;
        Ok(Self { handle, places, waits })
    }

    /// The actor behind it.
    pub(super) fn actor_id(&self) -> ractor::ActorId {
        self.handle.actor_id()
    }

    /// Makes the actor panic.
    #[cfg(test)]
    pub(super) fn panic(&self) {
        self.handle.panic();
    }

    /// How it is doing.
    pub(super) fn status(&self) -> Status {
        match self.handle.status() {
            ConsumerStatus::Connected => Status::Connected,
            ConsumerStatus::Connecting { reason } => Status::Connecting(reason),
            ConsumerStatus::Disconnected { reason } => Status::Disconnected(reason),
        }
    }

    /// The connected client that it waits for, in words.
    pub(super) fn waits(&self) -> Option<String> {
        let standstill = self.waits.lock().upgrade()?;
        let seconds = standstill.since.elapsed().as_secs();
        Some(format!("waits for client {:?}, which has taken nothing for {seconds} s", standstill.client_id))
    }

    /// Its books.
    pub(super) fn ledger(&self) -> Ledger {
        let mut sum = Ledger::default();
        for books in self.places.lock().values() {
            sum += *books.lock();
        }
        sum
    }

    /// Its books by partition.
    pub(super) fn places(&self) -> Vec<BridgePartition> {
        let places = self.places.lock();
        let row = |((topic, partition), books): (&(Arc<str>, i32), &Books)| BridgePartition {
            topic: topic.to_string(),
            partition: *partition,
            ledger: *books.lock(),
            oldest: None,
        };
        places.iter().map(row).collect()
    }

    /// Stops reading, waits a bounded time for what was published to be handed over, and commits.
    /// Answers its last books.
    pub(super) async fn stop(self, leave: Leave) -> Ledger {
        self.handle.stop(leave).await;
        let mut sum = Ledger::default();
        for books in self.places.lock().values() {
            sum += *books.lock();
        }
        sum
    }
}

struct ConsumerBridge(Arc<Program>);

impl RecordSink for ConsumerBridge {
    fn open(self: Arc<Self>, topic: &Arc<str>, partition: i32) -> Box<dyn PartitionSink> {
        let books = self.0.places.lock().entry((topic.clone(), partition)).or_default().clone();
        Box::new(PartitionTaker {
            program: self.0.clone(),
            books,
            booked: None,
            progress: PublishProgress::default(),
            payload: Vec::new(),
            topic: String::new(),
            begun: None,
            audience: Room::default(),
        })
    }
}

/// A header whose name was made valid UTF-8.
type NamedHeader<'a> = (Cow<'a, str>, Option<&'a [u8]>);

/// Takes the records of one partition.
struct PartitionTaker {
    program: Arc<Program>,
    books: Books,
    booked: Option<Arc<Booked>>,
    progress: PublishProgress,
    /// The record that is being published, rendered.
    payload: Vec<u8>,
    topic: String,
    begun: Option<Begun>,
    /// Where a record without a subscriber waits: never notified.
    audience: Room,
}

/// Why a record cannot be published.
#[derive(Debug, thiserror::Error)]
enum Unpublishable {
    #[error(transparent)]
    NoTopicName(#[from] topic::TopicError),
    #[error("topic is not UTF-8")]
    NotUtf8,
    #[error("topics that begin with {0} are reserved")]
    Reserved(&'static str),
}

/// A publication that a receiver has no room for yet.
struct Begun {
    hand_over: Arc<HandOver>,
    received_at: i64,
    hops: u8,
    /// A receiver may have it already.
    under_way: bool,
}

/// A partition's tickets on their way back, past its books.
struct Booked {
    books: Books,
    waits: Waits,
    inner: Arc<dyn AckSink>,
}

impl AckSink for Booked {
    fn acknowledge(&self, ranges: &[SequenceRange], outcome: Outcome) {
        let count: u64 = ranges.iter().map(|range| u64::from(range.count)).sum();
        {
            let mut books = self.books.lock();
            books.inflight -= count;
            match outcome {
                Outcome::Success => books.success += count,
                Outcome::Failed(_) => books.failed += count,
            }
        }
        self.inner.acknowledge(ranges, outcome);
    }

    fn waits_for(&self, standstill: &Arc<Standstill>) -> bool {
        let waits = self.inner.waits_for(standstill);
        if waits {
            *self.waits.lock() = Arc::downgrade(standstill);
        }
        waits
    }
}

/// A record whose publication panics has not been handed over, whatever those who have it say.
struct AbandonedInPanic(Arc<HandOver>);

impl Drop for AbandonedInPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.abandon();
        }
    }
}

impl PartitionTaker {
    /// The ticket with the books in front of it.
    fn booked(&mut self, ticket: &Ticket) -> Ticket {
        let booked = match &self.booked {
            Some(booked) if Arc::ptr_eq(&booked.inner, &ticket.sink) => booked.clone(),
            _ => {
                let booked = Arc::new(Booked {
                    books: self.books.clone(),
                    waits: self.program.waits.clone(),
                    inner: ticket.sink.clone(),
                });
                self.booked.insert(booked).clone()
            }
        };
        Ticket::new(booked, ticket.sequence)
    }

    /// Renders the record's topic and payload. An error where nothing may be published to the topic.
    fn render(&mut self, record: &ConsumedRecord<'_>, mapping: &Mapping) -> Result<(), Unpublishable> {
        let headers = record.headers().filter(|(key, _)| !hops::is_header(key));
        let names: SmallVec<[NamedHeader<'_>; 8]> =
            headers.map(|(key, value)| (String::from_utf8_lossy(key), value)).collect();
        let headers: SmallVec<[HeaderPair<'_>; 8]> =
            names.iter().map(|(key, value)| (key.as_ref(), *value)).collect();
        let facts = RecordFacts {
            topic: record.topic,
            offset: record.offset,
            timestamp: record.timestamp,
            timestamp_type: match record.timestamp_type {
                TimestampType::Create => "create",
                TimestampType::Append => "append",
                TimestampType::Undefined => "undefined",
            },
            key: record.key,
            value: record.value,
            headers: &headers,
        };
        let scope = RecordScope::new(facts, self.program.key_encoding, self.program.value_encoding);
        self.payload.clear();
        mapping.payload.render(&scope, &mut self.payload);
        let mut name = std::mem::take(&mut self.topic).into_bytes();
        name.clear();
        mapping.topic.render(&scope, &mut name);
        if scope.not_json()
            && let Some(records) = self.program.not_json.count()
        {
            tracing::warn!(
                bridge = &*self.program.bridge,
                records,
                kafka_topic = record.topic,
                partition = record.partition,
                offset = record.offset,
                "a template asks for a member of a record's text that is not JSON: it renders as nothing"
            );
        }
        self.topic = String::from_utf8(name).map_err(|_| Unpublishable::NotUtf8)?;
        topic::validate_topic_name(&self.topic, topic::DEFAULT_MAX_LEVELS)?;
        reserved_prefix(&self.topic).map_or(Ok(()), |prefix| Err(Unpublishable::Reserved(prefix)))
    }

    /// Logs a record that is not published: the first one of the bridge and then each doubling of their
    /// number.
    fn warn_unpublishable(&self, record: &ConsumedRecord<'_>, why: &Unpublishable) {
        let Some(records) = self.program.unpublishable.count() else { return };
        tracing::warn!(
            bridge = &*self.program.bridge,
            records,
            kafka_topic = record.topic,
            partition = record.partition,
            offset = record.offset,
            %why,
            "a record is not published and counts as failed: mqtt_topic renders to a topic that it may not have"
        );
    }
}

impl PartitionSink for PartitionTaker {
    fn offer(&mut self, record: &ConsumedRecord<'_>, ticket: &Ticket, wakes: &mut WakeList) -> Offer {
        let program = self.program.clone();
        // A topic that is not mapped was never subscribed to.
        let Some(mapping) = program.mappings.get(record.topic) else {
            ticket.sink.acknowledge(&[SequenceRange { first: ticket.sequence, count: 1 }], Outcome::Success);
            return Offer::Taken;
        };
        let mut begun = if let Some(begun) = self.begun.take() {
            begun
        } else {
            let hand_over = HandOver::new(self.booked(ticket));
            if let Err(why) = self.render(record, mapping) {
                self.warn_unpublishable(record, &why);
                hand_over.fail(ReasonCode::TopicNameInvalid);
                self.count();
                return Offer::Taken;
            }
            let hops = hops::of_record(record.headers());
            Begun { hand_over, received_at: now_ms(), hops, under_way: false }
        };
        if program.hold && !begun.under_way && program.router.find_route(&self.topic).is_empty() {
            // There is no event for a subscription yet; the record is offered again now and then in any case.
            self.begun = Some(begun);
            return Offer::Full(self.audience.clone());
        }
        begun.under_way = true;
        let _unfinished = AbandonedInPanic(begun.hand_over.clone());
        let message = Message {
            origin: &program.origin,
            topic: &self.topic,
            payload: &self.payload,
            qos: mapping.qos,
            retain: false,
            dup: false,
            properties: &PublishProperties::default(),
            received_at: begun.received_at,
            hops: begun.hops,
        };
        match program.router.publish(&message, Some(&begun.hand_over), &mut self.progress, wakes) {
            Published::Done { .. } => {
                self.count();
                Offer::Taken
            }
            Published::Full(room) => {
                if let Some(standstill) = self.progress.standstill() {
                    *program.waits.lock() = Arc::downgrade(&standstill);
                }
                self.begun = Some(begun);
                Offer::Full(room)
            }
        }
    }
}

impl PartitionTaker {
    /// Books a record that was published; its hand-over moves it on.
    fn count(&self) {
        let mut books = self.books.lock();
        books.received += 1;
        books.matched += 1;
        books.inflight += 1;
    }
}

impl Drop for PartitionTaker {
    fn drop(&mut self) {
        // Published to some and not to all: the next owner of the partition publishes it again.
        if let Some(begun) = &self.begun {
            begun.hand_over.abandon();
        }
    }
}

fn now_ms() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_millis() as i64)
}
