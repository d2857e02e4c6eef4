//! Publishers and subscribers in numbers, light enough to share a small machine with the server.
//!
//! Each connection is one task that turns whole read and write batches; nothing but the batch is
//! awaited. Packets are read with `mqttbytes`, which shares no code with the server.
//!
//! * [`publisher`]: pipelined publishers, closed loop (as fast as acknowledgements come) or open loop (at
//!   a rate; latency counts from the moment a message was due, so a stall is not hidden by its own
//!   back-pressure).
//! * [`subscriber`]: receivers that judge what they get.
//! * [`ahead`]: keeps publishers from running away from subscribers where no acknowledgement does.
//! * [`endpoint`]: where a client connects, over what, and as whom.
//! * [`link`]: one MQTT 3.1.1 connection.
//! * [`churn`]: connections that come and go as fast as the server takes them.

pub mod ahead;
pub mod churn;
pub mod endpoint;
mod frames;
pub mod link;
pub mod publisher;
pub mod subscriber;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

/// Latencies are kept to this: 2 minutes in nanoseconds.
const HIGHEST: u64 = 120_000_000_000;

/// Counts and latencies of all connections of a kind.
#[derive(Debug)]
pub struct Meter {
    latency: Mutex<Histogram<u64>>,
    count: AtomicU64,
}

impl Default for Meter {
    fn default() -> Self {
        // Three digits between 1 µs and 2 min are always a valid choice.
        let latency = Histogram::new_with_bounds(1_000, HIGHEST, 3).unwrap_or_else(|_| empty_histogram());
        Self { latency: Mutex::new(latency), count: AtomicU64::new(0) }
    }
}

#[expect(clippy::expect_used, reason = "one digit from 1 to 2 is valid by the histogram's own rules")]
fn empty_histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 2, 1).expect("a valid histogram")
}

impl Meter {
    /// Records a batch of latencies in nanoseconds.
    pub fn record(&self, latencies: impl IntoIterator<Item = u64>) {
        let mut histogram = self.latency.lock().unwrap_or_else(PoisonError::into_inner);
        let mut count = 0;
        for latency in latencies {
            histogram.saturating_record(latency.clamp(1_000, HIGHEST));
            count += 1;
        }
        drop(histogram);
        self.count.fetch_add(count, Ordering::Relaxed);
    }

    /// How many latencies were recorded.
    pub fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }

    /// Begins a new distribution; the count goes on.
    pub fn forget_latency(&self) {
        self.latency.lock().unwrap_or_else(PoisonError::into_inner).reset();
    }

    /// The distribution so far.
    pub fn latency(&self) -> Latency {
        let histogram = self.latency.lock().unwrap_or_else(PoisonError::into_inner);
        let micros = |nanos: u64| nanos as f64 / 1e3;
        Latency {
            count: histogram.len(),
            mean_us: if histogram.is_empty() { 0.0 } else { histogram.mean() / 1e3 },
            p50_us: micros(histogram.value_at_quantile(0.5)),
            p90_us: micros(histogram.value_at_quantile(0.9)),
            p99_us: micros(histogram.value_at_quantile(0.99)),
            p999_us: micros(histogram.value_at_quantile(0.999)),
            max_us: micros(histogram.max()),
        }
    }
}

/// A distribution of latencies in microseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "each field is the quantile of its name")]
pub struct Latency {
    pub count: u64,
    pub mean_us: f64,
    pub p50_us: f64,
    pub p90_us: f64,
    pub p99_us: f64,
    pub p999_us: f64,
    pub max_us: f64,
}

impl std::fmt::Display for Latency {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let ms = |us: f64| us / 1e3;
        write!(
            out,
            "p50 {:.2} ms, p90 {:.2} ms, p99 {:.2} ms, p99.9 {:.2} ms, max {:.2} ms",
            ms(self.p50_us),
            ms(self.p90_us),
            ms(self.p99_us),
            ms(self.p999_us),
            ms(self.max_us)
        )
    }
}
