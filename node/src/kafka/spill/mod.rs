//! Files for what does not fit into the memory: batches of a hybrid buffer wait here until it is their turn.
//!
//! ```text
//! PartitionInbox --a batch beyond segment_bytes--> Spill (one thread a bridge) --> files
//!      ^                                              |
//!      +------------ the batch, when it is near ------+
//! ```
//!
//! Files are for room and not for durability: nothing is synced, and whom to tell of a record stays in
//! memory. What a dead node leaves behind is counted and removed at the next start ([`sweep`]).
//!
//! * [`thread`]: the thread, and what it does when the disk does not.
//! * [`file`]: the files and their format.

pub mod file;
#[cfg(test)]
pub(crate) mod storage_double;
pub mod thread;

pub use file::{FileSystem, Leftover, Piece, ReadError, Storage, sweep};
pub use thread::{NextStep, Spill, SpillClient, SpillThread};
