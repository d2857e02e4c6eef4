//! End to end: the real binary between real MQTT clients and a real Kafka.
//!
//! Each scenario of the modules is one test per Kafka: the development Kafka, and each release of Apache
//! Kafka that `tests/kafka/fetch` got. After each, the books of the bridges must balance.

mod access;
mod changes;
mod crash;
mod dev;
mod disk_buffer;
mod durable;
mod floods;
mod ground;
mod guide;
mod hybrid_buffer;
mod login;
mod million;
mod mqtt_clients;
mod outage;
mod probe;
mod rebalance;
mod records;
mod second_opinion;
mod sections;
mod security;
mod shared_and_sys;
mod three_brokers;
mod transports;
mod way_back;
