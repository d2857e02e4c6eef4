//! How far a partition is done: which records are out, and the offset that may be committed.
//!
//! A [`OffsetTracker`] hands out a sequence for every record that is delivered and is told, in any order,
//! which are finished. Invariants:
//! * [`OffsetTracker::position`] never passes a record that is not finished.
//! * Sequences are consecutive even where offsets are not (compaction, transaction markers): a sequence
//!   finds its record without a search.
//! * Finishing a sequence twice, or one that was never given out, changes nothing.

use std::collections::VecDeque;

use crate::flow::SequenceRange;

/// A record that was given out.
struct Entry {
    offset: i64,
    bytes: u32,
    finished: bool,
}

/// Offsets of a partition that are handed over, and up to which they may be committed.
pub(super) struct OffsetTracker {
    entries: VecDeque<Entry>,
    first_sequence: u64,
    /// Everything below was seen: given out or skipped.
    seen_to: i64,
    unfinished: usize,
    unfinished_bytes: usize,
}

impl OffsetTracker {
    /// A tracker that starts at `offset`: the committed one, or where the reset policy says.
    pub(super) fn starting_at(offset: i64) -> Self {
        Self {
            entries: VecDeque::new(),
            first_sequence: 0,
            seen_to: offset,
            unfinished: 0,
            unfinished_bytes: 0,
        }
    }

    /// Gives out the record at `offset` and returns its sequence; `None` where it was given out before
    /// (a fetch answers with whole batches, whatever offset was asked for).
    pub(super) fn begin(&mut self, offset: i64, bytes: usize) -> Option<u64> {
        if offset < self.seen_to {
            return None;
        }
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        let sequence = self.first_sequence + self.entries.len() as u64;
        self.entries.push_back(Entry { offset, bytes, finished: false });
        self.seen_to = offset.saturating_add(1);
        self.unfinished += 1;
        self.unfinished_bytes += bytes as usize;
        Some(sequence)
    }

    /// Nothing below `offset` is to come any more.
    pub(super) fn skip_to(&mut self, offset: i64) {
        self.seen_to = self.seen_to.max(offset);
    }

    /// Offsets go back to `offset`: what is out no longer counts, its sequences are void.
    pub(super) fn restart_at(&mut self, offset: i64) {
        self.first_sequence += self.entries.len() as u64;
        self.entries.clear();
        self.seen_to = offset;
        self.unfinished = 0;
        self.unfinished_bytes = 0;
    }

    /// These sequences are finished.
    pub(super) fn finish(&mut self, range: SequenceRange) {
        let end = range.first.saturating_add(range.count.into());
        let known_end = self.first_sequence + self.entries.len() as u64;
        for sequence in range.first.max(self.first_sequence)..end.min(known_end) {
            let index = (sequence - self.first_sequence) as usize;
            if let Some(entry) = self.entries.get_mut(index).filter(|entry| !entry.finished) {
                entry.finished = true;
                self.unfinished -= 1;
                self.unfinished_bytes -= entry.bytes as usize;
            }
        }
        while self.entries.front().is_some_and(|entry| entry.finished) {
            self.entries.pop_front();
            self.first_sequence += 1;
        }
    }

    /// The offset to commit: the lowest that is not finished.
    pub(super) fn position(&self) -> i64 {
        self.entries.front().map_or(self.seen_to, |entry| entry.offset)
    }

    /// Everything below was given out or skipped.
    pub(super) fn seen_to(&self) -> i64 {
        self.seen_to
    }

    /// Records that are out.
    pub(super) fn unfinished(&self) -> usize {
        self.unfinished
    }

    /// Bytes of them.
    pub(super) fn unfinished_bytes(&self) -> usize {
        self.unfinished_bytes
    }

    /// Records remembered: those that are out and the finished ones behind the lowest of them.
    pub(super) fn window(&self) -> usize {
        self.entries.len()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use rand::rngs::SmallRng;
    use rand::{RngExt, SeedableRng};

    use super::*;

    fn one(sequence: u64) -> SequenceRange {
        SequenceRange { first: sequence, count: 1 }
    }

    #[test]
    fn the_position_waits_for_the_lowest_record_that_is_out() {
        let mut tracker = OffsetTracker::starting_at(10);
        let sequences: Vec<u64> = (10..13).map(|offset| tracker.begin(offset, 100).unwrap()).collect();
        tracker.finish(one(sequences[1]));
        tracker.finish(one(sequences[2]));
        assert_eq!((tracker.position(), tracker.unfinished_bytes(), tracker.window()), (10, 100, 3));
        tracker.finish(one(sequences[0]));
        assert_eq!((tracker.position(), tracker.unfinished_bytes(), tracker.window()), (13, 0, 0));
    }

    #[test]
    fn gaps_and_markers_move_the_position_when_nothing_is_out() {
        let mut tracker = OffsetTracker::starting_at(0);
        let sequence = tracker.begin(5, 1).unwrap();
        tracker.skip_to(9);
        assert_eq!(tracker.position(), 5);
        tracker.finish(one(sequence));
        assert_eq!(tracker.position(), 9);
        assert_eq!(tracker.begin(8, 1), None);
        assert!(tracker.begin(20, 1).is_some());
    }

    #[test]
    fn going_back_voids_what_is_out() {
        let mut tracker = OffsetTracker::starting_at(50);
        let void = tracker.begin(50, 7).unwrap();
        tracker.restart_at(20);
        assert_eq!((tracker.position(), tracker.unfinished()), (20, 0));
        let fresh = tracker.begin(20, 7).unwrap();
        assert_ne!(void, fresh);
        tracker.finish(one(void));
        assert_eq!((tracker.position(), tracker.unfinished()), (20, 1));
    }

    #[test]
    fn a_random_run_agrees_with_a_simple_model() {
        let seed: u64 = rand::random();
        println!("seed {seed}");
        let mut random = SmallRng::seed_from_u64(seed);
        for _ in 0..50 {
            let mut tracker = OffsetTracker::starting_at(100);
            let mut model: BTreeMap<u64, (i64, usize)> = BTreeMap::new();
            let mut next_offset = 100;
            let mut given = 0;
            for _ in 0..400 {
                match random.random_range(0..4) {
                    0 | 1 => {
                        next_offset += random.random_range(0..3);
                        let bytes = random.random_range(0..50);
                        let sequence = tracker.begin(next_offset, bytes).unwrap();
                        assert_eq!(sequence, given);
                        given += 1;
                        model.insert(sequence, (next_offset, bytes));
                        next_offset += 1;
                    }
                    2 => {
                        next_offset += random.random_range(0..5);
                        tracker.skip_to(next_offset);
                    }
                    _ => {
                        let first = random.random_range(0..given + 3);
                        let count = random.random_range(1..6);
                        tracker.finish(SequenceRange { first, count });
                        (first..first + u64::from(count)).for_each(|sequence| {
                            model.remove(&sequence);
                        });
                    }
                }
                let lowest = model.values().next().map_or(next_offset, |(offset, _)| *offset);
                assert_eq!(tracker.position(), lowest);
                assert_eq!(tracker.unfinished(), model.len());
                assert_eq!(tracker.unfinished_bytes(), model.values().map(|(_, bytes)| bytes).sum::<usize>());
            }
        }
    }
}
