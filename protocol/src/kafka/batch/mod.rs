//! Record batches of message format v2 (Kafka 0.11 and later, KIP-98).
//!
//! A [`BatchBuilder`] *is* the batch that will be sent: records are appended behind 61 reserved bytes,
//! and sealing fills those in. A [`SealedBatch`] is the finished run of bytes that a buffer, a segment
//! file and a produce request carry; it can be [restamped](SealedBatch::restamp) with another producer
//! identity, which changes the header and never the record bytes, and [split](SealedBatch::split) when
//! Kafka calls it too large. [`batches`] reads what a fetch answers.
//!
//! Invariants:
//! * Bytes from outside never cause a panic, a loop without progress, or an allocation above what is
//!   there or what the caller allows.
//! * A sealed batch has 1 to `i32::MAX` records and at most `i32::MAX` bytes.

mod builder;
mod codec;
mod error;
mod header;
mod reader;
mod record;
mod sealed;
#[cfg(test)]
mod tests;
mod varint;

pub use builder::{BatchBuilder, SealError};
pub use codec::Compression;
pub use error::Error;
pub use header::{BatchHeader, BatchStamp, HEADER_LEN, TimestampType};
pub use reader::{Batch, Batches, ControlRecord, RecordIter, Records, Truncated, batches};
pub use record::{Header, HeaderIter, Record, RecordRef};
pub use sealed::SealedBatch;
