//! Committed offsets of a group.

/// An offset that a group committed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommittedOffset {
    /// Offset of the next record to consume.
    pub offset: i64,
    /// Leader epoch of the last one consumed, -1 when the client does not say.
    pub leader_epoch: i32,
    /// Addition of the client.
    pub metadata: String,
}

/// One offset of a commit, after its checks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Commit {
    pub(crate) topic: String,
    pub(crate) partition: i32,
    pub(crate) committed: CommittedOffset,
}
