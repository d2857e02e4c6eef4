//! When a cached route is stale: stamps instead of one generation for all.
//!
//! Every change of a filter raises one counter of a table, chosen by what the filter can match. A topic's
//! stamp is the sum of the few counters that filters matching it raise. Counters only rise, so an equal sum
//! means that none of them has: the route is as it was. A client that subscribes and unsubscribes in a loop
//! makes its own topics stale, and by chance one in a thousand others.
//!
//! | filter | counter |
//! |---|---|
//! | no wildcard | of the whole topic |
//! | two or more levels before the first wildcard | of these two levels |
//! | one level before it | of this level |
//! | begins with a wildcard | of all topics |
//!
//! Invariant: a change is made before its counter is raised, and a stamp is read before what it stands for:
//! a reader of an old stamp looks again.

use std::{
    hash::BuildHasher,
    sync::atomic::{AtomicU64, Ordering},
};

use hashbrown::DefaultHashBuilder;

/// Counters. Chance collisions cost a look at the tree.
const TABLE: usize = 1024;

/// The counters that a topic's stamp is the sum of, beside that of all topics.
pub(crate) type Places = [u16; 3];

/// Stamps of filters: a route is valid while they have not changed.
pub(crate) struct Stamps {
    all: AtomicU64,
    table: Box<[AtomicU64]>,
    hasher: DefaultHashBuilder,
}

impl Stamps {
    pub(crate) fn new() -> Self {
        Self {
            all: AtomicU64::new(1),
            table: (0..TABLE).map(|_| AtomicU64::new(0)).collect(),
            hasher: DefaultHashBuilder::default(),
        }
    }

    fn place(&self, kind: u8, text: &str) -> u16 {
        (self.hasher.hash_one((kind, text)) % TABLE as u64) as u16
    }

    /// Where to look for changes that concern `topic`.
    pub(crate) fn places(&self, topic: &str) -> Places {
        let (one, two) = prefixes(topic);
        [self.place(0, topic), self.place(1, one), self.place(2, two)]
    }

    /// The stamp now.
    pub(crate) fn stamp(&self, places: Places) -> u64 {
        let counter =
            |place: u16| self.table.get(usize::from(place)).map_or(0, |at| at.load(Ordering::Acquire));
        places.into_iter().map(counter).sum::<u64>() + self.all.load(Ordering::Acquire)
    }

    /// A filter was added, changed or removed.
    pub(crate) fn changed(&self, filter: &str) {
        let counter = match literal_levels(filter) {
            Literal::Whole => self.table.get(usize::from(self.place(0, filter))),
            Literal::Levels(0) => None,
            Literal::Levels(1) => self.table.get(usize::from(self.place(1, prefixes(filter).0))),
            Literal::Levels(_) => self.table.get(usize::from(self.place(2, prefixes(filter).1))),
        };
        counter.unwrap_or(&self.all).fetch_add(1, Ordering::Release);
    }
}

impl Stamps {
    /// Something changed that any topic may have to do with.
    pub(crate) fn all_changed(&self) {
        self.all.fetch_add(1, Ordering::Release);
    }
}

enum Literal {
    Whole,
    /// Levels before the first wildcard.
    Levels(usize),
}

fn literal_levels(filter: &str) -> Literal {
    match filter.split('/').position(|level| level == "#" || level == "+") {
        None => Literal::Whole,
        Some(levels) => Literal::Levels(levels),
    }
}

/// The first level, and the first two; a topic of one level has that twice.
fn prefixes(topic: &str) -> (&str, &str) {
    let mut ends = topic.match_indices('/').map(|(at, _)| at);
    let part = |end: Option<usize>| end.and_then(|end| topic.get(..end)).unwrap_or(topic);
    let first = ends.next();
    (part(first), part(ends.next()))
}

#[cfg(test)]
mod tests {
    use causeway_protocol::mqtt::topic::matches;
    use rand::{RngExt, SeedableRng, rngs::StdRng};

    use super::*;

    #[test]
    fn every_filter_that_matches_a_topic_changes_its_stamp() {
        let seed: u64 = rand::random();
        println!("seed {seed}");
        let mut random = StdRng::seed_from_u64(seed);
        let stamps = Stamps::new();
        let (mut matched, mut untouched) = (0, 0);
        for _ in 0..50_000 {
            let mut levels = |parts: &[&str]| -> Vec<String> {
                let count = random.random_range(1..5);
                (0..count).map(|_| parts[random.random_range(0..parts.len())].to_owned()).collect()
            };
            let topic = levels(&["a", "b", "", "c"]).join("/");
            let mut filter = levels(&["a", "b", "", "c", "+"]);
            if random.random_bool(0.3) {
                filter.push("#".to_owned());
            }
            let filter = filter.join("/");
            let places = stamps.places(&topic);
            let before = stamps.stamp(places);
            stamps.changed(&filter);
            let changed = stamps.stamp(places) != before;
            if matches(&filter, &topic) {
                matched += 1;
                assert!(changed, "{filter} matches {topic}, seed {seed}");
            } else if !changed {
                untouched += 1;
            }
        }
        assert!(matched > 1000 && untouched > 20_000, "{matched} {untouched}");
    }

    #[test]
    fn changes_elsewhere_leave_nearly_all_stamps_alone() {
        let stamps = Stamps::new();
        let topics: Vec<_> = (0..1000).map(|number| format!("devices/{number}/state")).collect();
        let stamp = |topic: &String| stamps.stamp(stamps.places(topic));
        let before: Vec<_> = topics.iter().map(stamp).collect();
        for filter in ["devices/x/cmd", "devices/x/#", "devices/x/+/y", "others/+"] {
            stamps.changed(filter);
        }
        let stale = topics.iter().zip(&before).filter(|(topic, before)| stamp(topic) != **before).count();
        assert!(stale < 40, "{stale}");
    }
}
