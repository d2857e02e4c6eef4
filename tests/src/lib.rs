//! End-to-end and fault tests: the harness.
//!
//! * [`process`]: child processes that end with the test, whatever happens to it.
//! * [`kafka`]: Apache Kafka in the releases of `tests/kafka/versions`, and its command-line tools.
//!
//! Nothing here uses a fixed port or a fixed path, and no wait is without a deadline.

pub mod kafka;
pub mod process;
