//! Committed offsets of a group.

/// An offset that a group committed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommittedOffset {
    /// Offset of the next record to consume.
    pub offset: i64,
    /// Leader epoch of the last one consumed, -1 when the client does not say.
    pub leader_epoch: i32,
    /// What the client added.
    pub metadata: String,
}

/// One offset of a commit, after its checks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::dev_kafka) struct Commit {
    pub(in crate::dev_kafka) topic: String,
    pub(in crate::dev_kafka) partition: i32,
    pub(in crate::dev_kafka) committed: CommittedOffset,
}
