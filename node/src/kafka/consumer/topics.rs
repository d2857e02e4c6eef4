//! What Kafka has told of the topics of a consumer. Pure.
//!
//! Answers come from whichever broker was asked, and one that lags tells of fewer partitions than another told
//! before. The number of partitions of a topic only rises.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::kafka::client::{ResponseError, TopicView};

/// One topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Known {
    /// Kafka does not know it.
    Missing,
    /// It has so many partitions.
    There(i32),
}

/// Our topics as far as they were looked at.
#[derive(Debug, Default)]
pub(super) struct Topics {
    known: BTreeMap<Arc<str>, Known>,
}

impl Topics {
    /// Takes in an answer about one topic.
    pub(super) fn learn(&mut self, view: &TopicView) {
        let now = match view.error {
            None => {
                let told = i32::try_from(view.partitions.len()).unwrap_or(i32::MAX);
                match self.known.get(&view.name) {
                    Some(Known::There(before)) => Known::There(told.max(*before)),
                    _ => Known::There(told),
                }
            }
            Some(ResponseError::UnknownTopicOrPartition) => Known::Missing,
            // Not an answer to how many partitions it has.
            Some(_) => return,
        };
        self.known.insert(view.name.clone(), now);
    }

    /// The topics that Kafka has, each with the number of its partitions.
    pub(super) fn counts(&self) -> BTreeMap<Arc<str>, i32> {
        let there = |(name, known): (&Arc<str>, &Known)| match known {
            Known::There(count) => Some((name.clone(), *count)),
            Known::Missing => None,
        };
        self.known.iter().filter_map(there).collect()
    }

    /// The number of partitions of a topic that Kafka has.
    pub(super) fn count(&self, topic: &str) -> Option<i32> {
        match self.known.get(topic)? {
            Known::There(count) => Some(*count),
            Known::Missing => None,
        }
    }
}
