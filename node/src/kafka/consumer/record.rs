//! Records that a consumer hands on, and their receiver.

use std::sync::Arc;

use causeway_protocol::kafka::batch::{HeaderIter, RecordRef, TimestampType as BatchTimestampType};

use crate::flow::{Room, Ticket, WakeList};

/// Where a record's timestamp is from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TimestampType {
    /// The producer's clock.
    Create,
    /// The broker's clock, when the record was appended.
    Append,
    /// It has none.
    Undefined,
}

/// A record read from Kafka, borrowed from its batch.
#[derive(Debug, Clone)]
pub struct ConsumedRecord<'a> {
    /// Topic.
    pub topic: &'a str,
    /// Partition.
    pub partition: i32,
    /// Offset in the partition.
    pub offset: i64,
    /// Milliseconds since the Unix epoch; -1 where there is none.
    pub timestamp: i64,
    /// Whose timestamp.
    pub timestamp_type: TimestampType,
    /// Key, may be null.
    pub key: Option<&'a [u8]>,
    /// Value, may be null.
    pub value: Option<&'a [u8]>,
    headers: HeaderIter<'a>,
}

impl<'a> ConsumedRecord<'a> {
    pub(super) fn new(
        topic: &'a str,
        partition: i32,
        record: &RecordRef<'a>,
        clock: BatchTimestampType,
    ) -> Self {
        let timestamp_type = match clock {
            _ if record.timestamp < 0 => TimestampType::Undefined,
            BatchTimestampType::CreateTime => TimestampType::Create,
            BatchTimestampType::LogAppendTime => TimestampType::Append,
        };
        Self {
            topic,
            partition,
            offset: record.offset,
            timestamp: record.timestamp,
            timestamp_type,
            key: record.key,
            value: record.value,
            headers: record.headers(),
        }
    }

    /// The headers in order, with duplicates and nulls; a name is bytes that should be UTF-8.
    pub fn headers(&self) -> HeaderIter<'a> {
        self.headers.clone()
    }
}

/// Answer to a record that was offered.
pub enum Offer {
    /// Taken: its ticket will be completed.
    Taken,
    /// Not (fully) taken. The same record is offered again when there is room, and now and then in any
    /// case.
    Full(Room),
}

/// Takes the records of a consumer's topics.
pub trait RecordSink: Send + Sync {
    /// A taker for one partition, for as long as the partition is ours. It is dropped when the partition is
    /// taken away, possibly between two offers of one record.
    fn open(self: Arc<Self>, topic: &Arc<str>, partition: i32) -> Box<dyn PartitionSink>;
}

/// Takes the records of one partition, one after another.
pub trait PartitionSink: Send {
    /// Offers a record. After [`Offer::Full`] the next call is about the same record and the same ticket,
    /// so a sink keeps how far it came in itself. After [`Offer::Taken`] the ticket must be completed once,
    /// now or later, with any outcome: only then is the record's offset committed.
    ///
    /// Actors that must be woken go on `wakes`, once for many records.
    fn offer(&mut self, record: &ConsumedRecord<'_>, ticket: &Ticket, wakes: &mut WakeList) -> Offer;
}
