//! Who reads what: the assignment that the leader of a group makes, and its encoding.
//!
//! The encodings are those of Kafka's own consumers (ConsumerProtocol), so `kafka-consumer-groups` shows
//! our members and a Java consumer may be in the group. The assignment keeps partitions where they were
//! and moves no more of them than balance needs; as any leader may, it calls that `roundrobin`.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use kafka_protocol::messages::consumer_protocol_assignment::TopicPartition as AssignedTopic;
use kafka_protocol::messages::consumer_protocol_subscription::TopicPartition as OwnedTopic;
use kafka_protocol::messages::{ConsumerProtocolAssignment, ConsumerProtocolSubscription, TopicName};
use kafka_protocol::protocol::{Decodable, Encodable, StrBytes};

use super::TopicPartition;
use crate::kafka::client::layout::{check_assignment, check_subscription};

/// The name under which members agree on this way of assigning.
pub(super) const PROTOCOL: &str = "roundrobin";

/// Version of our subscriptions: the first with the partitions that the member had.
const SUBSCRIPTION_VERSION: i16 = 1;

/// Version of our assignments: the first, which every reader knows.
const ASSIGNMENT_VERSION: i16 = 0;

/// Latest layouts that we know; later ones only add fields at the end.
const NEWEST_LAYOUT: i16 = 3;

/// A member as its leader sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Member {
    /// Member id.
    pub id: StrBytes,
    /// Name that stays the same when the member restarts: its instance id, or else its member id.
    pub stable_name: StrBytes,
    /// Topics it wants.
    pub topics: Vec<Arc<str>>,
    /// Partitions it had.
    pub owned: Vec<TopicPartition>,
}

fn group_by_topic(partitions: &[TopicPartition]) -> BTreeMap<Arc<str>, Vec<i32>> {
    let mut by_topic: BTreeMap<Arc<str>, Vec<i32>> = BTreeMap::new();
    for partition in partitions {
        by_topic.entry(partition.topic.clone()).or_default().push(partition.partition);
    }
    by_topic
}

fn name(topic: &str) -> StrBytes {
    StrBytes::from_string(topic.to_owned())
}

/// Puts a version in front of a message.
fn versioned(message: &impl Encodable, version: i16) -> Bytes {
    let mut bytes = BytesMut::new();
    bytes.put_i16(version);
    match message.encode(&mut bytes, version) {
        Ok(()) => bytes.freeze(),
        // Only names beyond 32 KiB cannot be encoded, and Kafka's end at 249 bytes.
        Err(error) => {
            tracing::error!(%error, "a group protocol message could not be encoded");
            Bytes::new()
        }
    }
}

/// Our subscription: what we want and what we had. A coordinator takes a follower that joins again with the
/// same bytes for one that changed nothing; another `revision` makes it assign anew.
pub(super) fn encode_subscription(topics: &[Arc<str>], owned: &[TopicPartition], revision: u32) -> Bytes {
    let owned = group_by_topic(owned).into_iter().map(|(topic, partitions)| {
        OwnedTopic::default().with_topic(TopicName(name(&topic))).with_partitions(partitions)
    });
    let subscription = ConsumerProtocolSubscription::default()
        .with_topics(topics.iter().map(|topic| name(topic)).collect())
        .with_user_data((revision > 0).then(|| Bytes::copy_from_slice(&revision.to_be_bytes())))
        .with_owned_partitions(owned.collect());
    versioned(&subscription, SUBSCRIPTION_VERSION)
}

/// A member's topics and former partitions; `None` where its subscription is malformed.
pub(super) fn decode_subscription(mut bytes: Bytes) -> Option<(Vec<Arc<str>>, Vec<TopicPartition>)> {
    let version = bytes.try_get_i16().ok().filter(|version| *version >= 0)?.min(NEWEST_LAYOUT);
    if !check_subscription(version, &bytes) {
        return None;
    }
    let subscription = ConsumerProtocolSubscription::decode(&mut bytes, version).ok()?;
    let topics: Vec<Arc<str>> = subscription.topics.iter().map(|topic| Arc::from(topic.as_str())).collect();
    let mut owned = Vec::new();
    for held in &subscription.owned_partitions {
        let topic: Arc<str> = Arc::from(held.topic.as_str());
        owned.extend(held.partitions.iter().map(|partition| TopicPartition::new(topic.clone(), *partition)));
    }
    Some((topics, owned))
}

/// An assignment for one member.
pub(super) fn encode_assignment(partitions: &[TopicPartition]) -> Bytes {
    let topics = group_by_topic(partitions).into_iter().map(|(topic, partitions)| {
        AssignedTopic::default().with_topic(TopicName(name(&topic))).with_partitions(partitions)
    });
    let assignment = ConsumerProtocolAssignment::default().with_assigned_partitions(topics.collect());
    versioned(&assignment, ASSIGNMENT_VERSION)
}

