//! The books of a bridge.
//!
//! A [`Ledger`] holds plain numbers under its owner's lock, and every movement changes both sides in
//! one critical section, so each ledger obeys
//! `matched = success + failed + dropped + queuing + inflight` whenever its lock is free, and so does
//! any sum of ledgers, whatever the moment of each reading. `matched` is counted where messages come
//! in and the rest where they go: the law can fail, and a test that breaks a movement sees it.

use std::ops::AddAssign;

use serde::{Deserialize, Serialize};

macro_rules! ledger {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// Counts of one place that holds messages (a partition's queue, a bridge's refusals).
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
        pub struct Ledger {
            $($(#[$doc])* pub $name: u64,)*
        }

        impl Ledger {
            /// All counts with their names.
            pub fn counts(&self) -> impl Iterator<Item = (&'static str, u64)> + use<> {
                [$((stringify!($name), self.$name)),*].into_iter()
            }

            /// Sets the count called `name`; false where there is none of that name.
            pub fn set(&mut self, name: &str, value: u64) -> bool {
                match name {
                    $(stringify!($name) => self.$name = value,)*
                    _ => return false,
                }
                true
            }
        }

        impl AddAssign for Ledger {
            fn add_assign(&mut self, other: Self) {
                $(self.$name += other.$name;)*
            }
        }
    };
}

ledger! {
    /// Messages taken on.
    matched,
    /// Messages whose fate is the wanted one.
    success,
    /// Messages given up after they were taken on.
    failed,
    /// Oldest messages dropped because the queue was full (QoS 0 only).
    dropped_queue_full,
    /// Messages dropped because they were too old.
    dropped_expired,
    /// Messages dropped because the bridge was stopped with them inside.
    dropped_resource_stopped,
    /// Messages waiting, not sent (now).
    queuing,
    /// Bytes of them, encoded (now).
    queuing_bytes,
    /// Messages sent, answer outstanding (now).
    inflight,
    /// Messages sent again.
    retried,
    /// Answers that came after a synchronous caller had stopped waiting.
    late_reply,
    /// Messages taken from Kafka (consumer bridges).
    received,
    /// Of those given up, how many are in the dead-letter topic.
    dead_lettered,
    /// Of those given up, how many could not be written to the dead-letter topic.
    dead_letters_lost,
    /// Records sent again although Kafka may have them and could no longer tell.
    possible_duplicates,
    /// Of `queuing_bytes`, how many are in files of a hybrid buffer (now).
    queuing_in_files,
}

impl Ledger {
    /// All drops.
    pub fn dropped(&self) -> u64 {
        self.dropped_queue_full + self.dropped_expired + self.dropped_resource_stopped
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
    /// These books without what has come to no end: for a sum that nothing is taken from any more. What is
    /// still open is counted where it is then (a buffer on disk, Kafka).
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
    fn every_count_is_set_by_its_name_and_added() {
        let mut ledger = Ledger::default();
        for (number, (name, _)) in (1..).zip(Ledger::default().counts()) {
            assert!(ledger.set(name, number), "{name}");
        }
        assert!(!ledger.set("dropped", 1));
        let mut twice = ledger;
        twice += ledger;
        assert!(twice.counts().map(|(_, count)| count).eq((1..=16).map(|number| 2 * number)));
    }

    #[test]
    fn a_message_that_went_nowhere_shows_as_an_imbalance() {
        let mut ledger = Ledger { matched: 5, success: 2, queuing: 1, inflight: 1, ..Ledger::default() };
        assert_eq!(ledger.imbalance(), 1);
        ledger += Ledger { dropped_queue_full: 1, ..Ledger::default() };
        assert_eq!(ledger.imbalance(), 0);
    }
}
