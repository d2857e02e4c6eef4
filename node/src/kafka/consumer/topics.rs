//! Topics of a consumer: their incarnations, their partitions, and which of these were there
//! before the consumer's group first looked. Pure.
//!
//! Three questions are answered here:
//! * How many partitions a topic has. Answers come from whichever broker was asked, and one that lags tells
//!   of fewer than another told before: the number only rises within one incarnation of a topic.
//! * Whether a topic was deleted and made again: it then has another id (KIP-516, Kafka 2.8). An id that was
//!   replaced is not believed again. Offsets of one incarnation mean nothing in another.
//! * Where a partition without a committed offset begins. The reset policy is about what was in Kafka before
//!   the group came; a partition that appeared later begins at its beginning. So that this holds in later
//!   lives and on other nodes, each commit carries an [`Origin`].

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::TopicPartition;
use crate::kafka::client::{ResponseError, TopicView};

/// The id of one incarnation of a topic; all zero where Kafka tells none.
pub(super) type TopicId = [u8; 16];

/// Replaced ids that are remembered of one topic.
const RETIRED_IDS: usize = 16;

/// Kafka deletes a group's offsets of a deleted topic by name and in its own time, and then those of the new
/// topic as well. For so long they are committed again and again.
const FORGETFUL_FOR: Duration = Duration::from_mins(2);

/// Beginning of the metadata of a committed offset.
const MARK: &str = "causeway/1";

/// Origin of a commit, in the metadata of the committed offset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Origin {
    /// The incarnation that the offset is about.
    pub topic_id: TopicId,
    /// Partitions that the topic had when the group first looked at it; those from this number on came later.
    pub preexisting: i32,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let id = u128::from_be_bytes(self.topic_id);
        write!(f, "{MARK} topic={id:032x} partitions={}", self.preexisting)
    }
}

impl Origin {
    /// Reads the metadata of a committed offset; `None` where it is not ours.
    pub(super) fn parse(metadata: &str) -> Option<Self> {
        let mut parts = metadata.strip_prefix(MARK)?.split_ascii_whitespace();
        let id = parts.next()?.strip_prefix("topic=").filter(|id| id.len() == 32)?;
        let preexisting: i32 = parts.next()?.strip_prefix("partitions=")?.parse().ok()?;
        let topic_id = u128::from_str_radix(id, 16).ok()?.to_be_bytes();
        (preexisting >= 0).then_some(Self { topic_id, preexisting })
    }
}

/// An offset that the group committed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct CommittedOffset {
    pub offset: i64,
    /// Origin of the commit; `None` for one of another client or of a release before 0.2.
    pub origin: Option<Origin>,
}

/// Where to begin in a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Start {
    /// At this committed offset.
    At(i64),
    /// With its oldest record, whatever the reset policy: it is new to the group.
    Beginning,
    /// Where the reset policy says.
    Policy,
}

/// Where to begin, and in which incarnation of the topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Position {
    pub start: Start,
    pub topic_id: TopicId,
}

/// News in an answer about a topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Learned {
    /// Nothing that changes where to read.
    Same,
    /// The topic was deleted and made again.
    Recreated,
    /// The broker that answered lags: it tells of an incarnation that is over.
    Outdated,
}

/// One topic.
#[derive(Debug, Default)]
struct Known {
    missing: bool,
    topic_id: TopicId,
    partitions: i32,
    preexisting: i32,
    retired: Vec<TopicId>,
    recreated_at: Option<Instant>,
}

/// Our topics as far as they were looked at.
#[derive(Debug, Default)]
pub(super) struct Topics {
    known: BTreeMap<Arc<str>, Known>,
}

const NO_ID: TopicId = [0; 16];

/// Whether two ids are those of different incarnations.
fn differ(one: TopicId, other: TopicId) -> bool {
    one != other && one != NO_ID && other != NO_ID
}

impl Topics {
    /// Takes in an answer about one topic.
    pub(super) fn learn(&mut self, view: &TopicView) -> Learned {
        let told = i32::try_from(view.partitions.len()).unwrap_or(i32::MAX);
        match view.error {
            None => {}
            Some(ResponseError::UnknownTopicOrPartition) => {
                let absent = || Known { missing: true, ..Known::default() };
                self.known.entry(view.name.clone()).or_insert_with(absent).missing = true;
                return Learned::Same;
            }
            // Not an answer to what the topic is like.
            Some(_) => return Learned::Same,
        }
        let Some(known) = self.known.get_mut(&view.name) else {
            let known =
                Known { topic_id: view.topic_id, partitions: told, preexisting: told, ..Known::default() };
            self.known.insert(view.name.clone(), known);
            return Learned::Same;
        };
        if known.retired.contains(&view.topic_id) {
            return Learned::Outdated;
        }
        if differ(known.topic_id, view.topic_id) {
            known.retired.push(known.topic_id);
            if known.retired.len() > RETIRED_IDS {
                known.retired.remove(0);
            }
            let retired = std::mem::take(&mut known.retired);
            let recreated_at = Some(view.as_of);
            *known = Known {
                topic_id: view.topic_id,
                partitions: told,
                retired,
                recreated_at,
                ..Known::default()
            };
            return Learned::Recreated;
        }
        known.missing = false;
        if view.topic_id == NO_ID && known.topic_id == NO_ID {
            // Fewer may be the truth: without ids a topic that was made again looks like the former one.
            known.partitions = told;
        } else {
            known.topic_id = known.topic_id.max(view.topic_id);
            known.partitions = known.partitions.max(told);
        }
        Learned::Same
    }

