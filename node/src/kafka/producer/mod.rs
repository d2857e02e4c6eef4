//! The way out: from records to a Kafka topic.
//!
//! ```text
//! publisher -> Routes -> PartitionInbox -> PartitionProducer (PartitionCore) -> Dispatcher -> connection
//!     ^                                        |
//!     +-------- Obligations (tickets, ledger) -+
//! ```
//!
//! * [`topic_producer`]: one a topic; start here. `standstill`, `obstacle`: whether it moves and why not, for
//!   its status.
//! * [`route`]: from a record to its partition's inbox, also while partitions are unknown or change.
//! * [`inbox`], [`obligations`]: the open batch, its tickets and the books.
//! * [`core`]: the pure state machine of a partition; [`verdict`]: what error codes mean to it.
//! * [`partition_producer`]: the actor around it.
//! * `timestamps`: what is done about timestamps that Kafka refuses.
//! * [`dead_letters`]: where records go that were given up.
//! * [`dynamic_topics`]: many topics, opened on demand, within one [`budget`].
//! * [`share`]: what all inboxes of a node may hold together.
//! * `incarnation`: whether partitions that metadata lacks are gone.
//! * [`latency`]: how long batches took.
//! * [`succession`]: from one producer to the one that takes its place.
//! * [`dispatcher`], [`produce_request`]: batches of many partitions in one request a broker.

pub mod budget;
pub mod core;
pub mod dead_letters;
pub mod dispatcher;
pub mod dynamic_topics;
pub mod inbox;
mod incarnation;
pub mod latency;
pub mod obligations;
mod obstacle;
pub mod partition_producer;
pub mod produce_request;
pub mod route;
pub mod share;
mod stall_detector;
#[cfg(test)]
mod stored_tests;
pub mod succession;
mod timestamps;
pub mod topic_producer;
pub mod verdict;

pub use budget::Budget;
pub use dead_letters::{Cause, DeadLetters};
pub use dispatcher::Dispatchers;
pub use dynamic_topics::{DynamicOptions, DynamicTopics};
pub use inbox::SpillOptions;
pub use latency::{Latency, LatencyHistogram};
pub use route::{Partitioner, Routes};
pub use share::NodeMemory;
pub use succession::HandedOver;
pub use timestamps::TimestampSource;
pub use topic_producer::{
    DiskStore, NoTopic, PartitionRow, RequiredAcks, Restored, Status, StopReport, TopicProducer,
    TopicProducerHandle, TopicProducerOptions,
};
