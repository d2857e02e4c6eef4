//! End-to-end and fault tests: the harness.
//!
//! * [`process`]: child processes that end with the test, whatever happens to it.
//! * [`kafka`]: Apache Kafka in the releases of `tests/kafka/versions`, and its command-line tools.
//! * [`kafka_admin`]: topics with settings, rights of users, lists.
//! * [`kafka_cluster`]: three of them, with replicas and leaders that move.
//! * [`broker`]: one face for the development Kafka and the real ones, and [`on_every_kafka!`], which
//!   makes one test for each.
//! * [`broker_suite`]: what a broker has to do, in raw requests.
//! * [`faults`]: the judge: everything that can break breaks at random, and everything acknowledged is
//!   counted.
//! * [`fuzz`]: damaged packets and sessions against a running node.
//! * [`mqtt`]: MQTT as bytes, for what must not share code with the node.
//! * [`node`]: the real binary, started, killed and asked for its books.
//! * [`clients`]: MQTT and Kafka clients that other people wrote.
//! * [`oracle`]: what was acknowledged against what is in Kafka.
//!
//! Nothing here uses a fixed port or a fixed path, and no wait is without a deadline. Tests are plain
//! functions; what is asynchronous runs on one runtime for the whole process, see [`block_on`].

use std::future::Future;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use tokio::runtime::Runtime;

pub mod broker;
pub mod broker_suite;
pub mod certificates;
pub mod clients;
pub mod faults;
pub mod fuzz;
pub mod kafka;
pub mod kafka_admin;
pub mod kafka_cluster;
mod kafka_wire;
pub mod mqtt;
pub mod node;
pub mod oracle;
pub mod process;

/// Runs a future to its end on the runtime of the tests. Not to be called from within it.
pub fn block_on<T>(future: impl Future<Output = T>) -> T {
    runtime().block_on(future)
}

/// The runtime of the tests: development Kafkas and rskafka live on it.
#[expect(clippy::expect_used, reason = "without a runtime no test can run")]
pub fn runtime() -> &'static Runtime {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    RUNTIME.get_or_init(|| {
        tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .expect("a tokio runtime")
    })
}

/// Asks again and again until `ask` has an answer; its last complaint is the error at `patience`.
pub fn eventually<T>(patience: Duration, mut ask: impl FnMut() -> Result<T>) -> Result<T> {
    let deadline = Instant::now() + patience;
    loop {
        match ask() {
            Ok(answer) => return Ok(answer),
            Err(error) if Instant::now() >= deadline => {
                return Err(error.context(format!("still so after {patience:?}")));
            }
            Err(_) => std::thread::sleep(Duration::from_millis(20)),
        }
    }
}

/// Whether the long tests run in full: `CAUSEWAY_FULL=1`, as in CI.
pub fn full() -> bool {
    std::env::var_os("CAUSEWAY_FULL").is_some_and(|value| value == "1")
}

/// A name that no other test of this process uses.
pub fn unique(prefix: &str) -> String {
    use std::sync::atomic::{AtomicU32, Ordering};
    static NEXT: AtomicU32 = AtomicU32::new(1);
    format!("{prefix}-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// Says something on the real standard error: what is printed by a test that passes is not shown.
pub fn say(text: &str) {
    use std::io::Write;
    // Nobody listens: nothing to be done about it.
    drop(writeln!(std::io::stderr().lock(), "{text}"));
}

/// Fails unless `condition`; for use inside [`eventually`].
pub fn need(condition: bool, text: impl FnOnce() -> String) -> Result<()> {
    if !condition {
        bail!("{}", text());
    }
    Ok(())
}
