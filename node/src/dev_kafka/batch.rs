//! Work of a broker on a record batch: checks it, stamps offset and leader epoch into it, and finds a record
//! by time.
//!
//! Records stay opaque but for the search by time. Offset and epoch lie before the checksummed part, so a
//! batch is stored as it came; log-append time changes checksummed bytes, so its CRC is renewed.

use bytes::{Bytes, BytesMut};
use causeway_protocol::kafka::batch::{self, Batch, BatchHeader, HEADER_LEN, TimestampType};

/// Where the checksummed part of a batch begins.
const CRC_START: usize = 21;
const LOG_APPEND_TIME: i16 = 0x08;
/// Decompressed records of one batch at most, when they are searched for a time.
const MAX_DECOMPRESSED: usize = 256 << 20;

/// Why bytes are no batch that can be stored.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Error {
    /// Less than a header, or than the length that the header names.
    #[error("the batch is cut off")]
    Truncated,
    /// Damaged, or of a format before version 2 (KIP-896).
    #[error(transparent)]
    Batch(#[from] batch::Error),
    /// More than one batch, or none.
    #[error("a produce request carries exactly one batch per partition")]
    NotOne,
    /// Counts, deltas or sequence contradict each other.
    #[error("the header fields of the batch contradict each other")]
    Inconsistent,
}

/// The first batch of `bytes`, its checksum checked.
pub(super) fn first(bytes: Bytes) -> Result<Batch, Error> {
    batch::batches(bytes).next().ok_or(Error::Truncated)?.map_err(Error::from)
}

/// The one batch that a client sends for a partition, with what a broker demands of it.
pub(super) fn from_client(bytes: Bytes) -> Result<Batch, Error> {
    let length = bytes.len();
    let batch = first(bytes)?;
    let header = batch.header();
    if header.total_len() != length {
        return Err(Error::NotOne);
    }
    let counted = header.records_count > 0 && header.last_offset_delta == header.records_count - 1;
    let sequenced = header.identity.producer_id < 0 || header.identity.base_sequence >= 0;
    if counted && sequenced && !header.is_control() { Ok(batch) } else { Err(Error::Inconsistent) }
}

/// Copies a batch out of its request with offset and leader epoch set; with `append_time` (ms) it becomes a
/// log-append-time batch.
pub(super) fn stored(
    batch: &Batch,
    base_offset: i64,
    leader_epoch: i32,
    append_time: Option<i64>,
) -> (BatchHeader, Bytes) {
    let records = batch.bytes().get(HEADER_LEN..).unwrap_or_default();
    let mut header = *batch.header();
    header.base_offset = base_offset;
    header.partition_leader_epoch = leader_epoch;
    if let Some(now) = append_time {
        header.attributes |= LOG_APPEND_TIME;
        header.max_timestamp = now;
        let front = header.to_bytes();
        let front = crc32c::crc32c(front.get(CRC_START..).unwrap_or_default());
        header.crc = crc32c::crc32c_append(front, records);
    }
    let mut out = BytesMut::with_capacity(HEADER_LEN + records.len());
    out.extend_from_slice(&header.to_bytes());
    out.extend_from_slice(records);
    (header, out.freeze())
}

/// The broker's time in a log-append-time batch, else -1.
pub(super) fn append_time(header: &BatchHeader) -> i64 {
    if header.timestamp_type() == TimestampType::LogAppendTime { header.max_timestamp } else { -1 }
}

/// `(timestamp, offset)` of the first record of a stored batch from offset `start` on that is at least as new
/// as `timestamp`.
pub(super) fn first_at_time(bytes: &Bytes, timestamp: i64, start: i64) -> Result<Option<(i64, i64)>, Error> {
    let records = first(bytes.clone())?.records(MAX_DECOMPRESSED)?;
    for record in &records {
        let record = record?;
        if record.timestamp >= timestamp && record.offset >= start {
            return Ok(Some((record.timestamp, record.offset)));
        }
    }
    Ok(None)
}
