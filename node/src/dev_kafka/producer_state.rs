//! Memory of a partition about idempotent producers (KIP-98): the last five batches of each, by producer id.
//!
//! Invariants: a batch found again among the last five with the same epoch and the same sequence range is a
//! resend and answers with its first offset; otherwise sequences follow each other without a gap and wrap
//! from 2^31-1 to 0; an older epoch is refused. A producer id that the partition does not know (any more) may
//! start at any sequence, as in Kafka since KIP-360.

use std::collections::VecDeque;

use causeway_protocol::kafka::batch::{BatchHeader, BatchStamp};
use hashbrown::HashMap;

/// Batches remembered per producer, fixed in Kafka (`ProducerStateEntry.NUM_BATCHES_TO_RETAIN`).
const REMEMBERED: usize = 5;
/// Producers remembered per partition; the one that wrote longest ago is forgotten beyond it, so that the
/// table is bounded.
const MAX_PRODUCERS: usize = 10_000;

/// Finding of `check` about a batch that may be appended or was already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// New: append it.
    Append,
    /// Appended before with this first offset and (log-append) timestamp.
    Duplicate { base_offset: i64, timestamp: i64 },
}

/// Why a batch must not be appended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Error {
    /// INVALID_PRODUCER_EPOCH (47).
    #[error("producer epoch {got} is older than {current}")]
    Fenced { got: i16, current: i16 },
    /// OUT_OF_ORDER_SEQUENCE_NUMBER (45).
    #[error("sequence {got} where {expected} is next")]
    OutOfOrder { got: i32, expected: i32 },
}

#[derive(Debug, Clone, Copy)]
struct Remembered {
    first_sequence: i32,
    last_sequence: i32,
    base_offset: i64,
    timestamp: i64,
}

/// One producer as DescribeProducers (KIP-664) shows it.
#[derive(Debug, Clone)]
pub struct Producer {
    /// Its current epoch.
    pub epoch: i16,
    /// When it last appended, in milliseconds since 1970.
    pub last_timestamp: i64,
    batches: VecDeque<Remembered>,
}

impl Producer {
    /// Sequence of the last record appended, -1 when none is remembered.
    pub fn last_sequence(&self) -> i32 {
        self.batches.back().map_or(-1, |batch| batch.last_sequence)
    }
}

/// The producers of one partition.
#[derive(Debug, Default)]
pub(super) struct Producers {
    by_id: HashMap<i64, Producer>,
}

/// `sequence + count`, wrapping from 2^31-1 to 0.
fn advance(sequence: i32, count: i32) -> i32 {
    BatchStamp::sequence_after(sequence, usize::try_from(count).unwrap_or(0))
}

impl Producers {
    /// Judges a batch from a client. Batches without producer id are always new.
    pub(super) fn check(&self, batch: &BatchHeader) -> Result<Verdict, Error> {
        let BatchStamp { producer_id, producer_epoch, base_sequence: first } = batch.identity;
        let Some(known) = self.by_id.get(&producer_id).filter(|_| producer_id >= 0) else {
            return Ok(Verdict::Append);
        };
        if producer_epoch == known.epoch {
            let last = advance(first, batch.last_offset_delta);
            let seen = known.batches.iter().find(|b| b.first_sequence == first && b.last_sequence == last);
            if let Some(seen) = seen {
                return Ok(Verdict::Duplicate { base_offset: seen.base_offset, timestamp: seen.timestamp });
            }
        }
        if producer_epoch < known.epoch {
            return Err(Error::Fenced { got: producer_epoch, current: known.epoch });
        }
        let expected = if producer_epoch > known.epoch { 0 } else { advance(known.last_sequence(), 1) };
        if first == expected { Ok(Verdict::Append) } else { Err(Error::OutOfOrder { got: first, expected }) }
    }

    /// Remembers a batch that was appended at `base_offset`; `now` in milliseconds since 1970.
    pub(super) fn appended(&mut self, batch: &BatchHeader, base_offset: i64, append_time: i64, now: i64) {
        let BatchStamp { producer_id, producer_epoch, base_sequence } = batch.identity;
        if producer_id < 0 || base_sequence < 0 {
            return;
        }
        if self.by_id.len() >= MAX_PRODUCERS && !self.by_id.contains_key(&producer_id) {
            let oldest =
                self.by_id.iter().min_by_key(|(_, producer)| producer.last_timestamp).map(|(id, _)| *id);
            oldest.map(|id| self.by_id.remove(&id));
        }
        let fresh = || Producer { epoch: producer_epoch, last_timestamp: now, batches: VecDeque::new() };
        let producer = self.by_id.entry(producer_id).or_insert_with(fresh);
        if producer.epoch != producer_epoch {
            producer.epoch = producer_epoch;
            producer.batches.clear();
        }
        if producer.batches.len() == REMEMBERED {
            producer.batches.pop_front();
        }
        producer.batches.push_back(Remembered {
            first_sequence: base_sequence,
            last_sequence: advance(base_sequence, batch.last_offset_delta),
            base_offset,
            timestamp: append_time,
        });
        producer.last_timestamp = now;
    }

