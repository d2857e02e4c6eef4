//! Reading batches: those of a fetch answer, and the records of one.
//!
//! Invariants: every step of an iterator consumes input or ends it; after an error that leaves no
//! trustworthy length it stays ended; what an iterator yields borrows from the bytes it was given.

use bytes::Bytes;

use super::codec;
use super::error::Error;
use super::header::{BatchHeader, CRC_START, HEADER_LEN, LENGTH_END, MAGIC_AT, TimestampType};
use super::record::{Base, MIN_RECORD_LEN, RecordRef, take_record};

/// Iterates the batches of a fetch answer (its record bytes of one partition).
///
/// Kafka cuts the answer at a byte limit, so the last batch may be incomplete: the iterator ends before
/// it, and [`Batches::truncated`] then says so. A batch that is damaged or of an unknown format is an
/// `Err` item; the iterator goes on behind it where its length allows.
pub fn batches(bytes: Bytes) -> Batches {
    Batches { rest: bytes, truncated: None }
}

/// See [`batches`].
#[derive(Debug, Clone)]
pub struct Batches {
    rest: Bytes,
    truncated: Option<Truncated>,
}

/// A batch that is not there in full.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Truncated {
    /// Bytes of it that are there.
    pub have: usize,
    /// Bytes that it takes in all; `None` where not even its length is there.
    pub need: Option<usize>,
    /// Its first offset; `None` where it is not there.
    pub base_offset: Option<i64>,
}

impl Batches {
    /// The incomplete batch at the end; known once the iterator has ended.
    pub fn truncated(&self) -> Option<Truncated> {
        self.truncated
    }

    fn cut(&mut self, need: Option<usize>, base_offset: Option<i64>) {
        self.truncated = Some(Truncated { have: self.rest.len(), need, base_offset });
        self.rest.clear();
    }
}

impl Iterator for Batches {
    type Item = Result<Batch, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let base_offset = self.rest.first_chunk::<8>().map(|bytes| i64::from_be_bytes(*bytes));
        let length = self.rest.get(8..).and_then(|rest| rest.first_chunk::<4>());
        let Some(length) = length.map(|bytes| i32::from_be_bytes(*bytes)) else {
            self.cut(None, base_offset);
            return None;
        };
        // The length field stands at the same place in every format; the magic must be within.
        let total = usize::try_from(length).ok().filter(|length| LENGTH_END + length > MAGIC_AT);
        let Some(total) = total.map(|length| LENGTH_END + length) else {
            self.rest.clear();
            return Some(Err(Error::BadLength { base_offset: base_offset.unwrap_or(0), length }));
        };
        if self.rest.len() < total {
            self.cut(Some(total), base_offset);
            return None;
        }
        let bytes = self.rest.split_to(total);
        Some(BatchHeader::parse(&bytes).and_then(|header| {
            let batch = Batch::new(header, bytes);
            batch.check_crc()?;
            Ok(batch)
        }))
    }
}

/// One batch with a right CRC.
#[derive(Debug, Clone)]
pub struct Batch {
    header: BatchHeader,
    bytes: Bytes,
}

impl Batch {
    /// `bytes` are the whole batch that starts with `header`.
    pub(super) fn new(header: BatchHeader, bytes: Bytes) -> Self {
        Self { header, bytes }
    }

    pub(super) fn check_crc(&self) -> Result<(), Error> {
        let stored = self.header.crc;
        let computed = crc32c::crc32c(self.bytes.get(CRC_START..).unwrap_or(&[]));
        if stored == computed {
            return Ok(());
        }
        Err(Error::Crc { base_offset: self.header.base_offset, stored, computed })
    }

    /// The header.
    pub fn header(&self) -> &BatchHeader {
        &self.header
    }

