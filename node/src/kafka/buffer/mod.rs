//! The disk buffer of a bridge: what a publisher was told is safe outlasts the process and the power.
//!
//! ```text
//! PartitionInbox --runs of records--> Buffer (one thread) --one write, one sync--> Log -> files
//!      ^                                    |
//!      +---- what is durable: tickets ------+--> PartitionProducer: seals are durable, batches may go
//! ```
//!
//! * [`writer`]: the thread and what others see of it.
//! * [`log`]: the log of a bridge, without threads; [`live`]: which of its records are still needed.
//! * [`v2`]: the format of its files, described in `docs/buffer-format.md`; [`v1`]: the one before, which is
//!   still read.
//! * [`disk`]: the few operations that it needs of a file system.

pub mod disk;
pub mod live;
pub mod log;
pub mod v1;
pub mod v2;
pub mod writer;

#[cfg(test)]
pub(super) mod disk_double;

pub use super::TopicPartition;
pub use live::Numbers;
pub use v2::Seal;
pub use writer::{Buffer, BufferState, Put, Source};
