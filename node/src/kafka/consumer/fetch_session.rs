//! Fetch sessions (KIP-227): what a broker remembers of our partitions, so that a fetch names only what
//! changed. Pure.
//!
//! Invariant: [`FetchSession`] knows exactly what the broker knows, or it starts over with a full fetch.

use std::collections::BTreeMap;

use super::TopicPartition;
use super::topics::TopicId;

/// Wanted records of one partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Want {
    /// From this offset on.
    pub offset: i64,
    /// Most bytes (a batch that is larger comes in full).
    pub max_bytes: i32,
    /// The leader epoch that we believe in; -1 for none.
    pub leader_epoch: i32,
    /// The incarnation of the topic that the offset is about; all zero where Kafka tells none.
    pub topic_id: TopicId,
    /// Answers count only in the era of their question.
    pub era: u64,
}

/// A fetch request's part that is about sessions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Plan {
    pub session_id: i32,
    pub session_epoch: i32,
    /// New or changed.
    pub wants: Vec<(TopicPartition, Want)>,
    /// No longer wanted, each with the id of its topic.
    pub forgotten: Vec<(TopicPartition, TopicId)>,
    /// All topics have ids: they can be named by them.
    pub by_id: bool,
}

/// Incremental fetch session with one broker (KIP-227).
#[derive(Debug, Default)]
pub(super) struct FetchSession {
    id: i32,
    epoch: i32,
    by_id: bool,
    known: BTreeMap<TopicPartition, Want>,
}

impl FetchSession {
    /// The next request, which asks for exactly `wanted`.
    pub(super) fn plan(&mut self, wanted: &BTreeMap<TopicPartition, Want>) -> Plan {
        let by_id = wanted.values().all(|want| want.topic_id != TopicId::default());
        // Brokers know the partitions of a session by the ids of their topics, or all of them by names.
        let renamed = |(name, want): (&TopicPartition, &Want)| {
            self.known.get(name).is_some_and(|known| known.topic_id != want.topic_id)
        };
        if by_id != self.by_id || wanted.iter().any(renamed) {
            self.start_over();
            self.by_id = by_id;
        }
        let (wants, forgotten) = if self.id == 0 {
            (wanted.iter().map(|(partition, want)| (partition.clone(), *want)).collect(), Vec::new())
        } else {
            let changed = wanted.iter().filter(|(partition, want)| self.known.get(*partition) != Some(*want));
            let gone = self.known.iter().filter(|(partition, _)| !wanted.contains_key(*partition));
            let gone = gone.map(|(partition, want)| (partition.clone(), want.topic_id));
            (changed.map(|(partition, want)| (partition.clone(), *want)).collect(), gone.collect())
        };
        self.known.clone_from(wanted);
        Plan { session_id: self.id, session_epoch: self.epoch, wants, forgotten, by_id }
    }

    /// The broker answered without a session error; `session_id` is what it calls the session, 0 for none.
    pub(super) fn answered(&mut self, session_id: i32) {
        if session_id == 0 {
            return self.start_over();
        }
        self.id = session_id;
        // Epoch 0 opens a session: it never comes back.
        self.epoch = self.epoch.checked_add(1).unwrap_or(1);
    }

    /// The request failed: it is unknown what the broker knows.
    pub(super) fn start_over(&mut self) {
        *self = Self { by_id: self.by_id, ..Self::default() };
    }
}

#[cfg(test)]
mod tests {
    use rand::rngs::SmallRng;
    use rand::{RngExt, SeedableRng};

    use super::*;

    fn want(offset: i64) -> Want {
        Want { offset, max_bytes: 1000, leader_epoch: -1, topic_id: [0; 16], era: 0 }
    }

    fn partition(number: i32) -> TopicPartition {
        TopicPartition::new("t", number)
    }

    #[test]
    fn the_first_fetch_is_full_and_later_ones_name_what_changed() {
        let mut session = FetchSession::default();
        let mut wanted = BTreeMap::from([(partition(0), want(5)), (partition(1), want(6))]);
        let plan = session.plan(&wanted);
        assert_eq!((plan.session_id, plan.session_epoch, plan.wants.len()), (0, 0, 2));
        session.answered(77);
        wanted.insert(partition(0), want(9));
        wanted.remove(&partition(1));
        let plan = session.plan(&wanted);
        assert_eq!(
            plan,
            Plan {
                session_id: 77,
                session_epoch: 1,
                wants: vec![(partition(0), want(9))],
                forgotten: vec![(partition(1), [0; 16])],
                by_id: false
            }
        );
        session.start_over();
        assert_eq!(session.plan(&wanted).session_epoch, 0);
    }

    #[test]
    fn a_topic_that_was_made_again_begins_a_new_session() {
        let mut session = FetchSession::default();
        let mut wanted = BTreeMap::from([(partition(0), want(5)), (partition(1), want(6))]);
        session.plan(&wanted);
        session.answered(77);
        wanted.insert(partition(0), Want { topic_id: [1; 16], ..want(0) });
        let plan = session.plan(&wanted);
        assert_eq!((plan.session_id, plan.session_epoch, plan.wants.len()), (0, 0, 2));
        assert_eq!((plan.forgotten, plan.by_id), (vec![], false), "the other one has no id");
        session.answered(78);
        wanted.insert(partition(1), Want { topic_id: [2; 16], ..want(6) });
        let plan = session.plan(&wanted);
        assert_eq!((plan.session_id, plan.wants.len(), plan.by_id), (0, 2, true));
        session.answered(79);
        wanted.remove(&partition(1));
        let plan = session.plan(&wanted);
        assert_eq!((plan.session_id, plan.forgotten), (79, vec![(partition(1), [2; 16])]));
    }

    #[test]
    fn the_epoch_never_returns_to_zero() {
        let mut session = FetchSession { id: 1, epoch: i32::MAX, ..FetchSession::default() };
        session.answered(1);
        assert_eq!(session.epoch, 1);
    }

    #[test]
    fn what_the_broker_remembers_is_what_is_wanted() {
        let seed: u64 = rand::random();
        println!("seed {seed}");
        let mut random = SmallRng::seed_from_u64(seed);
        let mut session = FetchSession::default();
        // The broker's side: (id, next epoch, partitions).
        let mut broker: Option<(i32, i32, BTreeMap<TopicPartition, Want>)> = None;
        let mut next_id = 0;
        for _ in 0..2000 {
            let wanted: BTreeMap<_, _> = (0..6)
                .map(|number| (number, random.random_range(0..4)))
                .filter(|(_, offset)| *offset < 3)
                .map(|(number, offset)| (partition(number), want(offset)))
                .collect();
            let plan = session.plan(&wanted);
            if random.random_bool(0.05) {
                broker = None;
            }
            let known = if plan.session_epoch == 0 {
                assert!(plan.forgotten.is_empty());
                next_id += 1;
                let (_, _, known) = broker.insert((next_id, 1, plan.wants.into_iter().collect()));
                session.answered(next_id);
                known
            } else if let Some((_, epoch, known)) = broker
                .as_mut()
                .filter(|(id, epoch, _)| (*id, *epoch) == (plan.session_id, plan.session_epoch))
            {
                *epoch += 1;
                for (gone, _) in &plan.forgotten {
                    assert!(known.remove(gone).is_some());
                }
                known.extend(plan.wants);
                session.answered(plan.session_id);
                known
            } else {
                session.start_over();
                continue;
            };
            assert_eq!(*known, wanted);
        }
    }
}
