//! One total for what all producer bridges of a node hold in memory, and the share that each inbox has of it.
//!
//! Shares grow and shrink by blocks of [`BLOCK`] bytes, so that the one counter that all threads share is
//! touched once in hundreds of records and not with each.
//!
//! Invariants:
//! * The blocks of all shares together stay within the limit, but for the first block of each inbox, and for
//!   what had been accepted before (records that move to another inbox, or come back from the disk).
//! * No inbox starves: it may always have one block, and one record however large when it is empty.
//! * An empty inbox has no block, and a share that is dropped gives all back.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::budget::Budget;
use crate::flow::Room;

/// Bytes by which shares change.
pub(super) const BLOCK: usize = 64 * 1024;

/// Memory of a record beside its encoded bytes: its ticket, or its length.
pub(super) const RECORD: usize = 32;

/// Memory that the producer bridges of a node share.
#[derive(Debug)]
pub struct NodeMemory {
    budget: Arc<Budget>,
    /// The machine is short of memory.
    short: AtomicBool,
}

impl NodeMemory {
    /// So many bytes for all inboxes.
    pub fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self { budget: Budget::new(limit), short: AtomicBool::new(false) })
    }

    /// Bytes there are in all.
    pub fn limit(&self) -> usize {
        self.budget.limit()
    }

    /// Bytes in the blocks of all inboxes.
    pub fn used(&self) -> usize {
        self.budget.used()
    }

    /// Whether the machine is short of memory, as [`Self::set_short`] said last.
    pub fn is_short(&self) -> bool {
        self.short.load(Ordering::Relaxed)
    }

    /// Says whether the machine is short of memory. When it no longer is, those who were refused for it try
    /// again.
    pub fn set_short(&self, short: bool) {
        if self.short.swap(short, Ordering::Relaxed) && !short {
            self.announce();
        }
    }

    /// Where those wait who were refused.
    pub(super) fn room(&self) -> &Room {
        self.budget.room()
    }

    fn announce(&self) {
        self.room().notify_one();
        self.room().notify_waiters();
    }
}

/// The blocks of one inbox.
#[derive(Debug)]
pub(super) struct Share {
    node: Arc<NodeMemory>,
    /// Bytes in its blocks.
    charged: usize,
    /// A publisher waits in the room of the node for this inbox.
    refused: bool,
}

impl Share {
    pub(super) fn new(node: Arc<NodeMemory>) -> Self {
        Self { node, charged: 0, refused: false }
    }

    pub(super) fn node(&self) -> &NodeMemory {
        &self.node
    }

    /// Whether the inbox may grow from one cost to another.
    pub(super) fn admits(&mut self, before: usize, after: usize) -> bool {
        if after <= self.charged {
            return true;
        }
        let more = (after - self.charged).div_ceil(BLOCK) * BLOCK;
        if !self.node.budget.try_reserve(more) {
            if before > 0 && after > BLOCK {
                return false;
            }
            self.node.budget.add(more);
        }
        self.charged += more;
        true
    }

    /// The inbox has this cost, whether there is room or not.
    pub(super) fn force(&mut self, cost: usize) {
        if cost > self.charged {
            let more = (cost - self.charged).div_ceil(BLOCK) * BLOCK;
            self.node.budget.add(more);
            self.charged += more;
        }
    }

    /// Notes that a publisher was refused, and returns the room of the node in which it waits.
    pub(super) fn refuse(&mut self) -> Room {
        self.refused = true;
        self.node.budget.refuse();
        self.node.room().clone()
    }

    /// The inbox has shrunk to this cost: gives back what it does not need, but for one block of which it
    /// will soon have need again, and tells those who wait.
    pub(super) fn shrink(&mut self, cost: usize) {
        let keep = if cost == 0 { 0 } else { cost.div_ceil(BLOCK) * BLOCK + BLOCK };
        let back = self.charged.saturating_sub(keep);
        if back > 0 {
            self.node.budget.release(back);
            self.charged -= back;
        }
        // Free space within its own blocks is room for those who were refused here.
        if std::mem::take(&mut self.refused) || (back > 0 && self.node.budget.take_refused()) {
            self.node.announce();
        }
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.shrink(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_taken_and_given_back() {
        let node = NodeMemory::new(4 * BLOCK);
        let (mut a, mut b) = (Share::new(node.clone()), Share::new(node.clone()));
        assert!(a.admits(0, 10) && a.admits(10, BLOCK));
        assert_eq!(node.used(), BLOCK);
        assert!(a.admits(BLOCK, 4 * BLOCK) && !a.admits(4 * BLOCK, 4 * BLOCK + 1));
        // Full, and still each inbox has a block, and an empty one has a record.
        assert!(b.admits(0, BLOCK) && !b.admits(BLOCK, BLOCK + 1));
        assert_eq!(node.used(), 5 * BLOCK);
        a.shrink(BLOCK);
        assert_eq!(node.used(), 3 * BLOCK, "one block more than it has need of");
        a.shrink(0);
        assert_eq!(node.used(), BLOCK);
        let mut c = Share::new(node.clone());
        assert!(c.admits(0, 9 * BLOCK), "larger than all there is, and nothing else is here");
        drop((a, b, c));
        assert_eq!(node.used(), 0);
    }

    #[tokio::test]
    async fn who_was_refused_hears_of_room_wherever_it_is() {
        let node = NodeMemory::new(2 * BLOCK);
        let (mut a, mut b) = (Share::new(node.clone()), Share::new(node.clone()));
        assert!(a.admits(0, BLOCK + 1) && b.admits(0, BLOCK));
        assert!(!b.admits(BLOCK, BLOCK + 1));
        let room = b.refuse();
        let heard = room.notified();
        a.shrink(0);
        heard.await;
        // In its own blocks.
        assert!(b.admits(BLOCK, 2 * BLOCK) && !b.admits(2 * BLOCK, 3 * BLOCK));
        let heard = b.refuse();
        b.shrink(2 * BLOCK - 1);
        heard.notified().await;
        // When the machine has memory again.
        node.set_short(true);
        let heard = b.refuse();
        node.set_short(true);
        assert!(node.is_short());
        node.set_short(false);
        heard.notified().await;
    }
}