    /// The producers known, by id.
    pub(super) fn snapshot(&self) -> Vec<(i64, Producer)> {
        let mut all: Vec<_> = self.by_id.iter().map(|(id, producer)| (*id, producer.clone())).collect();
        all.sort_unstable_by_key(|(id, _)| *id);
        all
    }

    /// The highest producer id seen, so that a reloaded broker hands out higher ones.
    pub(super) fn highest_id(&self) -> Option<i64> {
        self.by_id.keys().copied().max()
    }

    /// Forgets one producer, as Kafka does after `producer.id.expiration.ms`.
    pub(super) fn forget(&mut self, producer_id: i64) -> bool {
        self.by_id.remove(&producer_id).is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(epoch: i16, sequence: i32, records: i32) -> BatchHeader {
        BatchHeader {
            base_offset: 0,
            batch_length: 100,
            partition_leader_epoch: 0,
            crc: 0,
            attributes: 0,
            last_offset_delta: records - 1,
            base_timestamp: 0,
            max_timestamp: 0,
            identity: BatchStamp { producer_id: 7, producer_epoch: epoch, base_sequence: sequence },
            records_count: records,
        }
    }

    fn append(state: &mut Producers, next: &mut i64, batch: &BatchHeader) -> Result<Verdict, Error> {
        let verdict = state.check(batch)?;
        if verdict == Verdict::Append {
            state.appended(batch, *next, -1, 0);
            *next += i64::from(batch.records_count);
        }
        Ok(verdict)
    }

    #[test]
    fn a_resend_of_any_of_the_last_five_batches_keeps_its_offset() {
        let (mut state, mut next) = (Producers::default(), 0);
        for i in 0..6 {
            assert_eq!(append(&mut state, &mut next, &batch(0, i * 10, 10)), Ok(Verdict::Append));
        }
        for i in 1..6 {
            let expected = Verdict::Duplicate { base_offset: i64::from(i) * 10, timestamp: -1 };
            assert_eq!(append(&mut state, &mut next, &batch(0, i * 10, 10)), Ok(expected));
        }
        assert_eq!(
            append(&mut state, &mut next, &batch(0, 0, 10)),
            Err(Error::OutOfOrder { got: 0, expected: 60 })
        );
        assert_eq!(next, 60);
    }

    #[test]
    fn a_resend_with_other_bounds_is_out_of_order() {
        let (mut state, mut next) = (Producers::default(), 0);
        assert_eq!(append(&mut state, &mut next, &batch(0, 0, 10)), Ok(Verdict::Append));
        assert_eq!(
            append(&mut state, &mut next, &batch(0, 0, 9)),
            Err(Error::OutOfOrder { got: 0, expected: 10 })
        );
        assert_eq!(
            append(&mut state, &mut next, &batch(0, 11, 1)),
            Err(Error::OutOfOrder { got: 11, expected: 10 })
        );
    }

    #[test]
    fn a_new_epoch_starts_at_zero_and_fences_the_old_one() {
        let (mut state, mut next) = (Producers::default(), 0);
        assert_eq!(
            append(&mut state, &mut next, &batch(3, 5, 1)),
            Ok(Verdict::Append),
            "an unknown producer starts anywhere"
        );
        assert_eq!(
            append(&mut state, &mut next, &batch(4, 6, 1)),
            Err(Error::OutOfOrder { got: 6, expected: 0 })
        );
        assert_eq!(append(&mut state, &mut next, &batch(4, 0, 1)), Ok(Verdict::Append));
        assert_eq!(append(&mut state, &mut next, &batch(3, 6, 1)), Err(Error::Fenced { got: 3, current: 4 }));
    }

    #[test]
    fn sequences_wrap_to_zero_inside_and_between_batches() {
        let (mut state, mut next) = (Producers::default(), 0);
        assert_eq!(append(&mut state, &mut next, &batch(0, i32::MAX - 4, 10)), Ok(Verdict::Append));
        assert_eq!(append(&mut state, &mut next, &batch(0, 5, 1)), Ok(Verdict::Append));
        let mut state = Producers::default();
        assert_eq!(append(&mut state, &mut next, &batch(0, i32::MAX, 1)), Ok(Verdict::Append));
        assert_eq!(append(&mut state, &mut next, &batch(0, 0, 1)), Ok(Verdict::Append));
    }
}
