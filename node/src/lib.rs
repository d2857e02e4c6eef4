//! The Causeway node: MQTT front, Kafka client, bridges, admin link and command line.

pub mod access;
pub mod admin;
pub mod bridge;
mod byte_order_mark;
pub mod cli;
pub mod config;
pub mod dev;
pub mod dev_kafka;
mod dial;
pub mod flow;
pub mod kafka;
mod life;
mod listening;
pub mod mqtt;
pub mod node;
pub mod operations;
pub mod probe;
mod secret;
pub mod supervision;
pub mod sysmon;
pub mod template;
mod throttle;
mod tls;
