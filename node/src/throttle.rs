//! Warnings that repeat: the first is written, then one at each doubling of their number.

use std::sync::atomic::{AtomicU64, Ordering};

/// Counts events of one kind and tells which of them to log.
#[derive(Debug, Default)]
pub(crate) struct Doublings(AtomicU64);

impl Doublings {
    /// Counts one more; their number where it is one to log: 1, 2, 4, 8 and so on.
    pub(crate) fn count(&self) -> Option<u64> {
        let count = self.0.fetch_add(1, Ordering::Relaxed).wrapping_add(1);
        count.is_power_of_two().then_some(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_and_each_doubling_are_logged() {
        let events = Doublings::default();
        let logged: Vec<_> = (0..100).filter_map(|_| events.count()).collect();
        assert_eq!(logged, [1, 2, 4, 8, 16, 32, 64]);
    }
}