/// Partitions assigned to this member; `None` where it is malformed. A member that gets nothing may get no
/// bytes.
pub(super) fn decode_assignment(mut bytes: Bytes) -> Option<Vec<TopicPartition>> {
    if bytes.is_empty() {
        return Some(Vec::new());
    }
    let version = bytes.try_get_i16().ok().filter(|version| *version >= 0)?.min(NEWEST_LAYOUT);
    if !check_assignment(version, &bytes) {
        return None;
    }
    let assignment = ConsumerProtocolAssignment::decode(&mut bytes, version).ok()?;
    let mut partitions = Vec::new();
    for assigned in &assignment.assigned_partitions {
        let topic: Arc<str> = Arc::from(assigned.topic.as_str());
        partitions.extend(
            assigned.partitions.iter().map(|partition| TopicPartition::new(topic.clone(), *partition)),
        );
    }
    partitions.sort();
    partitions.dedup();
    Some(partitions)
}

/// Assigns every partition (`counts` says how many a topic has) to one of the members that want it.
/// Returns the partitions of each member, in the order of `members`.
///
/// First each member keeps what it had, then the free ones go to those with fewest, then single
/// partitions move from those who have two or more too many.
pub(super) fn assign(members: &[Member], counts: &HashMap<Arc<str>, i32>) -> Vec<Vec<TopicPartition>> {
    // Ties are broken by name, so that the same group gets the same assignment from any leader.
    let mut order: Vec<usize> = (0..members.len()).collect();
    order.sort_by(|a, b| {
        let stable = |index: &usize| members.get(*index).map(|member| &member.stable_name);
        stable(a).cmp(&stable(b))
    });
    let wants: Vec<BTreeSet<&Arc<str>>> =
        members.iter().map(|member| member.topics.iter().collect()).collect();
    let mut held: Vec<BTreeSet<TopicPartition>> = vec![BTreeSet::new(); members.len()];

    let mut free: BTreeSet<TopicPartition> = BTreeSet::new();
    let wanted: BTreeSet<&Arc<str>> = wants.iter().flatten().copied().collect();
    for topic in wanted {
        let count = counts.get(topic).copied().unwrap_or(0);
        free.extend((0..count).map(|partition| TopicPartition::new(topic.clone(), partition)));
    }
    for &index in &order {
        let (Some(member), Some(wants), Some(held)) =
            (members.get(index), wants.get(index), held.get_mut(index))
        else {
            continue;
        };
        for partition in &member.owned {
            // The first to name a partition keeps it: of two that claim it one is out of date.
            if wants.contains(&partition.topic) && free.remove(partition) {
                held.insert(partition.clone());
            }
        }
    }
    for partition in free {
        let takers = order
            .iter()
            .filter(|index| wants.get(**index).is_some_and(|wants| wants.contains(&partition.topic)));
        let least = takers.min_by_key(|index| held.get(**index).map_or(usize::MAX, BTreeSet::len));
        if let Some(held) = least.and_then(|index| held.get_mut(*index)) {
            held.insert(partition);
        }
    }
    // Every move makes the spread smaller, so this ends.
    while let Some((from, to, partition)) = unfair(&order, &wants, &held) {
        if let Some(held) = held.get_mut(from) {
            held.remove(&partition);
        }
        if let Some(held) = held.get_mut(to) {
            held.insert(partition);
        }
    }
    held.into_iter().map(|held| held.into_iter().collect()).collect()
}

