//! Requests of tools and commits about groups: OffsetCommit, OffsetFetch, OffsetDelete, ListGroups,
//! DescribeGroups, DeleteGroups.

use kafka_protocol::ResponseError;
use kafka_protocol::messages::delete_groups_response::DeletableGroupResult;
use kafka_protocol::messages::describe_groups_response::{DescribedGroup, DescribedGroupMember};
use kafka_protocol::messages::list_groups_response::ListedGroup;
use kafka_protocol::messages::offset_commit_response::{
    OffsetCommitResponsePartition, OffsetCommitResponseTopic,
};
use kafka_protocol::messages::offset_delete_response::{
    OffsetDeleteResponsePartition, OffsetDeleteResponseTopic,
};
use kafka_protocol::messages::offset_fetch_response::{
    OffsetFetchResponseGroup, OffsetFetchResponsePartition, OffsetFetchResponsePartitions,
    OffsetFetchResponseTopic, OffsetFetchResponseTopics,
};
use kafka_protocol::messages::{
    DeleteGroupsRequest, DeleteGroupsResponse, DescribeGroupsRequest, DescribeGroupsResponse, GroupId,
    ListGroupsRequest, ListGroupsResponse, OffsetCommitRequest, OffsetCommitResponse, OffsetDeleteRequest,
    OffsetDeleteResponse, OffsetFetchRequest, OffsetFetchResponse, TopicName,
};
use kafka_protocol::protocol::StrBytes;
use uuid::Uuid;

use super::groups::{code, text};
use super::{Context, Targets};
use crate::dev_kafka::CommittedOffset;
use crate::dev_kafka::groups::{Caller, Commit, Group, State};

/// Longest metadata of a committed offset: Kafka's `offset.metadata.max.bytes`.
const MAX_METADATA: usize = 4096;
/// First version that fetches the offsets of several groups (KIP-709).
const BATCHED_FETCH_SINCE: i16 = 8;
/// First version with an error for the whole answer.
const FETCH_ERROR_SINCE: i16 = 2;
/// First version in which an unknown group is an error and not a dead group (KIP-1043).
const UNKNOWN_GROUP_SINCE: i16 = 6;
/// Type of this coordinator's groups since KIP-848.
const CLASSIC: &str = "classic";

pub(super) fn commit_targets(_: &Context, request: &OffsetCommitRequest) -> Targets {
    let mut targets = vec![(StrBytes::new(), -1)];
    for topic in &request.topics {
        targets.extend(
            topic.partitions.iter().map(|partition| (topic.name.0.clone(), partition.partition_index)),
        );
    }
    targets
}

pub(super) fn offset_commit(context: &mut Context, request: OffsetCommitRequest) -> OffsetCommitResponse {
    let whole = context.check_coordinator().err();
    let mut commits = Vec::new();
    let mut response = OffsetCommitResponse::default();
    for topic in &request.topics {
        let mut answers = OffsetCommitResponseTopic::default().with_name(topic.name.clone());
        for wanted in &topic.partitions {
            let index = wanted.partition_index;
            let metadata = wanted.committed_metadata.as_ref().map(ToString::to_string).unwrap_or_default();
            let exists = context
                .find_topic(&topic.name, Uuid::nil())
                .is_ok_and(|topic| topic.partition(index).is_some());
            let fault = context.fault(&topic.name, index);
            let error_code = match whole.or(fault) {
                Some(code) => code,
                None if !exists => ResponseError::UnknownTopicOrPartition.code(),
                None if metadata.len() > MAX_METADATA => ResponseError::OffsetMetadataTooLarge.code(),
                None => 0,
            };
            if error_code == 0 {
                commits.push(Commit {
                    topic: topic.name.to_string(),
                    partition: index,
                    committed: CommittedOffset {
                        offset: wanted.committed_offset,
                        leader_epoch: wanted.committed_leader_epoch,
                        metadata,
                    },
                });
            }
            let answer = OffsetCommitResponsePartition::default()
                .with_partition_index(index)
                .with_error_code(error_code);
            answers.partitions.push(answer);
        }
        response.topics.push(answers);
    }
    if whole.is_none() {
        let caller = Caller {
            group: request.group_id.to_string(),
            generation: request.generation_id_or_member_epoch,
            member_id: request.member_id.to_string(),
            instance_id: request.group_instance_id.as_ref().map(ToString::to_string),
        };
        let refused = code(context.cluster.groups.commit(&context.cluster, &caller, commits));
        let open = response
            .topics
            .iter_mut()
            .flat_map(|topic| &mut topic.partitions)
            .filter(|one| one.error_code == 0);
        open.for_each(|partition| partition.error_code = refused);
    }
    response
}

