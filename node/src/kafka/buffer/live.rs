//! Which record numbers are still needed, and in which file they are.
//!
//! An interval map: consecutive numbers in one file are one interval, so that a backlog of millions costs as
//! much as the runs it was written in.

use std::collections::BTreeMap;

/// Consecutive record numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Numbers {
    /// The first.
    pub first: u64,
    /// How many, at least 1.
    pub count: u32,
}

impl Numbers {
    /// The number behind the last one.
    pub fn end(self) -> u64 {
        self.first.saturating_add(u64::from(self.count))
    }
}

/// Numbers of the live records of each file.
#[derive(Debug, Default, Clone)]
pub(super) struct Live {
    /// First number to (number behind the last one, file).
    intervals: BTreeMap<u64, (u64, u64)>,
}

impl Live {
    /// Numbers from here on are in this file, whatever was known of them.
    pub(super) fn insert(&mut self, numbers: Numbers, file: u64) {
        self.remove(numbers);
        let (mut first, end) = (numbers.first, numbers.end());
        if let Some((before, (end_before, file_before))) = self.intervals.range(..first).next_back()
            && *end_before == first
            && *file_before == file
        {
            first = *before;
        }
        self.intervals.insert(first, (end, file));
    }

    /// These are no longer needed; unknown ones do no harm. Says how many were.
    pub(super) fn remove(&mut self, numbers: Numbers) -> u64 {
        let (first, end) = (numbers.first, numbers.end());
        let from = self.intervals.range(..first).next_back().map_or(first, |(first, _)| *first);
        let touched: Vec<(u64, u64, u64)> = self
            .intervals
            .range(from..end)
            .filter(|(_, (their_end, _))| *their_end > first)
            .map(|(start, (their_end, file))| (*start, *their_end, *file))
            .collect();
        let mut removed = 0;
        for (start, their_end, file) in touched {
            self.intervals.remove(&start);
            if start < first {
                self.intervals.insert(start, (first, file));
            }
            if their_end > end {
                self.intervals.insert(end, (their_end, file));
            }
            removed += their_end.min(end) - start.max(first);
        }
        removed
    }

    /// Intervals as (first, number behind the last, file), in order.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u64, u64, u64)> + '_ {
        self.intervals.iter().map(|(first, (end, file))| (*first, *end, *file))
    }

    /// Those of `numbers` that are in this file, in order.
    pub(super) fn within(&self, numbers: Numbers, file: u64) -> Vec<Numbers> {
        let among = self.among(numbers).into_iter();
        among.filter(|(_, theirs)| *theirs == file).map(|(numbers, _)| numbers).collect()
    }

    /// Those of `numbers` that are needed, with their files, in order.
    pub(super) fn among(&self, numbers: Numbers) -> Vec<(Numbers, u64)> {
        let (first, end) = (numbers.first, numbers.end());
        let from = self.intervals.range(..first).next_back().map_or(first, |(first, _)| *first);
        let touched = self.intervals.range(from..end).filter(|(_, (their_end, _))| *their_end > first);
        touched
            .map(|(start, (their_end, file))| {
                let start = (*start).max(first);
                (Numbers { first: start, count: ((*their_end).min(end) - start) as u32 }, *file)
            })
            .collect()
    }

    /// True where all of these are needed.
    pub(super) fn covers(&self, numbers: Numbers) -> bool {
        self.overlap(numbers) == u64::from(numbers.count)
    }

    /// True where one of these is needed.
    pub(super) fn covers_any(&self, numbers: Numbers) -> bool {
        self.overlap(numbers) > 0
    }

    /// How many of these are needed.
    pub(super) fn overlap(&self, numbers: Numbers) -> u64 {
        let (first, end) = (numbers.first, numbers.end());
        let from = self.intervals.range(..first).next_back().map_or(first, |(first, _)| *first);
        let touched = self.intervals.range(from..end).filter(|(_, (their_end, _))| *their_end > first);
        touched.map(|(start, (their_end, _))| (*their_end).min(end) - (*start).max(first)).sum()
    }

    /// True where the file holds nothing that is needed.
    pub(super) fn is_unused(&self, file: u64) -> bool {
        self.intervals.values().all(|(_, theirs)| *theirs != file)
    }

    /// How many numbers there are.
    pub(super) fn count(&self) -> u64 {
        self.intervals.iter().map(|(first, (end, _))| end - first).sum()
    }
}

#[cfg(test)]
mod tests {
    use rand::rngs::SmallRng;
    use rand::{RngExt, SeedableRng};

    use super::*;

    #[test]
    fn it_agrees_with_a_plain_map_on_whatever_comes() {
        for seed in 0..200 {
            let mut rng = SmallRng::seed_from_u64(seed);
            let (mut live, mut plain) = (Live::default(), BTreeMap::<u64, u64>::new());
            for _ in 0..100 {
                let numbers = Numbers { first: rng.random_range(0..60), count: rng.random_range(1..12) };
                if rng.random_bool(0.5) {
                    let file = rng.random_range(0..3);
                    live.insert(numbers, file);
                    plain.extend((numbers.first..numbers.end()).map(|number| (number, file)));
                } else {
                    let gone = (numbers.first..numbers.end()).filter(|number| plain.remove(number).is_some());
                    let gone = gone.count() as u64;
                    assert_eq!(live.remove(numbers), gone, "seed {seed}");
                }
                let flat: BTreeMap<u64, u64> = live
                    .iter()
                    .flat_map(|(first, end, file)| (first..end).map(move |number| (number, file)))
                    .collect();
                assert_eq!(flat, plain, "seed {seed}");
                assert_eq!(live.count(), plain.len() as u64);
                for file in 0..3 {
                    assert_eq!(live.is_unused(file), plain.values().all(|theirs| *theirs != file));
                    let within: Vec<u64> = live
                        .within(numbers, file)
                        .into_iter()
                        .flat_map(|numbers| numbers.first..numbers.end())
                        .collect();
                    let wanted: Vec<u64> = plain
                        .range(numbers.first..numbers.end())
                        .filter_map(|(number, theirs)| (*theirs == file).then_some(*number))
                        .collect();
                    assert_eq!(within, wanted, "seed {seed}");
                }
            }
        }
    }
}
