//! Retained messages: the last one of each topic, for those who subscribe later.
//!
//! Invariants:
//! * Bounded in messages and bytes. A full store keeps what it has; a new topic is refused (and
//!   counted by the caller), a new message for a known topic replaces the old one where it fits.
//! * An expired message is never handed out.

use std::{collections::BTreeSet, sync::Arc};

use smallvec::SmallVec;

use super::{
    level_tree::{LevelTree, NodeId, ROOT},
    memory::Pressure,
    publication::Publication,
};

/// Bounds of the retained messages of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RetainedLimits {
    /// Messages, one a topic.
    pub messages: usize,
    /// Bytes of topics, payloads and properties, with what keeps them together.
    pub bytes: usize,
}

impl Default for RetainedLimits {
    /// A few hundred thousand devices with their last state, in a size that a small machine has.
    fn default() -> Self {
        Self { messages: 500_000, bytes: 256 << 20 }
    }
}

/// The store.
pub(crate) struct Retained {
    tree: LevelTree<Arc<Publication>>,
    expiries: BTreeSet<(i64, Box<str>)>,
    limits: RetainedLimits,
    messages: usize,
    bytes: usize,
    /// Numbers of stored messages that were removed, until they are asked for.
    removed: Vec<u64>,
}

impl Retained {
    pub(crate) fn new(limits: RetainedLimits) -> Self {
        Self {
            tree: LevelTree::default(),
            expiries: BTreeSet::new(),
            limits,
            messages: 0,
            bytes: 0,
            removed: Vec::new(),
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.messages
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Keeps a message in place of the one its topic had. False: no room, nothing has changed. Where memory
    /// is short there is room for what takes the place of something as large.
    pub(crate) fn store(&mut self, publication: &Arc<Publication>, now: i64, pressure: Pressure) -> bool {
        let known = self.tree.find(publication.topic()).and_then(|node| self.tree.value(node));
        let (freed, is_new) = known.map_or((0, 1), |known| (known.weight(), 0));
        if pressure != Pressure::None && publication.weight() > freed {
            return false;
        }
        let fits = |store: &Self| {
            store.messages + is_new <= store.limits.messages
                && store.bytes - freed + publication.weight() <= store.limits.bytes
        };
        if !fits(self) {
            // Room that expired messages still take.
            self.expire(now);
            if !fits(self) {
                return false;
            }
        }
        self.remove(publication.topic());
        if let Some(expires_at) = publication.expires_at() {
            self.expiries.insert((expires_at, publication.topic().into()));
        }
        let weight = publication.weight();
        if self.tree.entry(publication.topic(), || publication.clone()).is_none() {
            return false;
        }
        self.messages += 1;
        self.bytes += weight;
        true
    }

    /// Forgets the message of a topic, if there is one.
    pub(crate) fn remove(&mut self, topic: &str) {
        let Some(node) = self.tree.find(topic) else { return };
        if self.tree.value(node).is_none() {
            return;
        }
        if let Some(publication) = self.tree.prune(node) {
            self.messages -= 1;
            self.bytes -= publication.weight();
            if publication.number() != 0 {
                self.removed.push(publication.number());
            }
            if let Some(expires_at) = publication.expires_at() {
                self.expiries.remove(&(expires_at, topic.into()));
            }
        }
    }

    /// Stored messages that are not retained any more since the last call.
    pub(crate) fn take_removed(&mut self) -> Vec<u64> {
        std::mem::take(&mut self.removed)
    }

    /// Removes what has expired.
    pub(crate) fn expire(&mut self, now: i64) {
        while let Some((_, topic)) = self.expiries.first().filter(|(at, _)| *at <= now).cloned() {
            self.remove(&topic);
        }
    }

    /// Messages with a number below `before` whose topic matches `filter`, expired ones left out; `None`
    /// where there are more than `most`. A leading wildcard leaves out topics that start with `$`
    /// (MQTT-4.7.2-1).
    pub(crate) fn matching(
        &self,
        filter: &str,
        before: u64,
        now: i64,
        most: usize,
    ) -> Option<Vec<Arc<Publication>>> {
        let levels: SmallVec<[&str; 16]> = filter.split('/').collect();
        let mut found = Vec::new();
        // Nodes to visit with the filter level that their children must match; none: the filter is used up.
        let mut open = vec![(ROOT, 0usize)];
        while let Some((node, depth)) = open.pop() {
            let hidden = |level: &str| depth == 0 && level.starts_with('$');
            let level = levels.get(depth).copied();
            // `a/#` also matches `a` (MQTT-5.0 4.7.1.2).
            if matches!(level, None | Some("#"))
                && let Some(publication) = self.tree.value(node)
                && publication.number() < before
                && !publication.is_expired(now)
            {
                if found.len() == most {
                    return None;
                }
                found.push(publication.clone());
            }
            match level {
                None => {}
                // Below a `#` everything matches: the children stay on it.
                Some("#") => self.below(node, &mut open, hidden, depth),
                Some("+") => self.below(node, &mut open, hidden, depth + 1),
                Some(level) => open.extend(self.tree.child(node, level).map(|child| (child, depth + 1))),
            }
        }
        Some(found)
    }

    fn below(
        &self,
        node: NodeId,
        open: &mut Vec<(NodeId, usize)>,
        hidden: impl Fn(&str) -> bool,
        depth: usize,
    ) {
        let children = self.tree.children(node).filter(|(_, level)| !hidden(level));
        open.extend(children.map(|(child, _)| (child, depth)));
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use causeway_protocol::mqtt::{QoS, topic::matches};
    use rand::{RngExt, SeedableRng, rngs::StdRng};

    use super::{
        super::publication::tests::{publication, with_expiry},
        *,
    };

    impl Retained {
        fn all(&self, filter: &str, now: i64) -> Vec<Arc<Publication>> {
            self.matching(filter, u64::MAX, now, usize::MAX).unwrap()
        }
    }

    fn retained(topic: &str, payload: &[u8]) -> Arc<Publication> {
        Arc::new(publication(topic, payload, QoS::AtLeastOnce, true))
    }

    #[test]
    fn a_full_store_refuses_new_topics_and_still_replaces() {
        let mut store = Retained::new(RetainedLimits { messages: 2, bytes: 1 << 20 });
        assert!(store.store(&retained("a", b"1"), 0, Pressure::None));
        assert!(store.store(&retained("b", b"1"), 0, Pressure::None));
        assert!(!store.store(&retained("c", b"1"), 0, Pressure::None));
        assert!(store.store(&retained("a", b"2"), 0, Pressure::None));
        assert_eq!(store.all("a", 0)[0].payload(), b"2");
        assert_eq!(store.len(), 2);
        let mut store = Retained::new(RetainedLimits { messages: 10, bytes: 300 });
        assert!(store.store(&retained("a", &[0; 100]), 0, Pressure::None));
        assert!(!store.store(&retained("b", &[0; 100]), 0, Pressure::None));
        assert!(!store.store(&retained("a", &[0; 300]), 0, Pressure::None));
        assert_eq!(store.all("#", 0)[0].payload().len(), 100);
    }

    #[test]
    fn no_more_are_found_than_asked_for_and_none_that_is_too_new() {
        let mut store = Retained::new(RetainedLimits::default());
        for (topic, number) in [("a/1", 3), ("a/2", 5), ("a/3", 4), ("b", 1)] {
            let publication = publication(topic, b"x", QoS::AtLeastOnce, true).stored_as(number);
            assert!(store.store(&Arc::new(publication), 0, Pressure::None));
        }
        let found = |filter, before, most| store.matching(filter, before, 0, most).map(|found| found.len());
        assert_eq!((found("a/+", 6, 3), found("a/+", 6, 2)), (Some(3), None));
        assert_eq!((found("a/+", 5, 2), found("a/+", 3, 0), found("#", 4, 2)), (Some(2), Some(0), Some(2)));
    }

    #[test]
    fn without_memory_nothing_grows() {
        let mut store = Retained::new(RetainedLimits::default());
        assert!(store.store(&retained("a", b"12"), 0, Pressure::None));
        assert!(!store.store(&retained("b", b"1"), 0, Pressure::High));
        assert!(store.store(&retained("a", b"34"), 0, Pressure::Full));
        assert!(!store.store(&retained("a", b"567"), 0, Pressure::Full));
        assert_eq!(store.all("#", 0)[0].payload(), b"34");
    }

    #[test]
    fn an_expired_message_is_neither_handed_out_nor_in_the_way() {
        let mut store = Retained::new(RetainedLimits { messages: 1, bytes: 1 << 20 });
        assert!(store.store(
            &Arc::new(with_expiry("a", b"1", QoS::AtMostOnce, true, Some(1))),
            0,
            Pressure::None
        ));
        assert_eq!(store.all("a", 999).len(), 1);
        assert_eq!(store.all("a", 1000).len(), 0);
        assert!(!store.store(&retained("b", b"1"), 999, Pressure::None));
        assert!(store.store(&retained("b", b"1"), 1000, Pressure::None));
        assert_eq!((store.len(), store.expiries.len()), (1, 0));
    }

    /// Against a flat map and the filter matcher of the codec.
    #[test]
    fn a_random_store_answers_like_a_flat_map() {
        let seed: u64 = rand::random();
        println!("seed {seed}");
        let mut random = StdRng::seed_from_u64(seed);
        let names = ["a", "b", "", "$s", "é"];
        let parts = ["a", "b", "", "$s", "é", "+", "+"];
        let mut store = Retained::new(RetainedLimits::default());
        let mut model = BTreeMap::new();
        for step in 0..3000u32 {
            let levels: Vec<_> =
                (0..random.random_range(1..5)).map(|_| names[random.random_range(0..names.len())]).collect();
            let topic = levels.join("/");
            if !topic.is_empty() {
                if random.random_bool(0.3) {
                    store.remove(&topic);
                    model.remove(&topic);
                } else {
                    let payload = step.to_be_bytes();
                    assert!(store.store(&retained(&topic, &payload), 0, Pressure::None));
                    model.insert(topic, payload);
                }
            }
            let mut levels: Vec<_> =
                (0..random.random_range(1..5)).map(|_| parts[random.random_range(0..parts.len())]).collect();
            if random.random_bool(0.4) {
                levels.push("#");
            }
            let filter = levels.join("/");
            let mut found: Vec<_> = store
                .all(&filter, 0)
                .iter()
                .map(|publication| (publication.topic().to_owned(), publication.payload().to_vec()))
                .collect();
            found.sort();
            let expected: Vec<_> = model
                .iter()
                .filter(|(topic, _)| matches(&filter, topic))
                .map(|(topic, payload)| (topic.clone(), payload.to_vec()))
                .collect();
            assert_eq!(found, expected, "filter {filter}, seed {seed}");
            assert_eq!(store.len(), model.len(), "seed {seed}");
        }
    }
}
