//! Which partitions of our topics have an owner in the group, as far as this member can tell.
//!
//! An assignment is as old as its generation: a static member that comes back within its session timeout gets
//! its former one back, whatever it subscribes to now and whatever partitions were added meanwhile (KIP-345,
//! KIP-814). So the assignment of the group is compared with the topics and partitions after every join.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::super::TopicPartition;
use super::super::assignor::{decode_assignment, decode_subscription};
use super::types::Described;

/// Partitions of some topics and who owns them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Coverage {
    owned_once: BTreeSet<TopicPartition>,
    owned_more_than_once: BTreeSet<TopicPartition>,
}

impl Coverage {
    /// Notes the partitions of one member.
    pub(super) fn add(&mut self, partitions: impl IntoIterator<Item = TopicPartition>) {
        for partition in partitions {
            if let Some(partition) = self.owned_once.replace(partition) {
                self.owned_more_than_once.insert(partition);
            }
        }
    }

    /// The coverage that a description of the whole group shows. A partition that was assigned to a member
    /// that does not subscribe to its topic has no owner: the member does not read it.
    pub(super) fn of(group: &Described) -> Self {
        let mut coverage = Self::default();
        for member in &group.members {
            let topics = decode_subscription(member.subscription.clone()).map(|(topics, _)| topics);
            let topics: BTreeSet<Arc<str>> = topics.into_iter().flatten().collect();
            let assigned = decode_assignment(member.assignment.clone()).unwrap_or_default();
            coverage.add(assigned.into_iter().filter(|partition| topics.contains(&partition.topic)));
        }
        coverage
    }

    /// The first difference between the assignment and `topics` (names and numbers of partitions), in words.
    pub(super) fn gap(&self, topics: &BTreeMap<Arc<str>, i32>) -> Option<String> {
        for (topic, count) in topics {
            let all = (0..*count).map(|partition| TopicPartition::new(topic.clone(), partition));
            for partition in all {
                if !self.owned_once.contains(&partition) {
                    return Some(format!("partition {partition} is assigned to no member of the group"));
                }
                if self.owned_more_than_once.contains(&partition) {
                    return Some(format!("partition {partition} is assigned to two members of the group"));
                }
            }
        }
        let gone = self
            .owned_once
            .iter()
            .find(|owned| topics.get(&owned.topic).is_some_and(|count| owned.partition >= *count));
        gone.map(|partition| format!("partition {partition} is assigned, but Kafka does not have it"))
    }
}
