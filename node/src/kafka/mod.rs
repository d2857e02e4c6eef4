//! The Kafka client: connections, producers, group members.

pub mod buffer;
pub mod client;
pub mod consumer;
pub mod producer;
pub mod spill;
