//! The books of a bridge.
//!
//! A [`Ledger`] holds plain numbers under its owner's lock, and every movement changes both sides in
//! one critical section, so each ledger obeys
//! `matched = success + failed + dropped + queuing + inflight` whenever its lock is free, and so does
//! any sum of ledgers, whatever the moment of each reading. `matched` is counted where messages come
//! in and the rest where they go: the law can fail, and a test that breaks a movement sees it.

use std::ops::AddAssign;

use serde::{Deserialize, Serialize};

/// Counts of one place that holds messages (a partition's queue, a bridge's refusals).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ledger {
    /// Messages taken on.
    pub matched: u64,
    /// Messages whose fate is the wanted one.
    pub success: u64,
    /// Messages given up after they were taken on.
    pub failed: u64,
    /// Oldest messages dropped because the queue was full (QoS 0 only).
    pub dropped_queue_full: u64,
    /// Messages dropped because they were too old.
    pub dropped_expired: u64,
    /// Messages dropped because the bridge was stopped with them inside.
    pub dropped_resource_stopped: u64,
    /// Messages dropped for another reason.
    pub dropped_other: u64,
    /// Messages waiting, not sent (now).
    pub queuing: u64,
    /// Bytes of them, encoded (now).
    pub queuing_bytes: u64,
    /// Messages sent, answer outstanding (now).
    pub inflight: u64,
    /// Messages sent again.
    pub retried: u64,
    /// Answers that came after a synchronous caller had stopped waiting.
    pub late_reply: u64,
    /// Messages taken from Kafka (consumer bridges).
    pub received: u64,
    /// Of those given up, how many are in the dead-letter topic.
    pub dead_lettered: u64,
    /// Of those given up, how many could not be written to the dead-letter topic.
    pub dead_letters_lost: u64,
    /// Records sent again although Kafka may have them and could no longer tell.
    pub possible_duplicates: u64,
    /// Of `queuing_bytes`, how many are in files of a hybrid buffer (now).
    pub queuing_in_files: u64,
}

impl Ledger {
    /// All drops.
    pub fn dropped(&self) -> u64 {
        self.dropped_queue_full + self.dropped_expired + self.dropped_resource_stopped + self.dropped_other
    }

    /// `matched` less everything that it became: 0 where the books are right.
    pub fn imbalance(&self) -> i128 {
        i128::from(self.matched)
            - i128::from(self.success)
            - i128::from(self.failed)
            - i128::from(self.dropped())
            - i128::from(self.queuing)
            - i128::from(self.inflight)
    }
}

impl Ledger {
    /// These books without what has come to no end: for a sum that nothing is taken from any more. What is still open is
    /// in the books of whoever has it then (a buffer on disk, Kafka).
    pub fn closed(self) -> Self {
        let open = self.queuing + self.inflight;
        Self {
            matched: self.matched.saturating_sub(open),
            queuing: 0,
            queuing_bytes: 0,
            queuing_in_files: 0,
            inflight: 0,
            ..self
        }
    }
}

impl AddAssign for Ledger {
    fn add_assign(&mut self, other: Self) {
        self.matched += other.matched;
        self.success += other.success;
        self.failed += other.failed;
        self.dropped_queue_full += other.dropped_queue_full;
        self.dropped_expired += other.dropped_expired;
        self.dropped_resource_stopped += other.dropped_resource_stopped;
        self.dropped_other += other.dropped_other;
        self.queuing += other.queuing;
        self.queuing_bytes += other.queuing_bytes;
        self.queuing_in_files += other.queuing_in_files;
        self.inflight += other.inflight;
        self.retried += other.retried;
        self.late_reply += other.late_reply;
        self.received += other.received;
        self.dead_lettered += other.dead_lettered;
        self.dead_letters_lost += other.dead_letters_lost;
        self.possible_duplicates += other.possible_duplicates;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn closed_books_hold_what_has_ended_and_balance() {
        let open = Ledger {
            matched: 9,
            success: 4,
            failed: 1,
            queuing: 3,
            queuing_bytes: 70,
            inflight: 1,
            ..Ledger::default()
        };
        let closed = Ledger { matched: 5, success: 4, failed: 1, ..Ledger::default() };
        assert_eq!((open.closed(), closed.imbalance()), (closed, 0));
    }

    #[test]
    fn a_message_that_went_nowhere_shows_as_an_imbalance() {
        let mut ledger = Ledger { matched: 5, success: 2, queuing: 1, inflight: 1, ..Ledger::default() };
        assert_eq!(ledger.imbalance(), 1);
        ledger += Ledger { dropped_queue_full: 1, ..Ledger::default() };
        assert_eq!(ledger.imbalance(), 0);
    }
}