/// A partition of an OffsetFetch answer, in whatever version.
struct Found {
    topic: TopicName,
    partition: i32,
    committed: Option<CommittedOffset>,
}

/// The committed offsets of a group: those asked for, or all.
fn committed(context: &Context, group: &str, wanted: Option<Vec<(TopicName, Vec<i32>)>>) -> Vec<Found> {
    context.cluster.groups.with(|coordinator, _| {
        let group = coordinator.groups().get(group);
        let all = group.into_iter().flat_map(Group::offsets);
        let Some(wanted) = wanted else {
            let found = all.map(|((topic, partition), committed)| Found {
                topic: TopicName(text(topic.clone())),
                partition: *partition,
                committed: Some(committed.clone()),
            });
            return found.collect();
        };
        let at = |topic: &TopicName, partition: i32| {
            group?.offsets().get(&(topic.to_string(), partition)).cloned()
        };
        let pairs = wanted.into_iter().flat_map(|(topic, partitions)| {
            partitions.into_iter().map(move |partition| (topic.clone(), partition))
        });
        pairs.map(|(topic, partition)| Found { committed: at(&topic, partition), topic, partition }).collect()
    })
}

const NOTHING: CommittedOffset = CommittedOffset { offset: -1, leader_epoch: -1, metadata: String::new() };

pub(super) fn offset_fetch(context: &mut Context, request: OffsetFetchRequest) -> OffsetFetchResponse {
    let whole = context.check_coordinator().err().unwrap_or(0);
    if context.version >= BATCHED_FETCH_SINCE {
        let mut response = OffsetFetchResponse::default();
        for group in request.groups {
            let mut answer = OffsetFetchResponseGroup::default()
                .with_group_id(group.group_id.clone())
                .with_error_code(whole);
            let wanted = group
                .topics
                .map(|topics| topics.into_iter().map(|one| (one.name, one.partition_indexes)).collect());
            let found = if whole == 0 { committed(context, &group.group_id, wanted) } else { Vec::new() };
            for one in found {
                let error_code = context.fault(&one.topic, one.partition).unwrap_or(0);
                let committed = one.committed.unwrap_or(NOTHING);
                let partition = OffsetFetchResponsePartitions::default()
                    .with_partition_index(one.partition)
                    .with_committed_offset(committed.offset)
                    .with_committed_leader_epoch(committed.leader_epoch)
                    .with_metadata(Some(text(committed.metadata)))
                    .with_error_code(error_code);
                if let Some(topic) = answer.topics.last_mut().filter(|last| last.name == one.topic) {
                    topic.partitions.push(partition);
                } else {
                    let topic = OffsetFetchResponseTopics::default().with_name(one.topic);
                    answer.topics.push(topic.with_partitions(vec![partition]));
                }
            }
            response.groups.push(answer);
        }
        return response;
    }
    let mut response = OffsetFetchResponse::default();
    if context.version >= FETCH_ERROR_SINCE {
        response.error_code = whole;
    }
    let wanted = request
        .topics
        .map(|topics| topics.into_iter().map(|one| (one.name, one.partition_indexes)).collect());
    for one in committed(context, &request.group_id, wanted) {
        let error_code =
            if whole == 0 { context.fault(&one.topic, one.partition).unwrap_or(0) } else { whole };
        let committed = one.committed.filter(|_| whole == 0).unwrap_or(NOTHING);
        let partition = OffsetFetchResponsePartition::default()
            .with_partition_index(one.partition)
            .with_committed_offset(committed.offset)
            .with_committed_leader_epoch(committed.leader_epoch)
            .with_metadata(Some(text(committed.metadata)))
            .with_error_code(error_code);
        if let Some(topic) = response.topics.last_mut().filter(|last| last.name == one.topic) {
            topic.partitions.push(partition);
        } else {
            let topic = OffsetFetchResponseTopic::default().with_name(one.topic);
            response.topics.push(topic.with_partitions(vec![partition]));
        }
    }
    response
}

