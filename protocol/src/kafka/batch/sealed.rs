//! A finished batch: the bytes that buffers, segment files and produce requests carry.
//!
//! Invariants: `bytes` is one whole batch whose length field and CRC are right; the other fields say
//! what its header says.

use bytes::{Bytes, BytesMut};

use super::builder::BatchBuilder;
use super::codec::Compression;
use super::error::Error;
use super::header::{BatchHeader, BatchStamp, CRC_START, HEADER_LEN, LENGTH_END};
use super::reader::Batch;

/// A batch that is ready to be sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SealedBatch {
    bytes: Bytes,
    header: BatchHeader,
}

impl SealedBatch {
    /// Fills in the header in front of `buf`'s records. The caller has checked the limits.
    pub(super) fn finish(
        buf: Vec<u8>,
        compression: Compression,
        identity: BatchStamp,
        count: usize,
        (base_timestamp, max_timestamp): (i64, i64),
    ) -> Self {
        let header = BatchHeader {
            base_offset: 0,
            batch_length: (buf.len() - LENGTH_END) as i32,
            partition_leader_epoch: -1,
            crc: 0,
            attributes: i16::from(compression.id()),
            last_offset_delta: (count - 1) as i32,
            base_timestamp,
            max_timestamp,
            identity,
            records_count: count as i32,
        };
        let mut batch = Self { bytes: Bytes::new(), header };
        batch.write_header(BytesMut::from(Bytes::from(buf)));
        batch
    }

    /// Takes over the bytes of one batch, as they were read from disk or from another node.
    ///
    /// # Errors
    /// Those of [`BatchHeader::parse`], [`Error::Crc`], and [`Error::TooShort`] or
    /// [`Error::BadLength`] where `bytes` is not exactly one batch.
    pub fn from_bytes(bytes: Bytes) -> Result<Self, Error> {
        let header = BatchHeader::parse(&bytes)?;
        if bytes.len() < header.total_len() {
            return Err(Error::TooShort { have: bytes.len(), need: header.total_len() });
        }
        if bytes.len() > header.total_len() {
            return Err(Error::BadLength { base_offset: header.base_offset, length: header.batch_length });
        }
        if header.records_count < 1 {
            return Err(Error::Empty);
        }
        header.compression()?;
        let batch = Batch::new(header, bytes.clone());
        batch.check_crc()?;
        Ok(Self { bytes, header })
    }

    fn write_header(&mut self, mut buf: BytesMut) {
        self.header.crc = 0;
        put_header(&mut buf, &self.header);
        self.header.crc = crc32c::crc32c(buf.get(CRC_START..).unwrap_or(&[]));
        put_header(&mut buf, &self.header);
        self.bytes = buf.freeze();
    }

    /// The whole batch, as it goes into a produce request.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// Bytes of the batch.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Always false: a sealed batch has at least one record.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Number of records, at least 1.
    pub fn count(&self) -> usize {
        self.header.records_count as usize
    }

    /// Timestamp of the first record in ms.
    pub fn base_timestamp(&self) -> i64 {
        self.header.base_timestamp
    }

    /// Largest timestamp in ms.
    pub fn max_timestamp(&self) -> i64 {
        self.header.max_timestamp
    }

    /// Who it is sent as.
    pub fn identity(&self) -> BatchStamp {
        self.header.identity
    }

    /// The header as it stands in the bytes.
    pub fn header(&self) -> &BatchHeader {
        &self.header
    }

    /// Gives the batch another producer id, epoch and base sequence: a new header and CRC, the record
    /// bytes stay as they are. Copies the batch only while its bytes are shared.
    pub fn restamp(&mut self, identity: BatchStamp) {
        if self.header.identity == identity {
            return;
        }
        self.header.identity = identity;
        let bytes = std::mem::take(&mut self.bytes);
        self.write_header(BytesMut::from(bytes));
    }

    /// The records in new builders of at most `max_records` each (at least 1), in order; decompresses
    /// where needed, to at most `limit` bytes. For batches that Kafka calls too large:
    /// `split(count.div_ceil(2), …)` halves it.
    ///
    /// # Errors
    /// Those of [`Batch::records`]: only batches that [`from_bytes`](Self::from_bytes) took over from
    /// a foreign writer can have any.
    pub fn split(&self, max_records: usize, limit: usize) -> Result<Vec<BatchBuilder>, Error> {
        let max_records = max_records.max(1);
        let records = Batch::new(self.header, self.bytes.clone()).records(limit)?;
        let parts = self.count().div_ceil(max_records);
        let room = HEADER_LEN + records.byte_len().div_ceil(parts.max(1)) + 64;
        let mut builders: Vec<BatchBuilder> = Vec::new();
        for record in &records {
            let record = record?;
            match builders.last_mut() {
                Some(open) if open.count() < max_records => {
                    open.append_ref(&record);
                }
                _ => {
                    let mut open = BatchBuilder::with_capacity(room);
                    open.append_ref(&record);
                    builders.push(open);
                }
            }
        }
        Ok(builders)
    }
}

fn put_header(buf: &mut BytesMut, header: &BatchHeader) {
    if let Some(room) = buf.first_chunk_mut::<HEADER_LEN>() {
        *room = header.to_bytes();
    }
}