    /// The whole batch as it was read.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// The records, decompressed to at most `limit` bytes (which does not bound uncompressed ones:
    /// they are there already).
    ///
    /// # Errors
    /// [`Error::UnknownCompression`], [`Error::Decompress`], [`Error::OutputLimit`], [`Error::Count`].
    pub fn records(&self, limit: usize) -> Result<Records, Error> {
        let compression = self.header.compression()?;
        let stored = self.bytes.slice(HEADER_LEN.min(self.bytes.len())..);
        let bytes = codec::decompress(compression, &stored, limit)?.map_or(stored, Bytes::from);
        let declared = self.header.records_count;
        let count = usize::try_from(declared)
            .ok()
            .filter(|count| *count <= bytes.len() / MIN_RECORD_LEN)
            .ok_or(Error::Count { declared, what: "more than its bytes can hold" })?;
        let append_time = match self.header.timestamp_type() {
            TimestampType::CreateTime => None,
            TimestampType::LogAppendTime => Some(self.header.max_timestamp),
        };
        let base =
            Base { offset: self.header.base_offset, timestamp: self.header.base_timestamp, append_time };
        Ok(Records { bytes, count, base })
    }
}

/// The records of a batch, decompressed.
#[derive(Debug, Clone)]
pub struct Records {
    bytes: Bytes,
    count: usize,
    base: Base,
}

impl Records {
    /// Number of records as the header declares it.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Bytes of the records, decompressed.
    pub fn byte_len(&self) -> usize {
        self.bytes.len()
    }

    /// Iterates the records.
    pub fn iter(&self) -> RecordIter<'_> {
        RecordIter::new(&self.bytes, self.count, self.base)
    }

    /// A part of a record that outlives it: shares the batch's memory where `part` lies in it, which
    /// keeps the whole batch alive, and copies otherwise.
    pub fn share(&self, part: &[u8]) -> Bytes {
        let start = (part.as_ptr() as usize).checked_sub(self.bytes.as_ptr() as usize);
        match start.and_then(|start| Some(start..start.checked_add(part.len())?)) {
            Some(range) if range.end <= self.bytes.len() => self.bytes.slice(range),
            _ => Bytes::copy_from_slice(part),
        }
    }
}

impl<'a> IntoIterator for &'a Records {
    type Item = Result<RecordRef<'a>, Error>;
    type IntoIter = RecordIter<'a>;

    fn into_iter(self) -> RecordIter<'a> {
        self.iter()
    }
}

/// Iterates records. Ends after the first error.
#[derive(Debug, Clone)]
pub struct RecordIter<'a> {
    rest: &'a [u8],
    index: usize,
    count: usize,
    base: Base,
}

impl<'a> RecordIter<'a> {
    pub(super) fn new(bytes: &'a [u8], count: usize, base: Base) -> Self {
        Self { rest: bytes, index: 0, count, base }
    }

    /// Records as they stand one after another in a batch, out of their batch: `count` of them, whose
    /// timestamps are relative to `base_timestamp` (ms).
    pub fn over(bytes: &'a [u8], count: usize, base_timestamp: i64) -> Self {
        Self::new(bytes, count, Base { offset: 0, timestamp: base_timestamp, append_time: None })
    }

    fn end(&mut self) {
        self.index = self.count;
        self.rest = &[];
    }
}

impl<'a> Iterator for RecordIter<'a> {
    type Item = Result<RecordRef<'a>, Error>;

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        if self.index >= self.count {
            if self.rest.is_empty() {
                return None;
            }
            self.end();
            return Some(Err(Error::Count { declared: self.count as i32, what: "and more bytes follow" }));
        }
        if self.rest.is_empty() {
            let declared = self.count as i32;
            self.end();
            return Some(Err(Error::Count { declared, what: "its bytes end before" }));
        }
        let record = take_record(&mut self.rest, self.index, self.base);
        self.index += 1;
        if record.is_err() {
            self.end();
        }
        Some(record)
    }
}

/// Content of a transaction marker (KIP-98).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ControlRecord {
    /// The transaction of the batch's producer id was aborted.
    Abort,
    /// It was committed.
    Commit,
    /// Another control type, of no meaning for readers of records.
    Other(i16),
}

impl ControlRecord {
    /// Parses the key of a record of a control batch. `None`: too short.
    pub fn parse(key: Option<&[u8]>) -> Option<Self> {
        let kind = key?.get(2..)?.first_chunk::<2>()?;
        Some(match i16::from_be_bytes(*kind) {
            0 => Self::Abort,
            1 => Self::Commit,
            other => Self::Other(other),
        })
    }
}
