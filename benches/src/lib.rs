//! Benchmarks and the load generator of Causeway.
//!
//! The library part is the load generator's engine, which the end-to-end tests use as well:
//!
//! * [`brokers`]: this and other brokers, started for a comparison.
//! * [`setup`]: what a comparison asks of them: TLS, WebSocket, logins, stored sessions.
//! * [`stamp`]: payloads that say who sent them, in which place and when, and that show damage.
//! * [`load`]: publishers and subscribers in numbers.
//! * [`judge`]: what arrived against what was acknowledged: lost, twice, out of order, damaged.
//! * [`topic`]: reads a Kafka topic back, through a client that shares no code with ours.
//! * [`procfs`]: CPU time and memory of the server under load.
//! * [`cpu`]: CPU time of this thread and this process, to the nanosecond.

pub mod brokers;
pub mod cpu;
pub mod judge;
pub mod load;
pub mod procfs;
pub mod setup;
pub mod stamp;
pub mod topic;
