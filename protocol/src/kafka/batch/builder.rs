//! The open batch: records are encoded once, in place, behind the room of the header.
//!
//! Invariants: the buffer is empty or starts with [`HEADER_LEN`] reserved bytes; behind them stand
//! `count` whole records whose offset deltas are 0, 1, 2, …; the first record's timestamp is the base.

use thiserror::Error as ThisError;

use super::codec::{self, Compression};
use super::error::Error;
use super::header::{BatchStamp, HEADER_LEN};
use super::reader::RecordIter;
use super::record::{Base, Record, RecordRef};
use super::sealed::SealedBatch;
use super::varint;

/// A batch that takes records.
#[derive(Debug, Clone, Default)]
pub struct BatchBuilder {
    buf: Vec<u8>,
    count: usize,
    base_timestamp: i64,
    max_timestamp: i64,
}

/// Sealing failed; the records are still there.
#[derive(Debug, ThisError)]
#[error("{error}")]
pub struct SealError {
    /// Why.
    #[source]
    pub error: Error,
    /// The batch as it was.
    pub builder: BatchBuilder,
}

impl BatchBuilder {
    /// An empty batch, which allocates with its first record.
    pub fn new() -> Self {
        Self::default()
    }

    /// An empty batch with room for `capacity` bytes, header included.
    pub fn with_capacity(capacity: usize) -> Self {
        Self { buf: Vec::with_capacity(capacity), ..Self::default() }
    }

    /// A batch again, of what one gave away: its [`Self::encoded_from`] 0 behind [`HEADER_LEN`] bytes of
    /// room, its count and its timestamps. That they belong together is for the caller to know;
    /// [`Self::seal`] does not look into them.
    pub fn from_encoded(buf: Vec<u8>, count: usize, base_timestamp: i64, max_timestamp: i64) -> Self {
        Self { buf, count, base_timestamp, max_timestamp }
    }

    /// Most bytes that `record` would add to any batch.
    pub fn encoded_len(record: &Record<'_>) -> usize {
        record.max_encoded_len()
    }

    /// Appends a record and returns the bytes it added.
    ///
    /// A batch beyond the format's limits (2^31-1 bytes or records) is refused when it is sealed.
    #[inline]
    pub fn append(&mut self, record: &Record<'_>) -> usize {
        let (timestamp_delta, offset_delta) = self.start(record.timestamp);
        let body_len = record.body_len(timestamp_delta, offset_delta);
        let added = varint::len(body_len as i64) + body_len;
        self.make_room(added);
        record.put(&mut self.buf, body_len, timestamp_delta, offset_delta);
        self.count += 1;
        added
    }

    /// Appends a record of another batch, headers included, and returns the bytes it added.
    pub fn append_ref(&mut self, record: &RecordRef<'_>) -> usize {
        let (timestamp_delta, offset_delta) = self.start(record.timestamp);
        self.put_tail(timestamp_delta, offset_delta, record.tail())
    }

    /// Deltas of the next record, which is about to be appended.
    #[inline]
    fn start(&mut self, timestamp: i64) -> (i64, i64) {
        if self.count == 0 {
            self.base_timestamp = timestamp;
            self.max_timestamp = timestamp;
        } else {
            self.max_timestamp = self.max_timestamp.max(timestamp);
        }
        (timestamp.wrapping_sub(self.base_timestamp), self.count as i64)
    }

    #[inline]
    fn make_room(&mut self, added: usize) {
        if self.buf.is_empty() {
            self.buf.reserve(HEADER_LEN + added);
            self.buf.resize(HEADER_LEN, 0);
        } else {
            self.buf.reserve(added);
        }
    }

    fn put_tail(&mut self, timestamp_delta: i64, offset_delta: i64, tail: &[u8]) -> usize {
        let body_len = 1 + varint::len(timestamp_delta) + varint::len(offset_delta) + tail.len();
        let added = varint::len(body_len as i64) + body_len;
        self.make_room(added);
        varint::put(&mut self.buf, body_len as i64);
        self.buf.push(0);
        varint::put(&mut self.buf, timestamp_delta);
        varint::put(&mut self.buf, offset_delta);
        self.buf.extend_from_slice(tail);
        self.count += 1;
        added
    }

