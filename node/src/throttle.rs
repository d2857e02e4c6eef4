//! Warnings that repeat: the first is written, then one at each doubling of their number.

use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// After so long without one the next is the first again: the lines of last month are forgotten.
const QUIET: Duration = Duration::from_hours(1);

static START: LazyLock<Instant> = LazyLock::new(Instant::now);

/// Counts events of one kind and tells which of them to log.
#[derive(Debug, Default)]
pub(crate) struct Doublings {
    count: AtomicU64,
    /// When the last one was: milliseconds of the process.
    last: AtomicU64,
}

impl Doublings {
    /// Counts one more; their number where it is one to log: 1, 2, 4, 8 and so on.
    pub(crate) fn count(&self) -> Option<u64> {
        self.count_at(START.elapsed())
    }

    fn count_at(&self, now: Duration) -> Option<u64> {
        let now = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
        let last = self.last.swap(now, Ordering::Relaxed);
        if u128::from(now.saturating_sub(last)) > QUIET.as_millis() {
            self.count.store(0, Ordering::Relaxed);
        }
        let count = self.count.fetch_add(1, Ordering::Relaxed).wrapping_add(1);
        count.is_power_of_two().then_some(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_and_each_doubling_are_logged_and_after_a_quiet_hour_the_first_again() {
        let events = Doublings::default();
        let logged: Vec<_> =
            (0..100).filter_map(|second| events.count_at(Duration::from_secs(second))).collect();
        assert_eq!(logged, [1, 2, 4, 8, 16, 32, 64]);
        let later = Duration::from_secs(99) + QUIET;
        assert_eq!(events.count_at(later), None, "the 101st");
        assert_eq!(events.count_at(later + QUIET + Duration::from_millis(1)), Some(1));
    }
}
