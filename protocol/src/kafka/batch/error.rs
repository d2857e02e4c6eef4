//! Faults of record batches.

use thiserror::Error as ThisError;

use super::codec::Compression;

/// Why a record batch cannot be written or read.
#[derive(Debug, Clone, PartialEq, Eq, ThisError)]
pub enum Error {
    /// Fewer bytes than a batch header.
    #[error("record batch has {have} bytes, its header alone takes {need}")]
    TooShort {
        /// Bytes that are there.
        have: usize,
        /// Bytes that the part needs.
        need: usize,
    },
    /// A message set of format v0 or v1, or something newer than v2.
    #[error(
        "record batch at offset {base_offset} has message format v{magic}, only v2 (written by Kafka 0.11 and later) is supported"
    )]
    UnsupportedMagic {
        /// The format.
        magic: i8,
        /// First offset of the batch.
        base_offset: i64,
    },
    /// The declared length cannot be one of a batch.
    #[error(
        "record batch at offset {base_offset} declares a length of {length} bytes, at least 49 are needed"
    )]
    BadLength {
        /// First offset of the batch.
        base_offset: i64,
        /// Value of the length field.
        length: i32,
    },
    /// The bytes are not those that were written.
    #[error(
        "record batch at offset {base_offset} has CRC32C {computed:08x}, its header says {stored:08x}: the data is damaged"
    )]
    Crc {
        /// First offset of the batch.
        base_offset: i64,
        /// CRC in the header.
        stored: u32,
        /// CRC of the bytes.
        computed: u32,
    },
    /// Attribute bits 0 to 2 name no codec.
    #[error("record batch names compression codec {id}, known are 0 (none) to 4 (zstd)")]
    UnknownCompression {
        /// The codec number.
        id: u8,
    },
    /// The compressed part cannot be decompressed.
    #[error("{codec} data of a record batch cannot be decompressed: {detail}")]
    Decompress {
        /// Codec of the batch.
        codec: Compression,
        /// Error of the codec.
        detail: String,
    },
    /// The records decompress to more than the caller allows.
    #[error("{codec} data of a record batch decompresses to more than the allowed {limit} bytes")]
    OutputLimit {
        /// Codec of the batch.
        codec: Compression,
        /// The limit in bytes.
        limit: usize,
    },
    /// The codec refused to compress.
    #[error("record batch cannot be compressed with {codec}: {detail}")]
    Compress {
        /// Codec asked for.
        codec: Compression,
        /// Error of the codec.
        detail: String,
    },
    /// A record that does not parse.
    #[error("record {index} of the batch is malformed: {what}")]
    Malformed {
        /// Position of the record in the batch, from 0.
        index: usize,
        /// Its fault.
        what: &'static str,
    },
    /// The header's record count is not what the batch holds.
    #[error("record batch declares {declared} records, {what}")]
    Count {
        /// The count in the header.
        declared: i32,
        /// How it differs.
        what: &'static str,
    },
    /// Sealing a batch without records.
    #[error("record batch has no records, Kafka takes batches of at least one")]
    Empty,
    /// More bytes or records than the format can express.
    #[error("record batch has {records} records in {bytes} bytes, the format ends at 2147483647 of either")]
    TooLarge {
        /// Records in the batch.
        records: usize,
        /// Bytes of the batch.
        bytes: usize,
    },
}
