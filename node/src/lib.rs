//! The Causeway node: MQTT front, Kafka client, bridges, admin link and command line.

pub mod access;
pub mod admin;
pub mod bridge;
pub mod cli;
pub mod config;
pub mod dev;
pub mod dev_kafka;
mod dial;
pub mod flow;
pub mod kafka;
mod life;
pub mod mailbox;
pub mod mqtt;
pub mod node;
pub mod probe;
mod secret;
pub mod supervision;
pub mod sysmon;
mod throttle;
mod tls;
