//! A set of positions, kept as ranges: what was done ahead of what is still open. A handful of ranges in
//! practice, so a sorted vector is the fastest.

use std::ops::Range;

/// A set of numbers as ranges. They are sorted, not empty, and neither overlap nor touch.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Ranges(Vec<Range<u64>>);

impl Ranges {
    pub(super) fn contains(&self, position: u64) -> bool {
        let at = self.0.partition_point(|range| range.end <= position);
        self.0.get(at).is_some_and(|range| range.start <= position)
    }

    /// Adds all of `added`.
    pub(super) fn insert(&mut self, added: Range<u64>) {
        if added.is_empty() {
            return;
        }
        if let Some(last) = self.0.last_mut()
            && last.end == added.start
        {
            last.end = added.end;
            return;
        }
        // Those that overlap or touch become one with it.
        let from = self.0.partition_point(|range| range.end < added.start);
        let to = self.0.partition_point(|range| range.start <= added.end);
        let start = self.0.get(from).filter(|_| from < to).map_or(added.start, |r| r.start.min(added.start));
        let last = to.checked_sub(1).filter(|last| *last >= from).and_then(|last| self.0.get(last));
        let end = last.map_or(added.end, |r| r.end.max(added.end));
        self.0.splice(from..to, std::iter::once(start..end));
    }

    /// Takes out what begins at or before `cursor`; the cursor behind it.
    pub(super) fn advance(&mut self, mut cursor: u64) -> u64 {
        let mut gone = 0;
        for range in &self.0 {
            if range.start > cursor {
                break;
            }
            cursor = cursor.max(range.end);
            gone += 1;
        }
        self.0.drain(..gone);
        cursor
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Range<u64>> {
        self.0.iter()
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use rand::{RngExt, SeedableRng, rngs::StdRng};

    use super::*;

    #[test]
    fn ranges_are_a_set() {
        let seed: u64 = rand::random();
        println!("seed {seed}");
        let mut random = StdRng::seed_from_u64(seed);
        for _ in 0..300 {
            let (mut ranges, mut model, mut cursor) = (Ranges::default(), BTreeSet::new(), 0u64);
            for _ in 0..60 {
                let start = cursor + random.random_range(0..40);
                let end = start + random.random_range(0..6);
                ranges.insert(start..end);
                model.extend(start..end);
                if random.random_bool(0.2) {
                    cursor = ranges.advance(cursor);
                    let mut expected = 0;
                    while model.contains(&expected) {
                        expected += 1;
                    }
                    assert_eq!(cursor, expected, "seed {seed}");
                }
                for position in cursor..cursor + 60 {
                    assert_eq!(ranges.contains(position), model.contains(&position), "seed {seed}");
                }
                let flat: Vec<_> = ranges.iter().cloned().flatten().collect();
                let expected: Vec<_> = model.iter().copied().filter(|p| *p >= cursor).collect();
                assert_eq!(flat, expected, "seed {seed}");
                assert!(
                    ranges.0.windows(2).all(|pair| pair[0].end < pair[1].start),
                    "seed {seed}: {ranges:?}"
                );
            }
        }
    }
}
