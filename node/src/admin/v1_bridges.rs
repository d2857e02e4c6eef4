//! Version 1 of the admin messages about single bridges. As in [`super::v1`], nothing changes but by adding a
//! variant at an end.

use serde::{Deserialize, Serialize};

use super::v1::{BridgeInfo, BridgeStats, Counter, PartitionStats};

/// Most partitions in one answer.
pub const PARTITIONS_PAGE: u32 = 1000;

/// Meaning of described bridges.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Put {
    /// New.
    Create,
    /// Those that there are.
    Change,
}

/// A request about bridges.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum BridgeRequest {
    /// Create or change bridges, all or none.
    Put {
        /// Which of the two.
        how: Put,
        /// Name of the text in messages.
        source: String,
        /// `bridges { .. }`, as in a configuration file.
        text: String,
    },
    /// Delete a bridge.
    Delete {
        /// Its id.
        id: String,
        /// With what it holds.
        force: bool,
    },
    /// A [`BridgeDetail`].
    Show {
        /// The bridge's id.
        id: String,
    },
    /// A [`PartitionsPage`].
    Partitions {
        /// The bridge's id.
        id: String,
        /// Those behind this topic and partition.
        after: Option<(String, i32)>,
        /// Most partitions of the answer; never more than [`PARTITIONS_PAGE`].
        limit: u32,
    },
    /// Walk the bridge's way to Kafka.
    Probe {
        /// The bridge's id.
        id: String,
    },
}

/// An answer about bridges.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum BridgeAnswer {
    /// To [`BridgeRequest::Put`].
    Put {
        /// The bridges as they are now.
        bridges: Vec<BridgeInfo>,
        /// Warnings: it works, but hardly as meant.
        warnings: Vec<String>,
    },
    /// To [`BridgeRequest::Delete`].
    Deleted(DeletedInfo),
    /// To [`BridgeRequest::Show`].
    Detail(Box<BridgeDetail>),
    /// To [`BridgeRequest::Partitions`].
    Partitions(PartitionsPage),
    /// To [`BridgeRequest::Probe`].
    Probed(Vec<ProbeStep>),
}

/// Verdict on a step of a probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ProbeVerdict {
    /// As it should be.
    Ok,
    /// The bridge works, but hardly as meant.
    Warn,
    /// The bridge cannot work like this.
    Fail,
}

/// A step on a bridge's way to Kafka.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProbeStep {
    /// Name of the step, such as `dns` or `topic`.
    pub step: String,
    /// Host, topic or group that it was about.
    pub about: String,
    /// Verdict.
    pub verdict: ProbeVerdict,
    /// Finding.
    pub found: String,
    /// Remedy.
    pub fix: Option<String>,
}

/// Records that went with a bridge.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeletedInfo {
    /// Its id.
    pub id: String,
    /// Records that it held.
    pub records: u64,
    /// Bytes of those that waited.
    pub bytes: u64,
    /// Dropped (`dropped.resource_stopped`): no publisher waited for their outcome.
    pub dropped: u64,
    /// Failed: their publishers are told.
    pub failed: u64,
}

/// Everything about a bridge.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BridgeDetail {
    /// The bridge with its counters.
    pub stats: BridgeStats,
    /// `bridges { .. }` as JSON, secrets masked.
    pub config: String,
    /// Rates in thousandths a second (`rate`, `rate_last1m`, `rate_last5m`, `rate_max`), times in
    /// microseconds (`latency.p50` and others), counts.
    pub measures: Vec<Counter>,
}

/// Some partitions of a bridge, by topic and number.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PartitionsPage {
    /// The partitions.
    pub partitions: Vec<PartitionStats>,
    /// Whether there are more behind the last one.
    pub more: bool,
}
