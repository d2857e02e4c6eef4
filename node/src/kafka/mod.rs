//! The Kafka client: connections, producers, group members.

pub mod buffer;
pub mod client;
pub mod consumer;
pub mod producer;
pub mod spill;

use std::fmt;
use std::sync::Arc;

/// A partition of a topic.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TopicPartition {
    /// Topic name.
    pub topic: Arc<str>,
    /// Partition number. In a disk buffer -1: not known yet.
    pub partition: i32,
}

impl TopicPartition {
    /// A partition of its two parts.
    pub fn new(topic: impl Into<Arc<str>>, partition: i32) -> Self {
        Self { topic: topic.into(), partition }
    }
}

impl fmt::Display for TopicPartition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.topic, self.partition)
    }
}
