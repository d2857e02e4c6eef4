//! The way in: a member of a Kafka consumer group and what reads for it.
//!
//! [`GroupConsumer::start`] joins a group and offers the records of its partitions to a [`RecordSink`],
//! in order per partition, each with a [`crate::flow::Ticket`]. An offset is committed when the record's
//! ticket and all before it are completed: at least once.
//!
//! ```text
//! member        the actor: runs what the state machine says, keeps time, commits
//!   group       the state machine of a group member            (pure)
//!   assignor    who reads what, Kafka's encodings of it        (pure)
//!     coverage  which partitions have an owner       (pure)
//!   requests    the group's requests
//!   topics      what Kafka told of our topics        (pure)
//! handle        status, partitions and end of a consumer
//! context       what the tasks of one assignment share
//! placement     leaders and first offsets of partitions, the fetchers
//!   fetcher     one long poll a broker
//!   fetch_session  what the broker remembers of us             (pure)
//! partition     one partition: fetched, out, done; its delivery task
//!   offsets     which records are finished                     (pure)
//!   transactions   what was aborted is not read                (pure)
//! status        how it is doing, for people
//! ```

mod assignor;
mod context;
mod fetch_session;
mod fetcher;
mod group;
mod handle;
mod member;
mod offsets;
mod partition;
mod placement;
mod record;
mod requests;
mod status;
mod topics;
mod transactions;

use std::sync::Arc;
use std::time::Duration;

pub use handle::{ConsumerHandle, Leave, PartitionSnapshot};
pub use record::{ConsumedRecord, Offer, PartitionSink, RecordSink, TimestampType};
pub use status::ConsumerStatus;

pub use super::TopicPartition;
use super::client::{Backoff, Client};

/// Where to start in a partition without a committed offset, or with one that Kafka no longer has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OffsetReset {
    /// With the oldest record.
    Earliest,
    /// With the next record.
    Latest,
}

/// Settings of a consumer.
#[derive(Debug, Clone)]
pub struct ConsumerOptions {
    /// Consumer group.
    pub group_id: Arc<str>,
    /// Makes the member static (KIP-345): a restart within `session_timeout` does not rebalance. Needs
    /// Kafka 2.3; before, the member is dynamic.
    pub group_instance_id: Option<Arc<str>>,
    /// A static member that an earlier release may have left behind, which is removed from the group before
    /// the first join (Kafka 2.4 and later; before, it waits out its session).
    pub former_instance_id: Option<Arc<str>>,
    /// Topics to read.
    pub topics: Vec<Arc<str>>,
    /// Where to start without a usable offset.
    pub offset_reset: OffsetReset,
    /// How often finished offsets are committed.
    pub commit_interval: Duration,
    /// Most bytes of one partition in one fetch. A larger batch comes in full all the same.
    pub max_batch_bytes: usize,
    /// How long the broker holds a fetch while there is nothing new.
    pub max_wait: Duration,
    /// Bytes fetched or unfinished over all partitions; each may hold at least one batch.
    pub max_outstanding_bytes: usize,
    /// Records offered and unfinished, of one partition.
    pub max_outstanding_records: usize,
    /// Silence after which the coordinator strikes the member off.
    pub session_timeout: Duration,
    /// How long members have for coming back in a rebalance.
    pub rebalance_timeout: Duration,
    /// Between heartbeats; well below `session_timeout`.
    pub heartbeat_interval: Duration,
    /// Failed attempts to join in a row after which the status is `Disconnected`; attempts go on.
    pub max_rejoin_attempts: u32,
    /// Between such attempts.
    pub rejoin_backoff: Backoff,
    /// Between attempts to find a partition's leader.
    pub retry_backoff: Backoff,
    /// How long a partition that is taken away may wait for its unfinished records.
    pub drain_timeout: Duration,
    /// How often the topics' partition counts are looked at.
    pub topic_refresh_interval: Duration,
}

impl ConsumerOptions {
    /// The defaults of the user guide.
    pub fn new(group_id: impl Into<Arc<str>>, topics: impl IntoIterator<Item = Arc<str>>) -> Self {
        Self {
            group_id: group_id.into(),
            group_instance_id: None,
            former_instance_id: None,
            topics: topics.into_iter().collect(),
            offset_reset: OffsetReset::Latest,
            commit_interval: Duration::from_secs(5),
            max_batch_bytes: 896 * 1024,
            max_wait: Duration::from_millis(500),
            max_outstanding_bytes: 64 * 1024 * 1024,
            max_outstanding_records: 100_000,
            session_timeout: Duration::from_secs(30),
            rebalance_timeout: Duration::from_secs(30),
            heartbeat_interval: Duration::from_secs(5),
            max_rejoin_attempts: 5,
            rejoin_backoff: Backoff { first: Duration::from_secs(1), max: Duration::from_secs(5) },
            retry_backoff: Backoff { first: Duration::from_millis(200), max: Duration::from_secs(5) },
            drain_timeout: Duration::from_secs(10),
            topic_refresh_interval: Duration::from_secs(5),
        }
    }
}

/// Starts consumers.
pub struct GroupConsumer;

/// A consumer could not be started.
#[derive(Debug, thiserror::Error)]
#[error("the consumer of group {group_id:?} could not be started: {reason}")]
pub struct StartError {
    group_id: Arc<str>,
    reason: String,
}

impl GroupConsumer {
    /// Joins the group and reads, until [`ConsumerHandle::stop`]. Kafka need not be there yet: the
    /// consumer tries until it is, and says so in its status. With a `supervisor` the actor is linked to it:
    /// a consumer that panics, in whichever of its tasks, fails as a whole, and the supervisor hears of it.
    pub async fn start(
        client: Client,
        options: ConsumerOptions,
        sink: Arc<dyn RecordSink>,
        supervisor: Option<ractor::ActorCell>,
    ) -> Result<ConsumerHandle, StartError> {
        let group_id = options.group_id.clone();
        member::start(client, options, sink, supervisor)
            .await
            .map_err(|error| StartError { group_id, reason: error.to_string() })
    }
}
