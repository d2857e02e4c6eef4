//! The dead-letter topic of a bridge: records that were given up for good, with the reason in their headers.
//!
//! A dead letter is the record as it was (key, value, headers) with the time at which it was given up as its
//! timestamp, or none where Kafka does not take that, and with more headers behind its own:
//!
//! | header | value |
//! |---|---|
//! | `dead_letter.bridge` | name of the bridge |
//! | `dead_letter.topic` | Kafka topic it was meant for |
//! | `dead_letter.partition` | partition of it, where one was chosen |
//! | `dead_letter.reason` | in words |
//! | `dead_letter.error_code` | Kafka's error code, where Kafka gave one |
//! | `dead_letter.time` | when it was given up, milliseconds since 1970 |
//! | `dead_letter.timestamp` | timestamp of the record, milliseconds since 1970 |
//!
//! Invariants:
//! * The publisher of a record hears of its end when its dead letter is in Kafka, or lost, or [`PATIENCE`]
//!   is over: a dead-letter topic that does not work holds nothing up for longer.
//! * A dead letter is not counted again in the books of its bridge: it has its own two numbers,
//!   [`DeadLetters::written`] and [`DeadLetters::lost`].
//! * What waits for the dead-letter topic is bounded like any inbox; what does not fit is lost, and counted.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use causeway_protocol::kafka::batch::{BatchBuilder, Header, Record};
use causeway_protocol::mqtt::ReasonCode;
use parking_lot::Mutex;
use smallvec::SmallVec;

use super::dispatcher::Dispatchers;
use super::obligations::{End, Obligations};
use super::timestamps::{TimestampSource, now_ms};
use super::topic_producer::{TopicProducer, TopicProducerHandle, TopicProducerOptions};
use crate::flow::{Accepted, AckSink, Outcome, SequenceRange, Ticket, WakeList};

/// How long the publisher of a record that was given up waits for its dead letter to be written. Longer than
/// a leader election; short beside the patience of MQTT clients.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// Most bytes that wait for a partition of the dead-letter topic.
const BYTES: usize = 64 * 1024 * 1024;

/// Why a record was given up.
#[derive(Debug, Clone, Copy)]
pub struct Cause<'a> {
    /// Kafka topic it was meant for.
    pub topic: &'a str,
    /// Partition of it.
    pub partition: Option<i32>,
    /// In words.
    pub reason: &'a str,
    /// Kafka's error code.
    pub code: Option<i16>,
}

/// Writer of dead letters to the dead-letter topic of a bridge.
pub struct DeadLetters {
    bridge: Arc<str>,
    producer: TopicProducerHandle,
    runtime: tokio::runtime::Handle,
    counts: Arc<Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    written: AtomicU64,
    lost: AtomicU64,
}

impl std::fmt::Debug for DeadLetters {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DeadLetters").field("counts", &self.counts).finish_non_exhaustive()
    }
}

impl DeadLetters {
    /// Starts the producer of the dead-letter topic that `options` name. Must be called within a tokio
    /// runtime.
    pub fn start(bridge: &str, dispatchers: Arc<Dispatchers>, options: TopicProducerOptions) -> Arc<Self> {
        let options = TopicProducerOptions {
            per_partition_limit: options.per_partition_limit.min(BYTES),
            // A dead letter must not be refused for what its record was refused for.
            timestamps: TimestampSource::Replaceable,
            ..options
        };
        Arc::new(Self {
            bridge: bridge.into(),
            producer: TopicProducer::start_shared(dispatchers, options),
            runtime: tokio::runtime::Handle::current(),
            counts: Arc::default(),
        })
    }

    /// Dead letters that are in Kafka.
    pub fn written(&self) -> u64 {
        self.counts.written.load(Ordering::Relaxed)
    }

    /// Dead letters that could not be written.
    pub fn lost(&self) -> u64 {
        self.counts.lost.load(Ordering::Relaxed)
    }

    /// The producer of the dead-letter topic.
    pub fn producer(&self) -> &TopicProducerHandle {
        &self.producer
    }

