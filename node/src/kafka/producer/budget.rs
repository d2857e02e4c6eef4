//! Bytes that several inboxes share: the topics of one bridge whose topic is a template.
//!
//! Invariant: what has been reserved or added and not released is at most [`Budget::limit`], but for what was
//! added ([`Budget::add`]) because it had been accepted before.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use crate::flow::Room;

/// Bytes of memory that the partitions of a bridge share.
#[derive(Debug)]
pub struct Budget {
    limit: usize,
    used: AtomicUsize,
    /// A reservation was refused since space was last freed.
    refused: AtomicBool,
    /// The room of all who share the budget: what one frees another may use.
    room: Room,
}

impl Budget {
    /// A budget of `limit` bytes.
    pub fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self {
            limit,
            used: AtomicUsize::new(0),
            refused: AtomicBool::new(false),
            room: Room::default(),
        })
    }

    /// Bytes there are in all.
    pub fn limit(&self) -> usize {
        self.limit
    }

    /// Bytes in use.
    pub fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }

    /// Where those wait who were refused.
    pub fn room(&self) -> &Room {
        &self.room
    }

    /// Reserves bytes; false where fewer are free.
    pub fn try_reserve(&self, bytes: usize) -> bool {
        let fits = |used: usize| used.checked_add(bytes).filter(|sum| *sum <= self.limit);
        self.used.fetch_update(Ordering::AcqRel, Ordering::Relaxed, fits).is_ok()
    }

    /// Takes bytes whether they fit or not.
    pub fn add(&self, bytes: usize) {
        self.used.fetch_add(bytes, Ordering::AcqRel);
    }

    /// Gives bytes back.
    pub fn release(&self, bytes: usize) {
        self.used.fetch_sub(bytes, Ordering::AcqRel);
    }

    /// Notes that a reservation was refused.
    pub fn refuse(&self) {
        self.refused.store(true, Ordering::Release);
    }

    /// Whether a reservation was refused since the last call.
    pub fn take_refused(&self) -> bool {
        self.refused.swap(false, Ordering::AcqRel)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_is_reserved_than_there_is() {
        let budget = Budget::new(10);
        assert!(budget.try_reserve(6) && !budget.try_reserve(5) && budget.try_reserve(4));
        budget.release(5);
        budget.add(7);
        assert_eq!(budget.used(), 12);
        assert!(!budget.try_reserve(0), "what was added beyond the limit must go first");
        budget.release(12);
        assert!(budget.try_reserve(10));
    }
}