    /// The topics that Kafka has, each with the number of its partitions.
    pub(super) fn counts(&self) -> BTreeMap<Arc<str>, i32> {
        let there = self.known.iter().filter(|(_, known)| !known.missing);
        there.map(|(name, known)| (name.clone(), known.partitions)).collect()
    }

    /// The number of partitions of a topic that Kafka has.
    pub(super) fn count(&self, topic: &str) -> Option<i32> {
        self.known.get(topic).filter(|known| !known.missing).map(|known| known.partitions)
    }

    /// The present incarnation of a topic.
    pub(super) fn topic_id(&self, topic: &str) -> TopicId {
        self.known.get(topic).map_or(NO_ID, |known| known.topic_id)
    }

    /// Whether Kafka may still delete offsets that were committed in this topic.
    pub(super) fn may_lose_commits(&self, topic: &str, now: Instant) -> bool {
        let recreated_at = self.known.get(topic).and_then(|known| known.recreated_at);
        recreated_at.is_some_and(|at| now < at + FORGETFUL_FOR)
    }

    /// Origin of a commit to the incarnation `topic_id` of a topic.
    pub(super) fn origin(&self, topic: &str, topic_id: TopicId) -> Origin {
        let known = self.known.get(topic).filter(|known| !differ(known.topic_id, topic_id));
        Origin { topic_id, preexisting: known.map_or(0, |known| known.preexisting) }
    }

