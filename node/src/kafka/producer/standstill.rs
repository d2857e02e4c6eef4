//! Whether a topic producer stands still although one of its partitions looks well: that of a partition which nobody writes
//! to says nothing about Kafka.

use std::sync::Arc;

use super::partition_producer::Partition;

/// What a partition tells at a look.
#[derive(Debug, Clone, Default)]
pub(super) struct Sign {
    /// Records written since the start.
    pub(super) written: u64,
    /// Records that wait for Kafka, sent or not.
    pub(super) held: u64,
    /// Why it is not moving.
    pub(super) trouble: Option<Arc<str>>,
}

impl From<&Arc<Partition>> for Sign {
    fn from(partition: &Arc<Partition>) -> Self {
        let ledger = partition.inbox.ledger();
        let trouble = partition.trouble.lock().clone();
        Self { written: ledger.success, held: ledger.queuing + ledger.inflight, trouble }
    }
}

/// Compares two looks at the partitions.
#[derive(Debug, Default)]
pub(super) struct Standstill {
    written: Option<u64>,
    reason: Option<Arc<str>>,
}

impl Standstill {
    /// Looks at all partitions; true where it is worth looking again in a while, because one of them is in trouble.
    pub(super) fn look(&mut self, signs: impl Iterator<Item = Sign>) -> bool {
        let (mut written, mut held_up) = (0, None);
        for sign in signs {
            written += sign.written;
            if held_up.is_none() && sign.held > 0 {
                held_up = sign.trouble;
            }
        }
        let before = self.written.replace(written).filter(|_| held_up.is_some());
        self.reason = held_up.clone().filter(|_| before == Some(written));
        if held_up.is_none() {
            self.written = None;
        }
        held_up.is_some()
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
        Sign { written, held, trouble: trouble.map(Arc::from) }
    }

    #[test]
    fn an_idle_partition_does_not_hide_that_nothing_is_written() {
        let mut standstill = Standstill::default();
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
        let mut standstill = Standstill::default();
        for _ in 0..3 {
            assert!(!standstill.look([sign(5, 0, Some("gone"))].into_iter()));
            assert_eq!(standstill.reason(), None);
        }
    }
}
