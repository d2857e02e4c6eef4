//! The 61 bytes in front of the records.

use super::codec::Compression;
use super::error::Error;

/// Bytes of a batch header.
pub const HEADER_LEN: usize = 61;

/// Bytes in front of those that the length field counts.
pub(super) const LENGTH_END: usize = 12;
/// The CRC covers everything from here.
pub(super) const CRC_START: usize = 21;
/// Smallest value of the length field: a header and no records.
pub(super) const MIN_LENGTH: i32 = (HEADER_LEN - LENGTH_END) as i32;

const CODEC_MASK: i16 = 0x07;
const LOG_APPEND_TIME: i16 = 0x08;
const TRANSACTIONAL: i16 = 0x10;
const CONTROL: i16 = 0x20;

/// Who wrote a batch, for Kafka's idempotent producer (KIP-98).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct BatchStamp {
    /// From InitProducerId, or -1.
    pub producer_id: i64,
    /// From InitProducerId, or -1.
    pub producer_epoch: i16,
    /// Sequence of the batch's first record in its partition, wraps after `i32::MAX` to 0; or -1.
    pub base_sequence: i32,
}

impl BatchStamp {
    /// A producer without idempotence.
    pub const NONE: Self = Self { producer_id: -1, producer_epoch: -1, base_sequence: -1 };

    /// Sequence of the record `count` records later: sequences wrap from `i32::MAX` to 0.
    pub fn sequence_after(base_sequence: i32, count: usize) -> i32 {
        let modulus = i64::from(i32::MAX) + 1;
        let count = (count as u64 % modulus as u64) as i64;
        ((i64::from(base_sequence) + count) % modulus) as i32
    }
}

impl Default for BatchStamp {
    fn default() -> Self {
        Self::NONE
    }
}

/// Whose clock the record timestamps are from (`message.timestamp.type` of the topic).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TimestampType {
    /// The producer's.
    CreateTime,
    /// The broker's: every record has the batch's `max_timestamp`.
    LogAppendTime,
}

/// A parsed batch header. All values are as they stand on the wire, unverified but for the magic and
/// the least length.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchHeader {
    /// Offset of the batch's first record (0 before the broker set it).
    pub base_offset: i64,
    /// Bytes behind the length field: all of the batch less 12.
    pub batch_length: i32,
    /// Epoch of the leader that appended it (-1 before).
    pub partition_leader_epoch: i32,
    /// CRC32C of the bytes from the attributes on.
    pub crc: u32,
    /// Flag bits, see the methods.
    pub attributes: i16,
    /// Offset of the last record less `base_offset`; more than `records_count - 1` after compaction.
    pub last_offset_delta: i32,
    /// Base of the records' timestamp deltas, in ms.
    pub base_timestamp: i64,
    /// Largest timestamp in the batch, in ms.
    pub max_timestamp: i64,
    /// Who wrote it.
    pub identity: BatchStamp,
    /// Records in it.
    pub records_count: i32,
}

/// The `N` bytes of `input` from `at`, or zeros: callers check the length before.
fn bytes_at<const N: usize>(input: &[u8], at: usize) -> [u8; N] {
    input.get(at..).and_then(|rest| rest.first_chunk::<N>()).copied().unwrap_or([0; N])
}

impl BatchHeader {
    /// Parses the header at the start of `input`.
    ///
    /// # Errors
    /// [`Error::UnsupportedMagic`] for the formats before Kafka 0.11, [`Error::TooShort`],
    /// [`Error::BadLength`]. The CRC is not looked at.
    pub fn parse(input: &[u8]) -> Result<Self, Error> {
        // The magic stands at the same place in every format, and a v0 or v1 message may be shorter
        // than a v2 header.
        if input.len() <= MAGIC_AT {
            return Err(Error::TooShort { have: input.len(), need: HEADER_LEN });
        }
        let base_offset = i64::from_be_bytes(bytes_at(input, 0));
        let magic = i8::from_be_bytes(bytes_at(input, MAGIC_AT));
        if magic != MAGIC {
            return Err(Error::UnsupportedMagic { magic, base_offset });
        }
        if input.len() < HEADER_LEN {
            return Err(Error::TooShort { have: input.len(), need: HEADER_LEN });
        }
        let batch_length = i32::from_be_bytes(bytes_at(input, 8));
        if batch_length < MIN_LENGTH {
            return Err(Error::BadLength { base_offset, length: batch_length });
        }
        Ok(Self {
            base_offset,
            batch_length,
            partition_leader_epoch: i32::from_be_bytes(bytes_at(input, 12)),
            crc: u32::from_be_bytes(bytes_at(input, 17)),
            attributes: i16::from_be_bytes(bytes_at(input, 21)),
            last_offset_delta: i32::from_be_bytes(bytes_at(input, 23)),
            base_timestamp: i64::from_be_bytes(bytes_at(input, 27)),
            max_timestamp: i64::from_be_bytes(bytes_at(input, 35)),
            identity: BatchStamp {
                producer_id: i64::from_be_bytes(bytes_at(input, 43)),
                producer_epoch: i16::from_be_bytes(bytes_at(input, 51)),
                base_sequence: i32::from_be_bytes(bytes_at(input, 53)),
            },
            records_count: i32::from_be_bytes(bytes_at(input, 57)),
        })
    }