    /// Bytes of the batch as it would be sent uncompressed, header included.
    pub fn len(&self) -> usize {
        self.buf.len().max(HEADER_LEN)
    }

    /// Bytes that the batch holds in memory.
    pub fn capacity(&self) -> usize {
        self.buf.capacity()
    }

    /// Number of records.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Whether there are no records.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Timestamp of the first record in ms; `None` without records.
    pub fn base_timestamp(&self) -> Option<i64> {
        (self.count > 0).then_some(self.base_timestamp)
    }

    /// Largest timestamp in ms; `None` without records.
    pub fn max_timestamp(&self) -> Option<i64> {
        (self.count > 0).then_some(self.max_timestamp)
    }

    /// The records in order; their `offset` is their position.
    ///
    /// The items are results because the reader is the one of foreign bytes; a builder's own records
    /// always parse.
    pub fn records(&self) -> RecordIter<'_> {
        let base = Base { offset: 0, timestamp: self.base_timestamp, append_time: None };
        RecordIter::new(self.record_bytes(), self.count, base)
    }

    /// The encoded records from this byte on, counted from the first record. [`RecordIter::over`] reads them.
    pub fn encoded_from(&self, from: usize) -> &[u8] {
        self.record_bytes().get(from..).unwrap_or(&[])
    }

    fn record_bytes(&self) -> &[u8] {
        self.buf.get(HEADER_LEN..).unwrap_or(&[])
    }

    /// Encoded lengths of the records in order, length fields included, without looking into them.
    pub fn record_lens(&self) -> impl Iterator<Item = usize> + '_ {
        let mut rest = self.record_bytes();
        std::iter::from_fn(move || {
            let before = rest.len();
            let body_len = usize::try_from(varint::take(&mut rest)?).ok()?;
            rest = rest.get(body_len..)?;
            Some(before - rest.len())
        })
    }

    /// Keeps the records whose position `keep` accepts and returns how many were removed. The kept
    /// ones are re-encoded as if they alone had been appended.
    pub fn retain(&mut self, mut keep: impl FnMut(usize) -> bool) -> usize {
        let mut kept = Self::default();
        for (index, record) in self.records().flatten().enumerate() {
            if keep(index) {
                if kept.is_empty() {
                    kept.buf.reserve(self.buf.len());
                }
                kept.append_ref(&record);
            }
        }
        let removed = self.count - kept.count;
        if removed > 0 {
            *self = kept;
        }
        removed
    }

    /// Finishes the batch. Uncompressed, only the header is filled in; otherwise the records are
    /// compressed into a new buffer.
    ///
    /// # Errors
    /// [`Error::Empty`], [`Error::TooLarge`], [`Error::Compress`]; the builder comes back with it.
    pub fn seal(self, compression: Compression, identity: BatchStamp) -> Result<SealedBatch, SealError> {
        match self.encode(compression) {
            Ok(compressed) => {
                let timestamps = (self.base_timestamp, self.max_timestamp);
                let buf = compressed.unwrap_or(self.buf);
                Ok(SealedBatch::finish(buf, compression, identity, self.count, timestamps))
            }
            Err(error) => Err(SealError { error, builder: self }),
        }
    }

    /// The compressed batch, `None` where the buffer is it.
    fn encode(&self, compression: Compression) -> Result<Option<Vec<u8>>, Error> {
        if self.count == 0 {
            return Err(Error::Empty);
        }
        self.check_limits(self.buf.len())?;
        let compressed = codec::compress(compression, self.record_bytes(), HEADER_LEN)?;
        self.check_limits(compressed.as_ref().map_or(0, Vec::len))?;
        Ok(compressed)
    }

    fn check_limits(&self, bytes: usize) -> Result<(), Error> {
        const LIMIT: usize = i32::MAX as usize;
        if bytes > LIMIT || self.count > LIMIT {
            return Err(Error::TooLarge { records: self.count, bytes });
        }
        Ok(())
    }
}
