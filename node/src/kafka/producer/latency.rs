//! How long batches take from their first record to Kafka's answer: a histogram of fixed size, one relaxed
//! addition a batch.
//!
//! Buckets are four an octave, equally wide, from one microsecond on, so a percentile is at most a quarter
//! too high; the last bucket takes everything beyond about 17 minutes.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Buckets an octave, as a power of two.
const FINE: u32 = 2;
const OCTAVES: usize = 30;
const BUCKETS: usize = OCTAVES << FINE;

/// Histogram of the time from a batch's first record to Kafka's answer.
#[derive(Debug)]
pub struct LatencyHistogram {
    buckets: [AtomicU64; BUCKETS],
}

impl Default for LatencyHistogram {
    fn default() -> Self {
        Self { buckets: std::array::from_fn(|_| AtomicU64::new(0)) }
    }
}

/// Snapshot of a histogram.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Latency {
    /// Batches.
    pub batches: u64,
    /// Half of them took no longer.
    pub p50: Duration,
    /// 95 of a hundred took no longer.
    pub p95: Duration,
    /// 99 of a hundred took no longer.
    pub p99: Duration,
    /// None took longer.
    pub max: Duration,
}

fn bucket(time: Duration) -> usize {
    let micros = u64::try_from(time.as_micros()).unwrap_or(u64::MAX).max(1);
    let octave = micros.ilog2();
    // The bits behind the first one.
    let fine = if octave >= FINE { micros >> (octave - FINE) } else { micros << (FINE - octave) };
    let fine = usize::try_from(fine).unwrap_or(0) & ((1 << FINE) - 1);
    (((octave as usize) << FINE) + fine).min(BUCKETS - 1)
}

/// The time that everything in the bucket is below.
fn upper(bucket: usize) -> Duration {
    let (octave, fine) = (bucket >> FINE, bucket & ((1 << FINE) - 1));
    let quarters = (1_u64 << FINE) + fine as u64 + 1;
    Duration::from_nanos(((1000 * quarters) << octave) >> FINE)
}

impl LatencyHistogram {
    /// Takes down one batch.
    pub fn record(&self, time: Duration) {
        if let Some(bucket) = self.buckets.get(bucket(time)) {
            bucket.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Current snapshot.
    pub fn snapshot(&self) -> Latency {
        let counts: Vec<u64> = self.buckets.iter().map(|bucket| bucket.load(Ordering::Relaxed)).collect();
        let batches: u64 = counts.iter().sum();
        let at = |hundredths: u64| {
            let wanted = (batches * hundredths).div_ceil(100);
            let mut sum = 0;
            let reached = counts.iter().position(|count| {
                sum += count;
                sum >= wanted && sum > 0
            });
            reached.map_or(Duration::ZERO, upper)
        };
        Latency { batches, p50: at(50), p95: at(95), p99: at(99), max: at(100) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_at_most_a_quarter_octave_too_high() {
        let histogram = LatencyHistogram::default();
        assert_eq!(histogram.snapshot(), Latency::default());
        for millis in 1..=1000 {
            histogram.record(Duration::from_millis(millis));
        }
        let latency = histogram.snapshot();
        assert_eq!(latency.batches, 1000);
        for (said, exact) in [(latency.p50, 500), (latency.p95, 950), (latency.p99, 990), (latency.max, 1000)]
        {
            let exact = Duration::from_millis(exact);
            assert!(said >= exact && said <= exact.mul_f64(1.26), "{said:?} for {exact:?}");
        }
    }

    #[test]
    fn every_time_falls_into_the_bucket_that_ends_next_above_it() {
        for micros in (1..5000).chain([u64::from(u32::MAX) / 8, 900_000_000]) {
            let time = Duration::from_micros(micros);
            let bucket = bucket(time);
            assert!(upper(bucket) > time, "{micros}");
            assert!(bucket == 0 || upper(bucket - 1) <= time + Duration::from_micros(1), "{micros}");
        }
        assert_eq!(bucket(Duration::ZERO), 0);
        assert_eq!(bucket(Duration::MAX), BUCKETS - 1);
    }
}