    /// Writes dead letters of a batch, then ends what is owed for it.
    pub fn dead_letter(&self, cause: Cause<'_>, records: &BatchBuilder, owed: Obligations, end: End) {
        let burial = self.burial(Owed::Batch(owed, end));
        let mut wakes = WakeList::default();
        for record in records.records().flatten() {
            let text = |bytes| std::str::from_utf8(bytes).unwrap_or_default();
            let headers: SmallVec<[Header<'_>; 8]> =
                record.headers().map(|(key, value)| Header { key: text(key), value }).collect();
            let record = Record {
                timestamp: record.timestamp,
                key: record.key,
                value: record.value,
                headers: &headers,
            };
            self.write(&burial, cause, &record, &mut wakes);
        }
        wakes.wake_all();
        self.close(burial);
    }

    /// Writes the dead letter of a message that no batch saw; its publisher hears `reason`, by the ticket or
    /// at once.
    pub fn bury_message(
        &self,
        cause: Cause<'_>,
        record: &Record<'_>,
        reason: ReasonCode,
        ticket: Option<&Ticket>,
        wakes: &mut WakeList,
    ) -> Accepted {
        let outcome = Outcome::Failed(reason);
        let Some(ticket) = ticket else {
            let burial = self.burial(Owed::Nothing);
            self.write(&burial, cause, record, wakes);
            return Accepted::Done(outcome);
        };
        let burial = self.burial(Owed::Message(ticket.clone(), reason));
        if !self.write(&burial, cause, record, wakes) {
            // It is told here.
            burial.owed.lock().take();
            return Accepted::Done(outcome);
        }
        self.close(burial);
        Accepted::Taken
    }

    /// Writes what waits for at most `drain`, and stops.
    pub async fn stop(&self, drain: Duration) {
        let report = self.producer.stop(drain).await;
        if report.given_up > 0 {
            tracing::warn!(
                bridge = &*self.bridge,
                records = report.given_up,
                "dead letters are lost at the stop"
            );
        }
    }

    fn burial(&self, owed: Owed) -> Arc<Burial> {
        Arc::new(Burial {
            owed: Mutex::new(Some(owed)),
            left: AtomicU64::new(1),
            counts: self.counts.clone(),
            bridge: self.bridge.clone(),
        })
    }

    /// False where it is lost at once.
    fn write(
        &self,
        burial: &Arc<Burial>,
        cause: Cause<'_>,
        record: &Record<'_>,
        wakes: &mut WakeList,
    ) -> bool {
        let partition = cause.partition.map(|partition| partition.to_string());
        let code = cause.code.map(|code| code.to_string());
        let now = now_ms();
        let (time, timestamp) = (now.to_string(), record.timestamp.to_string());
        let mut headers: SmallVec<[Header<'_>; 16]> = SmallVec::from_slice(record.headers);
        for (key, value) in [
            ("dead_letter.bridge", Some(&*self.bridge)),
            ("dead_letter.topic", Some(cause.topic)),
            ("dead_letter.partition", partition.as_deref()),
            ("dead_letter.reason", Some(cause.reason)),
            ("dead_letter.error_code", code.as_deref()),
            ("dead_letter.time", Some(&time)),
            ("dead_letter.timestamp", Some(&timestamp)),
        ] {
            headers.extend(value.map(|value| Header { key, value: Some(value.as_bytes()) }));
        }
        let record = Record { timestamp: now, headers: &headers, ..*record };
        let sequence = burial.left.fetch_add(1, Ordering::AcqRel);
        let ticket = Ticket::new(burial.clone(), sequence);
        match self.producer.append(&record, Some(&ticket), wakes) {
            Accepted::Taken => true,
            Accepted::Done(_) | Accepted::Full(_) => {
                burial.acknowledge(
                    &[SequenceRange { first: sequence, count: 1 }],
                    Outcome::Failed(ReasonCode::QuotaExceeded),
                );
                false
            }
        }
    }

    /// No further records; the end comes with the last answer, or when the time is over.
    fn close(&self, burial: Arc<Burial>) {
        burial.one_less(1);
        if burial.owed.lock().is_some() {
            self.runtime.spawn(async move {
                tokio::time::sleep(PATIENCE).await;
                burial.end();
            });
        }
    }
}

enum Owed {
    Batch(Obligations, End),
    Message(Ticket, ReasonCode),
    Nothing,
}

/// Outcomes owed to publishers until their dead letters are written.
struct Burial {
    owed: Mutex<Option<Owed>>,
    /// Dead letters without an answer; one more while they are being made.
    left: AtomicU64,
    counts: Arc<Counts>,
    bridge: Arc<str>,
}

impl Burial {
    fn one_less(&self, count: u64) {
        if self.left.fetch_sub(count, Ordering::AcqRel) == count {
            self.end();
        }
    }

    fn end(&self) {
        let owed = self.owed.lock().take();
        match owed {
            Some(Owed::Batch(obligations, end)) => obligations.end(end),
            Some(Owed::Message(ticket, reason)) => {
                let range = SequenceRange { first: ticket.sequence, count: 1 };
                ticket.sink.acknowledge(&[range], Outcome::Failed(reason));
            }
            Some(Owed::Nothing) | None => {}
        }
    }
}

impl AckSink for Burial {
    fn acknowledge(&self, ranges: &[SequenceRange], outcome: Outcome) {
        let count: u64 = ranges.iter().map(|range| u64::from(range.count)).sum();
        if outcome == Outcome::Success {
            self.counts.written.fetch_add(count, Ordering::Relaxed);
        } else {
            let before = self.counts.lost.fetch_add(count, Ordering::Relaxed);
            // Not each of a flood: the first, then with every doubling.
            if before == 0 || (before + count).ilog2() != before.ilog2() {
                tracing::warn!(
                    bridge = &*self.bridge,
                    lost = before + count,
                    "dead letters cannot be written: their records are lost, and counted as failed"
                );
            }
        }
        self.one_less(count);
    }
}