pub(super) fn offset_delete(context: &mut Context, request: OffsetDeleteRequest) -> OffsetDeleteResponse {
    let group = request.group_id.to_string();
    let empty =
        context.cluster.groups.with(|coordinator, _| coordinator.groups().get(&group).map(Group::is_empty));
    let whole = match (context.check_coordinator(), empty) {
        (Err(code), _) => code,
        (Ok(()), None) => ResponseError::GroupIdNotFound.code(),
        (Ok(()), Some(_)) => 0,
    };
    let mut response = OffsetDeleteResponse::default().with_error_code(whole);
    if whole != 0 {
        return response;
    }
    for topic in request.topics {
        let mut answers = OffsetDeleteResponseTopic::default().with_name(topic.name.clone());
        for wanted in topic.partitions {
            let index = wanted.partition_index;
            // Which topics a member subscribed to stands in its metadata, which is opaque here: any member
            // protects all.
            let result = if empty == Some(true) {
                let is_it = |name: &str, partition: i32| name == topic.name.as_str() && partition == index;
                context.cluster.groups.forget(&context.cluster, &group, is_it).map(|_| ())
            } else {
                Err(ResponseError::GroupSubscribedToTopic)
            };
            let answer = OffsetDeleteResponsePartition::default().with_partition_index(index);
            answers.partitions.push(answer.with_error_code(code(result)));
        }
        response.topics.push(answers);
    }
    response
}

pub(super) fn list_groups(context: &mut Context, request: ListGroupsRequest) -> ListGroupsResponse {
    if let Err(code) = context.check_coordinator() {
        // Every broker lists the groups that it coordinates: the others have none.
        let none = code == ResponseError::NotCoordinator.code();
        return ListGroupsResponse::default().with_error_code(if none { 0 } else { code });
    }
    let named = |wanted: &[StrBytes], name: &str| {
        wanted.is_empty() || wanted.iter().any(|one| one.eq_ignore_ascii_case(name))
    };
    let groups = context.cluster.groups.with(|coordinator, _| {
        let shown = coordinator.groups().iter().filter(|(_, group)| {
            named(&request.states_filter, group.state.name()) && named(&request.types_filter, CLASSIC)
        });
        let listed = shown.map(|(name, group)| {
            ListedGroup::default()
                .with_group_id(GroupId(text(name.clone())))
                .with_protocol_type(text(group.protocol_type.clone().unwrap_or_default()))
                .with_group_state(StrBytes::from_static_str(group.state.name()))
                .with_group_type(StrBytes::from_static_str(CLASSIC))
        });
        listed.collect()
    });
    ListGroupsResponse::default().with_groups(groups)
}

pub(super) fn describe_groups(
    context: &mut Context,
    request: DescribeGroupsRequest,
) -> DescribeGroupsResponse {
    let checked = context.check_coordinator();
    let version = context.version;
    let groups = request.groups.into_iter().map(|id| {
        let answer = DescribedGroup::default().with_group_id(id.clone());
        if let Err(code) = checked {
            return answer.with_error_code(code);
        }
        context.cluster.groups.with(|coordinator, _| match coordinator.groups().get(id.as_str()) {
            Some(group) => describe(group, answer),
            None if version >= UNKNOWN_GROUP_SINCE => answer
                .with_error_code(ResponseError::GroupIdNotFound.code())
                .with_error_message(Some(text(format!("Group {} not found.", id.as_str()))))
                .with_group_state(StrBytes::from_static_str("Dead")),
            None => answer.with_group_state(StrBytes::from_static_str("Dead")),
        })
    });
    DescribeGroupsResponse::default().with_groups(groups.collect())
}

fn describe(group: &Group, answer: DescribedGroup) -> DescribedGroup {
    let stable = group.state == State::Stable;
    let protocol = group.protocol.clone().filter(|_| stable).unwrap_or_default();
    let members = group.members().iter().map(|(id, member)| {
        let described = DescribedGroupMember::default()
            .with_member_id(text(id.clone()))
            .with_group_instance_id(member.instance_id.clone().map(text))
            .with_client_id(text(member.client_id.clone()))
            .with_client_host(text(member.client_host.clone()));
        if stable {
            described
                .with_member_metadata(member.metadata(&protocol))
                .with_member_assignment(member.assignment.clone())
        } else {
            described
        }
    });
    answer
        .with_group_state(StrBytes::from_static_str(group.state.name()))
        .with_protocol_type(text(group.protocol_type.clone().unwrap_or_default()))
        .with_members(members.collect())
        .with_protocol_data(text(protocol.clone()))
}

pub(super) fn delete_groups(context: &mut Context, request: DeleteGroupsRequest) -> DeleteGroupsResponse {
    let mut response = DeleteGroupsResponse::default();
    for id in request.groups_names {
        let error_code = match context.check_coordinator() {
            Err(code) => code,
            Ok(()) => code(context.cluster.groups.delete(&context.cluster, &id)),
        };
        response.results.push(DeletableGroupResult::default().with_group_id(id).with_error_code(error_code));
    }
    response
}