/// A partition that should move: its holder has at least two more than another who wants it.
fn unfair(
    order: &[usize],
    wants: &[BTreeSet<&Arc<str>>],
    held: &[BTreeSet<TopicPartition>],
) -> Option<(usize, usize, TopicPartition)> {
    let mut by_load: Vec<(usize, usize)> =
        order.iter().filter_map(|index| Some((held.get(*index)?.len(), *index))).collect();
    // A stable sort: those of equal load stay in the order of their names.
    by_load.sort_by_key(|(load, _)| *load);
    for &(little, to) in &by_load {
        let wants = wants.get(to)?;
        for &(much, from) in by_load.iter().rev() {
            if much < little + 2 {
                break;
            }
            let movable = held.get(from)?.iter().rev().find(|partition| wants.contains(&partition.topic));
            if let Some(partition) = movable {
                return Some((from, to, partition.clone()));
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use rand::rngs::SmallRng;
    use rand::{RngExt, SeedableRng};

    use super::*;

    fn member(id: &str, topics: &[&str], owned: &[TopicPartition]) -> Member {
        Member {
            id: name(id),
            stable_name: name(id),
            topics: topics.iter().map(|topic| Arc::from(*topic)).collect(),
            owned: owned.to_vec(),
        }
    }

    #[test]
    fn a_subscription_and_an_assignment_survive_their_encoding() {
        let topics: Vec<Arc<str>> = vec![Arc::from("a"), Arc::from("b")];
        let owned =
            vec![TopicPartition::new("a", 0), TopicPartition::new("a", 4), TopicPartition::new("b", 1)];
        for revision in [0, 7] {
            let bytes = encode_subscription(&topics, &owned, revision);
            assert_eq!(decode_subscription(bytes), Some((topics.clone(), owned.clone())));
        }
        assert_eq!(decode_assignment(encode_assignment(&owned)), Some(owned));
        assert_eq!(decode_assignment(Bytes::new()), Some(vec![]));
    }

    #[test]
    fn damaged_subscriptions_and_assignments_are_refused_without_a_panic() {
        let seed: u64 = rand::random();
        println!("seed {seed}");
        let mut random = SmallRng::seed_from_u64(seed);
        let owned = [TopicPartition::new("a", 0), TopicPartition::new("b", 1)];
        let good = encode_subscription(&[Arc::from("a")], &owned, 1);
        for length in 0..good.len() {
            assert_eq!(decode_subscription(good.slice(..length)), None);
        }
        for _ in 0..5000 {
            let mut bytes = good.to_vec();
            for _ in 0..3 {
                let at = random.random_range(0..bytes.len());
                bytes[at] = random.random();
            }
            let _ = decode_subscription(bytes.clone().into());
            let _ = decode_assignment(bytes.into());
        }
    }

    #[test]
    fn every_partition_goes_to_one_member_that_wants_it_and_loads_are_even() {
        let seed: u64 = rand::random();
        println!("seed {seed}");
        let mut random = SmallRng::seed_from_u64(seed);
        for _ in 0..500 {
            let topics = ["a", "b", "c"];
            let counts: HashMap<Arc<str>, i32> =
                topics.iter().map(|topic| (Arc::from(*topic), random.random_range(0..12))).collect();
            let uniform = random.random_bool(0.5);
            let count = random.random_range(1..7);
            let mut members: Vec<Member> = (0..count)
                .map(|index| {
                    let wanted: Vec<&str> =
                        topics.iter().filter(|_| uniform || random.random_bool(0.6)).copied().collect();
                    let claims = random.random_range(0..6);
                    let owned: Vec<TopicPartition> = (0..claims)
                        .map(|_| {
                            TopicPartition::new(
                                topics[random.random_range(0..3)],
                                random.random_range(-1..14),
                            )
                        })
                        .collect();
                    member(&format!("m{index}"), &wanted, &owned)
                })
                .collect();
            let assigned = assign(&members, &counts);
            let mut seen = BTreeSet::new();
            for (member, partitions) in members.iter().zip(&assigned) {
                for partition in partitions {
                    assert!(member.topics.contains(&partition.topic), "{partition} to one who did not ask");
                    assert!((0..counts[&partition.topic]).contains(&partition.partition), "{partition}");
                    assert!(seen.insert(partition.clone()), "{partition} twice");
                }
            }
            for (topic, count) in &counts {
                let wanted = members.iter().any(|member| member.topics.contains(topic));
                let covered = seen.iter().filter(|partition| partition.topic == *topic).count();
                assert_eq!(covered, if wanted { *count as usize } else { 0 }, "{topic}");
            }
            if uniform {
                let loads: Vec<usize> = assigned.iter().map(Vec::len).collect();
                assert!(loads.iter().max().unwrap() - loads.iter().min().unwrap() <= 1, "{loads:?}");
            }
            // Nothing moves where nothing changed.
            for (member, partitions) in members.iter_mut().zip(&assigned) {
                member.owned.clone_from(partitions);
            }
            assert_eq!(assign(&members, &counts), assigned);
        }
    }

    #[test]
    fn a_new_member_takes_only_its_fair_share_and_a_leaver_leaves_the_rest_in_place() {
        let counts = HashMap::from([(Arc::from("t"), 10)]);
        let two = assign(&[member("a", &["t"], &[]), member("b", &["t"], &[])], &counts);
        let three = [member("a", &["t"], &two[0]), member("b", &["t"], &two[1]), member("c", &["t"], &[])];
        let joined = assign(&three, &counts);
        assert_eq!(joined[2].len(), 3);
        for index in 0..2 {
            assert!(joined[index].iter().all(|partition| two[index].contains(partition)));
        }
        let left = assign(&[member("a", &["t"], &joined[0]), member("c", &["t"], &joined[2])], &counts);
        assert!(joined[0].iter().all(|partition| left[0].contains(partition)));
        assert!(joined[2].iter().all(|partition| left[1].contains(partition)));
    }
}