    /// The 61 bytes. The CRC is written as it stands in `self`.
    pub fn to_bytes(&self) -> [u8; HEADER_LEN] {
        let mut out = [0; HEADER_LEN];
        let mut at = 0;
        let mut put = |bytes: &[u8]| {
            for (to, from) in out.iter_mut().skip(at).zip(bytes) {
                *to = *from;
            }
            at += bytes.len();
        };
        put(&self.base_offset.to_be_bytes());
        put(&self.batch_length.to_be_bytes());
        put(&self.partition_leader_epoch.to_be_bytes());
        put(&MAGIC.to_be_bytes());
        put(&self.crc.to_be_bytes());
        put(&self.attributes.to_be_bytes());
        put(&self.last_offset_delta.to_be_bytes());
        put(&self.base_timestamp.to_be_bytes());
        put(&self.max_timestamp.to_be_bytes());
        put(&self.identity.producer_id.to_be_bytes());
        put(&self.identity.producer_epoch.to_be_bytes());
        put(&self.identity.base_sequence.to_be_bytes());
        put(&self.records_count.to_be_bytes());
        out
    }

    /// Bytes of the whole batch.
    pub fn total_len(&self) -> usize {
        usize::try_from(self.batch_length).unwrap_or(0) + LENGTH_END
    }

    /// Offset of the batch's last record; the next batch starts behind it.
    pub fn last_offset(&self) -> i64 {
        self.base_offset.saturating_add(i64::from(self.last_offset_delta.max(0)))
    }

    /// How the records are compressed.
    ///
    /// # Errors
    /// [`Error::UnknownCompression`].
    pub fn compression(&self) -> Result<Compression, Error> {
        Compression::from_id((self.attributes & CODEC_MASK) as u8)
    }

    /// Whose clock the timestamps are from.
    pub fn timestamp_type(&self) -> TimestampType {
        if self.attributes & LOG_APPEND_TIME == 0 {
            TimestampType::CreateTime
        } else {
            TimestampType::LogAppendTime
        }
    }

    /// Whether the batch is part of a transaction.
    pub fn is_transactional(&self) -> bool {
        self.attributes & TRANSACTIONAL != 0
    }

    /// Whether the batch holds a transaction marker and no user records.
    pub fn is_control(&self) -> bool {
        self.attributes & CONTROL != 0
    }
}

/// Message format that this module reads and writes.
pub(super) const MAGIC: i8 = 2;
/// Where the format stands, in every format.
pub(super) const MAGIC_AT: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sequences_wrap_to_zero_after_the_largest_integer() {
        assert_eq!(BatchStamp::sequence_after(0, 5), 5);
        assert_eq!(BatchStamp::sequence_after(i32::MAX, 1), 0);
        assert_eq!(BatchStamp::sequence_after(i32::MAX - 1, 4), 2);
    }

    #[test]
    fn a_header_reads_back_field_by_field() {
        let header = BatchHeader {
            base_offset: 0x0102_0304_0506_0708,
            batch_length: 0x1112_1314,
            partition_leader_epoch: 0x2122_2324,
            crc: 0x3132_3334,
            attributes: 0x4142,
            last_offset_delta: 0x5152_5354,
            base_timestamp: 0x6162_6364_6566_6768,
            max_timestamp: 0x7172_7374_7576_7778,
            identity: BatchStamp {
                producer_id: 0x0a0b_0c0d_0e0f_1011,
                producer_epoch: 0x1a1b,
                base_sequence: 0x2a2b_2c2d,
            },
            records_count: 0x3a3b_3c3d,
        };
        assert_eq!(BatchHeader::parse(&header.to_bytes()), Ok(header));
    }
}
