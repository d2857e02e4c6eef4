//! Kafka record batches, framing and partitioners.
//!
//! * [`batch`]: record batches of message format v2, written in place and read back.
//! * [`partitioner`]: from a record's key to its partition.
//! * [`frame`]: the length-prefixed frames that carry requests and answers.

pub mod batch;
pub mod frame;
pub mod partitioner;