    /// Where to begin in `partitions`, after what the group `committed` in all partitions of their topics.
    pub(super) fn positions(
        &mut self,
        partitions: &[TopicPartition],
        committed: &BTreeMap<TopicPartition, CommittedOffset>,
    ) -> Vec<(TopicPartition, Position)> {
        let mut valid: BTreeMap<&TopicPartition, i64> = BTreeMap::new();
        for (name, offset) in committed {
            let Some(known) = self.known.get_mut(&name.topic) else { continue };
            // A commit without an origin does not tell what was there before it; what has no commit beside it
            // is taken for new, since reading too much is better than leaving out.
            let foreign = Origin { topic_id: known.topic_id, preexisting: 0 };
            let origin = offset.origin.unwrap_or(foreign);
            if differ(known.topic_id, origin.topic_id) {
                known.preexisting = 0;
            } else {
                known.preexisting = known.preexisting.min(origin.preexisting);
                valid.insert(name, offset.offset);
            }
        }
        let position = |name: &TopicPartition| {
            let known = self.known.get(&name.topic);
            let is_new = known.is_some_and(|known| name.partition >= known.preexisting);
            let start = match valid.get(name) {
                Some(offset) => Start::At(*offset),
                None if is_new => Start::Beginning,
                None => Start::Policy,
            };
            let topic_id = known.map_or(NO_ID, |known| known.topic_id);
            (name.clone(), Position { start, topic_id })
        };
        partitions.iter().map(position).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kafka::client::PartitionView;

    const A: TopicId = [1; 16];
    const B: TopicId = [2; 16];

    fn view(topic_id: TopicId, partitions: usize) -> TopicView {
        let partition = PartitionView { leader: 1, leader_epoch: 1, error: None };
        TopicView {
            name: Arc::from("t"),
            topic_id,
            error: None,
            partitions: vec![partition; partitions],
            as_of: Instant::now(),
        }
    }

    fn failed(error: ResponseError) -> TopicView {
        TopicView { error: Some(error), ..view(NO_ID, 0) }
    }

    fn name(partition: i32) -> TopicPartition {
        TopicPartition::new("t", partition)
    }

    fn starts(topics: &mut Topics, count: i32, committed: &[(i32, i64, Option<Origin>)]) -> Vec<Start> {
        let names: Vec<_> = (0..count).map(name).collect();
        let committed = committed
            .iter()
            .map(|(partition, offset, origin)| {
                (name(*partition), CommittedOffset { offset: *offset, origin: *origin })
            })
            .collect();
        topics.positions(&names, &committed).into_iter().map(|(_, position)| position.start).collect()
    }

    #[test]
    fn partitions_only_rise_within_an_incarnation_and_errors_tell_nothing() {
        let mut topics = Topics::default();
        assert_eq!(topics.learn(&view(A, 3)), Learned::Same);
        assert_eq!(topics.learn(&view(A, 2)), Learned::Same);
        topics.learn(&failed(ResponseError::LeaderNotAvailable));
        assert_eq!(topics.count("t"), Some(3));
        topics.learn(&failed(ResponseError::UnknownTopicOrPartition));
        assert_eq!((topics.count("t"), topics.counts().len()), (None, 0));
        assert_eq!(topics.learn(&view(A, 1)), Learned::Same, "it was there all the time");
        assert_eq!(topics.count("t"), Some(3));
        assert_eq!(topics.learn(&view(B, 1)), Learned::Recreated);
        assert_eq!((topics.count("t"), topics.topic_id("t")), (Some(1), B));
        let now = Instant::now();
        assert!(topics.may_lose_commits("t", now) && !topics.may_lose_commits("t", now + FORGETFUL_FOR));
        assert_eq!(topics.learn(&view(A, 3)), Learned::Outdated);
        assert_eq!((topics.count("t"), topics.topic_id("t")), (Some(1), B));
    }

    #[test]
    fn an_id_that_comes_with_an_upgrade_of_kafka_makes_no_new_topic() {
        let mut topics = Topics::default();
        topics.learn(&view(NO_ID, 3));
        assert_eq!(topics.learn(&view(A, 3)), Learned::Same);
        assert_eq!(topics.learn(&view(NO_ID, 2)), Learned::Same, "a broker that was not upgraded yet");
        assert_eq!((topics.count("t"), topics.topic_id("t")), (Some(3), A));
    }

    #[test]
    fn only_what_was_there_at_the_first_look_is_up_to_the_policy() {
        use Start::{At, Beginning, Policy};
        let mut topics = Topics::default();
        topics.learn(&view(A, 2));
        topics.learn(&view(A, 4));
        assert_eq!(starts(&mut topics, 4, &[]), [Policy, Policy, Beginning, Beginning]);
        let origin = Some(topics.origin("t", A));
        assert_eq!(starts(&mut topics, 4, &[(2, 7, origin)]), [Policy, Policy, At(7), Beginning]);
        // A topic that was not there.
        let mut topics = Topics::default();
        topics.learn(&failed(ResponseError::UnknownTopicOrPartition));
        topics.learn(&view(A, 2));
        assert_eq!(starts(&mut topics, 2, &[]), [Beginning, Beginning]);
    }

    #[test]
    fn a_commit_tells_later_lives_and_other_members_what_was_there() {
        use Start::{At, Beginning, Policy};

        let mut topics = Topics::default();
        topics.learn(&view(A, 4));
        let origin = Some(Origin { topic_id: A, preexisting: 2 });
        assert_eq!(starts(&mut topics, 4, &[(0, 5, origin)]), [At(5), Policy, Beginning, Beginning]);
        assert_eq!(topics.origin("t", A).preexisting, 2, "it is passed on");
        // One of another client beside it: nothing without a commit is known to be old.
        assert_eq!(starts(&mut topics, 3, &[(0, 5, None)]), [At(5), Beginning, Beginning]);
    }

    #[test]
    fn an_offset_of_a_former_incarnation_is_void_and_the_new_one_begins_at_its_beginning() {
        let mut topics = Topics::default();
        topics.learn(&view(B, 2));
        let former = Some(Origin { topic_id: A, preexisting: 2 });
        assert_eq!(starts(&mut topics, 2, &[(0, 500, former)]), [Start::Beginning, Start::Beginning]);
        assert_eq!(topics.origin("t", B), Origin { topic_id: B, preexisting: 0 });
        // Told while it is read.
        let mut topics = Topics::default();
        topics.learn(&view(A, 2));
        topics.learn(&view(B, 2));
        assert_eq!(starts(&mut topics, 2, &[(1, 9, former)]), [Start::Beginning, Start::Beginning]);
        assert_eq!(topics.origin("t", A).topic_id, A, "a late commit names what it is about");
    }

    #[test]
    fn an_origin_survives_its_text_and_other_texts_are_none() {
        let origin = Origin { topic_id: *b"0123456789abcdef", preexisting: 12 };
        let text = origin.to_string();
        assert_eq!(text, "causeway/1 topic=30313233343536373839616263646566 partitions=12");
        assert_eq!(Origin::parse(&text), Some(origin));
        for other in
            ["", "causeway/1", "causeway/1 topic=1 partitions=2", &text[..text.len() - 2], "{\"a\":1}"]
        {
            assert_eq!(Origin::parse(other), None, "{other}");
        }
        assert_eq!(Origin::parse(&text.replace("12", "-1")), None);
    }
}
