//! End to end: the real binary between real MQTT clients and a real Kafka.
//!
//! Each scenario of the modules is one test per Kafka: the development Kafka, and each release of Apache
//! Kafka that `tests/kafka/fetch` got.

mod ground;
