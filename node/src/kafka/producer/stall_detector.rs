//! Whether a topic producer stands still although one of its partitions looks well: that of a partition which
//! no client writes to says nothing about Kafka, nor does one whose records are all refused.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::Mutex;

use super::partition_producer::Partition;

/// So many refused records without a written one between them are more than one bad message.
const MANY: u64 = 3;

/// Records of a partition that Kafka refused for good.
#[derive(Debug, Default)]
pub struct Refusals {
    /// Records, or without acks connections closed.
    count: AtomicU64,
    reason: Mutex<Option<Arc<str>>>,
    /// Without acks: records that Kafka has handled.
    handled: AtomicU64,
    /// Without acks: a connection was closed, and nothing handled since.
    unheard: AtomicBool,
    /// Without acks what was written is not what counts.
    without_acks: AtomicBool,
}

impl Refusals {
    pub(super) fn add(&self, records: u64, reason: &str) {
        *self.reason.lock() = Some(reason.into());
        self.count.fetch_add(records, Ordering::Relaxed);
    }

    /// Without acks, a connection was closed over batches.
    pub(super) fn add_unheard(&self, reason: &str) {
        self.without_acks.store(true, Ordering::Relaxed);
        self.unheard.store(true, Ordering::Relaxed);
        self.add(1, reason);
    }

    /// Without acks, records were handled; true where that is worth a look.
    pub(super) fn note_handled(&self, records: u64) -> bool {
        self.handled.fetch_add(records, Ordering::Relaxed);
        self.unheard.swap(false, Ordering::Relaxed)
    }
}

/// State of a partition at a look.
#[derive(Debug, Clone, Default)]
pub(super) struct Sign {
    /// Records written since the start.
    pub(super) written: u64,
    /// Records that wait for Kafka, sent or not.
    pub(super) held: u64,
    /// Why it is not moving.
    pub(super) trouble: Option<Arc<str>>,
    /// Records refused for good since the start.
    pub(super) refused: u64,
    /// Why the last of them was.
    pub(super) refusal: Option<Arc<str>>,
}

impl From<&Arc<Partition>> for Sign {
    fn from(partition: &Arc<Partition>) -> Self {
        let ledger = partition.inbox.ledger();
        let trouble = partition.trouble.lock().clone();
        let refusals = &partition.refusals;
        let without_acks = refusals.without_acks.load(Ordering::Relaxed);
        Self {
            written: if without_acks { refusals.handled.load(Ordering::Relaxed) } else { ledger.success },
            held: ledger.queuing + ledger.inflight,
            trouble,
            refused: refusals.count.load(Ordering::Relaxed),
            refusal: refusals.reason.lock().clone(),
        }
    }
}

/// Compares two looks at the partitions.
#[derive(Debug, Default)]
pub(super) struct StallDetector {
    written: Option<u64>,
    reason: Option<Arc<str>>,
    /// Records written, and records refused by then, when the former last changed.
    last_written: (u64, u64),
    refusing: Option<Arc<str>>,
}

impl StallDetector {
    /// Looks at all partitions; true where it is worth looking again in a while, because one of them is in
    /// trouble.
    pub(super) fn look(&mut self, signs: impl Iterator<Item = Sign>) -> bool {
        let (mut written, mut held_up) = (0, None);
        let (mut refused, mut refusal) = (0, None);
        for sign in signs {
            written += sign.written;
            refused += sign.refused;
            refusal = sign.refusal.or(refusal);
            if held_up.is_none() && sign.held > 0 {
                held_up = sign.trouble;
            }
        }
        if self.last_written.0 != written || self.last_written.1 > refused {
            self.last_written = (written, refused);
        }
        let in_a_row = refused - self.last_written.1;
        self.refusing = refusal.filter(|_| in_a_row >= MANY).map(|reason| {
            format!("Kafka has refused all since it last took a record, {in_a_row} so far: {reason}").into()
        });
        let before = self.written.replace(written).filter(|_| held_up.is_some());
        self.reason = held_up.clone().filter(|_| before == Some(written));
        if held_up.is_none() {
            self.written = None;
        }
        held_up.is_some()
    }

    /// Why all records are refused, where they are.
    pub(super) fn refusing(&self) -> Option<&Arc<str>> {
        self.refusing.as_ref()
    }

    /// Why nothing was written between the last two looks although something waits.
    pub(super) fn reason(&self) -> Option<&Arc<str>> {
        self.reason.as_ref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sign(written: u64, held: u64, trouble: Option<&str>) -> Sign {
        Sign { written, held, trouble: trouble.map(Arc::from), ..Sign::default() }
    }

    #[test]
    fn records_that_are_all_refused_show_until_one_is_written() {
        let mut standstill = StallDetector::default();
        let mut look = |written, refused| {
            let refusal = (refused > 0).then(|| Arc::from("too large"));
            let one = Sign { written, refused, refusal, ..Sign::default() };
            standstill.look([one, sign(2, 0, None)].into_iter());
            standstill.refusing().map(ToString::to_string)
        };
        assert_eq!(look(5, 0), None);
        assert_eq!(look(5, 2), None, "bad messages");
        let shown = look(5, 3).expect("all are refused");
        assert!(shown.contains("too large") && shown.contains('3'), "{shown}");
        assert_eq!(look(6, 3), None, "one was written");
        assert_eq!(look(6, 5), None);
        assert!(look(6, 6).is_some());
    }

    #[test]
    fn an_idle_partition_does_not_hide_that_nothing_is_written() {
        let mut standstill = StallDetector::default();
        let signs = [sign(5, 3, Some("no replicas")), sign(0, 0, None)];
        assert!(standstill.look(signs.clone().into_iter()));
        assert_eq!(standstill.reason(), None, "one look tells nothing");
        assert!(standstill.look(signs.clone().into_iter()));
        assert_eq!(standstill.reason().map(|reason| &**reason), Some("no replicas"));
        let moves = [sign(5, 3, Some("no replicas")), sign(1, 0, None)];
        assert!(standstill.look(moves.into_iter()));
        assert_eq!(standstill.reason(), None, "another partition was written to");
        assert!(!standstill.look([sign(8, 0, None), sign(1, 0, None)].into_iter()));
        assert_eq!(standstill.reason(), None);
    }

    #[test]
    fn trouble_without_anything_that_waits_is_none() {
        let mut standstill = StallDetector::default();
        for _ in 0..3 {
            assert!(!standstill.look([sign(5, 0, Some("gone"))].into_iter()));
            assert_eq!(standstill.reason(), None);
        }
    }
}
